"""What of several instances of a category is found, in three ways to ask."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tiny_training import category_sample, fitting_model, referring_sample, tiny_processor
from xsam_training.data.samples import AnnotatedSample, Turn, encode_masks
from xsam_training.probes import single_mask
from xsam_training.probes.single_mask import probe_single_mask

# A model that is not asked: its pipeline is replaced.
STAND_IN = SimpleNamespace(segment=None)
WIDTH = 20


def row(*ranges: range) -> np.ndarray:
    """The union of ranges of pixels in an image of 1 x 20."""
    mask = np.zeros((1, WIDTH), dtype=bool)
    for place in ranges:
        mask[0, place] = True
    return mask


def result(label: str, mask: np.ndarray, score: float = 0.9) -> dict:
    return {"label": label, "score": score, "mask": Image.fromarray(mask).convert("L")}


def sample_of_two_cups() -> AnnotatedSample:
    """Two cups, a crowd of cups, one plate, and a table that is stuff and has two masks."""
    masks = [row(range(0, 4)), row(range(6, 10)), row(range(12, 14)), row(range(14, 16)), row(range(16, 18))]
    turn = Turn(
        "generic",
        labels=("plate", "cup", "table"),
        num_things=2,
        masks=tuple(encode_masks(np.stack(masks))),
        mask_phrases=(1, 1, 0, 2, 2),
        ignored=tuple(encode_masks(row(range(18, 20))[None])),
        ignored_phrases=(1,),
    )
    return AnnotatedSample(Image.new("RGB", (WIDTH, 1)), (turn,), "two cups")


class StandIn:
    """A pipeline with given answers; `described` are masks of the best query and of all, by expression."""

    def __init__(self, instances, described):
        self.instances, self.described, self.asked = instances, described, []

    def encode_image(self, image):
        return "features"

    def __call__(self, image, image_features, **arguments):
        assert image_features == "features"
        self.asked.append(arguments)
        return self.instances

    def run(self, samples, image_features):
        assert image_features == "features" and all(each.task == "referring" for each in samples)
        return [SimpleNamespace(sample=each) for each in samples]

    def found(self, output, options):
        mask = self.described[output.sample.text][int(options.multi_target)]
        return [] if mask is None else [result(output.sample.text, mask)]


def probe(monkeypatch, instances, described, **arguments):
    stand_in = StandIn(instances, described)
    monkeypatch.setattr(single_mask, "AnySegmentationPipeline", lambda model, processor: stand_in)
    monkeypatch.setattr(single_mask, "_described", stand_in.found)
    return probe_single_mask(STAND_IN, None, [sample_of_two_cups()], **arguments), stand_in


def test_figures_of_known_answers(monkeypatch):
    instances = [
        result("cup", row(range(0, 4))),
        result("cup", row(range(0, 3)), 0.8),
        # Of another category, and therefore not the second cup.
        result("plate", row(range(6, 10))),
    ]
    # The best query: 2 of 4 pixels of the first cup, 1 of the second, 1 on a plate, 2 in the crowd, which do not count.
    best = row(range(0, 2), range(6, 7), range(12, 13), range(18, 20))
    both = row(range(0, 4), range(6, 10))
    report, stand_in = probe(monkeypatch, instances, {"cup": (best, both)}, threshold=0.3)
    assert report.figures == pytest.approx(
        {
            "instances found": 0.5,
            "best query found": 0.5,
            "best query precision": 0.75,
            "best query exactly one": 1.0,
            "all queries found": 1.0,
            "all queries precision": 1.0,
            "all queries exactly one": 0.0,
        }
    )
    # Neither the single plate nor the stuff is a case.
    assert [(case["category"], case["instances"], case["predicted"]) for case in report.cases] == [("cup", 2, 2)]
    assert stand_in.asked == [
        {
            "task": "generic",
            "labels": {"thing": ["plate", "cup"], "stuff": ["table"]},
            "subtask": "instance",
            "threshold": 0.3,
        }
    ]
    assert [title for title, _ in report.pictures] == [
        "cup: annotation",
        "cup: instances",
        "cup: best query",
        "cup: all certain queries",
    ]


def test_answers_without_a_mask_find_nothing_and_have_no_precision(monkeypatch):
    report, _ = probe(monkeypatch, [], {"cup": (None, None)})
    assert report.figures["instances found"] == report.figures["best query found"] == 0
    assert report.figures["all queries exactly one"] == 0
    assert np.isnan(report.figures["best query precision"])
    assert report.settings["cases answered by best query"] == 0 and report.settings["instances"] == 2


def test_a_random_model(tmp_path):
    processor = tiny_processor()
    samples = [category_sample(seed) for seed in range(5)]
    report = probe_single_mask(fitting_model(processor).eval(), processor, samples, limit=4, threshold=0.0)
    # Of scenes 0 to 3, two have a kind of shape more than once.
    assert report.settings["images"] == 4 and report.settings["cases"] == 2 and report.settings["instances"] == 5
    assert all(0 <= value <= 1 for value in report.figures.values())
    assert len(report.pictures) == 8 and all(len(title) <= 42 for title, _ in report.pictures)
    report.save(tmp_path)
    assert (tmp_path / "single-mask.png").is_file()


def test_without_cases_figures_are_not_available():
    processor = tiny_processor()
    report = probe_single_mask(fitting_model(processor).eval(), processor, [category_sample(0)])
    assert all(np.isnan(value) for value in report.figures.values())
    assert report.settings["images"] == 1 and report.settings["cases"] == 0 and not report.pictures


def test_samples_without_categories():
    processor = tiny_processor()
    with pytest.raises(ValueError, match="scene 0 has no list of categories with things"):
        probe_single_mask(fitting_model(processor).eval(), processor, [referring_sample(0)])
