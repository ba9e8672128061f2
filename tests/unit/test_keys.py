"""Keys: the same everywhere and always, apart by purpose, strict about what they are made of, silent about secrets."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import hmac
import io
import logging
import math
import os
import pickle
import pprint
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facezoo import keys
from facezoo.errors import KeyMaterialError, OutputError
from facezoo.keys import APPLICATION_SALT, KdfParams, Key, new_salt, read_key

FAST = KdfParams(n=2, r=1, p=1)
PASSPHRASE = "correct horse battery staple"
RAW = bytes(range(32))
SALT = bytes(range(16))


@pytest.fixture(autouse=True)
def _cheap_kdf(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrypt at its real cost only where a test pins its outcome."""
    if "real_kdf" not in request.fixturenames:
        monkeypatch.setattr(keys.KdfParams, "derive", _cheap_derive)


@pytest.fixture
def real_kdf() -> None:
    """Use scrypt at its real cost."""


def _cheap_derive(self: KdfParams, secret: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(secret, salt=salt, n=2, r=1, p=self.p, dklen=32)


def _sha(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:32]


# ---------------------------------------------------------------- pinned values: pictures of years ago must recover


@pytest.mark.usefixtures("real_kdf")
def test_masters_are_pinned_and_are_plain_scrypt() -> None:
    key = Key.from_passphrase(PASSPHRASE)
    assert key == Key.from_bytes(bytes.fromhex("a95aaa6b025506efed3d3838068243863431a74c3d37c6bda723c0412f8d8792"))
    expected = hashlib.scrypt(
        b"passphrase\x00" + PASSPHRASE.encode(), salt=APPLICATION_SALT, n=2**15, r=8, p=1, dklen=32, maxmem=2**26
    )
    assert key == Key.from_bytes(expected)
    assert Key.from_six_digits("012345")._master.hex().startswith("380624db9c9dee4a")
    assert Key.from_bits("0110100110010110")._master.hex().startswith("45620940c52bafb1")


@pytest.mark.usefixtures("real_kdf")
def test_record_names_are_pinned() -> None:
    key = Key.from_bytes(RAW)
    assert key.key_id(SALT) == "d3d050f8ba011b34"
    assert key.seal_key(SALT).hex().startswith("f334c423bc92d36e")
    assert key.mac_key(SALT).hex().startswith("a747bd8a490b4266")


def test_expansions_are_pinned_to_the_bit() -> None:
    key = Key.from_bytes(RAW)
    assert key.bytes("a/b", 16).hex() == "dcf32912722cc5a455cc08f0dac0bdda"
    assert key.bytes("a/b", 16, b"c").hex() == "b8099fb27e6dc04e1d5e1e38f50f68f9"
    assert "".join(map(str, key.bits("a/b", 24))) == "100111110001000011011011"
    assert key.seed("a/b") == 5440973038385144158
    assert key.tag("a/b", b"m").hex().startswith("840d6ae8a8deec26896227c9ab549d5f")
    assert _sha(key.uniform("a/b", 600_000)) == "ecacf6d7c4bd39109dcb1a9cc2ae87e6"
    assert _sha(key.unit_vector("a/b", 512)) == "f2d134b733ff7e1b231102493ee12eab"
    np.testing.assert_array_equal(
        key.unit_vector("a/b", 512)[:2], np.float32([-0.00855602789670229, 0.019383566454052925])
    )


def test_bytes_are_chacha20_under_hkdf() -> None:
    """Against HKDF written out (RFC 5869) and the definition of the seed, so that others can build it too."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    pseudo_random = hmac.digest(b"facezoo-v1", RAW, "sha256")
    seed = hmac.digest(pseudo_random, b"facezoo/v1/bytes\x00purpose\x00context\x01", "sha256")
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(1000))
    assert Key.from_bytes(RAW).bytes("purpose", 1000, b"context") == stream


# ---------------------------------------------------------------- distributions


def test_unit_vector_is_box_muller_of_the_stream() -> None:
    key = Key.from_bytes(RAW)
    words = np.frombuffer(key._expand("unit_vector", "x", 16 * 64, b""), "<u8").reshape(2, 64)
    first, second = ([int(word >> np.uint64(11)) / 2**53 for word in row] for row in words)
    normal = [math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v) for u, v in zip(first, second, strict=True)]
    normal += [math.sqrt(-2 * math.log(1 - u)) * math.sin(2 * math.pi * v) for u, v in zip(first, second, strict=True)]
    expected = np.array(normal) / np.linalg.norm(normal)
    result = key.unit_vector("x", 128)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-8)


def test_exact_functions_agree_with_the_library() -> None:
    u = np.concatenate([[0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1 - 2.0**-53], np.random.default_rng(0).random(20_000)])
    cosine, sine = keys._exact_turn(u)
    np.testing.assert_allclose(cosine, np.cos(2 * np.pi * u), atol=1e-15)
    np.testing.assert_allclose(sine, np.sin(2 * np.pi * u), atol=1e-15)
    x = np.concatenate([[1.0, 2.0**-53, 0.5, math.sqrt(0.5)], u[u > 0]])
    np.testing.assert_allclose(keys._exact_log(x), np.log(x), rtol=1e-15, atol=1e-300)


@pytest.mark.parametrize("dim", [1, 2, 3, 127, 128, 512])
def test_unit_vectors_have_norm_one(dim: int) -> None:
    vector = Key.from_bytes(RAW).unit_vector("x", dim)
    assert vector.shape == (dim,)
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=1e-6)


def test_unit_vectors_are_spread_over_the_sphere() -> None:
    key = Key.from_bytes(RAW)
    vectors = np.stack([key.unit_vector(f"direction {number}", 64) for number in range(400)])
    assert np.abs(vectors.mean(0)).max() < 4 / math.sqrt(400 * 64)
    cosines = (vectors @ vectors.T)[np.triu_indices(400, 1)]
    assert abs(cosines.mean()) < 0.003
    assert cosines.std() == pytest.approx(1 / 8, rel=0.03)


def test_uniform_fills_its_range_evenly() -> None:
    values = Key.from_bytes(RAW).uniform("noise", (3, 200, 500))
    assert values.shape == (3, 200, 500)
    assert values.dtype == np.float32
    assert -1 <= values.min() < -0.9999
    assert 0.9999 < values.max() < 1
    counts = np.histogram(values, bins=16, range=(-1, 1))[0]
    assert np.abs(counts - values.size / 16).max() < 5 * math.sqrt(values.size / 16)
    whole = values.astype(np.float64) * 2**23
    np.testing.assert_array_equal(whole, np.round(whole))
    assert (whole.astype(np.int64) & 1).mean() == pytest.approx(0.5, abs=0.01), "the 24th bit is in use"


def test_uniform_does_not_depend_on_how_it_is_cut() -> None:
    key = Key.from_bytes(RAW)
    long = key.uniform("noise", 2**18 + 1000)  # over the border of an inner piece
    np.testing.assert_array_equal(long[:1000], key.uniform("noise", 1000))
    np.testing.assert_array_equal(
        long[-1000:].reshape(10, 100), key.uniform("noise", (2**18 + 1000,))[-1000:].reshape(10, 100)
    )
    assert key.uniform("noise", ()).shape == ()
    assert key.uniform("noise", (0, 3)).shape == (0, 3)


def test_bits_are_even_and_of_the_asked_number() -> None:
    key = Key.from_bytes(RAW)
    assert key.bits("x", 0).shape == (0,)
    assert key.bits("x", 13).shape == (13,)
    bits = key.bits("x", 100_000)
    assert set(bits.tolist()) == {0, 1}
    assert bits.mean() == pytest.approx(0.5, abs=0.01)


def test_seed_fits_a_signed_64_bit_number() -> None:
    seeds = [Key.from_bytes(RAW).seed(f"{number}") for number in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert len(set(seeds)) == 200


# ---------------------------------------------------------------- apart by purpose, by kind, by key


def test_purposes_kinds_contexts_and_keys_are_apart() -> None:
    key, other = Key.from_bytes(RAW), Key.from_bytes(RAW[::-1])
    outputs = {
        key.bytes("a", 32),
        key.bytes("b", 32),
        key.bytes("a", 32, b"b"),
        key.bytes("ab", 32),
        other.bytes("a", 32),
        np.packbits(key.bits("a", 256), bitorder="little").tobytes(),
        key.tag("a", b""),
        key.tag("a", b"m"),
        key.tag("b", b"m"),
        key.record_key(SALT),
        key.record_key(SALT[::-1]),
        key.seal_key(SALT),
        key.mac_key(SALT),
        RAW,
    }
    assert len(outputs) == 14
    for one in outputs:
        for two in outputs - {one}:
            assert not one.startswith(two[:8])


def test_one_bit_of_the_key_changes_half_of_the_output() -> None:
    changed = bytes([RAW[0] ^ 1, *RAW[1:]])
    distance = np.mean(Key.from_bytes(RAW).bits("x", 4096) != Key.from_bytes(changed).bits("x", 4096))
    assert distance == pytest.approx(0.5, abs=0.05)


def test_key_ids_of_two_records_tell_nothing_in_common() -> None:
    key = Key.from_bytes(RAW)
    names = {key.key_id(new_salt()) for _ in range(20)}
    assert len(names) == 20
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)
    assert key.key_id(SALT) == Key.from_bytes(RAW).key_id(SALT)


def test_record_keys_are_remembered_but_not_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counting(self: KdfParams, secret: bytes, salt: bytes) -> bytes:
        calls.append(salt)
        return _cheap_derive(self, secret, salt)

    monkeypatch.setattr(keys.KdfParams, "derive", counting)
    key = Key.from_bytes(RAW)
    for _ in range(3):
        key.key_id(SALT)
        key.seal_key(SALT)
    assert len(calls) == 1
    key.key_id(SALT, KdfParams(p=2))
    assert len(calls) == 2
    for _ in range(100):
        key.key_id(new_salt())
    assert len(key._record_keys) <= 16


@pytest.mark.parametrize(
    "call",
    [
        lambda key: key.bytes("", 4),
        lambda key: key.bytes("a\x00b", 4),
        lambda key: key.bytes("a", -1),
        lambda key: key.unit_vector("a", 0),
        lambda key: key.tag("a", b"", 0),
        lambda key: key.tag("a", b"", 33),
    ],
)
def test_senseless_expansions_are_refused(call: Callable[[Key], object]) -> None:
    with pytest.raises(ValueError, match=r"purpose|bytes|dimension"):
        call(Key.from_bytes(RAW))


@pytest.mark.parametrize("salt", [b"short", bytes(65), "0123456789abcdef"])
def test_record_salts_are_checked(salt: object) -> None:
    with pytest.raises(KeyMaterialError, match="salt"):
        Key.from_bytes(RAW).key_id(salt)  # type: ignore[arg-type]


# ---------------------------------------------------------------- passphrases


def test_passphrases_are_normalised_but_not_trimmed() -> None:
    assert Key.from_passphrase("Pa\u0308ssword \ufb01ne") == Key.from_passphrase("P\u00e4ssword fine")
    assert Key.from_passphrase("secret words") != Key.from_passphrase("secret words ")
    assert Key.from_passphrase("secret words") != Key.from_passphrase("Secret words")


def test_forms_and_salts_are_apart() -> None:
    made = [
        Key.from_passphrase("000000"),
        Key.from_six_digits("000000"),
        Key.from_bits("000000"),
        Key.from_bits("0000000"),
        Key.from_passphrase("000000", salt=b"my own salt"),
    ]
    assert len(set(made)) == 5


@pytest.mark.usefixtures("real_kdf")
def test_parameters_count() -> None:
    assert Key.from_passphrase("x", kdf=FAST) != Key.from_passphrase("x", kdf=KdfParams(n=4, r=1, p=1))


@pytest.mark.parametrize("text", ["", " ", "\t \n", "\u3000"])
def test_empty_passphrases_are_refused(text: str) -> None:
    with pytest.raises(KeyMaterialError, match="empty"):
        Key.from_passphrase(text)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Key.from_passphrase(b"bytes"), "must be text"),
        (lambda: Key.from_passphrase(None), "must be text"),
        (lambda: Key.from_passphrase("facezoo-key-v1:AAAA"), "content of a key file"),
        (lambda: Key.from_passphrase("x", salt=b"short"), "at least 8"),
        (lambda: Key.from_bytes("0" * 32), "must be bytes"),
        (lambda: Key.from_bytes(RAW[:31]), "exactly 32 bytes, not 31"),
        (lambda: Key.from_bytes(bytes(32)), "equal bytes"),
        (lambda: Key.from_six_digits("12345"), "six digits"),
        (lambda: Key.from_six_digits("1234567"), "six digits"),
        (lambda: Key.from_six_digits("12345\u0663"), "six digits"),
        (lambda: Key.from_six_digits(123456), "six digits"),
        (lambda: Key.from_bits(""), "zeros and ones"),
        (lambda: Key.from_bits("0120"), "zeros and ones"),
        (lambda: Key.from_bits([0, 1, 2]), "zeros and ones"),
        (lambda: Key.from_bits(5), "zeros and ones"),
        (lambda: Key.from_bits("01" * 600), "zeros and ones"),
    ],
)
def test_wrong_material_is_refused_in_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(KeyMaterialError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bits_may_come_as_numbers() -> None:
    assert Key.from_bits([0, 1, 1, 0]) == Key.from_bits("0110") == Key.from_bits(np.array([0, 1, 1, 0], np.uint8))


@pytest.mark.parametrize(
    "values",
    [
        {"n": 3}, {"n": 1}, {"n": 0}, {"r": 0}, {"p": 0}, {"p": 17}, {"n": 2**24}, {"n": 2.0}, {"n": True}, {"n": "2"},
    ],
)  # fmt: skip
def test_scrypt_parameters_are_checked(values: dict[str, int]) -> None:
    with pytest.raises(KeyMaterialError, match="scrypt"):
        KdfParams(**values)


def test_scrypt_parameters_travel_as_a_dict() -> None:
    assert KdfParams.from_dict(FAST.to_dict()) == FAST
    for wrong in (None, {}, {**FAST.to_dict(), "name": "argon2id"}, {**FAST.to_dict(), "x": 1}):
        with pytest.raises(KeyMaterialError, match="key-derivation"):
            KdfParams.from_dict(wrong)


# ---------------------------------------------------------------- worth


def test_the_papers_forms_say_what_they_are_worth() -> None:
    six = Key.from_six_digits("123456")
    assert six.strength_bits == pytest.approx(19.93, abs=0.01)
    assert "19.9 bits" in six.strength_note
    sixteen = Key.from_bits("01" * 8)
    assert sixteen.strength_bits == 16
    assert "16 bits" in sixteen.strength_note
    assert six.advice is not None
    assert sixteen.advice is not None
    assert Key.from_bits("01" * 64).strength_bits == 128
    assert Key.from_bits("01" * 64).advice is None
    assert Key.from_bits("01" * 300).strength_bits == 256
    assert Key.generate().strength_bits == Key.from_bytes(RAW).strength_bits == 256


def test_passphrases_are_rated_at_their_best_and_weak_ones_earn_advice() -> None:
    def worth(text: str) -> float:
        return Key.from_passphrase(text).strength_bits

    assert worth("qmzvkd") == pytest.approx(6 * math.log2(26))
    assert worth("qMzv7d") == pytest.approx(6 * math.log2(62))
    assert worth("123456") < 10
    assert worth("a" * 100) < 16
    assert worth("zqj mfb " * 100) == 256
    assert "at best" in Key.from_passphrase("qmzvkd").strength_note
    assert "fewer than 16" in (Key.from_passphrase("qmzvkd").advice or "")
    assert "may be guessed" in (Key.from_passphrase("a" * 20).advice or "")
    assert Key.from_passphrase("plum orbit canvas tulip anchor").advice is None


# ---------------------------------------------------------------- key files


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_generated_file_is_private_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "my.key"
    key = Key.generate_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Key.from_file(path) == key
    assert Key.from_file(path).advice is None
    content = path.read_text()
    assert content.startswith("facezoo-key-v1:")
    with pytest.raises(OutputError, match="exists"):
        Key.generate_file(path)
    assert path.read_text() == content
    path.chmod(0o644)
    assert "chmod 600" in (Key.from_file(path).advice or "")


def test_generated_keys_differ() -> None:
    assert len({Key.generate() for _ in range(10)}) == 10


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_file_is_a_passphrase_without_its_line_break(tmp_path: Path, ending: bytes, mark: bytes) -> None:
    path = tmp_path / "pass.txt"
    path.write_bytes(mark + " my pässphrase ".encode() + ending)
    assert Key.from_file(path) == Key.from_passphrase(" my pässphrase ")


def test_file_of_32_raw_bytes_is_a_key_and_32_letters_are_a_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(RAW)
    assert Key.from_file(path) == Key.from_bytes(RAW)
    path.write_bytes(b"abcdefghijklmnopqrstuvwxyz012345")
    assert Key.from_file(path) == Key.from_passphrase("abcdefghijklmnopqrstuvwxyz012345")


SECRET_TEXT = "facezoo-key-v1:q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k="
BAD_FILES = {
    "empty": (b"", "is empty"),
    "line breaks only": (b"\n\r\n", "is empty"),
    "zeros": (bytes(32), "is empty"),
    "blank first line": (b"\nsecret-words\n", "more than one line|empty first line"),
    "31 raw bytes": (RAW[:31], "neither text nor 32 raw bytes"),
    "33 raw bytes": (RAW + b"\x00", "neither text nor 32 raw bytes"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "neither text nor 32 raw bytes"),
    "not UTF-8": (b"secret-words \xff\xfe", "neither text nor 32 raw bytes"),
    "too big": (b"secret-words" * 1000, "longer than"),
    "many lines": (b"secret-words\nand more\n", "more than one line"),
    "a record": (b'{\n "version": 1,\n', "more than one line"),
    "PEM": (b"-----BEGIN OPENSSH PRIVATE KEY-----", "PEM"),
    "cut key": (SECRET_TEXT[:-8].encode(), "damaged"),
    "long key": ((SECRET_TEXT[:-1] + "AAAA").encode(), "damaged"),
    "foreign letter": (SECRET_TEXT.replace("q83v", "q8*v").encode(), "damaged"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_unusable_key_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, words = BAD_FILES[name]
    path = tmp_path / "file.key"
    path.write_bytes(content)
    with pytest.raises(KeyMaterialError, match=words) as caught:
        read_key(str(path))
    text = str(caught.value)
    assert "file.key" in text
    assert "\n" not in text
    whole = "".join(traceback.format_exception(caught.value))
    assert "secret-words" not in whole
    assert "q83v" not in whole


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyMaterialError, match="is a folder"):
        read_key(tmp_path)
    with pytest.raises(KeyMaterialError, match="does not exist"):
        read_key(tmp_path / "missing")
    with pytest.raises(KeyMaterialError, match="cannot read"):
        read_key("a\x00b")


# ---------------------------------------------------------------- read_key


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _pipe(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")


def _answers(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    questions: list[str] = []
    rest = list(answers)

    def ask(question: str) -> str:
        questions.append(question)
        if not rest:
            raise EOFError
        return rest.pop(0)

    monkeypatch.setattr(keys.getpass, "getpass", ask)
    monkeypatch.setattr(sys, "stdin", _Terminal())
    return questions


def test_order_is_file_then_variable_then_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p"
    path.write_text("from file")
    _answers(monkeypatch, "from terminal")
    assert read_key(None) == Key.from_passphrase("from terminal")
    monkeypatch.setenv("FACEZOO_KEY", "from variable")
    assert read_key(None) == Key.from_passphrase("from variable")
    assert read_key(str(path)) == Key.from_passphrase("from file")
    monkeypatch.setenv("OTHER", "other")
    assert read_key(None, env="OTHER") == Key.from_passphrase("other")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _pipe(b"piped words\nmore for others\n"))
    assert read_key("-") == Key.from_passphrase("piped words")
    monkeypatch.setattr(sys, "stdin", io.StringIO("text stream\n"))
    assert read_key("-") == Key.from_passphrase("text stream")
    monkeypatch.setattr(sys, "stdin", _pipe(SECRET_TEXT.encode() + b"\n"))
    assert read_key("-").kind == "key file"
    for content, words in ((b"", "empty"), (b"\n", "empty"), (b"x" * 5000, "longer")):
        monkeypatch.setattr(sys, "stdin", _pipe(content))
        with pytest.raises(KeyMaterialError, match=words):
            read_key("-")


def test_dash_on_a_terminal_asks_without_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = _answers(monkeypatch, "typed")
    assert read_key("-") == Key.from_passphrase("typed")
    assert questions == ["Passphrase: "]


def test_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = _answers(monkeypatch, "typed", "typed")
    assert read_key(None, confirm=True) == Key.from_passphrase("typed")
    assert questions == ["Passphrase: ", "Passphrase again: "]
    _answers(monkeypatch, "typed", "tpyed")
    with pytest.raises(KeyMaterialError, match="differ"):
        read_key(None, confirm=True)


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _pipe(b"never read"))
    with pytest.raises(KeyMaterialError, match=r"--key-file FILE.*FACEZOO_KEY"):
        read_key(None)
    _answers(monkeypatch, "never asked")
    with pytest.raises(KeyMaterialError, match="no key given"):
        read_key(None, prompt=False)
    _answers(monkeypatch)
    with pytest.raises(KeyMaterialError, match="no key was typed"):
        read_key(None)
    _answers(monkeypatch, "")
    with pytest.raises(KeyMaterialError, match="typed key is empty"):
        read_key(None)


def test_empty_variable_is_refused_and_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, "typed")
    monkeypatch.setenv("FACEZOO_KEY", "")
    with pytest.raises(KeyMaterialError, match="FACEZOO_KEY is empty"):
        read_key(None)


def test_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p"
    path.write_text("012345\n")
    assert read_key(path, form="six-digits") == Key.from_six_digits("012345")
    assert read_key(path) == Key.from_passphrase("012345")
    monkeypatch.setenv("FACEZOO_KEY", "0110")
    assert read_key(None, form="bits") == Key.from_bits("0110")
    with pytest.raises(KeyMaterialError, match="six digits"):
        read_key(None, form="six-digits")
    generated = Key.generate_file(tmp_path / "k")
    assert read_key(tmp_path / "k", form="bits") == generated
    path.write_bytes(RAW)
    with pytest.raises(KeyMaterialError, match="neither text"):
        read_key(path, form="bits")
    with pytest.raises(KeyMaterialError, match="unknown key form"):
        read_key(path, form="words")  # type: ignore[arg-type]


# ---------------------------------------------------------------- secrets stay inside

SECRET = "swordfish-swordfish"


def _traces(secret_text: str, master: bytes) -> list[str]:
    return [secret_text, master.hex(), repr(master), repr(master)[2:-1], str(list(master))[1:20]]


@dataclasses.dataclass
class _Holder:
    key: Key
    name: str = "context"


def test_nothing_that_prints_shows_the_secret(caplog: pytest.LogCaptureFixture) -> None:
    key = Key.from_passphrase(SECRET)
    key.key_id(SALT)
    logging.getLogger("test").warning("key %s %r", key, key)
    shown = [
        repr(key), str(key), f"{key}", f"{key!r:>200}", repr(_Holder(key)), repr({"key": key}), repr([key]),
        pprint.pformat(_Holder(key)), repr(dataclasses.asdict(_Holder(key))), caplog.text, repr(key.advice),
        key.strength_note, repr(dir(key)), Key.__doc__ or "",
    ]  # fmt: skip
    for text in shown:
        for trace in _traces(SECRET, key._master):
            assert trace not in text
    assert "passphrase" in repr(key)
    with pytest.raises(TypeError):
        vars(key)


def test_no_serialiser_takes_the_secret() -> None:
    key = Key.from_passphrase(SECRET)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(KeyMaterialError, match="never pickled") as caught:
            pickle.dumps(_Holder(key), protocol)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert copy.copy(key) is key
    assert copy.deepcopy({"key": key})["key"] is key


def test_keys_do_not_change() -> None:
    key = Key.from_bytes(RAW)
    for change in (
        lambda: setattr(key, "_master", bytes(32)),
        lambda: setattr(key, "new", 1),
        lambda: delattr(key, "kind"),
    ):
        with pytest.raises(AttributeError, match="cannot be changed"):
            change()


def test_errors_carry_no_secret_even_in_their_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Unicode error holds the text it failed on: it must not hang on our error as its cause or context."""
    bad_text = SECRET + "\udcff"
    path = tmp_path / "p"
    path.write_bytes(SECRET.encode() + b"\xff")
    _answers(monkeypatch, bad_text, bad_text)
    calls: list[Callable[[], object]] = [
        lambda: Key.from_passphrase(bad_text),
        lambda: Key.from_file(path),
        lambda: read_key(None, confirm=True),
        lambda: Key.from_six_digits(SECRET),
        lambda: Key.from_bits(SECRET),
        lambda: Key.from_bytes(SECRET.encode()),
        lambda: Key.from_passphrase(SECRET, salt=b""),
    ]
    for call in calls:
        with pytest.raises(KeyMaterialError) as caught:
            call()
        seen: BaseException | None = caught.value
        while seen is not None:
            assert SECRET not in repr(seen.args)
            assert SECRET not in str(seen)
            seen = seen.__cause__ or seen.__context__


def test_equality_is_with_keys_only() -> None:
    assert Key.from_bytes(RAW) == Key.from_bytes(bytearray(RAW))
    assert Key.from_bytes(RAW) != RAW
    assert hash(Key.from_bytes(RAW)) == hash(Key.from_bytes(RAW))


def test_importing_is_light(repository: Path) -> None:
    code = (
        "import sys, facezoo.keys, facezoo.records\n"
        "print([name for name in ('torch', 'cv2', 'numpy', 'cryptography', 'PIL') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert result.stdout.strip() == "[]"
