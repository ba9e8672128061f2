"""Tar shards answer like the packed set that they were made from: same pictures, same labels, same batches."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from facezoo.cli import main
from facezoo.core.batches import PackedBatches
from facezoo.core.sampler import StepSampler
from facezoo.data.embeddings import ensure_embeddings
from facezoo.data.packed import PackedFaces, write_packed
from facezoo.data.shards import INDEX, ShardedFaces, ShardedImages, add_arrays, check_shards, index_shards, open_faces
from facezoo.data.shards import pack_shards as pack
from facezoo.errors import InputError, OutputError

COUNT, SIZE = 23, 8


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return write_packed(
        tmp_path / "set.safetensors",
        iter(rng.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)),
        size=SIZE,
        identities=[f"p{n % 5}" for n in range(COUNT)],
        files=[f"{n}.png" for n in range(COUNT)],
        arrays={
            "age": np.arange(COUNT, dtype=np.int16),
            "points": rng.random((COUNT, 5, 2), dtype=np.float32),
            "embedding_sface": rng.random((COUNT, 4), dtype=np.float32),
        },
        source="invented",
    )


@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_same_as_the_packed_set(packed: Path, tmp_path: Path, encoding: str):
    faces, shards = PackedFaces(packed), pack(packed, tmp_path / "shards", shard_bytes=9000, encoding=encoding)
    assert len(shards.shards) > 3
    assert (len(shards), shards.size, shards.files, shards.identities) == (COUNT, SIZE, faces.files, faces.identities)
    assert np.array_equal(shards.images[:], faces.images)
    assert np.array_equal(shards.batch([22, 0, 22, 7]), faces.batch([22, 0, 22, 7]))
    assert np.array_equal(shards.images[-1], faces.images[-1])
    assert shards.label_names == faces.label_names
    for name in ("identity", *faces.label_names):
        assert np.array_equal(shards.array(name), faces.array(name)), name
    assert shards.metadata["source"] == "invented"
    assert len(check_shards(tmp_path / "shards")) == COUNT


@pytest.mark.parametrize("ranks", [1, 2])
def test_same_batches_also_from_the_middle(packed: Path, tmp_path: Path, ranks: int):
    """Two laps and more; resumed at batch 5; each of two ranks; resized on the way."""
    pack(packed, tmp_path / "shards", shard_bytes=5000)

    def batches(path: Path, rank: int, start: int, end: int) -> list[dict[str, torch.Tensor]]:
        data = PackedBatches([path], SIZE // 2, ("embedding_sface",))
        sampler = iter(StepSampler(len(data), 4, ranks, rank, 3, lambda: start))
        return [data.__getitems__(next(sampler)) for _ in range(end - start)]

    for rank in range(ranks):
        expected = batches(packed, rank, 0, 14)
        uninterrupted = batches(tmp_path / "shards", rank, 0, 14)
        resumed = batches(tmp_path / "shards", rank, 5, 14)
        for one, other in zip([*expected, *expected[5:]], [*uninterrupted, *resumed], strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_one_read_a_picture_and_few_open_files(packed: Path, tmp_path: Path, monkeypatch):
    """A rank reads its own pictures and nothing else of the set, through any number of shards."""
    shards = pack(packed, tmp_path / "shards", shard_bytes=1)
    assert len(shards.shards) == COUNT
    monkeypatch.setattr("facezoo.data.shards._OPEN_SHARDS", 3)
    read: list[int] = []
    real = __import__("os").pread
    monkeypatch.setattr("os.pread", lambda fd, length, offset: read.append(length) or real(fd, length, offset))
    images = shards.images
    for index in (4, 1, 19, 4, 8, 2):
        images[index]
    assert read == [128 + SIZE * SIZE * 3] * 6
    assert len(images._open) == 3


def test_a_process_opens_its_own_files(packed: Path, tmp_path: Path):
    shards = pack(packed, tmp_path / "shards")
    expected = shards.images[3]
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.images._open == {}
    assert np.array_equal(copy.images[3], expected)


def test_deterministic_and_not_replaced(packed: Path, tmp_path: Path):
    one, two = (pack(packed, tmp_path / name, shard_bytes=7000).folder for name in ("one", "two"))
    assert [p.read_bytes() for p in sorted(one.iterdir())] == [p.read_bytes() for p in sorted(two.iterdir())]
    with pytest.raises(OutputError, match="exists"):
        pack(packed, tmp_path / "one")
    assert len(pack(packed, tmp_path / "one", overwrite=True).shards) == 1


def test_labels_go_into_the_index(packed: Path, tmp_path: Path):
    pack(packed, tmp_path / "shards")
    add_arrays(tmp_path / "shards", {"sex": np.ones(COUNT, np.int16)})
    shards = open_faces(tmp_path / "shards")
    assert shards.array("sex").tolist() == [1] * COUNT
    assert np.array_equal(shards.images[5], PackedFaces(packed).images[5])

    class Mean(torch.nn.Module):
        def forward(self, faces: torch.Tensor) -> torch.Tensor:
            return faces.mean((2, 3))

    one, other = (ensure_embeddings(path, "mean", Mean()) for path in (packed, tmp_path / "shards"))
    assert isinstance(other, ShardedFaces)
    assert np.array_equal(one.array("embedding_mean"), other.array("embedding_mean"))


def test_index_from_the_tar_files_alone(packed: Path, tmp_path: Path):
    faces = PackedFaces(packed)
    pack(packed, tmp_path / "shards", shard_bytes=9000)
    (tmp_path / "shards" / INDEX).unlink()
    shards = index_shards(tmp_path / "shards")
    assert np.array_equal(shards.images[:], faces.images)
    assert [shards.identities[n] for n in shards.identity] == [faces.identities[n] for n in faces.identity]
    assert shards.files == faces.files
    assert np.array_equal(shards.array("age"), faces.array("age"))
    assert np.array_equal(shards.array("points"), faces.array("points"))


def foreign(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_index_of_other_peoples_shards(tmp_path: Path):
    from PIL import Image

    def png(side: int, value: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (side, side), (value, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    facts = json.dumps({"identity": "Ada", "smiling": 1}).encode()
    foreign(tmp_path / "b.tar", {"d/2.seg.png": b"mask", "d/2.png": png(6, 2), "d/2.cls": b"1"})
    foreign(tmp_path / "a.tar", {"d/1.json": facts, "d/1.png": png(6, 1), "empty.txt": b""})
    shards = index_shards(tmp_path)
    assert shards.images[:][:, 0, 0, 0].tolist() == [1, 2]
    assert shards.identities[int(shards.identity[0])] == "Ada"
    assert shards.array("smiling").tolist() == [1, -1]
    foreign(tmp_path / "c.tar", {"3.png": png(7, 3)})
    with pytest.raises(InputError, match="7 pixels"):
        index_shards(tmp_path, overwrite=True)


def test_damage_is_told(packed: Path, tmp_path: Path):
    folder = pack(packed, tmp_path / "shards", shard_bytes=9000).folder
    place = ShardedFaces(folder).array("offset")[2]
    shard = folder / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[place + 200] ^= 1
    shard.write_bytes(content)
    faces = ShardedFaces(folder)
    faces.images[1]
    with pytest.raises(InputError, match=r"picture 2 in the shard .* is damaged"):
        faces.images[2]
    assert main(["shards", "check", str(folder)]) == 2
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match="not the one of the index"):
        ShardedFaces(folder)
    (folder / INDEX).unlink()
    with pytest.raises(InputError, match="facezoo shards"):
        open_faces(folder)


def test_command(packed: Path, tmp_path: Path, capsys):
    assert main(["shards", "pack", str(packed), "-o", str(tmp_path / "s"), "--encoding", "png"]) == 0
    assert main(["shards", "check", str(tmp_path / "s")]) == 0
    assert main(["shards", "index", str(tmp_path / "s"), "--overwrite"]) == 0
    assert capsys.readouterr().out.count("23 pictures of 5 people, size 8, in 1 shards") == 3
    assert isinstance(ShardedFaces(tmp_path / "s").images, ShardedImages)
