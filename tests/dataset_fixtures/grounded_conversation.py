"""GranD-f and the other data sets in GLaMM's form, of a few drawn images each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from dataset_fixtures.scenes import Scene, draw_scene

# Of each drawn image, the seed of the first differs between the data sets.
PICTURES = 3


def write_grounded_conversation(root: Path) -> dict[str, list[Scene]]:
    """
    `gcg_seg/annotations/{train,val_test}` and `gcg_seg/images`, of every published form.

    Returns:
        The scenes by data set: "grand", "psg", "refcocog", "flickr", "val".
    """
    base = root / "gcg_seg"
    for folder in ("train", "val_test"):
        (base / "annotations" / folder).mkdir(parents=True, exist_ok=True)
    return {
        "grand": _write_grand(base),
        "psg": _write_psg(base),
        "refcocog": _write_refcocog(base),
        "flickr": _write_flickr(base),
        "val": _write_validation(base),
    }


def names(scene: Scene) -> tuple[str, str, str]:
    """Phrases for the three shapes, all different."""
    sides = ("left", "middle", "right")
    return tuple(f"the {side} {shape.color} {shape.kind}" for side, shape in zip(sides, scene.shapes, strict=True))


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """A mask as it stands in JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _scenes(folder: Path, file_names: list[str], seed: int) -> list[Scene]:
    scenes = [draw_scene(seed=seed + index) for index in range(len(file_names))]
    for scene, file_name in zip(scenes, file_names, strict=True):
        path = folder / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        scene.image.save(path)
    return scenes


def _grounding(caption: str, phrase: str, *masks: np.ndarray) -> dict[str, Any]:
    start = caption.index(phrase)
    return {"token_positives": [start, start + len(phrase)], "rle_masks": [encoded(mask) for mask in masks]}


def _write_grand(base: Path) -> list[Scene]:
    """The caption of the last image stands in quotation marks, and its last phrase has a mask in two parts."""
    file_names = [f"sa_{10010541 + index}.jpg" for index in range(PICTURES)]
    scenes = _scenes(base / "images/GranDf_HA_images/train", file_names, seed=60)
    records = []
    for place, (scene, file_name) in enumerate(zip(scenes, file_names, strict=True)):
        first, second, third = names(scene)
        caption = f"There are {second} and {first}. Behind them is the sky, near {third}."
        masks = [shape.mask for shape in scene.shapes]
        groundings = {
            first: _grounding(caption, first, masks[0]),
            second: _grounding(caption, second, masks[1]),
            "the sky": _grounding(caption, "the sky", scene.sky),
            third: _grounding(caption, third, masks[2]),
        }
        if place == PICTURES - 1:
            columns = np.arange(96) < 48
            groundings["the sky"] = _grounding(caption, "the sky", scene.sky & columns, scene.sky & ~columns)
            caption = f'"{caption}" '
        records.append(
            {
                "file_name": file_name,
                "height": 64,
                "width": 96,
                "image_id": file_name[:-4],
                "caption": caption,
                "groundings": groundings,
            }
        )
    _dump(base / "annotations/train/GranDf_HA_GCG_train.json", records)
    return scenes


def _write_psg(base: Path) -> list[Scene]:
    """Without the size of the image; the second caption has no phrase."""
    file_names = [f"train2017/{139 + index:012d}.jpg" for index in range(PICTURES)]
    scenes = _scenes(base / "images/coco2017", file_names, seed=70)
    records = []
    for place, (scene, file_name) in enumerate(zip(scenes, file_names, strict=True)):
        first = names(scene)[0]
        caption = f"A picture of {first} on the ground"
        groundings = {
            first: _grounding(caption, first, scene.shapes[0].mask),
            "the ground": _grounding(caption, "the ground", scene.ground),
        }
        records.append(
            {
                "file_name": file_name,
                "image_id": str(139 + place),
                "caption": caption,
                "groundings": {} if place == 1 else groundings,
            }
        )
    _dump(base / "annotations/train/OpenPsgGCG_train.json", records)
    return scenes


def _write_refcocog(base: Path) -> list[Scene]:
    """
    The first caption has capitals, the second an expression within a longer one, the third two objects of the same
    words and an expression that the caption does not have.
    """
    file_names = [f"COCO_train2014_{524291 + index:012d}.jpg" for index in range(PICTURES)]
    scenes = _scenes(base / "images/coco2014/train2014", file_names, seed=80)
    boxes = [[shape.box for shape in scene.shapes] for scene in scenes]
    texts = [
        ("The Left Thing, next to the middle thing.", [("the left thing", 0), ("the middle thing", 1)]),
        ("A thing in front of a thing.", [("a thing", 1), ("a thing in front", 0)]),
        ("Two shapes on earth.", [("shapes", 0), ("shapes", 1), ("earthworm", 2), ("shape", 2)]),
    ]
    records = []
    for place, (caption, refs) in enumerate(texts):
        content = {
            "img_file_name": file_names[place],
            "caption": caption,
            "refs": [
                {
                    "sentence": sentence,
                    "segmentation": [_outline(boxes[place][shape])],
                    "bbox": list(boxes[place][shape]),
                }
                for sentence, shape in refs
            ],
        }
        records.append({str(524291 + place): content})
    _dump(base / "annotations/train/RefCOCOg_GCG_train.json", records)
    return scenes


def _write_flickr(base: Path) -> list[Scene]:
    """
    The first caption has a phrase of two annotations and the same word twice, the second an annotation to ignore, the
    third is too short.
    """
    file_names = [f"{1000092795 + index}.jpg" for index in range(PICTURES)]
    scenes = _scenes(base / "images/flickr30k", file_names, seed=90)
    texts = [
        ("Two shapes beside a shape .", [("Two shapes", 0), ("Two shapes", 1), ("a shape", 2)]),
        (" A shape under the sky .", [("A shape", 1), ("the sky", 0)]),
        ("A shape", [("A shape", 0)]),
    ]
    images, annotations = [], []
    for place, (caption, phrases) in enumerate(texts):
        images.append({"id": place + 1, "file_name": file_names[place], "caption": caption, "height": 64, "width": 96})
        for phrase, shape in phrases:
            start = caption.index(phrase)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": place + 1,
                    "tokens_positive": [[start, start + len(phrase)]],
                    "sam_mask": encoded(scenes[place].shapes[shape].mask),
                    "ignore": phrase == "the sky",
                    "bbox": [1.0, 1.0, 5.0, 5.0],
                    "area": 25.0,
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    _dump(base / "annotations/train/flickr_mergedGT_GCG_train.json", content)
    return scenes


def _write_validation(base: Path) -> list[Scene]:
    """Labels in another order than in the caption."""
    ids = [f"sa_{20010541 + index}" for index in range(PICTURES)]
    scenes = _scenes(base / "images/GranDf_HA_images/val_test", [f"{image_id}.jpg" for image_id in ids], seed=100)
    captions, masks = [], []
    for image_id, scene in zip(ids, scenes, strict=True):
        first, _, third = names(scene)
        captions.append(
            {
                "id": len(captions),
                "image_id": image_id,
                "caption": f"Next to {third} is {first}.",
                "labels": [first, third],
            }
        )
        masks += [
            {"id": len(masks) + index, "image_id": image_id, "category_id": 1, "segmentation": encoded(shape.mask)}
            for index, shape in enumerate((scene.shapes[0], scene.shapes[2]))
        ]
    images = [{"id": image_id, "height": 64, "width": 96} for image_id in ids]
    for split in ("val", "test"):
        folder = base / "annotations/val_test"
        _dump(folder / f"{split}_gcg_coco_caption_gt.json", {"images": images, "annotations": captions})
        _dump(folder / f"{split}_gcg_coco_mask_gt.json", {"images": images, "annotations": masks})
    return scenes


def _outline(box: tuple[int, int, int, int]) -> list[float]:
    left, top, right, bottom = box[0], box[1], box[2] + 1, box[3] + 1
    return [float(value) for value in (left, top, right, top, right, bottom, left, bottom)]


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
