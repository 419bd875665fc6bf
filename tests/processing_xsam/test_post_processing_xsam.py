import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from processing_xsam.post_processing_xsam import (
    Geometry,
    Segment,
    box_iou,
    grounded_conversation,
    instance,
    interactive,
    mask_box,
    panoptic,
    referring,
    resize_region_to_image,
    resize_to_image,
    semantic,
    semantic_segments,
    to_coco_rle,
    to_original_panoptic,
    to_pipeline_segment,
    to_segmentation,
)

SURE = 12.0
# Pixels of the recorded maps that may differ, where logits are within rounding of a tie.
TIES = 3


def recorded_inputs(goldens, name, item=0):
    facts = goldens.case(name)
    inputs = goldens.tensors(facts.get("inputs_from", name))
    logits = inputs["in.masks_queries_logits"]
    geometry = Geometry(logits.shape[-1], tuple(facts["image_sizes"][item]))
    return facts, inputs["in.class_queries_logits"][item], logits[item], geometry


def assert_maps_agree(actual, expected):
    assert actual.shape == expected.shape
    assert int((actual != expected.long()).sum()) <= TIES


class TestAgreementWithTheOriginal:
    @pytest.mark.parametrize(
        ("name", "item"),
        [
            ("j_post_panoptic_t05", 0),
            ("j_post_panoptic_t05", 1),
            ("j_post_panoptic_t00", 0),
            ("j_post_panoptic_t00", 1),
            ("j_post_panoptic_collision", 0),
        ],
    )
    def test_panoptic(self, goldens, name, item):
        facts, classes, masks, geometry = recorded_inputs(goldens, name, item)
        stuff = facts["stuff_label_ids"]
        segments = panoptic(classes, masks, geometry, stuff, threshold=facts["threshold"], fuse=False)
        result = to_original_panoptic(segments, geometry.target_size, stuff)
        assert_maps_agree(result["segmentation"], goldens.tensors(name)[f"out.segmentation.{item}"])
        expected = facts["results"][item]["segments_info"]
        assert [{**info, "score": None} for info in result["segments_info"]] == [
            {**info, "score": None} for info in expected
        ]
        for info, recorded in zip(result["segments_info"], expected, strict=True):
            assert info["score"] == pytest.approx(recorded["score"], abs=1e-5)

    @pytest.mark.parametrize("item", [0, 1])
    def test_semantic(self, goldens, item):
        _, classes, masks, geometry = recorded_inputs(goldens, "j_post_semantic", item)
        result = semantic(classes, masks, geometry)
        assert_maps_agree(result, goldens.tensors("j_post_semantic")[f"out.segmentation.{item}"])

    @pytest.mark.parametrize(("name", "item"), [("j_post_instance", 0), ("j_post_instance", 1), ("j_post_vgdseg", 0)])
    def test_instances_as_a_set(self, goldens, name, item):
        facts, classes, masks, geometry = recorded_inputs(goldens, name, item)
        segments = instance(classes, masks, geometry, threshold=facts["threshold"])
        recorded = goldens.tensors(name)
        order = recorded[f"out.instances.{item}.scores"].argsort(descending=True)
        assert len(segments) == len(order)
        for segment, index in zip(segments, order, strict=True):
            assert segment.score == pytest.approx(recorded[f"out.instances.{item}.scores"][index].item(), abs=1e-5)
            assert segment.label_id == int(recorded[f"out.instances.{item}.classes"][index])
            assert_maps_agree(segment.mask.long(), recorded[f"out.instances.{item}.masks"][index])
            assert list(segment.box) == recorded[f"out.instances.{item}.boxes"][index].tolist()

    @pytest.mark.parametrize("item", [0, 1])
    def test_referring(self, goldens, item):
        facts, classes, masks, geometry = recorded_inputs(goldens, "j_post_refseg", item)
        segment = referring(classes, masks, geometry)
        expected = goldens.tensors("j_post_refseg")[f"out.segmentation.{item}"]
        assert_maps_agree(segment.mask.long(), (expected == 1).long())
        recorded = facts["results"][item]["segments_info"]["score"]
        assert segment.score == pytest.approx(recorded, abs=1e-5)

    def test_grounded_conversation(self, goldens):
        facts, classes, masks, geometry = recorded_inputs(goldens, "j_post_gcgseg")
        segments = grounded_conversation(classes, masks, geometry)
        result = to_segmentation(segments, geometry.target_size, background=255)
        assert_maps_agree(result["segmentation"], goldens.tensors("j_post_gcgseg")["out.segmentation.0"])
        for segment, recorded in zip(segments, facts["results"][0]["segments_info"], strict=True):
            assert segment.label_id == recorded["category_id"]
            assert segment.score == pytest.approx(recorded["score"], abs=1e-5)

    def test_interactive(self, goldens):
        facts, classes, masks, geometry = recorded_inputs(goldens, "j_post_intseg")
        region = goldens.tensors("j_post_intseg")["in.vprompt_masks.0"][0].bool()
        segment = interactive(classes, masks, region, geometry, threshold=facts["threshold"])
        expected = goldens.tensors("j_post_intseg")["out.segmentation.0"]
        assert_maps_agree(segment.mask.long(), (expected == 1).long())
        assert segment.score == pytest.approx(facts["results"][0]["segments_info"]["score"], abs=1e-5)

    @pytest.mark.parametrize("name", ["j_post_vgdseg", "j_post_intseg"])
    def test_region_masks_in_the_image(self, goldens, name):
        _, _, _, geometry = recorded_inputs(goldens, name)
        recorded = goldens.tensors(name)
        for region, expected in zip(recorded["in.vprompt_masks.0"], recorded["out.vprompt_masks.0"], strict=True):
            assert torch.equal(resize_region_to_image(region.bool(), geometry), expected.bool())


# Hand-worked scenes: an 8 x 8 input that an 8 x 4 image fills to the half.
GEOMETRY = Geometry(8, (8, 4))


def scene(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """Mask logits (Q, 8, 8), sure inside a box (xmin, ymin, xmax, ymax) and sure outside it."""
    logits = torch.full((len(boxes), 8, 8), -SURE)
    for query, (xmin, ymin, xmax, ymax) in enumerate(boxes):
        logits[query, ymin:ymax, xmin:xmax] = SURE
    return logits


def classes(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities).clamp(min=1e-6).log()


def test_masks_are_cropped_before_they_are_resized():
    logits = torch.zeros(1, 8, 8)
    logits[:, :, 4:] = 100  # padding: the image covers the left half
    assert resize_to_image(logits, Geometry(8, (16, 8))).abs().max() == 0


def test_panoptic_gives_pixels_to_the_most_certain_query():
    segments = panoptic(
        classes([0.9, 0.05, 0.05], [0.1, 0.6, 0.3]),
        scene((0, 0, 4, 4), (0, 2, 4, 8)),
        GEOMETRY,
        overlap_mask_area_threshold=0.5,
    )
    assert [(s.label_id, s.box) for s in segments] == [(0, (0, 0, 4, 4)), (1, (0, 4, 4, 8))]
    assert segments[0].score == pytest.approx(0.9)
    assert not (segments[0].mask & segments[1].mask).any()


def test_panoptic_drops_what_is_mostly_covered():
    segments = panoptic(classes([0.9, 0.05, 0.05], [0.1, 0.6, 0.3]), scene((0, 0, 4, 7), (0, 0, 4, 8)), GEOMETRY)
    assert [s.label_id for s in segments] == [0]


def test_stuff_is_fused_into_one_segment():
    logits = classes([0.8, 0.1, 0.1], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05])
    masks = scene((0, 0, 4, 2), (0, 2, 4, 4), (0, 4, 4, 8))
    segments = panoptic(logits, masks, GEOMETRY, stuff_ids=[0])
    assert [(s.label_id, s.was_fused, s.box) for s in segments] == [
        (0, True, (0, 0, 4, 4)),
        (1, False, (0, 4, 4, 8)),
    ]
    assert segments[0].score == pytest.approx(0.9)
    info = to_segmentation(segments, (8, 4))
    assert info["segmentation"][:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert [entry["id"] for entry in info["segments_info"]] == [1, 2]


def test_the_original_numbering_can_use_an_id_twice():
    logits = classes([0.8, 0.1, 0.1], [0.05, 0.9, 0.05], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05])
    masks = scene((0, 0, 4, 2), (0, 2, 4, 4), (0, 4, 4, 6), (0, 6, 4, 8))
    segments = panoptic(logits, masks, GEOMETRY, stuff_ids=[0], fuse=False)
    info = to_original_panoptic(segments, (8, 4), [0])
    assert [entry["id"] for entry in info["segments_info"]] == [1, 2, 1, 2]


def test_panoptic_of_nothing():
    assert panoptic(classes([0.3, 0.3, 0.4]), scene((0, 0, 4, 8)), GEOMETRY) == []


def test_semantic_adds_up_queries():
    logits = classes([0.6, 0.2, 0.2], [0.1, 0.5, 0.4], [0.1, 0.5, 0.4])
    label_map = semantic(logits, scene((0, 0, 4, 8), (0, 4, 4, 8), (0, 4, 4, 8)), GEOMETRY)
    assert label_map[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [(s.label_id, s.score) for s in semantic_segments(label_map)] == [(0, None), (1, None)]


def test_semantic_of_many_classes_equals_the_direct_computation():
    torch.manual_seed(0)
    logits, masks = torch.randn(5, 40), torch.randn(5, 8, 8)
    probabilities = torch.einsum("qk,qhw->khw", logits.softmax(-1)[:, :-1], masks.sigmoid())[:, :, :4]
    direct = torch.nn.functional.interpolate(probabilities[None], size=(24, 12), mode="bilinear")[0].argmax(0)
    assert torch.equal(semantic(logits, masks, Geometry(8, (24, 12))), direct)


def test_one_query_can_be_an_instance_of_two_classes():
    segments = instance(classes([0.5, 0.4, 0.1], [0.05, 0.05, 0.9]), scene((0, 0, 4, 4), (0, 4, 4, 8)), GEOMETRY, 0.2)
    assert [(s.label_id, round(s.score, 3)) for s in segments] == [(0, 0.5), (1, 0.4)]


def test_instances_without_pixels_are_left_out():
    assert instance(classes([0.9, 0.1]), scene((5, 0, 8, 8)), GEOMETRY) == []


def test_dropped_queries_are_never_resized(monkeypatch):
    sizes = []

    def counting(masks, geometry):
        sizes.append(len(masks))
        return torch.zeros(len(masks), *geometry.target_size)

    monkeypatch.setattr("processing_xsam.post_processing_xsam.resize_to_image", counting)
    logits = classes([0.9, 0.1], *[[0.1, 0.9]] * 9)
    instance(logits, scene(*[(0, 0, 4, 8)] * 10), GEOMETRY)
    panoptic(logits, scene(*[(0, 0, 4, 8)] * 10), GEOMETRY)
    referring(logits, scene(*[(0, 0, 4, 8)] * 10), GEOMETRY)
    assert sizes == [1, 1, 1]


class TestReferring:
    logits = classes([0.6, 0.4], [0.7, 0.3], [0.1, 0.9])
    masks = scene((0, 0, 4, 2), (0, 4, 4, 8), (0, 2, 4, 4))

    def test_the_best_query(self):
        segment = referring(self.logits, self.masks, GEOMETRY)
        assert segment.box == (0, 4, 4, 8)
        assert segment.score == pytest.approx(0.7)

    def test_absent(self):
        assert referring(self.logits, self.masks, GEOMETRY, score_threshold=0.8) is None
        assert referring(self.logits, self.masks, GEOMETRY, score_threshold=0.8, multi_target=True) is None

    def test_the_union_of_several_targets(self):
        segment = referring(self.logits, self.masks, GEOMETRY, score_threshold=0.5, multi_target=True)
        assert segment.mask[:, 0].tolist() == [True, True, False, False, True, True, True, True]

    def test_several_phrases_are_refused(self):
        with pytest.raises(ValueError, match="have 2 phrases"):
            referring(classes([0.5, 0.3, 0.2]), scene((0, 0, 4, 4)), GEOMETRY)


def test_one_query_may_win_two_phrases():
    logits = classes([0.4, 0.5, 0.1], [0.1, 0.1, 0.8])
    segments = grounded_conversation(logits, scene((0, 0, 4, 4), (0, 4, 4, 8)), GEOMETRY)
    assert [(s.label_id, s.box) for s in segments] == [(0, (0, 0, 4, 4)), (1, (0, 0, 4, 4))]


class TestInteractive:
    region = torch.zeros(8, 8, dtype=torch.bool)
    region[5:7, 1:3] = True

    def test_the_certain_instance_at_the_region(self):
        logits = classes([0.9, 0.1], [0.6, 0.4])
        segment = interactive(logits, scene((0, 0, 4, 4), (0, 4, 4, 8)), self.region, GEOMETRY)
        assert segment.box == (0, 4, 4, 8)

    def test_the_best_if_none_is_certain(self):
        logits = classes([0.4, 0.6], [0.3, 0.7])
        segment = interactive(logits, scene((0, 0, 4, 4), (0, 4, 4, 8)), self.region, GEOMETRY)
        assert segment.box == (0, 0, 4, 4)

    def test_no_pixel_at_all(self):
        assert interactive(classes([0.9, 0.1]), scene((5, 0, 8, 8)), self.region, GEOMETRY) is None


def test_logits_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"`class_logits` \(1, 2\) and `mask_logits` \(2, 8, 8\)"):
        panoptic(classes([0.9, 0.1]), scene((0, 0, 4, 4), (0, 0, 4, 4)), GEOMETRY)
    with pytest.raises(ValueError, match="`mask_logits` contain NaN"):
        instance(classes([0.9, 0.1]), scene((0, 0, 4, 4)) * torch.nan, GEOMETRY)


def test_padding_classes_are_no_instances():
    logits = torch.tensor([[1.0, -1e9, 0.0]])
    assert [s.label_id for s in instance(logits, scene((0, 0, 4, 4)), GEOMETRY, threshold=0.0)] == [0]


def test_scores_are_computed_in_full_precision():
    logits = torch.tensor([[3.0, 0.0]], dtype=torch.bfloat16)
    assert referring(logits, scene((0, 0, 4, 4)), GEOMETRY).score == pytest.approx(0.952574, abs=1e-6)


def test_a_small_region_survives_shrinking():
    region = torch.zeros(64, 64, dtype=torch.bool)
    region[33, 35] = True
    assert resize_region_to_image(region, Geometry(64, (6, 6))).nonzero().tolist() == [[3, 3]]


def test_boxes():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    assert mask_box(mask) == (0, 0, 0, 0)
    mask[1:3, 2:5] = True
    assert mask_box(mask) == (2, 1, 5, 3)
    assert box_iou((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_coco_rle_is_json_and_decodes_to_the_mask():
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    rle = json.loads(json.dumps(to_coco_rle(mask)))
    assert rle["size"] == [5, 7]
    assert np.array_equal(coco_mask.decode(rle), mask.numpy())


def test_the_form_of_the_image_segmentation_pipeline():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1:3, 2:5] = True
    found = to_pipeline_segment(Segment(3, 0.5, mask), "cup")
    assert (found["label"], found["score"]) == ("cup", 0.5)
    assert found["box"] == {"xmin": 2, "ymin": 1, "xmax": 5, "ymax": 3}
    assert found["mask"].mode == "L"
    assert np.array_equal(np.asarray(found["mask"]) == 255, mask.numpy())
