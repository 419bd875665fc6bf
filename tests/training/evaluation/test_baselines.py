"""Answers of the baselines, worked out by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from processing_xsam.post_processing_xsam import Geometry
from processing_xsam.results_xsam import ResultOptions
from xsam_training.data.samples import AnnotatedSample, Turn, decode_masks, encode_masks
from xsam_training.data.shape_world.options import World
from xsam_training.data.shape_world.reader import ShapeWorldCategoryReader, ShapeWorldReader
from xsam_training.data.shape_world.scene import Thing, draw_scene
from xsam_training.data.shape_world.vocabulary import Combination
from xsam_training.evaluation.baselines import (
    Oracle,
    ThingPredictor,
    find_scene,
    find_target,
    largest,
    random_of_kind,
    resized_shares,
)
from xsam_training.evaluation.mean_iou import MeanIoU

OPTIONS = ResultOptions()
SIDE = 16
ORACLE = Oracle(input_size=SIDE, mask_size=4)


def box(top, left, height, width):
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def thing(kind, mask):
    return Thing(Combination("red", kind), "small", "plain", 2.0, (0.5, 0.5), mask, encode_masks(mask[None])[0])


CIRCLE, OTHER_CIRCLE, STAR = (
    thing("circle", box(0, 0, 2, 2)),
    thing("circle", box(8, 8, 3, 3)),
    thing("star", box(0, 8, 3, 3)),
)
THINGS = (CIRCLE, OTHER_CIRCLE, STAR)


def referring(*things):
    return Turn("referring", text="it", masks=tuple(each.rle for each in things), mask_phrases=(0,) * len(things))


def test_a_random_thing_has_the_kind_of_the_target():
    drawn = [random_of_kind(THINGS, CIRCLE, random.Random(seed)) for seed in range(20)]
    assert {id(each) for each in drawn} == {id(CIRCLE), id(OTHER_CIRCLE)}
    assert random_of_kind(THINGS, STAR, random.Random(0)) is STAR
    assert len({id(random_of_kind(THINGS, None, random.Random(seed))) for seed in range(20)}) == 3


def test_the_largest_thing_has_most_pixels_and_comes_first():
    assert largest(THINGS, CIRCLE, random.Random(0)) is OTHER_CIRCLE
    assert largest((CIRCLE, STAR, OTHER_CIRCLE), None, random.Random(0)) is STAR


def test_the_target_is_found_by_its_mask():
    assert find_target(THINGS, referring(OTHER_CIRCLE)) is OTHER_CIRCLE
    assert find_target(THINGS, referring()) is None
    with pytest.raises(ValueError, match="a referring turn with 2 masks, 2 of which are things"):
        find_target(THINGS, referring(CIRCLE, STAR))
    with pytest.raises(ValueError, match="1 masks, 0 of which are things"):
        find_target(THINGS, referring(thing("ring", box(5, 5, 2, 2))))


def test_scenes_of_a_later_attempt_are_found():
    """The only family is rare in scenes of few things, so that the reader passes some by."""
    reader = ShapeWorldReader(tasks=["referring"], families=["size"], count=8, fewest_things=2, most_things=2)
    first = [draw_scene(reader.world, index).image.tobytes() for index in range(8)]
    samples = list(map(reader.__getitem__, range(8)))
    assert any(sample.image.tobytes() != pixels for sample, pixels in zip(samples, first, strict=True))
    predictor = ThingPredictor(reader.world, random_of_kind)
    for index, sample in enumerate(samples):
        things = find_scene(reader.world, index, sample.image).things
        answers = predictor(sample, index, OPTIONS)
        assert answers == predictor(sample, index, OPTIONS)
        for turn, answer in zip(sample.turns, answers, strict=True):
            (segment,) = answer.segments
            (chosen,) = (each for each in things if each.rle == segment.mask)
            assert chosen.kind == find_target(things, turn).kind


def test_a_scene_of_another_world_is_named():
    image = draw_scene(World(), 0).image
    with pytest.raises(ValueError, match="none of 50 scenes with number 0 of split 'test', seed 0 has this image"):
        find_scene(World("test"), 0, image)


def test_an_absent_thing_is_answered_all_the_same():
    reader = ShapeWorldReader(tasks=["referring"], families=["absent"], count=1)
    (answer, *_) = ThingPredictor(reader.world, largest)(reader[0], 0, OPTIONS)
    assert len(answer.segments) == 1 and not reader[0].turns[0].masks
    (nothing, *_) = Oracle(128, 32)(reader[0], 0, OPTIONS)
    assert not nothing.segments


def asked(turn, size=(SIDE, SIDE)):
    sample = AnnotatedSample(Image.new("RGB", size[::-1]), (turn,), "drawn")
    (answer,) = ORACLE(sample, 0, OPTIONS)
    return answer, decode_masks([segment.mask for segment in answer.segments], size)


def test_shares_between_cells_fall_evenly():
    """Half the image: cell centres are at 1.5, 5.5, ... pixels, the edge half way between two of them."""
    shares = resized_shares(box(0, 0, SIDE, 8)[None], Geometry(SIDE, (SIDE, SIDE)), 4)
    assert shares.shape == (1, SIDE, SIDE)
    assert shares[0, 3].tolist() == [1] * 6 + [0.875, 0.625, 0.375, 0.125] + [0] * 6


def test_a_square_of_whole_cells_loses_its_corners():
    """At a corner pixel the share is 0.625 * 0.625, beside it 0.625 * 0.875; straight edges are exact."""
    _, (square,) = asked(referring(thing("square", box(4, 4, 8, 8))))
    expected = box(4, 4, 8, 8)
    expected[[4, 4, 11, 11], [4, 11, 4, 11]] = False
    assert np.array_equal(square, expected)
    _, (half,) = asked(referring(thing("square", box(0, 0, SIDE, 8))))
    assert np.array_equal(half, box(0, 0, SIDE, 8))


def test_what_is_smaller_than_half_a_cell_is_lost():
    answer, _ = asked(referring(thing("circle", box(0, 0, 2, 2))))
    assert answer.segments == () and answer.failure == ""


def test_an_image_that_is_no_square_fills_a_part_of_the_grid():
    mask = np.zeros((SIDE, 2 * SIDE), dtype=bool)
    mask[:, :SIDE] = True
    turn = Turn("referring", text="it", masks=tuple(encode_masks(mask[None])), mask_phrases=(0,))
    _, (found,) = asked(turn, (SIDE, 2 * SIDE))
    # Of the grid's 4 x 4 cells the image has the upper two rows; below is padding, which counts as outside.
    assert found[:12, :SIDE].all() and not found[:, SIDE:].any()


def test_categories_share_the_pixels_out():
    sky, ground = box(0, 0, 7, SIDE), box(7, 0, 9, SIDE)
    turn = Turn(
        "generic",
        labels=("sky", "grass"),
        masks=tuple(encode_masks(np.stack([ground, sky]))),
        mask_phrases=(1, 0),
    )
    answer, masks = asked(turn)
    assert [segment.phrase for segment in answer.segments] == [1, 0] and (masks.sum(0) == 1).all()
    # The ground has 1 row of the cells from row 4 on: the share 1/4 at row 5.5 and 1 at row 9.5, one half at 6.83.
    assert np.array_equal(masks[0], box(7, 0, 9, SIDE))


def test_a_phrase_has_the_mask_of_its_largest_thing():
    small, large, star = box(0, 0, 4, 8), box(8, 0, 8, 8), box(0, 12, 16, 4)
    turn = Turn(
        "grounded-conversation",
        answer="Two circles and a star.",
        spans=((0, 11), (16, 22)),
        masks=tuple(encode_masks(np.stack([small, large, star]))),
        mask_phrases=(0, 0, 1),
    )
    answer, masks = asked(turn)
    assert (answer.text, answer.spans) == (turn.answer, turn.spans)
    assert [segment.phrase for segment in answer.segments] == [0, 1]
    assert masks[0][9:, :7].all() and not masks[0][:8].any() and np.array_equal(masks[1], star)


def test_the_oracle_speaks_the_annotated_answer():
    answer, _ = asked(Turn("chat", text="How many?", answer="Two."))
    assert answer.text == "Two." and not answer.segments


def test_the_oracle_is_right_about_scenes_up_to_the_edges():
    reader = ShapeWorldCategoryReader(split="test", count=3)
    metric, oracle = MeanIoU(reader.labels, reader.num_things), Oracle(128, 32)
    measured = [
        metric.measure(reader[index].turns[0], oracle(reader[index], index, OPTIONS)[0], (128, 128))
        for index in range(3)
    ]
    assert 0.9 < metric.figures(measured)["mIoU"] < 0.99
