"""Attributes on the command line: asked for, refused in one line, kept out of records, needed again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import facezoo
from facezoo.cli import main
from tests.labelled import labelled_set, untrained_checkpoint

PICTURE = Path(facezoo.__file__).parent / "assets" / "demo" / "astronaut.jpg"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return untrained_checkpoint(tmp_path_factory.mktemp("model") / "sdn", "sdn")


@pytest.fixture
def key(tmp_path) -> str:
    assert main(["key", "new", str(tmp_path / "my.key")]) == 0
    return str(tmp_path / "my.key")


def anonymize(model: Path, key: str, output: Path, *more: str) -> int:
    words = ["anonymize", str(PICTURE), "-o", str(output), "--model", str(model), "--key-file", key, "--verify", "off"]
    return main([*words, *more])


def test_there_and_back(model, key, tmp_path, capsys):
    target = tmp_path / "a.png"
    assert anonymize(model, key, target, "--attribute", "smiling=yes", "--attribute", "hair=blond") == 0
    record = Path(f"{target}.facezoo.json").read_text()
    assert "sealed_attributes" in record
    for word in ("smiling", "blond", "hair"):
        assert word not in record, "attributes are part of the secret"
    assert main(["recover", str(target), "-o", str(tmp_path / "b.png"), "--key-file", key, "--model", str(model)]) == 0

    # Repeating the run finds it finished; another request is another work.
    folder = tmp_path / "out"
    for _ in range(2):
        assert anonymize(model, key, f"{folder}/", "--attribute", "smiling=yes") == 0
    assert "1 finished before" in capsys.readouterr().out
    assert anonymize(model, key, f"{folder}/", "--attribute", "smiling=no") == 7


def test_without_the_register_they_are_given_again(model, key, tmp_path):
    target = tmp_path / "a.png"
    assert anonymize(model, key, target, "--attribute", "smiling=yes", "--option", "register=none") == 0
    assert "sealed_attributes" not in Path(f"{target}.facezoo.json").read_text()
    words = ["recover", str(target), "--key-file", key, "--model", str(model)]
    assert main([*words, "-o", str(tmp_path / "b.png"), "--attribute", "smiling=yes"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attribute", "smilling=yes"], "there is no attribute 'smilling'; did you mean smiling? Choices: sex, age"),
        (["--attribute", "hair=blonde"], "did you mean blond? Choices: black, brown, blond, gray"),
        (["--attribute", "smiling=yes", "--attribute", "smiling=no"], "contradictory attributes: smiling=yes and"),
        (["--attribute", "sex=female", "--attribute", "beard=yes"], "contradictory attributes: beard=yes and sex=fem"),
        (["--attribute", "age=old"], "attribute of this checkpoint called 'age'. Choices: sex, smiling, hair"),
        (["--attribute", "smiling"], "write NAME=VALUE, such as smiling=yes"),
        (["--attribute", "smiling=yes", "--option", "attributes=hair=gray"], "not with both"),
    ],
)
def test_refused_in_one_line(model, key, tmp_path, capsys, words, message):
    target = tmp_path / "a.png"
    assert anonymize(model, key, target, *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not target.exists()


def test_password_of_another_length(model, tmp_path, capsys):
    password = tmp_path / "bits.txt"
    password.write_text("0110011001100110\n")
    assert anonymize(model, str(password), tmp_path / "a.png", "--key-form", "bits", "-q") == 4
    assert "the password has 16 bits and this checkpoint works with 8" in capsys.readouterr().err
    password.write_text("01100110\n")
    assert anonymize(model, str(password), tmp_path / "a.png", "--key-form", "bits", "-q") == 0


def test_methods_without_attributes_say_who_has_them(tmp_path, capsys):
    words = ["anonymize", str(PICTURE), "-o", str(tmp_path / "a.png"), "--model", "gaussian_blur"]
    assert main([*words, "--attribute", "smiling=yes"]) == 2
    assert "gaussian_blur has no attributes: leave out --attribute, or use mfm or sdn" in capsys.readouterr().err


def test_label_command(tmp_path, capsys):
    data = labelled_set(tmp_path / "set.safetensors")
    table = tmp_path / "labels.csv"
    table.write_text("file,glasses\n000.png,yes\n")
    assert main(["label", str(data), "--csv", str(table)]) == 2
    assert "no row for 23 of 24 pictures (001.png, 002.png, 003.png, ...)" in capsys.readouterr().err
    table.write_text("file,glasses\n" + "".join(f"{i:03d}.png,yes\n" for i in range(24)))
    assert main(["label", str(data), "--csv", str(table)]) == 0
    assert "glasses: 100.0% labelled; the table labels.csv" in capsys.readouterr().out
    assert main(["label", str(data)]) == 2


def test_reports_of_dropped_factors_reach_the_user(tmp_path, key, capsys):
    """An untrained reader is made to see a woman."""
    import torch

    from facezoo.hub.manifest import load_networks, read_manifest, write_checkpoint

    first = untrained_checkpoint(tmp_path / "one", "mfm", attributes=["sex", "smiling", "mustache"])
    manifest, _ = read_manifest(first)
    states = load_networks(first, manifest)
    states["attribute_reader"]["head.weight"].zero_()
    states["attribute_reader"]["head.bias"].copy_(torch.tensor([9.0, 0, 0, 0, 0, 0]))
    left = {name: value for name, value in manifest.items() if name not in ("files", "checksum")}
    write_checkpoint(tmp_path / "two", left, states)
    assert anonymize(tmp_path / "two", key, tmp_path / "a.png", "--attribute", "mustache=yes") == 0
    assert "mustache=yes was dropped: a mustache on a female face (the face looks female)" in capsys.readouterr().err
    assert json.loads((tmp_path / "a.png.facezoo.json").read_text())["method"] == "mfm"
