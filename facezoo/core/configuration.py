"""Dataclasses from plain mappings, strictly: unknown keys and wrong types are errors that name the key."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from facezoo.errors import InputError

T = TypeVar("T")


def build_strict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds a dataclass from a mapping; unknown keys and wrong types are errors that name the key.

    Raises:
        InputError: Unknown key (with the nearest known ones) or a value of the wrong type.
    """
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else f"; known keys: {', '.join(fields)}"
            raise InputError(f"{where}: unknown key {key!r}{hint}")
        arguments[key] = _coerce(value, hints[key], f"{where}.{key}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def _coerce(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise InputError(f"{where}: expected a list, got {value!r}")
        inner = typing.get_args(hint)[0]
        return tuple(_coerce(item, inner, where) for item in value)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise InputError(f"{where}: {value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 (no point) as text; everybody means the number.
        with contextlib.suppress(ValueError):
            return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise InputError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
