"""
Figures of questions with one answer: referring, reasoning and interactive segmentation.

Rules: cIoU and gIoU as dvlab-research/LISA (train_ds.py) and wanghao9610/X-SAM (xsam/xsam/evaluation/utils/iou.py) have
them; what absent targets contribute, N-acc and T-acc as henghuiding/ReLA
(gres_model/evaluation/refer_evaluation.py) has them; P@0.5 is its precision at a lower IoU. ReLA's model has a classifier for absent targets; here an answer says
that nothing is there by having no pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.samples import RLE, Turn, decode_masks
from .answers import Answer
from .metric import Metric, mean

# IoU from which a target counts as found in P@0.5.
FOUND = 0.5


@dataclass(frozen=True)
class Overlap:
    """
    Prediction and annotation of one question, in pixels that are not ignored.

    Attributes:
        intersection: pixels of both.
        union: pixels of either.
        has_target: whether anything is annotated.
        has_answer: whether anything is predicted.
    """

    intersection: int
    union: int
    has_target: bool
    has_answer: bool

    @property
    def iou(self) -> float:
        """0 to 1; two empty masks agree."""
        return self.intersection / self.union if self.union else 1.0


class ReferringIoU(Metric[Overlap]):
    """
    Overlap of the union of predicted with the union of annotated masks, where `Turn.ignored` says nothing.

    Figures:

    - cIoU: all intersections over all unions. What is predicted for an absent target adds to the union.
    - gIoU: the mean over questions of the IoU, which is 1 if target and answer are both absent and 0 if one is.
    - P@0.5: of the questions with a target, the share with an IoU of at least 0.5.
    - N-acc: of the questions without a target, the share with an empty answer.
    - T-acc: of the questions with a target, the share with an answer that is not empty.

    N-acc and T-acc are given if there is a question without a target.
    """

    def measure(self, turn: Turn, answer: Answer, image_size: tuple[int, int]) -> Overlap:
        """
        Raises:
            ValueError: if the question has several phrases, or a mask has another size than the image.
        """
        phrases = {*turn.mask_phrases, *(segment.phrase for segment in answer.segments)}
        if turn.num_phrases != 1 or phrases - {0}:
            raise ValueError(
                f"a {turn.task} question with {turn.num_phrases} phrases, masks and segments of the phrases"
                f" {sorted(phrases)}: figures of expressions need one phrase; evaluate categories with average-precision,"
                " mean-iou or panoptic-quality"
            )
        counted = ~_union(turn.ignored, image_size)
        target = _union(turn.masks, image_size) & counted
        predicted = _union([segment.mask for segment in answer.segments], image_size) & counted
        return Overlap(
            intersection=int((target & predicted).sum()),
            union=int((target | predicted).sum()),
            has_target=bool(turn.masks),
            has_answer=bool(predicted.any()),
        )

    def figures(self, measurements: Sequence[Overlap]) -> dict[str, float]:
        total = Overlap(
            intersection=sum(each.intersection for each in measurements),
            union=sum(each.union for each in measurements),
            has_target=any(each.has_target for each in measurements),
            has_answer=any(each.has_answer for each in measurements),
        )
        present = [each for each in measurements if each.has_target]
        absent = [each for each in measurements if not each.has_target]
        figures = {
            "cIoU": total.iou if measurements else float("nan"),
            "gIoU": mean([each.iou for each in measurements]),
            "P@0.5": mean([each.iou >= FOUND for each in present]),
        }
        if absent:
            figures["N-acc"] = mean([not each.has_answer for each in absent])
            figures["T-acc"] = mean([each.has_answer for each in present])
        return figures

    def quality(self, measurement: Overlap) -> float:
        """The IoU."""
        return measurement.iou


def _union(masks: Sequence[RLE], image_size: tuple[int, int]) -> np.ndarray:
    """Bool (H, W), without a pixel if there are no masks."""
    return decode_masks(masks, image_size).any(0)
