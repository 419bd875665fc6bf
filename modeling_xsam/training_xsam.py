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
    """For a `PreTrainedModel` whose `_read_layers` says which hidden states of its image towers are read."""

    def train(self, mode: bool = True):
        """
        As `torch.nn.Module.train`, but direct sub-modules whose parameters are all frozen stay in eval mode: nothing of
        a frozen tower is dropped. Looked at in this call: freeze first, then call `train`.
        """
        super().train(mode)
        if mode:
            for part in self.children():
                trainable = [parameter.requires_grad for parameter in part.parameters()]
                if trainable and not any(trainable):
                    _stay_in_eval_mode(part)
        return self

    def parameters_without_gradient(self) -> list[str]:
        """
        Names of the parameters that no loss depends on: of the image towers, what comes behind the last hidden state
        that the configuration reads (the neck of the dense tower, the last blocks and the pooling head of the global
        one). Parameters that are frozen are not meant.
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

    def _language_embeddings(self) -> list[nn.Module]:
        return []

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs: Any
    ) -> None:
        # All ways of switching activation checkpointing on and off, under any of their names, end here.
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "gradient_checkpointing_kwargs has use_reentrant=True, which gives wrong or no gradients where the inputs "
                "of a layer need none, as behind frozen towers and in the mask decoder. Set use_reentrant to False."
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
    blocks = [name for name, module in tower.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    last = max(range(len(blocks) + 1)[layer] for layer in layers)
    names = [name for name, _ in tower.named_parameters()]
    block_of_name = [_block_index(name, blocks) for name in names]
    in_blocks = [place for place, block in enumerate(block_of_name) if block is not None]
    behind_blocks = in_blocks[-1]
    return [
        name
        for place, (name, block) in enumerate(zip(names, block_of_name, strict=True))
        if (block is not None and block >= last) or place > behind_blocks
    ]


def _block_index(name: str, blocks: Sequence[str]) -> int | None:
    return next((index for index, block in enumerate(blocks) if name.startswith(f"{block}.")), None)


def _require_gradient(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
    output.requires_grad_(True)


__all__ = ["XSAMTrainingMixin", "blank_images", "zero_connected_with"]
