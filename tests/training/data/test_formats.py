from inspect import signature
from pathlib import Path

import pytest
import yaml

import xsam_training
from dataset_fixtures.coco import write_coco_instances
from xsam_training.data.coco_instances import CocoInstancesReader
from xsam_training.data.formats import FORMATS, build_reader
from xsam_training.data.reader import BrokenRecord, SampleReader

RECIPES = Path(xsam_training.__file__).parent / "recipes"
VAL = {"annotations": "coco2017/annotations/instances_val2017.json", "images": "coco2017/val2017"}


def test_all_readers_have_a_format_of_their_own():
    assert list(FORMATS) == sorted(FORMATS)
    assert len(set(FORMATS.values())) == len(FORMATS)
    assert all(issubclass(reader, SampleReader) for reader in FORMATS.values())


@pytest.mark.parametrize("name", FORMATS)
def test_all_readers_take_root_and_on_error(name):
    parameters = signature(FORMATS[name]).parameters
    assert parameters["root"].default == "." and parameters["on_error"].default == "raise"


def test_a_reader_is_built_from_its_entry(tmp_path):
    write_coco_instances(tmp_path)
    spec = {"name": "my COCO", "format": "coco-instances", "task": "open-vocabulary", **VAL}
    reader = build_reader(spec, tmp_path, "skip")
    assert type(reader) is CocoInstancesReader
    assert (reader.root, reader.on_error, reader.task, reader.images) == (
        tmp_path,
        "skip",
        "open-vocabulary",
        VAL["images"],
    )
    assert spec["name"] == "my COCO"  # the entry is left as it is


def test_an_entry_may_say_itself_what_a_broken_record_does(tmp_path):
    write_coco_instances(tmp_path)
    next((tmp_path / "coco2017" / "train2017").iterdir()).unlink()
    with pytest.raises(BrokenRecord):
        build_reader({"format": "coco-instances"}, tmp_path, "raise")
    assert len(build_reader({"format": "coco-instances", "on_error": "skip"}, tmp_path, "raise")) == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"format": "coco"}, "format 'coco' in .* is unknown; known are ade20k-semantic, class-maps"),
        ({"name": "a"}, "format None in {'name': 'a'} is unknown"),
        ({"format": ["llava"]}, r"format \['llava'\] in .* is unknown"),
        ({"name": "mine", "format": "llava", "image": "x"}, "^datasets, 'mine': llava: got an unexpected keyword"),
        ("llava", r"^datasets: the entry 'llava' is no mapping; .* such as {format: coco-panoptic, annotations"),
        (
            {"format": "llava", "image": "x"},
            "^datasets: llava: got an unexpected keyword argument 'image'; its arguments are",
        ),
        ({"format": "class-maps", "images": "x"}, "class-maps: missing a required .*argument: 'annotations'"),
    ],
)
def test_what_is_wrong_in_an_entry_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        build_reader(spec, ".", "raise")


@pytest.mark.parametrize("spec", ["llava", {"format": "none"}, {"format": "llava", "image": "x"}])
def test_the_field_of_the_recipe_is_named(spec):
    with pytest.raises(ValueError, match=r"^eval_datasets: "):
        build_reader(spec, ".", "raise", field="eval_datasets")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_published_recipes_name_formats_and_their_arguments(stage):
    datasets = yaml.safe_load((RECIPES / f"stage{stage}.yaml").read_text(encoding="utf-8"))["datasets"]
    for spec in datasets:
        arguments = {key: value for key, value in spec.items() if key not in ("name", "format")}
        signature(FORMATS[spec["format"]]).bind(**arguments)
    assert len({spec["name"] for spec in datasets}) == len(datasets)
