"""Backbones of timm (Wightman, "PyTorch Image Models"), by name; timm is imported when one is made and not before."""

from __future__ import annotations

from typing import Any

from torch import nn

from facezoo.errors import CheckpointError

__all__ = ["timm_model"]


def timm_model(name: str, size: int | None = None, **options: Any) -> nn.Module:
    """An untrained model of timm.

    Args:
        name: As in ``timm.list_models()``.
        size: Side of the square pictures that it will see, pixels, for models that must know it (transformers); None
            for the side that it was made for.
        options: Of ``timm.create_model``.

    Raises:
        CheckpointError: timm is not installed or does not work, has no such model, or the model refuses the size or the
            options.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise CheckpointError(
            f"{name!r} needs timm ({str(error).splitlines()[0]}): pip install 'facezoo[train]'"
        ) from None
    if not timm.is_model(name):
        raise CheckpointError(f"timm has no model {name!r}; see timm.list_models()")
    if size is not None and timm.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = size
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"timm cannot make {name!r} of size {size}: {reason}") from error
    return model
