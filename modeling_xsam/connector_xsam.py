"""
What stands between the image towers and their readers: projectors into the language model and the convolutional
connector that brings features of the dense tower to three scales for the mask decoder.

Shapes: B images, H x W patches, C channels; maps of the dense tower are channels last.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.sam.modeling_sam import SamLayerNorm


def space_to_depth(features: torch.Tensor, factor: int) -> torch.Tensor:
    """
    Merge blocks of factor x factor pixels into channels, ordered (dy, dx, c).

    Args:
        features: (B, H, W, C).

    Returns:
        (B, H / factor, W / factor, factor * factor * C).
    """
    batch, height, width, channels = features.shape
    blocks = features.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return blocks.transpose(2, 3).reshape(batch, height // factor, width // factor, factor * factor * channels)


def depth_to_space(features: torch.Tensor, factor: int) -> torch.Tensor:
    """
    Spread channels over blocks of factor x factor pixels. Channels are read in the order (dx, dy, c): as in the
    original, this is not the inverse of `space_to_depth`.

    Args:
        features: (B, H, W, factor * factor * C).

    Returns:
        (B, H * factor, W * factor, C).
    """
    batch, height, width, channels = features.shape
    channels = channels // (factor * factor)
    blocks = features.reshape(batch, height, width, factor, factor, channels)
    return blocks.permute(0, 1, 4, 2, 3, 5).reshape(batch, height * factor, width * factor, channels)


class XSAMProjector(nn.Module):
    """Two linear layers with a GELU in between, per token: (..., in_features) -> (..., out_features)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(hidden_states)))


class XSAMConnectorBranch(nn.Module):
    """One scale of the connector: bottleneck of three bias-free convolutions with layer norms, then a rescaling."""

    def __init__(self, in_channels: int, hidden_channels: int, scale_factor: float) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        out_channels = int(in_channels * scale_factor)
        self.conv1 = nn.Conv2d(in_channels, hidden_channels, kernel_size=1, bias=False)
        self.norm1 = SamLayerNorm(hidden_channels, data_format="channels_first")
        self.conv2 = nn.Conv2d(hidden_channels, hidden_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = SamLayerNorm(hidden_channels, data_format="channels_first")
        self.conv3 = nn.Conv2d(hidden_channels, out_channels, kernel_size=1, bias=False)
        self.norm3 = SamLayerNorm(out_channels, data_format="channels_first")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, C / scale, H * scale, W * scale)."""
        maps = features.to(self.conv1.weight.dtype).permute(0, 3, 1, 2)
        maps = self.norm1(self.conv1(maps))
        maps = self.norm2(self.conv2(maps))
        maps = self.norm3(self.conv3(maps)).permute(0, 2, 3, 1)
        if self.scale_factor < 1:
            maps = space_to_depth(maps, round(1 / self.scale_factor))
        elif self.scale_factor > 1:
            maps = depth_to_space(maps, round(self.scale_factor))
        return maps.permute(0, 3, 1, 2).contiguous()


class XSAMConnector(nn.Module):
    """Hidden states of the dense tower -> feature maps at three scales, finest first (section 3.1 of the paper)."""

    def __init__(self, in_channels: int, hidden_channels: int, scale_factors: list[float]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            XSAMConnectorBranch(in_channels, hidden_channels, scale_factor) for scale_factor in scale_factors
        )

    def forward(self, hidden_states: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Three maps (B, H, W, C) -> three maps (B, C / scale, H * scale, W * scale)."""
        return tuple(branch(features) for branch, features in zip(self.branches, hidden_states, strict=True))


__all__ = ["XSAMConnector", "XSAMProjector", "depth_to_space", "space_to_depth"]
