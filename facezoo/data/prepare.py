"""`facezoo prepare`: find, align and pack the faces of one's own pictures.

The work is a list of pictures in a fixed order, so what is done is a prefix of it. Beside the output lies, until the
end, a folder ``<output>.progress`` with

- ``settings.json``: what was asked for; a later run with other settings is refused;
- ``faces.raw``: the crops so far, S*S*3 bytes each;
- ``journal.jsonl``: one line a picture, written after its crops, with its size and time of change.

A run that was killed at any moment goes on there: the journal's last unfinished line and crops without a line are cut
off, and so is everything from the first picture on that was changed, added or removed in the meantime. The result is
the same file, byte for byte, as that of a run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TextIO

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from facezoo.data.packed import write_packed
from facezoo.errors import FacezooError, InputError, OutputError
from facezoo.faces.align import alignment_error, crop_faces, similarity
from facezoo.faces.detect import get_detector
from facezoo.faces.picture import load_picture
from facezoo.files import atomic_write, check_output, make_folder
from facezoo.images.folders import walk_folder
from facezoo.images.formats import PICTURE_ENDINGS

__all__ = ["LeftOut", "PrepareReport", "prepare", "print_summary", "progress_folder", "report_path"]

UNREADABLE = "unreadable"
NO_FACE = "no face found"
TOO_SMALL = "face too small"
MISALIGNED = "face turned too far"


class _FoundFace(Protocol):
    """What is needed of a detector's face."""

    @property
    def box(self) -> Any:
        """x0, y0, x1, y1 in picture pixels."""

    @property
    def points(self) -> Any:
        """(5, 2), (x, y) in picture pixels."""

    @property
    def score(self) -> float:
        """Confidence in [0, 1]."""


class FaceDetector(Protocol):
    """What is needed of a detector, see `facezoo.faces.detect`."""

    def detect(self, rgb: npt.NDArray[np.uint8], /) -> Sequence[_FoundFace]:
        """Faces of an uint8 (H, W, 3) RGB picture."""


@dataclass(frozen=True)
class LeftOut:
    """A picture, or one face of it, that did not go into the set."""

    file: str
    reason: str
    """One of a few fixed texts, to be counted."""
    detail: str = ""
    """What exactly was wrong, in one line."""


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did."""

    output: str
    pictures: int
    """Pictures looked at."""
    faces: int
    """Faces in the packed file."""
    people: int
    """People in the packed file."""
    size: int
    other_faces: int
    """Further faces in pictures of which only the largest was wanted."""
    resumed_after: int
    """Pictures that an earlier, interrupted run had done."""
    seconds: float
    """Time of this run."""
    left_out: list[LeftOut] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Files that are no pictures: texts, hidden files, housekeeping of systems."""

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=True) + "\n"

    def table(self) -> str:
        """The report as a small table for people."""
        rows = [("pictures", self.pictures), ("faces packed", self.faces), ("people", self.people)]
        rows += [(f"left out: {reason}", count) for reason, count in Counter(x.reason for x in self.left_out).items()]
        if self.other_faces:
            rows.append(("smaller faces beside the largest", self.other_faces))
        if self.ignored:
            rows.append(("files that are not pictures", len(self.ignored)))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {count:>7}" for name, count in rows)


@dataclass(frozen=True)
class _Settings:
    """Everything that the result depends on, besides the pictures."""

    size: int
    detector: str
    identity: str
    faces: str
    min_face: int
    max_misalignment: float
    version: int = 1
    """Raised when this module's results change, so that an old journal is not continued by new code."""


@dataclass(frozen=True)
class _Entry:
    """The journal's line of one picture."""

    file: str
    stamp: tuple[int, int]
    """Bytes and time of change (ns) of the file."""
    faces: list[dict[str, Any]]
    """For each crop ``points`` (5, 2) in crop pixels and ``score``."""
    left_out: list[dict[str, str]]
    other_faces: int

    def to_line(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode("ascii") + b"\n"

    @staticmethod
    def from_line(line: bytes) -> _Entry:
        """Raises ValueError, TypeError or KeyError for anything but a whole line."""
        fields = json.loads(line)
        size, changed = fields.pop("stamp")
        entry = _Entry(stamp=(int(size), int(changed)), **fields)
        if not isinstance(entry.file, str) or not isinstance(entry.faces, list):
            raise TypeError("not a journal line")
        return entry


Crops = npt.NDArray[np.uint8]


def progress_folder(output: str | Path) -> Path:
    """Where an unfinished `prepare` keeps its work."""
    return Path(f"{output}.progress")


def report_path(output: str | Path) -> Path:
    """Where `prepare` writes its report: ``faces.safetensors`` -> ``faces.safetensors.report.json``."""
    return Path(f"{output}.report.json")


def prepare(
    folder: str | Path,
    output: str | Path,
    *,
    size: int = 128,
    detector: str | FaceDetector = "yunet",
    identity: Literal["subfolder", "file"] = "subfolder",
    faces: Literal["largest", "all"] = "largest",
    min_face: int = 40,
    max_misalignment: float = 14.0,
    source: str = "",
    workers: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> PrepareReport:
    """Detect, align and pack the faces of a folder of pictures; goes on where an interrupted run stopped.

    Pictures that cannot be used never stop it; they are listed, with the reason, in the report, which is also written
    to `report_path`.

    Args:
        folder: walked to any depth.
        output: the packed file to write, usually ``*.safetensors``.
        size: S, the side of the crops in pixels.
        detector: name of a detector, or a detector object (then ``workers`` must be 0: it may not be copyable).
        identity: whose face it is: ``"subfolder"`` takes the first folder below ``folder`` (a picture that lies in
            none is a person of its own), ``"file"`` makes every face a person of its own.
        faces: ``"largest"`` takes one face of a picture, ``"all"`` every one (with ``identity="file"`` only: in a
            person's folder nothing tells whose face is whose).
        min_face: shortest side in picture pixels of a face's box.
        max_misalignment: largest root mean square distance, in pixels of a 128 crop, between a face's aligned points
            and the template. Frontal faces give 1 to 4, profiles about 10; wrong points more than 15.
        source: where the pictures come from and under which rights; stored in the file.
        workers: processes beside this one; 0 does the work here.
        overwrite: replace an existing output and report.
        progress: show a progress bar on stderr.

    Returns:
        The report.

    Raises:
        InputError: no such folder, no picture in it, no usable face in any, an argument out of range, or an
            unfinished run with other settings lies beside the output.
        OutputError: the output exists, another run is writing it, or it cannot be written.
    """
    started = time.monotonic()
    _check_arguments(size, identity, faces, min_face, max_misalignment, workers, detector)
    root, target = Path(folder), Path(output)
    work = progress_folder(target)
    check_output(target, overwrite, make_parents=True)
    check_output(report_path(target), overwrite or work.is_dir(), make_parents=True)
    listing = walk_folder(root, without=work)
    names = list(listing.pictures)
    if not names:
        raise InputError(f"no picture in {root}; endings: {' '.join(sorted(PICTURE_ENDINGS))}")
    name = detector if isinstance(detector, str) else type(detector).__qualname__
    settings = _Settings(size, name, identity, faces, min_face, max_misalignment)
    # Opened here in any case: an unknown name must be told now and not by the workers.
    opened = get_detector(detector) if isinstance(detector, str) else detector
    make_folder(target.parent)
    one = _Preparer(root, settings, detector if workers else opened)

    with _Journal(work, settings) as journal:
        done = journal.resume(root, names)
        results = _in_order(one, names[done:], workers)
        bar = tqdm(total=len(names), initial=done, desc="preparing", unit="picture", disable=not progress)
        with bar, contextlib.closing(results):
            for entry, crops in results:
                journal.add(entry, crops)
                bar.update()
        entries = journal.entries
        report = PrepareReport(
            output=str(target),
            pictures=len(names),
            faces=sum(len(entry.faces) for entry in entries),
            people=len(set(_people(entries, settings))),
            size=size,
            other_faces=sum(entry.other_faces for entry in entries),
            resumed_after=done,
            seconds=round(time.monotonic() - started, 3),
            left_out=[
                *(LeftOut(item.name, UNREADABLE, item.reason) for item in listing.left_out if item.counts),
                *(LeftOut(entry.file, **reason) for entry in entries for reason in entry.left_out),
            ],
            ignored=[item.name for item in listing.left_out if not item.counts],
        )
        if not report.faces:
            reasons = Counter(item.reason for item in report.left_out)
            journal.discard()
            raise InputError(
                f"none of the {report.pictures} pictures in {root} gave a face "
                f"({', '.join(f'{reason}: {count}' for reason, count in reasons.items())}); nothing was written"
            )
        atomic_write(report_path(target), report.to_json().encode("ascii"), overwrite=True)
        write_packed(
            target,
            journal.crops(),
            size=size,
            identities=[_printable(person) for person in _people(entries, settings)],
            files=[_printable(file) for file in _files(entries)],
            arrays={
                "points": np.array([face["points"] for entry in entries for face in entry.faces], dtype=np.float32),
                "score": np.array([face["score"] for entry in entries for face in entry.faces], dtype=np.float32),
            },
            source=source,
            overwrite=overwrite,
        )
        journal.discard()
    return report


def print_summary(report: PrepareReport, stream: TextIO | None = None) -> None:
    """Print what was packed and what was left out, with up to ten examples.

    Args:
        report: from `prepare`.
        stream: where to; None is stdout.
    """
    stream = stream or sys.stdout
    print(report.table(), file=stream)
    for item in report.left_out[:10]:
        print(f"  {_printable(item.file)}: {item.reason}{f' ({item.detail})' if item.detail else ''}", file=stream)
    if len(report.left_out) > 10:
        print(f"  ... and {len(report.left_out) - 10} more, in {report_path(report.output)}", file=stream)
    print(f"{report.output}: {report.faces} faces at {report.size} pixels, {report.seconds:.0f} s", file=stream)


def _check_arguments(
    size: int, identity: str, faces: str, min_face: int, max_misalignment: float, workers: int, detector: object
) -> None:
    if not 16 <= size <= 1024:
        raise InputError(f"size must be 16 to 1024 pixels, not {size}")
    if identity not in ("subfolder", "file"):
        raise InputError(f"there is no identity rule {identity!r}; choose subfolder or file")
    if faces not in ("largest", "all"):
        raise InputError(f"there is no choice of faces {faces!r}; choose largest or all")
    if faces == "all" and identity != "file":
        raise InputError("faces='all' needs identity='file': in a person's folder nothing tells whose face is whose")
    if min_face < 1 or max_misalignment <= 0:
        raise InputError("min_face must be at least 1 pixel and max_misalignment above 0")
    if workers < 0:
        raise InputError(f"workers must be at least 0, not {workers}")
    if workers and not isinstance(detector, str):
        raise InputError("give the detector by its name to use workers, or workers=0")


def _files(entries: Iterable[_Entry]) -> Iterator[str]:
    """The name of each crop's source: the file, with ``#1`` and so on for its second and further faces."""
    for entry in entries:
        for number in range(len(entry.faces)):
            yield f"{entry.file}#{number}" if number else entry.file


def _people(entries: Iterable[_Entry], settings: _Settings) -> Iterator[str]:
    """The person of each crop."""
    for file in _files(entries):
        first, slash, _ = file.partition("/")
        yield first if settings.identity == "subfolder" and slash else file


def _printable(name: str) -> str:
    """A file name that is no UTF-8 text, with its strange bytes replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _one_line(error: BaseException) -> str:
    return _printable(" ".join(str(error).split()) or type(error).__name__)


class _Preparer:
    """Turns one picture into crops.

    Args:
        root: the folder of pictures.
        settings: what was asked for.
        detector: a detector, or its name: a worker process opens its own at its first picture.
    """

    def __init__(self, root: Path, settings: _Settings, detector: str | FaceDetector) -> None:
        self.root = root
        self.settings = settings
        self.detector = detector

    def __call__(self, file: str) -> tuple[_Entry, Crops]:
        """The journal's line and uint8 (F, S, S, 3) crops; never fails because of the picture."""
        size = self.settings.size
        nothing = np.empty((0, size, size, 3), dtype=np.uint8)
        path = self.root / file
        stamp = _stamp(path)
        detector = self._open_detector()
        try:
            rgb = load_picture(path).pixels
            found = list(detector.detect(rgb))
        except (FacezooError, OSError, MemoryError, cv2.error) as error:
            reason = {"reason": UNREADABLE, "detail": _one_line(error)}
            return _Entry(file, stamp, [], [reason], 0), nothing
        if not found:
            return _Entry(file, stamp, [], [{"reason": NO_FACE, "detail": ""}], 0), nothing
        # Largest first; the place in the picture decides between equals, so that the order is always the same.
        found.sort(key=lambda face: (-_shorter_side(face), float(face.box[0]), float(face.box[1])))
        others = 0
        if self.settings.faces == "largest":
            others = len(found) - 1
            found = found[:1]
        kept: list[dict[str, Any]] = []
        left_out: list[dict[str, str]] = []
        crops: list[Crops] = []
        for face in found:
            problem = self._problem(face)
            if problem is None:
                transform = similarity(face.points, size)
                try:
                    crops.append(crop_faces(rgb, [transform], size))
                except FacezooError as error:
                    problem = {"reason": MISALIGNED, "detail": _one_line(error)}
            if problem is not None:
                left_out.append(problem)
                continue
            points = np.asarray(face.points, dtype=np.float64) @ transform[:, :2].T + transform[:, 2]
            kept.append({"points": points.round(3).tolist(), "score": round(float(face.score), 5)})
        return _Entry(file, stamp, kept, left_out, others), np.concatenate([nothing, *crops])

    def _open_detector(self) -> FaceDetector:
        if isinstance(self.detector, str):
            self.detector = get_detector(self.detector)
        return self.detector

    def _problem(self, face: _FoundFace) -> dict[str, str] | None:
        side = _shorter_side(face)
        if side < self.settings.min_face:
            return {"reason": TOO_SMALL, "detail": f"{side:.0f} pixels, at least {self.settings.min_face} are wanted"}
        points = np.asarray(face.points, dtype=np.float64)
        error = alignment_error(points) if np.isfinite(points).all() else float("inf")
        if error > self.settings.max_misalignment:
            return {"reason": MISALIGNED, "detail": f"{error:.1f}, at most {self.settings.max_misalignment:g}"}
        return None


def _shorter_side(face: _FoundFace) -> float:
    """Of a face's box, in picture pixels."""
    x0, y0, x1, y1 = (float(value) for value in face.box)
    return min(x1 - x0, y1 - y0)


def _stamp(path: Path) -> tuple[int, int]:
    """Bytes and time of change; (-1, -1) for a file that vanished, which then is unreadable too."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


_worker: _Preparer | None = None


def _start_worker(preparer: _Preparer) -> None:
    global _worker  # a pool's initializer has no other way to hand over
    _worker = preparer
    cv2.setNumThreads(1)  # the processes share the cores already


def _work(file: str) -> tuple[_Entry, Crops]:
    if _worker is None:
        raise RuntimeError("the worker was not started by _start_worker")
    return _worker(file)


def _in_order(preparer: _Preparer, files: Sequence[str], workers: int) -> Generator[tuple[_Entry, Crops], None, None]:
    """Results in the order of ``files``, with a few pictures a worker ahead."""
    if not workers:
        for file in files:
            yield preparer(file)
        return
    # spawn: fork would copy the parent's threads (OpenCV's, torch's) in an unknown state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(preparer,))
    pending: deque[Future[tuple[_Entry, Crops]]] = deque()
    try:
        rest = iter(files)
        for file in rest:
            pending.append(pool.submit(_work, file))
            if len(pending) >= 4 * workers:
                break
        while pending:
            yield pending.popleft().result()
            for file in rest:
                pending.append(pool.submit(_work, file))
                break
    except BrokenProcessPool as error:
        raise FacezooError(
            "a worker process was ended from outside (out of memory?); start again with fewer --workers, "
            "the work so far is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Journal:
    """The progress folder, see the module's docstring.

    Args:
        folder: the progress folder; made if it is not there.
        settings: of this run.

    Raises:
        InputError: the folder's settings are others.
        OutputError: the folder cannot be written, or another process holds it.
    """

    def __init__(self, folder: Path, settings: _Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.entries: list[_Entry] = []
        self._raw: IO[bytes] | None = None
        self._lines: IO[bytes] | None = None

    @property
    def _crop_bytes(self) -> int:
        return self.settings.size**2 * 3

    def __enter__(self) -> _Journal:
        try:
            self.folder.mkdir(exist_ok=True)
            # Append mode makes missing files and keeps what is there.
            self._raw = (self.folder / "faces.raw").open("ab")
            self._lines = (self.folder / "journal.jsonl").open("ab")
            self._lock(self._lines)
            self._check_settings()
        except OSError as error:
            self.__exit__()
            raise self._unwritable(error) from error
        except FacezooError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._raw, self._lines):
            if stream is not None:
                with contextlib.suppress(OSError):  # a full disk was reported by the write already
                    stream.close()
        self._raw = self._lines = None

    def _unwritable(self, error: OSError) -> OutputError:
        reason = error.strerror or type(error).__name__
        return OutputError(
            f"cannot write {self.folder}: {reason}; free some space or choose another output, then go on"
        )

    def _lock(self, stream: IO[bytes]) -> None:
        """Keep a second run away; the system lets go of the lock when the process ends, however it ends."""
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another run is at work in {self.folder}; wait for it or choose another output"
            ) from None

    def _check_settings(self) -> None:
        path = self.folder / "settings.json"
        wanted = dataclasses.asdict(self.settings)
        if not path.exists():
            atomic_write(path, json.dumps(wanted, indent=2).encode("ascii"))
            return
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = None
        if found != wanted:
            differing = (
                [name for name in wanted if found.get(name) != wanted[name]] if isinstance(found, dict) else ["all"]
            )
            raise InputError(
                f"{self.folder} was begun with other settings ({', '.join(differing)}); "
                "use the same settings to go on, or remove that folder to begin anew"
            )

    def resume(self, root: Path, names: Sequence[str]) -> int:
        """Read what is done, cut off the rest, and say how many of ``names`` need not be done again."""
        if self._raw is None or self._lines is None:
            raise RuntimeError("the journal is not open")
        lines = (self.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
        crops_there = (self.folder / "faces.raw").stat().st_size // self._crop_bytes
        crops = line_bytes = 0
        for line, name in zip(lines, names, strict=False):
            try:
                entry = _Entry.from_line(line) if line.endswith(b"\n") else None
            except (ValueError, TypeError, KeyError):
                entry = None
            if entry is None or entry.file != name or entry.stamp != _stamp(root / name):
                break
            if crops + len(entry.faces) > crops_there:
                break
            self.entries.append(entry)
            crops += len(entry.faces)
            line_bytes += len(line)
        try:
            self._raw.truncate(crops * self._crop_bytes)
            self._lines.truncate(line_bytes)
        except OSError as error:
            raise self._unwritable(error) from error
        return len(self.entries)

    def add(self, entry: _Entry, crops: Crops) -> None:
        """Add a picture: first its crops, then its line, which makes them count."""
        if self._raw is None or self._lines is None:
            raise RuntimeError("the journal is not open")
        try:
            self._raw.write(crops.tobytes())
            self._raw.flush()
            self._lines.write(entry.to_line())
            self._lines.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        self.entries.append(entry)

    def crops(self) -> Iterator[Crops]:
        """All crops in order, read from the disk one by one."""
        with (self.folder / "faces.raw").open("rb") as stream:
            shape = (self.settings.size, self.settings.size, 3)
            for _ in range(sum(len(entry.faces) for entry in self.entries)):
                yield np.frombuffer(stream.read(self._crop_bytes), dtype=np.uint8).reshape(shape)

    def discard(self) -> None:
        """Remove the progress folder."""
        self.__exit__()
        shutil.rmtree(self.folder, ignore_errors=True)
