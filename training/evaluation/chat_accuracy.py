"""Share of answers in words that are right: short answers, of which there is one way to say them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.samples import Turn
from .answers import Answer
from .metric import Metric, mean


@dataclass(frozen=True, slots=True)
class ChatMeasurement:
    """What was answered, what should have been, and whether they are the same words."""

    said: str
    expected: str
    is_right: bool


class ChatAccuracy(Metric[ChatMeasurement]):
    """Figure: accuracy. Case, punctuation and white space make no difference."""

    def measure(self, turn: Turn, answer: Answer, image_size: tuple[int, int]) -> ChatMeasurement:
        """
        Raises:
            ValueError: if the annotation has no answer.
        """
        if not turn.answer:
            raise ValueError(f"the annotation of {turn.text!r} has no answer to compare with")
        said = answer.text or ""
        return ChatMeasurement(said, turn.answer, _words(said) == _words(turn.answer))

    def figures(self, measurements: Sequence[ChatMeasurement]) -> dict[str, float]:
        return {"accuracy": mean(each.is_right for each in measurements)}

    def quality(self, measurement: ChatMeasurement) -> float:
        return float(measurement.is_right)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
