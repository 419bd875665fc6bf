"""
How much two phrases mean the same, to match phrases of captions.

The published measure is `EncoderSimilarity` with bert-base-uncased: the cosine of the means of the last hidden states,
special tokens included (mbzuai-oryx/groundingLMM, eval/gcg/evaluate.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

# n texts, m texts -> float (n, m), at most 1.
TextSimilarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]

# Value of --text-encoder that needs no encoder.
WORDS = "words"
# Tokens of a text that are read.
MAX_LENGTH = 512


def text_similarity(text_encoder: str) -> TextSimilarity:
    """
    Args:
        text_encoder: folder or Hub id of an encoder, or "words" for shared words.

    Raises:
        OSError: if the encoder cannot be loaded.
    """
    return WordSimilarity() if text_encoder == WORDS else EncoderSimilarity(text_encoder)


class EncoderSimilarity:
    """
    Cosine of the mean token embeddings of a text encoder. It runs on the CPU, each text once and on its own, so that no
    padding changes a number.

    Args:
        model: folder or Hub id.

    Raises:
        OSError: if it cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            self._model = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise OSError(
                f"the text encoder {model!r} cannot be loaded; name a folder that holds one with --text-encoder, or compare"
                f" phrases by their words with --text-encoder {WORDS}: {error}"
            ) from error
        self._embed = cache(self._embed_text)

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
        return _cosines([self._embed(text) for text in texts], [self._embed(text) for text in others])

    @torch.no_grad()
    def _embed_text(self, text: str) -> np.ndarray:
        tokens = self._tokenizer(text, return_tensors="pt", max_length=MAX_LENGTH, truncation=True)
        return self._model(**tokens).last_hidden_state[0].mean(0).numpy()


class WordSimilarity:
    """Cosine of the counts of lower-cased words, for where no encoder is at hand: synonyms count as different."""

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
        counts = [[Counter(re.findall(r"\w+", text.lower())) for text in side] for side in (texts, others)]
        words = sorted({word for side in counts for count in side for word in count})
        return _cosines(
            *([np.array([count[word] for word in words], dtype=float) for count in side] for side in counts)
        )


def _cosines(vectors: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """Float (n, m); 0 for a vector of zeros."""
    if not vectors or not others:
        return np.zeros((len(vectors), len(others)))
    return _normalized(vectors) @ _normalized(others).T


def _normalized(vectors: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(vectors)
    lengths = np.linalg.norm(stacked, axis=1, keepdims=True)
    return stacked / np.where(lengths == 0, 1, lengths)
