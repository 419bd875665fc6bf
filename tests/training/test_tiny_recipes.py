"""The recipes of the small checkpoint run one after the other, and give what lies in hub_cards/xsam-tiny."""

import json
from pathlib import Path

import pytest
import yaml

from xsam_training.arguments import parse_recipe
from xsam_training.data.shape_world.tokenizer import train_tokenizer
from xsam_training.train import train

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes" / "tiny"
CHECKPOINT = ROOT / "hub_cards" / "xsam-tiny"
STAGES = (1, 2, 3)
# Differ with the versions that save them, or are a matter of where a run lies.
NOT_COMPARED = {"transformers_version", "_name_or_path", "dtype"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One step of each stage, as `make tiny` runs them."""
    folder = tmp_path_factory.mktemp("tiny")
    train_tokenizer().save_pretrained(folder / "tokenizer")
    trainers = {}
    for stage in STAGES:
        recipe = yaml.safe_load((RECIPES / f"stage{stage}.yaml").read_text(encoding="utf-8"))
        sources = {name: recipe[name] for name in ("tokenizer", "model") if name in recipe}
        moved = [f"--{name}={folder / Path(source).name}" for name, source in sources.items()]
        overrides = ["--max_steps=1", "--global_batch_size=4", "--per_device_train_batch_size=4", "--picture_steps=0"]
        overrides += ["--save_strategy=no", "--logging_steps=1", "--disable_tqdm=true"]
        trainers[stage] = train(
            RECIPES / f"stage{stage}.yaml", [*moved, *overrides, f"--output_dir={folder / f'stage{stage}'}"]
        )
    return folder, trainers


@pytest.mark.parametrize("stage", STAGES)
def test_seed_and_steps_are_pinned(stage):
    model, _, _, args = parse_recipe(RECIPES / f"stage{stage}.yaml")
    assert (model.stage, args.seed, args.use_cpu) == (stage, 0, True)
    assert args.max_steps > 1000 and args.save_steps <= 500


def test_each_stage_starts_from_the_one_before():
    sources = [yaml.safe_load((RECIPES / f"stage{stage}.yaml").read_text(encoding="utf-8")) for stage in STAGES]
    assert [source.get("model") for source in sources] == [None, sources[0]["output_dir"], sources[1]["output_dir"]]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs(runs, stage):
    _, trainers = runs
    (step,) = [entry for entry in trainers[stage].state.log_history if "loss" in entry]
    assert 0 < step["loss"] < 200
    assert ("loss_lm" in step, "loss_cls" in step) == (stage > 1, stage != 2)


def test_the_segmentor_stays_as_it_is_in_stage_2(runs):
    _, trainers = runs
    parameters = dict(trainers[2].model.named_parameters())
    learning = {name.split(".")[0] for name, parameter in parameters.items() if parameter.requires_grad}
    assert learning == {"vision_tower", "multi_modal_projector", "high_res_projector", "language_model"}


def test_the_checkpoint_has_the_configuration_of_the_recipes(runs):
    folder, _ = runs
    made, shipped = (_read_json(path / "config.json") for path in (folder / "stage3", CHECKPOINT))
    assert _compared(made) == _compared(shipped)


def test_the_checkpoint_has_the_tokenizer_of_the_recipes(runs):
    folder, _ = runs
    made, shipped = (_read_json(path / "tokenizer.json") for path in (folder / "stage3", CHECKPOINT))
    assert (made["model"], made["added_tokens"]) == (shipped["model"], shipped["added_tokens"])


def test_the_weights_are_small():
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= 12_000_000


def _read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _compared(config):
    """A configuration without what is not compared, at every level."""
    if not isinstance(config, dict):
        return config
    return {name: _compared(value) for name, value in config.items() if name not in NOT_COMPARED}
