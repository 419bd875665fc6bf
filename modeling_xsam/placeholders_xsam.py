"""
Which image does each sample look at, and which image is each region read from? Both are counted from the placeholder
tokens, and everything that disagrees is an error that names the counts.

Shapes: B samples, T tokens, M images, R regions.
"""

from __future__ import annotations

import torch

from .configuration_xsam import XSAMConfig


def regions_per_sample(input_ids: torch.Tensor, config: XSAMConfig) -> torch.Tensor:
    """Number of regions, int64, in each sequence of `input_ids` (..., T)."""
    return (input_ids == config.region_token_id).sum(-1) // config.num_region_tokens


def resolve_image_index(
    input_ids: torch.Tensor, num_images: int, image_index: torch.Tensor | None, config: XSAMConfig
) -> torch.Tensor:
    """
    Args:
        input_ids: (B, T).
        num_images: M.
        image_index: int64 (B,), or None: the samples with image tokens take the images in order.

    Returns:
        int64 (B,), the image of each sample, -1 for a sample without image tokens.

    Raises:
        ValueError: if image tokens and images disagree.
    """
    num_tokens = (input_ids == config.image_token_id).sum(-1)
    has_image = num_tokens > 0
    if image_index is None:
        if int(has_image.sum()) != num_images:
            raise ValueError(
                f"input_ids have {int(num_tokens.sum())} image tokens in {int(has_image.sum())} samples, but there are "
                f"{num_images} images with {num_images * config.num_image_tokens} image features. Give one image per "
                "sample with image tokens, or say in image_index which image each sample looks at."
            )
        image_index = has_image.cumsum(0) - 1
    if len(image_index) != len(input_ids):
        raise ValueError(
            f"image_index has {len(image_index)} entries for {len(input_ids)} samples; give one for each."
        )
    image_index = torch.where(has_image, image_index.to(input_ids.device), -1)
    wrong = (has_image & (num_tokens != config.num_image_tokens)).nonzero()
    if len(wrong):
        sample = int(wrong[0, 0])
        raise ValueError(
            f"Sample {sample} has {int(num_tokens[sample])} image tokens, but an image has {config.num_image_tokens} "
            "image features. Set the processor's num_image_tokens to the configuration's."
        )
    if (image_index >= num_images).any() or (has_image & (image_index < 0)).any():
        raise ValueError(f"image_index is {image_index.tolist()}, but there are {num_images} images.")
    return image_index


def resolve_region_batch_index(
    input_ids: torch.Tensor,
    image_index: torch.Tensor,
    num_images: int,
    region_masks: torch.Tensor | None,
    region_batch_index: torch.Tensor | None,
    config: XSAMConfig,
) -> torch.Tensor | None:
    """
    Args:
        input_ids: (B, T).
        image_index: int64 (B,), the image of each sample.
        num_images: M.
        region_masks: (R, S, S).
        region_batch_index: int64 (R,), or None: regions are read from their sample's image.

    Returns:
        int64 (R,), the image that each region is read from; None without regions.

    Raises:
        ValueError: if region tokens and masks disagree.
    """
    num_tokens = int((input_ids == config.region_token_id).sum())
    num_masks = 0 if region_masks is None else len(region_masks)
    if num_tokens != num_masks * config.num_region_tokens:
        raise ValueError(
            f"input_ids have {num_tokens} region tokens ({config.num_region_tokens} per <region>), but region_masks has "
            f"{num_masks} masks. Give one mask per <region>, in the order of the prompts."
        )
    if num_masks == 0:
        return None
    side = config.high_res_vision_config.image_size
    if tuple(region_masks.shape[1:]) != (side, side):
        raise ValueError(
            f"region_masks are {tuple(region_masks.shape[1:])}, but the high-resolution input is {(side, side)}: scale and "
            "pad them like the image."
        )
    if region_batch_index is None:
        region_batch_index = image_index.repeat_interleave(regions_per_sample(input_ids, config))
    if len(region_batch_index) != num_masks:
        raise ValueError(f"region_batch_index has {len(region_batch_index)} entries for {num_masks} region_masks.")
    if not 0 <= int(region_batch_index.min()) <= int(region_batch_index.max()) < num_images:
        raise ValueError(
            f"region_batch_index is {region_batch_index.tolist()}, but there are {num_images} images. A sample without "
            "an image of its own cannot have regions unless it says whose image they are read from."
        )
    return region_batch_index


__all__ = ["regions_per_sample", "resolve_image_index", "resolve_region_batch_index"]
