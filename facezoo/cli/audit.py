"""``facezoo audit``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from facezoo.cli.common import Commands, add_command, import_part, names, percent, positive, progress_bar
from facezoo.errors import InputError
from facezoo.tags import printable

AUDIT_FAILED = 8
"""Exit code when more pictures fail than may."""


def add_audit(commands: Commands) -> None:
    """The command ``audit`` and its options."""
    parser = add_command(
        commands,
        "audit",
        "judge released pictures, made by any tool, against their originals",
        "  facezoo audit released/ --originals photos/ -o audit/\n"
        "  facezoo audit released/ --originals photos/ -o audit/ --fail-above 2 --thumbnails released\n"
        "  facezoo audit released/ --originals photos/ -o audit/ --pairs pairs.csv --judges dlib,sface",
        " Writes audit.html, audit.json and audit.csv. A picture fails when a recogniser takes one of its faces "
        "for the original, and so does every file in FOLDER that cannot be judged (a video, a format that is not "
        f"read, ...): they are named. Leaves with {AUDIT_FAILED} when more fail than --fail-above.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the released pictures")
    parser.add_argument("--originals", required=True, metavar="FOLDER", help="the pictures they were made from")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the report goes")
    parser.add_argument("--pairs", metavar="CSV", help="columns original,released, where the names do not tell")
    parser.add_argument("--judges", type=names, default=(), metavar="NAMES", help="recognisers (default: all found)")
    parser.add_argument("--far", type=float, choices=(1e-3, 1e-2), default=1e-3, help="false accept rate (0.001)")
    parser.add_argument(
        "--threshold", action="append", default=[], metavar="JUDGE=VALUE", help="a judge's threshold, in its own unit"
    )
    parser.add_argument(
        "--trained-with", type=names, default=(), metavar="NAMES", help="judges that the tool was trained with: marked"
    )
    parser.add_argument(
        "--fail-above", type=percent, default=0.0, metavar="PERCENT", help="pictures that may fail (default: 0)"
    )
    parser.add_argument(
        "--thumbnails",
        choices=("none", "released", "both"),
        default="none",
        help="faces on the page; 'both' puts originals into it (default: none)",
    )
    parser.add_argument("--detector", default="yunet", metavar="NAME", help="yunet (default) or centerface")
    parser.add_argument("--minimum-face", type=positive, metavar="PX", help="smallest face (default: as in anonymize)")
    parser.add_argument(
        "--all-released", action="store_true", help="an original of which nothing was released fails too"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older report")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=_audit)


def _thresholds(texts: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not name or number != number:
            raise InputError(f"--threshold {text!r}: write JUDGE=VALUE, e.g. dlib=0.6")
        found[name] = number
    return found


def _audit(arguments: argparse.Namespace) -> int:
    thresholds = _thresholds(arguments.threshold)
    released, originals, output = Path(arguments.folder), Path(arguments.originals), Path(arguments.output)
    audit = import_part("facezoo.evaluate.audit", "the audit", "eval")
    pairs = import_part("facezoo.evaluate.audit_pairs", "the audit", "eval")
    report = import_part("facezoo.evaluate.audit_report", "the audit", "eval")
    import_part("matplotlib", "the audit", "eval")
    report.refuse_inside(output, (released, originals))
    report.check_audit(output, arguments.overwrite)
    for folder in (released, originals):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; give a folder of pictures")
    pairing = (
        pairs.pair_folders(originals, released, all_released=arguments.all_released)
        if arguments.pairs is None
        else pairs.read_pairs(arguments.pairs, originals, released, all_released=arguments.all_released)
    )
    given = {} if arguments.minimum_face is None else {"minimum_face": float(arguments.minimum_face)}
    settings = audit.AuditSettings(
        judges=arguments.judges,
        far=arguments.far,
        thresholds=thresholds,
        trained_with=arguments.trained_with,
        detector=arguments.detector,
        **given,
    )
    with progress_bar(len(pairing.pairs), "picture", arguments.quiet) as advance:
        result = audit.run_audit(pairing, settings, advance=advance)
    page, _, _ = report.write_audit(
        result,
        output,
        limit=arguments.fail_above,
        title=released.resolve().name,
        thumbnails=arguments.thumbnails,
        overwrite=arguments.overwrite,
    )
    for verdict in result.pictures:
        if verdict.problem:
            name = printable(verdict.name)
            print(f"facezoo: not judged: {name}: {printable(verdict.problem)}", file=sys.stderr)
    figures = result.summary
    withheld = f"; {figures['pictures']['withheld']} withheld" if figures["pictures"]["withheld"] else ""
    print(
        f"{figures['pictures']['all']} pictures, {result.failed_percent:.1f} % fail "
        f"({figures['pictures']['not_judged']} could not be judged); {figures['faces']['all']} faces, "
        f"{100 * (figures['faces']['recognised']['value'] or 0):.1f} % recognised, "
        f"{100 * (figures['faces']['missed']['value'] or 0):.1f} % missed{withheld}"
    )
    print(page)
    return AUDIT_FAILED if result.failed_percent > arguments.fail_above else 0
