"""What must stay quick: importing facezoo, its help and its list load no heavy library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import facezoo
import facezoo.faces

EXTRAS = ("torchvision", "timm", "lpips", "lightning", "torchmetrics", "kornia", "onnxruntime", "scipy", "matplotlib")
"""What the plain install is without."""
HEAVY = ("torch", "cv2", "PIL", *EXTRAS)


def _loaded_by(code: str, repository: Path) -> set[str]:
    """Run ``code`` in a fresh interpreter; the heavy libraries that it loaded."""
    script = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    [
        "facezoo",
        "facezoo.errors",
        "facezoo.registry",
        "facezoo.data.split",
        "facezoo.faces",
        "facezoo.faces.mask",
        "facezoo.mesh",
        "facezoo.mesh.topology",
    ],
)
def test_importing_loads_nothing_heavy(module: str, repository: Path) -> None:
    assert _loaded_by(f"import {module}", repository) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["anonymize", "--help"]])
def test_the_command_line_answers_without_heavy_libraries(arguments: list[str], repository: Path) -> None:
    code = (
        "from facezoo.cli import main\n"
        "try:\n"
        f"    status = main({arguments!r})\n"
        "except SystemExit as stop:\n"
        "    status = stop.code\n"
        "assert not status, status"
    )
    assert _loaded_by(code, repository) == set()


def test_packed_sets_are_read_without_torch(repository: Path) -> None:
    assert _loaded_by("import facezoo.data.packed", repository) == set()


def test_the_plain_install_needs_no_extra(repository: Path, tmp_path: Path) -> None:
    """A whole picture, classic and learned, with every library of the extras made impossible to import."""
    (tmp_path / "key").write_text("nineteen pears and five plums")
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
        "from facezoo.cli import main\n"
        "picture = 'facezoo/assets/demo/astronaut.jpg'\n"
        "for model in ('pixelation', 'identity_rotation.faces128'):\n"
        f"    key = [] if model == 'pixelation' else ['--key-file', {str(tmp_path / 'key')!r}]\n"
        f"    output = {str(tmp_path)!r} + '/' + model + '.png'\n"
        "    assert main(['anonymize', picture, '--model', model, '--output', output, *key]) == 0, model\n"
        f"for name in {EXTRAS!r}:\n"
        "    del sys.modules[name]"
    )
    assert _loaded_by(code, repository) == {"torch", "cv2", "PIL"}


def test_a_picture_loads_no_extra_that_is_there(repository: Path, tmp_path: Path) -> None:
    code = (
        "from facezoo.cli import main\n"
        "arguments = ['anonymize', 'facezoo/assets/demo/astronaut.jpg', '--model', 'pixelation']\n"
        f"assert main([*arguments, '--output', {str(tmp_path / 'hidden.png')!r}]) == 0"
    )
    assert _loaded_by(code, repository).isdisjoint(EXTRAS)


def test_every_public_name_of_the_lazy_packages_loads() -> None:
    for package in (facezoo, facezoo.faces):
        assert set(package._LAZY) == set(package.__all__) - {"__version__"}
        assert all(getattr(package, name) is not None for name in package.__all__)
