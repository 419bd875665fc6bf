"""Captions of scenes with a phrase for each combination of things and for each material."""

from __future__ import annotations

from ..samples import Turn
from .scene import Scene, Thing
from .vocabulary import NUMBERS, Combination, plural, sentence, with_article


def caption(scene: Scene) -> Turn:
    """
    "A red circle, two blue stars and a small green ring on the grass under the sky."

    Things come from left to right, those of the same combination together, at the place of the first of them; single small
    ones are called so. Each is a phrase with its article or number, and so are ground and sky.
    """
    groups: dict[Combination, list[Thing]] = {}
    for thing in sorted(scene.things, key=lambda thing: thing.center):
        groups.setdefault(thing.combination, []).append(thing)
    words, spans, masks, phrases = "", [], [], []
    for place, (combination, things) in enumerate(groups.items()):
        phrase = _phrase(combination, things)
        words += ("" if place == 0 else " and " if place == len(groups) - 1 else ", ") + phrase
        spans.append((len(words) - len(phrase), len(words)))
        masks += [thing.rle for thing in things]
        phrases += [place] * len(things)
    for stuff in (scene.ground, scene.sky):
        preposition, _, phrase = stuff.material.place.partition(" ")
        words += f" {preposition} {phrase}"
        spans.append((len(words) - len(phrase), len(words)))
        masks.append(stuff.rle)
        phrases.append(len(spans) - 1)
    return Turn(
        "grounded-conversation",
        answer=sentence(words),
        spans=tuple(spans),
        masks=tuple(masks),
        mask_phrases=tuple(phrases),
    )


def _phrase(combination: Combination, things: list[Thing]) -> str:
    if len(things) > 1:
        return f"{NUMBERS[len(things)]} {plural(combination.name)}"
    return with_article(f"small {combination.name}" if things[0].size == "small" else combination.name)
