"""Networks of dp_kanonymity: attribute classifier, STGAN's editor with selective transfer units, discriminator.

Liu et al., "STGAN: a unified selective transfer network for arbitrary image attribute editing", CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.nets.aad import group_norm
from facezoo.nets.backbones import timm_model


class ResidualUnit(nn.Module):
    """A residual block: two 3x3 convolutions, or ResNet-50's bottleneck."""

    def __init__(self, c_in: int, c_out: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        inner = c_out // 4 if bottleneck else c_out
        if bottleneck:
            self.body = nn.Sequential(
                nn.Conv2d(c_in, inner, 1, bias=False),
                group_norm(inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False),
                group_norm(inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, c_out, 1, bias=False),
                group_norm(c_out),
            )
        else:
            self.body = nn.Sequential(
                nn.Conv2d(c_in, inner, 3, stride=stride, padding=1, bias=False),
                group_norm(inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, c_out, 3, padding=1, bias=False),
                group_norm(c_out),
            )
        same = c_in == c_out and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, c_in, H, W)`` -> ``(B, c_out, H / stride, W / stride)``."""
        return functional.relu(self.body(x) + self.shortcut(x))


class AttributeClassifier(nn.Module):
    """Residual network with a feature layer phi(x) before the logits (book, 4.4.1).

    Normalisation is by groups of channels: batch statistics are not synchronised in manual optimisation. The book's own
    ResNet-50, or any other network of timm: ``TimmClassifier``.
    """

    def __init__(
        self, widths: Sequence[int], blocks: Sequence[int], feature_dim: int, attributes: int, *, bottleneck: bool
    ) -> None:
        super().__init__()
        stem = widths[0] // 4 if bottleneck else widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False), group_norm(stem), nn.ReLU(), nn.MaxPool2d(2)
        )
        units: list[nn.Module] = []
        c_in = stem
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for number in range(count):
                stride = 2 if number == 0 and stage > 0 else 1
                units.append(ResidualUnit(c_in, width, stride, bottleneck=bottleneck))
                c_in = width
        self.units = nn.Sequential(*units)
        self.feature = nn.Linear(c_in, feature_dim)
        self.logits = nn.Linear(feature_dim, attributes)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 3, S, S)`` in [-1, 1] -> phi(x) ``(B, D)`` and logits ``(B, c)``."""
        pooled = self.units(self.stem(faces)).mean((2, 3))
        features: Tensor = self.feature(pooled)
        return features, self.logits(functional.relu(features))


class TimmClassifier(nn.Module):
    """The same on a backbone of timm, which sees faces as it was trained to (its own mean and deviation).

    Args:
        name: Of the timm model; untrained here.
        size: Side of the faces, pixels.
        feature_dim: Length of phi(x).
        attributes: Number of logits.

    Raises:
        CheckpointError: timm is missing, has no such model, or the model takes no faces of this size.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, size: int, feature_dim: int, attributes: int) -> None:
        super().__init__()
        backbone: Any = timm_model(name, size, num_classes=0)  # Any: timm's models have attributes of their own
        self.backbone: nn.Module = backbone
        config = backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("deviation", torch.tensor(config["std"]).view(1, 3, 1, 1) * 2, persistent=False)
        self.feature = nn.Linear(int(backbone.head_hidden_size), feature_dim)
        self.logits = nn.Linear(feature_dim, attributes)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 3, S, S)`` in [-1, 1] -> phi(x) ``(B, D)`` and logits ``(B, c)``."""
        features: Tensor = self.feature(self.backbone((faces - self.mean) / self.deviation))
        return features, self.logits(functional.relu(features))


class SelectiveTransferUnit(nn.Module):
    """A gated unit on a skip connection: takes over what the change of attributes needs, and no more (STGAN, 3.2)."""

    def __init__(self, channels: int, deeper_channels: int, attributes: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(deeper_channels + attributes, channels, 4, stride=2, padding=1)
        self.reset = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.update = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.candidate = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, encoded: Tensor, deeper_state: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder feature ``(B, C, H, W)``, the deeper state, the change ``(B, c)`` -> feature, state of this level."""
        raised = self.up(with_attributes(deeper_state, change))
        both = torch.cat([encoded, raised], 1)
        state = torch.sigmoid(self.reset(both)) * raised
        update = torch.sigmoid(self.update(both))
        candidate = torch.tanh(self.candidate(torch.cat([encoded, state], 1)))
        return torch.lerp(raised, candidate, update), state


def with_attributes(maps: Tensor, change: Tensor) -> Tensor:
    """``(B, C, H, W)`` and ``(B, c)`` -> ``(B, C + c, H, W)``: the change of attributes at every place."""
    spread = change.to(maps)[:, :, None, None].expand(-1, -1, *maps.shape[-2:])
    return torch.cat([maps, spread], 1)


class AttributeEditor(nn.Module):
    """Encoder-decoder whose skip connections pass selective transfer units (STGAN's generator)."""

    def __init__(self, widths: Sequence[int], attributes: int, stu_levels: int) -> None:
        super().__init__()
        ins = [3, *widths[:-1]]
        self.encoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), group_norm(c_out), nn.LeakyReLU(0.2))
            for c_in, c_out in zip(ins, widths, strict=True)
        )
        # Unit i works on the encoder's level i with the state of level i + 1.
        self.units = nn.ModuleList(
            SelectiveTransferUnit(widths[i], widths[i + 1], attributes) for i in range(stu_levels)
        )
        self.decoder = nn.ModuleList()
        c_in = widths[-1] + attributes
        for level in reversed(range(len(widths))):
            c_out = widths[level - 1] if level else 3
            up = nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1)
            self.decoder.append(nn.Sequential(up, group_norm(c_out), nn.ReLU()) if level else up)
            c_in = c_out + (widths[level - 1] if level and level - 1 < stu_levels else 0)

    def forward(self, faces: Tensor, change: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] and the change of attributes ``(B, c)`` in {-1, 0, 1} -> edited faces."""
        maps: list[Tensor] = []
        hidden = faces
        for layer in self.encoder:
            hidden = layer(hidden)
            maps.append(hidden)
        skips: dict[int, Tensor] = {}
        if len(self.units):
            state = maps[len(self.units)]
            for level in reversed(range(len(self.units))):
                skips[level], state = self.units[level](maps[level], state, change)
        hidden = with_attributes(maps[-1], change)
        for step, layer in enumerate(self.decoder):
            hidden = layer(hidden)
            level = len(self.decoder) - 2 - step  # the encoder's level of this size
            if level in skips:
                hidden = torch.cat([hidden, skips[level]], 1)
        return torch.tanh(hidden)


class EditDiscriminator(nn.Module):
    """Shared convolutions, one head for real or edited, one for the attributes (book, 4.10: they share the layers).

    No normalisation: the gradient penalty is about each picture alone.
    """

    def __init__(self, widths: Sequence[int], size: int, hidden: int, attributes: int) -> None:
        super().__init__()
        ins = [3, *widths[:-1]]
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
                for c_in, c_out in zip(ins, widths, strict=True)
            )
        )
        flat = widths[-1] * (size // 2 ** len(widths)) ** 2
        self.adversarial = nn.Sequential(nn.Linear(flat, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))
        self.attributes = nn.Sequential(nn.Linear(flat, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, attributes))

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 3, S, S)`` -> scores ``(B,)`` and attribute logits ``(B, c)``."""
        flat = self.body(faces).flatten(1)
        return self.adversarial(flat)[:, 0], self.attributes(flat)
