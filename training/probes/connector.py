"""
Probe `connector`: what do the finer scales of the convolutional connector carry?

X-SAM's connector (arXiv 2508.04655, section 3.1) makes feature maps of three scales from the dense image tower. Here each map is
reduced to what a single scale can carry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import PreTrainedModel

from processing_xsam import XSAMProcessor
from processing_xsam.prompts_xsam import get_task
from processing_xsam.results_xsam import ResultOptions
from processing_xsam.visualization_xsam import visualize

from ..data.samples import AnnotatedSample, Turn, decode_masks
from ..evaluation.answers import Answer
from ..evaluation.mean_iou import MeanIoU
from ..evaluation.panoptic_quality import PanopticQuality
from ..evaluation.predictor import Predictor, UniversalPredictor, XSAMPredictor
from ..pictures import answered_segments
from .checks import check_counts
from .matching import picture_title, short_name
from .report import ProbeReport

MEANING = (
    "What the checkpoint loses when every map of the connector carries only what one scale can; not what a model trained without"
    " the other scales would reach."
)
# As in the published evaluation.
PANOPTIC = ResultOptions(subtask="panoptic", threshold=0.0)
SEMANTIC = ResultOptions(subtask="semantic")
# Questions that are shown, each in two pictures.
NUM_SHOWN = 4


@dataclass(frozen=True)
class _Answers:
    """The panoptic and the semantic answer to one category list."""

    panoptic: Answer
    semantic: Answer


class _Tally:
    """Figures of a list of answers, of which only the measurements are kept."""

    def __init__(self, turn: Turn) -> None:
        self.panoptic = PanopticQuality(turn.labels, turn.num_things)
        self.semantic = MeanIoU(turn.labels, turn.num_things)
        self._panoptic: list[Any] = []
        self._semantic: list[Any] = []

    def add(self, turn: Turn, answers: _Answers, image_size: tuple[int, int]) -> dict[str, float]:
        """
        Returns:
            The figures of this one image.
        """
        self._panoptic.append(self.panoptic.measure(turn, answers.panoptic, image_size))
        self._semantic.append(self.semantic.measure(turn, answers.semantic, image_size))
        return {
            "PQ": self.panoptic.quality(self._panoptic[-1]),
            "mIoU": self.semantic.quality(self._semantic[-1]),
        }

    def figures(self) -> dict[str, float]:
        return {
            "PQ": self.panoptic.figures(self._panoptic)["PQ"],
            "mIoU": self.semantic.figures(self._semantic)["mIoU"],
        }


@torch.no_grad()
def probe_connector(
    model: PreTrainedModel,
    processor: XSAMProcessor,
    samples: Iterable[AnnotatedSample],
    limit: int = 50,
    scale: int = 2,
) -> ProbeReport:
    """
    Evaluate a checkpoint with and without the finer scales of its connector.

    Each of the three maps is pooled to the grid of one of them by area and brought back bilinearly; a map that is not finer than
    that grid stays as it is. This shows **what a trained checkpoint loses** without the finer scales. It does not show what a model
    that was trained without them would reach: that one would have learnt to do without, and may lose far less.

    The figures:

    - `PQ`, `mIoU`: panoptic quality (least score 0, as published) and semantic mean IoU, 0 to 1, of the checkpoint as it is, on these
      samples.
    - `PQ, single scale`, `mIoU, single scale`: the same with the reduced maps.
    - `PQ drop`, `mIoU drop`: the differences, -1 to 1; above 0 if the checkpoint uses the finer scales. 0 for one that finds nothing
      anyway, such as random weights.
    - `changed pixels`: share of all pixels, over all images, whose semantic class the reduction changes, 0 to 1. It is above 0
      even where the figures before are too low to drop.

    Args:
        model: `XSAMForSegmentation` or `XSAMForUniversalSegmentation` (stage 1), in evaluation mode.
        processor: its processor.
        samples: with category lists, all with the same; what else they ask is not used.
        limit: category lists asked, from the first. Each is asked four times.
        scale: the map whose grid counts: 0 is the finest (nothing changes), 2 the coarsest.

    Raises:
        ValueError: if `limit` is below 1, there is no such scale, no sample has categories, or they differ.
    """
    check_counts(limit=limit)
    num_scales = len(model.connector.branches)
    if not 0 <= scale < num_scales:
        raise ValueError(f"`scale` is {scale}; the scales are 0, the finest, to {num_scales - 1}, the coarsest")
    predictor = _predictor(model)(model, processor)
    tallies: list[_Tally] = []
    cases: list[dict[str, Any]] = []
    pictures: list[tuple[str, Image.Image]] = []
    for sample in islice(_questions(samples), limit):
        (turn,) = sample.turns
        image_size = (sample.image.height, sample.image.width)
        whole = _ask(predictor, sample)
        with _single_scale(model, scale):
            single = _ask(predictor, sample)
        tallies = tallies or [_Tally(turn), _Tally(turn)]
        of_image = [
            tally.add(turn, answers, image_size) for tally, answers in zip(tallies, (whole, single), strict=True)
        ]
        changed = int((_label_map(whole, image_size) != _label_map(single, image_size)).sum())
        cases.append(
            {
                "sample": sample.name,
                "as it is": of_image[0],
                "single scale": of_image[1],
                "changed": changed,
                "pixels": image_size[0] * image_size[1],
            }
        )
        if len(cases) <= NUM_SHOWN:
            pictures += _drawn(sample, whole, single)
    if not cases:
        raise ValueError("`samples` have no category list: give those of a panoptic, semantic or instance benchmark")
    figures = _figures(tallies, cases)
    return ProbeReport("connector", MEANING, figures, {"questions": len(cases), "scale": scale}, cases, pictures)


def _predictor(model: PreTrainedModel) -> type[XSAMPredictor] | type[UniversalPredictor]:
    """A model of stage 1 has no language model that could be asked."""
    return XSAMPredictor if hasattr(model, "segment") else UniversalPredictor


def _questions(samples: Iterable[AnnotatedSample]) -> Iterator[AnnotatedSample]:
    """The category lists of samples, as samples of one turn each."""
    for sample in samples:
        for turn in sample.turns:
            if get_task(turn.task).phrases_from == "labels":
                yield replace(sample, turns=(turn,))


def _ask(predictor: Predictor, sample: AnnotatedSample) -> _Answers:
    # With one wording for all, the sample's number in its data set does not matter.
    (panoptic,), (semantic,) = (predictor(sample, 0, options) for options in (PANOPTIC, SEMANTIC))
    return _Answers(panoptic, semantic)


@contextmanager
def _single_scale(model: PreTrainedModel, scale: int) -> Iterator[None]:
    """The connector's maps carry no more than the grid of one of them can."""

    def reduced(module: torch.nn.Module, arguments: Any, maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(_reduced(features, maps[scale].shape[-2:]) for features in maps)

    hook = model.connector.register_forward_hook(reduced)
    try:
        yield
    finally:
        hook.remove()


def _reduced(features: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """A map (B, C, h, w) through a grid, if that is coarser: (B, C, h, w)."""
    size = features.shape[-2:]
    if size[0] <= grid[0] and size[1] <= grid[1]:
        return features
    pooled = interpolate(features, size=tuple(grid), mode="area")
    return interpolate(pooled, size=tuple(size), mode="bilinear", align_corners=False)


def _label_map(answers: _Answers, image_size: tuple[int, int]) -> np.ndarray:
    """The semantic answer as int64 (H, W), -1 where it has no class."""
    labels = np.full(image_size, -1)
    segments = answers.semantic.segments
    for segment, mask in zip(segments, decode_masks([each.mask for each in segments], image_size), strict=True):
        labels[mask] = segment.phrase
    return labels


def _figures(tallies: Sequence[_Tally], cases: Sequence[dict[str, Any]]) -> dict[str, float]:
    whole, single = (tally.figures() for tally in tallies)
    return {
        **whole,
        **{f"{name}, single scale": value for name, value in single.items()},
        **{f"{name} drop": whole[name] - single[name] for name in whole},
        "changed pixels": sum(case["changed"] for case in cases) / sum(case["pixels"] for case in cases),
    }


def _drawn(sample: AnnotatedSample, whole: _Answers, single: _Answers) -> list[tuple[str, Image.Image]]:
    name = short_name(sample)
    return [
        (
            picture_title(name, title),
            visualize(sample.image, answered_segments(sample.turns[0], answers.panoptic, sample.image)),
        )
        for title, answers in (("all scales", whole), ("single scale", single))
    ]
