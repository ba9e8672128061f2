"""PieAPP's network: an error that agrees with which of two pictures people prefer.

Source: Prashnani et al., "PieAPP: Perceptual Image-Error Assessment through Pairwise Preference", CVPR 2018.
Patches of 64 x 64 pixels go through eleven convolutions; the difference of the features at five depths gives each
patch an error, that of the deepest a weight; the picture's error is their weighted mean. State dict as the authors
publish it (``PieAPPv0.1.pth``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDTHS = (3, 64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512)
_PATCH = 64
_STRIDE = 27
"""Pixels between patches: the authors' "sparse" sampling."""
_FEATURES = 120832
_DEEPEST = 2048


class PieAPP(nn.Module):
    """Perceptual error of a picture against its reference; frozen, and in evaluation mode always."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(1, len(_WIDTHS)):
            self.add_module(f"conv{number}", nn.Conv2d(_WIDTHS[number - 1], _WIDTHS[number], 3, padding=1))
        self.fc1_score = nn.Linear(_FEATURES, 512)
        self.fc2_score = nn.Linear(512, 1)
        self.fc1_weight = nn.Linear(_DEEPEST, 512)
        self.fc2_weight = nn.Linear(512, 1)
        self.ref_score_subtract = nn.Linear(1, 1)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PieAPP:
        """Stays in evaluation mode."""
        del mode
        super().train(False)
        return self

    def features(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 3, 64, 64)`` in 0 to 255 -> features of five depths ``(B, 120832)``, the deepest ``(B, 2048)``."""
        depths = []
        x = patches
        for number in range(1, len(_WIDTHS)):
            x = functional.relu(self.get_submodule(f"conv{number}")(x))
            if number % 2 == 0:
                x = functional.max_pool2d(x, 2)  # after convolutions 2, 4, 6, 8 and 10
            elif number > 1:
                depths.append(x.flatten(1))
        return torch.cat(depths, 1), depths[-1]

    def patch_scores(self, patches: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Error and weight of each patch: two times ``(B, 3, 64, 64)`` in 0 to 255 -> two times ``(B,)``."""
        seen, deep = self.features(patches)
        wanted, wanted_deep = self.features(references)
        errors = self.fc2_score(functional.relu(self.fc1_score(wanted - seen)))
        weights = self.fc2_weight(functional.relu(self.fc1_weight(wanted_deep - deep))) + 1e-6
        return self.ref_score_subtract(0.01 * errors)[:, 0], weights[:, 0]

    def forward(self, results: Tensor, originals: Tensor) -> Tensor:
        """Error of each picture: two times ``(B, 3, H, W)`` in [-1, 1], H and W at least 64 -> ``(B,)``.

        Raises:
            ValueError: pictures smaller than a patch.
        """
        if min(results.shape[2:]) < _PATCH:
            raise ValueError(f"PieAPP needs pictures of at least {_PATCH} pixels, not {tuple(results.shape[2:])}")
        scores = []
        for result, original in zip(results, originals, strict=True):
            errors, weights = self.patch_scores(_patches(result), _patches(original))
            scores.append((errors * weights).sum() / weights.sum())
        return torch.stack(scores) if scores else torch.zeros(0, device=results.device)


def _patches(picture: Tensor) -> Tensor:
    """``(3, H, W)`` in [-1, 1] -> ``(P, 3, 64, 64)`` in 0 to 255."""
    windows = ((picture + 1) * 127.5).unfold(1, _PATCH, _STRIDE).unfold(2, _PATCH, _STRIDE)
    return windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, _PATCH, _PATCH)
