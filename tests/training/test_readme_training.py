"""What training/README.md says of formats, recipes and files is so."""

import re
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dataset_fixtures.ade20k import write_ade20k
from dataset_fixtures.scenes import draw_scene
from xsam_training.arguments import ARGUMENT_GROUPS, DataArguments
from xsam_training.data.formats import FORMATS, build_reader
from xsam_training.data.samples import decode_masks

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
LAYOUT = README[README.index("```\ndata/") :].split("```")[1]
ARGUMENT_FIELDS = {entry.name for group in ARGUMENT_GROUPS for entry in fields(group)}


def table(title: str) -> dict[str, str]:
    """Rows of a table of formats: the name, and the rest of the line."""
    lines = README[README.index(f"| format | {title} |") :].split("\n\n")[0].splitlines()[2:]
    rows = [re.match(r"\| `([a-z0-9-]+)` \| (.*) \|$", line) for line in lines]
    assert all(rows), lines
    return {row[1]: row[2] for row in rows}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def entries() -> list[dict]:
    """The data sets of all YAML blocks."""
    return [spec for block in blocks("yaml") for specs in yaml.safe_load(block).values() for spec in specs]


@pytest.mark.parametrize("title", ["what it reads | where that comes from", "arguments with their defaults"])
def test_the_tables_have_all_formats(title):
    assert list(table(title)) == list(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_arguments_of_a_format(name):
    stated = dict(
        (text.partition("=")[0], yaml.safe_load(text.partition("=")[2]) if "=" in text else Parameter.empty)
        for text in re.findall(r"`([^`]+)`", table("arguments with their defaults")[name])
    )
    parameters = signature(FORMATS[name]).parameters.items()
    actual = {key: parameter.default for key, parameter in parameters if key not in ("root", "on_error")}
    assert stated == {key: [] if value == () else value for key, value in actual.items()}
    assert list(stated) == list(actual)


def test_yaml_blocks_are_lists_of_data_sets_with_arguments_that_exist():
    assert len(blocks("yaml")) == 2
    for block in blocks("yaml"):
        assert yaml.safe_load(block).keys() <= {entry.name for entry in fields(DataArguments)}
    for spec in entries():
        arguments = {key: value for key, value in spec.items() if key not in ("name", "format")}
        signature(FORMATS[spec["format"]]).bind(**arguments)


def test_the_example_of_own_data_builds(tmp_path):
    (spec,) = [spec for spec in entries() if spec["format"] == "class-maps"]
    scene = draw_scene(0)
    for folder in (spec["images"], spec["annotations"]):
        (tmp_path / folder).mkdir()
    scene.image.save(tmp_path / spec["images"] / "one.jpg")
    values = np.full(scene.ground.shape, 255, dtype=np.uint8)
    values[scene.ground], values[scene.shapes[0].mask] = 0, 1
    Image.fromarray(values).save(tmp_path / spec["annotations"] / "one.png")
    (sample,) = build_reader(spec, tmp_path, "raise")
    (turn,) = sample.turns
    assert (turn.labels, turn.num_things) == (("car", "road", "tree"), 1)
    masks = dict(zip(turn.mask_phrases, decode_masks(turn.masks, scene.ground.shape), strict=True))
    assert np.array_equal(masks[0], scene.shapes[0].mask) and np.array_equal(masks[1], scene.ground)


def test_the_examples_of_ade20k_build(tmp_path):
    scenes = write_ade20k(tmp_path)
    specs = [spec for spec in entries() if spec["name"].startswith("ADE20K")]
    assert [spec["format"] for spec in specs] == ["ade20k-semantic", "coco-panoptic", "coco-instances"]
    for spec in specs:
        reader = build_reader(spec, tmp_path, "raise")
        assert len(reader) == len(scenes)
        assert {turn.task for sample in reader for turn in sample.turns} == {"open-vocabulary"}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_layout_has_what_the_recipes_read(stage):
    recipe = yaml.safe_load((ROOT / f"training/recipes/stage{stage}.yaml").read_text(encoding="utf-8"))
    for spec in recipe["datasets"]:
        paths = [value for key, value in spec.items() if key not in ("name", "format")]
        for path in map(Path, paths):
            assert path.parts[0] in LAYOUT, path
            assert path.name in LAYOUT or path.name.endswith("GCG_train.json"), path


def test_recipes_and_files_that_it_names_exist():
    paths = set(re.findall(r"training/[\w./]+", README))
    assert {f"training/recipes/stage{stage}.yaml" for stage in (1, 2, 3)} <= paths
    assert all((ROOT / path).is_file() for path in paths), paths
    for names in re.findall(r"^\| (`[a-z_]+(?:/|\.py)`.*?) \| ", README, flags=re.MULTILINE):
        assert all((ROOT / "training" / name).exists() for name in re.findall(r"`([^`]+)`", names)), names
    for link in re.findall(r"\]\((\w[\w./]+)\)", README):
        assert (ROOT / "training" / link).is_file(), link


def test_commands_override_fields_that_exist():
    overrides = {
        name
        for line in re.findall(r"(?:xsam train|xsam_training\.train) [\w./]+\.yaml.*", README)
        for name in re.findall(r"--([a-z_]+)", line)
    }
    overrides |= set(re.findall(r"`--([a-z_]+)=", README))
    assert {"lora", "max_steps", "per_device_train_batch_size"} <= overrides <= ARGUMENT_FIELDS


def test_fields_it_sets_exist():
    stated = set(re.findall(r"`([a-z_]+): [^`]+`", README))
    arguments = {key for reader in FORMATS.values() for key in signature(reader).parameters}
    assert {"stage", "picture_steps", "gradient_checkpointing", "keep_empty"} <= stated
    assert stated <= ARGUMENT_FIELDS | arguments


def test_default_values_it_states():
    defaults = {entry.name: entry.default for group in ARGUMENT_GROUPS for entry in fields(group)}
    for name, value in re.findall(r"`([a-z_]+)`\s\(([\d.]+)\)", README):
        assert defaults[name] == float(value), name
    assert {name for name, _ in re.findall(r"`([a-z_]+)`\s\(([\d.]+)\)", README)} >= {"lora_rank", "picture_samples"}
    assert defaults["balance_threshold"] == 0.1 and "`balance_threshold` t =\n0.1" in README
