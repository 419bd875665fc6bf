"""Predictions that stay on disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tiny_training import referring_sample
from xsam_training.data.samples import encode_masks
from xsam_training.evaluation.answers import Answer, AnsweredSegment
from xsam_training.evaluation.store import PredictionStore


def answer(seed):
    masks = np.random.default_rng(seed).random((2, 6, 9)) > 0.5
    return Answer(tuple(AnsweredSegment(i, mask, seed / 7) for i, mask in enumerate(encode_masks(masks))))


def sample(name):
    return replace(referring_sample(2), name=name)


def test_what_one_process_stores_all_find(tmp_path):
    first, second = PredictionStore(tmp_path / "a", 0), PredictionStore(tmp_path / "a", 1)
    first.add(0, sample("image 0"), [answer(0)])
    second.add(1, sample("image 1"), [answer(1), Answer(failure="none")])
    first.add(7, sample("image 7"), [])
    assert 0 in first and 1 not in first
    fresh = PredictionStore(tmp_path / "a", 5)
    assert [index for index in range(9) if index in fresh] == [0, 1, 7]
    assert fresh.get(1, sample("image 1")) == [answer(1), Answer(failure="none")]
    assert fresh.get(0, sample("image 0")) == [answer(0)] and fresh.get(7, sample("image 7")) == []


def test_a_line_that_was_cut_off_is_made_again(tmp_path):
    store = PredictionStore(tmp_path)
    store.add(0, sample("image 0"), [answer(0)])
    store.add(1, sample("image 1"), [answer(1)])
    (file,) = tmp_path.glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-30])
    resumed = PredictionStore(tmp_path)
    assert 0 in resumed and 1 not in resumed
    resumed.add(1, sample("image 1"), [answer(1)])
    assert PredictionStore(tmp_path).get(1, sample("image 1")) == [answer(1)]


def test_predictions_of_other_data_are_not_taken(tmp_path):
    store = PredictionStore(tmp_path)
    store.add(0, sample("image 9"), [answer(0)])
    with pytest.raises(ValueError, match=r"prediction 0 is of 'image 9', but the data set has 'image 25'"):
        store.get(0, sample("image 25"))


def test_predictions_of_other_questions_or_images_are_not_taken(tmp_path):
    store, asked = PredictionStore(tmp_path), sample("image 9")
    store.add(0, asked, [answer(0)])
    # The annotation may have been mended.
    assert store.get(0, replace(asked, turns=tuple(replace(turn, masks=(), mask_phrases=()) for turn in asked.turns)))
    first, *others = asked.turns
    for changed in (
        replace(asked, turns=(replace(first, text="something else"), *others)),
        replace(asked, turns=tuple(others)),
        replace(asked, image=asked.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    ):
        with pytest.raises(ValueError, match="its image or questions have changed; give another --output"):
            store.get(0, changed)


def test_damage_is_named(tmp_path):
    (tmp_path / "part-00000.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"part-00000.jsonl is damaged at byte 0; delete it and run again"):
        PredictionStore(tmp_path)
