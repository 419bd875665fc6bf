from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from processing_xsam.post_processing_xsam import Segment, box_iou
from processing_xsam.tiles_xsam import mask_nms, merge_tiles, tile_boxes

QUERIES = 50


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Thousands of small operations: on a busy machine, threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rectangle(size, x0, y0, x1, y1):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def segment(size, box, score=0.9, label=0):
    return Segment(label, score, rectangle(size, *box))


def see(segments, boxes, scores=None):
    """What a perfect network finds in each crop: the pixels of each segment that are in it."""
    rng = np.random.default_rng(0)
    return [
        [
            replace(item, mask=part, score=item.score if scores is None else float(rng.uniform(*scores)))
            for item in segments
            if (part := item.mask[y0:y1, x0:x1]).any()
        ]
        for x0, y0, x1, y1 in boxes
    ]


def iou(first, second):
    return float((first & second).sum() / (first | second).sum())


def contains(outer, inner):
    return all(a <= b for a, b in zip(outer[:2], inner[:2], strict=True)) and all(
        a >= b for a, b in zip(outer[2:], inner[2:], strict=True)
    )


def crowd(size, count, sides, labels=4, seed=0):
    """Separate discs and rectangles with the given range of sides, a pixel between them at least."""
    rng = np.random.default_rng(seed)
    height, width = size
    free = np.ones(size, dtype=bool)
    segments = []
    while len(segments) < count:
        h, w = rng.integers(*sides, size=2)
        is_disc = rng.random() < 0.5
        w = h if is_disc else w
        y, x = rng.integers(height - h), rng.integers(width - w)
        if not free[y : y + h, x : x + w].all():
            continue
        free[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1] = False
        shape = np.ones((h, w), dtype=bool)
        if is_disc:
            offsets = np.arange(h) - (h - 1) / 2
            shape = offsets[:, None] ** 2 + offsets**2 <= (h / 2) ** 2
        mask = torch.zeros(size, dtype=torch.bool)
        mask[y : y + h, x : x + w] = torch.from_numpy(shape)
        segments.append(Segment(int(rng.integers(labels)), 1.0, mask))
    return segments


def assert_found(merged, truth):
    """Each true segment exactly once, with its label and all its pixels (IoU 1)."""
    assert len(merged) == len(truth)
    by_place = {(item.label_id, item.box): item for item in merged}
    for item in truth:
        assert torch.equal(by_place[item.label_id, item.box].mask, item.mask)


class TestTileBoxes:
    def test_by_hand(self):
        # One row; two columns of side 180 / (2 - 0.2) = 100 that share 20.
        assert tile_boxes((90, 180), (1, 2), overlap=0.2) == [(0, 0, 100, 90), (80, 0, 180, 90)]

    def test_row_by_row(self):
        assert tile_boxes((10, 20), (2, 2), overlap=0.0) == [
            (0, 0, 10, 5),
            (10, 0, 20, 5),
            (0, 5, 10, 10),
            (10, 5, 20, 10),
        ]

    def test_one_tile_is_the_image(self):
        assert tile_boxes((7, 5), (1, 1)) == [(0, 0, 5, 7)]

    @pytest.mark.parametrize("size", [(37, 101), (480, 641), (999, 1000)])
    @pytest.mark.parametrize("tiles", [(1, 3), (2, 2), (4, 7)])
    @pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
    def test_cover_with_crops_of_one_size_and_enough_overlap(self, size, tiles, overlap):
        boxes = tile_boxes(size, tiles, overlap)
        covered = torch.zeros(size, dtype=torch.bool)
        for x0, y0, x1, y1 in boxes:
            covered[y0:y1, x0:x1] = True
        assert covered.all()
        assert len(set(boxes)) == tiles[0] * tiles[1]
        assert len({(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes}) == 1
        assert max(box[2] for box in boxes) == size[1] and max(box[3] for box in boxes) == size[0]
        for left, right in pairwise(boxes[: tiles[1]]):
            assert left[2] - right[0] >= overlap * (left[2] - left[0]) - 1

    @pytest.mark.parametrize("tiles", [(0, 1), (1, -2), (1.5, 2), (True, 2), (2,), (1, 2, 3), 4, "22", None])
    def test_tiles_have_to_be_two_positive_integers(self, tiles):
        with pytest.raises(ValueError, match="`tiles`: expected \\(rows, columns\\)"):
            tile_boxes((100, 100), tiles)

    def test_tiles_may_come_from_json_or_numpy(self):
        assert tile_boxes([100, 100], [np.int64(2), 2]) == tile_boxes((100, 100), (2, 2))

    @pytest.mark.parametrize(("size", "tiles"), [((100, 3), (1, 4)), ((3, 100), (4, 1)), ((3, 3), (3, 3))])
    def test_image_smaller_than_the_grid(self, size, tiles):
        with pytest.raises(ValueError, match=r"`tiles`.*use fewer tiles"):
            tile_boxes(size, tiles)

    def test_image_size(self):
        with pytest.raises(ValueError, match="`image_size`"):
            tile_boxes((0, 100), (1, 1))

    @pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
    def test_overlap(self, overlap):
        with pytest.raises(ValueError, match="`overlap`"):
            tile_boxes((100, 100), (2, 2), overlap)


class TestMaskNms:
    size = (10, 20)

    def test_iou(self):
        best = segment(self.size, (0, 0, 10, 10), score=0.9)  # 100 pixels
        # 60 in common, 100 in the union.
        duplicate = segment(self.size, (0, 0, 6, 10), score=0.8)
        # 60 in common with 140 in the union: IoU 0.43, 0.6 of either.
        neighbour = segment(self.size, (4, 0, 14, 10), score=0.7)
        assert mask_nms([neighbour, duplicate, best]) == [best, neighbour]
        assert mask_nms([neighbour, duplicate, best], iou_threshold=0.6, containment_threshold=1.0) == [
            best,
            duplicate,
            neighbour,
        ]
        assert mask_nms([neighbour, best], iou_threshold=0.4) == [best]

    @pytest.mark.parametrize("scores", [(0.9, 0.8), (0.8, 0.9)])
    def test_containment_drops_the_lower_score(self, scores):
        large = segment(self.size, (0, 0, 10, 10), scores[0])
        small = segment(self.size, (0, 0, 10, 2), scores[1])
        (left,) = mask_nms([large, small])
        assert left.score == 0.9

    def test_what_is_dropped_drops_nothing(self):
        first, second, third = (
            segment(self.size, (x, 0, x + 10, 10), score) for x, score in ((0, 0.9), (3, 0.8), (6, 0.7))
        )
        # IoU of neighbours 70 / 130; of the first and the third 40 / 160.
        assert mask_nms([first, second, third]) == [first, third]

    def test_labels_are_independent(self):
        pair = [segment(self.size, (0, 0, 5, 5), score=0.5, label=label) for label in (1, 0)]
        assert mask_nms(pair) == pair[::-1]

    def test_boxes_that_meet_are_not_enough(self):
        corner = rectangle(self.size, 0, 0, 10, 10)
        corner[5:, 5:] = False
        inner = segment(self.size, (5, 5, 10, 10), score=0.9)
        assert len(mask_nms([Segment(0, 0.8, corner), inner])) == 2

    def test_nothing(self):
        assert mask_nms([]) == []
        assert mask_nms([Segment(0, 0.9, torch.zeros(3, 3, dtype=torch.bool))]) == []

    def test_errors(self):
        one = segment(self.size, (0, 0, 5, 5))
        with pytest.raises(ValueError, match="score is None"):
            mask_nms([replace(one, score=None)])
        with pytest.raises(ValueError, match=r"`segments\[1\]`: mask of shape \(3, 3\)"):
            mask_nms([one, segment((3, 3), (0, 0, 1, 1))])
        with pytest.raises(ValueError, match="`iou_threshold`"):
            mask_nms([one], iou_threshold=1.5)
        with pytest.raises(ValueError, match="`containment_threshold`"):
            mask_nms([one], containment_threshold=-1)


class TestMergeTwoTiles:
    """An image of 10 x 18; crops at x 0..10 and 8..18, with an overlap of 2 columns."""

    size = (10, 18)
    boxes = [(0, 0, 10, 10), (8, 0, 18, 10)]
    crop = (10, 10)

    def merge(self, left, right, **kwargs):
        return merge_tiles([left, right], self.boxes, self.size, **kwargs)

    def test_cut_object_is_united_with_its_best_score(self):
        left = segment(self.crop, (5, 2, 10, 4), score=0.7)
        right = segment(self.crop, (0, 2, 6, 4), score=0.8)
        (merged,) = self.merge([left], [right])
        assert torch.equal(merged.mask, rectangle(self.size, 5, 2, 14, 4))
        assert merged.score == 0.8 and merged.label_id == 0 and not merged.was_fused
        assert merged.box == (5, 2, 14, 4)

    @pytest.mark.parametrize(("rows", "count"), [(4, 1), (5, 2)])
    def test_masks_have_to_agree_in_the_overlap(self, rows, count):
        # In the overlap 2 x 2 pixels in common; 8 in the union (IoU 0.5) or 10 (0.4), of 2 x rows each.
        left = segment(self.crop, (0, 0, 10, 3))
        right = segment(self.crop, (0, 1, 10, rows))
        assert len(self.merge([left], [right], agreement_threshold=0.45)) == count

    def test_only_the_overlap_counts(self):
        # Far more pixels outside of the overlap than in it.
        left, right = segment(self.crop, (0, 0, 10, 10)), segment(self.crop, (0, 0, 10, 10))
        (merged,) = self.merge([left], [right])
        assert merged.mask.all()

    def test_another_label_stays(self):
        left, right = segment(self.crop, (5, 2, 10, 4), label=1), segment(self.crop, (0, 2, 6, 4), label=2)
        assert [item.label_id for item in self.merge([left], [right])] == [1, 2]

    def test_touching_neighbours_of_a_label_stay(self):
        truth = [segment(self.size, (3, 0, 15, 5)), segment(self.size, (3, 5, 15, 10))]
        assert_found(self.merge(*see(truth, self.boxes)), truth)

    def test_neighbours_that_touch_at_the_seam_stay(self):
        truth = [segment(self.size, (0, 0, 9, 10)), segment(self.size, (9, 0, 18, 10))]
        assert_found(self.merge(*see(truth, self.boxes)), truth)

    @pytest.mark.parametrize("score", [0.1, 1.0])
    def test_fragment_at_a_border_never_replaces_the_whole(self, score):
        whole = segment(self.crop, (0, 0, 8, 10), score=0.5)
        sliver = segment(self.crop, (9, 0, 10, 3), score=score)  # 3 pixels in common, 20 in the union
        (merged,) = self.merge([sliver], [whole])
        assert torch.equal(merged.mask, rectangle(self.size, 8, 0, 16, 10))
        assert merged.score == 0.5

    def test_of_two_equal_fragments_one_is_left(self):
        left, right = segment(self.crop, (8, 0, 10, 5), score=0.8), segment(self.crop, (0, 0, 2, 5), score=0.9)
        (merged,) = self.merge([left], [right], agreement_threshold=1.0)
        assert merged.score == 0.9

    def test_segments_of_one_crop_are_never_united(self):
        pair = [segment(self.crop, (0, 0, 6, 10)), segment(self.crop, (4, 0, 10, 10))]
        assert len(self.merge(pair, [], agreement_threshold=0.1)) == 2

    def test_duplicates_within_a_crop_are_dropped_before_they_can_spread(self):
        left = segment(self.crop, (5, 2, 10, 4), score=0.9)
        blob = segment(self.crop, (4, 1, 10, 4), score=0.6)  # IoU 10 / 18
        right = segment(self.crop, (0, 2, 6, 4), score=0.8)
        (merged,) = self.merge([blob, left], [right])
        assert torch.equal(merged.mask, rectangle(self.size, 5, 2, 14, 4))

    def test_duplicates_of_two_crops_that_do_not_agree_are_dropped(self):
        left = segment(self.crop, (8, 2, 9, 8), score=0.9)  # 6 pixels
        right = segment(self.crop, (0, 2, 2, 9), score=0.8)  # 14, 6 in common
        (merged,) = self.merge([left], [right])
        assert merged.score == 0.9 and merged.box == (8, 2, 9, 8)

    def test_stuff_is_united(self):
        left = segment(self.crop, (0, 0, 10, 3), score=0.6, label=3)
        right = segment(self.crop, (4, 7, 10, 10), score=0.7, label=3)
        (merged,) = self.merge([left], [right], stuff_ids=[3])
        assert torch.equal(merged.mask, rectangle(self.size, 0, 0, 10, 3) | rectangle(self.size, 12, 7, 18, 10))
        assert merged.score == 0.7 and merged.was_fused
        assert len(self.merge([left], [right])) == 2

    def test_stuff_of_one_crop_keeps_what_it_says(self):
        assert not self.merge([segment(self.crop, (0, 0, 10, 3))], [], stuff_ids=[0])[0].was_fused
        (merged,) = self.merge([replace(segment(self.crop, (0, 0, 10, 3)), was_fused=True)], [], stuff_ids=[0])
        assert merged.was_fused

    def test_overlap_stays_unless_exclusive(self):
        left, right = segment(self.crop, (0, 0, 10, 10), label=0), segment(self.crop, (0, 0, 10, 10), label=1)
        first, second = self.merge([left], [right])
        assert first.mask.sum() == second.mask.sum() == 100
        # The centres are at x 5 and 13: the border between the crops is at 9.
        first, second = self.merge([left], [right], exclusive=True)
        assert torch.equal(first.mask, rectangle(self.size, 0, 0, 9, 10))
        assert torch.equal(second.mask, rectangle(self.size, 9, 0, 18, 10))

    def test_exclusive_takes_what_the_nearest_crop_left(self):
        (merged,) = self.merge([segment(self.crop, (5, 0, 10, 10))], [], exclusive=True)
        assert torch.equal(merged.mask, rectangle(self.size, 5, 0, 10, 10))

    def test_exclusive_prefers_the_better_within_a_crop(self):
        thing, other = segment(self.crop, (0, 0, 6, 6), 0.9, label=1), segment(self.crop, (3, 0, 9, 6), 0.8)
        first, second = self.merge([other, thing], [], exclusive=True)
        assert first.box == (0, 0, 6, 6) and second.box == (6, 0, 9, 6)

    def test_exclusive_leaves_out_what_lost_all_its_pixels(self):
        wrong, right = segment(self.crop, (9, 0, 10, 9), label=1), segment(self.crop, (0, 0, 8, 10), label=0)
        (merged,) = self.merge([wrong], [right], exclusive=True)
        assert merged.label_id == 0

    def test_semantic_maps_are_stitched(self):
        maps = [torch.zeros(self.crop, dtype=torch.long), torch.full(self.crop, 2)]
        maps[0][5:] = 1
        maps[1][5:] = 1
        found = [[Segment(label, None, labels == label) for label in labels.unique().tolist()] for labels in maps]
        merged = merge_tiles(found, self.boxes, self.size, exclusive=True)
        assert [(item.label_id, item.score, item.was_fused) for item in merged] == [
            (0, None, False),
            (1, None, True),
            (2, None, False),
        ]
        assert [item.box for item in merged] == [(0, 0, 9, 5), (0, 5, 18, 10), (9, 0, 18, 5)]
        assert torch.stack([item.mask for item in merged]).sum(0).eq(1).all()

    def test_order_is_by_score_then_label_then_place(self):
        found = [
            segment(self.crop, (6, 0, 7, 1), score=0.5),
            segment(self.crop, (0, 0, 1, 1), score=0.5, label=1),
            segment(self.crop, (0, 0, 1, 1), score=0.5),
        ]
        merged = self.merge(found, [segment(self.crop, (5, 5, 7, 7), score=0.6)])
        assert [(item.score, item.label_id, item.box[0]) for item in merged] == [
            (0.6, 0, 13),
            (0.5, 0, 0),
            (0.5, 0, 6),
            (0.5, 1, 0),
        ]

    def test_nothing(self):
        assert self.merge([], []) == []
        assert self.merge([Segment(0, 0.9, torch.zeros(self.crop, dtype=torch.bool))], [], exclusive=True) == []

    def test_errors(self):
        one = segment(self.crop, (0, 0, 5, 5))
        with pytest.raises(ValueError, match="`found`: 1 lists of segments for 2 `boxes`"):
            merge_tiles([[one]], self.boxes, self.size)
        with pytest.raises(ValueError, match=r"`boxes\[1\]`: .* outside the image of width 12 and height 10"):
            merge_tiles([[], []], self.boxes, (10, 12))
        with pytest.raises(ValueError, match=r"`found\[1\]\[0\]`: mask of shape \(10, 18\)"):
            self.merge([one], [segment(self.size, (0, 0, 5, 5))])
        with pytest.raises(ValueError, match="`agreement_threshold`"):
            self.merge([one], [], agreement_threshold=2)
        with pytest.raises(ValueError, match="`image_size`"):
            merge_tiles([[], []], self.boxes, (10, 0))


class TestFragments:
    """Two crops of 10 x 10 with an overlap of 2, side by side or one below the other."""

    @pytest.mark.parametrize("turns", range(4))
    def test_cut_at_any_side(self, turns):
        boxes, size = self.crops(turns)
        whole = torch.rot90(rectangle((10, 10), 0, 0, 8, 10), -turns)
        sliver = torch.rot90(rectangle((10, 10), 9, 0, 10, 3), -turns)
        (merged,) = merge_tiles([[Segment(0, 0.9, sliver)], [Segment(0, 0.5, whole)]], boxes, size)
        assert merged.score == 0.5 and merged.mask.sum() == 80

    @pytest.mark.parametrize("turns", range(4))
    @pytest.mark.parametrize("y0", [0, 7])
    def test_a_border_of_the_image_does_not_cut(self, turns, y0):
        boxes, size = self.crops(turns)
        large = torch.rot90(rectangle((10, 10), 0, 0, 8, 10), -turns)
        small = torch.rot90(rectangle((10, 10), 8, y0, 9, y0 + 3), -turns)
        (merged,) = merge_tiles([[Segment(0, 0.9, small)], [Segment(0, 0.5, large)]], boxes, size)
        assert merged.score == 0.9 and merged.mask.sum() == 3

    def crops(self, turns):
        """The second crop is on the right, below, on the left or above."""
        low, high = (0, 0, 10, 10), [(8, 0, 18, 10), (0, 8, 10, 18)][turns % 2]
        return [low, high] if turns < 2 else [high, low], [(10, 18), (18, 10)][turns % 2]


class TestMergeManyTiles:
    size = (300, 400)

    @pytest.mark.parametrize("overlap", [0.1, 0.2, 0.6])
    def test_object_at_the_corner_of_four_tiles(self, overlap):
        boxes = tile_boxes(self.size, (2, 2), overlap)
        truth = [segment(self.size, (195, 145, 205, 155)), segment(self.size, (100, 80, 320, 210), label=1)]
        found = see(truth, boxes)
        assert [len(segments) for segments in found] == [2, 2, 2, 2]
        assert_found(merge_tiles(found, boxes, self.size), truth)

    def test_object_over_all_tiles(self):
        boxes = tile_boxes(self.size, (3, 4))
        truth = [segment(self.size, (0, 0, 400, 300)), segment(self.size, (5, 5, 390, 20), label=1)]
        assert_found(merge_tiles(see(truth, boxes), boxes, self.size), truth)

    def test_arms_that_only_meet_in_other_crops(self):
        boxes = tile_boxes(self.size, (2, 2))
        horseshoe = rectangle(self.size, 50, 20, 350, 280) & ~rectangle(self.size, 80, 0, 320, 250)
        truth = [Segment(0, 0.9, horseshoe)]
        assert_found(merge_tiles(see(truth, boxes), boxes, self.size), truth)

    def test_object_in_several_pieces_within_a_crop(self):
        # A frame: crops at its sides see two bars of it.
        boxes = tile_boxes(self.size, (3, 3))
        frame = rectangle(self.size, 20, 20, 380, 280) & ~rectangle(self.size, 30, 30, 370, 270)
        truth = [Segment(0, 0.9, frame), segment(self.size, (150, 100, 250, 200))]
        assert_found(merge_tiles(see(truth, boxes), boxes, self.size), truth)

    def test_panoptic_scene_is_restored(self):
        truth = crowd(self.size, 30, (8, 60), labels=3)
        things = torch.stack([item.mask for item in truth]).any(0)
        top = rectangle(self.size, 0, 0, 400, 140)
        truth += [Segment(3, 0.9, top & ~things), Segment(4, 0.9, ~top & ~things)]
        boxes = tile_boxes(self.size, (2, 3))
        merged = merge_tiles(see(truth, boxes, (0.5, 1.0)), boxes, self.size, stuff_ids=range(3, 5), exclusive=True)
        assert_found(merged, truth)
        assert torch.stack([item.mask for item in merged]).sum(0).eq(1).all()

    def test_without_overlap_objects_stay_in_pieces(self):
        boxes = tile_boxes(self.size, (1, 2), overlap=0.0)
        found = see([segment(self.size, (150, 10, 250, 20))], boxes)
        assert [item.box for item in merge_tiles(found, boxes, self.size)] == [(150, 10, 200, 20), (200, 10, 250, 20)]


@pytest.fixture(scope="module")
def truth():
    return crowd(TestCrowd.size, 120, (8, 130))


class TestCrowd:
    """120 objects stand for a scene with more objects than queries; no crop has more than `QUERIES`."""

    size = (1000, 1400)

    @pytest.mark.parametrize(("tiles", "overlap", "seen", "cut"), [((2, 3), 0.2, 160, 0), ((4, 5), 0.1, 180, 20)])
    @pytest.mark.parametrize("exclusive", [False, True])
    def test_every_object_exactly_once(self, truth, tiles, overlap, seen, cut, exclusive):
        boxes = tile_boxes(self.size, tiles, overlap)
        found = see(truth, boxes, (0.5, 1.0))
        assert max(len(segments) for segments in found) <= QUERIES < len(truth)
        # Many are seen by several crops, and in the finer grid many by none as a whole.
        assert sum(len(segments) for segments in found) >= seen
        places = [item.box for item in truth]
        assert sum(not any(contains(box, place) for box in boxes) for place in places) >= cut
        merged = merge_tiles(found, boxes, self.size, exclusive=exclusive)
        assert_found(merged, truth)
        scores = [item.score for item in merged]
        assert scores == sorted(scores, reverse=True)

    def test_order_within_crops_does_not_matter(self, truth):
        boxes = tile_boxes(self.size, (2, 3))
        found = see(truth, boxes, (0.5, 1.0))
        first = merge_tiles(found, boxes, self.size)
        second = merge_tiles([segments[::-1] for segments in found], boxes, self.size)
        assert [(item.score, item.label_id, item.box) for item in first] == [
            (item.score, item.label_id, item.box) for item in second
        ]
        assert all(torch.equal(a.mask, b.mask) for a, b in zip(first, second, strict=True))

    def test_ragged_masks_and_duplicates(self, truth):
        # Each crop draws each object a little too large or too small, and a third of them twice.
        boxes = tile_boxes(self.size, (2, 3), overlap=0.3)
        rng = np.random.default_rng(1)
        truth = [item for item in truth if min(item.box[2] - item.box[0], item.box[3] - item.box[1]) >= 24]
        found = []
        for segments in see(truth, boxes, (0.5, 1.0)):
            found.append([replace(item, mask=self.resized(item.mask, int(rng.integers(-1, 2)))) for item in segments])
            found[-1] += [replace(item, score=0.4) for item in found[-1] if rng.random() < 0.3]
        merged = merge_tiles(found, boxes, self.size)
        assert len(merged) == len(truth)
        places = [item.box for item in merged]
        for item in truth:
            box = item.box
            overlaps = [box_iou(place, box) for place in places]
            best = merged[overlaps.index(max(overlaps))]
            assert iou(best.mask, item.mask) > 0.7 and best.label_id == item.label_id

    def resized(self, mask, pixels):
        if pixels == 0 or mask.sum() < 200:
            return mask
        sign = 1 if pixels > 0 else -1
        grown = torch.nn.functional.max_pool2d(sign * mask[None].float(), 3, stride=1, padding=1)[0]
        return (sign * grown).bool()
