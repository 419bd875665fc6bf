"""
Low-rank adapters (LoRA, arXiv 2106.09685) for X-SAM by PEFT:

    model = get_peft_model(model, lora_config(model, rank=64, alpha=128))

| part | how it learns |
| --- | --- |
| linear layers of the language model; by choice, of the image towers | adapters |
| the special tokens' rows of the input embeddings and of `lm_head` | these rows alone |
| `FULLY_TRAINED`: projectors, connector, mask decoder, phrase classifier | in full, on copies in the adapter |
| the rest | frozen |

The result is a `PeftModel` that trains, generates and segments as the model itself does. What to know of it:

- Copies and base: `unload()` alone returns a base model with the trained copies in it; `delete_adapter("default")`
  before it gives back the base bit by bit.
- Data types: adapters and rows are float32. Copies have the type of the base, which is float32 in any case but for the
  two projectors into the language model: in a bfloat16 base many of their small updates are rounded away. Train on a
  float32 base under bfloat16 autocast, as the recipes do.
- Speed: rows are written into a copy of their matrix in every forward pass. `merge_adapter()` or `merge_and_unload()`
  before much text is generated.
- An adapter holds no base: it fits the base model that it was trained on, saved as one checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedConfig

from modeling_xsam import XSAMConfig, XSAMForSegmentation

FULLY_TRAINED = (
    "multi_modal_projector",
    "high_res_projector",
    "mask_projector",
    "connector",
    "mask_decoder",
    "background_embedding",
    "phrase_classifier",
)


def lora_config(
    model: XSAMForSegmentation,
    rank: int = 64,
    alpha: int = 128,
    dropout: float = 0.05,
    image_towers: bool = False,
) -> LoraConfig:
    """
    What `peft.get_peft_model` adapts and trains of a model.

    Args:
        model: with any language model and any image towers; it is only looked at.
        rank: of the adapters.
        alpha: adapters are scaled by `alpha / rank`.
        dropout: share of the inputs of adapters that is dropped in training.
        image_towers: whether the image towers get adapters as well.

    Raises:
        ValueError: if the model has no language model, or no blocks are found in one of its parts.
    """
    if not hasattr(model, "language_model"):
        raise ValueError(
            f"lora_config needs a model with a language model, but got {type(model).__name__}. Use XSAMForSegmentation; "
            "stage 1 is trained in full."
        )
    config = model.config
    targets = _linear_layers(model, "language_model", config.text_config)
    if image_towers:
        targets += _linear_layers(model, "vision_tower", config.vision_config, [config.vision_feature_layer])
        high_res_layers = [config.high_res_feature_layer, *config.connector_feature_layers]
        targets += _linear_layers(model, "high_res_vision_tower", config.high_res_vision_config, high_res_layers)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=list(FULLY_TRAINED),
        trainable_token_indices={name: _special_token_ids(config) for name in _token_layers(model)},
    )


def _special_token_ids(config: XSAMConfig) -> list[int]:
    """Ids of the five tokens of X-SAM. The rows of the two placeholders, image and region, are never read."""
    return [
        config.seg_token_id,
        config.phrase_start_token_id,
        config.phrase_end_token_id,
        config.image_token_id,
        config.region_token_id,
    ]


def _token_layers(model: XSAMForSegmentation) -> list[str]:
    """Names of the layers with a row per token. PEFT itself ties the rows of a head that shares the embeddings."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    return [name] if model.config.tie_word_embeddings else [name, "lm_head"]


def _linear_layers(
    model: XSAMForSegmentation, part: str, config: PreTrainedConfig, hidden_states: Sequence[int] = (-1,)
) -> list[str]:
    """
    Names of the linear layers in the blocks of a part, up to the last hidden state that is read.

    Args:
        hidden_states: which are read, 0 for the input of the first block and -1 for the output of the last.
    """
    depth = config.num_hidden_layers
    blocks = [
        (name, module)
        for name, module in model.get_submodule(part).named_modules(prefix=part)
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(blocks) != 1:
        raise ValueError(
            f"{part} has {len(blocks)} lists of {depth} blocks (num_hidden_layers of its configuration) instead of one, "
            "so that its linear layers are not found. Build a peft.LoraConfig with target_modules of your own."
        )
    name, layers = blocks[0]
    read = max(range(depth + 1)[layer] for layer in hidden_states)
    return [
        layer_name
        for index, block in enumerate(layers[:read])
        for layer_name, layer in block.named_modules(prefix=f"{name}.{index}")
        # Of this class is the output of nn.MultiheadAttention: its adapter would be merged, but never run.
        if isinstance(layer, nn.Linear) and not isinstance(layer, NonDynamicallyQuantizableLinear)
    ]


__all__ = ["FULLY_TRAINED", "lora_config"]
