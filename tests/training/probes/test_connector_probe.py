from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from modeling_xsam import XSAMForUniversalSegmentation
from tiny_models import tiny_config
from tiny_training import category_sample, fitting_model, referring_sample, tiny_processor, visual_sample
from xsam_training.evaluation.answers import Answer, AnsweredSegment
from xsam_training.probes import connector as module
from xsam_training.probes.connector import _reduced, _single_scale, probe_connector

SHAPES = {0: (8, 8), 1: (4, 4), 2: (2, 2)}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor):
    return fitting_model(processor).eval()


class NeedsAllScales:
    """Answers with the annotation, or, where the connector is reduced, with nothing."""

    def __init__(self, model, processor):
        self.model = model

    def __call__(self, sample, index, options):
        (turn,) = sample.turns
        if self.model.connector._forward_hooks:
            return [Answer()]
        return [
            Answer(
                tuple(
                    AnsweredSegment(phrase, mask, 1.0)
                    for phrase, mask in zip(turn.mask_phrases, turn.masks, strict=True)
                )
            )
        ]


def test_a_map_through_a_coarser_grid():
    features = torch.tensor([0.0, 0.0, 4.0, 4.0]).expand(1, 1, 4, 4)
    assert _reduced(features, (2, 2))[0, 0].tolist() == [[0, 1, 3, 4]] * 4
    checkerboard = torch.tensor([[0.0, 2.0], [2.0, 0.0]]).repeat(2, 2)[None, None]
    assert torch.equal(_reduced(checkerboard, (2, 2)), torch.ones(1, 1, 4, 4))
    assert _reduced(features, (4, 4)) is features and _reduced(features, (8, 8)) is features


@pytest.mark.parametrize("scale", SHAPES)
def test_each_map_carries_no_more_than_the_scale(model, scale):
    states = [torch.randn(1, 4, 4, 32) for _ in range(3)]
    with torch.no_grad():
        whole = model.connector(states)
        with _single_scale(model, scale):
            single = model.connector(states)
        after = model.connector(states)
    assert [tuple(features.shape[-2:]) for features in whole] == list(SHAPES.values())
    for level, (before, reduced) in enumerate(zip(whole, single, strict=True)):
        assert torch.equal(reduced, before if level >= scale else _reduced(before, SHAPES[scale]))
    assert all(torch.equal(first, second) for first, second in zip(whole, after, strict=True))


def test_the_hook_is_removed_when_something_fails(model):
    with pytest.raises(RuntimeError), _single_scale(model, 2):
        assert model.connector._forward_hooks
        raise RuntimeError
    assert not model.connector._forward_hooks


def test_figures_of_a_model_that_needs_all_scales(monkeypatch, model, processor):
    monkeypatch.setattr(module, "_predictor", lambda _: NeedsAllScales)
    stand_in = SimpleNamespace(connector=model.connector)
    report = probe_connector(stand_in, processor, [category_sample(0), category_sample(1)])
    assert report.figures == {
        "PQ": 1,
        "mIoU": 1,
        "PQ, single scale": 0,
        "mIoU, single scale": 0,
        "PQ drop": 1,
        "mIoU drop": 1,
        "changed pixels": 1,
    }
    assert report.settings == {"questions": 2, "scale": 2}
    assert report.cases[1] == {
        "sample": "scene 1",
        "as it is": {"PQ": 1, "mIoU": 1},
        "single scale": {"PQ": 0, "mIoU": 0},
        "changed": 64 * 96,
        "pixels": 64 * 96,
    }
    assert [title for title, _ in report.pictures[:2]] == ["scene 0: all scales", "scene 0: single scale"]


def test_the_finest_scale_takes_nothing_away(model, processor):
    figures = probe_connector(model, processor, [category_sample(0)], scale=0).figures
    assert [figures[name] for name in ("PQ drop", "mIoU drop", "changed pixels")] == [0, 0, 0]


def test_only_category_lists_count_up_to_the_limit(model, processor):
    samples = [referring_sample(0), visual_sample(1), *(category_sample(seed) for seed in range(3))]
    report = probe_connector(model, processor, iter(samples), limit=2)
    assert [case["sample"] for case in report.cases] == ["scene 0", "scene 1"]
    assert all(0 <= report.figures[name] <= 1 for name in ("PQ", "mIoU", "changed pixels"))


def test_stage_1(processor):
    sample = category_sample(0)
    torch.manual_seed(0)
    labels = dict(enumerate(sample.turns[0].labels))
    model = XSAMForUniversalSegmentation(tiny_config(id2label=labels)).eval()
    report = probe_connector(model, processor, [sample])
    assert report.settings["questions"] == 1 and len(report.pictures) == 2
    assert not model.connector._forward_hooks


def test_what_cannot_be_probed(model, processor):
    with pytest.raises(ValueError, match="`limit` is 0"):
        probe_connector(model, processor, [], limit=0)
    for scale in (-1, 3):
        with pytest.raises(ValueError, match=f"`scale` is {scale}"):
            probe_connector(model, processor, [], scale=scale)
    with pytest.raises(ValueError, match="no category list"):
        probe_connector(model, processor, [referring_sample(0)])
    sample = category_sample(0)
    other = replace(sample, turns=(replace(sample.turns[0], labels=("disc", *sample.turns[0].labels[1:])),))
    with pytest.raises(ValueError, match="labels"):
        probe_connector(model, processor, [sample, other])
