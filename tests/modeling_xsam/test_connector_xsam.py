import pytest
import torch

from modeling_xsam.connector_xsam import XSAMConnector, depth_to_space, space_to_depth


def test_space_to_depth_orders_channels_by_row_column_channel():
    pixels = torch.arange(2 * 4 * 3).reshape(1, 2, 4, 3)
    merged = space_to_depth(pixels, 2)
    assert merged.shape == (1, 1, 2, 12)
    expected = torch.cat([pixels[0, 0, 2], pixels[0, 0, 3], pixels[0, 1, 2], pixels[0, 1, 3]])
    assert torch.equal(merged[0, 0, 1], expected)


def test_depth_to_space_reads_channels_by_column_row_channel():
    channels = torch.arange(8).reshape(1, 1, 1, 8)
    spread = depth_to_space(channels, 2)
    assert spread.shape == (1, 2, 2, 2)
    assert spread[0, 0, 0].tolist() == [0, 1]
    # The second block of channels goes one column to the right in pixel_shuffle, but one row down here.
    assert spread[0, 1, 0].tolist() == [2, 3]
    assert spread[0, 0, 1].tolist() == [4, 5]


def test_the_two_directions_are_not_inverse_to_each_other():
    pixels = torch.randn(1, 4, 4, 3)
    assert not torch.equal(depth_to_space(space_to_depth(pixels, 2), 2), pixels)


@pytest.mark.parametrize(("scale", "channels", "size"), [(4.0, 2, 16), (2.0, 4, 8), (1.0, 8, 4), (0.5, 16, 2)])
def test_connector_scales_size_up_and_channels_down(scale, channels, size):
    connector = XSAMConnector(8, 6, [scale])
    (maps,) = connector([torch.randn(2, 4, 4, 8)])
    assert maps.shape == (2, channels, size, size)


def test_connector_computes_in_the_dtype_of_its_weights():
    connector = XSAMConnector(8, 6, [1.0])
    (maps,) = connector([torch.randn(1, 4, 4, 8, dtype=torch.bfloat16)])
    assert maps.dtype == torch.float32
