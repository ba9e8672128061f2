"""``load_recogniser``: by name or by path."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from facezoo.errors import CheckpointError, UnknownNameError
from facezoo.recognition.base import Recogniser

__all__ = ["BUNDLED", "list_recognisers", "load_recogniser"]

_ASSETS = Path(__file__).resolve().parents[1] / "assets" / "recognition"

#: sha256 of the bundled files (scripts/convert_recognisers.py prints them).
BUNDLED = {
    "sface": "bef05843a14ff9031d564c86afe05caccbf2a93edc1fea01eff622ca675ef96d",
}


def read_bundled(name: str) -> dict[str, Tensor]:
    """Reads a bundled safetensors file after checking its sha256.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    from safetensors.torch import load

    path = _ASSETS / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"The recogniser file {path} cannot be read ({error.strerror}): reinstall facezoo.") from None
    if hashlib.sha256(content).hexdigest() != BUNDLED[name]:
        raise CheckpointError(f"The recogniser file {path} is damaged (sha256 differs): reinstall facezoo.")
    return load(content)


def list_recognisers() -> list[str]:
    """Names that ``load_recogniser`` knows without a path."""
    return [*BUNDLED]


def load_recogniser(name: str | Path) -> Recogniser:
    """Loads a frozen recogniser.

    Args:
        name: ``sface``.

    Returns:
        The recogniser on the CPU, in evaluation mode; move it with ``.to(device)``.

    Raises:
        UnknownNameError: if there is no such recogniser.
        CheckpointError: if its file is missing, damaged or does not fit.
    """
    if name == "sface":
        from facezoo.recognition.sface import build_sface

        return build_sface(read_bundled("sface"))
    raise UnknownNameError(f"No recogniser is called {name!r}; there are: {', '.join(list_recognisers())}.")
