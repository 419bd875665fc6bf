"""Masks for things that are not there, beside things that are."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_training import category_sample, fitting_model, tiny_processor
from xsam_training.data.samples import AnnotatedSample, Turn, encode_masks
from xsam_training.evaluation.predictor import GREEDY
from xsam_training.probes import hallucination
from xsam_training.probes.hallucination import area_under_roc, probe_hallucination

# A model that is not asked: its pipeline is replaced.
STAND_IN = SimpleNamespace(segment=None)
PROCESSOR = tiny_processor()
LABELS = ("cup", "plate", "spoon", "fork", "dog", "table", "wall")


def kitchen(name: str = "kitchen") -> AnnotatedSample:
    """A cup and a plate; a crowd of spoons; forks are there, but not annotated; a table. No dog, no wall."""
    masks = np.zeros((4, 2, 8), dtype=bool)
    for place, mask in enumerate(masks):
        mask[:, 2 * place : 2 * place + 2] = True
    cup, plate, table, spoons = encode_masks(masks)
    turn = Turn(
        "generic",
        labels=LABELS,
        unasked=("fork",),
        num_things=5,
        masks=(cup, plate, table),
        mask_phrases=(0, 1, 5),
        ignored=(spoons,),
        ignored_phrases=(2,),
    )
    return AnnotatedSample(Image.new("RGB", (8, 2)), (turn,), name)


@pytest.mark.parametrize(
    ("present", "absent", "area"),
    [
        ([0.9, 0.8], [0.1, 0.2], 1.0),
        ([0.1], [0.9, 0.8], 0.0),
        ([0.0, 0.0], [0.0], 0.5),
        # Of four pairs two are right, one is a tie.
        ([0.9, 0.3], [0.3, 0.4], 0.625),
    ],
)
def test_area_under_roc(present, absent, area):
    assert area_under_roc(present, absent) == pytest.approx(area)


def test_area_of_nothing():
    assert np.isnan(area_under_roc([], [0.5])) and np.isnan(area_under_roc([0.5], []))


def stand_in(monkeypatch, answers):
    """
    A pipeline whose answers are given by expression: token ids, and scores of masks. Gives what was asked.
    """
    asked = []

    class StandIn:
        def __init__(self, model, processor):
            pass

        def run(self, samples, max_new_tokens, generate_kwargs):
            assert generate_kwargs == GREEDY
            asked.extend(samples)
            return [
                SimpleNamespace(
                    sample=each, token_ids=[7, 8, *answers[each.text][0]], prompt_length=2, empty_reason="why"
                )
                for each in samples
            ]

    def described(output, options):
        mask = SimpleNamespace(cpu=lambda: SimpleNamespace(numpy=lambda: np.ones((2, 8), dtype=bool)))
        return [
            SimpleNamespace(label_id=0, score=score, mask=mask, box=(0, 0, 8, 2))
            for score in answers[output.sample.text][1]
        ]

    monkeypatch.setattr(hallucination, "AnySegmentationPipeline", StandIn)
    monkeypatch.setattr(hallucination, "described_segments", described)
    return asked


def test_figures_of_known_answers(monkeypatch):
    seg = PROCESSOR.seg_token_id
    answers = {
        # Several <SEG>s: the best counts.
        "dog": ([seg, seg], [0.2, 0.6]),
        # A <SEG> without a mask.
        "wall": ([5, seg], []),
        "cup": ([seg], [0.9]),
        "plate": ([5], []),
        "table": ([seg], [0.4]),
    }
    asked = stand_in(monkeypatch, answers)
    report = probe_hallucination(
        STAND_IN, PROCESSOR, [kitchen(), kitchen()], questions_per_image=2, with_stuff=True, seed=1
    )
    # Both absent categories are asked in both images, and two of the three present ones.
    assert sorted(case["category"] for case in report.cases if not case["is_present"]) == [
        "dog",
        "dog",
        "wall",
        "wall",
    ]
    present = [case for case in report.cases if case["is_present"]]
    assert len(present) == 4 and {case["category"] for case in present} <= {"cup", "plate", "table"}
    assert all(each.prefill_answer is False and each.task == "referring" for each in asked)
    scores = [max(answers[case["category"]][1], default=0) for case in present]
    assert [case["score"] for case in present] == scores
    pairs = [(one > other) + (one == other) / 2 for one in scores for other in (0.6, 0.6, 0, 0)]
    assert report.figures == pytest.approx(
        {
            "absent answered": 1.0,
            "absent segmented": 0.5,
            "present answered": sum(case["category"] != "plate" for case in present) / 4,
            "present segmented": sum(score >= 0.5 for score in scores) / 4,
            "AUC": sum(pairs) / 16,
        }
    )
    assert [title for title, _ in report.pictures] == ["absent dog: score 0.60"] * 2


def test_things_alone_are_asked_by_default(monkeypatch):
    stand_in(monkeypatch, {label: ([], []) for label in LABELS})
    report = probe_hallucination(STAND_IN, PROCESSOR, [kitchen()], threshold=0.0)
    # One absent thing, therefore one present one.
    assert next((case["category"], case["is_present"]) for case in report.cases) == ("dog", False)
    assert report.settings["absent questions"] == report.settings["present questions"] == 1
    # Nothing is no mask, whatever the threshold.
    assert report.figures["absent segmented"] == report.figures["present segmented"] == 0
    assert math.isnan(report.figures["AUC"])


def test_the_seed_draws_the_questions(monkeypatch):
    stand_in(monkeypatch, {label: ([], []) for label in LABELS})
    samples = [kitchen(f"kitchen {place}") for place in range(8)]
    asked = [
        [case["category"] for case in probe_hallucination(STAND_IN, PROCESSOR, samples, seed=seed).cases]
        for seed in (0, 0, 1)
    ]
    assert asked[0] == asked[1] != asked[2]


def test_images_without_a_question_are_counted(monkeypatch):
    stand_in(monkeypatch, {})
    sample = kitchen()
    empty = replace(sample, turns=(replace(sample.turns[0], masks=(), mask_phrases=()),))
    report = probe_hallucination(STAND_IN, PROCESSOR, [empty])
    assert report.settings["images without a question"] == 1
    assert all(np.isnan(value) for value in report.figures.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_random_model(seed, tmp_path):
    """Random weights generate garbage: answers without <SEG>, and malformed ones."""
    samples = [category_sample(each) for each in range(5)]
    model = fitting_model(PROCESSOR, seed=seed).eval()
    report = probe_hallucination(model, PROCESSOR, samples, with_stuff=True, max_new_tokens=12)
    assert report.settings["absent questions"] == report.settings["present questions"] > 0
    shares = [value for name, value in report.figures.items() if name != "AUC"]
    assert all(0 <= value <= 1 for value in shares)
    # Without any mask there is no score to compare.
    assert math.isnan(report.figures["AUC"]) == (not any(case["score"] for case in report.cases))
    assert all(case["failure"] for case in report.cases if not case["has_seg"])
    report.save(tmp_path)
    assert (tmp_path / "hallucination.json").is_file()


def test_a_model_that_always_says_seg():
    """Every answer has a mask, whose score is that of referring; the pictures show those of absent things."""
    model = fitting_model(PROCESSOR).eval()

    def prefer_seg(module, inputs, logits):
        return logits + 1000 * torch.nn.functional.one_hot(torch.tensor(PROCESSOR.seg_token_id), logits.shape[-1])

    handle = model.lm_head.register_forward_hook(prefer_seg)
    samples = [category_sample(each) for each in range(5)]
    report = probe_hallucination(model, PROCESSOR, samples, with_stuff=True, max_new_tokens=1, threshold=0.01)
    handle.remove()
    assert report.figures["absent answered"] == report.figures["present answered"] == 1
    assert report.figures["absent segmented"] == report.figures["present segmented"] == 1
    assert {case["answer"] for case in report.cases} == {"<SEG>"}
    assert min(case["score"] for case in report.cases) > 0 and len({case["score"] for case in report.cases}) > 1
    assert len(report.pictures) == min(8, report.settings["absent questions"])
    absent = sorted((case["score"] for case in report.cases if not case["is_present"]), reverse=True)
    assert [float(title.split()[-1]) for title, _ in report.pictures] == [round(score, 2) for score in absent[:8]]


def test_errors():
    with pytest.raises(ValueError, match="`questions_per_image` is 0"):
        probe_hallucination(STAND_IN, PROCESSOR, [], questions_per_image=0)
    sample = kitchen()
    stuff = replace(sample, turns=(replace(sample.turns[0], num_things=0),))
    with pytest.raises(ValueError, match="no list of categories with things"):
        probe_hallucination(fitting_model(PROCESSOR).eval(), PROCESSOR, [stuff])
