"""The worst and the best answers of a benchmark as pictures, annotation beside prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from textwrap import shorten
from typing import Any, Protocol

import numpy as np
from PIL import Image

from processing_xsam.enlarge_xsam import enlarge
from processing_xsam.visualization_xsam import contact_sheet, visualize

from ..data.samples import AnnotatedSample, Turn, decode_masks
from ..pictures import TITLE_LENGTH, annotated_segments, answered_segments
from .answers import Answer

# Instance segmentation answers with a segment for every query; of those with a low score pictures show none.
LEAST_SHOWN_SCORE = 0.3
# Of images that are drawn, and of the one that stands for a conversation without an image.
BLANK_SIZE = (400, 40)


class Ranked(Protocol):
    """What is needed of a record to choose it."""

    quality: float
    sample: int


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        name: of the sample.
        question: what was asked.
        quality: 0 to 1.
        failure: see `Answer`.
        picture: annotation and prediction, with their titles, as a JPEG file.
    """

    name: str
    question: str
    quality: float
    failure: str
    picture: bytes = field(repr=False)


def extremes(records: Sequence[Ranked], count: int) -> tuple[list[int], list[int]]:
    """
    Places of the `count` worst records, the worst first, and of as many of the best, the best first. Of fewer than two
    times `count` records each is one or the other.
    """
    order = sorted(range(len(records)), key=lambda place: records[place].quality)
    num_worst = min(count, (len(order) + 1) // 2)
    num_best = min(count, len(order) - num_worst)
    return order[:num_worst], order[::-1][:num_best]


def draw_case(turn: Turn, answer: Answer, sample: AnnotatedSample, quality: float) -> Case:
    """A question, its annotation and its answer."""
    image = sample.image or Image.new("RGB", BLANK_SIZE, "white")
    asked = describe(turn)
    title = shorten(asked, TITLE_LENGTH, placeholder=" ...")
    annotated, text = annotated_segments(turn, image)
    answered = answered_segments(turn, _certain(answer), image)
    has_mask = any(segment["mask"].getbbox() for segment in answered)
    annotated = [*_prompts(turn, image), *_ignored(turn, image), *annotated]
    pictures = [
        (f"{title}: annotation", visualize(*enlarge(image, annotated), text)),
        (f"answer{'' if has_mask else ', without a mask'}", visualize(*enlarge(image, answered), answer.text)),
    ]
    file = BytesIO()
    contact_sheet(pictures, columns=2).save(file, "JPEG", quality=90)
    return Case(sample.name, asked, quality, answer.failure, file.getvalue())


def describe(turn: Turn) -> str:
    """What a turn asks for, in a few words."""
    prompts = ", ".join(dict.fromkeys(of_phrase[0].kind for of_phrase in turn.regions))
    if turn.text:
        return f"{turn.text} ({prompts})" if prompts else turn.text
    if turn.regions:
        return f"{turn.task}, {prompts}: {', '.join(turn.labels)}" if turn.labels else f"{turn.task}, {prompts}"
    return f"{turn.task}, {len(turn.labels)} categories" if turn.labels else turn.task


def _certain(answer: Answer) -> Answer:
    """The answer without segments that are too uncertain to be shown; a single one always is."""
    shown = [each for each in answer.segments if each.score is None or each.score >= LEAST_SHOWN_SCORE]
    return replace(answer, segments=tuple(shown if len(answer.segments) > 1 else answer.segments))


def _ignored(turn: Turn, image: Image.Image) -> list[dict[str, Any]]:
    """Areas that are neither right nor wrong, as segments."""
    masks = decode_masks(turn.ignored, (image.height, image.width))
    return [{"label": "ignored", "score": None, "mask": Image.fromarray(mask).convert("L")} for mask in masks]


def _prompts(turn: Turn, image: Image.Image) -> list[dict[str, Any]]:
    """The visual prompts that were shown, as segments."""
    regions = [of_phrase[0] for of_phrase in turn.regions]
    masks: np.ndarray = decode_masks([region.mask for region in regions], (image.height, image.width))
    return [
        {"label": f"prompt ({region.kind})", "score": None, "mask": Image.fromarray(mask).convert("L")}
        for region, mask in zip(regions, masks, strict=True)
    ]
