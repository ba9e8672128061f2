"""Many pictures in one run: which files, which outputs, what is finished already, and workers.

Planning and the check for finished outputs import no torch; a run over a finished folder is over in a moment.

Workers are processes of their own which read jobs from a pipe. The key goes to them through that anonymous pipe too:
it is never on a command line, in an environment variable, in a file or in a pickle.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from facezoo.errors import (
    FacezooError,
    InputError,
    KeyMaterialError,
    NoFaceError,
    OutputError,
    RecordError,
    UnknownNameError,
)
from facezoo.files import sha256_bytes, sha256_file
from facezoo.records import find_record, read_sidecar, sidecar_path
from facezoo.tags import input_tag

if TYPE_CHECKING:
    from facezoo.anonymizer import Anonymizer, Result
    from facezoo.faces.keep import KeepList
    from facezoo.hub.manifest import ResolvedModel
    from facezoo.keys import Key
    from facezoo.privacy.guarantee import Guarantee
    from facezoo.privacy.ledger import Ledger
    from facezoo.records import PictureRecord

__all__ = ["Job", "Outcome", "Plan", "RecoveryLog", "Settings", "find_finished", "person_of", "plan_jobs", "run_jobs"]

PICTURE_ENDINGS: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}
)
"""Files in a folder with one of these endings are taken for pictures; others are left out and counted."""

Status = Literal["done", "finished", "skipped", "failed"]


@dataclass(frozen=True)
class Job:
    """One picture: from where, to where, and its name in messages and in a boxes file."""

    source: Path
    target: Path
    name: str


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        jobs: the pictures.
        left_out: files of the folders that are no pictures.
        folder: the output folder; None where one picture goes to one file.
    """

    jobs: tuple[Job, ...]
    left_out: int
    folder: Path | None

    @property
    def to_folder(self) -> bool:
        """Whether the output is a folder."""
        return self.folder is not None


@dataclass(frozen=True)
class Outcome:
    """What became of one picture.

    Attributes:
        job: the picture.
        status: "done", "finished" (by an earlier run), "skipped" (no face, as asked) or "failed".
        message: the error, or what was done.
        lines: report of the faces.
        exit_code: of the error; 0 otherwise.
        faces: number of faces.
    """

    job: Job
    status: Status
    message: str = ""
    lines: tuple[str, ...] = ()
    exit_code: int = 0
    faces: int = 0


@dataclass(frozen=True)
class Settings:
    """Everything a picture's result depends on besides the picture and the key. Plain JSON values only.

    Attributes:
        task: "anonymize" or "recover".
        model: its name; "" for recovery from sealed originals alone.
        revision: of a Hugging Face repository.
        detector: name of the detector.
        device: where learned methods run.
        options: of the method.
        boxes: by picture name (or "" for every picture): boxes or points.
        keep: folder of people to keep.
        seal: whether the originals are sealed.
        verify: "on", "add" or "off".
        no_face: "refuse", "copy" or "skip".
        metadata: "drop" or "keep-safe".
        file_format: "png", "jpg" or "webp".
        quality: of JPEG and WebP.
        embed: whether the record goes into the PNG.
        write_record: whether the sidecar is written.
        use_record: whether a recovery looks for the record.
        allow_unverified: whether a recovery is written although the key fits no face and no record tells of the key.
        overwrite: whether existing outputs are replaced.
        salt: of the records of this run, base64.
        ledger: file of the privacy budget; None: nothing is counted.
        budget: epsilon (and delta) of each person; None: as the ledger says.
        budget_people: whose account a picture's faces are charged to: "everyone" (one account for all) or "folder"
            (the first sub-folder is a person).
    """

    task: Literal["anonymize", "recover"]
    model: str = ""
    revision: str | None = None
    detector: str = "yunet"
    device: str = "cpu"
    options: Mapping[str, object] = field(default_factory=dict)
    boxes: Mapping[str, object] = field(default_factory=dict)
    keep: str | None = None
    seal: bool = False
    verify: Literal["on", "add", "off"] = "on"
    no_face: Literal["refuse", "copy", "skip"] = "refuse"
    metadata: Literal["drop", "keep-safe"] = "drop"
    file_format: str | None = None
    quality: int = 95
    embed: bool = False
    write_record: bool = True
    use_record: bool = True
    allow_unverified: bool = False
    overwrite: bool = False
    salt: str = ""
    ledger: str | None = None
    budget: tuple[float, float] | None = None
    budget_people: Literal["everyone", "folder"] = "everyone"

    def fingerprint(self, key: Key | None = None) -> str:
        """16 hex digits over all settings that change a picture's content; part of its record.

        Args:
            key: with a key the digits depend on it too. Options may be part of the secret (attributes, say), and a bare
                hash of few possibilities can be tried out.
        """
        content = {
            "options": dict(self.options),
            "detector": self.detector,
            "boxes": bool(self.boxes) and hashlib.sha256(json.dumps(self.boxes, sort_keys=True).encode()).hexdigest(),
            "keep": self.keep is not None,
            "seal": self.seal,
            "verify": self.verify,
            "no_face": self.no_face,
            "metadata": self.metadata,
            "quality": self.quality if self.file_format != "png" else 0,
        }
        text = json.dumps(content, sort_keys=True).encode()
        return hashlib.sha256(text).hexdigest()[:16] if key is None else key.tag("batch/settings", text, 8).hex()


# ---------------------------------------------------------------------------------------------------------------- plan


def plan_jobs(inputs: Sequence[str], output: str, *, file_format: str | None) -> Plan:
    """Find the pictures and say where each goes.

    A file goes to a file, or into an existing folder (or one named with a slash at its end). A folder's tree is
    mirrored in the output folder; several folders get a folder each. Outputs get the ending of the format.

    Args:
        inputs: files and folders.
        output: file or folder.
        file_format: "png", "jpg", "webp"; None: for one file from its output's ending, else png.

    Raises:
        InputError: an input that does not exist or cannot be read, no picture at all, or an output that is one of the
            inputs.
        OutputError: several pictures are to go into one file, or an output with an impossible name.
    """
    try:
        return _plan(inputs, output, file_format)
    except (OSError, ValueError) as error:  # a name that is too long or holds a NUL, a folder that may not be entered
        reason = error.strerror if isinstance(error, OSError) else str(error)
        name = str(getattr(error, "filename", None) or output)
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        if name == output or Path(name).is_relative_to(output):
            raise OutputError(f"cannot use the output {shown}: {reason}; choose another") from error
        raise InputError(f"cannot read {shown}: {reason}; check its name and permissions") from error


def _plan(inputs: Sequence[str], output: str, file_format: str | None) -> Plan:
    if not inputs:
        raise InputError("no input given; name a picture or a folder")
    sources = [Path(text) for text in inputs]
    for source in sources:
        if not source.exists():
            raise InputError(f"{source} does not exist; check its path")
        if source.stat().st_size == 0 and source.is_file():
            raise InputError(f"{source} is empty; give a picture")
        if not source.is_file() and not source.is_dir():
            raise InputError(f"{source} is neither a file nor a folder; give a picture")
    target = Path(output)
    one_file = len(sources) == 1 and sources[0].is_file()
    if one_file and not target.is_dir() and not output.endswith(("/", os.sep)):
        if target.exists() and sources[0].samefile(target):
            raise InputError(f"{target} is the input itself; write to another file")
        return Plan((Job(sources[0], target, sources[0].name),), 0, None)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file, and several pictures need a folder; name a folder with -o")
    if not target.exists() and target.suffix.lower() in PICTURE_ENDINGS and not output.endswith(("/", os.sep)):
        raise OutputError(
            f"{target} is named like a picture, and several pictures need a folder; name a folder with -o"
        )

    ending = "." + {"jpeg": "jpg"}.get(file_format or "png", file_format or "png")
    folders = [source for source in sources if source.is_dir()]
    jobs: list[Job] = []
    left_out = 0
    for source in sources:
        if source.is_file():
            jobs.append(Job(source, target / (source.stem + ending), source.name))
            continue
        if target.exists() and source.samefile(target):
            raise InputError(f"{target} is the input folder itself; write to another folder")
        base = target / source.resolve().name if len(folders) > 1 else target
        for path in _walk(source, target):
            if path.suffix.lower() not in PICTURE_ENDINGS:
                left_out += 0 if path.name.endswith(".facezoo.json") else 1
                continue
            relative = path.relative_to(source)
            jobs.append(Job(path, base / relative.with_suffix(ending), relative.as_posix()))
    if not jobs:
        raise InputError(f"no picture in {', '.join(map(str, sources))}; give a folder with pictures")
    return Plan(tuple(_without_collisions(jobs, ending)), left_out, target)


def _walk(folder: Path, target: Path) -> Iterable[Path]:
    """Files under a folder in a fixed order; hidden ones and the output folder (if it lies inside) are left out."""
    inside = target.resolve()

    def stop(error: OSError) -> None:
        raise error  # a folder that cannot be read must not be passed over in silence

    for root, names, files in os.walk(folder, onerror=stop):
        here = Path(root)
        names[:] = sorted(name for name in names if not name.startswith(".") and (here / name).resolve() != inside)
        for name in sorted(files):
            if not name.startswith("."):
                yield here / name


def _without_collisions(jobs: list[Job], ending: str) -> list[Job]:
    """`a.jpg` and `a.png` of one folder would both become `a.png`: such names keep their first ending."""
    count: dict[Path, int] = {}
    for job in jobs:
        count[job.target] = count.get(job.target, 0) + 1
    result = [
        dataclasses.replace(job, target=job.target.with_name(job.source.name + ending))
        if count[job.target] > 1
        else job
        for job in jobs
    ]
    targets = [job.target for job in result]
    if len(set(targets)) != len(targets):
        double = next(path for path in targets if targets.count(path) > 1)
        raise InputError(f"two inputs would both be written to {double}; run them into different folders")
    return result


# ------------------------------------------------------------------------------------------------------------ finished


def find_finished(job: Job, settings: Settings, model: ResolvedModel, key: Key | None) -> bool:
    """Whether an earlier run finished this picture with the same input, model, settings and key.

    Returns:
        True: leave it. False: there is no output yet (or it is to be replaced).

    Raises:
        OutputError: an output is there and is something else.
    """
    target = job.target
    if settings.overwrite:
        return False
    if not target.exists():
        sidecar = sidecar_path(target)
        if sidecar.exists() and settings.write_record:
            with contextlib.suppress(RecordError):
                # A run that was killed between the two files: the record can be made again from the input.
                if _same_work(read_sidecar(target), job, settings, model, key):
                    sidecar.unlink()
                    return False
            raise OutputError(f"{sidecar} exists already without its picture; move it away or use --overwrite")
        return False
    refusal = f"{target} exists already"
    try:
        record = find_record(target)
    except FacezooError as error:
        raise OutputError(f"{refusal} with an unusable record ({error}); move it away or use --overwrite") from error
    if record is None:
        raise OutputError(f"{refusal}; choose another name or use --overwrite")
    if not _same_work(record, job, settings, model, key):
        raise OutputError(
            f"{refusal}, made from another input, or with another model, key or setting; use --overwrite to replace it"
        )
    if not record.belongs_to(target):
        raise OutputError(f"{refusal} and was changed since it was made; move it away or use --overwrite")
    return True


def _same_work(record: PictureRecord, job: Job, settings: Settings, model: ResolvedModel, key: Key | None) -> bool:
    run = record.options.get("run")
    if (
        not isinstance(run, Mapping)
        or record.model != model.name
        or (record.checkpoint_sha256 or "") != model.weights_sha256
    ):
        return False
    if run.get("settings") != settings.fingerprint(key):
        return False
    if record.key_id is not None:
        if key is None or not record.matches_key(key):
            return False
        tag_key: Key | None = key
    else:
        tag_key = None
    try:
        data = job.source.read_bytes()
    except OSError:
        return False
    return run.get("input") == input_tag(data, tag_key)


class RecoveryLog:
    """What earlier recoveries into a folder finished: a recovered picture has no record that could tell.

    A hidden file in the output folder, one JSON line a picture: its name, an HMAC under the key of everything it was
    made from, and the SHA-256 of the output. It may be deleted; existing outputs are then refused again.

    Args:
        folder: the output folder.
        settings: of this run.
        key: the key of this run.
    """

    NAME: Final = ".facezoo-recovered.jsonl"

    def __init__(self, folder: Path, settings: Settings, key: Key) -> None:
        self._folder, self._settings, self._key = folder, settings, key
        self._known: dict[str, list[object]] = {}
        with contextlib.suppress(OSError):
            for line in (folder / self.NAME).read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):  # a line cut off by a crash
                    name, *facts = json.loads(line)
                    self._known[name] = facts

    def _name(self, job: Job) -> str:
        return job.target.relative_to(self._folder).as_posix()

    def _work(self, job: Job) -> str:
        parts = [sha256_bytes(job.source.read_bytes()), self._settings.fingerprint(), self._settings.model]
        sidecar = sidecar_path(job.source)
        parts.append(sha256_file(sidecar) if self._settings.use_record and sidecar.is_file() else "")
        parts.append(self._settings.file_format or "")
        return self._key.tag("batch/recovered", json.dumps(parts).encode(), 16).hex()

    def finished(self, job: Job) -> bool:
        """Whether an earlier run made this output from the same input, record, settings and key.

        Raises:
            OutputError: an output is there and is something else.
        """
        if self._settings.overwrite or not job.target.exists():
            return False
        facts = self._known.get(self._name(job))
        if job.target.is_file() and facts == [self._work(job), sha256_file(job.target)]:
            return True
        raise OutputError(f"{job.target} exists already; choose another folder or use --overwrite")

    def add(self, job: Job) -> None:
        """Note a finished picture. A log that cannot be written costs a later run time, not this one its result."""
        with contextlib.suppress(OSError, FacezooError):
            line = json.dumps([self._name(job), self._work(job), sha256_file(job.target)]) + "\n"
            with (self._folder / self.NAME).open("a", encoding="utf-8") as stream:
                stream.write(line)


# ------------------------------------------------------------------------------------------------------------- one job


class Processor:
    """Does jobs one after another; the model is loaded with the first one that needs it."""

    def __init__(self, settings: Settings, key: Key | None) -> None:
        self.settings = settings
        self.key = key
        self._anonymizers: dict[str, Anonymizer] = {}
        self._keep: KeepList | None = None

    def run(self, job: Job) -> Outcome:
        """Do one job; every failure becomes an outcome, and leaves no output."""
        try:
            return self._anonymize(job) if self.settings.task == "anonymize" else self._recover(job)
        except FacezooError as error:
            return Outcome(job, "failed", str(error), exit_code=error.exit_code)
        except Exception as error:  # one picture must not end a run over thousands
            if os.environ.get("FACEZOO_DEBUG") == "1":
                traceback.print_exc(file=sys.stderr)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return Outcome(job, "failed", f"internal error ({text}); set FACEZOO_DEBUG=1 for details", exit_code=1)

    def _anonymizer(self, model: str) -> Anonymizer:
        if model not in self._anonymizers:
            from facezoo.anonymizer import Anonymizer
            from facezoo.hub.manifest import resolve_model

            settings = self.settings
            self._anonymizers[model] = Anonymizer.from_model(
                resolve_model(model, revision=settings.revision),
                detector=settings.detector,
                device=settings.device,
                options=dict(settings.options),
            )
        return self._anonymizers[model]

    def _keep_list(self) -> KeepList | None:
        """The people to keep: their pictures are read once a run."""
        if self._keep is None and self.settings.keep is not None:
            from facezoo.faces.keep import KeepList

            self._keep = KeepList.from_folder(self.settings.keep)
        return self._keep

    def _anonymize(self, job: Job) -> Outcome:
        from facezoo.anonymizer import MissedFaceError

        settings = self.settings
        anonymizer = self._anonymizer(settings.model)
        boxes, points = _boxes_for(settings.boxes, job)
        ledger, promise = self._budget(anonymizer)
        person = person_of(job, settings)
        if ledger is not None:
            ledger.check(person, promise)  # before any work is done for a picture that could not be paid for
        try:
            result = anonymizer.anonymize(
                job.source,
                self.key,
                boxes=boxes,
                points=points,
                keep=self._keep_list(),
                seal=settings.seal,
                verify=settings.verify,
                no_face="copy" if settings.no_face == "copy" else "refuse",
                metadata=settings.metadata,
                salt=base64.b64decode(settings.salt) if settings.salt else None,
            )
        except NoFaceError as error:
            if settings.no_face == "skip" and not isinstance(error, MissedFaceError):
                return Outcome(job, "skipped", "no face was found: no output")
            raise
        if result.record is not None:
            run = dict(_mapping(result.record.options.get("run"))) | {"settings": settings.fingerprint(self.key)}
            options = {**result.record.options, "run": run}
            result = dataclasses.replace(result, record=dataclasses.replace(result.record, options=options))
        if ledger is not None:
            # Charged first: a run that stops here has spent and shown nothing, never shown and spent nothing.
            ledger.charge(person, promise, sum(not face.kept for face in result.report.faces))
        self._save(result, job)
        warnings = list(result.report.warnings)
        warnings += [
            f"face {number}: {text}"
            for number, face in enumerate(result.report.faces, start=1)
            for text in face.warnings
        ]
        if anonymizer.method.reversible and job.target.suffix.lower() in (".jpg", ".jpeg") and not settings.seal:
            warnings.append("JPEG loses part of what recovery needs: expect a weaker recovery than from a PNG")
        count = sum(not face.kept for face in result.report.faces)
        kept = len(result.report.faces) - count
        message = f"{count} face{'' if count == 1 else 's'} anonymized" + (f", {kept} kept" if kept else "")
        return Outcome(job, "done", message, tuple(f"warning: {text}" for text in warnings), faces=count)

    def _budget(self, anonymizer: Anonymizer) -> tuple[Ledger | None, Guarantee | None]:
        """The ledger of this run, and what a face costs."""
        settings = self.settings
        if settings.ledger is None:
            return None, None
        from facezoo.methods.base import FaceContext
        from facezoo.privacy.accounting import Cost
        from facezoo.privacy.ledger import Ledger

        budget = None if settings.budget is None else Cost(*settings.budget)
        promise = anonymizer.method.guarantee(FaceContext(options=anonymizer.options))
        return Ledger(settings.ledger, budget), promise

    def _recover(self, job: Job) -> Outcome:
        settings = self.settings
        record = find_record(job.source) if settings.use_record else None
        if self.key is None:
            raise KeyMaterialError("recovery needs a key")
        from facezoo.anonymizer import recover_sealed

        if record is not None and record.faces and all(face.sealed for face in record.faces):
            result = recover_sealed(job.source, self.key, record, metadata=settings.metadata)
        else:
            result = self._recovery_model(job, record).recover(
                job.source, self.key, record=record if record is not None else False, metadata=settings.metadata
            )
        count = len(result.report.faces)
        fits = [face.verified is not False for face in result.report.faces]
        known_key = record is not None and record.key_id is not None  # `recover` has compared it with the record
        if count and not any(fits) and not known_key and not settings.allow_unverified:
            raise KeyMaterialError(
                f"the key fits no face of {job.source}: a wrong key, another model, or a picture changed too much; "
                "nothing was written (--allow-unverified writes it anyway)"
            )
        self._save(result, job)
        message = f"{count} face{'' if count == 1 else 's'} recovered"
        if not all(fits):
            message += f", {fits.count(False)} of them NOT verified"
        return Outcome(job, "done", message, tuple(result.report.lines()), faces=count)

    def _recovery_model(self, job: Job, record: PictureRecord | None) -> Anonymizer:
        """The anonymizer that was asked for, else the one that the record names."""
        if self.settings.model:
            return self._anonymizer(self.settings.model)
        if record is None:
            raise InputError(f"{job.source} has no record beside it: say which model made it with --model NAME")
        try:
            return self._anonymizer(record.model)
        except UnknownNameError as error:
            raise UnknownNameError(
                f"the record of {job.source} names the model {record.model}, which is not bundled here; give its "
                "checkpoint with --model FOLDER"
            ) from error

    def _save(self, result: Result, job: Job) -> None:
        settings = self.settings
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {job.target.parent}: {error.strerror}") from error
        result.save(
            job.target,
            settings.overwrite,
            file_format=settings.file_format,
            quality=settings.quality,
            write_record=settings.write_record,
            embed=settings.embed,
        )


def person_of(job: Job, settings: Settings) -> str:
    """Whose account the faces of a picture are charged to.

    Raises:
        InputError: people are sub-folders, and the picture lies in none.
    """
    if settings.budget_people == "everyone":
        return "everyone"
    parts = Path(job.name).parts
    if len(parts) < 2:
        raise InputError(
            f"{job.name} lies in no sub-folder, so nothing says whose budget it spends; use one folder a person, or "
            "--budget-people everyone"
        )
    return parts[0]


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _boxes_for(boxes: Mapping[str, object], job: Job) -> tuple[Any, Any]:
    """Boxes and points of a picture from the boxes file: by its relative path, its name, or for every picture."""
    if not boxes:
        return None, None
    for name in (job.name, job.source.name, ""):
        if name in boxes:
            entry = boxes[name]
            if isinstance(entry, Mapping):
                return entry.get("boxes"), entry.get("points")
            return entry, None
    raise InputError(f"the boxes file has no entry for {job.name}; add one, or leave this picture out")


# ------------------------------------------------------------------------------------------------------------- workers


def run_jobs(
    jobs: Sequence[Job],
    settings: Settings,
    key: Key | None,
    *,
    workers: int = 1,
    report: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Do the jobs, in this process or in several.

    Args:
        jobs: what to do.
        settings: how.
        key: the key, or None.
        workers: number of processes; 1: this one.
        report: is called after each picture (from one thread at a time).

    Returns:
        One outcome a job, in their order.
    """
    if workers <= 1 or len(jobs) <= 1:
        processor = Processor(settings, key)
        outcomes = []
        for job in jobs:
            outcome = processor.run(job)
            outcomes.append(outcome)
            if report is not None:
                report(outcome)
        return outcomes
    return _run_in_workers(jobs, settings, key, min(workers, len(jobs)), report)


def _key_line(key: Key | None) -> str:
    # The one place besides keys.py that sees the secret: it goes into the worker's pipe and nowhere else.
    return "" if key is None else "facezoo-key-v1:" + base64.b64encode(key._master).decode()


class _Worker:
    """A process that does jobs; started again if it dies."""

    def __init__(self, settings: Settings, key: Key | None, threads: int) -> None:
        self._settings = settings
        self._key = key
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        environment.pop("FACEZOO_KEY", None)
        environment.setdefault("OMP_NUM_THREADS", str(self._threads))
        package = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            [sys.executable, "-m", "facezoo.batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            # Ctrl-C is for the main process alone: it lets the workers finish their pictures.
            process_group=0 if os.name == "posix" else None,
        )
        assert process.stdin is not None  # noqa: S101 (a pipe was asked for)
        process.stdin.write(json.dumps(dataclasses.asdict(self._settings)) + "\n" + _key_line(self._key) + "\n")
        process.stdin.flush()
        return process

    def run(self, job: Job) -> Outcome:
        """Send one job and wait for its outcome."""
        try:
            if self._process is None:
                self._process = self._start()
            assert self._process.stdin is not None  # noqa: S101
            assert self._process.stdout is not None  # noqa: S101
            self._process.stdin.write(json.dumps([str(job.source), str(job.target), job.name]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            status, message, lines, exit_code, faces = json.loads(line)
            return Outcome(job, status, message, tuple(lines), exit_code, faces)
        except (OSError, ValueError):
            self.stop()
            return Outcome(
                job, "failed", "the worker died (out of memory?); use fewer --workers or a smaller picture", exit_code=1
            )

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                if self._process.stdin is not None:
                    self._process.stdin.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None


def _run_in_workers(
    jobs: Sequence[Job],
    settings: Settings,
    key: Key | None,
    workers: int,
    report: Callable[[Outcome], None] | None,
) -> list[Outcome]:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(jobs)):
        waiting.put(index)
    outcomes: list[Outcome | None] = [None] * len(jobs)
    lock = threading.Lock()
    stopping = threading.Event()
    threads_each = max(1, (os.cpu_count() or 1) // workers)

    def work() -> None:
        worker = _Worker(settings, key, threads_each)
        try:
            while not stopping.is_set():
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                outcome = worker.run(jobs[index])
                with lock:
                    outcomes[index] = outcome
                    if report is not None:
                        report(outcome)
        finally:
            worker.stop()

    crew = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in crew:
        thread.start()
    try:
        for thread in crew:
            thread.join()
    except BaseException:
        stopping.set()
        for thread in crew:
            thread.join()
        raise
    return [
        outcome or Outcome(job, "failed", "not done", exit_code=1) for job, outcome in zip(jobs, outcomes, strict=True)
    ]


def worker_main() -> int:
    """Body of a worker process: settings, key and jobs on standard input, outcomes on standard output, one a line."""
    from facezoo.keys import Key

    # Whatever a library prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = Settings(**json.loads(sys.stdin.readline()))
    line = sys.stdin.readline().strip()
    key = Key._from_content(line.encode(), "the key from the main process") if line else None
    if "OMP_NUM_THREADS" in os.environ:
        import torch

        torch.set_num_threads(max(1, int(os.environ["OMP_NUM_THREADS"])))
    processor = Processor(settings, key)
    for text in sys.stdin:
        source, target, name = json.loads(text)
        outcome = processor.run(Job(Path(source), Path(target), name))
        answer = [outcome.status, outcome.message, list(outcome.lines), outcome.exit_code, outcome.faces]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(worker_main())
