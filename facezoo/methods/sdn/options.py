"""Options of SDN at use. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from facezoo.data.attributes import check_consistent
from facezoo.methods.attributed.options import AttributedOptions


@dataclass(frozen=True)
class SDNOptions(AttributedOptions):
    """As ``AttributedOptions``; a request that contradicts itself is refused."""

    method: ClassVar[str] = "sdn"

    @classmethod
    def check_request(cls, request: Mapping[str, str]) -> None:
        """Refuses contradictions.

        Raises:
            InputError: there is one.
        """
        check_consistent(request)
