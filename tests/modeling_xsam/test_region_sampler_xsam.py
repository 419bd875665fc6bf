import pytest
import torch

from modeling_xsam.region_sampler_xsam import XSAMRegionSampler

SIZE = 8


def region(*pixels: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for y, x in pixels:
        mask[y, x] = True
    return mask


def column_map() -> torch.Tensor:
    """A 5 x 5 map whose value is the column: with corners aligned, x / 8 of the width is column x / 2."""
    return torch.arange(5.0).expand(1, 1, 5, 5)


def test_pixels_are_read_as_fractions_of_the_size_with_corners_aligned():
    sampler = XSAMRegionSampler(num_points=4, num_tokens=1, pooling="max")
    regions = sampler(column_map(), torch.stack([region((0, 3)), region((7, 6), (2, 4))]), torch.tensor([0, 0]))
    torch.testing.assert_close(regions.flatten(), torch.tensor([1.5, 3.0]))


def test_each_region_reads_its_own_image():
    maps = torch.cat([column_map(), 10 * column_map()])
    sampler = XSAMRegionSampler(num_points=4, num_tokens=1, pooling="max")
    regions = sampler(maps, torch.stack([region((0, 2)), region((0, 2))]), torch.tensor([1, 0]))
    assert regions.flatten().tolist() == [10.0, 1.0]


def test_a_large_region_is_read_at_evenly_strided_pixels():
    sampler = XSAMRegionSampler(num_points=4, num_tokens=4, pooling="max")
    row = region(*[(0, x) for x in range(SIZE)])
    assert sampler(column_map(), row[None], torch.tensor([0])).flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_small_region_repeats_all_its_pixels():
    sampler = XSAMRegionSampler(num_points=8, num_tokens=2, pooling="mean")
    regions = sampler(column_map(), region((0, 0), (0, 8 - 2))[None], torch.tensor([0]))
    assert regions.flatten().tolist() == [0.0, 3.0]


def test_the_same_region_always_gives_the_same_embedding():
    sampler = XSAMRegionSampler(num_points=16, num_tokens=1, pooling="max")
    maps, mask = torch.randn(1, 3, 4, 4), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    first = sampler(maps, mask, torch.tensor([0]))
    assert torch.equal(first, sampler(maps, mask, torch.tensor([0])))


def test_a_region_without_a_pixel_is_named():
    sampler = XSAMRegionSampler(num_points=4, num_tokens=1, pooling="max")
    with pytest.raises(ValueError, match=r"region_masks\[1\] has no pixel"):
        sampler(column_map(), torch.stack([region((0, 0)), region()]), torch.tensor([0, 0]))


def test_half_precision_maps_are_read_at_full_precision_coordinates():
    sampler = XSAMRegionSampler(num_points=4, num_tokens=1, pooling="max")
    regions = sampler(column_map().bfloat16(), region((0, 3))[None], torch.tensor([0]))
    assert regions.dtype == torch.bfloat16
    assert regions.item() == 1.5
