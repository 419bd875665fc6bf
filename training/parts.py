"""Which parts of a model learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

# What PEFT puts in front of the names of a model with adapters.
ADAPTED = "base_model.model."


def set_trainable_parts(model: PreTrainedModel, parts: Sequence[str] | None) -> None:
    """
    Freeze everything but some modules. What no loss can reach is frozen in any case. Weights that two modules share learn
    if either of them does.

    Args:
        parts: names of modules, such as "connector" or "vision_tower.encoder.layers.3", or None for all.

    Raises:
        ValueError: if there is no such module.
    """
    modules = dict(model.named_modules())
    unknown = [part for part in parts or [] if not part or part not in modules]
    if unknown:
        children = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"trainable: the model has no part {unknown}; its parts are {children}, and what is in them.")
    model.requires_grad_(parts is None)
    for part in parts or []:
        modules[part].requires_grad_(True)
    model.freeze_unused_parts()


def describe_parts(model: nn.Module) -> str:
    """A line per direct sub-module: learning and frozen parameters."""
    learning, frozen = Counter(), Counter()
    for name, parameter in model.named_parameters():
        counts = learning if parameter.requires_grad else frozen
        counts[name.removeprefix(ADAPTED).split(".")[0]] += parameter.numel()
    rows = [f"  {name:24s} {learning[name]:>15,} learn {frozen[name]:>15,} frozen" for name in {**learning, **frozen}]
    return "\n".join(["parameters:", *rows])
