"""
COCO instance segmentation, and any data in its form: LVIS, ADE20K's instances, your own.

The format is COCO's (cocodataset.org, pycocotools' `pycocotools/coco.py`): `images` with `id`, `file_name` (subfolders are
fine), `height`, `width`; `categories` with `id` (any integers) and `name`; `annotations` with `id`, `image_id`,
`category_id`, `segmentation` (polygons, or run-length encoding, compressed or not) and `iscrowd`. All categories are things
unless `isthing` is 0. LVIS has `coco_url` in place of `file_name`: its `images` is the folder that holds train2017 and
val2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .coco_panoptic import CocoContent, CocoImage, CocoReader, ImageId, LabelledObject, malformed
from .reader import OnError
from .samples import AnnotatedSample, rle_from_annotation


@dataclass(frozen=True, slots=True)
class Instance(LabelledObject):
    """An instance with the counts of its run-length encoding, compressed."""

    counts: bytes


@dataclass(frozen=True, slots=True)
class InstancesRecord:
    """An image and what is annotated in it, in the order of the file."""

    image: CocoImage
    instances: tuple[Instance, ...]


class CocoInstancesReader(CocoReader[InstancesRecord]):
    """
    A sample per image with one question: all categories in order of id. An instance is a mask; crowds are in `ignored`.

    Masks are encoded when the records are listed: polygons take several times the memory.

    Args:
        root: folder that the other paths start from.
        annotations: JSON file.
        images: folder of the images.
        task: "generic" or "open-vocabulary".
        keep_empty: keep images without instances: there is nothing to segment. Else they are left out and counted in
            `skipped`, which is no error.
        on_error: see `SampleReader`. An annotation without a pixel is broken; COCO's own instances_train2017.json has two
            (image 200365 and 550395), so that it needs "skip".

    Attributes:
        categories: what is asked for.
    """

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "coco2017/annotations/instances_train2017.json",
        images: str = "coco2017/train2017",
        task: str = "generic",
        keep_empty: bool = False,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, annotations, images, task, keep_empty, on_error)

    def records(self) -> Iterator[InstancesRecord]:
        content = self.load()
        annotated: dict[ImageId, list[Instance]] = {}
        for place, annotation in enumerate(content.annotations):
            try:
                instance = self._instance(annotation, content)
            except ValueError as error:
                self.broken(self.annotations, f"annotation {annotation.get('id', f'number {place}')}", str(error))
            except (KeyError, TypeError, AttributeError) as error:
                self.broken(self.annotations, f"number {place} of 'annotations'", malformed(error))
            else:
                annotated.setdefault(annotation["image_id"], []).append(instance)
        for image in content.images.values():
            instances = tuple(annotated.get(image.id, ()))
            if self.has_file(image) and self.is_wanted(instances):
                yield InstancesRecord(image, instances)

    def read(self, record: InstancesRecord) -> AnnotatedSample:
        image = record.image
        picture = self.read_image(Path(self.images) / image.file, f"image {image.id}", image.size)
        size = [picture.height, picture.width]
        masks = [{"size": size, "counts": instance.counts} for instance in record.instances]
        return self.sample(image, picture, record.instances, masks, void=())

    def _instance(self, annotation: Mapping[str, Any], content: CocoContent) -> Instance:
        """
        Raises:
            ValueError: if the annotation is not usable.
            KeyError, TypeError, AttributeError: if it is malformed.
        """
        image = content.images.get(annotation["image_id"])
        if image is None:
            raise ValueError(f"image_id {annotation['image_id']!r} is not among 'images'")
        if image.size is None:
            raise ValueError(f"image {image.id} has no 'height' and 'width'")
        phrase, is_crowd = self.categories.phrase(annotation), bool(annotation.get("iscrowd", 0))
        return Instance(phrase, is_crowd, rle_from_annotation(annotation["segmentation"], image.size)["counts"])
