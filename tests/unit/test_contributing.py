"""CONTRIBUTING.md's walk from nothing to a method works, step by step, as it is written."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import facezoo.methods
from facezoo import registry
from facezoo.methods.base import Method
from tests.methods.test_interface import MethodTester

FILE = re.compile(r"^```python file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def files(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The walk's files, with its method in the registry."""
    written = dict(FILE.findall((repository / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    for place, text in written.items():
        if place.startswith("facezoo/methods/"):
            path = tmp_path / place.removeprefix("facezoo/methods/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    monkeypatch.setattr(facezoo.methods, "__path__", [*facezoo.methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    entry: dict[str, registry.MethodInfo] = {}
    exec(written["facezoo/registry.py"], entry)
    registry.add_method(entry["FLAT_COLOR"])
    yield written
    registry.unregister_method("flat_color")


class TestTheWalkedMethod(MethodTester):
    @pytest.fixture
    def method(self, files: dict[str, str]) -> Method:
        return registry.create("flat_color")


def test_its_own_test_passes(files: dict[str, str]):
    names: dict[str, object] = {}
    exec(files["tests/methods/test_flat_color.py"], names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_it_is_listed_and_told_about(files: dict[str, str], capsys: pytest.CaptureFixture[str]):
    from facezoo.cli import main

    assert main(["list"]) == 0
    assert re.search(r"^flat_color +classic", capsys.readouterr().out, re.MULTILINE)
    assert main(["info", "flat_color"]) == 0
    assert "its median" in capsys.readouterr().out
