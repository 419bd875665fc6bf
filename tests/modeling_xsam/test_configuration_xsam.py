import pytest
from transformers import AutoConfig, GraniteConfig, Qwen3Config

from modeling_xsam import XSAMConfig, XSAMMaskDecoderConfig
from tiny_models import tiny_config, tiny_mask_decoder_config, tiny_qwen_config


def test_the_defaults_are_the_released_model():
    config = XSAMConfig()
    assert (config.text_config.model_type, config.text_config.hidden_size) == ("phi3", 3072)
    assert (config.text_config.vocab_size, config.text_config.sliding_window) == (32016, 2047)
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (1152, 27)
    assert (config.high_res_vision_config.hidden_size, config.high_res_vision_config.num_hidden_layers) == (1024, 24)
    assert config.high_res_vision_config.initializer_range == 0.02
    assert config.mask_decoder_config.num_queries == 200
    assert config.num_image_tokens == 729 + 1024
    assert config.connector_out_channels == [512, 1024, 2048]


def test_the_newer_recipe_is_expressible():
    config = XSAMConfig(
        num_region_tokens=64, region_pooling="mean", mask_decoder_config=XSAMMaskDecoderConfig(class_logit_clamp=50)
    )
    assert config.num_region_points // config.num_region_tokens == 4
    assert config.mask_decoder_config.class_logit_clamp == 50


def test_round_trip(tmp_path):
    config = tiny_config(num_region_tokens=4, region_pooling="mean", id2label={0: "cat", 1: "dog", 2: "sky"})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, XSAMConfig)
    assert isinstance(loaded.mask_decoder_config, XSAMMaskDecoderConfig)
    assert loaded.num_labels == 3
    ignored = ("transformers_version", "_name_or_path")
    original, restored = config.to_dict(), loaded.to_dict()
    assert {k: v for k, v in original.items() if k not in ignored} == {
        k: v for k, v in restored.items() if k not in ignored
    }


def test_any_language_model_goes_in_and_decides_about_tied_embeddings():
    config = tiny_config(text_config=tiny_qwen_config())
    assert isinstance(config.text_config, Qwen3Config)
    assert config.tie_word_embeddings is True
    assert tiny_config().tie_word_embeddings is False


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"region_pooling": "median"}, "region_pooling is 'median'"),
        ({"num_region_tokens": 3}, r"num_region_points \(256\) has to be a multiple"),
        ({"connector_scale_factors": [3.0, 1.0, 0.5]}, "connector_scale_factors has 3"),
        ({"connector_feature_layers": [1, 2]}, "three scales, but connector_feature_layers has 2"),
        ({"seg_token_id": 500}, "seg_token_id is 500, outside the vocabulary"),
        ({"image_token_id": 123}, "an id each"),
    ],
)
def test_impossible_values_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


def test_language_models_that_rescale_logits_are_refused():
    granite = GraniteConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, logits_scaling=8
    )
    with pytest.raises(ValueError, match=r"text_config\.logits_scaling is 8"):
        tiny_config(text_config=granite)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"dropout": 0.1}, "dropout is 0.1, but has to be 0"), ({"feature_size": 40}, "feature_size is 40")],
)
def test_impossible_mask_decoder_values_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_mask_decoder_config(**overrides)
