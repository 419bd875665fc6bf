"""What the families of figures have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..data.samples import Turn
from .answers import Answer

Measurement = TypeVar("Measurement")


@dataclass(frozen=True)
class Summary:
    """
    Attributes:
        figures: see `Metric.figures`.
        by_label: see `Metric.main_by_label`.
    """

    figures: dict[str, float]
    by_label: dict[str, float]


class Metric(ABC, Generic[Measurement]):
    """
    Figures of a benchmark, in two steps: what one answer contributes, and what all contributions make.

    A measurement is small, whatever the image: it may be pickled, and `dataclasses.asdict` of it is fit for JSON. Only
    measurements are kept in memory and sent between processes.
    """

    @abstractmethod
    def measure(self, turn: Turn, answer: Answer, image_size: tuple[int, int]) -> Measurement:
        """
        Args:
            turn: question and annotation.
            answer: what the model said.
            image_size: (H, W).
        """

    @abstractmethod
    def figures(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """
        The figures by name, from 0 to 1 unless the field gives them otherwise; NaN for one that the data cannot give.
        The first is the main one.

        Args:
            measurements: of all questions, in the order of the data set.
        """

    def main_by_label(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """The main figure of each category, where there are categories; NaN for one that the data cannot give."""
        return {}

    def summary(self, measurements: Sequence[Measurement]) -> Summary:
        """Both at once."""
        return Summary(self.figures(measurements), self.main_by_label(measurements))

    @abstractmethod
    def quality(self, measurement: Measurement) -> float:
        """How good a single answer is, 0 to 1, to find the worst and the best ones."""


class CategoryMetric(Metric[Measurement]):
    """
    Figures of data sets that ask the same list of categories about every image.

    Args:
        labels: categories, the `labels` of every turn.
        num_things: how many of them, from the first, are things.
    """

    def __init__(self, labels: Sequence[str], num_things: int) -> None:
        self.labels = tuple(labels)
        self.num_things = num_things

    def check(self, turn: Turn) -> None:
        """
        Raises:
            ValueError: if a turn asks for other categories.
        """
        if turn.labels != self.labels:
            raise ValueError(f"the turn's {len(turn.labels)} labels are not the {len(self.labels)} of the metric")


def for_json(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures with null for those that are NaN, which JSON does not have."""
    return {name: None if value != value else value for name, value in figures.items()}


def mean(values: Iterable[float]) -> float:
    """The mean, rounded once, whatever the order of the values; NaN if there are none."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan
