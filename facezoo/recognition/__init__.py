"""Recognisers behind one interface: identity encoder, training loss, judge."""

from __future__ import annotations

from facezoo.recognition.base import Recogniser
from facezoo.recognition.loader import list_recognisers, load_recogniser

__all__ = ["Recogniser", "list_recognisers", "load_recogniser"]
