"""
Runs on several processes, launched as a user launches them: sharded by FSDP2, and recipes through `accelerate launch`.

Accelerate knows FSDP for processes on accelerators alone: with `use_cpu` its state takes no notice of the plugin, and
processes would share nothing (`AcceleratorState.__init__` in `accelerate/state.py` of 1.15). `shard_on_cpu` sets there what
it sets on GPUs; everything behind it, the wrapping, the collectives (gloo), the saving, is what runs on GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerState

import xsam_training
from dataset_fixtures.everything import dry_run_overrides, write_everything
from modeling_xsam import XSAMForSegmentation
from step_worker import InMemory, make_trainer
from tiny_training import all_tasks, assert_same_gradients, caption_sample, category_sample, chat_sample, visual_sample
from xsam_training.data.samples import AnnotatedSample
from xsam_training.dataset import TrainingDataset
from xsam_training.pictures import PredictionPictures
from xsam_training.processes import leave_process_group
from xsam_training.sampler import MixedBatchSampler
from xsam_training.train import run
from xsam_training.trainer import XSAMTrainer

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(xsam_training.__file__).parent / "recipes"
ACCELERATE = RECIPES / "accelerate"
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("", "tests", "tests/training")),
    "OMP_NUM_THREADS": "1",
}
# Of modules that are kept in float32 and of those that are not.
FLOAT32_PARTS = ("connector.branches.0.conv1", "mask_decoder.pixel_decoder.mask_projection", "mask_projector.linear_1")
AUTOCAST_PARTS = (
    "vision_tower.encoder.layers.0.mlp.fc1",
    "high_res_vision_tower.vision_encoder.layers.0.mlp.lin1",
    "language_model.layers.0.mlp.down_proj",
    "multi_modal_projector.linear_1",
)


def unequal_tasks() -> list[AnnotatedSample]:
    """Pairs of samples that two processes work on at the same time, and that have nothing in common."""
    return [
        chat_sample(0, with_image=False),
        category_sample(1),
        chat_sample(2),
        caption_sample(3),
        visual_sample(4),
        chat_sample(5, with_image=False),
        chat_sample(6, with_image=False),
        chat_sample(7, with_image=False),
    ]


class InOrder(MixedBatchSampler):
    def _order(self, rng: np.random.Generator) -> np.ndarray:
        return np.arange(sum(self.counts))


class WholeGradients(TrainerCallback):
    """The gradients of the optimiser step, put together from all processes."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.gradients[name] = whole(parameter.grad)


class OutputTypes:
    """By module, the type that it computes in."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        self.found: dict[str, torch.dtype] = {}
        for name in names:
            model.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def note(module: torch.nn.Module, args: Any, output: Any) -> None:
            self.found[name] = (output[0] if isinstance(output, tuple) else output).dtype

        return note


def shard_on_cpu(trainer: XSAMTrainer) -> None:
    """What accelerate makes of `fsdp2.yaml` on GPUs."""
    config = yaml.safe_load((ACCELERATE / "fsdp2.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config["fsdp_version"],
        reshard_after_forward=config["fsdp_reshard_after_forward"],
        auto_wrap_policy=config["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=config["fsdp_transformer_layer_cls_to_wrap"].split(","),
        state_dict_type=config["fsdp_state_dict_type"],
    )
    if trainer.args.bf16:
        plugin.set_mixed_precision("bf16")
    state = trainer.accelerator.state
    state.fsdp_plugin, state.distributed_type = plugin, DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def one_step(folder: Path, samples: list[AnnotatedSample], shard: bool, **arguments: Any) -> dict[str, Any]:
    """A step of gradient descent on all samples; saves the weights."""
    keep = WholeGradients()
    trainer = make_trainer(
        str(folder),
        [keep],
        **{"optim": "sgd", "learning_rate": 1e-3, "lr_scheduler_type": "constant", **arguments},
    )
    trainer.train_dataset = TrainingDataset([InMemory(samples)])
    trainer.train_batch_sampler = InOrder([len(samples)], trainer.args.train_batch_size, trainer.args.world_size)
    types = OutputTypes(trainer.model, [*FLOAT32_PARTS, *AUTOCAST_PARTS])
    if shard:
        shard_on_cpu(trainer)
    run(trainer)
    return {"gradients": keep.gradients, "log": trainer.state.log_history[0], "types": types.found}


def interrupted(folder: Path, shard: bool) -> list[dict[str, torch.Tensor]]:
    """Weights of a run of an epoch and a half, and of one that goes on from its checkpoint in the second epoch."""
    ends = []
    for checkpoint in (None, str(folder / "checkpoint-5")):
        trainer = make_trainer(
            str(folder), max_steps=6, save_strategy="steps", save_steps=5, learning_rate=1e-3, **DIVIDED_ONCE
        )
        if shard:
            shard_on_cpu(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        ends.append({name: whole(weight.detach()) for name, weight in trainer.model.named_parameters()})
    return ends


def looked_at(folder: Path) -> dict[str, float]:
    """A sharded run that is evaluated on unequal samples and pictured; the metrics."""
    trainer = make_trainer(
        str(folder), evaluate=True, max_steps=1, picture_steps=1, eval_strategy="steps", eval_steps=1
    )
    trainer.eval_dataset = TrainingDataset([InMemory(unequal_tasks())])
    trainer.args.per_device_eval_batch_size = 1
    trainer.add_callback(PredictionPictures(trainer, trainer.eval_dataset, trainer.processing_class))
    shard_on_cpu(trainer)
    trainer.train()
    return next(entry for entry in trainer.state.log_history if "eval_loss" in entry)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


DIVIDED_ONCE = {"per_device_train_batch_size": 1, "lr_scheduler_type": "constant"}
DIVIDED = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
STEPS = {
    "equal": {"learning_rate_factors": {"vision_tower": 0.1}},
    "unequal": {},
    "bf16": {"bf16": True, "gradient_checkpointing": True},
}
SAMPLES = {"equal": all_tasks, "unequal": unequal_tasks, "bf16": unequal_tasks}


def work(folder: Path) -> None:
    """What each of two processes does: first next to each other, then sharded."""
    results = {"resumed": interrupted(folder / "resumed", shard=False)}
    results["resumed sharded"] = interrupted(folder / "resumed-sharded", shard=True)
    results["evaluated"] = looked_at(folder / "looked-at")
    for name, arguments in STEPS.items():
        results[name] = one_step(folder / name, SAMPLES[name](), shard=True, **DIVIDED, **arguments)
    if PartialState().is_main_process:
        torch.save(results, folder / "results.pt")
    leave_process_group()


def launch(*command: str) -> str:
    """Two processes; what they print."""
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *command],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("launch")


@pytest.fixture(scope="module")
def results(folder) -> dict[str, Any]:
    launch(str(Path(__file__)), str(folder))
    return torch.load(folder / "results.pt")


@pytest.fixture(scope="module")
def one_process(folder) -> dict[str, dict[str, Any]]:
    return {
        name: one_step(folder / "one" / name, SAMPLES[name](), False, per_device_train_batch_size=8, **arguments)
        for name, arguments in STEPS.items()
    }


def losses(log: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in log.items() if name.startswith("loss")}


@pytest.mark.parametrize("name", ["equal", "unequal"])
def test_a_sharded_step_is_the_step_of_one_process(folder, results, one_process, name):
    """
    Gradients, losses and the saved weights. In "unequal" a process has text alone while the other has masks, and four
    passes make up the step.
    """
    sharded, alone = results[name], one_process[name]
    assert_same_gradients(sharded["gradients"], alone["gradients"])
    assert losses(sharded["log"]) == pytest.approx(losses(alone["log"]), rel=1e-4)
    saved, expected = (
        XSAMForSegmentation.from_pretrained(path).state_dict() for path in (folder / name, folder / "one" / name)
    )
    for key, value in expected.items():
        torch.testing.assert_close(saved[key], value, atol=1e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_a_sharded_step_in_bf16_keeps_its_float32_parts(results, one_process):
    sharded, alone = results["bf16"], one_process["bf16"]
    expected = {**dict.fromkeys(FLOAT32_PARTS, torch.float32), **dict.fromkeys(AUTOCAST_PARTS, torch.bfloat16)}
    assert alone["types"] == sharded["types"] == expected
    assert losses(sharded["log"]) == pytest.approx(losses(alone["log"]), rel=5e-3)
    # The weights, and so their gradients, are float32 as well.
    assert {gradient.dtype for gradient in sharded["gradients"].values()} == {torch.float32}
    assert sharded["log"]["grad_norm"] == pytest.approx(alone["log"]["grad_norm"], rel=2e-2)


@pytest.mark.parametrize("name", ["resumed", "resumed sharded"])
def test_two_processes_resume_in_the_second_epoch(results, name):
    uninterrupted, resumed = results[name]
    for key, value in uninterrupted.items():
        assert torch.equal(value, resumed[key]), key


def test_a_sharded_model_is_evaluated_and_pictured(folder, results):
    """While one process has text alone, the other has masks."""
    assert np.isfinite(results["evaluated"]["eval_loss_mask"] + results["evaluated"]["eval_loss_lm"])
    assert (folder / "looked-at" / "pictures" / "step-1.png").is_file()


def test_a_recipe_on_two_processes(folder):
    """
    Under the launcher of torch: on a CPU, `accelerate launch --cpu --num_processes 2` starts one process unless it is
    given a host file of MPI.
    """
    write_everything(folder / "data")
    overrides = [
        *dry_run_overrides(folder / "data", 2),
        "--segmentor=null",
        "--projectors=null",
        "--per_device_train_batch_size=2",
        "--save_strategy=steps",
        "--save_steps=2",
        f"--output_dir={folder / 'recipe'}",
    ]
    printed = launch("-m", "xsam_training.train", str(RECIPES / "stage3.yaml"), *overrides)
    assert printed.count("RefCOCOg-GCG") == 1, "the table of data sets is printed once"
    checkpoint = folder / "recipe" / "checkpoint-2"
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
    assert [entry["step"] for entry in state.log_history] == [1, 2]
    assert all(np.isfinite(entry["loss"] + entry["loss_lm"]) for entry in state.log_history)
    XSAMForSegmentation.from_pretrained(folder / "recipe")


class TestConfigurations:
    """The files for `accelerate launch`."""

    @pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3"])
    def test_accelerate_reads_them(self, name):
        config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))
        assert config.mixed_precision == "bf16" and config.num_processes == 8
        assert config.distributed_type == (DistributedType.FSDP if name == "fsdp2" else DistributedType.DEEPSPEED)

    @pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3"])
    def test_every_key_is_an_option_of_the_launcher(self, name):
        """The launcher passes over keys that it does not know."""
        config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))
        options = {action.dest for action in launch_command_parser()._actions}
        assert set(config.fsdp_config) | set(config.deepspeed_config) <= options


if __name__ == "__main__":
    work(Path(sys.argv[1]))
