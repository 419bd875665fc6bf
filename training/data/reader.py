"""What all readers share: how records are listed, what happens to a broken one, and how files are named."""

from __future__ import annotations

import json
import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from PIL import Image
from torch.utils.data import Dataset

from processing_xsam.image_processing_xsam import load_image

from .samples import AnnotatedSample

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
Record = TypeVar("Record")
# Skipped records that are named one by one; beyond that they are only counted.
NAMED_PROBLEMS = 5


class BrokenRecord(ValueError):
    """A record that cannot be used: says the file, the record and what is wrong with it."""

    def __init__(self, file: Path | str, record: Any, problem: str) -> None:
        super().__init__(file, record, problem)
        self.problem = problem

    def __str__(self) -> str:
        return "{}, {}: {}".format(*self.args)


class SampleReader(Dataset, ABC, Generic[Record]):
    """
    Samples of one data set. A subclass lists its records in `records` and turns one of them into a sample in `read`.

    Records are small: what is needed to find the rest. Problems that can be seen without reading images are found when
    the records are listed, so that the number of samples is known from the start.

    Args:
        root: folder that relative paths start from.
        on_error: what a broken record does: "raise" stops with a `BrokenRecord`, "skip" leaves it out, counts it in
            `skipped` by kind of problem, and names the first few in the log.
    """

    def __init__(self, root: str | Path = ".", on_error: OnError = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; possible are 'raise' and 'skip'.")
        self.root = Path(root)
        self.on_error = on_error
        self.skipped: Counter[str] = Counter()
        self._records = list(self.records())
        if not self._records:
            raise ValueError(f"{type(self).__name__} found no usable record; skipped: {dict(self.skipped)}")

    @abstractmethod
    def records(self) -> Iterable[Record]:
        """List the usable records, in the order of the file; broken ones go to `broken`."""

    @abstractmethod
    def read(self, record: Record) -> AnnotatedSample:
        """
        Read a record's image and annotations.

        Raises:
            BrokenRecord: if that shows that the record is unusable after all.
        """

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> AnnotatedSample:
        return self.read(self._records[index])

    def broken(self, file: Path | str, record: Any, problem: str) -> None:
        """Stop at a broken record or leave it out, as `on_error` says."""
        error = BrokenRecord(self.relative(file), record, problem)
        if self.on_error == "raise":
            raise error
        self.skipped[_kind(problem)] += 1
        if self.skipped.total() <= NAMED_PROBLEMS:
            logger.warning("skipped: %s", error)

    def relative(self, file: Path | str) -> str:
        """A file as messages name it: from `root`, if it lies there."""
        path = Path(file)
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def read_json(self, file: str | Path, encodings: Sequence[str] = ("utf-8",)) -> Any:
        """
        The content of a JSON file.

        Args:
            file: from `root`.
            encodings: those that it may have; the first that fits its bytes is taken.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no JSON.
        """
        path = self.root / file
        if not path.is_file():
            raise missing(path)
        try:
            return json.loads(_decode(path.read_bytes(), encodings))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error

    def read_image(self, file: str | Path, record: Any, size: tuple[int, int] | None = None) -> Image.Image:
        """
        An image as upright RGB.

        Args:
            file: from `root`.
            record: whose image it is, for messages.
            size: (height, width) that the annotation says, or None if it does not.

        Raises:
            BrokenRecord: if it is missing or damaged, or has another size.
        """
        path = self.root / file
        try:
            image = load_image(path)
        except (FileNotFoundError, ValueError) as error:
            raise BrokenRecord(self.relative(path), record, str(error)) from error
        found = (image.height, image.width)
        if size not in (None, found):
            problem = f"the image has (height, width) {found}, but is annotated as {size}"
            raise BrokenRecord(self.relative(path), record, problem)
        return image


class CategoryReader(SampleReader[Record]):
    """Samples with one question each, which is the same for all: a list of categories."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """What is asked for: the `labels` of every turn, known without reading an image."""

    @property
    @abstractmethod
    def num_things(self) -> int:
        """How many of the labels, from the first, are things."""


def missing(path: Path) -> FileNotFoundError:
    """The error for a file or folder of a data set that is not there."""
    return FileNotFoundError(f"{path} does not exist; see training/README.md for where the data comes from")


def _decode(content: bytes, encodings: Sequence[str]) -> str:
    """
    Raises:
        UnicodeDecodeError: if the content has none of the encodings.
    """
    *preferred, last = encodings
    for encoding in preferred:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return content.decode(last)


def _kind(problem: str) -> str:
    """What problems of the same kind have in common: their text without files and numbers."""
    return re.sub(r"\S*/\S*|\S*\w\.\w+|\d+", "...", problem)
