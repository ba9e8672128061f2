"""Options of SDN and MfM at use. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from facezoo.data.attributes import ATTRIBUTES, format_request, parse_request
from facezoo.errors import InputError
from facezoo.methods.options import Options, option


@dataclass(frozen=True)
class AttributedOptions(Options):
    """Attributes, their register, whose features, and edits in the latent space."""

    attributes: str | None = option(
        None,
        kind="text",
        doc=(
            "attributes of the anonymized face, such as smiling=yes,hair=blond (--attribute says the same); part of "
            f"the secret: recovery needs them. Vocabulary: {', '.join(ATTRIBUTES)}"
        ),
        source="SDN section 3.1, MfM section 3.2",
    )
    register: str = option(
        "sealed",
        kind="choice",
        doc=(
            "where the attributes are kept for recovery: sealed under the key in the picture's record, or none: they "
            "must then be given again and are a secret beside the key"
        ),
        source="MfM section 3.2 (multi-factor register); sealing is ours",
        choices=("sealed", "none"),
    )
    sealed_attributes: str | None = option(
        None, kind="text", doc="the register's entry; written by anonymize, read by recover, never typed"
    )
    source_picture: str | None = option(
        None,
        kind="text",
        doc=(
            "picture whose features the anonymized face takes on, instead of a mixture from the checkpoint's bank; "
            "only of somebody who agreed, or who does not exist"
        ),
        source="SDN section 3.1.1 takes a random person's picture here",
    )
    vary: bool = option(
        True,
        kind="flag",
        doc="every face gets a person of its own; off: all faces under a key become the same person",
        source="ours",
    )
    edit: str | None = option(
        None,
        kind="text",
        doc="shifts in the latent space such as smiling=+2,hair=-1, degrees -2 to 2, after 'facezoo directions'",
        source="SDN section 6.2 (latent space manipulation module)",
    )

    def __post_init__(self) -> None:
        """Checks every field; brings attributes and edits to one form, so that equal requests are equal texts.

        Raises:
            UnknownNameError: no such attribute or value.
            InputError: contradictory attributes, a malformed edit.
        """
        given: Any = self.attributes  # from Python also a mapping or a list
        if isinstance(given, Mapping | list | tuple):
            object.__setattr__(self, "attributes", format_request(parse_request(given)) or None)
        super().__post_init__()
        if self.attributes is not None:
            request = parse_request(self.attributes)
            self.check_request(request)
            object.__setattr__(self, "attributes", format_request(request))
        self.edits()

    @classmethod
    def check_request(cls, request: Mapping[str, str]) -> None:
        """Refuses or accepts a request that contradicts itself; the method's own rule.

        Raises:
            InputError: it is refused.
        """

    @property
    def request(self) -> dict[str, str]:
        """The request, attribute -> value."""
        return parse_request(self.attributes)

    def edits(self) -> dict[str, float]:
        """The edits, attribute -> degree.

        Raises:
            InputError: malformed, an attribute twice or unknown, or a degree outside -2 to 2.
        """
        found: dict[str, float] = {}
        for part in (self.edit or "").split(","):
            if not part.strip():
                continue
            name, _, text = (piece.strip() for piece in part.partition("="))
            try:
                degree = float(text)
            except ValueError:
                degree = float("nan")
            if not -2 <= degree <= 2:
                raise InputError(f"{self.method}: edit {part.strip()!r}: write NAME=DEGREE with a degree from -2 to 2")
            if name not in ATTRIBUTES or name in found:
                problem = "is given twice" if name in found else f"is no attribute; choices: {', '.join(ATTRIBUTES)}"
                raise InputError(f"{self.method}: edit of {name!r} {problem}")
            found[name] = degree
        return found

    def to_record(self) -> dict[str, Any]:
        """Plain values for a record: nothing of attributes, pictures or edits (see ``AttributedMethod``)."""
        return {"register": self.register, "vary": self.vary}
