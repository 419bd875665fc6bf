"""Whole evaluations: every benchmark, resumed, scored again, on several processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from dataset_fixtures.benchmarks import write_benchmarks
from xsam_training import evaluate as evaluation
from xsam_training.adapters import lora_config
from xsam_training.cli import app
from xsam_training.evaluate import EvaluationSettings, build_predictor, fingerprint, load_model
from xsam_training.evaluation.answers import Answer, AnsweredSegment
from xsam_training.evaluation.benchmarks import select_benchmarks

ROOT = Path(__file__).resolve().parents[2]
# METEOR and the tokenizer of captions need Java, see test_grounded_conversation_figures.py.
WITHOUT_JAVA = "coco,ade20k,refcoco,refcoco+,refcocog,grefcoco,reasonseg,vgd,interactive"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(folder)
    return folder


@pytest.fixture(scope="module")
def settings(root):
    return EvaluationSettings(str(root / "models/xsam"), max_new_tokens=8, text_encoder="words")


@pytest.fixture(scope="module")
def predictor(settings):
    return build_predictor(*load_model(settings.model), settings)


def evaluate(*arguments):
    """All results at once."""
    return list(evaluation.evaluate(*arguments))


def figures(results):
    """As JSON, in which NaN is equal to itself."""
    return json.dumps({result.name: result.to_json()["figures"] for result in results})


def test_all_benchmarks(root, settings, predictor, tmp_path):
    results = evaluate(select_benchmarks(WITHOUT_JAVA), root, settings, predictor, tmp_path / "predictions")
    assert len(results) == 3 + 3 + 11 + 6 + 8
    by_name = {result.name: result for result in results}
    assert next(iter(by_name["coco-panoptic"].figures)) == "PQ" and by_name["coco-panoptic"].num_samples == 3
    assert next(iter(by_name["refcoco-val"].figures)) == "cIoU"
    assert by_name["grefcoco-testA"].figures.keys() >= {"cIoU", "gIoU", "N-acc"}
    assert by_name["vgd-box"].figures.keys() >= {"AP", "AP50"}
    assert by_name["reasonseg-val"].num_questions == (
        by_name["reasonseg-val-short"].num_questions + by_name["reasonseg-val-long"].num_questions
    )
    for result in results:
        assert result.num_questions == len(result.records) > 0 and not result.failures and not result.skipped
        assert all(0 <= record.quality <= 1 for record in result.records)


def oracle(sample, index, options):
    """What a perfect model would answer."""
    answers = []
    for turn in sample.turns:
        found = list(zip(turn.mask_phrases, turn.masks, strict=True))
        if options.subtask == "semantic":
            found += [(phrase, mask) for mask, phrase in turn.ignored_areas if phrase is not None]
        if options.subtask == "semantic" or turn.task in ("referring", "reasoning", "interactive"):
            phrases = dict.fromkeys(phrase for phrase, _ in found)
            found = [(phrase, coco_mask.merge([m for p, m in found if p == phrase])) for phrase in phrases]
        segments = tuple(AnsweredSegment(phrase, mask, 0.9) for phrase, mask in found)
        answers.append(Answer(segments, turn.answer, turn.spans))
    return answers


def test_a_perfect_model_gets_full_marks(root, settings):
    for result in evaluate(select_benchmarks(WITHOUT_JAVA), root, settings, oracle):
        assert all(value == pytest.approx(1.0) for value in result.by_label.values() if value == value)
        known = {name: value for name, value in result.figures.items() if value == value}
        assert known and all(value == pytest.approx(1.0) for value in known.values()), (result.name, result.figures)
        assert all(record.quality == pytest.approx(1.0) for record in result.records)


def test_every_question_counts_when_nothing_is_given(root, settings):
    """A random model generates no `<SEG>`: every answer is an empty mask, and is named."""
    generate = replace(settings, protocol="generate", max_new_tokens=2)
    predictor = build_predictor(*load_model(settings.model), generate)
    results = evaluate(select_benchmarks("refcoco-val,coco-instance"), root, generate, predictor)
    for result in results:
        assert len(result.failures) == result.num_questions
        assert "no <SEG>" in result.failures[0]["why"] and result.failures[0]["sample"]
        assert result.figures[next(iter(result.figures))] == 0.0


class Counting:
    """A predictor that counts, and can break off."""

    def __init__(self, predictor, last=None):
        self.predictor, self.last, self.calls = predictor, last, 0

    def __call__(self, sample, index, options):
        if self.last is not None and self.calls == self.last:
            raise KeyboardInterrupt
        self.calls += 1
        return self.predictor(sample, index, options)


def test_an_interrupted_run_goes_on(root, settings, predictor, tmp_path):
    benchmarks = select_benchmarks("coco-panoptic,interactive-point,refcoco-testA")
    whole = evaluate(benchmarks, root, settings, predictor)
    with pytest.raises(KeyboardInterrupt):
        evaluate(benchmarks, root, settings, Counting(predictor, last=2), tmp_path / "p")
    rest = Counting(predictor)
    resumed = evaluate(benchmarks, root, settings, rest, tmp_path / "p")
    assert rest.calls == sum(result.num_samples for result in whole) - 2
    assert figures(resumed) == figures(whole)
    assert figures(evaluate(benchmarks, root, settings, None, tmp_path / "p")) == figures(whole)


def test_a_limit_can_be_raised(root, settings, predictor, tmp_path):
    benchmarks = select_benchmarks("coco-semantic")
    (first,) = evaluate(benchmarks, root, replace(settings, limit=1), predictor, tmp_path / "p")
    assert first.num_samples == 1
    with pytest.raises(ValueError, match=r"has no prediction for .*; make it with xsam evaluate, or .* --limit"):
        evaluate(benchmarks, root, settings, None, tmp_path / "p")
    counting = Counting(predictor)
    (all_of_them,) = evaluate(benchmarks, root, settings, counting, tmp_path / "p")
    assert all_of_them.num_samples == 3 and counting.calls == 2


def test_what_cannot_be_read_is_left_out_on_request_and_named(root, settings, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(root / "coco2017", copy / "coco2017")
    broken = sorted((copy / "coco2017/val2017").iterdir())[1]
    broken.write_bytes(b"no image")
    benchmarks = select_benchmarks("coco-semantic")
    with pytest.raises(ValueError, match=broken.stem):
        evaluate(benchmarks, copy, settings, oracle)
    (result,) = evaluate(benchmarks, copy, settings, oracle, None, 0, "skip")
    (whole,) = evaluate(benchmarks, root, settings, oracle)
    assert (result.num_samples, result.num_questions) == (whole.num_samples - 1, whole.num_questions - 1)
    ((reason, count),) = result.skipped.items()
    assert count == 1 and broken.name in reason


def test_what_is_done_stays_when_the_next_fails(root, settings, tmp_path):
    output = tmp_path / "results.json"
    file = tmp_path / "broken.yaml"
    file.write_text("- {name: broken, metric: mean-iou, dataset: {format: class-maps, images: camvid/val,"
                    " annotations: camvid/valannot, classes: class_maps/classes.txt, ignore_value: 255}}")  # fmt: skip
    arguments = ["evaluate", settings.model, "--data", root, "--output", output, "--benchmark"]
    result = CliRunner().invoke(app, [str(each) for each in (*arguments, f"coco-semantic,{file}")])
    assert result.exit_code == 2 and "coco-semantic" in result.output
    assert "has the value 11" in " ".join(result.output.replace("│", " ").split())
    assert list(json.loads(output.read_text())["benchmarks"]) == ["coco-semantic"]
    command(root, *arguments, "refcoco-testA")
    assert list(json.loads(output.read_text())["benchmarks"]) == ["coco-semantic", "refcoco-testA"]
    command(root, "score", output, "--data", root, "--benchmark", "refcoco-testA")


def test_who_stops_a_run_learns_how_it_goes_on(root, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "build_predictor", lambda *_: Counting(oracle, last=4))
    output = tmp_path / "results.json"
    arguments = (
        "evaluate",
        settings.model,
        "--data",
        root,
        "--output",
        output,
        "--benchmark",
        "coco-panoptic,coco-semantic",
    )
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code != 0 and "stopped; the same command goes on" in result.output
    assert list(json.loads(output.read_text())["benchmarks"]) == ["coco-panoptic"]
    monkeypatch.setattr(evaluation, "build_predictor", lambda *_: Counting(oracle, last=2))
    command(root, *arguments)
    assert list(json.loads(output.read_text())["benchmarks"]) == ["coco-panoptic", "coco-semantic"]


@pytest.mark.parametrize("change", [{"template_seed": 3}, {"weights": "0123"}, {"protocol": "generate"}])
def test_predictions_of_other_settings_are_not_mixed(root, settings, predictor, tmp_path, change):
    evaluate(select_benchmarks("coco-semantic"), root, replace(settings, limit=1), predictor, tmp_path / "p")
    (name,) = change
    with pytest.raises(ValueError, match=f"holds predictions with {name} .*; give another --output"):
        evaluate(select_benchmarks("coco-semantic"), root, replace(settings, **change), predictor, tmp_path / "p")


def test_the_fingerprint_changes_with_the_weights(settings):
    model, processor = load_model(settings.model)
    before = fingerprint(model, processor)
    assert before == fingerprint(*load_model(settings.model))
    model.lm_head.weight.data[0, 0] += 1
    assert fingerprint(model, processor) != before


def test_a_model_of_stage_1(root, settings, tmp_path):
    from modeling_xsam import XSAMForUniversalSegmentation
    from tiny_models import tiny_config

    (benchmark,) = select_benchmarks("coco-panoptic")
    labels = evaluation.build_reader(benchmark.dataset, root, "raise").labels
    XSAMForUniversalSegmentation(tiny_config(id2label=dict(enumerate(labels)))).save_pretrained(tmp_path)
    load_model(settings.model)[1].save_pretrained(tmp_path)
    model, processor = load_model(str(tmp_path))
    assert type(model) is XSAMForUniversalSegmentation
    results = evaluate(select_benchmarks("coco"), root, settings, build_predictor(model, processor, settings))
    assert [result.num_questions for result in results] == [3, 3, 3]
    with pytest.raises(ValueError, match="a model of stage 1 has no prompts"):
        build_predictor(model, processor, replace(settings, protocol="generate"))


def test_adapters_are_merged_into_their_base(settings, tmp_path):
    base, processor = load_model(settings.model)
    adapted = get_peft_model(base, lora_config(base, rank=2, alpha=64))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    adapted.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_model(str(tmp_path))
    assert type(loaded).__name__ == "XSAMForSegmentation" and not loaded.training
    merged = adapted.merge_and_unload().state_dict()
    assert loaded.state_dict().keys() == merged.keys()
    assert all(torch.equal(value, merged[name]) for name, value in loaded.state_dict().items())
    assert fingerprint(loaded, processor) != fingerprint(*load_model(settings.model))


def command(root, *arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_command_line(root, tmp_path):
    output = tmp_path / "results.json"
    printed = command(
        root, "evaluate", root / "models/xsam", "--benchmark", "coco-panoptic,refcoco-testA", "--data", root,
        "--output", output, "--samples", "--cases", 2,
    )  # fmt: skip
    assert "coco-panoptic" in printed and "cIoU" in printed and "index.html" in printed
    content = json.loads(output.read_text())
    assert content["settings"]["protocol"] == "xsam" and content["versions"]["pycocotools"]
    assert content["benchmarks"]["refcoco-testA"]["failures"] == []
    lines = [json.loads(line) for line in (tmp_path / "results/samples.jsonl").read_text().splitlines()]
    assert len(lines) == sum(each["num_questions"] for each in content["benchmarks"].values())
    assert {"benchmark", "name", "question", "quality", "failure", "measurement"} <= lines[0].keys()
    page = (tmp_path / "results/index.html").read_text()
    for picture in (tmp_path / "results/pictures").iterdir():
        assert f"pictures/{picture.name}" in page
    assert len(list((tmp_path / "results/pictures").iterdir())) == 3 + 4
    before = content["benchmarks"]["coco-panoptic"]["figures"]
    output.unlink()
    command(root, "score", output, "--data", root)
    assert json.loads(output.read_text())["benchmarks"]["coco-panoptic"]["figures"] == before
    # Lines of the run before are not those of these figures.
    assert not (tmp_path / "results/samples.jsonl").exists()


def test_a_score_has_the_limit_of_its_run(root, tmp_path):
    output = tmp_path / "results.json"
    command(
        root, "evaluate", root / "models/xsam", "--benchmark", "coco-semantic", "--data", root, "--output", output,
        "--limit", 2,
    )  # fmt: skip
    first = json.loads(output.read_text())["benchmarks"]
    command(root, "score", output, "--data", root)
    second = json.loads(output.read_text())
    assert second["settings"]["limit"] == 2 and second["benchmarks"]["coco-semantic"]["num_samples"] == 2
    assert second["benchmarks"]["coco-semantic"]["figures"] == first["coco-semantic"]["figures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "cooc"], "'cooc' is unknown"),
        (["--benchmark", "coco", "--limit", "0"], "--limit 0"),
        (["--benchmark", "coco", "--output", "results.txt"], "give a .json file"),
        (["--benchmark", "coco", "--samples"], "--samples needs --output"),
    ],
)
def test_bad_arguments(root, arguments, message):
    result = CliRunner().invoke(app, ["evaluate", str(root / "models/xsam"), "--data", str(root), *arguments])
    assert result.exit_code == 2 and message in " ".join(result.output.replace("│", " ").split())


def test_scoring_needs_predictions(root, tmp_path):
    result = CliRunner().invoke(app, ["score", str(tmp_path / "results.json"), "--data", str(root)])
    assert result.exit_code == 2 and "holds no predictions" in " ".join(result.output.replace("│", " ").split())


def test_three_processes_give_the_figures_of_one(root, settings, predictor, tmp_path):
    """On data sets whose sizes are no multiples of three, to the last digit."""
    names = "coco,refcoco-val,grefcoco-testA,vgd-box,reasonseg-test,interactive-mask"
    alone = evaluate(select_benchmarks(names), root, settings, predictor)
    output = tmp_path / "results.json"
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3",
            "-m", "xsam_training.cli", "evaluate", settings.model, "--benchmark", names, "--data", str(root),
            "--output", str(output), "--max-new-tokens", "8", "--text-encoder", "words", "--cases", "1", "--samples",
        ],
        check=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    content = json.loads(output.read_text())
    assert content["processes"] == 3
    assert json.dumps({name: each["figures"] for name, each in content["benchmarks"].items()}) == figures(alone)
    assert [each["num_questions"] for each in content["benchmarks"].values()] == [r.num_questions for r in alone]
    lines = [json.loads(line) for line in (tmp_path / "results/samples.jsonl").read_text().splitlines()]
    assert [(each["benchmark"], each["sample"], each["turn"], each["quality"]) for each in lines] == [
        (result.name, record.sample, record.turn, record.quality) for result in alone for record in result.records
    ]
    parts = {file.name for file in (tmp_path / "results/predictions").glob("*/part-*.jsonl")}
    assert parts == {"part-00000.jsonl", "part-00001.jsonl", "part-00002.jsonl"}
