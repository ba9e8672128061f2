"""What the tests of the command line share: small pictures, and a tiny learned method with a checkpoint."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facezoo.cli import main


class Run:
    """One call of the command line: exit code and the lines it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"<exit code {self.code}; stderr: {self.err.strip()!r}>"

    def error_line(self) -> str:
        """The one line on stderr; fails when there are more, or a traceback."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("facezoo: error: ")
        return lines[0]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process."""

    def run(*argv: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


def portrait(name: str = "astronaut.jpg") -> Image.Image:
    """A public-domain portrait of 300 x 336 pixels with one face."""
    data = (resources.files("facezoo") / "assets" / "demo" / name).read_bytes()
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.fixture(scope="session")
def face_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture with one face."""
    path = tmp_path_factory.mktemp("pictures") / "astronaut.png"
    portrait().save(path)
    return path


@pytest.fixture(scope="session")
def empty_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture without a face: a smooth ramp."""
    path = tmp_path_factory.mktemp("pictures") / "ramp.png"
    ramp = np.linspace(60, 200, 160, dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (120, 1))] * 3, axis=2)).save(path)
    return path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key file, always the same: with a fresh one the tiny model would fail to verify once in some thousand runs."""
    from facezoo.keys import KEY_BYTES, KEY_FILE_PREFIX

    path = tmp_path / "my.key"
    path.write_text(KEY_FILE_PREFIX + base64.b64encode(bytes(range(1, KEY_BYTES + 1))).decode() + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def tiny_model(tmp_path: Path) -> Iterator[Path]:
    """Checkpoint folder of a tiny learned, reversible, keyed method (see tests/tiny_method.py)."""
    from tests.tiny_method import registered, write_tiny_checkpoint

    with registered():
        yield write_tiny_checkpoint(tmp_path / "tiny_swap.test")


def files_under(folder: Path) -> list[str]:
    """Every file in a folder, hidden ones too: nothing may be left behind."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
