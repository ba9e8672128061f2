"""Records: strict, tamper-evident, without secrets; sealed crops come back to the byte or not at all."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facezoo import records
from facezoo.errors import InputError, OutputError, RecordError
from facezoo.keys import KdfParams, Key
from facezoo.records import (
    FaceRecord,
    PictureRecord,
    embed_in_png,
    embed_record,
    extract_record,
    find_record,
    open_face,
    open_seal,
    picture_sha256,
    read_embedded,
    read_record,
    read_sidecar,
    seal_aad,
    seal_crop,
    seal_faces,
    sidecar_path,
    write_sidecar,
)

FAST = KdfParams(n=2, r=1, p=1)
KEY = Key.from_bytes(bytes(range(32)))
WRONG = Key.from_bytes(bytes(range(1, 33)))
SALT = bytes(range(16))


def _png(width: int, height: int, seed: int = 0, mode: str = "RGB") -> bytes:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, mode if mode == "RGBA" else None).save(stream, "PNG")
    return stream.getvalue()


CROPS = [_png(40, 40, 1), _png(40, 40, 2), b"\x80\x00\x80"]


def _record(**changes: object) -> PictureRecord:
    faces = [
        FaceRecord.of((10.5 + 100 * i, 20, 60 + 100 * i, 80.25), np.arange(10).reshape(5, 2) + 0.1 * i, 0.9)
        for i in range(3)
    ]
    values: dict[str, object] = {
        "method": "identity_rotation",
        "model": "identity_rotation.faces128",
        "size": (640, 480),
        "faces": faces,
        "options": {"level": 5, "note": "Grüße", "weights": [0.1, 0.2], "nested": {"on": True, "none": None}},
        "checkpoint_sha256": "ab" * 32,
        "picture_sha256": "cd" * 32,
        "facezoo_version": "0.1.0",
        "kdf": FAST.to_dict(),
    }
    return PictureRecord(**{**values, **changes})  # type: ignore[arg-type]


@functools.cache  # nonces are fresh every time, and the tests compare records
def _sealed() -> PictureRecord:
    return seal_faces(_record().with_key(KEY, SALT), KEY, CROPS).authenticated(KEY)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    "record",
    [_record(), _record(faces=[]), _record(options={}, checkpoint_sha256=None, picture_sha256=None), _sealed()],
)
def test_json_round_trip(record: PictureRecord) -> None:
    text = record.to_json()
    again = PictureRecord.from_json(text)
    assert again == record
    assert again.to_json() == text
    assert PictureRecord.from_json(text.encode()) == record
    crlf = text.replace("\n", "\r\n")  # a checkout on Windows does this
    assert PictureRecord.from_json(crlf) == record


def test_numbers_of_numpy_become_plain() -> None:
    face = FaceRecord.of(np.float32([1, 2, 3, 4]), np.zeros((5, 2), np.float32), np.float32(0.5))
    assert face.box == (1.0, 2.0, 3.0, 4.0)
    assert all(type(value) is float for value in (*face.box, *face.points[0], face.score))
    assert FaceRecord.of([np.float64(1), np.int64(2), 3, 4], [(0, 0)] * 5) == FaceRecord.of((1, 2, 3, 4), [[0, 0]] * 5)
    assert _record(size=(np.int64(640), np.int32(480))).size == (640, 480)


def test_json_is_readable_and_one_line_a_face() -> None:
    lines = _record().to_json().splitlines()
    assert sum(line.startswith('  {"box"') for line in lines) == 3
    assert len(lines) < 25


def test_record_with_real_scrypt() -> None:
    record = dataclasses.replace(_record(), kdf=KdfParams().to_dict()).with_key(KEY)
    assert record.key_id == KEY.key_id(record.salt or b"")
    assert PictureRecord.from_json(record.to_json()).matches_key(KEY)


# ---------------------------------------------------------------- keys


def test_record_names_its_key_and_no_other() -> None:
    record = _record().with_key(KEY)
    assert record.matches_key(KEY)
    assert not record.matches_key(WRONG)
    assert not _record().matches_key(KEY)
    assert record.with_key(KEY).key_id != record.key_id, "a fresh salt gives a fresh name"


def test_authentication() -> None:
    record = _record().with_key(KEY).authenticated(KEY)
    PictureRecord.from_json(record.to_json()).verify(KEY)
    with pytest.raises(RecordError, match="another key"):
        record.verify(WRONG)
    with pytest.raises(RecordError, match="another key"):
        _record().with_key(KEY).authenticated(WRONG)
    with pytest.raises(RecordError, match="no authentication code"):
        _record().with_key(KEY).verify(KEY)
    for call in (_record().verify, _record().authenticated):
        with pytest.raises(RecordError, match="names no key"):
            call(KEY)


CHANGES: dict[str, object] = {
    "method": "gaussian_blur",
    "model": "other",
    "size": (641, 480),
    "options": {"level": 6},
    "checkpoint_sha256": "00" * 32,
    "picture_sha256": None,
    "facezoo_version": "0.1.1",
    "faces": _record().faces[::-1],
    "kdf": KdfParams(n=4, r=1, p=1).to_dict(),
    "record_salt": base64.b64encode(SALT[::-1]).decode(),
    "key_id": "0" * 16,
    "mac": base64.b64encode(bytes(32)).decode(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_is_authenticated(name: str) -> None:
    """By somebody who knows the format, and so writes a right checksum."""
    record = _record().with_key(KEY, SALT).authenticated(KEY)
    changed = PictureRecord.from_json(dataclasses.replace(record, **{name: CHANGES[name]}).to_json())
    with pytest.raises(RecordError, match=r"changed|another key"):
        changed.verify(KEY)


def test_every_field_has_its_change() -> None:
    assert set(CHANGES) | {"version"} == {field.name for field in dataclasses.fields(PictureRecord)}


def test_nothing_secret_is_written() -> None:
    key = Key.from_passphrase("swordfish-swordfish", kdf=FAST)
    record = seal_faces(_record().with_key(key, SALT), key, CROPS).authenticated(key)
    for secret in (
        b"swordfish", key._master, key.record_key(SALT, FAST), key.seal_key(SALT, FAST), key.mac_key(SALT, FAST),
    ):  # fmt: skip
        for form in (secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="), repr(secret)[2:-1].encode()):
            for text in (record.to_json().encode(), repr(record).encode(), embed_record(_png(8, 8), record)):
                assert form not in text


def test_a_key_cannot_slip_into_the_options() -> None:
    for value in (KEY, b"bytes", {1: 2}, [object()], float("nan"), {"deep": [{"er": KEY}]}):
        with pytest.raises(RecordError, match="options"):
            _record(options={"x": value})


# ---------------------------------------------------------------- damage


def test_every_flipped_byte_is_refused() -> None:
    record = seal_faces(_record().with_key(KEY, SALT), KEY, [b"1", b"2", b"3"]).authenticated(KEY)
    text = record.to_json().encode()
    generator = random.Random(0)
    for position in range(len(text)):
        data = bytearray(text)
        data[position] ^= generator.choice([1, 2, 4, 8, 16, 32, 64, 128, 255])
        if not (text[position : position + 1] + data[position : position + 1]).strip():
            continue  # one white space for another
        with pytest.raises(RecordError):
            PictureRecord.from_json(bytes(data))


def test_every_truncation_is_refused() -> None:
    text = _sealed().to_json()
    for end in [*range(0, len(text) - 2, 37), len(text) - 3, len(text) - 2]:
        with pytest.raises(RecordError):
            PictureRecord.from_json(text[:end])


def _edited(change: Callable[[dict[str, object]], object]) -> str:
    """A record changed by ``change``, with a right checksum."""
    content = json.loads(_sealed().to_json())
    del content["checksum"]
    change(content)
    content["checksum"] = records._checksum(content)
    return json.dumps(content)


EDITS: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing field": (lambda c: c.pop("size"), "lacks size"),
    "unknown field": (lambda c: c.update(extra=1), "unknown fields.*extra"),
    "missing face field": (lambda c: c["faces"][0].pop("points"), "a face in the record lacks points"),
    "unknown face field": (lambda c: c["faces"][0].update(embedding=[1]), "unknown fields.*embedding"),
    "newer format": (lambda c: c.update(version=2), "upgrade facezoo"),
    "older format": (lambda c: c.update(version=0), "format 0"),
    "format true": (lambda c: c.update(version=True), "format True"),
    "method number": (lambda c: c.update(method=3), "method"),
    "method empty": (lambda c: c.update(method=""), "method"),
    "size float": (lambda c: c.update(size=[640.0, 480]), "size"),
    "size zero": (lambda c: c.update(size=[0, 480]), "size"),
    "size three": (lambda c: c.update(size=[1, 2, 3]), "size"),
    "size boolean": (lambda c: c.update(size=[True, 3]), "size"),
    "faces object": (lambda c: c.update(faces={}), "faces"),
    "face text": (lambda c: c.update(faces=["x"]), "faces"),
    "box short": (lambda c: c["faces"][0].update(box=[1, 2, 3]), "box"),
    "box text": (lambda c: c["faces"][0].update(box=["1", 2, 3, 4]), "box"),
    "box empty": (lambda c: c["faces"][0].update(box=[5, 2, 5, 4]), "no area"),
    "box infinite": (lambda c: c["faces"][0].update(box=[1, 2, 10**400, 4]), "finite"),
    "points four": (lambda c: c["faces"][0].update(points=[[1, 2]] * 4), "points"),
    "points flat": (lambda c: c["faces"][0].update(points=[1, 2, 3, 4, 5]), "points"),
    "score null": (lambda c: c["faces"][0].update(score=None), "score"),
    "sealed number": (lambda c: c["faces"][0].update(sealed=1), "sealed"),
    "options list": (lambda c: c.update(options=[]), "options"),
    "hash short": (lambda c: c.update(checkpoint_sha256="ab"), "checkpoint_sha256"),
    "hash upper": (lambda c: c.update(picture_sha256="AB" * 32), "picture_sha256"),
    "id without salt": (lambda c: c.update(record_salt=None), "without a salt"),
    "salt without id": (lambda c: c.update(key_id=None), "without a key id"),
    "sealed without key": (lambda c: c.update(key_id=None, record_salt=None), "names no key"),
    "salt short": (lambda c: c.update(record_salt="AAAA"), "record_salt"),
    "salt no base64": (lambda c: c.update(record_salt="!" * 24), "record_salt"),
    "mac short": (lambda c: c.update(mac="AAAA"), "mac"),
    "kdf unknown": (lambda c: c["kdf"].update(name="md5"), "key-derivation"),
    "kdf greedy": (lambda c: c["kdf"].update(n=2**30), "cost too much"),
    "kdf odd": (lambda c: c["kdf"].update(n=3), "power of two"),
    "kdf list": (lambda c: c.update(kdf=[]), "key-derivation"),
}


@pytest.mark.parametrize("name", EDITS)
def test_every_wrong_field_is_refused_in_one_line(name: str) -> None:
    change, words = EDITS[name]
    with pytest.raises(RecordError, match=words) as caught:
        PictureRecord.from_json(_edited(change))
    assert "\n" not in str(caught.value)


def test_the_helper_for_edits_is_right() -> None:
    assert PictureRecord.from_json(_edited(lambda c: None)) == _sealed()


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "3", '"text"', "{}", "{", "\x00", "[" * 100_000,
        '{"a": NaN}', '{"version": ' + "1" * 5000 + "}",
        '{"version": 1, "version": 1}', b"\xff\xfe", b"\x89PNG\r\n\x1a\n",
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(text: str | bytes) -> None:
    with pytest.raises(RecordError) as caught:
        PictureRecord.from_json(text)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- seals


def test_sealed_crops_come_back_to_the_byte() -> None:
    record = PictureRecord.from_json(_sealed().to_json())
    record.verify(KEY)
    assert [open_face(record, index, KEY) for index in range(3)] == CROPS
    decoded = np.asarray(Image.open(io.BytesIO(open_face(record, 0, KEY))))
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(CROPS[0]))))


def test_any_bytes_can_be_sealed() -> None:
    generator = random.Random(1)
    for length in [0, 1, 2, 1022, 1023, 1024, 1025, *(generator.randrange(5000) for _ in range(20))]:
        for data in (generator.randbytes(length), bytes(length), b"\x80" * length):
            assert open_seal(KEY, SALT, seal_crop(KEY, SALT, data, b"aad", FAST), b"aad", FAST) == data


def test_seals_hide_content_and_length() -> None:
    one, two = (seal_crop(KEY, SALT, b"same", b"", FAST) for _ in range(2))
    assert one != two, "the nonce is fresh every time"
    assert len(one) == len(seal_crop(KEY, SALT, b"x" * 1000, b"", FAST))


def test_every_flipped_byte_of_a_seal_is_refused() -> None:
    sealed = base64.b64decode(seal_crop(KEY, SALT, b"crop", b"aad", FAST))
    for position in range(len(sealed)):
        data = bytearray(sealed)
        data[position] ^= 1 << position % 8
        with pytest.raises(RecordError, match="does not open"):
            open_seal(KEY, SALT, base64.b64encode(data).decode(), b"aad", FAST)


def test_shortened_and_foreign_seals_are_refused() -> None:
    sealed = seal_crop(KEY, SALT, bytes(3000), b"aad", FAST)
    raw = base64.b64decode(sealed)
    for end in (0, 1, 12, 28, 1052, len(raw) - 1024, len(raw) - 1):
        with pytest.raises(RecordError):
            open_seal(KEY, SALT, base64.b64encode(raw[:end]).decode(), b"aad", FAST)
    for text in (sealed[:-1], sealed[:-2] + "!=", sealed + "AAAA", sealed + "\n", "ü" * 40):
        with pytest.raises(RecordError):
            open_seal(KEY, SALT, text, b"aad", FAST)
    for key, salt, aad in ((WRONG, SALT, b"aad"), (KEY, SALT[::-1], b"aad"), (KEY, SALT, b"aae")):
        with pytest.raises(RecordError, match="does not open"):
            open_seal(key, salt, sealed, aad, FAST)


def test_wrong_key_opens_no_face() -> None:
    with pytest.raises(RecordError, match="does not open"):
        open_face(_sealed(), 0, WRONG)


def test_swapped_faces_are_refused() -> None:
    record = _sealed()
    one, two, three = record.faces
    swapped_seals = [
        dataclasses.replace(one, sealed=two.sealed),
        dataclasses.replace(two, sealed=one.sealed),
        three,
    ]
    for faces in (swapped_seals, [two, one, three], [one, two]):
        changed = dataclasses.replace(record, faces=faces)
        with pytest.raises(RecordError, match="changed"):
            changed.verify(KEY)
        with pytest.raises(RecordError, match="does not open"):
            open_face(changed, 0, KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "other"},
        {"size": (640, 481)},
        {"faces": [FaceRecord.of((10, 20, 61, 80), _record().faces[0].points)]},
        {"record_salt": base64.b64encode(SALT[::-1]).decode()},
    ],
)
def test_seal_is_bound_to_its_place(change: dict[str, object]) -> None:
    record = seal_faces(_record(faces=_record().faces[:1]).with_key(KEY, SALT), KEY, [b"crop"])
    if "faces" in change:
        face = dataclasses.replace(change["faces"][0], sealed=record.faces[0].sealed)  # type: ignore[index]
        change = {"faces": [face]}
    with pytest.raises(RecordError, match="does not open"):
        open_face(dataclasses.replace(record, **change), 0, KEY)


def test_seal_aad_is_canonical() -> None:
    points = [[1, 2]] * 5
    plain = seal_aad("m", (1, 2, 3, 4), points, (10, 20))
    assert plain == seal_aad("m", np.float32([1, 2, 3, 4]), np.float64(points), [10, 20])
    assert plain != seal_aad("m", (1, 2, 3, 5), points, (10, 20))
    assert json.loads(plain)["box"] == [1.0, 2.0, 3.0, 4.0]


def test_sealing_asks_for_the_right_key_and_number() -> None:
    named = _record().with_key(KEY, SALT)
    with pytest.raises(RecordError, match="another key"):
        seal_faces(named, WRONG, CROPS)
    with pytest.raises(RecordError, match="names no key"):
        seal_faces(_record(), KEY, CROPS)
    with pytest.raises(RecordError, match="3 faces and 2 crops"):
        seal_faces(named, KEY, CROPS[:2])
    with pytest.raises(RecordError, match="not sealed"):
        open_face(named, 0, KEY)
    with pytest.raises(RecordError, match="none with the number 3"):
        open_face(_sealed(), 3, KEY)


# ---------------------------------------------------------------- sidecars


def test_sidecar(tmp_path: Path) -> None:
    picture = tmp_path / "group.anon.png"
    assert sidecar_path(picture).name == "group.anon.png.facezoo.json"
    record = _sealed()
    assert write_sidecar(picture, record) == sidecar_path(picture)
    assert read_sidecar(picture) == record == read_record(sidecar_path(picture))
    with pytest.raises(OutputError, match="exists"):
        write_sidecar(picture, _record())
    assert read_sidecar(picture) == record
    write_sidecar(picture, _record(), overwrite=True)
    assert read_sidecar(picture) == _record()


def test_unreadable_sidecars(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    with pytest.raises(RecordError, match="does not exist"):
        read_sidecar(picture)
    sidecar_path(picture).mkdir()
    with pytest.raises(RecordError, match="is a folder"):
        read_sidecar(picture)
    sidecar_path(picture).rmdir()
    sidecar_path(picture).write_bytes(b"")
    with pytest.raises(RecordError, match=r"a\.png\.facezoo\.json.*truncated"):
        read_sidecar(picture)


def test_find_record_prefers_the_sidecar_and_never_passes_over_a_damaged_one(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(_png(8, 8))
    assert find_record(picture) is None
    embed_in_png(picture, _record())
    assert find_record(picture) == _record()
    write_sidecar(picture, _sealed())
    assert find_record(picture) == _sealed()
    sidecar_path(picture).write_text("{")
    with pytest.raises(RecordError):
        find_record(picture)
    with pytest.raises(InputError, match="does not exist"):
        find_record(tmp_path / "missing.png")


# ---------------------------------------------------------------- PNG


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_embedding_does_not_touch_the_picture(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png(50, 30, mode=mode))
    before_bytes = path.read_bytes()
    before = np.asarray(Image.open(path))
    embed_in_png(path, _sealed())
    after = Image.open(path)
    after.load()
    assert after.mode == mode
    np.testing.assert_array_equal(np.asarray(after), before)
    assert read_embedded(path) == _sealed()
    assert picture_sha256(path) == picture_sha256(before_bytes)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_decoders_read_the_picture_too() -> None:
    cv2 = pytest.importorskip("cv2")
    png = _png(50, 30)
    embedded = embed_record(png, _sealed())
    first, second = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in (png, embedded))
    np.testing.assert_array_equal(first, second)


def test_big_sealed_record_still_opens_in_pillow() -> None:
    """Pillow refuses compressed texts above 1 MiB; ours must not be one."""
    crop = np.random.default_rng(0).integers(0, 256, 1_500_000, np.uint8).tobytes()
    record = seal_faces(_record().with_key(KEY, SALT), KEY, [crop, b"", b""])
    png = embed_record(_png(20, 20), record)
    image = Image.open(io.BytesIO(png))
    image.load()
    found = extract_record(png)
    assert found is not None
    assert open_face(found, 0, KEY) == crop


def test_record_too_big_for_a_chunk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png(8, 8))
    before = path.read_bytes()
    record = seal_faces(_record().with_key(KEY, SALT), KEY, [bytes(7_000_000), b"", b""])
    with pytest.raises(OutputError, match="sidecar"):
        embed_in_png(path, record)
    assert path.read_bytes() == before


def test_embedding_again_replaces_the_record() -> None:
    png = _png(20, 20)
    first = embed_record(png, _record())
    second = embed_record(first, _sealed())
    assert extract_record(second) == _sealed()
    assert second.count(b"iTXtfacezoo\x00") == 1
    assert embed_record(second, _record()) == first


def test_other_chunks_stay(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (5, 5)).save(stream, "PNG", icc_profile=b"profile", dpi=(300, 300))
    image = Image.open(io.BytesIO(embed_record(stream.getvalue(), _record())))
    image.load()
    assert image.info["icc_profile"] == b"profile"
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_picture_without_record(tmp_path: Path) -> None:
    assert extract_record(_png(5, 5)) is None
    path = tmp_path / "a.jpg"
    Image.new("RGB", (5, 5)).save(path)
    assert read_embedded(path) is None
    before = path.read_bytes()
    with pytest.raises(InputError, match="only a PNG"):
        embed_in_png(path, _record())
    assert path.read_bytes() == before
    assert picture_sha256(path) == picture_sha256(before)


def test_damaged_embedded_record_is_refused() -> None:
    png = embed_record(_png(20, 20), _record())
    start = png.index(b"iTXtfacezoo") - 4
    length = struct.unpack(">I", png[start : start + 4])[0]
    for position in range(start + 16, start + 12 + length, 7):
        data = bytearray(png)
        data[position] ^= 4
        with pytest.raises(RecordError, match="damaged"):
            extract_record(bytes(data))
    # With a right chunk checksum the record's own one speaks.
    data = bytearray(png)
    data[data.index(b"identity_rotation")] ^= 1
    data[start + 8 + length : start + 12 + length] = struct.pack(">I", zlib.crc32(data[start + 4 : start + 8 + length]))
    with pytest.raises(RecordError, match="checksum is wrong"):
        extract_record(bytes(data))
    chunk = png[start : start + 12 + length]
    with pytest.raises(RecordError, match="more than one"):
        extract_record(png[:start] + chunk + png[start:])


def test_truncated_png_is_refused(tmp_path: Path) -> None:
    png = embed_record(_png(20, 20), _record())
    for end in (9, 20, 40, len(png) // 2, len(png) - 12, len(png) - 1):
        with pytest.raises(RecordError, match="truncated"):
            extract_record(png[:end])
        with pytest.raises(RecordError, match="truncated"):
            embed_record(png[:end], _record())
    path = tmp_path / "cut.png"
    path.write_bytes(png[:-1])
    with pytest.raises(RecordError, match=r"cut\.png"):
        read_embedded(path)


def test_record_knows_its_picture(tmp_path: Path) -> None:
    png, other = _png(20, 20, 0), _png(20, 20, 1)
    record = _record(picture_sha256=picture_sha256(png))
    path = tmp_path / "a.png"
    path.write_bytes(embed_record(png, record))
    found = read_embedded(path)
    assert found is not None
    assert found.belongs_to(path)
    assert found.belongs_to(png)
    assert not found.belongs_to(other)
    assert not _record(picture_sha256=None).belongs_to(png)


def test_a_field_named_twice_is_refused() -> None:
    """Two readers of one text could otherwise see two records."""
    text = _record().to_json()
    line = ' "method": "identity_rotation",\n'
    assert line in text
    with pytest.raises(RecordError, match="twice"):
        PictureRecord.from_json(text.replace(line, line + line))
