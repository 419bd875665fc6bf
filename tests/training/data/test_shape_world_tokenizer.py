import pytest

from xsam_training.data.shape_world.tokenizer import train_tokenizer
from xsam_training.data.shape_world.vocabulary import COLORS, FACTS, KINDS, STUFF, plural


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(num_scenes=150)


def test_words_of_the_world_are_single_tokens(tokenizer):
    words = (*COLORS, *STUFF, *KINDS[:6], *map(plural, KINDS[:6]), "leftmost", "segmentation")
    split = {word: tokenizer.tokenize(f" {word}") for word in words}
    assert {word: tokens for word, tokens in split.items() if len(tokens) > 1} == {}
    assert tokenizer.tokenize("How many") == ["How", "Ġmany"]
    assert [tokenizer.tokenize(word) for word in ("Yes", "No")] == [["Yes"], ["No"]]


def test_every_text_survives(tokenizer):
    texts = [
        "What in this picture shines at night?",
        "Größe: 3 m² ✓",
        *(fact for facts in FACTS.values() for fact in facts),
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_it_is_the_same_every_time(tokenizer):
    again = train_tokenizer(num_scenes=150)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_it_has_the_special_tokens_of_phi3(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "<|end|>", "<|endoftext|>")
    assert len(tokenizer.tokenize("<|user|><|assistant|><|system|>")) == 3
    assert len(tokenizer) <= 700 + 6
