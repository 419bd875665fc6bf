"""
The published models: language models, recipes of the two branches of the original code, and their configurations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from .configuration_xsam import XSAMConfig
from .modeling_xsam import XSAMForSegmentation
from .universal_segmentation_xsam import XSAMForUniversalSegmentation

# X-SAM's tokens in the order in which they follow the language model's, and the fields that hold their ids.
SPECIAL_TOKENS = {
    "<SEG>": "seg_token_id",
    "<p>": "phrase_start_token_id",
    "</p>": "phrase_end_token_id",
    "<image>": "image_token_id",
    "<region>": "region_token_id",
}

# What differs between the branches besides names.
RECIPES = {
    "archive": {"num_region_tokens": 1, "region_pooling": "max", "mask_decoder_config": {"class_logit_clamp": 500.0}},
    "main": {"num_region_tokens": 64, "region_pooling": "mean", "mask_decoder_config": {"class_logit_clamp": 50.0}},
}


@dataclass(frozen=True)
class XSAMVariant:
    """
    A language model that X-SAM was published with.

    Args:
        text_config: fields of the language model's configuration, without its vocabulary; None for XSAMConfig's default.
        tokenizer_length: tokens of the language model's tokenizer; the special tokens of X-SAM follow.
        eos_token_ids: tokens that end a generated answer.
    """

    text_config: dict[str, Any] | None
    tokenizer_length: int
    eos_token_ids: tuple[int, ...]


def _qwen3(hidden_size: int, intermediate_size: int, num_hidden_layers: int, num_attention_heads: int) -> XSAMVariant:
    text_config = {
        "model_type": "qwen3",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "max_window_layers": num_hidden_layers,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "pad_token_id": 151643,
    }
    return XSAMVariant(text_config, tokenizer_length=151669, eos_token_ids=(151645, 151643))


VARIANTS = {
    "phi3": XSAMVariant(None, tokenizer_length=32011, eos_token_ids=(32007, 32000, 32001)),
    "qwen3-1.7b": _qwen3(2048, 6144, num_hidden_layers=28, num_attention_heads=16),
    "qwen3-4b": _qwen3(2560, 9728, num_hidden_layers=36, num_attention_heads=32),
}


def build_config(
    variant: str = "phi3", stage: int = 3, recipe: str = "archive", num_labels: int | None = None
) -> XSAMConfig:
    """
    Configuration of a published model.

    Args:
        variant: a name in `VARIANTS`.
        stage: 1 (`XSAMForUniversalSegmentation`) or 3 (`XSAMForSegmentation`).
        recipe: the branch of the original that trained it, a name in `RECIPES`.
        num_labels: classes of the linear head in stage 1, without the background.

    Raises:
        ValueError: if `variant`, `stage` or `recipe` is unknown.
    """
    for name, value, known in (("variant", variant, VARIANTS), ("stage", stage, (1, 3)), ("recipe", recipe, RECIPES)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; known are {', '.join(map(str, known))}.")
    published = VARIANTS[variant]
    vocab_size = published.tokenizer_length + len(SPECIAL_TOKENS)
    text_config = None if published.text_config is None else {**published.text_config, "vocab_size": vocab_size}
    model_class = XSAMForUniversalSegmentation if stage == 1 else XSAMForSegmentation
    return XSAMConfig(
        text_config=text_config,
        architectures=[model_class.__name__],
        **{name: published.tokenizer_length + i for i, name in enumerate(SPECIAL_TOKENS.values())},
        **({} if num_labels is None else {"num_labels": num_labels}),
        **RECIPES[recipe],
    )


def build_generation_config(config: XSAMConfig, variant: str | None = None) -> GenerationConfig:
    """Greedy generation that ends at the language model's own end tokens, or at those of a name in `VARIANTS`."""
    text_config = config.text_config
    return GenerationConfig(
        bos_token_id=text_config.bos_token_id,
        eos_token_id=text_config.eos_token_id if variant is None else list(VARIANTS[variant].eos_token_ids),
        pad_token_id=text_config.pad_token_id,
    )


__all__ = ["RECIPES", "SPECIAL_TOKENS", "VARIANTS", "XSAMVariant", "build_config", "build_generation_config"]
