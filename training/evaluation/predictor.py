"""
Asks a model the questions of annotated samples.

Two protocols: in `xsam` the fixed answer is given up to its `<SEG>`, as in the published evaluation (grounded conversation
and chat have none and are generated); in `generate` nothing is given, and an answer without `<SEG>` has no mask. Nothing of
an annotation reaches the model but the question: labels, text or visual prompt.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from PIL import Image
from transformers import PreTrainedModel

from processing_xsam import AnySegmentationPipeline, XSAMProcessor
from processing_xsam.image_processing_xsam import resize_longest_side
from processing_xsam.passes_xsam import merge_passes
from processing_xsam.post_processing_xsam import Geometry, Segment, to_coco_rle
from processing_xsam.prompts_xsam import get_task
from processing_xsam.results_xsam import (
    ResultOptions,
    SampleOutput,
    SegOutput,
    caption_segments,
    category_segments,
    described_segments,
    interactive_segments,
    visual_grounded_segments,
)
from processing_xsam.samples_xsam import Sample

from ..data.samples import AnnotatedSample, Turn, decode_masks
from .answers import Answer, AnsweredSegment

Protocol = Literal["xsam", "generate"]
PROTOCOLS: tuple[Protocol, ...] = ("xsam", "generate")
# Figures do not depend on chance, whatever a checkpoint's own generation settings are.
GREEDY = {"do_sample": False, "num_beams": 1}
# Asks all turns of a sample; the number is the sample's in its data set.
Predictor = Callable[[AnnotatedSample, int, ResultOptions], list[Answer]]


class XSAMPredictor:
    """
    Args:
        model: `XSAMForSegmentation`, in evaluation mode.
        processor: its processor.
        protocol: see the top of this file.
        template_seed: draws the wording of each sample's questions and answers, always the same for a seed and a sample;
            None for the first wording of each task.
        max_new_tokens: longest generated answer.
        questions_at_once: questions about one image that the network sees at a time; the image is encoded once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: XSAMProcessor,
        protocol: Protocol = "xsam",
        template_seed: int | None = None,
        max_new_tokens: int = 512,
        questions_at_once: int = 8,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {protocol!r}; possible are {', '.join(PROTOCOLS)}")
        self.processor = processor
        self.protocol = protocol
        self.template_seed = template_seed
        self.max_new_tokens = max_new_tokens
        self.questions_at_once = questions_at_once
        self._pipeline = AnySegmentationPipeline(model=model, processor=processor)

    def __call__(self, sample: AnnotatedSample, index: int, options: ResultOptions) -> list[Answer]:
        """One answer for each turn."""
        self._pipeline.processor = self._worded(index)
        answers: list[Answer] = []
        # The network sees prompts of one kind together, but for categories, which may take several passes each, and chats,
        # whose questions follow each other.
        for task, turns in groupby(sample.turns, key=lambda turn: turn.task):
            if task == "chat":
                answers += self._converse(list(turns), sample.image, options)
                continue
            asked = [self._sample(turn, sample.image) for turn in turns]
            if get_task(task).phrases_from == "labels":
                answers += [self._categories(each, options) for each in asked]
            else:
                answers += [self._answer(output, options) for output in self._run(asked)]
        return answers

    def _converse(self, turns: Sequence[Turn], image: Image.Image | None, options: ResultOptions) -> list[Answer]:
        """Earlier questions of a chat stand before a later one: in `xsam` with the annotated answers, else with its own."""
        answers: list[Answer] = []
        history: list[dict[str, str]] = []
        for turn in turns:
            asked = self._sample(turn, image, history)
            answers += [self._answer(output, options) for output in self._run([asked])]
            said = answers[-1].text if self.protocol == "generate" else turn.answer
            history += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": said or ""}]
        return answers

    def _worded(self, index: int) -> XSAMProcessor:
        """The processor, with one wording for each task."""
        if self.template_seed is None:
            return self.processor
        draw = random.Random(f"{self.template_seed} {index}")
        worded = copy.copy(self.processor)
        worded.prompt_templates = {
            task: {kind: [draw.choice(texts)] if texts else [] for kind, texts in sentences.items()}
            for task, sentences in self.processor.prompt_templates.items()
        }
        return worded

    def _sample(self, turn: Turn, image: Image.Image | None, history: Sequence[dict[str, str]] = ()) -> Sample:
        prefill = self.protocol == "xsam" and get_task(turn.task).has_fixed_answer
        # Without an image there is no visual prompt whose size would count.
        asked = question(turn, (0, 0) if image is None else (image.height, image.width))
        return Sample(task=turn.task, image=image, conversation=list(history) or None, prefill_answer=prefill, **asked)

    def _run(self, samples: Sequence[Sample]) -> Iterator[SampleOutput]:
        return self._pipeline.run(
            samples,
            max_new_tokens=self.max_new_tokens,
            prompts_at_once=self.questions_at_once,
            generate_kwargs=GREEDY,
        )

    def _categories(self, sample: Sample, options: ResultOptions) -> Answer:
        outputs = list(self._run(self._pipeline.passes(sample)))
        reasons = " ".join(dict.fromkeys(output.empty_reason for output in outputs if output.empty_reason))
        return to_answer(category_segments(merge_passes(outputs, sample), options), failure=reasons)

    def _answer(self, output: SampleOutput, options: ResultOptions) -> Answer:
        return ANSWERS[output.sample.task](output, options, self.processor.tokenizer)


class UniversalPredictor:
    """
    Asks a model of stage 1, which knows its own list of categories only. It answers in all of them; what a question does
    not ask for is left out afterwards.

    Args:
        model: `XSAMForUniversalSegmentation`, in evaluation mode.
        processor: its processor.
    """

    def __init__(self, model: PreTrainedModel, processor: XSAMProcessor) -> None:
        self.model, self.processor = model, processor
        self.labels = [model.config.id2label[place] for place in range(model.config.num_labels)]

    @torch.no_grad()
    def __call__(self, sample: AnnotatedSample, index: int, options: ResultOptions) -> list[Answer]:
        """
        Raises:
            ValueError: if a turn asks for a category that the model was not trained on, or for something else.
        """
        orders = [self._order(turn, sample.name) for turn in sample.turns]
        size = self.processor.high_res_size
        inputs = self.processor.high_res_image_processor(
            [resize_longest_side(sample.image, size)], do_resize=False, return_tensors="pt"
        ).to(self.model.device)
        outputs = self.model(inputs["pixel_values"])
        classes, masks = outputs.class_queries_logits[0], outputs.masks_queries_logits[0]
        return [
            self._answer(turn, order, sample.image, SegOutput(classes[:, [*order, -1]], masks, []), options)
            for turn, order in zip(sample.turns, orders, strict=True)
        ]

    def _order(self, turn: Turn, name: str) -> list[int]:
        """The model's categories: those of the turn in its order, then the others."""
        unknown = [label for label in turn.labels if label not in self.labels]
        if unknown or not turn.labels or turn.regions:
            raise ValueError(
                f"{name}: a model of stage 1 knows the categories {', '.join(self.labels)}; it cannot be asked for"
                f" {', '.join(unknown) or turn.task}: leave the benchmark out, or use a model of stage 3"
            )
        others = [place for place, label in enumerate(self.labels) if label not in turn.labels]
        return [*(self.labels.index(label) for label in turn.labels), *others]

    def _answer(
        self, turn: Turn, order: Sequence[int], image: Image.Image, seg: SegOutput, options: ResultOptions
    ) -> Answer:
        names = [self.labels[place] for place in order]
        labels = {"thing": names[: turn.num_things], "stuff": names[turn.num_things :]}
        output = SampleOutput(
            sample=Sample(task=turn.task, image=image, labels=labels),
            segs=[seg],
            token_ids=[],
            prompt_length=0,
            empty_reason="",
            region_masks=torch.zeros(0, 1, 1, dtype=torch.bool),
            geometry=Geometry(self.processor.high_res_size, (image.height, image.width)),
        )
        segments = category_segments(output, options)
        return to_answer([segment for segment in segments if segment.label_id < len(turn.labels)])


def question(turn: Turn, image_size: tuple[int, int]) -> dict[str, Any]:
    """
    A turn's question as arguments of the pipeline and of the processor; of several visual prompts for a phrase, the
    first.
    """
    text = {} if turn.text is None else {"text": turn.text}
    if turn.regions:
        return {**text, "masks": decode_masks([regions[0].mask for regions in turn.regions], image_size)}
    if turn.labels:
        return {
            "labels": {"thing": list(turn.labels[: turn.num_things]), "stuff": list(turn.labels[turn.num_things :])}
        }
    return text


def to_answer(segments: Sequence[Segment], failure: str = "") -> Answer:
    """Segments, whose labels count the phrases of the question."""
    return Answer(tuple(_encoded(segment, segment.label_id) for segment in segments), failure=failure)


def _encoded(segment: Segment, phrase: int) -> AnsweredSegment:
    rle = to_coco_rle(segment.mask)
    return AnsweredSegment(phrase, {"size": rle["size"], "counts": rle["counts"].encode("ascii")}, segment.score)


def _described(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> Answer:
    # A generated answer may have several <SEG>s for one question.
    segments = described_segments(output, options)
    return to_answer(segments, output.empty_reason or _why_empty(output, segments, options))


def _interactive(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> Answer:
    segments = interactive_segments(output, options)
    return to_answer(segments, output.empty_reason or _why_empty(output, segments, options))


def _why_empty(output: SampleOutput, segments: Sequence[Segment], options: ResultOptions) -> str:
    """Why there is no segment although something always should be; an expression that may be absent needs no reason."""
    if segments or not output.segs or options.score_threshold is not None or options.multi_target:
        return ""
    return "the best mask has no pixel."


def _visual_grounded(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> Answer:
    return to_answer(visual_grounded_segments(output, options), output.empty_reason)


def _spoken(output: SampleOutput, options: ResultOptions, tokenizer: Any) -> Answer:
    text, found = caption_segments(
        output.segs, output.token_ids, output.prompt_length, output.geometry, options.mask_threshold, tokenizer
    )
    placed = [(segment, span) for segment, span in found if span is not None]
    return Answer(
        segments=tuple(_encoded(segment, phrase) for phrase, (segment, _) in enumerate(placed)),
        text=text,
        spans=tuple(span for _, span in placed),
        failure="" if output.sample.task == "chat" else output.empty_reason,
    )


ANSWERS: dict[str, Callable[[SampleOutput, ResultOptions, Any], Answer]] = {
    "referring": _described,
    "reasoning": _described,
    "grounded-conversation": _spoken,
    "interactive": _interactive,
    "visual-grounded": _visual_grounded,
    "chat": _spoken,
}
