"""The readers of the generated world, up to the batches of a training step."""

import pickle
import random

import numpy as np
import pytest

from tiny_training import tiny_processor
from xsam_training.collator import XSAMCollator, XSAMUniversalCollator
from xsam_training.data.drawing import DrawOptions
from xsam_training.data.formats import build_reader
from xsam_training.data.reader import BrokenRecord
from xsam_training.data.samples import decode_masks
from xsam_training.data.shape_world.options import World
from xsam_training.data.shape_world.questions import TASK_TURNS
from xsam_training.data.shape_world.reader import ShapeWorldCategoryReader, ShapeWorldReader
from xsam_training.data.shape_world.scene import draw_scene
from xsam_training.dataset import TrainingDataset
from xsam_training.evaluation.benchmarks import Benchmark

SEGMENTING = [task for task in TASK_TURNS if task != "chat"]
SIZE = (128, 128)


def content(sample):
    return sample.image.tobytes(), sample.turns, sample.name, sample.image_id


@pytest.mark.parametrize("tasks", [SEGMENTING, ["chat"]], ids=["segmenting", "chat"])
def test_a_sample_does_not_depend_on_what_was_read_before(tasks):
    reader = ShapeWorldReader(tasks=tasks, count=6)
    order = random.Random(0).sample(range(6), 6)
    read = {index: content(reader[index]) for index in order}
    copy = pickle.loads(pickle.dumps(reader))
    assert all(content(copy[index]) == read[index] for index in range(6))


def test_questions_of_a_task_do_not_depend_on_other_tasks():
    together, alone = ShapeWorldReader(tasks=SEGMENTING, count=4), {}
    for task in SEGMENTING:
        alone[task] = ShapeWorldReader(tasks=[task], count=4)
    for index in range(4):
        turns = together[index].turns
        for task in SEGMENTING:
            of_task = tuple(turn for turn in turns if turn.task == task)
            assert not of_task or of_task == alone[task][index].turns


def test_all_tasks_have_questions_with_masks_of_the_image():
    (sample,) = ShapeWorldReader(tasks=SEGMENTING, count=1, questions=8)
    assert {turn.task for turn in sample.turns} == set(SEGMENTING)
    for turn in sample.turns:
        masks = decode_masks(turn.masks, SIZE)
        assert masks.any(axis=(1, 2)).all() and len(masks) == len(turn.mask_phrases)
        assert all(phrase < turn.num_phrases for phrase in turn.mask_phrases)
    assert sample.name == "shape world, split train, seed 0, scene 0" and sample.image_id == "train-0-0"


def test_a_family_is_asked_alone():
    reader = ShapeWorldReader(tasks=["referring"], families=["relation"], count=30)
    words = ("left of", "right of", "above", "below")
    for sample in reader:
        assert sample.turns
        assert all(any(f" {word} the " in turn.text for word in words) and turn.masks for turn in sample.turns)
    absent = ShapeWorldReader(tasks=["referring"], families=["absent"], count=10)
    assert not any(turn.masks for sample in absent for turn in sample.turns)


def test_expressions_without_target_are_a_fifth():
    reader = ShapeWorldReader(tasks=["referring"], count=150)
    share = np.mean([not turn.masks for sample in reader for turn in sample.turns])
    assert 0.15 < share < 0.3


def test_no_more_questions_than_asked_for():
    for questions in (1, 3):
        for sample in ShapeWorldReader(tasks=["interactive"], questions=questions, count=5):
            assert len(sample.turns) == questions
    full = ShapeWorldReader(tasks=["interactive"], questions=12, count=5)
    for index in range(5):
        things = draw_scene(World(), index).things
        assert sorted(turn.masks[0]["counts"] for turn in full[index].turns) == sorted(
            thing.rle["counts"] for thing in things
        )


def test_prompts_show_their_things():
    for sample in ShapeWorldReader(tasks=["interactive"], questions=8, count=12):
        for turn in sample.turns:
            (target,) = decode_masks(turn.masks, SIZE)
            assert [region.kind for region in turn.regions[0]] == ["point", "scribble", "box", "mask"]
            prompts = decode_masks([region.mask for region in turn.regions[0]], SIZE)
            point, scribble, box, mask = prompts
            assert 0 < point.sum() <= 21 and (point & target).any()
            assert (scribble & target).any()
            assert (box & target).sum() > 0.75 * target.sum()
            # The blur fills corners and holes.
            assert (mask & target).sum() > 0.7 * target.sum() and (mask | target).sum() < 2 * target.sum()


def test_visual_questions_have_all_things_of_each_kind():
    reader = ShapeWorldReader(tasks=["visual-grounded"], count=8)
    for index in range(8):
        (turn,), things = reader[index].turns, draw_scene(World(), index).things
        assert turn.labels == tuple(sorted({thing.kind for thing in things}))
        for phrase, kind in enumerate(turn.labels):
            of_kind = [thing for thing in things if thing.kind == kind]
            assert masks_of(turn, phrase) == [thing.rle["counts"] for thing in of_kind]
            assert len(turn.regions[phrase]) == 4 * len(of_kind)


def test_visual_questions_may_leave_kinds_out():
    """What is shown is asked for as before; what is not has no mask. Other tasks of the scene stay as they are."""
    tasks, count = ["visual-grounded", "interactive"], 30
    left_out = 0
    for whole, part in zip(
        ShapeWorldReader(tasks=tasks, count=count),
        ShapeWorldReader(tasks=tasks, count=count, leave_kinds_out=True),
        strict=True,
    ):
        all_kinds, shown = whole.turns[0], part.turns[0]
        assert whole.turns[1:] == part.turns[1:] and shown.labels
        for phrase, kind in enumerate(shown.labels):
            place = all_kinds.labels.index(kind)
            assert shown.regions[phrase] == all_kinds.regions[place]
            assert masks_of(shown, phrase) == masks_of(all_kinds, place)
        assert set(shown.mask_phrases) == set(range(len(shown.labels)))
        left_out += len(all_kinds.labels) - len(shown.labels)
    assert left_out > count / 2


def masks_of(turn, phrase):
    return [mask["counts"] for mask, of in zip(turn.masks, turn.mask_phrases, strict=True) if of == phrase]


def test_an_open_vocabulary_has_what_is_there_and_a_few_others():
    for index, sample in enumerate(ShapeWorldReader(tasks=["open-vocabulary"], count=20)):
        (turn,) = sample.turns
        names = {thing.combination.name for thing in draw_scene(World(), index).things}
        things = turn.labels[: turn.num_things]
        assert names <= set(things) and 2 <= len(set(things) - names) <= 8
        assert turn.labels[turn.num_things :] == ("sky", "clouds", "cliffs", "grass", "sand", "water")
        assert {turn.labels[phrase] for phrase in turn.mask_phrases} & set(things) == names


@pytest.mark.parametrize(
    ("vocabulary", "task", "num_things"), [("kinds", "generic", 6), ("combinations", "open-vocabulary", 42)]
)
def test_category_lists(vocabulary, task, num_things):
    reader = build_reader(
        {"format": "shape-world-categories", "vocabulary": vocabulary, "split": "test", "count": 5}, ".", "raise"
    )
    assert reader.num_things == num_things and len(reader.labels) == num_things + 6
    for index, sample in enumerate(reader):
        (turn,) = sample.turns
        assert (turn.task, turn.labels, turn.num_things) == (task, reader.labels, num_things)
        things = draw_scene(reader.world, index).things
        names = [reader.labels[phrase] for phrase in turn.mask_phrases[:-2]]
        assert names == [thing.kind if vocabulary == "kinds" else thing.combination.name for thing in things]
        assert (decode_masks(turn.masks, SIZE).sum(axis=0) == 1).all()


def test_batches_of_all_tasks():
    readers = [
        build_reader({"format": "shape-world", "count": 2, "tasks": tasks}, ".", "raise")
        for tasks in (SEGMENTING, ["chat"])
    ]
    dataset = TrainingDataset(readers)
    collator = XSAMCollator(tiny_processor(), options=DrawOptions(max_turns=12))
    batch = collator([dataset[index] for index in range(4)])
    assert batch["input_ids"].shape[0] == batch["pixel_values"].shape[0] == 4
    assert len(batch["mask_labels"]) == len(batch["class_labels"]) > 12
    assert (batch["labels"][2:] != -100).any(dim=1).all()


def test_batches_of_stage_1():
    reader = ShapeWorldCategoryReader(count=2)
    batch = XSAMUniversalCollator(tiny_processor(), jitter=None)(
        [TrainingDataset([reader])[index] for index in (0, 1)]
    )
    assert [len(labels) for labels in batch["class_labels"]] == [
        len(draw_scene(World(), index).things) + 2 for index in (0, 1)
    ]


def test_a_benchmark_of_one_prompt_has_all_its_questions():
    dataset = {"format": "shape-world", "tasks": ["visual-grounded", "interactive"], "split": "test", "count": 2}
    reader = build_reader(dataset, ".", "raise")
    for kind in ("point", "box"):
        benchmark = Benchmark(f"shapes-{kind}", "referring-iou", dataset, prompt=kind)
        for sample in reader:
            asked = benchmark.asked(sample)
            assert len(asked.turns) == len(sample.turns)
            assert {region.kind for turn in asked.turns for of in turn.regions for region in of} == {kind}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, r"tasks is \[\]; give a list of at least one"),
        ({"tasks": "chat"}, "tasks is 'chat'; give a list"),
        ({"tasks": ["generic", "generic"]}, "each once"),
        ({"tasks": ["panoptic"]}, r"\['panoptic'\] are unknown; known are generic, open-vocabulary"),
        ({"tasks": ["chat", "referring"]}, "a chat is a conversation of its own"),
        ({"families": ["count"]}, r"families is \['count'\]; those of tasks \['referring'\] are \['attribute'"),
        ({"tasks": ["generic"], "families": ["size"]}, r"those of tasks \['generic'\] are \[\]"),
        ({"questions": 0}, "questions is 0; it has to be at least 1"),
        ({"count": 0}, "count is 0"),
        ({"split": "validation"}, "split is 'validation'"),
        ({"kinds": 1}, "kinds is 1"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build_reader({"format": "shape-world", "tasks": ["referring"], **changes}, ".", "raise")


def test_a_wrong_vocabulary_is_named():
    with pytest.raises(ValueError, match="vocabulary is 'all'; possible are kinds, combinations"):
        ShapeWorldCategoryReader(vocabulary="all")


def test_questions_that_no_scene_gives_are_a_broken_record():
    reader = ShapeWorldReader(tasks=["referring"], families=["size"], fewest_things=1, most_things=1, count=1)
    with pytest.raises(BrokenRecord, match=r"scene 0: 50 scenes give no question of tasks \['referring'\]"):
        reader[0]
