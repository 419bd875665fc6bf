"""COCO 2017 of a few drawn images: the panoptic and the instance annotations describe the same ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from dataset_fixtures.scenes import Scene, Shape, draw_scene

PERSON, BOTTLE, CUP, SKY, DIRT = 1, 44, 47, 187, 194
KIND_CATEGORIES = {"circle": PERSON, "square": BOTTLE, "triangle": CUP}
# As in COCO, in order of id and not contiguous; the last two stand for those that no image shows.
CATEGORIES = [
    {"supercategory": "person", "isthing": 1, "id": PERSON, "name": "person"},
    {"supercategory": "kitchen", "isthing": 1, "id": BOTTLE, "name": "bottle"},
    {"supercategory": "kitchen", "isthing": 1, "id": CUP, "name": "cup"},
    {"supercategory": "floor", "isthing": 0, "id": 118, "name": "floor-wood"},
    {"supercategory": "sky", "isthing": 0, "id": SKY, "name": "sky-other-merged"},
    {"supercategory": "ground", "isthing": 0, "id": DIRT, "name": "dirt-merged"},
    {"supercategory": "wall", "isthing": 0, "id": 199, "name": "wall-other-merged"},
]
LABELS = ("person", "bottle", "cup", "floor wood", "sky", "dirt", "wall")
# Image ids and the seeds of their scenes.
SEEDS = {"train": {9: 6, 25: 0, 30: 1, 34: 12}, "val": {139: 5, 285: 20, 632: 9}}
# Two squares of this image are one instance, of two polygons.
UNITED_IMAGE = 9
# The first object of these images is a crowd.
CROWD_IMAGES = (30, 285)
# The ground at the left edge of these images is void.
VOID_IMAGES = (34, 285)
VOID_WIDTH = 6


@dataclass(frozen=True)
class CocoObject:
    """A segment of an image; only things have shapes. The mask is bool (H, W)."""

    category_id: int
    mask: np.ndarray
    shapes: tuple[Shape, ...] = ()
    is_crowd: bool = False


@dataclass(frozen=True)
class CocoScene:
    """An image: things, then sky and dirt; void is bool (H, W), without a pixel in most images."""

    image_id: int
    scene: Scene
    objects: tuple[CocoObject, ...]
    void: np.ndarray

    @property
    def file_name(self) -> str:
        return f"{self.image_id:012d}.jpg"

    def segment_id(self, place: int) -> int:
        """Colours of three different channels, as COCO's."""
        return self.image_id % 251 * 65536 + (place + 2) * 256 + 17

    def annotation_id(self, place: int) -> int:
        return 1000 * self.image_id + place


def coco_scenes(split: str) -> tuple[CocoScene, ...]:
    """The images of "train" or "val"."""
    return tuple(_coco_scene(image_id, draw_scene(seed)) for image_id, seed in SEEDS[split].items())


def write_coco_panoptic(root: Path) -> dict[str, tuple[CocoScene, ...]]:
    """`coco2017/{train,val}2017`, `coco2017/annotations/panoptic_{train,val}2017.json` and `coco2017/panoptic_*`."""
    return {split: _write_panoptic(root / "coco2017", f"{split}2017", coco_scenes(split)) for split in SEEDS}


def write_coco_instances(root: Path) -> dict[str, tuple[CocoScene, ...]]:
    """
    `coco2017/{train,val}2017` and `coco2017/annotations/instances_{train,val}2017.json`. Squares are polygons, circles
    compressed and all others uncompressed run-length encodings.
    """
    return {split: _write_instances(root / "coco2017", f"{split}2017", coco_scenes(split)) for split in SEEDS}


def _coco_scene(image_id: int, scene: Scene) -> CocoScene:
    shapes = [(shape,) for shape in scene.shapes]
    if image_id == UNITED_IMAGE:
        shapes = [(*shapes[0], *shapes[1]), *shapes[2:]]
    things = [
        CocoObject(
            KIND_CATEGORIES[parts[0].kind],
            np.any([shape.mask for shape in parts], axis=0),
            parts,
            is_crowd=place == 0 and image_id in CROWD_IMAGES,
        )
        for place, parts in enumerate(shapes)
    ]
    void = np.zeros_like(scene.ground)
    if image_id in VOID_IMAGES:
        void[:, :VOID_WIDTH] = scene.ground[:, :VOID_WIDTH]
    stuff = [CocoObject(SKY, scene.sky), CocoObject(DIRT, scene.ground & ~void)]
    return CocoScene(image_id, scene, (*things, *stuff), void)


def _write_images(base: Path, split: str, scenes: tuple[CocoScene, ...]) -> list[dict[str, Any]]:
    (base / split).mkdir(parents=True, exist_ok=True)
    (base / "annotations").mkdir(exist_ok=True)
    for each in scenes:
        each.scene.image.save(base / split / each.file_name, quality=95)
    return [
        {"id": each.image_id, "file_name": each.file_name, "height": each.void.shape[0], "width": each.void.shape[1]}
        for each in scenes
    ]


def _write_panoptic(base: Path, split: str, scenes: tuple[CocoScene, ...]) -> tuple[CocoScene, ...]:
    images = _write_images(base, split, scenes)
    (base / f"panoptic_{split}").mkdir(exist_ok=True)
    annotations = []
    for each in scenes:
        file = f"{each.image_id:012d}.png"
        write_segment_ids(
            base / f"panoptic_{split}" / file,
            {each.segment_id(place): item.mask for place, item in enumerate(each.objects)},
        )
        infos = [{"id": each.segment_id(place), **_fields(item)} for place, item in enumerate(each.objects)]
        annotations.append({"image_id": each.image_id, "file_name": file, "segments_info": infos})
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": CATEGORIES}
    (base / f"annotations/panoptic_{split}.json").write_text(json.dumps(content))
    return scenes


def write_segment_ids(file: Path, masks: dict[int, np.ndarray]) -> None:
    """A PNG of segment ids; pixels of no mask are void."""
    ids = np.zeros(next(iter(masks.values())).shape, dtype=np.int64)
    for segment_id, mask in masks.items():
        ids[mask] = segment_id
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(file)


def _write_instances(base: Path, split: str, scenes: tuple[CocoScene, ...]) -> tuple[CocoScene, ...]:
    images = _write_images(base, split, scenes)
    annotations = [
        {
            "id": each.annotation_id(place),
            "image_id": each.image_id,
            "segmentation": _segmentation(item),
            **_fields(item),
        }
        for each in scenes
        for place, item in enumerate(each.objects)
        if item.shapes
    ]
    things = [
        {key: value for key, value in category.items() if key != "isthing"}
        for category in CATEGORIES
        if category["isthing"]
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": things}
    (base / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return scenes


def _fields(item: CocoObject) -> dict[str, Any]:
    rows, columns = np.nonzero(item.mask)
    left, top = int(columns.min()), int(rows.min())
    return {
        "category_id": item.category_id,
        "iscrowd": int(item.is_crowd),
        "area": int(item.mask.sum()),
        "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
    }


def _segmentation(item: CocoObject) -> Any:
    kind = item.shapes[0].kind
    if item.is_crowd or kind == "triangle":
        return uncompressed(item.mask)
    if kind == "circle":
        return compressed(item.mask)
    return [square_polygon(shape.box) for shape in item.shapes]


def square_polygon(box: tuple[int, int, int, int]) -> list[int]:
    """The outline of a square's pixels."""
    left, top, right, bottom = box
    return [left, top, right + 1, top, right + 1, bottom + 1, left, bottom + 1]


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """As JSON holds it: counts are text."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Lengths of runs, column by column, beginning with zeros."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [1 - int(mask[-1, -1])]])
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    return {"size": list(mask.shape), "counts": counts}
