"""
Mask decoder: transformers' Mask2Former pixel decoder and masked-attention decoder, with the `<SEG>` embedding added to
every query and an open set of classes given by phrase embeddings.

Shapes: B images, N decoded items (one per `<SEG>`), Q queries, K classes with the background last, D channels,
L predictions (before the first and after each layer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPredictionBlock,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)
from transformers.utils import ModelOutput

from .configuration_xsam import XSAMMaskDecoderConfig

# Fill of class logits that belong to padding. Far below any clamped logit, so its probability is exactly 0.
INVALID_CLASS_LOGIT = -1e9

# `<SEG>`s that are decoded at a time where no gradient is needed.
ITEMS_AT_ONCE = 4


@dataclass
class XSAMPixelFeatures(ModelOutput):
    """
    Per-image part of the decoder's work; row i belongs to image i.

    Args:
        mask_features (`torch.Tensor`): (B, D, h, w), multiplied with the queries to give mask logits.
        multi_scale_features (`tuple[torch.Tensor]`): three maps (B, D, h, w), coarse to fine.
    """

    mask_features: torch.Tensor | None = None
    multi_scale_features: tuple[torch.Tensor, ...] | None = None


@dataclass
class XSAMMaskDecoderOutput(ModelOutput):
    """
    Args:
        queries (`tuple[torch.Tensor]`): tensors (N, Q, D), the layer-normed queries of each prediction.
        masks_queries_logits (`tuple[torch.Tensor]`): tensors (N, Q, h, w), the masks of each prediction.

    Both have L entries if the auxiliary predictions are asked for, and the last one alone otherwise.
    """

    queries: tuple[torch.Tensor, ...] | None = None
    masks_queries_logits: tuple[torch.Tensor, ...] | None = None


def stack_classes(
    phrases: list[torch.Tensor], members: list[list[int]], background: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Args:
        phrases: embeddings (D,) of all phrases of the batch.
        members: per item the phrases that are its classes.
        background: (1, D), the embedding of "none of them".

    Returns:
        Class embeddings (N, K, D) of every item: its phrases, padding, the background; and their validity, bool (N, K).
        Padding is zero: the original's vectors of about -1e9 do not fit half precision.
    """
    num_classes = max((len(item) for item in members), default=0) + 1
    classes = background.new_zeros(len(members), num_classes, background.shape[-1])
    class_mask = torch.zeros(len(members), num_classes, dtype=torch.bool, device=background.device)
    for row, item in enumerate(members):
        classes[row, : len(item)] = torch.stack([phrases[phrase] for phrase in item])
        class_mask[row, : len(item)] = True
    classes[:, -1], class_mask[:, -1] = background, True
    return classes, class_mask


class XSAMPhraseClassifier(nn.Module):
    """Scaled cosine similarity between queries and class embeddings: classes are whatever phrases are given."""

    def __init__(self, logit_clamp: float) -> None:
        super().__init__()
        self.logit_clamp = logit_clamp
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    def forward(self, queries: torch.Tensor, classes: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
        """
        Args:
            queries: (N, Q, D).
            classes: (N, K, D).
            class_mask: bool (N, K), False for padding.

        Returns:
            (N, Q, K) logits, float32 whatever the weights are: the clamp does not fit float16.
        """
        queries = nn.functional.normalize(queries.float(), dim=-1)
        classes = nn.functional.normalize(classes.float(), dim=-1)
        logits = self.logit_scale.float().exp() * queries @ classes.transpose(1, 2)
        logits = logits.clamp(-self.logit_clamp, self.logit_clamp)
        return logits.masked_fill(~class_mask[:, None], INVALID_CLASS_LOGIT)


class XSAMCrossAttention(nn.MultiheadAttention):
    """The decoder's cross-attention without its weights, which nobody reads and which are the most of its memory."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return super().forward(*args, **kwargs, need_weights=False)


class XSAMQueryDecoder(Mask2FormerTransformerModule):
    """Mask2Former's transformer module whose learned query contents are shifted by one embedding per item."""

    def __init__(self, in_features: int, config: XSAMMaskDecoderConfig) -> None:
        super().__init__(in_features=in_features, config=config)
        for layer in self.decoder.layers:
            layer.cross_attn = XSAMCrossAttention(config.hidden_dim, config.num_attention_heads, config.dropout)

    def forward(
        self, pixel_features: XSAMPixelFeatures, seg_embeds: torch.Tensor | None, output_auxiliary: bool
    ) -> XSAMMaskDecoderOutput:
        """
        Args:
            pixel_features: features of the N items' images.
            seg_embeds: (N, D), added to the content of every query, or None to leave the queries as learnt (stage 1).
            output_auxiliary: whether the predictions before the last one are returned too.
        """
        maps = pixel_features.multi_scale_features
        positions = [
            self.position_embedder(m.shape, m.device, m.dtype, None).flatten(2).permute(2, 0, 1) for m in maps
        ]
        features = [
            (self.input_projections[level](m).flatten(2) + self.level_embed.weight[level][None, :, None]).permute(
                2, 0, 1
            )
            for level, m in enumerate(maps)
        ]
        batch_size = maps[0].shape[0]
        contents = self.queries_features.weight[:, None].repeat(1, batch_size, 1)
        outputs = self.decoder(
            inputs_embeds=contents if seg_embeds is None else contents + seg_embeds[None],
            multi_stage_positional_embeddings=positions,
            pixel_embeddings=pixel_features.mask_features,
            encoder_hidden_states=features,
            query_position_embeddings=self.queries_embedder.weight[:, None].repeat(1, batch_size, 1),
            feature_size_list=[m.shape[-2:] for m in maps],
            output_hidden_states=False,
            output_attentions=False,
            return_dict=True,
        )
        kept = slice(None) if output_auxiliary else slice(-1, None)
        return XSAMMaskDecoderOutput(
            queries=tuple(queries.transpose(0, 1) for queries in outputs.intermediate_hidden_states[kept]),
            masks_queries_logits=outputs.masks_queries_logits[kept],
        )


class XSAMMaskDecoder(Mask2FormerPreTrainedModel):
    """Pixel decoder (once per image) and query decoder (once per `<SEG>`), in float32."""

    config_class = XSAMMaskDecoderConfig
    config: XSAMMaskDecoderConfig
    # Its attention is deformable or masked per query and has one implementation, whatever the towers around it use.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: XSAMMaskDecoderConfig, feature_channels: list[int]) -> None:
        super().__init__(config)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=feature_channels)
        self.query_decoder = XSAMQueryDecoder(in_features=config.feature_size, config=config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # As in Mask2Former; some versions of transformers draw these much smaller, or all zero.
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=1.0)
        elif isinstance(module, Mask2FormerPixelDecoder):
            init.normal_(module.level_embed, std=1.0)
        elif isinstance(module, Mask2FormerPredictionBlock):
            linear, _ = module.layers
            init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(linear.in_features)
            init.uniform_(linear.bias, -bound, bound)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code outside transformers the library skips modules without parameters of their own, and with them the
        # initialisation of the deformable attention's offsets. Our initialisers honour the per-parameter flags.
        super()._initialize_weights(module, is_custom_code=False)

    def forward(
        self,
        connector_maps: tuple[torch.Tensor, ...],
        image_index: torch.Tensor,
        seg_embeds: torch.Tensor | None = None,
        output_auxiliary: bool = False,
    ) -> XSAMMaskDecoderOutput:
        """
        Args:
            connector_maps: three maps (B, C, h, w), finest first.
            image_index: int64 (N,), the image of each item. An image's pixel features are computed once.
            seg_embeds: (N, D), or None to leave the queries as learnt (stage 1).
            output_auxiliary: whether the predictions before the last one are returned too.
        """
        images, item_image = image_index.unique(return_inverse=True)
        features = self.get_pixel_features(tuple(maps[images] for maps in connector_maps))
        # Items are independent. Memory grows with those that are decoded at a time, so without gradients they are few.
        at_once = len(item_image) if torch.is_grad_enabled() else ITEMS_AT_ONCE
        parts = []
        for items in torch.arange(len(item_image), device=item_image.device).split(at_once):
            item_features = XSAMPixelFeatures(
                mask_features=features.mask_features[item_image[items]],
                multi_scale_features=tuple(maps[item_image[items]] for maps in features.multi_scale_features),
            )
            embeds = None if seg_embeds is None else seg_embeds[items]
            parts.append(self.query_decoder(item_features, embeds, output_auxiliary))
        if len(parts) == 1:
            return parts[0]
        return XSAMMaskDecoderOutput(
            queries=tuple(torch.cat(layer) for layer in zip(*(part.queries for part in parts), strict=True)),
            masks_queries_logits=tuple(
                torch.cat(layer) for layer in zip(*(part.masks_queries_logits for part in parts), strict=True)
            ),
        )

    def get_pixel_features(self, connector_maps: tuple[torch.Tensor, ...]) -> XSAMPixelFeatures:
        """Three maps (B, C, h, w), finest first, through the pixel decoder."""
        dtype = self.pixel_decoder.mask_projection.weight.dtype
        outputs = self.pixel_decoder(
            [maps.to(dtype) for maps in connector_maps],
            output_attentions=False,
            output_hidden_states=False,
            return_dict=True,
        )
        return XSAMPixelFeatures(outputs.mask_features, outputs.multi_scale_features)


__all__ = ["XSAMMaskDecoder", "XSAMMaskDecoderOutput", "XSAMPhraseClassifier", "XSAMPixelFeatures", "stack_classes"]
