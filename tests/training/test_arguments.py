from pathlib import Path

import pytest
import yaml

import xsam_training
from xsam_training.arguments import parse_recipe

RECIPES = Path(xsam_training.__file__).parent / "recipes"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: 2\noutput_dir: out\nlearning_rate: 1e-3\nlearning_rate_factors: {vision_tower: 0.1}\n")
    return path


def test_yaml_and_overrides(recipe):
    model, data, lora, args = parse_recipe(
        recipe, ["--max_steps", "2", "--use_cpu", "--max-length=64", "--datasets=[{format: llava}]", "--lora=true"]
    )
    assert (model.stage, data.max_length, data.datasets, lora.lora) == (2, 64, [{"format": "llava"}], True)
    assert (args.learning_rate, args.max_steps, args.use_cpu) == (1e-3, 2, True)
    assert args.learning_rate_factors == {"vision_tower": 0.1}
    assert not args.remove_unused_columns


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--max_stepz=2"], r"unknown arguments \['max_stepz'\]"),
        (["max_steps=2"], "override 'max_steps=2': expected --field=value"),
        (["--stage=4"], "stage is 4; the stages are 1, 2 and 3"),
        (["--config=3"], "config: expected a mapping, got 3"),
        (["--jitter_min=3"], "jitter_min is 3.0 and jitter_max 2.0"),
        (["--global_batch_size=7", "--per_device_train_batch_size=2"], "global_batch_size is 7"),
    ],
)
def test_what_is_wrong_is_named(recipe, overrides, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe, ["--use_cpu=true", *overrides])


def test_a_missing_recipe_and_one_that_is_no_mapping(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist"):
        parse_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="expected a mapping"):
        parse_recipe(tmp_path / "list.yaml")


def test_global_batch_is_made_up_by_accumulation(recipe):
    args = parse_recipe(recipe, ["--use_cpu", "--global_batch_size=64", "--per_device_train_batch_size=4"])[-1]
    assert args.gradient_accumulation_steps == 16


PUBLISHED = {
    "stage1": {
        "num_train_epochs": 36,
        "global_batch_size": 64,
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "warmup_steps": 0.03,
        "max_grad_norm": 0.01,
        "learning_rate_factors": {"high_res_vision_tower": 0.1},
        "learning_rate_drop_epochs": [24, 30],
        "learning_rate_drop_factor": 0.1,
    },
    "stage2": {
        "num_train_epochs": 1,
        "global_batch_size": 256,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "warmup_steps": 0.03,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
        "learning_rate_factors": None,
    },
    "stage3": {
        "num_train_epochs": 1,
        "global_batch_size": 64,
        "learning_rate": 4e-5,
        "weight_decay": 0.05,
        "warmup_steps": 0.03,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
        "learning_rate_factors": {"vision_tower": 0.1, "high_res_vision_tower": 0.1},
    },
}


@pytest.mark.parametrize("stage", PUBLISHED)
def test_recipes_hold_the_published_values(stage):
    model, data, _, args = parse_recipe(RECIPES / f"{stage}.yaml", ["--use_cpu", "--bf16=false"])
    assert {name: getattr(args, name) for name in PUBLISHED[stage]} == PUBLISHED[stage]
    assert (args.adam_beta1, args.adam_beta2, args.optim) == (0.9, 0.999, "adamw_torch_fused")
    assert model.stage == int(stage[-1])
    assert (data.jitter_min, data.jitter_max, data.balance_threshold) == (0.1, 2.0, 0.1)
    if stage == "stage2":
        assert model.trainable == ["multi_modal_projector", "high_res_projector"]
    else:
        assert model.trainable is None


def test_accelerate_configurations_are_yaml():
    for path in sorted((RECIPES / "accelerate").glob("*.yaml")):
        assert yaml.safe_load(path.read_text())["mixed_precision"] == "bf16", path
