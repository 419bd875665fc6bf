"""
Scenes: things in front of a sky and a ground.

Shapes: (H, W) the image, both its side. Every pixel belongs to one thing or to one material.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..samples import RLE, encode_masks
from .options import World
from .outlines import OUTLINES, Stencil, draw_outline
from .painting import paint_stuff, paint_thing
from .vocabulary import COLORS, GROUNDS, SKIES, TEXTURES, Combination, Material

# Things that have the colour or the kind of an earlier one, beyond chance: they make questions that need more words.
REPEATED_KIND, REPEATED_COLOR = 0.3, 0.2
PLAIN_SHARE = 0.5
# Small and large things are this share of the range of radii away from its ends.
SIZE_SPREAD = 0.3
TRIES = 60
NUM_AREAS = 2
SENSOR_NOISE = 2.5


@dataclass(frozen=True)
class Thing:
    """
    Attributes:
        combination: colour and kind.
        size: "small" or "large".
        texture: "plain", "striped" or "dotted".
        radius: pixels.
        center: (x, y) of the visible pixels' mean, as shares of the image's side.
        mask: bool (H, W), the visible pixels.
        rle: the same.
    """

    combination: Combination
    size: str
    texture: str
    radius: float
    center: tuple[float, float]
    mask: np.ndarray
    rle: RLE

    @property
    def kind(self) -> str:
        return self.combination.kind

    @property
    def color(self) -> str:
        return self.combination.color


@dataclass(frozen=True)
class Stuff:
    """A material of the scene; mask: bool (H, W), where no thing covers it."""

    material: Material
    mask: np.ndarray
    rle: RLE


@dataclass(frozen=True)
class Scene:
    """
    Attributes:
        image: RGB.
        things: in the order in which they are drawn: later ones cover earlier ones.
        sky: upper area.
        ground: lower area.
    """

    image: Image.Image
    things: tuple[Thing, ...]
    sky: Stuff
    ground: Stuff

    @property
    def stuff(self) -> tuple[Stuff, Stuff]:
        return self.sky, self.ground


@dataclass(frozen=True)
class _Placed:
    combination: Combination
    size: str
    texture: str
    radius: float
    stencil: Stencil


class _Stage:
    """
    What is where while a scene is drawn.

    Attributes:
        areas: int64 (H, W), 0 in the sky and 1 on the ground.
        owners: the same with thing i as i + 2 where it is in front.
        placed: the things, each in front of those before it.
        visible: of each thing the pixels that can be seen.
    """

    def __init__(self, areas: np.ndarray, least_visible: float) -> None:
        self.areas = areas
        self.owners = areas.copy()
        self.least_visible = least_visible
        self.placed: list[_Placed] = []
        self.visible: list[int] = []

    def place(self, thing: _Placed) -> bool:
        """Put a thing in front, if enough remains visible of it and of those that it covers."""
        window, inside = crop(thing.stencil, self.owners.shape[0])
        mask = thing.stencil.coverage[inside] >= 0.5
        covered = np.bincount(self.owners[window][mask], minlength=NUM_AREAS + len(self.placed))[NUM_AREAS:]
        remaining = [count - int(lost) for count, lost in zip(self.visible, covered, strict=True)]
        remaining.append(int(mask.sum()))
        everything = [*self.placed, thing]
        if any(
            count < self.least_visible * each.stencil.area for count, each in zip(remaining, everything, strict=True)
        ):
            return False
        self.owners[window][mask] = NUM_AREAS + len(self.placed)
        self.placed, self.visible = everything, remaining
        return True


def draw_scene(world: World, index: int, attempt: int = 0) -> Scene:
    """
    Draw a scene, the same for the same arguments, whatever was drawn before.

    Args:
        index: number of the scene.
        attempt: other scenes of the same number.

    Raises:
        ValueError: if the options leave no place for the fewest things.
    """
    rng = world.rng(index, f"scene/{attempt}")
    sky, ground = rng.choice(SKIES), rng.choice(GROUNDS)
    options = world.options
    noise = np.random.default_rng(rng.getrandbits(64))
    stage = _Stage(_areas(options.image_size, noise), options.least_visible)
    count = rng.randint(options.fewest_things, options.most_things)
    for _ in range(TRIES * count):
        if len(stage.placed) == count:
            break
        stage.place(_draw_thing(world, rng, [each.combination for each in stage.placed]))
    if len(stage.placed) < options.fewest_things:
        raise ValueError(
            f"scene {index} has place for {len(stage.placed)} things only; make fewest_things, the radii or least_visible"
            " smaller"
        )
    image = _paint(world, stage, (sky, ground), noise)
    return _scene(image, stage, sky, ground)


def crop(stencil: Stencil, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a stencil's window that is in the image: rows and columns of the image, and of the window."""
    height, width = stencil.coverage.shape
    rows = slice(max(0, stencil.top), max(0, min(side, stencil.top + height)))
    columns = slice(max(0, stencil.left), max(0, min(side, stencil.left + width)))
    shifted = [
        slice(part.start - first, part.stop - first) for part, first in ((rows, stencil.top), (columns, stencil.left))
    ]
    return (rows, columns), (shifted[0], shifted[1])


def _areas(side: int, noise: np.random.Generator) -> np.ndarray:
    """0 above and 1 below an uneven horizon, int64 (H, W)."""
    knots = noise.uniform(0.35, 0.65) + noise.uniform(-0.08, 0.08, size=6)
    horizon = np.interp(np.linspace(0, 5, side), np.arange(6), knots) * side
    return (np.arange(side)[:, None] >= horizon).astype(np.int64)


def _draw_thing(world: World, rng: random.Random, earlier: Sequence[Combination]) -> _Placed:
    options = world.options
    combination = _draw_combination(world, rng, earlier)
    size = rng.choice(("small", "large"))
    span = options.largest_radius - options.smallest_radius
    offset = rng.uniform(0, SIZE_SPREAD) * span
    radius = options.unit * (options.smallest_radius + offset if size == "small" else options.largest_radius - offset)
    center = (rng.uniform(0.02, 0.98) * options.image_size, rng.uniform(0.02, 0.98) * options.image_size)
    texture = "plain" if rng.random() < PLAIN_SHARE else rng.choice(TEXTURES[1:])
    tilt = OUTLINES[combination.kind].tilt
    stencil = draw_outline(combination.kind, radius, rng.uniform(-tilt, tilt), center)
    return _Placed(combination, size, texture, radius, stencil)


def _draw_combination(world: World, rng: random.Random, earlier: Sequence[Combination]) -> Combination:
    vocabulary = world.vocabulary
    if not earlier:
        return rng.choice(vocabulary.held_out or vocabulary.combinations)
    kinds = {rng.choice(earlier).kind} if rng.random() < REPEATED_KIND else vocabulary.kinds
    colors = {rng.choice(earlier).color} if rng.random() < REPEATED_COLOR else vocabulary.colors
    fitting = [each for each in vocabulary.combinations if each.kind in kinds and each.color in colors]
    return rng.choice(fitting or vocabulary.combinations)


def _paint(
    world: World, stage: _Stage, materials: tuple[Material, Material], noise: np.random.Generator
) -> Image.Image:
    side, unit = world.options.image_size, world.options.unit
    canvas = paint_stuff(materials, stage.areas, unit, noise)
    for thing in stage.placed:
        window, inside = crop(thing.stencil, side)
        color = COLORS[thing.combination.color]
        painted = paint_thing(color, thing.texture, thing.stencil.coverage, unit, noise)[inside]
        share = thing.stencil.coverage[inside][..., None]
        canvas[window] += share * (painted - canvas[window])
    canvas += noise.standard_normal((side, side, 1), dtype=np.float32) * SENSOR_NOISE
    return Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8))


def _scene(image: Image.Image, stage: _Stage, sky: Material, ground: Material) -> Scene:
    masks = stage.owners == np.arange(NUM_AREAS + len(stage.placed))[:, None, None]
    rles = encode_masks(masks)
    things = tuple(
        Thing(each.combination, each.size, each.texture, each.radius, _center(mask), mask, rle)
        for each, mask, rle in zip(stage.placed, masks[NUM_AREAS:], rles[NUM_AREAS:], strict=True)
    )
    return Scene(image, things, Stuff(sky, masks[0], rles[0]), Stuff(ground, masks[1], rles[1]))


def _center(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(columns.mean() + 0.5) / mask.shape[1], float(rows.mean() + 0.5) / mask.shape[0]
