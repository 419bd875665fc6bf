"""How many objects of one kind does a checkpoint find, when there are more and more of them?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel

from processing_xsam import AnySegmentationPipeline, XSAMProcessor
from processing_xsam.visualization_xsam import visualize

from ..data.samples import encode_masks
from .checks import check_has_language_model
from .matching import Matches, drawable, match_masks, segment_masks, share
from .report import ProbeReport

GROUND = (196, 200, 190)
# Dark and bright enough to stand out from the ground.
COLORS = ((200, 40, 40), (30, 110, 200), (20, 130, 60), (230, 120, 20), (110, 50, 150))
# Radii as shares of the least cell's side: a disc with its jitter stays in its cell.
RADII = (0.22, 0.36)
LEAST_RADIUS = 2.0
MAX_PICTURES = 8


def probe_saturation(
    model: PreTrainedModel,
    processor: XSAMProcessor,
    *,
    counts: Sequence[int] = (10, 50, 100, 150, 250),
    tiles: tuple[int, int] | None = None,
    image_size: int = 512,
    label: str = "ball",
    threshold: float = 0.5,
    seed: int = 0,
) -> ProbeReport:
    """
    Drawn scenes of small discs are asked for as instances of one category, and the answers are counted. The discs do not
    overlap and have the same range of sizes in all scenes, so that only their number differs.

    Figures, for each number of objects N, and with "tiled" for the pipeline's `tiles`:

    - `recall N`: share of the objects that are found, matched one-to-one at an IoU of at least 0.5, the predictions by
      falling score. 0 to 1. It cannot exceed num_queries / N, since each query has one mask; tiles have all queries
      each. A good checkpoint is close to 1 up to there.
    - `duplicates N`: share of the predictions that fit an object which a better one already has. 0 to 1, good is 0; NaN if
      nothing is predicted.
    - `predictions per object N`: predictions over objects, from 0; good is 1, or num_queries / N if that is less.

    What it cannot show: how the checkpoint does on photos. Discs are plain, and a checkpoint may find few of them because
    it does not take drawings for balls: then recall is low already for the smallest N. Compare the Ns with each other.

    Args:
        model: `XSAMForSegmentation`, in evaluation mode.
        processor: its processor.
        counts: numbers of objects, each once, from 1.
        tiles: (rows, columns) to ask once more with overlapping crops; None: whole images alone.
        image_size: side of the scenes, in pixels.
        label: what the discs are called.
        threshold: least score of a prediction that counts.
        seed: of the scenes.

    Raises:
        ValueError: if counts are empty, repeated or below 1, the image is too small for that many discs, or the
            model has no language model.
    """
    check_has_language_model(model)
    _check_counts(counts)
    segment = AnySegmentationPipeline(model=model, processor=processor)
    ways: list[dict[str, Any]] = [{}] if tiles is None else [{}, {"tiles": tiles}]
    trials = []
    for scene in draw_scenes(counts, image_size, seed):
        for way in ways:
            found = segment(
                scene.image,
                task="generic",
                labels={"thing": [label], "stuff": []},
                subtask="instance",
                threshold=threshold,
                **way,
            )
            trials.append(_trial(scene, found, is_tiled=bool(way)))
    num_queries = model.config.mask_decoder_config.num_queries
    return ProbeReport(
        name="saturation",
        meaning=(
            f"Share of N drawn objects that are found when there are more and more of them; one pass has {num_queries}"
            " queries and finds no more than that."
        ),
        figures={name: value for trial in trials for name, value in trial.figures.items()},
        settings={
            "num_queries": num_queries,
            "counts": list(counts),
            "tiles": None if tiles is None else list(tiles),
            "image_size": image_size,
            "label": label,
            "threshold": threshold,
            "seed": seed,
        },
        cases=[trial.record for trial in trials],
        pictures=_pictures(trials),
    )


@dataclass(frozen=True)
class DrawnScene:
    """
    Attributes:
        image: RGB.
        masks: of its discs, bool (n, H, W), without overlap.
    """

    image: Image.Image
    masks: np.ndarray


def draw_scenes(counts: Sequence[int], image_size: int, seed: int) -> Iterator[DrawnScene]:
    """
    A scene for each number of discs, the same for the same arguments.

    Raises:
        ValueError: if the discs of the fullest scene would have a radius below 2 pixels.
    """
    least_cell = image_size / _grid(max(counts))
    if RADII[0] * least_cell < LEAST_RADIUS:
        least = math.ceil(LEAST_RADIUS / RADII[0] * _grid(max(counts)))
        raise ValueError(f"image_size is {image_size}; {max(counts)} objects need at least {least}")
    for count in counts:
        rng = np.random.default_rng([seed, count])
        yield _draw(count, image_size, [each * least_cell for each in RADII], rng)


def _draw(count: int, size: int, radii: Sequence[float], rng: np.random.Generator) -> DrawnScene:
    """Discs in cells of a grid of their own, so that every scene is filled evenly."""
    grid = _grid(count)
    cell = size / grid
    pixels = np.full((size, size, 3), GROUND, dtype=np.uint8)
    masks = np.zeros((count, size, size), dtype=bool)
    rows, columns = np.mgrid[:size, :size]
    for mask, place in zip(masks, rng.permutation(grid**2)[:count], strict=True):
        radius = rng.uniform(*radii)
        top, left = (cell * index + rng.uniform(radius, cell - radius) for index in divmod(place, grid))
        # Pixels whose centre is inside.
        mask[:] = (rows + 0.5 - top) ** 2 + (columns + 0.5 - left) ** 2 < radius**2
        pixels[mask] = COLORS[rng.integers(len(COLORS))]
    return DrawnScene(Image.fromarray(pixels), masks)


def _grid(count: int) -> int:
    """Rows, and columns, of the least square grid with that many cells."""
    return math.isqrt(count - 1) + 1


@dataclass(frozen=True)
class _Trial:
    """What one scene gave, asked in one way."""

    is_tiled: bool
    num_objects: int
    num_predictions: int
    num_found: int
    num_duplicates: int
    overlay: Image.Image

    @property
    def name(self) -> str:
        return f"{self.num_objects} tiled" if self.is_tiled else str(self.num_objects)

    @property
    def figures(self) -> dict[str, float]:
        return {
            f"recall {self.name}": self.num_found / self.num_objects,
            f"duplicates {self.name}": share(self.num_duplicates, self.num_predictions),
            f"predictions per object {self.name}": self.num_predictions / self.num_objects,
        }

    @property
    def record(self) -> dict[str, Any]:
        return {
            "objects": self.num_objects,
            "tiled": self.is_tiled,
            "predictions": self.num_predictions,
            "found": self.num_found,
            "duplicates": self.num_duplicates,
        }


def _trial(scene: DrawnScene, found: Sequence[dict[str, Any]], is_tiled: bool) -> _Trial:
    scores = [each["score"] for each in found]
    matches = match_masks(segment_masks(found), scores, encode_masks(scene.masks))
    return _Trial(
        is_tiled=is_tiled,
        num_objects=len(scene.masks),
        num_predictions=len(found),
        num_found=matches.num_found,
        num_duplicates=int(matches.duplicates.sum()),
        overlay=_overlay(scene, found, matches),
    )


def _overlay(scene: DrawnScene, found: Sequence[dict[str, Any]], matches: Matches) -> Image.Image:
    """Predictions by what they are, and the objects that are missing, on a pale scene: their colours are what counts."""
    kinds = [
        "found once" if place >= 0 else "a duplicate" if is_duplicate else "no object"
        for place, is_duplicate in zip(matches.objects, matches.duplicates, strict=True)
    ]
    segments = [{**each, "label": kind} for each, kind in zip(found, kinds, strict=True)]
    missing = np.delete(scene.masks, matches.objects[matches.objects >= 0], axis=0)
    if len(missing):
        # They do not overlap, and one drawing of all is much faster than one of each.
        segments.append(drawable(missing.any(0), "missing"))
    grey = scene.image.convert("L").convert("RGB")
    return visualize(Image.blend(grey, Image.new("RGB", grey.size, "white"), 0.6), segments)


def _pictures(trials: Sequence[_Trial]) -> list[tuple[str, Image.Image]]:
    """Whole images first, then those with tiles, of which the fullest are taken if there is no room for all."""
    tiled = sorted((trial for trial in trials if trial.is_tiled), key=lambda trial: -trial.num_objects)
    shown = [*(trial for trial in trials if not trial.is_tiled), *tiled][:MAX_PICTURES]
    return [
        (f"{trial.name}: {trial.num_found} found, {trial.num_predictions} masks", trial.overlay) for trial in shown
    ]


def _check_counts(counts: Sequence[int]) -> None:
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise ValueError(f"counts are {list(counts)}; give numbers of objects from 1 on, each once")
