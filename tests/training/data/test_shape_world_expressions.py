"""Expressions mean what they say: worked by hand, and read anew from their words in many scenes."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from xsam_training.data.shape_world.expressions import (
    SUPERLATIVES,
    Description,
    Matches,
    Related,
    Superlative,
    Zoned,
)
from xsam_training.data.shape_world.families import FAMILIES, draw_expression, draw_unique
from xsam_training.data.shape_world.options import World
from xsam_training.data.shape_world.reader import ShapeWorldReader
from xsam_training.data.shape_world.scene import Thing, draw_scene
from xsam_training.data.shape_world.vocabulary import COLORS, KINDS, SIZES, TEXTURES, Combination, with_article

MASK = np.zeros((2, 2), dtype=bool)


def thing(name, x, y, radius=10.0, texture="plain"):
    size = "small" if radius < 14 else "large"
    return Thing(Combination(*name.split()), size, texture, radius, (x, y), MASK, {})


THINGS = (
    thing("red star", 0.2, 0.2),
    thing("blue star", 0.8, 0.25, radius=18),
    thing("red circle", 0.5, 0.9, texture="striped"),
    thing("green circle", 0.52, 0.6),
)


def found(expression):
    matches = expression.matches(THINGS)
    return sorted(matches.certain), sorted(matches.possible)


@pytest.mark.parametrize(
    ("expression", "text", "certain", "possible"),
    [
        (Description("star"), "the star", [0, 1], [0, 1]),
        (Description("star", "red"), "the red star", [0], [0]),
        (Description(None, "red"), "the red thing", [0, 2], [0, 2]),
        (Description("circle", None, "striped"), "the striped circle", [2], [2]),
        (Description("star", size="large"), "the large star", [1], [1]),
        (Description("ring"), "the ring", [], []),
        (Superlative("leftmost", Description()), "the leftmost thing", [0], [0]),
        (Superlative("rightmost", Description("star")), "the rightmost star", [1], [1]),
        # 0.5 and 0.52 are less apart than the margin.
        (Superlative("leftmost", Description("circle")), "the leftmost circle", [], [2, 3]),
        (Superlative("topmost", Description("circle")), "the topmost circle", [3], [3]),
        (Superlative("largest", Description("star")), "the largest star", [1], [1]),
        (Superlative("smallest", Description("circle")), "the smallest circle", [], [2, 3]),
        (Superlative("largest", Description("ring")), "the largest ring", [], []),
        (Zoned(Description("star"), "on the left"), "the star on the left", [0], [0]),
        (Zoned(Description("circle"), "at the bottom"), "the circle at the bottom", [2], [2, 3]),
        (Zoned(Description("circle"), "at the top"), "the circle at the top", [], []),
        (
            Related(Description("star"), "left of", Description("star", "blue")),
            "the star left of the blue star",
            [0],
            [0],
        ),
        # The red star is up left of the circle: nearly diagonal counts, and the blue one is to the right.
        (
            Related(Description("star"), "left of", Description("circle", "green")),
            "the star left of the green circle",
            [],
            [0],
        ),
        (
            Related(Description("circle"), "below", Description("circle", "green")),
            "the circle below the green circle",
            [2],
            [2],
        ),
        (
            Related(Description("star"), "below", Description("circle", "green")),
            "the star below the green circle",
            [],
            [],
        ),
        # Which of the two circles is meant is not known.
        (Related(Description("star"), "above", Description("circle")), "the star above the circle", [], [0, 1, 2, 3]),
        # Nothing but the anchor itself is described.
        (
            Related(Description("star", "red"), "above", Superlative("smallest", Description("star"))),
            "the red star above the smallest star",
            [],
            [0],
        ),
    ],
)
def test_what_expressions_fit(expression, text, certain, possible):
    assert expression.text == text
    assert found(expression) == (certain, possible)


def test_a_target_is_one_thing_beyond_doubt():
    one, two = frozenset([1]), frozenset([1, 2])
    assert Matches(one, one).target == 1
    assert Matches(frozenset(), one).target is None and Matches(one, two).target is None
    assert Matches(two, two).target is None and Matches(frozenset(), frozenset()).target is None
    assert Matches(frozenset(), frozenset()).is_absent and not Matches(frozenset(), one).is_absent


# An evaluation of its own, from the words.

SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
ZONES = {
    "on the left": lambda x, y: (x, 0.5),
    "on the right": lambda x, y: (1 - x, 0.5),
    "at the top": lambda x, y: (y, 0.5),
    "at the bottom": lambda x, y: (1 - y, 0.5),
}
ORDERS = {
    "leftmost": lambda each: each.center[0],
    "rightmost": lambda each: -each.center[0],
    "topmost": lambda each: each.center[1],
    "bottommost": lambda each: -each.center[1],
    "largest": lambda each: -each.radius,
    "smallest": lambda each: each.radius,
}


def evaluate(text, things):
    """Things that fit words, without any margin: the first of a superlative, the nearer side of the image, any offset."""
    relation = re.match(rf"^(the .+?) ({'|'.join(SIDES)}) (the .+)$", text)
    if relation:
        (anchor,) = evaluate(relation[3], things)
        axis, sign = SIDES[relation[2]]
        return [
            each
            for each in evaluate(relation[1], things)
            if each is not anchor and sign * (each.center[axis] - anchor.center[axis]) > 0
        ]
    for zone, place in ZONES.items():
        if text.endswith(f" {zone}"):
            kept = evaluate(text.removesuffix(f" {zone}"), things)
            return [each for each in kept if place(*each.center)[0] < place(*each.center)[1]]
    article, *words, noun = text.split()
    assert article == "the"
    kept = [each for each in things if noun in ("thing", each.kind)]
    order = None
    for word in words:
        if word in ORDERS:
            order = ORDERS[word]
        else:
            assert word in (*COLORS, *TEXTURES, *SIZES), text
            kept = [each for each in kept if word in (each.color, each.texture, each.size)]
    return sorted(kept, key=order)[:1] if order else kept


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_expressions_mean_one_thing_or_none(family):
    world, rng, count = World(), random.Random(0), 0
    for index in range(120):
        things = draw_scene(world, index).things
        drawn = draw_expression(family, things, world.vocabulary, rng)
        if drawn is None:
            continue
        count += 1
        expression, target = drawn
        expected = [] if target is None else [things[target]]
        assert [id(each) for each in evaluate(expression.text, things)] == [id(each) for each in expected]
        assert (target is None) == (family == "absent")
        if family in ("size", "position", "relation"):
            assert len(evaluate(expression.base.text, things)) > 1
    assert count > 70


def test_chats_ask_what_an_expression_means_and_do_not_say():
    reader, words = ShapeWorldReader(tasks=["chat"], families=["identity"], count=60), Counter()
    for index in range(reader.count):
        sample = reader[index]
        things = draw_scene(reader.world, index).things
        for turn in sample.turns:
            text = re.fullmatch(r"What is (.+)\?", turn.text)[1]
            (meant,) = evaluate(text, things)
            assert turn.answer == f"{with_article(meant.combination.name).capitalize()}."
            assert meant.combination.name not in text
            words.update(text.split())
    assert min(words[word] for word in ("thing", "largest", "leftmost", "bottom", "striped", "above")) > 2


def test_superlatives_of_the_two_evaluations_are_the_same():
    assert set(ORDERS) == set(SUPERLATIVES)


def test_absent_expressions_are_near_misses():
    world, rng = World(), random.Random(1)
    for index in range(60):
        things = draw_scene(world, index).things
        expression, _ = draw_expression("absent", things, world.vocabulary, rng)
        words = expression.base
        assert words.kind in {each.kind for each in things}
        assert words.color in {None, *(each.color for each in things)}


def test_combinations_that_are_held_out_are_named_only_where_they_may_be():
    held_out = {Combination("purple", "circle"), Combination("blue", "star")}
    things = (thing("purple star", 0.2, 0.2), thing("blue circle", 0.8, 0.8), thing("blue square", 0.5, 0.5))
    for split, expected in (("train", set()), ("held-out", held_out)):
        rng, vocabulary = random.Random(0), World(split).vocabulary
        named = [draw_expression("absent", things, vocabulary, rng)[0].base for _ in range(60)]
        assert {Combination(each.color, each.kind) for each in named if each.color} & held_out == expected


def test_a_unique_description_says_no_colour():
    rng = random.Random(0)
    assert {draw_unique(THINGS, rng).text for _ in range(60)} == {
        "the small star",
        "the large star",
        "the striped circle",
        "the plain circle",
    }
    assert draw_unique((thing("red star", 0.1, 0.1), thing("blue star", 0.9, 0.9)), rng) is None


def test_all_words_are_told_apart():
    words = [*KINDS, *COLORS, *TEXTURES, *SIZES]
    assert len(set(words)) == len(words)
