"""Does a checkpoint segment things that are not there?"""

from __future__ import annotations

import math
import random
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

from ..data.samples import AnnotatedSample
from ..evaluation.predictor import GREEDY
from .checks import check_counts, check_has_language_model
from .matching import category_turn, picture_title, share
from .report import ProbeReport

MAX_PICTURES = 8
# By name, whether the category is in the image.
GROUPS = {"absent": False, "present": True}


def probe_hallucination(
    model: PreTrainedModel,
    processor: XSAMProcessor,
    samples: Iterable[AnnotatedSample],
    *,
    limit: int = 50,
    questions_per_image: int = 3,
    threshold: float = 0.5,
    with_stuff: bool = False,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> ProbeReport:
    """
    Categories that are not in an image are asked for as referring expressions, and as a control as many that are. Nothing of
    the answer is given: the checkpoint can say in words that nothing is there, or give a low score.

    Figures, from 0 to 1:

    - `absent answered`, `present answered`: share of the questions whose answer has a <SEG>. A checkpoint that was never
      trained on absent things answers all, which is no fault of its masks.
    - `absent segmented`, `present segmented`: share of the questions answered with a mask whose score reaches the
      threshold. Good is 0 for absent and 1 for present things.
    - `AUC`: area under the ROC curve of the score, present against absent: the chance that a present thing has the higher
      one of a random pair, a tie counting half. 1: some threshold tells them apart; 0.5: the score cannot tell. An answer
      without a mask has score 0; NaN if all are.

    Figures without a question are NaN. Absent is what the annotation says: a category of the list without a mask in the
    image, not even as a crowd, and not among `Turn.unasked`. Of an image as many absent as present categories are asked,
    the same for the same seed and order of samples; images that lack either are counted in `settings`.

    What it cannot show: things that were overlooked in annotation count as absent, and so do names that mean the same as
    those of a present category. Stuff names of COCO and ADE20K overlap much ("floor", "floor wood"), therefore things alone
    are asked by default. Whether masks of present things are right is not looked at.

    Args:
        model: `XSAMForSegmentation`, in evaluation mode.
        processor: its processor.
        samples: with lists of categories.
        limit: how many samples are read, from the first.
        questions_per_image: most absent, and most present, categories that are asked of an image.
        threshold: score from which a mask counts as an answer.
        with_stuff: whether stuff is asked for too.
        max_new_tokens: longest answer.
        seed: of the drawn categories.

    Raises:
        ValueError: if a sample has no list of categories, none with things unless stuff is asked for, `limit` or
            `questions_per_image` is below 1, or the model has no language model.
    """
    check_has_language_model(model)
    check_counts(limit=limit, questions_per_image=questions_per_image)
    segment = AnySegmentationPipeline(model=model, processor=processor)
    rng = random.Random(seed)
    cases: list[_Case] = []
    worst: list[tuple[float, tuple[str, Image.Image]]] = []
    num_images = num_without = 0
    for sample in islice(samples, limit):
        num_images += 1
        chosen = _draw(sample, with_stuff, questions_per_image, rng)
        num_without += not chosen
        for each, output in zip(chosen, _ask(segment, sample.image, chosen, max_new_tokens), strict=True):
            found = _best(output)
            cases.append(_case(sample.name, each, output, found, processor))
            if found and not each.is_present:
                worst.append((found["score"], _picture(sample.image, found)))
        worst = sorted(worst, key=lambda entry: -entry[0])[:MAX_PICTURES]
    return ProbeReport(
        name="hallucination",
        meaning="Whether things that are not in the image get a mask all the same, beside things that are there.",
        figures=_figures(cases, threshold),
        settings={
            "limit": limit,
            "images": num_images,
            "images without a question": num_without,
            "absent questions": sum(not case.is_present for case in cases),
            "present questions": sum(case.is_present for case in cases),
            "questions_per_image": questions_per_image,
            "threshold": threshold,
            "with_stuff": with_stuff,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        },
        cases=[asdict(case) for case in cases],
        pictures=[picture for _, picture in worst],
    )


def area_under_roc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """
    The chance that a random positive score is above a random negative one, a tie counting half: the area under the ROC
    curve (Mann and Whitney's U over its maximum). NaN if either is empty.
    """
    if not len(positives) or not len(negatives):
        return float("nan")
    ordered = np.sort(np.asarray(negatives, dtype=np.float64))
    below, not_above = (np.searchsorted(ordered, positives, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(ordered))


@dataclass(frozen=True)
class _Question:
    category: str
    is_present: bool


@dataclass(frozen=True)
class _Case:
    """
    Attributes:
        sample: its name.
        is_present: whether the category is in the image.
        has_seg: whether the answer has a <SEG>.
        score: of its mask; 0 if there is none.
        answer: what was generated, markers included.
        failure: why a <SEG> has no mask, "" if there is nothing to say.
    """

    sample: str
    category: str
    is_present: bool
    has_seg: bool
    score: float
    answer: str
    failure: str


def _draw(sample: AnnotatedSample, with_stuff: bool, most: int, rng: random.Random) -> list[_Question]:
    """As many absent as present categories, the absent first."""
    turn = category_turn(sample, needs_things=not with_stuff)
    asked = range(len(turn.labels) if with_stuff else turn.num_things)
    annotated = {*turn.mask_phrases}
    crowds = {phrase for _, phrase in turn.ignored_areas}
    present = [turn.labels[phrase] for phrase in asked if phrase in annotated]
    absent = [
        turn.labels[phrase]
        for phrase in asked
        if phrase not in annotated | crowds and turn.labels[phrase] not in turn.unasked
    ]
    count = min(most, len(absent), len(present))
    return [
        *(_Question(category, False) for category in rng.sample(absent, count)),
        *(_Question(category, True) for category in rng.sample(present, count)),
    ]


def _ask(
    segment: AnySegmentationPipeline, image: Image.Image, questions: Sequence[_Question], max_new_tokens: int
) -> list[SampleOutput]:
    asked = [Sample(task="referring", image=image, text=each.category, prefill_answer=False) for each in questions]
    return list(segment.run(asked, max_new_tokens=max_new_tokens, generate_kwargs=GREEDY)) if asked else []


def _best(output: SampleOutput) -> dict[str, Any] | None:
    """The segment with the greatest score, if there is any: an answer may have several <SEG>s."""
    found = max(described_segments(output, ResultOptions()), key=lambda each: each.score, default=None)
    return None if found is None else to_pipeline_segment(found, output.sample.text)


def _case(
    name: str, question: _Question, output: SampleOutput, found: dict[str, Any] | None, processor: XSAMProcessor
) -> _Case:
    answer = output.token_ids[output.prompt_length :]
    return _Case(
        sample=name,
        category=question.category,
        is_present=question.is_present,
        has_seg=processor.seg_token_id in answer,
        score=found["score"] if found else 0.0,
        answer=processor.tokenizer.decode(answer),
        failure=output.empty_reason,
    )


def _figures(cases: Sequence[_Case], threshold: float) -> dict[str, float]:
    groups = {name: [case for case in cases if case.is_present == present] for name, present in GROUPS.items()}
    figures = {}
    for name, group in groups.items():
        figures[f"{name} answered"] = share(sum(case.has_seg for case in group), len(group))
        figures[f"{name} segmented"] = share(sum(_is_segmented(case, threshold) for case in group), len(group))
    scores = {name: [case.score for case in group] for name, group in groups.items()}
    # Where nothing at all was answered with a mask there is no score to compare.
    has_scores = any(score > 0 for of_kind in scores.values() for score in of_kind)
    return {**figures, "AUC": area_under_roc(scores["present"], scores["absent"]) if has_scores else math.nan}


def _is_segmented(case: _Case, threshold: float) -> bool:
    # Without a mask the score is 0, which would reach a threshold of 0.
    return case.score > 0 and case.score >= threshold


def _picture(image: Image.Image, found: dict[str, Any]) -> tuple[str, Image.Image]:
    return picture_title(f"absent {found['label']}", f"score {found['score']:.2f}"), visualize(image, [found])
