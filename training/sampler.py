"""
Which samples a training step sees: balance between data sets, and batches from one of them or from all.

The repeat factor is that of X-SAM (arXiv 2508.04655; `xsam/dataset/concat_dataset.py`), and so is the rule that the
batches of a step come from one data set (`xsam/dataset/samplers/source_grouped.py`). Unlike there, the samples that a
fractional factor repeats are drawn anew every epoch instead of being the first of the data set, data sets take turns in
proportion to their size until the end of the epoch, and no sample is left out.

Shapes: an epoch is B batches of `batch_size` samples, and B is a multiple of `batches_per_step`. On n
processes, batch i is worked on by process i modulo n, which is how accelerate deals them out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """
    A sample at its place in an epoch.

    Attributes:
        index: of the sample in the concatenated data sets.
        draw: seed of everything that is drawn of the sample at this place, in [0, 2^63). It depends on the sampler's
            seed, the epoch and the place alone.
    """

    index: int
    draw: int


def repeat_factors(lengths: Sequence[int], threshold: float = 0.1) -> list[float]:
    """
    How often each data set is repeated in an epoch: max(1, sqrt(threshold / share)), share being its part of all samples.

    Args:
        lengths: number of samples of each data set.
        threshold: data sets with a smaller share are repeated. 0 repeats nothing.

    Raises:
        ValueError: without data sets, for an empty one, or for a threshold outside [0, 1].
    """
    _check_lengths(lengths)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but it is a share of all samples: choose it between 0 and 1.")
    total = sum(lengths)
    return [max(1.0, math.sqrt(threshold * total / length)) for length in lengths]


def samples_per_epoch(lengths: Sequence[int], factors: Sequence[float]) -> list[int]:
    """
    Number of samples that each data set gives an epoch: its length times its factor, rounded.

    Raises:
        ValueError: if there is not one factor for each data set, or if a factor leaves nothing of its data set.
    """
    _check_lengths(lengths)
    if len(factors) != len(lengths):
        raise ValueError(f"factors has {len(factors)} entries for {len(lengths)} data sets: give one for each.")
    for place, (length, factor) in enumerate(zip(lengths, factors, strict=True)):
        if not (math.isfinite(factor) and round(length * factor) >= 1):
            raise ValueError(
                f"factors[{place}] is {factor}, which does not give a number of samples from 1 of a data set of {length}: "
                "choose a larger, finite factor or leave the data set out."
            )
    return [round(length * factor) for length, factor in zip(lengths, factors, strict=True)]


def balance_table(names: Sequence[str], lengths: Sequence[int], factors: Sequence[float]) -> str:
    """
    Plain text: sizes of the data sets, repeat factors, samples an epoch, and shares without and with the repetition.

    Raises:
        ValueError: as `samples_per_epoch`, or if there is not one name for each data set.
    """
    counts = samples_per_epoch(lengths, factors)
    if len(names) != len(lengths):
        raise ValueError(f"names has {len(names)} entries for {len(lengths)} data sets: give one for each.")
    total, epoch = sum(lengths), sum(counts)
    rows = [("data set", "samples", "factor", "an epoch", "share", "balanced")]
    for name, length, factor, count in zip(names, lengths, factors, counts, strict=True):
        rows.append(
            (name, f"{length:,}", f"{factor:.2f}", f"{count:,}", f"{length / total:.2%}", f"{count / epoch:.2%}")
        )
    rows.append(("total", f"{total:,}", f"{epoch / total:.2f}", f"{epoch:,}", "100.00%", "100.00%"))
    name_width, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([name.ljust(name_width), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in rows
    )


class XSAMBatchSampler(Sampler[list[SampleKey]], ABC):
    """
    Batches of an epoch, the same on all processes, and all of them full.

    A data set is passed through as often as its factor says before any of its samples comes once more than the others:
    factor 2.3 gives every sample twice and a random three tenths of them a third time. An epoch that does not fill its
    last batches is continued from its start. The order depends on `batch_size * batches_per_step` alone, not on its parts.

    Nothing but the epoch is remembered: every iteration starts at the beginning of the epoch, so that a run is resumed by
    setting the epoch and skipping batches. The epoch has to be set here when batches are skipped on several processes:
    accelerate's `skip_first_batches` then hides this sampler from the loader's `set_epoch`.

    Args:
        lengths: number of samples of each data set, in the order in which they are concatenated.
        batch_size: samples of a batch, on one process.
        batches_per_step: batches of an optimiser step: those that are accumulated, times the processes.
        factors: repeat factor of each data set; below 1, a random part of it is taken. By default 1.
        seed: of the order of samples and of their draws.

    Raises:
        ValueError: without data sets, for an empty one, for a factor that leaves nothing of its data set, for a batch or a
            number of batches below 1 or a negative seed.
    """

    # Asked for by accelerate. Nothing is dropped, and nothing has to be.
    drop_last = False

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        batches_per_step: int = 1,
        factors: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("batches_per_step", batches_per_step, 1)
        _check_at_least("seed", seed, 0)
        self.lengths = list(lengths)
        self.counts = samples_per_epoch(lengths, [1.0] * len(lengths) if factors is None else factors)
        self.batch_size = batch_size
        self.batches_per_step = batches_per_step
        self.seed = seed
        self.epoch = 0

    @property
    @abstractmethod
    def run_length(self) -> int:
        """How many samples in a row come from one data set; a divisor of `batch_size * batches_per_step`."""

    @property
    def sampler(self) -> XSAMBatchSampler:
        """This sampler: accelerate passes `set_epoch` on to the `sampler` of a batch sampler that it has wrapped."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the iterations that start from now on."""
        _check_at_least("epoch", epoch, 0)
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches of an epoch, over all processes."""
        num_samples = sum(_round_up(count, self.run_length) for count in self.counts)
        return _round_up(num_samples, self.batch_size * self.batches_per_step) // self.batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Two streams of random numbers, so that draws do not depend on the lengths of the data sets.
        order_seed, draw_seed = np.random.SeedSequence([self.seed, self.epoch]).spawn(2)
        order = self._order(np.random.default_rng(order_seed)).reshape(-1, self.batch_size)
        draws = np.random.default_rng(draw_seed).integers(2**63, size=order.shape)
        for indices, batch_draws in zip(order, draws, strict=True):
            yield list(map(SampleKey, indices.tolist(), batch_draws.tolist()))

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """Indices of the epoch's samples, int64 (B * batch_size,)."""
        starts = np.cumsum([0, *self.lengths[:-1]])
        sources = [
            start + _passes(length, count, _round_up(count, self.run_length), rng)
            for start, length, count in zip(starts, self.lengths, self.counts, strict=True)
        ]
        runs = np.concatenate(sources).reshape(-1, self.run_length)
        # A random order of data sets, each of which keeps the order of its own samples.
        turns = rng.permutation(np.repeat(np.arange(len(sources)), [len(s) // self.run_length for s in sources]))
        order = np.empty_like(runs)
        order[np.argsort(turns, kind="stable")] = runs
        return np.resize(order, _round_up(order.size, self.batch_size * self.batches_per_step))


class SourceBatchSampler(XSAMBatchSampler):
    """
    The batches of an optimiser step come from one data set: the published way. A data set that does not fill its last
    batches is continued from the start of its own samples.
    """

    @property
    def run_length(self) -> int:
        return self.batch_size * self.batches_per_step


class MixedBatchSampler(XSAMBatchSampler):
    """The samples of all data sets shuffled together."""

    @property
    def run_length(self) -> int:
        return 1


def _passes(length: int, count: int, padded: int, rng: np.random.Generator) -> np.ndarray:
    """`count` indices below `length`, one shuffled pass after another, and then the first of them again up to `padded`."""
    passes = [rng.permutation(length) for _ in range(-(-count // length))]
    return np.resize(np.concatenate(passes)[:count], padded)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _check_lengths(lengths: Sequence[int]) -> None:
    if len(lengths) == 0:
        raise ValueError("lengths is empty: give at least one data set.")
    for place, length in enumerate(lengths):
        _check_at_least(f"lengths[{place}]", length, 1)


def _check_at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"{name} is {value}, but it has to be at least {minimum}.")


__all__ = [
    "MixedBatchSampler",
    "SampleKey",
    "SourceBatchSampler",
    "XSAMBatchSampler",
    "balance_table",
    "repeat_factors",
    "samples_per_epoch",
]
