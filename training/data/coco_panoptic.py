"""
COCO panoptic segmentation: a JSON file, and a folder of PNGs whose pixels hold segment ids (R + 256 G + 65536 B).

The format is COCO's (cocodataset.org, panopticapi's `panopticapi/utils.py`): `categories` with `id`, `name`, `isthing`;
`images` with `id`, `file_name`; one annotation per image with `image_id`, `file_name` (the PNG) and `segments_info`, a
list of `id`, `category_id`, `iscrowd`. Mask2Former's `datasets/prepare_ade20k_pan_seg.py` writes it for ADE20K, with
text as image ids.

Here is also what this format has in common with COCO's instances: categories, images, and their checks.
"""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .class_maps import check_task, open_map
from .reader import BrokenRecord, CategoryReader, OnError, Record
from .samples import RLE, AnnotatedSample, Turn, encode_masks

ImageId = int | str
NAME_SUFFIXES = re.compile(r"-(?:merged|other|stuff)\b")


def readable_name(name: str) -> str:
    """
    A category's name as a prompt says it: "wall-other-merged" is "wall", "floor-wood" is "floor wood", "baseball_cap"
    is "baseball cap"; of synonyms, "door, double door", it is the first.

    Suffixes and hyphens as in X-SAM (`xsam/dataset/map_fns/dataset_map_fns/generic_seg_map_fn.py`).
    """
    first = re.split("[,;]", name, maxsplit=1)[0]
    return " ".join(re.split(r"[-_\s]+", NAME_SUFFIXES.sub("", first.strip().lower()))).strip()


def distinct_names(names: Sequence[str]) -> list[str]:
    """
    Readable names; where several would be the same or one empty, names stay as they are.

    Raises:
        ValueError: if names are empty or the same even so.
    """
    readable = [readable_name(name) for name in names]
    count = Counter(readable)
    chosen = [
        short if short and count[short] == 1 else name.strip() for short, name in zip(readable, names, strict=True)
    ]
    if "" in chosen or len(set(chosen)) < len(chosen):
        repeated = sorted(name for name, number in Counter(chosen).items() if number > 1 or not name)
        raise ValueError(f"category names {repeated} are empty or stand there more than once")
    return chosen


@dataclass(frozen=True)
class CategoryList:
    """
    Attributes:
        labels: readable names, each once; things, then stuff, each in order of id.
        ids: the category id of each label.
        num_things: how many of the labels are things.
    """

    labels: tuple[str, ...]
    ids: tuple[int, ...]
    num_things: int

    @cached_property
    def _places(self) -> dict[int, int]:
        return {category: place for place, category in enumerate(self.ids)}

    def phrase(self, annotation: Mapping[str, Any]) -> int:
        """
        The index of an annotation's label.

        Raises:
            ValueError: if its category is not listed.
            KeyError: if it names none.
        """
        if annotation["category_id"] not in self._places:
            raise ValueError(f"category {annotation['category_id']!r} is not among 'categories'")
        return self._places[annotation["category_id"]]


def list_categories(categories: Sequence[Mapping[str, Any]]) -> CategoryList:
    """
    Args:
        categories: COCO's `id`, `name` and, if there is any stuff, `isthing`.

    Raises:
        ValueError: if there is none, a field is missing, or an id or a name is not unique.
    """
    try:
        ordered = sorted(categories, key=lambda category: (not category.get("isthing", 1), category["id"]))
        ids = tuple(category["id"] for category in ordered)
        labels = distinct_names([category["name"] for category in ordered])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'categories' are malformed: {type(error).__name__} {error}") from error
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"'categories' are empty, or an id stands there more than once: {sorted(ids)}")
    return CategoryList(tuple(labels), ids, sum(bool(category.get("isthing", 1)) for category in ordered))


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image as the JSON lists it; size is (H, W), or None if it does not say."""

    id: ImageId
    file: str
    size: tuple[int, int] | None

    @classmethod
    def from_json(cls, image: Mapping[str, Any]) -> CocoImage:
        """LVIS has no `file_name`: there it is the end of `coco_url`, "val2017/000000397133.jpg"."""
        file = image["file_name"] if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])
        return cls(image["id"], file, (image["height"], image["width"]) if "height" in image else None)


@dataclass(frozen=True, slots=True)
class LabelledObject:
    """The index of an object's label, and whether it is a crowd."""

    phrase: int
    is_crowd: bool


@dataclass(frozen=True)
class CocoContent:
    """Images by id, and annotations as they stand in the file."""

    images: dict[ImageId, CocoImage]
    annotations: Sequence[Mapping[str, Any]]


@contextmanager
def uncollected() -> Iterator[None]:
    """
    Pause the cyclic garbage collector. It would go through the millions of lists of a large JSON file again and again and
    find nothing: half the time of reading COCO.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class CocoReader(CategoryReader[Record]):
    """
    What the readers of COCO's formats share. A sample is an image with one question: all categories.

    Attributes:
        categories: what is asked for.
    """

    categories: CategoryList

    def __init__(
        self, root: str | Path, annotations: str, images: str, task: str, keep_empty: bool, on_error: OnError
    ) -> None:
        self.annotations, self.images = annotations, images
        self.task, self.keep_empty = check_task(task), keep_empty
        with uncollected():
            super().__init__(root, on_error)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.categories.labels

    @property
    def num_things(self) -> int:
        return self.categories.num_things

    def load(self) -> CocoContent:
        """
        Raises:
            ValueError: if the file is not in COCO's format.
            BrokenRecord: at a broken image, if that is what these do.
        """
        content = self.read_json(self.annotations)
        try:
            listed, annotations, categories = (content[field] for field in ("images", "annotations", "categories"))
            self.categories = list_categories(categories)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{error}; it needs the lists 'images', 'annotations' and 'categories'"
            raise ValueError(f"{self.root / self.annotations} is not in COCO's format: {problem}") from error
        images: dict[ImageId, CocoImage] = {}
        for place, fields in enumerate(listed):
            try:
                image = CocoImage.from_json(fields)
            except (KeyError, TypeError, AttributeError) as error:
                self.broken(self.annotations, f"number {place} of 'images'", malformed(error))
                continue
            if image.id in images:
                self.broken(self.annotations, f"image {image.id}", "it is listed more than once")
            images.setdefault(image.id, image)
        return CocoContent(images, annotations)

    def has_file(self, image: CocoImage) -> bool:
        """Whether the image exists; if not, it is broken."""
        exists = (self.root / self.images / image.file).is_file()
        if not exists:
            self.broken(self.annotations, f"image {image.id}", f"{Path(self.images) / image.file} does not exist")
        return exists

    def is_wanted(self, objects: Iterable[LabelledObject]) -> bool:
        """Whether an image with these objects is kept; one that is not is counted."""
        wanted = self.keep_empty or not all(each.is_crowd for each in objects)
        if not wanted:
            self.skipped["no annotation but crowds"] += 1
        return wanted

    def sample(
        self,
        image: CocoImage,
        picture: Image.Image,
        objects: Sequence[LabelledObject],
        masks: Sequence[RLE],
        void: Sequence[RLE],
    ) -> AnnotatedSample:
        """A sample of an image and its objects, crowds among them, each with its mask."""
        pairs = list(zip(objects, masks, strict=True))
        turn = Turn(
            self.task,
            labels=self.labels,
            num_things=self.num_things,
            masks=tuple(mask for each, mask in pairs if not each.is_crowd),
            mask_phrases=tuple(each.phrase for each in objects if not each.is_crowd),
            ignored=(*(mask for each, mask in pairs if each.is_crowd), *void),
            ignored_phrases=(*(each.phrase for each in objects if each.is_crowd), *(None for _ in void)),
        )
        return AnnotatedSample(picture, (turn,), f"{self.annotations}, image {image.id}", image.id)


def malformed(error: Exception) -> str:
    """What is wrong with a record, from the error that reading its fields gave."""
    return f"malformed: {type(error).__name__} {error}"


@dataclass(frozen=True, slots=True)
class Segment(LabelledObject):
    """A segment with its id in the PNG."""

    id: int


@dataclass(frozen=True, slots=True)
class PanopticRecord:
    """An image, its PNG and what the PNG shows."""

    image: CocoImage
    file: str
    segments: tuple[Segment, ...]


class CocoPanopticReader(CocoReader[PanopticRecord]):
    """
    A sample per image with one question: all categories, things in order of id, then stuff. A segment is a mask; crowds
    are in `ignored`, and so are, as one mask, the pixels of no listed segment (void, id 0).

    Args:
        root: folder that the other paths start from.
        annotations: JSON file.
        segments: folder of the PNGs.
        images: folder of the images.
        task: "generic" or "open-vocabulary".
        keep_empty: keep images that have no segments, or only crowds. Else they are left out and counted in `skipped`,
            which is no error.
        on_error: see `SampleReader`. A segment without a pixel shows when the image is read: skipping leaves out that
            segment.

    Attributes:
        categories: what is asked for.
    """

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "coco2017/annotations/panoptic_train2017.json",
        segments: str = "coco2017/panoptic_train2017",
        images: str = "coco2017/train2017",
        task: str = "generic",
        keep_empty: bool = False,
        on_error: OnError = "raise",
    ) -> None:
        self.segments = segments
        # Segments without a pixel that were counted; an image is read many times.
        self._counted: set[tuple[ImageId, int]] = set()
        super().__init__(root, annotations, images, task, keep_empty, on_error)

    def records(self) -> Iterator[PanopticRecord]:
        content = self.load()
        # None: annotated, but not usable.
        annotated: dict[ImageId, PanopticRecord | None] = {}
        for place, annotation in enumerate(content.annotations):
            try:
                image_id = annotation["image_id"]
                if image_id in annotated:
                    raise ValueError("it is annotated more than once")
                annotated[image_id] = None
                record = self._record(annotation, content)
            except ValueError as error:
                self.broken(self.annotations, f"image {image_id}", str(error))
            except (KeyError, TypeError, AttributeError) as error:
                self.broken(self.annotations, f"number {place} of 'annotations'", malformed(error))
            else:
                annotated[image_id] = record
        for image in content.images.values():
            if image.id not in annotated:
                self.broken(self.annotations, f"image {image.id}", "it has no annotation")
                continue
            record = annotated[image.id]
            if record is not None and self.has_file(image) and self.is_wanted(record.segments):
                yield record

    def read(self, record: PanopticRecord) -> AnnotatedSample:
        name = f"image {record.image.id}"
        picture = self.read_image(Path(self.images) / record.image.file, name)
        try:
            ids = self._segment_ids(record.file, picture.size)
        except ValueError as error:
            raise BrokenRecord(self.annotations, name, str(error)) from error
        is_void = np.ones(ids.shape, dtype=bool)
        segments, masks = [], []
        for segment in record.segments:
            mask = ids == segment.id
            if not mask.any():
                self._without_pixel(record, segment)
                continue
            is_void &= ~mask
            segments.append(segment)
            masks.append(mask)
        if is_void.any():
            masks.append(is_void)
        encoded = encode_masks(np.stack(masks))
        return self.sample(record.image, picture, segments, encoded[: len(segments)], encoded[len(segments) :])

    def _record(self, annotation: Mapping[str, Any], content: CocoContent) -> PanopticRecord:
        """
        Raises:
            ValueError: if the annotation is not usable.
            KeyError, TypeError, AttributeError: if it is malformed.
        """
        if annotation["image_id"] not in content.images:
            raise ValueError("it is annotated, but not among 'images'")
        file = annotation["file_name"]
        segments = tuple(
            Segment(self.categories.phrase(info), bool(info.get("iscrowd", 0)), info["id"])
            for info in annotation["segments_info"]
        )
        if len({segment.id for segment in segments}) < len(segments):
            raise ValueError("a segment id stands there more than once")
        if not (self.root / self.segments / file).is_file():
            raise ValueError(f"{Path(self.segments) / file} does not exist")
        return PanopticRecord(content.images[annotation["image_id"]], file, segments)

    def _segment_ids(self, file: str, size: tuple[int, int]) -> np.ndarray:
        """
        The PNG as segment ids, uint32 (H, W).

        Raises:
            ValueError: if it cannot be read or has another (width, height) than `size`.
        """
        segments = open_map(self.root / self.segments / file)
        if segments.size != size:
            raise ValueError(f"{file} is {segments.size} (width, height), its image {size}")
        red, green, blue = np.asarray(segments.convert("RGB"), dtype=np.uint32).transpose(2, 0, 1)
        return red + 256 * green + 65536 * blue

    def _without_pixel(self, record: PanopticRecord, segment: Segment) -> None:
        """Say once that a segment is listed but not drawn."""
        key = (record.image.id, segment.id)
        if key not in self._counted:
            self.broken(
                self.annotations, f"image {record.image.id}, segment {segment.id}", "it has no pixel in the PNG"
            )
            self._counted.add(key)
