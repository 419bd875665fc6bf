"""
What figures of the shape world are worth: predictors that look at the annotation and not at the image.

Two of them answer with a thing of the scene, without the words of the question: one of the right kind at random, and the
largest. The third knows all answers and shows their masks as coarsely as a model does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d, interpolate, pad

from processing_xsam.image_processing_xsam import scaled_size
from processing_xsam.post_processing_xsam import Geometry, resize_to_image
from processing_xsam.results_xsam import ResultOptions

from ..data.samples import AnnotatedSample, Turn, decode_masks, encode_masks
from ..data.shape_world.options import World
from ..data.shape_world.reader import ATTEMPTS
from ..data.shape_world.scene import Scene, Thing, draw_scene
from .answers import Answer, AnsweredSegment

# Things of a scene, the one that is asked for (None: what is asked for is absent), randomness -> the answer.
Choice = Callable[[Sequence[Thing], Thing | None, random.Random], Thing]


class ThingPredictor:
    """
    Answers every question about one thing, of referring, reasoning or interactive segmentation, with the whole mask of a
    thing of the scene; also where nothing fits.

    Args:
        world: whose scenes are asked about.
        choose: picks the thing; its randomness is the same for a scene and the place of a question.
    """

    def __init__(self, world: World, choose: Choice) -> None:
        self.world, self.choose = world, choose

    def __call__(self, sample: AnnotatedSample, index: int, options: ResultOptions) -> list[Answer]:
        """
        Raises:
            ValueError: if the sample is none of the world's, or a target is no single thing.
        """
        things = find_scene(self.world, index, sample.image).things
        chosen = [
            self.choose(things, find_target(things, turn), self.world.rng(index, f"baseline/{place}"))
            for place, turn in enumerate(sample.turns)
        ]
        return [Answer((AnsweredSegment(0, thing.rle, 1.0),)) for thing in chosen]


def random_of_kind(things: Sequence[Thing], target: Thing | None, rng: random.Random) -> Thing:
    """Any thing of the target's kind, the target among them; any thing for an absent target."""
    return rng.choice([thing for thing in things if target is None or thing.kind == target.kind])


def largest(things: Sequence[Thing], target: Thing | None, rng: random.Random) -> Thing:
    """The thing with most visible pixels, the first of equal ones."""
    return max(things, key=lambda thing: int(thing.mask.sum()))


def find_scene(world: World, index: int, image: Image.Image) -> Scene:
    """
    The scene of an image: a reader replaces scenes that give no question by others of the same number.

    Raises:
        ValueError: if no scene of this number has the image.
    """
    pixels = image.tobytes()
    for attempt in range(ATTEMPTS):
        scene = draw_scene(world, index, attempt)
        if scene.image.tobytes() == pixels:
            return scene
    raise ValueError(
        f"none of {ATTEMPTS} scenes with number {index} of split {world.split!r}, seed {world.seed} has this image; give the"
        " world of the reader that it is from"
    )


def find_target(things: Sequence[Thing], turn: Turn) -> Thing | None:
    """
    The thing that is asked for, None if it is absent.

    Raises:
        ValueError: if several things or parts of the scene that are none are annotated.
    """
    found = [thing for thing in things if thing.rle in turn.masks]
    if len(found) != len(turn.masks) or len(found) > 1:
        raise ValueError(
            f"a {turn.task} turn with {len(turn.masks)} masks, {len(found)} of which are things; ask for single things"
        )
    return found[0] if found else None


class Oracle:
    """
    Gives all annotated answers, their masks as masks of low resolution show them: each becomes the shares of its pixels in
    the cells of the grid, and the shares are resized to the image as a model's logits are.

    In lists of categories a pixel belongs to the mask with the largest share of it; in the other tasks a mask has the
    pixels with a share above one half, the threshold of post-processing. In grounded conversation a phrase has one mask,
    as a model gives it: the largest of its things. Logits of a model can put an edge anywhere between two cells, so that
    this is no upper bound, but what right masks give without such skill.

    Args:
        input_size: side of the model's high-resolution input, pixels.
        mask_size: side of the masks it gives.
    """

    def __init__(self, input_size: int, mask_size: int) -> None:
        self.input_size, self.mask_size = input_size, mask_size

    def __call__(self, sample: AnnotatedSample, index: int, options: ResultOptions) -> list[Answer]:
        return [self._answer(turn, sample.image) for turn in sample.turns]

    def _answer(self, turn: Turn, image: Image.Image | None) -> Answer:
        if not turn.masks:
            return Answer(text=turn.answer, spans=turn.spans)
        image_size = (image.height, image.width)
        shares = resized_shares(
            decode_masks(turn.masks, image_size), Geometry(self.input_size, image_size), self.mask_size
        )
        phrases, masks = SHOWN[turn.task](turn.mask_phrases, shares)
        found = [
            AnsweredSegment(phrase, rle, 1.0)
            for phrase, mask, rle in zip(phrases, masks, encode_masks(masks), strict=True)
            if mask.any()
        ]
        return Answer(tuple(found), turn.answer, turn.spans)


def resized_shares(masks: np.ndarray, geometry: Geometry, mask_size: int) -> np.ndarray:
    """
    The share of each mask in the cells of a grid over a model's input, resized to the image as logits are.

    Args:
        masks: bool (n, H, W).
        geometry: of the image and the model's input.
        mask_size: cells on a side of the grid, g.

    Returns:
        float32 (n, H, W), 0 to 1.
    """
    side = geometry.input_size
    height, width = scaled_size(geometry.target_size, side)
    scaled = interpolate(torch.from_numpy(masks).float()[:, None], size=(height, width), mode="area")
    shares = adaptive_avg_pool2d(pad(scaled, (0, side - width, 0, side - height)), mask_size)[:, 0]
    return resize_to_image(shares, geometry).numpy()


Shown = tuple[Sequence[int], np.ndarray]


def _exclusive(phrases: Sequence[int], shares: np.ndarray) -> Shown:
    """Every pixel to the mask with the largest share of it, the first of equal ones."""
    return phrases, (shares.argmax(0) == np.arange(len(shares))[:, None, None]) & (shares > 0)


def _each(phrases: Sequence[int], shares: np.ndarray) -> Shown:
    return phrases, shares > 0.5


def _largest_of_phrase(phrases: Sequence[int], shares: np.ndarray) -> Shown:
    by_area = np.argsort(shares.sum(axis=(1, 2)), kind="stable").tolist()
    # Of places with the same phrase the last one stays.
    places = sorted({phrases[place]: place for place in by_area}.items())
    return [phrase for phrase, _ in places], shares[[place for _, place in places]] > 0.5


# How the masks of a task are shown.
SHOWN: dict[str, Callable[[Sequence[int], np.ndarray], Shown]] = {
    "generic": _exclusive,
    "open-vocabulary": _exclusive,
    "referring": _each,
    "reasoning": _each,
    "interactive": _each,
    "visual-grounded": _each,
    "grounded-conversation": _largest_of_phrase,
}
