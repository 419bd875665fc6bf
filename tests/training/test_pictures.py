from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image

from dataset_fixtures.scenes import draw_scene
from modeling_xsam import XSAMForUniversalSegmentation
from processing_xsam import AnySegmentationPipeline
from tiny_models import HIGH_RES_SIZE, tiny_config
from tiny_training import (
    all_tasks,
    caption_sample,
    category_sample,
    chat_sample,
    fitting_model,
    interactive_sample,
    referring_sample,
    tiny_processor,
    visual_sample,
)
from xsam_training import pictures as module
from xsam_training.adapters import lora_config
from xsam_training.dataset import TrainingDataset
from xsam_training.pictures import PredictionPictures, annotated_segments, predict, spread

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(module, "MAX_NEW_TOKENS", 4)


class Samples(list):
    """A reader of samples that are there."""


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor):
    return fitting_model(processor).eval()


def masks_of(segments) -> np.ndarray:
    return np.stack([np.asarray(segment["mask"]) > 127 for segment in segments])


@pytest.mark.parametrize(
    ("lengths", "count", "indices"),
    [
        ([10], 3, [0, 1, 2]),
        ([5, 7, 9], 6, [0, 1, 5, 6, 12, 13]),
        ([5, 1, 9], 8, [0, 1, 5, 6, 7]),
        ([2, 2, 2], 1, [0, 2, 4]),
    ],
)
def test_samples_are_spread_over_the_data_sets(lengths, count, indices):
    assert spread(lengths, count) == indices


def test_an_annotation_as_segments():
    sample, scene = category_sample(0), draw_scene(0)
    segments, text = annotated_segments(sample.turns[0], sample.image)
    assert text is None and [segment["score"] for segment in segments] == [None] * 5
    assert [segment["label"] for segment in segments] == [*(shape.kind for shape in scene.shapes), "sky", "ground"]
    expected = [*(shape.mask for shape in scene.shapes), scene.sky, scene.ground]
    assert np.array_equal(masks_of(segments), expected)
    assert all((segment["mask"].mode, segment["mask"].size) == ("L", (96, 64)) for segment in segments)


def test_annotated_phrases_by_their_words():
    caption = caption_sample(4)
    segments, text = annotated_segments(caption.turns[0], caption.image)
    assert text == caption.turns[0].answer
    assert [text[slice(*segment["span"])] for segment in segments] == [segment["label"] for segment in segments]
    assert segments[0]["label"].startswith("a ")
    referring = referring_sample(2)
    assert annotated_segments(referring.turns[0], referring.image)[0][0]["label"] == "the left shape"
    assert annotated_segments(referring.turns[3], referring.image) == ([], None)
    pointed = interactive_sample(5)
    assert annotated_segments(pointed.turns[1], pointed.image)[0][0]["label"] == "region 0"
    shown = visual_sample(6)
    assert {each["label"] for each in annotated_segments(shown.turns[0], shown.image)[0]} == set(shown.turns[0].labels)


@pytest.mark.parametrize("number", range(8))
def test_every_task_is_asked(model, processor, number):
    sample = all_tasks()[number]
    turn = sample.turns[0]
    segments, text = predict(model, processor, sample.image, turn)
    assert isinstance(segments, list) and all(each["mask"].size == sample.image.size for each in segments)
    assert (text is None) == (turn.task not in ("grounded-conversation", "chat"))
    if turn.task in ("referring", "interactive"):
        assert len(segments) == 1


def test_a_prediction_is_that_of_the_pipeline(model, processor):
    sample = referring_sample(2)
    (found,), _ = predict(model, processor, sample.image, sample.turns[1])
    pipe = AnySegmentationPipeline(model=model, processor=processor)
    (expected,) = pipe(sample.image, task="referring", text="the middle shape")
    assert found["score"] == expected["score"] and found["label"] == "the middle shape"
    assert np.array_equal(np.asarray(found["mask"]), np.asarray(expected["mask"]))


class LeftAndRight:
    """Stage 1's answer as it would be if a query were sure of a circle on the left, and another of ground on the right."""

    device = torch.device("cpu")
    config = SimpleNamespace(num_labels=5, id2label=dict(enumerate(category_sample(0).turns[0].labels)))

    def __call__(self, pixels: torch.Tensor) -> SimpleNamespace:
        assert pixels.shape == (1, 3, HIGH_RES_SIZE, HIGH_RES_SIZE)
        classes = torch.zeros(1, 2, 6)
        classes[0, 0, 0] = classes[0, 1, 4] = 20
        masks = torch.full((1, 2, 16, 16), -10.0)
        masks[0, 0, :, :8] = masks[0, 1, :, 8:] = 10
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


def test_stage_1_answers_with_the_categories_of_its_data_set(processor):
    sample = category_sample(0)
    segments, text = predict(LeftAndRight(), processor, sample.image, sample.turns[0])
    assert text is None and {segment["label"] for segment in segments} == {"circle", "ground"}
    left = np.arange(96) < 48
    for segment in segments:
        assert segment["score"] > 0.99
        expected = np.broadcast_to(left if segment["label"] == "circle" else ~left, SIZE)
        assert (masks_of([segment])[0] == expected).mean() > 0.97


def test_the_model_of_stage_1_is_asked(processor):
    sample = category_sample(0)
    labels = dict(enumerate(sample.turns[0].labels))
    torch.manual_seed(0)
    model = XSAMForUniversalSegmentation(tiny_config(id2label=labels)).eval()
    segments, text = predict(model, processor, sample.image, sample.turns[0])
    assert text is None and {segment["label"] for segment in segments} <= set(labels.values())


def callback(model, processor, samples, folder):
    trainer = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
        state=SimpleNamespace(global_step=4, is_world_process_zero=True),
    )
    args = SimpleNamespace(output_dir=str(folder), picture_steps=2, picture_samples=8)
    pictures = PredictionPictures(trainer, TrainingDataset([Samples([sample]) for sample in samples]), processor)
    return lambda: pictures.on_step_end(args, trainer.state, None), trainer.state


def test_a_sheet_shows_annotation_and_prediction(model, processor, tmp_path):
    model.train()
    show, _ = callback(model, processor, [*all_tasks(), chat_sample(0, with_image=False)], tmp_path)
    show()
    assert model.training
    sheet = Image.open(tmp_path / "pictures" / "step-4.png")
    # Two columns of 520 pixels; every sample with an image has a row.
    assert sheet.width == 2 * 534 + 14 and sheet.height > 8 * 200
    model.eval()


def test_there_are_pictures_every_so_many_steps_on_one_process(model, processor, tmp_path):
    show, state = callback(model, processor, [referring_sample(2)], tmp_path)
    state.global_step = 3
    show()
    state.global_step, state.is_world_process_zero = 4, False
    show()
    assert not list(tmp_path.iterdir())


def test_samples_without_images_give_no_picture(model, processor, tmp_path, caplog):
    show, _ = callback(model, processor, [chat_sample(0, with_image=False)], tmp_path)
    show()
    assert not list(tmp_path.iterdir()) and "have no image" in caplog.text


def test_a_model_with_adapters_is_asked_too(processor, tmp_path):
    model = fitting_model(processor)
    adapted = get_peft_model(model, lora_config(model, rank=2))
    show, _ = callback(adapted, processor, [referring_sample(2), caption_sample(4)], tmp_path)
    show()
    assert Image.open(tmp_path / "pictures" / "step-4.png").height > 400
