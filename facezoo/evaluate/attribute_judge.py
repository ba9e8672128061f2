"""A judge of attributes that takes no part in any method's training: a small classifier of its own, on real faces only.

Whether an anonymized face has the hair or the smile that was asked for must not be judged by the discriminator that
taught the network to paint it. This network is trained from nothing on a labelled packed set (minutes on a CPU), its
own accuracy on people it never saw is measured first, and every figure it gives is to be read against that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from facezoo.data.attributes import ATTRIBUTES, value_count
from facezoo.data.labels import labels_of
from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError
from facezoo.evaluate.judges import to_tensor
from facezoo.files import atomic_write
from facezoo.metrics import Interval, wilson

__all__ = ["AttributeJudge", "JudgeAccuracy", "train_attribute_judge"]

_SIDE = 64
_BATCH = 64
_HELD_OUT = 0.1


class AttributeJudge(nn.Module):
    """Residual classifier of faces at 64 pixels; one group of logits an attribute.

    Args:
        names: Attributes of ``facezoo.data.attributes``.
        width: First width.
    """

    def __init__(self, names: Sequence[str], width: int = 24) -> None:
        super().__init__()
        self.names = tuple(names)
        self.sizes = [len(ATTRIBUTES[name].values) for name in self.names]
        self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2)
        stages: list[nn.Module] = []
        c_in = width
        for factor in (2, 4, 8):
            c_out = factor * width
            stages.append(_Residual(c_in, c_out))
            c_in = c_out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(c_in, value_count(self.names))

    def forward(self, faces: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] -> logits ``(B, V)`` of all attributes, in their order."""
        small = functional.interpolate(faces, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True)
        x: Tensor = self.stages(functional.relu(self.stem(small)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits

    def guess(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Pictures ``(N, S, S, 3)`` -> index of the likeliest value of each attribute, ``(N, A)``."""
        rows = []
        with torch.inference_mode():
            for start in range(0, len(pictures), _BATCH):
                logits = self(to_tensor(pictures[start : start + _BATCH]))
                rows.append(torch.stack([part.argmax(1) for part in torch.split(logits, self.sizes, dim=1)], dim=1))
        return torch.cat(rows).numpy() if rows else np.zeros((0, len(self.names)), np.int64)

    def save(self, path: Path) -> None:
        """Writes weights and attributes as one safetensors file."""
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        atomic_write(path, save(state, {"attributes": json.dumps(self.names)}), overwrite=True)

    @classmethod
    def load(cls, path: Path) -> AttributeJudge:
        """Reads what ``save`` wrote.

        Raises:
            InputError: no such file, or not one of these.
        """
        try:
            with safe_open(path, "pt") as file:
                names = json.loads((file.metadata() or {})["attributes"])
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            judge = cls(names, width=state["stem.weight"].shape[0])
            judge.load_state_dict(state)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} is no attribute judge ({str(error).splitlines()[0]}); train it again") from error
        return judge.eval()


class _Residual(nn.Module):
    """Two convolutions with batch normalisation, the first of stride 2, beside a 1x1 one."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


@dataclass(frozen=True)
class JudgeAccuracy:
    """How often the judge agrees with the labels of held-out people.

    Attributes:
        rate: attribute -> share with its 95 % Wilson interval.
        chance: attribute -> share of the most frequent value among them.
    """

    rate: dict[str, Interval]
    chance: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: {**rate.to_dict(), "chance": self.chance[name]} for name, rate in self.rate.items()}


def _held_out(faces: PackedFaces, seed: int) -> npt.NDArray[np.bool_]:
    """Which pictures belong to people who are kept out of the judge's training."""
    people = np.unique(np.asarray(faces.identity))
    chosen = np.random.default_rng(seed).permutation(people)[: max(1, round(_HELD_OUT * len(people)))]
    return np.isin(np.asarray(faces.identity), chosen)


def measure_judge(
    judge: AttributeJudge, faces: PackedFaces, rows: npt.NDArray[np.integer], labels: npt.NDArray[np.integer]
) -> JudgeAccuracy:
    """Agreement with labels ``(N, A)`` of the pictures ``rows``; unknown labels (-1) are left out."""
    guessed = judge.guess(faces.batch(rows)) if len(rows) else np.zeros((0, len(judge.names)), np.int64)
    rate, chance = {}, {}
    for column, name in enumerate(judge.names):
        known = labels[:, column] >= 0
        truth = labels[known, column]
        rate[name] = wilson(int((guessed[known, column] == truth).sum()), int(known.sum()))
        chance[name] = float(np.bincount(truth).max() / len(truth)) if len(truth) else float("nan")
    return JudgeAccuracy(rate, chance)


def train_attribute_judge(
    data: PackedFaces, names: Sequence[str], *, passes: int = 5, seed: int = 0
) -> tuple[AttributeJudge, JudgeAccuracy]:
    """Trains a judge on a labelled packed set, a tenth of whose people are kept out.

    Args:
        data: Labelled faces (``facezoo label``).
        names: Attributes.
        passes: Passes over the set.
        seed: Of weights, order, mirroring and of who is kept out.

    Returns:
        The judge and its accuracy on the people kept out.

    Raises:
        InputError: labels are missing, or too few pictures.
    """
    labels = labels_of(data, names).astype(np.int64)
    out = _held_out(data, seed)
    rows = np.flatnonzero(~out)
    if len(rows) < 2 * _BATCH:
        raise InputError(f"{data.path} has {len(rows)} pictures to train an attribute judge on; it needs {2 * _BATCH}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = AttributeJudge(names).to(memory_format=torch.channels_last)
    rng = np.random.default_rng(seed)
    steps = passes * (len(rows) // _BATCH)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    judge.train()
    with tqdm(total=steps, desc="attribute judge", unit="batch", dynamic_ncols=True) as bar:
        for _ in range(passes):
            order = rng.permutation(rows)
            for start in range(0, len(order) - _BATCH + 1, _BATCH):
                chosen = np.sort(order[start : start + _BATCH])
                faces, truth = to_tensor(data.batch(chosen)), torch.from_numpy(labels[chosen])
                mirrored = torch.from_numpy(rng.random(len(chosen)) < 0.5)
                faces = torch.where(mirrored[:, None, None, None], faces.flip(-1), faces)
                parts = torch.split(judge(faces), judge.sizes, dim=1)
                # An attribute that nobody of the batch is labelled with adds nothing (its mean would be 0 / 0).
                loss = sum(
                    (
                        functional.cross_entropy(part, truth[:, i], ignore_index=-1, label_smoothing=0.05)
                        for i, part in enumerate(parts)
                        if bool((truth[:, i] >= 0).any())
                    ),
                    start=faces.new_zeros(()),
                )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                bar.update(1)
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
    judge.eval()
    held = np.flatnonzero(out)
    return judge, measure_judge(judge, data, held, labels[held])
