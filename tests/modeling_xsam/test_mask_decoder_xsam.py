import math

import pytest
import torch

from modeling_xsam.mask_decoder_xsam import INVALID_CLASS_LOGIT, XSAMMaskDecoder, XSAMPhraseClassifier, stack_classes
from tiny_models import tiny_mask_decoder_config


def test_class_logits_are_scaled_cosines():
    classifier = XSAMPhraseClassifier(logit_clamp=500)
    classifier.logit_scale.data.fill_(math.log(10))
    queries = torch.tensor([[[3.0, 0.0], [0.0, 2.0]]])
    classes = torch.tensor([[[5.0, 0.0], [1.0, 1.0]]])
    logits = classifier(queries, classes, torch.ones(1, 2, dtype=torch.bool))
    expected = torch.tensor([[[10.0, 10 / math.sqrt(2)], [0.0, 10 / math.sqrt(2)]]])
    torch.testing.assert_close(logits, expected)


def test_class_logits_are_clamped_before_padding_is_filled():
    classifier = XSAMPhraseClassifier(logit_clamp=50)
    classifier.logit_scale.data.fill_(10)
    queries = torch.tensor([[[1.0, 0.0]]])
    classes = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])
    logits = classifier(queries, classes, torch.tensor([[True, True, False]]))
    assert logits.tolist() == [[[50.0, -50.0, INVALID_CLASS_LOGIT]]]


def test_classes_are_phrases_then_padding_then_background():
    phrases = [torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0]), torch.tensor([3.0, 3.0])]
    classes, class_mask = stack_classes(phrases, [[0, 2], [1]], torch.tensor([[9.0, 9.0]]))
    assert classes[..., 0].tolist() == [[1.0, 3.0, 9.0], [2.0, 0.0, 9.0]]
    assert class_mask.tolist() == [[True, True, True], [True, False, True]]


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return XSAMMaskDecoder(tiny_mask_decoder_config(), [4, 8, 16]).eval()


@pytest.fixture(scope="module")
def maps():
    torch.manual_seed(1)
    return torch.randn(2, 4, 16, 16), torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)


def test_items_of_one_image_share_its_pixel_features(decoder, maps, monkeypatch):
    calls = []
    original = decoder.pixel_decoder.forward

    def forward(features, **kwargs):
        calls.append(len(features[0]))
        return original(features, **kwargs)

    monkeypatch.setattr(decoder.pixel_decoder, "forward", forward)
    seg_embeds = torch.randn(3, 32)
    outputs = decoder(maps, torch.tensor([1, 1, 1]), seg_embeds)
    assert calls == [1]
    alone = decoder(tuple(m[1:] for m in maps), torch.tensor([0]), seg_embeds[1:2])
    torch.testing.assert_close(outputs.masks_queries_logits[-1][1], alone.masks_queries_logits[-1][0])


def test_items_get_the_features_of_their_own_image(decoder, maps):
    seg_embeds = torch.randn(2, 32)
    swapped = decoder(maps, torch.tensor([1, 0]), seg_embeds)
    alone = decoder(tuple(m[1:] for m in maps), torch.tensor([0]), seg_embeds[:1])
    torch.testing.assert_close(swapped.masks_queries_logits[-1][0], alone.masks_queries_logits[-1][0])


def test_the_seg_embedding_moves_the_queries(decoder, maps):
    plain = decoder(maps, torch.tensor([0]))
    moved = decoder(maps, torch.tensor([0]), torch.ones(1, 32))
    unmoved = decoder(maps, torch.tensor([0]), torch.zeros(1, 32))
    assert torch.equal(plain.queries[-1], unmoved.queries[-1])
    assert not torch.allclose(plain.queries[-1], moved.queries[-1])


def test_auxiliary_predictions_leave_only_on_request(decoder, maps):
    assert len(decoder(maps, torch.tensor([0])).masks_queries_logits) == 1
    outputs = decoder(maps, torch.tensor([0]), output_auxiliary=True)
    assert len(outputs.masks_queries_logits) == len(outputs.queries) == 3
    assert outputs.masks_queries_logits[0].shape == (1, 6, 16, 16)
