"""Writes the README's table of models from the evaluations in MODEL_CARDS/results; ``--check`` only compares.

facezoo evaluate gaussian_blur --data packed/evaluation128.safetensors -o evaluated/gaussian_blur
python scripts/readme_models.py --add evaluated/gaussian_blur/evaluation.json
python scripts/readme_models.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facezoo.errors import FacezooError, InputError
from facezoo.evaluate.looks import LOOKS, looks_cells
from facezoo.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
#: Figures of looks in one column each, and its heading.
LOOKS_COLUMNS = {
    ("detail",): "detail",
    ("grain",): "grain, dB",
    ("mesh",): "mesh error, %",
    ("mouth", "eyes", "smile"): "mouth, eyes, smile kept",
    ("frechet",): "Frechet / real",
}
START, END = "<!-- models: written by scripts/readme_models.py -->", "<!-- /models -->"


def percent(figure: Mapping[str, float] | None) -> str:
    """A rate in percent; its 95 % interval stands in MODEL_CARDS."""
    return "-" if figure is None else f"{100 * figure['value']:.1f}"


def looks(results: Mapping[str, Any]) -> list[str]:
    """How the faces look (docs/measuring.md), without the intervals; "-" where it was not measured."""
    figures = results["anonymized"].get("looks")
    cells = dict(zip(LOOKS, looks_cells(figures, intervals=False), strict=True)) if figures else {}
    return [
        ", ".join(cells.get(name, "-").split(" (")[0] for name in names) if figures else "-" for names in LOOKS_COLUMNS
    ]


def row(results: Mapping[str, Any], usual: int, with_looks: bool) -> list[str]:
    """One line of the table; says so where there are not as many faces as usual."""
    far = f"far_{results['far'][0]:g}"

    def taken(part: Mapping[str, Any], judge: str) -> str:
        return percent(part["judges"][judge]["taken"][far]) if judge in part["judges"] else "-"

    png = results["recovered"]["png"] if results["reversible"] else None
    return [
        f"`{results['name']}`" + ("" if results["n"] == usual else f" ({results['n']} faces)"),
        taken(results["anonymized"], "dlib"),
        taken(results["anonymized"], "foamliu"),
        percent(results["anonymized"].get("detected")),
        *(looks(results) if with_looks else []),
        taken(png, "dlib") if png else "-",
        taken(results["recovered"]["jpeg95"], "dlib") if png else "-",
        f"{png['psnr']['value']:.1f} dB, {png['ssim']['value']:.2f}" if png else "-",
        taken(results["wrong_key"], "dlib") if png else "-",
    ]


def shared_generators(checkpoints: Path) -> list[str]:
    """A sentence for each generator that several checkpoints hold: their rows are of one picture maker."""
    holders: dict[str, list[str]] = {}
    for path in sorted(checkpoints.glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if digest := manifest["files"].get("generator.safetensors", {}).get("sha256"):
            holders.setdefault(digest, []).append(f"`{manifest['name']}`")
    return [
        f"{', '.join(names[:-1])} and {names[-1]} paint with one and the same generator (the same file): read their "
        "rows as one anonymizer under different keys, not as so many."
        for names in holders.values()
        if len(names) > 1
    ]


def table(all_results: Sequence[Mapping[str, Any]]) -> str:
    """The text between the marks.

    Raises:
        InputError: evaluations of different sets or thresholds, which may not stand in one table. Fewer faces of the
            same set may: their intervals are wider, and the line says how many.
    """
    kinds = {(r["gallery"], r["data"], tuple(r["far"]), r["seed"]) for r in all_results}
    if len(kinds) != 1:
        raise InputError(f"the evaluations differ in data, rates or seed ({kinds}); evaluate them alike")
    first = max(all_results, key=lambda r: int(r["n"]))
    with_looks = any(results["anonymized"].get("looks") for results in all_results)
    head = [
        "model",
        "TAR, dlib ↓",
        "TAR, foamliu ↓",
        "faces detected ↑",
        *(LOOKS_COLUMNS.values() if with_looks else []),
        "recovered TAR, PNG ↑",
        "recovered TAR, JPEG 95 ↑",
        "PSNR, SSIM ↑",
        "wrong key TAR ↓",
    ]
    ordered = sorted(all_results, key=lambda r: (not r["reversible"], r["name"]))
    lines = [
        f"Percent of {first['n']} aligned faces of {first['people']} people that no training saw. TAR: true accept "
        f"rate at a false accept rate (FAR) of {first['far'][0]:g}, that is how many faces a recogniser takes for the "
        "original's; dlib and foamliu took no part in any training. Recovered: the same by dlib after recovery from "
        "the saved file with the right key; wrong key: with another. 95 % intervals: MODEL_CARDS/."
        + (" Looks: docs/measuring.md; the original has 1, 100, 0, 1, 1, 1 and 1." if with_looks else ""),
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row(r, first["n"], with_looks)) + " |" for r in ordered),
        *(line for sentence in shared_generators(ROOT / "checkpoints") for line in ("", sentence)),
    ]
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the table is stale")
    parser.add_argument("--add", type=Path, nargs="+", default=[], help="evaluation.json files to keep first")
    arguments = parser.parse_args()
    folder = ROOT / "MODEL_CARDS" / "results"
    readme = ROOT / "README.md"
    try:
        for path in arguments.add:
            results = json.loads(path.read_text(encoding="utf-8"))
            text = json.dumps(results, indent=1, sort_keys=True) + "\n"
            atomic_write(folder / f"{results['name']}.json", text.encode(), overwrite=True, make_parents=True)
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        found = [results for results in found if "facezoo_evaluation" in results]  # anonymizers, not generators
        if not found:
            raise InputError(f"no evaluations in {folder}")
        text = readme.read_text(encoding="utf-8")
        before, _, rest = text.partition(START)
        _, _, after = rest.partition(END)
        if not rest or not after:
            raise InputError(f"{readme} lacks the marks {START} and {END}")
        wanted = f"{before}{START}\n{table(found)}\n{END}{after}"
        if arguments.check:
            return int(wanted != text)
        atomic_write(readme, wanted.encode(), overwrite=True)
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
