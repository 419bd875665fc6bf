"""What is a part of the model, or a choice of a recipe, worth? The same training, with and without it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_xsam.connector_xsam import XSAMProjector

from ..arguments import Arguments
from ..initialization import random_model
from ..parts import describe_parts
from ..trainer import XSAMTrainer
from .paired_runs import DECIDED, RunPlan, train_and_evaluate
from .report import ProbeReport

CLAIM_FILE = "ablation_runs.json"
# With another model, or other data of the loss, there would be nothing to compare.
NO_VARIANTS = (*DECIDED, "stage", "model", "eval_datasets")


def probe_ablation(
    plan: RunPlan,
    *,
    forget: Sequence[str] = (),
    silence: Sequence[str] = (),
    variants: Sequence[str] = (),
) -> ProbeReport:
    """
    A recipe is trained twice from the same start, with the same seed and for the same number of steps: "whole" as it is, and
    "without" what is asked about: an earlier training of some modules (`forget`), what a projector says (`silence`), or a
    choice of the recipe (`variants`). Both are evaluated on the same benchmarks.

    Figures, for each benchmark B with its main figure F, in the units of F:

    - `B F whole`, `B F without`: the figure of either run.
    - `B F change`: without less whole. Below 0: what was left out is worth that much, at this budget.
    - `eval_loss ...` likewise, if the recipe has `eval_datasets`: the loss on all of them together, and its parts (those of
      the decoder's last layer). Here less is better.

    What it cannot show: what a part is worth at another budget, since a longer training may make up for what was left out,
    or need it all the more; and how much of a change is chance, since there is one run of each. The same with other seeds
    (`--seed=1`) shows that, or a run with nothing but another seed (`variants=["seed=1"]`), whose change means nothing.
    A forgotten module that the recipe does not train stays random.

    Interrupted runs go on: training from the newest checkpoint in its folder, as often as the recipe saves one, and
    evaluation from stored predictions. Finished ones are not trained again. With several processes all of them return the
    same report.

    Args:
        plan: of a recipe of any stage; benchmarks of a model of stage 1 have its list of categories. Its output gets the
            folders `whole` and `without`.
        forget: modules, named as in `trainable`, that start with the weights of a new model of the recipe's seed. Needs
            memory for a second model for a moment.
        silence: projectors whose outputs are held at zero, in training and evaluation: their last layer is zero and
            they do not learn. Without `high_res_projector` the language model's high-resolution tokens and region tokens
            carry nothing, without `multi_modal_projector` its tokens of the global image tower.
        variants: `FIELD=VALUE` of the recipe that differs, the value as YAML. Of a mapping such as `config` only the
            entries that differ are given, at any depth.

    Raises:
        ValueError: if nothing is left out, a module does not exist or cannot be forgotten or silenced, a variant cannot be
            one, the model is sharded (FSDP, DeepSpeed) or has adapters where modules are to change, or the output holds
            runs of something else.
    """
    if not (forget or silence or variants):
        raise ValueError("nothing is left out: give at least one of forget, silence and variant")
    whole = plan.arguments("whole")
    without = plan.arguments("without", variant_overrides(plan, variants))
    # First without: if that cannot be, it shows before any training.
    trainers = {"without": lambda: _without(plan, without, forget, silence), "whole": lambda: plan.trainer(whole)}
    left_out = {"forget": list(forget), "silence": list(silence), "variants": list(variants)}
    pair = train_and_evaluate(plan, trainers, "whole", CLAIM_FILE, {**plan.claim, **left_out})
    names = "; ".join(f"{name}: {', '.join(values)}" for name, values in left_out.items() if values)
    return ProbeReport(
        name="ablation",
        meaning=f"What changes after {plan.steps} steps with {names}.",
        figures=pair.figures,
        settings={**pair.settings, **left_out},
        cases=pair.cases,
        pictures=pair.pictures,
    )


def variant_overrides(plan: RunPlan, variants: Sequence[str]) -> list[str]:
    """
    `--field=value` for each `FIELD=VALUE`; a mapping is merged into the recipe's own.

    Raises:
        ValueError: if one is no field with a value, a field that both runs have to share, or changes nothing.
    """
    changes: list[str] = []
    for variant in variants:
        name, separator, _ = variant.partition("=")
        name = name.replace("-", "_")
        if not separator:
            raise ValueError(f"variant {variant!r}: expected FIELD=VALUE, such as learning_rate=1e-4")
        if name in NO_VARIANTS:
            raise ValueError(f"variant {variant!r}: {name} has to be the same in both runs")
        # What a recipe may say is checked where recipes are read.
        after = _field(plan.arguments("without", [*changes, f"--{variant}"]), name)
        before = _field(plan.arguments("without", changes), name)
        merged = _merge(before, after)
        if merged == before:
            raise ValueError(f"variant {variant!r}: the recipe has {name} {before!r}, both runs would be the same")
        # JSON is YAML.
        changes.append(f"--{name}={json.dumps(merged)}" if isinstance(merged, Mapping) else f"--{variant}")
    return changes


def forget_parts(model: PreTrainedModel, parts: Sequence[str], seed: int) -> None:
    """
    Give modules the weights that they have in a new model of the same configuration.

    Args:
        parts: names of direct sub-modules.
        seed: draws the weights; the random state stays as it is.

    Raises:
        ValueError: if a module does not exist, shares weights with one that is kept, or has such weights anyway.
    """
    modules = _modules(model, parts, "forget")
    kept = {id(each) for name, child in model.named_children() if name not in parts for each in child.parameters()}
    for name, module in modules.items():
        if any(id(parameter) in kept for parameter in module.parameters()):
            raise ValueError(f"forget: {name} shares weights with another module (tied embeddings): forget both")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = random_model(type(model), deepcopy(model.config))
    for name, module in modules.items():
        start = fresh.get_submodule(name).state_dict()
        if all(torch.equal(value.cpu(), start[key].to(value.dtype)) for key, value in module.state_dict().items()):
            raise ValueError(f"forget: {name} has no weights of an earlier training in this recipe, it is new anyway")
        module.load_state_dict(start)


def silence_parts(model: PreTrainedModel, parts: Sequence[str]) -> None:
    """
    Hold the outputs of projectors at zero: their last layer becomes zero, and they are frozen, so that every
    checkpoint has them silent too.

    Args:
        parts: names of direct sub-modules.

    Raises:
        ValueError: if a module does not exist or is no projector.
    """
    projectors = [name for name, child in model.named_children() if isinstance(child, XSAMProjector)]
    for name, module in _modules(model, parts, "silence").items():
        if name not in projectors:
            raise ValueError(
                f"silence: {name} is a {type(module).__name__} and does not end in a linear layer that could be zero; the"
                f" model's projectors are {', '.join(projectors) or 'none'}"
            )
        nn.init.zeros_(module.linear_2.weight)
        nn.init.zeros_(module.linear_2.bias)
        module.requires_grad_(False)


def _without(plan: RunPlan, arguments: Arguments, forget: Sequence[str], silence: Sequence[str]) -> XSAMTrainer:
    """A run that goes on reads its weights after this, so that it forgets only once; what is silent is so in them too."""
    both = sorted({*forget} & {*silence})
    if both:
        raise ValueError(f"forget and silence both name {', '.join(both)}: what is silent has nothing to forget")
    if arguments[2].lora and (forget or silence):
        raise ValueError("lora: adapters are saved without the modules that change here; set it to false")
    trainer = plan.trainer(arguments)
    if forget:
        forget_parts(trainer.model, forget, trainer.args.seed)
    if silence:
        silence_parts(trainer.model, silence)
        trainer.accelerator.print(describe_parts(trainer.model))
    return trainer


def _modules(model: PreTrainedModel, parts: Sequence[str], field: str) -> dict[str, nn.Module]:
    children = dict(model.named_children())
    unknown = [part for part in parts if part not in children]
    if unknown:
        raise ValueError(f"{field}: the model has no part {unknown}; its parts are {', '.join(children)}.")
    return {part: children[part] for part in parts}


def _field(arguments: Arguments, name: str) -> Any:
    return next(getattr(group, name) for group in arguments if hasattr(group, name))


def _merge(base: Any, changes: Any) -> Any:
    """`changes` in place of `base`; mappings entry by entry."""
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    return {**base, **{key: _merge(base.get(key), value) for key, value in changes.items()}}
