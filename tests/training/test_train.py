"""Dry runs of the published recipes on the fixtures, one stage after the other, and what a run leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import xsam_training
from dataset_fixtures.everything import dry_run_overrides, write_everything
from modeling_xsam import XSAMForSegmentation, XSAMForUniversalSegmentation
from processing_xsam import AnySegmentationPipeline, XSAMProcessor
from xsam_training.cli import app
from xsam_training.train import train

RECIPES = Path(xsam_training.__file__).parent / "recipes"
STAGE_3_PARTS = {
    "vision_tower",
    "high_res_vision_tower",
    "language_model",
    "lm_head",
    "multi_modal_projector",
    "high_res_projector",
    "mask_projector",
    "background_embedding",
    "connector",
    "mask_decoder",
    "phrase_classifier",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_everything(folder)
    return folder


def dry_run(root: Path, stage: int, *overrides: str):
    return train(RECIPES / f"stage{stage}.yaml", [*dry_run_overrides(root, stage), *overrides])


@pytest.fixture(scope="module")
def stage1(root):
    return dry_run(root, 1, "--picture_steps=2", "--picture_samples=2")


@pytest.fixture(scope="module")
def stage2(root):
    return dry_run(root, 2)


@pytest.fixture(scope="module")
def stage3(root, stage1, stage2):
    return dry_run(root, 3, "--picture_steps=2", "--picture_samples=13", "--max_turns=2")


def learning_parts(trainer) -> set[str]:
    return {name.split(".")[0] for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def test_stage_1(root, stage1):
    assert learning_parts(stage1) == {"high_res_vision_tower", "connector", "mask_decoder", "class_predictor"}
    saved = XSAMForUniversalSegmentation.from_pretrained(root / "outputs" / "stage1")
    assert saved.config.id2label[0] == "person" and len(saved.config.id2label) == saved.config.num_labels
    assert {"loss", "loss_cls", "loss_mask_1", "grad_norm"} <= stage1.state.log_history[0].keys()
    assert Image.open(root / "outputs" / "stage1" / "pictures" / "step-2.png").width > 100


def test_stage_2_moves_the_projectors_alone(root, stage2):
    assert learning_parts(stage2) == {"multi_modal_projector", "high_res_projector"}
    saved = XSAMForSegmentation.from_pretrained(root / "outputs" / "stage2")
    assert saved.training is False
    assert set(stage2.state.log_history[0]) >= {"loss", "loss_lm"}


def test_stage_3(root, stage3):
    assert learning_parts(stage3) == STAGE_3_PARTS
    folder = root / "outputs" / "stage3"
    assert Image.open(folder / "pictures" / "step-2.png").width > 100
    segment = AnySegmentationPipeline(
        model=XSAMForSegmentation.from_pretrained(folder), processor=XSAMProcessor.from_pretrained(folder)
    )
    assert isinstance(segment(Image.new("RGB", (64, 48)), task="referring", text="a cup"), list)


@pytest.mark.parametrize(
    ("stage", "moving"),
    [
        (1, {"high_res_vision_tower", "connector", "mask_decoder", "class_predictor"}),
        (2, {"multi_modal_projector", "high_res_projector"}),
        (3, STAGE_3_PARTS),
    ],
)
def test_which_parameters_move(root, stage1, stage2, stage3, stage, moving):
    """Compared with what the run started from: moved are the parts that learn, and the others not by a bit."""
    start = dry_run(root, stage, f"--output_dir={root / 'start' / str(stage)}", "--max_steps=1", "--learning_rate=0")
    before = start.model.state_dict()
    after = {1: stage1, 2: stage2, 3: stage3}[stage].model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == moving
    frozen = {name for name, weight in start.model.named_parameters() if not weight.requires_grad}
    assert not moved & frozen


def test_frozen_parts_stay_in_evaluation_mode(stage2):
    model = stage2.model.train()
    assert not model.vision_tower.training and not model.language_model.training
    assert model.multi_modal_projector.training


def test_the_report_and_the_table_are_printed(root, stage1, stage2, capsys):
    dry_run(root, 3, f"--output_dir={root / 'report'}", "--max_steps=1")
    printed = capsys.readouterr().out
    assert "RefCOCOg-GCG" in printed and "factor" in printed
    assert "loaded from" in printed and "new: " in printed and "unused: class_predictor (2)" in printed
    assert "language_model" in printed and "frozen" in printed


def test_a_run_resumes_from_its_last_checkpoint(root, stage1, stage2):
    folder = root / "resumed"
    common = [
        f"--output_dir={folder}",
        "--save_steps=1",
        "--resume_from_checkpoint=last",
        "--lr_scheduler_type=constant",
    ]
    dry_run(root, 3, *common, "--max_steps=1")
    resumed = dry_run(root, 3, *common, "--max_steps=2")
    whole = dry_run(root, 3, f"--output_dir={root / 'whole'}", "--lr_scheduler_type=constant", "--max_steps=2")
    assert resumed.state.global_step == 2
    for (name, value), other in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_adapters(root, stage1, stage2):
    folder = root / "lora"
    overrides = [
        f"--output_dir={folder}",
        "--lora=true",
        "--lora_rank=4",
        "--save_steps=1",
        "--lr_scheduler_type=constant",
    ]
    whole = dry_run(root, 3, *overrides)
    assert (folder / "adapter_model.safetensors").is_file() and (folder / "base" / "config.json").is_file()
    resumed = dry_run(root, 3, *overrides, f"--resume_from_checkpoint={folder / 'checkpoint-1'}")
    for (name, value), other in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_a_finished_run_is_left_as_it_is(root, stage1, stage2):
    overrides = [
        f"--output_dir={root / 'finished'}",
        "--save_steps=1",
        "--max_steps=1",
        "--resume_from_checkpoint=last",
    ]
    first = dry_run(root, 3, *overrides)
    again = dry_run(root, 3, *overrides)
    assert again.state.global_step == 0
    # What a stop between the last checkpoint and the end leaves is made up for.
    saved = {name: (root / "finished" / name).read_bytes() for name in ("model.safetensors", "config.json")}
    for name in (*saved, "trainer_state.json"):
        (root / "finished" / name).unlink()
    dry_run(root, 3, *overrides)
    assert {name: (root / "finished" / name).read_bytes() for name in saved} == saved
    assert json.loads((root / "finished" / "trainer_state.json").read_text())["global_step"] == 1
    for (name, value), other in zip(first.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_adapters_do_not_take_the_base_of_another_run(root, stage1, stage2):
    (root / "taken" / "base").mkdir(parents=True)
    with pytest.raises(ValueError, match="is the base of adapters that were trained before"):
        dry_run(root, 3, f"--output_dir={root / 'taken'}", "--lora=true")


def test_stage_1_evaluates_the_categories_that_it_trains(root):
    other = "[{format: coco-instances}]"
    with pytest.raises(ValueError, match="data set 1 differs from the first in"):
        dry_run(root, 1, f"--output_dir={root / 'other'}", f"--eval_datasets={other}")


def test_the_command_trains(root):
    overrides = [*dry_run_overrides(root, 2), f"--output_dir={root / 'command'}"]
    result = CliRunner().invoke(app, ["train", str(RECIPES / "stage2.yaml"), *overrides])
    assert result.exit_code == 0, result.output
    assert "weights of the model:" in result.output
    XSAMForSegmentation.from_pretrained(root / "command")


def test_the_command_names_what_is_wrong(root):
    result = CliRunner().invoke(
        app, ["train", str(RECIPES / "stage1.yaml"), *dry_run_overrides(root, 1), "--datasets=[{format: coco}]"]
    )
    assert result.exit_code == 2
    assert "format 'coco'" in " ".join(result.output.replace("│", " ").split())
