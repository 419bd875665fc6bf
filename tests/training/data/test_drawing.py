import random
from dataclasses import replace

import numpy as np
import pytest

from xsam_training.data.drawing import DrawOptions, borrow_negatives, draw_turns, drop_absent_labels
from xsam_training.data.samples import AnnotatedSample, Region, Turn, encode_masks

LABELS = tuple(f"label {index}" for index in range(10))


def masks(count: int) -> tuple:
    """`count` different masks of 4 x 4 pixels."""
    planes = np.zeros((count, 4, 4), dtype=bool)
    for index in range(count):
        planes[index].flat[index] = True
    return tuple(encode_masks(planes))


def sample(*turns: Turn) -> AnnotatedSample:
    return AnnotatedSample(image=None, turns=turns, name="test")


def category_turn(present: tuple[int, ...] = (1, 7)) -> Turn:
    return Turn("generic", labels=LABELS, num_things=5, masks=masks(len(present)), mask_phrases=present)


def visual_turn(*labels: str) -> Turn:
    regions = tuple((Region(masks(3)[0], "point"), Region(masks(3)[1], "box")) for _ in labels)
    return Turn(
        "visual-grounded",
        labels=labels,
        regions=regions,
        masks=masks(len(labels)),
        mask_phrases=tuple(range(len(labels))),
    )


def names_of_masks(turn: Turn) -> dict[bytes, str]:
    return {mask["counts"]: turn.labels[phrase] for mask, phrase in zip(turn.masks, turn.mask_phrases, strict=True)}


def test_a_category_list_keeps_its_masks_and_its_order_of_things_and_stuff():
    turn = category_turn()
    seen = set()
    for seed in range(50):
        (drawn,) = draw_turns(sample(turn), random.Random(seed), DrawOptions(max_absent_labels=3))
        assert names_of_masks(drawn) == names_of_masks(turn)
        assert set(drawn.labels[: drawn.num_things]) <= set(LABELS[:5])
        assert set(drawn.labels[drawn.num_things :]) <= set(LABELS[5:])
        assert len(drawn.labels) == 10 or 2 <= len(drawn.labels) <= 5
        seen.add(len(drawn.labels))
    assert seen == {2, 3, 4, 5, 10}


def test_whole_lists_only_and_never():
    whole = DrawOptions(whole_list_share=1.0)
    never = DrawOptions(whole_list_share=0.0, max_absent_labels=0)
    for seed in range(10):
        assert len(draw_turns(sample(category_turn()), random.Random(seed), whole)[0].labels) == 10
        assert set(draw_turns(sample(category_turn()), random.Random(seed), never)[0].labels) == {LABELS[1], LABELS[7]}


def test_an_image_without_categories_is_asked_about_one():
    (drawn,) = draw_turns(
        sample(category_turn(())), random.Random(0), DrawOptions(whole_list_share=0.0, max_absent_labels=0)
    )
    assert len(drawn.labels) == 1 and drawn.masks == ()


def test_one_expression_for_each_object():
    first, second = masks(2)
    turns = [Turn("referring", text=text, masks=(first,), mask_phrases=(0,)) for text in ("a cup", "the red cup")]
    turns.append(Turn("referring", text="a spoon", masks=(second,), mask_phrases=(0,)))
    absent = [Turn("referring", text=text) for text in ("a dog", "a cat")]
    drawn = draw_turns(sample(*turns, *absent), random.Random(1), DrawOptions(max_turns=9))
    texts = [turn.text for turn in drawn]
    assert sorted(set(texts) - {"a cup", "the red cup"}) == ["a cat", "a dog", "a spoon"]
    assert len(texts) == 4
    assert len(draw_turns(sample(*turns, *absent), random.Random(1), DrawOptions(max_turns=2))) == 2


def test_rephrased_questions_are_not_asked_together():
    (mask,) = masks(1)
    turns = [
        Turn("reasoning", text=text, masks=(mask,), mask_phrases=(0,)) for text in ("What is hot?", "Which burns?")
    ]
    assert len(draw_turns(sample(*turns), random.Random(0), DrawOptions())) == 1


def test_one_object_for_each_expression():
    first, second = masks(2)
    turns = [Turn("referring", text="a cup", masks=(mask,), mask_phrases=(0,)) for mask in (first, second)]
    assert len(draw_turns(sample(*turns), random.Random(0), DrawOptions())) == 1


def test_a_chat_stays_in_order():
    turns = [Turn("chat", text=str(index), answer="yes") for index in range(8)]
    assert draw_turns(sample(*turns), random.Random(0), DrawOptions(max_turns=2)) == turns


def test_a_chat_shows_one_prompt_of_each_marked_object_in_their_order():
    regions = visual_turn("cup", "spoon").regions
    turn = Turn("chat", text="Are these alike?", answer="No.", regions=regions)
    kinds = set()
    for seed in range(20):
        (drawn,) = draw_turns(sample(turn), random.Random(seed), DrawOptions())
        assert all(chosen in offered for (chosen,), offered in zip(drawn.regions, regions, strict=True))
        kinds |= {region.kind for (region,) in drawn.regions}
    assert kinds == {"point", "box"}


def test_visual_prompts_are_drawn_and_shuffled():
    turn = visual_turn("cup", "spoon", "plate")
    kinds, orders = set(), set()
    for seed in range(30):
        (drawn,) = draw_turns(sample(turn), random.Random(seed), DrawOptions())
        assert names_of_masks(drawn) == names_of_masks(turn)
        kinds |= {region.kind for (region,) in drawn.regions}
        orders.add(drawn.labels)
    assert kinds == {"point", "box"}
    assert len(orders) == 6


def test_the_same_seed_draws_the_same():
    turns = (category_turn(), visual_turn("cup", "spoon"))
    first, second = (draw_turns(sample(*turns), random.Random(3), DrawOptions()) for _ in range(2))
    assert first == second


def test_negatives_come_from_other_images_and_lack_in_this_one():
    turns = [[visual_turn("cup", "spoon")], [visual_turn("cup", "dog")], [category_turn()]]
    options = DrawOptions(negative_share=1.0)
    drawn = borrow_negatives(turns, [random.Random(seed) for seed in range(3)], options)
    first, second = drawn[0][0], drawn[1][0]
    assert sorted(first.turn.labels) == ["cup", "dog", "spoon"]
    assert dict(zip(first.turn.labels, first.region_samples, strict=True)) == {"cup": 0, "spoon": 0, "dog": 1}
    assert dict(zip(second.turn.labels, second.region_samples, strict=True)) == {"cup": 1, "dog": 1, "spoon": 0}
    assert names_of_masks(first.turn) == names_of_masks(turns[0][0])
    assert drawn[2][0].turn == category_turn() and drawn[2][0].region_samples == ()


def test_what_is_in_the_image_but_not_asked_is_no_negative():
    turns = [[replace(visual_turn("cup"), unasked=("dog",))], [visual_turn("dog")]]
    drawn = borrow_negatives(turns, [random.Random(0)] * 2, DrawOptions(negative_share=1.0))
    assert drawn[0][0].turn.labels == ("cup",)


def test_all_images_of_the_batch_lend():
    turns = [[visual_turn("cup")], *([visual_turn("dog")] for _ in range(3))]
    origins = set()
    for seed in range(20):
        rngs = [random.Random(seed + place) for place in range(4)]
        (first,) = borrow_negatives(turns, rngs, DrawOptions(negative_share=1.0))[0]
        origins |= set(first.region_samples)
    assert origins == {0, 1, 2, 3}


def test_no_negatives_where_none_can_be_had():
    options = DrawOptions(negative_share=1.0)
    turns = [[visual_turn("cup")], [visual_turn("cup")]]
    drawn = borrow_negatives(turns, [random.Random(0), random.Random(1)], options)
    assert [pair[0].region_samples for pair in drawn] == [(0,), (1,)]
    off = borrow_negatives(
        [[visual_turn("cup")], [visual_turn("dog")]], [random.Random(0)] * 2, replace(options, max_negatives=0)
    )
    assert [pair[0].turn.labels for pair in off] == [("cup",), ("dog",)]


def test_absent_labels_make_room():
    shorter = drop_absent_labels(category_turn(), keep=4)
    assert shorter.labels == (LABELS[0], LABELS[1], LABELS[2], LABELS[7])
    assert shorter.num_things == 3
    assert names_of_masks(shorter) == names_of_masks(category_turn())
    with pytest.raises(ValueError, match="2 categories are in the image, but the prompt has room for 1"):
        drop_absent_labels(category_turn(), keep=1)


@pytest.mark.parametrize("wrong", [{"negative_share": 2}, {"whole_list_share": -0.1}, {"max_turns": 0}])
def test_wrong_options_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DrawOptions(**wrong)
