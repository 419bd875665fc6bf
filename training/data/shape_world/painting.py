"""What things and stuff look like: textures, the same for the same random numbers. Colours are float32, 0 to 255."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .vocabulary import Color, Material

# How far the shade of stripes, dots and edges is from the colour towards black or, for dark colours, white.
SHADE, EDGE_SHADE = 0.42, 0.55
DARK = 70
# Pixels of an image of 128 x 128.
STRIPE_PERIOD, DOT_PERIOD = 6.5, 6.5
COLOR_JITTER = 6


def paint_stuff(
    materials: Sequence[Material], areas: np.ndarray, unit: float, noise: np.random.Generator
) -> np.ndarray:
    """
    A picture of materials, float32 (H, W, 3).

    Args:
        materials: of the areas.
        areas: int64 (H, W), the number of each pixel's material.
        unit: pixels for one of the materials' grain.
    """
    brightness = np.select(
        [areas == number for number in range(len(materials))],
        [_blotches(material, areas.shape, unit, noise) for material in materials],
    )
    colors = np.asarray([material.color for material in materials], dtype=np.float32)
    return colors[areas] + brightness[..., None]


def _blotches(material: Material, shape: tuple[int, int], unit: float, noise: np.random.Generator) -> np.ndarray:
    cells = [max(2, math.ceil(side / (grain * unit))) for side, grain in zip(shape, material.grain, strict=True)]
    blotches = Image.fromarray(noise.standard_normal(cells, dtype=np.float32) * np.float32(material.contrast))
    return np.asarray(blotches.resize(shape[::-1], Image.Resampling.BICUBIC))


def paint_thing(
    color: Color, texture: str, coverage: np.ndarray, unit: float, noise: np.random.Generator
) -> np.ndarray:
    """
    A thing's colours in its window, float32 (h, w, 3); also outside its outline.

    Args:
        texture: "plain", "striped" or "dotted".
        coverage: float32 (h, w), see `Stencil`.
        unit: pixels for one of the texture's periods.
    """
    base = np.asarray(color, dtype=np.float32) + noise.uniform(-COLOR_JITTER, COLOR_JITTER, size=3).astype(np.float32)
    shade, edge = _shaded(base, SHADE), _shaded(base, EDGE_SHADE)
    pattern = PATTERNS[texture](coverage.shape, unit, noise)[..., None]
    painted = base + pattern * (shade - base)
    # The edge keeps things of the same colour apart that overlap.
    return painted + (coverage - _eroded(coverage))[..., None] * (edge - painted)


def _shaded(color: np.ndarray, share: float) -> np.ndarray:
    target = np.float32(255 if color.mean() < DARK else 0)
    return color + np.float32(share) * (target - color)


def _eroded(coverage: np.ndarray) -> np.ndarray:
    """The least coverage of each pixel and its four neighbours; a window's border is empty."""
    inner = np.zeros_like(coverage)
    center = coverage[1:-1, 1:-1]
    sides = (coverage[:-2, 1:-1], coverage[2:, 1:-1], coverage[1:-1, :-2], coverage[1:-1, 2:])
    inner[1:-1, 1:-1] = np.minimum.reduce([center, *sides])
    return inner


def _plain(shape: tuple[int, int], unit: float, noise: np.random.Generator) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32)


def _striped(shape: tuple[int, int], unit: float, noise: np.random.Generator) -> np.ndarray:
    angle, phase = noise.uniform(0, math.pi), noise.uniform(0, 2 * math.pi)
    across = _along(shape, angle) * np.float32(2 * math.pi / (STRIPE_PERIOD * unit)) + np.float32(phase)
    return _sharp(np.sin(across))


def _dotted(shape: tuple[int, int], unit: float, noise: np.random.Generator) -> np.ndarray:
    angle, phases = noise.uniform(0, math.pi), noise.uniform(0, 2 * math.pi, size=2)
    scale = np.float32(2 * math.pi / (DOT_PERIOD * unit))
    one, other = (
        np.cos(_along(shape, angle + quarter) * scale + np.float32(phase))
        for quarter, phase in zip((0, math.pi / 2), phases, strict=True)
    )
    return _sharp(one + other - np.float32(0.7))


PATTERNS = {"plain": _plain, "striped": _striped, "dotted": _dotted}


def _along(shape: tuple[int, int], angle: float) -> np.ndarray:
    """How far each pixel lies in a direction, float32."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (columns * math.cos(angle) + rows * math.sin(angle)).astype(np.float32)


def _sharp(wave: np.ndarray) -> np.ndarray:
    """0 below and 1 above zero, with a soft step between."""
    return (wave * 2 + 0.5).clip(0, 1)
