"""A data set in parts: planning, doing one, committing it once, and the sum at the end.

The input is a set of parquet files with a column of encoded pictures, or of tar files in WebDataset's layout. It is cut
into parts of some dozens of pictures. One process does a part from beginning to end, writes its pictures, its failures
and its report into a hidden folder and moves that folder to its name in one step: whoever is first wins, so that a
part which an engine runs twice (a machine was thought lost) is there once. A part that is there is never done again,
which is what makes a run resumable.

Fail-closed: the output holds pictures whose faces were anonymized, and nothing else of the input but the columns that
were asked for by name. What failed is in `failed.jsonl`, by its place in the input, without its pixels.

The key never travels: every process reads the key file itself and compares what it read with the run's key number.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import io
import json
import os
import secrets
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from facezoo.batch import Settings
from facezoo.data.tars import read_samples
from facezoo.errors import CheckpointError, FacezooError, InputError, KeyMaterialError, NoFaceError, OutputError
from facezoo.files import atomic_write
from facezoo.images.formats import HEAD_BYTES, file_format

if TYPE_CHECKING:
    from facezoo.anonymizer import Anonymizer
    from facezoo.faces.keep import KeepList
    from facezoo.keys import Key, KeyForm

__all__ = ["Item", "Part", "PartWorker", "Run", "Summary", "find_inputs", "plan_run", "summarize"]

Kind = Literal["parquet", "tar"]

FAILED: Final = "failed.jsonl"
PLAN: Final = "plan.json"
REPORT: Final = "report.json"
SUMMARY: Final = "summary.json"
_WORK: Final = ".work"
_ATTEMPTS: Final = 3
"""A picture whose process died this often while it was worked on is given up, or it would end process after process."""
_ATTEMPT: Final = "attempt\n"
"""Line of the journal that begins an attempt at a part; the lines after it are the pictures begun."""
_COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_READ_ROWS: Final = 16
"""Rows of a parquet file held in memory at a time."""


@dataclass(frozen=True)
class Part:
    """A piece of one input file.

    Attributes:
        number: Of the part, from 0.
        source: Path of the input file.
        first: Parquet: number of the first row. Tar: where the first sample's header begins, in bytes.
        row: Number of the first picture in its file, from 0.
        count: Rows, or samples.
    """

    number: int
    source: str
    first: int
    row: int
    count: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"part-{self.number:06d}"


@dataclass(frozen=True)
class Run:
    """What all processes of a run share. Plain JSON values, no secret in it.

    Attributes:
        kind: Of the input files, and of the output.
        output: Output folder; all machines see it under this path.
        settings: How pictures are anonymized.
        model_sha256: Of the model's checkpoint; "" where there is none.
        key_file: Where each machine finds the key; None: no key.
        key_form: How a passphrase in it is read.
        key_id: The key's number under the run's salt, as in every record; None: no key.
        column: Parquet: the column of pictures.
        keep_columns: Parquet: columns (tar: endings) that are copied from the input as they are.
        threads: Of torch, in each process.
    """

    kind: Kind
    output: str
    settings: Settings
    model_sha256: str = ""
    key_file: str | None = None
    key_form: KeyForm = "passphrase"
    key_id: str | None = None
    column: str = "image"
    keep_columns: tuple[str, ...] = ()
    threads: int = 1

    def with_key_id(self, key_id: str) -> Run:
        """The same run with the key's number."""
        return dataclasses.replace(self, key_id=key_id)

    def is_done(self, part: Part) -> bool:
        """Whether a part is committed."""
        return (Path(self.output) / part.name / REPORT).exists()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """From what ``to_dict`` gave."""
        return cls(
            **{
                **values,
                "settings": Settings(**values["settings"]),
                "keep_columns": tuple(values["keep_columns"]),
            }
        )


@dataclass(frozen=True)
class Item:
    """One picture of the input.

    Attributes:
        row: Its number in its file.
        name: Tar: the sample's name. Parquet: "".
        data: The encoded picture; None where there is none.
        kept: What is copied: values of columns, or bytes of members.
        problem: Why there is no picture, where that is known.
    """

    row: int
    name: str
    data: bytes | None
    kept: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Summary:
    """What became of a data set.

    Attributes:
        parts: Parts that are committed.
        missing: Parts that are not.
        done: Pictures in the output.
        failed: Pictures in the dead-letter table.
        skipped: Pictures without a face, left out as asked.
        exit_codes: Of the failures.
    """

    parts: int
    missing: int
    done: int
    failed: int
    skipped: int
    exit_codes: tuple[int, ...] = ()


# ------------------------------------------------------------------------------------------------------------- planning


def find_inputs(inputs: Sequence[str]) -> tuple[list[Path], Kind]:
    """The files of a data set, in a fixed order.

    Args:
        inputs: Files, and folders whose .parquet or .tar files are taken.

    Raises:
        InputError: no such file, none at all, or both kinds.
    """
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found += _in_folder(path)
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"{text} does not exist; name parquet or tar files, or a folder of them")
    kinds = {path.suffix for path in found}
    if not found or not kinds <= {".parquet", ".tar"}:
        raise InputError(f"no .parquet or .tar file in {', '.join(inputs)}")
    if len(kinds) > 1:
        raise InputError("the input has parquet and tar files; anonymize them in two runs")
    if len({path.resolve() for path in found}) != len(found):
        raise InputError("an input file is named twice")
    return [path.resolve() for path in found], "parquet" if kinds == {".parquet"} else "tar"


def _in_folder(folder: Path) -> list[Path]:
    """The data files below a folder; what is compressed would be left out, and is refused."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if packed := [path for path in files if path.name.lower().endswith(_COMPRESSED)]:
        raise InputError(f"{packed[0]} is compressed, and parts of it cannot be read on their own; unpack it to .tar")
    return [path for path in files if path.suffix in (".parquet", ".tar")]


def plan_run(run: Run, inputs: Sequence[Path], fingerprint: str, part_pictures: int) -> tuple[Run, list[Part]]:
    """Cuts the input into parts, and writes the plan or compares it with the one that lies in the output folder.

    Args:
        run: The run; its salt (in the settings) is replaced by that of the run that is gone on with.
        inputs: Its files.
        fingerprint: Of the settings and the key.
        part_pictures: Pictures a part.

    Returns:
        The run with its salt, and all parts (done or not).

    Raises:
        InputError: an input file that cannot be read, or lacks the columns.
        OutputError: the folder holds something else, or cannot be written.
    """
    folder = Path(run.output)
    parts: list[Part] = []
    for path in inputs:
        cut = _cut_parquet if run.kind == "parquet" else _cut_tar
        for first, row, count in cut(path, run, part_pictures):
            parts.append(Part(len(parts), str(path), first, row, count))
    plan = {
        "facezoo_dataset": 1,
        "kind": run.kind,
        "inputs": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in inputs],
        "parts": len(parts),
        "pictures": sum(part.count for part in parts),
        "part_pictures": part_pictures,
        "model": run.settings.model,
        "model_sha256": run.model_sha256,
        "settings": fingerprint,
        "format": run.settings.file_format,
        "column": run.column,
        "keep_columns": list(run.keep_columns),
    }
    place = folder / PLAN
    try:
        if place.exists():
            there = json.loads(place.read_text(encoding="utf-8"))
            salt = there.pop("salt")
            if there != plan:
                changed = sorted(name for name in plan.keys() | there.keys() if plan.get(name) != there.get(name))
                raise OutputError(
                    f"{folder} holds another run (it differs in: {', '.join(changed)}); choose another folder with -o"
                )
            return dataclasses.replace(run, settings=dataclasses.replace(run.settings, salt=salt)), parts
        if folder.exists() and any(folder.iterdir()):
            raise OutputError(f"{folder} is not empty and holds no run of anonymize-dataset; choose another with -o")
        (folder / _WORK).mkdir(parents=True, exist_ok=True)
        atomic_write(place, (json.dumps({**plan, "salt": run.settings.salt}, indent=1) + "\n").encode())
    except (ValueError, KeyError, AttributeError) as error:
        raise OutputError(f"{place} is damaged; choose another folder with -o") from error
    except OSError as error:
        raise OutputError(f"cannot write the folder {folder}: {error.strerror}; choose another with -o") from error
    return run, parts


def _cut_parquet(path: Path, run: Run, part_pictures: int) -> Iterator[tuple[int, int, int]]:
    """(first row, the same, count); a row group is not torn apart unless it is much longer than a part."""
    file = _open_parquet(path)
    missing = [name for name in (run.column, *run.keep_columns) if name not in file.schema_arrow.names]
    if missing:
        names = ", ".join(file.schema_arrow.names)
        raise InputError(f"{path} has no column {', '.join(missing)}; it has {names} (choose with --column)")
    first = 0
    waiting = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if waiting and waiting + rows > part_pictures:
            yield first, first, waiting
            first, waiting = first + waiting, 0
        waiting += rows
        while waiting > 4 * part_pictures:
            yield first, first, part_pictures
            first, waiting = first + part_pictures, waiting - part_pictures
    if waiting:
        yield first, first, waiting


def _cut_tar(path: Path, run: Run, part_pictures: int) -> Iterator[tuple[int, int, int]]:
    """(where the first header begins, number of the first sample, count), from the headers alone."""
    starts: list[int] = []
    try:
        with path.open("rb") as stream:
            starts = [sample.start for sample in read_samples(stream, contents=False)]
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} is not a plain tar file, or is damaged ({error})") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    row = 0
    while row < len(starts):
        end = min(row + part_pictures, len(starts))
        while end < len(starts) and starts[end] == starts[end - 1]:  # samples whose members are mixed stay together
            end += 1
        yield starts[row], row, end - row
        row = end


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FacezooError("reading parquet needs pyarrow: pip install 'facezoo[ray]'") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is not a parquet file, or is damaged ({error})") from error


# ----------------------------------------------------------------------------------------------------------- one part


class PartWorker:
    """Does parts, one after another; the model is loaded and the key is read once.

    Args:
        run: The run.

    Raises:
        KeyMaterialError: the key file of this machine is missing or holds another key.
        CheckpointError: the model of this machine is another one.
    """

    def __init__(self, run: Run) -> None:
        from facezoo.anonymizer import from_pretrained
        from facezoo.hub.manifest import resolve_model

        self.run, settings = run, run.settings
        self.folder = Path(run.output)
        self._key = self._read_key()
        model = resolve_model(settings.model, revision=settings.revision)
        if (model.sha256 or "") != run.model_sha256:
            raise CheckpointError(
                f"the model {settings.model} of this machine is not the one that the run began with; install the same "
                "version of facezoo and the same checkpoint on all machines"
            )
        import torch

        torch.set_num_threads(max(1, run.threads))
        options: dict[str, Any] = dict(settings.options)
        self._anonymizer: Anonymizer = from_pretrained(
            settings.model,
            revision=settings.revision,
            detector=settings.detector,
            threshold=settings.threshold,
            rotations=settings.rotations,
            min_face=settings.min_face,
            device=settings.device,
            **options,
        )
        self._keep: KeepList | None = None
        if settings.keep is not None:
            from facezoo.faces.keep import KeepList

            self._keep = KeepList.from_folder(settings.keep)

    def _read_key(self) -> Key | None:
        if self.run.key_file is None:
            return None
        from facezoo.keys import Key

        key = Key.from_file(self.run.key_file, form=self.run.key_form)
        if key.key_id(base64.b64decode(self.run.settings.salt)) != self.run.key_id:
            raise KeyMaterialError(
                f"{self.run.key_file} holds another key on this machine than where the run was started; "
                "put the same file on all machines"
            )
        return key

    def do(self, part: Part) -> dict[str, Any]:
        """Does a part, unless it is done.

        Returns:
            Its report: part, done, failed, skipped, exit_codes.

        Raises:
            InputError: the input file cannot be read any more.
            OutputError: the output cannot be written.
        """
        report = self.folder / part.name / REPORT
        if self.run.is_done(part):
            return _read_json(report)
        hidden = self.folder / _WORK / f"{part.name}.{secrets.token_hex(8)}"
        try:
            hidden.mkdir(parents=True)
            content = self._write(part, hidden)
            _commit(hidden, self.folder / part.name)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise OutputError(f"cannot write {self.folder / part.name}: {reason}; the run can be repeated") from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        self._journal(part).unlink(missing_ok=True)
        return _read_json(report) if report.exists() else content

    def _journal(self, part: Part) -> Path:
        return self.folder / _WORK / f"{part.name}.begun"

    def _write(self, part: Part, hidden: Path) -> dict[str, Any]:
        """Fills the hidden folder; pictures leave memory one by one."""
        journal = self._journal(part)
        deaths = _deaths(journal)
        writer: _Writer = _ParquetWriter(hidden, self.run) if self.run.kind == "parquet" else _TarWriter(hidden)
        failures: list[dict[str, Any]] = []
        done = skipped = faces = seen = 0
        with writer, journal.open("a", encoding="ascii") as note:
            note.write(_ATTEMPT)
            for item in _items(part, self.run):
                seen += 1
                where = {"source": part.source, "row": item.row, "name": item.name}
                try:
                    if deaths.get(item.row, 0) >= _ATTEMPTS:
                        raise FacezooError(f"its process died {_ATTEMPTS} times over it (out of memory?)")
                    note.write(f"{item.row}\n")
                    note.flush()
                    data, record, count = self._anonymize(item)
                except FacezooError as error:
                    left_out = self.run.settings.no_face == "skip" and _no_face_at_all(error)
                    skipped += left_out
                    failures.append(
                        {
                            **where,
                            "status": "skipped" if left_out else "failed",
                            "error": type(error).__name__,
                            "exit_code": 0 if left_out else error.exit_code,
                            "message": str(error),
                        }
                    )
                    continue
                except Exception as error:  # one picture must not end a run over millions
                    text = " ".join(f"{type(error).__name__}: {error}".split())
                    failures.append({**where, "status": "failed", "error": "internal", "exit_code": 1, "message": text})
                    continue
                writer.add(part, item, data, record)
                done, faces = done + 1, faces + count
        if seen != part.count:
            raise InputError(f"{part.source} gave {seen} pictures for {part.name} where {part.count} were planned")
        with (hidden / FAILED).open("w", encoding="utf-8") as stream:
            for failure in failures:
                stream.write(json.dumps(failure, sort_keys=True) + "\n")
        content = {
            "part": part.number,
            "pictures": part.count,
            "done": done,
            "failed": len(failures) - skipped,
            "skipped": skipped,
            "faces": faces,
            "exit_codes": sorted({int(f["exit_code"]) for f in failures if f["status"] == "failed"}),
        }
        (hidden / REPORT).write_text(json.dumps(content) + "\n", encoding="utf-8")
        return content

    def _anonymize(self, item: Item) -> tuple[bytes, str, int]:
        settings = self.run.settings
        if not item.data:
            raise InputError(item.problem or "there is no picture")
        result = self._anonymizer.anonymize(
            item.data,
            self._key,
            keep=self._keep,
            seal=settings.seal,
            verify=settings.verify,
            no_face="copy" if settings.no_face == "copy" else "refuse",
            metadata=settings.metadata,
            salt=base64.b64decode(settings.salt),
        )
        data, record = result.encode(settings.file_format or "png", quality=settings.quality)
        return data, "" if record is None else record.to_json(), sum(not face.kept for face in result.report.faces)


def _deaths(journal: Path) -> Counter[int]:
    """How many attempts at a part ended at each of its pictures: the last one that an attempt began."""
    if not journal.exists():
        return Counter()
    attempts = journal.read_text(encoding="ascii").split(_ATTEMPT)
    return Counter(int(rows[-1]) for rows in map(str.split, attempts) if rows and rows[-1].isdigit())


def _no_face_at_all(error: FacezooError) -> bool:
    from facezoo.anonymizer import MissedFaceError

    return isinstance(error, NoFaceError) and not isinstance(error, MissedFaceError)


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise OutputError(f"{path} is damaged; remove its folder and run the same command again")
    return content


def _commit(hidden: Path, target: Path) -> None:
    """Moves a finished folder to its name; one that is there already stays (it holds the same pictures)."""
    for path in hidden.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    try:
        hidden.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _items(part: Part, run: Run) -> Iterator[Item]:
    path = Path(part.source)
    try:
        yield from _parquet_items(path, part, run) if run.kind == "parquet" else _tar_items(path, part, run)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"cannot read {path} ({error}); check the file and run the same command again") from error


def _parquet_items(path: Path, part: Part, run: Run) -> Iterator[Item]:
    file = _open_parquet(path)
    groups: list[int] = []
    before = begin = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if before + rows > part.first and before < part.first + part.count:
            if not groups:
                begin = before
            groups.append(group)
        before += rows
    row = begin
    columns = [run.column, *run.keep_columns]
    for batch in file.iter_batches(batch_size=_READ_ROWS, row_groups=groups, columns=columns):
        first, last = max(0, part.first - row), min(len(batch), part.first + part.count - row)
        for values in batch.slice(first, max(0, last - first)).to_pylist() if first < len(batch) else []:
            picture = values[run.column]
            if isinstance(picture, dict):  # Hugging Face's datasets: {"bytes": ..., "path": ...}
                picture = picture.get("bytes")
            kept = {name: values[name] for name in run.keep_columns}
            data = picture if isinstance(picture, bytes) else None
            yield Item(row + first, "", data, kept)
            first += 1
        row += len(batch)
        if row >= part.first + part.count:
            return


def _tar_items(path: Path, part: Part, run: Run) -> Iterator[Item]:
    with path.open("rb") as stream:
        stream.seek(part.first)
        for number, sample in enumerate(read_samples(stream)):
            if number == part.count:
                return
            endings = {f".{name.lstrip('.').lower()}" for name in run.keep_columns}
            kept = {key: member.data for key, member in sample.members.items() if key in endings}
            problem = ""
            try:
                picture = sample.picture()
            except InputError as error:
                picture, problem = None, str(error)
            data = picture.data if picture is not None else None
            yield Item(part.row + number, sample.name, data, kept, problem)


class _Writer(contextlib.AbstractContextManager["_Writer"]):
    """Takes the pictures of a part."""

    def add(self, part: Part, item: Item, data: bytes, record: str) -> None:
        """Adds one."""
        raise TypeError(f"{type(self).__name__} writes nothing")


class _ParquetWriter(_Writer):
    def __init__(self, folder: Path, run: Run) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow, self._path, self._run = pyarrow, folder / "pictures.parquet", run
        self._writer: Any = None
        self._rows: list[dict[str, Any]] = []
        self._kept_types: Any = None

    def add(self, part: Part, item: Item, data: bytes, record: str) -> None:
        """Adds one; rows leave memory in small groups."""
        if self._kept_types is None:
            schema = _open_parquet(Path(part.source)).schema_arrow
            self._kept_types = [schema.field(name) for name in self._run.keep_columns]
        self._rows.append({"source": part.source, "row": item.row, "image": data, "record": record, **item.kept})
        if len(self._rows) >= _READ_ROWS:
            self._flush()

    def _flush(self) -> None:
        arrow = self._arrow
        own = [
            ("source", arrow.string()),
            ("row", arrow.int64()),
            ("image", arrow.binary()),
            ("record", arrow.string()),
        ]
        schema = arrow.schema([arrow.field(*pair) for pair in own] + (self._kept_types or []))
        if self._writer is None:
            self._writer = arrow.parquet.ParquetWriter(self._path, schema, compression="none")
        self._writer.write_table(arrow.Table.from_pylist(self._rows, schema=schema))
        self._rows.clear()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()


class _TarWriter(_Writer):
    def __init__(self, folder: Path) -> None:
        self._tar = tarfile.open(folder / "pictures.tar", "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (see __exit__)

    def add(self, part: Part, item: Item, data: bytes, record: str) -> None:
        """Adds one, and its record and kept members beside it."""
        entry = file_format(data[:HEAD_BYTES])
        assert entry is not None  # noqa: S101 (it was written here)
        self._add(f"{item.name}{entry.endings[0]}", data)
        if record:
            self._add(f"{item.name}.facezoo.json", record.encode())
        for key, value in item.kept.items():
            self._add(f"{item.name}{key}", value)

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))

    def __exit__(self, *error: object) -> None:
        self._tar.close()


# ------------------------------------------------------------------------------------------------------------- the sum


def summarize(run: Run, parts: Sequence[Part]) -> Summary:
    """Adds up what is committed, checks it against the plan, and writes `summary.json` and all failures in one table.

    Raises:
        OutputError: a part does not hold what was planned, or the files cannot be written.
    """
    folder = Path(run.output)
    there, done, failed, skipped = 0, 0, 0, 0
    codes: set[int] = set()
    failures = io.BytesIO()
    for part in parts:
        report = folder / part.name / REPORT
        if not run.is_done(part):
            continue
        content = _read_json(report)
        if content["done"] + content["failed"] + content["skipped"] != part.count or content["part"] != part.number:
            raise OutputError(f"{report} does not add up; remove its folder and run the same command again")
        there += 1
        done, failed, skipped = done + content["done"], failed + content["failed"], skipped + content["skipped"]
        codes |= set(content["exit_codes"])
        failures.write((folder / part.name / FAILED).read_bytes())
    summary = Summary(there, len(parts) - there, done, failed, skipped, tuple(sorted(codes)))
    atomic_write(folder / FAILED, failures.getvalue(), overwrite=True)
    atomic_write(folder / SUMMARY, (json.dumps(dataclasses.asdict(summary)) + "\n").encode(), overwrite=True)
    if not summary.missing:
        shutil.rmtree(folder / _WORK, ignore_errors=True)
    return summary
