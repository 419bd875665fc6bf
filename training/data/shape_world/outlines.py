"""
Outlines of the kinds of things.

Coordinates are (x, y), y downwards; an outline is about as large as the unit circle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 4
# No outline reaches further from its centre.
REACH = 1.35


@dataclass(frozen=True)
class Outline:
    """
    Attributes:
        points: corners (n, 2).
        tilt: most degrees that a thing of this kind is turned by, either way.
        hole: corners of what is cut out, or None.
    """

    points: np.ndarray
    tilt: float
    hole: np.ndarray | None = None


@dataclass(frozen=True)
class Stencil:
    """
    A drawn outline.

    Attributes:
        left: column of the window's first pixel in the image; may be negative.
        top: row, likewise.
        coverage: float32 (h, w), the share of each pixel of the window.
    """

    left: int
    top: int
    coverage: np.ndarray

    @property
    def area(self) -> int:
        """Pixels of the whole mask."""
        return int((self.coverage >= 0.5).sum())


def _regular(corners: int, radius: float, first: float = -90) -> np.ndarray:
    angles = np.radians(first + 360 / corners * np.arange(corners))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    return np.stack([_regular(5, 1.3), _regular(5, 0.56, -54)], axis=1).reshape(-1, 2)


def _cross(length: float = 1.1, half_width: float = 0.36) -> np.ndarray:
    arm = np.array([[-half_width, -length], [half_width, -length], [half_width, -half_width]])
    quarter = np.array([[0, -1], [1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter.T, turns) for turns in range(4)])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    down = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([16 * np.sin(t) ** 3, down + 0.8], axis=1) / 15.5


def _arrow() -> np.ndarray:
    upper = [(-1.25, -0.26), (0.05, -0.26), (0.05, -0.85), (1.25, 0)]
    return np.array([*upper, *((x, -y) for x, y in reversed(upper[:-1]))])


OUTLINES = {
    "circle": Outline(_regular(48, 1), 0),
    "square": Outline(_regular(4, 1.25, 45), 20),
    "triangle": Outline(_regular(3, 1.3), 25),
    "star": Outline(_star(), 36),
    "cross": Outline(_cross(), 20),
    "ring": Outline(_regular(48, 1.08), 0, hole=_regular(48, 0.56)),
    "heart": Outline(_heart(), 20),
    "arrow": Outline(_arrow(), 180),
}


def draw_outline(kind: str, radius: float, degrees: float, center: tuple[float, float]) -> Stencil:
    """
    Draw a thing in a window that holds all of it.

    Args:
        radius: pixels.
        degrees: by which it is turned.
        center: (x, y) pixels of the image.
    """
    outline = OUTLINES[kind]
    reach = math.ceil(REACH * radius) + 1
    left, top = math.floor(center[0]) - reach, math.floor(center[1]) - reach
    side = 2 * reach + 1
    canvas = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    turn = math.radians(degrees)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    for points, value in ((outline.points, 255), (outline.hole, 0)):
        if points is not None:
            corners = (points @ rotation * radius + center - (left, top)) * SUPERSAMPLING - 0.5
            pen.polygon(corners.ravel().tolist(), fill=value)
    return Stencil(left, top, np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255)
