import re
from pathlib import Path

import pytest
import torch
import yaml

import xsam_training
from xsam_training.arguments import NOT_IN_STAGE_1, ONLY_IN_STAGE_1, XSAMTrainingArguments, parse_recipe

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
        (["--stage=4"], "stage is 4; expected 1 or 2 or 3"),
        (["--config=3"], "config is 3; expected a mapping or null"),
        (["--stage=1", "--jitter_min=3"], "jitter_min is 3.0 and jitter_max 2.0"),
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora=maybe", "lora is 'maybe'; expected true or false."),
        ("lora=1", "lora is 1; expected true or false."),
        ("lora=", "lora is None; expected true or false."),
        ("mix_sources=none", "mix_sources is 'none'; expected true or false."),
        ("bf16=maybe", "bf16 is 'maybe'; expected true or false."),
        ("max_steps=two", "max_steps is 'two'; expected a whole number."),
        ("max_steps=2.5", "max_steps is 2.5; expected a whole number."),
        ("max_steps", "max_steps is True; expected a whole number."),
        ("seed=true", "seed is True; expected a whole number."),
        ("lora_rank=abc", "lora_rank is 'abc'; expected a whole number."),
        ("learning_rate=fast", "learning_rate is 'fast'; expected a number."),
        ("learning_rate=nan", "learning_rate is 'nan'; expected a number."),
        ("learning_rate=true", "learning_rate is True; expected a number."),
        ("output_dir", "output_dir is True; expected a text or null."),
        ("on_error=ignore", "on_error is 'ignore'; expected 'raise' or 'skip'."),
        ("stage=true", "stage is True; expected 1 or 2 or 3."),
        ("save_strategy=often", "save_strategy is 'often'; expected 'no' or 'steps' or 'epoch' or 'best'."),
        ("lr_scheduler_type=cosin", "lr_scheduler_type is 'cosin'; expected 'linear' or 'cosine' or "),
        ("trainable=lm_head", "trainable is 'lm_head'; expected a list (of a text each) or null."),
        ("trainable=[1]", "trainable is [1]; expected a list (of a text each) or null."),
        ("learning_rate_factors={vision_tower: low}", "learning_rate_factors is {'vision_tower': 'low'}; expected"),
        (
            "learning_rate_drop_epochs=[24, last]",
            "learning_rate_drop_epochs is [24, 'last']; expected a list (of a num",
        ),
        (
            "datasets=[coco-panoptic]",
            "datasets is ['coco-panoptic']; expected a list such as [{format: coco-panoptic,",
        ),
        ("datasets={format: llava}", "datasets is {'format': 'llava'}; expected a list such as [{format: "),
        ("eval_datasets=llava", "eval_datasets is 'llava'; expected a list such as [{format: "),
    ],
)
def test_values_of_another_type_are_named(recipe, override, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_recipe(recipe, ["--use_cpu", f"--{override}"])


def test_values_of_the_file_are_checked_too(recipe):
    recipe.write_text(recipe.read_text() + "lora: maybe\n")
    with pytest.raises(ValueError, match=r"^lora is 'maybe'; expected true or false"):
        parse_recipe(recipe)
    assert parse_recipe(recipe, ["--use_cpu", "--lora=off"])[2].lora is False, "an override replaces it"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("lr_scheduler_type=cosine", "cosine"),
        ("lr_scheduler_kwargs={num_cycles: 1}", {"num_cycles": 1}),
        ('lr_scheduler_kwargs="{\\"min_lr\\": 1e-6}"', {"min_lr": 1e-6}),
        ("lr_scheduler_kwargs={min_lr: 1e-6}", {"min_lr": 1e-6}),
        ("report_to=none", []),
        ("report_to=[tensorboard]", ["tensorboard"]),
        ("report_to=tensorboard", ["tensorboard"]),
        ("eval_strategy=no", "no"),
        ("save_steps=0.1", 0.1),
        ("save_steps=20", 20),
        ("warmup_steps=1e-2", 0.01),
        ("learning_rate=1", 1.0),
        ("learning_rate=-.5E+1", -5.0),
        ("max_grad_norm=null", None),
        ("data_seed=", None),
        ("gradient_checkpointing_kwargs={use_reentrant: false}", {"use_reentrant": False}),
        ("trackio_static_space_id=false", False),
        ("optim_target_modules=[q_proj]", ["q_proj"]),
        ("fsdp=false", False),
        ("debug=underflow_overflow", ["underflow_overflow"]),
        ("resume_from_checkpoint", True),
        ("resume_from_checkpoint=last", "last"),
        ("run_name=2024-01-31", "2024-01-31"),
        ("run_name=007", "007"),
        ("output_dir=1e3", "1e3"),
        ("learning_rate_factors={vision_tower: 1e-1}", {"vision_tower": 0.1}),
        ("bf16=off", False),
    ],
)
def test_what_transformers_takes_stays_possible(recipe, override, value):
    name = override.partition("=")[0]
    args = parse_recipe(recipe, ["--use_cpu", f"--{override}"])[-1]
    assert getattr(args, name) == value
    assert type(getattr(args, name)) is type(value) or isinstance(value, str)


def test_fsdp_is_a_switch_or_its_former_texts(recipe):
    for override in ("--fsdp", "--fsdp=true", "--fsdp=full_shard auto_wrap", "--fsdp=[full_shard]"):
        assert parse_recipe(recipe, ["--use_cpu", override])[-1].fsdp is True


def test_no_is_a_choice_in_the_file(recipe):
    recipe.write_text(recipe.read_text() + "save_strategy: no\nuse_cpu: yes\n")
    args = parse_recipe(recipe)[-1]
    assert (args.save_strategy, args.use_cpu) == ("no", True)


def test_numbers_without_a_point_are_numbers_at_any_depth(recipe):
    model = parse_recipe(recipe, ["--use_cpu", "--config={a: {b: [1e-5, 2E3, x1e-5, 3]}}"])[0]
    assert model.config == {"a": {"b": [1e-5, 2000.0, "x1e-5", 3]}}


def test_a_recipe_without_a_stage(tmp_path):
    (tmp_path / "recipe.yaml").write_text("output_dir: out\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml: stage is missing; give 1: segmentor alone; 2: "):
        parse_recipe(tmp_path / "recipe.yaml")
    assert parse_recipe(tmp_path / "recipe.yaml", ["--use_cpu", "--stage=2"])[0].stage == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"stage: 2\nconfig: {a: 1\nseed: 0\n", "invalid YAML in line 3, column 5: expected ',' or '}'"),
        (b"stage: 2\n\tseed: 0\n", "invalid YAML in line 2, column 1: found character"),
        (b"stage: 2\nrun_name: \xff\n", "invalid YAML: .*position 19"),
        (b"stage: 2\nrun_name: 2024-13-01\n", "invalid YAML: month must be in 1..12"),
        (b"stage: 2\nyes: 1\n", r"unknown arguments \[True\]"),
    ],
)
def test_a_file_that_is_no_yaml(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=rf"(?s)recipe\.yaml: {message}"):
        parse_recipe(tmp_path / "recipe.yaml")


def test_an_override_that_is_no_yaml(recipe):
    with pytest.raises(ValueError, match=r"^--config: invalid YAML in line 1, column 5: expected ',' or '}'"):
        parse_recipe(recipe, ["--config={bad"])


OTHER_VALUES = {
    "segmentor": "outputs/stage1",
    "projectors": "outputs/stage2",
    "lora": "true",
    "max_length": 64,
    "group_referring": "false",
    "vary_prompts": "false",
    "max_turns": 1,
    "whole_list_share": 0,
    "max_absent_labels": 1,
    "negative_share": 1,
    "max_negatives": 1,
    "jitter_min": 0.5,
    "jitter_max": 1,
}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_fields_without_effect_in_a_stage(recipe, name):
    override = f"--{name}={OTHER_VALUES[name]}"
    idle, used = ((1,), (2, 3)) if name in NOT_IN_STAGE_1 else ((2, 3), (1,))
    for stage in idle:
        with pytest.raises(ValueError, match=f"^{name} is .*, but has no effect in stage {stage}: leave it out"):
            parse_recipe(recipe, ["--use_cpu", f"--stage={stage}", override])
    for stage in used:
        parse_recipe(recipe, ["--use_cpu", f"--stage={stage}", override])


def test_defaults_may_be_written_down_anywhere(recipe):
    assert set(OTHER_VALUES) == {*NOT_IN_STAGE_1, *ONLY_IN_STAGE_1}
    defaults = ["--lora=false", "--max_length=4096", "--segmentor=null", "--jitter_max=2", "--negative_share=0.5"]
    for stage in (1, 2, 3):
        parse_recipe(recipe, ["--use_cpu", f"--stage={stage}", *defaults])


def test_adapters_decide_what_learns(recipe):
    with pytest.raises(ValueError, match=r"trainable is \['lm_head'\], but with lora the adapters decide what learns"):
        parse_recipe(recipe, ["--use_cpu", "--lora", "--trainable=[lm_head]"])
    assert parse_recipe(recipe, ["--use_cpu", "--lora", "--trainable=null"])[2].lora
    assert parse_recipe(recipe, ["--use_cpu", "--lora=false", "--trainable=[lm_head]"])[0].trainable == ["lm_head"]


def test_a_process_has_one_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ValueError, match=r"n_gpu is 2: .*accelerate launch --num_processes 2 .*CUDA_VISIBLE_DEVICES=0"
    ):
        XSAMTrainingArguments(str(tmp_path))
    assert XSAMTrainingArguments(str(tmp_path), use_cpu=True).n_gpu == 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert XSAMTrainingArguments(str(tmp_path)).n_gpu == 1


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
