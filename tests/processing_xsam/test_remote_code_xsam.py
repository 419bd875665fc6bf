"""A folder with exported code has to load in an interpreter that does not have this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from processing_xsam import export_remote_code
from random_checkpoint import save_random_checkpoint

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "coffee.png"
LOAD = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_xsam", "processing_xsam", "xsam_training"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

folder, photo = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
again = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image = Image.open(photo)
inputs = processor(images=image, task="referring", text="the cup")
with torch.no_grad():
    outputs, repeated = model.segment(**inputs), again.segment(**inputs)
assert torch.equal(outputs.masks_queries_logits, repeated.masks_queries_logits)
segment = pipeline("any-segmentation", model=folder, trust_remote_code=True)
(found,) = segment(image, task="referring", text="the cup")
print("RESULT", type(model).__name__, type(processor).__name__, type(segment).__name__, found["score"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    save_random_checkpoint(folder)
    export_remote_code(folder)
    return folder


def test_it_loads_without_the_package(folder, tmp_path):
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [sys.executable, "-c", LOAD, folder, PHOTO], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    result = next(line for line in run.stdout.splitlines() if line.startswith("RESULT")).split()
    assert result[1:4] == ["XSAMForSegmentation", "XSAMProcessor", "AnySegmentationPipeline"]

    from transformers import pipeline

    (found,) = pipeline("any-segmentation", model=str(folder), trust_remote_code=True)(
        str(PHOTO), task="referring", text="the cup"
    )
    assert float(result[4]) == pytest.approx(found["score"], abs=1e-6)


def test_the_folder_names_its_classes(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_xsam.XSAMForSegmentation"
    assert config["custom_pipelines"]["any-segmentation"]["impl"] == "pipeline_xsam.AnySegmentationPipeline"
    assert not (folder / "convert_xsam_to_hf.py").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config.json: save the model there first"):
        export_remote_code(tmp_path)
