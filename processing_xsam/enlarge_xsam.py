"""Small images and what was found in them, enlarged to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

# Pixels that the longer side of a drawn image comes near to.
DRAWN_SIDE = 384


def enlargement(image: Image.Image, side: int = DRAWN_SIDE) -> int:
    """How many times as large an image is drawn; 1 if its longer side has two thirds of `side` or more."""
    return max(1, round(side / max(image.size)))


def enlarge(
    image: Image.Image, segments: Sequence[Mapping[str, Any]] = (), side: int = DRAWN_SIDE
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """
    An image and its segments, a whole number of times as large, so that a legend does not dwarf them; large ones as they
    are. For `visualize`; boxes, which it does not draw, are left out.

    Args:
        image: of any size.
        segments: with masks of the image's size, as the pipeline gives them.
        side: pixels that the longer side comes near to, see `enlargement`.
    """
    scale = enlargement(image, side)
    size = (image.width * scale, image.height * scale)
    enlarged = []
    for segment in segments:
        drawn = {name: value for name, value in segment.items() if name != "box"}
        enlarged.append({**drawn, "mask": segment["mask"].resize(size, Image.Resampling.NEAREST)})
    return image.resize(size), enlarged


__all__ = ["enlarge", "enlargement"]
