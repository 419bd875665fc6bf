"""What does resampling of the data sets change for each task? The same training, with and without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..sampler import repeat_factors, samples_per_epoch
from ..trainer import XSAMTrainer
from .paired_runs import RunPlan, train_and_evaluate
from .report import ProbeReport

CLAIM_FILE = "mixture_runs.json"


def probe_mixture(plan: RunPlan) -> ProbeReport:
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
        plan: of a recipe whose `model` names the checkpoint to start from. Its output gets the folders `balanced` and
            `unbalanced`.

    Raises:
        ValueError: if the recipe repeats no data set, its model is sharded (FSDP, DeepSpeed), or the output holds runs of
            another recipe, of other overrides or of other steps.
    """
    threshold = plan.arguments("balanced")[1].balance_threshold
    mixtures: dict[str, list[dict[str, Any]]] = {}

    def trainer(name: str, value: float) -> XSAMTrainer:
        arguments = plan.arguments(name, [f"--balance_threshold={value}"])
        built = plan.trainer(arguments)
        mixtures[name] = _mixture(arguments[1].datasets, built.train_dataset.lengths, value)
        if name == "balanced":
            _check_repeats(mixtures[name], value)
        return built

    thresholds = {"balanced": threshold, "unbalanced": 0.0}
    trainers = {name: partial(trainer, name, value) for name, value in thresholds.items()}
    pair = train_and_evaluate(plan, trainers, "balanced", CLAIM_FILE, plan.claim)
    return ProbeReport(
        name="mixture",
        meaning=f"What each task gains or loses without resampling of the data sets, after {plan.steps} steps.",
        figures=pair.figures,
        settings={**pair.settings, "balance_threshold": threshold, "data sets": mixtures},
        cases=pair.cases,
        pictures=pair.pictures,
    )


def _mixture(specs: Sequence[Mapping[str, Any]], lengths: Sequence[int], threshold: float) -> list[dict[str, Any]]:
    """Of each data set the size, the repeat factor and the samples of an epoch."""
    factors = repeat_factors(lengths, threshold)
    counts = samples_per_epoch(lengths, factors)
    return [
        {"data set": spec.get("name", spec["format"]), "samples": length, "factor": factor, "an epoch": count}
        for spec, length, factor, count in zip(specs, lengths, factors, counts, strict=True)
    ]


def _check_repeats(mixture: Sequence[Mapping[str, Any]], threshold: float) -> None:
    """
    Raises:
        ValueError: if both runs would be the same.
    """
    if all(each["an epoch"] == each["samples"] for each in mixture):
        raise ValueError(
            f"balance_threshold is {threshold}, which repeats none of the {len(mixture)} data sets: both runs would be the"
            " same. Take a recipe with data sets of different sizes, or a larger threshold, up to 1."
        )
