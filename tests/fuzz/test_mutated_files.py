"""A thousand mutated files, always the same ones: no traceback, no hang, no half file, no face left behind a success.

Whatever reads a file may refuse it with facezoo's own errors, and with nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facezoo.anonymizer import Anonymizer, from_pretrained
from facezoo.cli import main
from facezoo.cli.pictures import _read_boxes
from facezoo.core.recipe import load_recipe
from facezoo.errors import FacezooError
from facezoo.faces.picture import load_picture
from facezoo.hub.manifest import read_manifest, verify_files
from facezoo.keys import KEY_FILE_PREFIX, KdfParams, Key
from facezoo.records import PictureRecord, read_sidecar
from tests.cli.conftest import files_under, portrait
from tests.tiny_method import write_tiny_checkpoint

SECONDS = 20
"""Longer than this is a hang."""


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four changes of the kinds that break parsers."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not out:
            break
        at = chance.randrange(len(out)) if chance.random() < 0.5 else chance.randrange(min(len(out), 256))
        length = min(len(out) - at, chance.choice((1, 2, 4, 16, 100)))
        kind = chance.randrange(7)
        if kind == 0:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length] * chance.choice((1, 3, 50))
        elif kind == 4:
            out[at : at + length] = chance.choice((b"\xff", b"\0", b"\x7f", b"9", b'"', b"[")) * length
        elif kind == 5:
            out[at:at] = chance.randbytes(length)
        else:
            other = chance.randrange(len(out))
            out[at : at + length] = out[other : other + length]
    return bytes(out)


VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, 2**70, "", "x" * 300, "../../etc/passwd", "\0", [], {}, [[]], [[0, 0, 1, 1]]),
    *([[[1, 2], [3]]], {"a": 1}, "NaN", [None], [["a", "b", "c", "d"]], -0.0, [1e308] * 4),
)


def reshaped(value: Any, chance: random.Random) -> Any:
    """A JSON value with one part of it replaced, removed or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(sorted(value))
        if chance.random() < 0.15:
            return {key: item for key, item in value.items() if key != name}
        return {**value, name: reshaped(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return [*value[:at], reshaped(value[at], chance), *value[at + (chance.random() < 0.8) :]]
    return chance.choice(VALUES)


@contextlib.contextmanager
def only_own_errors(what: str) -> Iterator[None]:
    """Facezoo's own errors, in one line, within the time; nothing else."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"{what} took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    except FacezooError as error:
        if not error.message.strip() or "\n" in error.message:
            raise AssertionError(f"{what}: not one line: {error.message!r}") from error
    except AssertionError:
        raise
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    small = portrait().resize((75, 84))
    if kind == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(small).save(stream, quality=80)
    elif kind in ("JPEG", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = 6
        small.save(stream, kind, exif=exif)
    else:
        small.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF"])
def test_pictures(kind: str) -> None:
    chance, data = random.Random(kind), encoded(kind)
    for number in range(38):
        with only_own_errors(f"{kind} {number}"):
            picture = load_picture(mutated(data, chance), metadata=chance.choice(("drop", "keep-safe", "keep-place")))
            assert picture.pixels.shape[2] == 3


def test_a_folder_of_mutated_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What comes out is whole and has every face changed; what does not is counted in the exit code."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    chance = random.Random("folder")
    for number in range(40):
        kind, ending = chance.choice((("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "dat")))
        stream = io.BytesIO()
        portrait().resize((90, 100)).save(stream, kind)
        (source / f"{number:02d}.{ending}").write_bytes(mutated(stream.getvalue(), chance))
    portrait().resize((90, 100)).save(source / "good.png")
    with only_own_errors("the folder"):
        code = main(["anonymize", str(source), "-o", str(out), "--model", "black_box", "--verify", "off", "-q"])
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert "internal error" not in errors
    done = [path for path in sorted(out.iterdir()) if not path.name.endswith(".json")]
    assert out / "good.png" in done
    assert (code == 0) == (len(done) == 41)
    assert errors.count("facezoo: failed: ") == 41 - len(done)
    assert not [name for name in files_under(out) if name.startswith(".")]
    detector = from_pretrained("black_box")._detector("yunet", from_pretrained("black_box")._first_look)
    for path in done:
        record = read_sidecar(path)
        assert record.belongs_to(path)
        (original,) = source.glob(f"{path.name[:2]}*")
        before, after = load_picture(original).pixels, load_picture(path).pixels
        faces = detector.detect(before)
        assert len(record.faces) >= len(faces) >= 1
        for face in record.faces:
            x0, y0, x1, y1 = (max(0, int(value)) for value in face.box)
            assert np.abs(before[y0:y1, x0:x1].astype(int) - after[y0:y1, x0:x1]).mean() > 5


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An anonymized picture with a record that is sealed."""
    folder = tmp_path_factory.mktemp("sealed")
    key = folder / "my.key"
    key.write_text(KEY_FILE_PREFIX + "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n")
    portrait().resize((150, 168)).save(folder / "a.png")
    words = ["--model", "gaussian_blur", "--verify", "off", "--seal", "--key-file", str(key), "-q"]
    assert main(["anonymize", str(folder / "a.png"), "-o", str(folder / "x.png"), *words]) == 0
    return folder


def test_records(sealed: Path) -> None:
    chance = random.Random("records")
    good = (sealed / "x.png.facezoo.json").read_bytes()
    content = json.loads(good)
    for number in range(200):
        if number % 2:
            data = mutated(good, chance)
        else:  # edited with care: the checksum fits again
            changed = reshaped({name: value for name, value in content.items() if name != "checksum"}, chance)
            if isinstance(changed, dict):
                text = json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
                changed = {**changed, "checksum": hashlib.sha256(text.encode()).hexdigest()}
            data = json.dumps(changed).encode()
        with only_own_errors(f"record {number}"):
            PictureRecord.from_json(data)


def test_recovery_with_edited_records_never_succeeds(sealed: Path, tmp_path: Path, capsys: Any) -> None:
    """A record that was edited with care has no valid code: recovery refuses it and writes nothing."""
    chance = random.Random("recovery")
    place = tmp_path / "x.png.facezoo.json"
    (tmp_path / "x.png").write_bytes((sealed / "x.png").read_bytes())
    content = json.loads((sealed / "x.png.facezoo.json").read_bytes())
    plain = {name: value for name, value in content.items() if name != "checksum"}
    for number in range(20):
        changed = reshaped(plain, chance)
        if not isinstance(changed, dict) or changed == plain:
            continue
        text = json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        place.write_text(json.dumps({**changed, "checksum": hashlib.sha256(text.encode()).hexdigest()}))
        words = ["--key-file", str(sealed / "my.key"), "-q", "--allow-unverified"]
        with only_own_errors(f"recovery {number}"):
            code = main(["recover", str(tmp_path / "x.png"), "-o", str(tmp_path / "back.png"), *words])
        assert code in (2, 4, 5, 6), changed
        assert "Traceback" not in capsys.readouterr().err
        assert not (tmp_path / "back.png").exists()


def test_manifests_of_checkpoints(tmp_path: Path) -> None:
    chance = random.Random("manifests")
    folder = write_tiny_checkpoint(tmp_path / "tiny_swap.test")
    path = folder / "manifest.json"
    good = path.read_bytes()
    content = json.loads(good)
    content.pop("checksum")
    for number in range(150):
        data = mutated(good, chance) if number % 2 else json.dumps(reshaped(content, chance)).encode()
        path.write_bytes(data)
        with only_own_errors(f"manifest {number}"):
            manifest, _ = read_manifest(folder)
            verify_files(folder, manifest)


def test_recipes(repository: Path, tmp_path: Path) -> None:
    chance = random.Random("recipes")
    recipes = sorted((repository / "recipes").rglob("*.yaml"))
    path = tmp_path / "recipe.yaml"
    for number in range(100):
        path.write_bytes(mutated(chance.choice(recipes).read_bytes(), chance))
        with only_own_errors(f"recipe {number}"):
            load_recipe(path)


def test_boxes_files(tmp_path: Path) -> None:
    chance = random.Random("boxes")
    picture = np.asarray(portrait().resize((90, 100)))
    anonymizer: Anonymizer = from_pretrained("black_box")
    good = {"boxes": [[20, 20, 70, 80]], "points": [[[35, 40], [55, 40], [45, 52], [38, 65], [52, 65]]]}
    path = tmp_path / "boxes.json"
    for number in range(120):
        text = json.dumps(good).encode()
        path.write_bytes(mutated(text, chance) if number % 2 else json.dumps(reshaped(good, chance)).encode())
        with only_own_errors(f"boxes {number}"):
            entry = _read_boxes(str(path)).get("", {})
            given = entry if isinstance(entry, dict) else {"boxes": entry}
            boxes, points = given.get("boxes"), given.get("points")
            result = anonymizer.anonymize(picture, boxes=boxes, points=points, verify="off")
            assert (result.picture.pixels != picture).any()


def test_key_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    derive: Callable[..., bytes] = lambda self, secret, salt: hashlib.sha256(secret + salt).digest()  # noqa: E731
    monkeypatch.setattr(KdfParams, "derive", derive)  # what a passphrase costs is not the point here
    chance = random.Random("keys")
    good = f"{KEY_FILE_PREFIX}AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n".encode()
    path = tmp_path / "my.key"
    for number in range(100):
        data = mutated(chance.choice((good, b"correct horse battery staple\n", bytes(range(32)))), chance)
        path.write_bytes(data)
        with only_own_errors(f"key file {number}"):
            form = chance.choice(("passphrase", "six-digits", "bits"))
            key = Key.from_file(path, form=form)
            assert data.strip().decode("latin1") not in repr(key) or len(data.strip()) < 4
