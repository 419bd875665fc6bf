from dataclasses import replace

import pytest
import torch
from transformers import (
    Phi3ForCausalLM,
    Qwen3ForCausalLM,
    SamConfig,
    SamModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
)

from modeling_xsam import XSAMForSegmentation, XSAMForUniversalSegmentation
from random_checkpoint import byte_tokenizer
from tiny_models import tiny_config, tiny_mask_decoder_config, tiny_text_config
from tiny_training import fitting_model, qwen_text_config, tiny_processor, vocabulary
from xsam_training.arguments import ModelArguments
from xsam_training.initialization import (
    build_config,
    build_generation_config,
    build_model,
    build_processor,
    random_model,
)

DECODER = tiny_mask_decoder_config().to_dict()
CONFIG = {"mask_decoder_config": DECODER, "connector_feature_layers": [1, 2, 3], "connector_hidden_size": 32}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Stand-ins of the Hub's checkpoints: a language model with its tokenizer, SigLIP and SAM with all their parts."""
    folder = tmp_path_factory.mktemp("sources")
    config = tiny_config()
    torch.manual_seed(1)
    text_config = tiny_text_config(**{**vocabulary(tiny_processor()), "vocab_size": 400})
    Phi3ForCausalLM(text_config).save_pretrained(folder / "phi3")
    byte_tokenizer().save_pretrained(folder / "phi3")
    Qwen3ForCausalLM(qwen_text_config(tiny_processor())).save_pretrained(folder / "qwen3")
    byte_tokenizer().save_pretrained(folder / "qwen3")
    text_tower = SiglipTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    vision_config = config.vision_config.to_dict()
    SiglipModel(SiglipConfig(text_config=text_tower.to_dict(), vision_config=vision_config)).save_pretrained(
        folder / "siglip"
    )
    SamModel(SamConfig(vision_config=config.high_res_vision_config.to_dict())).save_pretrained(folder / "sam")
    return folder


def arguments(sources, stage: int = 3, **changes) -> ModelArguments:
    values = {
        "stage": stage,
        "language_model": str(sources / "phi3"),
        "vision_tower": str(sources / "siglip"),
        "high_res_vision_tower": str(sources / "sam"),
        "config": CONFIG,
    }
    return ModelArguments(**{**values, **changes})


def built(args: ModelArguments, labels: tuple[str, ...] = ()):
    processor = build_processor(args)
    model, report = build_model(args, build_config(args, processor.tokenizer, labels))
    return processor, model, report


def test_towers_and_language_model_from_their_own_checkpoints(sources):
    processor, model, report = built(arguments(sources))
    phi3 = Phi3ForCausalLM.from_pretrained(sources / "phi3")
    rows = len(processor.tokenizer)
    assert model.lm_head.weight.shape[0] == rows < 400
    # The new tokens keep the rows that the language model has at their ids.
    assert torch.equal(model.lm_head.weight, phi3.lm_head.weight[:rows])
    assert torch.equal(model.get_input_embeddings().weight, phi3.get_input_embeddings().weight[:rows])
    layer = "layers.1.mlp.down_proj.weight"
    assert torch.equal(model.language_model.state_dict()[layer], phi3.model.state_dict()[layer])
    siglip, sam = SiglipModel.from_pretrained(sources / "siglip"), SamModel.from_pretrained(sources / "sam")
    for key, value in siglip.vision_model.state_dict().items():
        assert torch.equal(model.vision_tower.state_dict()[key], value), key
    for key, value in sam.vision_encoder.state_dict().items():
        assert torch.equal(model.high_res_vision_tower.state_dict()[f"vision_encoder.{key}"], value), key
    assert {key.split(".")[0] for key in report.new} == {
        "multi_modal_projector",
        "high_res_projector",
        "mask_projector",
        "background_embedding",
        "connector",
        "mask_decoder",
        "phrase_classifier",
    }
    phi3_unused, siglip_unused, sam_unused = (
        {key.split(".")[0] for key in source.unused} for source in report.sources
    )
    assert phi3_unused == set()
    assert siglip_unused == {"text_model", "logit_scale", "logit_bias"}
    assert sam_unused == {"prompt_encoder", "mask_decoder", "shared_image_embedding"}
    assert "siglip: vision_tower (" in str(report) and "multi_modal_projector (4)" in str(report)


def test_patches_of_a_dense_tower_from_scratch_have_a_place(sources):
    towers = {"language_model": None, "vision_tower": None, "high_res_vision_tower": None}
    config = {**CONFIG, "high_res_vision_config": tiny_config().high_res_vision_config.to_dict()}
    from_scratch = arguments(sources, stage=1, tokenizer=str(sources / "phi3"), config=config, **towers)
    _, model, _ = built(from_scratch, labels=("cup",))
    positions = model.high_res_vision_tower.vision_encoder.pos_embed[0].detach()
    height, width, channels = positions.shape
    down, right = positions[:, :, 0], positions[:, :, channels // 2]  # the sines of the highest frequency
    assert torch.allclose(down, torch.arange(height).float().sin()[:, None].expand(height, width))
    assert torch.allclose(right, torch.arange(width).float().sin().expand(height, width))
    assert len(positions.flatten(0, 1).unique(dim=0)) == height * width


def test_a_dense_tower_without_a_position_embedding_has_none(sources):
    config = tiny_config()
    config.high_res_vision_config.use_abs_pos = False
    assert random_model(XSAMForSegmentation, config).high_res_vision_tower.vision_encoder.pos_embed is None


def test_tied_embeddings_are_not_new(sources):
    _, model, report = built(arguments(sources, language_model=str(sources / "qwen3")))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not [key for key in report.new if "lm_head" in key or "embed_tokens" in key]


def test_a_longer_vocabulary_starts_at_the_mean(sources, tmp_path):
    short = tiny_text_config(**{**vocabulary(tiny_processor()), "vocab_size": 262})
    Phi3ForCausalLM(short).save_pretrained(tmp_path / "short")
    args = arguments(sources, language_model=str(tmp_path / "short"), tokenizer=str(sources / "phi3"))
    _, model, _ = built(args)
    weight = model.lm_head.weight
    torch.testing.assert_close(weight[262:], weight[:262].mean(0).expand(len(weight) - 262, -1))


def test_stages_start_from_what_earlier_ones_saved(sources, tmp_path):
    processor, first, report = built(
        arguments(sources, stage=1, language_model=None, tokenizer=str(sources / "phi3"), vision_tower=None),
        labels=("cup", "table"),
    )
    assert isinstance(first, XSAMForUniversalSegmentation)
    assert first.config.id2label == {0: "cup", 1: "table"} and first.class_predictor.out_features == 3
    assert {key.split(".")[0] for key in report.new} == {"connector", "mask_decoder", "class_predictor"}
    first.save_pretrained(tmp_path / "stage1")
    processor.save_pretrained(tmp_path / "stage1")

    processor, second, _ = built(arguments(sources, stage=2))
    second.save_pretrained(tmp_path / "stage2")
    processor.save_pretrained(tmp_path / "stage2")

    third_args = arguments(
        sources,
        high_res_vision_tower=None,
        segmentor=str(tmp_path / "stage1"),
        projectors=str(tmp_path / "stage2"),
        config=None,
    )
    _, third, report = built(third_args)
    weights = third.state_dict()
    for key, value in first.state_dict().items():
        if not key.startswith("class_predictor"):
            assert torch.equal(weights[key], value), key
    for key, value in second.state_dict().items():
        if key.startswith(("multi_modal_projector", "high_res_projector", "vision_tower", "language_model")):
            assert torch.equal(weights[key], value), key
    segmentor = next(source for source in report.sources if source.name.endswith("stage1"))
    assert {key.split(".")[0] for key in segmentor.unused} == {"class_predictor"}
    assert {key.split(".")[0] for key in report.new} == {"mask_projector", "background_embedding", "phrase_classifier"}


def test_a_whole_checkpoint(sources, tmp_path):
    processor = tiny_processor()
    model = fitting_model(processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    _, copy, report = built(ModelArguments(stage=3, model=str(tmp_path)))
    assert isinstance(copy, XSAMForSegmentation)
    assert all(torch.equal(copy.state_dict()[key], value) for key, value in model.state_dict().items())
    assert report.new == []


def test_wrong_shapes_and_foreign_checkpoints_are_named(sources, tmp_path):
    wrong = replace(arguments(sources), config={**CONFIG, "text_config": {"intermediate_size": 48}})
    with pytest.raises(ValueError, match=r"gate_up_proj.weight is \(128, 32\), but the model has \(96, 32\)"):
        built(wrong)
    with pytest.raises(ValueError, match="phi3 is a checkpoint of 'phi3'"):
        built(arguments(sources, projectors=str(sources / "phi3"), tokenizer=str(sources / "phi3"), config=CONFIG))


def test_answers_end_where_the_template_ends_them():
    processor = tiny_processor()
    generation = build_generation_config(processor)
    assert generation.eos_token_id == [processor.tokenizer.convert_tokens_to_ids("<|end|>")]
    assert generation.pad_token_id == processor.tokenizer.pad_token_id
