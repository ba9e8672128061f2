"""The recipes that ship: listed, copied with every field explained in place, checked without training."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from facezoo.core.configuration import build_strict
from facezoo.core.recipe import Recipe, found_recipe, load_recipe, recipe_folder
from facezoo.errors import InputError
from facezoo.files import atomic_write
from facezoo.registry import list_methods, method_info

__all__ = ["RecipeFile", "config_class", "copy_recipe", "documented", "field_docs", "list_recipes", "validate_recipe"]

_WIDTH: Final = 118


@dataclass(frozen=True)
class RecipeFile:
    """One line of ``facezoo recipes list``.

    Attributes:
        name: what ``facezoo train`` takes, e.g. "identity_rotation/faces128_cpu".
        model: name of the model that it makes.
        summary: one line.
        cost: what its header says about cost; "" where it says nothing.
    """

    name: str
    model: str
    summary: str
    cost: str


def list_recipes() -> list[RecipeFile]:
    """Every recipe that ships, by name.

    Raises:
        InputError: a recipe is damaged.
    """
    root = recipe_folder()
    found = []
    for path in sorted(root.glob("*/*.yaml")):
        recipe = load_recipe(path)
        name = path.relative_to(root).with_suffix("").as_posix()
        found.append(RecipeFile(name, recipe.name, recipe.summary, _cost(_header(path.read_text(encoding="utf-8")))))
    return found


def _header(text: str) -> list[str]:
    """The comment lines at the top of a recipe."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return lines


def _cost(header: list[str]) -> str:
    words = " ".join(line.lstrip("# ") for line in header)
    match = re.search(r"\bCost[:,] *(.+?)(?:\.(?: |$)|$)", words)
    return " ".join(match[1].split()) if match else ""


def config_class(method: str) -> type[Any]:
    """The dataclass of a method's ``config`` section: the one of its ``config`` module that its training imports.

    Raises:
        InputError: the method is not trained.
        UnknownNameError: no such method.
    """
    info = method_info(method)
    if not info.training:
        trained = ", ".join(entry.name for entry in list_methods(kind=None) if entry.training)
        raise InputError(f"{method} is not a method that is trained; those are: {trained}")
    module = importlib.import_module(info.training.partition(":")[0])
    room = module.__name__.rpartition(".")[0]
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == f"{room}.config"
    ]
    if len(found) != 1:
        raise InputError(f"{module.__name__} must import exactly one configuration dataclass from {room}.config")
    return found[0]


def validate_recipe(name: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe and checks every key and value, of ``train`` and of ``config``, without building a network.

    Raises:
        InputError: unknown or wrong; the message names the key and its nearest neighbours.
        UnknownNameError: no such method.
    """
    recipe = load_recipe(name, overrides)
    build_strict(config_class(recipe.method), recipe.config, f"{Path(name).name}: config")
    if recipe.name.split(".")[0] != recipe.method or not re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_\-]+", recipe.name):
        raise InputError(f"{Path(name).name}: the name must be {recipe.method}.TAG in small letters, not {recipe.name}")
    if not recipe.data:
        raise InputError(f"{Path(name).name}: data names no packed set; make one with facezoo prepare")
    return recipe


def field_docs(kind: type[Any]) -> dict[str, str]:
    """What the docstrings of a dataclass and of its bases say about each field (Google style, ``Attributes:``)."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__doc__ or "") if dataclasses.is_dataclass(base) else ""
        _, _, section = text.partition("Attributes:\n")
        name = ""
        for line in section.splitlines():
            if line and not line.startswith(" "):
                break
            if match := re.match(r" {4}(\w+): (.*)", line):
                name, docs[match[1]] = match[1], match[2]
            elif name and line.strip():
                docs[name] += " " + line.strip()
    return docs


def documented(recipe: Recipe, header: list[str]) -> str:
    """A recipe as YAML in which every field that there is stands with its meaning and its value.

    Fields that the recipe leaves at their default are written too, so that a reader sees what can be changed.
    """
    kind = config_class(recipe.method)
    config = build_strict(kind, recipe.config, "config")
    lines = [*header, f"name: {recipe.name}", f"method: {recipe.method}", _entry("summary", recipe.summary, "")]
    lines += [_entry("data", list(recipe.data), ""), "", "train:", *_section(recipe.train), "", "config:"]
    lines += _section(config)
    text = "\n".join(lines) + "\n"
    # What was written must say what was read: the file is made for people, but it is a program that trains from it.
    again = yaml.safe_load(text)
    if build_strict(kind, again["config"], "config") != config:
        raise InputError(f"{recipe.name} holds a value that cannot be written as YAML")
    return text


def _section(values: Any) -> list[str]:
    docs = field_docs(type(values))
    lines: list[str] = []
    for field in dataclasses.fields(values):
        if note := docs.get(field.name):
            lines += [f"  # {line}" for line in textwrap.wrap(note, _WIDTH - 4)]
        lines.append(_entry(field.name, _plain(getattr(values, field.name)), "  "))
    return lines


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(inner) for key, inner in dataclasses.asdict(value).items()}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _entry(name: str, value: Any, indent: str) -> str:
    # As the only item of a list in one line: that is how YAML writes any value without a line break.
    line = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000)
    return f"{indent}{name}: {line.strip()[1:-1]}"


def copy_recipe(name: str | Path, output: Path, *, plain: bool = False, overwrite: bool = False) -> Path:
    """Copies a recipe to a file of one's own.

    Args:
        name: one that ships, or a file.
        output: the new file; a folder takes the recipe's own name.
        plain: as it is, instead of with every field explained.
        overwrite: replace an existing file.

    Returns:
        The file.

    Raises:
        InputError: no such recipe, or a damaged one.
        OutputError: the file exists or cannot be written.
    """
    recipe = validate_recipe(name)
    source = found_recipe(name)
    original = source.read_text(encoding="utf-8")
    target = output / source.name if output.is_dir() else output
    text = original if plain else documented(recipe, _header(original))
    return atomic_write(target, text.encode(), overwrite, make_parents=True)
