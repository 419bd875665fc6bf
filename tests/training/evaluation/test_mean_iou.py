import dataclasses
import json
import math
import pickle

import numpy as np
import pytest

from xsam_training.data.samples import Turn, encode_masks
from xsam_training.evaluation.answers import Answer, AnsweredSegment
from xsam_training.evaluation.mean_iou import LabelIoU, MeanIoU, MeanIoUMeasurement, PixelCounts

LABELS = ("cup", "dog", "sky", "wall")
NUM_THINGS = 2
SIZE = (10, 20)
METRIC = MeanIoU(LABELS, NUM_THINGS)


def masks_of(values: np.ndarray) -> list[tuple[int, dict]]:
    """Phrases and masks of a map of phrases; -1: none."""
    phrases = [phrase for phrase in np.unique(values).tolist() if phrase >= 0]
    return [(phrase, encode_masks((values == phrase)[None])[0]) for phrase in phrases]


def turn(annotated: np.ndarray, ignored: np.ndarray | None = None) -> Turn:
    pairs = masks_of(annotated)
    return Turn(
        "generic",
        labels=LABELS,
        num_things=NUM_THINGS,
        masks=tuple(mask for _, mask in pairs),
        mask_phrases=tuple(phrase for phrase, _ in pairs),
        ignored=tuple(encode_masks(ignored[None])) if ignored is not None else (),
    )


def answer(predicted: np.ndarray) -> Answer:
    return Answer(tuple(AnsweredSegment(phrase, mask) for phrase, mask in masks_of(predicted)))


def columns(*runs: tuple[int, int]) -> np.ndarray:
    """A map of (phrase, number of columns), from the left; a column has ten pixels."""
    return np.tile(np.repeat([phrase for phrase, _ in runs], [number for _, number in runs]), (10, 1))


def test_pixels_are_counted_by_class():
    # Of the cup's columns 3 are right, one is left to no class and one is said to be sky.
    measured = METRIC.measure(
        turn(columns((0, 5), (2, 15))), answer(columns((0, 3), (-1, 1), (2, 11), (1, 2), (2, 3))), SIZE
    )
    assert measured.counts == (PixelCounts(0, 30, 30, 50), PixelCounts(1, 0, 20, 0), PixelCounts(2, 130, 140, 150))


def test_ignored_pixels_and_those_without_a_class_are_left_out():
    ignored = columns((0, 4), (1, 4), (0, 12)).astype(bool)
    # The ignored area takes two columns of the cup; ten columns have no class.
    measured = METRIC.measure(turn(columns((0, 6), (2, 4), (-1, 10)), ignored), answer(columns((0, 20))), SIZE)
    assert measured.counts == (PixelCounts(0, 40, 60, 40), PixelCounts(2, 0, 0, 20))


def test_a_crowd_belongs_to_its_class():
    crowd = columns((0, 10), (1, 4), (0, 6)).astype(bool)
    of_cups = dataclasses.replace(turn(columns((0, 6), (2, 4), (-1, 10)), crowd), ignored_phrases=(0,))
    # Six columns of cups, four more as a crowd; the rest has no class.
    measured = METRIC.measure(of_cups, answer(columns((0, 20))), SIZE)
    assert measured.counts == (PixelCounts(0, 100, 140, 100), PixelCounts(2, 0, 0, 40))


def test_masks_of_one_phrase_are_united():
    parts = encode_masks(np.stack([columns((1, 4), (0, 16)), columns((0, 2), (1, 6), (0, 12))]))
    asked = dataclasses.replace(turn(columns((-1, 20))), masks=tuple(parts), mask_phrases=(1, 1))
    answered = Answer(tuple(AnsweredSegment(1, mask) for mask in parts))
    assert METRIC.measure(asked, answered, SIZE).counts == (PixelCounts(1, 80, 80, 80),)


def test_figures():
    first = MeanIoUMeasurement((PixelCounts(0, 30, 40, 50), PixelCounts(2, 90, 100, 140)))
    second = MeanIoUMeasurement((PixelCounts(0, 10, 10, 10), PixelCounts(1, 0, 60, 0), PixelCounts(3, 20, 20, 20)))
    cup, sky, wall = 40 / 70, 90 / 150, 1.0
    assert METRIC.by_label([first, second]) == {
        "cup": LabelIoU(cup, 40 / 60, 40, 50, 60),
        "sky": LabelIoU(sky, 90 / 140, 90, 100, 140),
        "wall": LabelIoU(1.0, 1.0, 20, 20, 20),
    }
    assert METRIC.figures([first, second]) == {
        "mIoU": pytest.approx((cup + sky + wall) / 3),
        "mIoU things": pytest.approx(cup),
        "mIoU stuff": pytest.approx((sky + wall) / 2),
        "fwIoU": pytest.approx((60 * cup + 140 * sky + 20 * wall) / 220),
        "mACC": pytest.approx((40 / 60 + 90 / 140 + 1) / 3),
        "pACC": pytest.approx(150 / 220),
    }
    assert METRIC.quality(first) == pytest.approx((30 / 60 + 90 / 150) / 2)


def test_nothing_annotated():
    empty = METRIC.measure(turn(columns((-1, 20))), answer(columns((0, 20))), SIZE)
    assert empty == MeanIoUMeasurement(()) and METRIC.quality(empty) == 1.0
    assert all(math.isnan(value) for value in METRIC.figures([empty]).values())


def test_nothing_answered():
    measured = METRIC.measure(turn(columns((0, 20))), Answer(), SIZE)
    assert METRIC.figures([measured])["mIoU"] == METRIC.quality(measured) == 0.0
    without_pixel = Answer((AnsweredSegment(0, encode_masks(np.zeros((1, *SIZE), dtype=bool))[0]),))
    assert METRIC.measure(turn(columns((0, 20))), without_pixel, SIZE) == measured


def test_what_cannot_be_measured_is_named():
    overlapping = Answer((*answer(columns((0, 20))).segments, *answer(columns((-1, 5), (1, 15))).segments))
    with pytest.raises(ValueError, match="segments of an answer: number 0 and number 1 overlap"):
        METRIC.measure(turn(columns((0, 20))), overlapping, SIZE)
    with pytest.raises(ValueError, match="the turn's 4 labels are not the 1 of the metric"):
        MeanIoU(("cup",), 1).measure(turn(columns((0, 20))), Answer(), SIZE)


def confusion_figures(maps: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[float, float, float, float]:
    """mIoU, fwIoU, mACC and pACC of (annotated, predicted, ignored) from one matrix of all pixels."""
    matrix = np.zeros((5, 5))
    for annotated, predicted, ignored in maps:
        np.add.at(matrix, (np.where(ignored, -1, annotated), predicted), 1)
    right, annotated = matrix.diagonal()[:4], matrix[:4].sum(1)
    union = annotated + matrix[:4, :4].sum(0) - right
    occurs = annotated > 0
    iou, accuracy = right[occurs] / union[occurs], right[occurs] / annotated[occurs]
    share = annotated[occurs] / annotated.sum()
    return iou.mean(), (iou * share).sum(), accuracy.mean(), right[occurs].sum() / annotated.sum()


def test_agreement_with_a_confusion_matrix_whatever_the_order():
    rng = np.random.default_rng(0)
    maps = [
        # The dog is predicted, but never annotated.
        (rng.choice([-1, 0, 2, 3], SIZE), rng.integers(-1, 4, SIZE), rng.random(SIZE) < 0.2)
        for _ in range(12)
    ]
    measured = [METRIC.measure(turn(each[0], each[2]), answer(each[1]), SIZE) for each in maps]
    figures = METRIC.figures(measured)
    names = ("mIoU", "fwIoU", "mACC", "pACC")
    assert tuple(figures[name] for name in names) == pytest.approx(confusion_figures(maps), abs=1e-12)
    sent = [pickle.loads(pickle.dumps(measured[place])) for place in rng.permutation(12)]
    assert METRIC.figures(sent) == figures and METRIC.by_label(sent) == METRIC.by_label(measured)
    assert json.loads(json.dumps(dataclasses.asdict(measured[0])))["counts"][0]["label"] == 0
