"""What the README tells its readers to do is done here."""

import re
from pathlib import Path

import pytest
from PIL import Image

import processing_xsam
from processing_xsam import AnySegmentationPipeline
from processing_xsam.prompts_xsam import TASKS
from random_checkpoint import random_model, random_processor, save_random_checkpoint

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z-]+)` \|.*\| `(segment\(.*\))` \|$", README, flags=re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def image():
    return Image.open(ROOT / "examples" / "coffee.png").convert("RGB")


@pytest.fixture(scope="module")
def segment():
    processor = random_processor()
    return AnySegmentationPipeline(model=random_model(processor), processor=processor, max_new_tokens=8)


def test_the_table_has_all_tasks():
    assert [task for task, _ in ROWS] == list(TASKS)


@pytest.mark.parametrize(("task", "call"), ROWS)
def test_calls_of_the_task_table(segment, image, task, call):
    assert f'task="{task}"' in call
    result = eval(call, {"segment": segment, "image": image})
    segments = result["segments"] if isinstance(result, dict) else result
    assert all(set(found) >= {"label", "score", "mask", "box"} for found in segments)


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, image):
    """With a random checkpoint in a folder called `xsam` and a photo, as the README assumes."""
    save_random_checkpoint(tmp_path / "xsam")
    image.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {"image": image}
    assert BLOCKS
    for block in BLOCKS:
        exec(block, names)
    assert names["outputs"].masks_queries_logits.shape[0] == 1
    assert (tmp_path / "mask.png").exists()


def test_the_folders_it_names_exist():
    for name in re.findall(r"^\| `([a-z_]+/|app\.py)` \|", README, flags=re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_exported_names_exist():
    assert all(hasattr(processing_xsam, name) for name in processing_xsam.__all__)
