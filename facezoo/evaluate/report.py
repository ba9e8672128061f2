"""The evaluation on paper: JSON with everything, markdown with what one reads.

The JSON (``facezoo_evaluation``: 1) holds, beside the circumstances (n, seed, hardware, judges with thresholds):

* ``anonymized.judges.<judge>.taken.<threshold>``: part taken for the original; ``.rank_one``; ``.cosine``.
  ``anonymized.detected``, ``.failed``, ``.seconds_a_face``.
* ``anonymized.looks.<figure>``: how the saved pictures look beside the originals (``facezoo.evaluate.looks.LOOKS``);
  null, or not there in older reports, where it was not measured.
* ``diversity.judges.<judge>``: the same picture under two keys; ``.failed``.
* ``recovered.<format>``, ``wrong_key``, ``near_key``: ``judges.<judge>.taken...``, ``psnr``, ``ssim``, ``failed``.
* ``sanity.<row>``: as ``anonymized``.

A part that a method does not have (a key, a recovery) is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facezoo.evaluate.looks import LOOKS, looks_cells, looks_notes
from facezoo.files import atomic_write, check_output

__all__ = ["JSON_NAME", "MARKDOWN_NAME", "check_report", "markdown_report", "write_report"]

JSON_NAME = "evaluation.json"
MARKDOWN_NAME = "evaluation.md"

_Interval = Mapping[str, Any]


def _percent(rate: _Interval | None) -> str:
    if rate is None or rate["value"] is None:
        return "-"
    return f"{100 * rate['value']:.1f} % ({100 * rate['low']:.1f}-{100 * rate['high']:.1f})"


def _number(mean: _Interval | None, digits: int) -> str:
    if mean is None or mean["value"] is None:
        return "-"
    return f"{mean['value']:.{digits}f} ({mean['low']:.{digits}f}-{mean['high']:.{digits}f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]


def markdown_report(result: Mapping[str, Any]) -> str:
    """The tables of an evaluation.

    Args:
        result: what ``evaluate_model`` returned.

    Returns:
        Markdown text.
    """
    judges = list(result["judges"])
    main = f"far_{result['far'][0]:g}"
    marked = {judge: judge + ("*" if result["judges"][judge]["took_part_in_training"] else "") for judge in judges}

    def taken(part: Mapping[str, Any], judge: str) -> str:
        return _percent(part[judge]["taken"][main])

    lines = [
        f"# Evaluation of {result['name']}",
        "",
        f"{result['n']} faces of {result['people']} people ({result['data']}, {result['size']} pixels), "
        f"{result['keys']} keys, seed {result['seed']}; {result['hardware']['processor']}"
        + (f", {result['hardware']['gpu']}" if result["hardware"]["gpu"] else "")
        + f". Thresholds at FAR {result['far'][0]:g} from impostor pairs of {result['gallery']} real pictures. "
        "In brackets: 95 % interval. Scope: " + result["scope"] + ".",
        "",
    ]
    if any(result["judges"][judge]["took_part_in_training"] for judge in judges):
        lines += ["\\* This judge took part in the method's training: its figures flatter.", ""]
    lines += [f"**{note}**" for note in result["notes"]] + ([""] if result["notes"] else [])

    lines += ["## Privacy", "", "Taken for the original (lower is better):", ""]
    subjects = {result["name"]: result["anonymized"]}
    subjects |= {f"*{name.replace('_', ' ')}*": row for name, row in result["sanity"].items()}
    lines += _table(
        ["", *(marked[judge] for judge in judges), "face detected"],
        [
            [name, *(taken(row["judges"], judge) for judge in judges), _percent(row["detected"])]
            for name, row in subjects.items()
        ],
    )
    lines += ["Rank-1 retrieval by other pictures of the person, and mean cosine to the original:", ""]
    lines += _table(
        ["", *(f"{marked[judge]} {kind}" for judge in judges for kind in ("rank-1", "cosine"))],
        [
            [
                name,
                *(
                    cell
                    for judge in judges
                    for cell in (
                        _percent(row["judges"][judge]["rank_one"]["other_pictures"]),
                        _number(row["judges"][judge]["cosine"], 3),
                    )
                ),
            ]
            for name, row in subjects.items()
        ],
    )
    lines += _looks(subjects, judges, marked, main)
    if result["diversity"] is not None:
        lines += ["One picture under two keys:", ""]
        lines += _table(
            ["", *(marked[judge] for judge in judges)],
            [
                ["taken for one person", *(taken(result["diversity"]["judges"], judge) for judge in judges)],
                ["cosine", *(_number(result["diversity"]["judges"][judge]["cosine"], 3) for judge in judges)],
            ],
        )
    if result["recovered"] is not None:
        lines += ["## Recovery from the saved file", "", "Taken for the original:", ""]
        rows = {f"right key, {name}": part for name, part in result["recovered"].items()}
        for kind, title in (("wrong_key", "wrong key, png"), ("near_key", "key one character apart, png")):
            if result[kind] is not None:
                rows[title] = result[kind]
        lines += _table(
            ["", *(marked[judge] for judge in judges), "PSNR, dB", "SSIM", "failed"],
            [
                [
                    name,
                    *(taken(part["judges"], judge) for judge in judges),
                    _number(part["psnr"], 2),
                    _number(part["ssim"], 3),
                    str(part["failed"]),
                ]
                for name, part in rows.items()
            ],
        )
    lines += ["## Judges", ""]
    lines += _table(
        ["judge", "metric", "thresholds"],
        [
            [
                marked[judge],
                result["judges"][judge]["metric"],
                ", ".join(f"{kind}: {value:.3f}" for kind, value in result["judges"][judge]["thresholds"].items()),
            ]
            for judge in judges
        ],
    )
    speed = 1000 * result["anonymized"]["seconds_a_face"]
    lines.append(f"{speed:.1f} ms a face to anonymize; {result['anonymized']['failed']} faces failed.")
    return "\n".join(lines) + "\n"


def _looks(
    subjects: Mapping[str, Mapping[str, Any]], judges: Sequence[str], marked: Mapping[str, str], main: str
) -> list[str]:
    """How the faces look, beside what the judges take for the original; nothing where it was not measured."""
    rows = [
        [
            name,
            *(_percent(row["judges"][judge]["taken"][main]) for judge in judges),
            *looks_cells(row["looks"]),
        ]
        for name, row in subjects.items()
        if row.get("looks") is not None
    ]
    if not rows:
        return []
    goals = ["*good*", *("" for _ in judges), *(good for _, _, good in LOOKS.values())]
    header = ["", *(f"taken by {marked[judge]}" for judge in judges), *(title for title, _, _ in LOOKS.values())]
    lines = [
        "## Looks",
        "",
        "The saved pictures beside the originals, aligned crops of 128 pixels (docs/measuring.md has the formulas). "
        "Looks alone say nothing about privacy: the original itself has the best ones.",
        "",
        *_table(header, [*rows, goals]),
    ]
    return lines + looks_notes(subjects)


def check_report(folder: Path, overwrite: bool = False) -> None:
    """Refuses an output that could not be written, before hours of work.

    Raises:
        OutputError: a report exists there and ``overwrite`` is off, or the folder cannot be written.
    """
    for name in (JSON_NAME, MARKDOWN_NAME):
        check_output(folder / name, overwrite, make_parents=True)


def write_report(result: Mapping[str, Any], folder: Path, overwrite: bool = False) -> tuple[Path, Path]:
    """Writes ``evaluation.json`` and ``evaluation.md``.

    Args:
        result: what ``evaluate_model`` returned.
        folder: made where it is missing.
        overwrite: whether an older report may be replaced.

    Returns:
        The two files.

    Raises:
        OutputError: a report exists there and ``overwrite`` is off, or it cannot be written.
    """
    check_report(folder, overwrite)
    data = json.dumps(result, indent=1, allow_nan=False).encode() + b"\n"
    text = markdown_report(result).encode()
    first = atomic_write(folder / JSON_NAME, data, overwrite, make_parents=True)
    return first, atomic_write(folder / MARKDOWN_NAME, text, overwrite, make_parents=True)
