"""ADE20K of a few drawn images, as published and as Mask2Former's scripts prepare it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset_fixtures.coco import compressed, write_segment_ids
from dataset_fixtures.scenes import Scene, draw_scene

# The first 15 classes. Those of ADE20K's instances are things.
NAMES = (
    "wall",
    "building, edifice",
    "sky",
    "floor, flooring",
    "tree",
    "ceiling",
    "road, route",
    "bed ",
    "windowpane, window ",
    "grass",
    "cabinet",
    "sidewalk, pavement",
    "person, individual, someone, somebody, mortal, soul",
    "earth, ground",
    "door, double door",
)
THINGS = (7, 8, 10, 12, 14)
# Mask2Former calls some of them otherwise.
PREPARED_NAMES = {1: "building", 3: "floor", 8: "window ", 12: "person", 14: "door"}
BED, PERSON, DOOR, SKY, EARTH = 7, 12, 14, 2, 13
KIND_CLASSES = {"circle": PERSON, "square": DOOR, "triangle": BED}
SEEDS = (5, 20, 9)
# The first shape of the second image is not labelled, not even void: there is no segment and no instance of it.
UNLABELLED = (1, 0)


def write_ade20k(root: Path) -> list[Scene]:
    """
    `ade20k/ADEChallengeData2016` with `objectInfo150.txt`, `images/validation`, `annotations/validation`,
    `annotations_detectron2/validation`, `ade20k_panoptic_val`, `ade20k_panoptic_val.json` and
    `ade20k_instance_val.json`.
    """
    base = root / "ade20k/ADEChallengeData2016"
    maps = ("annotations/validation", "annotations_detectron2/validation")
    for folder in ("images/validation", *maps, "ade20k_panoptic_val"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    rows = [f"{place + 1}\t0.01\t100\t10\t{name}" for place, name in enumerate(NAMES)]
    (base / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    scenes = [draw_scene(seed) for seed in SEEDS]
    for place, scene in enumerate(scenes):
        scene.image.save(base / f"images/validation/{ade20k_id(place)}.jpg", quality=95)
        values = class_map(place, scene)
        Image.fromarray(values).save(base / f"annotations/validation/{ade20k_id(place)}.png")
        Image.fromarray(values - np.uint8(1)).save(base / f"annotations_detectron2/validation/{ade20k_id(place)}.png")
    _write_prepared(base, scenes)
    return scenes


def ade20k_id(place: int) -> str:
    return f"ADE_val_{place + 1:08d}"


def objects(place: int, scene: Scene) -> list[tuple[int, np.ndarray]]:
    """Classes, from 0 on, and masks of an image: stuff, then things."""
    shapes = [shape for index, shape in enumerate(scene.shapes) if (place, index) != UNLABELLED]
    things = [(KIND_CLASSES[shape.kind], shape.mask) for shape in shapes]
    return [(SKY, scene.sky), (EARTH, scene.ground), *things]


def class_map(place: int, scene: Scene) -> np.ndarray:
    """uint8 (H, W): 0 is unlabelled, 1 the first class."""
    values = np.zeros(scene.sky.shape, dtype=np.uint8)
    for index, mask in objects(place, scene):
        values[mask] = index + 1
    return values


def _write_prepared(base: Path, scenes: list[Scene]) -> None:
    categories = [
        {"id": place, "name": PREPARED_NAMES.get(place, name), "isthing": int(place in THINGS)}
        for place, name in enumerate(NAMES)
    ]
    images: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for place, scene in enumerate(scenes):
        name = ade20k_id(place)
        size = {"height": scene.image.height, "width": scene.image.width}
        images.append({"id": name, "file_name": f"{name}.jpg", **size})
        segments = {1000 + 300 * index: item for index, item in enumerate(objects(place, scene))}
        file = f"{name}.png"
        write_segment_ids(base / "ade20k_panoptic_val" / file, {key: mask for key, (_, mask) in segments.items()})
        infos = [{"id": key, "category_id": index, "iscrowd": 0} for key, (index, _) in segments.items()]
        panoptic.append({"image_id": name, "file_name": file, "segments_info": infos})
        instances += [
            {"image_id": name, "category_id": index, "iscrowd": 0, "segmentation": compressed(mask)}
            for index, mask in objects(place, scene)
            if index in THINGS
        ]
    instances = [{"id": place + 1, **annotation} for place, annotation in enumerate(instances)]
    things = [{"id": category["id"], "name": category["name"]} for category in categories if category["isthing"]]
    for file, written, listed in (("panoptic", panoptic, categories), ("instance", instances, things)):
        content = {"images": images, "annotations": written, "categories": listed}
        (base / f"ade20k_{file}_val.json").write_text(json.dumps(content))
