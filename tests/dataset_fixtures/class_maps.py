"""CamVid of a few drawn images, as the SegNet tutorial lays it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dataset_fixtures.scenes import Scene, draw_scene

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
THINGS = ("car", "pedestrian", "bicyclist")
SKY, ROAD, TREE, CAR, PEDESTRIAN, UNLABELLED = 0, 3, 5, 8, 9, 11
KIND_VALUES = {"circle": CAR, "square": PEDESTRIAN, "triangle": TREE}
SEEDS = {"train": (6, 0, 1), "val": (12, 5, 20)}
UNLABELLED_WIDTH = 5


def write_class_maps(root: Path) -> dict[str, list[Scene]]:
    """`camvid/{train,trainannot,val,valannot}`. The left edge of the first image of each split is unlabelled."""
    return {split: _write_split(root / "camvid", split) for split in SEEDS}


def camvid_name(place: int) -> str:
    return f"0001TP_{6690 + 30 * place:06d}"


def class_map(place: int, scene: Scene) -> np.ndarray:
    """uint8 (H, W)."""
    values = np.full(scene.sky.shape, SKY, dtype=np.uint8)
    values[scene.ground] = ROAD
    for shape in scene.shapes:
        values[shape.mask] = KIND_VALUES[shape.kind]
    if place == 0:
        values[:, :UNLABELLED_WIDTH] = UNLABELLED
    return values


def _write_split(base: Path, split: str) -> list[Scene]:
    scenes = [draw_scene(seed) for seed in SEEDS[split]]
    for folder in (split, f"{split}annot"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for place, scene in enumerate(scenes):
        scene.image.save(base / split / f"{camvid_name(place)}.jpg", quality=95)
        Image.fromarray(class_map(place, scene)).save(base / f"{split}annot" / f"{camvid_name(place)}.png")
    return scenes
