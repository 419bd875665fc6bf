"""What a training step takes of a sample: which questions, categories and visual prompts, all drawn from one seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .samples import AnnotatedSample, Region, Turn

# Tasks whose phrases are each other's negatives in a batch.
GROUPED_TASKS = ("referring", "reasoning")


@dataclass(frozen=True)
class DrawOptions:
    """
    Attributes:
        max_turns: questions about one image in one sample.
        whole_list_share: share of category lists that are asked as a whole, in a new order; the others hold the
            categories of the image and a random number of absent ones.
        max_absent_labels: most absent categories of those other lists.
        negative_share: share of visual-grounded questions that also prompt with objects of other images.
        max_negatives: most of these prompts in one question.
    """

    max_turns: int = 5
    whole_list_share: float = 0.5
    max_absent_labels: int = 20
    negative_share: float = 0.5
    max_negatives: int = 3

    def __post_init__(self) -> None:
        for name in ("whole_list_share", "negative_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a share from 0 to 1.")
        if self.max_turns < 1 or self.max_absent_labels < 0 or self.max_negatives < 0:
            raise ValueError(f"counts must not be negative, and max_turns at least 1: {self}")


@dataclass(frozen=True)
class DrawnTurn:
    """
    A turn with one visual prompt per phrase.

    Attributes:
        turn: the turn; each entry of its `regions` has one region.
        region_samples: per region the sample of the batch whose image it is read from.
    """

    turn: Turn
    region_samples: tuple[int, ...] = ()


def draw_turns(sample: AnnotatedSample, rng: random.Random, options: DrawOptions) -> list[Turn]:
    """
    The questions that a training step asks about an image: a chat in its order, of other tasks up to `max_turns` in a
    random order, each with its categories or visual prompts drawn.

    Of several expressions for the same object one is taken, and one of several objects that read the same: as each
    other's negatives they would contradict.
    """
    if any(turn.task == "chat" for turn in sample.turns):
        return [_draw_regions(turn, rng) for turn in sample.turns]
    shuffled = rng.sample(sample.turns, len(sample.turns))
    chosen: list[Turn] = []
    for turn in shuffled:
        if len(chosen) < options.max_turns and not any(_contradict(turn, other) for other in chosen):
            chosen.append(turn)
    return [_draw_phrases(turn, rng, options) for turn in chosen]


def borrow_negatives(
    turns: Sequence[Sequence[Turn]], rngs: Sequence[random.Random], options: DrawOptions
) -> list[list[DrawnTurn]]:
    """
    Give visual-grounded questions prompts whose category is absent from their image, taken from other images of the
    batch. They have no mask: nothing in the image looks like them.

    Args:
        turns: of each sample of the batch, drawn.
        rngs: of each sample.
    """
    offers = [
        (sample, label, regions[0])
        for sample, of_sample in enumerate(turns)
        for turn in of_sample
        if turn.task == "visual-grounded"
        for label, regions in zip(turn.labels, turn.regions, strict=True)
    ]
    return [
        [_with_negatives(turn, sample, offers, rngs[sample], options) for turn in of_sample]
        for sample, of_sample in enumerate(turns)
    ]


def drop_absent_labels(turn: Turn, keep: int) -> Turn:
    """
    A category question with at most `keep` categories: those of the image, then absent ones as they stand.

    Raises:
        ValueError: if the image itself has more categories.
    """
    present = set(turn.mask_phrases)
    if len(present) > keep:
        raise ValueError(f"{len(present)} categories are in the image, but the prompt has room for {keep}.")
    absent = [index for index in range(len(turn.labels)) if index not in present][: keep - len(present)]
    return _reorder(turn, sorted([*present, *absent]))


def _contradict(first: Turn, second: Turn) -> bool:
    """Whether two questions whose phrases are each other's negatives ask for the same object, or read the same."""
    if first.task not in GROUPED_TASKS or second.task not in GROUPED_TASKS:
        return False
    objects = [[mask["counts"] for mask in turn.masks] for turn in (first, second)]
    return first.text == second.text or (bool(first.masks) and objects[0] == objects[1])


def _draw_phrases(turn: Turn, rng: random.Random, options: DrawOptions) -> Turn:
    if turn.task in ("generic", "open-vocabulary"):
        return _draw_labels(turn, rng, options)
    if not turn.regions:
        return turn
    turn = _draw_regions(turn, rng)
    return _reorder(turn, rng.sample(range(len(turn.regions)), len(turn.regions)))


def _draw_regions(turn: Turn, rng: random.Random) -> Turn:
    """One visual prompt for each phrase, or for each object that a chat is about."""
    return replace(turn, regions=tuple((rng.choice(regions),) for regions in turn.regions))


def _draw_labels(turn: Turn, rng: random.Random, options: DrawOptions) -> Turn:
    present = sorted(set(turn.mask_phrases))
    absent = [index for index in range(len(turn.labels)) if index not in present]
    if rng.random() >= options.whole_list_share:
        # An image of none of the categories is still asked about one.
        least = 0 if present else 1
        most = min(max(least, options.max_absent_labels), len(absent))
        absent = rng.sample(absent, rng.randint(least, most))
    chosen = present + absent
    rng.shuffle(chosen)
    # Things stay before stuff, as in every prompt.
    return _reorder(turn, sorted(chosen, key=lambda index: index >= turn.num_things))


def _with_negatives(
    turn: Turn,
    sample: int,
    offers: Sequence[tuple[int, str, Region]],
    rng: random.Random,
    options: DrawOptions,
) -> DrawnTurn:
    own = DrawnTurn(turn, (sample,) * len(turn.regions))
    if turn.task != "visual-grounded" or not options.max_negatives or rng.random() >= options.negative_share:
        return own
    known = {*turn.labels, *turn.unasked}
    usable: dict[str, list[tuple[int, Region]]] = defaultdict(list)
    for other, label, region in offers:
        if other != sample and label not in known:
            usable[label].append((other, region))
    if not usable:
        return own
    labels = rng.sample(sorted(usable), rng.randint(1, min(options.max_negatives, len(usable))))
    borrowed = [rng.choice(usable[label]) for label in labels]
    extended = replace(
        turn,
        labels=(*turn.labels, *labels),
        regions=(*turn.regions, *((region,) for _, region in borrowed)),
    )
    origins = (*own.region_samples, *(other for other, _ in borrowed))
    order = rng.sample(range(len(origins)), len(origins))
    return DrawnTurn(_reorder(extended, order), tuple(origins[index] for index in order))


def _reorder(turn: Turn, order: Sequence[int]) -> Turn:
    """The turn with the phrases of `order`, in that order. Masks of other phrases must not exist."""
    place = {old: new for new, old in enumerate(order)}
    return replace(
        turn,
        labels=tuple(turn.labels[index] for index in order) if turn.labels else (),
        num_things=sum(index < turn.num_things for index in order),
        regions=tuple(turn.regions[index] for index in order) if turn.regions else (),
        mask_phrases=tuple(place[phrase] for phrase in turn.mask_phrases),
    )
