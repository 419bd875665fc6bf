"""
Visual prompts drawn for an object's mask: a point, a scribble, a box and a smoothed mask.

The numbers are those of the published COCO-VGD prompts (X-SAM, `xsam/dataset/utils/vprompt.py` and
`vgd_seg_dataset.py`, which follow PSALM's `datasets/bulid_COCO_Interactivate.py`). What differs on purpose: an object
of several parts is pointed at and scribbled on in one of them and has one box, where the published prompts mark every
part; a wave is no higher than fits the object; and no prompt is empty.

Shapes: (H, W) the image; prompts are bool (H, W). Coordinates are (x, y) in pixels; the centre of the top left pixel
is (0.5, 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from processing_xsam.region_masks_xsam import masks_from_boxes, masks_from_points, masks_from_scribbles

from .samples import RegionKind

# Pixels of the original image.
POINT_RADIUS = 10.0
SCRIBBLE_RADIUS = 5.0
WAVE_HEIGHT = (10.0, 20.0)
# A scribble's diagonal, relative to the box: both sides at their least still share half of their union with the box.
SCRIBBLE_SCALE = (0.71, 1.2)
WAVES_PER_SCRIBBLE = (0.2, 1.0)
BOX_JITTER = 0.1
# A part below this share of the largest part's area is a speck, which nobody would point at.
SMALLEST_PART = 0.05
BLUR_SIGMA = 2.0
# Beyond this many pixels scipy's Gaussian of BLUR_SIGMA is cut off.
BLUR_REACH = 8
SCRIBBLE_POINTS = 64

# The names of the prompts in annotation files.
PROMPT_KEYS: dict[RegionKind, str] = {
    "point": "point_visual_prompt",
    "scribble": "scribble_visual_prompt",
    "box": "box_visual_prompt",
    "mask": "mask_visual_prompt",
}


@dataclass(frozen=True)
class VisualPrompts:
    """Four ways to show the same object, each bool (H, W) and not empty."""

    point: np.ndarray
    scribble: np.ndarray
    box: np.ndarray
    mask: np.ndarray

    def by_kind(self) -> dict[RegionKind, np.ndarray]:
        return {"point": self.point, "scribble": self.scribble, "box": self.box, "mask": self.mask}


def prompt_rng(seed: int, annotation_id: int) -> np.random.Generator:
    """
    Randomness of an annotation's prompts: its own, so that neither the order of drawing nor other annotations matter.

    Raises:
        ValueError: if one of the two is negative.
    """
    if seed < 0 or annotation_id < 0:
        raise ValueError(f"seed {seed} and annotation id {annotation_id} must not be negative")
    return np.random.default_rng([seed, annotation_id])


def draw_visual_prompts(
    mask: np.ndarray,
    rng: np.random.Generator,
    point_radius: float = POINT_RADIUS,
    scribble_radius: float = SCRIBBLE_RADIUS,
) -> VisualPrompts:
    """
    Draw the four prompts of an object.

    - point: a disc around a pixel of the object. If the object has several connected parts, it is pointed at in one of
      them, drawn by area; parts of less than a twentieth of the largest are never drawn. The pixel is one of those
      nearer to the part's centre than half its shorter side or, if there is none, any of the part.
    - scribble: a wavy line along a diagonal of that part's box. If neither diagonal meets the object, or if the part
      is no larger than the line is thick, it is a dot of `scribble_radius` around the point.
    - box: the box of all parts, each side moved by at most a tenth of the box's size, clipped to the image.
    - mask: where the blurred object is above its average over the image, which makes small objects some pixels wider.
      An object that fills the image stays as it is.

    Discs and scribbles reach beyond small or thin objects, as a user's do.

    Args:
        mask: the object, bool (H, W).
        rng: see `prompt_rng`.
        point_radius: pixels.
        scribble_radius: half the line's thickness, pixels.

    Raises:
        ValueError: if the mask has no pixel or a radius is not positive.
    """
    if not mask.any():
        raise ValueError("mask: no pixel, nothing to prompt with")
    if min(point_radius, scribble_radius) <= 0:
        raise ValueError(f"point_radius {point_radius} and scribble_radius {scribble_radius} must be positive")
    part = _draw_part(mask, rng)
    point = _draw_point(part, rng)
    return VisualPrompts(
        point=_disc(point, mask.shape, point_radius),
        scribble=_draw_scribble(mask, part, point, rng, scribble_radius),
        box=_draw_box(mask, rng),
        mask=_smooth(mask),
    )


def widen(mask: np.ndarray, radius: float) -> np.ndarray:
    """The pixels, bool (H, W), whose centre is within `radius` pixels of that of a pixel of `mask`."""
    return _disc(np.argwhere(mask)[:, ::-1] + 0.5, mask.shape, radius)


def _disc(points: np.ndarray, image_size: tuple[int, int], radius: float) -> np.ndarray:
    """The union of the discs around one point (2,) or several (n, 2)."""
    return masks_from_points([points], image_size, radius)[0].numpy()


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, the last two exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _draw_part(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The pixel centres (n, 2) of one connected part; pixels that touch at a corner are connected."""
    left, top, right, bottom = _bounds(mask)
    parts, count = ndimage.label(mask[top:bottom, left:right], structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel())[1:]
    weights = areas * (areas >= areas.max() * SMALLEST_PART)
    rows, columns = np.nonzero(parts == 1 + rng.choice(count, p=weights / weights.sum()))
    return np.stack([columns + left, rows + top], axis=1) + 0.5


def _draw_point(part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The centre (2,) of one of a part's pixels."""
    reach = (np.ptp(part, axis=0).min() + 1) / 2
    central = part[np.linalg.norm(part - part.mean(axis=0), axis=1) <= reach]
    candidates = central if len(central) else part
    return candidates[rng.integers(len(candidates))]


def _draw_scribble(
    mask: np.ndarray, part: np.ndarray, point: np.ndarray, rng: np.random.Generator, radius: float
) -> np.ndarray:
    sides = np.ptp(part, axis=0) + 1
    scale, slope = rng.uniform(*SCRIBBLE_SCALE, size=2), rng.choice([-1, 1])
    height, waves, phase = rng.uniform(*WAVE_HEIGHT), rng.uniform(*WAVES_PER_SCRIBBLE), rng.random()
    if sides.max() <= 2 * radius:
        return _disc(point, mask.shape, radius)
    position = np.linspace(-0.5, 0.5, SCRIBBLE_POINTS)[:, None]
    wave = min(height, sides.min() / 4) * np.sin(2 * math.pi * (waves * position + phase))
    for direction in (slope, -slope):
        diagonal = sides * scale * (1, direction)
        across = np.array([-diagonal[1], diagonal[0]]) / np.linalg.norm(diagonal)
        line = part.mean(axis=0) + position * diagonal + wave * across
        line = line.clip(0.5, np.array(mask.shape[::-1]) - 0.5)
        columns, rows = line.astype(int).T
        if mask[rows, columns].any():
            return masks_from_scribbles([line], mask.shape, thickness=2 * radius)[0].numpy()
    return _disc(point, mask.shape, radius)


def _draw_box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = mask.shape
    left, top, right, bottom = _bounds(mask)
    moves = rng.uniform(-BOX_JITTER, BOX_JITTER, size=4) * np.tile([right - left, bottom - top], 2)
    x0, y0, x1, y1 = np.array([left, top, right, bottom]) + moves
    return masks_from_boxes([[max(0, x0), max(0, y0), min(width, x1), min(height, y1)]], mask.shape)[0].numpy()


def _smooth(mask: np.ndarray) -> np.ndarray:
    # Only the object's surroundings are blurred: further away the blur is zero.
    left, top, right, bottom = _bounds(mask)
    window = (
        slice(max(0, top - BLUR_REACH), bottom + BLUR_REACH),
        slice(max(0, left - BLUR_REACH), right + BLUR_REACH),
    )
    blurred = ndimage.gaussian_filter(mask[window].astype(float), sigma=BLUR_SIGMA)
    smooth = np.zeros_like(mask)
    smooth[window] = blurred > blurred.sum() / mask.size
    # Where the object is everywhere, nothing is above the average.
    return mask.copy() if mask.all() else smooth
