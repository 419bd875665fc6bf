"""Answers as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xsam_training.data.samples import encode_masks
from xsam_training.evaluation.answers import Answer, AnsweredSegment

(MASK,) = encode_masks(np.eye(5, 7, dtype=bool)[None])
ANSWER = Answer(
    (AnsweredSegment(2, MASK, 0.1 + 0.2), AnsweredSegment(0, MASK)),
    "a cup",
    ((0, 1), (2, 5)),
    "the answer has no <SEG>.",
)


def test_json_keeps_every_digit():
    assert Answer.from_json(json.loads(json.dumps(ANSWER.to_json()))) == ANSWER
    assert Answer.from_json(Answer().to_json()) == Answer()


def test_masks_are_cocos():
    rle = ANSWER.to_json()["segments"][0]["rle"]
    assert rle == {"size": [5, 7], "counts": MASK["counts"].decode("ascii")}


@pytest.mark.parametrize(
    "content", [{}, {"segments": [{}], "text": None, "spans": [], "failure": ""}, {"segments": 3}]
)
def test_what_is_no_answer(content):
    with pytest.raises(ValueError, match="a stored answer is malformed"):
        Answer.from_json(content)
