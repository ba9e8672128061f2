"""Judges and detectors that look at a picture once: the benchmark shows them the same originals for every model.

A picture is known by its content, so it does not matter which stage of which model it comes from. The memory holds the
last pictures only; what is shown again and again stays in it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facezoo.faces.detect import Detector, DetectorOptions, Face, get_detector, list_detectors, register_detector
from facezoo.recognition import Recogniser

__all__ = ["RememberingRecogniser", "remembering_detector"]

_PICTURES = 20_000
_PREFIX = "remembering-"

Value = TypeVar("Value")


class _Memory(Generic[Value]):
    """The last values by key; asking for one makes it young again."""

    def __init__(self, capacity: int) -> None:
        self._values: OrderedDict[bytes, Value] = OrderedDict()
        self._capacity = capacity

    def get(self, key: bytes) -> Value | None:
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: bytes, value: Value) -> None:
        self._values[key] = value
        while len(self._values) > self._capacity:
            self._values.popitem(last=False)


def _digest(pixels: npt.NDArray[Any], context: str = "") -> bytes:
    head = f"{pixels.shape}{pixels.dtype}{context}".encode()
    return hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), key=hashlib.sha256(head).digest()).digest()


class RememberingRecogniser(Recogniser):
    """A recogniser that embeds each picture once. A judge only: what it remembers has no gradient.

    Args:
        recogniser: who embeds.
        capacity: pictures that are remembered.
    """

    def __init__(self, recogniser: Recogniser, capacity: int = _PICTURES) -> None:
        base = recogniser
        super().__init__(base.name, base.network, base.window, base.dim, base.licence, base.metric)
        # What else a recogniser says about itself (its author's thresholds, say) holds for this one too.
        for name, value in vars(base).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        self._memory: _Memory[Tensor] = _Memory(capacity)
        #: How many pictures were embedded, and how many were known already.
        self.embedded, self.recalled = 0, 0

    def forward(self, faces: Tensor) -> Tensor:
        """As ``Recogniser.forward``, without gradients."""
        pixels = faces.detach().float().cpu().numpy()
        keys = [_digest(picture) for picture in pixels]
        known = [self._memory.get(key) for key in keys]
        missing = [row for row, vector in enumerate(known) if vector is None]
        if missing:
            with torch.no_grad():
                fresh = super().forward(faces[missing]).detach().clone()
            for row, vector in zip(missing, fresh, strict=True):
                known[row] = vector
                self._memory.put(keys[row], vector)
        self.embedded += len(missing)
        self.recalled += len(keys) - len(missing)
        return torch.stack([vector for vector in known if vector is not None])


class _RememberingDetector(Detector):
    """A detector that looks at each picture once; all of one name share what they know."""

    _memories: dict[str, _Memory[list[Face]]] = {}  # noqa: RUF012 - shared on purpose

    def __init__(self, name: str, options: DetectorOptions | None) -> None:
        super().__init__(options)
        self.name = name
        self._inner = get_detector(name, options)
        self._known = self._memories.setdefault(name, _Memory(_PICTURES))

    def find(self, rgb: npt.NDArray[np.uint8], threshold: float) -> list[Face]:
        """See ``Detector.find``."""
        return self._inner.find(rgb, threshold)

    def detect(self, rgb: npt.NDArray[np.uint8]) -> list[Face]:
        """See ``Detector.detect``."""
        key = _digest(rgb, repr(self.options))
        found = self._known.get(key)
        if found is None:
            found = self._inner.detect(rgb)
            self._known.put(key, found)
        return list(found)


def remembering_detector(name: str) -> str:
    """Registers a detector that remembers, once.

    Args:
        name: a detector.

    Returns:
        The name under which ``get_detector`` gives it.

    Raises:
        UnknownNameError: no such detector.
    """
    get_detector(name)
    full = _PREFIX + name
    if full not in list_detectors():
        register_detector(full, lambda options: _RememberingDetector(name, options))
    return full
