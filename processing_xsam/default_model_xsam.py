"""The small checkpoint that `pipeline("any-segmentation")` takes if no model is given."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)

WHAT_IT_KNOWS = (
    "This is the small checkpoint that comes with the package. It knows only a generated world of coloured shapes: its "
    "results on photographs mean nothing. Give `model=` for another one."
)


def default_checkpoint() -> Path:
    """
    The checkpoint's folder: an installation has it inside this package, a checkout in `hub_cards` beside it. Where code
    stands alone, as on the Hub, there is no such folder, and transformers says that it cannot load a model from it.
    """
    package = Path(__file__).resolve().parent
    installed = package / "xsam_tiny"
    return installed if installed.is_dir() else package.parent / "hub_cards" / "xsam-tiny"


def warn_of_default(name_or_path: str) -> None:
    """Say once what the default checkpoint knows, if a model was loaded from its folder."""
    if Path(name_or_path).resolve() == default_checkpoint().resolve():
        logger.warning_once(WHAT_IT_KNOWS)


__all__ = ["default_checkpoint", "warn_of_default"]
