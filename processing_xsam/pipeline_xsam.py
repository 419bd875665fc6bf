"""`pipeline("any-segmentation")`: one call per task, on any image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Pipeline

from .default_model_xsam import warn_of_default
from .image_processing_xsam import load_image
from .passes_xsam import merge_passes, split_labels
from .prompts_xsam import get_task, list_labels, text_phrase
from .results_xsam import (
    ResultOptions,
    SampleOutput,
    category_segments,
    name_categories,
    split_outputs,
    stuff_ids,
    to_result,
)
from .samples_xsam import Sample, split_batch
from .tiles_xsam import merge_tiles, tile_boxes

# Tokens of a prompt that are left free for the answer.
ANSWER_ROOM = 64

# What the arguments of a result mean depends on where its phrases come from.
OPTIONS_OF_SOURCE = {
    "labels": ("subtask", "threshold", "overlap_mask_area_threshold"),
    "text": ("score_threshold", "multi_target"),
    "regions": ("threshold",),
    None: (),
}
CALL_ARGUMENTS = {"task", "image_features", "max_new_tokens", "streamer", "generate_kwargs", "prompts_at_once"}

Finish = Callable[[list[SampleOutput], ResultOptions, Any], Any]


@dataclass(frozen=True)
class Request:
    """
    One call on one image. Every prompt of a list is a sample of its own, so that no result depends on other prompts.

    Args:
        samples: what the network is asked.
        finish: makes the result of the call from the outputs of its samples.
    """

    samples: list[Sample]
    finish: Finish


@dataclass(frozen=True)
class EncodedImages:
    """Features of some of the images of a batch, and which those are."""

    rows: torch.Tensor
    features: Any


@dataclass(frozen=True)
class ImageFeatures:
    """What `encode_image` knows of an image: its size (width, height), and the network's features."""

    size: tuple[int, int]
    features: Any


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

    Without a model it is a small checkpoint that knows only a generated world of coloured shapes, and says so.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        warn_of_default(self.model.name_or_path)

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """
        Args:
            inputs: an image or several; None for a chat without one.
            task: generic, open-vocabulary, referring, reasoning, grounded-conversation, interactive, visual-grounded or
                chat.
            text: expression, question or message; a list asks several about the same image, which is encoded once.
            labels: category names, or `{"thing": [...], "stuff": [...]}`.
            points, boxes, scribbles, masks: visual prompts in pixels of the image, see `XSAMProcessor`. In interactive
                each prompted object gives a result of its own, in a chat they mark what the message is about.
            prompt_image: the image that the visual prompts of visual-grounded refer to, if it is another one.
            conversation: earlier turns, as messages.
            prefill_answer: whether the fixed answer of a task is given instead of generated.
            subtask: panoptic, instance or semantic, for generic and open-vocabulary.
            tiles: (rows, columns) of overlapping crops for crowded scenes, for generic and open-vocabulary: each crop
                has all queries to itself, and what a seam cuts is united.
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

    def encode_image(self, image: Any) -> ImageFeatures:
        """Features of an image, to be passed as `image_features` to any number of calls on it."""
        loaded = load_image(image)
        inputs = self.processor(images=loaded, task="grounded-conversation").to(self.device)
        with self.device_placement(), torch.no_grad():
            features = self.model.get_image_features(inputs["pixel_values"], inputs["high_res_pixel_values"])
        return ImageFeatures(loaded.size, features)

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
        if prompts_at_once is not None and prompts_at_once < 1:
            raise ValueError(f"`prompts_at_once`: expected a number from 1 on, got {prompts_at_once!r}")
        sample_names = {"tiles", *(name for name in Sample.__dataclass_fields__ if name not in ("task", "image"))}
        option_names = set(ResultOptions.__dataclass_fields__)
        if unknown := sorted(set(kwargs) - sample_names - option_names):
            known = sorted(sample_names | option_names | CALL_ARGUMENTS)
            raise ValueError(f"`{unknown[0]}` is not an argument of any-segmentation; the arguments are {known}")
        if task is not None:
            _check_options(task, set(kwargs) & option_names)
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

    def preprocess(
        self, image: Any, task: str | None = None, tiles: tuple[int, int] | None = None, **arguments: Any
    ) -> dict[str, Request]:
        if task is None:
            raise ValueError("`task` is missing: say what to do, for example task='referring'")
        shared = Sample(task=task, image=None if image is None else load_image(image), **arguments)
        # Raises for arguments that do not fit the task, before they are taken apart.
        split_batch(vars(replace(shared, text=None) if isinstance(shared.text, (list, tuple)) else shared))
        return {"request": self._request(shared, tiles)}

    def _request(self, sample: Sample, tiles: tuple[int, int] | None) -> Request:
        if get_task(sample.task).phrases_from == "labels":
            return self._category_request(sample, tiles)
        if tiles is not None:
            raise ValueError(
                f"`tiles`: task {sample.task!r} does not take this argument; generic and open-vocabulary do"
            )
        # An empty list goes to the processor as it is, which says what is wrong with it.
        if isinstance(sample.text, (list, tuple)):
            return Request([replace(sample, text=text) for text in sample.text] or [sample], _finish_each)
        if get_task(sample.task).turn_per_phrase and sample.visual_prompts:
            ((kind, values),) = sample.visual_prompts.items()
            if kind == "masks" and (hasattr(values, "getbands") or getattr(values, "ndim", 3) == 2):
                values = [values]
            objects = [replace(sample, **{kind: [value]}) for value in values] or [sample]
            return Request(objects, _finish_regions)
        return Request([sample], _finish_one)

    def _category_request(self, sample: Sample, tiles: tuple[int, int] | None) -> Request:
        """A category list may take several passes, and an image several crops; each crop sees all passes."""
        size = (sample.image.height, sample.image.width)
        boxes = [(0, 0, sample.image.width, sample.image.height)] if tiles is None else tile_boxes(size, tiles)
        passes = self.passes(sample)
        crops = [sample.image] if tiles is None else [sample.image.crop(box) for box in boxes]
        return Request(
            [replace(part, image=crop) for crop in crops for part in passes],
            partial(_finish_categories, sample=sample, boxes=boxes),
        )

    def passes(self, sample: Sample) -> list[Sample]:
        """
        A sample with categories as the samples that one prompt has room for: `[sample]` unless the list is long. Their
        outputs are put together by `merge_passes`.
        """
        return split_labels(sample, *self._label_budget(sample))

    def _label_budget(self, sample: Sample) -> tuple[list[int], int]:
        """Tokens that each label takes, and tokens that all labels of one prompt may take."""
        names = list_labels(sample.labels)
        lengths = [self.processor.count_tokens(f", {text_phrase(name)}") for name in names]
        messages = self.processor.build_conversation(
            sample.task, labels=names[:1], conversation=sample.conversation, prefill_answer=True
        )
        frame = len(self.processor.encode_conversation(messages, up_to_last_seg=True).input_ids)
        frame -= self.processor.count_tokens(text_phrase(names[0]))
        return lengths, self.model.config.text_config.max_position_embeddings - ANSWER_ROOM - frame

    def _forward(self, model_inputs: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        requests = model_inputs["request"]
        batched = isinstance(requests, list)
        requests = requests if batched else [requests]
        answers = self.run([sample for request in requests for sample in request.samples], **arguments)
        results = [[next(answers) for _ in request.samples] for request in requests]
        # The last step of a generator comes after its last output.
        next(answers, None)
        finishes = [request.finish for request in requests]
        if not batched:
            results, finishes = results[0], finishes[0]
        return {"outputs": results, "finish": finishes}

    @torch.no_grad()
    def run(
        self,
        samples: Sequence[Sample],
        image_features: ImageFeatures | None = None,
        max_new_tokens: int = 512,
        streamer: Any = None,
        generate_kwargs: dict[str, Any] | None = None,
        prompts_at_once: int = 8,
    ) -> Iterator[SampleOutput]:
        """
        What the network says about samples, before anything is made of it, in order. An image that samples share is encoded
        once, as long as they follow each other. Outputs are made while they are taken, `prompts_at_once` at a time.

        Args:
            samples: with loaded images; categories as `passes` splits them.
            image_features, max_new_tokens, streamer, generate_kwargs, prompts_at_once: see `__call__`.

        Yields:
            An output for each sample.
        """
        inputs = self._encode(samples)
        if image_features is not None:
            image_features = _features_of(image_features, samples, inputs)
        encoded = None
        was_generated = False
        for start in range(0, len(samples), prompts_at_once):
            rows = slice(start, start + prompts_at_once)
            chunk = self._rows(inputs, rows)
            if image_features is None:
                chunk, encoded = self._with_features(chunk, inputs, encoded)
            segmented = self.model.segment(
                **chunk,
                image_features=encoded.features if image_features is None and encoded else image_features,
                streamer=streamer,
                **{"max_new_tokens": max_new_tokens, **(generate_kwargs or {})},
            )
            regions = self._regions_per_sample(chunk)
            outputs = split_outputs(segmented, samples[rows], regions, self.processor.high_res_size)
            was_generated |= any(len(output.token_ids) > output.prompt_length for output in outputs)
            yield from outputs
        if streamer is not None and not was_generated:
            # Whoever waits for text has to learn that none comes.
            streamer.end()

    def postprocess(self, model_outputs: dict[str, Any], **options: Any) -> Any:
        return model_outputs["finish"](model_outputs["outputs"], ResultOptions(**options), self.processor.tokenizer)

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        # What passes between the steps are requests and results; tensors are moved where they are made.
        return inputs

    def _encode(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        columns = {name: [getattr(sample, name) for sample in samples] for name in Sample.__dataclass_fields__}
        images = columns.pop("image")
        inputs = self.processor(images=images, **columns)
        length, limit = inputs["input_ids"].shape[1], self.model.config.text_config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"`text` or `conversation`: a prompt takes {length} tokens, but the language model knows {limit}; shorten it"
            )
        return inputs.to(self.device)

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

    def _with_features(
        self, chunk: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor], encoded: EncodedImages | None
    ) -> tuple[dict[str, torch.Tensor], EncodedImages | None]:
        """The chunk with its images counted from 0, and their features; those of the chunk before if they are the same."""
        indices = [chunk[name] for name in ("image_index", "region_batch_index") if name in chunk]
        rows = torch.cat(indices).unique()
        rows = rows[rows >= 0]
        if not len(rows):
            return chunk, None
        if encoded is None or not torch.equal(encoded.rows, rows):
            pixels = [inputs[name][rows] for name in ("pixel_values", "high_res_pixel_values")]
            encoded = EncodedImages(rows, self.model.get_image_features(*pixels))
        counted = {
            name: torch.where(chunk[name] < 0, -1, torch.searchsorted(rows, chunk[name]))
            for name in ("image_index", "region_batch_index")
            if name in chunk
        }
        return {**chunk, **counted}, encoded

    def _region_counts(self, input_ids: torch.Tensor) -> torch.Tensor:
        return (input_ids == self.processor.region_token_id).sum(-1) // self.processor.num_region_tokens

    def _regions_per_sample(self, inputs: dict[str, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Region masks of each sample, bool (R, S, S)."""
        size = self.processor.high_res_size
        masks = inputs.get("region_masks", torch.zeros(0, size, size, dtype=torch.bool, device=self.device))
        return masks.split(self._region_counts(inputs["input_ids"]).tolist())


def _check_options(task: str, given: set[str]) -> None:
    """Options that a task has no use for are named rather than ignored."""
    taken = {"mask_threshold", *OPTIONS_OF_SOURCE[get_task(task).phrases_from]}
    if foreign := sorted(given - taken):
        raise ValueError(f"`{foreign[0]}`: task {task!r} does not take this argument, only {sorted(taken)}")


def _features_of(image_features: ImageFeatures, samples: Sequence[Sample], inputs: dict[str, torch.Tensor]) -> Any:
    """The features that a caller gave, if they can be those of the image that the samples show."""
    if not isinstance(image_features, ImageFeatures):
        raise ValueError(f"`image_features`: expected the result of encode_image, got {type(image_features).__name__}")
    sizes = {sample.image.size for sample in samples if sample.image is not None}
    if len(inputs.get("pixel_values", ())) != 1 or sizes != {image_features.size}:
        raise ValueError(
            f"`image_features` are those of one image of size {image_features.size}, but the call shows "
            f"{len(inputs.get('pixel_values', ()))} of sizes {sorted(sizes)}; leave them out for several images, tiles and "
            "prompt_image"
        )
    return image_features.features


def _finish_one(outputs: list[SampleOutput], options: ResultOptions, tokenizer: Any) -> Any:
    (output,) = outputs
    return to_result(output, options, tokenizer)


def _finish_each(outputs: list[SampleOutput], options: ResultOptions, tokenizer: Any) -> list[Any]:
    return [to_result(output, options, tokenizer) for output in outputs]


def _finish_regions(outputs: list[SampleOutput], options: ResultOptions, tokenizer: Any) -> list[dict[str, Any]]:
    return [
        {**segment, "label": f"region {index}"}
        for index, output in enumerate(outputs)
        for segment in to_result(output, options, tokenizer)
    ]


def _finish_categories(
    outputs: list[SampleOutput],
    options: ResultOptions,
    tokenizer: Any,
    sample: Sample,
    boxes: Sequence[tuple[int, int, int, int]],
) -> list[dict[str, Any]]:
    """Passes of a crop are merged first, then the crops."""
    per_crop = len(outputs) // len(boxes)
    crops = [merge_passes(outputs[i : i + per_crop], sample) for i in range(0, len(outputs), per_crop)]
    found = [category_segments(crop, options) for crop in crops]
    if len(boxes) == 1:
        return name_categories(found[0], sample)
    size = (sample.image.height, sample.image.width)
    # Instances may overlap; panoptic and semantic segments share no pixel.
    exclusive = options.subtask != "instance"
    return name_categories(merge_tiles(found, boxes, size, stuff_ids(sample), exclusive=exclusive), sample)


__all__ = ["AnySegmentationPipeline"]
