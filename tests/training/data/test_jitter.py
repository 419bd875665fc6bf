import random

import numpy as np
from PIL import Image

from xsam_training.data.jitter import large_scale_jitter


def gradient(height: int = 30, width: int = 50) -> tuple[Image.Image, np.ndarray]:
    """An image whose red channel is bright exactly inside its mask."""
    mask = np.zeros((1, height, width), dtype=bool)
    mask[0, 8:20, 30:45] = True
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = mask[0] * 255
    return Image.fromarray(pixels), mask


def test_masks_follow_the_image():
    image, masks = gradient()
    for seed in range(40):
        window, cut = large_scale_jitter(image, masks, 64, random.Random(seed))
        assert cut.shape == (1, window.height, window.width)
        assert max(window.size) <= 64
        bright = np.asarray(window)[..., 0] > 127
        # Bilinear and nearest differ along the border only.
        assert (bright != cut[0]).mean() < 0.08, seed


def test_scales_and_flips_are_those_of_the_range():
    image, masks = gradient()
    widths = [large_scale_jitter(image, masks, 64, random.Random(seed))[0].width for seed in range(100)]
    assert min(widths) < 15 and max(widths) == 64
    same = {large_scale_jitter(image, masks, 64, random.Random(seed), (1.0, 1.0))[1].tobytes() for seed in range(20)}
    assert len(same) == 2  # as it is, and flipped
    unscaled, _ = large_scale_jitter(image, masks, 64, random.Random(0), (1.0, 1.0))
    assert unscaled.size == (64, 38)


def test_the_same_seed_gives_the_same_window():
    image, masks = gradient()
    first, second = (large_scale_jitter(image, masks, 64, random.Random(5)) for _ in range(2))
    assert np.array_equal(np.asarray(first[0]), np.asarray(second[0])) and np.array_equal(first[1], second[1])
