"""
Questions that need reasoning, with what answers them: ReasonSeg.

A folder holds pairs NAME.jpg and NAME.json. The JSON file has `text` (questions that ask for the same, rephrased),
`is_sentence` (whether they are whole sentences or short phrases) and `shapes`, polygons `points` with a `label`. Labels
that contain "ignore" mark areas that are not evaluated, "flag" marks nothing, every other label a target.
`explanatory/train.json` lists `image`, `query` and `outputs`, an explanation in words. Format and drawing rule:
dvlab-research/LISA (utils/data_processing.py, utils/reason_seg_dataset.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .reader import BrokenRecord, OnError, SampleReader, missing
from .samples import AnnotatedSample, Turn, encode_masks

# Most files are UTF-8, some with a byte order mark; a few are in the Windows encoding.
ENCODINGS = ("utf-8-sig", "cp1252")
# Values of a drawn map.
NOTHING, TARGET, IGNORED = 0, 1, 2


@dataclass(frozen=True)
class Polygon:
    """Corners (x, y) in whole pixels, and the value that it is drawn with."""

    points: tuple[tuple[int, int], ...]
    value: int


@dataclass(frozen=True)
class Question:
    text: str
    explanation: str | None = None


@dataclass(frozen=True)
class ReasoningRecord:
    image: Path  # from the root
    questions: tuple[Question, ...]
    polygons: tuple[Polygon, ...] = field(repr=False)


class ReasonSegReader(SampleReader[ReasoningRecord]):
    """
    One sample per image with a "reasoning" turn per question. All turns have the same mask, the union of the targets.

    An explanation becomes the answer of the turn that asks its query. Where no question of the image has these words,
    the query is a turn of its own.

    Args:
        folder: images and their annotations.
        explanations: JSON file of explanations, or None. Those of images in other folders are not used.
        sentences: keep only questions that are whole sentences (True) or short phrases (False); None keeps both.
    """

    def __init__(
        self,
        root: str | Path = ".",
        folder: str = "reason_seg/ReasonSeg/train",
        explanations: str | None = "reason_seg/ReasonSeg/explanatory/train.json",
        sentences: bool | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.folder, self.explanations, self.sentences = folder, explanations, sentences
        super().__init__(root, on_error)

    def records(self) -> Iterable[ReasoningRecord]:
        folder = self.root / self.folder
        if not folder.is_dir():
            raise missing(folder)
        explanations = self._read_explanations()
        for path in sorted(folder.glob("*.json")):
            image = path.with_suffix(".jpg")
            try:
                if not image.is_file():
                    raise ValueError(f"its image {image.name} does not exist")
                annotation = _checked(self.read_json(Path(self.folder) / path.name, ENCODINGS))
                if self.sentences is not None and annotation["is_sentence"] != self.sentences:
                    continue
                questions = _questions(annotation["text"], explanations.get(image.name, {}))
                record = ReasoningRecord(Path(self.folder) / image.name, questions, _polygons(annotation["shapes"]))
            except ValueError as error:
                self.broken(path, f"image {path.stem}", str(error))
            else:
                yield record
        for image in sorted(folder.glob("*.jpg")):
            if not image.with_suffix(".json").is_file():
                self.broken(image, f"image {image.stem}", f"its annotation {image.stem}.json does not exist")

    def read(self, record: ReasoningRecord) -> AnnotatedSample:
        name = f"image {record.image.stem}"
        image = self.read_image(record.image, name)
        drawn = draw_polygons(record.polygons, (image.height, image.width))
        if not (drawn == TARGET).any():
            raise BrokenRecord(str(record.image), name, "the targets have no pixel that is not ignored")
        target, ignored = encode_masks(np.stack([drawn == TARGET, drawn == IGNORED]))
        turns = tuple(
            Turn(
                "reasoning",
                text=question.text,
                answer=question.explanation,
                masks=(target,),
                mask_phrases=(0,),
                ignored=(ignored,) if (drawn == IGNORED).any() else (),
            )
            for question in record.questions
        )
        return AnnotatedSample(image, turns, f"{record.image}, {name}", record.image.stem)

    def _read_explanations(self) -> dict[str, dict[str, str]]:
        """Of each image file the explanations by query."""
        explanations: dict[str, dict[str, str]] = {}
        if self.explanations is None:
            return explanations
        for place, item in enumerate(self.read_json(self.explanations, ENCODINGS)):
            if not all(isinstance(item.get(key), str) and item[key].strip() for key in ("image", "query", "outputs")):
                self.broken(self.explanations, f"record {place}", "'image', 'query' and 'outputs' must be texts")
                continue
            explanations.setdefault(item["image"], {})[item["query"].strip()] = item["outputs"].strip()
        return explanations


def draw_polygons(polygons: Sequence[Polygon], image_size: tuple[int, int]) -> np.ndarray:
    """
    Draw polygons with their values, larger ones first, so that later ones cover them. Outlines belong to a polygon; of
    equally large ones the first of the list is drawn last.

    Args:
        image_size: (H, W).

    Returns:
        uint8 (H, W).
    """
    height, width = image_size
    areas = [int(_draw(Image.new("L", (width, height)), polygon, 1).sum()) for polygon in polygons]
    canvas = Image.new("L", (width, height), NOTHING)
    drawn = np.array(canvas)
    for index in reversed(sorted(range(len(polygons)), key=areas.__getitem__)):
        drawn = _draw(canvas, polygons[index], polygons[index].value)
    return drawn


def _draw(canvas: Image.Image, polygon: Polygon, value: int) -> np.ndarray:
    pen = ImageDraw.Draw(canvas)
    if len(polygon.points) == 1:
        pen.point(polygon.points, fill=value)
    else:
        pen.polygon(polygon.points, fill=value, outline=value)
    return np.array(canvas)


def _checked(annotation: Any) -> dict[str, Any]:
    """
    An annotation whose fields are there.

    Raises:
        ValueError: if one is not.
    """
    if not isinstance(annotation, dict):
        raise ValueError("the annotation is no JSON object")
    for name, kind in (("text", list), ("is_sentence", bool), ("shapes", list)):
        if not isinstance(annotation.get(name), kind):
            raise ValueError(f"field {name!r} is {annotation.get(name)!r}, expected a {kind.__name__}")
    return annotation


def _questions(texts: Sequence[Any], explanations: Mapping[str, str]) -> tuple[Question, ...]:
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"field 'text' is {texts!r}, expected texts")
    by_words = {_words(query): outputs for query, outputs in explanations.items()}
    questions: dict[str, Question] = {}
    for text in texts:
        questions.setdefault(_words(text), Question(text.strip(), by_words.get(_words(text))))
    own = [Question(query, outputs) for query, outputs in explanations.items() if _words(query) not in questions]
    return (*questions.values(), *own)


def _words(text: str) -> str:
    """A text as it is compared: without case and spacing."""
    return " ".join(text.lower().split())


def _polygons(shapes: Sequence[Mapping[str, Any]]) -> tuple[Polygon, ...]:
    polygons = []
    for place, shape in enumerate(shapes):
        label = str(shape.get("label", "")).lower()
        if label == "flag":
            continue
        try:
            # Towards zero, as the original's conversion to int32.
            points = tuple((int(x), int(y)) for x, y in shape["points"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"shape {place} has no points [[x, y], ...]") from error
        if not label or not points:
            raise ValueError(f"shape {place} has no label or no points")
        polygons.append(Polygon(points, IGNORED if "ignore" in label else TARGET))
    if not any(polygon.value == TARGET for polygon in polygons):
        raise ValueError("no shape is a target")
    return tuple(polygons)
