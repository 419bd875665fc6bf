"""Generation: transformers' own, with image towers that run once and regions that follow their sample."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationMixin

from .outputs_xsam import XSAMImageFeatures
from .phrase_spans_xsam import SegPhrases, SequenceStructure, parse_answer, parse_prompt
from .placeholders_xsam import regions_per_sample

# Inputs that only the prompt needs. Once it is in the cache they are dropped, as transformers does with pixel_values.
PROMPT_INPUTS = ("image_features", "image_index", "region_masks", "region_batch_index")


class XSAMGenerationMixin(GenerationMixin):
    """Plain transformers generation for a model with images and regions in its prompt."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        high_res_pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ):
        """
        As `transformers.GenerationMixin.generate`, with the inputs of `forward`. Images are encoded once, whatever the
        number of beams, returned sequences and steps.
        """
        if pixel_values is not None or high_res_pixel_values is not None:
            kwargs["image_features"] = self.get_image_features(pixel_values, high_res_pixel_values)
        return super().generate(inputs, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict:
        # `inputs_embeds` is named because transformers looks for it here to learn whether it is supported.
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and model_inputs.get("use_cache", True):
            for name in PROMPT_INPUTS:
                model_inputs.pop(name, None)
        return model_inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        region_masks: torch.Tensor | None = None,
        region_batch_index: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Repeat samples, but not images: copies of a sample point at its image, and its regions come in order."""
        if input_ids is not None:
            image_index = self._image_index(input_ids, model_kwargs.get("image_features"), image_index)
        if region_masks is not None:
            counts = regions_per_sample(input_ids, self.config)
            if region_batch_index is None:
                region_batch_index = image_index.repeat_interleave(counts)
            per_sample = torch.arange(len(region_masks), device=input_ids.device).split(counts.tolist())
            order = torch.cat([regions.repeat(expand_size) for regions in per_sample])
            region_masks, region_batch_index = region_masks[order], region_batch_index[order]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, image_index=image_index, **model_kwargs
        )
        if region_masks is not None:
            model_kwargs.update(region_masks=region_masks, region_batch_index=region_batch_index)
        return input_ids, model_kwargs

    def _answer(self, prompts: list[torch.Tensor], **kwargs: Any) -> list[torch.Tensor]:
        """
        Generate answers to prompts of different lengths.

        Args:
            prompts: B tensors int64 (length,), without padding.
            kwargs: inputs and generation arguments of `generate`.

        Returns:
            B tensors int64: the answers, up to and with the end token.
        """
        if kwargs.get("num_return_sequences", 1) != 1 or kwargs.get("return_dict_in_generate"):
            raise ValueError(
                "segment gives one answer per sample: num_return_sequences has to be 1 and return_dict_in_generate "
                "False. Use generate for more, and pass its sequences to segment with generate_answer=False."
            )
        input_ids = pad_sequence(prompts, batch_first=True, padding_value=self._padding_id, padding_side="left")
        attention_mask = pad_sequence(
            [torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left"
        )
        sequences = self.generate(input_ids, attention_mask=attention_mask, **kwargs)
        generation_config = kwargs.get("generation_config") or self.generation_config
        eos_token_id = kwargs.get("eos_token_id", generation_config.eos_token_id)
        return [_until_end(answer, eos_token_id) for answer in sequences[:, input_ids.shape[1] :]]

    def _wants_answer(self, prompt: torch.Tensor, generate_answer: bool | None) -> bool:
        if generate_answer is not None:
            return generate_answer
        return len(prompt) == 0 or int(prompt[-1]) != self.config.seg_token_id

    def _with_answers(
        self,
        prompts: list[torch.Tensor],
        answered: list[bool],
        image_features: XSAMImageFeatures | None,
        image_index: torch.Tensor,
        region_masks: torch.Tensor | None,
        region_batch_index: torch.Tensor | None,
        generate_kwargs: dict[str, Any],
    ) -> list[torch.Tensor]:
        """The prompts, followed by a generated answer where one is wanted."""
        rows = [row for row, wanted in enumerate(answered) if wanted]
        if not rows:
            return prompts
        if region_masks is not None:
            counts = torch.stack([regions_per_sample(prompt, self.config) for prompt in prompts])
            wanted = torch.tensor(answered, device=counts.device).repeat_interleave(counts)
            region_masks, region_batch_index = region_masks[wanted], region_batch_index[wanted]
        answers = self._answer(
            [prompts[row] for row in rows],
            image_features=image_features,
            image_index=image_index[rows],
            region_masks=region_masks,
            region_batch_index=region_batch_index,
            **generate_kwargs,
        )
        sequences = list(prompts)
        for row, answer in zip(rows, answers, strict=True):
            sequences[row] = torch.cat([prompts[row], answer])
        return sequences

    def _parse(
        self,
        sequences: list[torch.Tensor],
        prompts: list[torch.Tensor],
        answered: list[bool],
        image_index: torch.Tensor,
    ) -> tuple[list[list[SegPhrases]], list[str]]:
        """Per sample its `<SEG>`s, and why there are fewer than expected ("" if there are not)."""
        segs, reasons = [], []
        for sample, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
            if not answered[sample]:
                segs.append(parse_prompt(sequence.tolist(), self.config))
                reasons.append("")
                continue
            structure = parse_answer(sequence.tolist(), len(prompt), self.config)
            if structure.segs and image_index[sample] < 0:
                structure = SequenceStructure(problems=["the answer has a <SEG>, but the sample has no image."])
            segs.append(structure.segs)
            reasons.append(" ".join(structure.problems))
        return segs, reasons

    @property
    def _padding_id(self) -> int:
        pad_token_id = self.generation_config.pad_token_id
        return 0 if pad_token_id is None else pad_token_id


def _until_end(answer: torch.Tensor, eos_token_id: int | list[int] | None) -> torch.Tensor:
    """An answer up to and with its end token; what follows is padding."""
    if eos_token_id is None:
        return answer
    ends = torch.isin(answer, torch.as_tensor(eos_token_id, device=answer.device)).nonzero()
    return answer[: ends[0, 0] + 1] if len(ends) else answer


__all__ = ["XSAMGenerationMixin"]
