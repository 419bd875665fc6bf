import json
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from xsam_training.data.samples import Turn, UnplacedLabel, encode_masks
from xsam_training.evaluation import grounded_conversation
from xsam_training.evaluation.answers import Answer, AnsweredSegment
from xsam_training.evaluation.captions import CaptionScores
from xsam_training.evaluation.grounded_conversation import (
    GroundedConversation,
    count_recalled,
    mask_ious,
    mean_iou_of_pairs,
    published_labels,
)
from xsam_training.evaluation.text_similarity import WordSimilarity

SIZE = (8, 8)
CAPTION = "A red cup on the table."


def area(rows: slice, columns: slice) -> dict:
    mask = np.zeros(SIZE, dtype=bool)
    mask[rows, columns] = True
    return encode_masks(mask[None])[0]


CUP = area(slice(0, 8), slice(0, 4))
TABLE = area(slice(0, 4), slice(4, 8))
SKY = area(slice(6, 8), slice(4, 8))
MOST_OF_CUP = area(slice(0, 6), slice(0, 4))
CORNER = area(slice(7, 8), slice(7, 8))

FIRST = Turn(
    "grounded-conversation",
    answer=CAPTION,
    spans=((0, 9), (13, 22)),
    masks=(CUP, TABLE),
    mask_phrases=(0, 1),
    unplaced=(UnplacedLabel("blue sky", SKY),),
    references=("There is a cup.",),
)
SECOND = Turn("grounded-conversation", answer="A dog", spans=((0, 5),), masks=(CUP,), mask_phrases=(0,))


def answered(text: str, *phrases: tuple[str, dict, float]) -> Answer:
    spans = tuple((text.index(phrase), text.index(phrase) + len(phrase)) for phrase, _, _ in phrases)
    segments = tuple(AnsweredSegment(place, mask, score) for place, (_, mask, score) in enumerate(phrases))
    return Answer(segments, text, spans)


GOOD = answered("the old table and a red cup", ("the old table", TABLE, 0.9), ("a red cup", MOST_OF_CUP, 0.8))


@pytest.fixture
def metric(monkeypatch) -> GroundedConversation:
    """Without Java: captions are scored 0.25 and 1.5."""
    monkeypatch.setattr(grounded_conversation, "check_captioning", lambda: None)
    monkeypatch.setattr(grounded_conversation, "score_captions", lambda *captions: CaptionScores(0.25, 1.5))
    return GroundedConversation(WordSimilarity())


def test_what_one_answer_contributes(metric):
    found = metric.measure(FIRST, GOOD, SIZE)
    assert (found.caption, found.references) == (GOOD.text, (CAPTION, "There is a cup."))
    # IoU 1 and 24 of 32; nothing is said of the sky.
    assert (found.miou, found.num_labels, found.num_recalled) == (0.875, 3, 2)
    assert metric.quality(found) == 0.875
    assert json.loads(json.dumps(asdict(found)))["references"] == [CAPTION, "There is a cup."]


def test_figures_of_two_images(metric):
    silent = metric.measure(SECOND, Answer(), SIZE)
    assert (silent.caption, silent.miou, silent.num_labels, silent.num_recalled) == ("", 0.0, 1, 0)
    figures = metric.figures([metric.measure(FIRST, GOOD, SIZE), silent])
    assert list(figures) == ["METEOR", "CIDEr", "AP50", "mIoU", "mask recall"]
    assert (figures["METEOR"], figures["CIDEr"]) == (0.25, 1.5)
    # Two of four masks are found, without a mistake: precision is 1 at the recalls 0, 0.01, ... 0.5.
    assert figures["AP50"] == pytest.approx(51 / 101)
    assert (figures["mIoU"], figures["mask recall"]) == (0.875 / 2, 2 / 4)
    # The mistake is surer than what is right: precision is 1/2 at the first mask, 2/3 at the second.
    wrong = metric.measure(SECOND, answered("A cat", ("A cat", CORNER, 0.95)), SIZE)
    assert metric.figures([metric.measure(FIRST, GOOD, SIZE), wrong])["AP50"] == pytest.approx(51 / 101 * 2 / 3)
    assert all(math.isnan(metric.figures([])[name]) for name in ("AP50", "mIoU", "mask recall"))


def test_images_without_masks_count(metric):
    bare = Turn("grounded-conversation", answer="Nothing here")
    found = metric.measure(bare, GOOD, SIZE)
    assert (found.miou, found.num_labels, found.num_recalled) == (0.0, 0, 0)
    figures = metric.figures([found, metric.measure(FIRST, GOOD, SIZE)])
    assert (figures["mIoU"], figures["mask recall"]) == (0.875 / 2, 2 / 3)
    assert math.isnan(metric.figures([found])["mask recall"])


def test_every_mask_has_its_label():
    turn = replace(FIRST, masks=(CUP, TABLE, CORNER), mask_phrases=(0, 1, 0))
    labels, masks = published_labels(turn)
    assert labels == ["A red cup", "the table", "A red cup", "blue sky"]
    assert masks == [CUP, TABLE, CORNER, SKY]


def test_pairs_are_one_to_one_and_the_highest_first():
    # 0.9 takes its row and column, so that 0.8 is left over and 0.3 is a pair.
    ious = np.array([[0.9, 0.8, 0.0], [0.7, 0.3, 0.0]])
    assert mean_iou_of_pairs(ious) == pytest.approx(0.6)
    assert ious[0, 0] == 0.9
    assert mean_iou_of_pairs(np.zeros((2, 3))) == mean_iou_of_pairs(np.zeros((0, 3))) == 0.0
    # Of equal pairs the first: with the other, 0.2 were left and not 0.5.
    assert mean_iou_of_pairs(np.array([[0.6, 0.6], [0.2, 0.5]])) == pytest.approx((0.6 + 0.5) / 2)


def test_recall_needs_masks_and_words():
    ious = np.array([[0.9, 0.1], [0.2, 0.6]])
    same, other = np.ones((2, 2)), np.array([[0.4, 1.0], [1.0, 1.0]])
    assert count_recalled(ious, same) == 2
    assert count_recalled(ious, np.array([[1.0, 0], [0, 0.49]])) == 1
    # The first pair has other words: the second, which agrees, is not reached.
    assert count_recalled(ious, other) == 0
    assert count_recalled(np.array([[0.5, 0.0]]), np.array([[0.5, 0.0]])) == 1
    assert count_recalled(np.array([[0.49]]), np.ones((1, 1))) == 0
    assert count_recalled(np.zeros((0, 2)), np.zeros((0, 2))) == 0


def test_overlap_of_masks():
    empty = area(slice(0, 0), slice(0, 0))
    found = mask_ious([CUP, SKY], [MOST_OF_CUP, empty, area(slice(4, 8), slice(4, 8))], SIZE)
    assert np.array_equal(found, [[0.75, 0, 0], [0, 0, 0.5]])
    with pytest.raises(ValueError, match=r"mask of size \(8, 8\)"):
        mask_ious([CUP], [], (8, 9))


def test_other_tasks_are_refused(metric):
    with pytest.raises(ValueError, match=r"a referring turn .* has no grounded caption"):
        metric.measure(Turn("referring", text="a cup"), GOOD, SIZE)


def test_java_is_asked_for_when_the_metric_is_made(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="java"):
        GroundedConversation(WordSimilarity())
