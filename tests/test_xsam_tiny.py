"""
What the small checkpoint can do: every task on scenes that training does not have, with floors a little under what it
reaches there. Its figures on more scenes stand in its card.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_xsam import XSAMForSegmentation
from processing_xsam import AnySegmentationPipeline
from processing_xsam.default_model_xsam import default_checkpoint
from xsam_training.data.shape_world.reader import ShapeWorldReader
from xsam_training.evaluate import EvaluationSettings, build_predictor, evaluate, load_model
from xsam_training.evaluation.benchmarks import load_benchmarks
from xsam_training.train import train

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "training" / "recipes" / "tiny"
BENCHMARKS = {benchmark.name: benchmark for benchmark in load_benchmarks(RECIPES / "benchmarks.yaml")}
CHECKPOINT = str(default_checkpoint())
NUM_SCENES = 16

# Benchmark, figure, floor.
FLOORS = [
    ("kinds-panoptic", "PQ", 0.88),
    ("combinations", "mIoU", 0.71),
    ("held-out", "mIoU", 0.7),
    ("referring", "gIoU", 0.65),
    ("referring-attribute", "gIoU", 0.68),
    ("referring-size", "gIoU", 0.65),
    ("referring-position", "gIoU", 0.56),
    ("referring-relation", "gIoU", 0.37),
    ("absent", "N-acc", 0.43),
    ("reasoning", "gIoU", 0.78),
    ("interactive-point", "gIoU", 0.72),
    ("interactive-box", "gIoU", 0.72),
    ("visual-grounded-box", "AP50", 0.76),
    ("chat-count", "accuracy", 0.38),
    ("chat-color", "accuracy", 0.52),
]
GENERATED_FLOORS = [
    ("grounded-conversation", "mIoU", 0.82),
    ("reasoning", "gIoU", 0.79),
]


@pytest.fixture(scope="module")
def checkpoint():
    return load_model(CHECKPOINT)


def figures(checkpoint, name, protocol="xsam"):
    model, processor = checkpoint
    settings = EvaluationSettings(CHECKPOINT, protocol, limit=NUM_SCENES, max_new_tokens=96, text_encoder="words")
    predictor = build_predictor(model, processor, settings)
    (result,) = evaluate([BENCHMARKS[name]], ROOT, settings, predictor)
    return result.figures


@pytest.mark.parametrize(("name", "figure", "floor"), FLOORS)
def test_it_reaches_its_floor(checkpoint, name, figure, floor):
    assert figures(checkpoint, name)[figure] >= floor


@pytest.mark.parametrize(("name", "figure", "floor"), GENERATED_FLOORS)
def test_it_reaches_its_floor_where_everything_is_generated(checkpoint, name, figure, floor):
    assert figures(checkpoint, name, "generate")[figure] >= floor


def test_bfloat16_costs_less_than_a_point(checkpoint):
    whole = figures(checkpoint, "kinds-semantic")["mIoU"]
    half = figures(load_model(CHECKPOINT, "bfloat16"), "kinds-semantic")["mIoU"]
    assert abs(half - whole) < 0.01


def test_a_batch_gives_what_a_loop_gives(checkpoint):
    model, processor = checkpoint
    segment = AnySegmentationPipeline(model=model, processor=processor)
    images = [sample.image for sample in ShapeWorldReader(tasks=["generic"], split="test", count=5)]
    arguments = {"task": "referring", "text": ["the leftmost thing", "the largest thing"]}
    num_segments = 0
    for batch, alone in zip(
        segment(images, batch_size=5, **arguments), map(lambda image: segment(image, **arguments), images), strict=True
    ):
        for one, other in zip(batch, alone, strict=True):
            num_segments += len(one)
            assert [each["label"] for each in one] == [each["label"] for each in other]
            for each, same in zip(one, other, strict=True):
                assert each["score"] == pytest.approx(same["score"], abs=1e-4)
                assert np.mean(np.asarray(each["mask"]) != np.asarray(same["mask"])) < 1e-3
    assert num_segments >= 5


def test_adapters_are_attached_trained_and_merged(checkpoint, tmp_path):
    """Two steps of LoRA on the recipe of stage 3; merged, the model answers as with its adapters."""
    overrides = [f"--model={CHECKPOINT}", f"--output_dir={tmp_path}", "--lora=true", "--lora_rank=4", "--max_steps=2"]
    overrides += [
        "--global_batch_size=2",
        "--per_device_train_batch_size=2",
        "--picture_steps=0",
        "--save_strategy=no",
    ]
    trainer = train(RECIPES / "stage3.yaml", [*overrides, "--logging_steps=1", "--disable_tqdm=true"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(np.isfinite(losses))
    merged, processor = load_model(str(tmp_path))
    assert isinstance(merged, XSAMForSegmentation)
    adapted = trainer.model.eval()
    image = ShapeWorldReader(tasks=["generic"], split="test", count=1)[0].image
    inputs = processor(images=image, task="referring", text="the largest thing", return_tensors="pt")
    with torch.no_grad():
        one, other = merged.segment(**inputs), adapted.segment(**inputs)
        untouched = checkpoint[0].segment(**inputs)
    assert torch.allclose(one.masks_queries_logits, other.masks_queries_logits, atol=1e-3)
    assert not torch.equal(one.masks_queries_logits, untouched.masks_queries_logits)
