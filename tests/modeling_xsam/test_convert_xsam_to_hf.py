import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, PreTrainedTokenizerFast

from modeling_xsam import XSAMConfig, XSAMForSegmentation, XSAMForUniversalSegmentation
from modeling_xsam import convert_xsam_to_hf as conversion
from modeling_xsam.convert_xsam_to_hf import (
    KEY_MAPPING,
    build_config,
    build_generation_config,
    convert_checkpoint,
    convert_key,
    convert_state_dict,
    infer_recipe,
    infer_stage,
    infer_variant,
    load_tokenizer,
    main,
    plan_conversion,
    read_checkpoint,
)
from original_names import original_names
from tiny_models import SEG, VOCAB_SIZE, tiny_config, tiny_qwen_config

# Entry of the manifest, and the variant, stage and branch that wrote it.
RELEASED = [
    ("archive_stage3_phi3", "phi3", 3, "archive"),
    ("archive_stage1", "phi3", 1, "archive"),
    ("main_stage3_phi3", "phi3", 3, "main"),
    ("main_stage3_qwen3_1p7b", "qwen3-1.7b", 3, "main"),
    ("main_stage3_qwen3_4b", "qwen3-4b", 3, "main"),
    ("main_stage1", "phi3", 1, "main"),
]
UNUSED_BUFFER = "segmentor.shared_image_embedding.positional_embedding"
TIED_HEAD = "llm.lm_head.weight"


def original_weights(config=None, stage=3):
    """Random weights of a tiny model under the archive branch's names, with all that only the original has."""
    torch.manual_seed(0)
    model_class = XSAMForUniversalSegmentation if stage == 1 else XSAMForSegmentation
    weights = original_names(model_class(config or tiny_config()).state_dict())
    return {UNUSED_BUFFER: torch.randn(2, 4), **weights}


@pytest.fixture
def save(tmp_path):
    def save(content, name="pytorch_model.bin"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def config_folder(tmp_path):
    tiny_config().save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


# All released checkpoints, at full size


@pytest.mark.parametrize(("entry", "variant", "stage", "recipe"), RELEASED)
def test_every_released_weight_lands_on_a_parameter_of_equal_shape(goldens, entry, variant, stage, recipe):
    keys = goldens.json("manifest_full")[entry]["keys"]
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in keys.items()}
        model_class = XSAMForUniversalSegmentation if stage == 1 else XSAMForSegmentation
        expected = model_class(build_config(variant, stage, recipe, num_labels=133)).state_dict()
    assert (infer_stage(keys), infer_recipe(keys)) == (stage, recipe)
    assert infer_variant(weights) == variant
    config = build_config(variant, stage, recipe, num_labels=133)

    converted = convert_state_dict(weights, config)
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    plan = plan_conversion(weights, config)
    assert len(plan.sources) + len(plan.ignored) == len(keys)
    assert set(plan.ignored) == {UNUSED_BUFFER} | ({TIED_HEAD} if variant.startswith("qwen") else set())


def test_the_default_variant_is_the_default_configuration():
    assert build_config("phi3").to_diff_dict() == XSAMConfig(architectures=["XSAMForSegmentation"]).to_diff_dict()


@pytest.mark.parametrize(("recipe", "expected"), [("archive", (1, "max", 500.0)), ("main", (64, "mean", 50.0))])
def test_recipes_of_the_two_branches(recipe, expected):
    config = build_config("phi3", 3, recipe)
    assert (config.num_region_tokens, config.region_pooling, config.mask_decoder_config.class_logit_clamp) == expected


@pytest.mark.parametrize(("variant", "first"), [("phi3", 32011), ("qwen3-1.7b", 151669), ("qwen3-4b", 151669)])
def test_special_tokens_follow_the_tokenizer(variant, first):
    config = build_config(variant)
    ids = (config.seg_token_id, config.phrase_start_token_id, config.phrase_end_token_id)
    assert ids == (first, first + 1, first + 2)
    assert (config.image_token_id, config.region_token_id) == (first + 3, first + 4)
    assert config.text_config.vocab_size == first + 5


def test_generation_ends_where_the_published_models_end():
    assert build_generation_config(build_config("phi3"), "phi3").eos_token_id == [32007, 32000, 32001]
    qwen = build_generation_config(build_config("qwen3-4b"), "qwen3-4b")
    assert (qwen.bos_token_id, qwen.eos_token_id, qwen.pad_token_id) == (151643, [151645, 151643], 151643)
    assert build_generation_config(tiny_config()).eos_token_id == 2


@pytest.mark.parametrize("argument", [{"variant": "phi4"}, {"stage": 2}, {"recipe": "newest"}])
def test_unknown_models_are_named(argument):
    ((name, value),) = argument.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}; known are"):
        build_config(**argument)


def test_a_language_model_of_another_size_asks_for_a_configuration():
    with pytest.raises(ValueError, match=r"has hidden size 32; known are .*--config"):
        infer_variant(original_weights())


@pytest.mark.parametrize("key", ["optimizer.state", "llm.other.weight", "segmentor.class_predictor.bias.extra"])
def test_foreign_names_have_no_counterpart(key):
    assert convert_key(key) is None


# From file to folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_command_line_writes_a_sharded_folder_that_loads_bit_for_bit(save, tmp_path, config_folder, capsys, dtype):
    weights = {key: tensor.to(dtype) for key, tensor in original_weights().items()}
    arguments = ["--checkpoint", str(save(weights)), "--output", str(tmp_path / "out"), "--config", config_folder]
    main([*arguments, "--max-shard-size", "100KB"])

    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    stored = {}
    for file in files:
        stored |= load_file(tmp_path / "out" / file)
    expected = convert_state_dict(weights, tiny_config())
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())

    model = XSAMForSegmentation.from_pretrained(tmp_path / "out")
    assert model.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    report = capsys.readouterr().out
    assert f"{len(expected)} weights converted for XSAMForSegmentation, 0 missing" in report


def test_a_small_checkpoint_is_one_file(save, tmp_path):
    convert_checkpoint(save(original_weights()), tmp_path / "out", config=tiny_config())
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {"model.safetensors", "config.json", "generation_config.json"}
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 2


def test_stage_1(save, tmp_path):
    config = tiny_config(num_labels=7)
    weights = original_weights(config, stage=1)
    convert_checkpoint(save(weights), tmp_path / "out", config=config)
    model = XSAMForUniversalSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.architectures == ["XSAMForUniversalSegmentation"]
    assert torch.equal(model.class_predictor.weight, weights["segmentor.class_predictor.weight"])
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_stage_1_also_loads_directly_through_the_table(save, tmp_path):
    weights = original_weights(tiny_config(num_labels=7), stage=1)
    save(weights)
    tiny_config(num_labels=7).save_pretrained(tmp_path)
    model = XSAMForUniversalSegmentation.from_pretrained(tmp_path, key_mapping=KEY_MAPPING)
    expected = convert_state_dict(weights, tiny_config(num_labels=7))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_variant_stage_recipe_and_classes_are_read_off_the_weights(save, tmp_path, monkeypatch):
    seen = {}

    def tiny_published(variant, stage, recipe, num_labels):
        seen.update(variant=variant, stage=stage, recipe=recipe, num_labels=num_labels)
        return tiny_config(num_labels=num_labels)

    weights = original_weights(tiny_config(num_labels=7), stage=1)
    weights["segmentor.class_predictor.predictor.weight"] = weights.pop("segmentor.class_predictor.weight")
    weights["segmentor.class_predictor.predictor.bias"] = weights.pop("segmentor.class_predictor.bias")
    monkeypatch.setattr(conversion, "infer_variant", lambda state_dict: "phi3")
    monkeypatch.setattr(conversion, "build_config", tiny_published)
    convert_checkpoint(save(weights), tmp_path / "out")
    assert seen == {"variant": "phi3", "stage": 1, "recipe": "main", "num_labels": 7}
    convert_checkpoint(save(weights), tmp_path / "other", recipe="archive")
    assert seen["recipe"] == "archive"


def test_placeholder_rows_are_the_mean(save):
    weights = original_weights()
    converted = convert_state_dict(weights, tiny_config())
    for name, key in (
        ("language_model.embed_tokens.weight", "llm.model.embed_tokens.weight"),
        ("lm_head.weight", TIED_HEAD),
    ):
        assert torch.equal(converted[name][:-2], weights[key])
        torch.testing.assert_close(converted[name][-2:], weights[key].mean(0).expand(2, -1))


def test_a_cast_spares_what_the_model_computes_in_float32(save, tmp_path):
    convert_checkpoint(save(original_weights()), tmp_path / "out", config=tiny_config(), dtype=torch.bfloat16)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["language_model.norm.weight"].dtype == torch.bfloat16
    assert stored["vision_tower.post_layernorm.weight"].dtype == torch.bfloat16
    assert stored["mask_decoder.query_decoder.level_embed.weight"].dtype == torch.float32
    assert stored["phrase_classifier.logit_scale"].dtype == torch.float32
    model = XSAMForSegmentation.from_pretrained(tmp_path / "out")
    assert (model.dtype, model.mask_decoder.dtype) == (torch.bfloat16, torch.float32)


def test_tied_embeddings_are_written_once(save, tmp_path):
    config = tiny_config(text_config=tiny_qwen_config())
    weights = original_weights(config)
    weights[TIED_HEAD] = weights["llm.model.embed_tokens.weight"].clone()
    plan = convert_checkpoint(save(weights), tmp_path / "out", config=config)
    assert "equal to llm.model.embed_tokens.weight" in plan.ignored[TIED_HEAD]
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    model = XSAMForSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight[:-2], weights[TIED_HEAD])


def test_a_checkpoint_may_lack_the_tied_copy():
    config = tiny_config(text_config=tiny_qwen_config())
    weights = original_weights(config)
    del weights[TIED_HEAD]
    model = XSAMForSegmentation(config)
    model.load_state_dict(convert_state_dict(weights, config))
    assert torch.equal(model.lm_head.weight[:-2], weights["llm.model.embed_tokens.weight"])


def test_report():
    plan = plan_conversion(original_weights(), tiny_config())
    first, *rest = plan.report().splitlines()
    assert first == f"{len(plan.sources)} weights converted for XSAMForSegmentation, 0 missing"
    assert rest == [
        "1 keys ignored:",
        f"  {UNUSED_BUFFER}: a buffer of SAM's prompt encoder, which X-SAM does not use",
        "rows for <image> and <region> appended to language_model.embed_tokens.weight and lm_head.weight",
    ]


# Files


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda w: w, []),
        (lambda w: {"state_dict": w, "epoch": 3}, ["weights read from 'state_dict', beside epoch"]),
        (lambda w: {"module": w}, ["weights read from 'module'"]),
        (
            lambda w: {"state_dict": {f"module.{key}": tensor for key, tensor in w.items()}},
            ["weights read from 'state_dict'", "prefix 'module.' removed"],
        ),
    ],
)
def test_wrappers_of_training_are_taken_off_and_reported(save, tmp_path, wrap, notes):
    weights = original_weights()
    read, found_notes = read_checkpoint(save(wrap(weights)))
    assert read.keys() == weights.keys()
    assert torch.equal(read["bg_embeds.weight"], weights["bg_embeds.weight"])
    assert found_notes == notes
    plan = convert_checkpoint(tmp_path / "pytorch_model.bin", tmp_path / "out", config=tiny_config())
    assert all(note in plan.report() for note in notes)


def test_safetensors_and_sharded_checkpoints(tmp_path):
    weights = original_weights()
    save_file(weights, tmp_path / "whole.safetensors")
    keys = sorted(weights)
    shards = {"a.safetensors": keys[:100], "b.safetensors": keys[100:]}
    for name, part in shards.items():
        save_file({key: weights[key] for key in part}, tmp_path / name)
    index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("whole.safetensors", "model.safetensors.index.json"):
        convert_checkpoint(tmp_path / name, tmp_path / f"out-{name}", config=tiny_config())
        stored = load_file(tmp_path / f"out-{name}" / "model.safetensors")
        assert all(torch.equal(stored[k], v) for k, v in convert_state_dict(weights, tiny_config()).items())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names the shard b\.safetensors, which is not beside it"):
        read_checkpoint(tmp_path / "model.safetensors.index.json")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        read_checkpoint(tmp_path / "config.json")


class Unsafe:
    """Something that a pickle can hold and a checkpoint must not."""


def test_a_file_that_would_run_code_is_refused(save):
    with pytest.raises(ValueError, match="holds more than tensors, and loading that could run code"):
        read_checkpoint(save({"weights": Unsafe()}))


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(original_weights(), path)
    for size in (path.stat().st_size - 1000, 0):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=f"model.{suffix} cannot be read: it is cut off"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "these entries are none: epoch"),
        ({}, "it is empty"),
        ([1, 2], "holds a list instead of a dict"),
    ],
)
def test_a_file_without_weights_is_refused(save, content, message):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(save(content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin is not a file"):
        read_checkpoint(tmp_path / "nowhere.bin")


# Errors, before anything is written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({"segmentor.new.weight": torch.zeros(2)}),
            "1 keys have no place .*: segmentor.new.weight",
        ),
        (lambda w: w.pop("bg_embeds.weight"), "1 weights have no source: background_embedding.weight"),
        (
            lambda w: w.update({"bg_embeds.weight": torch.zeros(1, 7)}),
            r"bg_embeds.weight is \(1, 7\), expected \(1, 32\)",
        ),
        (
            lambda w: w.update({TIED_HEAD: torch.zeros(VOCAB_SIZE, 32)}),
            r"llm.lm_head.weight is \(128, 32\), expected \(126, 32\)",
        ),
        (
            lambda w: w.update({"segmentor.class_predictor.logit_scale": torch.zeros(1)}),
            "class_predictor.logit_scale and segmentor.logit_scale are both phrase_classifier.logit_scale",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(save, tmp_path, change, message):
    weights = original_weights()
    change(weights)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(save(weights), tmp_path / "out", config=tiny_config())
    assert not (tmp_path / "out").exists()


def test_all_problems_are_listed_at_once():
    weights = original_weights()
    weights["some.weight"] = weights.pop("bg_embeds.weight")
    with pytest.raises(ValueError, match=r"(?s)no place in the model: some.weight.*no source: background_embedding"):
        convert_state_dict(weights, tiny_config())


def test_a_differing_copy_of_a_tied_weight_is_not_lost():
    config = tiny_config(text_config=tiny_qwen_config())
    weights = original_weights(config)
    weights[TIED_HEAD] = weights[TIED_HEAD] + 1
    with pytest.raises(
        ValueError, match=r"differs from llm.model.embed_tokens.weight, but tie_word_embeddings is True"
    ):
        convert_state_dict(weights, config)


def test_placeholders_have_to_be_the_last_tokens():
    config = tiny_config(seg_token_id=VOCAB_SIZE - 1, region_token_id=SEG)
    with pytest.raises(ValueError, match="have to be the last two of the 128 tokens"):
        convert_state_dict(original_weights(), config)


def test_a_full_folder_is_not_touched(save, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("old")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        convert_checkpoint(save(original_weights()), tmp_path / "out", config=tiny_config())
    assert (tmp_path / "out" / "model.safetensors").read_text() == "old"


def test_a_full_disk_is_noticed_before_writing(save, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"but .* has 0\.0 GB free"):
        convert_checkpoint(save(original_weights()), tmp_path / "out", config=tiny_config())
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_what_is_wrong(save, tmp_path, config_folder, capsys):
    arguments = ["--checkpoint", str(save({"some.weight": torch.zeros(1)})), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err
    assert "1 keys have no place in the model: some.weight" in error
    assert "weights have no source" in error
    with pytest.raises(SystemExit):
        main([*arguments, "--config", config_folder, "--stage", "1"])
    assert "--config replaces --variant, --stage and --recipe" in capsys.readouterr().err


# Tokenizer


@pytest.fixture
def make_tokenizer(tmp_path):
    """A tokenizer of so many words, in a folder."""

    def make_tokenizer(length):
        backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(length)}, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "tokenizer")
        return tmp_path / "tokenizer"

    return make_tokenizer


def test_the_tokenizer_is_saved_with_the_special_tokens(save, tmp_path, make_tokenizer):
    source = make_tokenizer(SEG)
    convert_checkpoint(save(original_weights()), tmp_path / "out", config=tiny_config(), tokenizer=source)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("<SEG><p></p><image><region>") == list(range(SEG, SEG + 5))
    # A tokenizer that has them already keeps its ids.
    assert len(load_tokenizer(tmp_path / "out", tiny_config())) == VOCAB_SIZE


def test_a_tokenizer_of_another_model_is_refused(save, tmp_path, make_tokenizer):
    source = make_tokenizer(SEG - 1)
    with pytest.raises(ValueError, match="gives <SEG> the id 122, but seg_token_id is 123"):
        convert_checkpoint(save(original_weights()), tmp_path / "out", config=tiny_config(), tokenizer=source)
    assert not (tmp_path / "out").exists()
