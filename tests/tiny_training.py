"""A tiny processor, the model that fits it, and samples of every task, for the tests of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config

from dataset_fixtures.scenes import Scene, draw_scene
from modeling_xsam import XSAMForSegmentation
from processing_xsam import XSAMProcessor
from processing_xsam.image_processing_xsam import default_high_res_image_processor, default_image_processor
from random_checkpoint import byte_tokenizer
from tiny_models import HIGH_RES_SIZE, LOW_RES_SIZE, tiny_config, tiny_mask_decoder_config, tiny_text_config
from xsam_training.data.samples import AnnotatedSample, Region, Turn, encode_masks

NUM_IMAGE_TOKENS = 8
STRUCTURE = ("seg", "phrase_start", "phrase_end", "image", "region")


def tiny_processor(high_res_size: int = HIGH_RES_SIZE, **overrides: Any) -> XSAMProcessor:
    return XSAMProcessor(
        default_image_processor(LOW_RES_SIZE),
        default_high_res_image_processor(high_res_size),
        byte_tokenizer(),
        **{"num_image_tokens": NUM_IMAGE_TOKENS, **overrides},
    )


def vocabulary(processor: XSAMProcessor) -> dict[str, Any]:
    """Fields of a language model's configuration that the tokenizer decides."""
    tokenizer = processor.tokenizer
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def structure_ids(processor: XSAMProcessor) -> dict[str, int]:
    return {f"{name}_token_id": getattr(processor, f"{name}_token_id") for name in STRUCTURE}


def fitting_model(processor: XSAMProcessor, seed: int = 0, **overrides: Any) -> XSAMForSegmentation:
    """A tiny model with the processor's vocabulary, in training mode; mask losses on all pixels."""
    text_config = overrides.pop("text_config", None) or tiny_text_config(**vocabulary(processor))
    config = tiny_config(
        **{
            "text_config": text_config,
            "mask_decoder_config": tiny_mask_decoder_config(use_point_sampling=False),
            **structure_ids(processor),
            **overrides,
        }
    )
    torch.manual_seed(seed)
    return XSAMForSegmentation(config)


def scene_masks(scene: Scene) -> list[Any]:
    return encode_masks(np.stack([shape.mask for shape in scene.shapes]))


def category_sample(seed: int, task: str = "generic") -> AnnotatedSample:
    """Shapes by kind, sky and ground."""
    scene = draw_scene(seed)
    labels = ("circle", "square", "triangle", "sky", "ground")
    masks = [*scene_masks(scene), *encode_masks(np.stack([scene.sky, scene.ground]))]
    phrases = [labels.index(shape.kind) for shape in scene.shapes] + [3, 4]
    turn = Turn(task, labels=labels, num_things=3, masks=tuple(masks), mask_phrases=tuple(phrases))
    return AnnotatedSample(scene.image, (turn,), f"scene {seed}")


def referring_sample(seed: int, task: str = "referring") -> AnnotatedSample:
    """A turn for each shape, by its place, and one for a thing that is absent."""
    scene = draw_scene(seed)
    turns = [
        Turn(task, text=f"the {word} shape", masks=(mask,), mask_phrases=(0,))
        for word, mask in zip(("left", "middle", "right"), scene_masks(scene), strict=True)
    ]
    return AnnotatedSample(scene.image, (*turns, Turn(task, text="the purple dog")), f"scene {seed}")


def caption_sample(seed: int) -> AnnotatedSample:
    scene = draw_scene(seed)
    caption, spans = "I see", []
    for shape in scene.shapes:
        start = len(caption) + 1
        caption += f" a {shape.color} {shape.kind}"
        spans.append((start, len(caption)))
    turn = Turn(
        "grounded-conversation",
        answer=caption + ".",
        spans=tuple(spans),
        masks=tuple(scene_masks(scene)),
        mask_phrases=(0, 1, 2),
    )
    return AnnotatedSample(scene.image, (turn,), f"scene {seed}")


def interactive_sample(seed: int) -> AnnotatedSample:
    scene = draw_scene(seed)
    turns = [
        Turn("interactive", regions=((Region(mask),),), masks=(mask,), mask_phrases=(0,))
        for mask in scene_masks(scene)
    ]
    return AnnotatedSample(scene.image, tuple(turns), f"scene {seed}")


def visual_sample(seed: int) -> AnnotatedSample:
    """One phrase for each kind of shape in the picture, prompted with every shape of that kind."""
    scene = draw_scene(seed)
    masks = scene_masks(scene)
    kinds = sorted({shape.kind for shape in scene.shapes})
    regions = [
        tuple(Region(mask) for shape, mask in zip(scene.shapes, masks, strict=True) if shape.kind == kind)
        for kind in kinds
    ]
    phrases = tuple(kinds.index(shape.kind) for shape in scene.shapes)
    turn = Turn(
        "visual-grounded", labels=tuple(kinds), regions=tuple(regions), masks=tuple(masks), mask_phrases=phrases
    )
    return AnnotatedSample(scene.image, (turn,), f"scene {seed}")


def chat_sample(seed: int, with_image: bool = True) -> AnnotatedSample:
    scene = draw_scene(seed)
    turns = (
        Turn("chat", text="What is on the left?", answer=f"A {scene.shapes[0].color} {scene.shapes[0].kind}."),
        Turn("chat", text="And below?", answer="The ground."),
    )
    return AnnotatedSample(scene.image if with_image else None, turns, f"chat {seed}")


def all_tasks() -> list[AnnotatedSample]:
    """One sample of each task and a chat, eight in all."""
    return [
        category_sample(0),
        category_sample(1, "open-vocabulary"),
        referring_sample(2),
        referring_sample(3, "reasoning"),
        caption_sample(4),
        interactive_sample(5),
        visual_sample(6),
        chat_sample(7),
    ]


def qwen_text_config(processor: XSAMProcessor) -> Qwen3Config:
    from tiny_models import tiny_qwen_config

    return tiny_qwen_config(**vocabulary(processor))


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """
    By parameter, within 1e-5 of its greatest gradient: float32 sums in another order differ by a share of what they
    add up, not of what is left.
    """
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        tolerance = 1e-6 + 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=tolerance, msg=lambda message, key=name: f"{key}: {message}"
        )
