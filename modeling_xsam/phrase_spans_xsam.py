"""
The structure of a token sequence: which phrases does each `<SEG>` segment?

One rule covers all tasks: every `<SEG>` segments the phrases that stand since the previous `<SEG>`. A phrase is a
`<p> ... </p>` span, markers included. Phrases in a generated answer replace those of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

from .configuration_xsam import XSAMConfig


@dataclass(frozen=True)
class SegPhrases:
    """One `<SEG>`: its position in the sequence and the [start, end) spans of its phrases, markers included."""

    position: int
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class ClassLayout:
    """
    Which phrases are the classes of each `<SEG>`. Phrases are numbered over the whole batch.

    Args:
        members: per `<SEG>` the phrases that are its classes, in order.
        offsets: per `<SEG>` the place of its own first phrase among its classes.
    """

    members: list[list[int]]
    offsets: list[int]


@dataclass
class SequenceStructure:
    """The `<SEG>`s of one sequence, and what is wrong with it (nothing, for a well-formed one)."""

    segs: list[SegPhrases] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def parse_prompt(token_ids: list[int], config: XSAMConfig) -> list[SegPhrases]:
    """
    The `<SEG>`s of a prompt or a label sequence.

    Raises:
        ValueError: if the structure is malformed.
    """
    structure = _scan(token_ids, 0, [], config)
    if structure.problems:
        raise ValueError(f"input_ids are malformed: {structure.problems[0]}")
    return structure.segs


def parse_answer(token_ids: list[int], answer_start: int, config: XSAMConfig) -> SequenceStructure:
    """
    The `<SEG>`s of a generated answer, which starts at `answer_start`. Phrases that the prompt left open stand for the
    first `<SEG>` unless the answer has phrases of its own. What is malformed is left out and named.

    Raises:
        ValueError: if the prompt, up to `answer_start`, is malformed.
    """
    prompt = token_ids[:answer_start]
    last_seg = max((seg.position for seg in parse_prompt(prompt, config)), default=-1)
    open_phrases = _phrases_after(prompt, last_seg, config)
    structure = _scan(token_ids[answer_start:], answer_start, open_phrases, config)
    if not structure.segs and not structure.problems:
        structure.problems.append("the answer has no <SEG>.")
    return structure


def layout_classes(num_phrases: list[int], group_ids: list[int]) -> ClassLayout:
    """
    Args:
        num_phrases: own phrases of each `<SEG>` of the batch.
        group_ids: `<SEG>`s of equal id share their phrases, in batch order; -1 shares with none.
    """
    own = [list(range(end - count, end)) for end, count in zip(accumulate(num_phrases), num_phrases, strict=True)]
    members = [
        own[i] if group == -1 else [phrase for j, other in enumerate(group_ids) if other == group for phrase in own[j]]
        for i, group in enumerate(group_ids)
    ]
    offsets = [classes.index(phrases[0]) for classes, phrases in zip(members, own, strict=True)]
    return ClassLayout(members, offsets)


def _phrases_after(token_ids: list[int], position: int, config: XSAMConfig) -> list[tuple[int, int]]:
    starts = [i for i, token in enumerate(token_ids) if token == config.phrase_start_token_id and i > position]
    ends = [i + 1 for i, token in enumerate(token_ids) if token == config.phrase_end_token_id and i > position]
    return list(zip(starts, ends, strict=True))


def _scan(
    token_ids: list[int], offset: int, open_phrases: list[tuple[int, int]], config: XSAMConfig
) -> SequenceStructure:
    """Read tokens from left to right. Positions are counted from `offset`; `open_phrases` stand from before."""
    structure = SequenceStructure()
    # Attributes of a configuration are slow to read, too slow for every token.
    phrase_start, phrase_end, seg = config.phrase_start_token_id, config.phrase_end_token_id, config.seg_token_id
    inherited, spans, start = open_phrases, [], None
    for position, token in enumerate(token_ids, start=offset):
        if token == phrase_start:
            if start is not None:
                structure.problems.append(f"<p> at position {start} is not closed before the <p> at {position}.")
            start = position
        elif token == phrase_end:
            if start is None:
                structure.problems.append(f"</p> at position {position} has no <p> before it.")
            else:
                spans.append((start, position + 1))
            start = None
        elif token == seg:
            if start is not None:
                structure.problems.append(f"<p> at position {start} is not closed before the <SEG> at {position}.")
                start = None
            if spans or inherited:
                structure.segs.append(SegPhrases(position, spans or inherited))
            else:
                structure.problems.append(
                    f"<SEG> at position {position} has no phrase (<p> ... </p>) between it and the previous <SEG>."
                )
            inherited, spans = [], []
    if start is not None:
        structure.problems.append(f"<p> at position {start} has no </p>.")
    return structure


__all__ = ["ClassLayout", "SegPhrases", "SequenceStructure", "layout_classes", "parse_answer", "parse_prompt"]
