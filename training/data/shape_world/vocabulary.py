"""The words of the world: kinds, colours and textures of things, materials of stuff, and what is known of the kinds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

Color = tuple[int, int, int]

KINDS = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "arrow")
COLORS: dict[str, Color] = {
    "red": (222, 36, 36),
    "green": (28, 172, 62),
    "blue": (40, 76, 224),
    "yellow": (248, 226, 40),
    "purple": (152, 50, 196),
    "orange": (246, 132, 20),
    "white": (250, 250, 250),
    "black": (24, 24, 24),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

# One colour for each kind, no colour twice: what training never shows or names.
HELD_OUT = {
    "circle": "purple",
    "square": "yellow",
    "triangle": "white",
    "star": "blue",
    "cross": "green",
    "ring": "red",
    "heart": "black",
    "arrow": "orange",
}


@dataclass(frozen=True)
class Material:
    """
    Attributes:
        name: as it is asked for.
        place: how a caption says where the things are: "under the sky".
        color: its mean.
        grain: height and width of its blotches, in pixels of a scene of 128.
        contrast: standard deviation of its brightness.
    """

    name: str
    place: str
    color: Color
    grain: tuple[float, float]
    contrast: float


SKIES = (
    Material("sky", "under the sky", (160, 200, 238), (40, 60), 4),
    Material("clouds", "under the clouds", (178, 182, 190), (9, 14), 15),
    Material("cliffs", "before the cliffs", (122, 108, 104), (12, 3), 15),
)
GROUNDS = (
    Material("grass", "on the grass", (122, 142, 88), (6, 1.2), 18),
    Material("sand", "on the sand", (208, 184, 138), (1.5, 1.5), 12),
    Material("water", "on the water", (78, 136, 152), (2, 18), 15),
)
STUFF = tuple(material.name for material in (*SKIES, *GROUNDS))

# What each is true of one kind alone.
FACTS: dict[str, tuple[str, ...]] = {
    "circle": ("looks like a coin", "looks like the full moon"),
    "square": ("looks like a window", "has four equal sides"),
    "triangle": ("has three corners", "looks like a slice of pizza"),
    "star": ("shines at night", "tops a Christmas tree"),
    "cross": ("marks a spot on a map", "looks like a plus sign"),
    "ring": ("is worn on a finger", "has a hole in the middle"),
    "heart": ("stands for love", "is sent to a valentine"),
    "arrow": ("shows the way", "is shot from a bow"),
}


@dataclass(frozen=True, order=True)
class Combination:
    """A colour of a kind: what open vocabularies and captions name."""

    color: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def is_held_out(self) -> bool:
        return HELD_OUT[self.kind] == self.color


@dataclass(frozen=True)
class Vocabulary:
    """
    Attributes:
        kinds: of things.
        colors: of things.
        with_held_out: whether the combinations that training does not have may occur.
    """

    kinds: tuple[str, ...]
    colors: tuple[str, ...]
    with_held_out: bool

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """All that may occur, by kind."""
        every = [Combination(color, kind) for kind in self.kinds for color in self.colors]
        return tuple(each for each in every if self.with_held_out or not each.is_held_out)

    @cached_property
    def held_out(self) -> tuple[Combination, ...]:
        """Those of the combinations that training does not have."""
        return tuple(each for each in self.combinations if each.is_held_out)

    def allows(self, color: str | None, kind: str | None) -> bool:
        """Whether a colour and a kind may be named together; None is any."""
        return color is None or kind is None or Combination(color, kind) in self.combinations


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(words: str) -> str:
    return f"{words}es" if words.endswith("s") else f"{words}s"


def sentence(words: str, mark: str = ".") -> str:
    return f"{words[0].upper()}{words[1:]}{mark}"
