"""What `pipeline("any-segmentation")` takes without a model, and what it says of it."""

import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

import modeling_xsam  # noqa: F401  registers the model
from processing_xsam import default_model_xsam
from processing_xsam.default_model_xsam import WHAT_IT_KNOWS, default_checkpoint
from processing_xsam.enlarge_xsam import enlarge

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "hub_cards" / "xsam-tiny"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """What would be fetched is not there."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was to be fetched"))


def test_the_default_is_the_small_checkpoint_and_says_once_what_it_knows(caplog, nothing_said_yet):
    with caplog.at_level(logging.WARNING):
        segment = pipeline("any-segmentation")
        pipeline("any-segmentation", model=segment.model, processor=segment.processor)
    assert Path(segment.model.name_or_path) == default_checkpoint()
    assert [record.message for record in caplog.records if "generated world" in record.message] == [WHAT_IT_KNOWS]
    found = segment(Image.new("RGB", (128, 128), "green"), task="open-vocabulary", labels=["a"], subtask="semantic")
    assert [(each["label"], each["mask"].size) for each in found] == [("a", (128, 128))]


def test_nothing_is_said_of_another_model(caplog, tmp_path, nothing_said_yet):
    shutil.copytree(CHECKPOINT, tmp_path / "mine")
    with caplog.at_level(logging.WARNING):
        segment = pipeline("any-segmentation", model=str(tmp_path / "mine"))
    assert segment.model.name_or_path == str(tmp_path / "mine")
    assert WHAT_IT_KNOWS not in caplog.messages


def test_an_installation_has_it_inside_the_package_and_a_checkout_beside_it(monkeypatch, tmp_path):
    package = tmp_path / "processing_xsam"
    package.mkdir()
    monkeypatch.setattr(default_model_xsam, "__file__", str(package / "default_model_xsam.py"))
    assert default_checkpoint() == tmp_path / "hub_cards" / "xsam-tiny"
    (package / "xsam_tiny").mkdir()
    assert default_checkpoint() == package / "xsam_tiny"


def test_small_images_are_enlarged_with_their_segments():
    """Three times as large: every pixel is nine, and every segment goes on fitting its image."""
    mask = Image.new("L", (100, 50))
    mask.putpixel((7, 20), 255)
    segment = {"label": "dot", "score": 0.5, "mask": mask, "box": {"xmin": 7, "ymin": 20, "xmax": 8, "ymax": 21}}
    image, (enlarged,) = enlarge(Image.new("RGB", (100, 50)), [segment], side=310)
    assert image.size == enlarged["mask"].size == (300, 150)
    assert enlarged["mask"].getbbox() == (21, 60, 24, 63) and enlarged["mask"].histogram()[255] == 9
    assert {name: enlarged[name] for name in ("label", "score")} == {"label": "dot", "score": 0.5}
    assert "box" not in enlarged and mask.size == (100, 50)


def test_large_images_stay_as_they_are():
    image = Image.new("RGB", (600, 400), "red")
    assert enlarge(image) == (image, [])
