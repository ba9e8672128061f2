"""``facezoo demo``: every anonymizer on one public-domain picture, as one sheet and one table. Needs no network."""

from __future__ import annotations

from facezoo.demo.judge import DemoRow
from facezoo.demo.run import DemoReport, demo_picture, run_demo

__all__ = ["DemoReport", "DemoRow", "demo_picture", "run_demo"]
