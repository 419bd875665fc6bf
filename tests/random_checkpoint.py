"""A tiny checkpoint with random weights: every part of X-SAM, none of its knowledge. For tests."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Phi3Config,
    PreTrainedTokenizerFast,
    SamImageProcessor,
    SamVisionConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from modeling_xsam import XSAMConfig, XSAMForSegmentation, XSAMMaskDecoderConfig
from processing_xsam import XSAMProcessor
from xsam_training.data.shape_world.tokenizer import with_phi3_tokens

HIGH_RES_SIZE = 256
LOW_RES_SIZE = 112


def byte_backend() -> Tokenizer:
    """One token per byte; needs no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with Phi-3's special tokens."""
    return with_phi3_tokens(byte_backend())


def random_processor() -> XSAMProcessor:
    return XSAMProcessor(
        image_processor=SiglipImageProcessor(size={"height": LOW_RES_SIZE, "width": LOW_RES_SIZE}),
        high_res_image_processor=SamImageProcessor(
            size={"longest_edge": HIGH_RES_SIZE}, pad_size={"height": HIGH_RES_SIZE, "width": HIGH_RES_SIZE}
        ),
        tokenizer=byte_tokenizer(),
        num_image_tokens=(LOW_RES_SIZE // 14) ** 2 + (HIGH_RES_SIZE // 32) ** 2,
    )


def random_model(processor: XSAMProcessor, seed: int = 0, num_queries: int = 20) -> XSAMForSegmentation:
    tokenizer = processor.tokenizer
    config = XSAMConfig(
        text_config=Phi3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=LOW_RES_SIZE,
            patch_size=14,
        ),
        high_res_vision_config=SamVisionConfig(
            hidden_size=64,
            mlp_dim=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=HIGH_RES_SIZE,
            window_size=4,
            global_attn_indexes=[1, 3],
            output_channels=32,
            initializer_range=0.02,
        ),
        mask_decoder_config=XSAMMaskDecoderConfig(
            feature_size=64,
            mask_feature_size=64,
            hidden_dim=64,
            encoder_layers=2,
            encoder_feedforward_dim=128,
            decoder_layers=4,
            dim_feedforward=128,
            num_attention_heads=4,
            num_queries=num_queries,
        ),
        connector_feature_layers=[2, 3, 4],
        connector_hidden_size=64,
        seg_token_id=processor.seg_token_id,
        phrase_start_token_id=processor.phrase_start_token_id,
        phrase_end_token_id=processor.phrase_end_token_id,
        image_token_id=processor.image_token_id,
        region_token_id=processor.region_token_id,
    )
    torch.manual_seed(seed)
    return XSAMForSegmentation(config).eval()


def save_random_checkpoint(folder: str | Path, seed: int = 0) -> None:
    processor = random_processor()
    random_model(processor, seed).save_pretrained(folder)
    processor.save_pretrained(folder)
