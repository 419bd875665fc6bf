"""
The model's outputs, sample by sample, and what a user gets for each task.

A result is a list of segments, `{"label", "score", "mask" (PIL "L"), "box"}`, or `{"text", "segments"}` for the tasks
that answer in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.utils import logging

from .post_processing_xsam import (
    Geometry,
    Segment,
    grounded_conversation,
    instance,
    interactive,
    panoptic,
    referring,
    semantic,
    semantic_segments,
    to_pipeline_segment,
)
from .prompts_xsam import (
    PHRASE_END_TOKEN,
    PHRASE_START_TOKEN,
    SEG_TOKEN,
    count_segments,
    get_task,
    list_labels,
)
from .samples_xsam import Sample

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ResultOptions:
    """
    Args:
        subtask: panoptic, instance or semantic, for generic and open-vocabulary.
        threshold: least score of a segment in panoptic, instance and visual-grounded, and of a certain one in
            interactive.
        mask_threshold: least probability of a pixel.
        overlap_mask_area_threshold: in panoptic, least share of its pixels that a segment has to win.
        score_threshold: in referring and reasoning, the score below which what is described is absent (no segment).
            None: there always is a segment.
        multi_target: in referring and reasoning, the union of all queries above the threshold.
    """

    subtask: str = "panoptic"
    threshold: float = 0.5
    mask_threshold: float = 0.5
    overlap_mask_area_threshold: float = 0.8
    score_threshold: float | None = None
    multi_target: bool = False

    def __post_init__(self) -> None:
        for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold", "score_threshold"):
            value = getattr(self, name)
            if value is None and name == "score_threshold":
                continue
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"`{name}`: expected a number from 0 to 1, got {value!r}")
        if self.subtask not in SUBTASKS:
            raise ValueError(f"`subtask`: unknown subtask {self.subtask!r}; the subtasks are {', '.join(SUBTASKS)}")


@dataclass(frozen=True)
class SegOutput:
    """
    Logits of one `<SEG>`.

    Args:
        class_logits: (Q, K), without padding classes, the background last.
        mask_logits: (Q, h, w).
        phrase_spans: [start, end) token positions of its phrases in the sample's sequence.
    """

    class_logits: torch.Tensor
    mask_logits: torch.Tensor
    phrase_spans: list[tuple[int, int]]


@dataclass(frozen=True)
class SampleOutput:
    """
    What the model said about one sample.

    Args:
        sample: what was asked.
        segs: one entry per `<SEG>`, in order.
        token_ids: prompt and answer.
        prompt_length: where the answer starts in `token_ids`.
        empty_reason: why there are fewer segments than `<SEG>` tokens, "" if there are not.
        region_masks: bool (R, S, S), the visual prompts as the network saw them.
        geometry: of the image; None without one.
    """

    sample: Sample
    segs: list[SegOutput]
    token_ids: list[int]
    prompt_length: int
    empty_reason: str
    region_masks: torch.Tensor
    geometry: Geometry | None


def split_outputs(
    outputs: Any, samples: Sequence[Sample], region_masks: Sequence[torch.Tensor], input_size: int
) -> list[SampleOutput]:
    """
    Args:
        outputs: of `XSAMForSegmentation.segment` for `samples`.
        samples: what was asked, with loaded images.
        region_masks: of each sample, bool (R, S, S).
        input_size: S.
    """
    seg_rows: list[list[int]] = [[] for _ in samples]
    for row, sample in enumerate(outputs.seg_batch_index.tolist()):
        seg_rows[sample].append(row)
    for index, sample in enumerate(samples):
        # A prompt that was not answered is segmented as a whole, the finished turns before it included.
        if outputs.prompt_lengths[index] == outputs.sequence_lengths[index]:
            seg_rows[index] = seg_rows[index][count_segments(sample.conversation) :]
    found = [
        SampleOutput(
            sample=sample,
            segs=[seg_output(outputs, row) for row in seg_rows[index]],
            token_ids=outputs.sequences[index, : outputs.sequence_lengths[index]].tolist(),
            prompt_length=int(outputs.prompt_lengths[index]),
            empty_reason=outputs.empty_reasons[index],
            region_masks=region_masks[index],
            geometry=None if sample.image is None else Geometry(input_size, (sample.image.height, sample.image.width)),
        )
        for index, sample in enumerate(samples)
    ]
    return [_without_foreign_phrases(output) for output in found]


def _without_foreign_phrases(output: SampleOutput) -> SampleOutput:
    """
    The output without `<SEG>`s of phrases that a generated answer names itself, where the question lists the categories or
    regions: the answer's phrases are none of these.
    """
    if get_task(output.sample.task).phrases_from not in ("labels", "regions"):
        return output
    asked = [seg for seg in output.segs if all(end <= output.prompt_length for _, end in seg.phrase_spans)]
    if len(asked) == len(output.segs):
        return output
    reason = " ".join(
        [*([output.empty_reason] if output.empty_reason else []), "the answer names phrases of its own."]
    )
    return replace(output, segs=asked, empty_reason=reason)


def seg_output(outputs: Any, row: int) -> SegOutput:
    """One row of the model's outputs, without its padding classes."""
    valid = outputs.class_mask[row]
    return SegOutput(
        class_logits=outputs.class_queries_logits[row][:, valid],
        mask_logits=outputs.masks_queries_logits[row],
        phrase_spans=[tuple(span) for span in outputs.phrase_spans[row].tolist()],
    )


def to_result(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> Any:
    """The result of one sample, in the form of its task."""
    return RESULTS[output.sample.task](output, options, tokenizer)


def category_segments(output: SampleOutput, options: ResultOptions) -> list[Segment]:
    """Segments of generic and open-vocabulary; `label_id` counts `list_labels` of the sample."""
    find = SUBTASKS[options.subtask]
    return [
        segment for seg in output.segs for segment in find(seg, output.geometry, stuff_ids(output.sample), options)
    ]


def name_categories(segments: Sequence[Segment], sample: Sample) -> list[dict[str, Any]]:
    labels = list_labels(sample.labels)
    return [to_pipeline_segment(segment, labels[segment.label_id]) for segment in segments]


def _category_result(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> list[dict[str, Any]]:
    return name_categories(category_segments(output, options), output.sample)


def _panoptic(seg: SegOutput, geometry: Geometry, stuff: range, options: ResultOptions) -> list[Segment]:
    return panoptic(
        seg.class_logits,
        seg.mask_logits,
        geometry,
        stuff,
        threshold=options.threshold,
        mask_threshold=options.mask_threshold,
        overlap_mask_area_threshold=options.overlap_mask_area_threshold,
    )


def _instance(seg: SegOutput, geometry: Geometry, stuff: range, options: ResultOptions) -> list[Segment]:
    found = instance(seg.class_logits, seg.mask_logits, geometry, options.threshold, options.mask_threshold)
    return [segment for segment in found if segment.label_id not in stuff]


def _semantic(seg: SegOutput, geometry: Geometry, stuff: range, options: ResultOptions) -> list[Segment]:
    return semantic_segments(semantic(seg.class_logits, seg.mask_logits, geometry))


def stuff_ids(sample: Sample) -> range:
    """Stuff comes after the things among the classes."""
    labels = sample.labels
    if not isinstance(labels, Mapping):
        return range(0)
    return range(len(labels.get("thing", ())), len(list_labels(labels)))


def described_segments(output: SampleOutput, options: ResultOptions) -> list[Segment]:
    """Segments of referring and reasoning, at most one for each `<SEG>`; `label_id` is 0."""
    found = [
        referring(
            _any_phrase(seg.class_logits),
            seg.mask_logits,
            output.geometry,
            options.score_threshold,
            options.multi_target,
            options.mask_threshold,
        )
        for seg in output.segs
    ]
    return [segment for segment in found if segment is not None]


def _described_result(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> list[dict[str, Any]]:
    if not output.segs:
        # Not the same as an absent target, though both give no segment.
        logger.warning("No mask for %r: %s", output.sample.text, output.empty_reason)
    return [to_pipeline_segment(segment, output.sample.text) for segment in described_segments(output, options)]


def _any_phrase(class_logits: torch.Tensor) -> torch.Tensor:
    """A generated answer may name several phrases for one question: any of them counts. (Q, K) -> (Q, 2), one as is."""
    return torch.stack([class_logits[:, :-1].logsumexp(-1), class_logits[:, -1]], dim=-1)


def interactive_segments(output: SampleOutput, options: ResultOptions) -> list[Segment]:
    """Segments of interactive, at most one for each `<SEG>`; `label_id` is 0."""
    found = [
        interactive(
            seg.class_logits, seg.mask_logits, region, output.geometry, options.threshold, options.mask_threshold
        )
        # An answer that was generated may lack a <SEG>.
        for seg, region in zip(output.segs, output.region_masks, strict=False)
    ]
    return [segment for segment in found if segment is not None]


def _interactive_result(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> list[dict[str, Any]]:
    return [to_pipeline_segment(segment, "region 0") for segment in interactive_segments(output, options)]


def visual_grounded_segments(output: SampleOutput, options: ResultOptions) -> list[Segment]:
    """Segments of visual-grounded by falling score; `label_id` counts the regions."""
    return [
        segment
        for seg in output.segs
        for segment in instance(
            seg.class_logits, seg.mask_logits, output.geometry, options.threshold, options.mask_threshold
        )
    ]


def _visual_grounded_result(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> list[dict[str, Any]]:
    return [
        to_pipeline_segment(segment, f"region {segment.label_id}")
        for segment in visual_grounded_segments(output, options)
    ]


def _spoken_result(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> dict[str, Any]:
    """Text of the answer without its markers, and a segment with a character span for each phrase."""
    text, found = caption_segments(
        output.segs, output.token_ids, output.prompt_length, output.geometry, options.mask_threshold, tokenizer
    )
    segments = [
        {**to_pipeline_segment(segment, "" if span is None else text[slice(*span)]), "span": span}
        for segment, span in found
    ]
    return {"text": text, "segments": segments}


def caption_segments(
    segs: Sequence[SegOutput],
    token_ids: Sequence[int],
    answer_start: int,
    geometry: Geometry | None,
    mask_threshold: float,
    tokenizer: Any,
) -> tuple[str, list[tuple[Segment, tuple[int, int] | None]]]:
    """
    Returns:
        The answer without special tokens, and a segment for each phrase with the characters that the phrase has in it;
        None for a phrase of the question.
    """
    phrases = [span for seg in segs for span in seg.phrase_spans]
    text, spans = clean_answer(token_ids, answer_start, phrases, tokenizer)
    found = [
        (segment, spans.get(seg.phrase_spans[segment.label_id]))
        for seg in segs
        for segment in grounded_conversation(seg.class_logits, seg.mask_logits, geometry, mask_threshold)
    ]
    return text, found


def clean_answer(
    token_ids: Sequence[int], answer_start: int, phrases: Sequence[tuple[int, int]], tokenizer: Any
) -> tuple[str, dict[tuple[int, int], tuple[int, int]]]:
    """
    Args:
        token_ids: prompt and answer.
        answer_start: where the answer starts.
        phrases: [start, end) token spans, markers included.

    Returns:
        The answer without special tokens, and for each phrase in it the characters it has in that text, white space at
        its ends left out.
    """
    markers = tokenizer.convert_tokens_to_ids([PHRASE_START_TOKEN, PHRASE_END_TOKEN, SEG_TOKEN])
    starting = {start: (start, end) for start, end in phrases if start >= answer_start}
    ending = {end - 1: span for span in starting.values() for end in span[1:]}
    plain: list[int] = []
    text_before: dict[tuple[int, int], int] = {}
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    for position in range(answer_start, len(token_ids)):
        if position in starting:
            text_before[starting[position]] = len(_decode(tokenizer, plain))
        if position in ending:
            start = text_before[ending[position]]
            phrase = _decode(tokenizer, plain)[start:]
            start += len(phrase) - len(phrase.lstrip())
            spans[ending[position]] = (start, start + len(phrase.strip()))
        if token_ids[position] not in markers:
            plain.append(token_ids[position])
    text = _decode(tokenizer, plain)
    shift = len(text) - len(text.lstrip())
    return text.strip(), {span: (start - shift, end - shift) for span, (start, end) in spans.items()}


def _decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


SUBTASKS: dict[str, Callable[..., list[Segment]]] = {
    "panoptic": _panoptic,
    "instance": _instance,
    "semantic": _semantic,
}

RESULTS: dict[str, Callable[[SampleOutput, ResultOptions, Any], Any]] = {
    "generic": _category_result,
    "open-vocabulary": _category_result,
    "referring": _described_result,
    "reasoning": _described_result,
    "grounded-conversation": _spoken_result,
    "interactive": _interactive_result,
    "visual-grounded": _visual_grounded_result,
    "chat": _spoken_result,
}

__all__ = [
    "ResultOptions",
    "SampleOutput",
    "SegOutput",
    "caption_segments",
    "category_segments",
    "clean_answer",
    "described_segments",
    "interactive_segments",
    "name_categories",
    "seg_output",
    "split_outputs",
    "stuff_ids",
    "to_result",
    "visual_grounded_segments",
]
