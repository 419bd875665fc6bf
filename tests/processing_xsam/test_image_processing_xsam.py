"""Images of all kinds, their geometry, and the pixel values of the original."""

from __future__ import annotations

import base64
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from processing_xsam.image_processing_xsam import (
    default_high_res_image_processor,
    default_image_processor,
    load_image,
    pad_to_square,
    resize_longest_side,
    scaled_size,
)
from processing_xsam.processing_xsam import XSAMProcessor

RED, GREEN = (255, 0, 0), (0, 255, 0)


def pixels_of(image) -> np.ndarray:
    return np.asarray(load_image(image))


def encoded(image: Image.Image, file_format: str = "PNG", **kwargs) -> bytes:
    stream = BytesIO()
    image.save(stream, file_format, **kwargs)
    return stream.getvalue()


def golden_processor(tokenizer, pad_to_square: bool, resample: int) -> XSAMProcessor:
    low = default_image_processor(56)
    low.resample = resample
    return XSAMProcessor(low, default_high_res_image_processor(128), tokenizer, pad_to_square=pad_to_square)


# --- the original's numbers ---


@pytest.mark.parametrize("padding, prefix", [(False, "siglip"), (True, "siglip_square")])
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_pixel_values_are_those_of_the_original(goldens, processor, padding, prefix, resample):
    recorded = goldens.tensors("k_preprocess")
    ours = golden_processor(processor.tokenizer, padding, resample)
    outputs = ours(images=recorded["in.image_uint8"].numpy(), task="grounded-conversation")
    torch.testing.assert_close(outputs["high_res_pixel_values"], recorded["out.sam.pixel_values"], atol=2e-6, rtol=0)
    expected = recorded[f"out.{prefix}.{resample.name.lower()}"]
    torch.testing.assert_close(outputs["pixel_values"], expected, atol=2e-6, rtol=0)
    assert outputs["pixel_values"].dtype == outputs["high_res_pixel_values"].dtype == torch.float32


def test_scaled_size_is_that_of_the_original(goldens):
    case = goldens.case("k_preprocess")
    assert [scaled_size(tuple(case["image_hw"]), 128)] == [tuple(size) for size in case["scaled_sizes"]]


# --- geometry ---


@pytest.mark.parametrize(
    "size, expected",
    [
        ((180, 320), (72, 128)),
        ((1, 1), (128, 128)),
        ((1, 4000), (1, 128)),
        ((4000, 1), (128, 1)),
        ((3, 256), (2, 128)),
    ],
)
def test_scaled_size(size, expected):
    assert scaled_size(size, 128) == expected


def test_pad_to_square_centres_on_grey():
    image = Image.new("RGB", (4, 1), RED)
    pixels = np.asarray(pad_to_square(image))
    assert pixels.shape == (4, 4, 3)
    assert (pixels[1] == RED).all() and (np.delete(pixels, 1, axis=0) == 127).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (800, 12000)])
def test_extreme_sizes_become_model_inputs(processor, size):
    image = Image.new("RGB", (size[1], size[0]), (124, 116, 104))
    outputs = processor(images=image, task="grounded-conversation")
    assert outputs["pixel_values"].shape == (1, 3, 14, 14)
    high = outputs["high_res_pixel_values"][0]
    height, width = scaled_size(size, 32)
    assert high.shape == (3, 32, 32) and torch.isfinite(high).all()
    assert (high[:, :height, :width] != 0).all()
    assert (high[:, height:] == 0).all() and (high[:, :, width:] == 0).all()


def test_resize_longest_side_keeps_proportions():
    assert resize_longest_side(Image.new("RGB", (100, 50)), 32).size == (32, 16)


# --- sources ---


def test_all_sources_give_the_same_pixels(image, tmp_path):
    expected = np.asarray(image)
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(image))
    data_uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (image, path, str(path), path.read_bytes(), bytearray(path.read_bytes()), data_uri):
        np.testing.assert_array_equal(pixels_of(source), expected)


def test_url(image, tmp_path):
    (tmp_path / "picture.png").write_bytes(encoded(image))

    class QuietHandler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        np.testing.assert_array_equal(pixels_of(f"{url}/picture.png"), np.asarray(image))
        with pytest.raises(Exception, match="404"):
            load_image(f"{url}/missing.png")
        server.shutdown()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float32, np.float64])
def test_arrays_in_every_layout_and_type(image, dtype):
    expected = np.asarray(image)
    factor = {np.uint16: 257, np.float32: 1 / 255, np.float64: 1 / 255}.get(dtype, 1)
    array = (expected * np.float64(factor)).astype(dtype)
    for source in (array, array.transpose(2, 0, 1), torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1)):
        np.testing.assert_array_equal(pixels_of(source), expected)


def test_bfloat16_and_bool_arrays():
    assert (pixels_of(torch.ones(3, 4, 5, dtype=torch.bfloat16)) == 255).all()
    assert pixels_of(np.eye(3, dtype=bool))[..., 0].tolist() == (np.eye(3) * 255).tolist()


def test_ambiguous_layout_follows_the_library_of_the_array():
    array = np.zeros((3, 5, 3), dtype=np.uint8)
    assert load_image(array).size == (5, 3)
    assert load_image(torch.from_numpy(array)).size == (3, 5)


# --- modes ---


def test_greyscale_becomes_three_equal_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for source in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(pixels_of(source), np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_dropped():
    rgba = np.array([[[10, 20, 30, 0], [40, 50, 60, 128]]], dtype=np.uint8)
    for source in (rgba, Image.fromarray(rgba)):
        assert pixels_of(source).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_sixteen_bit_png_is_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    assert pixels_of(encoded(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels_of(Image.fromarray(values.astype(np.int32)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    assert pixels_of(encoded(image)).tolist() == [[list(RED), list(GREEN)]]


def test_cmyk():
    image = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert pixels_of(image).tolist() == [[list(RED)]]


def test_exif_rotation_is_applied(processor):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise
    source = encoded(image, exif=exif)
    assert pixels_of(source).tolist() == [[list(RED)], [list(GREEN)]]
    assert processor.get_image_size(source) == (2, 1)
    # Coordinates refer to the upright picture: y = 1 exists in it, x = 1 does not.
    processor(images=source, task="interactive", points=[[0, 1]])
    with pytest.raises(ValueError, match="outside the image"):
        processor(images=source, task="interactive", points=[[1, 0]])


# --- errors ---


def test_truncated_file_is_named(image, tmp_path):
    path = tmp_path / "half.jpg"
    data = encoded(image.resize((200, 200)), "JPEG")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"half\.jpg is truncated or damaged"):
        load_image(path)
    with pytest.raises(ValueError, match="bytes is truncated or damaged"):
        load_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    "source, error, message",
    [
        (b"no image", ValueError, "bytes is not an image"),
        ("data:image/png;base64,!!!", ValueError, "not an image"),
        ("nowhere/picture.png", FileNotFoundError, r"nowhere/picture\.png"),
        (7, TypeError, "cannot read an image from int"),
        (np.full((2, 2), 1.5), ValueError, r"float64 array with values in 1\.5\.\.1\.5, expected 0\.\.1"),
        (np.full((2, 2), np.nan), ValueError, "expected 0..1"),
        (np.full((2, 2), -1), ValueError, "expected 0..255"),
        (np.zeros((2, 2, 2)), ValueError, "no axis of 1, 3 or 4 channels"),
        (np.zeros((2, 3, 4, 4)), ValueError, "give a batch as a list"),
        (np.zeros((0, 4)), ValueError, r"shape \(0, 4\)"),
        (Image.fromarray(np.full((1, 1), 70000, dtype=np.int32)), ValueError, "70000, expected 16 bits"),
    ],
)
def test_bad_images(source, error, message):
    with pytest.raises(error, match=message):
        load_image(source)
