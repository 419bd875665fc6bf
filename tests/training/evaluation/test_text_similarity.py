import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from xsam_training.evaluation.text_similarity import EncoderSimilarity, WordSimilarity, text_similarity

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cup", "the", "dog"]


def test_shared_words():
    found = WordSimilarity()(["A red cup", "the dog, the cup", "..."], ["a red cup!", "the dog", "", "Cup"])
    expected = [
        [1, 0, 0, 1 / np.sqrt(3)],
        # Counts (the 2, dog 1, cup 1) and (a, red, cup), (the, dog), nothing, (cup).
        [1 / np.sqrt(6 * 3), 3 / np.sqrt(6 * 2), 0, 1 / np.sqrt(6)],
        [0, 0, 0, 0],
    ]
    assert np.allclose(found, expected)
    assert WordSimilarity()([], ["a"]).shape == (0, 1) and WordSimilarity()(["a"], []).shape == (1, 0)


@pytest.fixture
def encoder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path)
    BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    return tmp_path


def test_means_of_an_encoder_are_compared(encoder):
    similarity = text_similarity(str(encoder))
    assert isinstance(similarity, EncoderSimilarity)
    found = similarity(["A red cup", "dog"], ["the dog", "a red cup", ""])
    tokenizer, model = BertTokenizer.from_pretrained(encoder), BertModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        red_cup, the_dog = (
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            for text in ("a red cup", "the dog")
        )
    assert found.shape == (2, 3)
    assert found[0, 0] == pytest.approx(float(torch.cosine_similarity(red_cup, the_dog, dim=0)), abs=1e-6)
    assert found[0, 1] == pytest.approx(1, abs=1e-6)
    assert similarity(["dog " * 600], ["dog " * 700])[0, 0] == pytest.approx(1, abs=1e-6)
    assert similarity([], ["dog"]).shape == (0, 1)


def test_a_text_is_encoded_once(encoder, monkeypatch):
    similarity = EncoderSimilarity(str(encoder))
    calls = []
    forward = similarity._model.forward
    monkeypatch.setattr(similarity._model, "forward", lambda **inputs: calls.append(1) or forward(**inputs))
    similarity(["dog", "a cup"], ["dog"])
    similarity(["a cup"], ["dog", "red"])
    assert len(calls) == 3


def test_words_need_no_encoder_and_a_missing_one_says_so(tmp_path):
    assert isinstance(text_similarity("words"), WordSimilarity)
    with pytest.raises(OSError, match=r"cannot be loaded; .*--text-encoder words"):
        text_similarity(str(tmp_path))
