"""What a recipe says: four groups of arguments, read from YAML, overridden from the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import EnumMeta
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

from modeling_xsam import XSAMForSegmentation, XSAMForUniversalSegmentation, XSAMPreTrainedModel


@dataclass
class ModelArguments:
    """Where the model starts from and which of its parts learn."""

    stage: Literal[1, 2, 3] = field(
        metadata={"help": "1: segmentor alone; 2: alignment of the projectors; 3: everything, on mixed data"}
    )
    model: str | None = field(default=None, metadata={"help": "an X-SAM checkpoint that gives all weights"})
    language_model: str | None = field(default=None, metadata={"help": "causal language model: folder or Hub id"})
    tokenizer: str | None = field(default=None, metadata={"help": "its tokenizer, if it lies elsewhere"})
    vision_tower: str | None = field(default=None, metadata={"help": "SigLIP: folder or Hub id"})
    high_res_vision_tower: str | None = field(default=None, metadata={"help": "SAM: folder or Hub id"})
    segmentor: str | None = field(default=None, metadata={"help": "checkpoint of stage 1"})
    projectors: str | None = field(default=None, metadata={"help": "checkpoint of stage 2"})
    config: dict[str, Any] | None = field(default=None, metadata={"help": "fields of XSAMConfig that differ"})
    processor: dict[str, Any] | None = field(default=None, metadata={"help": "fields of XSAMProcessor that differ"})
    trainable: list[str] | None = field(
        default=None,
        metadata={
            "help": "modules that learn, such as multi_modal_projector or vision_tower.encoder.layers.3; all if not given"
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, flash_attention_2 or eager"})

    def __post_init__(self) -> None:
        if self.stage not in (1, 2, 3):
            raise ValueError(f"stage is {self.stage!r}; expected 1, 2 or 3.")

    @property
    def has_language_model(self) -> bool:
        """Stage 1 trains the segmentor alone."""
        return self.stage > 1

    @property
    def model_class(self) -> type[XSAMPreTrainedModel]:
        return XSAMForSegmentation if self.has_language_model else XSAMForUniversalSegmentation


@dataclass
class DataArguments:
    """Data sets, how they are mixed, and what is drawn of a sample."""

    datasets: list[dict[str, Any]] | None = field(
        default=None,
        metadata={"help": "training sets: a list of {format, ...reader's arguments}; see training/README.md"},
    )
    eval_datasets: list[dict[str, Any]] | None = field(default=None, metadata={"help": "evaluation sets, likewise"})
    data_root: str = field(default=".", metadata={"help": "folder that the paths of data sets start from"})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "a broken record stops the run (raise) or is left out (skip)"}
    )
    balance_threshold: float = field(
        default=0.1, metadata={"help": "t of the repeat factor max(1, sqrt(t / share)); 0 repeats nothing"}
    )
    mix_sources: bool = field(
        default=False, metadata={"help": "draw a step from all data sets instead of from one (the published way)"}
    )
    max_length: int = field(default=4096, metadata={"help": "most tokens of a sample, image tokens included"})
    max_turns: int = field(default=5, metadata={"help": "most questions about an image in one sample"})
    whole_list_share: float = field(default=0.5, metadata={"help": "share of category lists asked as a whole"})
    max_absent_labels: int = field(default=20, metadata={"help": "most absent categories of the other lists"})
    negative_share: float = field(default=0.5, metadata={"help": "share of visual-grounded samples with negatives"})
    max_negatives: int = field(default=3, metadata={"help": "most negatives of such a sample"})
    group_referring: bool = field(
        default=True, metadata={"help": "referring phrases of a batch are each other's negatives"}
    )
    vary_prompts: bool = field(default=True, metadata={"help": "draw the wording of questions and answers"})
    jitter_min: float = field(default=0.1, metadata={"help": "least scale of stage 1's large-scale jitter"})
    jitter_max: float = field(default=2.0, metadata={"help": "greatest scale; equal to jitter_min = 1 turns it off"})

    def __post_init__(self) -> None:
        if not 0 < self.jitter_min <= self.jitter_max:
            raise ValueError(f"jitter_min is {self.jitter_min} and jitter_max {self.jitter_max}; give 0 < min <= max.")


@dataclass
class LoraArguments:
    """Low-rank adapters on the language model instead of full training."""

    lora: bool = field(default=False, metadata={"help": "train adapters, new tokens, projectors, connector, decoder"})
    lora_rank: int = field(default=64, metadata={"help": "rank of the adapters"})
    lora_alpha: int = field(default=128, metadata={"help": "their scale times the rank"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout in front of them"})
    lora_towers: bool = field(default=False, metadata={"help": "adapters in both image towers too"})


@dataclass
class XSAMTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments, and what they lack."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "samples are objects, not columns"})
    # Every trainable parameter takes part in every step, so that there is nothing to find.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "see TrainingArguments"})
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "samples of an optimiser step over all processes; sets gradient_accumulation_steps"},
    )
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "of linear layers, which Muon then updates; null leaves them to `optim`"}
    )
    learning_rate_factors: dict[str, float] | None = field(
        default=None, metadata={"help": "factors of the learning rate by module, such as {vision_tower: 0.1}"}
    )
    learning_rate_drop_epochs: list[float] | None = field(
        default=None, metadata={"help": "epochs after which the learning rate falls; replaces lr_scheduler_type"}
    )
    learning_rate_drop_factor: float = field(default=0.1, metadata={"help": "what it is multiplied with there"})
    picture_steps: int = field(default=0, metadata={"help": "steps between pictures of predictions; 0 for none"})
    picture_samples: int = field(default=8, metadata={"help": "evaluation samples that are pictured"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_gpu > 1:
            raise ValueError(
                f"n_gpu is {self.n_gpu}: a process trains on one GPU. Start one for each with accelerate launch "
                f"--num_processes {self.n_gpu} -m xsam_training.train RECIPE.yaml, or choose a GPU with "
                "CUDA_VISIBLE_DEVICES=0."
            )
        if self.global_batch_size is not None:
            at_once = self.per_device_train_batch_size * self.world_size
            if self.global_batch_size % at_once:
                raise ValueError(
                    f"global_batch_size is {self.global_batch_size}, which {self.world_size} processes with "
                    f"per_device_train_batch_size {self.per_device_train_batch_size} cannot make up: choose a multiple of "
                    f"{at_once}."
                )
            self.gradient_accumulation_steps = self.global_batch_size // at_once


ARGUMENT_GROUPS = (ModelArguments, DataArguments, LoraArguments, XSAMTrainingArguments)
Arguments = tuple[ModelArguments, DataArguments, LoraArguments, XSAMTrainingArguments]

# Fields that nothing reads in the other stages.
ONLY_IN_STAGE_1 = ("jitter_min", "jitter_max")
NOT_IN_STAGE_1 = ("segmentor", "projectors", "lora", "max_length", "group_referring", "vary_prompts")
NOT_IN_STAGE_1 += ("max_turns", "whole_list_share", "max_absent_labels", "negative_share", "max_negatives")
# What is taken although the type hints of TrainingArguments do not say so.
WIDER_KINDS = {
    "debug": str | list[str] | None,
    "fsdp": bool | str | list[str] | None,
    "max_grad_norm": float | None,
    "resume_from_checkpoint": bool | str | None,
}
DATASETS_FORM = "a list such as [{format: coco-panoptic, images: coco2017/train2017, ...}], see training/README.md"
FORMS = {"datasets": DATASETS_FORM, "eval_datasets": DATASETS_FORM}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
WORDS |= {list: "a list", dict: "a mapping"}


def parse_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Arguments:
    """
    Args:
        recipe: YAML file whose keys are fields of the four groups.
        overrides: `--field=value` or `--field value`, where the value is YAML; `--field` alone is true.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML or no mapping, a key is not a field, a value is not of the field's type, `stage` is
            missing, or a field is set that has no effect.
    """
    path = Path(recipe)
    if not path.is_file():
        raise FileNotFoundError(f"recipe {path} does not exist; the published ones are in training/recipes")
    values = _load_yaml(path.read_bytes(), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of arguments to values, got {type(values).__name__}")
    texts = _split_overrides(overrides)
    entries = {entry.name: entry for group in ARGUMENT_GROUPS for entry in fields(group) if entry.init}
    _check_names([*values, *texts], entries, path)
    kinds = {name: _kind(hint) for group in ARGUMENT_GROUPS for name, hint in get_type_hints(group).items()}
    kinds |= WIDER_KINDS
    values |= {name: _read_override(name, text, kinds[name]) for name, text in texts.items()}
    values = {name: _checked(name, value, kinds[name]) for name, value in values.items()}
    _check_effects({name: value for name, value in values.items() if value != entries[name].default})
    return HfArgumentParser(ARGUMENT_GROUPS).parse_dict(values)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as a text, because it has no point. Here it is a number, wherever it stands."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _load_yaml(text: str | bytes, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{source}: invalid YAML{place}: {getattr(error, 'problem', None) or error}") from error


def _split_overrides(overrides: Sequence[str]) -> dict[str, str | None]:
    """Texts of the values; None where there is none."""
    texts: dict[str, str | None] = {}
    rest = list(overrides)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise ValueError(f"override {option!r}: expected --field=value")
        name, separator, text = option[2:].partition("=")
        if not separator:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else None
        texts[name.replace("-", "_")] = text
    return texts


def _check_names(names: Sequence[Any], entries: Mapping[str, Field], path: Path) -> None:
    unknown = sorted(set(names) - set(entries), key=str)
    if unknown:
        raise ValueError(f"{path}: unknown arguments {unknown}; see the fields in training/arguments.py")
    for name, entry in entries.items():
        if entry.default is MISSING and entry.default_factory is MISSING and name not in names:
            raise ValueError(f"{path}: {name} is missing; give {entry.metadata['help']}")


def _read_override(name: str, text: str | None, kind: Any) -> Any:
    if text is None:
        return True
    value = _load_yaml(text, f"--{name}")
    # Where a text is wanted, 2024 is one too.
    return text if _fits(text, kind) and not _fits(value, kind) else value


def _check_effects(changed: Mapping[str, Any]) -> None:
    """`changed` are `stage` and the values that differ from their defaults."""
    stage = changed["stage"]
    for name in NOT_IN_STAGE_1 if stage == 1 else ONLY_IN_STAGE_1:
        if name in changed:
            raise ValueError(f"{name} is {changed[name]!r}, but has no effect in stage {stage}: leave it out.")
    if "lora" in changed and "trainable" in changed:
        raise ValueError(
            f"trainable is {changed['trainable']!r}, but with lora the adapters decide what learns: leave one of them out."
        )


def _checked(name: str, value: Any, kind: Any) -> Any:
    if value is False and "no" in get_args(kind):
        # A choice such as save_strategy: no, which YAML reads as false.
        return "no"
    if not _fits(value, kind):
        raise ValueError(f"{name} is {value!r}; expected {FORMS.get(name) or _describe(kind)}.")
    return float(value) if type(value) is int and float in (kind, *get_args(kind)) else value


def _kind(hint: Any) -> Any:
    """The type hint; in place of an enumeration or a text, the texts that the enumeration has."""
    values = [member.value for part in (hint, *get_args(hint)) if isinstance(part, EnumMeta) for member in part]
    return Literal[tuple(values)] if values else hint


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value, as YAML gives it, is what a type hint wants. Types are exact: true is no number."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is float:
        return type(value) in (float, int)
    if type(value) is not origin:
        return False
    if origin is dict and parts:
        return all(_fits(key, parts[0]) and _fits(entry, parts[1]) for key, entry in value.items())
    return origin is not list or not parts or all(_fits(entry, parts[0]) for entry in value)


def _describe(kind: Any) -> str:
    """A type hint in words."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    inner = f" (of {_describe(parts[-1])} each)" if parts and parts[-1] is not Any else ""
    return WORDS.get(origin, str(origin)) + inner
