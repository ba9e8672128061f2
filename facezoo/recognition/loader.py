"""``load_recogniser``: by name or by path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from facezoo.errors import CheckpointError, UnknownNameError
from facezoo.recognition.base import Recogniser

__all__ = ["BUNDLED", "find_foamliu", "list_recognisers", "load_recogniser"]

_ASSETS = Path(__file__).resolve().parents[1] / "assets" / "recognition"

#: sha256 of the bundled files (scripts/convert_recognisers.py prints them).
BUNDLED = {
    "dlib": "bbcc5d9cd6b1a358aa2804d1912fff3f392eb55d8d38f500a3fd63137a12e4e3",
    "sface": "476b6933a91be3ac6929c3b128ade77333a35bd4b9896b2bbfed999a4a4a32f7",
}

_FOAMLIU = "foamliu_mobilefacenet.pt"
_SUFFIXES = (".pt", ".pth", ".safetensors", ".onnx")


def _read_bundled(name: str) -> dict[str, Tensor]:
    """Reads a bundled safetensors file after checking its sha256."""
    from safetensors.torch import load

    path = _ASSETS / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"The recogniser file {path} cannot be read ({error.strerror}): reinstall facezoo."
        ) from None
    if hashlib.sha256(content).hexdigest() != BUNDLED[name]:
        raise CheckpointError(f"The recogniser file {path} is damaged (sha256 differs): reinstall facezoo.")
    return load(content)


def find_foamliu() -> Path | None:
    """Where foamliu's MobileFaceNet lies: in the folder ``FACEZOO_WEIGHTS``, or in ``../shared/weights`` of a checkout.

    Returns:
        The file, or None where there is none. It is not shipped with facezoo.
    """
    named = os.environ.get("FACEZOO_WEIGHTS")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "weights"
    path = folder / _FOAMLIU
    return path if path.is_file() else None


def list_recognisers() -> list[str]:
    """Names that ``load_recogniser`` can load here without a path: the bundled ones, and ``foamliu`` if it is found."""
    return sorted(BUNDLED) + (["foamliu"] if find_foamliu() else [])


def _read_state(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from .pt/.pth (tensors only, no code is run) or .safetensors."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each raise their own
        reason = str(error).partition("\n")[0][:160]
        raise CheckpointError(f"{path} cannot be read as a state dict ({reason}): save one with torch.save.") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no plain state dict (names to tensors): save model.state_dict().")
    # DistributedDataParallel puts "module." before every name.
    return {name.removeprefix("module."): value.float() if value.is_floating_point() else value
            for name, value in state.items()}  # fmt: skip


def _load_path(path: Path) -> Recogniser:
    """Loads a user's file; the architecture is told by the names of its tensors."""
    if path.suffix == ".onnx":
        from facezoo.recognition.onnx_judge import build_onnx

        return build_onnx(path)
    state = _read_state(path)
    try:
        if "gdconv.depthwise.weight" in state:
            from facezoo.recognition.mobilefacenet import build_mobilefacenet

            return build_mobilefacenet(state)
        if "layer1.0.bn3.weight" in state:
            from facezoo.recognition.iresnet import build_iresnet

            return build_iresnet(state, str(path))
    except RuntimeError as error:
        # load_state_dict's message has one line a tensor; the first ones tell enough.
        raise CheckpointError(f"{path} does not fit its architecture: {str(error)[:300]}") from None
    raise CheckpointError(
        f"{path} is no recogniser that facezoo knows: expected an insightface iresnet (layer1.0.bn3...) or foamliu's "
        "MobileFaceNet (gdconv...)."
    )


def load_recogniser(name: str | Path) -> Recogniser:
    """Loads a frozen recogniser.

    Args:
        name: ``sface`` or ``dlib`` (bundled), ``foamliu`` (found by ``find_foamliu``), or the path of a user's weights:
            an insightface iresnet or foamliu's MobileFaceNet as .pt, .pth or .safetensors, or an .onnx (judge only:
            it has no gradients) with its preprocessing in a .yaml beside it; see ``facezoo.recognition.onnx_judge``.

    Returns:
        The recogniser on the CPU, in evaluation mode, parameters frozen; move it with ``.to(device)``.

    Raises:
        UnknownNameError: if there is no such name or file.
        CheckpointError: if a file is missing, damaged or does not fit.
        InputError: the .yaml beside an .onnx cannot be used.
    """
    if name in BUNDLED:
        tensors = _read_bundled(str(name))
        if name == "sface":
            from facezoo.recognition.sface import build_sface

            return build_sface(tensors)
        from facezoo.recognition.dlib_resnet import build_dlib

        return build_dlib(tensors)
    if name == "foamliu":
        found = find_foamliu()
        if found is None:
            raise CheckpointError(
                f"foamliu is not shipped: put {_FOAMLIU} into a folder and set FACEZOO_WEIGHTS to it."
            )
        return _load_path(found)
    path = Path(name)
    if path.suffix in _SUFFIXES:
        if not path.is_file():
            raise CheckpointError(f"There is no recogniser file {path}: check the path.")
        return _load_path(path)
    raise UnknownNameError(
        f"No recogniser is called {str(name)!r}; there are {', '.join(list_recognisers())}, "
        f"or the path of a file ({', '.join(_SUFFIXES)})."
    )
