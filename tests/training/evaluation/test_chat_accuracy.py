"""Right and wrong answers in words."""

from __future__ import annotations

import math

import pytest

from xsam_training.data.samples import Turn
from xsam_training.evaluation.answers import Answer
from xsam_training.evaluation.chat_accuracy import ChatAccuracy

METRIC = ChatAccuracy()


def measured(said, expected):
    return METRIC.measure(Turn("chat", text="How many?", answer=expected), Answer(text=said), (4, 4))


@pytest.mark.parametrize("said", ["Two.", "two", "  TWO !\n"])
def test_the_same_words_are_right(said):
    assert measured(said, "Two.").is_right and METRIC.quality(measured(said, "Two.")) == 1.0


@pytest.mark.parametrize("said", [None, "", "Three.", "Two circles."])
def test_other_words_are_wrong(said):
    assert not measured(said, "Two.").is_right and METRIC.quality(measured(said, "Two.")) == 0.0


def test_figures():
    assert METRIC.figures([measured("Yes.", "Yes."), measured("", "No."), measured("no", "No.")]) == {
        "accuracy": 2 / 3
    }
    assert math.isnan(METRIC.figures([])["accuracy"])


def test_without_an_annotated_answer():
    with pytest.raises(ValueError, match="the annotation of 'How many' has no answer"):
        METRIC.measure(Turn("chat", text="How many"), Answer(), (4, 4))
