"""RefCOCO and gRefCOCO of a few drawn images."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from dataset_fixtures.scenes import Scene, draw_scene

IMAGE_IDS = (581857, 98304, 131074, 524291)


def write_refcoco(root: Path) -> list[Scene]:
    """
    `refer_seg/refcoco/{refs(unc).p,instances.json}` and images: the first three images are of split train, the last of
    val. Each object has two expressions, the second of them twice, in capitals.
    """
    scenes = _write_images(root)
    refs = []
    for image, (image_id, scene) in enumerate(zip(IMAGE_IDS, scenes, strict=True)):
        for place, shape in enumerate(scene.shapes):
            words = f"{shape.color} {shape.kind}"
            side = ("on the left", "in the middle", "on the right")[place]
            sentences = (f"the {words} {side}", words, f" {words.upper()} ")
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": annotation_id(image, place),
                    "image_id": image_id,
                    "category_id": 1,
                    "split": "val" if image == 3 else "train",
                    "file_name": f"COCO_train2014_{image_id:012d}_{place}.jpg",
                    "sent_ids": [len(refs) * 3 + index for index in range(3)],
                    "sentences": [
                        {"sent_id": len(refs) * 3 + index, "sent": sent, "raw": sent, "tokens": sent.split()}
                        for index, sent in enumerate(sentences)
                    ],
                }
            )
    folder = root / "refer_seg/refcoco"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(_instances(scenes)))
    return scenes


def write_grefcoco(root: Path) -> list[Scene]:
    """
    `refer_seg/grefcoco/{grefs(unc).json,instances.json}` and images. Of each image one expression for its first object,
    one for the first two, one for something absent; of the first image also one for an object and a crowd.
    """
    scenes = _write_images(root)
    refs: list[dict[str, Any]] = []

    def add(image: int, targets: list[int], sent: str) -> None:
        refs.append(
            {
                "ref_id": len(refs),
                "ann_id": targets,
                "image_id": IMAGE_IDS[image],
                "category_id": [1] * len(targets) if targets != [-1] else [-1],
                "split": "val" if image == 3 else "train",
                "no_target": targets == [-1],
                "file_name": f"COCO_train2014_{IMAGE_IDS[image]:012d}.jpg",
                "sentences": [{"sent_id": len(refs), "sent": sent, "raw": sent, "tokens": sent.split()}],
            }
        )

    for image in range(len(scenes)):
        add(image, [annotation_id(image, 0)], "the left shape")
        add(image, [annotation_id(image, 0), annotation_id(image, 1)], "the two shapes on the left")
        add(image, [-1], "a purple star")
    add(0, [annotation_id(0, 1), annotation_id(0, 2)], "the shapes and the crowd")
    instances = _instances(scenes)
    crowd = next(item for item in instances["annotations"] if item["id"] == annotation_id(0, 2))
    crowd["iscrowd"] = 1
    crowd["segmentation"] = _uncompressed(scenes[0].shapes[2].mask)
    folder = root / "refer_seg/grefcoco"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    (folder / "instances.json").write_text(json.dumps(instances))
    return scenes


def annotation_id(image: int, place: int) -> int:
    return 1719310 + 10 * image + place


def _write_images(root: Path) -> list[Scene]:
    scenes = [draw_scene(seed=seed) for seed in range(len(IMAGE_IDS))]
    folder = root / "refer_seg/images/coco2014/train2014"
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, scene in zip(IMAGE_IDS, scenes, strict=True):
        scene.image.save(folder / _file_name(image_id))
    return scenes


def _file_name(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def _instances(scenes: list[Scene]) -> dict[str, Any]:
    images = [
        {"id": image_id, "file_name": _file_name(image_id), "height": scene.image.height, "width": scene.image.width}
        for image_id, scene in zip(IMAGE_IDS, scenes, strict=True)
    ]
    annotations = [
        {
            "id": annotation_id(image, place),
            "image_id": IMAGE_IDS[image],
            "category_id": 1,
            "iscrowd": 0,
            "area": int(shape.mask.sum()),
            "bbox": [float(value) for value in coco_mask.toBbox(coco_mask.encode(np.asfortranarray(shape.mask)))],
            "segmentation": [_outline(shape.box)],
        }
        for image, scene in enumerate(scenes)
        for place, shape in enumerate(scene.shapes)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "shape"}]}


def _outline(box: tuple[int, int, int, int]) -> list[float]:
    """The polygon of a box, whose pixels include its right and bottom edge."""
    left, top, right, bottom = box[0], box[1], box[2] + 1, box[3] + 1
    return [float(value) for value in (left, top, right, top, right, bottom, left, bottom)]


def box_mask(box: tuple[int, int, int, int], height: int = 64, width: int = 96) -> np.ndarray:
    """The pixels of a box, bool (H, W): what the written polygon covers."""
    mask = np.zeros((height, width), dtype=bool)
    mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    return mask


def _uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's form of crowds: lengths of runs, columns first, beginning with zeros."""
    flat = np.concatenate([[0], mask.flatten(order="F").astype(int), [0]])
    changes = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": runs}
