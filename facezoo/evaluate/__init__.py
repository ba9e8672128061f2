"""Judging methods: one protocol, one report."""

from __future__ import annotations

from facezoo.evaluate.formats import DEFAULT_FORMATS, through_file
from facezoo.evaluate.protocol import MINIMUM_FACES, EvaluationSettings, evaluate_model
from facezoo.evaluate.report import markdown_report, write_report
from facezoo.evaluate.run import run_evaluation

__all__ = [
    "DEFAULT_FORMATS",
    "MINIMUM_FACES",
    "EvaluationSettings",
    "evaluate_model",
    "markdown_report",
    "run_evaluation",
    "through_file",
    "write_report",
]
