"""Where the recorded tensors of the original implementation are, and how they are read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

DEFAULT_GOLDENS = Path(__file__).resolve().parents[2] / "shared" / "goldens"


@dataclass(frozen=True)
class Goldens:
    """Recorded tensors of the original implementation: one safetensors file per case, described in `cases.json`."""

    folder: Path

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text())

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def case(self, name: str) -> dict[str, Any]:
        return self.json("cases")[name]


def goldens_folder() -> Path | None:
    folder = Path(os.environ["XSAM_GOLDENS"]) if "XSAM_GOLDENS" in os.environ else DEFAULT_GOLDENS
    return folder if (folder / "cases.json").is_file() else None
