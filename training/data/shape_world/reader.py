"""
Readers of the generated world: nothing is on disk, a scene is drawn when it is asked for.

Annotations are exact: a mask is the pixels that belong to a thing or a material and to nothing else. A scene is the same,
byte for byte, whatever was read before, and so are the questions of a task whatever the other tasks are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..reader import BrokenRecord, CategoryReader, OnError, SampleReader
from ..samples import AnnotatedSample, Turn
from .options import ShapeWorldOptions, Split, World
from .questions import TASK_FAMILIES, TASK_TURNS, Subject, combinations_turn, kinds_turn
from .scene import Scene, draw_scene
from .vocabulary import STUFF, Vocabulary

# Scenes of one number that are looked at before it is said that nothing can be asked.
ATTEMPTS = 50


@dataclass(frozen=True)
class CategoryList:
    """
    Attributes:
        things: the categories of things of a vocabulary.
        turn: the question about a scene.
    """

    things: Callable[[Vocabulary], tuple[str, ...]]
    turn: Callable[[Scene, Vocabulary], Turn]


CATEGORY_LISTS: dict[str, CategoryList] = {
    "kinds": CategoryList(lambda vocabulary: vocabulary.kinds, kinds_turn),
    "combinations": CategoryList(
        lambda vocabulary: tuple(each.name for each in vocabulary.combinations), combinations_turn
    ),
}


class ShapeWorldReader(SampleReader[int]):
    """
    Scenes with questions of the tasks that are asked for. A record is the number of a scene.

    A scene that gives no question, such as none of the families asked for, is replaced by another of the same number.

    Args:
        root: not used, nothing is read.
        tasks: names of tasks; a chat is a conversation of its own and goes with no other.
        families: of expressions (attribute, size, position, relation, absent) and chats (existence, count, color,
            kind, identity; of a marked thing region-kind, region-color, region-place, region-identity; description)
            that are asked; by default all.
        questions: most questions about one scene in referring, reasoning, interactive segmentation and chat each.
        leave_kinds_out: whether visual-grounded segmentation shows some of a scene's kinds only, so that things of the others
            are background; otherwise, as in COCO-VGD, it shows all, and nothing tells what is not like any.
        split: "train", "test" or "held-out", see `World`.
        seed: of all scenes.
        count: number of scenes.
        kinds: this and all others: see `ShapeWorldOptions`.
        on_error: see `SampleReader`.

    Raises:
        ValueError: if an argument has a value that it cannot have.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        tasks: Sequence[str],
        families: Sequence[str] = (),
        questions: int = 4,
        leave_kinds_out: bool = False,
        split: Split = "train",
        seed: int = 0,
        count: int = 1000,
        kinds: int = 6,
        colors: int = 8,
        smallest_radius: float = 9,
        largest_radius: float = 20,
        fewest_things: int = 3,
        most_things: int = 7,
        least_visible: float = 0.5,
        image_size: int = 128,
        on_error: OnError = "raise",
    ) -> None:
        options = ShapeWorldOptions(
            kinds, colors, smallest_radius, largest_radius, fewest_things, most_things, least_visible, image_size
        )
        self.world, self.count = World(split, seed, options), _at_least_one("count", count)
        self.tasks, self.questions = _checked_tasks(tasks), _at_least_one("questions", questions)
        self.families, self.leave_kinds_out = _checked_families(families, self.tasks), leave_kinds_out
        super().__init__(root, on_error)

    def records(self) -> Iterable[int]:
        return range(self.count)

    def read(self, record: int) -> AnnotatedSample:
        for attempt in range(ATTEMPTS):
            scene = draw_scene(self.world, record, attempt)
            subject = Subject(self.world, record, scene, self.families, self.questions, self.leave_kinds_out)
            turns = [turn for task in self.tasks for turn in TASK_TURNS[task](subject)]
            if turns:
                return _sample(self.world, record, scene, turns)
        asked = f"tasks {list(self.tasks)} and families {list(self.families)}"
        raise BrokenRecord("shape world", f"scene {record}", f"{ATTEMPTS} scenes give no question of {asked}")


class ShapeWorldCategoryReader(CategoryReader[int]):
    """
    Scenes with the same list of categories for all, for stage 1 and for figures by category.

    Args:
        root: not used, nothing is read.
        vocabulary: "kinds" (generic: kinds of things, and stuff) or "combinations" (open-vocabulary: colours of kinds, and
            stuff; held-out ones only in the split of that name).
        split: this and all others: see `ShapeWorldReader`.

    Raises:
        ValueError: if an argument has a value that it cannot have.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        vocabulary: str = "kinds",
        split: Split = "train",
        seed: int = 0,
        count: int = 1000,
        kinds: int = 6,
        colors: int = 8,
        smallest_radius: float = 9,
        largest_radius: float = 20,
        fewest_things: int = 3,
        most_things: int = 7,
        least_visible: float = 0.5,
        image_size: int = 128,
        on_error: OnError = "raise",
    ) -> None:
        if vocabulary not in CATEGORY_LISTS:
            raise ValueError(f"vocabulary is {vocabulary!r}; possible are {', '.join(CATEGORY_LISTS)}")
        options = ShapeWorldOptions(
            kinds, colors, smallest_radius, largest_radius, fewest_things, most_things, least_visible, image_size
        )
        self.world, self.count = World(split, seed, options), _at_least_one("count", count)
        self.vocabulary = vocabulary
        super().__init__(root, on_error)

    @property
    def labels(self) -> tuple[str, ...]:
        return (*CATEGORY_LISTS[self.vocabulary].things(self.world.vocabulary), *STUFF)

    @property
    def num_things(self) -> int:
        return len(self.labels) - len(STUFF)

    def records(self) -> Iterable[int]:
        return range(self.count)

    def read(self, record: int) -> AnnotatedSample:
        scene = draw_scene(self.world, record)
        turn = CATEGORY_LISTS[self.vocabulary].turn(scene, self.world.vocabulary)
        return _sample(self.world, record, scene, [turn])


def _sample(world: World, index: int, scene: Scene, turns: Sequence[Turn]) -> AnnotatedSample:
    name = f"shape world, split {world.split}, seed {world.seed}, scene {index}"
    return AnnotatedSample(scene.image, tuple(turns), name, f"{world.split}-{world.seed}-{index}")


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}; it has to be at least 1")
    return value


def _checked_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        ValueError: if there is none, one is unknown or stands there twice, or a chat goes with others.
    """
    known = ", ".join(TASK_TURNS)
    if isinstance(tasks, str) or not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks is {tasks!r}; give a list of at least one, each once: {known}")
    if unknown := [task for task in tasks if task not in TASK_TURNS]:
        raise ValueError(f"tasks: {unknown} are unknown; known are {known}")
    if "chat" in tasks and len(tasks) > 1:
        raise ValueError(
            f"tasks is {list(tasks)}, but a chat is a conversation of its own: give it an entry of its own"
        )
    return tuple(tasks)


def _checked_families(families: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """
    All families of the tasks if none is named.

    Raises:
        ValueError: if one belongs to none of the tasks, or a task is left without any.
    """
    of_tasks = {task: TASK_FAMILIES[task] for task in tasks if task in TASK_FAMILIES}
    possible = tuple(family for of_task in of_tasks.values() for family in of_task)
    if isinstance(families, str) or not set(families) <= set(possible):
        raise ValueError(f"families is {families!r}; those of tasks {list(tasks)} are {list(possible)}")
    return tuple(families) or possible
