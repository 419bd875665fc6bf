"""`pipeline("any-segmentation")`: one call per task, on any image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Pipeline

from .image_processing_xsam import load_image
from .prompts_xsam import get_task
from .results_xsam import ResultOptions, SampleOutput, split_outputs, to_result
from .samples_xsam import Sample, split_batch


@dataclass(frozen=True)
class Request:
    """
    One call on one image. Every prompt of a list is a sample of its own, so that no result depends on other prompts.

    Args:
        samples: what is asked, one entry per prompt.
        join: how the results of the prompts become that of the call.
    """

    samples: list[Sample]
    join: Callable[[list[Any]], Any]


class AnySegmentationPipeline(Pipeline):
    """
    Segmentation of whatever a prompt names, and chat.

    ```python
    segment = pipeline("any-segmentation", model="path-or-hub-id")
    segment(image, task="generic", labels={"thing": ["car"], "stuff": ["road", "sky"]}, subtask="panoptic")
    segment(image, task="referring", text="the man ironing")
    segment(image, task="interactive", points=[[x, y]])
    ```

    Images are paths, URLs, PIL images, arrays or bytes; a list, generator or dataset of them is processed with
    `batch_size`. Results are segments in the form of transformers' image-segmentation pipeline, a list of `{"label",
    "score", "mask" (PIL "L"), "box"}`; tasks that also answer in words give `{"text", "segments"}`.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """
        Args:
            inputs: an image or several; None for a chat without one.
            task: generic, open-vocabulary, referring, reasoning, grounded-conversation, interactive, visual-grounded or
                chat.
            text: expression, question or message; a list asks several about the same image, which is encoded once.
            labels: category names, or `{"thing": [...], "stuff": [...]}`.
            points, boxes, scribbles, masks: visual prompts in pixels of the image, see `XSAMProcessor`. In interactive
                each prompted object gives a result of its own.
            prompt_image: the image that the visual prompts of visual-grounded refer to, if it is another one.
            conversation: earlier turns, as messages.
            prefill_answer: whether the fixed answer of a task is given instead of generated.
            subtask: panoptic, instance or semantic, for generic and open-vocabulary.
            threshold, mask_threshold, overlap_mask_area_threshold, score_threshold, multi_target: see `ResultOptions`.
            max_new_tokens, streamer, generate_kwargs: for answers that are generated.
            image_features: features of the image from an earlier call of `encode_image`.
            prompts_at_once: how many prompts the network sees at a time.

        Returns:
            One result per image, and a list of results for an image with a list of prompts.
        """
        return super().__call__(inputs, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """
        Save model and processor. Unlike transformers' own, this adds no code: with code in its folder a model demands
        `trust_remote_code` even where this package is installed. `export_remote_code` adds it.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def encode_image(self, image: Any) -> Any:
        """Features of an image, to be passed as `image_features` to any number of calls on it."""
        inputs = self.processor(images=load_image(image), task="grounded-conversation").to(self.device)
        with self.device_placement(), torch.no_grad():
            return self.model.get_image_features(inputs["pixel_values"], inputs["high_res_pixel_values"])

    def _sanitize_parameters(
        self,
        task: str | None = None,
        image_features: Any = None,
        max_new_tokens: int | None = None,
        streamer: Any = None,
        generate_kwargs: dict[str, Any] | None = None,
        prompts_at_once: int | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        sample_names = {name for name in Sample.__dataclass_fields__ if name not in ("task", "image")}
        option_names = set(ResultOptions.__dataclass_fields__)
        if unknown := sorted(set(kwargs) - sample_names - option_names):
            known = sorted(sample_names | option_names)
            raise ValueError(f"`{unknown[0]}` is not an argument of any-segmentation; the arguments are {known}")
        preprocess = {name: value for name, value in kwargs.items() if name in sample_names}
        if task is not None:
            preprocess["task"] = task
        forward = {
            name: value
            for name, value in {
                "image_features": image_features,
                "max_new_tokens": max_new_tokens,
                "streamer": streamer,
                "generate_kwargs": generate_kwargs,
                "prompts_at_once": prompts_at_once,
            }.items()
            if value is not None
        }
        return preprocess, forward, {name: value for name, value in kwargs.items() if name in option_names}

    def preprocess(self, image: Any, task: str | None = None, **arguments: Any) -> dict[str, Request]:
        if task is None:
            raise ValueError("`task` is missing: say what to do, for example task='referring'")
        shared = Sample(task=task, image=None if image is None else load_image(image), **arguments)
        # Raises for arguments that do not fit the task, before they are taken apart.
        split_batch(vars(replace(shared, text=None) if isinstance(shared.text, (list, tuple)) else shared))
        return {"request": _split_prompts(shared)}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        image_features: Any = None,
        max_new_tokens: int = 512,
        streamer: Any = None,
        generate_kwargs: dict[str, Any] | None = None,
        prompts_at_once: int = 8,
    ) -> dict[str, Any]:
        requests = model_inputs["request"]
        batched = isinstance(requests, list)
        requests = requests if batched else [requests]
        samples = [sample for request in requests for sample in request.samples]
        inputs = self._encode(samples)
        if image_features is None and "pixel_values" in inputs:
            image_features = self.model.get_image_features(inputs["pixel_values"], inputs["high_res_pixel_values"])
        outputs: list[SampleOutput] = []
        for start in range(0, len(samples), prompts_at_once):
            rows = slice(start, start + prompts_at_once)
            chunk = self._rows(inputs, rows)
            segmented = self.model.segment(
                **chunk,
                image_features=image_features,
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                **(generate_kwargs or {}),
            )
            regions = self._regions_per_sample(chunk)
            outputs += split_outputs(segmented, samples[rows], regions, self.processor.high_res_size)
        answers = iter(outputs)
        results = [[next(answers) for _ in request.samples] for request in requests]
        joins = [request.join for request in requests]
        return {"outputs": results, "join": joins} if batched else {"outputs": results[0], "join": joins[0]}

    def postprocess(self, model_outputs: dict[str, Any], **options: Any) -> Any:
        options = ResultOptions(**options)
        results = [to_result(output, options, self.processor.tokenizer) for output in model_outputs["outputs"]]
        return model_outputs["join"](results)

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        # What passes between the steps are requests and results; tensors are moved where they are made.
        return inputs

    def _encode(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        columns = {name: [getattr(sample, name) for sample in samples] for name in Sample.__dataclass_fields__}
        images = columns.pop("image")
        return self.processor(images=images, **columns).to(self.device)

    def _rows(self, inputs: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
        """The inputs of some samples, without pixels."""
        chosen = {name: inputs[name][rows] for name in ("input_ids", "attention_mask", "image_index")}
        if "region_masks" in inputs:
            counts = self._region_counts(inputs["input_ids"])
            first = int(counts[: rows.start].sum())
            regions = slice(first, first + int(counts[rows].sum()))
            if regions.start < regions.stop:
                chosen["region_masks"] = inputs["region_masks"][regions]
                chosen["region_batch_index"] = inputs["region_batch_index"][regions]
        return chosen

    def _region_counts(self, input_ids: torch.Tensor) -> torch.Tensor:
        return (input_ids == self.processor.region_token_id).sum(-1) // self.processor.num_region_tokens

    def _regions_per_sample(self, inputs: dict[str, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Region masks of each sample, bool (R, S, S)."""
        size = self.processor.high_res_size
        masks = inputs.get("region_masks", torch.zeros(0, size, size, dtype=torch.bool, device=self.device))
        return masks.split(self._region_counts(inputs["input_ids"]).tolist())


def _split_prompts(sample: Sample) -> Request:
    """A list of texts, and the prompted objects of tasks that ask about each of them, become samples of their own."""
    if isinstance(sample.text, (list, tuple)):
        return Request([replace(sample, text=text) for text in sample.text], join=list)
    if get_task(sample.task).turn_per_phrase and sample.visual_prompts:
        ((kind, values),) = sample.visual_prompts.items()
        return Request([replace(sample, **{kind: [value]}) for value in values], join=_join_regions)
    return Request([sample], join=_only)


def _only(results: list[Any]) -> Any:
    (result,) = results
    return result


def _join_regions(results: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{**segment, "label": f"region {i}"} for i, segments in enumerate(results) for segment in segments]


__all__ = ["AnySegmentationPipeline"]
