"""What a recipe says: four groups of arguments, read from YAML, overridden from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

DictField = dict | str | None


@dataclass
class ModelArguments:
    """Where the model starts from and which of its parts learn."""

    stage: int = field(
        metadata={"help": "1: segmentor alone; 2: alignment of the projectors; 3: everything, on mixed data"}
    )
    model: str | None = field(default=None, metadata={"help": "an X-SAM checkpoint that gives all weights"})
    language_model: str | None = field(default=None, metadata={"help": "causal language model: folder or Hub id"})
    tokenizer: str | None = field(default=None, metadata={"help": "its tokenizer, if it lies elsewhere"})
    vision_tower: str | None = field(default=None, metadata={"help": "SigLIP: folder or Hub id"})
    high_res_vision_tower: str | None = field(default=None, metadata={"help": "SAM: folder or Hub id"})
    segmentor: str | None = field(default=None, metadata={"help": "checkpoint of stage 1"})
    projectors: str | None = field(default=None, metadata={"help": "checkpoint of stage 2"})
    config: DictField = field(default=None, metadata={"help": "fields of XSAMConfig that differ, as YAML or JSON"})
    processor: DictField = field(default=None, metadata={"help": "fields of XSAMProcessor that differ"})
    trainable: list[str] | None = field(
        default=None, metadata={"help": "modules that learn, such as multi_modal_projector; all if not given"}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, flash_attention_2 or eager"})

    def __post_init__(self) -> None:
        if self.stage not in (1, 2, 3):
            raise ValueError(f"stage is {self.stage}; the stages are 1, 2 and 3.")
        _parse_dicts(self, "config", "processor")


@dataclass
class DataArguments:
    """Data sets, how they are mixed, and what is drawn of a sample."""

    datasets: list[Any] | None = field(
        default=None,
        metadata={"help": "training sets: a list of {format, ...reader's arguments}; see training/README.md"},
    )
    eval_datasets: list[Any] | None = field(default=None, metadata={"help": "evaluation sets, likewise"})
    data_root: str = field(default=".", metadata={"help": "folder that the paths of data sets start from"})
    on_error: str = field(
        default="raise", metadata={"help": "a broken record stops the run (raise) or is left out (skip)"}
    )
    balance_threshold: float = field(
        default=0.1, metadata={"help": "t of the repeat factor max(1, sqrt(t / share)); 0 repeats nothing"}
    )
    mix_sources: bool = field(
        default=False, metadata={"help": "draw a batch from all data sets instead of from one (the published way)"}
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
    learning_rate_factors: DictField = field(
        default=None, metadata={"help": "factors of the learning rate by module, such as {vision_tower: 0.1}"}
    )
    learning_rate_drop_epochs: list[float] | None = field(
        default=None, metadata={"help": "epochs after which the learning rate falls; replaces lr_scheduler_type"}
    )
    learning_rate_drop_factor: float = field(default=0.1, metadata={"help": "what it is multiplied with there"})
    picture_steps: int = field(default=0, metadata={"help": "steps between pictures of predictions; 0 for none"})
    picture_samples: int = field(default=8, metadata={"help": "evaluation samples that are pictured"})

    def __post_init__(self) -> None:
        _parse_dicts(self, "learning_rate_factors")
        super().__post_init__()
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


def parse_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Arguments:
    """
    Args:
        recipe: YAML file whose keys are fields of the four groups.
        overrides: `--field=value` or `--field value`; values of dict and list fields are YAML.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no mapping, or a key is not a field.
    """
    path = Path(recipe)
    if not path.is_file():
        raise FileNotFoundError(f"recipe {path} does not exist; the published ones are in training/recipes")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of arguments to values, got {type(values).__name__}")
    values = {**values, **_parse_overrides(overrides)}
    known = {entry.name: kind for group in ARGUMENT_GROUPS for entry, kind in _typed_fields(group) if entry.init}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{path}: unknown arguments {unknown}; see the fields in training/arguments.py")
    typed = {name: _as_number(value, known[name]) for name, value in values.items()}
    return HfArgumentParser(ARGUMENT_GROUPS).parse_dict(typed)


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    values, rest = {}, list(overrides)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise ValueError(f"override {option!r}: expected --field=value")
        name, separator, text = option[2:].partition("=")
        if not separator:
            # As in argparse, a switch without a value is true.
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        values[name.replace("-", "_")] = yaml.safe_load(text)
    return values


def _typed_fields(group: type) -> list[tuple[Field, Any]]:
    hints = get_type_hints(group)
    return [(entry, hints[entry.name]) for entry in fields(group)]


def _as_number(value: Any, kind: Any) -> Any:
    """YAML reads 1e-4 as a string, and 1 as an integer: fields that are floats get floats."""
    if float in (kind, *get_args(kind)) and isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _parse_dicts(arguments: Any, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if isinstance(value, str):
            value = json.loads(value)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{name}: expected a mapping, got {value!r}")
        setattr(arguments, name, value)
