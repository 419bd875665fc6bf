"""Images of any kind -> RGB, and the geometry of the two image inputs.

The stock SigLIP and SAM image processors do the normalising and padding. Resizing is done here, with PIL: the original
was trained on PIL's filters, and an image processor that was saved with the PIL backend is loaded again with the
torchvision one, whose filters differ by a grey level here and there. An image that already has its final size passes
unchanged through the resizing of either backend.
"""

from __future__ import annotations

import base64
import binascii
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_session
from PIL import Image, ImageOps
from transformers import SamImageProcessor, SiglipImageProcessor

SQUARE_PADDING_VALUE = 127
MAX_PATH_LENGTH = 4096
URL_TIMEOUT_SECONDS = 60


def default_image_processor(size: int = 384) -> SiglipImageProcessor:
    """The SigLIP 2 input: an image of `size` x `size` pixels, bilinear, with mean and standard deviation 0.5."""
    return SiglipImageProcessor(size={"height": size, "width": size}, resample=Image.Resampling.BILINEAR)


def default_high_res_image_processor(size: int = 1024) -> SamImageProcessor:
    """The SAM input: longest side `size`, ImageNet mean and standard deviation, then zeros at the bottom or right."""
    return SamImageProcessor(size={"longest_edge": size}, pad_size={"height": size, "width": size})


def scaled_size(image_size: tuple[int, int], target: int) -> tuple[int, int]:
    """Size of an image after its longest side was scaled to `target`.

    Args:
        image_size: (height, width) in pixels.
        target: the longest side after scaling, in pixels.

    Returns:
        (height, width), each at least 1: a strip thinner than half a pixel keeps one.
    """
    height, width = image_size
    scale = target / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_longest_side(image: Image.Image, target: int, resample: int = Image.Resampling.BILINEAR) -> Image.Image:
    """Scale an image so that its longest side is `target` pixels (see `scaled_size`)."""
    height, width = scaled_size((image.height, image.width), target)
    return image.resize((width, height), resample)


def resize_to(image: Image.Image, size: tuple[int, int], resample: int = Image.Resampling.BILINEAR) -> Image.Image:
    """Scale an image to `size` = (height, width) pixels, whatever its proportions."""
    return image.resize((size[1], size[0]), resample)


def pad_to_square(image: Image.Image, value: int = SQUARE_PADDING_VALUE) -> Image.Image:
    """Centre an RGB image on a grey square as wide as its longest side; an odd pixel goes to the bottom or right."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (value, value, value))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def load_image(image: Any) -> Image.Image:
    """Read an image of any usual kind as upright 8-bit RGB.

    EXIF rotation is applied, so coordinates refer to the picture as a viewer shows it. 16-bit images are scaled to 8
    bits. An alpha channel is dropped.

    Args:
        image: a `PIL.Image.Image`, a path, a URL, a `data:image/` string, the bytes of an image file, or an array or
            tensor of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels: uint8, uint16 (scaled), other
            integers in 0..255, bool, or floats in 0..1.

    Raises:
        ValueError: the file is truncated or no image, the array has another shape or values outside its range.
        FileNotFoundError: there is no such file.
        TypeError: the object is none of the above.
    """
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return _array_to_rgb(image)
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image, source=f"{type(image).__name__} object")
    if not isinstance(image, (bytes, bytearray, str, Path)):
        raise TypeError(
            f"`images`: cannot read an image from {type(image).__name__}; give a PIL image, an array, a tensor, a path, a URL or bytes"
        )
    source = "bytes" if isinstance(image, (bytes, bytearray)) else str(image)[:200]
    with _open_encoded(image, source) as opened:
        return _pil_to_rgb(opened, source)


def _open_encoded(image: bytes | bytearray | str | Path, source: str) -> Image.Image:
    try:
        return Image.open(_byte_stream(image))
    except FileNotFoundError:
        raise
    except (OSError, binascii.Error) as error:
        raise ValueError(f"`images`: {source} is not an image that can be read ({error})") from error


def _byte_stream(image: bytes | bytearray | str | Path) -> BytesIO | Path:
    if isinstance(image, (bytes, bytearray)):
        return BytesIO(image)
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return BytesIO(_download(image))
    if isinstance(image, str) and image.startswith("data:image/"):
        return BytesIO(base64.b64decode(image.partition(",")[2], validate=True))
    path = Path(image)
    # A name that no file system takes is no file either.
    if len(str(path)) > MAX_PATH_LENGTH or not path.is_file():
        raise FileNotFoundError(f"`images`: there is no file {str(path)[:200]!r}")
    return path


def _download(url: str) -> bytes:
    try:
        response = get_session().get(url, timeout=URL_TIMEOUT_SECONDS, follow_redirects=True)
        response.raise_for_status()
    # The session's library, and with it the kind of its errors, depends on the version of huggingface_hub.
    except Exception as error:
        raise ValueError(f"`images`: {url[:200]} cannot be downloaded ({error})") from error
    return response.content


def _pil_to_rgb(image: Image.Image, source: str) -> Image.Image:
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"`images`: {source} is truncated or damaged ({error}); save or download it again") from error
    if upright.mode.startswith("I"):
        # PIL's own conversion clips at 255. "I" is how some versions of PIL open the same 16-bit files as "I;16".
        values = np.asarray(upright)
        if upright.mode == "I" and 1 < int(values.max()) <= 255:
            raise ValueError(
                f"`images`: {source} is a 32-bit image with values up to {int(values.max())}, which may mean 8 or 16 bits; "
                "convert it to mode 'L' or 'I;16' first"
            )
        return _array_to_rgb(_sixteen_bit(values))
    if upright.mode == "F":
        return _array_to_rgb(np.asarray(upright))
    return upright.convert("RGB")


def _sixteen_bit(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"`images`: integer image with values in {low}..{high}, expected 16 bits (0..65535); scale it first"
        )
    return values.astype(np.uint16)


def _array_to_rgb(image: np.ndarray | torch.Tensor) -> Image.Image:
    is_tensor = isinstance(image, torch.Tensor)
    # numpy has no bfloat16
    array = image.detach().cpu() if is_tensor else image
    array = (array.float() if is_tensor and array.is_floating_point() else array).__array__()
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"`images`: array of shape {tuple(array.shape)}, expected (H, W), (H, W, C) or (C, H, W); give a batch as a list of images"
        )
    pixels = _to_uint8(array)
    if pixels.ndim == 3:
        pixels = _channels_last(pixels, prefer_first=is_tensor)
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = array.min(), array.max()
    limit = 1 if np.issubdtype(array.dtype, np.floating) else 255
    if not (low >= 0 and high <= limit):  # also false for NaN
        raise ValueError(
            f"`images`: {array.dtype} array with values in {low}..{high}, expected 0..{limit}; scale it or convert it to uint8"
        )
    return np.rint(array * 255).astype(np.uint8) if limit == 1 else array.astype(np.uint8)


def _channels_last(array: np.ndarray, prefer_first: bool) -> np.ndarray:
    first, last = (array.shape[axis] in (1, 3, 4) for axis in (0, -1))
    if not first and not last:
        raise ValueError(
            f"`images`: array of shape {array.shape} has no axis of 1, 3 or 4 channels at its start or end"
        )
    return np.moveaxis(array, 0, -1) if first and (prefer_first or not last) else array
