"""Large-scale jitter (Ghiasi et al., 2021), the augmentation of stage 1."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from processing_xsam.image_processing_xsam import resize_longest_side, scaled_size
from processing_xsam.region_masks_xsam import nearest_indices


def large_scale_jitter(
    image: Image.Image,
    masks: np.ndarray,
    size: int,
    rng: random.Random,
    scale_range: tuple[float, float] = (0.1, 2.0),
) -> tuple[Image.Image, np.ndarray]:
    """
    Flip an image horizontally in half of the cases, scale it so that its longest side is a random multiple of `size`,
    and cut a random window of at most `size` x `size` out of it.

    Args:
        image: RGB.
        masks: bool (n, H, W), of the image's size.
        size: side of the window, in pixels.
        scale_range: least and greatest multiple.

    Returns:
        The window, which is smaller than `size` where the image is, and the masks in it, bool (n, h, w). Masks may
        have become empty.
    """
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        masks = masks[:, :, ::-1]
    target = max(1, round(size * rng.uniform(*scale_range)))
    height, width = scaled_size((image.height, image.width), target)
    top, left = rng.randint(0, max(0, height - size)), rng.randint(0, max(0, width - size))
    bottom, right = min(height, top + size), min(width, left + size)
    window = resize_longest_side(image, target).crop((left, top, right, bottom))
    rows = nearest_indices(masks.shape[1], height)[top:bottom].numpy()
    columns = nearest_indices(masks.shape[2], width)[left:right].numpy()
    return window, masks[:, rows[:, None], columns]
