"""
Figures of captions whose phrases have masks.

Rules: mbzuai-oryx/groundingLMM (eval/gcg/evaluate.py); the masks are ranked by their scores for AP50 as in
wanghao9610/X-SAM (xsam/xsam/evaluation/evaluators/img_gcgseg_evaluator.py), where groundingLMM gives all of them the score
1. X-SAM leaves out images for which no mask was predicted; here, as in groundingLMM, every image counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from ..data.samples import RLE, Turn, check_sizes
from .answers import Answer, AnsweredSegment
from .average_precision import AveragePrecision, PrecisionMeasurement
from .captions import check_captioning, score_captions
from .metric import Metric, mean
from .text_similarity import TextSimilarity

# From which masks, and which words, are a match.
LEAST_IOU = 0.5
LEAST_SIMILARITY = 0.5


@dataclass(frozen=True)
class GroundedCaption:
    """
    What the answer about one image contributes.

    Attributes:
        caption: as answered, "" if there is none.
        references: published captions, at least one.
        precision: of all masks, as one category.
        miou: see `GroundedConversation`.
        num_labels: published labels.
        num_recalled: those that the answer has.
    """

    caption: str
    references: tuple[str, ...]
    precision: PrecisionMeasurement
    miou: float
    num_labels: int
    num_recalled: int


class GroundedConversation(Metric[GroundedCaption]):
    """
    Quality of the words, of the masks, and of both together. Annotated are all published masks with their labels, also
    those of `Turn.unplaced`; predicted are the segments with the words that stand at their span.

    Figures:

    - METEOR, CIDEr: of captions, see `captions`. CIDEr weighs words by the share of images whose references have them,
      so that it can be more than 1, and is 0 for a single image.
    - AP50: average precision at an IoU of 0.5 of all masks as one category.
    - mIoU: the mean over images of the mean IoU of pairs. Masks are paired one to one, the pair of highest IoU first, as
      long as masks overlap; masks that are left over do not count, an image without pairs is 0.
    - mask recall: the share of labels that are found. Pairs are made as above, and each needs an IoU and a similarity of
      words of at least 0.5. Pairing stops at the first that lacks either, as published: a pair with other words costs
      its image all labels whose pairs have a lower IoU.

    Args:
        similarity: compares labels, see `text_similarity`.

    Raises:
        ImportError: if pycocoevalcap is missing.
        FileNotFoundError: if Java is missing.
    """

    def __init__(self, similarity: TextSimilarity) -> None:
        check_captioning()
        self.similarity = similarity
        self._precision = AveragePrecision()

    def measure(self, turn: Turn, answer: Answer, image_size: tuple[int, int]) -> GroundedCaption:
        """
        Raises:
            ValueError: if the turn is of another task, a segment has no score, or a mask has another size than the image.
        """
        if turn.task != "grounded-conversation" or turn.answer is None:
            raise ValueError(
                f"a {turn.task} turn with the answer {turn.answer!r} has no grounded caption to compare with"
            )
        caption = answer.text or ""
        labels, masks = published_labels(turn)
        phrases = [caption[slice(*answer.spans[segment.phrase])] for segment in answer.segments]
        predicted = [segment.mask for segment in answer.segments]
        ious = mask_ious(masks, predicted, image_size)
        return GroundedCaption(
            caption=caption,
            references=(turn.answer, *turn.references),
            precision=self._precision.measure(*_as_one_category(masks, answer), image_size),
            miou=mean_iou_of_pairs(ious),
            num_labels=len(labels),
            num_recalled=count_recalled(ious, self.similarity(labels, phrases)),
        )

    def figures(self, measurements: Sequence[GroundedCaption]) -> dict[str, float]:
        captions = score_captions([each.caption for each in measurements], [each.references for each in measurements])
        num_labels = sum(each.num_labels for each in measurements)
        recalled = sum(each.num_recalled for each in measurements)
        return {
            "METEOR": captions.meteor,
            "CIDEr": captions.cider,
            "AP50": self._precision.figures([each.precision for each in measurements])["AP50"],
            "mIoU": mean(each.miou for each in measurements),
            "mask recall": recalled / num_labels if num_labels else float("nan"),
        }

    def quality(self, measurement: GroundedCaption) -> float:
        """The mIoU of the image."""
        return measurement.miou


def published_labels(turn: Turn) -> tuple[list[str], list[RLE]]:
    """The labels of all annotated masks, and the masks: phrases in the caption, then `unplaced`."""
    placed = [turn.answer[slice(*turn.spans[phrase])] for phrase in turn.mask_phrases]
    return (
        [*placed, *(label.text for label in turn.unplaced)],
        [*turn.masks, *(label.mask for label in turn.unplaced)],
    )


def mask_ious(masks: Sequence[RLE], others: Sequence[RLE], image_size: tuple[int, int]) -> np.ndarray:
    """
    IoU of every mask with every other, float64 (n, m).

    Raises:
        ValueError: if a mask has another size than the image.
    """
    check_sizes([*masks, *others], image_size)
    if not masks or not others:
        return np.zeros((len(masks), len(others)))
    return np.asarray(coco_mask.iou(list(masks), list(others), [0] * len(others)))


def mean_iou_of_pairs(ious: np.ndarray) -> float:
    """
    The mean IoU of one-to-one pairs of overlapping masks, those of highest IoU first; 0 without any.

    Args:
        ious: float (annotated, predicted).
    """
    ious = ious.copy()
    paired = []
    while ious.size and (best := ious.max()) > 0:
        paired.append(float(best))
        _take(ious)
    return sum(paired) / len(paired) if paired else 0.0


def count_recalled(ious: np.ndarray, similarities: np.ndarray) -> int:
    """
    One-to-one pairs that agree in mask and words, those of highest IoU first, up to the first that does not agree.

    Args:
        ious, similarities: float (annotated, predicted).
    """
    ious = ious.copy()
    count = 0
    while ious.size and ious.max() >= LEAST_IOU:
        if similarities[_take(ious)] < LEAST_SIMILARITY:
            break
        count += 1
    return count


def _take(ious: np.ndarray) -> tuple[int, int]:
    """The place of the highest IoU, the first of equal ones; its row and column are set to 0."""
    row, column = np.unravel_index(ious.argmax(), ious.shape)
    ious[row, :] = ious[:, column] = 0
    return int(row), int(column)


def _as_one_category(masks: Sequence[RLE], answer: Answer) -> tuple[Turn, Answer]:
    """Masks and segments as in instance segmentation of a single category."""
    turn = Turn("generic", labels=("phrase",), num_things=1, masks=tuple(masks), mask_phrases=(0,) * len(masks))
    return turn, Answer(tuple(AnsweredSegment(0, segment.mask, segment.score) for segment in answer.segments))
