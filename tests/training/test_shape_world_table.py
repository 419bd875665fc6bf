"""The table of figures and its place in a model card, of figures that are made up."""

from __future__ import annotations

import math

import pytest

from xsam_training.shape_world_table import COLUMNS, END, ROWS, START, held_out_miou, insert, table, well_formed

TEXT = f"# A model\n\n{START}\nold\n{END}\n\nMore.\n"


def measured(value):
    def benchmark(metric, figure, value=value):
        return {
            "metric": metric,
            "figures": {figure: value},
            "num_samples": 2,
            "num_questions": 10,
            "failures": 1,
        }

    return {
        "referring-size": benchmark("referring-iou", "cIoU"),
        "reasoning": benchmark("referring-iou", "cIoU"),
        "interactive-box": benchmark("referring-iou", "gIoU", None),
        "chat-color": benchmark("chat-accuracy", "accuracy"),
    }


def figures():
    """0 %, 10 %, and so on from column to column."""
    return {column: {"benchmarks": measured(place / 10)} for place, column in enumerate(COLUMNS)}


def row(text, task):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {task} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_line_for_each_row_and_its_heads():
    lines = table(figures()).splitlines()
    assert lines[:2] == ["Per cent, 2 scenes for each benchmark.", ""]
    del lines[:2]
    heads = "xsam protocol | generate protocol | random of the kind | largest thing | oracle"
    assert lines[0] == f"|  | figure | {heads} | goal |"
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + len(ROWS)


def test_cells():
    text = table(figures())
    assert row(text, "referring by size") == ["cIoU", "0.00", "10.00", "20.00", "30.00", "40.00", ""]
    # A random thing of the kind is always the one that reasoning asks for.
    assert row(text, "reasoning") == ["cIoU", "0.00", "10.00", "", "30.00", "40.00", "80"]
    # The data cannot give it, or no column has the benchmark.
    assert row(text, "interactive, box") == ["gIoU", "-", "-", "-", "-", "-", "70"]
    assert row(text, "referring by position") == ["cIoU", "", "", "", "", "", ""]
    # One failure in ten questions of each benchmark.
    assert row(text, "answers with the masks that they should have") == ["share", "", "90.00", "", "", "", "99"]


def test_chats_want_no_masks():
    measured = {
        "one": {"metric": "referring-iou", "num_questions": 30, "failures": 3},
        "two": {"metric": "mean-iou", "num_questions": 10, "failures": 1},
        "three": {"metric": "chat-accuracy", "num_questions": 60, "failures": 0},
    }
    assert well_formed(measured) == 0.9
    assert well_formed({"three": measured["three"]}) is None


def test_held_out_combinations_alone_are_averaged():
    by_label = {"purple circle": 0.5, "red ring": 1.0, "red circle": 0.0, "sky": 0.0}
    assert held_out_miou({"held-out": {"by_label": by_label}}) == 0.75
    assert math.isnan(held_out_miou({"held-out": {"by_label": {"purple circle": None}}}))
    assert held_out_miou({}) is None


def test_figures_stand_between_the_marks():
    assert insert(TEXT, "| new |") == f"# A model\n\n{START}\n| new |\n{END}\n\nMore.\n"
    assert insert(insert(TEXT, "| new |"), "old") == TEXT


@pytest.mark.parametrize(
    "text", ["", START, END, f"{END}\n{START}", f"{TEXT}{TEXT}", f"{START}{TEXT}", f"{TEXT}{END}"]
)
def test_a_card_without_its_marks_is_left_alone(text):
    with pytest.raises(ValueError, match="the model card needs a line <!-- figures -->"):
        insert(text, "| new |")
