"""``facezoo anonymize`` and ``facezoo recover``."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facezoo.cli.common import (
    Commands,
    add_command,
    add_search_options,
    output_folder,
    parse_options,
    positive,
    print_error,
    quality,
    search_settings,
)
from facezoo.errors import FacezooError, InputError, OutputError
from facezoo.files import check_output
from facezoo.tags import printable

if TYPE_CHECKING:
    from facezoo.batch import Job, Outcome, Plan, Settings
    from facezoo.hub.manifest import ResolvedModel
    from facezoo.keys import Key

_KEY_HELP = (
    "file with the key or passphrase ('facezoo key new FILE' makes one); - reads standard input; "
    "without it the variable FACEZOO_KEY is used, else you are asked"
)


_WEAK_PERCENT = 10.0
"""A checkpoint of which more of the measured faces are still recognised warns whenever it is used."""

_ATTRIBUTE_HELP = (
    "attribute of the new face, for methods that have them (sdn, mfm): smiling=yes, hair=blond, ...; may be repeated"
)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="pictures and folders")
    parser.add_argument("-o", "--output", required=True, help="file for one picture, folder for several")
    parser.add_argument("--key-file", metavar="FILE", help=_KEY_HELP)
    parser.add_argument(
        "--key-form",
        choices=("passphrase", "six-digits", "bits"),
        default="passphrase",
        help="how a typed key is read; six digits and bits are the papers' forms and are worth little",
    )
    parser.add_argument("--revision", help="revision of a Hugging Face model")
    parser.add_argument("--device", default="cpu", help="where a learned model runs: cpu, cuda, ... (default: cpu)")
    add_search_options(parser)
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument(
        "--format",
        choices=("png", "jpg", "webp", "same"),
        help="output format; same: each picture's own, where it is written, else png. Default: from the output's "
        "ending; in folders png for what is to be recovered, same for the rest",
    )
    parser.add_argument("--quality", type=quality, default=95, help="of jpg, avif and webp, 1 to 100 (default: 95)")
    parser.add_argument(
        "--metadata",
        choices=("drop", "keep-safe", "keep-place"),
        default="drop",
        help="what becomes of EXIF: drop it (default); keep the fields that show neither place nor face; or, for "
        "mapping, also keep the place: GPS and the photo-sphere fields",
    )
    parser.add_argument(
        "--max-megapixels",
        type=positive,
        default=250,
        metavar="N",
        help="refuse bigger pictures (default: 250). Each million pixels takes about 20 MB of memory",
    )
    parser.add_argument(
        "--records",
        metavar="FOLDER",
        help="where the records FILE.facezoo.json lie, instead of beside the anonymized pictures",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def add_anonymize(commands: Commands) -> None:
    """The command ``anonymize`` and its options."""
    parser = add_command(
        commands,
        "anonymize",
        "make the faces of pictures anonymous",
        "  facezoo anonymize group.jpg -o group.anon.png --model identity_rotation --key-file my.key\n"
        "  facezoo anonymize photos/ -o photos.anon/ --model gaussian_blur --workers 2\n"
        "  facezoo anonymize crowd.jpg -o crowd.anon.jpg --model gaussian_blur --verify add --rotations all\n"
        "  facezoo anonymize square.jpg -o square.anon.jpg --model gaussian_blur --min-face 16 --threshold .5\n"
        "  facezoo anonymize a.jpg -o b.png --model sdn --attribute smiling=yes --attribute hair=blond\n"
        "  facezoo anonymize group.jpg -o anon.png --model pixelation --option block=30 --seal --key-file my.key\n"
        "  pass show photos | facezoo anonymize a.jpg b.jpg -o out/ --model identity_rotation --key-file -",
        " Beside each output a record FILE.facezoo.json is written, which recovery uses (--records FOLDER: elsewhere). "
        "When a face cannot be anonymized, nothing is written for that picture, nor when a second detector sees a face "
        "that would not be hidden: all five points and most of it. Whatever in a folder may show a face "
        "and is not done (a video, say) is named, and the exit code says so. A folder's run can be repeated: what is "
        "finished is left.",
    )
    _add_files(parser)
    parser.add_argument("--model", required=True, metavar="NAME", help="see 'facezoo list'; or a folder, or org/name")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="option of the method ('facezoo info NAME')"
    )
    parser.add_argument(
        "--epsilon", metavar="E", help="privacy loss of a face, for methods that have one; short for --option epsilon=E"
    )
    parser.add_argument(
        "--budget",
        metavar="E[,DELTA]",
        help="privacy budget of each person: a picture that would spend more is refused (methods with an epsilon)",
    )
    parser.add_argument(
        "--ledger", metavar="FILE", help="where the budget's sums are kept (default: in the output folder)"
    )
    parser.add_argument(
        "--budget-people",
        choices=("everyone", "folder"),
        default="everyone",
        help="who pays for a face: one account for all faces (safe; default), or the person that the sub-folder names",
    )
    parser.add_argument("--attribute", action="append", default=[], metavar="NAME=VALUE", help=_ATTRIBUTE_HELP)
    parser.add_argument("--seal", action="store_true", help="put the originals, encrypted, into the record")
    parser.add_argument("--keep", metavar="FOLDER", help="people in these pictures are left as they are")
    parser.add_argument("--boxes", metavar="FILE.json", help="faces to anonymize, instead of detected ones")
    parser.add_argument(
        "--verify",
        choices=("on", "add", "off"),
        default="on",
        help="second detector: on refuses a picture with a face that only it sees, add anonymizes that face too",
    )
    parser.add_argument(
        "--allow-no-face",
        choices=("copy", "skip"),
        help="picture without a face: write it unchanged, or write nothing (default: an error)",
    )
    parser.add_argument("--embed-record", action="store_true", help="put the record into the PNG as well")
    parser.add_argument("--no-record", action="store_true", help="write no FILE.facezoo.json")
    parser.set_defaults(command=_anonymize)


def add_recover(commands: Commands) -> None:
    """The command ``recover`` and its options."""
    parser = add_command(
        commands,
        "recover",
        "bring the faces of anonymized pictures back",
        "  facezoo recover group.anon.png -o group.back.png --key-file my.key\n"
        "  facezoo recover group.anon.png -o group.back.png --key-file my.key --no-record --model identity_rotation\n"
        "  facezoo recover photos.anon/ -o photos.back/ --key-file my.key",
        " The record beside the picture (or inside the PNG) says where the faces are and which model made them; with "
        "--no-record they are looked for. Sealed faces come back without loss.",
    )
    _add_files(parser)
    parser.add_argument("--model", metavar="NAME", help="needed where there is no record")
    parser.add_argument("--no-record", action="store_true", help="use the picture and the key alone")
    parser.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="attributes that the picture was made with, where its record does not keep them; may be repeated",
    )
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="write a picture although the key fits none of its faces (default: an error, for lack of a record)",
    )
    parser.set_defaults(command=_recover)


def _anonymize(arguments: argparse.Namespace) -> int:
    from facezoo.batch import Settings, find_finished, survey_inputs
    from facezoo.hub.manifest import resolve_model
    from facezoo.keys import new_salt
    from facezoo.registry import require_anonymizer

    survey = survey_inputs(arguments.inputs, arguments.output)
    model = resolve_model(arguments.model, revision=arguments.revision)
    info = require_anonymizer(model.method, model.name)
    kept = not survey.one_file and not info.reversible and not arguments.seal and not arguments.embed_record
    plan = survey.plan(arguments.format or ("same" if kept else None), records=arguments.records)
    if arguments.epsilon is not None:
        arguments.option.append(f"epsilon={arguments.epsilon}")
    options = _with_attributes(model.method, parse_options(model.method, arguments.option), arguments.attribute)
    boxes = _read_boxes(arguments.boxes)
    if arguments.keep is not None and not Path(arguments.keep).is_dir():
        raise InputError(f"--keep {arguments.keep}: no such folder; give a folder with pictures of the people to keep")
    if not plan.to_folder:
        _check_single(plan.jobs[0], arguments.format, embed=arguments.embed_record)
    elif arguments.embed_record and (arguments.format or "png") != "png":
        raise InputError("only a PNG can carry its record: use --format png, or leave out --embed-record")
    _check_records(arguments.records, arguments.no_record)
    if arguments.seal and arguments.no_record and not arguments.embed_record:
        raise InputError("--seal puts the originals into the record: leave out --no-record, or add --embed-record")
    ledger, budget = _parse_budget(arguments, plan)
    key: Key | None = None
    if arguments.seal or info.requires_key or (info.uses_key and _key_is_given(arguments)):
        key = _read_key(arguments, confirm=True)
    elif arguments.key_file is not None:
        _note(arguments, f"{model.name} uses no key: the key file is not read (--seal would use it)")
    settings = Settings(
        task="anonymize",
        model=arguments.model,
        revision=arguments.revision,
        **search_settings(arguments),
        device=arguments.device,
        options=options,
        boxes=boxes,
        keep=arguments.keep,
        seal=arguments.seal,
        verify=arguments.verify,
        no_face=arguments.allow_no_face or "refuse",
        metadata=arguments.metadata,
        file_format=None if arguments.format == "same" else arguments.format,
        max_pixels=arguments.max_megapixels * 1_000_000,
        quality=arguments.quality,
        embed=arguments.embed_record,
        write_record=not arguments.no_record,
        overwrite=arguments.overwrite,
        salt=base64.b64encode(new_salt()).decode(),
        ledger=ledger,
        budget=budget,
        budget_people=arguments.budget_people,
    )

    def finished(job: Job) -> bool:
        return find_finished(job, settings, model, key)

    if plan.left_out:
        _note(arguments, f"files that are no pictures were left out: {plan.left_out}")
    if info.reversible and not arguments.seal:
        _warn_of_lossy(plan, arguments.quality)
    code = _run(arguments, settings, plan, key, finished)
    if code == 0 or plan.to_folder:
        _warn_of_weakness(model)
    return code


def _check_records(records: str | None, no_record: bool) -> None:
    if records is not None and no_record:
        raise InputError("--records says where records are written and --no-record that none are; leave one out")


def _warn_of_lossy(plan: Plan, quality: int) -> None:
    """One line for all pictures whose format loses what a reversible model hides."""
    from facezoo.batch import is_lossy

    lossy = sum(is_lossy(job.target.suffix, quality) for job in plan.jobs)
    if lossy:
        what = f"{lossy} of {len(plan.jobs)} outputs are" if plan.to_folder else f"{plan.jobs[0].target} is"
        print(
            f"facezoo: warning: {what} JPEG, WebP or AVIF, which loses part of what recovery needs: expect a weaker "
            "recovery than from --format png, or use --seal",
            file=sys.stderr,
        )


def _warn_of_weakness(model: ResolvedModel) -> None:
    """Says so, on every run, when a checkpoint's faces are still recognised, or when nobody measured that."""
    if model.manifest is None:  # a classic: what it does can be seen
        return
    metrics = dict(model.manifest.get("metrics", {}))
    figures = {name: str(figure) for name, figure in metrics.items() if name.startswith("taken for the original")}
    text = ""
    if not figures:
        text = "was never measured: nobody knows whether its faces are still recognised; 'facezoo evaluate' tells"
    for name, figure in figures.items():
        match = re.match(r"([0-9.]+) %", figure)
        if match and float(match[1]) >= _WEAK_PERCENT:
            judge = name.removeprefix("taken for the original").strip()
            text = (
                f"does not hide who people are: {match[1]} % of its measured faces are still taken for the original "
                f"{judge}; see facezoo info {model.name}"
            )
            break
    if text:
        print(f"facezoo: warning: {model.name} {text}", file=sys.stderr)


def _recover(arguments: argparse.Namespace) -> int:
    from facezoo.batch import RecoveryLog, Settings, survey_inputs
    from facezoo.hub.manifest import resolve_model
    from facezoo.registry import require_anonymizer

    survey = survey_inputs(arguments.inputs, arguments.output)
    plan = survey.plan(arguments.format, records=arguments.records, recover=True)
    _check_records(arguments.records, arguments.no_record)
    if arguments.model is not None:
        model = resolve_model(arguments.model, revision=arguments.revision)
        require_anonymizer(model.method, model.name)
    elif arguments.no_record:
        raise InputError("--no-record needs --model NAME: without the record nothing says which model was used")
    if not plan.to_folder:
        _check_single(plan.jobs[0], arguments.format, embed=False)
    options: dict[str, object] = {}
    if arguments.attribute:
        from facezoo.data.attributes import format_request, parse_request

        options["attributes"] = format_request(parse_request(arguments.attribute))
    key = _read_key(arguments, confirm=False)
    settings = Settings(
        task="recover",
        model=arguments.model or "",
        options=options,
        revision=arguments.revision,
        **search_settings(arguments),
        device=arguments.device,
        metadata=arguments.metadata,
        file_format=None if arguments.format == "same" else arguments.format,
        max_pixels=arguments.max_megapixels * 1_000_000,
        quality=arguments.quality,
        write_record=False,
        use_record=not arguments.no_record,
        allow_unverified=arguments.allow_unverified,
        overwrite=arguments.overwrite,
    )
    log = RecoveryLog(plan.folder, settings, key) if plan.folder is not None else None

    def finished(job: Job) -> bool:
        if log is not None:
            return log.finished(job)
        if job.target.exists() and not settings.overwrite:
            raise OutputError(f"{job.target} exists already; choose another name or use --overwrite")
        return False

    def note(outcome: Outcome) -> None:
        if log is not None and outcome.status == "done":
            log.add(outcome.job)

    return _run(arguments, settings, plan, key, finished, note)


def _check_single(job: Job, file_format: str | None, *, embed: bool) -> None:
    """Refuse an output of one picture before a model is loaded for it."""
    from facezoo.batch import own_format
    from facezoo.images.formats import output_format

    kind = output_format(job.target, own_format(job.source) if file_format == "same" else file_format)
    if embed and kind != "png":
        raise InputError("only a PNG can carry its record: save as .png, or leave out --embed-record")
    if job.target.is_dir():
        raise OutputError(f"cannot write {job.target}: it is a folder; give a file name")
    check_output(job.target, overwrite=True, make_parents=True)


def _run(
    arguments: argparse.Namespace,
    settings: Settings,
    plan: Plan,
    key: Key | None,
    finished: Callable[[Job], bool],
    note: Callable[[Outcome], None] | None = None,
) -> int:
    """Do what is not finished yet, show progress, list failures at the end."""
    from facezoo.batch import Job, Outcome, one_run, run_jobs

    jobs, to_folder = plan.jobs, plan.to_folder
    waiting: list[Job] = []
    outcomes = [
        Outcome(Job(path, path, path.name), "failed", reason, exit_code=InputError.exit_code)
        for path, reason in plan.undone
    ]
    with output_folder(plan.folder), one_run(plan.folder):
        for job in jobs:
            try:
                if finished(job):
                    outcomes.append(Outcome(job, "finished", "finished by an earlier run"))
                else:
                    waiting.append(job)
            except (FacezooError, OSError) as raised:
                error = raised if isinstance(raised, FacezooError) else _unusable(job, raised)
                if not to_folder:
                    raise error from raised
                outcomes.append(Outcome(job, "failed", str(error), exit_code=error.exit_code))
        with _progress(len(waiting) + len(outcomes), len(outcomes), arguments.quiet or not to_folder) as advance:

            def report(outcome: Outcome) -> None:
                if note is not None:
                    note(outcome)
                advance(outcome)

            outcomes += run_jobs(waiting, settings, key, workers=arguments.workers, report=report)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]

    if not to_folder:
        outcome = outcomes[0]
        if failed:
            named = str(outcome.job.source) in outcome.message or str(outcome.job.target) in outcome.message
            print_error(outcome.message if named else f"{outcome.job.source}: {outcome.message}")
            return outcome.exit_code or 1
        for line in outcome.lines:
            if line.startswith("warning: "):
                print(f"facezoo: {line}", file=sys.stderr)
            elif not arguments.quiet:
                print(line)
        if not arguments.quiet:
            wrote = "" if outcome.status == "skipped" else f"{outcome.job.target}: "
            print(printable(f"{wrote}{outcome.message}"))
        return 0

    for outcome in outcomes:
        for line in outcome.lines:
            if line.startswith("warning: "):
                print(printable(f"facezoo: {outcome.job.source}: {line}"), file=sys.stderr)
            elif not arguments.quiet:
                print(printable(f"{outcome.job.source}: {line}"))
    if not arguments.quiet:
        count = {status: sum(item.status == status for item in outcomes) for status in ("done", "finished", "skipped")}
        faces = sum(outcome.faces for outcome in outcomes)
        done = f"{count['done']} of {len(outcomes)} pictures done ({faces} faces)"
        more = [f"{count['finished']} finished before"] if count["finished"] else []
        more += [f"{count['skipped']} skipped (no face)"] if count["skipped"] else []
        print("; ".join([done, *more]))
    for outcome in failed:
        message = outcome.message.removeprefix(f"{outcome.job.source}: ").removeprefix(f"{outcome.job.source} ")
        print(printable(f"facezoo: failed: {outcome.job.source}: {message}"), file=sys.stderr)
    if not failed:
        return 0
    undone = f", {len(plan.undone)} of them files that are not read" if plan.undone else ""
    print_error(
        f"{len(failed)} of {len(outcomes)} pictures failed{undone} (listed above); nothing was written for them"
    )
    codes = {outcome.exit_code for outcome in failed}
    return codes.pop() if len(codes) == 1 else 1


def _unusable(job: Job, error: OSError) -> OutputError:
    """Of an output or record whose place cannot even be looked at: its name is too long, say."""
    return OutputError(f"cannot write {job.target} and its record: {error.strerror}; rename the picture")


@contextlib.contextmanager
def _progress(total: int, done: int, quiet: bool) -> Iterator[Callable[[Outcome], None]]:
    """A progress bar on stderr, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda outcome: None
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=done, unit="picture", file=sys.stderr, dynamic_ncols=True) as bar:
        failures = 0

        def advance(outcome: Outcome) -> None:
            nonlocal failures
            failures += outcome.status == "failed"
            if failures:
                bar.set_postfix(failed=failures, refresh=False)
            bar.update(1)

        yield advance


def _key_is_given(arguments: argparse.Namespace) -> bool:
    return arguments.key_file is not None or "FACEZOO_KEY" in os.environ


def _read_key(arguments: argparse.Namespace, *, confirm: bool) -> Key:
    from facezoo.keys import read_key

    key = read_key(arguments.key_file, confirm=confirm, form=arguments.key_form)
    if key.advice and confirm:
        _note(arguments, key.advice)
    return key


def _note(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        print(f"facezoo: note: {text}", file=sys.stderr)


def _parse_budget(arguments: argparse.Namespace, plan: Plan) -> tuple[str | None, tuple[float, float] | None]:
    """Path of the ledger and the budget, checked before any work is done."""
    if arguments.budget is None and arguments.ledger is None:
        if arguments.budget_people != "everyone":
            raise InputError("--budget-people says who pays: it needs --budget E")
        return None, None
    from facezoo.privacy.accounting import Cost
    from facezoo.privacy.ledger import Ledger

    cost = None
    if arguments.budget is not None:
        epsilon, _, delta = arguments.budget.partition(",")
        try:
            cost = Cost(float(epsilon), float(delta) if delta else 0.0)
        except ValueError:
            raise InputError(f"--budget {arguments.budget!r}: write an epsilon, or EPSILON,DELTA") from None
    if arguments.ledger is not None:
        path = Path(arguments.ledger)
    elif plan.folder is not None:
        path = plan.folder / ".facezoo-budget.json"
    else:
        raise InputError("--budget for a single picture needs --ledger FILE, or the next picture would not know of it")
    if arguments.ledger is not None and not path.parent.is_dir():
        raise InputError(f"cannot keep a ledger in {path.parent}: no such folder; make it first")
    Ledger(path, cost)
    return str(path), None if cost is None else (cost.epsilon, cost.delta)


def _with_attributes(method: str, options: dict[str, object], texts: Sequence[str]) -> dict[str, object]:
    """The options and the ``--attribute`` texts together, checked (no torch)."""
    from facezoo.registry import list_methods, load_options_class

    if not texts:
        return options
    options_class = load_options_class(method)
    if "attributes" not in options_class.documented():
        able = [
            info.name
            for info in list_methods()
            if info.learned and "attributes" in load_options_class(info.name).documented()
        ]
        raise InputError(f"{method} has no attributes: leave out --attribute, or use {' or '.join(able)}")
    if options.get("attributes") is not None:
        raise InputError("give the attributes with --attribute or with --option attributes=..., not with both")
    checked: Any = options_class.from_mapping({**options, "attributes": ",".join(texts)})
    return {**options, "attributes": checked.attributes}


def _read_boxes(path: str | None) -> dict[str, object]:
    """Read a boxes file: a list of boxes for every picture, or lists by picture name."""
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the boxes file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the boxes file {path} is no JSON: {error}") from error
    if isinstance(content, list):
        return {"": content}
    if isinstance(content, dict) and content and set(content) <= {"boxes", "points"}:
        return {"": content}
    if isinstance(content, dict) and content:
        return content
    raise InputError(
        f'the boxes file {path} must hold [[x0, y0, x1, y1], ...], or {{"picture.jpg": [[...], ...]}}, '
        'or {"boxes": [...], "points": [...]}'
    )
