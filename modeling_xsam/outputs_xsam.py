"""
What the models return.

Shapes: B samples, T tokens, M images, N `<SEG>` tokens of the batch, Q queries, K classes with the background last,
S side of the high-resolution input, h x w size of the decoder's masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput


@dataclass
class XSAMImageFeatures(ModelOutput):
    """
    What the network reads from images; row i is image i. Computed once by `get_image_features`, it can be passed to
    any number of calls instead of pixels.

    Args:
        vision_tokens (`torch.Tensor`): (M, tokens, hidden), global tower, in the language model's space.
        high_res_tokens (`torch.Tensor`): (M, tokens, hidden), dense tower, row-major, in the language model's space.
        region_map (`torch.Tensor`): (M, hidden, grid, grid), `high_res_tokens` as a map; regions are read from it.
        connector_maps (`tuple[torch.Tensor]`): three maps for the mask decoder, finest first.
    """

    vision_tokens: torch.Tensor | None = None
    high_res_tokens: torch.Tensor | None = None
    region_map: torch.Tensor | None = None
    connector_maps: tuple[torch.Tensor, ...] | None = None


@dataclass
class XSAMUniversalSegmentationOutput(ModelOutput):
    """
    Output of stage 1.

    Args:
        loss (`torch.Tensor`): sum of `loss_dict`, with labels.
        loss_dict (`dict[str, torch.Tensor]`): weighted terms, see `XSAMLoss`.
        class_queries_logits (`torch.Tensor`): (M, Q, num_labels + 1), background last.
        masks_queries_logits (`torch.Tensor`): (M, Q, h, w), at decoder resolution.
        auxiliary_logits (`list[dict[str, torch.Tensor]]`): the predictions before the last one, with labels or on
            request.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    auxiliary_logits: list[dict[str, torch.Tensor]] | None = None


@dataclass
class XSAMSegmentationOutput(CausalLMOutputWithPast):
    """
    Output of `forward` and `segment`; it also has the fields of transformers' `CausalLMOutputWithPast`.

    Args:
        loss_dict (`dict[str, torch.Tensor]`): weighted terms of `loss`: `loss_lm` and those of `XSAMLoss`.
        class_queries_logits (`torch.Tensor`): (N, Q, K), one row per `<SEG>`, batch-major; padding classes are -1e9.
        masks_queries_logits (`torch.Tensor`): (N, Q, h, w), at decoder resolution.
        class_mask (`torch.Tensor`): bool (N, K), False for padding classes.
        seg_batch_index (`torch.Tensor`): int64 (N,), the sample of each `<SEG>`.
        phrase_spans (`tuple[torch.Tensor]`): N tensors int64 (phrases, 2), the [start, end) positions of the `<SEG>`'s
            own phrases in `sequences` (or in `input_ids`, for `forward`).
        auxiliary_logits (`list[dict[str, torch.Tensor]]`): the predictions before the last one, with labels or on
            request.
        sequences (`torch.Tensor`): int64 (B, T), prompts and answers, right-padded. Only from `segment`.
        prompt_lengths (`torch.Tensor`): int64 (B,), where the generated answers start in `sequences`.
        sequence_lengths (`torch.Tensor`): int64 (B,), where the padding starts in `sequences`.
        empty_reasons (`tuple[str]`): per sample why it has fewer segments than `<SEG>` tokens, "" if it does not.
        image_features (`XSAMImageFeatures`): the features that were used, for further calls on the same images.
    """

    loss_dict: dict[str, torch.Tensor] | None = None
    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    class_mask: torch.Tensor | None = None
    seg_batch_index: torch.Tensor | None = None
    phrase_spans: tuple[torch.Tensor, ...] | None = None
    auxiliary_logits: list[dict[str, torch.Tensor]] | None = None
    sequences: torch.Tensor | None = None
    prompt_lengths: torch.Tensor | None = None
    sequence_lengths: torch.Tensor | None = None
    empty_reasons: tuple[str, ...] | None = None
    image_features: XSAMImageFeatures | None = None


__all__ = ["XSAMImageFeatures", "XSAMSegmentationOutput", "XSAMUniversalSegmentationOutput"]
