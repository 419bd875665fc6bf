"""What reaches TensorBoard and trackio, of a run in bf16 with activation checkpointing, without a network."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from step_worker import make_trainer
from xsam_training.trainer import XSAMTrainer

pytest.importorskip("tensorboard")
pytest.importorskip("trackio")

LOGGED = ("loss", "loss_lm", "loss_cls", "loss_mask_0", "loss_dice_1", "grad_norm", "samples_per_second", "memory_gb")


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory):
    """trackio looks for the folder at its import, which anything may have done before."""
    import trackio.sqlite_storage
    import trackio.utils

    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackio.utils, "TRACKIO_DIR", folder)
        patch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", folder)
        yield folder


@pytest.fixture(scope="module")
def connections():
    """Addresses that a run tried to reach; none can be."""
    tried: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.delenv("TRACKIO_SPACE_ID", raising=False)
        yield tried


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, trackio_folder, connections) -> XSAMTrainer:
    trainer = make_trainer(
        str(tmp_path_factory.mktemp("run")),
        report_to=["tensorboard", "trackio"],
        project="xsam",
        run_name="two-steps",
        max_steps=2,
        per_device_train_batch_size=2,
        bf16=True,
        gradient_checkpointing=True,
    )
    trainer.train()
    return trainer


def test_tensorboard(trainer):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = Path(trainer.args.output_dir).rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events)).Reload()
    for name in LOGGED:
        scalars = accumulator.Scalars(f"train/{name}")
        assert [scalar.step for scalar in scalars] == [1, 2]
        logged = [entry[name] for entry in trainer.state.log_history[:2]]
        assert [scalar.value for scalar in scalars] == pytest.approx(logged, rel=1e-6), name


def test_trackio_needs_no_network(trainer, trackio_folder, connections):
    with sqlite3.connect(trackio_folder / "xsam.db") as database:
        rows = database.execute("select run_name, metrics from metrics order by step").fetchall()
    assert {run_name for run_name, _ in rows} == {"two-steps"}
    for row, entry in zip(rows, trainer.state.log_history[:2], strict=False):
        metrics = json.loads(row[1])
        assert {name: metrics[f"train/{name}"] for name in LOGGED} == pytest.approx({n: entry[n] for n in LOGGED})
    assert connections == []


def test_bf16_keeps_weights_and_checkpoints_activations(trainer):
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    layers = [trainer.model.language_model.layers[0], trainer.model.vision_tower.encoder.layers[0]]
    # The Trainer switches it on without saying how; the model chooses the kind that works.
    assert [layer._gradient_checkpointing_func.keywords["use_reentrant"] for layer in layers] == [False, False]
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in trainer.state.log_history[:2])
