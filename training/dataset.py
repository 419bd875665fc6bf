"""The data sets of a run: built from the recipe, put one after the other, and read by key."""

from __future__ import annotations

import logging
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
    """A sample and the seed of everything that is drawn of it."""

    sample: AnnotatedSample
    draw: int


class TrainingDataset(ConcatDataset):
    """
    Samples of several readers. An index may be a `SampleKey`, whose seed is passed on; a plain index is its own seed.

    Args:
        readers: in the order of the sampler's lengths.
        on_error: "raise" stops at a record that turns out broken when it is read; "skip" takes the one after it and says
            so in the log.
    """

    def __init__(self, readers: Sequence[SampleReader], on_error: OnError = "raise") -> None:
        super().__init__(readers)
        self.on_error = on_error

    @property
    def lengths(self) -> list[int]:
        return [len(reader) for reader in self.datasets]

    def __getitem__(self, key: SampleKey | int) -> TrainingItem:
        """
        Raises:
            IndexError: if there is no such sample, so that a loop over the data set ends.
            BrokenRecord: if the sample cannot be read and `on_error` is "raise".
            ValueError: if it is "skip", and none of the samples after it can be read either.
        """
        index, draw = key if isinstance(key, tuple) else (key, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} samples")
        attempts = min(MAX_SUBSTITUTES, len(self)) if self.on_error == "skip" else 1
        for place in range(index, index + attempts):
            try:
                return TrainingItem(super().__getitem__(place % len(self)), draw)
            except BrokenRecord as error:
                if self.on_error == "raise":
                    raise
                logger.warning("left out, the next one is taken instead: %s", error)
        raise ValueError(f"{attempts} samples from index {index} on cannot be read; see the warnings before.")
