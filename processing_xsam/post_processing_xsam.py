"""
Logits -> segments: pure functions, one `<SEG>` at a time, with the rules of the original implementation.

Shapes: Q queries, K classes with the background last, h x w size of the decoder's masks, S side of the high-resolution
input, H x W the original image. Mask logits go up to S x S, are cropped to the part that the image covers, and then go
to H x W, always bilinearly. What a threshold on class scores drops is never resized.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn.functional import adaptive_max_pool2d, interpolate

from .image_processing_xsam import scaled_size

# Values resized at a time, about 256 MB; bounds the memory for large images.
MAX_VALUES = 2**26


@dataclass(frozen=True)
class Segment:
    """
    One segment.

    Args:
        label_id: class index in the prompt: a category, phrase or region.
        score: 0 to 1; None where the task has none (semantic).
        mask: bool (H, W).
        was_fused: whether several queries of the same stuff class make it up.
    """

    label_id: int
    score: float | None
    mask: torch.Tensor
    was_fused: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(xmin, ymin, xmax, ymax) in pixels, the maxima exclusive; zeros for a mask without pixels."""
        return mask_box(self.mask)


@dataclass(frozen=True)
class Geometry:
    """
    Args:
        input_size: S.
        target_size: (H, W).
    """

    input_size: int
    target_size: tuple[int, int]

    @property
    def masks_at_once(self) -> int:
        """How many masks may be resized at a time."""
        height, width = self.target_size
        return max(1, MAX_VALUES // max(height * width, self.input_size**2))


def resize_to_input(mask_logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Mask logits (..., Q, h, w) at high-resolution input size (S, S); the original's `masks_queries_logits`."""
    flat = mask_logits.flatten(0, -3) if mask_logits.ndim > 3 else mask_logits
    resized = interpolate(flat[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return resized.view(*mask_logits.shape[:-2], *size)


def resize_to_image(mask_logits: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Mask logits (n, h, w) at the size of the original image: (n, H, W)."""
    return interpolate(
        _crop(mask_logits, geometry)[:, None], size=geometry.target_size, mode="bilinear", align_corners=False
    )[:, 0]


def resize_region_to_image(region_mask: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """A region mask, bool (S, S), at the size of the original image, nearest: bool (H, W)."""
    height, width = scaled_size(geometry.target_size, geometry.input_size)
    cropped = region_mask[None, None, :height, :width].float()
    resized = interpolate(cropped, size=geometry.target_size, mode="nearest")
    if not resized.any():
        # Nearest skips rows and columns when it shrinks: a small region keeps every pixel that it touches.
        resized = adaptive_max_pool2d(cropped, geometry.target_size)
    return resized[0, 0].bool()


@torch.no_grad()
def panoptic(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    geometry: Geometry,
    stuff_ids: Collection[int] = (),
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    fuse: bool = True,
) -> list[Segment]:
    """
    Every pixel to the query that is most certain of it.

    Args:
        class_logits: (Q, K).
        mask_logits: (Q, h, w).
        geometry: of the image.
        stuff_ids: classes whose segments become one.
        threshold: least class score of a query; 0 in the original's evaluation, 0.5 in its demo.
        mask_threshold: a query claims the pixels where score times mask probability reaches it.
        overlap_mask_area_threshold: least share of the claimed pixels that a query has to win.
        fuse: whether stuff is fused; without it every query is a segment of its own, as in the original's list.

    Returns:
        Segments in query order, without overlap.
    """
    scores, labels = _probabilities(class_logits, mask_logits)[:, :-1].max(-1)
    kept = (scores > threshold).nonzero()[:, 0]
    best = torch.zeros(geometry.target_size, device=mask_logits.device)
    winner = torch.full(geometry.target_size, -1, device=mask_logits.device)
    claimed = {}
    for query, logits in _resized(mask_logits, kept, geometry):
        certainty = logits.sigmoid() * scores[query]
        claimed[query] = int((certainty >= mask_threshold).sum())
        better = certainty > best
        best = torch.where(better, certainty, best)
        winner[better] = query
    segments = []
    for query in kept.tolist():
        mask = winner == query
        area = int(mask.sum())
        if area and claimed[query] and area / claimed[query] > overlap_mask_area_threshold:
            segments.append(Segment(int(labels[query]), float(scores[query]), mask))
    return _fuse_stuff(segments, stuff_ids) if fuse else segments


@torch.no_grad()
def semantic(class_logits: torch.Tensor, mask_logits: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """
    The most probable class of every pixel: class probabilities (without the background, not renormalised) times mask
    probabilities, summed over queries.

    Args:
        class_logits: (Q, K).
        mask_logits: (Q, h, w).

    Returns:
        int64 (H, W).
    """
    class_probabilities = _probabilities(class_logits, mask_logits)[:, :-1]
    at_once = geometry.masks_at_once
    mask_probabilities = torch.cat([_crop(chunk, geometry).sigmoid() for chunk in mask_logits.split(at_once)])
    best = torch.full(geometry.target_size, -1.0, device=mask_logits.device)
    winner = torch.zeros(geometry.target_size, dtype=torch.long, device=mask_logits.device)
    # Resizing is linear and done class by class, so that not all classes have to be in memory at once.
    for start in range(0, class_probabilities.shape[1], at_once):
        chunk = torch.einsum("qk,qhw->khw", class_probabilities[:, start : start + at_once], mask_probabilities)
        chunk = interpolate(chunk[:, None], size=geometry.target_size, mode="bilinear", align_corners=False)[:, 0]
        values, classes = chunk.max(0)
        better = values > best
        best, winner = torch.where(better, values, best), torch.where(better, classes + start, winner)
    return winner


def semantic_segments(label_map: torch.Tensor) -> list[Segment]:
    """A segment per class of a label map (H, W)."""
    return [Segment(label, None, label_map == label) for label in label_map.unique().tolist()]


@torch.no_grad()
def instance(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    geometry: Geometry,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
) -> list[Segment]:
    """
    The best pairs of query and class, as many as there are queries; masks may overlap. The score is the class score
    times the mean mask probability inside the mask. Visual-grounded segmentation uses the same rule, with regions as
    classes.

    Args:
        class_logits: (Q, K).
        mask_logits: (Q, h, w).
        threshold: least score; 0 in the original's evaluation.
        mask_threshold: least probability of a pixel.

    Returns:
        Segments by falling score. Masks without a pixel are left out.
    """
    probabilities = _probabilities(class_logits, mask_logits)[:, :-1]
    num_classes = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(len(class_logits), probabilities.numel()))
    # The mask factor is at most 1: what is below the threshold now stays below it.
    # Padding classes have probability 0.
    hopeful = (scores >= threshold) & (scores > 0)
    scores, pairs = scores[hopeful], pairs[hopeful]
    labels_of: dict[int, list[tuple[int, float]]] = {}
    for pair, score in zip(pairs.tolist(), scores.tolist(), strict=True):
        labels_of.setdefault(pair // num_classes, []).append((pair % num_classes, score))
    segments = []
    queries = torch.tensor(sorted(labels_of), dtype=torch.long, device=mask_logits.device)
    for query, logits in _resized(mask_logits, queries, geometry):
        probability = logits.sigmoid()
        mask = probability > mask_threshold
        if mask.any():
            quality = float(probability[mask].mean())
            segments += [Segment(label, score * quality, mask) for label, score in labels_of[query]]
    return sorted((s for s in segments if s.score >= threshold), key=lambda s: -s.score)


@torch.no_grad()
def referring(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    geometry: Geometry,
    score_threshold: float | None = None,
    multi_target: bool = False,
    mask_threshold: float = 0.5,
) -> Segment | None:
    """
    What one expression describes; reasoning uses the same rule.

    Args:
        class_logits: (Q, 2), the expression and the background.
        mask_logits: (Q, h, w).
        score_threshold: below it, nothing is described. None: there always is something, as in the original.
        multi_target: the union of all queries whose score reaches the threshold (0.5 if none is given) instead of the
            best query.

    Returns:
        The segment, with the best score; None if what is described is absent, or no pixel of it is.

    Raises:
        ValueError: if there is more than one expression.
    """
    if class_logits.shape[-1] != 2:
        raise ValueError(f"class_logits have {class_logits.shape[-1] - 1} phrases; referring takes one per <SEG>.")
    scores = _probabilities(class_logits, mask_logits)[:, 0]
    best = int(scores.argmax())
    if multi_target:
        chosen = (scores >= (0.5 if score_threshold is None else score_threshold)).nonzero()[:, 0]
    else:
        chosen = scores.new_tensor([best] if score_threshold is None or scores[best] >= score_threshold else []).long()
    if not len(chosen):
        return None
    mask = torch.zeros(geometry.target_size, dtype=torch.bool, device=mask_logits.device)
    for _, logits in _resized(mask_logits, chosen, geometry):
        mask |= logits.sigmoid() > mask_threshold
    return Segment(0, float(scores[best]), mask) if mask.any() else None


@torch.no_grad()
def grounded_conversation(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, geometry: Geometry, mask_threshold: float = 0.5
) -> list[Segment]:
    """The best query of each phrase, in the order of the phrases; one query may serve several."""
    scores, queries = _probabilities(class_logits, mask_logits)[:, :-1].max(0)
    masks = dict(_resized(mask_logits, queries.unique(), geometry))
    return [
        Segment(phrase, float(score), masks[query].sigmoid() > mask_threshold)
        for phrase, (score, query) in enumerate(zip(scores, queries.tolist(), strict=True))
    ]


@torch.no_grad()
def interactive(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    region_mask: torch.Tensor,
    geometry: Geometry,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
) -> Segment | None:
    """
    The object that a region marks: of the certain instances (or the best, if none is), the one whose box overlaps most
    with the box of the region.

    Args:
        class_logits: (Q, 2), the region and the background.
        mask_logits: (Q, h, w).
        region_mask: bool (S, S), as the network saw it.
        threshold: score from which an instance is certain.

    Returns:
        The segment; None if no query has a pixel.
    """
    instances = instance(class_logits, mask_logits, geometry, threshold=0.0, mask_threshold=mask_threshold)
    certain = [segment for segment in instances if segment.score >= threshold] or instances[:1]
    region_box = mask_box(resize_region_to_image(region_mask, geometry))
    return max(certain, key=lambda segment: box_iou(segment.box, region_box), default=None)


def mask_box(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Box (xmin, ymin, xmax, ymax) of a mask (H, W), the maxima exclusive; zeros if it has no pixel."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (xmin, ymin, xmax, ymax); 0 if both are empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return intersection / (areas - intersection) if areas > intersection else 0.0


def to_segmentation(
    segments: Sequence[Segment], size: tuple[int, int], background: int = 0, first_id: int = 1
) -> dict[str, Any]:
    """
    The form of transformers' image processors.

    Returns:
        `segmentation`: int64 (H, W), ids from `first_id`, later segments over earlier ones, `background` elsewhere;
        `segments_info`: one `{"id", "label_id", "was_fused", "score"}` per segment.
    """
    segmentation = torch.full(size, background)
    infos = []
    for segment_id, segment in enumerate(segments, start=first_id):
        segmentation[segment.mask.cpu()] = segment_id
        score = None if segment.score is None else round(segment.score, 6)
        infos.append({"id": segment_id, "label_id": segment.label_id, "was_fused": segment.was_fused, "score": score})
    return {"segmentation": segmentation, "segments_info": infos}


def to_original_panoptic(
    segments: Sequence[Segment], size: tuple[int, int], stuff_ids: Collection[int]
) -> dict[str, Any]:
    """
    Unfused panoptic segments in the numbering of the original: a stuff segment takes the id of the first of its class,
    and the next new segment continues from the id used last, which may be in use already.
    """
    segmentation, infos = torch.zeros(size, dtype=torch.long), []
    stuff_memory: dict[int, int] = {}
    segment_id = 0
    for segment in segments:
        segment_id = stuff_memory.get(segment.label_id, segment_id + 1)
        if segment.label_id in stuff_ids:
            stuff_memory[segment.label_id] = segment_id
        segmentation[segment.mask.cpu()] = segment_id
        infos.append(
            {
                "id": segment_id,
                "category_id": segment.label_id,
                "isthing": segment.label_id not in stuff_ids,
                "score": round(segment.score, 6),
            }
        )
    return {"segmentation": segmentation, "segments_info": infos}


def to_coco_rle(mask: torch.Tensor) -> dict[str, Any]:
    """A mask (H, W) as COCO run-length encoding, `{"size": [H, W], "counts": str}`, fit for JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def to_pipeline_segment(segment: Segment, label: str) -> dict[str, Any]:
    """The form of transformers' image-segmentation pipeline, with a box: `{"label", "score", "mask", "box"}`."""
    mask = Image.fromarray(segment.mask.cpu().numpy().astype(np.uint8) * 255)
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), segment.box, strict=True))
    return {"label": label, "score": segment.score, "mask": mask, "box": box}


def _probabilities(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Softmax over classes and background, float32, (Q, K); raises for logits that do not belong to one `<SEG>`."""
    if class_logits.ndim != 2 or mask_logits.ndim != 3 or len(class_logits) != len(mask_logits):
        raise ValueError(
            f"`class_logits` {tuple(class_logits.shape)} and `mask_logits` {tuple(mask_logits.shape)}: expected (Q, K) and"
            " (Q, h, w); give those of one <SEG>"
        )
    for name, logits in (("class_logits", class_logits), ("mask_logits", mask_logits)):
        if logits.isnan().any():
            raise ValueError(f"`{name}` contain NaN: run the model in float32 or bfloat16, float16 overflows")
    return class_logits.float().softmax(-1)


def _crop(mask_logits: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Mask logits (n, h, w) at input size, without the padding."""
    height, width = scaled_size(geometry.target_size, geometry.input_size)
    full = resize_to_input(mask_logits.float(), (geometry.input_size, geometry.input_size))
    return full[:, :height, :width]


def _resized(
    mask_logits: torch.Tensor, queries: torch.Tensor, geometry: Geometry
) -> Iterator[tuple[int, torch.Tensor]]:
    """Chosen queries and their logits (H, W), resized a few at a time."""
    for chunk in queries.split(geometry.masks_at_once):
        if len(chunk):
            yield from zip(chunk.tolist(), resize_to_image(mask_logits[chunk], geometry), strict=True)


def _fuse_stuff(segments: Sequence[Segment], stuff_ids: Collection[int]) -> list[Segment]:
    """Unite the segments of each stuff class at the place of the first, with the best of their scores."""
    fused: list[Segment] = []
    place: dict[int, int] = {}
    for segment in segments:
        if segment.label_id in place:
            index = place[segment.label_id]
            first = fused[index]
            mask, score = first.mask | segment.mask, max(first.score, segment.score)
            fused[index] = replace(first, mask=mask, score=score, was_fused=True)
        else:
            if segment.label_id in stuff_ids:
                place[segment.label_id] = len(fused)
            fused.append(segment)
    return fused


__all__ = [
    "Geometry",
    "Segment",
    "box_iou",
    "grounded_conversation",
    "instance",
    "interactive",
    "mask_box",
    "panoptic",
    "referring",
    "resize_region_to_image",
    "resize_to_image",
    "resize_to_input",
    "semantic",
    "semantic_segments",
    "to_coco_rle",
    "to_original_panoptic",
    "to_pipeline_segment",
    "to_segmentation",
]
