"""
`xsam train RECIPE.yaml [--field=value ...]`, or for several processes
`accelerate launch -m xsam_training.train RECIPE.yaml [--field=value ...]`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from processing_xsam import XSAMProcessor

from .adapters import lora_config
from .arguments import (
    Arguments,
    DataArguments,
    LoraArguments,
    ModelArguments,
    XSAMTrainingArguments,
    parse_recipe,
)
from .collator import XSAMCollator, XSAMUniversalCollator
from .data.drawing import DrawOptions
from .data.formats import build_reader
from .data.reader import CategoryReader, SampleReader
from .dataset import TrainingDataset
from .initialization import build_config, build_generation_config, build_model, build_processor
from .parts import describe_parts, set_trainable_parts
from .pictures import PredictionPictures
from .processes import leave_process_group
from .sampler import MixedBatchSampler, SourceBatchSampler, balance_table, repeat_factors
from .trainer import Collator, XSAMTrainer

Say = Callable[[str], None]


def train(recipe: str | Path, overrides: Sequence[str] = ()) -> XSAMTrainer:
    """
    Train as a recipe says.

    Args:
        recipe: YAML file with fields of the argument groups in `arguments.py`.
        overrides: `--field=value`.

    Returns:
        The trainer; its model and processor are saved in `output_dir`.
    """
    return run(build_trainer(parse_recipe(recipe, overrides)))


def run(trainer: XSAMTrainer) -> XSAMTrainer:
    """
    Train, from `resume_from_checkpoint` on ("last" is the newest in `output_dir`), and save the result. A run that has
    made its `max_steps` is left as it is.
    """
    checkpoint = _checkpoint(trainer.args)
    if checkpoint is not None and _is_finished(checkpoint, trainer.args.max_steps):
        _announce(trainer.args)(f"{checkpoint} has made all {trainer.args.max_steps} steps: nothing is left to train.")
        trainer._load_from_checkpoint(checkpoint)
        if not (Path(trainer.args.output_dir) / TRAINER_STATE_NAME).is_file():
            # It was stopped between its last checkpoint and this.
            trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            _save(trainer)
        return trainer
    result = trainer.train(resume_from_checkpoint=checkpoint)
    _save(trainer)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    return trainer


def _save(trainer: XSAMTrainer) -> None:
    """Model, processor and state in `output_dir`, the state last."""
    if trainer.is_fsdp_enabled:
        # Otherwise the Trainer saves no weights at all of a model whose checkpoints are sharded.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    trainer.save_state()


def build_trainer(arguments: Arguments) -> XSAMTrainer:
    """Everything of a run that is ready to train, after its data, weights and parts were reported."""
    model_args, data_args, lora_args, args = arguments
    set_seed(args.seed)
    say = _announce(args)
    train_set = _dataset(data_args.datasets, data_args, "datasets", say)
    eval_set = _dataset(data_args.eval_datasets, data_args, "eval_datasets", say) if data_args.eval_datasets else None
    factors = repeat_factors(train_set.lengths, data_args.balance_threshold)
    say(balance_table(_names(data_args.datasets), train_set.lengths, factors))
    readers = [*train_set.datasets, *(eval_set.datasets if eval_set else [])]
    model, processor = _build_model(model_args, lora_args, args, readers, say)
    train_collator, eval_collator = _collators(model_args, processor, data_args)
    sampler_class = MixedBatchSampler if data_args.mix_sources else SourceBatchSampler
    trainer = XSAMTrainer(
        model=model,
        args=args,
        train_dataset=train_set,
        train_batch_sampler=sampler_class(
            train_set.lengths,
            args.train_batch_size,
            batches_per_step=args.world_size * args.gradient_accumulation_steps,
            factors=factors,
            seed=args.seed if args.data_seed is None else args.data_seed,
        ),
        eval_dataset=eval_set,
        data_collator=train_collator,
        eval_collator=eval_collator,
        processing_class=processor,
    )
    if args.picture_steps:
        trainer.add_callback(PredictionPictures(trainer, eval_set or train_set, processor))
    return trainer


def _build_model(
    model_args: ModelArguments,
    lora_args: LoraArguments,
    args: XSAMTrainingArguments,
    readers: Sequence[SampleReader],
    say: Say,
) -> tuple[PreTrainedModel | PeftModel, XSAMProcessor]:
    """The model with its weights, frozen parts and adapters, and its processor."""
    if lora_args.lora and model_args.model is None:
        model_args = _resumed_base(model_args, args)
    processor = build_processor(model_args)
    labels = () if model_args.has_language_model else _category_names(readers)
    model, report = build_model(model_args, build_config(model_args, processor.tokenizer, labels))
    say(str(report))
    set_trainable_parts(model, model_args.trainable)
    if model_args.has_language_model:
        model.generation_config = build_generation_config(processor)
    if lora_args.lora:
        model = _with_adapters(model, model_args, lora_args, args, processor)
    say(describe_parts(model))
    return model, processor


def _dataset(specs: list[Any] | None, data_args: DataArguments, field: str, say: Say) -> TrainingDataset:
    """The data sets of a field of the recipe; what of them is left out is reported."""
    if not specs:
        raise ValueError(f"{field}: the recipe names no data set.")
    readers = [build_reader(spec, data_args.data_root, data_args.on_error, field=field) for spec in specs]
    for name, reader in zip(_names(specs), readers, strict=True):
        if reader.skipped:
            say(f"{name}: {reader.skipped.total()} records left out: {dict(reader.skipped)}")
    return TrainingDataset(readers, data_args.on_error)


def _names(specs: list[Any]) -> list[str]:
    return [spec.get("name", spec["format"]) for spec in specs]


def _category_names(readers: Sequence[SampleReader]) -> tuple[str, ...]:
    """
    The categories of stage 1's linear head.

    Raises:
        ValueError: if a data set has no list of categories, or another one than the first.
    """
    without = [type(reader).__name__ for reader in readers if not isinstance(reader, CategoryReader)]
    if without:
        raise ValueError(f"datasets: stage 1 trains on lists of categories, but {', '.join(without)} has none.")
    labels = readers[0].labels
    for place, reader in enumerate(readers):
        if reader.labels != labels:
            difference = sorted({*reader.labels} ^ {*labels}) or "their order"
            raise ValueError(
                f"datasets: stage 1 has one list of categories, but data set {place} differs from the first in {difference}."
            )
    return labels


def _collators(
    model_args: ModelArguments, processor: XSAMProcessor, data_args: DataArguments
) -> tuple[Collator, Collator]:
    """Collators of training and evaluation. Evaluation draws nothing that can be left alone."""
    if not model_args.has_language_model:
        jitter = (data_args.jitter_min, data_args.jitter_max)
        return XSAMUniversalCollator(processor, None if jitter == (1.0, 1.0) else jitter), XSAMUniversalCollator(
            processor, None
        )
    options = DrawOptions(
        max_turns=data_args.max_turns,
        whole_list_share=data_args.whole_list_share,
        max_absent_labels=data_args.max_absent_labels,
        negative_share=data_args.negative_share,
        max_negatives=data_args.max_negatives,
    )
    train_collator = XSAMCollator(
        processor,
        max_length=data_args.max_length,
        options=options,
        group_referring=data_args.group_referring,
        vary_prompts=data_args.vary_prompts,
    )
    eval_collator = XSAMCollator(
        processor,
        max_length=data_args.max_length,
        options=DrawOptions(whole_list_share=1.0, negative_share=0.0, max_turns=data_args.max_turns),
        group_referring=False,
        vary_prompts=False,
    )
    return train_collator, eval_collator


def _with_adapters(
    model: PreTrainedModel,
    model_args: ModelArguments,
    lora_args: LoraArguments,
    args: XSAMTrainingArguments,
    processor: XSAMProcessor,
) -> PeftModel:
    """
    Adapters are saved without their base, and name it instead: the checkpoint `model`, or, for a base that was put
    together from several sources, a folder in `output_dir`.
    """
    base = Path(args.output_dir) / "base" if model_args.model is None else model_args.model
    if model_args.model is None:
        with args.main_process_first(desc="saving the base of the adapters"):
            if not base.is_dir():
                unfinished = base.with_suffix(".unfinished")
                model.save_pretrained(unfinished)
                processor.save_pretrained(unfinished)
                unfinished.rename(base)
    model.name_or_path = str(base)
    config = lora_config(
        model,
        rank=lora_args.lora_rank,
        alpha=lora_args.lora_alpha,
        dropout=lora_args.lora_dropout,
        image_towers=lora_args.lora_towers,
    )
    return get_peft_model(model, config)


def _resumed_base(model_args: ModelArguments, args: XSAMTrainingArguments) -> ModelArguments:
    """
    A run that goes on takes the base of its adapters from where it was saved, whatever its sources have become.

    Raises:
        ValueError: if a run that starts finds the base of another one.
    """
    base = Path(args.output_dir) / "base"
    if not base.is_dir():
        return model_args
    if _checkpoint(args) is None:
        raise ValueError(
            f"output_dir: {base} is the base of adapters that were trained before. Choose another output_dir, go on with "
            "resume_from_checkpoint, or remove the folder."
        )
    return ModelArguments(
        stage=model_args.stage,
        model=str(base),
        processor=model_args.processor,
        attn_implementation=model_args.attn_implementation,
    )


def _is_finished(checkpoint: str, max_steps: int) -> bool:
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    return 0 < max_steps <= state.global_step


def _announce(args: XSAMTrainingArguments) -> Say:
    """Print on the main process alone."""
    return print if args.process_index == 0 else (lambda _: None)


def _checkpoint(args: XSAMTrainingArguments) -> str | None:
    """The checkpoint to go on from. "last" is the newest in `output_dir`, or none at the first start."""
    if args.resume_from_checkpoint in ("last", True):
        return get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    return args.resume_from_checkpoint


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m xsam_training.train RECIPE.yaml [--field=value ...]")
    logging.basicConfig(level=logging.INFO)
    train(sys.argv[1], sys.argv[2:])
    leave_process_group()
