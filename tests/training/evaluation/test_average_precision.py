import dataclasses
import io
import json
import math
import pickle
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from xsam_training.data.samples import Turn, encode_masks
from xsam_training.evaluation.answers import Answer, AnsweredSegment
from xsam_training.evaluation.average_precision import AveragePrecision, PrecisionMeasurement

METRIC = AveragePrecision()
SIZE = (120, 160)
LABELS = ("cat", "cup", "dog")
# In pycocotools' order of its summary.
STATS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}
CAT, CUP, DOG = range(3)


def box(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    mask = np.zeros((1, *SIZE), dtype=bool)
    mask[:, top:bottom, left:right] = True
    return encode_masks(mask)[0]


def turn(*objects: tuple[int, dict], crowds: tuple[tuple[int | None, dict], ...] = (), labels=LABELS) -> Turn:
    return Turn(
        "generic",
        labels=labels,
        num_things=len(labels),
        masks=tuple(mask for _, mask in objects),
        mask_phrases=tuple(phrase for phrase, _ in objects),
        ignored=tuple(mask for _, mask in crowds),
        ignored_phrases=tuple(phrase for phrase, _ in crowds),
    )


def answer(*segments: tuple[int, dict, float]) -> Answer:
    return Answer(tuple(AnsweredSegment(*segment) for segment in segments))


def measure(asked: Turn, answered: Answer) -> PrecisionMeasurement:
    return METRIC.measure(asked, answered, SIZE)


def test_thresholds_and_sizes():
    # 40 of 50 columns: found at 0.5 to 0.8, seven thresholds of ten. 40 x 50 pixels are medium.
    measured = measure(turn((CUP, box(0, 0, 50, 40))), answer((CUP, box(0, 0, 40, 40), 0.9)))
    assert measured.labels == ("cup",) and measured.annotated == ((1,), (0,), (1,), (0,))
    figures = METRIC.figures([measured])
    assert list(figures) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"]
    assert [figures[name] for name in ("AP", "AP50", "AP75", "APm", "AR100")] == pytest.approx([0.7, 1, 1, 0.7, 0.7])
    assert math.isnan(figures["APs"]) and math.isnan(figures["APl"])
    assert METRIC.main_by_label([measured]) == {"cup": pytest.approx(0.7)}


def test_categories_are_names():
    cups = measure(turn((0, box(0, 0, 9, 9)), labels=("cup",)), answer((0, box(0, 0, 9, 9), 0.8)))
    dogs = measure(turn((0, box(0, 0, 9, 9)), labels=("dog", "cup")), answer((1, box(0, 0, 9, 9), 0.9)))
    # The wrong cup of the second image comes before the right one of the first: precision 1/2 at all recalls.
    assert METRIC.main_by_label([cups, dogs]) == {"cup": pytest.approx(0.5), "dog": 0.0}
    assert METRIC.figures([cups, dogs])["AP"] == pytest.approx(0.25)


def test_crowds_excuse_detections_of_their_category_and_void_does_not():
    found = (CUP, box(0, 0, 20, 20), 0.5)
    crowd, inside = box(40, 0, 100, 60), box(50, 10, 70, 30)
    asked = [turn((CUP, box(0, 0, 20, 20)), crowds=((phrase, crowd),)) for phrase in (CUP, DOG, None)]
    precisions = [METRIC.main_by_label([measure(each, answer((CUP, inside, 0.9), found))])["cup"] for each in asked]
    assert precisions == pytest.approx([1, 0.5, 0.5])
    only_crowd = measure(turn(crowds=((CUP, crowd),)), answer((CUP, inside, 0.9)))
    assert only_crowd.annotated[0] == (0,) and math.isnan(METRIC.figures([only_crowd])["AP"])


def test_nothing_to_find_and_nothing_found():
    nothing = measure(turn(), Answer())
    assert nothing == PrecisionMeasurement()
    for measured in ([], [nothing], [measure(turn(), answer((DOG, box(0, 0, 9, 9), 0.9)))]):
        assert all(math.isnan(value) for value in METRIC.figures(measured).values())
    missed = METRIC.figures([nothing, measure(turn((DOG, box(0, 0, 9, 9))), Answer())])
    assert missed["AP"] == missed["AP50"] == missed["APs"] == missed["AR100"] == 0.0 and math.isnan(missed["APl"])
    assert math.isnan(METRIC.main_by_label([measure(turn(), answer((DOG, box(0, 0, 9, 9), 0.9)))])["dog"])


def test_a_segment_without_a_pixel_is_a_false_positive():
    empty = (CUP, box(0, 0, 0, 0), 0.9)
    measured = measure(turn((CUP, box(0, 0, 20, 20))), answer(empty, (CUP, box(0, 0, 20, 20), 0.5)))
    assert METRIC.figures([measured])["AP"] == pytest.approx(0.5)


def test_quality_of_an_image():
    cup, dog = box(0, 0, 20, 20), box(40, 40, 60, 60)
    asked = turn((CUP, cup), (DOG, dog))
    assert METRIC.quality(measure(asked, answer((CUP, cup, 0.9), (DOG, dog, 0.1)))) == pytest.approx(1)
    # The cat is not annotated: it does not count.
    assert METRIC.quality(measure(asked, answer((DOG, dog, 0.9), (CAT, cup, 0.8), (DOG, cup, 0.95)))) == pytest.approx(
        0.25
    )
    assert METRIC.quality(measure(asked, Answer())) == 0.0
    assert METRIC.quality(measure(turn(), Answer())) == 1.0
    assert METRIC.quality(measure(turn(), answer((CUP, cup, 0.49)))) == 1.0
    assert METRIC.quality(measure(turn(), answer((CUP, cup, 0.5)))) == 0.0


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match="a segment has no score"):
        measure(turn(), answer((CUP, box(0, 0, 9, 9), None)))
    with pytest.raises(ValueError, match=r"mask of size \(120, 160\) for an image"):
        METRIC.measure(turn(), answer((CUP, box(0, 0, 9, 9), 0.5)), (160, 120))
    with pytest.raises(ValueError, match="do not encode a mask"):
        measure(turn(), answer((CUP, {"size": list(SIZE), "counts": b"123"}, 0.5)))


def random_box(rng: np.random.Generator) -> dict[str, Any]:
    side = int(rng.choice([6, 20, 45, 110]))
    left, top = int(rng.integers(SIZE[1] - side)), int(rng.integers(SIZE[0] - side))
    return box(left, top, left + side, top + side)


def moved(rng: np.random.Generator, mask: dict[str, Any]) -> dict[str, Any]:
    """The mask, shifted by up to a tenth of the image and sometimes left as it is."""
    shift = int(rng.choice([0, 0, 1, 3, 8]))
    return encode_masks(np.roll(coco_mask.decode(mask), shift, axis=1)[None])[0]


def random_image(rng: np.random.Generator, place: int) -> tuple[Turn, Answer]:
    """Crowds, scores that are the same, images without annotations, and one with many detections of a category."""
    labels = tuple(sorted(rng.choice([f"name {number}" for number in range(6)], 4, replace=False).tolist()))
    count = 0 if place % 5 == 0 else 6
    objects = [(int(rng.integers(4)), random_box(rng)) for _ in range(count)]
    crowds = tuple((int(rng.integers(4)), random_box(rng)) for _ in range(2 if place % 3 == 0 else 0))
    segments = [(phrase, moved(rng, mask)) for phrase, mask in objects for _ in range(2)]
    segments += [(int(rng.integers(4)), random_box(rng)) for _ in range(5)]
    segments += [(1, moved(rng, random_box(rng))) for _ in range(130 if place == 1 else 0)]
    scores = rng.integers(1, 9, len(segments)) / 10
    answered = answer(*((*segment, float(score)) for segment, score in zip(segments, scores, strict=True)))
    return turn(*objects, crowds=crowds, labels=labels), answered if place % 4 else Answer()


def jointly(images: list[tuple[Turn, Answer]]) -> COCOeval:
    """One evaluation of all images by pycocotools."""
    names = sorted({label for asked, _ in images for label in asked.labels})
    annotations, detections = [], []
    for image_id, (asked, answered) in enumerate(images, start=1):
        pairs = [(mask, phrase, 0) for mask, phrase in zip(asked.masks, asked.mask_phrases, strict=True)]
        pairs += [(mask, phrase, 1) for mask, phrase in zip(asked.ignored, asked.ignored_phrases, strict=True)]
        for mask, phrase, is_crowd in pairs:
            shared = {"image_id": image_id, "category_id": names.index(asked.labels[phrase]), "segmentation": mask}
            annotations.append(
                {**shared, "id": len(annotations) + 1, "iscrowd": is_crowd, "area": int(coco_mask.area(mask))}
            )
        detections += [
            {
                "image_id": image_id,
                "category_id": names.index(asked.labels[each.phrase]),
                "segmentation": each.mask,
                "score": each.score,
            }
            for each in answered.segments
        ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": place, "height": SIZE[0], "width": SIZE[1]} for place in range(1, len(images) + 1)],
        "categories": [{"id": place, "name": name} for place, name in enumerate(names)],
        "annotations": annotations,
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(detections), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within pycocotools
def test_joined_images_give_exactly_what_one_evaluation_gives():
    rng = np.random.default_rng(0)
    images = [random_image(rng, place) for place in range(14)]
    with redirect_stdout(io.StringIO()):
        joint = jointly(images)
    measured = [measure(*each) for each in images]
    assert max(map(max, (each.num_detections for each in measured if each.labels))) == 100
    figures = METRIC.figures(measured)
    assert figures == {name: joint.stats[place] for name, place in STATS.items()}
    assert 0.05 < figures["AP"] < 0.95 and min(figures.values()) > 0
    by_label = METRIC.main_by_label(measured)
    assert list(by_label.values()) == [
        joint.eval["precision"][:, :, place, 0, -1].mean() for place in range(len(by_label))
    ]
    check_figures_after_sending(measured, figures)


def check_figures_after_sending(measured: list[PrecisionMeasurement], figures: dict[str, float]) -> None:
    """As processes send them, out of order, and as a file holds them."""
    order = np.random.default_rng(1).permutation(len(measured)).tolist()
    sent = [(place, pickle.loads(pickle.dumps(measured[place]))) for place in order]
    assert METRIC.figures([each for _, each in sorted(sent, key=lambda pair: pair[0])]) == figures
    stored = json.loads(json.dumps([dataclasses.asdict(each) for each in measured]))
    assert METRIC.figures([PrecisionMeasurement(**each) for each in stored]) == figures


def test_a_measurement_is_small_and_silent(capsys):
    labels = tuple(f"name {number}" for number in range(80))
    segments = [(number % 80, box(number, 0, number + 20, 60), 0.5) for number in range(100)]
    measured = measure(turn(*((phrase, mask) for phrase, mask, _ in segments), labels=labels), answer(*segments))
    assert len(pickle.dumps(measured)) < 6000
    assert METRIC.figures([measured])["AP50"] == pytest.approx(METRIC.quality(measured))
    assert len(METRIC.main_by_label([measured])) == 80
    assert capsys.readouterr() == ("", "")
