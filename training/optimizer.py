"""Muon for the weights of linear layers and the Trainer's optimiser for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel


class MuonAndOther(Optimizer):
    """
    Takes matrices out of an optimiser and gives them to Muon (Jordan et al. 2024), whose update has the same size in all
    directions: from scratch, small transformers learn in fewer steps. The update's root mean square is 0.2 times the
    learning rate whatever the matrix' shape (Liu et al. 2025, arXiv 2502.16982).

    Args:
        other: an optimiser that has not made a step yet. It keeps the parameters that are no matrices.
        matrices: parameters (rows, columns).
        learning_rate: of Muon; weight decay is that of the matrices' groups in `other`.

    Raises:
        ImportError: if torch is older than its Muon.
    """

    def __init__(self, other: Optimizer, matrices: set[nn.Parameter], learning_rate: float) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ImportError(
                f"Muon needs torch 2.9 or newer, this is {torch.__version__}: upgrade, or do without Muon."
            )
        groups, muon_groups = [], []
        for group in other.param_groups:
            taken = [parameter for parameter in group["params"] if parameter in matrices]
            kept = [parameter for parameter in group["params"] if parameter not in matrices]
            groups += [{**group, "params": kept}] if kept else []
            muon_groups += [{"params": taken, "weight_decay": group["weight_decay"]}] if taken else []
        self._other = other
        self._muon = torch.optim.Muon(muon_groups, lr=learning_rate, adjust_lr_fn="match_rms_adamw")
        super().__init__([*groups, *self._muon.param_groups], defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """As `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Given at each step: loading a state and dividing groups replace both.
        self._muon.param_groups = [group for group in self.param_groups if _is_muons(group)]
        self._other.param_groups = [group for group in self.param_groups if not _is_muons(group)]
        for optimizer in (self._muon, self._other):
            optimizer.state = self.state
            optimizer.step()
        return loss


def linear_weights(model: PreTrainedModel) -> set[nn.Parameter]:
    """
    Weights (rows, columns) of all linear layers but the output of the language model and the deformable attention's
    offsets, which start at zero by design and would move at once.
    """
    output = model.get_output_embeddings()
    weights = {
        getattr(module, weight)
        for kind, weight in ((nn.Linear, "weight"), (nn.MultiheadAttention, "in_proj_weight"))
        for name, module in model.named_modules()
        if isinstance(module, kind) and module is not output and not name.endswith("sampling_offsets")
    }
    return {weight for weight in weights if weight is not None}


def _is_muons(group: dict[str, Any]) -> bool:
    return "ns_steps" in group


__all__ = ["MuonAndOther", "linear_weights"]
