"""Visual prompts: the features under a region mask, pooled into the embeddings that stand for it in the prompt."""

from __future__ import annotations

import torch
from torch import nn


class XSAMRegionSampler(nn.Module):
    """
    Reads the dense tokens of an image at the pixels of a region mask and pools them. It has no weights.

    The original draws `num_points` random pixels. Here they are evenly strided, so that a region always gives the same
    embedding; with `num_points` pixels or less and max pooling both read the same features.

    Args:
        num_points: pixels read per region.
        num_tokens: embeddings per region; each pools `num_points / num_tokens` consecutive points.
        pooling: "max" or "mean".
    """

    def __init__(self, num_points: int, num_tokens: int, pooling: str) -> None:
        super().__init__()
        self.num_points = num_points
        self.num_tokens = num_tokens
        self.pooling = pooling

    def forward(
        self, region_map: torch.Tensor, region_masks: torch.Tensor, region_batch_index: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            region_map: (num_images, C, h, w), the projected dense tokens as a map.
            region_masks: bool (num_regions, S, S) at high-resolution input size.
            region_batch_index: int64 (num_regions,), the row of `region_map` that each region is read from.

        Returns:
            (num_regions, num_tokens, C) in the dtype of `region_map`.

        Raises:
            ValueError: if a region mask has no pixel.
        """
        regions = [
            self._pool(region_map[image], self._points(index, mask.to(region_map.device)))
            for index, (mask, image) in enumerate(zip(region_masks, region_batch_index, strict=True))
        ]
        return torch.stack(regions)

    def _pool(self, features: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Features (C, h, w) at points (num_points, 2), pooled to (num_tokens, C)."""
        # Pixel indices are scaled as if they were corners: a shift of up to one cell that the weights were trained with.
        grid = (2 * points - 1)[None, None]
        # In float32: half precision cannot tell neighbouring pixels apart.
        sampled = nn.functional.grid_sample(features[None].float(), grid, align_corners=True)[0, :, 0]
        groups = sampled.unflatten(1, (self.num_tokens, -1))
        pooled = groups.amax(-1) if self.pooling == "max" else groups.mean(-1)
        return pooled.T.to(features.dtype)

    def _points(self, index: int, mask: torch.Tensor) -> torch.Tensor:
        """Evenly strided pixels of one mask (S, S) as (num_points, 2) coordinates (x, y) in [0, 1)."""
        pixels = mask.nonzero()
        if len(pixels) == 0:
            raise ValueError(
                f"region_masks[{index}] has no pixel. Draw the prompt inside the image, or make its radius larger."
            )
        chosen = torch.arange(self.num_points, device=mask.device) * len(pixels) // self.num_points
        size = torch.tensor(mask.shape, device=mask.device)
        return (pixels[chosen] / size).flip(-1)


__all__ = ["XSAMRegionSampler"]
