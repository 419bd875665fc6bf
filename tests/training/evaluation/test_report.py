"""Results as a table, lines and a page; the worst and the best cases."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from io import BytesIO

import pytest
from PIL import Image

from tiny_training import category_sample, chat_sample, referring_sample, visual_sample
from xsam_training.evaluation.answers import Answer, AnsweredSegment
from xsam_training.evaluation.cases import describe, draw_case, extremes
from xsam_training.evaluation.report import table, write_page, write_samples
from xsam_training.evaluation.results import BenchmarkResult, QuestionRecord


@dataclass(frozen=True)
class Pixels:
    intersection: int


def record(sample, quality, failure=""):
    return QuestionRecord(sample, 0, f"image {sample}", "a <b>cup</b>", quality, failure, Pixels(sample))


RECORDS = [
    record(0, 0.5),
    record(1, 0.0, "the answer has no <SEG>."),
    record(2, 1.0),
    record(3, 0.0, "<p> at position 12"),
]
RESULT = BenchmarkResult(
    name="refcoco-val",
    metric="referring-iou",
    definition={"name": "refcoco-val"},
    figures={"cIoU": 0.123456, "gIoU": math.nan},
    by_label={"cup": math.nan, "dog": 0.5},
    num_samples=4,
    num_questions=4,
    not_asked=2,
    skipped={"... does not exist": 1},
    seconds=1.25,
    records=RECORDS,
)


def test_table():
    other = replace(
        RESULT, name="x", figures={"cIoU": 1.0, "N-acc": 0.5}, records=RECORDS[:1], not_asked=0, skipped={}
    )
    lines = table([RESULT, other]).splitlines()
    assert lines[0].split() == ["referring-iou", "cIoU", "gIoU", "N-acc", "images", "questions", "failures", "seconds"]
    assert lines[2].split() == ["refcoco-val", "12.35", "-", "4", "4", "2", "1.2"]
    assert lines[3].split() == ["x", "100.00", "50.00", "4", "4", "0", "1.2"]
    assert "refcoco-val: 1 without a mask: the answer has no <SEG>" in lines
    assert "refcoco-val: 1 without a mask: <p> at position N" in lines
    assert "refcoco-val: 2 questions have no such visual prompt and were not asked" in lines
    assert "refcoco-val: 1 records skipped: ... does not exist" in lines


def test_json_names_every_failure():
    content = json.loads(json.dumps(RESULT.to_json(), allow_nan=False))
    assert content["figures"] == {"cIoU": 0.123456, "gIoU": None}
    assert content["by_label"] == {"cup": None, "dog": 0.5}
    assert content["failures"] == [
        {"sample": "image 1", "question": "a <b>cup</b>", "why": "the answer has no <SEG>."},
        {"sample": "image 3", "question": "a <b>cup</b>", "why": "<p> at position 12"},
    ]
    assert content["not_asked"] == 2 and content["skipped"] == {"... does not exist": 1}


def test_lines_of_questions(tmp_path):
    write_samples([RESULT], tmp_path / "samples.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["quality"] for line in lines] == [0.5, 0.0, 1.0, 0.0]
    assert lines[2]["benchmark"] == "refcoco-val" and lines[2]["measurement"] == {"intersection": 2}


@pytest.mark.parametrize(
    ("count", "worst", "best"), [(0, [], []), (1, [1], [2]), (2, [1, 3], [2, 0]), (9, [1, 3], [2, 0])]
)
def test_extremes(count, worst, best):
    assert extremes(RECORDS, count) == (worst, best)


def perfect(turn):
    return Answer(tuple(AnsweredSegment(p, m, 0.9) for p, m in zip(turn.mask_phrases, turn.masks, strict=True)))


@pytest.mark.parametrize("sample", [category_sample(0), referring_sample(2), visual_sample(6)])
def test_a_case_shows_annotation_and_answer(sample):
    turn = sample.turns[0]
    case = draw_case(turn, perfect(turn), sample, 1.0)
    nothing = draw_case(turn, Answer(failure="no <SEG>"), sample, 0.0)
    assert case.name == sample.name and nothing.failure == "no <SEG>" and case.question == describe(turn)
    assert case.picture == draw_case(turn, perfect(turn), sample, 1.0).picture != nothing.picture
    assert Image.open(BytesIO(case.picture)).width > 800


def test_what_was_asked_in_words():
    assert describe(category_sample(0).turns[0]) == "generic, 5 categories"
    assert describe(referring_sample(2).turns[1]) == "the middle shape"
    turn = visual_sample(6).turns[0]
    kinds = ", ".join(dict.fromkeys(regions[0].kind for regions in turn.regions))
    assert describe(turn) == f"visual-grounded, {kinds}: {', '.join(turn.labels)}"
    assert describe(replace(turn, labels=())) == f"visual-grounded, {kinds}"


def test_a_conversation_without_an_image_has_a_picture_too():
    sample = chat_sample(0, with_image=False)
    case = draw_case(sample.turns[0], Answer(text="A cup."), sample, 0.0)
    assert Image.open(BytesIO(case.picture)).width > 200 and case.question == sample.turns[0].text


def test_uncertain_instances_are_not_shown():
    sample = category_sample(0)
    turn = sample.turns[0]
    sure = perfect(turn)
    doubtful = replace(sure, segments=(*sure.segments, *(replace(each, score=0.1) for each in sure.segments)))
    assert draw_case(turn, sure, sample, 1).picture == draw_case(turn, doubtful, sample, 1).picture


def test_page(tmp_path):
    sample = referring_sample(2)
    case = draw_case(sample.turns[0], Answer(failure="no <SEG>"), sample, 0.25)
    page = write_page([replace(RESULT, worst=[case, case], best=[case])], {"model": "a&b", "limit": None}, tmp_path)
    html = page.read_text()
    assert "a&amp;b" in html and "limit" not in html and "12.35" in html and "no &lt;SEG&gt;" in html
    files = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert files == ["refcoco-val-best-0.jpg", "refcoco-val-worst-0.jpg", "refcoco-val-worst-1.jpg"]
    for file in files:
        assert f'src="pictures/{file}"' in html and Image.open(tmp_path / "pictures" / file).width > 200
