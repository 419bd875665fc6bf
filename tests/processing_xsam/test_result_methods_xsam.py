"""The processor's methods on made-up outputs of the model; the rules themselves are tested in test_post_processing_xsam."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from processing_xsam.results_xsam import clean_answer
from random_checkpoint import HIGH_RES_SIZE, random_processor

SURE = 12.0
SIZES = [(64, 64), (32, 64)]


@pytest.fixture(scope="module")
def processor():
    return random_processor()


def boxes(*columns: tuple[int, int]) -> torch.Tensor:
    """Masks (Q, 16, 16) that are sure of some columns."""
    logits = torch.full((len(columns), 16, 16), -SURE)
    for query, (first, last) in enumerate(columns):
        logits[query, :, first:last] = SURE
    return logits


def outputs_of(class_logits, mask_logits, samples, spans, sequences=None, prompt_length=0):
    sequences = torch.zeros(len(SIZES), 4, dtype=torch.long) if sequences is None else sequences
    return SimpleNamespace(
        class_queries_logits=class_logits,
        masks_queries_logits=mask_logits,
        class_mask=class_logits[:, 0] > -1e8,
        seg_batch_index=torch.tensor(samples),
        phrase_spans=tuple(torch.tensor(span) for span in spans),
        sequences=sequences,
        sequence_lengths=torch.tensor([sequences.shape[1]] * len(sequences)),
        prompt_lengths=torch.tensor([prompt_length] * len(sequences)),
        empty_reasons=("",) * len(sequences),
    )


@pytest.fixture
def outputs():
    """Two samples; the first knows two classes, the second one and padding."""
    classes = torch.tensor(
        [[[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]], [[5.0, -1e9, 0.0], [1.0, -1e9, 0.0]]],
    )
    masks = torch.stack([boxes((0, 8), (8, 16)), boxes((0, 4), (4, 8))])
    return outputs_of(classes, masks, [0, 1], [[[0, 1], [1, 2]], [[0, 1]]])


def test_sizes_follow_the_sample_of_each_seg(processor, outputs):
    results = processor.post_process_panoptic_segmentation(outputs, SIZES)
    assert [tuple(result["segmentation"].shape) for result in results] == SIZES
    assert [result["sample_index"] for result in results] == [0, 1]
    assert results[0]["segmentation"][0].tolist() == [1] * 32 + [2] * 32
    assert [info["label_id"] for info in results[0]["segments_info"]] == [0, 1]
    assert results[1]["segmentation"].unique().tolist() == [1, 2]


def test_instances_and_rle(processor, outputs):
    first, second = processor.post_process_instance_segmentation(outputs, SIZES, return_coco_rle=True)
    assert {info["label_id"] for info in first["segments_info"]} == {0, 1}
    for info in first["segments_info"]:
        mask = coco_mask.decode(info["rle"])
        assert np.array_equal(mask == 1, (first["segmentation"] == info["id"]).numpy())
    assert [info["label_id"] for info in second["segments_info"]] == [0, 0]
    # The better score lies on top, so its id is the larger one.
    scores = [info["score"] for info in second["segments_info"]]
    assert scores == sorted(scores)


def test_semantic_maps(processor, outputs):
    first, second = processor.post_process_semantic_segmentation(outputs, SIZES)
    assert first[0].tolist() == [0] * 32 + [1] * 32
    assert second.unique().tolist() == [0]


def test_referring_and_absence(processor, outputs):
    outputs.class_queries_logits = outputs.class_queries_logits[..., [0, 2]]
    outputs.class_mask = torch.ones(2, 2, dtype=torch.bool)
    present, _ = processor.post_process_referring_segmentation(outputs, SIZES)
    assert present["segmentation"][0].tolist() == [1] * 32 + [0] * 32
    for absent in processor.post_process_reasoning_segmentation(outputs, SIZES, score_threshold=0.999):
        assert absent["segments_info"] == []
        assert absent["segmentation"].max() == 0


def test_interactive_takes_a_region_per_seg(processor, outputs):
    outputs.class_queries_logits = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]] * 2)
    outputs.class_mask = torch.ones(2, 2, dtype=torch.bool)
    regions = torch.zeros(2, HIGH_RES_SIZE, HIGH_RES_SIZE, dtype=torch.bool)
    regions[0, 10:60, 200:250] = True
    regions[1, 10:60, 10:30] = True
    right, left = processor.post_process_interactive_segmentation(outputs, SIZES, regions)
    assert right["segmentation"][0].tolist() == [0] * 32 + [1] * 32
    assert left["segmentation"][0].tolist() == [1] * 16 + [0] * 48
    with pytest.raises(ValueError, match="`region_masks` has 1 masks for 2 <SEG> tokens"):
        processor.post_process_interactive_segmentation(outputs, SIZES, regions[:1])


def test_visual_grounded_regions_are_classes(processor, outputs):
    first, _ = processor.post_process_visual_grounded_segmentation(outputs, SIZES)
    assert {info["label_id"] for info in first["segments_info"]} == {0, 1}


def test_grounded_conversation(processor):
    tokenizer = processor.tokenizer
    answer = "<p>A red cup</p> on<p> a table</p>. <SEG><|end|>"
    ids = tokenizer("question" + answer, add_special_tokens=False)["input_ids"]
    start = len("question")
    marks = [
        i for i, token in enumerate(ids) if token in (processor.phrase_start_token_id, processor.phrase_end_token_id)
    ]
    spans = [[marks[0], marks[1] + 1], [marks[2], marks[3] + 1]]
    classes = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 3.0, 0.0]]])
    outputs = outputs_of(classes, boxes((0, 8), (8, 16))[None], [0], [spans], torch.tensor([ids]), start)
    (result,) = processor.post_process_grounded_conversation(outputs, SIZES[:1])
    assert result["text"] == "A red cup on a table."
    words = [result["text"][slice(*info["span"])] for info in result["segments_info"]]
    assert words == ["A red cup", "a table"]
    assert result["segmentation"][0].tolist() == [1] * 32 + [2] * 32
    assert result["segments_info"][0]["score"] == pytest.approx(
        torch.tensor([5.0, 0, 0]).softmax(0)[0].item(), abs=1e-5
    )


def test_phrases_of_the_question_have_no_characters_in_the_answer(processor):
    ids = processor.tokenizer("<p>cup</p>yes<SEG>", add_special_tokens=False)["input_ids"]
    assert clean_answer(ids, 5, [(0, 5)], processor.tokenizer) == ("yes", {})


def test_a_size_per_sample_is_needed(processor, outputs):
    with pytest.raises(ValueError, match="`target_sizes` has 1 entries for 2 samples"):
        processor.post_process_semantic_segmentation(outputs, SIZES[:1])
