"""What losses are divided by, and sums of their parts over forward passes and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from modeling_xsam import XSAMMaskDecoderConfig
from modeling_xsam.loss_xsam import count_loss_items

from .collator import IGNORED_LABEL


@dataclass(frozen=True)
class LossItems:
    """
    What the losses of some forward passes, such as an optimiser step, are divided by; float32 ().

    Attributes:
        num_tokens: tokens with a language loss.
        num_masks: masks of all `<SEG>`s (in stage 1, images).
        class_weight: class weights of all queries.
    """

    num_tokens: torch.Tensor
    num_masks: torch.Tensor
    class_weight: torch.Tensor

    def of(self, part: str) -> torch.Tensor:
        """What a part of the loss is divided by, by its name in the models' `loss_dict`."""
        if part == "loss_lm":
            return self.num_tokens
        return self.class_weight if part.startswith("loss_cls") else self.num_masks


def count_items(batches: Sequence[dict[str, Any]], config: XSAMMaskDecoderConfig) -> torch.Tensor:
    """Tokens, masks and class weight of some batches of this process, float64 (3,) on the CPU."""
    counts = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        if "labels" in batch:
            # The first token is nobody's prediction.
            counts[0] += batch["labels"][:, 1:].ne(IGNORED_LABEL).sum().cpu()
        if "class_labels" in batch:
            items = count_loss_items(batch["class_labels"], config)
            counts[1] += items.num_masks
            counts[2] += items.class_weight
    return counts


def total_items(counts: torch.Tensor, accelerator: Accelerator) -> LossItems:
    """The counts of all processes together: every process has to call it."""
    return LossItems(*accelerator.reduce(counts.float().to(accelerator.device), reduction="sum"))


class LossParts:
    """Running sums of the parts of a loss by name."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The sums over all processes, which start anew: every process has to call it. Processes may know other parts."""
        names = sorted(set(gather_object(list(self._sums))))
        sums = torch.stack(
            [torch.as_tensor(self._sums.get(name, 0.0)).float().cpu() for name in names] or [torch.zeros(())]
        )
        totals = accelerator.reduce(sums.to(accelerator.device), reduction="sum").tolist()
        self._sums = {}
        return dict(zip(names, totals, strict=bool(names)))


__all__ = ["LossItems", "LossParts", "count_items", "total_items"]
