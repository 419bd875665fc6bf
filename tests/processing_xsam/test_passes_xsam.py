import pytest
import torch
from PIL import Image

from processing_xsam.passes_xsam import merge_passes, split_labels
from processing_xsam.post_processing_xsam import Geometry, panoptic
from processing_xsam.results_xsam import SampleOutput, SegOutput
from processing_xsam.samples_xsam import Sample

GEOMETRY = Geometry(8, (8, 8))


def sample(labels) -> Sample:
    return Sample(task="generic", image=Image.new("RGB", (8, 8)), labels=labels)


def output(labels: str, class_logits: list[list[float]] | None, mask_logits: torch.Tensor) -> SampleOutput:
    segs = [] if class_logits is None else [SegOutput(torch.tensor(class_logits), mask_logits, phrase_spans=[])]
    return SampleOutput(sample(list(labels)), segs, [], 0, "", torch.zeros(0, 8, 8, dtype=torch.bool), GEOMETRY)


def test_a_list_that_fits_stays_whole():
    whole = sample(["a", "b", "c"])
    assert split_labels(whole, [3, 3, 3], 9) == [whole]


def test_no_pass_exceeds_the_budget_and_the_order_is_kept():
    names = [f"label {index}" for index in range(100)]
    lengths = [1 + index % 7 for index in range(100)]
    passes = split_labels(sample(names), lengths, 60)
    assert [name for part in passes for name in part.labels] == names
    of_name = dict(zip(names, lengths, strict=True))
    filled = [sum(of_name[name] for name in part.labels) for part in passes]
    assert max(filled) <= 60
    assert len(passes) == -(-sum(lengths) // 60)
    assert min(filled) > 30


def test_things_stay_things_and_stuff_stays_stuff():
    passes = split_labels(sample({"thing": ["a", "b"], "stuff": ["c", "d"]}), [5, 5, 5, 5], 16)
    assert [part.labels for part in passes] == [{"thing": ["a", "b"], "stuff": []}, {"thing": [], "stuff": ["c", "d"]}]


def test_a_label_that_never_fits_is_named():
    with pytest.raises(ValueError, match="'a very long one' takes 50 tokens, but a prompt has room for 20"):
        split_labels(sample(["a", "a very long one"]), [3, 50], 20)


def test_queries_of_all_passes_compete_as_one_set():
    masks = torch.full((1, 8, 8), 12.0)
    left, right = masks.clone(), masks.clone()
    left[:, :, 4:] = -12
    right[:, :, :4] = -12
    passes = [output("ab", [[4.0, 0.0, 0.0]], left), output("cd", [[0.0, 4.0, 0.0]], right)]
    merged = merge_passes(passes, sample(list("abcd")))
    (seg,) = merged.segs
    probabilities = seg.class_logits.softmax(-1)
    assert probabilities.shape == (2, 5)
    assert probabilities[0, 2:4].tolist() == [0, 0]
    assert probabilities[1, :2].tolist() == [0, 0]
    # A query is as sure of its categories and of the background as it was in its own pass.
    torch.testing.assert_close(probabilities[0, [0, 1, 4]], torch.tensor([4.0, 0.0, 0.0]).softmax(-1))
    found = panoptic(seg.class_logits, seg.mask_logits, GEOMETRY)
    assert [(part.label_id, part.box) for part in found] == [(0, (0, 0, 4, 8)), (3, (4, 0, 8, 8))]


def test_a_pass_without_seg_keeps_the_place_of_its_categories():
    masks = torch.full((1, 8, 8), 12.0)
    passes = [output("ab", None, masks), output("cd", [[4.0, 0.0, 0.0]], masks), output("e", None, masks)]
    (seg,) = merge_passes(passes, sample(list("abcde"))).segs
    torch.testing.assert_close(seg.class_logits.softmax(-1)[0, [2, 3, 5]], torch.tensor([4.0, 0.0, 0.0]).softmax(-1))
    assert seg.class_logits.softmax(-1)[0, [0, 1, 4]].tolist() == [0, 0, 0]
    assert merge_passes([output("ab", None, masks), output("c", None, masks)], sample(list("abc"))).segs == []
