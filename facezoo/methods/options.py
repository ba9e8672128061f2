"""Options of a method: a frozen dataclass whose fields carry their unit, source and allowed values.

Imports no torch, so that the command line can show and check options before anything heavy is loaded.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from facezoo.errors import InputError, UnknownNameError

__all__ = ["OptionDoc", "Options", "option"]

OptionKind = Literal["number", "integer", "flag", "choice", "color", "text", "object"]
AnyOptions = TypeVar("AnyOptions", bound="Options")

_METADATA = "facezoo"


@dataclass(frozen=True)
class OptionDoc:
    """What is known about one option.

    Attributes:
        kind: "number" (float, finite), "integer", "flag" (bool), "choice" (one of `choices`), "color" (three integers
            0..255, red green blue), "text" (string or path; None when the default is None), "object" (checked by the
            method itself).
        doc: what it does, one sentence or two.
        unit: e.g. "pixels of a 128 crop"; "" for a pure number.
        source: paper, table or reason for the default.
        minimum: smallest allowed value, inclusive.
        maximum: greatest allowed value, inclusive.
        choices: allowed values of a "choice".
    """

    kind: OptionKind
    doc: str
    unit: str = ""
    source: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


def option(
    default: object,
    *,
    kind: OptionKind,
    doc: str,
    unit: str = "",
    source: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:  # like dataclasses.field: the field's annotation gives the type
    """A dataclass field of an `Options` class; the arguments are those of `OptionDoc`."""
    note = OptionDoc(kind, doc, unit, source, minimum, maximum, choices)
    return dataclasses.field(default=default, metadata={_METADATA: note})


@dataclass(frozen=True)
class Options:
    """Base of every options dataclass. As it stands: a method without options.

    Subclasses are frozen dataclasses, set `method` and define every field with `option`. Values are checked when an
    object is made; one that exists is valid.
    """

    method: ClassVar[str] = "this method"

    def __post_init__(self) -> None:
        """Check every field, and bring it to its own type (an integer given for a number, a list for a colour).

        Raises:
            InputError: a value of the wrong type or out of range.
        """
        for name, note in self.documented().items():
            object.__setattr__(self, name, self._checked(name, note, getattr(self, name)))

    @classmethod
    def documented(cls) -> dict[str, OptionDoc]:
        """Name -> what is known about it, in the order of definition."""
        return {field.name: field.metadata[_METADATA] for field in dataclasses.fields(cls)}

    @classmethod
    def defaults(cls) -> dict[str, object]:
        """Name -> default value."""
        return {field.name: field.default for field in dataclasses.fields(cls)}

    @classmethod
    def from_mapping(cls: type[AnyOptions], values: Mapping[str, object]) -> AnyOptions:
        """Make options from names and values, e.g. out of a record.

        Raises:
            UnknownNameError: a name that is no option; the message lists the options.
            InputError: a value of the wrong type or out of range.
        """
        cls._check_names(values)
        return cls(**values)

    @classmethod
    def from_strings(cls: type[AnyOptions], texts: Mapping[str, str]) -> AnyOptions:
        """Make options from the command line's ``name=text``; a colour reads ``0,0,0``, a flag ``true`` or ``false``.

        Raises:
            UnknownNameError: a name that is no option.
            InputError: a text that does not read as the option's kind, or a value out of range.
        """
        cls._check_names(texts)
        notes = cls.documented()
        return cls.from_mapping({name: cls._parsed(name, notes[name], text) for name, text in texts.items()})

    def updated(self: AnyOptions, changes: Mapping[str, object]) -> AnyOptions:
        """These options with some values replaced.

        Raises:
            UnknownNameError: a name that is no option.
            InputError: a value of the wrong type or out of range.
        """
        if not changes:
            return self
        self._check_names(changes)
        return dataclasses.replace(self, **changes)

    def to_record(self) -> dict[str, object]:
        """Plain JSON values for a picture's record. Fields of kind "object" or "text" are left out.

        Such fields may hold a path of this machine or a whole gallery; a method that needs them recorded says so in
        `facezoo.methods.base.Method.options_record`.
        """
        record: dict[str, object] = {}
        for name, note in self.documented().items():
            value = getattr(self, name)
            if note.kind not in ("object", "text"):
                record[name] = list(value) if isinstance(value, tuple) else value
        return record

    @classmethod
    def _check_names(cls, values: Mapping[str, object]) -> None:
        known = cls.documented()
        for name in values:
            if name not in known:
                listing = ", ".join(known) if known else "none"
                raise UnknownNameError(f"{cls.method} has no option {name!r}; its options: {listing}")

    @classmethod
    def _fail(cls, name: str, wanted: str, value: object) -> InputError:
        shown = repr(value)
        if len(shown) > 60:
            shown = shown[:57] + "..."
        return InputError(f"{cls.method}: {name} must be {wanted}, not {shown}")

    @classmethod
    def _checked(cls, name: str, note: OptionDoc, value: object) -> object:
        if note.kind in ("number", "integer"):
            return cls._checked_number(name, note, value)
        if note.kind == "flag":
            if not isinstance(value, bool):
                raise cls._fail(name, "true or false", value)
        elif note.kind == "choice":
            if not isinstance(value, str) or value not in note.choices:
                raise cls._fail(name, f"one of {', '.join(note.choices)}", value)
        elif note.kind == "color":
            is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 3
            if not is_list or not all(type(part) is int and 0 <= part <= 255 for part in value):  # type: ignore[attr-defined]
                raise cls._fail(name, "three integers 0..255 (red, green, blue)", value)
            return tuple(value)  # type: ignore[arg-type]
        elif note.kind == "text" and value is not None:
            if not isinstance(value, str | os.PathLike) or not os.fspath(value):
                raise cls._fail(name, "a text or a path", value)
            return os.fspath(value)
        return value

    @classmethod
    def _checked_number(cls, name: str, note: OptionDoc, value: object) -> float | int:
        wanted = "an integer" if note.kind == "integer" else "a number"
        if note.minimum is not None and note.maximum is not None:
            wanted += f" from {note.minimum:g} to {note.maximum:g}"
        elif note.minimum is not None:
            wanted += f" of at least {note.minimum:g}"
        elif note.maximum is not None:
            wanted += f" of at most {note.maximum:g}"
        # bool is an int for Python, but `sigma=True` is a mistake.
        allowed = (int,) if note.kind == "integer" else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed) or not math.isfinite(value):
            raise cls._fail(name, wanted, value)
        if (note.minimum is not None and value < note.minimum) or (note.maximum is not None and value > note.maximum):
            raise cls._fail(name, wanted, value)
        return value if note.kind == "integer" else float(value)

    @classmethod
    def _parsed(cls, name: str, note: OptionDoc, text: str) -> object:
        try:
            if note.kind == "number":
                return float(text)
            if note.kind == "integer":
                return int(text)
            if note.kind == "color":
                return tuple(int(part) for part in text.split(","))
        except ValueError:
            wanted = {"color": "r,g,b", "integer": "an integer"}.get(note.kind, "a number")
            raise cls._fail(name, wanted, text) from None
        if note.kind == "flag":
            if text.lower() not in ("true", "false"):
                raise cls._fail(name, "true or false", text)
            return text.lower() == "true"
        return text
