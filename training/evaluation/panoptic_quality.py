"""
Panoptic quality.

The rules are those of COCO's evaluation (panopticapi, `panopticapi/evaluation.py`). A segment is found if a predicted one
of its category has an intersection over union above 0.5 with it; the part of a prediction that is void does not count in
the union. A prediction that found nothing is a false positive, unless more than half of it is void or crowd of its own
category; of several crowds of one category the last counts. Crowds are neither found nor missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.samples import Turn, label_map
from .answers import Answer
from .metric import CategoryMetric, mean


@dataclass(frozen=True, slots=True)
class SegmentCounts:
    """
    Segments of one category.

    Attributes:
        label: index of the category.
        found: matched pairs.
        wrong: predictions that are false positives.
        missed: annotations without a match.
        iou: sum of the intersections over unions of the matched pairs.
    """

    label: int
    found: int
    wrong: int
    missed: int
    iou: float


@dataclass(frozen=True, slots=True)
class PanopticMeasurement:
    """Counts of the categories that occur in an image, in order of the labels."""

    counts: tuple[SegmentCounts, ...]


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """Panoptic, segmentation and recognition quality of one category, 0 to 1, and what they are computed of."""

    pq: float
    sq: float
    rq: float
    found: int
    wrong: int
    missed: int


@dataclass(frozen=True)
class _Overlaps:
    """
    Pixels of pairs of segments, n annotated and m predicted ones; all int64.

    Attributes:
        annotated: (n,) pixels of each annotated segment.
        predicted: (m,) pixels of each predicted segment.
        both: (n, m) pixels that are in both.
        void: (m,) pixels of each predicted segment that are void.
        crowd: (m,) those that are a crowd of its category.
    """

    annotated: np.ndarray
    predicted: np.ndarray
    both: np.ndarray
    void: np.ndarray
    crowd: np.ndarray


class PanopticQuality(CategoryMetric[PanopticMeasurement]):
    """
    Figures: PQ, SQ and RQ of all categories, of things and of stuff, each the mean over the categories that occur.

    Segments of an answer must not overlap; one without a pixel is none.
    """

    def measure(self, turn: Turn, answer: Answer, image_size: tuple[int, int]) -> PanopticMeasurement:
        """
        Raises:
            ValueError: if the turn asks for other labels, a mask has another size than the image or is damaged, or segments
                overlap.
        """
        self.check(turn)
        overlaps = _overlaps(turn, answer, image_size)
        targets = np.asarray(turn.mask_phrases, dtype=np.int64)
        guesses = np.asarray([segment.phrase for segment in answer.segments], dtype=np.int64)
        union = overlaps.annotated[:, None] + overlaps.predicted - overlaps.both - overlaps.void
        iou = np.where(targets[:, None] == guesses, overlaps.both / np.maximum(union, 1), 0.0)
        rows, columns = np.nonzero(iou > 0.5)
        excused = 2 * (overlaps.void + overlaps.crowd) > overlaps.predicted
        is_wrong = (overlaps.predicted > 0) & ~excused
        is_wrong[columns] = False
        count = len(self.labels)
        found = np.bincount(targets[rows], minlength=count)
        wrong = np.bincount(guesses[is_wrong], minlength=count)
        missed = np.bincount(targets, minlength=count) - found
        return PanopticMeasurement(
            tuple(
                SegmentCounts(
                    label,
                    int(found[label]),
                    int(wrong[label]),
                    int(missed[label]),
                    math.fsum(iou[rows, columns][targets[rows] == label].tolist()),
                )
                for label in np.flatnonzero(found + wrong + missed).tolist()
            )
        )

    def by_label(self, measurements: Sequence[PanopticMeasurement]) -> dict[str, LabelQuality]:
        """The categories that occur, by name, in order of the labels."""
        return {self.labels[label]: quality for label, quality in self._qualities(measurements).items()}

    def main_by_label(self, measurements: Sequence[PanopticMeasurement]) -> dict[str, float]:
        return {name: each.pq for name, each in self.by_label(measurements).items()}

    def figures(self, measurements: Sequence[PanopticMeasurement]) -> dict[str, float]:
        qualities = self._qualities(measurements)
        things = [quality for label, quality in qualities.items() if label < self.num_things]
        stuff = [quality for label, quality in qualities.items() if label >= self.num_things]
        return {
            f"{name}{suffix}": mean(getattr(quality, name.lower()) for quality in group)
            for suffix, group in (("", list(qualities.values())), (" things", things), (" stuff", stuff))
            for name in ("PQ", "SQ", "RQ")
        }

    def quality(self, measurement: PanopticMeasurement) -> float:
        """The panoptic quality of the image alone; 1 if there is nothing to find and nothing was found."""
        return self.figures([measurement])["PQ"] if measurement.counts else 1.0

    def _qualities(self, measurements: Sequence[PanopticMeasurement]) -> dict[int, LabelQuality]:
        """By index of the label, in order."""
        counts: dict[int, list[SegmentCounts]] = {}
        for measurement in measurements:
            for each in measurement.counts:
                counts.setdefault(each.label, []).append(each)
        return {label: _quality(counts[label]) for label in sorted(counts)}


def _overlaps(turn: Turn, answer: Answer, image_size: tuple[int, int]) -> _Overlaps:
    num_masks, areas = len(turn.masks), turn.ignored_areas
    void = num_masks + len(areas) + 1
    places = [void if phrase is None else num_masks + 1 + place for place, (_, phrase) in enumerate(areas)]
    annotated = label_map(
        (*turn.masks, *turn.ignored),
        [*range(1, num_masks + 1), *places],
        image_size,
        "masks and ignored areas of a turn",
    )
    num_segments = len(answer.segments)
    predicted = label_map(
        [segment.mask for segment in answer.segments], range(1, num_segments + 1), image_size, "segments of an answer"
    )
    pairs = np.bincount(
        (annotated * (num_segments + 1) + predicted).ravel(order="K"), minlength=(void + 1) * (num_segments + 1)
    ).reshape(void + 1, num_segments + 1)
    crowds = {phrase: place for place, (_, phrase) in zip(places, areas, strict=True) if phrase is not None}
    crowd = [
        pairs[crowds[segment.phrase], number] if segment.phrase in crowds else 0
        for number, segment in enumerate(answer.segments, start=1)
    ]
    return _Overlaps(
        annotated=pairs.sum(axis=1)[1 : num_masks + 1],
        predicted=pairs.sum(axis=0)[1:],
        both=pairs[1 : num_masks + 1, 1:],
        void=pairs[void, 1:],
        crowd=np.asarray(crowd, dtype=np.int64),
    )


def _quality(counts: Sequence[SegmentCounts]) -> LabelQuality:
    """Of one category; it occurs."""
    found, wrong, missed = (sum(getattr(each, name) for each in counts) for name in ("found", "wrong", "missed"))
    iou = math.fsum(each.iou for each in counts)
    segments = found + wrong / 2 + missed / 2
    return LabelQuality(iou / segments, iou / found if found else 0.0, found / segments, found, wrong, missed)
