"""The same training with and without a part of the model or a choice of the recipe, on the generated world."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from dataset_fixtures.benchmarks import write_model
from tiny_models import tiny_model, tiny_qwen_config
from xsam_training.cli import app
from xsam_training.evaluate import load_model
from xsam_training.evaluation.benchmarks import select_benchmarks
from xsam_training.probes.ablation import forget_parts, probe_ablation, silence_parts, variant_overrides
from xsam_training.probes.paired_runs import RunPlan

KINDS = {"format": "shape-world-categories", "vocabulary": "kinds", "seed": 0}
CONFIG = {"connector_hidden_size": 16, "mask_decoder_config": {"num_queries": 6, "hidden_dim": 32}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ablation")
    write_model(root / "model")
    content = {
        "stage": 3,
        "model": str(root / "model"),
        "datasets": [{**KINDS, "count": 4}],
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "save_steps": 1,
        "seed": 3,
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(content))
    (root / "stage1.yaml").write_text(yaml.safe_dump({**content, "stage": 1, "model": None, "config": CONFIG}))
    benchmark = {"name": "kinds", "metric": "mean-iou", "dataset": {**KINDS, "split": "test", "count": 1}}
    (root / "kinds.yaml").write_text(yaml.safe_dump([benchmark]))
    return root


def probe(folder, name, *overrides, steps=1, **left_out):
    benchmarks = select_benchmarks(str(folder / "kinds.yaml"))
    plan = RunPlan(folder / "recipe.yaml", overrides, benchmarks, folder, steps, folder / name)
    return probe_ablation(plan, **left_out)


@pytest.fixture(scope="module")
def report(folder):
    return probe(folder, "silent", silence=["high_res_projector"], forget=["connector"])


def test_figures_of_both_runs_and_their_difference(report, tmp_path):
    whole, without = report.figures["kinds mIoU whole"], report.figures["kinds mIoU without"]
    assert report.figures == {
        "kinds mIoU whole": whole, "kinds mIoU without": without, "kinds mIoU change": without - whole
    }  # fmt: skip
    assert report.settings["silence"] == ["high_res_projector"] and report.settings["forget"] == ["connector"]
    assert [case["run"] for case in report.cases] == ["whole", "without"]
    assert "after 1 steps with forget: connector; silence: high_res_projector." in report.meaning
    report.save(tmp_path)
    assert json.loads((tmp_path / "ablation.json").read_text())["settings"]["steps"] == 1


def test_a_saved_checkpoint_is_silent_too(folder, report):
    pixels = {"pixel_values": torch.randn(1, 3, 28, 28), "high_res_pixel_values": torch.randn(1, 3, 64, 64)}
    for name, is_silent in {"whole": False, "without": True}.items():
        model, _ = load_model(str(folder / "silent" / name))
        with torch.no_grad():
            features = model.get_image_features(**pixels)
        assert features.vision_tokens.any()
        assert features.high_res_tokens.any() != is_silent and features.region_map.any() != is_silent


def test_a_run_that_goes_on_forgets_nothing_more_and_stays_silent(folder, report):
    file = folder / "silent/without/model.safetensors"
    trained, written = load_file(file), file.stat().st_mtime_ns
    again = probe(folder, "silent", silence=["high_res_projector"], forget=["connector"])
    assert again.figures == pytest.approx(report.figures, nan_ok=True) and file.stat().st_mtime_ns == written
    # As if it had been interrupted after the first of two steps; in the second the learning rate is 0.
    (folder / "silent/ablation_runs.json").unlink()
    probe(folder, "silent", steps=2, silence=["high_res_projector"], forget=["connector"])
    resumed = load_file(folder / "silent/without/checkpoint-2/model.safetensors")
    assert all(torch.equal(resumed[name], trained[name]) for name in trained)


def test_what_is_silent_does_not_learn(folder, report):
    start, trained = (load_file(folder / name / "model.safetensors") for name in ("model", "silent/without"))
    assert torch.equal(trained["high_res_projector.linear_1.weight"], start["high_res_projector.linear_1.weight"])
    assert not torch.equal(
        trained["multi_modal_projector.linear_1.weight"], start["multi_modal_projector.linear_1.weight"]
    )


def test_forgotten_parts_are_those_of_a_new_model():
    model, new = tiny_model(seed=0), tiny_model(seed=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    forget_parts(model, ["connector", "mask_decoder"], seed=5)
    assert torch.equal(torch.rand(1), expected)
    for name, value in model.state_dict().items():
        forgotten = name.startswith(("connector.", "mask_decoder."))
        assert torch.equal(value, new.state_dict()[name] if forgotten else before[name]), name


def test_what_cannot_be_forgotten():
    with pytest.raises(ValueError, match=r"forget: the model has no part \['decoder'\]; its parts are vision_tower,"):
        forget_parts(tiny_model(), ["decoder"], seed=1)
    with pytest.raises(ValueError, match="forget: connector has no weights of an earlier training"):
        forget_parts(tiny_model(seed=7), ["connector"], seed=7)
    tied = tiny_model(text_config=tiny_qwen_config())
    with pytest.raises(ValueError, match="lm_head shares weights"):
        forget_parts(tied, ["lm_head"], seed=1)
    forget_parts(tied, ["lm_head", "language_model"], seed=1)
    assert tied.lm_head.weight is tied.get_input_embeddings().weight


def test_projectors_alone_can_be_silenced():
    model = tiny_model()
    silence_parts(model, ["multi_modal_projector"])
    assert not model.multi_modal_projector(torch.randn(2, 32)).any()
    assert not any(parameter.requires_grad for parameter in model.multi_modal_projector.parameters())
    assert all(parameter.requires_grad for parameter in model.high_res_projector.parameters())
    expected = "connector is a XSAMConnector .* are multi_modal_projector, high_res_projector, mask_projector"
    with pytest.raises(ValueError, match=expected):
        silence_parts(model, ["connector"])


def test_variants_are_merged_into_mappings(folder):
    plan = RunPlan(
        folder / "stage1.yaml", [], select_benchmarks(str(folder / "kinds.yaml")), folder, 1, folder / "none"
    )
    variants = [
        "config={mask_decoder_config: {num_queries: 4}}",
        "config={connector_hidden_size: 8}",
        "weight-decay=1e-2",
    ]
    changed = plan.arguments("without", variant_overrides(plan, variants))
    assert changed[0].config == {
        "connector_hidden_size": 8, "mask_decoder_config": {"num_queries": 4, "hidden_dim": 32}
    }  # fmt: skip
    assert changed[3].weight_decay == 0.01
    for variant, expected in {
        "seed": "expected FIELD=VALUE",
        "max_steps=5": "max_steps has to be the same in both runs",
        "seed=3": "the recipe has seed 3, both runs would be the same",
        "config={connector_hidden_size: 16}": "both runs would be the same",
        "sed=3": r"unknown arguments \['sed'\]",
    }.items():
        with pytest.raises(ValueError, match=expected):
            variant_overrides(plan, [variant])


def test_what_is_wrong_shows_before_training(folder):
    with pytest.raises(ValueError, match="nothing is left out"):
        probe(folder, "none")
    with pytest.raises(ValueError, match="forget and silence both name mask_projector"):
        probe(folder, "none", forget=["mask_projector"], silence=["mask_projector"])
    with pytest.raises(ValueError, match="lora: adapters"):
        probe(folder, "none", "--lora=true", forget=["connector"])
    assert not (folder / "none").exists()


def test_command(folder, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "xsam_training.probes.ablation.probe_ablation", lambda plan, **options: given.update(options, plan=plan)
    )
    arguments = ["--benchmark", folder / "kinds.yaml", "--data", ".", "--steps", 2, "--output", folder / "command"]
    changes = [
        "--forget",
        "connector,mask_decoder",
        "--variant",
        "seed=1",
        "--variant",
        "config={a: 1}",
        "--lora=true",
    ]
    command = ["probe", "ablation", folder / "recipe.yaml", *arguments, *changes]
    result = CliRunner().invoke(app, [str(each) for each in command])
    assert result.exit_code == 0, result.output
    assert given["forget"] == ["connector", "mask_decoder"] and given["silence"] == []
    assert given["variants"] == ["seed=1", "config={a: 1}"] and given["plan"].steps == 2
    assert [*given["plan"].overrides] == ["--lora=true"] and given["plan"].limit is None
