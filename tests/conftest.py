"""Shared by all tests: the recorded tensors of the original implementation, one seed, and a count of the parity cases."""

from __future__ import annotations

import logging

import pytest
from transformers import set_seed

from goldens import Goldens, goldens_folder


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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test and its fixtures draw depends neither on the tests before it nor on the process that they ran in."""
    set_seed(0)


def pytest_terminal_summary(terminalreporter) -> None:
    """Print how many parity cases ran, so that a silent skip cannot pass for agreement."""

    def count(outcome: str) -> int:
        reports = terminalreporter.stats.get(outcome, [])
        return sum("parity" in getattr(report, "keywords", ()) for report in reports)

    terminalreporter.write_line(
        f"parity cases: {count('passed')} passed, {count('failed') + count('error')} failed, {count('skipped')} skipped"
    )
