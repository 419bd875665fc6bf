import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from xsam_training.data.samples import Turn, encode_masks
from xsam_training.evaluation.answers import Answer, AnsweredSegment
from xsam_training.evaluation.referring_iou import Overlap, ReferringIoU

SIZE = (4, 6)


def columns(first: int, last: int) -> dict:
    """A mask of whole columns, 4 pixels each; the last is not included."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[:, first:last] = True
    return encode_masks(mask[None])[0]


def asked(*masks: dict, ignored: tuple = ()) -> Turn:
    return Turn("referring", text="it", masks=masks, mask_phrases=(0,) * len(masks), ignored=ignored)


def answered(*masks: dict) -> Answer:
    return Answer(tuple(AnsweredSegment(0, mask, 0.9) for mask in masks))


def measured(turn: Turn, answer: Answer) -> Overlap:
    return ReferringIoU().measure(turn, answer, SIZE)


def test_a_question_is_measured_in_pixels():
    assert measured(asked(columns(0, 3)), answered(columns(1, 5))) == Overlap(8, 20, True, True)
    # Masks of a side count as one, where they overlap too.
    assert measured(asked(columns(0, 2), columns(1, 3)), answered(columns(1, 3), columns(3, 5))) == Overlap(
        8, 20, True, True
    )
    assert measured(asked(columns(0, 3)), answered()) == Overlap(0, 12, True, False)
    assert measured(asked(), answered(columns(0, 1))) == Overlap(0, 4, False, True)
    # A mask without a pixel says the same as none.
    assert measured(asked(), answered(columns(0, 0))) == measured(asked(), answered()) == Overlap(0, 0, False, False)


def test_ignored_pixels_are_neither_right_nor_wrong():
    crowd = (columns(2, 4), columns(5, 6))
    assert measured(asked(columns(0, 3), ignored=crowd), answered(columns(1, 6))) == Overlap(4, 12, True, True)
    assert measured(asked(ignored=crowd), answered(columns(2, 4))) == Overlap(0, 0, False, False)
    assert measured(asked(columns(0, 1), ignored=crowd), answered(columns(2, 4))) == Overlap(0, 4, True, False)


def test_figures_where_everything_has_a_target():
    figures = ReferringIoU().figures(
        [Overlap(8, 20, True, True), Overlap(12, 12, True, True), Overlap(0, 12, True, False)]
    )
    assert list(figures) == ["cIoU", "gIoU", "P@0.5"]
    assert figures["cIoU"] == 20 / 44
    assert figures["gIoU"] == pytest.approx((0.4 + 1 + 0) / 3)
    assert figures["P@0.5"] == 1 / 3
    assert ReferringIoU().figures([Overlap(5, 10, True, True)])["P@0.5"] == 1


def test_figures_with_absent_targets():
    present = [Overlap(8, 16, True, True), Overlap(0, 12, True, False)]
    absent = [Overlap(0, 0, False, False), Overlap(0, 4, False, True), Overlap(0, 0, False, False)]
    figures = ReferringIoU().figures([*present, *absent])
    assert list(figures) == ["cIoU", "gIoU", "P@0.5", "N-acc", "T-acc"]
    # A wrong answer to an absent target adds to the union, a right one adds nothing.
    assert figures["cIoU"] == 8 / 32
    assert figures["gIoU"] == pytest.approx((0.5 + 0 + 1 + 0 + 1) / 5)
    assert (figures["P@0.5"], figures["N-acc"], figures["T-acc"]) == (0.5, 2 / 3, 0.5)


def test_what_the_data_cannot_give_is_nan():
    assert all(math.isnan(value) for value in ReferringIoU().figures([]).values())
    figures = ReferringIoU().figures([Overlap(0, 0, False, False)])
    assert (figures["cIoU"], figures["gIoU"], figures["N-acc"]) == (1, 1, 1)
    assert math.isnan(figures["P@0.5"]) and math.isnan(figures["T-acc"])


def test_quality_and_stored_measurements():
    overlap = measured(asked(columns(0, 3)), answered(columns(1, 5)))
    assert ReferringIoU().quality(overlap) == 0.4
    assert ReferringIoU().quality(Overlap(0, 0, False, False)) == 1
    assert asdict(overlap) == {"intersection": 8, "union": 20, "has_target": True, "has_answer": True}
    assert all(type(value) in (int, bool) for value in asdict(overlap).values())


def test_questions_of_several_phrases_are_refused():
    turn = Turn("generic", labels=("cup", "plate"), num_things=2, masks=(columns(0, 1),), mask_phrases=(1,))
    with pytest.raises(ValueError, match=r"generic question with 2 phrases.*average-precision"):
        measured(turn, answered())
    with pytest.raises(ValueError, match=r"segments of the phrases \[0, 1\]"):
        measured(asked(columns(0, 1)), Answer((AnsweredSegment(1, columns(0, 1)),)))
    other = {**columns(0, 1), "size": [6, 4]}
    with pytest.raises(ValueError, match=r"mask of size \(6, 4\)"):
        measured(asked(columns(0, 1)), answered(other))
    with pytest.raises(ValueError, match=r"mask of size \(6, 4\)"):
        measured(replace(asked(columns(0, 1)), ignored=(other,)), answered())
