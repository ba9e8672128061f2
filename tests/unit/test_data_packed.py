"""Packed sets: what is written is what is read, and damaged files are refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from facezoo.data import packed as packed_module
from facezoo.data.packed import PackedFaces, rewrite_packed, write_packed
from facezoo.data.split import is_evaluation
from facezoo.errors import InputError, OutputError

SIZE = 8
PEOPLE = ["eve", "adam", "eve", "zoë", "adam"]


def _pictures(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def _write(path: Path, **changes: object) -> Path:
    arguments: dict[str, object] = {
        "size": SIZE,
        "identities": PEOPLE,
        "files": [f"{index}.jpg" for index in range(5)],
        "arrays": {
            "sex": np.array([0, 1, 0, -1, 1], dtype=np.int16),
            "points": np.arange(50, dtype=np.float32).reshape(5, 5, 2),
            "embedding_sface": np.arange(10, dtype=">f4").reshape(5, 2),
        },
        "metadata": {"expressions": "[]"},
        "source": "a test",
    }
    return write_packed(path, iter(_pictures()), **(arguments | changes))  # type: ignore[arg-type]


def test_everything_written_is_read_back(tmp_path: Path) -> None:
    faces = PackedFaces(_write(tmp_path / "a.safetensors"))
    assert len(faces) == 5
    assert faces.size == SIZE
    assert np.array_equal(faces.images, _pictures())
    assert [faces.identities[number] for number in faces.identity] == PEOPLE
    assert faces.identities == ["adam", "eve", "zoë"]
    assert faces.files[3] == "3.jpg"
    assert faces.array("sex").tolist() == [0, 1, 0, -1, 1]
    assert faces.array("embedding_sface")[1].tolist() == [2.0, 3.0]  # big-endian input is turned round
    assert faces.points is not None
    assert faces.points[4, 4].tolist() == [48.0, 49.0]
    assert faces.indices_of("eve").tolist() == [0, 2]
    assert faces.metadata["source"] == "a test"


def test_pictures_are_mapped_and_not_loaded(tmp_path: Path) -> None:
    faces = PackedFaces(_write(tmp_path / "a.safetensors"))
    assert isinstance(faces.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        faces.images[0] = 0


def test_a_batch_is_a_copy_in_the_order_asked_for(tmp_path: Path) -> None:
    faces = PackedFaces(_write(tmp_path / "a.safetensors"))
    batch = faces.batch([3, 0, 3])
    assert np.array_equal(batch, _pictures()[[3, 0, 3]])
    batch[:] = 0  # a training step may work in place
    assert np.array_equal(faces.images, _pictures())


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.safetensors")
    with safe_open(path, "np") as file:
        assert np.array_equal(file.get_tensor("images"), _pictures())
        assert file.get_tensor("points").dtype == np.float32
        assert json.loads(file.metadata()["identities"]) == ["adam", "eve", "zoë"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    assert _write(tmp_path / "a").read_bytes() == _write(tmp_path / "b").read_bytes()


def test_a_pickled_set_is_small_and_works(tmp_path: Path) -> None:
    faces = PackedFaces(_write(tmp_path / "a.safetensors"))
    assert faces.images.shape  # mapped before it is pickled
    data = pickle.dumps(faces)
    assert len(data) < 3000
    assert np.array_equal(pickle.loads(data).images, _pictures())


def test_an_empty_set_is_possible(tmp_path: Path) -> None:
    path = write_packed(tmp_path / "a", iter([]), size=SIZE, identities=[], files=[])
    assert PackedFaces(path).images.shape == (0, SIZE, SIZE, 3)


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        _write(path, source="other")
    assert path.read_bytes() == before
    _write(path, source="other", overwrite=True)
    assert PackedFaces(path).metadata["source"] == "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identities": [*PEOPLE, "cain"], "files": [""] * 6, "arrays": {}}, "only 5 pictures came for 6"),
        ({"identities": PEOPLE[:4], "files": [""] * 4, "arrays": {}}, "more pictures than the 4"),
        ({"files": ["one"]}, "5 identities but 1 files"),
        ({"size": 9}, "align it first"),
        ({"arrays": {"sex": np.zeros(4, dtype=np.int16)}}, "not one row for each of 5"),
        ({"arrays": {"sex": np.array(["f"] * 5)}}, "use int16, int32 or float32"),
        ({"arrays": {"images": np.zeros(5, dtype=np.int16)}}, "is taken"),
    ],
)
def test_wrong_input_leaves_nothing_behind(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _write(tmp_path / "a.safetensors", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(packed_module.os, "fsync", full)
    with pytest.raises(OutputError, match="free some space"):
        _write(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def _header(**changes: object) -> bytes:
    header: dict[str, object] = {
        "__metadata__": {"facezoo_packed": "1", "identities": '["a"]', "files": '["f"]'},
        "identity": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]},
        "images": {"dtype": "U8", "shape": [1, 2, 2, 3], "data_offsets": [4, 16]},
    }
    text = json.dumps(header | changes).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


def test_the_handmade_file_of_the_next_test_is_sound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(_header())
    assert PackedFaces(tmp_path / "a").images.shape == (1, 2, 2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"\xff" * 100, "not a packed set"),
        (struct.pack("<Q", 10) + b"no json..." + bytes(10), "damaged"),
        (struct.pack("<Q", 2) + b"[]", "damaged"),
        (_header()[:-1], "cut short"),
        (_header(__metadata__={}), "of version 1"),
        (_header(__metadata__={"facezoo_packed": "2"}), "of version 1"),
        (_header(__metadata__={"facezoo_packed": "1", "identities": "[1]", "files": '["f"]'}), "identities"),
        (_header(__metadata__={"facezoo_packed": "1", "identities": '["a"]', "files": "[]"}), "0 files for 1"),
        (_header(__metadata__={"facezoo_packed": "1", "identities": "[]", "files": '["f"]'}), "outside its list"),
        (_header(images={"dtype": "U8", "shape": [1, 2, 2, 3], "data_offsets": [4, 17]}), "damaged"),
        (_header(images={"dtype": "X9", "shape": [1, 2, 2, 3], "data_offsets": [4, 16]}), "damaged"),
        (_header(images={"dtype": "U8", "shape": [1, 2, 6], "data_offsets": [4, 16]}), "must be uint8"),
        (_header(identity={"dtype": "I16", "shape": [2], "data_offsets": [0, 4]}), "must be int32"),
        (_header(images=5), "damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        PackedFaces(path)


def test_a_missing_file_and_a_missing_label_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.safetensors"):
        PackedFaces(tmp_path / "nowhere.safetensors")
    with pytest.raises(InputError, match="has no 'age'; it has: "):
        PackedFaces(_write(tmp_path / "a")).array("age")


def test_rewriting_chooses_pictures_and_adds_labels(tmp_path: Path) -> None:
    source = _write(tmp_path / "a")
    output = rewrite_packed(source, tmp_path / "b", indices=[4, 0], arrays={"age": np.array([7, 9], dtype=np.int16)})
    faces = PackedFaces(output)
    assert np.array_equal(faces.images, _pictures()[[4, 0]])
    assert [faces.identities[number] for number in faces.identity] == ["adam", "eve"]
    assert faces.files == ["4.jpg", "0.jpg"]
    assert faces.array("age").tolist() == [7, 9]
    assert faces.array("sex").tolist() == [1, 0]
    assert faces.metadata["expressions"] == "[]"
    with pytest.raises(InputError, match="outside"):
        rewrite_packed(source, tmp_path / "c", indices=[5])


def test_rewriting_in_place(tmp_path: Path) -> None:
    path = _write(tmp_path / "a")
    rewrite_packed(path, path, arrays={"age": np.arange(5, dtype=np.int16)}, overwrite=True)
    assert np.array_equal(PackedFaces(path).images, _pictures())
    assert PackedFaces(path).array("age").tolist() == [0, 1, 2, 3, 4]


def test_the_split_rule_never_moves_anyone() -> None:
    # Written down when the rule was fixed: a change here would mix training and evaluation people.
    assert [number for number in range(60) if is_evaluation(f"person_{number}")] == [12, 14, 20, 46, 47]
    share = np.mean([is_evaluation(str(number)) for number in range(5000)])
    assert 0.09 < share < 0.115


def test_a_nameless_person_has_no_side() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        is_evaluation("")
