"""
What training needs of the network besides its losses: parts that cannot learn, parts that are not to learn, parts that
a batch has no use for, and activation checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_xsam import XSAMConfig


class XSAMTrainingMixin:
    """For a `PreTrainedModel` with image towers, and with or without a language model."""

    def _read_layers(self) -> dict[str, list[int]]:
        """By name of the image tower, the hidden states that are read of it (0 = input of the first block)."""
        raise NotImplementedError

    def _language_embeddings(self) -> list[nn.Module]:
        """The input embeddings of the language model, if there is one."""
        return []

    def train(self, mode: bool = True) -> XSAMTrainingMixin:
        """
        As `torch.nn.Module.train`, but sub-modules whose parameters are all frozen stay in eval mode: nothing of a
        frozen tower or layer is dropped. Looked at in this call: freeze first, then call `train`.
        """
        super().train(mode)
        if mode:
            _keep_frozen_in_eval_mode(self)
        return self

    def parameters_without_gradient(self) -> list[str]:
        """
        Names of the parameters that no loss depends on: of the image towers, what comes behind the last hidden state
        that the configuration reads (the neck of the dense tower, the last blocks and the pooling head of the global
        one). Whether parameters are frozen plays no part.

        Raises:
            ValueError: if a tower has no blocks to count.
        """
        return [
            f"{tower}.{name}"
            for tower, layers in self._read_layers().items()
            for name in _parameters_behind(self.get_submodule(tower), layers)
        ]

    def freeze_unused_parts(self) -> None:
        """Freeze `parameters_without_gradient`, so that neither an optimiser nor a data-parallel wrapper sees them."""
        for name in self.parameters_without_gradient():
            self.get_parameter(name).requires_grad_(False)

    def enable_input_require_grads(self) -> None:
        """
        As in transformers, but for the language model alone. Image towers whose inputs require gradients would be
        walked through backwards even when they are frozen, and activation checkpointing does not need it here.
        """
        embeddings = self._language_embeddings()
        self._require_grads_hooks = [part.register_forward_hook(_require_gradient) for part in embeddings]

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs: Any
    ) -> None:
        # All ways of switching activation checkpointing on and off, under any of their names, end here.
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "gradient_checkpointing_kwargs has use_reentrant=True, which fails in the mask decoder and gives no gradient "
                "to layers whose inputs need none. Set use_reentrant to False."
            )
        checkpointing = partial(gradient_checkpointing_func, use_reentrant=False)
        super()._set_gradient_checkpointing(enable, checkpointing, **kwargs)


def blank_images(config: XSAMConfig, device: torch.device) -> dict[str, torch.Tensor]:
    """`pixel_values` (1, 3, s, s) and `high_res_pixel_values` (1, 3, S, S), float32 zeros: one image in mean colour."""
    configs = {"pixel_values": config.vision_config, "high_res_pixel_values": config.high_res_vision_config}
    return {
        name: torch.zeros(1, tower.num_channels, tower.image_size, tower.image_size, device=device)
        for name, tower in configs.items()
    }


def zero_connected_with(outputs: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """
    Zero, float32 (), that depends on every output: added to a loss, it gives the parameters behind them a gradient of
    zero instead of none.
    """
    # One element each: a sum could overflow, and infinity times zero is not a number.
    firsts = [output.flatten()[0].to(device, torch.float32) for output in outputs]
    return sum((0 * first for first in firsts), torch.zeros((), device=device))


def _keep_frozen_in_eval_mode(module: nn.Module) -> None:
    for part in module.children():
        trainable = [parameter.requires_grad for parameter in part.parameters()]
        if any(trainable):
            _keep_frozen_in_eval_mode(part)
        elif trainable:
            _stay_in_eval_mode(part)


def _stay_in_eval_mode(part: nn.Module) -> None:
    part.eval()
    for module in part.modules():
        # A block itself drops nothing, its parts do. Its own flag only says whether activations may be checkpointed,
        # which a frozen language model needs when gradients pass through it.
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def _parameters_behind(tower: nn.Module, layers: Sequence[int]) -> list[str]:
    """
    Names of a tower's parameters behind the last of some hidden states (0 = input of the first block, -1 = output of
    the last). Relies on towers registering their modules in the order of their use.
    """
    blocks = [f"{name}." for name, module in tower.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError(f"{type(tower).__name__} has no blocks of transformers: freeze its unused parts by name.")
    last = max(range(len(blocks) + 1)[layer] for layer in layers)
    names = [name for name, _ in tower.named_parameters()]
    end = 1 + max(place for place, name in enumerate(names) if name.startswith(tuple(blocks)))
    return [name for place, name in enumerate(names) if place >= end or name.startswith(tuple(blocks[last:]))]


def _require_gradient(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
    output.requires_grad_(True)


__all__ = ["XSAMTrainingMixin", "blank_images", "zero_connected_with"]
