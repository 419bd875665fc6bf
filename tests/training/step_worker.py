"""One optimiser step of a tiny model on eight samples, one per task: writes its gradients and logs. Run by tests."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from tiny_training import all_tasks, fitting_model, tiny_processor
from xsam_training.arguments import XSAMTrainingArguments
from xsam_training.collator import XSAMCollator
from xsam_training.data.drawing import DrawOptions
from xsam_training.dataset import TrainingDataset
from xsam_training.parts import set_trainable_parts
from xsam_training.processes import leave_process_group
from xsam_training.sampler import MixedBatchSampler
from xsam_training.trainer import XSAMTrainer


class InMemory(Dataset):
    def __init__(self, samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class KeepGradients(TrainerCallback):
    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.gradients = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }


def make_trainer(output_dir: str, callbacks=(), evaluate: bool = False, **arguments) -> XSAMTrainer:
    processor = tiny_processor()
    model = fitting_model(processor)
    set_trainable_parts(model, None)
    args = XSAMTrainingArguments(
        **{
            "output_dir": output_dir,
            "use_cpu": True,
            "report_to": "none",
            "max_steps": 1,
            "logging_steps": 1,
            "max_grad_norm": 0.0,
            "disable_tqdm": True,
            "save_strategy": "no",
            **arguments,
        }
    )
    dataset = TrainingDataset([InMemory(all_tasks())])
    return XSAMTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        eval_dataset=dataset if evaluate else None,
        train_batch_sampler=MixedBatchSampler(
            dataset.lengths,
            args.per_device_train_batch_size,
            batches_per_step=args.world_size * args.gradient_accumulation_steps,
        ),
        data_collator=XSAMCollator(processor, options=DrawOptions(max_negatives=0), group_referring=False),
        processing_class=processor,
        callbacks=list(callbacks),
    )


def main(output: str, batch_size: int, accumulation: int) -> None:
    keep = KeepGradients()
    trainer = make_trainer(
        str(Path(output).parent / "run"),
        [keep],
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save({"gradients": keep.gradients, "log": trainer.state.log_history[0]}, output)
    leave_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
