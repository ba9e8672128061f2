"""Residual discriminator (Karras et al. 2020, figure 7c) with minibatch standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facezoo.nets.stylegan2.config import StyleGAN2Config
from facezoo.nets.stylegan2.layers import EqualConv, EqualLinear
from facezoo.nets.stylegan2.resampling import downsample


def minibatch_std(maps: Tensor, group: int) -> Tensor:
    """Appends the standard deviation over groups of pictures as one more channel (Karras et al. 2018).

    Picture i of n belongs to group ``i mod (n / group)``. When every process takes each world-th picture of a batch its
    groups are those that one process would form, as long as each process's share is a multiple of ``group``.

    Args:
        maps: ``(B, C, H, W)``.
        group: Pictures a group; B if it is smaller.

    Returns:
        ``(B, C + 1, H, W)``.

    Raises:
        ValueError: the batch does not divide into groups.
    """
    count, channels, height, width = maps.shape
    group = min(group, count)
    if count % group:
        raise ValueError(f"a batch of {count} does not divide into groups of {group} (minibatch standard deviation)")
    grouped = maps.reshape(group, count // group, channels, height, width)
    deviation = torch.sqrt(grouped.var(0, unbiased=False) + 1e-8).mean((1, 2, 3))
    return torch.cat([maps, deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)], 1)


class DiscriminatorBlock(nn.Module):
    """Two convolutions beside a skip path; halves the resolution.

    Args:
        inputs: Input channels.
        outputs: Output channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualConv(inputs, inputs, 3)
        self.second = EqualConv(inputs, outputs, 3, down=True)
        self.skip = EqualConv(inputs, outputs, 1, down=True, bias=False, activate=False)

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` -> ``(B, outputs, H / 2, W / 2)``; the sum keeps the variance."""
        half = math.sqrt(0.5)
        result: Tensor = self.second(self.first(maps), gain=half) + self.skip(maps, gain=half)
        return result


class Discriminator(nn.Module):
    """Pictures to one logit each, high for real ones.

    Args:
        config: Sizes.
        entries: Smaller sides at which pictures may enter too (training that grows); each has colour layers of its own.
    """

    def __init__(self, config: StyleGAN2Config, entries: Sequence[int] = ()) -> None:
        super().__init__()
        self.config = config
        last = config.channels(4)
        self.from_rgb = EqualConv(3, config.channels(config.resolution), 1)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(config.channels(resolution), config.channels(resolution // 2))
            for resolution in reversed(config.resolutions[1:])
        )
        self.last_conv = EqualConv(last + 1, last, 3)
        self.hidden = EqualLinear(last * 16, last, activate=True)
        self.logit = EqualLinear(last, 1)
        self.entries = nn.ModuleDict({str(side): EqualConv(3, config.channels(side), 1) for side in entries})

    def forward(self, pictures: Tensor, fade: float = 1.0) -> Tensor:
        """One logit a picture.

        Args:
            pictures: ``(B, 3, R, R)`` in [-1, 1], R the config's resolution or one of ``entries``.
            fade: Part of the first block in what the second one sees; the rest is the picture at half of its side,
                which must be an entry too.

        Returns:
            ``(B,)``.

        Raises:
            ValueError: no entry of that size, or the batch does not divide into groups of ``minibatch_std_group``.
        """
        side = pictures.shape[-1]
        maps = self._entry(side)(pictures)
        for i, block in enumerate(self.blocks[len(self.config.resolutions) - side.bit_length() + 2 :]):
            maps = block(maps)
            if i == 0 and fade < 1.0:
                maps = torch.lerp(self._entry(side // 2)(downsample(pictures)), maps, fade)
        maps = self.last_conv(minibatch_std(maps, self.config.minibatch_std_group))
        logits: Tensor = self.logit(self.hidden(maps.flatten(1)))
        return logits[:, 0]

    def _entry(self, side: int) -> nn.Module:
        if side == self.config.resolution:
            return self.from_rgb
        if str(side) not in self.entries:
            known = ", ".join([*self.entries, str(self.config.resolution)])
            raise ValueError(f"pictures of {side} pixels cannot enter this discriminator; it takes {known}")
        return self.entries[str(side)]


def r1_penalty(real: Tensor, pictures: Tensor) -> Tensor:
    """Squared norm of the gradient of D at real pictures (Mescheder et al. 2018), mean over the batch.

    Args:
        real: Logits ``(B,)``, computed from ``pictures``.
        pictures: ``(B, 3, R, R)`` that require a gradient.

    Returns:
        Scalar with a graph; the loss is ``gamma / 2`` times it.
    """
    (gradient,) = torch.autograd.grad(real.sum(), pictures, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()
