import numpy as np
import pytest
from scipy import ndimage

from xsam_training.data import visual_prompts
from xsam_training.data.visual_prompts import (
    PROMPT_KEYS,
    draw_visual_prompts,
    prompt_rng,
    widen,
)

HEIGHT, WIDTH = 120, 160


def blank() -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH), dtype=bool)


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = blank()
    mask[top:bottom, left:right] = True
    return mask


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def centre(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return columns.mean() + 0.5, rows.mean() + 0.5


OBJECT = rectangle(40, 20, 120, 100)
RING = disc(80, 60, 50) & ~disc(80, 60, 44)
PIXEL = rectangle(7, 3, 8, 4)
FULL = np.ones((HEIGHT, WIDTH), dtype=bool)
LINE = rectangle(0, 60, WIDTH, 61)
CORNER = rectangle(WIDTH - 2, HEIGHT - 2, WIDTH, HEIGHT)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mask", [OBJECT, RING, PIXEL, FULL, LINE, CORNER])
def test_every_prompt_shows_some_of_the_object(mask, seed):
    for kind, prompt in draw_visual_prompts(mask, prompt_rng(seed, 1)).by_kind().items():
        assert prompt.dtype == bool and prompt.shape == mask.shape
        assert (prompt & mask).any(), kind


def test_all_kinds_have_a_name_in_files():
    assert list(draw_visual_prompts(OBJECT, prompt_rng(0, 0)).by_kind()) == list(PROMPT_KEYS)


def test_same_seed_and_annotation_same_prompts():
    first, again = (draw_visual_prompts(OBJECT, prompt_rng(3, 900100478194)) for _ in range(2))
    for kind, prompt in first.by_kind().items():
        assert (prompt == again.by_kind()[kind]).all()


@pytest.mark.parametrize("other", [prompt_rng(4, 7), prompt_rng(3, 8)])
def test_other_seed_or_annotation_other_prompts(other):
    first, second = draw_visual_prompts(OBJECT, prompt_rng(3, 7)), draw_visual_prompts(OBJECT, other)
    assert (first.point != second.point).any()
    assert (first.scribble != second.scribble).any()
    assert (first.box != second.box).any()


def test_point_is_a_disc_of_the_published_radius_around_a_pixel_of_the_object():
    for annotation in range(50):
        point = draw_visual_prompts(OBJECT, prompt_rng(0, annotation)).point
        x, y = centre(point)
        assert OBJECT[int(y), int(x)]
        assert (point == disc(x, y, 10)).all()
        # Half the shorter side is the furthest from the centre.
        assert np.hypot(x - 80, y - 60) <= 40


def test_point_of_a_ring_lies_on_the_ring():
    point = draw_visual_prompts(RING, prompt_rng(0, 0), point_radius=1).point
    x, y = centre(point)
    assert RING[int(y), int(x)]


def test_parts_are_pointed_at_by_their_area_and_specks_never():
    large, small, speck = rectangle(0, 0, 60, 60), rectangle(100, 0, 130, 40), rectangle(150, 110, 152, 112)
    points = [
        draw_visual_prompts(large | small | speck, prompt_rng(0, each), point_radius=0.5).point for each in range(300)
    ]
    assert not any((point & speck).any() for point in points)
    share = np.mean([(point & small).any() for point in points])
    assert share == pytest.approx(1200 / 4800, abs=0.08)


def test_parts_that_touch_at_a_corner_are_one():
    mask = rectangle(0, 0, 20, 20) | rectangle(20, 20, 40, 40)
    assert ndimage.label(mask)[1] == 2
    scribbles = [draw_visual_prompts(mask, prompt_rng(0, each)).scribble for each in range(5)]
    assert all((scribble & mask).any() and bounds(scribble)[2] - bounds(scribble)[0] > 25 for scribble in scribbles)


def test_scribble_runs_along_a_diagonal_with_the_published_thickness():
    for annotation in range(30):
        scribble = draw_visual_prompts(OBJECT, prompt_rng(0, annotation)).scribble
        left, top, right, bottom = bounds(scribble)
        # A diagonal of 0.71 to 1.2 of the box, waves of at most 20 pixels at either side, and the line's own radius.
        for length in (right - left, bottom - top):
            assert 0.71 * 80 - 40 <= length <= min(1.2 * 80 + 40 + 12, WIDTH)
        assert ndimage.label(scribble)[1] == 1
        thickness = 2 * ndimage.distance_transform_edt(np.pad(scribble, 1)).max()
        assert 8 <= thickness <= 16


def test_both_diagonals_occur():
    tall = {
        np.corrcoef(np.nonzero(draw_visual_prompts(OBJECT, prompt_rng(0, each)).scribble))[0, 1] > 0
        for each in range(20)
    }
    assert tall == {True, False}


def test_scribble_of_a_tiny_object_is_a_dot_at_its_point():
    prompts = draw_visual_prompts(rectangle(50, 50, 58, 58), prompt_rng(0, 0))
    x, y = centre(prompts.point)
    assert (prompts.scribble == disc(x, y, 5)).all()


def test_scribble_that_would_miss_the_object_is_a_dot_at_its_point(monkeypatch):
    # A line so short that it stays in the hole of the ring.
    monkeypatch.setattr(visual_prompts, "SCRIBBLE_SCALE", (0.1, 0.1))
    for annotation in range(5):
        prompts = draw_visual_prompts(RING, prompt_rng(0, annotation), point_radius=5)
        assert (prompts.scribble == prompts.point).all()


def test_box_sides_move_by_at_most_a_tenth():
    corners = np.array([bounds(draw_visual_prompts(OBJECT, prompt_rng(0, each)).box) for each in range(100)])
    moves = corners - [40, 20, 120, 100]
    # Every pixel that the box touches belongs to it, so up to one more.
    assert (np.abs(moves) <= 9).all()
    assert (moves.min(axis=0) <= -6).all() and (moves.max(axis=0) >= 6).all()


def test_box_is_full_and_stays_in_the_image():
    for annotation in range(10):
        box = draw_visual_prompts(FULL, prompt_rng(0, annotation)).box
        left, top, right, bottom = bounds(box)
        assert (box == rectangle(left, top, right, bottom)).all()


def test_box_surrounds_all_parts():
    box = draw_visual_prompts(rectangle(0, 0, 20, 20) | rectangle(100, 80, 120, 100), prompt_rng(0, 0)).box
    assert box[10:90, 12:108].all()


def test_mask_is_the_blurred_object_above_its_average():
    mask = OBJECT | rectangle(0, 0, 10, 10) | RING
    blurred = ndimage.gaussian_filter(mask.astype(float), sigma=2)
    assert (draw_visual_prompts(mask, prompt_rng(0, 0)).mask == (blurred > blurred.mean())).all()


def test_mask_of_an_object_that_fills_the_image_is_the_image():
    assert draw_visual_prompts(FULL, prompt_rng(0, 0)).mask.all()


def test_the_given_mask_is_not_changed():
    mask = OBJECT.copy()
    prompts = draw_visual_prompts(mask, prompt_rng(0, 0))
    prompts.mask[:] = False
    assert (mask == OBJECT).all()


def test_an_empty_mask_is_an_error():
    with pytest.raises(ValueError, match="no pixel"):
        draw_visual_prompts(blank(), prompt_rng(0, 0))


@pytest.mark.parametrize("radii", [{"point_radius": 0}, {"scribble_radius": -1}])
def test_a_radius_that_is_not_positive_is_an_error(radii):
    with pytest.raises(ValueError, match="must be positive"):
        draw_visual_prompts(OBJECT, prompt_rng(0, 0), **radii)


@pytest.mark.parametrize("seed, annotation", [(-1, 0), (0, -1)])
def test_negative_seeds_are_an_error(seed, annotation):
    with pytest.raises(ValueError, match="must not be negative"):
        prompt_rng(seed, annotation)


def test_widen_is_the_union_of_discs():
    mask = blank()
    mask[50, 60] = mask[0, 159] = True
    assert (widen(mask, 5) == (disc(60.5, 50.5, 5) | disc(159.5, 0.5, 5))).all()
