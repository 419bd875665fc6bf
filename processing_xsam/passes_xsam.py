"""
Category lists that are too long for one prompt: split over several passes, and merged as if there had been one.

The rule of the merge: the queries of all passes compete as one set. A query knows the categories of its own pass and
the background; the categories of other passes have no probability for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .prompts_xsam import list_labels
from .results_xsam import SampleOutput, SegOutput
from .samples_xsam import Sample


def split_labels(sample: Sample, lengths: Sequence[int], budget: int) -> list[Sample]:
    """
    Args:
        sample: with labels.
        lengths: tokens that each label takes in a prompt, in the order of `list_labels`.
        budget: tokens that the labels of one prompt may take.

    Returns:
        Samples whose labels follow each other, as few as the budget allows and about equally long.

    Raises:
        ValueError: if a label alone exceeds the budget.
    """
    names = list_labels(sample.labels)
    longest = max(range(len(names)), key=lengths.__getitem__)
    if lengths[longest] > budget:
        raise ValueError(
            f"`labels`: {names[longest]!r} takes {lengths[longest]} tokens, but a prompt has room for {max(budget, 0)}"
        )
    if sum(lengths) <= budget:
        return [sample]
    # Evenly filled passes instead of full ones and a short rest; a pass still never exceeds the budget.
    target = max(lengths[longest], -(-sum(lengths) // -(-sum(lengths) // budget)))
    groups: list[list[str]] = [[]]
    filled = 0
    for name, length in zip(names, lengths, strict=True):
        if groups[-1] and filled + length > min(budget, target + lengths[longest] // 2):
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += length
    return [replace(sample, labels=_as_given(sample.labels, group)) for group in groups]


def merge_passes(outputs: Sequence[SampleOutput], sample: Sample) -> SampleOutput:
    """
    The outputs of the passes as the output of one sample with all labels. See the top of this file for the rule.

    Args:
        outputs: of `split_labels(sample)`, in order.
        sample: with all labels.
    """
    segs = [seg for output in outputs for seg in output.segs]
    if not segs:
        return replace(outputs[0], sample=replace(outputs[0].sample, labels=sample.labels))
    num_classes = len(list_labels(sample.labels))
    blocks, first = [], 0
    for output in outputs:
        # A pass whose generated answer lacks a <SEG> keeps the place of its categories.
        count = len(list_labels(output.sample.labels))
        for seg in output.segs:
            block = seg.class_logits.new_full((len(seg.class_logits), num_classes + 1), -torch.inf)
            block[:, first : first + count] = seg.class_logits[:, :-1]
            block[:, -1] = seg.class_logits[:, -1]
            blocks.append(block)
        first += count
    merged = SegOutput(torch.cat(blocks), torch.cat([seg.mask_logits for seg in segs]), phrase_spans=[])
    return replace(outputs[0], sample=replace(outputs[0].sample, labels=sample.labels), segs=[merged])


def _as_given(labels: Any, names: Sequence[str]) -> Any:
    """Some of the labels, in the form in which all were given."""
    if not isinstance(labels, Mapping):
        return list(names)
    chosen = set(names)
    return {kind: [name for name in labels.get(kind, ()) if name in chosen] for kind in ("thing", "stuff")}


__all__ = ["merge_passes", "split_labels"]
