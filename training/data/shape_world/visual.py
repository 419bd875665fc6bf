"""Visual prompts of a scene's things, scaled to scenes: those of published data are drawn for larger photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..samples import Region, encode_masks
from ..visual_prompts import VisualPrompts, draw_visual_prompts
from .scene import Thing

# Pixels of an image of 128 x 128.
POINT_RADIUS, SCRIBBLE_RADIUS = 2.0, 1.0
# Prompts are drawn in a window around the thing: its box and this share of its sides more. In the whole image the blur
# of a mask prompt would make a thing of twenty pixels half as wide again.
MARGIN = 0.25


def draw_regions(things: Sequence[Thing], unit: float, rng: np.random.Generator) -> list[tuple[Region, ...]]:
    """
    Of each thing a point, a scribble, a box and a mask.

    Args:
        unit: pixels of the image for one of an image of 128 x 128.
    """
    drawn = []
    for thing in things:
        prompts = _draw_in_window(thing.mask, unit, rng).by_kind()
        masks = np.zeros((len(prompts), *thing.mask.shape), dtype=bool)
        masks[(slice(None), *_window(thing.mask))] = list(prompts.values())
        drawn.append(tuple(map(Region, encode_masks(masks), prompts)))
    return drawn


def _draw_in_window(mask: np.ndarray, unit: float, rng: np.random.Generator) -> VisualPrompts:
    return draw_visual_prompts(mask[_window(mask)], rng, POINT_RADIUS * unit, SCRIBBLE_RADIUS * unit)


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a mask's box and the margin around it."""
    parts = []
    for axis in (1, 0):
        inside = np.flatnonzero(mask.any(axis=axis))
        first, last = int(inside[0]), int(inside[-1]) + 1
        margin = round(MARGIN * (last - first)) + 1
        parts.append(slice(max(0, first - margin), last + margin))
    return parts[0], parts[1]
