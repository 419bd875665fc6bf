"""
Average precision of instances.

Matching, accumulation and summary are those of pycocotools (`pycocotools/cocoeval.py`), with its thresholds, size ranges
and at most 100 detections of a category in an image. Images are matched one by one and joined afterwards, which gives
what one evaluation of all images at once gives.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from ..data.samples import RLE, Turn, check_sizes, run_lengths
from .answers import Answer
from .metric import Metric, Summary

PARAMS = Params("segm")
NUM_AREAS, NUM_THRESHOLDS = len(PARAMS.areaRng), len(PARAMS.iouThrs)
# In the order of the summary.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
REPORTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
# A prediction below it does no harm where there is nothing to find.
HARMLESS_SCORE = 0.5


@dataclass(frozen=True, slots=True)
class PrecisionMeasurement:
    """
    What was matched in an image, L categories with D detections in all: one column after the other, to be small.

    Attributes:
        labels: names of the categories that are annotated or predicted.
        num_detections: of each category.
        scores: of the D detections, by falling score in each category.
        matched: bool (area ranges, IoU thresholds, D), 8 to a byte, hexadecimal: whether a detection has a match.
        ignored: likewise, whether it does not count, as in a crowd or of another size.
        annotated: for each area range, of each category, the annotations that count.
    """

    labels: tuple[str, ...] = ()
    num_detections: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    matched: str = ""
    ignored: str = ""
    annotated: tuple[tuple[int, ...], ...] = ((),) * NUM_AREAS


@dataclass(frozen=True, slots=True)
class _CategoryMatches:
    """
    One category in one image, with D detections.

    Attributes:
        scores: float64 (D,).
        matched, ignored: bool (area ranges, IoU thresholds, D).
        annotated: for each area range the annotations that count.
    """

    scores: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    annotated: tuple[int, ...]

    def as_evaluated(self, area: int, num_thresholds: int) -> dict[str, Any]:
        """In the form of `COCOeval.evalImgs`, for one area range and the first IoU thresholds."""
        return {
            "dtScores": self.scores,
            "dtMatches": self.matched[area, :num_thresholds],
            "dtIgnore": self.ignored[area, :num_thresholds],
            "gtIgnore": np.zeros(self.annotated[area], dtype=bool),
        }


class AveragePrecision(Metric[PrecisionMeasurement]):
    """
    Figures: AP, AP50 and AP75, APs, APm and APl of small, medium and large objects, and AR100; means over the categories
    that are annotated.

    A category is a name, `turn.labels[phrase]`: turns may ask for different ones. Crowds are what `turn.ignored` holds with
    a phrase; ignored areas of no category have no rule in COCO and are left out. Sizes are pixels of masks, where COCO's
    own evaluation takes the `area` of its annotations, which polygons make slightly different: only APs, APm and APl
    depend on it.
    """

    def measure(self, turn: Turn, answer: Answer, image_size: tuple[int, int]) -> PrecisionMeasurement:
        """
        Raises:
            ValueError: if a segment has no score, or a mask has another size than the image or is damaged.
        """
        if any(segment.score is None for segment in answer.segments):
            raise ValueError("a segment has no score: average precision needs instance segmentation")
        detections = [
            {**_annotation(number, segment.phrase, segment.mask, image_size), "score": float(segment.score)}
            for number, segment in enumerate(answer.segments, start=1)
        ]
        crowds = [(mask, phrase) for mask, phrase in turn.ignored_areas if phrase is not None]
        targets = [*zip(turn.masks, turn.mask_phrases, strict=True), *crowds]
        annotations = [
            _annotation(number, phrase, mask, image_size, is_crowd=number > len(turn.masks))
            for number, (mask, phrase) in enumerate(targets, start=1)
        ]
        phrases = sorted({each["category_id"] for each in (*annotations, *detections)})
        if not phrases:
            return PrecisionMeasurement()
        with redirect_stdout(io.StringIO()):
            evaluation = COCOeval(
                _coco(annotations, phrases, image_size), _coco(detections, phrases, image_size), "segm"
            )
            evaluation.evaluate()
        return _measurement([turn.labels[phrase] for phrase in phrases], evaluation.evalImgs)

    def main_by_label(self, measurements: Sequence[PrecisionMeasurement]) -> dict[str, float]:
        """AP of each category by name, in order of the alphabet; NaN if it is predicted, but nowhere annotated."""
        return self.summary(measurements).by_label

    def figures(self, measurements: Sequence[PrecisionMeasurement]) -> dict[str, float]:
        return self.summary(measurements).figures

    def summary(self, measurements: Sequence[PrecisionMeasurement]) -> Summary:
        """All categories are accumulated once."""
        evaluation = COCOeval(iouType="segm")
        labels = sorted({label for measurement in measurements for label in measurement.labels})
        with redirect_stdout(io.StringIO()):
            # One category after the other: all at once would take the memory of every image times every category.
            accumulated = [_accumulate(_matches_of(label, measurements), evaluation.params) for label in labels] or [
                _accumulate([], evaluation.params)
            ]
            evaluation.eval = {
                "precision": np.concatenate([each["precision"] for each in accumulated], axis=2),
                "recall": np.concatenate([each["recall"] for each in accumulated], axis=1),
            }
            evaluation.summarize()
        stats = dict(zip(FIGURES, evaluation.stats.tolist(), strict=False))
        return Summary(
            {name: math.nan if stats[name] == -1 else stats[name] for name in REPORTED},
            {
                label: _mean_of_valid(each["precision"][:, :, 0, 0, -1])
                # Without labels there is an empty accumulation.
                for label, each in zip(labels, accumulated, strict=False)
            },
        )

    def quality(self, measurement: PrecisionMeasurement) -> float:
        """
        AP50 of the image alone, the mean over its annotated categories. If there is none: 1 if nothing is predicted with a
        score of 0.5 or more, else 0.
        """
        params = Params("segm")
        params.areaRng, params.iouThrs, params.maxDets = params.areaRng[:1], params.iouThrs[:1], params.maxDets[-1:]
        of_labels = [_matches_of(label, [measurement]) for label in measurement.labels]
        annotated = [images for images in of_labels if images[0].annotated[0]]
        if not annotated:
            return float(all(score < HARMLESS_SCORE for score in measurement.scores))
        with redirect_stdout(io.StringIO()):
            precisions = [float(_accumulate(images, params)["precision"].mean()) for images in annotated]
        return math.fsum(precisions) / len(precisions)


def _annotation(
    number: int, phrase: int, mask: RLE, image_size: tuple[int, int], is_crowd: bool = False
) -> dict[str, Any]:
    """
    An annotation or detection in COCO's form.

    Raises:
        ValueError: if the mask has another size than the image or is damaged.
    """
    check_sizes([mask], image_size)
    return {
        "id": number,
        "image_id": 1,
        "category_id": phrase,
        "segmentation": mask,
        "area": int(run_lengths(mask)[1::2].sum()),
        "iscrowd": int(is_crowd),
    }


def _coco(annotations: list[dict[str, Any]], categories: Sequence[int], image_size: tuple[int, int]) -> COCO:
    """An image as pycocotools holds data sets."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "height": image_size[0], "width": image_size[1]}],
        "categories": [{"id": category} for category in categories],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _measurement(labels: Sequence[str], evaluated: Sequence[dict[str, Any]]) -> PrecisionMeasurement:
    """
    Args:
        labels: names of the categories.
        evaluated: of each category, for each area range, what `COCOeval.evaluateImg` gives.
    """
    by_area = [evaluated[area::NUM_AREAS] for area in range(NUM_AREAS)]
    return PrecisionMeasurement(
        labels=tuple(labels),
        num_detections=tuple(len(each["dtScores"]) for each in by_area[0]),
        scores=tuple(score for each in by_area[0] for score in each["dtScores"]),
        matched=_packed([[each["dtMatches"] for each in categories] for categories in by_area]),
        ignored=_packed([[each["dtIgnore"] for each in categories] for categories in by_area]),
        annotated=tuple(
            tuple(int((np.asarray(each["gtIgnore"]) == 0).sum()) for each in categories) for categories in by_area
        ),
    )


def _packed(flags: Sequence[Sequence[np.ndarray]]) -> str:
    """For each area range and category (IoU thresholds, detections), as the measurement holds it."""
    joined = np.stack([np.concatenate(of_area, axis=1) for of_area in flags])
    return np.packbits(joined != 0).tobytes().hex()


def _unpacked(flags: str, num_detections: int) -> np.ndarray:
    """The inverse of `_packed`: bool (area ranges, IoU thresholds, detections)."""
    shape = (NUM_AREAS, NUM_THRESHOLDS, num_detections)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(flags), dtype=np.uint8), count=math.prod(shape))
    return bits.reshape(shape).astype(bool)


def _matches_of(label: str, measurements: Sequence[PrecisionMeasurement]) -> list[_CategoryMatches]:
    """What was matched of a category, image by image in order of the measurements; unpacked for this category alone."""
    found = []
    for measurement in measurements:
        if label not in measurement.labels:
            continue
        place = measurement.labels.index(label)
        start = sum(measurement.num_detections[:place])
        part = slice(start, start + measurement.num_detections[place])
        matched, ignored = (
            _unpacked(each, len(measurement.scores))[..., part].copy()
            for each in (measurement.matched, measurement.ignored)
        )
        annotated = tuple(of_area[place] for of_area in measurement.annotated)
        scores = np.asarray(measurement.scores[part], dtype=np.float64)
        found.append(_CategoryMatches(scores, matched, ignored, annotated))
    return found


def _accumulate(images: Sequence[_CategoryMatches], params: Params) -> dict[str, np.ndarray]:
    """
    Precision and recall of one category in the form of `COCOeval.eval`.

    Args:
        images: those in which it is annotated or predicted.
        params: with the first IoU thresholds and area ranges.
    """
    evaluation = COCOeval(iouType="segm")
    evaluation.params = evaluation._paramsEval = copy(params)
    evaluation.params.catIds, evaluation.params.imgIds = [1], list(range(len(images)))
    evaluation.evalImgs = [
        image.as_evaluated(area, len(params.iouThrs)) for area in range(len(params.areaRng)) for image in images
    ]
    evaluation.accumulate()
    return evaluation.eval


def _mean_of_valid(precision: np.ndarray) -> float:
    """The mean of what is not -1, as it is where nothing is annotated; NaN if there is none."""
    valid = precision[precision > -1]
    return float(valid.mean()) if len(valid) else math.nan
