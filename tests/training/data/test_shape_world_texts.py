"""Captions, chats, questions and lists say what is in the scene, and nothing of what is held out."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from xsam_training.data.samples import decode_masks
from xsam_training.data.shape_world.captions import caption
from xsam_training.data.shape_world.chats import REGION_FAMILIES
from xsam_training.data.shape_world.options import World
from xsam_training.data.shape_world.questions import REASONING_QUESTIONS, TASK_TURNS
from xsam_training.data.shape_world.reader import ShapeWorldCategoryReader, ShapeWorldReader
from xsam_training.data.shape_world.scene import Scene, Stuff, Thing, draw_scene
from xsam_training.data.shape_world.vocabulary import (
    FACTS,
    GROUNDS,
    HELD_OUT,
    NUMBERS,
    SKIES,
    Combination,
    plural,
    with_article,
)

SIZE = (128, 128)
MASK = np.zeros((2, 2), dtype=bool)
SEGMENTING = [task for task in TASK_TURNS if task != "chat"]


def thing(name, x, size="large"):
    return Thing(Combination(*name.split()), size, "plain", 10.0, (x, 0.5), MASK, {"counts": f"{name} {x}"})


def toy_scene(*things):
    return Scene(
        None, things, Stuff(SKIES[0], MASK, {"counts": "above"}), Stuff(GROUNDS[2], MASK, {"counts": "below"})
    )


def scene_of(reader, index, sample):
    """The scene of a sample, which is another of the same number if the first gives no question."""
    pixels = sample.image.tobytes()
    scenes = (draw_scene(reader.world, index, attempt) for attempt in range(50))
    return next(scene for scene in scenes if scene.image.tobytes() == pixels)


def pairs(reader):
    """The things of each scene with each of its questions."""
    for index, sample in enumerate(reader):
        things = scene_of(reader, index, sample).things
        yield from ((things, turn) for turn in sample.turns)


def test_a_caption_worked_by_hand():
    turn = caption(
        toy_scene(
            thing("blue star", 0.5),
            thing("orange ring", 0.1, "small"),
            thing("red circle", 0.9),
            thing("blue star", 0.3),
        )
    )
    assert turn.answer == "A small orange ring, two blue stars and a red circle on the water under the sky."
    assert [turn.answer[start:end] for start, end in turn.spans] == [
        "A small orange ring",
        "two blue stars",
        "a red circle",
        "the water",
        "the sky",
    ]
    assert [(mask["counts"], phrase) for mask, phrase in zip(turn.masks, turn.mask_phrases, strict=True)] == [
        ("orange ring 0.1", 0),
        ("blue star 0.3", 1),
        ("blue star 0.5", 1),
        ("red circle 0.9", 2),
        ("below", 3),
        ("above", 4),
    ]


def test_a_caption_of_one_thing():
    assert caption(toy_scene(thing("orange arrow", 0.5))).answer == "An orange arrow on the water under the sky."


def test_captions_say_what_their_masks_show():
    reader = ShapeWorldReader(tasks=["grounded-conversation"], count=60)
    for index, sample in enumerate(reader):
        (turn,), scene = sample.turns, scene_of(reader, index, sample)
        masks = defaultdict(list)
        for mask, phrase in zip(decode_masks(turn.masks, SIZE), turn.mask_phrases, strict=True):
            masks[phrase].append(mask)
        words = [turn.answer[start:end].lower() for start, end in turn.spans]
        assert sorted(masks) == list(range(len(words)))
        assert words[-2:] == [f"the {scene.ground.material.name}", f"the {scene.sky.material.name}"]
        assert np.array_equal(masks[len(words) - 2], [scene.ground.mask])
        for phrase, text in enumerate(words[:-2]):
            article, *middle, color, kind = text.split()
            number = 1 if article in ("a", "an") else NUMBERS.index(article)
            shown = [each for each in scene.things if any(np.array_equal(each.mask, mask) for mask in masks[phrase])]
            assert len(shown) == number == len(masks[phrase])
            assert {(each.color, plural(each.kind) if number > 1 else each.kind) for each in shown} == {(color, kind)}
            assert [each.combination for each in scene.things].count(shown[0].combination) == number
            assert (middle == ["small"]) == (number == 1 and shown[0].size == "small")


QUESTIONS = ["existence", "count", "color", "kind"]


def test_chats_are_right():
    """Counted anew from the words of each question."""
    for things, turn in pairs(ShapeWorldReader(tasks=["chat"], families=QUESTIONS, count=120)):
        if existence := re.fullmatch(r"Is there an? (\w+) (\w+)\?", turn.text):
            expected = "Yes." if any((each.color, each.kind) == existence.groups() for each in things) else "No."
        elif count := re.fullmatch(r"How many (?:(\w+) )?(\w+) are there\?", turn.text):
            color, noun = count.groups()
            found = [each for each in things if color in (None, each.color) and noun in ("things", plural(each.kind))]
            expected = f"{NUMBERS[len(found)].capitalize()}."
        elif shape := re.fullmatch(r"What shape is the (?:(\w+) )?(\w+) thing\?", turn.text):
            word, color = shape.groups()
            (found,) = (each for each in things if each.color == color and word in (None, each.size, each.texture))
            expected = f"{found.kind.capitalize()}."
        else:
            word, kind = re.fullmatch(r"What colour is the (?:(\w+) )?(\w+)\?", turn.text).groups()
            (found,) = (each for each in things if each.kind == kind and word in (None, each.size, each.texture))
            expected = f"{found.color.capitalize()}."
        assert turn.answer == expected, turn.text


def test_chats_about_marked_things_are_right():
    reader = ShapeWorldReader(tasks=["chat"], families=[*REGION_FAMILIES], questions=6, count=40)
    seen = set()
    for things, turn in pairs(reader):
        ((*prompts,),) = turn.regions
        assert [each.kind for each in prompts] == ["point", "scribble", "box", "mask"]
        # The mask prompt is blurred, and still covers its own thing best.
        (mask,) = decode_masks([prompts[-1].mask], things[0].mask.shape)
        overlaps = [(mask & each.mask).sum() / (mask | each.mask).sum() for each in things]
        marked = things[int(np.argmax(overlaps))]
        x, y = marked.center
        row = "top" if y <= 1 / 3 else "bottom" if y >= 2 / 3 else ""
        column = "left" if x <= 1 / 3 else "right" if x >= 2 / 3 else ""
        expected = {
            "Where is this?": f"{f'{row} {column}'.strip() or 'middle'}.".capitalize(),
            "What is this?": f"{marked.color} {marked.kind}.",
            "What shape is this?": f"{marked.kind.capitalize()}.",
            "What colour is this?": f"{marked.color.capitalize()}.",
        }[turn.text]
        assert turn.answer.removeprefix("A ").removeprefix("An ") == expected
        seen.add(turn.text)
    assert seen == {question for question, _ in REGION_FAMILIES.values()}
    for each in reader:
        asked = [(turn.text, turn.regions[0][0].mask["counts"]) for turn in each.turns]
        assert len(set(asked)) == len(asked)


def answers(family, count=250):
    reader = ShapeWorldReader(tasks=["chat"], families=[family], count=count)
    return [turn for sample in reader for turn in sample.turns]


def test_yes_and_no_are_balanced_and_the_words_do_not_give_them_away():
    turns = answers("existence")
    assert abs(np.mean([turn.answer == "Yes." for turn in turns]) - 0.5) < 0.05
    of_kind = defaultdict(list)
    for turn in turns:
        of_kind[turn.text.split()[-1]].append(turn.answer == "Yes.")
    assert all(0.35 < np.mean(yes) < 0.65 for yes in of_kind.values())


def test_counts_are_spread():
    shares = Counter(turn.answer for turn in answers("count"))
    assert max(shares.values()) < 0.32 * shares.total()
    assert {"Zero.", "One.", "Two.", "Three.", "Four."} <= {answer for answer, n in shares.items() if n > 25}


@pytest.mark.parametrize("questions", [1, 4, 7])
def test_a_chat_has_as_many_questions_as_asked_for_or_one_less_and_none_twice(questions):
    samples = list(ShapeWorldReader(tasks=["chat"], families=QUESTIONS, questions=questions, count=60))
    assert {len(sample.turns) for sample in samples} == {max(questions - 1, 1), questions}
    for sample in samples:
        assert len({turn.text for turn in sample.turns}) == len(sample.turns)


def test_a_description_is_the_caption_and_comes_last():
    chats, captions = (
        ShapeWorldReader(tasks=["chat"], count=30),
        ShapeWorldReader(tasks=["grounded-conversation"], count=30),
    )
    for chat, captioned in zip(chats, captions, strict=True):
        assert chat.turns[-1].text == "What is in this picture?"
        assert chat.turns[-1].answer == captioned.turns[0].answer
        assert len(chat.turns) in (4, 5)
    alone = ShapeWorldReader(tasks=["chat"], families=["description"], count=3)
    assert all([turn.text for turn in sample.turns] == ["What is in this picture?"] for sample in alone)


def test_a_fact_asks_for_the_only_thing_that_it_is_true_of():
    facts = {
        question.format(fact=fact): kind
        for kind, known in FACTS.items()
        for fact in known
        for question in REASONING_QUESTIONS
    }
    assert len(facts) == len(REASONING_QUESTIONS) * sum(map(len, FACTS.values()))
    seen = set()
    for things, turn in pairs(ShapeWorldReader(tasks=["reasoning"], count=60)):
        (target,) = (each for each in things if each.kind == facts[turn.text])
        assert np.array_equal(decode_masks(turn.masks, SIZE), [target.mask]) and turn.mask_phrases == (0,)
        seen.add(target.kind)
    assert seen == set(World().vocabulary.kinds)


def texts(sample):
    for turn in sample.turns:
        yield from (turn.text or "", turn.answer or "", *turn.labels)


def named_combinations(sample):
    words = " , ".join(texts(sample)).lower()
    return {
        (color, kind) for kind, color in HELD_OUT.items() if re.search(rf"\b{color} ({kind}|{plural(kind)})\b", words)
    }


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("tasks", [SEGMENTING, ["chat"]], ids=["segmenting", "chat"])
def test_held_out_combinations_are_in_no_text(split, tasks):
    count = 300 if split == "train" else 30
    # Prompts have no words, and take most of the time.
    tasks = [task for task in tasks if task not in ("interactive", "visual-grounded")]
    assert not any(map(named_combinations, ShapeWorldReader(tasks=tasks, split=split, count=count, questions=8)))


def test_held_out_combinations_are_in_all_their_captions():
    reader = ShapeWorldReader(tasks=["grounded-conversation"], split="held-out", count=60)
    assert all(map(named_combinations, reader))


def test_held_out_combinations_are_asked_for_where_they_may_be():
    reader = ShapeWorldCategoryReader(vocabulary="combinations", split="held-out", count=1)
    assert reader.num_things == 48 and "purple circle" in reader.labels
    chats = ShapeWorldReader(tasks=["chat"], split="held-out", count=60, families=["existence"])
    assert sum(map(bool, map(named_combinations, chats))) > 20


def test_articles_and_plurals():
    assert [with_article(word) for word in ("orange star", "arrow", "red ring")] == [
        "an orange star",
        "an arrow",
        "a red ring",
    ]
    assert [plural(word) for word in ("cross", "red star")] == ["crosses", "red stars"]
