"""Options of DP-Pix, DP-Blur and DP-SVD. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from facezoo.methods.options import Options, option
from facezoo.privacy.release import randomness_option

__all__ = ["DPBlurOptions", "DPPixOptions", "DPSvdOptions"]

_CROP = 128


def _epsilon(default: float, unit: str, source: str, doc: str) -> Any:
    return option(default, kind="number", doc=doc, unit=unit, source=source, minimum=1e-6, maximum=1e6)


def _block() -> Any:
    return option(
        16,
        kind="integer",
        doc="Side of a cell whose pixels are averaged. Larger cells need less noise. Weak: 8 and less.",
        unit="pixels of a 128 crop",
        source="Fan 2018 uses 4 to 16 on faces of 92x112",
        minimum=2,
        maximum=128,
    )


def _pixels() -> Any:
    return option(
        16,
        kind="integer",
        doc=(
            "m of the neighbourhood: the guarantee is that two crops which differ in at most m pixels cannot be told "
            "apart. A person is not m pixels: 16384 (the whole crop) would protect the face itself, at a noise that "
            "leaves no picture"
        ),
        unit="pixels of a 128 crop",
        source="Fan 2018: m = 16",
        minimum=1,
        maximum=_CROP * _CROP,
    )


@dataclass(frozen=True)
class DPPixOptions(Options):
    """Options of ``dp_pix``."""

    method: ClassVar[str] = "dp_pix"

    epsilon: float = _epsilon(0.5, "", "Fan 2018: 0.1 to 1", "Privacy loss between crops that differ in m pixels.")
    block: int = _block()
    pixels: int = _pixels()
    randomness: str = randomness_option()


@dataclass(frozen=True)
class DPBlurOptions(Options):
    """Options of ``dp_blur``."""

    method: ClassVar[str] = "dp_blur"

    epsilon: float = _epsilon(0.5, "", "Fan 2019", "Privacy loss between crops that differ in m pixels.")
    delta: float = option(
        1e-5,
        kind="number",
        doc="Probability with which the bound may fail; Gaussian noise needs one above 0.",
        source="ours",
        minimum=1e-12,
        maximum=0.1,
    )
    block: int = _block()
    pixels: int = _pixels()
    sigma: float = option(
        6.0,
        kind="number",
        doc="Standard deviation of the blur that follows; post-processing, it costs and adds no privacy.",
        unit="pixels of a 128 crop",
        source="ours",
        minimum=0.1,
        maximum=64,
    )
    randomness: str = randomness_option()


@dataclass(frozen=True)
class DPSvdOptions(Options):
    """Options of ``dp_svd``."""

    method: ClassVar[str] = "dp_svd"

    epsilon: float = _epsilon(
        0.01,
        "1 / level",
        "Fan 2019 (there on grey pictures)",
        "Privacy loss for each 8-bit level of distance between the singular values of two crops (metric privacy).",
    )
    rank: int = option(
        3,
        kind="integer",
        doc="Singular values kept in each channel; the others become 0. Weak: 6 and more.",
        source="ours: what hides a face at 128; Fan 2019 keeps more",
        minimum=1,
        maximum=64,
    )
    randomness: str = randomness_option()
