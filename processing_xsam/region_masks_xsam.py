"""Visual prompts (points, boxes, scribbles, masks) -> one region mask per prompted object.

Shapes: N objects, (H, W) the original image, S the side of the high-resolution input. Coordinates are (x, y) in pixels
of the upright original image, (0, 0) its top left corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from .image_processing_xsam import scaled_size

# A point covers about as much of the image as in training when its radius is a hundredth of the longest side.
DEFAULT_RADIUS_FRACTION = 1 / 100
DEFAULT_THICKNESS_FRACTION = 1 / 50


def masks_from_points(points: Any, image_size: tuple[int, int], radius: float | None = None) -> torch.Tensor:
    """Draw a disc for each point.

    Args:
        points: `[[x, y], ...]`, each point an object of its own, or `[[[x, y], ...], ...]`, each inner list one
            object.
        image_size: (H, W) of the original image.
        radius: of the discs, in pixels of the original image; None for a hundredth of the longest side.

    Returns:
        Masks, bool, (N, H, W).

    Raises:
        ValueError: no point, a coordinate that is not finite, or a point outside the image.
    """
    radius = default_radius(image_size) if radius is None else radius
    objects = [_as_points(item, image_size, f"points[{i}]") for i, item in enumerate(_as_list(points, "points"))]
    return _stack([_draw_discs(_blank(image_size), item, radius) for item in objects])


def masks_from_boxes(boxes: Any, image_size: tuple[int, int]) -> torch.Tensor:
    """Fill boxes: every pixel that a box touches belongs to it.

    Args:
        boxes: `[[x0, y0, x1, y1], ...]`, each an object; right and bottom edges at most at the image's width and
            height.
        image_size: (H, W) of the original image.

    Returns:
        Masks, bool, (N, H, W).

    Raises:
        ValueError: no box, a coordinate that is not finite, corners in the wrong order, no area, or a box beyond the
            image.
    """
    masks = []
    for i, box in enumerate(_as_list(boxes, "boxes")):
        x0, y0, x1, y1 = _as_box(box, image_size, f"boxes[{i}]")
        mask = _blank(image_size)
        mask[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
        masks.append(mask)
    return _stack(masks)


def masks_from_scribbles(scribbles: Any, image_size: tuple[int, int], thickness: float | None = None) -> torch.Tensor:
    """Draw polylines with round ends and corners.

    Args:
        scribbles: `[[[x, y], [x, y], ...], ...]`, each polyline an object; a polyline of one point is a dot.
        image_size: (H, W) of the original image.
        thickness: of the lines, in pixels of the original image; None for a fiftieth of the longest side.

    Returns:
        Masks, bool, (N, H, W).

    Raises:
        ValueError: no scribble, a coordinate that is not finite, or a point outside the image.
    """
    thickness = default_thickness(image_size) if thickness is None else thickness
    masks = []
    for i, scribble in enumerate(_as_list(scribbles, "scribbles")):
        points = _as_points(scribble, image_size, f"scribbles[{i}]")
        canvas = Image.new("1", (image_size[1], image_size[0]))
        ImageDraw.Draw(canvas).line([tuple(point) for point in points], fill=1, width=max(1, round(thickness)))
        masks.append(_draw_discs(np.array(canvas), points, thickness / 2))
    return _stack(masks)


def masks_from_masks(masks: Any, image_size: tuple[int, int]) -> torch.Tensor:
    """Read masks that are given as such.

    Args:
        masks: one mask, a list of masks or an (N, H, W) array: bool, 0/1 or 0..255 (inside: more than half of the
            range), as array, tensor or PIL image. Each is an object.
        image_size: (H, W) of the original image.

    Returns:
        Masks, bool, (N, H, W).

    Raises:
        ValueError: no mask, a mask of another size than the image, without a pixel inside, or with other values.
    """
    is_single = isinstance(masks, Image.Image) or (hasattr(masks, "ndim") and masks.ndim == 2)
    items = [masks] if is_single else _as_list(masks, "masks")
    return _stack([_as_mask(mask, image_size, f"masks[{i}]") for i, mask in enumerate(items)])


def resize_region_masks(masks: torch.Tensor, target: int) -> torch.Tensor:
    """Bring masks to the geometry of the high-resolution input: nearest, then padded at the bottom or right.

    Args:
        masks: bool, (N, H, W), in the size of the original image; none of them empty.
        target: S, the side of the high-resolution input.

    Returns:
        Masks, bool, (N, S, S). A region that the resizing would lose keeps the pixel nearest to its centre.
    """
    height, width = masks.shape[-2:]
    scaled_height, scaled_width = scaled_size((height, width), target)
    rows, columns = nearest_indices(height, scaled_height), nearest_indices(width, scaled_width)
    resized = masks.new_zeros((len(masks), target, target))
    resized[:, :scaled_height, :scaled_width] = masks[:, rows][:, :, columns]
    for lost in torch.nonzero(~resized.flatten(1).any(dim=1)).flatten().tolist():
        y, x = _central_pixel(masks[lost])
        resized[lost, y * scaled_height // height, x * scaled_width // width] = True
    return resized


def default_radius(image_size: tuple[int, int]) -> float:
    """Radius of a point's disc, in pixels, for an image of (H, W)."""
    return max(image_size) * DEFAULT_RADIUS_FRACTION


def default_thickness(image_size: tuple[int, int]) -> float:
    """Thickness of a scribble, in pixels, for an image of (H, W)."""
    return max(image_size) * DEFAULT_THICKNESS_FRACTION


def nearest_indices(source: int, target: int) -> torch.Tensor:
    """Index of the source pixel below the centre of each target pixel, as PIL's nearest filter takes it."""
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target)
    return centres.long().clamp(max=source - 1)


def _central_pixel(mask: torch.Tensor) -> tuple[int, int]:
    pixels = torch.nonzero(mask)
    distances = (pixels - pixels.double().mean(dim=0)).square().sum(dim=1)
    y, x = pixels[distances.argmin()].tolist()
    return y, x


def _draw_discs(mask: np.ndarray, points: np.ndarray, radius: float) -> np.ndarray:
    """Set the pixels whose centre is within `radius` of a point, and always the pixel that holds the point."""
    height, width = mask.shape
    for x, y in points:
        top, bottom = max(0, math.floor(y - radius)), min(height, math.ceil(y + radius) + 1)
        left, right = max(0, math.floor(x - radius)), min(width, math.ceil(x + radius) + 1)
        dy = np.arange(top, bottom)[:, None] + 0.5 - y
        dx = np.arange(left, right)[None, :] + 0.5 - x
        mask[top:bottom, left:right] |= dy**2 + dx**2 <= radius**2
        mask[int(y), int(x)] = True
    return mask


def _blank(image_size: tuple[int, int]) -> np.ndarray:
    return np.zeros(image_size, dtype=bool)


def _stack(masks: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(masks))


def _as_list(values: Any, name: str) -> list[Any]:
    if isinstance(values, (np.ndarray, torch.Tensor)):
        values = list(values)
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"`{name}`: expected a list with one entry per object, got {type(values).__name__}")
    if not values:
        raise ValueError(f"`{name}` is empty: give at least one object")
    return list(values)


def _as_coordinates(values: Any, name: str) -> np.ndarray:
    try:
        values = values.tolist() if isinstance(values, torch.Tensor) else values
        coordinates = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}`: expected numbers, got {values!r}") from error
    if not np.isfinite(coordinates).all():
        raise ValueError(f"`{name}`: coordinates must be finite, got {coordinates.tolist()}")
    return coordinates


def _as_points(values: Any, image_size: tuple[int, int], name: str) -> np.ndarray:
    points = _as_coordinates(values, name)
    points = points[None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"`{name}`: expected [x, y] or a list of [x, y], got {values!r}")
    height, width = image_size
    outside = (points < 0).any(axis=1) | (points[:, 0] >= width) | (points[:, 1] >= height)
    if outside.any():
        raise ValueError(
            f"`{name}`: point {points[outside][0].tolist()} is outside the image of width {width} and height {height};"
            " coordinates are [x, y] in pixels of the original image"
        )
    return points


def _as_box(values: Any, image_size: tuple[int, int], name: str) -> tuple[float, float, float, float]:
    box = _as_coordinates(values, name)
    if box.shape != (4,):
        raise ValueError(f"`{name}`: expected [x0, y0, x1, y1], got {values!r}")
    x0, y0, x1, y1 = box.tolist()
    height, width = image_size
    if x0 > x1 or y0 > y1:
        raise ValueError(f"`{name}`: {box.tolist()} has x0 > x1 or y0 > y1; give [left, top, right, bottom]")
    if x0 == x1 or y0 == y1:
        raise ValueError(f"`{name}`: {box.tolist()} has no area; use `points` for a single position")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise ValueError(
            f"`{name}`: {box.tolist()} reaches outside the image of width {width} and height {height}; clip it"
        )
    return x0, y0, x1, y1


def _as_mask(mask: Any, image_size: tuple[int, int], name: str) -> np.ndarray:
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if array.shape != tuple(image_size):
        raise ValueError(
            f"`{name}`: shape {array.shape}, but the image has (height, width) {tuple(image_size)}; resize the mask to it"
        )
    if array.dtype != bool:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 255):  # also false for NaN
            raise ValueError(f"`{name}`: values in {low}..{high}, expected bool, 0/1 or 0..255")
        array = array > (0.5 if high <= 1 else 127)
    if not array.any():
        raise ValueError(f"`{name}` is empty: it has no pixel inside the region")
    return array
