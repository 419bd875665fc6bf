"""The questions about a scene, by task."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..samples import Region, Turn
from .captions import caption
from .chats import CHAT_FAMILIES, DESCRIPTION, REGION_FAMILIES, draw_chat
from .families import FAMILIES, draw_expression
from .options import World
from .scene import Scene
from .visual import draw_regions
from .vocabulary import FACTS, STUFF, Vocabulary

FEWEST_ABSENT, MOST_ABSENT = 2, 8
REASONING_QUESTIONS = (
    "Which shape {fact}?",
    "What in this picture {fact}?",
    "Which of these things {fact}?",
    "Find the thing that {fact}.",
)
# The families of the tasks that have some.
TASK_FAMILIES: dict[str, tuple[str, ...]] = {
    "referring": tuple(FAMILIES),
    "chat": (*CHAT_FAMILIES, *REGION_FAMILIES, DESCRIPTION),
}


@dataclass(frozen=True)
class Subject:
    """
    A scene that is asked about.

    Attributes:
        world: whose scene it is.
        index: its number.
        scene: what is in it.
        families: that may be asked.
        questions: most questions of one task.
        leave_kinds_out: whether visual-grounded segmentation shows some of the kinds only.
    """

    world: World
    index: int
    scene: Scene
    families: tuple[str, ...]
    questions: int
    leave_kinds_out: bool

    @property
    def vocabulary(self) -> Vocabulary:
        return self.world.vocabulary

    @cached_property
    def regions(self) -> list[tuple[Region, ...]]:
        """The visual prompts of each thing, the same for all tasks."""
        noise = np.random.default_rng(self.rng("visual prompts").getrandbits(64))
        return draw_regions(self.scene.things, self.world.options.unit, noise)

    def rng(self, purpose: str) -> random.Random:
        return self.world.rng(self.index, purpose)

    def families_of(self, task: str) -> list[str]:
        return [family for family in TASK_FAMILIES[task] if family in self.families]


def category_turn(task: str, things: Sequence[str], names: Sequence[str], scene: Scene) -> Turn:
    """
    A list of categories.

    Args:
        task: "generic" or "open-vocabulary".
        things: the categories of things that are asked for, before all stuff.
        names: the category of each thing of the scene.
    """
    labels = (*things, *STUFF)
    named = [*zip(names, scene.things, strict=True), *((stuff.material.name, stuff) for stuff in scene.stuff)]
    return Turn(
        task,
        labels=labels,
        num_things=len(things),
        masks=tuple(each.rle for _, each in named),
        mask_phrases=tuple(labels.index(name) for name, _ in named),
    )


def kinds_turn(scene: Scene, vocabulary: Vocabulary) -> Turn:
    return category_turn("generic", vocabulary.kinds, [thing.kind for thing in scene.things], scene)


def combinations_turn(scene: Scene, vocabulary: Vocabulary) -> Turn:
    """All combinations that may occur, each a category."""
    labels = [each.name for each in vocabulary.combinations]
    return category_turn("open-vocabulary", labels, [thing.combination.name for thing in scene.things], scene)


def _generic(subject: Subject) -> list[Turn]:
    return [kinds_turn(subject.scene, subject.vocabulary)]


def _open_vocabulary(subject: Subject) -> list[Turn]:
    """The combinations of the scene and a few absent ones, in a drawn order."""
    rng = subject.rng("open-vocabulary")
    names = [thing.combination.name for thing in subject.scene.things]
    absent = [each.name for each in subject.vocabulary.combinations if each.name not in names]
    drawn = rng.sample(absent, min(len(absent), rng.randint(FEWEST_ABSENT, MOST_ABSENT)))
    labels = [*dict.fromkeys(names), *drawn]
    rng.shuffle(labels)
    return [category_turn("open-vocabulary", labels, names, subject.scene)]


def _referring(subject: Subject) -> list[Turn]:
    rng, families, things = subject.rng("referring"), subject.families_of("referring"), subject.scene.things
    turns: dict[str, Turn] = {}
    for _ in range(subject.questions):
        found = draw_expression(rng.choice(families), things, subject.vocabulary, rng)
        if found is None:
            continue
        expression, target = found
        masks = () if target is None else (things[target].rle,)
        turns[expression.text] = Turn("referring", text=expression.text, masks=masks, mask_phrases=(0,) * len(masks))
    return list(turns.values())


def _reasoning(subject: Subject) -> list[Turn]:
    """A question about each kind that there is one thing of."""
    rng, counts = subject.rng("reasoning"), Counter(thing.kind for thing in subject.scene.things)
    single = [thing for thing in subject.scene.things if counts[thing.kind] == 1]
    return [
        Turn(
            "reasoning",
            text=rng.choice(REASONING_QUESTIONS).format(fact=rng.choice(FACTS[thing.kind])),
            masks=(thing.rle,),
            mask_phrases=(0,),
        )
        for thing in rng.sample(single, min(len(single), subject.questions))
    ]


def _grounded_conversation(subject: Subject) -> list[Turn]:
    return [caption(subject.scene)]


def _interactive(subject: Subject) -> list[Turn]:
    prompted = list(zip(subject.regions, subject.scene.things, strict=True))
    return [
        Turn("interactive", regions=(regions,), masks=(thing.rle,), mask_phrases=(0,))
        for regions, thing in subject.rng("interactive").sample(prompted, min(len(prompted), subject.questions))
    ]


def _visual_grounded(subject: Subject) -> list[Turn]:
    """All kinds of the scene, or one at least, each shown by any of its things."""
    kinds = sorted({thing.kind for thing in subject.scene.things})
    if subject.leave_kinds_out:
        rng = subject.rng("visual-grounded")
        kinds = sorted(rng.sample(kinds, rng.randint(1, len(kinds))))
    regions = {kind: () for kind in kinds}
    things = []
    for thing, of_thing in zip(subject.scene.things, subject.regions, strict=True):
        if thing.kind in regions:
            regions[thing.kind] += of_thing
            things.append(thing)
    turn = Turn(
        "visual-grounded",
        labels=tuple(kinds),
        regions=tuple(regions.values()),
        masks=tuple(thing.rle for thing in things),
        mask_phrases=tuple(kinds.index(thing.kind) for thing in things),
    )
    return [turn]


def _chat(subject: Subject) -> list[Turn]:
    families, rng = subject.families_of("chat"), subject.rng("chat")
    # Visual prompts take time to draw.
    regions = [] if REGION_FAMILIES.keys().isdisjoint(families) else subject.regions
    return draw_chat(families, subject.questions, subject.scene, regions, subject.vocabulary, rng)


TASK_TURNS: dict[str, Callable[[Subject], list[Turn]]] = {
    "generic": _generic,
    "open-vocabulary": _open_vocabulary,
    "referring": _referring,
    "reasoning": _reasoning,
    "grounded-conversation": _grounded_conversation,
    "interactive": _interactive,
    "visual-grounded": _visual_grounded,
    "chat": _chat,
}
