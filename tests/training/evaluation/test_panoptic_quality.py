import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from xsam_training.data.coco_panoptic import CocoPanopticReader
from xsam_training.data.samples import Turn, encode_masks
from xsam_training.evaluation.answers import Answer, AnsweredSegment
from xsam_training.evaluation.panoptic_quality import (
    LabelQuality,
    PanopticMeasurement,
    PanopticQuality,
    SegmentCounts,
)

LABELS = ("cup", "dog", "sky")
NUM_THINGS = 2
SIZE = (10, 20)
METRIC = PanopticQuality(LABELS, NUM_THINGS)


def columns(start: int, end: int) -> dict:
    """The mask of whole columns, of ten pixels each."""
    mask = np.zeros((1, *SIZE), dtype=bool)
    mask[..., start:end] = True
    return encode_masks(mask)[0]


def turn(*masks: tuple[int, int, int], ignored: tuple[tuple[int, int, int | None], ...] = ()) -> Turn:
    """Of (phrase, first column, end)."""
    return Turn(
        "generic",
        labels=LABELS,
        num_things=NUM_THINGS,
        masks=tuple(columns(start, end) for _, start, end in masks),
        mask_phrases=tuple(phrase for phrase, _, _ in masks),
        ignored=tuple(columns(start, end) for _, start, end in ignored),
        ignored_phrases=tuple(phrase for phrase, _, _ in ignored),
    )


def answer(*segments: tuple[int, int, int]) -> Answer:
    return Answer(tuple(AnsweredSegment(phrase, columns(start, end), 0.9) for phrase, start, end in segments))


def counts(asked: Turn, answered: Answer) -> tuple[tuple[int, int, int, int, float], ...]:
    return tuple(dataclasses.astuple(each) for each in METRIC.measure(asked, answered, SIZE).counts)


def test_pairs_of_a_category_above_a_half_match():
    asked = turn((0, 0, 4), (0, 4, 8), (2, 8, 20))
    # Of the first, 3 of 5 columns; of the second exactly a half, 2 of 4; the sky as a dog.
    assert counts(asked, answer((0, 1, 5), (0, 6, 8), (1, 8, 20))) == (
        (0, 1, 1, 1, 0.6),
        (1, 0, 1, 0, 0.0),
        (2, 0, 0, 1, 0.0),
    )


def test_void_leaves_the_union_and_excuses_what_is_mostly_in_it():
    asked = turn((0, 0, 4), ignored=((None, 4, 10), (None, 16, 20)))
    # Half of the first is void. Of the second 4 of 7 columns are void, of the third 2 of 4, which is not more than half.
    measured = counts(asked, answer((0, 0, 8), (1, 8, 9), (1, 13, 20), (2, 9, 11)))
    assert measured == ((0, 1, 0, 0, 1.0), (2, 0, 1, 0, 0.0))


def test_crowds_excuse_predictions_of_their_category_only():
    asked = turn((2, 12, 20), ignored=((0, 0, 6), (None, 6, 8), (1, 8, 12)))
    # Crowd and void together are more than half of the cup; the dog lies in the crowd of cups.
    assert counts(asked, answer((0, 4, 7), (1, 0, 4), (2, 8, 20))) == ((1, 0, 1, 0, 0.0), (2, 1, 0, 0, 8 / 12))


def test_of_several_crowds_of_a_category_the_last_counts():
    asked = turn(ignored=((0, 0, 4), (0, 4, 8)))
    assert counts(asked, answer((0, 0, 2), (0, 4, 6))) == ((0, 0, 1, 0, 0.0),)


def test_ignored_areas_without_phrases_are_void():
    asked = dataclasses.replace(turn(ignored=((0, 0, 4),)), ignored_phrases=())
    assert counts(asked, answer((1, 0, 4))) == ()


def test_pixels_that_are_neither_annotated_nor_void_excuse_nothing():
    assert counts(turn(), answer((0, 0, 4))) == ((0, 0, 1, 0, 0.0),)


def test_a_segment_without_a_pixel_is_none():
    assert counts(turn(), answer((0, 3, 3))) == ()
    assert counts(turn((0, 0, 4)), answer((0, 3, 3), (0, 0, 4))) == ((0, 1, 0, 0, 1.0),)


def test_figures_are_means_over_the_categories_that_occur():
    first = PanopticMeasurement((SegmentCounts(0, 2, 1, 1, 1.5), SegmentCounts(2, 1, 0, 0, 0.75)))
    second = PanopticMeasurement((SegmentCounts(0, 1, 1, 1, 0.9),))
    cup = LabelQuality(2.4 / 5, 2.4 / 3, 3 / 5, 3, 2, 2)
    sky = LabelQuality(0.75, 0.75, 1.0, 1, 0, 0)
    assert METRIC.by_label([first, second]) == {"cup": cup, "sky": sky}
    assert METRIC.figures([first, second]) == {
        "PQ": pytest.approx((0.48 + 0.75) / 2),
        "SQ": pytest.approx((0.8 + 0.75) / 2),
        "RQ": pytest.approx((0.6 + 1) / 2),
        "PQ things": pytest.approx(0.48),
        "SQ things": pytest.approx(0.8),
        "RQ things": pytest.approx(0.6),
        "PQ stuff": 0.75,
        "SQ stuff": 0.75,
        "RQ stuff": 1.0,
    }
    assert next(iter(METRIC.figures([first]))) == "PQ"
    assert METRIC.quality(second) == pytest.approx(0.9 / 2)


def test_nothing_to_find():
    empty = METRIC.measure(turn(ignored=((None, 0, 20),)), answer((0, 0, 20)), SIZE)
    assert empty == PanopticMeasurement(()) and METRIC.quality(empty) == 1.0
    assert all(math.isnan(value) for value in METRIC.figures([empty]).values())
    assert METRIC.quality(METRIC.measure(turn(), answer((0, 0, 1)), SIZE)) == 0.0
    assert METRIC.quality(METRIC.measure(turn((0, 0, 1)), Answer(), SIZE)) == 0.0


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match="segments of an answer: number 1 and number 2 overlap"):
        METRIC.measure(turn(), answer((2, 0, 1), (0, 2, 8), (0, 7, 9)), SIZE)
    with pytest.raises(ValueError, match="masks and ignored areas of a turn: number 0 and number 1 overlap"):
        METRIC.measure(turn((0, 0, 4), ignored=((None, 3, 5),)), Answer(), SIZE)
    with pytest.raises(ValueError, match="the turn's 3 labels are not the 1 of the metric"):
        PanopticQuality(("cup",), 1).measure(turn(), Answer(), SIZE)
    with pytest.raises(ValueError, match=r"mask of size \(10, 20\) for an image"):
        METRIC.measure(turn((0, 0, 4)), Answer(), (20, 10))


def random_measurements(number: int) -> list[PanopticMeasurement]:
    rng = np.random.default_rng(0)
    measured = []
    for _ in range(number):
        edges = [np.sort(rng.choice(21, 6, replace=False)).tolist() for _ in range(2)]
        areas = [[(int(rng.integers(3)), each[i], each[i + 1]) for i in range(5)] for each in edges]
        measured.append(METRIC.measure(turn(*areas[0]), answer(*areas[1]), SIZE))
    return measured


def test_figures_depend_on_neither_order_nor_pickling():
    measured = random_measurements(40)
    order = np.random.default_rng(1).permutation(40)
    sent = [pickle.loads(pickle.dumps(measured[place])) for place in order]
    assert METRIC.figures(sent) == METRIC.figures(measured) and METRIC.by_label(sent) == METRIC.by_label(measured)
    assert 0 < METRIC.figures(measured)["PQ"] < 1
    assert json.loads(json.dumps(dataclasses.asdict(measured[0])))["counts"][0]["label"] == 0


def recorded_answer(file, infos: list[dict], phrases: dict[int, int]) -> Answer:
    ids = np.asarray(Image.open(file).convert("RGB"), dtype=np.int64) @ [1, 256, 65536]
    masks = encode_masks(np.stack([ids == info["id"] for info in infos]))
    return Answer(
        tuple(AnsweredSegment(phrases[info["category_id"]], mask) for info, mask in zip(infos, masks, strict=True))
    )


def test_agreement_with_the_evaluation_of_coco(goldens):
    folder, photos = goldens.folder / "metrics_panoptic", goldens.folder.parent / "data/coco_panoptic_sample"
    if not (folder.is_dir() and photos.is_dir()):
        pytest.skip("no recorded panoptic qualities, or not the photos that they are of")
    reader = CocoPanopticReader(".", folder / "gt.json", photos / "panoptic_examples", photos / "input_images")
    metric = PanopticQuality(reader.labels, reader.num_things)
    phrases = {category: phrase for phrase, category in enumerate(reader.categories.ids)}
    predicted = {each["image_id"]: each for each in json.loads((folder / "pred.json").read_text())["annotations"]}
    measured = []
    for sample in reader:
        each = predicted[sample.image_id]
        answered = recorded_answer(folder / "pred" / each["file_name"], each["segments_info"], phrases)
        measured.append(metric.measure(sample.turns[0], answered, (sample.image.height, sample.image.width)))
    expected = json.loads((folder / "expected.json").read_text())
    figures, qualities = metric.figures(measured), metric.by_label(measured)
    for group, suffix in (("All", ""), ("Things", " things"), ("Stuff", " stuff")):
        for name in ("pq", "sq", "rq"):
            assert figures[f"{name.upper()}{suffix}"] == pytest.approx(expected[group][name], abs=1e-12)
    things = sum(phrases[reader.categories.ids[reader.labels.index(name)]] < reader.num_things for name in qualities)
    assert (len(qualities), things) == (expected["All"]["n"], expected["Things"]["n"])
    for category, values in expected["per_class"].items():
        quality = qualities.pop(reader.labels[phrases[int(category)]])
        assert (quality.pq, quality.sq, quality.rq) == pytest.approx(
            (values["pq"], values["sq"], values["rq"]), abs=1e-12
        )
    assert all(quality.pq == 0 for quality in qualities.values())
