"""What probes share that count objects of categories: annotations, matches with predictions, and areas covered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from processing_xsam.prompts_xsam import get_task

from ..data.samples import RLE, AnnotatedSample, Turn, encode_masks
from ..pictures import TITLE_LENGTH

# IoU from which a prediction is an object, and share of its pixels from which an object is covered.
FOUND = 0.5


@dataclass(frozen=True)
class Matches:
    """
    Attributes:
        objects: int64 (P,), for each prediction the object that it is matched with, -1 if none.
        duplicates: bool (P,), whether a prediction is not matched only because others have all objects that it fits.
    """

    objects: np.ndarray
    duplicates: np.ndarray

    @property
    def num_found(self) -> int:
        return int((self.objects >= 0).sum())


def match_masks(
    predicted: Sequence[RLE], scores: Sequence[float], objects: Sequence[RLE], threshold: float = FOUND
) -> Matches:
    """
    One-to-one, greedily: predictions by falling score (equal ones in their order) each take, of the objects that are left,
    the one with the greatest IoU, if that reaches the threshold. The rule of COCO's evaluation (cocoapi,
    `PythonAPI/pycocotools/cocoeval.py`, evaluateImg) without crowds.

    Args:
        predicted, objects: masks of one image and one category.
        scores: of the predictions.
        threshold: least IoU.
    """
    matches = Matches(np.full(len(predicted), -1, dtype=np.int64), np.zeros(len(predicted), dtype=bool))
    if not predicted or not objects:
        return matches
    overlaps = np.asarray(coco_mask.iou(list(predicted), list(objects), [0] * len(objects)))
    fits = overlaps >= threshold
    is_free = np.ones(len(objects), dtype=bool)
    for place in np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable"):
        candidates = fits[place] & is_free
        if candidates.any():
            chosen = int(np.where(candidates, overlaps[place], -1).argmax())
            matches.objects[place], is_free[chosen] = chosen, False
        else:
            matches.duplicates[place] = fits[place].any()
    return matches


def covered_shares(objects: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """
    Args:
        objects: bool (n, H, W), each with a pixel.
        mask: bool (H, W).

    Returns:
        float64 (n,): the share of each object's pixels that the mask has.
    """
    return (objects & mask).sum((1, 2)) / objects.sum((1, 2))


def category_turn(sample: AnnotatedSample, needs_things: bool) -> Turn:
    """
    The question with a list of categories.

    Raises:
        ValueError: if there is none, or none of its categories is a thing although that is needed.
    """
    for turn in sample.turns:
        if get_task(turn.task).phrases_from == "labels" and (turn.num_things or not needs_things):
            return turn
    raise ValueError(
        f"samples: {sample.name} has no list of categories{' with things' if needs_things else ''}; take those of a reader"
        " that has one, such as coco-panoptic or coco-instances"
    )


def segment_mask(segment: Mapping[str, Any]) -> np.ndarray:
    """The mask of one of the pipeline's results, bool (H, W)."""
    return np.asarray(segment["mask"]) > 127


def segment_masks(segments: Sequence[Mapping[str, Any]]) -> list[RLE]:
    """The masks of the pipeline's results as run-length encodings."""
    return [encode_masks(segment_mask(segment)[None])[0] for segment in segments]


def drawable(mask: np.ndarray, label: str) -> dict[str, Any]:
    """A mask, bool (H, W), in the form of the pipeline's results, without a score."""
    return {"label": label, "score": None, "mask": Image.fromarray(mask).convert("L")}


def picture_title(text: str, end: str) -> str:
    """A text of any length, cut so that its end, of which half a title is left, has room above a picture."""
    end = end[: TITLE_LENGTH // 2]
    return f"{shorten(text, TITLE_LENGTH - len(end) - 2, placeholder=' ...')}: {end}"


def short_name(sample: AnnotatedSample) -> str:
    """The record that a sample is, without its file: "image 139"."""
    return sample.name.rsplit(", ", 1)[-1]


def share(count: float, total: float) -> float:
    """`count / total`; NaN if there is nothing to have a share of."""
    return count / total if total else float("nan")
