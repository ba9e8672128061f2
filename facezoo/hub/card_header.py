"""The YAML block at the head of a model card, as the Hugging Face Hub reads it: licence, task, tags and figures.

Made by huggingface_hub's own `ModelCardData` and `EvalResult`, so that what the hub calls a field is its business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from facezoo.errors import InputError
from facezoo.registry import list_methods

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = ["card_header", "eval_results"]

_LICENCES: Final = frozenset(
    {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0"}
)
"""Licences that the hub knows by name; any other is "other", with its own name beside it."""


def _task(manifest: Mapping[str, Any]) -> tuple[str, str]:
    info = next((item for item in list_methods(kind=None) if item.name == manifest["method"]), None)
    if info is not None and info.kind == "generator":
        return "unconditional-image-generation", "face generation"
    return "image-to-image", "face anonymization"


def eval_results(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> list[EvalResult]:
    """The figures of an evaluation as the hub's results, each with its interval in ``metric_args``.

    Args:
        manifest: the checkpoint's manifest.
        results: an ``evaluation.json``.

    Returns:
        For each judge: how many are taken for the original after anonymization, after recovery from PNG, and with a
        wrong key; the detection rate; how the anonymized faces look, where it was measured; PSNR and SSIM of what is
        recovered.

    Raises:
        InputError: an evaluation of another form.
    """
    from huggingface_hub import EvalResult

    task, title = _task(manifest)
    try:
        return [
            EvalResult(
                task_type=task,
                task_name=title,
                dataset_type=str(results["data"]).removesuffix(".safetensors"),
                dataset_name=f"{results['n']} faces of {results['people']} people, {results['data']}",
                dataset_args={"seed": results["seed"], "size": results["size"]},
                metric_type=kind,
                metric_name=name,
                metric_value=round(float(figure["value"]), 4),
                metric_args={
                    "low": round(float(figure["low"]), 4),
                    "high": round(float(figure["high"]), 4),
                    "n": figure["n"],
                },
            )
            for kind, name, figure in _figures(results)
            if figure is not None and figure["value"] is not None
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the results file is an evaluation of another form ({error}); evaluate again") from error


def _figures(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
    """(metric type, name, figure)."""
    far = f"far_{results['far'][0]:g}"
    recovered = results["recovered"]
    parts = {"anonymized, taken for the original": results["anonymized"]}
    if recovered is not None:
        parts["recovered from PNG, taken for the original"] = recovered["png"]
    if results["wrong_key"] is not None:
        parts["wrong key, taken for the original"] = results["wrong_key"]
    for title, part in parts.items():
        for judge, entry in results["judges"].items():
            trained = ", took part in the training" if entry["took_part_in_training"] else ""
            name = f"{title} ({judge}, FAR {results['far'][0]:g}{trained})"
            yield "verification-rate", name, part["judges"][judge]["taken"][far]
    yield "detection-rate", "anonymized, face detected", results["anonymized"]["detected"]
    for name, figure in (results["anonymized"].get("looks") or {}).items():
        if figure.get("low") is not None:  # the Frechet distance has no interval; it is in the card's table
            yield f"looks-{name}", f"anonymized, looks: {name}", figure
    if recovered is not None:
        yield "psnr", "recovered from PNG, PSNR in dB", recovered["png"]["psnr"]
        yield "ssim", "recovered from PNG, SSIM", recovered["png"]["ssim"]


def _told_results(manifest: Mapping[str, Any], data: list[str]) -> list[EvalResult] | None:
    """The manifest's own metrics as the hub's results: the number that a text such as "0.3 % (0.1-1.2)" begins with."""
    from huggingface_hub import EvalResult

    task, title = _task(manifest)
    found = []
    for name, value in manifest["metrics"].items():
        if isinstance(value, Mapping):
            value = value.get("value")
        match = re.match(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?(?=$|[ %])", str(value))
        if match is None or isinstance(value, bool) or name == "measured on":
            continue
        title_of = f"{name}{', %' if str(value)[match.end() :].startswith(' %') else ''}"
        found.append(
            EvalResult(
                task_type=task,
                task_name=title,
                dataset_type=data[0] if data else "faces",
                dataset_name=str(manifest["metrics"].get("measured on", "evaluation")),
                metric_type=title_of,
                metric_name=title_of,
                metric_value=float(match[0]),
            )
        )
    return found or None


def _data_sets(manifest: Mapping[str, Any]) -> list[str]:
    """Names of the packed sets of the recipe, without their paths."""
    recipe = manifest["training"].get("recipe", {})
    files = recipe.get("data", []) if isinstance(recipe, Mapping) else []
    return sorted({Path(str(path)).stem for path in files})


def card_header(manifest: Mapping[str, Any], results: Mapping[str, Any] | None = None) -> str:
    """The block, with its two lines of dashes.

    Args:
        manifest: the checked manifest.
        results: an ``evaluation.json``; None, or a table of another kind: the figures that the manifest tells itself.

    Raises:
        InputError: an evaluation of another form.
    """
    from huggingface_hub import ModelCardData

    licence = str(manifest["licence"]).strip()
    named = licence.lower() in _LICENCES
    data_sets = _data_sets(manifest)
    if results is not None and "facezoo_evaluation" in results:
        measured: list[EvalResult] | None = eval_results(manifest, results)
    else:
        measured = _told_results(manifest, data_sets)
    task, title = _task(manifest)
    data = ModelCardData(
        license=licence.lower() if named else "other",
        license_name=None if named else licence,
        library_name="facezoo",
        pipeline_tag=task,
        datasets=data_sets or None,
        tags=["facezoo", title.replace(" ", "-"), manifest["method"]],
        model_name=manifest["name"],
        eval_results=measured,
    )
    fields = data.to_dict()  # type: ignore[no-untyped-call]
    # Dumped here, not by the hub's library: a card must not become stale because that one breaks lines elsewhere.
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)}---\n"
