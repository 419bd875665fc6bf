"""The same training with and without resampling, on the fixtures."""

import json

import pytest
import yaml

from dataset_fixtures.benchmarks import write_benchmarks
from xsam_training.evaluation.benchmarks import BENCHMARKS
from xsam_training.probes.mixture import probe_mixture
from xsam_training.probes.paired_runs import RunPlan

CHOSEN = [BENCHMARKS["coco-semantic"], BENCHMARKS["refcoco-val"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    write_benchmarks(root)
    return root


@pytest.fixture(scope="module")
def recipe(data):
    referring = {
        "format": "refcoco",
        "refs": "refer_seg/refcoco/refs(unc).p",
        "instances": "refer_seg/refcoco/instances.json",
        "images": "refer_seg/images/coco2014/train2014",
    }
    panoptic = {
        "format": "coco-panoptic",
        "annotations": "coco2017/annotations/panoptic_train2017.json",
        "segments": "coco2017/panoptic_train2017",
        "images": "coco2017/train2017",
    }
    chat = {
        "name": "chat",
        "format": "llava",
        "annotations": "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
        "images": "llava/llava_images",
    }
    content = {
        "stage": 3,
        "model": str(data / "models/xsam"),
        "data_root": str(data),
        "balance_threshold": 0.9,
        "datasets": [panoptic, {"name": "RefCOCO", **referring}, chat],
        "eval_datasets": [{**panoptic, "name": "panoptic"}],
        "per_device_train_batch_size": 2,
        "global_batch_size": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "save_steps": 1,
        "seed": 3,
    }
    file = data / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def probe(recipe, data, name, *overrides, **arguments):
    arguments = {"steps": 2, "limit": 2, **arguments}
    return probe_mixture(RunPlan(recipe, overrides, CHOSEN, data, output=data / name, **arguments))


@pytest.fixture(scope="module")
def report(recipe, data):
    return probe(recipe, data, "first")


def test_figures_of_both_runs_and_their_difference(report):
    names = [name.removesuffix(" change") for name in report.figures if name.endswith(" change")]
    assert names[:2] == ["coco-semantic mIoU", "refcoco-val cIoU"]
    assert {*names[2:]} == {"eval_loss", "eval_loss_lm", "eval_loss_cls", "eval_loss_mask", "eval_loss_dice"}
    for name in names:
        balanced, unbalanced = report.figures[f"{name} balanced"], report.figures[f"{name} unbalanced"]
        assert report.figures[f"{name} change"] == unbalanced - balanced
    # Another mixture is another order of samples, and other weights.
    assert report.figures["eval_loss change"] != 0
    assert {(case["run"], case["benchmark"]) for case in report.cases} == {
        (run, benchmark.name) for run in ("balanced", "unbalanced") for benchmark in CHOSEN
    }


def test_settings_say_what_was_trained(report):
    assert report.settings["steps"] == 2 and report.settings["seed"] == 3
    assert report.settings["samples of a step"] == 2 and report.settings["balance_threshold"] == 0.9
    mixtures = report.settings["data sets"]
    assert [each["data set"] for each in mixtures["balanced"]] == ["coco-panoptic", "RefCOCO", "chat"]
    total = sum(each["samples"] for each in mixtures["balanced"])
    for each in mixtures["balanced"]:
        assert each["factor"] == pytest.approx(max(1, (0.9 * total / each["samples"]) ** 0.5))
    assert all(each["factor"] == 1 and each["an epoch"] == each["samples"] for each in mixtures["unbalanced"])


def test_it_is_saved(report, tmp_path):
    assert next(title for title, _ in report.pictures) == "generic: coco-semantic"
    assert len(report.pictures) == 2
    report.save(tmp_path)
    assert json.loads((tmp_path / "mixture.json").read_text())["settings"]["steps"] == 2


def test_finished_runs_are_not_trained_again(recipe, data, report):
    weights = data / "first" / "balanced" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = probe(recipe, data, "first")
    assert weights.stat().st_mtime_ns == written
    assert again.figures == pytest.approx(report.figures, rel=1e-6, nan_ok=True)


def test_an_output_of_other_runs_is_not_taken(recipe, data, report):
    with pytest.raises(ValueError, match="holds runs with another steps"):
        probe(recipe, data, "first", steps=3)
    with pytest.raises(ValueError, match="holds runs with another overrides"):
        probe(recipe, data, "first", "--seed=4")


def test_both_runs_start_from_the_same_weights(recipe, data):
    """Without a learning rate nothing but the start is left."""
    report = probe(recipe, data, "start", "--learning_rate=0", steps=1, limit=1)
    changes = [value for name, value in report.figures.items() if name.endswith("change")]
    assert changes and all(value == 0 or value != value for value in changes)


def test_what_cannot_be_compared(recipe, data):
    with pytest.raises(ValueError, match="which repeats none of the 3 data sets"):
        probe(recipe, data, "none", "--balance_threshold=0")
    # A factor of 1.15 adds nothing to three samples.
    with pytest.raises(ValueError, match="which repeats none of the 3 data sets"):
        probe(recipe, data, "none", "--balance_threshold=0.4")
    assert not (data / "none" / "mixture_runs.json").exists()
    with pytest.raises(ValueError, match="steps is 0"):
        probe(recipe, data, "none", steps=0)
