"""
transformers' Trainer for X-SAM: denominators of the losses over a whole optimiser step, batches from several data sets,
learning rates by module, and a log that shows every part of the loss.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import psutil
import torch
from accelerate.utils import AutocastKwargs
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, seed_worker

from modeling_xsam import XSAMMaskDecoderConfig

from .arguments import XSAMTrainingArguments
from .collator import SKIPPED
from .dataset import TrainingDataset
from .loss_items import LossItems, LossParts, count_items, total_items
from .optimizer import MuonAndOther, linear_weights
from .sampler import XSAMBatchSampler

Collator = Callable[[list], dict[str, Any]]


class XSAMTrainer(Trainer):
    """
    Args:
        train_batch_sampler: keys of `train_dataset`, batch by batch, the same on all processes.
        eval_collator: of `eval_dataset`; `data_collator` is that of training.
    """

    args: XSAMTrainingArguments
    # `compute_loss` returns a share of the whole step's loss.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        args: XSAMTrainingArguments,
        train_dataset: TrainingDataset | None = None,
        train_batch_sampler: XSAMBatchSampler | None = None,
        eval_collator: Collator | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(args=args, train_dataset=train_dataset, **kwargs)
        # The Trainer counts label tokens only for models that take the count; ours is given all three.
        self.model_accepts_loss_kwargs = True
        self.train_batch_sampler = train_batch_sampler
        self.eval_collator = eval_collator or self.data_collator
        self._train_parts = LossParts()
        self._eval_parts = LossParts()
        self._eval_counts = torch.zeros(3, dtype=torch.float64)
        self._last_logged_step = 0
        self._num_skipped = 0
        # First, so that it stops before what other callbacks do at the end of a step.
        self._clock = StepClock()
        self.callback_handler.callbacks.insert(0, self._clock)

    # Data

    def get_train_dataloader(self) -> DataLoader:
        if self.train_dataset is None or self.train_batch_sampler is None:
            raise ValueError("training needs train_dataset and train_batch_sampler.")
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.train_batch_sampler,
            collate_fn=self.data_collator,
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
            **self._worker_options(),
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("evaluation needs eval_dataset.")
        loader = DataLoader(
            dataset, batch_size=self.args.eval_batch_size, collate_fn=self.eval_collator, **self._worker_options()
        )
        return self.accelerator.prepare(loader)

    def _worker_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
            "persistent_workers": self.args.dataloader_persistent_workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
        }

    # Loss

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], LossItems]:
        """The forward passes of one optimiser step, and what their losses are divided by."""
        self._clock.start()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._num_skipped += sum(batch.pop(SKIPPED, 0) for batch in batches)
        return batches, total_items(count_items(batches, self._decoder_config), self.accelerator)

    @property
    def _decoder_config(self) -> XSAMMaskDecoderConfig:
        return self.accelerator.unwrap_model(self.model).config.mask_decoder_config

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: LossItems | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        The loss of one forward pass. With `num_items_in_batch` it is this pass's share of the step's loss, times the
        number of processes, over which gradients and logged losses are averaged.
        """
        if num_items_in_batch is None:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        outputs = self._share_of(num_items_in_batch, model, inputs)
        self._train_parts.add(outputs.loss_dict)
        loss = outputs.loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _share_of(self, items: LossItems, model: nn.Module, inputs: dict[str, Any]) -> Any:
        denominators = {"num_masks_in_batch": items.num_masks, "class_weight_in_batch": items.class_weight}
        if "labels" in inputs:
            denominators["num_items_in_batch"] = items.num_tokens.clamp(min=1)
        return model(**inputs, **denominators)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """The loss alone: masks and classes of different samples have no common shape."""
        inputs = self._prepare_inputs(inputs)
        inputs.pop(SKIPPED, None)
        self._eval_counts += count_items([inputs], self._decoder_config)
        one = torch.ones((), device=self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._share_of(LossItems(one, one, one), model, inputs)
        self._eval_parts.add(outputs.loss_dict)
        return outputs.loss.detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """
        The loss of the whole data set as if it were one batch, and its parts. The same at every call: points of the mask
        losses are drawn from `seed`, and training goes on from its own random state.
        """
        self._eval_counts.zero_()
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        items = total_items(self._eval_counts, self.accelerator)
        sums = self._eval_parts.take(self.accelerator)
        parts = {name: value / max(float(items.of(name)), 1e-9) for name, value in sums.items()}
        for name, value in {"loss": sum(parts.values()), **parts}.items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    # Optimiser

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """
        The Trainer's optimiser, Muon instead of it for linear layers with `muon_learning_rate`, and the learning rate of
        each module of `learning_rate_factors` scaled.
        """
        optimizer = super().create_optimizer(model)
        if self.args.muon_learning_rate is not None:
            optimizer = self.optimizer = self._with_muon(optimizer, model or self.model)
        factors = self.args.learning_rate_factors or {}
        names = {parameter: name for name, parameter in (model or self.model).named_parameters()}
        unknown = [part for part in factors if not any(_belongs(name, part) for name in names.values())]
        if unknown:
            raise ValueError(f"learning_rate_factors: the model has no module {unknown}.")
        groups = []
        for group in optimizer.param_groups:
            by_factor = defaultdict(list)
            for parameter in group["params"]:
                factor = next((f for part, f in factors.items() if _belongs(names[parameter], part)), 1.0)
                by_factor[factor].append(parameter)
            groups += [{**group, "params": params, "lr": group["lr"] * factor} for factor, params in by_factor.items()]
        optimizer.param_groups[:] = groups
        return optimizer

    def _with_muon(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> MuonAndOther:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"muon_learning_rate is {self.args.muon_learning_rate}, but the weights are sharded and Muon needs whole "
                "matrices: leave it out, or train without FSDP and DeepSpeed."
            )
        return MuonAndOther(optimizer, linear_weights(model), self.args.muon_learning_rate)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Warm-up and drops at `learning_rate_drop_epochs`, or the schedule that the arguments name."""
        if self.lr_scheduler is not None or not self.args.learning_rate_drop_epochs:
            return super().create_scheduler(num_training_steps, optimizer)
        epochs = self.args.num_train_epochs
        drops = [round(num_training_steps * epoch / epochs) for epoch in self.args.learning_rate_drop_epochs]
        self.lr_scheduler = LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            partial(
                _warmup_and_drops,
                warmup=self.args.get_warmup_steps(num_training_steps),
                drops=drops,
                factor=self.args.learning_rate_drop_factor,
            ),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # Precision

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, DataLoader]:
        if self.accelerator.is_fsdp2:
            # Accelerate would cast all parameters, inputs and gradients to the low precision, those that have to stay
            # float32 included. Autocast chooses instead, as it does on processes that share nothing.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
        return super()._prepare_for_training(*args, **kwargs)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        """The autocast that accelerate puts into every model but one sharded by FSDP2."""
        if not self.accelerator.is_fsdp2:
            return super().autocast_smart_context_manager(cache_enabled)
        # A cache would keep the weights of layers that are not gathered any more.
        return self.accelerator.autocast(AutocastKwargs(cache_enabled=False))

    # Log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds every part of the loss, samples a second and memory to what is logged in training."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._last_logged_step)
            logs |= {name: value / steps for name, value in self._train_parts.take(self.accelerator).items()}
            seconds = max(self._clock.take(), 1e-9)
            logs["samples_per_second"] = self.get_total_train_batch_size(self.args) * steps / seconds
            if self._num_skipped:
                logs["skipped_records"] = self._num_skipped
            logs["memory_gb"] = _memory_in_use(self.args.device) / 2**30
            self._last_logged_step = self.state.global_step
        super().log(logs, start_time)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        resumed_at = super()._init_training_state(*args, **kwargs)
        self._last_logged_step = self.state.global_step
        return resumed_at

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        # On several processes, a loader that skips the batches before a checkpoint hides the sampler from `set_epoch`.
        self.train_batch_sampler.set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)


class StepClock(TrainerCallback):
    """Seconds that optimiser steps took, waiting for data included, evaluation, pictures and saving not."""

    def __init__(self) -> None:
        self._started = 0.0
        self._seconds = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _belongs(name: str, part: str) -> bool:
    """Whether a parameter belongs to a module, also inside wrappers that put something in front of its name."""
    return f".{part}." in f".{name}"


def _warmup_and_drops(step: int, warmup: int, drops: list[int], factor: float) -> float:
    if step < warmup:
        return step / max(1, warmup)
    return factor ** sum(step >= drop for drop in drops)


def _memory_in_use(device: torch.device) -> int:
    """Bytes: the peak on a GPU, the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


__all__ = ["XSAMTrainer"]
