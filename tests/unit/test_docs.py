"""What the texts show works: Python blocks run, commands are ones that the command line and the Makefile know."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import facezoo
from facezoo.cli import build_parser

ROOT = Path(__file__).parents[2]
TEXTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("facezoo/**/*.md"), *ROOT.glob("recipes/**/*"))
    if path.suffix in (".md", ".yaml")
)
BLOCK = re.compile(r"^```([a-z]*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_blocks() -> list[tuple[str, str]]:
    """(place, code) of every Python block, but those marked ``notest`` (needs what a test has not) or ``file=``."""
    found = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            if block[1] == "python" and not block[2].strip().startswith(("notest", "file=")):
                found.append((f"{name(path)}:{text[: block.start()].count(chr(10)) + 1}", block[3]))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """(place, words) of every command shown: shell blocks of the texts, indented lines in the recipes' comments."""
    found = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".yaml":
            lines = re.findall(r"^#  +(\S.*)$", re.sub(r"\\\n# +", " ", text), re.MULTILINE)
        else:
            shells = [block[3] for block in BLOCK.finditer(text) if block[1] in ("bash", "console", "sh")]
            lines = "".join(shells).replace("\\\n", " ").splitlines()
        for line in lines:
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["torchrun"] and "-m" in words:
                words = words[words.index("-m") + 1 :]
            if words[:1] in (["facezoo"], ["make"]):
                found.append((name(path), words))
    return found


@pytest.mark.parametrize("code", [pytest.param(code, id=place) for place, code in python_blocks()])
def test_python_block_runs(code: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_commands_exist():
    shown = commands()
    assert len(shown) > 10
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    parser = build_parser()
    wrong = []
    for place, words in shown:
        if words[0] == "make":
            if not {word for word in words[1:] if "=" not in word} <= targets:
                wrong.append(f"{place}: {' '.join(words)}")
            continue
        try:
            parser.parse_args(words[1:])
        except Exception as error:  # whatever the parser says, all wrong commands are listed at once
            wrong.append(f"{place}: {' '.join(words)}: {error}")
        except SystemExit as end:
            if end.code:
                wrong.append(f"{place}: {' '.join(words)}")
    assert wrong == []


def test_files_that_are_named_exist():
    missing = []
    for path in TEXTS:
        for match in re.finditer(
            r"\b(?:docs|recipes|scripts|constraints)/[\w/.-]*\w\.(?:md|py|yaml|txt)\b", path.read_text()
        ):
            if not (ROOT / match[0]).exists():
                missing.append(f"{name(path)}: {match[0]}")
    assert missing == []


def test_versions_agree():
    """What CI tests, what the package says it runs on, and what is cited and logged as the version."""
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    told = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == told
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == facezoo.__version__
    assert re.search(rf"^## \[{re.escape(facezoo.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_hooks_and_templates_are_whole():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {"ruff", "ruff-format", "mypy"} <= {hook["id"] for hook in hooks}
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert path.name == "config.yml" or {"name", "description", "body"} <= set(form), path
