"""Options of the classics. Imports no torch.

Lengths are pixels of a crop of 128 and scale with the crop (`facezoo.methods.base.REFERENCE_SIZE`). The defaults are
chosen to hide a face from a recogniser; the settings of the book's tables, most of which do not hide it, are in
`BOOK_SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from facezoo.methods.options import Options, option

__all__ = [
    "BOOK_SETTINGS",
    "BlackBoxOptions",
    "EyeBarOptions",
    "GaussianBlurOptions",
    "LowResolutionOptions",
    "PixelNoiseOptions",
    "PixelationOptions",
]

_PIXELS = "pixels of a 128 crop"


@dataclass(frozen=True)
class GaussianBlurOptions(Options):
    """Options of ``gaussian_blur``."""

    method: ClassVar[str] = "gaussian_blur"

    sigma: float = option(
        28.0,
        kind="number",
        doc="Standard deviation of the Gaussian. Weak: below 20; a blur by 8 hides the face from a recogniser only "
        "until somebody sharpens the picture again.",
        unit=_PIXELS,
        source="book: 5 and 20 (Table 4.1, there called r), 8 (Fig. 6.7); default: see classics/README.md",
        minimum=0.1,
        maximum=256.0,
    )


@dataclass(frozen=True)
class LowResolutionOptions(Options):
    """Options of ``low_resolution``."""

    method: ClassVar[str] = "low_resolution"

    cells: int = option(
        5,
        kind="integer",
        doc="The crop is averaged down to cells x cells and enlarged smoothly. Weak: 7 and more.",
        unit="cells along a side of the crop",
        source="book, section 5.4.5: 7 and 19; default: see classics/README.md",
        minimum=1,
        maximum=64,
    )


@dataclass(frozen=True)
class PixelationOptions(Options):
    """Options of ``pixelation``."""

    method: ClassVar[str] = "pixelation"

    block: float = option(
        25.6,
        kind="number",
        doc="Side of a square cell; 25.6 gives 5 x 5 cells. Weak: 18 and less; at 4 nearly everybody is recognised.",
        unit=_PIXELS,
        source="book: 4 and 8 (Table 4.1, crops of 128); 8 and 16 at 256 (Table 5.1), which are 4 and 8 here; default: "
        "see classics/README.md",
        minimum=1.0,
        maximum=128.0,
    )


@dataclass(frozen=True)
class BlackBoxOptions(Options):
    """Options of ``black_box``."""

    method: ClassVar[str] = "black_box"

    color: tuple[int, int, int] = option(
        (0, 0, 0),
        kind="color",
        doc="The colour of the box.",
        unit="red, green, blue, 0..255",
        source="book, section 3.1.1: black is most common",
    )


@dataclass(frozen=True)
class EyeBarOptions(Options):
    """Options of ``eye_bar``."""

    method: ClassVar[str] = "eye_bar"

    length: float = option(
        2.6,
        kind="number",
        doc="Length of the bar along the line through the eyes.",
        unit="distances between the eyes",
        source="reaches past the temples; not given in the book",
        minimum=1.2,
        maximum=6.0,
    )
    height: float = option(
        0.9,
        kind="number",
        doc="Height of the bar; 0.9 covers eyelids and brows.",
        unit="distances between the eyes",
        source="not given in the book",
        minimum=0.2,
        maximum=6.0,
    )
    color: tuple[int, int, int] = option(
        (0, 0, 0),
        kind="color",
        doc="The colour of the bar.",
        unit="red, green, blue, 0..255",
        source="book, section 3.1.4.2: black",
    )


@dataclass(frozen=True)
class PixelNoiseOptions(Options):
    """Options of ``pixel_noise``."""

    method: ClassVar[str] = "pixel_noise"

    sigma: float = option(
        255.0,
        kind="number",
        doc="Standard deviation of the noise added to each channel. Weak: all of the book's values.",
        unit="8-bit levels",
        source="book: 10 and 30 (Table 4.1), 9 and 49 (Table 5.1), 15 (Fig. 6.7)",
        minimum=0.0,
        maximum=2550.0,
    )
    grain: float = option(
        8.0,
        kind="number",
        doc="Side of the squares that share one noise value. Weak: 1 (fine noise is averaged away by smoothing).",
        unit=_PIXELS,
        source="book: every pixel its own, which is 1 at 128",
        minimum=1.0,
        maximum=64.0,
    )


BOOK_SETTINGS: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "table 4.1 blurring r=5": ("gaussian_blur", {"sigma": 5.0}),
        "table 4.1 blurring r=20": ("gaussian_blur", {"sigma": 20.0}),
        "table 4.1 noise s=10": ("pixel_noise", {"sigma": 10.0, "grain": 1.0}),
        "table 4.1 noise s=30": ("pixel_noise", {"sigma": 30.0, "grain": 1.0}),
        "table 4.1 pixelation 4x4": ("pixelation", {"block": 4.0}),
        "table 4.1 pixelation 8x8": ("pixelation", {"block": 8.0}),
        "table 5.1 pixelization 8x8": ("pixelation", {"block": 4.0}),
        "table 5.1 pixelization 16x16": ("pixelation", {"block": 8.0}),
        "table 5.1 noise s=9": ("pixel_noise", {"sigma": 9.0, "grain": 1.0}),
        "table 5.1 noise s=49": ("pixel_noise", {"sigma": 49.0, "grain": 1.0}),
        "table 5.1 blur 7x7": ("low_resolution", {"cells": 7}),
        "table 5.1 blur 19x19": ("low_resolution", {"cells": 19}),
        "table 6.4 blur s=8": ("gaussian_blur", {"sigma": 4.0}),
        "table 6.4 pixelation 8x8": ("pixelation", {"block": 4.0}),
        "table 6.4 noise s=15": ("pixel_noise", {"sigma": 15.0, "grain": 1.0}),
    }
)
"""Rows of the book's tables -> method and options. Chapters 5 and 6 work on crops of 256: their lengths are halved."""
