"""What an evaluation gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .cases import Case
from .metric import for_json


@dataclass(frozen=True)
class QuestionRecord:
    """
    Attributes:
        sample: index of the sample in its data set.
        turn: index of the question among those asked about it.
        name: of the sample.
        question: its words, or its task.
        quality: 0 to 1, see `Metric.quality`.
        failure: see `Answer`.
        measurement: see `Metric`.
    """

    sample: int
    turn: int
    name: str
    question: str
    quality: float
    failure: str
    measurement: Any


@dataclass(frozen=True)
class BenchmarkResult:
    """
    Attributes:
        name: of the benchmark.
        metric: name of its metric.
        definition: see `Benchmark`.
        figures: the main one first.
        by_label: the main figure of each category, where there are categories.
        num_samples: samples that were asked.
        num_questions: questions that figures are made of.
        not_asked: how many questions the benchmark's kind of visual prompt cannot ask.
        skipped: records of the data set that are unusable, by reason; none are skipped unless that was asked for.
        seconds: for all of it, on the slowest process.
        records: of all questions, in the order of the data set.
        worst, best: some of them as pictures.
    """

    name: str
    metric: str
    definition: dict[str, Any] = field(repr=False)
    figures: dict[str, float]
    by_label: dict[str, float]
    num_samples: int
    num_questions: int
    not_asked: int
    skipped: dict[str, int]
    seconds: float
    records: Sequence[QuestionRecord] = field(repr=False)
    worst: Sequence[Case] = field(default=(), repr=False)
    best: Sequence[Case] = field(default=(), repr=False)

    @property
    def failures(self) -> list[dict[str, str]]:
        """Of every question that got no mask although one was asked for: the sample, the question and why."""
        return [
            {"sample": record.name, "question": record.question, "why": record.failure}
            for record in self.records
            if record.failure
        ]

    def to_json(self) -> dict[str, Any]:
        """All but single questions; figures that the data cannot give are null."""
        return {
            "metric": self.metric,
            "definition": self.definition,
            "figures": for_json(self.figures),
            "by_label": for_json(self.by_label),
            "num_samples": self.num_samples,
            "num_questions": self.num_questions,
            "not_asked": self.not_asked,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "failures": self.failures,
        }
