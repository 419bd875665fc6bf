"""JSON lists of gigabytes: read value by value, each with its place in the file, so that only the places are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

# Characters read at once, and of a value that is longer than any can be: it never ends.
CHUNK = 1 << 24
LONGEST_VALUE = 1 << 28
_BLANK = re.compile(r"[ \t\r\n]*")
# What may stand behind a value.
_ENDS = frozenset(" \t\r\n,]")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value of a JSON list stands: its number in the list, and its first byte and length in bytes in the file."""

    index: int
    start: int
    length: int


def locate_values(file: Path) -> Iterator[tuple[Place, Any]]:
    """
    The values of a JSON list in UTF-8, one at a time and each with its place. Line ends may be of any kind.

    Raises:
        ValueError: if the file is not a JSON list; says at which byte.
    """
    try:
        # Latin-1 has a character per byte, so that positions in the text are those in the file.
        with file.open(encoding="latin-1", newline="") as stream:
            yield from _Scanner(stream).values()
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON list: {error}") from error


def read_value(file: Path, place: Place) -> Any:
    """
    The value that `locate_values` found there.

    Raises:
        ValueError: if there is none: the file has changed since.
    """
    with file.open("rb") as stream:
        stream.seek(place.start)
        return json.loads(stream.read(place.length))


class _Scanner:
    """A piece of a file that moves on through it: `text` begins at byte `start` of the file and is read up to `at`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.text, self.start, self.at = "", 0, 0

    @property
    def byte(self) -> int:
        return self.start + self.at

    def values(self) -> Iterator[tuple[Place, Any]]:
        self._take("[")
        index = 0
        ended = self._next() == "]"
        while not ended:
            if index:
                self._take(",")
            value, place = self._value(index)
            yield place, value
            index += 1
            ended = self._next() == "]"
        self._take("]")
        if self._next():
            raise ValueError(f"it goes on after the list, at byte {self.byte}")

    def _next(self) -> str:
        """The next character that is no blank, which stands at `at` then; empty at the end of the file."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()
            if self.at < len(self.text) or not self._read_on():
                return self.text[self.at : self.at + 1]

    def _take(self, mark: str) -> None:
        if self._next() != mark:
            raise ValueError(f"expected {mark!r} at byte {self.byte}, found {self.text[self.at : self.at + 20]!r}")
        self.at += 1

    def _value(self, index: int) -> tuple[Any, Place]:
        self._next()
        while True:
            may_go_on = len(self.text) - self.at <= LONGEST_VALUE
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if may_go_on and self._read_on():
                    continue
                raise ValueError(f"in or after byte {self.byte}: {error.msg}") from error
            # Of a number that is cut off, "-5." of "-5.2", the part that is whole is found.
            if self.text[end : end + 1] in _ENDS or not (may_go_on and self._read_on()):
                break
        source = self.text[self.at : end]
        place = Place(index, self.byte, len(source))
        self.at = end
        return value if source.isascii() else _as_utf8(source, place), place

    def _read_on(self) -> bool:
        """Read a chunk more and forget what is behind; False at the end of the file."""
        more = self.stream.read(CHUNK)
        if more:
            self.text, self.start, self.at = self.text[self.at :] + more, self.byte, 0
        return bool(more)


def _as_utf8(source: str, place: Place) -> Any:
    """A value whose bytes were taken for characters."""
    try:
        return json.loads(source.encode("latin-1").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {place.start + error.start} is no UTF-8") from error
