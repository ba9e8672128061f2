"""Options of iFADIT at use. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from facezoo.methods.options import Options, option


@dataclass(frozen=True)
class IFaditOptions(Options):
    """Where the face is replaced, how much time is spent on each picture, and what it is recovered from."""

    method: ClassVar[str] = "ifadit"

    refine_steps: int = option(
        0,
        kind="integer",
        doc=(
            "steps that fit the attribute latents to each picture before its identity is changed: nearer to the "
            "picture's light and pose, at the price of a forward and a backward pass of the generator a step"
        ),
        unit="steps",
        source="ours: a per-picture inversion, see the method's README for its cost",
        minimum=0,
        maximum=1000,
    )
    mask: str = option(
        "template",
        kind="choice",
        doc=(
            "what says where the face is, on the picture at hand: the aligned template, 68 landmarks "
            "(FACEZOO_WEIGHTS/peppa_slim160_68.pth), or a face parser (parser_file)"
        ),
        source="paper, 3.4.2: a face parser's mask, Gaussian blurred",
        choices=("template", "landmarks", "parser"),
    )
    parser_file: str | None = option(
        None,
        kind="text",
        doc="BiSeNet weights for mask=parser (published layout, .pth or .safetensors); not shipped",
        source="paper, 3.4.2",
    )
    mask_blur: float = option(
        3.0,
        kind="number",
        doc="Gaussian blur of the mask of landmarks or parser",
        unit="pixels of a 128 crop",
        source="paper, 3.4.2 (its width is not given)",
        minimum=0,
        maximum=20,
    )
    conceal: bool = option(
        True,
        kind="flag",
        doc=(
            "hide the encrypted code in the picture, where the model has one; off: the paper's method alone, recovered "
            "through the flow and the generator only"
        ),
        source="ours, see the method's README",
    )
