"""COCO-VGD and COCO-Interactive in the published forms of X-SAM and PSALM, for a handful of drawn scenes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from xsam_training.data.visual_prompts import PROMPT_KEYS, draw_visual_prompts, prompt_rng

from .scenes import Scene, Shape, draw_scene

CATEGORIES = {"circle": 1, "square": 3, "triangle": 17}
KINDS = ("point", "scribble", "box", "mask")
FIRST_ID = {"train": 700001, "val": 700101}
# The second and third training scenes have two objects of a category; the last is a crowd and nothing else.
SEEDS = {"train": (1, 8, 6, 4), "val": (5,)}
CROWD_SCENE = 3


@dataclass(frozen=True)
class VisualData:
    """The scenes of a split; scene i is image `first_id + i`, its shape j annotation `100 * (first_id + i) + j`."""

    first_id: int
    scenes: tuple[Scene, ...]

    def image_id(self, scene: int) -> int:
        return self.first_id + scene

    def annotation_id(self, scene: int, shape: int) -> int:
        return 100 * self.image_id(scene) + shape


def write_visual(root: Path) -> dict[str, VisualData]:
    """
    Write images to `coco2017/{train,val}2017`, and `vgd_seg/annotations/{instances_vgd_*2017,coco_vgdseg_*}.json` and
    `interactive_seg/annotations/{coco_interactive_*_psalm,coco_interseg_*}.json`.

    Every image has a crowd. The last object of the first training scene is too small for prompts: they are empty.
    """
    return {split: _write_split(root, split) for split in SEEDS}


def _write_split(root: Path, split: str) -> VisualData:
    data = VisualData(FIRST_ID[split], tuple(draw_scene(seed) for seed in SEEDS[split]))
    instances, vgd, psalm, interseg = [], [], [], []
    images = root / "coco2017" / f"{split}2017"
    images.mkdir(parents=True, exist_ok=True)
    infos = []
    for index, scene in enumerate(data.scenes):
        info = _image_info(data, index)
        scene.image.save(images / info["file_name"], quality=95)
        annotations = [_annotation(data, index, place) for place in range(len(scene.shapes))]
        if index == CROWD_SCENE:
            annotations = []
        crowd = _crowd(data, index)
        infos.append(info)
        instances += [*annotations, crowd]
        vgd.append(_xsam_entry(info, [_with_xsam_prompts(data, each) for each in annotations]))
        psalm.append(_psalm_entry(info, index, [_with_psalm_prompts(data, each) for each in (*annotations, crowd)]))
        if annotations:
            interseg.append(_xsam_entry(info, [_with_xsam_prompts(data, each) for each in annotations]))
    categories = [{"supercategory": "shape", "id": number, "name": name} for name, number in CATEGORIES.items()]
    _dump(
        root / "vgd_seg/annotations" / f"instances_vgd_{split}2017.json",
        {"info": {}, "licenses": [], "images": infos, "annotations": instances, "categories": categories},
    )
    _dump(root / "vgd_seg/annotations" / f"coco_vgdseg_{split}.json", vgd)
    _dump(root / "interactive_seg/annotations" / f"coco_interactive_{split}_psalm.json", psalm, indent=2)
    _dump(root / "interactive_seg/annotations" / f"coco_interseg_{split}.json", interseg)
    return data


def _dump(file: Path, content: Any, indent: int | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=indent), encoding="utf-8")


def _image_info(data: VisualData, index: int) -> dict[str, Any]:
    image_id = data.image_id(index)
    height, width = data.scenes[index].sky.shape
    return {
        "license": 3,
        "file_name": f"{image_id:012d}.jpg",
        "coco_url": "",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": "",
        "id": image_id,
    }


def _annotation(data: VisualData, index: int, place: int) -> dict[str, Any]:
    """As in COCO: polygons."""
    shape = data.scenes[index].shapes[place]
    return {
        "segmentation": [_outline(shape)],
        "area": float(shape.mask.sum()),
        "iscrowd": 0,
        "image_id": data.image_id(index),
        "bbox": [float(side) for side in coco_mask.toBbox(_rle(shape.mask))],
        "category_id": CATEGORIES[shape.kind],
        "id": data.annotation_id(index, place),
    }


def _crowd(data: VisualData, index: int) -> dict[str, Any]:
    """As in COCO: uncompressed run-length encoding, and an id like no other."""
    ground = data.scenes[index].ground
    pixels = np.concatenate([[0], ground.T.reshape(-1), [0]])
    changes = np.flatnonzero(np.diff(pixels))
    counts = np.diff(np.concatenate([[0], changes, [ground.size]]))
    return {
        "segmentation": {"counts": [int(count) for count in counts], "size": list(ground.shape)},
        "area": float(ground.sum()),
        "iscrowd": 1,
        "image_id": data.image_id(index),
        "bbox": [0.0, 0.0, float(ground.shape[1]), float(ground.shape[0])],
        "category_id": CATEGORIES["circle"],
        "id": 900100000000 + data.image_id(index),
    }


def _outline(shape: Shape) -> list[float]:
    left, top, right, bottom = shape.box
    if shape.kind == "square":
        return [float(side) for side in (left, top, right, top, right, bottom, left, bottom)]
    if shape.kind == "triangle":
        return [float(side) for side in (left, bottom, right, bottom, (left + right) / 2, top)]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    centre, radius = np.array([left + right, top + bottom]) / 2, (right - left) / 2
    return [round(float(side), 2) for side in (centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)).flat]


def _xsam_entry(info: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "image_file": info["file_name"],
        "image_id": info["id"],
        "image_size": [info["height"], info["width"]],
        "annotations": annotations,
        "image_info": {
            "file_name": info["file_name"],
            "image_id": info["id"],
            "height": info["height"],
            "width": info["width"],
        },
    }


def _with_xsam_prompts(data: VisualData, annotation: dict[str, Any]) -> dict[str, Any]:
    prompts = draw_visual_prompts(_mask(data, annotation), prompt_rng(0, annotation["id"])).by_kind()
    if _is_too_small(data, annotation):
        prompts = {kind: np.zeros_like(prompt) for kind, prompt in prompts.items()}
    return {
        **annotation,
        "bbox_mode": 1,
        "visual_prompts": {PROMPT_KEYS[kind]: _rle(prompt) for kind, prompt in prompts.items()},
    }


def _psalm_entry(info: dict[str, Any], new_id: int, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"image": info["file_name"], "image_info": info, "new_img_id": new_id, "anns": annotations}


def _with_psalm_prompts(data: VisualData, annotation: dict[str, Any]) -> dict[str, Any]:
    """A point of one pixel, a scribble of one line of pixels, a box and the mask."""
    mask = _mask(data, annotation)
    prompts = {kind: np.zeros_like(mask) for kind in KINDS}
    if not _is_too_small(data, annotation):
        rows, columns = np.nonzero(mask)
        middle = len(rows) // 2
        prompts["point"][rows[middle], columns[middle]] = True
        prompts["scribble"][rows[middle], columns.min() : columns.max() + 1] = True
        prompts["box"][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        prompts["mask"] |= mask
    return {**annotation, **{f"{PROMPT_KEYS[kind]}_mask": _rle(prompt) for kind, prompt in prompts.items()}}


def _mask(data: VisualData, annotation: dict[str, Any]) -> np.ndarray:
    """What pycocotools makes of the segmentation, bool (H, W)."""
    height, width = data.scenes[0].sky.shape
    rles = coco_mask.frPyObjects(annotation["segmentation"], height, width)
    return coco_mask.decode(coco_mask.merge(rles) if not annotation["iscrowd"] else rles).astype(bool)


def _is_too_small(data: VisualData, annotation: dict[str, Any]) -> bool:
    return annotation["id"] == FIRST_ID["train"] * 100 + len(data.scenes[0].shapes) - 1


def _rle(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
