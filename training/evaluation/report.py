"""Results as a table, as JSON, as lines of single questions, and as a page with pictures."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment

from .results import BenchmarkResult

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ settings.model }}: evaluation</title>
<style>
body { font-family: sans-serif; margin: 2em; max-width: 1100px }
table { border-collapse: collapse; margin: 1em 0 }
td, th { border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: right }
td:first-child, th:first-child { text-align: left }
figure { margin: 1em 0 }
table { display: block; overflow-x: auto }
img { max-width: 100%; border: 1px solid #ddd }
figcaption { color: #444 }
.why { color: #a00 }
</style>
</head>
<body>
<h1>{{ settings.model }}</h1>
<table>
<tr><th></th><th></th><th>%</th><th>images</th><th>questions</th><th>failures</th></tr>
{% for result in results %}
{% for name, value in (result.figures.items() | list)[:1] %}
<tr><td><a href="#{{ result.name }}">{{ result.name }}</a></td><td>{{ name }}</td><td>{{ percent(value) }}</td>
<td>{{ result.num_samples }}</td><td>{{ result.num_questions }}</td><td>{{ result.failures | length }}</td></tr>
{% endfor %}
{% endfor %}
</table>
<p>{% for name, value in settings.items() if value is not none %}{{ name }}: {{ value }}{{ ", " if not loop.last }}{% endfor %}</p>
{% for result in results %}
<h2 id="{{ result.name }}">{{ result.name }}</h2>
<table>
<tr><th></th>{% for name in result.figures %}<th>{{ name }}</th>{% endfor %}</tr>
<tr><td>%</td>{% for value in result.figures.values() %}<td>{{ percent(value) }}</td>{% endfor %}</tr>
</table>
<p>{{ result.num_samples }} images, {{ result.num_questions }} questions, {{ result.failures | length }} failures</p>
{% for title, cases in (("Worst", result.worst), ("Best", result.best)) if cases %}
<h3>{{ title }}</h3>
{% for case in cases %}
<figure>
<img src="{{ files[result.name, title, loop.index0] }}" alt="{{ case.question }}">
<figcaption>{{ "%.3f" | format(case.quality) }} &middot; {{ case.name }} &middot; {{ case.question }}
{%- if case.failure %} <span class="why">{{ case.failure }}</span>{% endif %}</figcaption>
</figure>
{% endfor %}
{% endfor %}
{% endfor %}
</body>
</html>
"""


def table(results: Sequence[BenchmarkResult]) -> str:
    """Figures in per cent, a block for each family."""
    blocks = []
    for metric, group in groupby(sorted(results, key=lambda result: result.metric), key=lambda result: result.metric):
        members = list(group)
        names = list(dict.fromkeys(name for result in members for name in result.figures))
        rows = [[metric, *names, "images", "questions", "failures", "seconds"]]
        rows += [
            [
                result.name,
                *(percent(result.figures[name]) if name in result.figures else "" for name in names),
                str(result.num_samples),
                str(result.num_questions),
                str(len(result.failures)),
                f"{result.seconds:.1f}",
            ]
            for result in members
        ]
        blocks.append(_aligned(rows))
    return "\n\n".join([*blocks, *_notes(results)])


def percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.2f}"


def _notes(results: Sequence[BenchmarkResult]) -> list[str]:
    notes = []
    for result in results:
        counts = Counter(_kind(failure["why"]) for failure in result.failures)
        notes += [f"{result.name}: {number} without a mask: {why}" for why, number in counts.most_common(3)]
        if result.not_asked:
            notes.append(f"{result.name}: {result.not_asked} questions have no such visual prompt and were not asked")
        notes += [f"{result.name}: {number} records skipped: {why}" for why, number in result.skipped.items()]
    return ["\n".join(notes)] if notes else []


def _kind(why: str) -> str:
    """What failures of a kind have in common: each sentence once, without positions."""
    return ". ".join(dict.fromkeys(re.sub(r"\d+", "N", why).rstrip(".").split(". ")))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_samples(results: Sequence[BenchmarkResult], file: Path) -> None:
    """A line of JSON for each question: what was asked, how good the answer is, and what it contributes to the figures."""
    with file.open("w", encoding="utf-8") as lines:
        for result in results:
            for record in result.records:
                content = {"benchmark": result.name, **asdict(record)}
                lines.write(json.dumps(content, default=_plain) + "\n")


def write_page(results: Sequence[BenchmarkResult], settings: dict[str, Any], folder: Path) -> Path:
    """
    `index.html` with the worst and the best cases, and their pictures beside it.

    Returns:
        The page.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for stale in pictures.glob("*.jpg"):
        stale.unlink()
    files = {}
    for result in results:
        for title, cases in (("Worst", result.worst), ("Best", result.best)):
            for number, case in enumerate(cases):
                file = pictures / f"{result.name}-{title.lower()}-{number}.jpg"
                file.write_bytes(case.picture)
                files[result.name, title, number] = f"pictures/{file.name}"
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    page = folder / "index.html"
    page.write_text(
        template.render(results=results, settings=settings, files=files, percent=percent), encoding="utf-8"
    )
    return page


def _plain(value: Any) -> Any:
    """Arrays of a measurement as lists."""
    return value.tolist()
