"""
Class maps: an image and a one-channel (or palette) PNG of the same name, whose pixel values are classes.

The form of CamVid, Cityscapes' `trainId` maps, Pascal VOC, ADE20K and most data that is annotated for semantic
segmentation. A class map has no instances: what belongs to a class in an image is one mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .reader import BrokenRecord, CategoryReader, OnError, missing
from .samples import AnnotatedSample, Turn, encode_masks

CATEGORY_TASKS = ("generic", "open-vocabulary")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAP_SUFFIXES = (".png",)


@dataclass(frozen=True, slots=True)
class ClassMapRecord:
    """A pair of files, from their folders, and the name they share: "aachen/000001"."""

    name: str
    image: str
    class_map: str


def check_task(task: str) -> str:
    """
    The task, if it asks for a list of categories.

    Raises:
        ValueError: if it does not.
    """
    if task not in CATEGORY_TASKS:
        raise ValueError(f"task is {task!r}; a list of categories can be asked for as {' or '.join(CATEGORY_TASKS)}.")
    return task


def open_map(path: Path) -> Image.Image:
    """
    A PNG as it is stored, palette indices and bit depth included.

    Raises:
        ValueError: if it is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


class ClassMapReader(CategoryReader[ClassMapRecord]):
    """
    A sample per pair of files with one question: all classes, things before stuff. Pixels with the ignored value are one
    mask in `ignored`.

    Args:
        root: folder that the other paths start from.
        images: folder of the images, .jpg, .jpeg or .png; may have subfolders.
        annotations: folder of the maps, with the same subfolders and names and the suffix .png.
        classes: names in the order of their values, or a text file with a name in each line.
        things: those of the classes that are things; the others are stuff.
        ignore_value: value of unlabelled pixels.
        offset: value of the first class.
        task: "generic" or "open-vocabulary".
        on_error: see `SampleReader`.

    Attributes:
        labels: names as they are asked for, things before stuff.

    Raises:
        ValueError: if the classes are empty or not distinct, a thing is none of them, or a class has the ignored value.
        FileNotFoundError: if a folder or the file of the classes does not exist.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        images: str,
        annotations: str,
        classes: Sequence[str] | str,
        things: Sequence[str] = (),
        ignore_value: int = 255,
        offset: int = 0,
        task: str = "generic",
        on_error: OnError = "raise",
    ) -> None:
        self.images, self.annotations, self.task = images, annotations, check_task(task)
        self.ignore_value, self.offset = ignore_value, offset
        self.classes = read_names(Path(root) / classes) if isinstance(classes, str) else tuple(classes)
        _check_classes(self.classes, things, ignore_value - offset)
        self.things = frozenset(things)
        super().__init__(root, on_error)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted(self.classes, key=lambda name: name not in self.things))

    @property
    def num_things(self) -> int:
        return len(self.things)

    def records(self) -> Iterable[ClassMapRecord]:
        images = self._files(self.images, IMAGE_SUFFIXES)
        maps = self._files(self.annotations, MAP_SUFFIXES)
        for name in sorted({*images, *maps}):
            if name not in maps:
                self.broken(self.annotations, f"image {name}", "there is no class map (.png) for it")
            elif name not in images:
                self.broken(
                    self.images, f"class map {name}", f"there is no image ({', '.join(IMAGE_SUFFIXES)}) for it"
                )
            elif len(images[name]) > 1:
                self.broken(self.images, f"image {name}", f"there are several: {', '.join(sorted(images[name]))}")
            else:
                yield ClassMapRecord(name, images[name][0], maps[name][0])

    def read(self, record: ClassMapRecord) -> AnnotatedSample:
        name = f"image {record.name}"
        image = self.read_image(Path(self.images) / record.image, name)
        try:
            values = self._values(record, image)
        except ValueError as error:
            raise BrokenRecord(self.annotations, name, str(error)) from error
        is_ignored = values == self.ignore_value
        present = np.unique(values[~is_ignored]).tolist()
        turn = Turn(
            self.task,
            labels=self.labels,
            num_things=self.num_things,
            masks=tuple(encode_masks(np.stack([values == value for value in present]))) if present else (),
            mask_phrases=tuple(self.labels.index(self.classes[value - self.offset]) for value in present),
            ignored=tuple(encode_masks(is_ignored[None])) if is_ignored.any() else (),
        )
        return AnnotatedSample(image, (turn,), f"{self.annotations}, {name}", record.name)

    def _files(self, folder: str, suffixes: Sequence[str]) -> dict[str, list[str]]:
        """Files of a folder and its subfolders, by their paths without suffix."""
        path = self.root / folder
        if not path.is_dir():
            raise missing(path)
        files: dict[str, list[str]] = {}
        for file in path.rglob("*"):
            if file.suffix.lower() in suffixes:
                relative = file.relative_to(path)
                files.setdefault(relative.with_suffix("").as_posix(), []).append(relative.as_posix())
        return files

    def _values(self, record: ClassMapRecord, image: Image.Image) -> np.ndarray:
        """
        The map, int64 (H, W).

        Raises:
            ValueError: if it cannot be read, does not fit the image, or holds a value that is no class.
        """
        class_map = open_map(self.root / self.annotations / record.class_map)
        values = np.asarray(class_map).astype(np.int64)
        if values.ndim != 2:
            raise ValueError(f"{record.class_map} has mode {class_map.mode}; a class map has one channel or a palette")
        if class_map.size != image.size:
            raise ValueError(f"{record.class_map} is {class_map.size} (width, height), its image {image.size}")
        last = self.offset + len(self.classes) - 1
        is_class = (values >= self.offset) & (values <= last)
        if not (is_class | (values == self.ignore_value)).all():
            value = values[~is_class & (values != self.ignore_value)][0]
            raise ValueError(
                f"{record.class_map} has the value {value}; classes are {self.offset} to {last}, {self.ignore_value} is"
                " ignored: set `classes`, `offset` or `ignore_value`"
            )
        return values


def read_names(file: Path) -> tuple[str, ...]:
    """
    The lines of a text file; empty ones at the end do not count.

    Raises:
        FileNotFoundError: if it does not exist.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; it is to hold the name of a class in each line")
    return tuple(line.strip() for line in file.read_text(encoding="utf-8").rstrip().splitlines())


def _check_classes(classes: Sequence[str], things: Sequence[str], ignored_class: int) -> None:
    """
    Raises:
        ValueError: see `ClassMapReader`.
    """
    if not classes or not all(name.strip() for name in classes):
        raise ValueError(f"classes: {list(classes)} is empty or has an empty name")
    if len(set(classes)) < len(classes):
        repeated = sorted({name for name in classes if classes.count(name) > 1})
        raise ValueError(f"classes: {repeated} stand there more than once; give each class a name of its own")
    if unknown := sorted(set(things) - set(classes)):
        raise ValueError(f"things: {unknown} are not among the classes {', '.join(classes)}")
    if 0 <= ignored_class < len(classes):
        raise ValueError(f"ignore_value is also the value of the class {classes[ignored_class]!r}")
