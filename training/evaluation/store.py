"""
Predictions on disk: one folder per benchmark, a line of JSON per sample, masks as COCO run-length encodings.

Each process appends to a file of its own and reads those of all, so that an interrupted run goes on where it stopped,
with any number of processes. Only places in files are kept in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.samples import AnnotatedSample
from .answers import Answer

INDEX = re.compile(rb'\{"index": (\d+),')


@dataclass(frozen=True)
class Place:
    file: Path
    offset: int


class PredictionStore:
    """
    Args:
        folder: of one benchmark; it is made if need be.
        process: number of this process, in the name of its file.
    """

    def __init__(self, folder: Path, process: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._own = folder / f"part-{process:05d}.jsonl"
        self._places: dict[int, Place] = {}
        for file in sorted(folder.glob("part-*.jsonl")):
            self._places |= _places(file)

    def __contains__(self, index: int) -> bool:
        return index in self._places

    def get(self, index: int, sample: AnnotatedSample) -> list[Answer]:
        """
        The answers to a sample's turns.

        Args:
            index: of the sample in its data set.
            sample: whose name, image and questions have to be those of the stored answers.

        Raises:
            KeyError: if none are stored.
            ValueError: if they are those of another sample, or malformed.
        """
        place = self._places[index]
        with place.file.open("rb") as file:
            file.seek(place.offset)
            try:
                record = json.loads(file.readline())
            except ValueError as error:
                raise ValueError(f"{place.file} is damaged at byte {place.offset}; delete it and run again") from error
        if (record["name"], record["asked"]) != (sample.name, _digest(sample)):
            raise ValueError(
                f"{place.file}: prediction {index} is of {record['name']!r}, but the data set has {sample.name!r} in its"
                " place, or its image or questions have changed; give another --output"
            )
        return [Answer.from_json(answer) for answer in record["answers"]]

    def add(self, index: int, sample: AnnotatedSample, answers: Sequence[Answer]) -> None:
        record = {"index": index, "name": sample.name, "asked": _digest(sample)}
        line = json.dumps({**record, "answers": [answer.to_json() for answer in answers]})
        with self._own.open("ab") as file:
            self._places[index] = Place(self._own, file.tell())
            file.write(line.encode("ascii") + b"\n")


def _digest(sample: AnnotatedSample) -> str:
    """Hexadecimal digits that change with the image and what is asked about it, but not with the annotation."""
    digest = hashlib.sha256()
    for turn in sample.turns:
        regions = [[region.mask["counts"].hex() for region in of_phrase] for of_phrase in turn.regions]
        digest.update(json.dumps([turn.task, turn.text, turn.labels, turn.num_things, regions]).encode())
    if sample.image is not None:
        digest.update(f"{sample.image.size}".encode() + sample.image.tobytes())
    return digest.hexdigest()[:16]


def _places(file: Path) -> dict[int, Place]:
    """Where each complete line starts; what an interruption left of a last one is cut off."""
    places = {}
    end = 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            found = INDEX.match(line)
            if found is None:
                raise ValueError(f"{file} is damaged at byte {end}; delete it and run again")
            places[int(found[1])] = Place(file, end)
            end += len(line)
    if end < file.stat().st_size:
        with file.open("r+b") as damaged:
            damaged.truncate(end)
    return places
