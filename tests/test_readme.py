"""What the README tells its readers to do is done here."""

import re
from pathlib import Path

import pytest
from PIL import Image

import demo
import processing_xsam
from processing_xsam import AnySegmentationPipeline
from processing_xsam.prompts_xsam import TASKS
from random_checkpoint import random_model, random_processor, save_random_checkpoint
from xsam_training.data.shape_world.reader import ShapeWorldReader
from xsam_training.data.shape_world.scene import Scene, draw_scene
from xsam_training.data.shape_world.vocabulary import FACTS

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


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, caplog, image, nothing_said_yet):
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
    assert all(found["label"] == "the dotted ring" for found in names["segments"])
    assert "generated world" in caplog.text


def test_the_demo_writes_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "PHOTO_CALLS", demo.PHOTO_CALLS[2:3])
    monkeypatch.setattr("sys.argv", ["demo.py", "--output", str(tmp_path)])
    demo.main()
    printed = capsys.readouterr().out
    for name in ("demo_shapes.png", "demo_photo.png"):
        assert f"{name} shows all of them" in printed and Image.open(tmp_path / name).width > 500
        assert name in README
    assert all(f"\n{title}\n" in printed for title, _ in demo.SCENE_CALLS)
    assert "referring: the cup (meaningless)" in printed


def test_the_demo_with_another_model_shows_the_photo_alone(tmp_path, monkeypatch, capsys):
    save_random_checkpoint(tmp_path / "xsam")
    monkeypatch.setattr(demo, "PHOTO_CALLS", demo.PHOTO_CALLS[2:3])
    monkeypatch.setattr("sys.argv", ["demo.py", "--model", str(tmp_path / "xsam"), "--output", str(tmp_path)])
    demo.main()
    assert "meaningless" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*.png")] == ["demo_photo.png"]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(ShapeWorldReader(tasks=["generic"], split="test").world, demo.SCENE)


def test_the_demo_asks_for_what_is_in_its_scene(scene):
    assert demo.draw_scene() == scene.image
    (generic,) = ShapeWorldReader(tasks=["generic"], split="test")[demo.SCENE].turns
    assert (*demo.KINDS, *demo.STUFF) == generic.labels
    assert {thing.combination.name for thing in scene.things} & set(demo.COMBINATIONS) == set(demo.COMBINATIONS[:4])
    assert [thing.kind for thing in scene.things if thing.texture == "dotted"].count("ring") == 1
    assert "looks like a plus sign" in FACTS["cross"]
    kinds = [thing.kind for thing in scene.things]
    assert kinds.count("cross") == 1 and kinds.count("ring") == 2


def test_the_demo_marks_what_it_says(scene):
    """A point lies on its thing, a box is that of the visible pixels."""
    for (x, y), name in ((demo.YELLOW_STAR, "yellow star"), (demo.PURPLE_CROSS, "purple cross")):
        (thing,) = (each for each in scene.things if each.combination.name == name)
        assert thing.mask[y, x]
    for box, name in ((demo.SQUARE_BOX, "orange square"), (demo.RING_BOX, "yellow ring")):
        (thing,) = (each for each in scene.things if each.combination.name == name)
        assert box == list(Image.fromarray(thing.mask).getbbox())


def test_the_folders_it_names_exist():
    for name in re.findall(r"^\| `([a-z_]+/|app\.py)` \|", README, flags=re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_exported_names_exist():
    assert all(hasattr(processing_xsam, name) for name in processing_xsam.__all__)
