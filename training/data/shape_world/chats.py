"""
Conversations about a scene in words: is it there, how many, what colour, what shape, what is it, what is marked and
where, and all of it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

from ..samples import Region, Turn
from .captions import caption
from .expressions import ZONE_CERTAIN, ZONES, Description
from .families import FAMILIES, draw_expression, draw_unique
from .scene import Scene, Thing
from .vocabulary import NUMBERS, Combination, Vocabulary, plural, sentence, with_article

# For each question that is asked for.
TRIES = 3
DESCRIPTION = "description"
WHAT_IS_THERE = "What is in this picture?"
Things = Sequence[Thing]


def _place(thing: Thing) -> str:
    """Of the nine that thirds of the image make: "top left", "bottom", "middle"."""
    sides = [zone.split()[-1] for zone, side in ZONES.items() if side.is_in_zone(thing, ZONE_CERTAIN)]
    return " ".join(reversed(sides)) or "middle"


# Questions about a marked thing, and their answers.
REGION_FAMILIES: dict[str, tuple[str, Callable[[Thing], str]]] = {
    "region-identity": ("What is this?", lambda thing: with_article(thing.combination.name)),
    "region-kind": ("What shape is this?", lambda thing: thing.kind),
    "region-color": ("What colour is this?", lambda thing: thing.color),
    "region-place": ("Where is this?", _place),
}


def draw_chat(
    families: Sequence[str],
    questions: int,
    scene: Scene,
    regions: Sequence[tuple[Region, ...]],
    vocabulary: Vocabulary,
    rng: random.Random,
) -> list[Turn]:
    """
    Questions, each of a drawn family; then, if it is among the families, a description, which would give the other
    answers away.

    Args:
        families: names of `CHAT_FAMILIES`, `REGION_FAMILIES` or "description".
        questions: this many or one less, fewer if the scene gives no others.
        regions: the visual prompts of each thing, for `REGION_FAMILIES`.
        vocabulary: only its combinations are named.
    """
    asked = [family for family in families if family != DESCRIPTION]
    drawers = CHAT_FAMILIES | {family: partial(_region, family, regions) for family in REGION_FAMILIES}
    turns: list[Turn] = []
    count = rng.randint(max(questions - 1, 1), questions)
    for _ in range(TRIES * questions if asked else 0):
        turn = drawers[rng.choice(asked)](scene.things, vocabulary, rng)
        # Of questions that read the same about the same thing, or about no marked one, the first counts.
        if turn is not None and len(turns) < count and not any(_same(turn, other) for other in turns):
            turns.append(turn)
    if DESCRIPTION in families:
        turns.append(Turn("chat", text=WHAT_IS_THERE, answer=caption(scene).answer))
    return turns


def _same(turn: Turn, other: Turn) -> bool:
    return turn.text == other.text and turn.regions == other.regions


def _existence(things: Things, vocabulary: Vocabulary, rng: random.Random) -> Turn | None:
    """Yes and no are equally likely; what is absent has a colour and a kind that are there, if possible."""
    present = sorted({thing.combination for thing in things})
    absent = _mixed(things, vocabulary) or [each for each in vocabulary.combinations if each not in present]
    answer, candidates = rng.choice([("Yes.", present), ("No.", absent)])
    if not candidates:
        return None
    return Turn("chat", text=f"Is there {with_article(rng.choice(candidates).name)}?", answer=answer)


def _count(things: Things, vocabulary: Vocabulary, rng: random.Random) -> Turn | None:
    """The numbers that something is there of are equally likely."""
    descriptions = [
        Description(),
        *(Description(kind) for kind in vocabulary.kinds),
        *(Description(None, color) for color in vocabulary.colors),
        *(Description(each.kind, each.color) for each in _mixed(things, vocabulary)),
        *(Description(thing.kind, thing.color) for thing in things),
    ]
    by_number = defaultdict(list)
    for description in descriptions:
        by_number[len(description.matches(things).certain)].append(description)
    number = rng.choice(sorted(by_number))
    noun = plural(rng.choice(by_number[number]).noun)
    return Turn("chat", text=f"How many {noun} are there?", answer=sentence(NUMBERS[number]))


def _color(things: Things, vocabulary: Vocabulary, rng: random.Random) -> Turn | None:
    description = draw_unique(things, rng)
    if description is None:
        return None
    thing = things[description.matches(things).target]
    return Turn("chat", text=f"What colour is {description.text}?", answer=sentence(thing.color))


def _kind(things: Things, vocabulary: Vocabulary, rng: random.Random) -> Turn | None:
    thing = rng.choice(things)
    looks = [Description(color=thing.color), Description(color=thing.color, texture=thing.texture)]
    description = rng.choice([*looks, Description(color=thing.color, size=thing.size)])
    if description.matches(things).target is None:
        return None
    return Turn("chat", text=f"What shape is {description.text}?", answer=sentence(thing.kind))


def _identity(things: Things, vocabulary: Vocabulary, rng: random.Random) -> Turn | None:
    """Of a thing that an expression means without saying its colour and kind."""
    family = rng.choice([family for family in FAMILIES if family != "absent"])
    found = draw_expression(family, things, vocabulary, rng)
    if found is None:
        return None
    expression, target = found
    name = things[target].combination.name
    if name in expression.text:
        return None
    return Turn("chat", text=f"What is {expression.text}?", answer=sentence(with_article(name)))


def _region(
    family: str, regions: Sequence[tuple[Region, ...]], things: Things, vocabulary: Vocabulary, rng: random.Random
) -> Turn:
    place = rng.randrange(len(things))
    question, answer = REGION_FAMILIES[family]
    return Turn("chat", text=question, regions=(regions[place],), answer=sentence(answer(things[place])))


CHAT_FAMILIES: dict[str, Callable[[Things, Vocabulary, random.Random], Turn | None]] = {
    "existence": _existence,
    "count": _count,
    "color": _color,
    "kind": _kind,
    "identity": _identity,
}


def _mixed(things: Things, vocabulary: Vocabulary) -> list[Combination]:
    """Absent combinations of a colour and a kind that are there, each with another thing."""
    present = {thing.combination for thing in things}
    mixed = {Combination(one.color, other.kind) for one, other in product(things, things)}
    return sorted(each for each in mixed - present if vocabulary.allows(each.color, each.kind))
