"""What a model answers to one question, in a form that is stored and scored again without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.samples import RLE


@dataclass(frozen=True)
class AnsweredSegment:
    """
    Attributes:
        phrase: index of the phrase that the segment belongs to: of the turn, or in grounded conversation of `spans`.
        mask: of the image's size; may be without a pixel.
        score: 0 to 1; None where the task has none (semantic).
    """

    phrase: int
    mask: RLE
    score: float | None = None


@dataclass(frozen=True)
class Answer:
    """
    The answer to one turn.

    Attributes:
        segments: by falling score in instance segmentation; without overlap in panoptic and semantic segmentation; at
            most one in referring, reasoning and interactive segmentation; one per phrase in grounded conversation.
        text: the answer without markers, for tasks that answer in words.
        spans: in grounded conversation the [start, end) characters of each phrase in `text`.
        failure: why there is no mask although one was asked for, "" if there is nothing to say.
    """

    segments: tuple[AnsweredSegment, ...] = ()
    text: str | None = None
    spans: tuple[tuple[int, int], ...] = ()
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "segments": [
                {
                    "phrase": segment.phrase,
                    "score": segment.score,
                    "rle": {"size": list(segment.mask["size"]), "counts": segment.mask["counts"].decode("ascii")},
                }
                for segment in self.segments
            ],
            "text": self.text,
            "spans": [list(span) for span in self.spans],
            "failure": self.failure,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Answer:
        """
        Raises:
            ValueError: if it is not what `to_json` makes.
        """
        try:
            segments = tuple(
                AnsweredSegment(
                    each["phrase"],
                    {"size": list(each["rle"]["size"]), "counts": each["rle"]["counts"].encode("ascii")},
                    each["score"],
                )
                for each in content["segments"]
            )
            spans = tuple((start, end) for start, end in content["spans"])
            return cls(segments, content["text"], spans, content["failure"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"a stored answer is malformed ({type(error).__name__}: {error})") from error
