"""What both models have in common: loading, initialisation, precision, and reading the dense image tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .configuration_xsam import XSAMConfig
from .mask_decoder_xsam import XSAMPhraseClassifier
from .training_xsam import XSAMTrainingMixin


class XSAMPreTrainedModel(XSAMTrainingMixin, PreTrainedModel):
    config: XSAMConfig
    config_class = XSAMConfig
    base_model_prefix = ""
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["XSAMConnector", "XSAMMaskDecoder", "XSAMProjector"]
    # Thresholded attention masks and cosines do not survive half precision.
    _keep_in_fp32_modules_strict = {
        "background_embedding",
        "class_predictor",
        "connector",
        "mask_decoder",
        "mask_projector",
        "phrase_classifier",
    }

    # Quantisation spares the modules of this list.
    _keep_in_fp32_modules = _keep_in_fp32_modules_strict
    # A plain Trainer counts label tokens alone. The mask losses of its batches are then means over each batch, so that it
    # has to divide by its accumulation steps.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any):
        """
        As in transformers, but a checkpoint that lacks weights is an error instead of a randomly initialised rest.
        Whoever asks for the loading info gets the model and the list of missing keys instead.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, info
        parameters = dict(model.named_parameters(remove_duplicate=False))
        # Tied parameters have several names, of which an adapter saves one.
        loaded = {id(value) for name, value in parameters.items() if name not in info["missing_keys"]}
        missing = sorted(name for name in info["missing_keys"] if id(parameters.get(name)) not in loaded)
        if missing:
            saved_as = ", ".join(model.config.architectures or ["an unknown class"])
            raise ValueError(
                f"The checkpoint lacks {len(missing)} weights of {cls.__name__}, among them {', '.join(missing[:3])}. "
                f"It was saved from {saved_as}: load it with that class, or convert or train what is missing. "
                "output_loading_info=True loads it all the same, with random weights in those places."
            )
        return model

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, XSAMPhraseClassifier):
            init.copy_(module.logit_scale, XSAMPhraseClassifier(module.logit_clamp).logit_scale)
        else:
            super()._init_weights(module)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # See XSAMMaskDecoder: modules without parameters of their own would be skipped.
        super()._initialize_weights(module, is_custom_code=False)

    def _high_res_hidden_states(self, pixel_values: torch.Tensor, layers: list[int]) -> list[torch.Tensor]:
        """Hidden states (M, H, W, C) of the dense tower; layer 0 is the patch embedding, -1 the last block."""
        # All are recorded: a list of layers would record fewer, but means different layers in different versions.
        states = self.high_res_vision_tower(
            pixel_values.to(self.high_res_vision_tower.dtype), output_hidden_states=True, return_dict=True
        ).hidden_states
        return [states[layer] for layer in layers]

    def _connector_maps(self, hidden_states: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with maybe_autocast(device_type=hidden_states[0].device.type, enabled=False):
            return self.connector(hidden_states)


def auxiliary_logits(masks: tuple[torch.Tensor, ...], classes: tuple[torch.Tensor, ...]) -> list[dict] | None:
    """All predictions but the last, in the form of transformers' Mask2Former; None if there is only the last."""
    if len(masks) == 1:
        return None
    return [
        {"masks_queries_logits": mask_logits, "class_queries_logits": class_logits}
        for mask_logits, class_logits in zip(masks[:-1], classes[:-1], strict=True)
    ]


__all__ = ["XSAMPreTrainedModel", "auxiliary_logits"]
