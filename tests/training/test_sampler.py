from collections import Counter

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from xsam_training.sampler import (
    MixedBatchSampler,
    SampleKey,
    SourceBatchSampler,
    balance_table,
    repeat_factors,
    samples_per_epoch,
)

# A stage 3 mix of a million samples.
NAMES = ["COCO panoptic", "RefCOCO", "GranD-f", "ReasonSeg", "LLaVA"]
LENGTHS = [118_750, 25_000, 1_000, 250, 855_000]
FACTORS = [1.0, 2.0, 10.0, 20.0, 1.0]

SMALL, SMALL_FACTORS, SMALL_COUNTS = [7, 40, 5, 1], [2.5, 1.0, 3.2, 2.0], [18, 40, 16, 2]
SAMPLERS = pytest.mark.parametrize("sampler_class", [SourceBatchSampler, MixedBatchSampler])
BOUNDS = np.cumsum([0, *SMALL])


def small(sampler_class, batch_size=4, num_processes=1, **kwargs):
    return sampler_class(SMALL, batch_size, num_processes, SMALL_FACTORS, **kwargs)


def stream(sampler) -> list[SampleKey]:
    return [key for batch in sampler for key in batch]


def indices(sampler) -> np.ndarray:
    return np.array([key.index for key in stream(sampler)])


def source_of(index) -> int:
    return int(np.searchsorted(BOUNDS, index, side="right")) - 1


def by_source(sampler) -> list[list[int]]:
    """Indices inside each data set, in the order in which they come."""
    found = [[] for _ in SMALL]
    for index in indices(sampler):
        source = source_of(index)
        found[source].append(int(index - BOUNDS[source]))
    return found


class Keys(Dataset):
    """Gives back the key it is asked for."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> SampleKey:
        return key


def as_list(items: list[SampleKey]) -> list[SampleKey]:
    return items


def prepare(sampler, process_index: int, **kwargs) -> DataLoader:
    """What accelerate makes of a loader with this sampler on one of the processes."""
    loader = DataLoader(Keys(sum(SMALL)), batch_sampler=sampler, collate_fn=as_list, **kwargs)
    return prepare_data_loader(
        loader, num_processes=sampler.batches_per_step, process_index=process_index, put_on_device=False
    )


def dealt(per_process: list[list]) -> list:
    """Batches of all processes in the order of the sampler."""
    return [batch for step in zip(*per_process, strict=True) for batch in step]


# Balance


def test_repeat_factors_of_a_mix():
    # shares 0.11875, 0.025, 0.001, 0.00025, 0.855: sqrt(0.1 / 0.025) = 2, sqrt(100) = 10, sqrt(400) = 20
    assert repeat_factors(LENGTHS) == pytest.approx(FACTORS, abs=1e-12)
    assert repeat_factors([1, 9, 90], 0.36) == pytest.approx([6.0, 2.0, 1.0], abs=1e-12)


def test_threshold_zero_repeats_nothing():
    assert repeat_factors(LENGTHS, 0) == [1.0] * 5


def test_a_single_data_set_is_not_repeated():
    assert repeat_factors([10]) == [1.0]


@pytest.mark.parametrize(
    "lengths, threshold, message",
    [
        ([], 0.1, "lengths is empty"),
        ([3, 0], 0.1, r"lengths\[1\] is 0"),
        ([-1], 0.1, r"lengths\[0\] is -1"),
        ([3], -0.1, "threshold is -0.1"),
        ([3], 10, "threshold is 10"),
        ([3], float("nan"), "threshold is nan"),
    ],
)
def test_repeat_factors_errors(lengths, threshold, message):
    with pytest.raises(ValueError, match=message):
        repeat_factors(lengths, threshold)


def test_samples_per_epoch_rounds():
    assert samples_per_epoch(SMALL, SMALL_FACTORS) == SMALL_COUNTS
    assert samples_per_epoch([10, 10], [0.25, 1.26]) == [2, 13]


def test_balance_table():
    assert balance_table(NAMES, LENGTHS, FACTORS) == (
        "data set         samples  factor   an epoch    share  balanced\n"
        "COCO panoptic    118,750    1.00    118,750   11.88%    11.43%\n"
        "RefCOCO           25,000    2.00     50,000    2.50%     4.81%\n"
        "GranD-f            1,000   10.00     10,000    0.10%     0.96%\n"
        "ReasonSeg            250   20.00      5,000    0.03%     0.48%\n"
        "LLaVA            855,000    1.00    855,000   85.50%    82.31%\n"
        "total          1,000,000    1.04  1,038,750  100.00%   100.00%"
    )


def test_balance_table_needs_a_name_for_each():
    with pytest.raises(ValueError, match="names has 1 entries for 2 data sets"):
        balance_table(["a"], [1, 2], [1, 1])


# An epoch


@SAMPLERS
@pytest.mark.parametrize("batch_size, num_processes", [(1, 1), (4, 1), (2, 3), (64, 2)])
def test_all_batches_are_full_and_evenly_dealt(sampler_class, batch_size, num_processes):
    sampler = small(sampler_class, batch_size, num_processes)
    batches = list(sampler)
    assert {len(batch) for batch in batches} == {batch_size}
    assert len(batches) == len(sampler)
    assert len(batches) % num_processes == 0
    assert sampler.batch_size == batch_size and sampler.drop_last is False


@SAMPLERS
def test_each_sample_comes_as_often_as_its_factor_says(sampler_class):
    for order, length, count in zip(by_source(small(sampler_class, batch_size=1)), SMALL, SMALL_COUNTS, strict=True):
        assert len(order) == count
        times = Counter(order)
        assert set(times) == set(range(length))
        assert set(times.values()) <= {count // length, -(-count // length)}


@SAMPLERS
def test_a_sample_comes_once_more_only_when_all_have_come(sampler_class):
    for order, length in zip(by_source(small(sampler_class, batch_size=1)), SMALL, strict=True):
        for start in range(0, len(order), length):
            part = order[start : start + length]
            assert len(set(part)) == len(part)


def test_a_factor_below_one_takes_a_part():
    sampler = MixedBatchSampler([20, 4], 1, factors=[0.5, 1.0])
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        found = indices(sampler).tolist()
        assert len(set(found)) == len(found) == 14
        epochs.append({index for index in found if index < 20})
    assert [len(part) for part in epochs] == [10, 10] and epochs[0] != epochs[1]


@pytest.mark.parametrize("batch_size, num_processes", [(4, 1), (2, 3), (8, 2)])
def test_a_group_of_batches_comes_from_one_source(batch_size, num_processes):
    group = batch_size * num_processes
    found = indices(small(SourceBatchSampler, batch_size, num_processes)).reshape(-1, group)
    sources = [{source_of(index) for index in row} for row in found]
    assert all(len(row) == 1 for row in sources)
    rows = Counter(row.pop() for row in sources)
    assert rows == {source: -(-count // group) for source, count in enumerate(SMALL_COUNTS)}


def test_source_batches_are_filled_from_their_own_start():
    for order, count in zip(by_source(small(SourceBatchSampler, 8, 3)), SMALL_COUNTS, strict=True):
        assert len(order) == -(-count // 24) * 24
        assert order == np.resize(order[:count], len(order)).tolist()


def test_mixed_batches_are_filled_from_the_start_of_the_epoch():
    found = indices(small(MixedBatchSampler, 8, 2))
    assert sum(SMALL_COUNTS) == 76 and len(found) == 80
    assert found[76:].tolist() == found[:4].tolist()


def test_mixed_batches_hold_several_sources():
    found = indices(small(MixedBatchSampler, 8)).reshape(-1, 8)
    assert np.mean([len({source_of(index) for index in row}) for row in found]) > 2


@SAMPLERS
def test_a_data_set_smaller_than_a_batch(sampler_class):
    (batch,) = sampler_class([3], 8)
    order = [key.index for key in batch]
    assert sorted(order[:3]) == [0, 1, 2]
    assert order == (order[:3] * 3)[:8]


@SAMPLERS
def test_sources_come_in_proportion_all_through_the_epoch(sampler_class):
    lengths = [600, 1200, 200]
    sampler = sampler_class(lengths, 2, factors=[1.0, 1.0, 3.0])
    sources = np.searchsorted([600, 1800], indices(sampler), side="right").reshape(4, -1)
    for quarter in sources:
        # 600, 1200 and 600 of 2400
        assert np.bincount(quarter) / len(quarter) == pytest.approx([0.25, 0.5, 0.25], abs=0.06)


@SAMPLERS
def test_the_order_depends_on_the_batch_of_all_processes_alone(sampler_class):
    assert (
        stream(small(sampler_class, 2, 2)) == stream(small(sampler_class, 4, 1)) == stream(small(sampler_class, 1, 4))
    )


# Random numbers


@SAMPLERS
def test_iterations_are_repeatable_and_epochs_and_seeds_differ(sampler_class):
    sampler = small(sampler_class)
    first = stream(sampler)
    assert stream(sampler) == first
    assert stream(small(sampler_class)) == first
    sampler.set_epoch(1)
    second = stream(sampler)
    assert [key.index for key in second] != [key.index for key in first]
    assert not {key.draw for key in first} & {key.draw for key in second}
    other_seed = stream(small(sampler_class, seed=1))
    assert other_seed != first and other_seed != second
    sampler.set_epoch(0)
    assert stream(sampler) == first


@SAMPLERS
def test_what_a_fraction_repeats_is_drawn_anew_every_epoch(sampler_class):
    sampler = sampler_class([100], 10, factors=[1.3])
    extras = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        extras.append({index for index, times in Counter(indices(sampler).tolist()).items() if times == 2})
    assert [len(extra) for extra in extras] == [30, 30, 30]
    assert extras[0] != extras[1] != extras[2] != extras[0]


def test_draws_depend_on_seed_epoch_and_place_alone():
    draws = [key.draw for key in stream(small(MixedBatchSampler))]
    others = [small(SourceBatchSampler, 8, 3), MixedBatchSampler([1000], 5)]
    for other in others:
        assert all(a == b.draw for a, b in zip(draws, stream(other), strict=False))
    assert len(set(draws)) == len(draws)
    assert min(draws) >= 0 and max(draws) < 2**63
    assert isinstance(draws[0], int)
    assert np.mean(draws) / 2**63 == pytest.approx(0.5, abs=0.1)


def test_the_order_is_recorded():
    # A run that is continued with another version of this package or of NumPy has to see the same samples.
    keys = stream(small(SourceBatchSampler, seed=3))
    assert [key.index for key in keys[:8]] == [51, 49, 48, 50, 18, 26, 38, 16]
    assert keys[0].draw == 925436521046458566


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lengths": []}, "lengths is empty"),
        ({"lengths": [3, 0]}, r"lengths\[1\] is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batches_per_step": 0}, "batches_per_step is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"factors": [1.0]}, "factors has 1 entries for 2 data sets"),
        ({"factors": [1.0, 0.0]}, r"factors\[1\] is 0.0"),
        ({"factors": [float("inf"), 1.0]}, r"factors\[0\] is inf"),
    ],
)
def test_constructor_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        SourceBatchSampler(**{"lengths": [3, 4], "batch_size": 2, **arguments})


def test_epochs_are_not_negative():
    with pytest.raises(ValueError, match="epoch is -1"):
        small(MixedBatchSampler).set_epoch(-1)


# Together with torch and accelerate


def test_indices_are_those_of_the_concatenated_data_sets():
    dataset = ConcatDataset(
        [[f"{name}{i}" for i in range(length)] for name, length in zip("abcd", SMALL, strict=True)]
    )
    for index in indices(small(MixedBatchSampler)):
        source = source_of(index)
        assert dataset[index] == f"{'abcd'[source]}{index - BOUNDS[source]}"


@SAMPLERS
@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_processes_share_the_stream(sampler_class, num_processes, batch_size):
    sampler = small(sampler_class, batch_size, num_processes)
    prepared = [prepare(sampler, i) for i in range(num_processes)]
    assert {len(loader) for loader in prepared} == {len(sampler) // num_processes}
    assert dealt([list(loader) for loader in prepared]) == list(sampler)


@SAMPLERS
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_the_epoch_reaches_the_sampler_through_the_loader(sampler_class, num_processes):
    expected = small(sampler_class, 2, num_processes)
    expected.set_epoch(5)
    found = []
    for i in range(num_processes):
        loader = prepare(small(sampler_class, 2, num_processes), i)
        loader.set_epoch(5)
        found.append(list(loader))
    assert dealt(found) == list(expected)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_loader_counts_epochs_itself(num_processes):
    expected = small(MixedBatchSampler, 2, num_processes)
    prepared = [prepare(small(MixedBatchSampler, 2, num_processes), i) for i in range(num_processes)]
    for epoch in range(2):
        expected.set_epoch(epoch)
        assert dealt([list(loader) for loader in prepared]) == list(expected)


@SAMPLERS
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_skipping_batches_resumes_exactly(sampler_class, num_processes):
    expected = small(sampler_class, 2, num_processes)
    expected.set_epoch(1)
    found = []
    for i in range(num_processes):
        sampler = small(sampler_class, 2, num_processes)
        loader = skip_first_batches(prepare(sampler, i), 3)
        # What a trainer does; on several processes the loader alone does not find the sampler behind the skipping.
        loader.set_epoch(1)
        sampler.set_epoch(1)
        found.append(list(loader))
    assert dealt(found) == list(expected)[3 * num_processes :]


def test_skipping_on_one_process_needs_no_care():
    expected = small(SourceBatchSampler, 2)
    expected.set_epoch(1)
    loader = skip_first_batches(prepare(small(SourceBatchSampler, 2), 0), 3)
    loader.set_epoch(1)
    assert list(loader) == list(expected)[3:]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_workers_change_nothing(num_processes):
    sampler = small(SourceBatchSampler, 4, num_processes)
    found = [list(prepare(sampler, i, num_workers=2)) for i in range(num_processes)]
    assert dealt(found) == list(sampler)
