"""The vocabulary of face attributes that SDN and MfM are steered by: requests, and what contradicts what.

Identity-related attributes (sex, age, expression) say something about who is seen; style-related ones (hair colour,
skin colour) how. A request names attributes and values: ``{"smiling": "yes", "hair": "blond"}``; an attribute that is
not named is left to the network.

Labels of pictures: ``facezoo.data.labels``. Imports the standard library only: options and the command line use it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from facezoo.errors import InputError, UnknownNameError

__all__ = [
    "ATTRIBUTES",
    "Attribute",
    "check_known",
    "conflicts",
    "format_request",
    "parse_request",
    "request_indices",
    "resolve",
    "value_count",
]

Kind = Literal["identity", "style"]


@dataclass(frozen=True)
class Attribute:
    """One attribute.

    Attributes:
        name: as in requests, labels and checkpoints.
        kind: "identity" or "style" related, as the papers divide them.
        values: what it can be; labels are indices into this.
        doc: what is meant.
        outside: whether it is seen around the inner face, which is all that some checkpoints paint.
    """

    name: str
    kind: Kind
    values: tuple[str, ...]
    doc: str
    outside: bool = False


ATTRIBUTES: Final[Mapping[str, Attribute]] = {
    a.name: a
    for a in (
        Attribute("sex", "identity", ("female", "male"), "as the face is read by others"),
        Attribute("age", "identity", ("child", "young", "middle", "old"), "to 15, 16 to 34, 35 to 54, from 55"),
        Attribute("smiling", "identity", ("no", "yes"), "neutral or serious, or happy"),
        Attribute("hair", "style", ("black", "brown", "blond", "gray"), "colour of the hair above the forehead", True),
        Attribute("skin", "style", ("light", "medium", "dark"), "tone of the cheeks in this picture's light"),
        Attribute("beard", "style", ("no", "yes"), "beard or stubble"),
        Attribute("mustache", "style", ("no", "yes"), "hair on the upper lip"),
        Attribute("mouth_open", "style", ("no", "yes"), "lips apart"),
        Attribute("glasses", "style", ("no", "yes"), "any glasses"),
    )
}
"""Every attribute that can be labelled. A checkpoint knows those that it was trained with."""

_CONFLICTS: Final[tuple[tuple[tuple[str, str], tuple[str, str], str], ...]] = (
    (("mustache", "yes"), ("sex", "female"), "a mustache on a female face"),
    (("beard", "yes"), ("sex", "female"), "a beard on a female face"),
    (("mustache", "yes"), ("age", "child"), "a mustache on a child"),
    (("beard", "yes"), ("age", "child"), "a beard on a child"),
    (("hair", "gray"), ("age", "child"), "gray hair on a child"),
)
"""Pairs that contradict each other: the first is the one that is dropped where conflicts are resolved (the papers keep
the identity-related one: "the less unreasonable face")."""


def check_known(names: Iterable[str], name: str, what: str) -> None:
    """Refuses a name that does not exist, with the choices and the nearest.

    Raises:
        UnknownNameError: it does not.
    """
    choices = list(names)
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UnknownNameError(f"there is no {what} {name!r}{hint} Choices: {', '.join(choices)}")


def parse_request(text: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """A request from ``"smiling=yes,hair=blond"``, a list of such texts, or a mapping; in the vocabulary's order.

    Raises:
        UnknownNameError: no such attribute or value; the message lists the choices and suggests the nearest.
        InputError: not ``name=value``, or one attribute with two values.
    """
    if text is None:
        return {}
    if isinstance(text, Mapping):
        parts = [f"{name}={value}" for name, value in text.items()]
    else:
        parts = [part for line in ([text] if isinstance(text, str) else text) for part in line.split(",") if part]
    found: dict[str, str] = {}
    for part in parts:
        name, separator, value = (piece.strip().lower() for piece in part.partition("="))
        if not separator or not name or not value:
            raise InputError(f"attribute {part!r}: write NAME=VALUE, such as smiling=yes")
        check_known(ATTRIBUTES, name, "attribute")
        check_known(ATTRIBUTES[name].values, value, f"value of {name}")
        if found.get(name, value) != value:
            raise InputError(f"contradictory attributes: {name}={found[name]} and {name}={value}; give one of them")
        found[name] = value
    return {name: found[name] for name in ATTRIBUTES if name in found}


def format_request(request: Mapping[str, str]) -> str:
    """The request as one text, always the same for the same request; "" when nothing is asked for."""
    return ",".join(f"{name}={request[name]}" for name in ATTRIBUTES if name in request)


def conflicts(request: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Contradictions in a request: (attribute to drop, attribute that stays, what is wrong)."""
    return [
        (drop[0], stay[0], why)
        for drop, stay, why in _CONFLICTS
        if request.get(drop[0]) == drop[1] and request.get(stay[0]) == stay[1]
    ]


def check_consistent(request: Mapping[str, str]) -> None:
    """Refuses a request that contradicts itself.

    Raises:
        InputError: it does.
    """
    for drop, stay, why in conflicts(request):
        raise InputError(
            f"contradictory attributes: {drop}={request[drop]} and {stay}={request[stay]} ({why}); leave one out"
        )


def resolve(request: Mapping[str, str], seen: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Resolves conflicts to the less unreasonable face: within the request, and with what is seen in the picture.

    Args:
        request: what is asked for.
        seen: attributes read from the original, used where the request does not say otherwise.

    Returns:
        The request without what was dropped, and a sentence for each dropped attribute.
    """
    left, dropped = dict(request), []
    for drop, stay, why in conflicts({**seen, **request}):
        if drop not in left:
            continue
        known = f"{stay}={request[stay]} is asked for" if stay in request else f"the face looks {seen[stay]}"
        dropped.append(f"{drop}={left.pop(drop)} was dropped: {why} ({known})")
    return left, dropped


def check_names(names: Sequence[str]) -> None:
    """Refuses a list of attributes that cannot be a checkpoint's.

    Raises:
        ValueError: an unknown or repeated name.
    """
    for name in names:
        if name not in ATTRIBUTES:
            raise ValueError(f"there is no attribute {name!r}; known: {', '.join(ATTRIBUTES)}")
    if len(set(names)) != len(names):
        raise ValueError("an attribute is named twice")


def value_count(names: Sequence[str]) -> int:
    """Number of values of all these attributes together."""
    return sum(len(ATTRIBUTES[name].values) for name in names)


def request_indices(request: Mapping[str, str], names: Sequence[str]) -> list[int]:
    """The request in a checkpoint's attributes: the index of each one's value, -1 where nothing is asked.

    Raises:
        UnknownNameError: an attribute that this checkpoint does not know; lists those that it knows.
    """
    for name in request:
        check_known(names, name, "attribute of this checkpoint called")
    return [ATTRIBUTES[name].values.index(request[name]) if name in request else -1 for name in names]
