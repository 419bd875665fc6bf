"""What is measured and stored of a checkpoint of the shape world and of baselines, and its card."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiny_models import IMAGE, SEG, batch, phrase, prompt_ids, tiny_images, tiny_model
from xsam_training import shape_world_card as card
from xsam_training.data.formats import build_reader
from xsam_training.evaluation import grounded_conversation
from xsam_training.evaluation.benchmarks import load_benchmarks
from xsam_training.evaluation.captions import CaptionScores
from xsam_training.evaluation.results import BenchmarkResult, QuestionRecord
from xsam_training.shape_world_table import COLUMNS, END, ROWS, START, held_out_miou, insert, table

BENCHMARKS = load_benchmarks(card.BENCHMARKS_FILE)
NAMES = [benchmark.name for benchmark in BENCHMARKS]
CHECKPOINT = Path(__file__).resolve().parents[2] / "hub_cards" / "xsam-tiny"
TEXT = f"# A model\n\n{START}\nold\n{END}\n\nMore.\n"


@pytest.fixture(scope="module")
def baselines(tmp_path_factory):
    """What is stored of the baselines, asked about one scene of each benchmark; METEOR's Java program takes long to start."""
    folder = tmp_path_factory.mktemp("baselines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grounded_conversation, "check_captioning", lambda: None)
        patch.setattr(grounded_conversation, "score_captions", lambda *texts: CaptionScores(0.0, 0.0))
        card.measure_baselines(str(CHECKPOINT), folder, limit=1)
    return {file.stem: json.loads(file.read_text(encoding="utf-8"))["benchmarks"] for file in folder.iterdir()}


@pytest.fixture(scope="module")
def write_part(baselines):
    """Writes a part whose figures have the names that an evaluation gives them."""

    def measured(benchmark, value, failures):
        record = QuestionRecord(0, 0, "scene", "question", 1.0, "", None)
        failed = replace(record, failure="the answer has no <SEG>.")
        return BenchmarkResult(
            name=benchmark.name,
            metric=benchmark.metric,
            definition=benchmark.definition,
            figures=dict.fromkeys(baselines["oracle"][benchmark.name]["figures"], value),
            by_label={},
            num_samples=2,
            num_questions=10,
            not_asked=0,
            skipped={},
            seconds=1.0,
            records=[record] * (10 - failures) + [failed] * failures,
        )

    def write(folder, column, weights="", limit=None, value=0.5, leave_out=(), failures=0):
        settings = card.evaluation.EvaluationSettings(f"somewhere/{column}", limit=limit, weights=weights)
        benchmarks = [each for each in card.benchmarks_of(column) if each.name not in leave_out]
        results = [measured(each, value, failures) for each in benchmarks]
        card.evaluation.save_results(folder / f"{column}.json", settings, results)

    return write


@pytest.fixture(scope="module")
def parts(tmp_path_factory, write_part):
    """All parts, as measured: 0 %, 10 %, and so on from column to column."""
    folder = tmp_path_factory.mktemp("parts")
    for place, column in enumerate(COLUMNS):
        write_part(folder, column, weights="abc" if place < 2 else "", value=place / 10, failures=place)
    return folder


@pytest.fixture
def folder(tmp_path, parts):
    """A copy of all parts, to change."""
    return Path(shutil.copytree(parts, tmp_path / "parts"))


def test_benchmarks_build_and_ask_something():
    assert len(set(NAMES)) == len(NAMES) == 22
    for benchmark in BENCHMARKS:
        reader = build_reader(benchmark.dataset, ".", "raise")
        assert len(reader) == 300
        assert reader.world.split == ("held-out" if benchmark.name == "held-out" else "test")
        assert benchmark.asked(reader[0]).turns


def test_every_benchmark_is_in_the_table_under_a_figure_that_it_has(parts):
    figures = card.collect(parts, "abc")["xsam"]["benchmarks"]
    assert list(figures) == NAMES
    asked = set()

    class Watched(dict):
        def __getitem__(self, name):
            asked.add(name)
            return super().__getitem__(name)

    for each in ROWS:
        each.read(Watched(figures))
    assert asked == set(NAMES)


@pytest.mark.parametrize("scale_factors", [[2.0, 1.0, 0.5], [4.0, 2.0, 1.0]])
def test_the_side_of_masks_is_that_of_a_models_masks(scale_factors):
    model = tiny_model(connector_scale_factors=scale_factors)
    outputs = model.segment(**batch(prompt_ids(1, IMAGE, phrase(8, 9), SEG)), **tiny_images())
    assert outputs.masks_queries_logits.shape[-1] == card.mask_side(model.config) == 4 * scale_factors[0]


def test_baselines_are_measured(baselines):
    referring = [benchmark.name for benchmark in BENCHMARKS if benchmark.metric == "referring-iou"]
    assert list(baselines["random-of-kind"]) == list(baselines["largest"]) == referring
    assert baselines["random-of-kind"]["reasoning"]["figures"]["cIoU"] == 1.0
    assert baselines["largest"]["absent"]["figures"]["N-acc"] == 0.0
    assert baselines["oracle"]["absent"]["figures"]["N-acc"] == 1.0
    assert 0.85 < baselines["oracle"]["referring"]["figures"]["cIoU"] < 1.0
    assert 0.8 < held_out_miou(baselines["oracle"]) < 1.0


def test_what_is_stored_is_complete_and_of_one_run(folder, write_part):
    with pytest.raises(ValueError, match=r"xsam\.json has figures of other weights; give another --output"):
        card.collect(folder, "xyz")
    (folder / "largest.json").unlink()
    write_part(folder, "largest", leave_out=("reasoning", "referring"))
    with pytest.raises(ValueError, match=r"largest\.json lacks referring, reasoning; --part baselines goes on"):
        card.collect(folder, "abc")
    write_part(folder, "largest", limit=3)
    with pytest.raises(ValueError, match=r"different limits, .*'largest': 3"):
        card.collect(folder, "abc")
    (folder / "generate.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*generate\.json; --part generate makes it"):
        card.collect(folder, "abc")


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": {**BENCHMARKS[0].dataset, "seed": 1}},
        {"options": {"threshold": 0.25}},
        {"metric": "mean-iou"},
    ],
)
def test_figures_of_a_benchmark_that_was_another_are_refused(parts, monkeypatch, change):
    monkeypatch.setattr(card, "load_benchmarks", lambda file: [replace(BENCHMARKS[0], **change), *BENCHMARKS[1:]])
    with pytest.raises(ValueError, match=r"xsam\.json was .* before kinds-panoptic changed .* another --output"):
        card.collect(parts, "abc")


def test_an_interrupted_part_keeps_what_it_has(tmp_path, write_part):
    write_part(tmp_path, "largest", leave_out=("reasoning",), value=0.25)
    write_part(tmp_path, "largest", leave_out={*NAMES} - {"reasoning"})
    found = json.loads((tmp_path / "largest.json").read_text(encoding="utf-8"))["benchmarks"]
    assert found["referring"]["figures"]["cIoU"] == 0.25 and found["reasoning"]["figures"]["cIoU"] == 0.5
    assert all(each["definition"] for each in found.values())


def test_the_card_and_the_figures_are_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(card.evaluation, "load_model", lambda model: (model, None))
    monkeypatch.setattr(card.evaluation, "fingerprint", lambda model, processor: "abc")
    model = tmp_path / "model"
    model.mkdir()
    arguments = [str(model), "--output", str(folder), "--part", "card"]
    assert "there is no" in CliRunner().invoke(card.app, arguments, terminal_width=500).output
    (model / "README.md").write_text("no marks")
    assert "needs a line" in CliRunner().invoke(card.app, arguments, terminal_width=500).output
    assert [file.name for file in model.iterdir()] == ["README.md"]
    (model / "README.md").write_text(TEXT)
    done = CliRunner().invoke(card.app, arguments)
    assert done.exit_code == 0, done.output
    written = json.loads((model / "evaluation.json").read_text())
    assert (model / "README.md").read_text() == insert(TEXT, table(written))
    assert "| referring by size | cIoU | 0.00 | 10.00 | 20.00 | 30.00 | 40.00 |  |" in done.output
    assert written["xsam"]["settings"]["model"] == "xsam" and "versions" in written["xsam"]
    assert written["generate"]["benchmarks"]["reasoning"]["failures"] == 1


def test_the_card_of_the_small_checkpoint_is_up_to_date():
    text = (CHECKPOINT / card.CARD).read_text(encoding="utf-8")
    # Words such as TRAINING_TABLE, alone on a line, stand for what is still to be written.
    assert re.findall(r"^[A-Z_]+$", text, re.MULTILINE) == []
    figures = json.loads((CHECKPOINT / card.FIGURES_FILE).read_text(encoding="utf-8"))
    assert insert(text, table(figures)) == text
