"""The wheel, installed elsewhere, works alone: data files are in it, and the demo runs without network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_what_the_package_needs_and_nothing_else(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packaged = {
        path.relative_to(repository).as_posix()
        for path in (repository / "facezoo").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packaged <= names
    outside = {path for path in (repository / "recipes").rglob("*") if path.is_file()}
    assert {f"facezoo/{path.relative_to(repository).as_posix()}" for path in outside} <= names
    with zipfile.ZipFile(wheel) as archive:
        carried = json.loads(archive.read("facezoo/checkpoints/registry.json"))["models"]
    # What the registry in the wheel names is there whole, and nothing else is: a package index takes 100 MiB.
    assert set(carried) == {"face_painter.mesh128", "identity_dp.mesh128", "identity_rotation.mesh128"}
    inside = {name for name in names if name.startswith("facezoo/checkpoints/")} - {"facezoo/checkpoints/registry.json"}
    whole = {path for model in carried for path in (repository / "checkpoints" / model).rglob("*") if path.is_file()}
    assert {f"facezoo/{path.relative_to(repository).as_posix()}" for path in whole} == inside
    assert wheel.stat().st_size < 90 * 2**20
    strangers = {name for name in names if not name.startswith("facezoo/") and ".dist-info/" not in name}
    assert strangers == set()
    assert "facezoo/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    # Weights of others come with their licences.
    for folder, count in (("recognition", 2), ("detection", 2), ("mesh", 3)):
        inside = {name for name in names if name.startswith(f"facezoo/assets/{folder}/")}
        assert sum(name.endswith((".safetensors", ".onnx")) for name in inside) == count
        assert sum("LICENSE" in name for name in inside) >= (1 if folder == "mesh" else count)
    # A set of faces must never slip into a release.
    assert not any("packed" in name and name.endswith(".safetensors") for name in names)


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(wheel: Path, repository: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path)]
    done = subprocess.run([*build, "--target", "sdist"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
        source.extractall(tmp_path / "source", filter="data")
    assert {
        "tests/conftest.py",
        "recipes/identity_rotation/faces128_cpu.yaml",
        "constraints/cpu.txt",
        "constraints/dev.txt",
        "Makefile",
    } <= names
    assert not {name.partition("/")[0] for name in names} & {"packed", "runs", "shared", ".venv", "demo_out"}
    (unpacked,) = (tmp_path / "source").iterdir()
    done = subprocess.run([*build, "--target", "wheel"], cwd=unpacked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (second,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as a, zipfile.ZipFile(second) as b:
        contents = [{entry.filename: entry.CRC for entry in archive.infolist()} for archive in (a, b)]
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_the_installed_wheel_runs_the_demo_without_network(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    # The dependencies come from this interpreter's environment by a .pth file: the test is about facezoo's own files.
    outer = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    inner = next((environment / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(inner)
    (inner / "dependencies.pth").write_text(f"{outer}\n")
    # In a network namespace of its own nothing outside can be reached; elsewhere a dead proxy has to do.
    dead = "http://127.0.0.1:9"
    variables = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FACEZOO_KEY")},
        **{"http_proxy": dead, "https_proxy": dead, "HTTP_PROXY": dead, "HTTPS_PROXY": dead, "HF_HUB_OFFLINE": "1"},
    }
    code = "import sys, facezoo; from facezoo.cli import main; print(facezoo.__file__); sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [str(python), "-c", code, "demo", "--output", str(tmp_path / "demo")],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert str(inner) in done.stdout.splitlines()[0]
    assert list((tmp_path / "demo").rglob("*.png"))
