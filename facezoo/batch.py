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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from facezoo.files import make_folder, sha256_bytes, sha256_file
from facezoo.images.folders import walk_folder
from facezoo.images.formats import (
    HEAD_BYTES,
    PICTURE_ENDINGS,
    WRITTEN_ENDINGS,
    by_name,
    file_format,
)
from facezoo.records import find_record, read_embedded, read_record, sidecar_path
from facezoo.tags import is_input

if TYPE_CHECKING:
    from facezoo.anonymizer import Anonymizer, Result
    from facezoo.faces.keep import KeepList
    from facezoo.hub.manifest import ResolvedModel
    from facezoo.keys import Key
    from facezoo.privacy.guarantee import Guarantee
    from facezoo.privacy.ledger import Ledger
    from facezoo.records import PictureRecord

__all__ = [
    "Job",
    "Outcome",
    "Plan",
    "RecoveryLog",
    "Settings",
    "Survey",
    "find_finished",
    "is_lossy",
    "one_run",
    "own_format",
    "person_of",
    "run_jobs",
    "survey_inputs",
]

_LOCK: Final = ".facezoo-run.lock"

Status = Literal["done", "finished", "skipped", "failed"]


@dataclass(frozen=True)
class Job:
    """One picture.

    Attributes:
        source: the file.
        target: the output.
        name: in messages and in a boxes file.
        record: where its record is written (anonymizing) or looked for (recovery); None: beside the picture.
    """

    source: Path
    target: Path
    name: str
    record: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        jobs: the pictures.
        left_out: files of the folders that show nobody: texts, records, hidden files.
        folder: the output folder; None where one picture goes to one file.
        undone: files of the folders that may show somebody and are not done, with the reason.
    """

    jobs: tuple[Job, ...]
    left_out: int
    folder: Path | None
    undone: tuple[tuple[Path, str], ...] = ()

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
        threshold: confidence from which a face counts; None: the detector's own.
        rotations: whether turned faces are searched for, as in `DetectorOptions`.
        min_face: shorter side in pixels from which faces are treated; smaller ones are left and counted.
        device: where learned methods run.
        options: of the method.
        boxes: by picture name (or "" for every picture): boxes or points.
        keep: folder of people to keep.
        seal: whether the originals are sealed.
        verify: "on", "add" or "off".
        no_face: "refuse", "copy" or "skip".
        metadata: "drop", "keep-safe" or "keep-place".
        file_format: "png", "jpg" or "webp"; None: from the output's ending.
        max_pixels: bigger pictures are refused.
        quality: of JPEG, AVIF and WebP.
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
    threshold: float | None = None
    rotations: Literal["auto"] | bool = "auto"
    min_face: float = 0.0
    device: str = "cpu"
    options: Mapping[str, object] = field(default_factory=dict)
    boxes: Mapping[str, object] = field(default_factory=dict)
    keep: str | None = None
    seal: bool = False
    verify: Literal["on", "add", "off"] = "on"
    no_face: Literal["refuse", "copy", "skip"] = "refuse"
    metadata: Literal["drop", "keep-safe", "keep-place"] = "drop"
    file_format: str | None = None
    max_pixels: int = 250_000_000
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
        content: dict[str, object] = {
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
        # Younger settings count where they are set, so that what was done before them keeps its digits.
        search = {"threshold": self.threshold, "rotations": self.rotations, "min_face": self.min_face}
        usual = {"threshold": None, "rotations": "auto", "min_face": 0.0}
        content |= {name: value for name, value in search.items() if value != usual[name]}
        text = json.dumps(content, sort_keys=True).encode()
        return hashlib.sha256(text).hexdigest()[:16] if key is None else key.tag("batch/settings", text, 8).hex()

    def described(self, job: Job, key: Key | None) -> dict[str, object]:
        """The settings that a picture's content depends on, one by one, as its record keeps them.

        Options, boxes and the like as 16 hex digits: with a key an HMAC, since options may be part of the secret.
        """

        def tag(value: object) -> str:
            text = json.dumps(value, sort_keys=True).encode()
            return sha256_bytes(text)[:16] if key is None else key.tag("batch/setting", text, 8).hex()

        lossy = is_lossy(job.target.suffix, self.quality)
        return {
            "option": tag(dict(self.options)),
            "detector": self.detector,
            "threshold": self.threshold,
            "rotations": {"auto": None, True: "all", False: "off"}[self.rotations],
            "min-face": self.min_face or None,
            "boxes": tag(_boxes_entry(self.boxes, job)) if self.boxes else None,
            "keep": self.keep is not None,
            "seal": self.seal,
            "verify": self.verify,
            "allow-no-face": self.no_face,
            "metadata": self.metadata,
            "quality": self.quality if lossy else None,
        }


def is_lossy(ending: str, quality: int) -> bool:
    """Whether a picture loses something in a file with this ending."""
    name = WRITTEN_ENDINGS.get(ending.lower())
    return name is not None and not by_name(name).lossless and not (name == "webp" and quality == 100)


# ---------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Survey:
    """What was found in the inputs; `plan` says where each goes.

    Attributes:
        pictures: the file, its name, and the folder that its name's tree is mirrored in.
        left_out: see `Plan`.
        undone: see `Plan`.
        target: the output.
        one_file: whether one picture goes to one file.
    """

    pictures: tuple[tuple[Path, str, Path], ...]
    left_out: int
    undone: tuple[tuple[Path, str], ...]
    target: Path
    one_file: bool

    def plan(self, file_format: str | None, *, records: str | None = None, recover: bool = False) -> Plan:
        """Where each picture goes.

        A folder's tree is mirrored in the output folder; several folders get a folder each. Outputs get the ending of
        the format.

        Args:
            file_format: "png", "jpg", "webp", or "same": each picture's own, where it is written, else PNG. None: for
                one file from its output's ending, else PNG.
            records: folder of the records; None: beside the anonymized pictures.
            recover: whether ``records`` holds those of the inputs, to be read.

        Raises:
            InputError: two inputs would be written to one file.
        """
        if self.one_file:
            source, name, _ = self.pictures[0]
            record = None if records is None else sidecar_path(Path(records) / (name if recover else self.target.name))
            return Plan((Job(source, self.target, name, record),), 0, None)
        jobs = []
        for source, name, base in self.pictures:
            ending = _output_ending(source, file_format or "png")
            # `2023.05.01` has no ending to be replaced.
            stem = str(Path(name).with_suffix("")) if source.suffix.lower() in PICTURE_ENDINGS else name
            jobs.append(Job(source, base / f"{stem}{ending}", name))
        jobs = _without_collisions(jobs)
        if records is not None:
            jobs = [
                dataclasses.replace(
                    job,
                    record=sidecar_path(Path(records) / (job.name if recover else job.target.relative_to(self.target))),
                )
                for job in jobs
            ]
        return Plan(tuple(jobs), self.left_out, self.target, self.undone)


def survey_inputs(inputs: Sequence[str], output: str) -> Survey:
    """Find the pictures.

    A file goes to a file, or into an existing folder (or one named with a slash at its end).

    Args:
        inputs: files and folders.
        output: file or folder.

    Raises:
        InputError: an input that does not exist or cannot be read, no picture at all, or an output that is one of the
            inputs.
        OutputError: several pictures are to go into one file, or an output with an impossible name.
    """
    try:
        return _survey(inputs, output)
    except (OSError, ValueError) as error:  # a name that is too long or holds a NUL, a folder that may not be entered
        reason = error.strerror if isinstance(error, OSError) else str(error)
        name = str(getattr(error, "filename", None) or output)
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        if name == output or Path(name).is_relative_to(output):
            raise OutputError(f"cannot use the output {shown}: {reason}; choose another") from error
        raise InputError(f"cannot read {shown}: {reason}; check its name and permissions") from error


def _survey(inputs: Sequence[str], output: str) -> Survey:
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
        return Survey(((sources[0], sources[0].name, target.parent),), 0, (), target, True)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file, and several pictures need a folder; name a folder with -o")
    if not target.exists() and target.suffix.lower() in PICTURE_ENDINGS and not output.endswith(("/", os.sep)):
        raise OutputError(
            f"{target} is named like a picture, and several pictures need a folder; name a folder with -o"
        )
    folders = [source for source in sources if source.is_dir()]
    found: list[tuple[Path, str, Path]] = []
    undone: list[tuple[Path, str]] = []
    left_out = 0
    for source in sources:
        if source.is_file():
            found.append((source, source.name, target))
            continue
        if target.exists() and source.samefile(target):
            raise InputError(f"{target} is the input folder itself; write to another folder")
        base = target / source.resolve().name if len(folders) > 1 else target
        listing = walk_folder(source, without=target)
        found += [(source / name, name, base) for name in listing.pictures]
        undone += [(source / item.name, item.reason) for item in listing.left_out if item.counts]
        left_out += sum(not item.counts and not item.name.endswith(".facezoo.json") for item in listing.left_out)
    if not found:
        because = f" ({undone[0][0]} {undone[0][1]})" if undone else ""
        raise InputError(f"no picture in {', '.join(map(str, sources))}{because}; give a folder with pictures")
    return Survey(tuple(found), left_out, tuple(undone), target, False)


def own_format(source: Path) -> str:
    """Name of a picture's own format, where pictures are written in it; else "png"."""
    try:
        with source.open("rb") as stream:
            entry = file_format(stream.read(HEAD_BYTES), source.name)
    except OSError:  # whoever reads the picture says why it cannot be read
        return "png"
    return entry.name if entry is not None and entry.writer else "png"


def _output_ending(source: Path, wanted: str) -> str:
    """Ending of a picture's output, with its dot; the input's own where the format stays."""
    entry = by_name(own_format(source) if wanted == "same" else wanted)
    return source.suffix if wanted == "same" and source.suffix.lower() in entry.endings else entry.endings[0]


@contextlib.contextmanager
def one_run(folder: Path | None) -> Iterator[None]:
    """Holds an output folder for one run at a time: two would take each other's records away.

    Raises:
        OutputError: another run is writing into it.
    """
    if folder is None or os.name != "posix":  # without flock only the files themselves guard against a second run
        yield
        return
    import fcntl

    place = folder / _LOCK
    try:
        stream = place.open("a")
    except OSError as error:
        raise OutputError(f"cannot write to the folder {folder}: {error.strerror}; choose another with -o") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"another run is writing into {folder}; wait for it or choose another folder") from error
        except OSError:  # a network share without locks
            pass
        if not place.exists() or not os.path.samestat(os.fstat(stream.fileno()), place.stat()):
            raise OutputError(f"another run has just written into {folder}; run the same command again")
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def _without_collisions(jobs: list[Job]) -> list[Job]:
    """`a.jpg` and `a.png` of one folder would both become `a.png`: such names keep their first ending."""
    count = Counter(job.target for job in jobs)
    result = [
        dataclasses.replace(job, target=job.target.with_name(job.source.name + job.target.suffix))
        if count[job.target] > 1
        else job
        for job in jobs
    ]
    double = [target for target, times in Counter(job.target for job in result).items() if times > 1]
    if double:
        raise InputError(f"two inputs would both be written to {double[0]}; run them into different folders")
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
        sidecar = job.record or sidecar_path(target)
        if settings.write_record and sidecar.exists():
            with contextlib.suppress(RecordError):
                # A run that was killed between the two files: the record can be made again from the input.
                if not _differences(read_record(sidecar), job, settings, model, key):
                    sidecar.unlink()
                    return False
            raise OutputError(f"{sidecar} exists already without its picture; move it away or use --overwrite")
        return False
    refusal = f"{target} exists already"
    try:
        record = _record_of(target, job.record)
    except FacezooError as error:
        raise OutputError(f"{refusal} with an unusable record ({error}); move it away or use --overwrite") from error
    if record is None:
        raise OutputError(f"{refusal}, and no record says how it was made; choose another name or use --overwrite")
    if differences := _differences(record, job, settings, model, key):
        raise OutputError(f"{refusal}, made {' and '.join(differences)}; use --overwrite to replace it")
    if not record.belongs_to(target):
        raise OutputError(f"{refusal} and was changed since it was made; move it away or use --overwrite")
    return True


def _record_of(picture: Path, place: Path | None) -> PictureRecord | None:
    """A picture's record: at its place where that is another than beside the picture, else as `find_record`."""
    if place is None:
        return find_record(picture)
    return read_record(place) if place.exists() else read_embedded(picture)


def _differences(
    record: PictureRecord, job: Job, settings: Settings, model: ResolvedModel, key: Key | None
) -> list[str]:
    """In what the run that made a record differs from this one, as ends of a sentence; empty: in nothing."""
    run = record.options.get("run")
    if not isinstance(run, Mapping):
        return ["by another program"]
    if record.model != model.name:
        return [f"with the model {record.model}"]
    if (record.checkpoint_sha256 or "") != model.weights_sha256:
        return [f"with other weights of {record.model}"]
    if record.key_id is not None and (key is None or not record.matches_key(key)):
        return ["with another key" if key is not None else "with a key"]
    found = _other_settings(run, record, job, settings, key)
    try:
        data = job.source.read_bytes()
    except OSError:
        return [*found, "from an input that cannot be read now"]
    if not is_input(run.get("input"), data, key if record.key_id is not None else None):
        found.append("from another input, or by somebody else" if record.key_id is None else "from another input")
    return found


def _other_settings(
    run: Mapping[str, object], record: PictureRecord, job: Job, settings: Settings, key: Key | None
) -> list[str]:
    """The settings that would change this picture, each as the record has it."""
    made = run.get("settings")
    if isinstance(made, str):  # a record of facezoo 0.1 before the settings were kept one by one
        alike = (dataclasses.replace(settings, file_format=kind).fingerprint(key) for kind in (None, "png"))
        return [] if made in alike else ["with another setting"]
    if not isinstance(made, Mapping):
        return ["without a run's settings"]
    second = _mapping(run.get("verify"))
    found = []
    for name, now in settings.described(job, key).items():
        was = made.get(name)
        if was == now:
            continue
        if name == "allow-no-face" and record.faces:
            continue  # it decides about pictures without a face only
        if name == "verify" and was != "off" and (now == "off" or not second.get("added")):
            continue  # the second look found nothing, whatever was to be done about it
        plain = isinstance(was, str | int | float) and not isinstance(was, bool) and name not in ("option", "boxes")
        shown = was if plain else ""
        negation = "without" if was in (None, False) else "with"
        other = "another " if name in ("option", "boxes") and was is not None else ""
        found.append(f"{negation} {other}--{name} {shown}".rstrip())
    return found


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
        sidecar = job.record or sidecar_path(job.source)
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
                threshold=settings.threshold,
                rotations=settings.rotations,
                min_face=settings.min_face,
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
                max_pixels=settings.max_pixels,
                salt=base64.b64decode(settings.salt) if settings.salt else None,
            )
        except NoFaceError as error:
            if settings.no_face == "skip" and not isinstance(error, MissedFaceError):
                return Outcome(job, "skipped", "no face was found: no output")
            raise
        if result.record is not None:
            run = dict(_mapping(result.record.options.get("run"))) | {"settings": settings.described(job, self.key)}
            options = {**result.record.options, "run": run}
            result = dataclasses.replace(result, record=dataclasses.replace(result.record, options=options))
        if ledger is not None:
            # Charged first: a run that stops here has spent and shown nothing, never shown and spent nothing.
            ledger.charge(person, promise, sum(not face.kept for face in result.report.faces))
        self._save(result, job)
        warnings = result.report.summary()
        count = sum(not face.kept for face in result.report.faces)
        kept = len(result.report.faces) - count
        message = f"{count} face{'' if count == 1 else 's'} anonymized" + (f", {kept} kept" if kept else "")
        if result.report.left_small:
            message += f", {result.report.left_small} below {settings.min_face:g} px left"
        return Outcome(job, "done", message, (f"warning: {warnings}",) if warnings else (), faces=count)

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
        record = _record_of(job.source, job.record) if settings.use_record else None
        if self.key is None:
            raise KeyMaterialError("recovery needs a key")
        from facezoo.anonymizer import check_record_key, recover_sealed

        if record is not None:
            # Before the model that the record names is looked for: a changed record must not choose what is loaded.
            check_record_key(record, self.key)
        if record is not None and record.faces and all(face.sealed for face in record.faces):
            result = recover_sealed(
                job.source, self.key, record, metadata=settings.metadata, max_pixels=settings.max_pixels
            )
        else:
            result = self._recovery_model(job, record).recover(
                job.source,
                self.key,
                record=record if record is not None else False,
                metadata=settings.metadata,
                max_pixels=settings.max_pixels,
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
        if record.key_id is None and set(record.model) & set("/\\"):
            raise RecordError(
                f"the record of {job.source} names the model {record.model}, and no key vouches for it; if you trust "
                "it, name it with --model"
            )
        try:
            return self._anonymizer(record.model)
        except UnknownNameError as error:
            raise UnknownNameError(
                f"the record of {job.source} names the model {record.model}, which is not bundled here; give its "
                "checkpoint with --model FOLDER"
            ) from error

    def _save(self, result: Result, job: Job) -> None:
        settings = self.settings
        make_folder(job.target.parent)
        if job.record is not None and settings.write_record and settings.task == "anonymize":
            make_folder(job.record.parent)
        result.save(
            job.target,
            settings.overwrite,
            record_path=job.record,
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


def _boxes_entry(boxes: Mapping[str, object], job: Job) -> object:
    """What a boxes file says of a picture: by its relative path, its name, or for every picture; None: nothing."""
    return next((boxes[name] for name in (job.name, job.source.name, "") if name in boxes), None)


def _boxes_for(boxes: Mapping[str, object], job: Job) -> tuple[Any, Any]:
    """Boxes and points of a picture from the boxes file."""
    if not boxes:
        return None, None
    entry = _boxes_entry(boxes, job)
    if entry is None:
        raise InputError(f"the boxes file has no entry for {job.name}; add one, or leave this picture out")
    if isinstance(entry, Mapping):
        return entry.get("boxes"), entry.get("points")
    return entry, None


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
            record = None if job.record is None else str(job.record)
            self._process.stdin.write(json.dumps([str(job.source), str(job.target), job.name, record]) + "\n")
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
        source, target, name, record = json.loads(text)
        outcome = processor.run(Job(Path(source), Path(target), name, None if record is None else Path(record)))
        answer = [outcome.status, outcome.message, list(outcome.lines), outcome.exit_code, outcome.faces]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(worker_main())
