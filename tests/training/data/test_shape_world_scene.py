"""Scenes of the generated world: reproducible, exact masks, words that say what is drawn."""

import hashlib
import time

import numpy as np
import pytest

from xsam_training.data.samples import decode_masks
from xsam_training.data.shape_world.options import ShapeWorldOptions, World
from xsam_training.data.shape_world.outlines import OUTLINES, draw_outline
from xsam_training.data.shape_world.scene import crop, draw_scene
from xsam_training.data.shape_world.vocabulary import COLORS, FACTS, HELD_OUT, KINDS

EXPECTED_THINGS = [
    ("yellow cross", "small", "plain"),
    ("purple triangle", "small", "striped"),
    ("purple ring", "large", "striped"),
    ("green triangle", "small", "dotted"),
    ("black cross", "large", "striped"),
    ("blue triangle", "large", "plain"),
    ("orange square", "large", "plain"),
]
SCENES = [draw_scene(World(), index) for index in range(40)]


def digest(scene) -> str:
    content = [scene.image.tobytes(), *(thing.mask.tobytes() for thing in scene.things), repr(scene.sky.rle).encode()]
    return hashlib.sha256(b"".join(content)).hexdigest()


def test_a_scene_does_not_depend_on_what_was_drawn_before():
    assert digest(draw_scene(World(), 7)) == digest(SCENES[7])
    assert len({digest(scene) for scene in SCENES}) == len(SCENES)


def test_what_is_in_a_scene_stays_the_same_from_version_to_version():
    """Checkpoints are compared on these scenes: a change of what is drawn changes all their figures."""
    found = [(thing.combination.name, thing.size, thing.texture) for thing in SCENES[0].things]
    assert found == EXPECTED_THINGS
    assert (SCENES[0].sky.material.name, SCENES[0].ground.material.name) == ("cliffs", "grass")


def test_splits_seeds_and_attempts_have_other_scenes():
    worlds = [World("train", 0), World("test", 0), World("held-out", 0), World("train", 1)]
    digests = {digest(draw_scene(world, 0, attempt)) for world in worlds for attempt in range(2)}
    assert len(digests) == 8


def test_every_pixel_belongs_to_one_thing_or_material():
    for scene in SCENES:
        parts = [*scene.things, *scene.stuff]
        masks = np.stack([part.mask for part in parts])
        assert masks.dtype == bool and (masks.sum(axis=0) == 1).all()
        assert masks.any(axis=(1, 2)).all()
        assert np.array_equal(decode_masks([part.rle for part in parts], masks.shape[1:]), masks)


def test_what_is_drawn_is_as_many_as_asked_for_and_visible():
    options = ShapeWorldOptions(fewest_things=4, most_things=6, least_visible=0.7)
    for index in range(20):
        scene = draw_scene(World(options=options), index)
        assert 4 <= len(scene.things) <= 6
        for thing in scene.things:
            area = draw_outline(thing.kind, thing.radius, 0, (64, 64)).area
            # Turning an outline changes the pixels that it covers by a few.
            assert thing.mask.sum() >= 0.7 * 0.94 * area


def test_some_things_are_partly_hidden_and_some_leave_the_image():
    shares = [
        thing.mask.sum() / draw_outline(thing.kind, thing.radius, 0, (64, 64)).area
        for scene in SCENES
        for thing in scene.things
    ]
    assert 0.15 < np.mean(np.array(shares) < 0.9) < 0.6
    edges = [thing.mask[[0, -1]].any() or thing.mask[:, [0, -1]].any() for scene in SCENES for thing in scene.things]
    assert 0.1 < np.mean(edges) < 0.5


def test_sizes_are_clearly_apart():
    for thing in (thing for scene in SCENES for thing in scene.things):
        low, high = (9, 12.3) if thing.size == "small" else (16.7, 20)
        assert low <= thing.radius <= high


def test_the_middle_of_a_plain_thing_has_its_colour_and_textures_a_second_shade():
    for thing, image in ((thing, np.asarray(scene.image, int)) for scene in SCENES for thing in scene.things):
        inside = thing.mask.copy()
        for axis in (0, 1):
            for step in (-2, -1, 1, 2):
                inside &= np.roll(thing.mask, step, axis=axis)
        distance = np.abs(image[inside] - COLORS[thing.color]).max(axis=1)
        if thing.texture == "plain":
            assert np.mean(distance < 30) > 0.9
        elif inside.sum() > 100:
            assert 0.2 < np.mean(distance < 30) < 0.95


def test_centers_are_of_the_visible_pixels():
    thing = SCENES[0].things[0]
    rows, columns = np.nonzero(thing.mask)
    assert thing.center == pytest.approx(((columns.mean() + 0.5) / 128, (rows.mean() + 0.5) / 128))


def test_later_things_cover_earlier_ones():
    scene = SCENES[0]
    assert scene.sky.mask[:40].mean() > scene.sky.mask[-40:].mean() == 0
    assert scene.ground.mask[-40:].any() and not scene.ground.mask[:40].any()


def test_a_larger_image_has_larger_things():
    world = World(options=ShapeWorldOptions(image_size=256))
    large, small = draw_scene(world, 0), SCENES[0]
    assert large.image.size == (256, 256)
    assert large.things[0].combination == small.things[0].combination
    assert large.things[0].radius == pytest.approx(2 * small.things[0].radius)


@pytest.mark.parametrize("kind", KINDS)
def test_outlines_are_drawn_where_they_belong(kind):
    stencil = draw_outline(kind, 16, 0, (40.5, 30.5))
    rows, columns = np.nonzero(stencil.coverage >= 0.5)
    assert abs(columns.mean() + stencil.left - 40) < (0.7 if kind != "arrow" else 4)
    assert abs(rows.mean() + stencil.top - 30) < 2
    assert 0.35 < stencil.area / (np.pi * 16**2) < 1.1
    assert stencil.coverage[0].max() == stencil.coverage[:, -1].max() == 0
    assert np.linalg.norm(OUTLINES[kind].points, axis=1).max() <= 1.35


def test_areas_of_outlines_are_those_of_geometry():
    assert draw_outline("circle", 20, 0, (50, 50)).area == pytest.approx(np.pi * 400, rel=0.02)
    assert draw_outline("square", 20, 15, (50, 50)).area == pytest.approx(2 * 25**2, rel=0.02)
    assert draw_outline("ring", 20, 0, (50, 50)).area == pytest.approx(np.pi * 400 * (1.08**2 - 0.56**2), rel=0.03)


def test_a_stencil_is_cropped_at_the_image():
    stencil = draw_outline("circle", 10, 0, (3, 125))
    (rows, columns), (inner_rows, inner_columns) = crop(stencil, 128)
    assert (columns.start, rows.stop) == (0, 128)
    assert (inner_columns.start, inner_rows.start) == (-stencil.left, 0)
    assert stencil.coverage[inner_rows, inner_columns].shape == (rows.stop - rows.start, columns.stop - columns.start)


def test_held_out_scenes_have_a_held_out_thing_and_others_none():
    for split, expected in (("train", False), ("test", False), ("held-out", True)):
        for index in range(60):
            scene = draw_scene(World(split), index)
            assert any(HELD_OUT[thing.kind] == thing.color for thing in scene.things) == expected


def test_every_kind_and_colour_is_seen_in_training():
    combinations = World().vocabulary.combinations
    assert len(combinations) == 42
    assert {each.kind for each in combinations} == set(KINDS[:6]) and {each.color for each in combinations} == set(
        COLORS
    )
    assert len(set(HELD_OUT.values())) == len(KINDS) == len(FACTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": 9}, "kinds is 9; choose it from 2 to 8"),
        ({"colors": 2}, "colors is 2"),
        ({"smallest_radius": 14}, r"largest_radius is 20; choose it from 21\.0"),
        ({"fewest_things": 8}, "most_things is 7; choose it from 8 to 12"),
        ({"least_visible": 0}, "least_visible is 0"),
        ({"image_size": 16}, "image_size is 16"),
    ],
)
def test_options_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ShapeWorldOptions(**changes)


def test_worlds_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="split is 'val'; possible are train, test, held-out"):
        World("val")
    with pytest.raises(ValueError, match="seed is -1"):
        World(seed=-1)
    with pytest.raises(ValueError, match=r"split 'held-out': none of .* is among 2 kinds and 3 colors"):
        World("held-out", options=ShapeWorldOptions(kinds=2, colors=3))


def test_a_scene_without_place_says_so():
    options = ShapeWorldOptions(
        smallest_radius=20, largest_radius=60, fewest_things=12, most_things=12, least_visible=1
    )
    with pytest.raises(ValueError, match=r"scene 0 has place for \d+ things only; make fewest_things"):
        draw_scene(World(options=options), 0)


def test_a_scene_takes_milliseconds():
    start = time.process_time()
    for index in range(20):
        draw_scene(World(), index)
    # Far above what it takes, so that a busy machine passes.
    assert (time.process_time() - start) / 20 < 0.05
