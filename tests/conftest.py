"""What every test stands on: no secrets or network from outside, few threads, and ../shared only where it exists."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

# Before any test imports huggingface_hub or wandb, which read these once. A test marked `network` sets its own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
# The secret by which a run knows its inputs again is kept in the user's home: not in the developer's own.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="facezoo-tests-")
# matplotlib must never look for a display.
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no CUDA device; torch is imported only when there is such a test."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    available = False
    if importlib.util.find_spec("torch") is not None:
        import torch

        available = torch.cuda.is_available()
    if not available:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _no_key_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the developer's shell must not reach a test."""
    monkeypatch.delenv("FACEZOO_KEY", raising=False)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of unpublished pictures and weights (FACEZOO_SHARED, else ../shared); skips where there is none."""
    folder = Path(os.environ.get("FACEZOO_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("needs the pictures and weights of ../shared")
    return folder
