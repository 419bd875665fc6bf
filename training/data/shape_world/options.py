"""How hard the world is, and its parts for training and evaluation."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from .vocabulary import COLORS, HELD_OUT, KINDS, NUMBERS, Vocabulary

Split = Literal["train", "test", "held-out"]
SPLITS: tuple[Split, ...] = get_args(Split)
# Pixels that radii and grains are given for.
REFERENCE_SIZE = 128


@dataclass(frozen=True)
class ShapeWorldOptions:
    """
    Attributes:
        kinds: how many kinds of things there are, 2 to 8.
        colors: how many colours of things there are, 3 to 8.
        smallest_radius: of things, in pixels of an image of 128 x 128; grows with the image.
        largest_radius: at least 1.5 times the smallest, so that "small" and "large" are clearly apart.
        fewest_things: in a scene.
        most_things: in a scene.
        least_visible: the share of each thing's area that is neither covered nor outside the image.
        image_size: side of the scene, pixels.

    Raises:
        ValueError: if a number is out of its range.
    """

    kinds: int = 6
    colors: int = 8
    smallest_radius: float = 9
    largest_radius: float = 20
    fewest_things: int = 3
    most_things: int = 7
    least_visible: float = 0.5
    image_size: int = 128

    def __post_init__(self) -> None:
        _check_range("kinds", self.kinds, 2, len(KINDS))
        _check_range("colors", self.colors, 3, len(COLORS))
        _check_range("smallest_radius", self.smallest_radius, 4, REFERENCE_SIZE / 4)
        _check_range("largest_radius", self.largest_radius, 1.5 * self.smallest_radius, REFERENCE_SIZE / 2)
        _check_range("fewest_things", self.fewest_things, 1, len(NUMBERS) - 1)
        _check_range("most_things", self.most_things, self.fewest_things, len(NUMBERS) - 1)
        _check_range("least_visible", self.least_visible, 0.1, 1)
        _check_range("image_size", self.image_size, 32, 2048)

    @property
    def unit(self) -> float:
        """Pixels of the image for one of an image of `REFERENCE_SIZE`."""
        return self.image_size / REFERENCE_SIZE


@dataclass(frozen=True)
class World:
    """
    One of the worlds, whose scenes are numbered.

    Attributes:
        split: "train" and "test" have no held-out combination; every scene of "held-out" has one.
        seed: scenes of different splits or seeds have nothing to do with each other.
        options: how hard it is.

    Raises:
        ValueError: if the split is unknown, the seed negative, or no combination of the kinds and colours is held out.
    """

    split: Split = "train"
    seed: int = 0
    options: ShapeWorldOptions = field(default_factory=ShapeWorldOptions)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; possible are {', '.join(SPLITS)}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        if self.split == "held-out" and not self.vocabulary.held_out:
            raise ValueError(
                f"split 'held-out': none of {HELD_OUT} is among {self.options.kinds} kinds and {self.options.colors} colors;"
                " take more of them"
            )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        options = self.options
        return Vocabulary(KINDS[: options.kinds], tuple(COLORS)[: options.colors], self.split == "held-out")

    def rng(self, index: int, purpose: str) -> random.Random:
        """Randomness of a scene for one purpose: nothing that is drawn for another one changes it."""
        return random.Random(f"{self.split}/{self.seed}/{index}/{purpose}")


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}; choose it from {least} to {most}")
