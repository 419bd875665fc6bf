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
from accelerate.utils import DistributedType
from transformers import TrainerCallback

import xsam_training
from dataset_fixtures.everything import dry_run_overrides, write_everything
from modeling_xsam import XSAMForSegmentation
from step_worker import InMemory, make_trainer
from tiny_training import all_tasks, caption_sample, category_sample, chat_sample, visual_sample
from xsam_training.data.samples import AnnotatedSample
from xsam_training.dataset import TrainingDataset
from xsam_training.sampler import MixedBatchSampler
from xsam_training.train import run, train
from xsam_training.trainer import XSAMTrainer

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(xsam_training.__file__).parent / "recipes"
ACCELERATE = RECIPES / "accelerate"
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("", "tests", "tests/training", "examples")),
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
                gradient = parameter.grad
                self.gradients[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()


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
    """A step of gradient descent on all samples, and the weights saved."""
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


STEPS = {
    "equal": {"samples": all_tasks, "learning_rate_factors": {"vision_tower": 0.1}},
    "unequal": {"samples": unequal_tasks},
    "bf16": {"samples": unequal_tasks, "bf16": True, "gradient_checkpointing": True},
}
DIVIDED = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}


def work(folder: Path) -> None:
    """What each of the two sharded processes does."""
    for name, options in STEPS.items():
        samples = options["samples"]()
        arguments = {key: value for key, value in options.items() if key != "samples"}
        step = one_step(folder / name, samples, shard=True, **DIVIDED, **arguments)
        if PartialState().is_main_process:
            torch.save(step, folder / f"{name}.pt")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
