"""Drawn scenes, one-to-one matches, and the figures of `probe_saturation`."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tiny_training import fitting_model, tiny_processor
from xsam_training.data.samples import encode_masks
from xsam_training.probes import saturation
from xsam_training.probes.matching import match_masks, picture_title
from xsam_training.probes.saturation import draw_scenes, probe_saturation

# A model that is not asked: its pipeline is replaced.
STAND_IN = SimpleNamespace(segment=None)


def rows(*pixels: range) -> list:
    """A mask for each range of pixels in a row of 20."""
    masks = np.zeros((len(pixels), 1, 20), dtype=bool)
    for mask, place in zip(masks, pixels, strict=True):
        mask[0, place] = True
    return encode_masks(masks)


def test_matches_go_by_score_and_are_one_to_one():
    objects = rows(range(0, 4), range(10, 14))
    # By falling score: the first object, again the first one, a shifted second one (IoU 3/5), and nothing (IoU 1/7).
    predicted = rows(range(13, 17), range(0, 3), range(0, 4), range(11, 15))
    matches = match_masks(predicted, [0.1, 0.8, 0.9, 0.5], objects)
    assert matches.objects.tolist() == [-1, -1, 0, 1]
    assert matches.duplicates.tolist() == [False, True, False, False]
    assert matches.num_found == 2


def test_a_prediction_takes_another_object_that_fits():
    objects = rows(range(0, 10), range(0, 8))
    matches = match_masks(rows(range(0, 10), range(0, 10)), [0.9, 0.8], objects)
    assert matches.objects.tolist() == [0, 1] and not matches.duplicates.any()


@pytest.mark.parametrize(("predicted", "objects"), [(0, 1), (1, 0)])
def test_nothing_matches_nothing(predicted, objects):
    matches = match_masks(rows(range(3))[:predicted], [0.5] * predicted, rows(range(3))[:objects])
    assert matches.objects.tolist() == [-1] * predicted and matches.num_found == 0


def test_scenes_are_the_same_for_a_seed_and_discs_do_not_overlap():
    first, second = list(draw_scenes([10, 50], 128, seed=3)), list(draw_scenes([10, 50], 128, seed=3))
    (other,) = draw_scenes([10], 128, seed=4)
    assert [len(scene.masks) for scene in first] == [10, 50]
    for scene, again in zip(first, second, strict=True):
        assert np.array_equal(scene.image, again.image) and np.array_equal(scene.masks, again.masks)
        assert scene.masks.sum(0).max() == 1 and scene.masks.any((1, 2)).all()
        # What is not a disc is ground.
        is_ground = (np.asarray(scene.image) == saturation.GROUND).all(-1)
        assert np.array_equal(is_ground, ~scene.masks.any(0))
    assert not np.array_equal(first[0].image, other.image)
    # The range of radii is that of the fullest scene, whose cells have 16 pixels: 3.5 to 5.8.
    areas = np.concatenate([scene.masks.sum((1, 2)) for scene in first])
    assert areas.min() > 3 * 3.0**2 and areas.max() < 3.2 * 6.3**2


def stand_in(monkeypatch, answers):
    """A pipeline that gives `answers(masks of the scene, tiles)`, and records what it was asked."""
    scenes, asked = list(draw_scenes([2, 4], 64, seed=0)), []

    def segment(image, tiles=None, **arguments):
        (scene,) = (scene for scene in scenes if np.array_equal(scene.image, image))
        asked.append({**arguments, "tiles": tiles})
        return [
            {"label": "ball", "score": score, "mask": Image.fromarray(mask).convert("L")}
            for mask, score in answers(scene.masks, tiles)
        ]

    monkeypatch.setattr(saturation, "AnySegmentationPipeline", lambda model, processor: segment)
    return SimpleNamespace(
        segment=None, config=SimpleNamespace(mask_decoder_config=SimpleNamespace(num_queries=3))
    ), asked


def test_figures_of_known_answers(monkeypatch):
    def answers(masks, tiles):
        if tiles is not None:
            return [(mask, 0.9) for mask in masks]
        return [(masks[0], 0.9), (masks[0], 0.8), (~masks.any(0), 0.7)] if len(masks) == 4 else []

    model, asked = stand_in(monkeypatch, answers)
    report = probe_saturation(model, None, counts=(2, 4), tiles=(2, 3), image_size=64, label="marble", threshold=0.25)
    assert report.figures == pytest.approx(
        {
            "recall 2": 0.0,
            "duplicates 2": float("nan"),
            "predictions per object 2": 0.0,
            "recall 2 tiled": 1.0,
            "duplicates 2 tiled": 0.0,
            "predictions per object 2 tiled": 1.0,
            "recall 4": 0.25,
            "duplicates 4": 1 / 3,
            "predictions per object 4": 0.75,
            "recall 4 tiled": 1.0,
            "duplicates 4 tiled": 0.0,
            "predictions per object 4 tiled": 1.0,
        },
        nan_ok=True,
    )
    assert report.settings["num_queries"] == 3 and report.settings["tiles"] == [2, 3]
    assert report.cases[2] == {"objects": 4, "tiled": False, "predictions": 3, "found": 1, "duplicates": 1}
    assert [each["tiles"] for each in asked] == [None, (2, 3)] * 2
    assert asked[0]["labels"] == {"thing": ["marble"], "stuff": []} and asked[0]["threshold"] == 0.25
    assert [title for title, _ in report.pictures] == [
        "2: 0 found, 0 masks",
        "4: 1 found, 3 masks",
        "4 tiled: 4 found, 4 masks",
        "2 tiled: 2 found, 2 masks",
    ]


def test_a_random_model(tmp_path):
    processor = tiny_processor()
    report = probe_saturation(
        fitting_model(processor).eval(), processor, counts=(4, 9), tiles=(1, 2), image_size=96, threshold=0.0
    )
    assert len(report.figures) == 12 and len(report.pictures) == 4
    assert all(case["predictions"] <= 6 for case in report.cases if not case["tiled"])
    report.save(tmp_path)
    assert (tmp_path / "saturation.json").is_file() and (tmp_path / "saturation.png").is_file()


@pytest.mark.parametrize("counts", [(), (0, 3), (5, 5)])
def test_counts_that_cannot_be(counts):
    with pytest.raises(ValueError, match="give numbers of objects from 1 on, each once"):
        probe_saturation(STAND_IN, None, counts=counts)


def test_an_image_that_is_too_small():
    with pytest.raises(ValueError, match="image_size is 64; 250 objects need at least 146"):
        list(draw_scenes([10, 250], 64, seed=0))
    assert len(list(draw_scenes([250], 146, seed=0))) == 1


def test_titles_keep_their_end():
    assert picture_title("a cup", "score 0.50") == "a cup: score 0.50"
    assert (
        picture_title("the very long expression of a person", "annotation")
        == "the very long expression ...: annotation"
    )
    assert len(picture_title("word " * 50, "an end that is far too long for a title")) <= 42
