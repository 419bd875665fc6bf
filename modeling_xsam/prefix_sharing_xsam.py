"""
Reading prompts with the language model. What many prompts on one image have in common, the image above all, is read
once.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from inspect import signature

import torch
from transformers import DynamicCache, PreTrainedModel

# Tokens from which on a common beginning is read once, however long the sequences are.
WORTH_SHARING = 64


def read_sequences(
    language_model: PreTrainedModel,
    sequences: list[torch.Tensor],
    embeds: torch.Tensor,
    image_index: torch.Tensor,
    region_token_id: int,
) -> torch.Tensor:
    """
    Args:
        language_model: without its head.
        sequences: B tensors int64 (length,), token ids without padding.
        embeds: (B, T, hidden), embeddings of the sequences, padded on the right.
        image_index: int64 (B,), the image of each sequence.
        region_token_id: a token whose embedding depends on more than its id.

    Returns:
        (B, T, hidden), last hidden states. Those of padding have no meaning.
    """
    shared = shared_prefix(sequences, image_index, region_token_id)
    # A cache can be cut back neither in stateful models nor, with gradient checkpointing, in training mode.
    if shared == 0 or language_model._is_stateful or language_model.training:
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=embeds.device)
        mask = torch.arange(embeds.shape[1], device=embeds.device) < lengths[:, None]
        return language_model(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=count_positions(mask, embeds),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
    # Without a configuration the cache keeps everything, so that it can be cut back to the prefix for each prompt.
    cache = DynamicCache()
    prefix = _read_on(language_model, embeds[:1, :shared], 0, cache)
    hidden_states = embeds.new_zeros(*embeds.shape[:2], prefix.shape[-1])
    hidden_states[:, :shared] = prefix
    for row, sequence in enumerate(sequences):
        rest = embeds[row : row + 1, shared : len(sequence)]
        hidden_states[row, shared : len(sequence)] = _read_on(language_model, rest, shared, cache)[0]
        cache.crop(-rest.shape[1])
    return hidden_states


def shared_prefix(sequences: list[torch.Tensor], image_index: torch.Tensor, region_token_id: int) -> int:
    """Tokens that all sequences begin with; 0 if they are too few to be worth reading the sequences one by one."""
    if len(sequences) < 2 or (image_index != image_index[0]).any():
        return 0
    lengths = [len(sequence) for sequence in sequences]
    # At least the last token of each sequence is read on its own.
    starts = torch.stack([sequence[: min(lengths) - 1] for sequence in sequences])
    # Equal region tokens may stand for different regions.
    differs = (starts != starts[0]).any(0) | (starts[0] == region_token_id)
    shared = int(differs.nonzero()[0, 0]) if differs.any() else starts.shape[1]
    return shared if shared >= WORTH_SHARING or 2 * shared > max(lengths) else 0


def count_positions(attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor | None:
    """Positions counted over real tokens; None leaves them to the language model, as when there is a cache."""
    if attention_mask is None or attention_mask.ndim != 2 or attention_mask.shape[1] != inputs_embeds.shape[1]:
        return None
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def _read_on(language_model: PreTrainedModel, embeds: torch.Tensor, start: int, cache: DynamicCache) -> torch.Tensor:
    """Last hidden states of embeddings (1, T, hidden) that stand at position `start`, after what is in the cache."""
    # The argument has different names in different versions of transformers.
    name = "cache" if "cache" in signature(language_model.forward).parameters else "past_key_values"
    positions = torch.arange(start, start + embeds.shape[1], device=embeds.device)[None]
    return language_model(
        inputs_embeds=embeds, position_ids=positions, use_cache=True, return_dict=True, **{name: cache}
    ).last_hidden_state


__all__ = ["count_positions", "read_sequences", "shared_prefix"]
