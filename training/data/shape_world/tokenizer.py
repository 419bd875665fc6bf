"""
A tokenizer for the language of the generated world, with Phi-3's special tokens:

    python -m xsam_training.data.shape_world.tokenizer FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from processing_xsam.prompts_xsam import DEFAULT_PROMPT_TEMPLATES

from .chats import CHAT_FAMILIES, DESCRIPTION
from .reader import ShapeWorldReader

# Enough for names, colours and other frequent words to be single tokens; the rest falls apart into pieces.
VOCAB_SIZE = 700
NUM_SCENES = 1500
# A wording of a prompt stands for the many scenes that it is used in.
WORDING_WEIGHT = 20
# Tasks, and their families if not all; questions about what is marked have hardly a word that the others lack.
TASKS_WITH_WORDS = (
    (["generic", "open-vocabulary", "referring", "reasoning", "grounded-conversation"], ()),
    (["chat"], (*CHAT_FAMILIES, DESCRIPTION)),
)


def train_tokenizer(num_scenes: int = NUM_SCENES, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the questions and answers of training scenes and on the prompts of all tasks; no randomness."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # In its own order the alphabet of bytes gets other numbers in every process.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, min_frequency=5, show_progress=False
    )
    tokenizer.train_from_iterator([*_texts_of_scenes(num_scenes), *_texts_of_prompts()], trainer)
    return with_phi3_tokens(tokenizer)


def with_phi3_tokens(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens of Phi-3's conversations."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )


def _texts_of_scenes(num_scenes: int) -> Iterator[str]:
    for tasks, families in TASKS_WITH_WORDS:
        for sample in ShapeWorldReader(tasks=tasks, families=families, count=num_scenes, seed=1):
            for turn in sample.turns:
                yield from filter(None, (turn.text, turn.answer, ", ".join(turn.labels)))


def _texts_of_prompts() -> Iterator[str]:
    for sentences in DEFAULT_PROMPT_TEMPLATES.values():
        for wordings in sentences.values():
            yield from wordings * WORDING_WEIGHT


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m xsam_training.data.shape_world.tokenizer FOLDER")
    train_tokenizer().save_pretrained(sys.argv[1])
