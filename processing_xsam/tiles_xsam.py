"""
Crowded scenes: an image is cut into overlapping crops that are segmented one by one, each with all queries to itself,
and their segments are put together again.

Shapes: (H, W) the image, (h, w) a crop, N segments. Boxes are (x0, y0, x1, y1) in pixels of the image, the maxima
exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral

import numpy as np
import torch

from .post_processing_xsam import Segment

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Patch:
    """
    A segment in the image.

    Args:
        label_id, score, was_fused: as in `Segment`.
        box: the smallest around its pixels.
        mask: bool (y1 - y0, x1 - x0), its pixels inside the box.
        crop: index of the crop it was found in; -1 if it is made up of several.
        is_cut: whether it touches a border of its crop that is not one of the image.
        parts: what the crops contributed to it; empty if it comes from one crop as it is.
    """

    label_id: int
    score: float | None
    was_fused: bool
    box: Box
    mask: np.ndarray
    crop: int = -1
    is_cut: bool = False
    parts: tuple[_Patch, ...] = ()

    @cached_property
    def area(self) -> int:
        return int(np.count_nonzero(self.mask))

    def inside(self, window: Box) -> np.ndarray:
        """Its pixels in a window; the window has to intersect its box."""
        x0, y0, x1, y1 = _intersection(self.box, window)
        left, top = self.box[:2]
        return self.mask[y0 - top : y1 - top, x0 - left : x1 - left]


def tile_boxes(image_size: tuple[int, int], tiles: tuple[int, int], overlap: float = 0.2) -> list[Box]:
    """
    Crops of equal size that cover an image.

    Args:
        image_size: (H, W) in pixels.
        tiles: (rows, columns).
        overlap: of neighbouring crops, as a share of a crop's side, 0 <= overlap < 1. Objects that are cut by a seam are
            united by what both crops see of them: without overlap they stay in pieces.

    Returns:
        Boxes, row by row. Neighbours share at least `overlap`, up to a pixel of rounding.

    Raises:
        ValueError: a size or number of tiles that is not a positive integer, an overlap outside of the range, or an image
            that is too small for so many tiles.
    """
    height, width = _check_pair("image_size", image_size, "(height, width)")
    rows, columns = _check_pair("tiles", tiles, "(rows, columns)")
    if not 0.0 <= overlap < 1.0:
        raise ValueError(f"`overlap`: expected a share of a crop's side, at least 0 and below 1, got {overlap!r}")
    vertical, horizontal = _intervals(height, rows, overlap), _intervals(width, columns, overlap)
    if len(set(vertical)) < rows or len(set(horizontal)) < columns:
        raise ValueError(
            f"`tiles`: {(rows, columns)} with `overlap` {overlap} is too fine a grid for an image of height {height} and"
            f" width {width}; use fewer tiles"
        )
    return [(x0, y0, x1, y1) for y0, y1 in vertical for x0, x1 in horizontal]


def merge_tiles(
    found: Sequence[Sequence[Segment]],
    boxes: Sequence[Box],
    image_size: tuple[int, int],
    stuff_ids: Collection[int] = (),
    *,
    agreement_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    containment_threshold: float = 0.7,
    exclusive: bool = False,
) -> list[Segment]:
    """
    The segments of crops -> those of the image. Labels are independent, except with `exclusive`. Things, in this order:

    1. Duplicates within a crop are dropped, see `mask_nms`.
    2. Two segments of overlapping crops are the same object if their masks agree where the crops overlap. This is
       transitive: an object may reach over any number of crops. It has the union of the masks and the best score.
    3. What is cut by a border of its crop, found no counterpart by step 2 and is contained in a larger segment is a
       fragment of it and is dropped, whatever its score.
    4. Duplicates among the objects are dropped, as in step 1.

    Stuff, and segments without a score (semantic), are one segment per label: the union, with the best score.

    Args:
        found: the segments of each crop, with masks bool (h, w).
        boxes: the crops, as from `tile_boxes`.
        image_size: (H, W) in pixels.
        stuff_ids: labels of stuff.
        agreement_threshold: the IoU of two masks inside the overlap of their crops has to be above it.
        iou_threshold, containment_threshold: of duplicates, see `mask_nms`; the latter also of fragments.
        exclusive: give each pixel to one segment, for panoptic and semantic segmentation. Where crops disagree, the one
            with the nearest centre decides, of those that have a segment there.

    Returns:
        Segments by falling score, equal scores by label and place; masks bool (H, W) on the CPU, none of them empty.

    Raises:
        ValueError: a number of crops that differs from that of boxes, a box outside the image, a mask of another size
            than its crop, or a threshold outside of 0 to 1.
    """
    size = _check_pair("image_size", image_size, "(height, width)")
    _check_thresholds(agreement_threshold=agreement_threshold)
    _check_thresholds(iou_threshold=iou_threshold, containment_threshold=containment_threshold)
    _check_crops(found, boxes, size)
    pieces: list[_Patch] = []
    stuff: list[_Patch] = []
    for crop, segments in enumerate(found):
        things, regions = _split_stuff(_to_patches(segments, crop, boxes[crop], size), stuff_ids)
        pieces += _without_duplicates(things, iou_threshold, containment_threshold)
        stuff += regions
    objects = [_unite(group) for group in _same_objects(pieces, boxes, agreement_threshold)]
    objects = _without_fragments(objects, containment_threshold)
    objects = _without_duplicates(objects, iou_threshold, containment_threshold)
    merged = [*objects, *_fuse(stuff)]
    if exclusive:
        merged = _without_overlap(merged, boxes, size)
    return [_to_segment(patch, size) for patch in sorted(merged, key=_rank)]


def mask_nms(
    segments: Sequence[Segment], iou_threshold: float = 0.5, containment_threshold: float = 0.7
) -> list[Segment]:
    """
    Drop duplicates: of two segments of a label that cover the same pixels, the one with the lower score.

    Args:
        segments: with scores, masks bool (H, W).
        iou_threshold: two segments are duplicates if their intersection over union is above it.
        containment_threshold: or if their intersection is more than this share of the smaller one.

    Returns:
        The segments that are left, by falling score, equal scores by label and place. Segments without a pixel are left
        out.

    Raises:
        ValueError: a segment without a score, masks of different sizes, or a threshold outside of 0 to 1.
    """
    _check_thresholds(iou_threshold=iou_threshold, containment_threshold=containment_threshold)
    if not segments:
        return []
    if any(segment.score is None for segment in segments):
        raise ValueError("`segments`: score is None; suppression needs scores, leave out semantic segments")
    height, width = segments[0].mask.shape
    for index, segment in enumerate(segments):
        if segment.mask.shape != (height, width):
            raise ValueError(
                f"`segments[{index}]`: mask of shape {tuple(segment.mask.shape)}, that of the first is {(height, width)};"
                " give segments of one image, `merge_tiles` takes those of crops"
            )
    frame = (0, 0, width, height)
    # With each segment as a crop of its own, the patches tell which segments are left.
    patches = [
        patch for i, segment in enumerate(segments) for patch in _to_patches([segment], i, frame, (height, width))
    ]
    return [segments[patch.crop] for patch in _without_duplicates(patches, iou_threshold, containment_threshold)]


def _intervals(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """`count` intervals of equal length, evenly spread over [0, length)."""
    side = min(length, math.ceil(length / (count - (count - 1) * overlap)))
    starts = [index * (length - side) // max(count - 1, 1) for index in range(count)]
    return [(start, start + side) for start in starts]


def _to_patches(segments: Iterable[Segment], crop: int, crop_box: Box, image_size: tuple[int, int]) -> list[_Patch]:
    """Segments of a crop, without those that have no pixel."""
    left, top, right, bottom = crop_box
    height, width = image_size
    patches = []
    for segment in segments:
        pixels = segment.mask.cpu().numpy()
        # Not `segment.box`: on masks as small as these, torch spends most of the time on its threads.
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        if not len(rows):
            continue
        y0, y1, x0, x1 = (int(edge) for edge in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
        box = (x0 + left, y0 + top, x1 + left, y1 + top)
        is_cut = box[0] == left > 0 or box[1] == top > 0 or box[2] == right < width or box[3] == bottom < height
        mask = pixels[y0:y1, x0:x1].astype(bool)
        patches.append(_Patch(segment.label_id, segment.score, segment.was_fused, box, mask, crop, is_cut))
    return patches


def _to_segment(patch: _Patch, image_size: tuple[int, int]) -> Segment:
    # Zeros of numpy take no memory before they are written: most of a mask in a crowded scene never is.
    mask = np.zeros(image_size, dtype=bool)
    x0, y0, x1, y1 = patch.box
    mask[y0:y1, x0:x1] = patch.mask
    return Segment(patch.label_id, patch.score, torch.from_numpy(mask), patch.was_fused)


def _rank(patch: _Patch) -> tuple[float, int, Box]:
    return -(patch.score or 0.0), patch.label_id, patch.box


def _intersection(first: Box, second: Box) -> Box:
    """Of boxes that intersect."""
    return (
        max(first[0], second[0]),
        max(first[1], second[1]),
        min(first[2], second[2]),
        min(first[3], second[3]),
    )


def _common_pixels(first: _Patch, second: _Patch) -> int:
    return int(np.count_nonzero(first.inside(second.box) & second.inside(first.box)))


def _candidates(patches: Sequence[_Patch]) -> np.ndarray:
    """Which patches can have common pixels and are of the same label: bool (N, N), False on the diagonal."""
    boxes = np.array([patch.box for patch in patches]).reshape(-1, 4)
    labels = np.array([patch.label_id for patch in patches])
    meet = (labels[:, None] == labels) & ~np.eye(len(patches), dtype=bool)
    for axis in (0, 1):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        meet &= (low[:, None] < high) & (low < high[:, None])
    return meet


def _without_duplicates(patches: Sequence[_Patch], iou_threshold: float, containment_threshold: float) -> list[_Patch]:
    """Patches by rank, without those that duplicate a better one that is left."""
    ranked = sorted(patches, key=_rank)
    meet = _candidates(ranked)
    is_left = np.ones(len(ranked), dtype=bool)
    for index, better in enumerate(ranked):
        if not is_left[index]:
            continue
        for other in (meet[index, index + 1 :] & is_left[index + 1 :]).nonzero()[0] + index + 1:
            worse = ranked[other]
            common = _common_pixels(better, worse)
            is_left[other] = common <= iou_threshold * (
                better.area + worse.area - common
            ) and common <= containment_threshold * min(better.area, worse.area)
    return [patch for patch, left in zip(ranked, is_left, strict=True) if left]


def _without_fragments(objects: Sequence[_Patch], containment_threshold: float) -> list[_Patch]:
    """Objects without those that are cut, of one part, and contained in a larger one."""
    meet = _candidates(objects)
    return [
        patch
        for index, patch in enumerate(objects)
        if not patch.is_cut
        or not any(
            objects[other].area > patch.area
            and _common_pixels(patch, objects[other]) > containment_threshold * patch.area
            for other in meet[index].nonzero()[0]
        )
    ]


def _same_objects(pieces: Sequence[_Patch], boxes: Sequence[Box], threshold: float) -> list[list[_Patch]]:
    """Pieces of different crops, grouped by object: union-find over the pairs that agree."""
    parents = list(range(len(pieces)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for first, second in np.argwhere(np.triu(_candidates(pieces))).tolist():
        if pieces[first].crop != pieces[second].crop and _agree(pieces[first], pieces[second], boxes, threshold):
            parents[root(second)] = root(first)
    groups: dict[int, list[_Patch]] = {}
    for index, piece in enumerate(pieces):
        groups.setdefault(root(index), []).append(piece)
    return list(groups.values())


def _agree(first: _Patch, second: _Patch, boxes: Sequence[Box], threshold: float) -> bool:
    """Whether the IoU of two pieces with intersecting boxes, where their crops overlap, is above the threshold."""
    overlap = _intersection(boxes[first.crop], boxes[second.crop])
    common = _common_pixels(first, second)
    seen_by_both = sum(int(np.count_nonzero(piece.inside(overlap))) for piece in (first, second))
    return common > threshold * (seen_by_both - common)


def _unite(parts: Sequence[_Patch]) -> _Patch:
    """The union of parts with the same label, with their best score; a single part stays as it is."""
    if len(parts) == 1:
        return parts[0]
    x0, y0 = (min(part.box[axis] for part in parts) for axis in (0, 1))
    x1, y1 = (max(part.box[axis] for part in parts) for axis in (2, 3))
    mask = np.zeros((y1 - y0, x1 - x0), dtype=bool)
    for part in parts:
        left, top, right, bottom = part.box
        mask[top - y0 : bottom - y0, left - x0 : right - x0] |= part.mask
    score = max((part.score for part in parts if part.score is not None), default=None)
    was_fused = any(part.was_fused for part in parts)
    return _Patch(parts[0].label_id, score, was_fused, (x0, y0, x1, y1), mask, parts=tuple(parts))


def _split_stuff(patches: Sequence[_Patch], stuff_ids: Collection[int]) -> tuple[list[_Patch], list[_Patch]]:
    """Things, and what is one segment per label."""
    things, stuff = [], []
    for patch in patches:
        (stuff if patch.score is None or patch.label_id in stuff_ids else things).append(patch)
    return things, stuff


def _fuse(patches: Sequence[_Patch]) -> list[_Patch]:
    """One patch per label."""
    groups: dict[int, list[_Patch]] = {}
    for patch in patches:
        groups.setdefault(patch.label_id, []).append(patch)
    return [replace(_unite(group), was_fused=len(group) > 1 or group[0].was_fused) for group in groups.values()]


def _without_overlap(patches: Sequence[_Patch], boxes: Sequence[Box], image_size: tuple[int, int]) -> list[_Patch]:
    """Each pixel to the patch that the nearest crop has there; where a crop has several, to the best of them."""
    ranked = sorted(patches, key=_rank)
    claims: list[list[tuple[int, _Patch]]] = [[] for _ in boxes]
    for index, patch in reversed(list(enumerate(ranked))):  # the best is painted last
        for part in patch.parts or (patch,):
            claims[part.crop].append((index, part))
    owners = np.full(image_size, -1, dtype=np.int32)
    nearest = np.full(image_size, np.inf, dtype=np.float32)
    for (x0, y0, x1, y1), parts in zip(boxes, claims, strict=True):
        claimed = np.full((y1 - y0, x1 - x0), -1, dtype=np.int32)
        for index, part in parts:
            left, top, right, bottom = part.box
            claimed[top - y0 : bottom - y0, left - x0 : right - x0][part.mask] = index
        rows, columns = (np.arange(low, high) - (low + high - 1) / 2 for low, high in ((y0, y1), (x0, x1)))
        distances = (rows[:, None] ** 2 + columns**2).astype(np.float32)
        window = (slice(y0, y1), slice(x0, x1))
        decides = (claimed >= 0) & (distances < nearest[window])
        owners[window][decides] = claimed[decides]
        nearest[window][decides] = distances[decides]
    left_over = []
    for index, patch in enumerate(ranked):
        x0, y0, x1, y1 = patch.box
        mask = owners[y0:y1, x0:x1] == index
        if mask.any():
            left_over.append(replace(patch, mask=mask))
    return left_over


def _check_pair(name: str, values: Sequence[int], meaning: str) -> tuple[int, int]:
    try:
        first, second = values
    except (TypeError, ValueError):
        raise ValueError(f"`{name}`: expected {meaning}, got {values!r}") from None
    if not all(isinstance(value, Integral) and not isinstance(value, bool) and value > 0 for value in (first, second)):
        raise ValueError(f"`{name}`: expected {meaning} as positive integers, got {values!r}")
    return int(first), int(second)


def _check_thresholds(**thresholds: float) -> None:
    for name, value in thresholds.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}`: expected a share between 0 and 1, got {value!r}")


def _check_crops(found: Sequence[Sequence[Segment]], boxes: Sequence[Box], image_size: tuple[int, int]) -> None:
    height, width = image_size
    if len(found) != len(boxes):
        raise ValueError(f"`found`: {len(found)} lists of segments for {len(boxes)} `boxes`; give one for each crop")
    for crop, (x0, y0, x1, y1) in enumerate(boxes):
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"`boxes[{crop}]`: {(x0, y0, x1, y1)} is empty or reaches outside the image of width {width} and height"
                f" {height}; use `tile_boxes` for the same `image_size`"
            )
        for index, segment in enumerate(found[crop]):
            if tuple(segment.mask.shape) != (y1 - y0, x1 - x0):
                raise ValueError(
                    f"`found[{crop}][{index}]`: mask of shape {tuple(segment.mask.shape)} for a crop of"
                    f" {(y1 - y0, x1 - x0)}; masks have the size of their crop"
                )


__all__ = ["Box", "mask_nms", "merge_tiles", "tile_boxes"]
