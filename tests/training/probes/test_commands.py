"""`xsam probe`: every probe from the command line."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dataset_fixtures.benchmarks import write_benchmarks
from modeling_xsam import XSAMForUniversalSegmentation
from tiny_models import tiny_config
from tiny_training import tiny_processor
from xsam_training.cli import app

IMAGES = ("prompt-injection", "connector", "visual-query", "single-mask", "hallucination")
FEW_TOKENS = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(folder)
    return folder


def run(*arguments):
    """On lines so wide that no path is broken, however long the folder of a test is."""
    return CliRunner(env={"COLUMNS": "1000"}).invoke(app, ["probe", *(str(argument) for argument in arguments)])


def message(result):
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("name", IMAGES)
def test_probes_of_annotated_images(root, tmp_path, name):
    generates = FEW_TOKENS if name in ("prompt-injection", "hallucination") else ()
    result = run(
        name, root / "models/xsam", "--benchmark", "coco-panoptic", "--data", root, "--limit", 3, "--output", tmp_path,
        *generates,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["probe"] == name and content["figures"] and content["cases"]
    for figure in content["figures"]:
        assert figure in result.output
    if name != "hallucination":  # nothing is shown where nothing was answered with a mask
        assert Image.open(tmp_path / f"{name}.png").width > 200


def test_saturation(root, tmp_path):
    result = run(
        "saturation", root / "models/xsam", "--count", 10, "--count", 50, "--image-size", 192, "--tiles", "2,2",
        "--output", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "saturation.json").read_text())["figures"]
    assert {"recall 10", "recall 50"} <= figures.keys() and any("tiled" in name for name in figures)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("connector", "MODEL", "--benchmark", "coco"), "a probe uses one benchmark, these are 3"),
        (("connector", "MODEL", "--benchmark", "coco-panoptic", "--scale", "7"), "scale"),
        (("visual-query", "MODEL", "--benchmark", "nothing"), "'nothing' is unknown"),
        (("hallucination", "MODEL", "--benchmark", "coco-panoptic", "--limit", "0"), "limit"),
    ],
)
def test_what_is_wrong_is_said(root, arguments, expected):
    result = run(*(str(root / "models/xsam") if each == "MODEL" else each for each in arguments), "--data", root)
    assert result.exit_code == 2 and expected in message(result)


@pytest.mark.parametrize("name", [*(each for each in IMAGES if each != "connector"), "saturation"])
def test_a_model_of_stage_1_cannot_be_asked(root, tmp_path, name):
    torch.manual_seed(0)
    XSAMForUniversalSegmentation(tiny_config()).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    data = () if name == "saturation" else ("--benchmark", "coco-panoptic", "--data", root)
    result = run(name, tmp_path, *data)
    assert result.exit_code == 2 and "XSAMForUniversalSegmentation has no language model" in message(result)


def test_tiles_are_two_numbers(root):
    result = run("saturation", root / "models/xsam", "--tiles", "2x2")
    assert result.exit_code == 2 and "--tiles 2x2: expected two numbers, such as 2,3" in message(result)


def test_a_mixture_needs_a_recipe(root, tmp_path):
    result = run(
        "mixture", tmp_path / "none.yaml", "--benchmark", "coco-panoptic", "--data", root, "--steps", 1, "--output", tmp_path
    )  # fmt: skip
    assert result.exit_code == 2 and "none.yaml" in message(result)
