"""What probes ask of their arguments."""

from __future__ import annotations

from transformers import PreTrainedModel


def check_has_language_model(model: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: if there is none that could be asked.
    """
    if not hasattr(model, "segment"):
        raise ValueError(
            f"{type(model).__name__} has no language model that could be asked: probe a model of stage 3, or use `connector`"
        )


def check_counts(**counts: int) -> None:
    """
    Raises:
        ValueError: if one is below 1.
    """
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}; give a number from 1 on")
