"""Tiny random models for the tests: every module of the real one, at a size that runs in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Phi3Config, Qwen3Config, SamVisionConfig, SiglipVisionConfig

from modeling_xsam import XSAMConfig, XSAMForSegmentation, XSAMMaskDecoderConfig

VOCAB_SIZE = 128
SEG, PHRASE_START, PHRASE_END, IMAGE, REGION = range(VOCAB_SIZE - 5, VOCAB_SIZE)
HIGH_RES_SIZE = 64
LOW_RES_SIZE = 28


def tiny_text_config(**overrides: Any) -> Phi3Config:
    values = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return Phi3Config(**{**values, **overrides})


def tiny_qwen_config(**overrides: Any) -> Qwen3Config:
    values = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return Qwen3Config(**{**values, **overrides})


def tiny_mask_decoder_config(**overrides: Any) -> XSAMMaskDecoderConfig:
    values = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_layers": 1,
        "encoder_feedforward_dim": 32,
        "decoder_layers": 3,
        "dim_feedforward": 32,
        "num_attention_heads": 4,
        "num_queries": 6,
        "train_num_points": 32,
    }
    return XSAMMaskDecoderConfig(**{**values, **overrides})


def tiny_config(**overrides: Any) -> XSAMConfig:
    """4 low-resolution and 4 high-resolution image tokens, three scales of 8, 4 and 2 pixels."""
    values = {
        "text_config": tiny_text_config(),
        "vision_config": SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=LOW_RES_SIZE,
            patch_size=14,
        ),
        "high_res_vision_config": SamVisionConfig(
            hidden_size=32,
            mlp_dim=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=HIGH_RES_SIZE,
            patch_size=16,
            window_size=2,
            global_attn_indexes=[2],
            output_channels=16,
            initializer_range=0.02,
        ),
        "mask_decoder_config": tiny_mask_decoder_config(),
        "connector_feature_layers": [1, 2, 3],
        "connector_hidden_size": 32,
        "seg_token_id": SEG,
        "phrase_start_token_id": PHRASE_START,
        "phrase_end_token_id": PHRASE_END,
        "image_token_id": IMAGE,
        "region_token_id": REGION,
    }
    return XSAMConfig(**{**values, **overrides})


def tiny_model(seed: int = 0, **overrides: Any) -> XSAMForSegmentation:
    torch.manual_seed(seed)
    return XSAMForSegmentation(tiny_config(**overrides)).eval()


def tiny_images(number: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Pixels of `number` random images, as the keyword arguments of the model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(number, 3, LOW_RES_SIZE, LOW_RES_SIZE, generator=generator),
        "high_res_pixel_values": torch.randn(number, 3, HIGH_RES_SIZE, HIGH_RES_SIZE, generator=generator),
    }


def prompt_ids(*parts: int | list[int], image_tokens: int = 8) -> list[int]:
    """Token ids from single ids and lists, with `IMAGE` expanded to the tokens of one image."""
    ids: list[int] = []
    for part in parts:
        tokens = part if isinstance(part, list) else [part]
        for token in tokens:
            ids.extend([IMAGE] * image_tokens if token == IMAGE else [token])
    return ids


def phrase(*ids: int) -> list[int]:
    return [PHRASE_START, *ids, PHRASE_END]


def batch(*rows: list[int], padding_side: str = "left") -> dict[str, torch.Tensor]:
    """Rows of different lengths, padded, as `input_ids` and `attention_mask`."""
    length = max(len(row) for row in rows)
    padding = [[0] * (length - len(row)) for row in rows]
    left = padding_side == "left"
    ids = [pad + row if left else row + pad for pad, row in zip(padding, rows, strict=True)]
    mask = [
        [0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad)
        for pad, row in zip(padding, rows, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
