"""The face painter's training: closed form, then the refiner alone learns; what it exports paints and makes people."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facezoo.core.run import train
from facezoo.data import meshes
from facezoo.data.meshes import MESH_CONFIDENCE_FIELD, MESH_FIELD, ensure_meshes
from facezoo.data.packed import PackedFaces, write_packed
from facezoo.errors import CheckpointError, InputError
from facezoo.generate import generate_people, load_generator
from facezoo.hub.manifest import load_networks, read_manifest
from facezoo.methods.face_painter import training
from facezoo.methods.face_painter.config import FacePainterTrainingConfig
from facezoo.methods.face_painter.training import FacePainterTraining
from facezoo.nets.face_painter.painter import Person
from tests.labelled import FewConvolutions
from tests.painted import TINY, KnownMeshes, invented, packed, stub_features

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

CONFIG = {
    **json.loads(json.dumps(dataclasses.asdict(TINY))),
    "frame_size": 16,
    "features": "stub",
    "head_width": 4,
    "pixel_width": 4,
    "pixel_layers": 1,
    "refine_batches": 4,
    "learning_rate": 3e-3,
    "identity_every": 2,
    "lambda_other": 1.0,
    "others": ["dlib"],
    "adversarial_warmup": 1,
}


@pytest.fixture(autouse=True)
def no_networks(monkeypatch):
    monkeypatch.setattr(training, "load_features", lambda name: stub_features())
    monkeypatch.setattr(training, "load_recogniser", lambda name: FewConvolutions(8))


def recipe(folder: Path, data: Path, config: dict[str, object] | None = None, **settings: object) -> Path:
    path = folder / f"recipe_{len(list(folder.glob('*.yaml')))}.yaml"
    steps = {"batch_size": 4, "sheet_every_batches": 100, "log_every_batches": 1, "tick_batches": 2, **settings}
    content = {"name": "face_painter.tiny", "method": "face_painter", "summary": "a test", "data": [str(data)]}
    path.write_text(json.dumps({**content, "train": steps, "config": {**CONFIG, **(config or {})}}))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set.safetensors")


def states(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    return load_networks(checkpoint, read_manifest(checkpoint)[0])


def test_the_refiner_alone_learns_and_a_resumed_run_is_the_same(tmp_path: Path, data: Path, capsys):
    path = recipe(tmp_path, data)
    whole = train(path, output=tmp_path / "whole", accelerator="cpu")
    part = train(path, output=tmp_path / "parts", accelerator="cpu", max_minutes=0)
    assert (part.batches_seen, part.finished) == (1, False)
    early = states(part.checkpoint)
    rest = train(path, output=tmp_path / "parts", accelerator="cpu")
    assert rest.finished
    first, second = states(whole.checkpoint), states(rest.checkpoint)
    assert set(first) == {"shape", "texture", "traits", "identity_distribution", "portrait", "refiner"}
    for name, state in first.items():
        for key, value in state.items():
            assert torch.equal(value, second[name][key]), f"resumed: {name}.{key}"
            assert value.isfinite().all(), f"{name}.{key}"
            if name != "refiner":
                assert torch.equal(value, early[name][key]), f"{name}.{key} was fitted and learns no more"
    moved = [key for key, value in first["refiner"].items() if not torch.equal(value, early["refiner"][key])]
    assert len(moved) > len(first["refiner"]) / 2
    with (tmp_path / "whole" / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["batch"]) for row in rows] == [1, 2, 3, 4]
    assert np.isfinite([float(value) for row in rows for value in row.values() if value]).all()
    names = {name.removeprefix("refine/") for row in rows for name, value in row.items() if value}
    wanted = {"l1", "lpips", "tone", "kept", "adversarial", "discriminator", "cos_wanted", "dlib_original"}
    assert wanted <= names
    # identity_every=2: the recognisers' losses are in every second batch, and in no other.
    assert [bool(row["refine/cos_wanted"]) for row in rows] in ([True, False] * 2, [False, True] * 2)
    with Image.open(tmp_path / "whole" / "sheets" / "batch_0000004.png") as sheet:
        assert sheet.convert("L").getextrema()[0] < 200

    manifest = json.loads((whole.checkpoint / "manifest.json").read_text())
    assert (manifest["method"], manifest["crop_size"]) == ("face_painter", 96)
    people, name = load_generator(str(whole.checkpoint))
    assert name.startswith("face_painter.tiny")
    person = people.person(1, 0.7)
    assert person.shape == (3, 96, 96)
    assert person.isfinite().all()
    assert person.std() > 0.01
    (tmp_path / "people").mkdir()
    made = generate_people(people, name, tmp_path / "people", count=2, seed=5)
    assert made.made == 2


def fitted_module(**change: object) -> FacePainterTraining:
    module = FacePainterTraining({**CONFIG, **change})
    known = invented()
    batches = [(known.faces, known.mesh, known.identity)]
    module.model.fit(batches, known.mesh, known.person, known.identity)
    return module


def test_own_rows_are_painted_as_themselves_and_the_others_as_strangers(monkeypatch):
    module, known = fitted_module(swap_share=0.5), invented()
    painted: list[Person] = []
    paint = module.model.paint

    def remembered(faces, state, person, refine=True):
        painted.append(person)
        return paint(faces, state, person, refine)

    monkeypatch.setattr(module.model, "paint", remembered)
    rows = slice(0, 8)
    faces, mesh, identity = known.faces[rows], known.mesh[rows], known.identity[rows]
    painting, wanted = module._guess(faces, mesh, identity, 4)
    person, own = painted[0], module.model.observe(faces, mesh, identity).person
    assert torch.equal(wanted, person.identity)
    assert torch.equal(person.identity[:4], identity[:4])
    assert torch.equal(person.own[:4], own.own[:4])
    cosines = torch.nn.functional.cosine_similarity(person.identity[4:], identity[4:])
    assert cosines.max() < 0.6
    assert (person.own[4:] - own.own[4:]).abs().mean() > 0.3
    # A recovery knows the details, a closed form does not: own rows have them, or none.
    known_details = [torch.equal(person.details[i], own.details[i]) for i in range(4)]
    assert all(k or not person.details[i].any() for i, k in enumerate(known_details))
    assert not painting.result.requires_grad
    # Another batch, another stranger; the same batch again, the same.
    again = module._guess(faces, mesh, identity, 4)[1]
    assert torch.equal(again, wanted)
    module.batches_seen += 1
    assert not torch.equal(module._guess(faces, mesh, identity, 4)[1], wanted)


def test_turns_stay_between_the_degrees(monkeypatch):
    module, seen = fitted_module(least_degrees=80.0, most_degrees=120.0), []
    drawn = training.Turns.drawn
    monkeypatch.setattr(
        training.Turns, "drawn", lambda draw, config, degrees: seen.append(degrees) or drawn(draw, config, degrees)
    )
    known = invented()
    state = module.model.observe(known.faces[:2], known.mesh[:2], known.identity[:2])
    for batch in range(20):
        module.batches_seen = batch
        module.strangers(state.person)
    assert 80 <= min(seen) < 90
    assert 110 < max(seen) <= 120


@pytest.mark.slow
def test_bfloat16_has_finite_losses(tmp_path: Path, data: Path):
    run = train(recipe(tmp_path, data, precision="bf16-mixed"), output=tmp_path / "run", accelerator="cpu")
    assert run.finished
    with (tmp_path / "run" / "log.csv").open() as stream:
        values = [float(value) for row in csv.DictReader(stream) for value in row.values() if value]
    assert np.isfinite(values).all()
    assert all(value.isfinite().all() for state in states(run.checkpoint).values() for value in state.values())


def test_too_few_people_are_told_before_anything_is_fitted(tmp_path: Path):
    known = invented()
    pixels = ((known.faces[::3] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    count = len(pixels)
    write_packed(
        tmp_path / "alone.safetensors",
        iter(pixels),
        size=96,
        identities=[f"p{i}" for i in range(count)],
        files=[f"{i}.png" for i in range(count)],
        arrays={
            "embedding_sface": known.identity[::3].numpy(),
            MESH_FIELD: known.mesh[::3].numpy(),
            MESH_CONFIDENCE_FIELD: np.ones(count, np.float32),
        },
        source="invented",
    )
    with pytest.raises(InputError, match="people with several pictures"):
        train(recipe(tmp_path, tmp_path / "alone.safetensors"), output=tmp_path / "run", accelerator="cpu")


def test_lpips_without_its_weights_is_refused_at_once(tmp_path: Path, data: Path, monkeypatch):
    monkeypatch.setattr(training, "load_features", lambda name: stub_features(lpips=False))
    with pytest.raises(CheckpointError, match=r"set config\.lambda_lpips=0"):
        train(recipe(tmp_path, data), output=tmp_path / "run", accelerator="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"swap_share": 1.0}, "swap_share"),
        ({"swap_share": 0.0}, "swap_share"),
        ({"identity_every": 0}, "identity_every"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FacePainterTrainingConfig(**change)


def test_meshes_are_found_once_and_kept(tmp_path: Path, monkeypatch):
    path, seen = packed(tmp_path / "set.safetensors", meshes=False), []

    def load(device="cpu"):
        seen.append(device)
        return KnownMeshes()

    monkeypatch.setattr(meshes, "load_mesh", load)
    faces = ensure_meshes(path)
    assert np.allclose(faces.array(MESH_FIELD), invented().mesh.numpy(), atol=1e-4)
    assert faces.array(MESH_CONFIDENCE_FIELD).shape == (48,)
    assert (np.asarray(faces.array(MESH_CONFIDENCE_FIELD)) == 1).all()
    ensure_meshes(path)
    assert len(seen) == 1
    assert MESH_FIELD in PackedFaces(path)
