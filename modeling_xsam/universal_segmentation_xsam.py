"""
The model of stage 1: segmentation into a fixed list of categories, without a language model.

Shapes: M images, S side of the high-resolution input, n masks of an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import maybe_autocast

from .configuration_xsam import XSAMConfig
from .connector_xsam import XSAMConnector
from .loss_xsam import XSAMLoss
from .mask_decoder_xsam import XSAMMaskDecoder
from .outputs_xsam import XSAMUniversalSegmentationOutput
from .pretrained_xsam import XSAMPreTrainedModel, auxiliary_logits


class XSAMForUniversalSegmentation(XSAMPreTrainedModel):
    """Stage 1: dense tower, connector and mask decoder with a linear class head; no language model."""

    main_input_name = "high_res_pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: XSAMConfig) -> None:
        super().__init__(config)
        high_res_config = config.high_res_vision_config
        self.high_res_vision_tower = AutoModel.from_config(high_res_config)
        self.connector = XSAMConnector(
            high_res_config.hidden_size, config.connector_hidden_size, config.connector_scale_factors
        )
        self.mask_decoder = XSAMMaskDecoder(config.mask_decoder_config, config.connector_out_channels)
        self.class_predictor = nn.Linear(config.mask_decoder_config.hidden_dim, config.num_labels + 1)
        self.loss = XSAMLoss(config.mask_decoder_config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        high_res_pixel_values: torch.Tensor,
        mask_labels: list[torch.Tensor] | None = None,
        class_labels: list[torch.Tensor] | None = None,
        output_auxiliary_logits: bool = False,
        num_masks_in_batch: torch.Tensor | float | None = None,
        class_weight_in_batch: torch.Tensor | float | None = None,
        **kwargs: Any,
    ) -> XSAMUniversalSegmentationOutput:
        """
        Args:
            high_res_pixel_values: (M, 3, S, S).
            mask_labels: M tensors (n, S, S) with values 0 and 1.
            class_labels: M tensors int64 (n,).
            output_auxiliary_logits: whether to return the predictions before the last one.
            num_masks_in_batch, class_weight_in_batch: what the losses are divided by, counted over a whole optimiser
                step by `count_loss_items`; by default they are counted in this call.
        """
        hidden_states = self._high_res_hidden_states(high_res_pixel_values, self.config.connector_feature_layers)
        maps = self._connector_maps(hidden_states)
        with maybe_autocast(device_type=maps[0].device.type, enabled=False):
            items = torch.arange(len(high_res_pixel_values), device=maps[0].device)
            decoded = self.mask_decoder(
                maps, items, output_auxiliary=output_auxiliary_logits or mask_labels is not None
            )
            classes = tuple(self.class_predictor(queries) for queries in decoded.queries)
        result = XSAMUniversalSegmentationOutput(
            class_queries_logits=classes[-1],
            masks_queries_logits=decoded.masks_queries_logits[-1],
            auxiliary_logits=auxiliary_logits(decoded.masks_queries_logits, classes),
        )
        if mask_labels is not None:
            result.loss_dict = self.loss(
                result.masks_queries_logits,
                result.class_queries_logits,
                mask_labels,
                class_labels,
                result.auxiliary_logits,
                num_masks_in_batch,
                class_weight_in_batch,
            )
            result.loss = sum(result.loss_dict.values())
        return result

    def _read_layers(self) -> dict[str, list[int]]:
        return {"high_res_vision_tower": list(self.config.connector_feature_layers)}


__all__ = ["XSAMForUniversalSegmentation"]
