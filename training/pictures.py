"""Pictures of what a model in training predicts, beside what the annotation says."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from PIL import Image
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Trainer, TrainerCallback

from processing_xsam import AnySegmentationPipeline, XSAMProcessor
from processing_xsam.results_xsam import ResultOptions
from processing_xsam.visualization_xsam import contact_sheet, visualize

from .data.samples import AnnotatedSample, Turn, decode_masks
from .dataset import TrainingDataset
from .evaluation.answers import Answer
from .evaluation.predictor import UniversalPredictor, question

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 128
# Characters that stand above a picture without reaching into the next one.
TITLE_LENGTH = 42


class PredictionPictures(TrainerCallback):
    """
    Writes a contact sheet `pictures/step-N.png` into the output folder every `picture_steps` steps.

    Args:
        trainer: whose model is asked. All processes ask it, since a sharded model answers with all of them.
        dataset: its first `picture_samples` samples are shown, evenly spread over the data sets.
    """

    def __init__(self, trainer: Trainer, dataset: TrainingDataset, processor: XSAMProcessor) -> None:
        self.trainer = trainer
        self.dataset = dataset
        self.processor = processor

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.picture_steps:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        was_training = model.training
        model.eval()
        with put_together(model):
            pictures = [
                picture
                for index in spread(self.dataset.lengths, args.picture_samples)
                for picture in self._picture(model, self.dataset[index].sample)
            ]
        model.train(was_training)
        if not pictures:
            logger.warning("no pictures of predictions: the samples to be shown have no image")
        elif state.is_world_process_zero:
            folder = Path(args.output_dir) / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            contact_sheet(pictures, columns=2).save(folder / f"step-{state.global_step}.png")

    def _picture(self, model: PreTrainedModel, sample: AnnotatedSample) -> list[tuple[str, Image.Image]]:
        """Annotation and prediction of a sample's first question; nothing for a sample without an image."""
        if sample.image is None:
            return []
        turn = sample.turns[0]
        segments, text = annotated_segments(turn, sample.image)
        found, answer = predict(model, self.processor, sample.image, turn)
        title = shorten(f"{turn.task} {turn.text or ''}", TITLE_LENGTH, placeholder=" ...")
        return [
            (f"{title}: annotation", visualize(sample.image, segments, text)),
            (f"{title}: step {self.trainer.state.global_step}", visualize(sample.image, found, answer)),
        ]


@contextmanager
def put_together(model: PreTrainedModel) -> Iterator[None]:
    """For calls other than `forward`: the outermost unit of a model that FSDP2 has sharded has its whole weights."""
    if not isinstance(model, FSDPModule):
        yield
        return
    # The Trainer's wrapper of `generate` would take the unit apart again.
    registered = vars(model).pop("generate", None)
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
        if registered is not None:
            model.generate = registered


def spread(lengths: Sequence[int], count: int) -> list[int]:
    """Indices of about `count` samples, as many of each data set as of the others."""
    share = max(1, count // len(lengths))
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    return [
        start + place for start, length in zip(starts, lengths, strict=True) for place in range(min(share, length))
    ]


def annotated_segments(turn: Turn, image: Image.Image) -> tuple[list[dict[str, Any]], str | None]:
    """The annotation of a turn in the form of the pipeline's results."""
    masks = decode_masks(turn.masks, (image.height, image.width))
    return [
        {
            "label": phrase_name(turn, phrase),
            "score": None,
            "mask": Image.fromarray(mask).convert("L"),
            **({"span": turn.spans[phrase]} if turn.spans else {}),
        }
        for mask, phrase in zip(masks, turn.mask_phrases, strict=True)
    ], turn.answer


def predict(
    model: PreTrainedModel, processor: XSAMProcessor, image: Image.Image, turn: Turn
) -> tuple[list[dict[str, Any]], str | None]:
    """What a model says to a turn's question: segments in the form of the pipeline's results, and its text."""
    if not hasattr(model, "segment"):
        sample = AnnotatedSample(image, (turn,), "")
        (answer,) = UniversalPredictor(model, processor)(sample, 0, ResultOptions())
        return answered_segments(turn, answer, image), None
    result = AnySegmentationPipeline(model=model, processor=processor)(
        image, task=turn.task, **question(turn, (image.height, image.width)), max_new_tokens=MAX_NEW_TOKENS
    )
    if turn.task == "interactive":
        (result,) = result if result and isinstance(result[0], list) else [result]
    return (result["segments"], result["text"]) if isinstance(result, dict) else (result, None)


def answered_segments(turn: Turn, answer: Answer, image: Image.Image) -> list[dict[str, Any]]:
    """An answer to a turn in the form of the pipeline's results."""
    masks = decode_masks([each.mask for each in answer.segments], (image.height, image.width))
    return [
        {
            "label": answer.text[slice(*answer.spans[each.phrase])]
            if answer.spans
            else phrase_name(turn, each.phrase),
            "score": each.score,
            "mask": Image.fromarray(mask).convert("L"),
            **({"span": answer.spans[each.phrase]} if answer.spans else {}),
        }
        for each, mask in zip(answer.segments, masks, strict=True)
    ]


def phrase_name(turn: Turn, phrase: int) -> str:
    """What a phrase of a turn is called in pictures."""
    if turn.labels:
        return turn.labels[phrase]
    if turn.spans:
        return turn.answer[slice(*turn.spans[phrase])]
    return turn.text or f"region {phrase}"
