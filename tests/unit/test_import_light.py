"""What must stay quick: importing facezoo, its help and its list load no heavy library."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import facezoo
import facezoo.faces

HEAVY = ("torch", "cv2", "lightning", "kornia", "onnxruntime", "scipy", "matplotlib", "torchvision", "timm", "PIL")


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


def test_the_sources_never_import_what_would_break_lightning(repository: Path) -> None:
    # A torchvision that does not fit torch's build breaks `import lightning`; these three bring it along.
    pattern = re.compile(r"^\s*(?:import|from)\s+(torchvision|timm|lpips)\b", re.MULTILINE)
    found = [
        f"{path.relative_to(repository)}: {match[1]}"
        for path in sorted((repository / "facezoo").rglob("*.py"))
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_every_public_name_of_the_lazy_packages_loads() -> None:
    for package in (facezoo, facezoo.faces):
        assert set(package._LAZY) == set(package.__all__) - {"__version__"}
        assert all(getattr(package, name) is not None for name in package.__all__)
