"""Visual prompts as masks: which pixels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from processing_xsam.region_masks_xsam import (
    masks_from_boxes,
    masks_from_masks,
    masks_from_points,
    masks_from_scribbles,
    resize_region_masks,
)

SIZE = (10, 20)


def pixels(mask: torch.Tensor) -> set[tuple[int, int]]:
    """(x, y) of the pixels that are set."""
    return {(x, y) for y, x in torch.nonzero(mask).tolist()}


def rectangle(x0: int, y0: int, x1: int, y1: int) -> set[tuple[int, int]]:
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


# --- drawing ---


def test_each_point_is_an_object():
    masks = masks_from_points([[3, 4], [19.5, 9.5]], SIZE, radius=0.1)
    assert masks.shape == (2, *SIZE) and masks.dtype == torch.bool
    assert [pixels(mask) for mask in masks] == [{(3, 4)}, {(19, 9)}]


def test_a_list_of_points_is_one_object():
    (mask,) = masks_from_points([[[3, 4], [7, 8]]], SIZE, radius=0.1)
    assert pixels(mask) == {(3, 4), (7, 8)}


def test_points_may_be_arrays():
    for points in (np.array([[3, 4]]), torch.tensor([[3, 4]]), ((3, 4),)):
        assert pixels(masks_from_points(points, SIZE, radius=0.1)[0]) == {(3, 4)}


def test_disc_has_the_radius():
    (mask,) = masks_from_points([[10, 5]], SIZE, radius=3)
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    expected = (xs + 0.5 - 10) ** 2 + (ys + 0.5 - 5) ** 2 <= 9
    np.testing.assert_array_equal(mask.numpy(), expected)


def test_disc_is_cut_at_the_border():
    (mask,) = masks_from_points([[0, 0]], SIZE, radius=2)
    assert pixels(mask) == {(0, 0), (0, 1), (1, 0)}


def test_default_radius_grows_with_the_image():
    small, large = (masks_from_points([[50, 50]], size).sum().item() for size in [(100, 100), (1000, 1000)])
    assert small == 4 and large == pytest.approx(np.pi * 100, rel=0.05)


def test_boxes_cover_the_pixels_that_they_touch():
    masks = masks_from_boxes([[2, 3, 5, 6], [0, 0, 20, 10], [1.5, 1.5, 1.6, 1.6]], SIZE)
    assert [pixels(mask) for mask in masks] == [rectangle(2, 3, 5, 6), rectangle(0, 0, 20, 10), {(1, 1)}]


def test_scribble_is_a_thick_line():
    (thin,) = masks_from_scribbles([[[2, 5], [8, 5]]], SIZE, thickness=1)
    assert pixels(thin) == rectangle(2, 5, 9, 6)
    (thick,) = masks_from_scribbles([[[2, 5], [8, 5]]], SIZE, thickness=4)
    assert rectangle(2, 4, 8, 6) < pixels(thick)
    assert {y for _, y in pixels(thick)} <= {2, 3, 4, 5, 6, 7}


def test_scribble_with_corners_and_of_one_point():
    corner, dot = masks_from_scribbles([[[2, 2], [2, 7], [9, 7]], [[15, 3]]], SIZE, thickness=1)
    assert rectangle(2, 2, 3, 8) | rectangle(2, 7, 10, 8) == pixels(corner)
    assert pixels(dot) == {(15, 3)}


def test_masks_of_every_kind():
    inside = np.zeros(SIZE, dtype=bool)
    inside[2:4, 5:9] = True
    kinds = [inside, inside.astype(np.uint8), inside.astype(np.uint8) * 255, inside.astype(np.float32)]
    kinds += [torch.from_numpy(inside), Image.fromarray(inside), Image.fromarray(inside.astype(np.uint8) * 255)]
    for kind in kinds:
        for given in (kind, [kind]):
            assert pixels(masks_from_masks(given, SIZE)[0]) == rectangle(5, 2, 9, 4)
    assert masks_from_masks(np.stack([inside, ~inside]), SIZE).shape == (2, *SIZE)


def test_grey_mask_is_cut_at_the_middle():
    grey = np.zeros(SIZE, dtype=np.uint8)
    grey[0, :3] = (127, 128, 255)
    assert pixels(masks_from_masks(grey, SIZE)[0]) == {(1, 0), (2, 0)}


# --- geometry of the model input ---


@pytest.mark.parametrize("name", ["mask_labels", "vprompt_masks"])
def test_resizing_is_that_of_the_original(goldens, name):
    recorded = goldens.tensors("k_preprocess")
    resized = resize_region_masks(recorded[f"in.{name}"].bool(), 128)
    assert torch.equal(resized, recorded[f"out.sam.{name}"].bool())


def test_resizing_pads_at_the_bottom():
    resized = resize_region_masks(torch.ones(1, *SIZE, dtype=torch.bool), 8)
    assert resized.shape == (1, 8, 8) and pixels(resized[0]) == rectangle(0, 0, 8, 4)


def test_no_region_is_lost():
    masks = torch.zeros(3, 100, 200, dtype=torch.bool)
    for mask, (x, y) in zip(masks, [(0, 0), (199, 99), (120, 41)], strict=True):
        mask[y, x] = True
    assert [pixels(mask) for mask in resize_region_masks(masks, 8)] == [{(0, 0)}, {(7, 3)}, {(4, 1)}]


def test_a_lost_ring_keeps_one_of_its_own_pixels():
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 1, 1:63] = True
    (kept,) = pixels(resize_region_masks(mask, 8)[0])
    assert kept == (3, 0)


def test_strip_thinner_than_a_pixel():
    assert resize_region_masks(torch.ones(1, 1, 4000, dtype=torch.bool), 8)[0].sum() == 8


# --- refused ---

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "points, message",
    [
        ([], "`points` is empty"),
        ([[]], r"`points\[0\]`: expected \[x, y\]"),
        ([[1, 2, 3]], r"`points\[0\]`: expected \[x, y\]"),
        ([["a", "b"]], r"`points\[0\]`: expected numbers"),
        ([[1, 2], [NAN, 1]], r"`points\[1\]`: coordinates must be finite"),
        ([[INF, 1]], "coordinates must be finite"),
        ([[20, 1]], r"`points\[0\]`: point \[20.0, 1.0\] is outside the image of width 20 and height 10"),
        ([[1, 10]], "outside the image"),
        ([[-0.1, 1]], "outside the image"),
    ],
)
def test_bad_points(points, message):
    with pytest.raises(ValueError, match=message):
        masks_from_points(points, SIZE)


def test_points_must_be_a_list():
    with pytest.raises(TypeError, match=r"`points`: expected a list .* got int"):
        masks_from_points(3, SIZE)


@pytest.mark.parametrize(
    "boxes, message",
    [
        ([], "`boxes` is empty"),
        ([[1, 2, 3]], r"`boxes\[0\]`: expected \[x0, y0, x1, y1\]"),
        ([[1, 2, 1, 5]], r"`boxes\[0\]`.* has no area"),
        ([[1, 2, 4, 2]], "has no area"),
        ([[5, 2, 1, 5]], "x0 > x1 or y0 > y1"),
        ([[1, 5, 4, 2]], "x0 > x1 or y0 > y1"),
        ([[1, 2, NAN, 5]], "must be finite"),
        ([[1, 2, INF, 5]], "must be finite"),
        ([[1, 2, 21, 5]], "reaches outside the image of width 20 and height 10; clip it"),
        ([[-1, 2, 3, 5]], "reaches outside"),
    ],
)
def test_bad_boxes(boxes, message):
    with pytest.raises(ValueError, match=message):
        masks_from_boxes(boxes, SIZE)


@pytest.mark.parametrize(
    "scribbles, message",
    [
        ([], "`scribbles` is empty"),
        ([[]], r"`scribbles\[0\]`"),
        ([[[1, 2], [NAN, 2]]], "must be finite"),
        ([[[1, 2], [30, 2]]], "outside the image"),
    ],
)
def test_bad_scribbles(scribbles, message):
    with pytest.raises(ValueError, match=message):
        masks_from_scribbles(scribbles, SIZE)


@pytest.mark.parametrize(
    "masks, message",
    [
        ([], "`masks` is empty"),
        (np.zeros(SIZE, dtype=bool), r"`masks\[0\]` is empty"),
        (np.ones((20, 10), dtype=bool), r"`masks\[0\]`: shape \(20, 10\).*\(10, 20\); resize the mask"),
        (np.full(SIZE, NAN), "expected bool, 0/1 or 0..255"),
        (np.full(SIZE, 300), "values in 300..300"),
        (np.full(SIZE, -1), "values in -1..-1"),
    ],
)
def test_bad_masks(masks, message):
    with pytest.raises(ValueError, match=message):
        masks_from_masks(masks, SIZE)
