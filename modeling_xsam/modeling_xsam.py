"""
X-SAM: segmentation of whatever phrases and regions a prompt names (arXiv 2508.04655).

Shapes: B samples, T tokens, M images, R region prompts, N `<SEG>` tokens of the batch, Q queries, K classes with the
background last, S side of the high-resolution input, h x w size of the decoder's masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import maybe_autocast

from .configuration_xsam import XSAMConfig
from .connector_xsam import XSAMConnector, XSAMProjector, space_to_depth
from .generation_xsam import XSAMGenerationMixin
from .loss_xsam import XSAMLoss
from .mask_decoder_xsam import XSAMMaskDecoder, XSAMPhraseClassifier, stack_classes
from .outputs_xsam import XSAMImageFeatures, XSAMSegmentationOutput
from .phrase_spans_xsam import ClassLayout, SegPhrases, layout_classes, parse_prompt
from .placeholders_xsam import resolve_image_index, resolve_region_batch_index
from .prefix_sharing_xsam import count_positions, read_sequences
from .pretrained_xsam import XSAMPreTrainedModel, auxiliary_logits
from .region_sampler_xsam import XSAMRegionSampler
from .training_xsam import blank_images, zero_connected_with


class XSAMForSegmentation(XSAMPreTrainedModel, XSAMGenerationMixin):
    """
    The full model. `forward` is language modelling, with mask losses if there are mask labels; `generate` is plain
    transformers generation; `segment` gives masks for the `<SEG>` tokens of prompts and answers.
    """

    def __init__(self, config: XSAMConfig) -> None:
        super().__init__(config)
        # transformers derives the kind of loss from the class name, which here names the other task.
        self.loss_type = "ForCausalLM"
        text_size, high_res_size = config.text_config.hidden_size, config.high_res_vision_config.hidden_size
        decoder_config = config.mask_decoder_config
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.high_res_vision_tower = AutoModel.from_config(config.high_res_vision_config)
        self.multi_modal_projector = XSAMProjector(config.vision_config.hidden_size, text_size)
        self.high_res_projector = XSAMProjector(high_res_size * config.high_res_downsample_factor**2, text_size)
        self.region_sampler = XSAMRegionSampler(
            config.num_region_points, config.num_region_tokens, config.region_pooling
        )
        self.mask_projector = XSAMProjector(text_size, decoder_config.hidden_dim)
        self.background_embedding = nn.Embedding(1, decoder_config.hidden_dim)
        self.connector = XSAMConnector(high_res_size, config.connector_hidden_size, config.connector_scale_factors)
        self.mask_decoder = XSAMMaskDecoder(decoder_config, config.connector_out_channels)
        self.phrase_classifier = XSAMPhraseClassifier(decoder_config.class_logit_clamp)
        self.loss = XSAMLoss(decoder_config)
        # Last, so that it is what `device_map="auto"` offloads first: its layers are built for that.
        self.language_model = AutoModel.from_config(config.text_config)
        self.lm_head = nn.Linear(text_size, config.text_config.vocab_size, bias=False)
        self._tied_weights_keys = {"lm_head.weight": f"language_model.{self._embedding_name()}"}
        self.post_init()

    def _embedding_name(self) -> str:
        """Name of the language model's input embeddings; they have another in every family of models."""
        weight = self.get_input_embeddings().weight
        return next(name for name, parameter in self.language_model.named_parameters() if parameter is weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def _language_embeddings(self) -> list[nn.Module]:
        return [self.get_input_embeddings()]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_image_features(self, pixel_values: torch.Tensor, high_res_pixel_values: torch.Tensor) -> XSAMImageFeatures:
        """
        Args:
            pixel_values: (M, 3, s, s), input of the global tower.
            high_res_pixel_values: (M, 3, S, S), input of the dense tower, the same images.

        Raises:
            ValueError: if one of the two is missing or they differ in the number of images.
        """
        if pixel_values is None or high_res_pixel_values is None or len(pixel_values) != len(high_res_pixel_values):
            counts = [0 if p is None else len(p) for p in (pixel_values, high_res_pixel_values)]
            raise ValueError(
                f"pixel_values has {counts[0]} images and high_res_pixel_values {counts[1]}; both are needed for every "
                "image."
            )
        states = self.vision_tower(
            pixel_values.to(self.vision_tower.dtype), output_hidden_states=True, return_dict=True
        ).hidden_states
        vision_tokens = self.multi_modal_projector(states[self.config.vision_feature_layer])
        layers = self._read_layers()["high_res_vision_tower"]
        high_res_states, *connector_states = self._high_res_hidden_states(high_res_pixel_values, layers)
        merged = space_to_depth(high_res_states, self.config.high_res_downsample_factor)
        token_map = self.high_res_projector(merged)
        return XSAMImageFeatures(
            vision_tokens=vision_tokens,
            high_res_tokens=token_map.flatten(1, 2),
            region_map=token_map.permute(0, 3, 1, 2),
            connector_maps=self._connector_maps(connector_states),
        )

    def _read_layers(self) -> dict[str, list[int]]:
        return {
            "vision_tower": [self.config.vision_feature_layer],
            "high_res_vision_tower": [self.config.high_res_feature_layer, *self.config.connector_feature_layers],
        }

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        high_res_pixel_values: torch.Tensor | None = None,
        region_masks: torch.Tensor | None = None,
        region_batch_index: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        phrase_group_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        mask_labels: list[torch.Tensor] | None = None,
        class_labels: list[torch.Tensor] | None = None,
        image_features: XSAMImageFeatures | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | float | None = None,
        num_masks_in_batch: torch.Tensor | float | None = None,
        class_weight_in_batch: torch.Tensor | float | None = None,
        **kwargs: Any,
    ) -> XSAMSegmentationOutput:
        """
        With labels, the loss is a sum over tokens and `<SEG>`s, divided by what is counted of them. If the three counts
        are those of a whole optimiser step, the losses of its forward passes add up to the loss of the step in one
        pass. In training and in evaluation without gradients, every part of the network takes part in every loss, if
        need be with weight zero, on a blank image or for a `<SEG>` that nobody asked for: all processes run the same
        modules in the same order.

        Args:
            input_ids: int64 (B, T), with `num_image_tokens` image tokens per image and `num_region_tokens` region
                tokens per region.
            attention_mask: (B, T), 0 for padding.
            position_ids: int64 (B, T); counted over real tokens if not given.
            pixel_values, high_res_pixel_values: see `get_image_features`. Or give `image_features`.
            region_masks: bool (R, S, S), in the order of the regions in `input_ids`, batch-major.
            region_batch_index: int64 (R,), the image each region is read from; by default its sample's image.
            image_index: int64 (B,), the image each sample looks at; by default the samples with image tokens take the
                images in order. It lets many samples share an image that is encoded once.
            phrase_group_ids: int64 (N,); `<SEG>`s of equal id share their phrases as classes, -1 shares with none.
            inputs_embeds: (B, T, hidden), instead of `input_ids`; images and regions have to be in it already.
            labels: int64 (B, T), -100 where there is no language loss.
            mask_labels: one tensor (n, S, S) per `<SEG>`, batch-major, with values 0 and 1.
            class_labels: one tensor int64 (n,) per `<SEG>`, indices into that `<SEG>`'s own phrases.
            image_features: features from `get_image_features`, instead of pixels.
            logits_to_keep: number of last positions (or the positions) to compute logits for; 0 for all.
            num_items_in_batch: label tokens, which the language loss is divided by; by default those of this call.
            num_masks_in_batch, class_weight_in_batch: what the mask losses are divided by, see `count_loss_items`; by
                default they are counted in this call.

        Raises:
            ValueError: if the inputs disagree with each other, naming the counts.
        """
        if image_features is None and (pixel_values is not None or high_res_pixel_values is not None):
            image_features = self.get_image_features(pixel_values, high_res_pixel_values)
        # Without gradients too: a sharded model is evaluated by all processes together.
        in_step = (self.training or not torch.is_grad_enabled()) and (labels is not None or mask_labels is not None)
        idle_features = image_features
        if in_step:
            kwargs.setdefault("use_cache", False)
            if image_features is None:
                device = (inputs_embeds if input_ids is None else input_ids).device
                idle_features = self.get_image_features(**blank_images(self.config, device))
        if mask_labels is not None and input_ids is None:
            raise ValueError("mask_labels were given without input_ids, which say where <SEG> and phrases stand.")
        if input_ids is not None:
            image_index = self._image_index(input_ids, image_features, image_index)
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, image_features, image_index, region_masks, region_batch_index)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=count_positions(attention_mask, inputs_embeds) if position_ids is None else position_ids,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._logits(hidden_states[:, kept])
        losses = {}
        if labels is not None:
            losses["loss_lm"] = self._language_loss(logits, labels, num_items_in_batch, **kwargs)
        segmentation = {}
        if mask_labels is not None:
            segs = [parse_prompt(row, self.config) for row in input_ids.tolist()]
            segmentation = self._decode(
                hidden_states, segs, image_features, image_index, phrase_group_ids, output_auxiliary_logits=True
            )
            losses |= self._mask_losses(
                segmentation, phrase_group_ids, mask_labels, class_labels, num_masks_in_batch, class_weight_in_batch
            )
        idle = 0
        if in_step:
            idle = self._idle_term(hidden_states, idle_features, image_index, "loss_cls" in losses)
            if labels is None:
                idle = idle + zero_connected_with([logits], logits.device)
        return XSAMSegmentationOutput(
            loss=sum(losses.values(), idle) if in_step or losses else None,
            loss_dict=losses or None,
            logits=logits,
            image_features=image_features,
            # The cache's field has different names in different versions of transformers.
            **{name: value for name, value in outputs.items() if name != "last_hidden_state"},
            **segmentation,
        )

    @torch.no_grad()
    def segment(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        high_res_pixel_values: torch.Tensor | None = None,
        region_masks: torch.Tensor | None = None,
        region_batch_index: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        phrase_group_ids: torch.Tensor | None = None,
        image_features: XSAMImageFeatures | None = None,
        generate_answer: bool | None = None,
        output_auxiliary_logits: bool = False,
        **generate_kwargs: Any,
    ) -> XSAMSegmentationOutput:
        """
        Masks for the `<SEG>` tokens of prompts and answers. Samples are independent of each other, unless
        `phrase_group_ids` says otherwise; a batch gives what a loop over its samples gives.

        Args:
            input_ids ... image_features: as in `forward`; padded on either side.
            generate_answer: None generates answers for the samples whose prompt does not end in `<SEG>`; False
                generates nothing and segments every `<SEG>` of `input_ids`; True generates for all. Of a generated
                answer, its own `<SEG>`s are segmented, not those of the conversation before it.
            output_auxiliary_logits: whether to return the predictions before the last one.
            generate_kwargs: arguments of `generate`, such as `max_new_tokens` or `streamer`.

        Raises:
            ValueError: if a prompt is malformed or the inputs disagree with each other. Malformed answers are no
                error: they give no segment, and `empty_reasons` says why.
        """
        if image_features is None and (pixel_values is not None or high_res_pixel_values is not None):
            image_features = self.get_image_features(pixel_values, high_res_pixel_values)
        image_index = self._image_index(input_ids, image_features, image_index)
        region_batch_index = resolve_region_batch_index(
            input_ids, image_index, _num_images(image_features), region_masks, region_batch_index, self.config
        )
        prompts = self._prompts(input_ids, attention_mask)
        answered = [self._wants_answer(prompt, generate_answer) for prompt in prompts]
        sequences = self._with_answers(
            prompts, answered, image_features, image_index, region_masks, region_batch_index, generate_kwargs
        )
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=input_ids.device)
        padded = pad_sequence(sequences, batch_first=True, padding_value=self._padding_id)
        embeds = self._embed(padded, image_features, image_index, region_masks, region_batch_index)
        hidden_states = read_sequences(
            self.language_model, sequences, embeds, image_index, self.config.region_token_id
        )
        segs, reasons = self._parse(sequences, prompts, answered, image_index)
        segmentation = self._decode(
            hidden_states, segs, image_features, image_index, phrase_group_ids, output_auxiliary_logits
        )
        return XSAMSegmentationOutput(
            **segmentation,
            sequences=padded,
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts], device=input_ids.device),
            sequence_lengths=lengths,
            empty_reasons=tuple(reasons),
            image_features=image_features,
        )

    # Inputs of the language model

    def _image_index(
        self,
        input_ids: torch.Tensor,
        image_features: XSAMImageFeatures | None,
        image_index: torch.Tensor | None,
    ) -> torch.Tensor:
        return resolve_image_index(input_ids, _num_images(image_features), image_index, self.config)

    def _embed(
        self,
        input_ids: torch.Tensor,
        image_features: XSAMImageFeatures | None,
        image_index: torch.Tensor,
        region_masks: torch.Tensor | None,
        region_batch_index: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, T, hidden): token embeddings with the images and regions in their places."""
        region_batch_index = resolve_region_batch_index(
            input_ids, image_index, _num_images(image_features), region_masks, region_batch_index, self.config
        )
        embeds = self.get_input_embeddings()(input_ids)
        shown = image_index[image_index >= 0]
        if len(shown):
            towers = (image_features.vision_tokens, image_features.high_res_tokens)
            tokens = torch.cat([tokens[shown.to(tokens.device)].to(embeds) for tokens in towers], dim=1)
            is_image = (input_ids == self.config.image_token_id)[..., None].to(embeds.device)
            embeds = embeds.masked_scatter(is_image, tokens)
        if region_batch_index is not None:
            regions = self.region_sampler(image_features.region_map, region_masks, region_batch_index)
            is_region = (input_ids == self.config.region_token_id)[..., None].to(embeds.device)
            embeds = embeds.masked_scatter(is_region, regions.to(embeds))
        return embeds

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits in which the two placeholder tokens never win and have no share in the loss."""
        logits = self.lm_head(hidden_states)
        return logits.index_fill_(-1, self._placeholder_ids(logits.device), torch.finfo(logits.dtype).min)

    def _language_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | float | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Cross-entropy over the label tokens, divided by their number (or the given one); 0 if there are none."""
        # The placeholders cannot be predicted: as labels their loss would be infinite.
        labels = labels.masked_fill(torch.isin(labels, self._placeholder_ids(labels.device)), -100)
        num_items = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        num_items = torch.as_tensor(num_items, device=logits.device).clamp(min=1)
        vocab_size = self.config.text_config.vocab_size
        return self.loss_function(logits, labels, vocab_size, num_items_in_batch=num_items, **kwargs)

    def _placeholder_ids(self, device: torch.device) -> torch.Tensor:
        return torch.tensor([self.config.image_token_id, self.config.region_token_id], device=device)

    def _prompts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[torch.Tensor]:
        """
        Prompts without padding, int64 (length,).

        Raises:
            ValueError: if a prompt is malformed (said before anything is generated), or an image is partly padding.
        """
        attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        placeholders = torch.isin(input_ids, self._placeholder_ids(input_ids.device))
        if (placeholders & ~attended.bool()).any():
            raise ValueError("attention_mask is 0 at image or region tokens: mask padding only.")
        prompts = [row[mask.bool()] for row, mask in zip(input_ids, attended, strict=True)]
        for prompt in prompts:
            parse_prompt(prompt.tolist(), self.config)
        return prompts

    # Masks

    def _decode(
        self,
        hidden_states: torch.Tensor,
        segs: list[list[SegPhrases]],
        image_features: XSAMImageFeatures | None,
        image_index: torch.Tensor,
        phrase_group_ids: torch.Tensor | None,
        output_auxiliary_logits: bool,
    ) -> XSAMSegmentationOutput:
        """
        Args:
            hidden_states: (B, T, hidden), last hidden states of the language model.
            segs: the `<SEG>`s of each sample.

        Returns:
            The fields that describe the segmentation, in float32.
        """
        samples = [sample for sample, of_sample in enumerate(segs) for _ in of_sample]
        flat = [seg for of_sample in segs for seg in of_sample]
        device = hidden_states.device
        result = XSAMSegmentationOutput(
            seg_batch_index=torch.tensor(samples, dtype=torch.long, device=device),
            phrase_spans=tuple(torch.tensor(seg.spans, dtype=torch.long, device=device) for seg in flat),
        )
        if not flat:
            num_queries = self.config.mask_decoder_config.num_queries
            result.class_mask = torch.zeros(0, 1, dtype=torch.bool, device=device)
            result.class_queries_logits = torch.zeros(0, num_queries, 1, device=device)
            result.masks_queries_logits = torch.zeros(0, num_queries, 1, 1, device=device)
            return result
        layout = self._class_layout(result.phrase_spans, phrase_group_ids)
        seg_images = image_index.to(device)[result.seg_batch_index]
        if (seg_images < 0).any():
            raise ValueError(f"Sample {samples[int((seg_images < 0).nonzero()[0, 0])]} has a <SEG>, but no image.")
        with maybe_autocast(device_type=device.type, enabled=False):
            projected = self.mask_projector(hidden_states.to(self.mask_projector.linear_1.weight.dtype))
            phrases = [
                projected[sample, start:end].mean(0)
                for sample, seg in zip(samples, flat, strict=True)
                for start, end in seg.spans
            ]
            background = self.background_embedding(torch.zeros(1, dtype=torch.long, device=projected.device))
            classes, result.class_mask = stack_classes(phrases, layout.members, background)
            seg_embeds = torch.stack(
                [projected[sample, seg.position] for sample, seg in zip(samples, flat, strict=True)]
            )
            decoded = self.mask_decoder(image_features.connector_maps, seg_images, seg_embeds, output_auxiliary_logits)
            logits = tuple(self.phrase_classifier(queries, classes, result.class_mask) for queries in decoded.queries)
        result.class_queries_logits, result.masks_queries_logits = logits[-1], decoded.masks_queries_logits[-1]
        result.auxiliary_logits = auxiliary_logits(decoded.masks_queries_logits, logits)
        return result

    def _class_layout(
        self, phrase_spans: tuple[torch.Tensor, ...], phrase_group_ids: torch.Tensor | None
    ) -> ClassLayout:
        num_segs = len(phrase_spans)
        groups = [-1] * num_segs if phrase_group_ids is None else phrase_group_ids.tolist()
        if len(groups) != num_segs:
            raise ValueError(f"phrase_group_ids has {len(groups)} entries for {num_segs} <SEG> tokens.")
        return layout_classes([len(spans) for spans in phrase_spans], groups)

    def _mask_losses(
        self,
        segmentation: XSAMSegmentationOutput,
        phrase_group_ids: torch.Tensor | None,
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor] | None,
        num_masks_in_batch: torch.Tensor | float | None,
        class_weight_in_batch: torch.Tensor | float | None,
    ) -> dict[str, torch.Tensor]:
        num_segs = len(segmentation.phrase_spans)
        if len(mask_labels) != num_segs or class_labels is None or len(class_labels) != num_segs:
            raise ValueError(
                f"input_ids have {num_segs} <SEG> tokens, but mask_labels has {len(mask_labels)} entries and "
                f"class_labels {0 if class_labels is None else len(class_labels)}. Give one entry per <SEG>."
            )
        if num_segs == 0:
            return {}
        offsets = self._class_layout(segmentation.phrase_spans, phrase_group_ids).offsets
        for index, (labels, spans) in enumerate(zip(class_labels, segmentation.phrase_spans, strict=True)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(spans):
                raise ValueError(
                    f"class_labels[{index}] is {labels.tolist()}, but its <SEG> has {len(spans)} phrases: labels index "
                    "the <SEG>'s own phrases."
                )
        return self.loss(
            segmentation.masks_queries_logits,
            segmentation.class_queries_logits,
            mask_labels,
            [labels + offset for labels, offset in zip(class_labels, offsets, strict=True)],
            segmentation.auxiliary_logits,
            num_masks_in_batch,
            class_weight_in_batch,
        )

    def _idle_term(
        self,
        hidden_states: torch.Tensor,
        image_features: XSAMImageFeatures,
        image_index: torch.Tensor | None,
        has_mask_losses: bool,
    ) -> torch.Tensor:
        """
        Zero, connected with the parts of the network that no loss of the batch depends on. They are run rather than
        summed up, because modules that are sharded over processes can only be read by running them, everywhere.
        """
        idle = []
        if image_index is None or not (image_index >= 0).any():
            idle += [image_features.vision_tokens, image_features.high_res_tokens]
        if not has_mask_losses:
            last = hidden_states.shape[1] - 1
            unasked = self._decode(
                hidden_states[:1],
                [[SegPhrases(last, [(last, last + 1)])]],
                image_features,
                image_index=torch.zeros(1, dtype=torch.long, device=hidden_states.device),
                phrase_group_ids=None,
                output_auxiliary_logits=False,
            )
            idle += [unasked.class_queries_logits, unasked.masks_queries_logits]
        return zero_connected_with(idle, hidden_states.device)


def _num_images(image_features: XSAMImageFeatures | None) -> int:
    return 0 if image_features is None else len(image_features.vision_tokens)


__all__ = ["XSAMForSegmentation"]
