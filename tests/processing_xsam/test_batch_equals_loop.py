"""
All tasks in one batch, with images, phrases, regions and answers of different sizes, give what one call per sample
gives.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from random_checkpoint import random_model, random_processor

MARGIN = 1e-4
SEEDS = range(8)


@pytest.fixture(scope="module")
def processor():
    return random_processor()


def photo(height: int, width: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def arguments() -> list[dict]:
    """One sample per task: short and long phrases, one and several regions, wide and tall images."""
    mask = np.zeros((90, 160), dtype=bool)
    mask[20:60, 40:90] = True
    return [
        {
            "task": "generic",
            "images": photo(120, 200, 0),
            "labels": {"thing": ["cup", "a large wooden spoon"], "stuff": ["sky"]},
        },
        {"task": "open-vocabulary", "images": photo(200, 80, 1), "labels": ["x"]},
        {"task": "referring", "images": photo(64, 64, 2), "text": ["a", "the second thing that is asked for here"]},
        {
            "task": "reasoning",
            "images": photo(100, 300, 3),
            "text": "What can be used to stir?",
            "prefill_answer": True,
        },
        {"task": "interactive", "images": photo(150, 150, 4), "points": [[20, 30], [100, 120], [75, 10]]},
        {"task": "visual-grounded", "images": photo(90, 160, 5), "masks": mask[None]},
        {"task": "grounded-conversation", "images": photo(130, 90, 6)},
        {"task": "chat", "images": None, "text": "Hello there"},
    ]


class Scripted(LogitsProcessor):
    """Generation says what is written here, told apart by the prompt's length."""

    def __init__(self, answers: dict[int, list[int]], prompt_length: int, padding: list[int]) -> None:
        self.answers, self.prompt_length, self.padding = answers, prompt_length, padding

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids):
            answer = self.answers[self.prompt_length - self.padding[row]]
            forced[row, answer[min(len(ids) - self.prompt_length, len(answer) - 1)]] = 0
        return forced


def answers_of(processor, inputs, rows) -> LogitsProcessorList:
    """A caption with two phrases for grounded conversation, and a few words for chat."""
    tokenizer = processor.tokenizer
    caption = tokenizer("<p>A cup</p> on <p>a table</p>. <SEG><|end|>", add_special_tokens=False)["input_ids"]
    words = tokenizer("Hello.<|end|>", add_special_tokens=False)["input_ids"]
    lengths = inputs["attention_mask"].sum(-1)[rows]
    longest = int(lengths.max())
    padding = [longest - int(length) for length in lengths]
    has_image = (inputs["input_ids"] == processor.image_token_id).any(-1)[rows]
    answers = {int(n): caption if image else words for n, image in zip(lengths, has_image, strict=True)}
    return LogitsProcessorList([Scripted(answers, longest, padding)])


def segment(model, processor, samples: list[dict]):
    names = ("task", "images", "text", "labels", "points", "masks", "prefill_answer")
    batch = {name: [sample.get(name) for sample in samples] for name in names}
    inputs = processor(**batch)
    ends_in_seg = inputs["input_ids"][:, -1] == processor.seg_token_id
    rows = (~ends_in_seg).nonzero()[:, 0]
    scripted = answers_of(processor, inputs, rows) if len(rows) else None
    return model.segment(**inputs, logits_processor=scripted, max_new_tokens=40, output_auxiliary_logits=True)


def attention_margin(outputs) -> float:
    """Distance of the closest attention cell to its threshold: below it, rounding may flip the cell."""
    margin = torch.inf
    for layer, prediction in enumerate(outputs.auxiliary_logits):
        side = (8, 16, 32)[layer % 3]
        masks = torch.nn.functional.interpolate(
            prediction["masks_queries_logits"], size=(side, side), mode="bilinear", align_corners=False
        )
        margin = min(margin, float(masks.abs().min()))
    return margin


def model_with_sure_masks(processor, seed: int):
    """Random weights whose mask logits have the size of trained ones, so that few cells lie at the threshold."""
    model = random_model(processor, seed, num_queries=3)
    with torch.no_grad():
        model.mask_decoder.pixel_decoder.mask_projection.weight *= 30
    return model


def compare(together, alone, index: int) -> None:
    """The segments of sample `index` of a batch with those of its own call."""
    mine = (together.seg_batch_index == index).nonzero()[:, 0].tolist()
    masks, expected = together.masks_queries_logits[mine], alone.masks_queries_logits
    sure = expected.abs() > MARGIN
    assert torch.equal((masks > 0)[sure], (expected > 0)[sure])
    torch.testing.assert_close(masks, expected, atol=1e-3, rtol=1e-4)
    for single, row in enumerate(mine):
        joint = together.class_queries_logits[row][:, together.class_mask[row]]
        own = alone.class_queries_logits[single][:, alone.class_mask[single]]
        torch.testing.assert_close(joint, own, atol=1e-4, rtol=1e-4)


def test_a_mixed_batch_equals_a_loop(processor):
    samples = arguments()
    stable = set()
    for seed in SEEDS:
        model = model_with_sure_masks(processor, seed)
        together = segment(model, processor, samples)
        assert together.seg_batch_index.tolist() == [0, 1, 2, 2, 3, 4, 4, 4, 5, 6]
        for index, sample in enumerate(samples):
            alone = segment(model, processor, [sample])
            length = int(together.sequence_lengths[index])
            assert together.sequences[index, :length].tolist() == alone.sequences[0].tolist()
            assert together.prompt_lengths[index] == alone.prompt_lengths[0]
            if sample["task"] == "chat":
                assert len(alone.seg_batch_index) == 0
            elif attention_margin(alone) > MARGIN:
                compare(together, alone, index)
                stable.add(sample["task"])
    assert stable == {sample["task"] for sample in samples} - {"chat"}


def test_the_attention_mask_is_what_makes_them_equal(processor):
    model = random_model(processor)
    samples = arguments()[:2]
    names = ("task", "images", "labels")
    inputs = processor(**{name: [sample[name] for sample in samples] for name in names})
    right = model.segment(**inputs)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    wrong = model.segment(**inputs)
    assert right.sequence_lengths[1] < inputs["input_ids"].shape[1]
    difference = (
        right.class_queries_logits[1][:, right.class_mask[1]] - wrong.class_queries_logits[1][:, wrong.class_mask[1]]
    )
    assert difference.abs().max() > 1e-3
