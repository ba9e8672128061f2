"""An audit on paper: one HTML page without any other file, the same as JSON, and a csv with one line a face.

The page and the tables name pictures by their relative names; no folder of the machine is written down. Pictures of
faces are shown only when asked for: originals are what the release was meant to hide.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, Literal

from facezoo.errors import OutputError
from facezoo.evaluate.audit import Audit, FaceVerdict, PictureVerdict, crop_of, face_record
from facezoo.evaluate.looks import LOOKS, looks_cells
from facezoo.files import atomic_write, check_output
from facezoo.tags import printable

__all__ = ["REPORT_NAMES", "Thumbnails", "check_audit", "html_report", "write_audit"]

Thumbnails = Literal["none", "released", "both"]

REPORT_NAMES: Final = ("audit.html", "audit.json", "audit.csv")

_COLUMNS: Final = (
    *("picture", "picture failed", "problem", "face", "status", "recognised by", "still detected", "changed"),
    *("x0", "y0", "x1", "y1"),
)
_WORST = 40
_THUMBNAIL = 112
_LISTED = 200

_CONTROL_TITLES: Final = {
    "identity": "the original itself (must be 100 %)",
    "black_box": "a black square (must be 0 %)",
    "heavy_blur": "a heavy blur",
    "other_person": "another face of the originals (about the false accept rate, if it is another person)",
}

_STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5b6675; --line: #dfe3e8; --bad: #b3261e; --good: #1b6e3c; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; max-width: 68rem;
  padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; max-width: 52rem; } .soft { color: var(--soft); }
.verdict { font-size: 1.15rem; font-weight: 600; padding: .7rem 1rem; border-radius: .5rem; margin: 1rem 0; }
.verdict.bad { background: #fdecea; color: var(--bad); } .verdict.good { background: #e8f5ec; color: var(--good); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.5rem; line-height: 1.2; } .card span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.name { overflow-wrap: anywhere; min-width: 12rem; } .bad { color: var(--bad); } .good { color: var(--good); }
img.plot { max-width: 100%; height: auto; } img.face { display: block; max-width: 7rem; border-radius: .25rem; }
"""


def check_audit(folder: Path, overwrite: bool = False) -> None:
    """Refuses an output that could not be written, before the work.

    Raises:
        OutputError: a report exists there and ``overwrite`` is off, or the folder cannot be written.
    """
    for name in REPORT_NAMES:
        check_output(folder / name, overwrite, make_parents=True)


def write_audit(
    audit: Audit,
    folder: Path,
    *,
    limit: float,
    title: str,
    thumbnails: Thumbnails = "none",
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Writes ``audit.html``, ``audit.json`` and ``audit.csv``.

    Args:
        audit: the outcome.
        folder: made where it is missing.
        limit: percent of the pictures that may fail.
        title: what was audited, for the heading.
        thumbnails: which faces the page shows beside the worst pictures.
        overwrite: whether an older report may be replaced.

    Returns:
        The three files.

    Raises:
        OutputError: a report exists there and ``overwrite`` is off, or it cannot be written.
    """
    check_audit(folder, overwrite)
    contents = (
        html_report(audit, limit=limit, title=title, thumbnails=thumbnails).encode(),
        json.dumps(_content(audit, limit, title), indent=1, allow_nan=False).encode() + b"\n",
        _csv(audit).encode(),
    )
    return tuple(
        atomic_write(folder / name, content, overwrite, make_parents=True)
        for name, content in zip(REPORT_NAMES, contents, strict=True)
    )


def _content(audit: Audit, limit: float, title: str) -> dict[str, Any]:
    return {
        **audit.summary,
        "withheld": [printable(name) for name in audit.summary["withheld"]],
        "title": printable(title),
        "fail_above_percent": limit,
        "passed": audit.failed_percent <= limit,
        "verdicts": [
            {
                "picture": printable(picture.name),
                "failed": picture.failed,
                "problem": printable(picture.problem),
                "warnings": list(picture.warnings),
                "covers": [[round(value, 1) for value in box] for box in picture.covers],
                "size": picture.size,
                "released_size": picture.released_size,
                "faces": [face_record(face) for face in picture.faces],
            }
            for picture in audit.pictures
        ],
    }


def _csv(audit: Audit) -> str:
    judges = list(audit.summary["judges"])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    scores = [f"{judge} {place}" for judge in judges for place in ("same place", "anywhere")]
    writer.writerow([*_COLUMNS, *scores])
    for picture in audit.pictures:
        # A name that begins like a formula would be run by a spreadsheet.
        name = printable(picture.name)
        start = [f"'{name}" if name[:1] in "=+-@" else name, int(picture.failed), printable(picture.problem)]
        if not picture.faces:
            writer.writerow([*start, "", "", "", "", "", *[""] * (4 + len(scores))])
        for index, face in enumerate(picture.faces, 1):
            values = [v for judge in judges for v in (face.same_place[judge], face.anywhere[judge])]
            writer.writerow(
                [*start, index, face.status, " ".join(face.recognised_by)]
                + ["" if face.detected is None else int(face.detected), _short(face.changed, 2)]
                + [f"{value:.1f}" for value in face.box]
                + [_short(value, 4) for value in values]
            )
    return stream.getvalue()


def _short(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


# --------------------------------------------------------------------------------------------------------------------
# the page


def _percent(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "-"
    return f"{100 * rate['value']:.1f} %"


def _interval(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "no cases"
    return f"95 % interval {100 * rate['low']:.1f}-{100 * rate['high']:.1f} %, n = {rate['n']}"


def _card(value: str, label: str, more: str = "") -> str:
    return f'<div class="card"><b>{escape(value)}</b>{escape(label)}<br><span>{escape(more)}</span></div>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already."""

    def cell(tag: str, index: int, text: str) -> str:
        kind = ' class="n"' if index in numbers else ' class="name"' if index == 0 and tag == "td" else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, text) for i, text in enumerate(header)) + "</tr>"]
    lines += ["<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>" for row in rows]
    return '<div class="scroll"><table>' + "".join(lines) + "</table></div>"


def html_report(audit: Audit, *, limit: float, title: str, thumbnails: Thumbnails = "none") -> str:
    """The page; everything it shows is inside it, and it asks no server for anything.

    Args:
        audit: the outcome.
        limit: percent of the pictures that may fail.
        title: for the heading.
        thumbnails: "none", "released" (what is published anyway) or "both" (the page then holds originals).

    Returns:
        HTML.
    """
    summary = audit.summary
    pictures, faces = summary["pictures"], summary["faces"]
    passed = audit.failed_percent <= limit
    words = f"{'Passed' if passed else 'Failed'}: {audit.failed_percent:.1f} % of the pictures fail, {limit:g} % may."
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="robots" content="noindex">',
        f"<title>Audit of {escape(printable(title))}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Audit of {escape(printable(title))}</h1>",
        '<p class="soft">Which faces of the released pictures do recognisers still take for those of the originals? '
        "Made by <code>facezoo audit</code>.</p>",
        f'<div class="verdict {"good" if passed else "bad"}">{escape(words)}</div>',
        '<div class="cards">',
        _card(str(pictures["all"]), "pictures", f"{pictures['not_judged']} could not be judged and fail"),
        _card(_percent(pictures["failed"]), "of the pictures fail", _interval(pictures["failed"])),
        _card(_percent(faces["recognised"]), f"of {faces['all']} faces recognised", _interval(faces["recognised"])),
        _card(_percent(faces["missed"]), "of the faces missed", "recognised, and still detected at their place"),
        _card(_percent(faces["still_detected"]), "of the faces still detected", _interval(faces["still_detected"])),
        "</div>",
        *(f"<p>{escape(note)}</p>" for note in summary["notes"]),
    ]
    aside = [
        (pictures["without_a_face"], "Pictures without a face that the detector finds, before or after"),
        (pictures["resized"], "Resized pictures, whose faces were looked up at the scaled places"),
        (faces["untouched"], "Faces unchanged to the last bit"),
        (faces["found_in_released_only"], "Faces found in the released picture only, and looked up in the original"),
        (faces["covers_taken_for_faces"], "Covers that look like a face to the detector, where the original has none"),
        (pictures["withheld"], "Originals of which nothing was released"),
        (summary["left_out"], "Other files beside the released pictures, which show nobody (texts, records)"),
    ]
    parts += ["<ul>", *(f"<li>{escape(text)}: {count}.</li>" for count, text in aside if count), "</ul>"]
    parts += _judges(audit)
    parts += _looks(audit)
    parts += ["<h2>Distances</h2>", _plots(audit)]
    parts += _worst(audit, thumbnails)
    parts += _listed(
        "Not judged, counted as failures", [(p.name, p.problem) for p in audit.pictures if p.problem], "problem"
    )
    parts += _listed("Noticed", [(p.name, "; ".join(_noticed(p))) for p in audit.pictures if _noticed(p)], "what")
    parts += _listed("Withheld: nothing was released of them", [(name, "-") for name in summary["withheld"]], "what")
    nothing = [(p.name, "no face found") for p in audit.pictures if not p.faces and not p.problem]
    parts += _listed("Without a face: look at them yourself", nothing, "what")
    hardware = summary["hardware"]
    parts.append(
        f'<p class="soft">{summary["seconds"]:.0f} s on {escape(str(hardware["processor"]))}, {hardware["threads"]} '
        f"threads; detector {escape(summary['detector']['name'])} for faces of at least "
        f"{summary['detector']['minimum_face']:g} pixels; seed {summary['seed']}. Recognisers miss what people see: "
        "clothes, hair and place are not judged here.</p></body></html>"
    )
    return "\n".join(parts) + "\n"


def _judges(audit: Audit) -> list[str]:
    summary = audit.summary
    rows = []
    for name, judge in summary["judges"].items():
        mark = "*" if judge["took_part_in_training"] else ""
        sign = "at least" if judge["metric"] == "cosine" else "at most"
        what = "cosine" if judge["metric"] == "cosine" else "distance"
        retrieved = summary["retrieved"].get(name)
        rows.append(
            [
                escape(name) + mark,
                f"{what} {sign} {judge['threshold']:.3f}",
                f"{_percent(judge['recognised'])} <span class=soft>({_interval(judge['recognised'])})</span>",
                _percent(retrieved) if retrieved else "-",
                *(_percent(row[name]) for row in summary["controls"].values()),
            ]
        )
    titles = [escape(_CONTROL_TITLES[name]) for name in summary["controls"]]
    head = ["judge", "same person", "faces recognised", "nearest original is the own one", *titles]
    parts = ["<h2>Judges and controls</h2>", _table(head, rows, numbers=range(3, len(head)))]
    parts.append(
        f'<p class="soft">Thresholds: false accept rate {summary["far"]:g} on pairs of strangers among real '
        "photographs, or as given. The last columns are controls with known answers.</p>"
    )
    if any(judge["took_part_in_training"] for judge in summary["judges"].values()):
        parts.append("<p>* This judge took part in the training of the tool: its figures flatter.</p>")
    return parts


def _looks(audit: Audit) -> list[str]:
    """How the released faces look; nothing where no place of a face is known."""
    figures = audit.summary["looks"]
    if figures is None:
        return []
    rows = [
        [escape(title), escape(cell), escape(good), str(figures[name]["n"]), str(figures[name]["missing"])]
        for (name, (title, _, good)), cell in zip(LOOKS.items(), looks_cells(figures), strict=True)
    ]
    return [
        "<h2>Looks</h2>",
        _table(["figure", "value (95 % interval)", "good", "faces", "without a figure"], rows, numbers=(1, 3, 4)),
        '<p class="soft">The first faces at their places in the released pictures, beside the originals: what is left '
        "for other uses (docs/measuring.md has the formulas). It says nothing about privacy: an untouched face looks "
        "best.</p>",
    ]


def _plots(audit: Audit) -> str:
    """A histogram for each judge, as one inline PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    judges = audit.summary["judges"]
    figure, axes = pyplot.subplots(1, len(judges), figsize=(4.8 * len(judges), 3.4), squeeze=False)
    for axis, (name, judge) in zip(axes[0], judges.items(), strict=True):
        scores = [face.score(name, judge["metric"]) for picture in audit.pictures for face in picture.faces]
        shown = {"released": [score for score in scores if score is not None]}
        shown |= {
            title: audit.control_scores[row][name]
            for row, title in (("other_person", "another face"), ("identity", "the original"))
            if row in audit.control_scores
        }
        values = [value for group in shown.values() for value in group] or [0.0]
        low, high = min(*values, judge["threshold"]), max(*values, judge["threshold"])
        edges = np.linspace(low, high if high > low else low + 1, 41)
        for (title, group), colour in zip(shown.items(), ("#2563a8", "#9aa4b1", "#d97a2b"), strict=False):
            if group:
                weights = np.full(len(group), 100 / len(group))
                axis.hist(group, edges, weights=weights, alpha=0.75, color=colour, label=title)
        axis.axvline(judge["threshold"], color="#b3261e", linestyle="--", linewidth=1.2, label="threshold")
        axis.set_title(f"{name} ({'cosine' if judge['metric'] == 'cosine' else 'distance'})", fontsize=10)
        axis.set_ylabel("percent of the faces", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": "facezoo"})
    pyplot.close(figure)
    text = "histograms of the scores between released pictures and originals, with the thresholds"
    return f'<img class="plot" alt="{text}" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def _margin(face: FaceVerdict, judges: Mapping[str, Any]) -> float:
    """How far beyond the threshold, as a part of it, the surest judge is; above 0: recognised."""
    margins = [-1e9]
    for name, judge in judges.items():
        score = face.score(name, judge["metric"])
        if score is not None:
            apart = score - judge["threshold"] if judge["metric"] == "cosine" else judge["threshold"] - score
            margins.append(apart / max(abs(judge["threshold"]), 1e-6))
    return max(margins)


def _worst(audit: Audit, thumbnails: Thumbnails) -> list[str]:
    judges = audit.summary["judges"]
    found = [(_margin(face, judges), picture, face) for picture in audit.pictures for face in picture.faces]
    # By how many judges agree, then by how sure the surest is.
    found.sort(key=lambda item: (-len(item[2].recognised_by), -item[0], item[1].name))
    rows = []
    for _, picture, face in found[:_WORST]:
        cells = [
            escape(printable(picture.name)),
            f'<span class="{"good" if face.status == "protected" else "bad"}">{face.status}</span>',
            escape(", ".join(face.recognised_by)) or "-",
            f"{face.box[2] - face.box[0]:.0f}x{face.box[3] - face.box[1]:.0f} at {face.box[0]:.0f}, {face.box[1]:.0f}",
            *(_short(face.score(name, judge["metric"]), 3) for name, judge in judges.items()),
        ]
        rows.append(cells + _pictures(picture, face, thumbnails))
    if not rows:
        return []
    more = {"none": [], "released": ["released"], "both": ["original", "released"]}[thumbnails]
    head = ["picture", "face", "recognised by", "where", *(escape(name) for name in judges), *more]
    counted = f"{len(rows)} of {len(found)} faces, the surest first"
    parts = ["<h2>Worst faces</h2>", f'<p class="soft">{counted}.</p>']
    return [*parts, _table(head, rows, numbers=range(4, 4 + len(judges)))]


def _pictures(picture: PictureVerdict, face: FaceVerdict, thumbnails: Thumbnails) -> list[str]:
    cells = []
    if thumbnails == "both":
        cells.append(_face(picture.original, face, 1.0, "original face"))
    if thumbnails != "none":
        size, released = picture.size, picture.released_size
        ratio = 1.0 if size is None or released is None else (released[0] + released[1]) / (size[0] + size[1])
        # Without a common ratio the face's place in the released picture is unknown.
        cells.append(
            "place unknown" if face.detected is None else _face(picture.released, face, ratio, "released face")
        )
    return cells


def _face(path: Path | None, face: FaceVerdict, ratio: float, text: str) -> str:
    data = None if path is None else crop_of(path, face.box, ratio, _THUMBNAIL)
    if data is None:
        return "-"
    return f'<img class="face" alt="{text}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def _noticed(picture: PictureVerdict) -> list[str]:
    boxes = [f"{x1 - x0:.0f}x{y1 - y0:.0f} at {x0:.0f}, {y0:.0f}" for x0, y0, x1, y1 in picture.covers]
    return [*picture.warnings, *(["a cover looks like a face: " + "; ".join(boxes[:6])] if boxes else [])]


def _listed(title: str, entries: Sequence[tuple[str, str]], column: str) -> list[str]:
    if not entries:
        return []
    shown = [[escape(printable(name)), escape(printable(text))] for name, text in entries[:_LISTED]]
    rest = len(entries) - len(shown)
    parts = [f"<h2>{escape(title)} ({len(entries)})</h2>", _table(["picture", column], shown)]
    return [*parts, f"<p>{rest} more are in audit.csv.</p>"] if rest else parts


def refuse_inside(output: Path, folders: Sequence[Path]) -> None:
    """Refuses to write the report into a folder of pictures: with thumbnails it would publish what it shows.

    Raises:
        OutputError: the output is one of the folders or lies below one.
    """
    target = output.resolve()
    for folder in folders:
        inner = folder.resolve()
        if target == inner or inner in target.parents:
            raise OutputError(f"the report would lie inside {folder}; choose a folder outside of the pictures with -o")
