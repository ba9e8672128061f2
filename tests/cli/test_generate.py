"""facezoo generate: what it writes, what it leaves, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facezoo.hub.manifest import write_checkpoint
from facezoo.methods.stylegan2.config import StyleGAN2TrainingConfig
from facezoo.nets.stylegan2 import Generator
from tests.cli.conftest import files_under

SIZES = {
    "resolution": 16,
    "z_dim": 8,
    "w_dim": 6,
    "mapping_layers": 2,
    "channel_base": 64,
    "channel_max": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A generator that has learned nothing, as a checkpoint."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("model") / "stylegan2.test"
    network = Generator(StyleGAN2TrainingConfig(**SIZES).network)
    manifest = {"name": "stylegan2.test", "method": "stylegan2", "config": SIZES, "crop_size": 16}
    write_checkpoint(folder, manifest, {"generator": network.state_dict()})
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_people_and_their_sheet(cli, model, tmp_path):
    run = cli("generate", "--model", model, "-o", tmp_path / "people", "--count", 5, "--seed", 7, "--sheet")
    assert run.code == 0, run
    assert run.err == ""
    assert "5 people who do not exist" in run.out
    names = [f"person-00000{seed}.png" for seed in (7, 8, 9)] + ["person-000010.png", "person-000011.png"]
    assert sorted(path.name for path in (tmp_path / "people").iterdir()) == [*names, "sheet.png"]
    people = [pixels(tmp_path / "people" / name) for name in names]
    assert all(person.shape == (16, 16, 3) for person in people)
    assert all(not np.array_equal(people[0], other) for other in people[1:])
    sheet = pixels(tmp_path / "people" / "sheet.png")
    assert sheet.shape == (2 * 18 - 2, 3 * 18 - 2, 3)
    assert np.array_equal(sheet[:16, 18:34], people[1])
    assert np.array_equal(sheet[18:, :16], people[3])
    with Image.open(tmp_path / "people" / names[0]) as picture:
        assert picture.info["Description"].startswith("nobody: made by facezoo generate, stylegan2.test (")
        assert picture.info["Description"].endswith("seed 7, truncation 0.7")


def test_a_seed_is_the_same_person_in_every_run(cli, model, tmp_path):
    cli("generate", "--model", model, "-o", tmp_path / "a", "--count", 3, "--seed", 1)
    cli("generate", "--model", model, "-o", tmp_path / "b", "--count", 1, "--seed", 2)
    cli("generate", "--model", model, "-o", tmp_path / "c", "--count", 1, "--seed", 2, "--truncation", 0.3)
    a, b, c = (pixels(tmp_path / name / "person-000002.png") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_run_goes_on_and_finished_people_are_left(cli, model, tmp_path):
    cli("generate", "--model", model, "-o", tmp_path, "--count", 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "person-000001.png").write_bytes((tmp_path / "person-000001.png").read_bytes()[:200])  # cut short
    run = cli("generate", "--model", model, "-o", tmp_path, "--count", 3)
    assert run.code == 7, "half a file is not ours to replace silently"
    run = cli("generate", "--model", model, "-o", tmp_path, "--count", 3, "--overwrite")
    assert run.code == 0
    assert "1 there before" in run.out
    assert (tmp_path / "person-000000.png").stat().st_mtime_ns == before[tmp_path / "person-000000.png"]
    assert pixels(tmp_path / "person-000001.png").shape == (16, 16, 3)


def test_other_pictures_are_never_replaced_silently(cli, model, tmp_path):
    (tmp_path / "person-000001.png").write_text("mine")
    run = cli("generate", "--model", model, "-o", tmp_path, "--count", 3)
    assert run.code == 7
    assert "person-000001.png" in run.error_line()
    assert files_under(tmp_path) == ["person-000001.png"], "nothing was drawn before"
    # The same seeds at another truncation are other pictures too.
    cli("generate", "--model", model, "-o", tmp_path / "x", "--count", 2)
    assert cli("generate", "--model", model, "-o", tmp_path / "x", "--count", 2, "--truncation", 1).code == 7
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "sheet.png").write_text("mine")
    assert cli("generate", "--model", model, "-o", tmp_path / "y", "--sheet").code == 7
    assert (tmp_path / "y" / "sheet.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--model", "pixelation"], 2, "makes no people; generators: face_painter, stylegan2"),
        (["--model", "nobody"], 2, "unknown model"),
        (["--model", "{folder}/missing"], 2, "no checkpoint folder"),
        (["--model", "{model}", "--count", "0"], 2, "whole number above 0"),
        (["--model", "{model}", "--seed", "-1"], 2, "whole number of 0 or more"),
        (["--model", "{model}", "--seed", str(2**63 - 1)], 2, "last seed"),
        (["--model", "{model}", "--truncation", "1.2"], 2, "from 0 to 1"),
        (["--model", "{model}", "--truncation", "nan"], 2, "from 0 to 1"),
        (["--model", "{model}", "--device", "marble"], 2, "cannot be used here"),
    ],
)
def test_what_cannot_be_is_one_line(cli, model, tmp_path, arguments, code, says):
    words = [word.format(folder=tmp_path, model=model) for word in arguments]
    run = cli("generate", *words, "-o", tmp_path / "out")
    assert run.code == code, run
    assert says in run.error_line()
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_draws_nothing(cli, model, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in model.iterdir():
        data = bytearray(path.read_bytes())
        if path.suffix == ".safetensors":
            data[-1] ^= 1
        (copy / path.name).write_bytes(bytes(data))
    run = cli("generate", "--model", copy, "-o", tmp_path / "out")
    assert run.code == 5
    assert "damaged" in run.error_line()
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(cli, model, tmp_path):
    (tmp_path / "mine").write_text("mine")
    run = cli("generate", "--model", model, "-o", tmp_path / "mine")
    assert run.code == 7
    assert (tmp_path / "mine").read_text() == "mine"


def test_help_and_list_know_it(cli):
    shown = cli("generate", "--help").out
    assert "facezoo generate --model stylegan2.faces64 -o people/" in shown
    assert "--truncation" in shown
    lines = [line for line in cli("list").out.splitlines() if line.startswith("stylegan2")]
    assert lines
    assert all("generator" in line for line in lines)


@pytest.mark.parametrize("command", ["anonymize", "recover", "demo"])
def test_a_generator_anonymizes_nothing(cli, model, face_file, tmp_path, command):
    words = {
        "anonymize": [face_file, "-o", tmp_path / "out.png"],
        "recover": [face_file, "-o", tmp_path / "out.png", "--no-record"],
        "demo": ["-o", tmp_path / "demo"],
    }[command]
    run = cli(command, *words, "--model", model)
    assert run.code == 2, run
    assert "facezoo generate --model stylegan2.test" in run.error_line()
    assert not (tmp_path / "out.png").exists()
