import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from step_worker import make_trainer
from tiny_training import assert_same_gradients, tiny_processor

WORKER = Path(__file__).with_name("step_worker.py")
ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join(str(ROOT / folder) for folder in ("", "tests", "tests/training"))


def one_step(folder: Path, processes: int, batch_size: int, accumulation: int) -> dict:
    output = folder / f"{processes}-{batch_size}-{accumulation}.pt"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launch if processes > 1 else []), str(WORKER), str(output)]
    run = subprocess.run(
        [*command, str(batch_size), str(accumulation)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(output)


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory):
    return one_step(tmp_path_factory.mktemp("whole"), 1, 8, 1)


@pytest.mark.parametrize(("processes", "batch_size", "accumulation"), [(1, 2, 4), (2, 4, 1), (2, 1, 4)])
def test_a_step_is_the_same_however_it_is_divided(whole_batch, tmp_path, processes, batch_size, accumulation):
    divided = one_step(tmp_path, processes, batch_size, accumulation)
    assert_same_gradients(divided["gradients"], whole_batch["gradients"])
    for name in [name for name in whole_batch["log"] if name.startswith("loss")]:
        assert divided["log"][name] == pytest.approx(whole_batch["log"][name], rel=1e-4, abs=1e-6), name


def test_every_part_of_the_loss_is_logged(whole_batch):
    log = whole_batch["log"]
    parts = [name for name in log if name.startswith("loss_")]
    assert set(parts) == {
        "loss_lm",
        *(f"loss_{kind}{i}" for kind in ("cls", "mask", "dice") for i in ("", "_0", "_1")),
    }
    assert sum(log[name] for name in parts) == pytest.approx(log["loss"], rel=1e-4)
    assert log["samples_per_second"] > 0 and log["memory_gb"] > 0.1


def test_learning_rates_by_module(tmp_path):
    trainer = make_trainer(
        str(tmp_path), learning_rate=1e-3, weight_decay=0.05, learning_rate_factors={"vision_tower": 0.1}
    )
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[parameter]] = (group["lr"], group["weight_decay"])
    assert seen.keys() == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    for name, (rate, decay) in seen.items():
        assert rate == pytest.approx(1e-4 if name.startswith("vision_tower.") else 1e-3), name
        assert decay == (0 if name.endswith("bias") or "norm" in name else 0.05) or "norm" in name.lower(), name
    with pytest.raises(ValueError, match=r"learning_rate_factors: the model has no module \['tower'\]"):
        make_trainer(str(tmp_path), learning_rate_factors={"tower": 0.1}).create_optimizer()


def test_linear_layers_learn_with_muon(tmp_path):
    trainer = make_trainer(
        str(tmp_path), learning_rate=1e-3, muon_learning_rate=4e-3, learning_rate_factors={"mask_decoder": 0.5}
    )
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    rates = {names[p]: (group["lr"], "ns_steps" in group) for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert rates["language_model.layers.0.self_attn.qkv_proj.weight"] == (4e-3, True)
    assert rates["language_model.layers.0.input_layernorm.weight"] == (1e-3, False)
    assert rates["lm_head.weight"] == (1e-3, False)
    decoder = "mask_decoder.query_decoder.decoder.layers.0.cross_attn.in_proj"
    assert rates[f"{decoder}_weight"] == (2e-3, True) and rates[f"{decoder}_bias"] == (5e-4, False)
    assert optimizer is trainer.optimizer


def test_muon_wants_whole_matrices(tmp_path):
    trainer = make_trainer(str(tmp_path), muon_learning_rate=4e-3)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"muon_learning_rate is 0.004, but the weights are sharded"):
        trainer.create_optimizer()


def test_warm_up_and_drops(tmp_path):
    trainer = make_trainer(
        str(tmp_path),
        learning_rate=1.0,
        num_train_epochs=36,
        warmup_steps=0.03,
        learning_rate_drop_epochs=[24, 30],
    )
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(num_training_steps=3600)
    factor = scheduler.lr_lambdas[0]
    assert [factor(step) for step in (0, 54, 108, 2399)] == [0, 0.5, 1, 1]
    assert [factor(step) for step in (2400, 2999, 3000, 3599)] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def weights_after(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("muon_learning_rate", [None, 5e-3])
def test_resuming_continues_bit_for_bit(tmp_path, muon_learning_rate):
    """With point sampling, dropout of nothing and shuffled data, over the border of an epoch."""
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 3,
        "learning_rate": 1e-3,
        "muon_learning_rate": muon_learning_rate,
    }
    whole = make_trainer(str(tmp_path / "whole"), **options)
    whole.model.loss.use_point_sampling = whole.model.loss.matcher.use_point_sampling = True
    whole.train()
    resumed = make_trainer(str(tmp_path / "whole"), **options)
    resumed.model.loss.use_point_sampling = resumed.model.loss.matcher.use_point_sampling = True
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, value in weights_after(whole).items():
        assert torch.equal(value, weights_after(resumed)[name]), name
    logs = [
        [{k: v for k, v in entry.items() if k.startswith("loss")} for entry in t.state.log_history[3:7]]
        for t in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def test_evaluation_reports_all_parts_and_keeps_the_best(tmp_path):
    trainer = make_trainer(
        str(tmp_path),
        evaluate=True,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
    )
    trainer.train()
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2
    assert {"eval_loss_lm", "eval_loss_mask", "eval_loss_cls_0"} <= evaluated[0].keys()
    assert trainer.state.best_metric == min(entry["eval_loss"] for entry in evaluated)
    # The checkpoint is whole: processor and model load from it.
    assert type(tiny_processor()).from_pretrained(trainer.state.best_model_checkpoint).high_res_size == 64


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_is_that_of_the_whole_data_set(tmp_path, batch_size):
    """However it is divided, and without point sampling as if all samples were one batch."""
    trainer = make_trainer(str(tmp_path), evaluate=True, per_device_eval_batch_size=batch_size)
    metrics = trainer.evaluate()
    trainer.model.eval()
    with torch.no_grad():
        whole = trainer.model(**trainer.data_collator([trainer.eval_dataset[index] for index in range(8)]))
    assert metrics["eval_loss"] == pytest.approx(whole.loss.item(), rel=1e-4)
    for name, value in whole.loss_dict.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


def test_evaluation_repeats_itself_and_leaves_training_alone(tmp_path):
    trainer = make_trainer(str(tmp_path), evaluate=True)
    trainer.model.loss.use_point_sampling = trainer.model.loss.matcher.use_point_sampling = True
    state = torch.get_rng_state()
    losses = [trainer.evaluate()["eval_loss"] for _ in range(2)]
    assert losses[0] == losses[1]
    assert torch.equal(torch.get_rng_state(), state)
