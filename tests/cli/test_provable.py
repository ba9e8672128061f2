"""The provable family from the command line: what has no guarantee is refused in one line, and nothing is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from facezoo.data.packed import write_packed
from tests.cli.conftest import files_under

KSAME = ("ksame_pixel", "ksame_eigen", "ksame_select", "ksame_m", "ksame_furthest")


def gallery_file(path, identities):
    """Grainy invented faces with what every form of k-Same asks for: landmarks and a label."""
    count = len(identities)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    points = np.tile(np.array([[12, 14], [20, 14], [16, 18], [13, 23], [19, 23]], dtype=np.float32), (count, 1, 1))
    arrays = {"points": points, "expression": np.zeros(count, dtype=np.int16)}
    files = [f"{row}.png" for row in range(count)]
    write_packed(path, iter(images), size=32, identities=identities, files=files, arrays=arrays)
    return path


@pytest.mark.parametrize("model", ["identity_dp", "identity_dp.faces128", "dp_pix", "dp_blur", "dp_svd"])
@pytest.mark.parametrize("epsilon", ["0", "-1", "nan", "inf", "six"])
def test_epsilon_that_is_none(cli, face_file, tmp_path, model, epsilon):
    run = cli("anonymize", face_file, "-o", tmp_path / "x.png", "--model", model, f"--epsilon={epsilon}")
    assert run.code == 2
    assert "epsilon must be a number" in run.error_line()
    assert files_under(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epsilon=-1",), "epsilon must be a number from 0"),  # 0 is a coin for each attribute (book, 4.5.3)
        (("--epsilon=nan",), "epsilon must be a number from 0"),
        (("--epsilon=0.05",), "needs people to hide among: reference=FILE.safetensors"),
        (("--option", "reference={}", "--option", "k=3", "--option", "gamma=0.5"), "k=3 is more than the 2 people"),
        (("--option", "reference={}", "--option", "k=2", "--option", "gamma=1.5"), "gamma must be a number from"),
    ],
)
def test_dp_kanonymity_without_a_guarantee(cli, face_file, tmp_path, options, message):
    people = gallery_file(tmp_path / "people.safetensors", ["ann", "bob", "cid", "dan"])
    chosen = [option.format(people) if "{}" in option else option for option in options]
    out = tmp_path / "x.png"
    run = cli("anonymize", face_file, "-o", out, "--model", "dp_kanonymity.faces64", *chosen)
    assert run.code == 2
    assert message in run.error_line()
    assert files_under(tmp_path) == ["people.safetensors"]


@pytest.mark.parametrize("model", KSAME)
@pytest.mark.parametrize(
    ("identities", "k", "message"),
    [
        (["ann", "bob", "cid", "dan"], "5", "k=5 is more than the 4 people of the gallery"),
        (["ann", "bob", "cid", "dan"], "1", "k must be an integer of at least 2"),
        (["ann", "bob", "ann", "dan"], "2", "k-Same needs one picture a person"),
        (["ann"], "2", "a gallery of 1 people hides nobody"),
    ],
)
def test_galleries_that_hide_nobody(cli, face_file, tmp_path, model, identities, k, message):
    gallery = gallery_file(tmp_path / "gallery.safetensors", identities)
    options = ("--option", f"gallery={gallery}", "--option", f"k={k}")
    run = cli("anonymize", face_file, "-o", tmp_path / "x.png", "--model", model, *options)
    assert run.code == 2
    assert message in run.error_line()
    assert files_under(tmp_path) == ["gallery.safetensors"]


@pytest.mark.parametrize("model", KSAME)
def test_no_gallery(cli, face_file, tmp_path, model):
    run = cli("anonymize", face_file, "-o", tmp_path / "x.png", "--model", model)
    assert run.code == 2
    assert "needs a gallery of other people's faces: gallery=FILE" in run.error_line()


def test_a_face_of_nobody_in_the_closed_gallery(cli, face_file, tmp_path):
    gallery = gallery_file(tmp_path / "gallery.safetensors", ["ann", "bob", "cid"])
    options = ("--option", f"gallery={gallery}", "--option", "k=2")
    run = cli("anonymize", face_file, "-o", tmp_path / "x.png", "--model", "ksame_pixel", *options)
    assert run.code == 2
    assert "protects its gallery only" in run.error_line()
    assert files_under(tmp_path) == ["gallery.safetensors"]


def test_identity_dp_writes_its_promise_and_a_spent_budget_stops_it(cli, face_file, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        with Image.open(face_file) as picture:
            picture.save(folder / name)
    model = ("--model", "identity_dp.faces128", "--verify", "off", "--epsilon", "6", "--budget", "6")
    run = cli("anonymize", folder, "-o", out, *model)
    assert run.code == 2
    assert "privacy budget of everyone is spent" in run.err
    assert [name for name in files_under(out) if name.endswith(".png")] == ["1.png"]
    method = json.loads((out / "1.png.facezoo.json").read_text())["options"]["method"]
    assert method["epsilon"] == 6
    assert "identity vector" in method["guarantee"]
    assert "attribute" in method["leaks"]


def test_a_model_that_is_measured_to_hide_nobody_says_so(cli, tiny_model, key_file, face_file, tmp_path):
    from facezoo.hub.manifest import load_networks, read_manifest, write_checkpoint

    arguments = ("--model", tiny_model, "--key-file", key_file, "--verify", "off")
    for figure, warned in (("91.7 % (88.0-94.3)", True), ("9.9 % (6.0-14.0)", False)):
        manifest, _ = read_manifest(tiny_model)
        networks = load_networks(tiny_model, manifest)
        plain = {name: value for name, value in manifest.items() if name not in ("files", "checksum")}
        metrics = {"taken for the original (dlib, FAR 0.001)": figure, "faces detected": "100.0 % (99.0-100.0)"}
        write_checkpoint(tiny_model, {**plain, "metrics": metrics}, networks, overwrite=True)
        run = cli("anonymize", face_file, "-o", tmp_path / f"{warned}.png", *arguments)
        assert run.code == 0
        assert ("does not hide who people are: 91.7 %" in run.err) is warned
