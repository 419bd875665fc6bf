"""The registry, and benchmarks of one's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dataset_fixtures.benchmarks import write_benchmarks
from tiny_training import category_sample, interactive_sample, visual_sample
from xsam_training.data.formats import build_reader
from xsam_training.data.samples import Region, encode_masks
from xsam_training.evaluation.benchmarks import (
    BENCHMARKS,
    REGION_KINDS,
    Benchmark,
    load_benchmarks,
    select_benchmarks,
    with_prompt,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(folder)
    return folder


def names(selected):
    return [benchmark.name for benchmark in selected]


def test_names():
    assert names(select_benchmarks("coco-panoptic, refcocog")) == ["coco-panoptic", "refcocog-val", "refcocog-test"]
    assert names(select_benchmarks("refcoco,refcoco-val")) == ["refcoco-val", "refcoco-testA", "refcoco-testB"]
    assert names(select_benchmarks("reasonseg-val")) == ["reasonseg-val"]
    assert len(names(select_benchmarks("reasonseg"))) == 6
    assert names(select_benchmarks("vgd")) == [f"vgd-{kind}" for kind in ("point", "scribble", "box", "mask")]
    assert len(select_benchmarks("all")) == len(BENCHMARKS) - 1
    with pytest.raises(ValueError, match=r"--benchmark 'xy' is unknown; Known are all, coco-panoptic, "):
        select_benchmarks("xy")
    with pytest.raises(ValueError, match=r"'coco-panoptc' is unknown, did you mean coco-panoptic\?"):
        select_benchmarks("coco-panoptc")
    with pytest.raises(FileNotFoundError, match=r"--benchmark nothing.yaml: there is no such file"):
        select_benchmarks("nothing.yaml")


@pytest.mark.parametrize("benchmark", select_benchmarks("all"), ids=lambda benchmark: benchmark.name)
def test_each_has_data_where_the_layout_says(root, benchmark):
    reader = build_reader(benchmark.dataset, root, "raise")
    turns = [turn for index in range(len(reader)) for turn in benchmark.asked(reader[index]).turns]
    assert turns
    tasks = {
        "coco": "generic",
        "ade20k": "open-vocabulary",
        "reasonseg": "reasoning",
        "gcg": "grounded-conversation",
        "vgd": "visual-grounded",
        "interactive": "interactive",
    }
    assert {turn.task for turn in turns} == {tasks.get(benchmark.name.split("-")[0], "referring")}


def test_published_settings():
    assert BENCHMARKS["coco-panoptic"].result_options.threshold == 0.0
    instance = BENCHMARKS["coco-instance"]
    assert (instance.result_options.subtask, instance.result_options.threshold) == ("instance", 0.0)
    # Images without an object count.
    for name in ("coco-panoptic", "coco-instance", "coco-semantic", "ade20k-panoptic", "ade20k-instance"):
        assert BENCHMARKS[name].dataset["keep_empty"] is True
    assert BENCHMARKS["refcoco-val"].result_options.score_threshold is None
    assert BENCHMARKS["grefcoco-val"].result_options.multi_target is True
    assert BENCHMARKS["interactive-point"].result_options.threshold == 0.5


def test_repeated_expressions_are_asked_again(root):
    benchmark = BENCHMARKS["refcoco-val"]
    every = build_reader(benchmark.dataset, root, "raise")
    once = build_reader({**benchmark.dataset, "keep_repeated": False}, root, "raise")
    assert sum(len(every[i].turns) for i in range(len(every))) > sum(len(once[i].turns) for i in range(len(once)))


def test_prompts_of_one_kind():
    whole = visual_sample(6).turns[0]
    for kind in REGION_KINDS:
        turn = with_prompt(whole, kind)
        if turn is not None:
            assert {region.kind for of_phrase in turn.regions for region in of_phrase} == {kind}
            assert all(len(of_phrase) == 1 for of_phrase in turn.regions)
            assert len(turn.labels) == len(turn.regions) == turn.num_phrases


def test_a_phrase_without_such_a_prompt_is_not_asked():
    mask, other = encode_masks(np.eye(2, dtype=bool)[:, None, :].repeat(2, axis=1))
    turn = replace(
        visual_sample(6).turns[0],
        labels=("a", "b", "c"),
        regions=((Region(mask, "box"),), (Region(mask, "point"), Region(other, "point")), (Region(other, "point"),)),
        masks=(mask, other, mask, other),
        mask_phrases=(0, 1, 2, 1),
    )
    kept = with_prompt(turn, "point")
    assert kept.labels == ("b", "c") and kept.regions == ((Region(mask, "point"),), (Region(other, "point"),))
    assert kept.masks == (other, mask, other) and kept.mask_phrases == (0, 1, 0)
    assert with_prompt(turn, "scribble") is None


def test_objects_without_such_a_prompt_are_left_to_be_counted():
    sample = interactive_sample(5)
    kinds = {region.kind for turn in sample.turns for region in turn.regions[0]}
    missing = next(kind for kind in REGION_KINDS if kind not in kinds)
    assert Benchmark("x", "referring-iou", {}, prompt=missing).asked(sample).turns == ()
    assert Benchmark("x", "referring-iou", {}).asked(sample) is sample


def test_own_benchmarks(root, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        """
- name: camvid
  metric: mean-iou
  dataset: {format: class-maps, images: camvid/val, annotations: camvid/valannot, classes: class_maps/classes.txt, ignore_value: 11}
- name: camvid-panoptic
  metric: panoptic-quality
  dataset: {format: class-maps, images: camvid/val, annotations: camvid/valannot, classes: class_maps/classes.txt, ignore_value: 11}
  options: {threshold: 0.25}
"""
    )
    first, second = select_benchmarks(str(file))
    reader = build_reader(first.dataset, root, "raise")
    assert len(reader) == 3 and first.metric == "mean-iou" and second.result_options.threshold == 0.25
    assert names(select_benchmarks(f"coco-panoptic,{file}")) == ["coco-panoptic", "camvid", "camvid-panoptic"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{name: x}", r"is not a list of benchmarks, mappings of name, metric, dataset, options, prompt"),
        ("- {name: x, metric: mean-iou, dataset: {}, colour: red}", r"is not a list of benchmarks.*colour"),
        ("- {name: x, metric: area, dataset: {}}", r"metric 'area' is unknown; known are panoptic-quality, "),
        ("- {name: x, metric: mean-iou, dataset: {}, prompt: arrow}", r"prompt 'arrow' is none of point, scribble"),
        ("- {name: x, metric: mean-iou, dataset: {}, options: {size: 3}}", r"options \['size'\] are none of"),
        ("- [", r"is not a list of benchmarks"),
        ("- {name: a/b, metric: mean-iou, dataset: {}}", r"'a/b': its name is one of files"),
        ("- {name: settings, metric: mean-iou, dataset: {}}", r"'settings': its name is one of files"),
    ],
)
def test_malformed_files(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_benchmarks(file)


def test_two_of_one_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("- {name: coco-panoptic, metric: mean-iou, dataset: {format: class-maps}}")
    with pytest.raises(ValueError, match="two benchmarks have the same name"):
        select_benchmarks(f"coco-panoptic,{file}")


def test_metrics_of_categories_need_a_list(root):
    reader = build_reader(BENCHMARKS["refcoco-val"].dataset, root, "raise")
    with pytest.raises(ValueError, match="MeanIoU needs a data set with a list of categories, RefCocoReader has none"):
        Benchmark("x", "mean-iou", {}).build_metric(reader, "words")
    sample = category_sample(0)
    assert Benchmark("x", "mean-iou", {}).asked(sample) is sample
