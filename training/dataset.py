"""The data sets of a run: built from the recipe, put one after the other, and read by key."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch.utils.data import ConcatDataset

from .data.reader import BrokenRecord, OnError, SampleReader
from .data.samples import AnnotatedSample
from .sampler import SampleKey

logger = logging.getLogger(__name__)

# Broken records in a row after which a data set is given up.
MAX_SUBSTITUTES = 100


class TrainingItem(NamedTuple):
    """
    Attributes:
        sample: what was read.
        draw: the seed of everything that is drawn of it.
        num_skipped: how many broken records were passed over to get it.
    """

    sample: AnnotatedSample
    draw: int
    num_skipped: int = 0


class TrainingDataset(ConcatDataset):
    """
    Samples of several readers. An index may be a `SampleKey`, whose seed is passed on; a plain index is its own seed.

    Args:
        readers: in the order of the sampler's lengths.
        on_error: "raise" stops at a record that turns out broken when it is read; "skip" takes the one after it in the
            same data set, the first after the last, and says so in the log.

    Attributes:
        substituted: by the number of the data set, how often a record was broken and another one taken. It counts what
            this process reads; the workers of a data loader count in copies of their own, and `TrainingItem.num_skipped`
            says it of each sample.
    """

    def __init__(self, readers: Sequence[SampleReader], on_error: OnError = "raise") -> None:
        super().__init__(readers)
        self.on_error = on_error
        self.substituted: Counter[int] = Counter()

    @property
    def lengths(self) -> list[int]:
        return [len(reader) for reader in self.datasets]

    def __getitem__(self, key: SampleKey | int) -> TrainingItem:
        """
        Raises:
            IndexError: if there is no such sample, so that a loop over the data set ends.
            BrokenRecord: if the sample cannot be read and `on_error` is "raise".
            ValueError: if it is "skip", and none of the samples after it can be read either, up to `MAX_SUBSTITUTES`.
        """
        index, draw = key if isinstance(key, tuple) else (key, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} samples")
        number = bisect_right(self.cumulative_sizes, index)
        reader = self.datasets[number]
        first = index - self.cumulative_sizes[number] + len(reader)
        attempts = min(MAX_SUBSTITUTES, len(reader)) if self.on_error == "skip" else 1
        for num_skipped in range(attempts):
            try:
                return TrainingItem(reader[(first + num_skipped) % len(reader)], draw, num_skipped)
            except BrokenRecord as error:
                if self.on_error == "raise":
                    raise
                self.substituted[number] += 1
                logger.warning("left out, the next one is taken instead: %s", error)
        raise ValueError(f"{attempts} samples from index {index} on cannot be read; see the warnings before.")
