"""What does resampling of the data sets change for each task? The same training, with and without it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image

from processing_xsam.visualization_xsam import contact_sheet, visualize

from ..arguments import parse_recipe
from ..data.formats import build_reader
from ..data.samples import AnnotatedSample
from ..evaluate import EvaluationSettings, build_predictor, evaluate, fingerprint
from ..evaluation.benchmarks import Benchmark
from ..evaluation.metric import for_json
from ..evaluation.predictor import Protocol
from ..pictures import annotated_segments, predict
from ..sampler import repeat_factors, samples_per_epoch
from ..train import build_trainer, run
from ..trainer import XSAMTrainer
from .matching import picture_title
from .report import ProbeReport

MAX_PICTURES = 8
# Numbers stand for the decoder's layers before the last one.
LOSS_PART = re.compile(r"eval_loss(_[a-z]+)?")
# Says in the output folder what its runs are of.
CLAIM_FILE = "mixture_runs.json"


def probe_mixture(
    recipe: Path,
    overrides: Sequence[str],
    benchmarks: Sequence[Benchmark],
    data: Path,
    *,
    steps: int,
    output: Path,
    limit: int | None = None,
    protocol: Protocol = "xsam",
    max_new_tokens: int = 512,
    text_encoder: str = "bert-base-uncased",
) -> ProbeReport:
    """
    A recipe is trained twice from the same start, with the same seed and for the same number of steps: "balanced" with its
    own `balance_threshold`, by which small data sets are repeated, and "unbalanced" with 0, by which every sample comes
    once an epoch. Both are evaluated on the same benchmarks.

    Figures, for each benchmark B with its main figure F, in the units of F:

    - `B F balanced`, `B F unbalanced`: the figure of either run.
    - `B F change`: unbalanced less balanced. Below 0: the task loses when resampling is turned off. Tasks with small data
      sets are expected to lose, those with large ones to gain.
    - `eval_loss ...` likewise, if the recipe has `eval_datasets`: the loss on all of them together, and its parts (those of
      the decoder's last layer). Here less is better.

    What it cannot show: the size of the effect at another budget. At few steps the runs differ by their samples' order
    too, since another mixture is another order; repeat it with other seeds (`--seed=1`) before a small change is
    believed. `settings` have what each data set gives an epoch in both runs.

    Interrupted runs go on: training from the newest checkpoint in its folder, as often as the recipe saves one, and
    evaluation from stored predictions. Finished ones are not trained again. With several processes all of them return the
    same report.

    Args:
        recipe: YAML file, see `xsam train`. Its `model` names the checkpoint to start from.
        overrides: `--field=value`, for both runs. `output_dir`, `max_steps` and `resume_from_checkpoint` are decided here.
        benchmarks: what is asked.
        data: folder of their data sets.
        steps: optimiser steps of each run.
        output: gets the folders `balanced` and `unbalanced`, each with its checkpoints and predictions.
        limit, protocol, max_new_tokens, text_encoder: see `EvaluationSettings`.

    Raises:
        ValueError: if steps are below 1, there are no benchmarks, the recipe repeats no data set, its model is sharded
            (FSDP, DeepSpeed), or the output holds runs of another recipe, of other overrides or of other steps.
    """
    if steps < 1 or not benchmarks:
        raise ValueError(f"steps is {steps} and there are {len(benchmarks)} benchmarks; give at least 1 of both")
    common = [*overrides, f"--max_steps={steps}", "--resume_from_checkpoint=last"]
    threshold = parse_recipe(recipe, common)[1].balance_threshold
    claim = {"recipe": recipe.read_text(encoding="utf-8"), "overrides": list(overrides), "steps": steps}
    # What is wrong with the data of the benchmarks shows before the training.
    shown = [_first_question(benchmark, data, text_encoder) for benchmark in benchmarks]
    evaluation = {"limit": limit, "protocol": protocol, "max_new_tokens": max_new_tokens, "text_encoder": text_encoder}
    runs = {}
    for name, value in {"balanced": threshold, "unbalanced": 0.0}.items():
        folder = output / name
        arguments = parse_recipe(recipe, [*common, f"--balance_threshold={value}", f"--output_dir={folder}"])
        trainer = build_trainer(arguments)
        mixture = _mixture(arguments[1].datasets, trainer.train_dataset.lengths, value)
        if name == "balanced":
            _check_trainer(trainer, mixture, value)
            with PartialState().main_process_first():
                _claim(output, claim)
        run(trainer)
        runs[name] = _evaluated(trainer, mixture, benchmarks, data, folder, evaluation, shown)
        trainer.accelerator.free_memory()
        # Before the next one takes its place, so that there is room for its model.
        del trainer
    return ProbeReport(
        name="mixture",
        meaning=f"What each task gains or loses without resampling of the data sets, after {steps} steps.",
        figures=_figures(runs["balanced"], runs["unbalanced"]),
        settings={
            "recipe": str(recipe),
            "overrides": list(overrides),
            "steps": steps,
            **runs["balanced"].training,
            **evaluation,
            "balance_threshold": threshold,
            "data sets": {name: each.mixture for name, each in runs.items()},
        },
        cases=[{"run": name, **case} for name, each in runs.items() for case in each.cases],
        pictures=_pictures(benchmarks, shown, runs),
    )


@dataclass(frozen=True)
class _Run:
    """
    Attributes:
        mixture: of each data set the size, the repeat factor and the samples of an epoch.
        training: seed and batch sizes.
        figures: the main one of each benchmark, and the parts of the loss.
        cases: all figures of each benchmark.
        overlays: what is predicted for each sample that is shown.
    """

    mixture: list[dict[str, Any]]
    training: dict[str, Any]
    figures: dict[str, float]
    cases: list[dict[str, Any]]
    overlays: list[Image.Image | None]


def _claim(output: Path, content: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: if the folder holds runs of something else.
    """
    file = output / CLAIM_FILE
    if not file.exists():
        output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in content if earlier.get(name) != content[name]]
    if changed:
        raise ValueError(
            f"output: {output} holds runs with another {changed[0]}, see {CLAIM_FILE}; give another folder, or delete it"
        )


def _first_question(benchmark: Benchmark, data: Path, text_encoder: str) -> AnnotatedSample | None:
    """The first sample that the benchmark asks something about, if there is any."""
    reader = build_reader(benchmark.dataset, data, "raise", field=f"benchmark {benchmark.name}")
    benchmark.build_metric(reader, text_encoder)
    asked = (benchmark.asked(reader[index]) for index in range(len(reader)))
    return next((sample for sample in asked if sample.turns), None)


def _mixture(specs: Sequence[Mapping[str, Any]], lengths: Sequence[int], threshold: float) -> list[dict[str, Any]]:
    factors = repeat_factors(lengths, threshold)
    counts = samples_per_epoch(lengths, factors)
    return [
        {"data set": spec.get("name", spec["format"]), "samples": length, "factor": factor, "an epoch": count}
        for spec, length, factor, count in zip(specs, lengths, factors, counts, strict=True)
    ]


def _check_trainer(trainer: XSAMTrainer, mixture: Sequence[Mapping[str, Any]], threshold: float) -> None:
    """
    Raises:
        ValueError: if both runs would be the same, or the model can only be asked by all processes together.
    """
    if all(each["an epoch"] == each["samples"] for each in mixture):
        raise ValueError(
            f"balance_threshold is {threshold}, which repeats none of the {len(mixture)} data sets: both runs would be the"
            " same. Take a recipe with data sets of different sizes, or a larger threshold, up to 1."
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError("the model is sharded (FSDP or DeepSpeed); this probe needs it whole on each process")


def _evaluated(
    trainer: XSAMTrainer,
    mixture: list[dict[str, Any]],
    benchmarks: Sequence[Benchmark],
    data: Path,
    folder: Path,
    evaluation: Mapping[str, Any],
    shown: Sequence[AnnotatedSample | None],
) -> _Run:
    losses = trainer.evaluate() if trainer.eval_dataset is not None else {}
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    processor = trainer.processing_class
    settings = EvaluationSettings(model=str(folder), weights=fingerprint(model, processor), **evaluation)
    predictor = build_predictor(model, processor, settings)
    results = list(evaluate(benchmarks, data, settings, predictor, folder / "predictions"))
    # Other processes than the main one get none.
    figures = broadcast_object_list([[result.figures for result in results]])[0]
    main = {
        f"{benchmark.name} {next(iter(each))}": next(iter(each.values()))
        for benchmark, each in zip(benchmarks, figures, strict=True)
    }
    args = trainer.args
    return _Run(
        mixture=mixture,
        training={
            "seed": args.seed,
            "samples of a step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "learning_rate": args.learning_rate,
        },
        figures={**main, **{name: value for name, value in losses.items() if LOSS_PART.fullmatch(name)}},
        cases=[
            {"benchmark": benchmark.name, "figures": for_json(each)}
            for benchmark, each in zip(benchmarks, figures, strict=True)
        ],
        overlays=[
            sample and visualize(sample.image, *predict(model, processor, sample.image, sample.turns[0]))
            for sample in shown[:MAX_PICTURES]
        ],
    )


def _figures(balanced: _Run, unbalanced: _Run) -> dict[str, float]:
    figures = {}
    for name, value in balanced.figures.items():
        other = unbalanced.figures[name]
        figures |= {f"{name} balanced": value, f"{name} unbalanced": other, f"{name} change": other - value}
    return figures


def _pictures(
    benchmarks: Sequence[Benchmark], shown: Sequence[AnnotatedSample | None], runs: Mapping[str, _Run]
) -> list[tuple[str, Image.Image]]:
    """Of each benchmark one question: its annotation and the answers of both runs, below each other."""
    pictures = []
    for place, (benchmark, sample) in enumerate(zip(benchmarks[:MAX_PICTURES], shown, strict=False)):
        if sample is None:
            continue
        turn = sample.turns[0]
        column = [("annotation", visualize(sample.image, *annotated_segments(turn, sample.image)))]
        column += [(name, each.overlays[place]) for name, each in runs.items()]
        pictures.append((picture_title(turn.text or turn.task, benchmark.name), contact_sheet(column, columns=1)))
    return pictures
