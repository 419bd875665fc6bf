"""What every probe gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from processing_xsam.visualization_xsam import contact_sheet

from ..evaluation.metric import for_json


@dataclass(frozen=True)
class ProbeReport:
    """
    Attributes:
        name: of the probe.
        meaning: what the figures say, in a sentence or two.
        figures: by name; NaN for one that the cases cannot give.
        settings: what the figures depend on: numbers of cases, thresholds, budgets.
        cases: a record for each case, fit for JSON.
        pictures: some cases, each with its title.
    """

    name: str
    meaning: str
    figures: Mapping[str, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    cases: Sequence[Mapping[str, Any]] = ()
    pictures: Sequence[tuple[str, Image.Image]] = field(default=(), repr=False)

    def __str__(self) -> str:
        width = max(len(name) for name in self.figures)
        lines = [f"{self.name}: {self.meaning}"]
        lines += [f"  {name:<{width}}  {_number(value)}" for name, value in self.figures.items()]
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """`NAME.json` and, if there are pictures, `NAME.png` with all of them."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "probe": self.name,
            "meaning": self.meaning,
            "figures": for_json(self.figures),
            "settings": dict(self.settings),
            "cases": [dict(case) for case in self.cases],
        }
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if self.pictures:
            contact_sheet(self.pictures, columns=2).save(folder / f"{self.name}.png")


def _number(value: float) -> str:
    return "not available" if value != value else f"{value:.4f}"
