"""
Expressions that describe things, and what they mean in a scene.

An expression is a small tree. What it means is said twice: the things that it certainly fits, and those that it possibly
does. Positions, sizes and relations leave room between the two, so that nothing is asked that is decided by a few
pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .scene import Thing

# Share of the image's side by which a position has to differ, and the ratio by which a radius has to.
POSITION_MARGIN, SIZE_RATIO = 0.06, 1.25
# "at the top" is the first third certainly, and possibly up to the middle.
ZONE_CERTAIN, ZONE_POSSIBLE = 1 / 3, 1 / 2


@dataclass(frozen=True)
class Matches:
    """Places of things in the scene that an expression fits; the certain ones are among the possible ones."""

    certain: frozenset[int]
    possible: frozenset[int]

    @property
    def target(self) -> int | None:
        """The one thing that is meant beyond doubt, or None."""
        return next(iter(self.possible)) if len(self.possible) == 1 and self.certain == self.possible else None

    @property
    def is_absent(self) -> bool:
        """Whether it fits nothing, beyond doubt."""
        return not self.possible


@dataclass(frozen=True)
class Side:
    """A direction in the image: an axis, 0 for x and 1 for y, and which way along it."""

    axis: int
    sign: int

    def along(self, thing: Thing) -> float:
        """How far a thing lies in this direction, in sides of the image."""
        return self.sign * thing.center[self.axis]

    def is_in_zone(self, thing: Thing, share: float) -> bool:
        """Whether a thing is in the outermost `share` of the image on this side."""
        edge = max(self.sign, 0)
        return edge - self.along(thing) <= share

    def is_beyond(self, thing: Thing, anchor: Thing) -> bool:
        """Whether a thing clearly lies on this side of another, rather than across from it."""
        across = 1 - self.axis
        aside = abs(thing.center[across] - anchor.center[across])
        return self.along(thing) - self.along(anchor) >= max(POSITION_MARGIN, aside)

    def may_be_beyond(self, thing: Thing, anchor: Thing) -> bool:
        """Whether a thing is not clearly on the other side."""
        return self.along(thing) - self.along(anchor) > -POSITION_MARGIN


@dataclass(frozen=True)
class Scale:
    """What a superlative compares, and by how much the first has to exceed the others."""

    value: Callable[[Thing], float]
    margin: float


LEFT, RIGHT, UP, DOWN = Side(0, -1), Side(0, 1), Side(1, -1), Side(1, 1)
POSITION_SUPERLATIVES = {
    "leftmost": Scale(LEFT.along, POSITION_MARGIN),
    "rightmost": Scale(RIGHT.along, POSITION_MARGIN),
    "topmost": Scale(UP.along, POSITION_MARGIN),
    "bottommost": Scale(DOWN.along, POSITION_MARGIN),
}
SIZE_SUPERLATIVES = {
    "largest": Scale(lambda thing: math.log(thing.radius), math.log(SIZE_RATIO)),
    "smallest": Scale(lambda thing: -math.log(thing.radius), math.log(SIZE_RATIO)),
}
SUPERLATIVES = {**POSITION_SUPERLATIVES, **SIZE_SUPERLATIVES}
ZONES = {"on the left": LEFT, "on the right": RIGHT, "at the top": UP, "at the bottom": DOWN}
RELATIONS = {"left of": LEFT, "right of": RIGHT, "above": UP, "below": DOWN}


class Expression(ABC):
    """Words that describe things."""

    @property
    @abstractmethod
    def text(self) -> str:
        """With its article: "the red circle at the top"."""

    @property
    @abstractmethod
    def base(self) -> Description:
        """The same without what it says of size, position and relation."""

    @property
    def descriptions(self) -> tuple[Description, ...]:
        """All that it names."""
        return (self.base,)

    @abstractmethod
    def matches(self, things: Sequence[Thing]) -> Matches:
        """What it fits in a scene."""


@dataclass(frozen=True)
class Description(Expression):
    """Things by what they look like; None is any."""

    kind: str | None = None
    color: str | None = None
    texture: str | None = None
    size: str | None = None

    @property
    def noun(self) -> str:
        """Without its article: "small striped red star", "blue thing"."""
        return " ".join(word for word in (self.size, self.texture, self.color, self.kind or "thing") if word)

    @property
    def text(self) -> str:
        return f"the {self.noun}"

    @property
    def base(self) -> Description:
        return replace(self, size=None)

    def fits(self, thing: Thing) -> bool:
        said = (self.kind, self.color, self.texture, self.size)
        seen = (thing.kind, thing.color, thing.texture, thing.size)
        return all(word in (None, value) for word, value in zip(said, seen, strict=True))

    def matches(self, things: Sequence[Thing]) -> Matches:
        found = frozenset(place for place, thing in enumerate(things) if self.fits(thing))
        return Matches(found, found)


@dataclass(frozen=True)
class Superlative(Expression):
    """The first of the described things: "the leftmost star"."""

    word: str
    of: Description

    @property
    def text(self) -> str:
        return f"the {self.word} {self.of.noun}"

    @property
    def base(self) -> Description:
        return self.of.base

    def matches(self, things: Sequence[Thing]) -> Matches:
        scale = SUPERLATIVES[self.word]
        values = {place: scale.value(things[place]) for place in self.of.matches(things).certain}
        if not values:
            return Matches(frozenset(), frozenset())
        best = max(values.values())
        possible = frozenset(place for place, value in values.items() if value > best - scale.margin)
        return Matches(possible if len(possible) == 1 else frozenset(), possible)


@dataclass(frozen=True)
class Zoned(Expression):
    """Described things in a part of the image: "the star at the top"."""

    of: Description
    zone: str

    @property
    def text(self) -> str:
        return f"{self.of.text} {self.zone}"

    @property
    def base(self) -> Description:
        return self.of.base

    def matches(self, things: Sequence[Thing]) -> Matches:
        side, described = ZONES[self.zone], self.of.matches(things).certain
        certain, possible = (
            frozenset(place for place in described if side.is_in_zone(things[place], share))
            for share in (ZONE_CERTAIN, ZONE_POSSIBLE)
        )
        return Matches(certain, possible)


@dataclass(frozen=True)
class Related(Expression):
    """Described things on one side of another thing: "the star left of the blue square"."""

    of: Description
    relation: str
    anchor: Expression

    @property
    def text(self) -> str:
        return f"{self.of.text} {self.relation} {self.anchor.text}"

    @property
    def base(self) -> Description:
        return self.of.base

    @property
    def descriptions(self) -> tuple[Description, ...]:
        return (self.base, *self.anchor.descriptions)

    def matches(self, things: Sequence[Thing]) -> Matches:
        """
        In doubt which the anchor is, everything is possible and nothing certain; if it alone is described, it is possible.
        """
        anchor, described = self.anchor.matches(things).target, self.of.matches(things).certain
        others = described - {anchor}
        if anchor is None:
            return Matches(frozenset(), frozenset(range(len(things))))
        if not others:
            return Matches(frozenset(), described)
        side = RELATIONS[self.relation]
        return Matches(
            frozenset(place for place in others if side.is_beyond(things[place], things[anchor])),
            frozenset(place for place in others if side.may_be_beyond(things[place], things[anchor])),
        )
