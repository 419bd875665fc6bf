"""What the guide to evaluation says is so."""

from __future__ import annotations

import re
from pathlib import Path

import typer
import yaml

import xsam_training
from xsam_training.cli import app
from xsam_training.evaluation.benchmarks import BENCHMARKS, METRICS, Benchmark
from xsam_training.probes.commands import app as probe_app

README = (Path(xsam_training.__file__).parent / "evaluation" / "README.md").read_text(encoding="utf-8")


def rows(first):
    """The first cells of the table whose head begins with a word."""
    table = README.split(f"| {first} |", 1)[1].split("\n\n", 1)[0]
    return [line.split("|")[1] for line in table.splitlines()[2:]]


def named(cell):
    """`a-x`, `-y` stands for a-x and a-y."""
    names, start = [], ""
    for name in re.findall(r"`([^`]+)`", cell):
        start = start if name.startswith("-") else name.rsplit("-", 1)[0]
        names.append(start + name if name.startswith("-") else name)
    return names


def test_all_benchmarks_are_in_the_table():
    found = {name for cell in rows("benchmarks") for name in named(cell)}
    listed = {name for name in BENCHMARKS if not name.startswith("refcoco+")}
    short_and_long = {name for name in listed if name.endswith(("-short", "-long"))}
    assert listed - short_and_long <= found
    assert "refcoco+-..." in found and "with `-short` or `-long`" in README


def test_all_metrics_are_named():
    assert set(METRICS) <= set(re.findall(r"`([a-z-]+)`", README))


def test_the_example_is_a_benchmark():
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    (entry,) = yaml.safe_load(block)
    assert Benchmark(**entry).metric == "mean-iou"


def test_all_probes_are_in_the_table():
    commands = typer.main.get_command(probe_app).commands
    assert [named(cell)[0] for cell in rows("probe")] == list(commands)


def test_options_that_are_named_exist():
    root = typer.main.get_command(app)
    commands = [root.commands["evaluate"], root.commands["score"], *root.commands["probe"].commands.values()]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    others = {"--num_processes", "--standalone", "--nproc_per_node"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*(?![\w=-])", README)) - others <= known
