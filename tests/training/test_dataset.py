import logging
from dataclasses import replace

import pytest
from torch.utils.data import DataLoader

from tiny_training import chat_sample
from xsam_training import dataset as module
from xsam_training.data.reader import BrokenRecord, SampleReader
from xsam_training.dataset import TrainingDataset, TrainingItem
from xsam_training.sampler import SampleKey


class NamedReader(SampleReader[str]):
    """Chats of the given names; those in capitals turn out broken when they are read."""

    def __init__(self, names: str) -> None:
        self.names = names
        super().__init__()

    def records(self):
        return list(self.names)

    def read(self, record):
        if record.isupper():
            raise BrokenRecord("chats.json", record, "it is damaged")
        return replace(chat_sample(0, with_image=False), name=record)


def names(dataset: TrainingDataset) -> str:
    return "".join(item.sample.name for item in dataset)


def test_readers_one_after_the_other():
    dataset = TrainingDataset([NamedReader("abc"), NamedReader("de")])
    assert dataset.lengths == [3, 2] and len(dataset) == 5
    assert names(dataset) == "abcde"


def test_a_plain_index_is_its_own_seed_and_a_key_brings_one():
    dataset = TrainingDataset([NamedReader("abc"), NamedReader("de")])
    item = dataset[3]
    assert isinstance(item, TrainingItem) and (item.sample.name, item.draw) == ("d", 3)
    item = dataset[SampleKey(index=4, draw=2**62 + 5)]
    assert (item.sample.name, item.draw) == ("e", 2**62 + 5)


@pytest.mark.parametrize("key", [5, -1, SampleKey(5, 0)])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_there_is_no_other_index(key, on_error):
    with pytest.raises(IndexError, match="of a data set of 5 samples"):
        TrainingDataset([NamedReader("abc"), NamedReader("de")], on_error)[key]


def test_raise_stops_at_a_broken_record():
    dataset = TrainingDataset([NamedReader("aB")])
    assert dataset[0].sample.name == "a"
    with pytest.raises(BrokenRecord, match=r"chats\.json, B: it is damaged"):
        dataset[1]


def test_skip_takes_the_next_one_and_says_so(caplog):
    dataset = TrainingDataset([NamedReader("aBC"), NamedReader("dE")], "skip")
    with caplog.at_level(logging.WARNING, logger="xsam_training"):
        item = dataset[SampleKey(1, draw=77)]
    # The seed belongs to the place in the epoch, not to the sample. It stays in its data set.
    assert (item.sample.name, item.draw, item.num_skipped) == ("a", 77, 2)
    assert caplog.messages == [
        f"left out, the next one is taken instead: chats.json, {name}: it is damaged" for name in "BC"
    ]
    assert names(dataset) == "aaadd"


def test_broken_records_are_counted_by_data_set():
    dataset = TrainingDataset([NamedReader("aBC"), NamedReader("de"), NamedReader("fG")], "skip")
    assert [item.num_skipped for item in dataset] == [0, 2, 1, 0, 0, 0, 1]
    assert dataset.substituted == {0: 3, 2: 1}
    assert dataset[4].num_skipped == 0 and dataset.substituted[1] == 0


def test_workers_say_what_they_skipped():
    dataset = TrainingDataset([NamedReader("aB")], "skip")
    loader = DataLoader(dataset, batch_size=None, num_workers=1, collate_fn=lambda item: item)
    assert [(item.sample.name, item.num_skipped) for item in loader] == [("a", 0), ("a", 1)]
    assert not dataset.substituted


def test_a_data_set_without_a_sound_record_is_given_up():
    with pytest.raises(ValueError, match="3 samples from index 1 on cannot be read"):
        TrainingDataset([NamedReader("ABC"), NamedReader("d")], "skip")[1]


def test_so_is_one_with_too_many_broken_ones_in_a_row(monkeypatch):
    monkeypatch.setattr(module, "MAX_SUBSTITUTES", 2)
    dataset = TrainingDataset([NamedReader("aBCdE")], "skip")
    assert dataset[2].sample.name == "d"
    with pytest.raises(ValueError, match="2 samples from index 1 on cannot be read"):
        dataset[1]
