"""Answers to the questions of every task, under both protocols."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

from modeling_xsam import XSAMForUniversalSegmentation
from processing_xsam import AnySegmentationPipeline
from processing_xsam.results_xsam import ResultOptions, seg_output
from tiny_models import tiny_config
from tiny_training import (
    caption_sample,
    category_sample,
    chat_sample,
    fitting_model,
    interactive_sample,
    referring_sample,
    tiny_processor,
    visual_sample,
)
from xsam_training.data.samples import decode_masks
from xsam_training.evaluation.answers import Answer
from xsam_training.evaluation.predictor import UniversalPredictor, XSAMPredictor, question

SIZE = (64, 96)
# A random model is certain of nothing.
NO_THRESHOLD = {"threshold": 0.0}
UNCERTAIN = {"threshold": 0.0, "mask_threshold": 0.1, "overlap_mask_area_threshold": 0.0}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor):
    return fitting_model(processor).eval()


def masks_of(answer):
    return decode_masks([segment.mask for segment in answer.segments], SIZE)


def same(answer, results):
    """Whether an answer has the masks and scores of the pipeline's result, which may add up in another order."""
    masks = [np.array(pil_to_tensor(each["mask"])[0] > 127) for each in results]
    for each, segment in zip(results, answer.segments, strict=True):
        assert each["score"] is segment.score is None or each["score"] == pytest.approx(segment.score, rel=1e-5)
    assert np.array_equal(masks_of(answer), np.stack(masks) if masks else np.zeros((0, *SIZE), bool))


def test_questions_as_arguments_of_the_pipeline():
    assert question(category_sample(0).turns[0], SIZE) == {
        "labels": {"thing": ["circle", "square", "triangle"], "stuff": ["sky", "ground"]}
    }
    assert question(referring_sample(2).turns[1], SIZE) == {"text": "the middle shape"}
    assert question(chat_sample(7).turns[0], SIZE) == {"text": "What is on the left?"}
    assert question(caption_sample(4).turns[0], SIZE) == {}
    marked = replace(chat_sample(7).turns[0], regions=visual_sample(6).turns[0].regions[:1])
    assert list(question(marked, SIZE)) == ["text", "masks"]
    turn = visual_sample(6).turns[0]
    (name, masks), *rest = question(turn, SIZE).items()
    assert name == "masks" and not rest
    assert np.array_equal(masks, decode_masks([regions[0].mask for regions in turn.regions], SIZE))


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_categories_are_answered_as_the_pipeline_does(model, processor, subtask):
    sample = category_sample(3)
    options = ResultOptions(subtask=subtask, **UNCERTAIN)
    (answer,) = XSAMPredictor(model, processor)(sample, 0, options)
    expected = AnySegmentationPipeline(model=model, processor=processor)(
        sample.image, task="generic", subtask=subtask, **UNCERTAIN, **question(sample.turns[0], SIZE)
    )
    assert expected and answer.failure == ""
    same(answer, expected)
    assert [sample.turns[0].labels[segment.phrase] for segment in answer.segments] == [e["label"] for e in expected]


@pytest.mark.parametrize("task", ["referring", "reasoning"])
@pytest.mark.parametrize("at_once", [1, 8])
def test_the_published_protocol_gives_the_fixed_answer(model, processor, task, at_once):
    sample = referring_sample(2, task)
    answers = XSAMPredictor(model, processor, questions_at_once=at_once)(sample, 0, ResultOptions())
    run = AnySegmentationPipeline(model=model, processor=processor)
    for turn, answer in zip(sample.turns, answers, strict=True):
        same(answer, run(sample.image, task=task, text=turn.text, prefill_answer=True))
        assert len(answer.segments) == 1 and answer.failure == ""


def test_visual_prompts_are_answered_as_the_pipeline_does(model, processor):
    run = AnySegmentationPipeline(model=model, processor=processor)
    pointed = interactive_sample(5)
    answers = XSAMPredictor(model, processor)(pointed, 0, ResultOptions())
    for turn, answer in zip(pointed.turns, answers, strict=True):
        same(answer, run(pointed.image, task="interactive", **question(turn, SIZE)))
    shown = visual_sample(6)
    (answer,) = XSAMPredictor(model, processor)(shown, 0, ResultOptions(**NO_THRESHOLD))
    expected = run(shown.image, task="visual-grounded", threshold=0.0, **question(shown.turns[0], SIZE))
    same(answer, expected)
    assert [f"region {segment.phrase}" for segment in answer.segments] == [each["label"] for each in expected]


def test_captions_and_chat_are_generated(model, processor):
    for sample in (caption_sample(4), chat_sample(7)):
        turn = sample.turns[0]
        (answer,) = XSAMPredictor(model, processor, max_new_tokens=12)(
            replace(sample, turns=(turn,)), 0, ResultOptions()
        )
        result = AnySegmentationPipeline(model=model, processor=processor)(
            sample.image, task=turn.task, max_new_tokens=12, **question(turn, SIZE)
        )
        assert answer.text == result["text"] and len(answer.spans) == len(answer.segments)
    assert answer.failure == ""


def test_what_is_generated_without_a_seg_fails_by_name(model, processor):
    sample = referring_sample(2)
    answers = XSAMPredictor(model, processor, protocol="generate", max_new_tokens=4)(sample, 0, ResultOptions())
    assert len(answers) == len(sample.turns)
    for answer in answers:
        assert answer.segments == () and "no <SEG>" in answer.failure


def test_an_empty_mask_fails_by_name_unless_the_target_may_be_absent(model, processor, monkeypatch):
    def without_pixels(outputs, row):
        seg = seg_output(outputs, row)
        return replace(seg, mask_logits=torch.full_like(seg.mask_logits, -9.0))

    monkeypatch.setattr("processing_xsam.results_xsam.seg_output", without_pixels)
    predictor = XSAMPredictor(model, processor)
    for sample in (referring_sample(2), interactive_sample(5)):
        for answer in predictor(sample, 0, ResultOptions()):
            assert answer == Answer(failure="the best mask has no pixel.")
    for answer in predictor(referring_sample(2), 0, ResultOptions(score_threshold=0.5, multi_target=True)):
        assert answer == Answer()


def said(model, processor, sample, protocol, monkeypatch):
    """What the pipeline is asked, and the answers."""
    asked = []
    run = AnySegmentationPipeline.run

    def spy(self, samples, **kwargs):
        asked.extend(samples)
        return run(self, samples, **kwargs)

    monkeypatch.setattr(AnySegmentationPipeline, "run", spy)
    answers = XSAMPredictor(model, processor, protocol, max_new_tokens=4)(sample, 0, ResultOptions())
    monkeypatch.undo()
    return asked, answers


@pytest.mark.parametrize("with_image", [True, False])
def test_a_chat_is_a_conversation(model, processor, monkeypatch, with_image):
    first = chat_sample(7, with_image=with_image)
    turns = (first.turns[0], replace(first.turns[0], text="And behind it?", answer="A star."))
    sample = replace(first, turns=turns)
    asked, answers = said(model, processor, sample, "xsam", monkeypatch)
    assert len(answers) == 2 and asked[0].conversation is None and asked[1].text == "And behind it?"
    question = {"role": "user", "content": turns[0].text}
    assert asked[1].conversation == [question, {"role": "assistant", "content": turns[0].answer}]
    asked, answers = said(model, processor, sample, "generate", monkeypatch)
    assert asked[1].conversation == [question, {"role": "assistant", "content": answers[0].text}]


def test_a_chat_shows_what_is_marked(model, processor, monkeypatch):
    shown = visual_sample(6)
    marked = replace(chat_sample(7).turns[0], regions=shown.turns[0].regions[:1])
    asked, _ = said(model, processor, replace(shown, turns=(marked,)), "generate", monkeypatch)
    assert asked[0].text == marked.text
    assert np.array_equal(asked[0].masks, decode_masks([marked.regions[0][0].mask], SIZE))


def test_nothing_is_left_to_chance(model, processor, monkeypatch):
    """Whatever the checkpoint's own generation settings are."""
    monkeypatch.setattr(model.generation_config, "do_sample", True)
    predictor = XSAMPredictor(model, processor, max_new_tokens=12)
    first, second = (predictor(caption_sample(4), 0, ResultOptions()) for _ in range(2))
    assert first == second


def test_only_the_question_reaches_the_model(model, processor):
    """Other masks, the same answers."""
    sample = referring_sample(2)
    blind = replace(sample, turns=tuple(replace(turn, masks=(), mask_phrases=()) for turn in sample.turns))
    predictor = XSAMPredictor(model, processor)
    assert predictor(sample, 0, ResultOptions()) == predictor(blind, 0, ResultOptions())


def wordings(model, processor, seed, index, monkeypatch):
    """The first question of a sample as its prompt says it."""
    said = []
    predictor = XSAMPredictor(model, processor, template_seed=seed)
    run = AnySegmentationPipeline.run

    def spy(self, samples, **kwargs):
        said.append(self.processor.build_conversation("referring", text="it")[0]["content"])
        return run(self, samples, **kwargs)

    monkeypatch.setattr(AnySegmentationPipeline, "run", spy)
    answers = predictor(referring_sample(2), index, ResultOptions())
    monkeypatch.undo()
    return said[0], answers


def test_wordings_are_drawn_for_each_sample(model, processor, monkeypatch):
    fixed = processor.build_conversation("referring", text="it")[0]["content"]
    assert wordings(model, processor, None, 5, monkeypatch)[0] == fixed
    drawn = [wordings(model, processor, 1, index, monkeypatch)[0] for index in range(8)]
    assert len(set(drawn)) > 1
    assert drawn == [wordings(model, processor, 1, index, monkeypatch)[0] for index in range(8)]
    assert drawn != [wordings(model, processor, 2, index, monkeypatch)[0] for index in range(8)]
    # The processor that was given keeps its wording.
    assert processor.build_conversation("referring", text="it")[0]["content"] == fixed
    assert wordings(model, processor, 1, 3, monkeypatch)[1] == wordings(model, processor, 1, 3, monkeypatch)[1]


def test_unknown_protocol(model, processor):
    with pytest.raises(ValueError, match=r"protocol is 'fast'; possible are xsam, generate"):
        XSAMPredictor(model, processor, protocol="fast")


@pytest.fixture(scope="module")
def universal():
    torch.manual_seed(0)
    labels = dict(enumerate(category_sample(0).turns[0].labels))
    return XSAMForUniversalSegmentation(tiny_config(id2label=labels)).eval()


def test_a_model_of_stage_1_answers_in_its_categories(universal, processor):
    sample = category_sample(0)
    (answer,) = UniversalPredictor(universal, processor)(sample, 0, ResultOptions(subtask="semantic"))
    assert masks_of(answer).sum(0).tolist() == np.ones(SIZE).tolist()
    assert {segment.phrase for segment in answer.segments} <= set(range(5))


def test_a_model_of_stage_1_is_asked_for_some_of_its_categories(universal, processor):
    """In another order, and stuff that is not asked for takes its pixels away all the same."""
    sample = category_sample(0)
    turn = replace(sample.turns[0], labels=("square", "circle"), num_things=2, masks=(), mask_phrases=())
    for subtask in ("semantic", "instance"):
        options = ResultOptions(subtask=subtask, **UNCERTAIN)
        whole, some = UniversalPredictor(universal, processor)(
            replace(sample, turns=(sample.turns[0], turn)), 0, options
        )
        expected = {(segment.mask["counts"], segment.score) for segment in whole.segments if segment.phrase == 0}
        found = {(segment.mask["counts"], segment.score) for segment in some.segments if segment.phrase == 1}
        assert found == expected


def test_a_model_of_stage_1_cannot_be_asked_for_others(universal, processor):
    sample = category_sample(0)
    stranger = replace(sample.turns[0], labels=("circle", "star"))
    with pytest.raises(ValueError, match=r"knows the categories circle.*; it cannot be asked for star"):
        UniversalPredictor(universal, processor)(replace(sample, turns=(stranger,)), 0, ResultOptions())
    with pytest.raises(
        ValueError, match=r"a model of stage 1 knows the categories circle.*; it cannot be asked for referring"
    ):
        UniversalPredictor(universal, processor)(referring_sample(0), 0, ResultOptions())
