"""
The families of expressions, drawn for a scene until one means exactly one thing, or for "absent" nothing.

An expression of "size", "position" or "relation" needs what its family says: without it, it would fit several things.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .expressions import (
    POSITION_SUPERLATIVES,
    RELATIONS,
    SIZE_SUPERLATIVES,
    ZONES,
    Description,
    Expression,
    Related,
    Superlative,
    Zoned,
)
from .scene import Thing
from .vocabulary import Vocabulary

# Drawn expressions that are looked at before a scene is said to have none of the family.
TRIES = 40
# Of expressions for nothing: how many differ in a position or relation, not in what is described.
MISPLACED_SHARE = 0.4

Things = Sequence[Thing]


def draw_expression(
    family: str, things: Things, vocabulary: Vocabulary, rng: random.Random
) -> tuple[Expression, int | None] | None:
    """
    An expression and the place of the thing that it means, None of one that is absent; or None if none was found.

    Args:
        family: a name of `FAMILIES`.
        vocabulary: only its combinations are named.
    """
    for _ in range(TRIES):
        expression = FAMILIES[family](things, rng)
        if not all(vocabulary.allows(each.color, each.kind) for each in expression.descriptions):
            continue
        matches = expression.matches(things)
        if family == "absent":
            if matches.is_absent:
                return expression, None
        elif matches.target is not None and (
            family == "attribute" or len(expression.base.matches(things).possible) > 1
        ):
            return expression, matches.target
    return None


def draw_unique(things: Things, rng: random.Random) -> Description | None:
    """The description of a single thing by kind and texture or size, without its colour; None if none was found."""
    for _ in range(TRIES):
        thing = rng.choice(things)
        forms = [Description(thing.kind), Description(thing.kind, texture=thing.texture)]
        description = rng.choice([*forms, Description(thing.kind, size=thing.size)])
        if description.matches(things).target is not None:
            return description
    return None


def _describe(thing: Thing, rng: random.Random) -> Description:
    """What a thing looks like, in one of several forms."""
    return rng.choice(
        [
            Description(thing.kind),
            Description(thing.kind, thing.color),
            Description(thing.kind, thing.color),
            Description(None, thing.color),
            Description(thing.kind, None, thing.texture),
            Description(thing.kind, thing.color, thing.texture),
        ]
    )


def _attribute(things: Things, rng: random.Random) -> Expression:
    return _describe(rng.choice(things), rng)


def _size(things: Things, rng: random.Random) -> Expression:
    thing = rng.choice(things)
    # What is compared has one kind: areas of different kinds are hard to compare.
    of = Description(thing.kind, rng.choice([None, thing.color]))
    if rng.random() < 0.5:
        return Description(of.kind, of.color, size=thing.size)
    return Superlative(rng.choice(list(SIZE_SUPERLATIVES)), of)


def _position(things: Things, rng: random.Random) -> Expression:
    of = _describe(rng.choice(things), rng)
    if rng.random() < 0.5:
        return Superlative(rng.choice(list(POSITION_SUPERLATIVES)), of)
    return Zoned(of, rng.choice(list(ZONES)))


def _relation(things: Things, rng: random.Random) -> Expression:
    thing, anchor = rng.sample(things, 2) if len(things) > 1 else (things[0], things[0])
    holding = [relation for relation, side in RELATIONS.items() if side.is_beyond(thing, anchor)]
    return Related(_describe(thing, rng), rng.choice(holding or list(RELATIONS)), _anchor(anchor, rng))


def _anchor(thing: Thing, rng: random.Random) -> Expression:
    if rng.random() < 0.2:
        return Superlative(rng.choice(list(SIZE_SUPERLATIVES)), Description(thing.kind))
    return Description(thing.kind, rng.choice([None, thing.color, thing.color]))


def _absent(things: Things, rng: random.Random) -> Expression:
    """Words for things that are there, put together anew: a near miss."""
    if rng.random() < MISPLACED_SHARE:
        of = Description(rng.choice(things).kind, rng.choice([None, rng.choice(things).color]))
        if rng.random() < 0.5:
            return Zoned(of, rng.choice(list(ZONES)))
        return Related(of, rng.choice(list(RELATIONS)), _anchor(rng.choice(things), rng))
    words = Description(rng.choice(things).kind, rng.choice(things).color)
    texture, size = rng.choice(things).texture, rng.choice(things).size
    return rng.choice(
        [
            words,
            words,
            Description(words.kind, None, texture),
            Description(words.kind, None, None, size),
            Description(words.kind, words.color, None, size),
        ]
    )


FAMILIES: dict[str, Callable[[Things, random.Random], Expression]] = {
    "attribute": _attribute,
    "size": _size,
    "position": _position,
    "relation": _relation,
    "absent": _absent,
}
