"""``facezoo evaluate``: a model's name in, a report out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from facezoo.data.packed import PackedFaces
from facezoo.evaluate.people import own_people
from facezoo.evaluate.protocol import EvaluationSettings, evaluate_model
from facezoo.evaluate.report import check_report, write_report

__all__ = ["run_evaluation"]


def run_evaluation(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    limit: int | None = None,
    settings: EvaluationSettings | None = None,
    overwrite: bool = False,
    options: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Loads a model, measures it and writes ``evaluation.json`` and ``evaluation.md``.

    Args:
        model: as ``facezoo.from_pretrained`` takes it.
        data: packed set of the evaluation split.
        output: folder of the report.
        limit: number of faces, drawn with the seed; None: what the settings say (all).
        settings: see ``EvaluationSettings``; None: the defaults.
        overwrite: whether an older report may be replaced.
        options: of the method; None: its defaults. People to hide among come from the set where none are given.

    Returns:
        What ``evaluate_model`` returned.

    Raises:
        OutputError: if the report cannot be written; checked before the work.
        FacezooError: as ``from_pretrained`` and ``evaluate_model``.
    """
    from facezoo.anonymizer import from_pretrained

    settings = settings or EvaluationSettings()
    if limit is not None:
        settings = replace(settings, limit=limit)
    folder = Path(output)
    check_report(folder, overwrite)
    packed = PackedFaces(data)
    chosen: dict[str, Any] = dict(options or {})
    added, people = own_people(os.fspath(model), data, chosen)
    if "gallery" in added:  # a closed gallery knows one picture a person, and here all pictures are measured
        added, people = {}, ""
    chosen.update(added)
    anonymizer = from_pretrained(os.fspath(model), device=settings.device, **chosen)
    result = evaluate_model(anonymizer, packed, name=anonymizer.model, settings=settings)
    result["options"] = anonymizer.method.options.updated(anonymizer.options).to_record()
    if people:
        result["notes"].append(f"People to hide among: {people}.")
    write_report(result, folder, overwrite)
    return result
