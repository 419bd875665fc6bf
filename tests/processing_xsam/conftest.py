"""Tiny tokenizers, images and processors: no file of a pretrained model is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from processing_xsam.image_processing_xsam import default_high_res_image_processor, default_image_processor
from processing_xsam.processing_xsam import XSAMProcessor
from random_checkpoint import byte_backend

CHAT_TOKENS = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
NUM_IMAGE_TOKENS = 5
LOW_SIZE = 14
HIGH_SIZE = 32


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Each byte is a token."""
    return _finish(byte_backend())


def word_level_tokenizer() -> PreTrainedTokenizerFast:
    """Each ASCII character is a word, white space is lost."""
    vocab = {"<unk>": 0} | {chr(code): i for i, code in enumerate(range(33, 127), start=1)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    return _finish(backend, unk_token="<unk>")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As of Phi-3: each piece of text begins with "▁", spaces become "▁"."""
    symbols = ["<unk>", "▁", "\n", *map(chr, range(33, 127))]
    backend = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _finish(backend, unk_token="<unk>")


def _finish(backend: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **special_tokens
    )
    # Phi-3's chat tokens swallow the white space after them.
    chat_tokens = [AddedToken(token, rstrip=True, normalized=False, special=True) for token in CHAT_TOKENS]
    tokenizer.add_tokens(chat_tokens, special_tokens=True)
    # Added but not special: the tokenizer's `split_special_tokens` lets it through.
    tokenizer.add_tokens([AddedToken("<think>", normalized=True, special=False)])
    return tokenizer


TOKENIZERS = {"byte-level": byte_level_tokenizer, "word-level": word_level_tokenizer, "metaspace": metaspace_tokenizer}


def _make_processor(tokenizer: PreTrainedTokenizerFast | None = None, **kwargs) -> XSAMProcessor:
    return XSAMProcessor(
        default_image_processor(LOW_SIZE),
        default_high_res_image_processor(HIGH_SIZE),
        byte_level_tokenizer() if tokenizer is None else tokenizer,
        **{"num_image_tokens": NUM_IMAGE_TOKENS, **kwargs},
    )


def _make_image(height: int = 24, width: int = 48, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def make_processor() -> Callable[..., XSAMProcessor]:
    """Build a processor with a byte-level tokenizer; SigLIP input 14, SAM input 32, 5 tokens per image."""
    return _make_processor


@pytest.fixture
def make_image() -> Callable[..., Image.Image]:
    """Build an RGB image of random pixels."""
    return _make_image


@pytest.fixture
def processor() -> XSAMProcessor:
    return _make_processor()


@pytest.fixture(params=TOKENIZERS)
def any_processor(request) -> XSAMProcessor:
    """A processor with each kind of tokenizer."""
    return _make_processor(TOKENIZERS[request.param]())


@pytest.fixture
def image() -> Image.Image:
    return _make_image()
