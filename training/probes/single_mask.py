"""Does a phrase that fits several objects get all of them, one of them, or none?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel

from processing_xsam import AnySegmentationPipeline, XSAMProcessor
from processing_xsam.post_processing_xsam import to_pipeline_segment
from processing_xsam.results_xsam import ResultOptions, SampleOutput, described_segments
from processing_xsam.samples_xsam import Sample
from processing_xsam.visualization_xsam import visualize

from ..data.samples import RLE, AnnotatedSample, decode_masks
from ..evaluation.predictor import question
from .checks import check_counts, check_has_language_model
from .matching import (
    FOUND,
    category_turn,
    covered_shares,
    drawable,
    match_masks,
    picture_title,
    segment_mask,
    segment_masks,
    share,
)
from .report import ProbeReport

# Each with its annotation and three answers.
PICTURED_CASES = 2


def probe_single_mask(
    model: PreTrainedModel,
    processor: XSAMProcessor,
    samples: Iterable[AnnotatedSample],
    *,
    limit: int = 50,
    threshold: float = 0.5,
) -> ProbeReport:
    """
    Categories with at least two annotated instances in an image are asked for in three ways: as instances with the whole
    list of categories; by the category's name as a referring expression, whose answer is the best query (the default); and
    the same with the union of all certain queries (`multi_target`).

    Figures, over all such pairs of image and category ("cases"), from 0 to 1:

    - `instances found`: share of the annotated instances that are matched one-to-one at an IoU of at least 0.5.
    - `best query found`, `all queries found`: share of the annotated instances that have at least half of their pixels in
      the answer.
    - `best query precision`, `all queries precision`: share of the answer's pixels that lie on instances, the mean over
      cases with an answer; areas that are ignored, such as crowds of the category, do not count. NaN without any answer.
    - `best query exactly one`, `all queries exactly one`: share of the cases whose answer has at least half of the pixels
      of just one instance. 1 means: a phrase gets one object, however many it fits.

    A good checkpoint finds most instances with the list. Where `best query found` is close to 1 / (instances per case) and
    `exactly one` close to 1, a single query never unites objects; `all queries found` says whether `multi_target` helps.

    What it cannot show: expressions of other forms. "The dogs" or "both dogs" may get what "dog" does not. And the ways
    are not equally hard: matching at an IoU asks for more than covering half an object.

    Args:
        model: `XSAMForSegmentation`, in evaluation mode.
        processor: its processor.
        samples: with lists of categories, some of which are things.
        limit: how many samples are read, from the first.
        threshold: least score of an instance, and of a query for `multi_target`.

    Raises:
        ValueError: if a sample has no list of categories with things, `limit` is below 1, or the model has no language model.
    """
    check_has_language_model(model)
    check_counts(limit=limit)
    segment = AnySegmentationPipeline(model=model, processor=processor)
    cases: list[_Case] = []
    pictures: list[tuple[str, Image.Image]] = []
    num_images = 0
    for sample in islice(samples, limit):
        num_images += 1
        repeated = _repeated_things(sample)
        for objects, answers in zip(repeated, _ask(segment, sample, repeated, threshold), strict=True):
            cases.append(_case(sample.name, objects, answers))
            if len(cases) <= PICTURED_CASES:
                pictures += _pictures(sample.image, objects, answers)
    return ProbeReport(
        name="single-mask",
        meaning="What a phrase gets that fits several objects: as instances, as one expression, and with multi_target.",
        figures={
            "instances found": share(sum(case.matched for case in cases), sum(case.instances for case in cases)),
            **_figures("best query", [(case.instances, case.best) for case in cases]),
            **_figures("all queries", [(case.instances, case.all) for case in cases]),
        },
        settings={
            "limit": limit,
            "images": num_images,
            "cases": len(cases),
            "instances": sum(case.instances for case in cases),
            "cases answered by best query": sum(case.best.precision is not None for case in cases),
            "cases answered by all queries": sum(case.all.precision is not None for case in cases),
            "threshold": threshold,
            "least IoU and share of pixels": FOUND,
        },
        cases=[asdict(case) for case in cases],
        pictures=pictures,
    )


@dataclass(frozen=True)
class _Objects:
    """
    Attributes:
        category: that there are several of.
        rles: of its instances.
        masks: the same, bool (n, H, W), n >= 2.
        ignored: bool (H, W), pixels that say nothing about it.
    """

    category: str
    rles: Sequence[RLE]
    masks: np.ndarray
    ignored: np.ndarray


@dataclass(frozen=True)
class _Answers:
    """Segments, as the pipeline gives them, for one category; of an expression at most one."""

    instances: Sequence[dict[str, Any]]
    best: Sequence[dict[str, Any]]
    all: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Coverage:
    """
    Attributes:
        covered: how many instances have at least half of their pixels in the mask.
        precision: share of the mask's pixels on instances; None for a mask without a pixel that counts.
    """

    covered: int
    precision: float | None


@dataclass(frozen=True)
class _Case:
    """
    Attributes:
        instances: how many are annotated.
        predicted: how many the list gave.
        matched: how many of the annotated are among them.
        best, all: what the expression gave, the best query and all certain ones.
    """

    sample: str
    category: str
    instances: int
    predicted: int
    matched: int
    best: Coverage
    all: Coverage


def _repeated_things(sample: AnnotatedSample) -> list[_Objects]:
    """The thing categories with at least two instances, in the order of the list."""
    turn, size = category_turn(sample, needs_things=True), (sample.image.height, sample.image.width)
    repeated = []
    for phrase, category in enumerate(turn.labels[: turn.num_things]):
        rles = [mask for mask, owner in zip(turn.masks, turn.mask_phrases, strict=True) if owner == phrase]
        if len(rles) > 1:
            ignored = [mask for mask, owner in turn.ignored_areas if owner in (None, phrase)]
            repeated.append(_Objects(category, rles, decode_masks(rles, size), decode_masks(ignored, size).any(0)))
    return repeated


def _ask(
    segment: AnySegmentationPipeline, sample: AnnotatedSample, repeated: Sequence[_Objects], threshold: float
) -> list[_Answers]:
    """The image is encoded once, and the network answers each expression once for both of its ways."""
    if not repeated:
        return []
    turn, image = category_turn(sample, needs_things=True), sample.image
    features = segment.encode_image(image)
    instances = segment(
        image,
        task=turn.task,
        **question(turn, (image.height, image.width)),
        subtask="instance",
        threshold=threshold,
        image_features=features,
    )
    asked = [Sample(task="referring", image=image, text=objects.category) for objects in repeated]
    outputs = segment.run(asked, image_features=features)
    return [
        _Answers(
            instances=[each for each in instances if each["label"] == output.sample.text],
            best=_described(output, ResultOptions()),
            all=_described(output, ResultOptions(multi_target=True, score_threshold=threshold)),
        )
        for output in outputs
    ]


def _described(output: SampleOutput, options: ResultOptions) -> list[dict[str, Any]]:
    return [to_pipeline_segment(found, output.sample.text) for found in described_segments(output, options)]


def _case(name: str, objects: _Objects, answers: _Answers) -> _Case:
    scores = [each["score"] for each in answers.instances]
    return _Case(
        sample=name,
        category=objects.category,
        instances=len(objects.masks),
        predicted=len(answers.instances),
        matched=match_masks(segment_masks(answers.instances), scores, objects.rles).num_found,
        best=_coverage(objects, answers.best),
        all=_coverage(objects, answers.all),
    )


def _coverage(objects: _Objects, found: Sequence[dict[str, Any]]) -> Coverage:
    masks = [segment_mask(each) for each in found]
    mask = np.any([np.zeros_like(objects.ignored), *masks], axis=0)
    is_object = objects.masks.any(0)
    # Where an instance lies in an ignored area, it is the instance that counts.
    counted = mask & (is_object | ~objects.ignored)
    return Coverage(
        covered=int((covered_shares(objects.masks, mask) >= FOUND).sum()),
        precision=float((counted & is_object).sum() / counted.sum()) if counted.any() else None,
    )


def _figures(way: str, cases: Sequence[tuple[int, Coverage]]) -> dict[str, float]:
    """
    Args:
        cases: how many instances each has, and what the answer has of them.
    """
    precisions = [coverage.precision for _, coverage in cases if coverage.precision is not None]
    return {
        f"{way} found": share(sum(each.covered for _, each in cases), sum(instances for instances, _ in cases)),
        f"{way} precision": share(sum(precisions), len(precisions)),
        f"{way} exactly one": share(sum(each.covered == 1 for _, each in cases), len(cases)),
    }


def _pictures(image: Image.Image, objects: _Objects, answers: _Answers) -> list[tuple[str, Image.Image]]:
    annotated = [drawable(mask, objects.category) for mask in objects.masks]
    ways = {"annotation": annotated, "instances": answers.instances, "best query": answers.best}
    ways["all certain queries"] = answers.all
    return [(picture_title(objects.category, way), visualize(image, found)) for way, found in ways.items()]
