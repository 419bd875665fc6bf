"""What probes share that train a recipe twice, from the same start and as long, and compare what comes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image

from processing_xsam.visualization_xsam import contact_sheet, visualize

from ..arguments import Arguments, parse_recipe
from ..data.formats import build_reader
from ..data.samples import AnnotatedSample
from ..evaluate import EvaluationSettings, build_predictor, evaluate, fingerprint
from ..evaluation.benchmarks import Benchmark
from ..evaluation.metric import for_json
from ..evaluation.predictor import Protocol
from ..pictures import annotated_segments, predict
from ..train import build_trainer, run
from ..trainer import XSAMTrainer
from .matching import picture_title

MAX_PICTURES = 8
# Fields of a recipe that the probe decides.
DECIDED = ("output_dir", "max_steps", "resume_from_checkpoint")
# Numbers stand for the decoder's layers before the last one.
LOSS_PART = re.compile(r"eval_loss(_[a-z]+)?")


@dataclass(frozen=True)
class RunPlan:
    """
    What both runs have in common.

    Attributes:
        recipe: YAML file, see `xsam train`.
        overrides: `--field=value`, for both runs. `output_dir`, `max_steps` and `resume_from_checkpoint` are decided here.
        benchmarks: what is asked.
        data: folder of their data sets.
        steps: optimiser steps of each run.
        output: gets a folder for each run, with its checkpoints and predictions.
        limit, protocol, max_new_tokens, text_encoder: see `EvaluationSettings`.

    Raises:
        ValueError: if steps are below 1 or there are no benchmarks.
    """

    recipe: Path
    overrides: Sequence[str]
    benchmarks: Sequence[Benchmark]
    data: Path
    steps: int
    output: Path
    limit: int | None = None
    protocol: Protocol = "xsam"
    max_new_tokens: int = 512
    text_encoder: str = "bert-base-uncased"

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.benchmarks:
            raise ValueError(
                f"steps is {self.steps} and there are {len(self.benchmarks)} benchmarks; give at least 1 of both"
            )

    @property
    def evaluation(self) -> dict[str, Any]:
        """The fields of `EvaluationSettings` that are chosen here."""
        names = ("limit", "protocol", "max_new_tokens", "text_encoder")
        return {name: getattr(self, name) for name in names}

    @property
    def claim(self) -> dict[str, Any]:
        """What a folder of runs is of."""
        return {
            "recipe": self.recipe.read_text(encoding="utf-8"),
            "overrides": list(self.overrides),
            "steps": self.steps,
        }

    def arguments(self, name: str, changes: Sequence[str] = ()) -> Arguments:
        """Those of a run; `changes` are its own overrides."""
        decided = [f"--max_steps={self.steps}", "--resume_from_checkpoint=last", f"--output_dir={self.output / name}"]
        return parse_recipe(self.recipe, [*self.overrides, *changes, *decided])

    def trainer(self, arguments: Arguments) -> XSAMTrainer:
        """
        Raises:
            ValueError: if the model is sharded: it then could be asked by all processes together alone.
        """
        trainer = build_trainer(arguments)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("the model is sharded (FSDP or DeepSpeed); this probe needs it whole on each process")
        return trainer


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        training: seed, batch size and learning rate.
        figures: the main one of each benchmark, and the parts of the loss.
        cases: all figures of each benchmark.
        overlays: what is predicted for each sample that is shown.
    """

    training: dict[str, Any]
    figures: dict[str, float]
    cases: list[dict[str, Any]]
    overlays: list[Image.Image | None]


@dataclass(frozen=True)
class PairedRuns:
    """Both runs by their names, the one first that the other is compared with."""

    plan: RunPlan
    shown: Sequence[AnnotatedSample | None]
    runs: Mapping[str, Run]

    @property
    def figures(self) -> dict[str, float]:
        """Of each figure the values of both runs, and the `change`: the second's less the first's."""
        (name, first), (other_name, second) = self.runs.items()
        figures = {}
        for figure, value in first.figures.items():
            other = second.figures[figure]
            figures |= {f"{figure} {name}": value, f"{figure} {other_name}": other, f"{figure} change": other - value}
        return figures

    @property
    def settings(self) -> dict[str, Any]:
        """What the figures depend on; of the training as the first run has it."""
        first = next(iter(self.runs.values()))
        return {
            "recipe": str(self.plan.recipe),
            "overrides": list(self.plan.overrides),
            "steps": self.plan.steps,
            **first.training,
            **self.plan.evaluation,
        }

    @property
    def cases(self) -> list[dict[str, Any]]:
        return [{"run": name, **case} for name, each in self.runs.items() for case in each.cases]

    @property
    def pictures(self) -> list[tuple[str, Image.Image]]:
        """Of each benchmark one question: its annotation and the answers of both runs, below each other."""
        pictures = []
        for place, (benchmark, sample) in enumerate(
            zip(self.plan.benchmarks[:MAX_PICTURES], self.shown, strict=False)
        ):
            if sample is None:
                continue
            turn = sample.turns[0]
            column = [("annotation", visualize(sample.image, *annotated_segments(turn, sample.image)))]
            column += [(name, each.overlays[place]) for name, each in self.runs.items()]
            pictures.append((picture_title(turn.text or turn.task, benchmark.name), contact_sheet(column, columns=1)))
        return pictures


def train_and_evaluate(
    plan: RunPlan,
    trainers: Mapping[str, Callable[[], XSAMTrainer]],
    baseline: str,
    claim_file: str,
    claim: Mapping[str, Any],
) -> PairedRuns:
    """
    Train and evaluate one run after the other.

    Interrupted runs go on: training from the newest checkpoint in its folder, as often as the recipe saves one, and
    evaluation from stored predictions. Finished ones are not trained again. With several processes all of them return the
    same.

    Args:
        trainers: of both runs by their names, built one after the other, in this order; also for a run that goes on or is
            finished, whose weights are then those of its checkpoint.
        baseline: name of the run that the other is compared with.
        claim_file: says in the output folder what its runs are of.
        claim: its content.

    Raises:
        ValueError: if a model is sharded (FSDP, DeepSpeed), or the output holds runs of something else.
    """
    # What is wrong with the data of the benchmarks shows before the training.
    shown = [_first_question(benchmark, plan.data, plan.text_encoder) for benchmark in plan.benchmarks]
    runs = {}
    for name, build in trainers.items():
        trainer = build()
        with PartialState().main_process_first():
            _claim(plan.output, claim_file, claim)
        run(trainer)
        runs[name] = _evaluated(trainer, plan, plan.output / name, shown)
        trainer.accelerator.free_memory()
        # Before the next one takes its place, so that there is room for its model.
        del trainer
    return PairedRuns(plan, shown, {baseline: runs.pop(baseline), **runs})


def _claim(output: Path, claim_file: str, content: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: if the folder holds runs of something else.
    """
    file = output / claim_file
    if not file.exists():
        output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in content if earlier.get(name) != content[name]]
    if changed:
        raise ValueError(
            f"output: {output} holds runs with another {changed[0]}, see {claim_file}; give another folder, or delete it"
        )


def _first_question(benchmark: Benchmark, data: Path, text_encoder: str) -> AnnotatedSample | None:
    """The first sample that the benchmark asks something about, if there is any."""
    reader = build_reader(benchmark.dataset, data, "raise", field=f"benchmark {benchmark.name}")
    benchmark.build_metric(reader, text_encoder)
    asked = (benchmark.asked(reader[index]) for index in range(len(reader)))
    return next((sample for sample in asked if sample.turns), None)


def _evaluated(trainer: XSAMTrainer, plan: RunPlan, folder: Path, shown: Sequence[AnnotatedSample | None]) -> Run:
    losses = trainer.evaluate() if trainer.eval_dataset is not None else {}
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    processor = trainer.processing_class
    settings = EvaluationSettings(model=str(folder), weights=fingerprint(model, processor), **plan.evaluation)
    predictor = build_predictor(model, processor, settings)
    results = list(evaluate(plan.benchmarks, plan.data, settings, predictor, folder / "predictions"))
    # Other processes than the main one get none.
    figures = broadcast_object_list([[result.figures for result in results]])[0]
    main = {
        f"{benchmark.name} {next(iter(each))}": next(iter(each.values()))
        for benchmark, each in zip(plan.benchmarks, figures, strict=True)
    }
    args = trainer.args
    return Run(
        training={
            "seed": args.seed,
            "samples of a step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "learning_rate": args.learning_rate,
        },
        figures={**main, **{name: value for name, value in losses.items() if LOSS_PART.fullmatch(name)}},
        cases=[
            {"benchmark": benchmark.name, "figures": for_json(each)}
            for benchmark, each in zip(plan.benchmarks, figures, strict=True)
        ],
        overlays=[
            sample and visualize(sample.image, *predict(model, processor, sample.image, sample.turns[0]))
            for sample in shown[:MAX_PICTURES]
        ],
    )
