"""Fixtures shared by all tests: the recorded tensors of the original implementation, and a count of the parity cases."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
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


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    """The recorded tensors; a test that asks for them is a parity test and is skipped where they are not found."""
    folder = goldens_folder()
    if folder is None:
        pytest.skip("no recorded tensors of the original: set XSAM_GOLDENS to their folder")
    return Goldens(folder)


@pytest.fixture
def nothing_said_yet() -> None:
    """What is said only once, such as by other tests, is said again."""
    logging.Logger.warning_once.cache_clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "goldens" in getattr(item, "fixturenames", ()):
            item.add_marker("parity")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "parity: compares with recorded tensors of the original implementation")
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter) -> None:
    """Print how many parity cases ran, so that a silent skip cannot pass for agreement."""

    def count(outcome: str) -> int:
        reports = terminalreporter.stats.get(outcome, [])
        return sum("parity" in getattr(report, "keywords", ()) for report in reports)

    terminalreporter.write_line(
        f"parity cases: {count('passed')} passed, {count('failed') + count('error')} failed, {count('skipped')} skipped"
    )
