"""
Mean intersection over union of classes, and the accuracies that go with it.

As in detectron2 (`detectron2/evaluation/sem_seg_evaluation.py`), whose computation X-SAM has
(`xsam/evaluation/evaluators/img_genseg_evaluator.py`, semantic_evaluate): pixels are counted over all images, and classes
that occur in no annotation are not averaged. Pixels that a prediction leaves to no class are missed; there predictions
cover all pixels, so that the case does not arise. Crowds belong to their class, as in the maps that are made of COCO's
panoptic annotations there (Mask2Former, `datasets/prepare_coco_semantic_annos_from_panoptic_annos.py`).
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
class PixelCounts:
    """
    Pixels of one class, of those that are annotated with any.

    Attributes:
        label: index of the class.
        both: annotated and predicted.
        predicted: predicted.
        annotated: annotated.
    """

    label: int
    both: int
    predicted: int
    annotated: int


@dataclass(frozen=True, slots=True)
class MeanIoUMeasurement:
    """Counts of the classes that occur in an image, in order of the labels."""

    counts: tuple[PixelCounts, ...]


@dataclass(frozen=True, slots=True)
class LabelIoU:
    """Intersection over union and accuracy of one class, 0 to 1, and the pixels that they are computed of."""

    iou: float
    accuracy: float
    both: int
    predicted: int
    annotated: int


class MeanIoU(CategoryMetric[MeanIoUMeasurement]):
    """
    Figures: mIoU, mIoU things and mIoU stuff, the means over the classes that are annotated anywhere; fwIoU, their mean
    weighted by annotated pixels; mACC, the mean share of a class's pixels that is right; pACC, the share of all pixels.

    Masks of one phrase are united, so that panoptic annotations and answers serve as well. Pixels that are ignored or have
    no class are left out.
    """

    def measure(self, turn: Turn, answer: Answer, image_size: tuple[int, int]) -> MeanIoUMeasurement:
        """
        Raises:
            ValueError: if the turn asks for other labels, a mask has another size than the image or is damaged, or masks
                of different phrases overlap.
        """
        self.check(turn)
        crowds = [(mask, phrase) for mask, phrase in turn.ignored_areas if phrase is not None]
        void = [mask for mask, phrase in turn.ignored_areas if phrase is None]
        annotated = label_map(
            [*turn.masks, *(mask for mask, _ in crowds)],
            [phrase + 1 for phrase in (*turn.mask_phrases, *(phrase for _, phrase in crowds))],
            image_size,
            "masks of a turn",
        )
        ignored = label_map(void, [1] * len(void), image_size)
        predicted = label_map(
            [segment.mask for segment in answer.segments],
            [segment.phrase + 1 for segment in answer.segments],
            image_size,
            "segments of an answer",
        )
        counted = (annotated > 0) & (ignored == 0)
        targets, guesses = annotated.T[counted.T], predicted.T[counted.T]
        both, of_guesses, of_targets = (
            np.bincount(pixels, minlength=len(self.labels) + 1)[1:]
            for pixels in (targets[targets == guesses], guesses, targets)
        )
        return MeanIoUMeasurement(
            tuple(
                PixelCounts(label, int(both[label]), int(of_guesses[label]), int(of_targets[label]))
                for label in np.flatnonzero(of_guesses + of_targets).tolist()
            )
        )

    def by_label(self, measurements: Sequence[MeanIoUMeasurement]) -> dict[str, LabelIoU]:
        """The classes that are annotated anywhere, by name, in order of the labels."""
        return {self.labels[label]: each for label, each in _by_index(measurements).items()}

    def main_by_label(self, measurements: Sequence[MeanIoUMeasurement]) -> dict[str, float]:
        return {name: each.iou for name, each in self.by_label(measurements).items()}

    def figures(self, measurements: Sequence[MeanIoUMeasurement]) -> dict[str, float]:
        labels = _by_index(measurements)
        pixels = sum(each.annotated for each in labels.values())
        return {
            "mIoU": mean(each.iou for each in labels.values()),
            "mIoU things": mean(each.iou for label, each in labels.items() if label < self.num_things),
            "mIoU stuff": mean(each.iou for label, each in labels.items() if label >= self.num_things),
            "fwIoU": math.fsum(each.iou * each.annotated for each in labels.values()) / pixels if pixels else math.nan,
            "mACC": mean(each.accuracy for each in labels.values()),
            "pACC": sum(each.both for each in labels.values()) / pixels if pixels else math.nan,
        }

    def quality(self, measurement: MeanIoUMeasurement) -> float:
        """The mIoU of the image alone; 1 if nothing in it is annotated."""
        return self.figures([measurement])["mIoU"] if measurement.counts else 1.0


def _by_index(measurements: Sequence[MeanIoUMeasurement]) -> dict[int, LabelIoU]:
    """The classes that are annotated anywhere, by index, in order."""
    sums: dict[int, tuple[int, int, int]] = {}
    for measurement in measurements:
        for each in measurement.counts:
            both, predicted, annotated = sums.get(each.label, (0, 0, 0))
            sums[each.label] = (both + each.both, predicted + each.predicted, annotated + each.annotated)
    return {
        label: LabelIoU(both / (predicted + annotated - both), both / annotated, both, predicted, annotated)
        for label, (both, predicted, annotated) in sorted(sums.items())
        if annotated
    }
