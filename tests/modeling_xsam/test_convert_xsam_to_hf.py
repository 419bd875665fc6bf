import pytest
import torch
from safetensors.torch import load_file

from modeling_xsam import XSAMForSegmentation, XSAMForUniversalSegmentation
from modeling_xsam.convert_xsam_to_hf import (
    KEY_MAPPING,
    build_config,
    convert_checkpoint,
    convert_key,
    convert_state_dict,
    empty_model,
    main,
    plan_conversion,
    read_checkpoint,
    write_folder,
)
from parity import recorded_config

# Entry of the manifest, variant, stage, whether the newer branch of the original code wrote it.
RELEASED = [
    ("archive_stage3_phi3", "phi3", 3, False),
    ("archive_stage1", "phi3", 1, False),
    ("main_stage3_phi3", "phi3", 3, True),
    ("main_stage3_qwen3_1p7b", "qwen3-1.7b", 3, True),
    ("main_stage3_qwen3_4b", "qwen3-4b", 3, True),
    ("main_stage1", "phi3", 1, True),
]
TIED_HEAD = "llm.lm_head.weight"


@pytest.fixture
def recorded(goldens):
    """Weights under their original names, and the configuration of their model."""
    return goldens.tensors("model"), recorded_config(goldens)


@pytest.mark.parametrize(("entry", "variant", "stage", "newer_branch"), RELEASED)
def test_every_released_weight_lands_on_a_parameter_of_equal_shape(goldens, entry, variant, stage, newer_branch):
    shapes = goldens.json("manifest_full")[entry]["keys"]
    config = build_config(variant, stage, newer_branch)
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    converted = convert_state_dict(weights, config)
    expected = empty_model(config).state_dict()
    assert converted.keys() == expected.keys()
    assert {name: weight.shape for name, weight in converted.items()} == {
        name: weight.shape for name, weight in expected.items()
    }
    report = plan_conversion({name: weight.shape for name, weight in weights.items()}, config)
    assert len(report.mapped) + len(report.ignored) == len(shapes)
    tied = {TIED_HEAD} if variant.startswith("qwen") else set()
    assert set(report.ignored) == {"segmentor.shared_image_embedding.positional_embedding"} | tied


@pytest.mark.parametrize("newer_branch", [False, True])
def test_both_published_recipes(newer_branch):
    config = build_config("phi3", 3, newer_branch)
    recipe = config.num_region_tokens, config.region_pooling, config.mask_decoder_config.class_logit_clamp
    assert recipe == ((64, "mean", 50.0) if newer_branch else (1, "max", 500.0))


def test_special_tokens_of_the_variants():
    phi3, qwen3 = build_config("phi3", 3), build_config("qwen3-4b", 3)
    assert (phi3.seg_token_id, phi3.phrase_start_token_id, phi3.phrase_end_token_id) == (32011, 32012, 32013)
    assert (phi3.image_token_id, phi3.region_token_id, phi3.text_config.vocab_size) == (32014, 32015, 32016)
    assert (qwen3.seg_token_id, qwen3.region_token_id, qwen3.text_config.vocab_size) == (151669, 151673, 151674)


def test_placeholder_rows_are_appended(recorded):
    weights, config = recorded
    converted = convert_state_dict(weights, config)
    for name, original in (("language_model.embed_tokens", "llm.model.embed_tokens"), ("lm_head", "llm.lm_head")):
        matrix, rows = converted[f"{name}.weight"], weights[f"{original}.weight"]
        assert torch.equal(matrix[:-2], rows)
        torch.testing.assert_close(matrix[-2:], rows.mean(0).expand(2, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sharded_folder_loads_bit_for_bit(recorded, tmp_path, dtype):
    weights, config = recorded
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    write_folder(weights, tmp_path, config, eos_token_id=[2], max_bytes=300_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 400_000 for file in files)
    model = XSAMForSegmentation.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype == dtype
    assert model.generation_config.eos_token_id == [2]
    for name, tensor in convert_state_dict(weights, config).items():
        loaded = model.state_dict()[name]
        assert torch.equal(loaded, tensor.to(loaded.dtype)), name


def test_stage_1_loads_and_so_does_the_original_file_with_the_same_table(goldens, tmp_path):
    weights, config = stage1_weights(goldens)
    write_folder(weights, tmp_path / "converted", config)
    converted = XSAMForUniversalSegmentation.from_pretrained(tmp_path / "converted")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    config.save_pretrained(tmp_path)
    direct = XSAMForUniversalSegmentation.from_pretrained(tmp_path, key_mapping=KEY_MAPPING)
    for name, tensor in converted.state_dict().items():
        assert torch.equal(direct.state_dict()[name], tensor), name


def test_tied_embeddings_are_written_once(recorded, tmp_path):
    weights, config = recorded
    config.tie_word_embeddings = True
    weights[TIED_HEAD] = weights["llm.model.embed_tokens.weight"]
    report = write_folder(weights, tmp_path, config)
    assert TIED_HEAD in report.ignored
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = XSAMForSegmentation.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w},
        lambda w: {"module": w},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
    ],
)
def test_wrappers_of_training_are_unpacked(recorded, tmp_path, wrap):
    weights, _ = recorded
    torch.save(wrap(weights), tmp_path / "pytorch_model.bin")
    read = read_checkpoint(tmp_path / "pytorch_model.bin")
    assert read.keys() == weights.keys()
    assert torch.equal(read["bg_embeds.weight"], weights["bg_embeds.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"segmentor.novelty.weight": torch.zeros(2)}), "1 weights are unknown: segmentor.novelty"),
        (lambda w: w.pop("bg_embeds.weight"), "1 weights are missing: background_embedding.weight"),
        (
            lambda w: w.update({"bg_embeds.weight": torch.zeros(1, 7)}),
            r"bg_embeds.weight is \(1, 7\), background_embedding.weight is \(1, 32\)",
        ),
        (lambda w: w.update({"segmentor.logit_scale": torch.zeros(())}), r"segmentor.logit_scale is \(\)"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(recorded, tmp_path, change, message):
    weights, config = recorded
    change(weights)
    with pytest.raises(ValueError, match=message):
        write_folder(weights, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_report(recorded, tmp_path):
    weights, config = recorded
    text = str(write_folder(weights, tmp_path, config))
    assert text.splitlines()[:2] == ["mapped: 321 weights", "ignored: 1"]
    assert "segmentor.shared_image_embedding.positional_embedding: a buffer" in text
    assert text.endswith("missing: 0")


def test_a_truncated_file_is_named(recorded, tmp_path):
    weights, _ = recorded
    path = tmp_path / "pytorch_model.bin"
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be read; it may be truncated"):
        read_checkpoint(path)


class Unsafe:
    """Something that a pickle can hold and a checkpoint must not."""


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"weights": Unsafe()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="would run code when read"):
        read_checkpoint(tmp_path / "pytorch_model.bin")


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is no dictionary of tensors"):
        read_checkpoint(tmp_path / "pytorch_model.bin")


def test_the_command_line_converts_with_the_recipe_that_the_names_tell(recorded, tmp_path, monkeypatch, capsys):
    weights, config = recorded
    seen = {}

    def tiny_config(variant, stage, newer_branch, num_labels):
        seen.update(variant=variant, stage=stage, newer_branch=newer_branch)
        return config

    monkeypatch.setattr("modeling_xsam.convert_xsam_to_hf.build_config", tiny_config)
    renamed = {name.replace("visual_encoder.", "vision_encoder."): tensor for name, tensor in weights.items()}
    torch.save(renamed, tmp_path / "pytorch_model.bin")
    main(["--checkpoint", str(tmp_path / "pytorch_model.bin"), "--output", str(tmp_path / "out")])
    assert seen == {"variant": "phi3", "stage": 3, "newer_branch": True}
    assert "mapped: 321 weights" in capsys.readouterr().out
    model = XSAMForSegmentation.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [32007, 32000, 32001]


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    torch.save({"some.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SystemExit):
        main(["--checkpoint", str(tmp_path / "pytorch_model.bin"), "--output", str(tmp_path / "out"), "--stage", "1"])
    error = capsys.readouterr().err
    assert "1 weights are unknown: some.weight" in error
    assert "weights are missing" in error


def test_the_number_of_classes_of_stage_1_comes_from_the_checkpoint(goldens, tmp_path, monkeypatch):
    weights, config = stage1_weights(goldens)
    counts = []

    def tiny_config(variant, stage, newer_branch, num_labels):
        counts.append(num_labels)
        return config

    monkeypatch.setattr("modeling_xsam.convert_xsam_to_hf.build_config", tiny_config)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    convert_checkpoint(tmp_path / "pytorch_model.bin", tmp_path / "out", stage=1)
    assert counts == [5]


@pytest.mark.parametrize("name", ["optimizer.state", "llm.other.weight", "segmentor.class_predictor.bias.extra"])
def test_foreign_names_have_no_counterpart(name):
    assert convert_key(name) is None


def stage1_weights(goldens):
    config = recorded_config(goldens)
    config.architectures = ["XSAMForUniversalSegmentation"]
    shared = ("segmentor.encoder.", "segmentor.pixel_decoder.", "segmentor.decoder.", "seg_connector.")
    weights = {name: tensor for name, tensor in goldens.tensors("model").items() if name.startswith(shared)}
    return {**weights, **goldens.tensors("model_s1_extra")}, config
