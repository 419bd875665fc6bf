import pytest

from modeling_xsam.phrase_spans_xsam import SegPhrases, layout_classes, parse_answer, parse_prompt
from tiny_models import PHRASE_END, PHRASE_START, SEG, phrase, prompt_ids, tiny_config


@pytest.fixture(scope="module")
def config():
    return tiny_config()


def test_a_category_list_and_one_seg(config):
    ids = prompt_ids(1, phrase(5), 6, phrase(7, 8), SEG)
    assert parse_prompt(ids, config) == [SegPhrases(9, [(1, 4), (5, 9)])]


def test_turns_of_a_phrase_and_a_seg_each(config):
    ids = prompt_ids(phrase(5), SEG, 9, phrase(6), SEG)
    assert parse_prompt(ids, config) == [SegPhrases(3, [(0, 3)]), SegPhrases(8, [(5, 8)])]


def test_a_prompt_without_seg_has_none(config):
    assert parse_prompt(prompt_ids(1, 2, phrase(5)), config) == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, PHRASE_START, 5], "<p> at position 1 has no </p>"),
        ([1, 5, PHRASE_END], "</p> at position 2 has no <p>"),
        ([PHRASE_START, 5, PHRASE_START, 6, PHRASE_END], "<p> at position 0 is not closed before the <p> at 2"),
        ([PHRASE_START, 5, SEG], "<p> at position 0 is not closed before the <SEG> at 2"),
        ([1, SEG], "<SEG> at position 1 has no phrase"),
        ([*phrase(5), SEG, SEG], "<SEG> at position 4 has no phrase"),
    ],
)
def test_malformed_prompts_raise(config, ids, message):
    with pytest.raises(ValueError, match=message):
        parse_prompt(ids, config)


def test_an_answer_segments_the_phrases_of_the_prompt(config):
    prompt = prompt_ids(1, phrase(5), 6)
    structure = parse_answer([*prompt, 7, SEG, 2], len(prompt), config)
    assert structure.segs == [SegPhrases(6, [(1, 4)])]
    assert structure.problems == []


def test_phrases_of_the_answer_replace_those_of_the_prompt(config):
    prompt = prompt_ids(1, phrase(5), 6)
    structure = parse_answer([*prompt, *phrase(7), SEG], len(prompt), config)
    assert structure.segs == [SegPhrases(8, [(5, 8)])]


def test_segs_of_earlier_turns_are_not_segmented_again(config):
    prompt = prompt_ids(phrase(5), SEG, 6, phrase(7))
    structure = parse_answer([*prompt, SEG], len(prompt), config)
    assert structure.segs == [SegPhrases(8, [(5, 8)])]


@pytest.mark.parametrize(
    ("answer", "segs", "problem"),
    [
        ([7, 8], 0, "the answer has no <SEG>"),
        ([PHRASE_START, 7, SEG], 1, "is not closed"),
        ([*phrase(7), SEG, SEG], 1, "has no phrase"),
        ([PHRASE_END, SEG], 1, "has no <p>"),
    ],
)
def test_malformed_answers_are_described_instead_of_raised(config, answer, segs, problem):
    prompt = prompt_ids(1, phrase(5), 6)
    structure = parse_answer([*prompt, *answer], len(prompt), config)
    assert len(structure.segs) == segs
    assert problem in " ".join(structure.problems)


def test_ungrouped_segs_have_their_own_phrases_as_classes():
    layout = layout_classes([2, 1], [-1, -1])
    assert layout.members == [[0, 1], [2]]
    assert layout.offsets == [0, 0]


def test_a_group_shares_its_phrases_in_batch_order():
    layout = layout_classes([2, 1, 3], [4, -1, 4])
    assert layout.members == [[0, 1, 3, 4, 5], [2], [0, 1, 3, 4, 5]]
    assert layout.offsets == [0, 0, 2]
