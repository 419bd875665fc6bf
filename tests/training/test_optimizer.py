import copy

import pytest
import torch
from torch import nn

from modeling_xsam import XSAMForSegmentation
from tiny_models import tiny_config
from xsam_training.optimizer import MuonAndOther, linear_weights


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4))


def matrices(model: nn.Sequential) -> set[nn.Parameter]:
    return {model[0].weight, model[3].weight}


def both(model: nn.Sequential) -> MuonAndOther:
    decayed, plain = [model[0].weight, model[3].weight, model[2].weight], [model[0].bias, model[2].bias, model[3].bias]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return MuonAndOther(torch.optim.AdamW(groups, lr=1e-2), matrices(model), learning_rate=3e-2)


def train(model: nn.Sequential, *optimizers: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        model(inputs).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def assert_equal(model: nn.Sequential, expected: nn.Sequential) -> None:
    for name, value in expected.named_parameters():
        assert torch.equal(model.get_parameter(name), value), name


def test_each_parameter_is_updated_by_its_own_optimiser():
    model = perceptron()
    expected = copy.deepcopy(model)
    train(model, both(model), steps=range(4))
    muon = torch.optim.Muon(matrices(expected), lr=3e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    norm, biases = [expected[2].weight], [expected[0].bias, expected[2].bias, expected[3].bias]
    adamw = torch.optim.AdamW([{"params": norm, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0}], lr=1e-2)
    train(expected, muon, adamw, steps=range(4))
    assert_equal(model, expected)


def test_an_update_is_as_large_as_the_learning_rate_says():
    model = perceptron()
    optimizer = both(model)
    before = model[0].weight.clone()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    train(model, optimizer, steps=range(1))
    change = (model[0].weight - before).square().mean().sqrt().item()
    # Newton-Schulz leaves singular values between 0.7 and 1.2; all 6 of an 8 x 6 matrix count.
    assert change == pytest.approx(0.2 * 3e-2, rel=0.3)


def test_a_loaded_state_goes_on_as_if_nothing_had_happened():
    whole = perceptron()
    optimizer = both(whole)
    train(whole, optimizer, steps=range(2))
    resumed, state = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
    train(whole, optimizer, steps=range(2, 4))
    loaded = both(resumed)
    loaded.load_state_dict(state)
    train(resumed, loaded, steps=range(2, 4))
    assert_equal(resumed, whole)


def test_a_scheduler_reaches_both():
    model = perceptron()
    optimizer = both(model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(model)
    train(model, optimizer, steps=range(2))
    assert_equal(model, before)


def test_a_closure_is_evaluated_with_gradients():
    model = perceptron()
    optimizer = both(model)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 6)).square().sum()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(3)]
    assert losses[2] < losses[0]


def test_muon_takes_the_hidden_linear_layers():
    model = XSAMForSegmentation(tiny_config())
    names = {name for name, parameter in model.named_parameters() if parameter in linear_weights(model)}
    assert {
        "high_res_vision_tower.vision_encoder.layers.0.attn.qkv.weight",
        "language_model.layers.0.mlp.down_proj.weight",
        "mask_decoder.query_decoder.decoder.layers.0.cross_attn.in_proj_weight",
        "mask_decoder.query_decoder.decoder.layers.0.cross_attn.out_proj.weight",
        "multi_modal_projector.linear_1.weight",
    } <= names
    assert all(model.get_parameter(name).ndim == 2 for name in names)
    assert not [n for n in names if n.startswith("lm_head") or "embed_tokens" in n or "sampling_offsets" in n]


def test_an_old_torch_is_named(monkeypatch):
    model = perceptron()
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ImportError, match=r"Muon needs torch 2\.9 or newer, this is"):
        both(model)
