"""
The data of every benchmark in one folder, and a tiny model with random weights:

    PYTHONPATH=tests:examples python -m dataset_fixtures.benchmarks FOLDER

writes them and prints the command that evaluates the model on all of them.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset_fixtures.class_maps import CLASSES, UNLABELLED
from dataset_fixtures.everything import write_everything
from dataset_fixtures.scenes import draw_scene
from tiny_training import fitting_model, tiny_processor
from xsam_training.make_vgd import make_vgd

SPLITS = {"refcoco": ("val", "testA", "testB"), "refcoco+": ("val", "testA", "testB"), "refcocog": ("val", "test")}


def write_benchmarks(root: Path) -> None:
    """The layout of `training/README.md` with all splits, `class_maps/` and `models/xsam`."""
    write_everything(root)
    for folder, splits in SPLITS.items():
        (file,) = (root / "refer_seg" / folder).glob("*.p")
        file.write_bytes(pickle.dumps(_in_splits(pickle.loads(file.read_bytes()), splits), protocol=2))
    grefs = root / "refer_seg/grefcoco/grefs(unc).json"
    grefs.write_text(json.dumps(_in_splits(json.loads(grefs.read_text()), SPLITS["refcoco"])))
    _write_short_and_long_questions(root / "reason_seg/ReasonSeg")
    prompts = root / "vgd_seg/annotations/coco_vgdseg_val.json"
    prompts.unlink()
    make_vgd(root / "coco2017/annotations/instances_val2017.json", prompts, num_processes=1)
    shutil.copytree(root / "camvid/val", root / "class_maps/images")
    (root / "class_maps/annotations").mkdir()
    for file in (root / "camvid/valannot").iterdir():
        values = np.array(Image.open(file))
        values[values == UNLABELLED] = 255
        Image.fromarray(values).save(root / "class_maps/annotations" / file.name)
    (root / "class_maps/classes.txt").write_text("\n".join(CLASSES))
    write_model(root / "models/xsam")


def write_model(folder: Path) -> None:
    """`XSAMForSegmentation` with random weights, and its processor."""
    processor = tiny_processor()
    fitting_model(processor).eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def _in_splits(refs: list[dict[str, Any]], splits: tuple[str, ...]) -> list[dict[str, Any]]:
    """The records of train as they are, and those of the first images once more for each split."""
    first = {ref["image_id"] for ref in refs[:4]}
    copies = [{**ref, "split": split} for split in splits for ref in refs if ref["image_id"] in first]
    train = [ref for ref in refs if ref["split"] == "train"]
    return [{**ref, "ref_id": place} for place, ref in enumerate([*train, *copies])]


def _write_short_and_long_questions(base: Path) -> None:
    """A second question in val and test, of the other length than the first."""
    for split, name in (("val", "401_f_o"), ("test", "501_g_o")):
        scene = draw_scene(seed=40)
        left, top, right, bottom = scene.shapes[0].box
        points = [[left, top], [right, top], [right, bottom], [left, bottom]]
        shapes = [{"label": "target", "points": points}]
        scene.image.save(base / split / f"{name}.jpg", quality=95)
        content = {"text": ["the left thing"], "is_sentence": False, "shapes": shapes}
        (base / split / f"{name}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    write_benchmarks(folder)
    print(
        f"xsam evaluate {folder / 'models/xsam'} --benchmark all --data {folder} --output {folder / 'results.json'}"
        " --text-encoder words --samples"
    )
    print(
        f"xsam evaluate {folder / 'models/xsam'} --benchmark class-maps --data {folder / 'class_maps'}"
        f" --output {folder / 'class_maps.json'}"
    )
