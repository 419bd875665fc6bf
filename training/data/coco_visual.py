"""
COCO-VGD and COCO-Interactive: objects with visual prompts.

Two published forms, both a JSON list with an entry per image, both read by both readers:

- X-SAM's (`xsam/dataset/vgd_seg_dataset.py` and `inter_seg_dataset.py`; `xsam make-vgd` writes it too): `image_file`,
  `image_id`, `image_size` [height, width], and `annotations`, COCO's with `visual_prompts`: {"point_visual_prompt":
  RLE, "scribble_...", "box_...", "mask_visual_prompt"}. Prompts are as they are shown to the model.
- PSALM's (`datasets/bulid_COCO_Interactivate.py`): `image`, `image_info` (COCO's entry of the image), and `anns`,
  COCO's with `point_visual_prompt_mask`, `scribble_...`, `box_...`, `mask_visual_prompt_mask`. Points are single
  pixels and scribbles lines of one pixel, which are widened when they are shown, here and in X-SAM.

Prompts may be absent or empty, for objects of a few pixels. Images without a prompted object, crowds, and objects that
have neither prompts nor pixels are left out: nothing is asked about them.

The files have some gigabytes. Of each entry only its place in the file is kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from .json_list import Place, locate_values, read_value
from .reader import BrokenRecord, OnError, SampleReader, missing
from .samples import (
    RLE,
    AnnotatedSample,
    Region,
    RegionKind,
    Turn,
    decode_masks,
    encode_masks,
    rle_from_annotation,
)
from .visual_prompts import POINT_RADIUS, PROMPT_KEYS, SCRIBBLE_RADIUS, widen

PSALM_RADII: dict[RegionKind, float] = {"point": POINT_RADIUS, "scribble": SCRIBBLE_RADIUS}


@dataclass(frozen=True)
class Prompt:
    """
    Attributes:
        mask: compressed run-length encoding, or None: absent.
        radius: by how many pixels it is widened.
    """

    kind: RegionKind
    mask: RLE | None
    radius: float

    @property
    def is_empty(self) -> bool:
        """
        Raises:
            ValueError: if the mask is no compressed run-length encoding.
        """
        try:
            return self.mask is None or coco_mask.area(self.mask) == 0
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"visual prompt {str(self.mask)[:80]} is no compressed run-length encoding") from error


@dataclass(frozen=True)
class PromptedObject:
    annotation_id: int
    category_id: int
    segmentation: Any
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class PromptedImage:
    """Either form, read: size is (H, W); objects are no crowds; categories are those of all, crowds included."""

    file: str
    image_id: int
    size: tuple[int, int]
    objects: tuple[PromptedObject, ...]
    categories: frozenset[int]

    @property
    def has_prompt(self) -> bool:
        return any(not prompt.is_empty for each in self.objects for prompt in each.prompts)


@dataclass(frozen=True)
class VisibleObject:
    """An object with its mask, and its prompts as they are shown; of the image's size."""

    category_id: int
    mask: RLE
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class PublishedCategories:
    """Names of categories by id, and by image id the categories of its crowds."""

    names: dict[int, str]
    crowds: dict[int, frozenset[int]]


def prompted_image(entry: dict[str, Any]) -> PromptedImage:
    """
    An entry of either form.

    Raises:
        ValueError: if it has neither form.
    """
    try:
        return _from_psalm(entry) if "anns" in entry else _from_xsam(entry)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"entry has neither X-SAM's nor PSALM's form: {error!r}") from error


def _from_xsam(entry: dict[str, Any]) -> PromptedImage:
    height, width = entry["image_size"]
    objects = [
        _object(each, {kind: each["visual_prompts"].get(key) for kind, key in PROMPT_KEYS.items()}, {})
        for each in entry["annotations"]
        if not each.get("iscrowd", 0)
    ]
    categories = frozenset(each["category_id"] for each in entry["annotations"])
    return PromptedImage(entry["image_file"], entry["image_id"], (height, width), tuple(objects), categories)


def _from_psalm(entry: dict[str, Any]) -> PromptedImage:
    info = entry["image_info"]
    objects = [
        _object(each, {kind: each.get(f"{key}_mask") for kind, key in PROMPT_KEYS.items()}, PSALM_RADII)
        for each in entry["anns"]
        if not each.get("iscrowd", 0)
    ]
    categories = frozenset(each["category_id"] for each in entry["anns"])
    return PromptedImage(entry["image"], info["id"], (info["height"], info["width"]), tuple(objects), categories)


def _object(
    annotation: dict[str, Any], masks: dict[RegionKind, RLE | None], radii: dict[RegionKind, float]
) -> PromptedObject:
    prompts = tuple(Prompt(kind, mask, radii.get(kind, 0)) for kind, mask in masks.items())
    return PromptedObject(annotation["id"], annotation["category_id"], annotation["segmentation"], prompts)


def _visible_objects(image: PromptedImage) -> list[VisibleObject]:
    """
    The objects that have pixels, with the prompts that have.

    Raises:
        ValueError: if a prompt, or the mask of an object that has prompts, is broken.
    """
    visible = []
    for each in image.objects:
        prompts = [prompt for prompt in each.prompts if not prompt.is_empty]
        try:
            regions = tuple(_region(prompt, image.size) for prompt in prompts)
            mask = rle_from_annotation(each.segmentation, image.size)
        except ValueError as error:
            if not prompts:
                # COCO has polygons that are too thin to cover a pixel; nothing could be drawn for them either.
                continue
            raise ValueError(f"annotation {each.annotation_id}: {error}") from error
        visible.append(VisibleObject(each.category_id, mask, regions))
    return visible


def _region(prompt: Prompt, size: tuple[int, int]) -> Region:
    mask = rle_from_annotation(prompt.mask, size)
    if prompt.radius:
        mask = encode_masks(widen(decode_masks([mask], size)[0], prompt.radius)[None])[0]
    return Region(mask, prompt.kind)


class _VisualReader(SampleReader[Place]):
    """Images with prompted objects; a subclass makes questions of them."""

    def __init__(self, root: str | Path, annotations: str, images: str, on_error: OnError) -> None:
        self.annotations = annotations
        self.images = images
        super().__init__(root, on_error)

    @abstractmethod
    def turns(self, image: PromptedImage) -> tuple[Turn, ...]:
        """
        The questions about an image.

        Raises:
            ValueError: if an annotation of it is broken.
        """

    def check(self, image: PromptedImage) -> None:
        """
        Look for what makes an image unusable, as far as its file need not be read for it.

        Raises:
            ValueError: if it is unusable.
        """

    @property
    def file(self) -> Path:
        return self.root / self.annotations

    def records(self) -> Iterator[Place]:
        if not self.file.is_file():
            raise missing(self.file)
        for place, entry in locate_values(self.file):
            name = f"entry at byte {place.start}"
            try:
                image = prompted_image(entry)
                name = f"image {image.image_id}"
                self.check(image)
                is_usable = image.has_prompt
            except ValueError as error:
                self.broken(self.file, name, str(error))
                continue
            if is_usable:
                yield place

    def read(self, record: Place) -> AnnotatedSample:
        image = prompted_image(read_value(self.file, record))
        name = f"image {image.image_id}"
        picture = self.read_image(Path(self.images) / image.file, name, image.size)
        try:
            turns = self.turns(image)
        except ValueError as error:
            raise BrokenRecord(self.annotations, name, str(error)) from error
        return AnnotatedSample(picture, turns, f"{self.annotations}, {name}", image.image_id)


class CocoVgdReader(_VisualReader):
    """
    Visual-grounded segmentation: all objects of the categories of which some are shown.

    A sample is an image with one question. Its phrases are the categories of which an object has a prompt, by id; a
    phrase's regions are all prompts of all its objects, point, scribble, box and mask of the first object before those
    of the next; its masks are all its objects, also those without a prompt. The other categories of the image, which no
    prompt shows or of which there is only a crowd, are in `unasked`.

    X-SAM's entries hold no crowds. Theirs are taken from `instances`, and with `categories` they are not known.

    Args:
        root: folder that the other paths start from.
        annotations: `coco_vgdseg_*.json`.
        images: folder of the images.
        instances: COCO's instance annotations, for the names of the categories and the crowds.
        categories: a smaller JSON file for the names, in place of `instances`: the list that is COCO's `categories`.
        on_error: see `SampleReader`.

    Attributes:
        published: names and crowds.
    """

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "vgd_seg/annotations/coco_vgdseg_train.json",
        images: str = "coco2017/train2017",
        instances: str = "coco2017/annotations/instances_train2017.json",
        categories: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.instances = instances
        self.categories = categories
        super().__init__(root, annotations, images, on_error)

    def records(self) -> Iterator[Place]:
        self.published = self._read_published()
        return super().records()

    def check(self, image: PromptedImage) -> None:
        unknown = sorted(self._present(image) - self.published.names.keys())
        if unknown:
            raise ValueError(f"category {unknown[0]} has no name in {self.categories or self.instances}")

    def turns(self, image: PromptedImage) -> tuple[Turn, ...]:
        names, visible = self.published.names, _visible_objects(image)
        shown = sorted({each.category_id for each in visible if each.regions})
        targets = [each for each in visible if each.category_id in shown]
        turn = Turn(
            "visual-grounded",
            labels=tuple(names[category] for category in shown),
            unasked=tuple(names[category] for category in sorted(self._present(image).difference(shown))),
            regions=tuple(
                tuple(region for each in targets if each.category_id == category for region in each.regions)
                for category in shown
            ),
            masks=tuple(each.mask for each in targets),
            mask_phrases=tuple(shown.index(each.category_id) for each in targets),
        )
        return (turn,)

    def _read_published(self) -> PublishedCategories:
        """
        Raises:
            ValueError: if the file has no list of categories as COCO's.
        """
        file = self.categories or self.instances
        content = self.read_json(file)
        try:
            listed, annotations = (content, ()) if self.categories else _lists(content)
            return PublishedCategories({category["id"]: category["name"] for category in listed}, _crowds(annotations))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.root / file} does not name categories as COCO does: {error!r}") from error

    def _present(self, image: PromptedImage) -> frozenset[int]:
        """The categories that are in an image in any way."""
        return image.categories | self.published.crowds.get(image.image_id, frozenset())


def _lists(content: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Categories and annotations; a file may hold the former alone."""
    return content["categories"], content.get("annotations", [])


def _crowds(annotations: Iterable[dict[str, Any]]) -> dict[int, frozenset[int]]:
    crowds: defaultdict[int, set[int]] = defaultdict(set)
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            crowds[annotation["image_id"]].add(annotation["category_id"])
    return {image_id: frozenset(categories) for image_id, categories in crowds.items()}


class CocoInteractiveReader(_VisualReader):
    """
    Interactive segmentation: the object that is shown.

    A sample is an image with a question for each object that has a prompt; the regions of its phrase are the object's
    prompts, in the order point, scribble, box, mask.

    Args:
        root: folder that the other paths start from.
        annotations: PSALM's `coco_interactive_*_psalm.json` or X-SAM's `coco_interseg_*.json`.
        images: folder of the images.
        on_error: see `SampleReader`.
    """

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "interactive_seg/annotations/coco_interactive_train_psalm.json",
        images: str = "coco2017/train2017",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, annotations, images, on_error)

    def turns(self, image: PromptedImage) -> tuple[Turn, ...]:
        return tuple(
            Turn("interactive", regions=(each.regions,), masks=(each.mask,), mask_phrases=(0,))
            for each in _visible_objects(image)
            if each.regions
        )
