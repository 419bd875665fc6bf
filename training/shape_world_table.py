"""The figures of a checkpoint of the shape world and of baselines as a table, and its place in a model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .data.shape_world.options import World
from .evaluation.metric import mean
from .evaluation.report import percent

START, END = "<!-- figures -->", "<!-- /figures -->"

# Benchmarks of a column, as in the JSON file of an evaluation, their failures counted.
Measured = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """
    Attributes:
        head: what stands above it.
        metrics: names of those whose benchmarks it can answer; None for all.
    """

    head: str
    metrics: tuple[str, ...] | None = None


# What is measured, by the name of its file. Two of the baselines can only answer with single things.
COLUMNS = {
    "xsam": Column("xsam protocol"),
    "generate": Column("generate protocol"),
    "random-of-kind": Column("random of the kind", ("referring-iou",)),
    "largest": Column("largest thing", ("referring-iou",)),
    "oracle": Column("oracle"),
}
ALL_COLUMNS = tuple(COLUMNS)


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        task: what is asked.
        figure: name of what is shown.
        read: the value, 0 to 1, of what a column has measured: NaN if the data cannot give it, None if the column lacks
            the benchmark.
        goal: what the checkpoint is to reach, 0 to 1.
        columns: names of `COLUMNS` that it has a meaning in.
    """

    task: str
    figure: str
    read: Callable[[Measured], float | None]
    goal: float | None = None
    columns: tuple[str, ...] = ALL_COLUMNS


def _row(
    task: str, benchmark: str, figure: str, goal: float | None = None, columns: tuple[str, ...] = ALL_COLUMNS
) -> Row:
    """A figure of a benchmark, under its own name."""

    def read(measured: Measured) -> float | None:
        return _number(measured[benchmark]["figures"][figure]) if benchmark in measured else None

    return Row(task, figure, read, goal, columns)


def held_out_miou(measured: Measured) -> float | None:
    """The mean over the combinations that training does not have, of an evaluation of all combinations."""
    if "held-out" not in measured:
        return None
    by_label = measured["held-out"]["by_label"]
    held_out = [each.name for each in World("held-out").vocabulary.held_out]
    return mean(_number(by_label[name]) for name in held_out if name in by_label)


def well_formed(measured: Measured) -> float | None:
    """Of all questions that want a mask, the share of answers without a failure."""
    segmenting = [each for each in measured.values() if each["metric"] != "chat-accuracy"]
    if not segmenting:
        return None
    return 1 - sum(each["failures"] for each in segmenting) / sum(each["num_questions"] for each in segmenting)


def _number(value: float | None) -> float:
    """As it was before it was written as JSON."""
    return math.nan if value is None else value


# A question of reasoning asks for the only thing of its kind: a random one of the kind is always right.
REASONING_COLUMNS = tuple(name for name in COLUMNS if name != "random-of-kind")
ROWS = (
    _row("kinds, panoptic", "kinds-panoptic", "PQ", 0.6),
    _row("kinds, panoptic", "kinds-panoptic", "PQ things"),
    _row("kinds, panoptic", "kinds-panoptic", "PQ stuff"),
    _row("kinds, semantic", "kinds-semantic", "mIoU", 0.8),
    _row("kinds, semantic", "kinds-semantic", "mIoU things"),
    _row("kinds, semantic", "kinds-semantic", "mIoU stuff"),
    _row("all combinations, open vocabulary", "combinations", "mIoU"),
    Row("held-out combinations, open vocabulary", "mIoU", held_out_miou, 0.75),
    _row("referring, all families", "referring", "cIoU", 0.55),
    _row("referring by attribute", "referring-attribute", "cIoU"),
    _row("referring by size", "referring-size", "cIoU"),
    _row("referring by position", "referring-position", "cIoU"),
    _row("referring by relation", "referring-relation", "cIoU"),
    _row("absent things that get no mask", "absent", "N-acc", 0.85),
    _row("present things that get one", "absent", "T-acc"),
    _row("reasoning", "reasoning", "cIoU", 0.8, REASONING_COLUMNS),
    _row("interactive, point", "interactive-point", "gIoU", 0.7),
    _row("interactive, scribble", "interactive-scribble", "gIoU"),
    _row("interactive, box", "interactive-box", "gIoU", 0.7),
    _row("interactive, mask", "interactive-mask", "gIoU"),
    _row("visual grounded, point", "visual-grounded-point", "AP50", 0.6),
    _row("visual grounded, box", "visual-grounded-box", "AP50", 0.6),
    _row("visual grounded, box, some kinds left out", "visual-grounded-left-out", "AP50"),
    _row("grounded conversation", "grounded-conversation", "mIoU", 0.8),
    _row("grounded conversation", "grounded-conversation", "mask recall", 0.6),
    _row("chat, is it there", "chat-existence", "accuracy", 0.85),
    _row("chat, how many", "chat-count", "accuracy", 0.65),
    _row("chat, which colour", "chat-color", "accuracy"),
    Row("answers with the masks that they should have", "share", well_formed, 0.99, ("generate",)),
)


def table(figures: Mapping[str, Any]) -> str:
    """
    Figures, as `shape_world_card.collect` gives them, as a Markdown table in per cent. A cell is empty where a column has no
    such figure, "-" where the data cannot give it.
    """
    scenes = sorted({each["num_samples"] for each in figures["oracle"]["benchmarks"].values()})
    heads = [column.head for column in COLUMNS.values()]
    lines = [["", "figure", *heads, "goal"], ["---", "---", *["---:"] * (len(heads) + 1)]]
    for row in ROWS:
        cells = [_cell(row, column, figures[column]["benchmarks"]) for column in COLUMNS]
        lines.append([row.task, row.figure, *cells, "" if row.goal is None else f"{100 * row.goal:.0f}"])
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"Per cent, {' or '.join(map(str, scenes))} scenes for each benchmark.", "", *rows])


def _cell(row: Row, column: str, measured: Measured) -> str:
    value = row.read(measured) if column in row.columns else None
    return "" if value is None else percent(value)


def insert(card: str, figures: str) -> str:
    """
    A model card with other figures between its marks.

    Raises:
        ValueError: if the two marks do not stand in it once each, in their order.
    """
    start, end = card.find(START), card.find(END)
    if (card.count(START), card.count(END)) != (1, 1) or end < start:
        raise ValueError(f"the model card needs a line {START} and after it a line {END}, once each, for the figures")
    return f"{card[: start + len(START)]}\n{figures}\n{card[end:]}"
