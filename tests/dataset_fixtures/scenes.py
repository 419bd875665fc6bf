"""Pictures of coloured shapes with known masks, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}
KINDS = ("circle", "square", "triangle")


@dataclass(frozen=True)
class Shape:
    kind: str
    color: str
    mask: np.ndarray  # bool (H, W), visible pixels only
    box: tuple[int, int, int, int]  # left, top, right, bottom as drawn


@dataclass(frozen=True)
class Scene:
    """A sky above a ground, with shapes that do not overlap."""

    image: Image.Image
    shapes: tuple[Shape, ...]
    sky: np.ndarray  # bool (H, W), without the shapes
    ground: np.ndarray


def draw_scene(seed: int, height: int = 64, width: int = 96, num_shapes: int = 3) -> Scene:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (150, 200, 250))
    horizon = height // 2
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, horizon, width, height), fill=(120, 100, 70))
    taken = np.zeros((height, width), dtype=bool)
    column = width // num_shapes
    shapes = []
    for i in range(num_shapes):
        kind, color = KINDS[rng.integers(len(KINDS))], list(COLORS)[rng.integers(len(COLORS))]
        side = int(rng.integers(column // 2, column - 4))
        left = i * column + int(rng.integers(1, column - side))
        top = int(rng.integers(1, height - side - 1))
        box = (left, top, left + side, top + side)
        stencil = Image.new("1", (width, height))
        for target, fill in ((canvas, COLORS[color]), (ImageDraw.Draw(stencil), 1)):
            if kind == "circle":
                target.ellipse(box, fill=fill)
            elif kind == "square":
                target.rectangle(box, fill=fill)
            else:
                target.polygon([(left, top + side), (left + side, top + side), (left + side / 2, top)], fill=fill)
        mask = np.array(stencil)
        taken |= mask
        shapes.append(Shape(kind, color, mask, box))
    above = np.arange(height)[:, None] < horizon
    return Scene(image, tuple(shapes), ~taken & above, ~taken & ~above)
