import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_fixtures.scenes import draw_scene
from modeling_xsam import XSAMForUniversalSegmentation
from modeling_xsam.region_sampler_xsam import XSAMRegionSampler
from processing_xsam.post_processing_xsam import Geometry
from tiny_models import tiny_config
from tiny_training import (
    category_sample,
    chat_sample,
    fitting_model,
    interactive_sample,
    referring_sample,
    tiny_processor,
)
from xsam_training.probes import visual_query as module
from xsam_training.probes.visual_query import (
    _cells,
    _filled,
    _follow,
    _Found,
    _read_features,
    _share,
    _things,
    probe_visual_query,
)

FOLLOWING = ("follow rate", "follow rate, unaided", "follow rate of annotations")


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def model(processor):
    return fitting_model(processor).eval()


def finding(monkeypatch, mask_of) -> None:
    """The network finds `mask_of(thing)`, unaided nothing."""
    monkeypatch.setattr(
        module,
        "_prompt",
        lambda pipeline, image, things: [
            _Found(thing, 0.5, 1.0, mask_of(thing), np.zeros_like(thing.mask)) for thing in things
        ],
    )


def test_things_of_category_lists_and_of_visual_prompts():
    scene = draw_scene(0)
    for sample, labels in (
        (category_sample(0), [shape.kind for shape in scene.shapes]),
        (interactive_sample(0), ["region 0"] * 3),
    ):
        things = _things(sample, 5)
        assert [thing.label for thing in things] == labels
        for thing, shape in zip(things, scene.shapes, strict=True):
            assert np.array_equal(thing.mask, shape.mask)
            rows, columns = np.nonzero(shape.mask)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert len(_things(category_sample(0), 2)) == 2
    assert _things(referring_sample(0), 5) == _things(chat_sample(0, with_image=False), 5) == []


def test_cells_that_a_box_touches():
    # The image of 64 x 96 pixels covers 43 x 64 of the input; a cell is 8 x 8 pixels of that, 11.9 x 12 of the image.
    geometry = Geometry(64, (64, 96))
    assert _cells((12, 12, 24, 23), geometry, (8, 8), margin=0) == (slice(1, 2), slice(1, 2))
    assert _cells((11, 11, 25, 24), geometry, (8, 8), margin=0) == (slice(0, 3), slice(0, 3))
    assert _cells((0, 12, 24, 23), geometry, (8, 8), margin=1) == (slice(0, 3), slice(0, 3))


def test_the_gradient_lies_where_the_sampler_reads():
    # Row 4 and column 2 of 8 are read at 4 / 8 * 3 = 1.5 and 2 / 8 * 3 = 0.75 on a grid of 4 x 4.
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[0, 4, 2] = True
    with torch.no_grad():
        mass = _read_features(
            SimpleNamespace(region_sampler=XSAMRegionSampler(4, 1, "max")), torch.randn(1, 5, 4, 4), region
        )
    expected = torch.zeros(4, 4)
    expected[1:3, :2] = 5 * torch.tensor([[0.125, 0.375], [0.125, 0.375]])
    torch.testing.assert_close(mass, expected)
    geometry = Geometry(8, (8, 8))
    box = (2, 4, 3, 5)
    # The pixel lies in the cell at row 2 and column 1.
    assert _share(mass, _cells(box, geometry, mass.shape, margin=0)) == pytest.approx(0.375)
    assert _share(mass, _cells(box, geometry, mass.shape, margin=1)) == 1
    assert math.isnan(_share(torch.zeros(4, 4), (slice(0, 4), slice(0, 4))))


def test_following_by_hand():
    left, right, both = (0, 0, 4, 4), (4, 0, 8, 4), (0, 0, 8, 4)
    masks = {box: _filled(box, (4, 8)) for box in (left, right, both)}
    assert _follow((masks[left], masks[right]), (left, right))
    assert not _follow((masks[right], masks[left]), (left, right))
    assert not _follow((masks[left], masks[left]), (left, right))
    assert not _follow((masks[both], masks[both]), (left, right))
    # A thing in front of another: the smaller box is within the larger.
    assert _follow((masks[left], masks[both]), (left, both))
    assert not _follow((masks[left], masks[right]), (left, left))
    empty = np.zeros((4, 8), dtype=bool)
    assert not _follow((masks[left], empty), (left, right))


def test_figures_of_what_is_found(monkeypatch, model, processor):
    samples = [category_sample(0), referring_sample(1), interactive_sample(2)]
    finding(monkeypatch, lambda thing: thing.mask)
    report = probe_visual_query(model, processor, samples)
    assert report.figures == {
        "features in box": 0.5,
        "features near box": 1,
        "mask in box": 1,
        "IoU": 1,
        "follow rate": 1,
        "mask in box, unaided": 0,
        "IoU, unaided": 0,
        "follow rate, unaided": 0,
        "follow rate of annotations": 1,
    }
    assert {name: report.settings[name] for name in ("images", "things", "pairs")} == {
        "images": 2,
        "things": 6,
        "pairs": 6,
    }
    assert [title for title, _ in report.pictures] == [
        "scene 0: a box",
        "scene 0: the box moved",
        "scene 2: a box",
        "scene 2: the box moved",
    ]
    # The outline of the box is red.
    things = _things(samples[0], 2)
    pixels = np.asarray(report.pictures[1][1])
    xmin, ymin, xmax, ymax = things[1].box
    assert (pixels[ymin, xmin:xmax] == (255, 0, 0)).all() and (pixels[ymin:ymax, xmax - 1] == (255, 0, 0)).all()


def test_masks_that_ignore_the_box_follow_nothing(monkeypatch, model, processor):
    finding(monkeypatch, lambda thing: np.ones_like(thing.mask))
    report = probe_visual_query(model, processor, [category_sample(0)], things_per_image=2)
    xmin, ymin, xmax, ymax = report.cases[0]["box"]
    assert report.cases[0]["mask in box"] == pytest.approx((xmax - xmin) * (ymax - ymin) / (64 * 96))
    assert [report.figures[name] for name in FOLLOWING] == [0, 0, 1] and report.settings["pairs"] == 1


def test_random_weights_read_where_the_box_is(model, processor):
    samples = [category_sample(seed) for seed in range(3)]
    report = probe_visual_query(model, processor, iter(samples), limit=2)
    assert report.settings["images"] == 2 and report.settings["things"] == len(report.cases) == 6
    assert report.figures["features near box"] == 1
    assert 0 < report.figures["features in box"] <= 1
    assert all(0 <= value <= 1 for value in report.figures.values())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("size", [(64, 96), (130, 50), (33, 200)])
def test_every_box_is_read_within_a_cell_and_a_transposed_one_is_not(processor, size):
    rng = np.random.default_rng(0)
    sampler, features = SimpleNamespace(region_sampler=XSAMRegionSampler(256, 1, "mean")), torch.randn(1, 3, 16, 16)
    geometry = Geometry(processor.high_res_size, size)
    boxes = [_random_box(rng, size) for _ in range(20)]
    # One pixel, and a corner far from the diagonal.
    boxes += [(size[1] // 2, size[0] // 3, size[1] // 2 + 1, size[0] // 3 + 1), (0, size[0] - 4, 4, size[0])]
    masks = processor(images=Image.new("RGB", size[::-1]), task="interactive", boxes=boxes)["region_masks"]
    read = [_read_features(sampler, features, mask[None]) for mask in masks]
    near = [_cells(box, geometry, (16, 16), margin=1) for box in boxes]
    assert [_share(mass, cells) for mass, cells in zip(read, near, strict=True)] == pytest.approx([1] * len(boxes))
    in_box = [_share(mass, _cells(box, geometry, (16, 16), margin=0)) for mass, box in zip(read, boxes, strict=True)]
    assert 0.5 < np.mean(in_box) < 1
    assert _share(read[-1].mT, near[-1]) < 0.1


def _random_box(rng, size):
    (ymin, ymax), (xmin, xmax) = (sorted(rng.choice(side + 1, 2, replace=False).tolist()) for side in size)
    return xmin, ymin, xmax, ymax


def test_nothing_to_prompt(model, processor):
    report = probe_visual_query(model, processor, [referring_sample(0), chat_sample(1, with_image=False)])
    assert all(math.isnan(value) for value in report.figures.values())
    assert report.settings["things"] == 0 and not report.pictures


def test_what_cannot_be_probed(model, processor):
    with pytest.raises(ValueError, match="has no language model"):
        probe_visual_query(XSAMForUniversalSegmentation(tiny_config()), processor, [])
    for name in ("limit", "things_per_image"):
        with pytest.raises(ValueError, match=f"`{name}` is 0"):
            probe_visual_query(model, processor, [], **{name: 0})
