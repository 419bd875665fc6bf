"""ReasonSeg of a few drawn images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataset_fixtures.scenes import Scene, draw_scene

EXPLANATION = "It is the shape on the left, since nothing is further from the right edge."


def write_reasonseg(root: Path) -> list[Scene]:
    """
    `reason_seg/ReasonSeg/{train,val,test,explanatory}`: three images in train, of which the first asks whole sentences,
    the second short phrases and has an area to ignore, and the third is written in cp1252; one image each in val and
    test. The first image's second question has an explanation.
    """
    base = root / "reason_seg/ReasonSeg"
    scenes = [draw_scene(seed=seed + 20) for seed in range(5)]
    left = [shape("target", scene.shapes[0].box) for scene in scenes]
    _write(
        base / "train/100_a_o",
        scenes[0],
        ["What is furthest from the right edge?", "Which shape would fall off the left edge first?"],
        True,
        [left[0], shape("target", scenes[0].shapes[1].box), shape("flag", (0, 0, 90, 60))],
    )
    inner = _inner(scenes[1].shapes[0].box)
    _write(base / "train/200_b_o", scenes[1], ["the left thing"], False, [shape("ignore", inner), left[1]])
    _write(base / "train/300_c_o", scenes[2], ["the café… sign"], False, [left[2]], encoding="cp1252")
    _write(base / "val/400_d_o", scenes[3], ["Where could one sit?"], True, [left[3]])
    _write(base / "test/500_e_o", scenes[4], ["Where could one lie?"], True, [left[4]])
    explanations = [
        {
            "image": "100_a_o.jpg",
            "query": "Which shape would fall off the left edge first? ",
            "outputs": EXPLANATION,
        },
        {"image": "999_z_o.jpg", "query": "What is elsewhere?", "outputs": "Nothing of this folder."},
    ]
    (base / "explanatory").mkdir(parents=True, exist_ok=True)
    (base / "explanatory/train.json").write_text(json.dumps(explanations))
    return scenes


def shape(label: str, box: tuple[int, int, int, int]) -> dict[str, Any]:
    """A box as an annotated polygon with broken coordinates, as labelling tools write them."""
    left, top, right, bottom = (value + 0.4 for value in box)
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"label": label, "labels": [label], "shape_type": "polygon", "image_name": "", "points": points}


def _inner(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The middle of a box."""
    return box[0] + 3, box[1] + 3, box[2] - 3, box[3] - 3


def _write(
    stem: Path,
    scene: Scene,
    texts: list[str],
    is_sentence: bool,
    shapes: list[dict[str, Any]],
    encoding: str = "utf-8",
) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    scene.image.save(stem.with_suffix(".jpg"))
    annotation = {"text": texts, "is_sentence": is_sentence, "shapes": shapes}
    stem.with_suffix(".json").write_text(json.dumps(annotation, ensure_ascii=False), encoding=encoding)
