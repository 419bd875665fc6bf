"""The original's names for this package's weights, written down the other way round than in the converter."""

from __future__ import annotations

from collections.abc import Mapping

import torch

PROJECTORS = {
    "multi_modal_projector": "visual_projector",
    "high_res_projector": "seg_projector",
    "mask_projector": "llm_projector",
}
CONNECTOR_LAYERS = ("conv1", "norm1", "conv2", "norm2", "conv3", "norm3")
PREFIXES = {
    "vision_tower.": "visual_encoder.vision_model.",
    "high_res_vision_tower.vision_encoder.": "segmentor.encoder.",
    "mask_decoder.pixel_decoder.": "segmentor.pixel_decoder.",
    "mask_decoder.query_decoder.": "segmentor.decoder.",
    "phrase_classifier.": "segmentor.",
    "class_predictor.": "segmentor.class_predictor.",
    "language_model.": "llm.model.",
    "lm_head.": "llm.lm_head.",
    "background_embedding.": "bg_embeds.",
    **{f"{ours}.linear_1.": f"{theirs}.model.0." for ours, theirs in PROJECTORS.items()},
    **{f"{ours}.linear_2.": f"{theirs}.model.2." for ours, theirs in PROJECTORS.items()},
    **{
        f"connector.branches.{branch}.{layer}.": f"seg_connector.model.{branch}.model.{index}."
        for branch in range(3)
        for index, layer in enumerate(CONNECTOR_LAYERS)
    },
}


def original_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of a model's weights as the original stores them: other names, and no rows for the placeholders."""
    renamed = {}
    for name, tensor in weights.items():
        prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        rows = -2 if name in ("language_model.embed_tokens.weight", "lm_head.weight") else None
        renamed[PREFIXES[prefix] + name.removeprefix(prefix)] = tensor[:rows].clone()
    return renamed
