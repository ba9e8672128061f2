"""Options of MfM at use. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from facezoo.methods.attributed.options import AttributedOptions


@dataclass(frozen=True)
class MfMOptions(AttributedOptions):
    """As ``AttributedOptions``; a request that contradicts itself, or the face, is resolved and reported."""

    method: ClassVar[str] = "mfm"
