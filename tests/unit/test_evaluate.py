"""The protocol on synthetic faces, small judges and methods whose right figures are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.data.packed import PackedFaces, write_packed
from facezoo.errors import CheckpointError, InputError, OutputError, RecordError, UnknownNameError
from facezoo.evaluate import EvaluationSettings, evaluate_model, markdown_report, run_evaluation, through_file
from facezoo.evaluate.sanity import sanity_pictures
from facezoo.evaluate.subjects import EvaluationKeys
from facezoo.keys import Key
from facezoo.methods.base import Recovered
from facezoo.methods.classics.smooth import Pixelation
from facezoo.recognition import Recogniser
from facezoo.recognition.window import TemplateWindow

PEOPLE, PICTURES, SIZE = 24, 2, 32
COUNT = PEOPLE * PICTURES


class Coarse(nn.Module):
    """Sees the picture in 8 x 8 fields, without its mean: enough to tell synthetic people apart."""

    def __init__(self, constant: bool = False) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, pictures: Tensor) -> Tensor:
        flat = pictures.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        return torch.ones_like(flat) if self.constant else functional.normalize(centred, dim=1, eps=1e-3)


def judge(name: str, constant: bool = False, metric: str = "cosine") -> Recogniser:
    return Recogniser(name, Coarse(constant), TemplateWindow(8, 16, 8, 8), 192, "test", metric)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> PackedFaces:
    """Each person is a random coarse pattern, each picture of them that pattern with a little noise."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (PEOPLE, 8, 8, 3)).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    pictures = patterns.repeat(PICTURES, 0) + random.normal(0, 20, (COUNT, SIZE, SIZE, 3))
    path = tmp_path_factory.mktemp("packed") / "evaluation.safetensors"
    write_packed(
        path,
        pictures.clip(0, 255).round().astype(np.uint8),
        size=SIZE,
        identities=[f"person{i // PICTURES}" for i in range(COUNT)],
        files=[f"{i}.png" for i in range(COUNT)],
        source="synthetic",
    )
    return PackedFaces(path)


class Cipher:
    """Adds a keystream to the pixels, modulo 256: noise without the key, lossless with it, lost after a lossy file."""

    def _stream(self, faces: Tensor, key: Key) -> Tensor:
        values = key.uniform("test/cipher", tuple(faces.shape[1:]))
        return torch.from_numpy((values * 128 + 128).astype(np.int64))

    def _shift(self, faces: Tensor, key: Key | None, sign: int) -> Tensor:
        assert key is not None
        pixels = ((faces + 1) * 127.5).round().long()
        return ((pixels + sign * self._stream(faces, key)) % 256).float() / 127.5 - 1

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        return self._shift(faces, key, 1)

    def recover_faces(self, faces: Tensor, key: Key | None = None) -> Recovered:
        return Recovered(self._shift(faces, key, -1), [True] * len(faces))


class Careless(Cipher):
    """Does nothing at all, and fails for faces whose first pixel is dark."""

    @staticmethod
    def fails(faces: Tensor) -> Tensor:
        return faces[:, 0, 0, 0] < -0.5

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        if self.fails(faces).any():
            raise RecordError("dark")
        return faces

    def recover_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        return torch.where(self.fails(faces)[:, None, None, None], torch.nan, faces)


SETTINGS = EvaluationSettings(
    formats=("png", "jpeg75"),
    far=(1e-2,),
    detector=None,
    looks=False,
    progress=False,
    identity_encoders=("taught",),
    batch_size=5,
)


@pytest.fixture(scope="module")
def cipher_result(packed):
    judges = [judge("taught"), judge("independent", metric="euclidean")]
    return evaluate_model(Cipher(), packed, name="cipher", judges=judges, settings=SETTINGS)


def taken(part: dict, name: str = "taught") -> dict:
    return part["judges"][name]["taken"]["far_0.01"]


def test_a_perfect_method_gets_perfect_figures(cipher_result):
    for name in ("taught", "independent"):
        # At a false accept rate of 1 % one of the 48 may be taken for the original by chance.
        for hidden in ("anonymized", "wrong_key", "near_key"):
            assert taken(cipher_result[hidden], name)["value"] <= 1 / COUNT
            assert abs(cipher_result[hidden]["judges"][name]["cosine"]["value"]) < 0.05
        assert taken(cipher_result["recovered"]["png"], name)["value"] == 1.0
        assert cipher_result["recovered"]["png"]["judges"][name]["cosine"]["value"] == pytest.approx(1.0)
        assert cipher_result["diversity"]["judges"][name]["taken"]["far_0.01"]["value"] < 0.1
    assert cipher_result["recovered"]["png"]["psnr"]["value"] == 100.0
    assert cipher_result["recovered"]["png"]["ssim"]["value"] == pytest.approx(1.0, abs=1e-5)
    assert cipher_result["wrong_key"]["psnr"]["value"] < 12
    # The method says so itself, also to the wrong key: that is reported, not believed.
    assert cipher_result["wrong_key"]["method_says_right_key"]["value"] == 1.0


def test_recovery_is_measured_on_the_lossy_file(cipher_result):
    lossy = cipher_result["recovered"]["jpeg75"]
    assert lossy["psnr"]["value"] < 20
    assert lossy["ssim"]["value"] < 0.5


def test_the_recogniser_of_the_training_is_marked_without_being_asked(packed):
    class Taught(Pixelation):
        identity_encoders = ("own",)

    settings = dataclasses.replace(SETTINGS, identity_encoders=())
    result = evaluate_model(Taught(), packed, name="x", judges=[judge("own"), judge("other")], settings=settings)
    assert {name: entry["took_part_in_training"] for name, entry in result["judges"].items()} == {
        "own": True,
        "other": False,
    }
    assert result["judges"]["own"]["why"] == "own is the method's own identity encoder"
    assert "Judge marked: own is the method's own identity encoder; its figures flatter." in result["notes"]
    assert len(result["data_sha256"]) == 64


def test_every_figure_has_its_n_and_interval(cipher_result):
    assert cipher_result["n"] == COUNT
    assert cipher_result["keys"] == COUNT
    for part in (cipher_result["anonymized"], cipher_result["recovered"]["png"], cipher_result["sanity"]["identity"]):
        rate = taken(part)
        assert rate["n"] == COUNT
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
    assert cipher_result["seed"] == 0
    assert cipher_result["hardware"]["cores"] >= 1


def test_sanity_rows_say_what_they_must(cipher_result):
    rows = cipher_result["sanity"]
    assert taken(rows["identity"])["value"] == 1.0
    assert taken(rows["black_box"])["value"] == 0.0
    assert taken(rows["other_person"])["value"] < 0.15
    found = rows["identity"]["judges"]["taught"]["rank_one"]
    assert found["with_original"]["value"] == 1.0
    assert found["other_pictures"]["value"] == 1.0
    assert rows["black_box"]["judges"]["taught"]["rank_one"]["other_pictures"]["value"] < 0.2
    assert not any(note.startswith("taught") for note in cipher_result["notes"])
    # A black box is the zero vector here: in the middle of the sphere, nearer to everybody than people to each other.
    assert any(note.startswith("independent takes 100.0% of the black boxes") for note in cipher_result["notes"])


def test_notes_name_what_a_claim_lacks(cipher_result):
    assert any("at least 500" in note for note in cipher_result["notes"])
    assert any("Only 1 judges took no part" in note for note in cipher_result["notes"])
    assert cipher_result["judges"]["taught"]["took_part_in_training"]
    assert not cipher_result["judges"]["independent"]["took_part_in_training"]


def test_thresholds_are_in_the_judge_s_own_unit(cipher_result):
    assert -1 < cipher_result["judges"]["taught"]["thresholds"]["far_0.01"] < 1
    assert cipher_result["judges"]["independent"]["thresholds"]["far_0.01"] > 0


def test_a_broken_judge_is_noticed(packed):
    judges = [judge("blind", constant=True)]
    result = evaluate_model(Cipher(), packed, name="cipher", judges=judges, settings=SETTINGS)
    # It finds everybody equal: with a threshold above its only score it does not even know the original.
    assert any(note.startswith("blind does not take every original for itself") for note in result["notes"])


def test_failures_stay_in_the_denominator(packed):
    dark = (packed.images[:, 0, 0, 0].astype(float) / 127.5 - 1 < -0.5).sum()
    assert 3 < dark < COUNT - 3
    result = evaluate_model(Careless(), packed, name="careless", judges=[judge("taught")], settings=SETTINGS)
    assert result["anonymized"]["failed"] == dark
    # Failed faces count as unprotected, and so do the others, for the method does nothing.
    assert taken(result["anonymized"])["value"] == 1.0
    png = result["recovered"]["png"]
    assert png["failed"] == dark
    assert taken(png)["n"] == COUNT
    assert taken(png)["value"] == pytest.approx((COUNT - dark) / COUNT)
    # Nothing was hidden, so the wrong key shows the original too.
    assert taken(result["wrong_key"])["value"] == pytest.approx((COUNT - dark) / COUNT)


def test_a_method_that_always_fails_is_an_error(packed):
    class Broken(Cipher):
        def anonymize_faces(self, faces, key=None):
            raise RecordError("nothing works")

    with pytest.raises(RecordError, match="nothing works"):
        evaluate_model(Broken(), packed, name="broken", judges=[judge("taught")], settings=SETTINGS)


def test_detection_counts_every_face(packed, monkeypatch):
    from facezoo.faces import detect

    class Bright:
        """Finds a face in every picture that is not black."""

        def detect(self, rgb):
            return ["face"] if rgb.max() > 0 else []

    monkeypatch.setattr(detect, "get_detector", lambda name, options: Bright())
    settings = EvaluationSettings(formats=("png",), far=(1e-2,), looks=False, progress=False, limit=30)
    result = evaluate_model(Careless(), packed, name="careless", judges=[judge("taught")], settings=settings)
    assert result["sanity"]["identity"]["detected"]["value"] == 1.0
    assert result["sanity"]["black_box"]["detected"]["value"] == 0.0
    detected = result["anonymized"]["detected"]
    assert detected["n"] == 30
    assert detected["value"] == pytest.approx(1 - result["anonymized"]["failed"] / 30)


def test_the_seed_decides_and_the_bar_ends_full(packed, monkeypatch):
    from facezoo.evaluate import protocol

    bars = []
    monkeypatch.setattr(protocol, "tqdm", lambda **options: bars.append(Bar(options)) or bars[-1])

    class Bar:
        def __init__(self, options):
            self.total, self.n = options["total"], 0

        def set_description(self, text): ...

        def update(self, count):
            self.n += count

        def close(self): ...

    settings = EvaluationSettings(formats=("png",), far=(5e-2,), detector=None, limit=20, key_count=3, seed=4)
    first, second = (
        evaluate_model(Cipher(), packed, name="c", judges=[judge("taught")], settings=settings) for _ in range(2)
    )
    for result in (first, second):
        result.pop("seconds")
        result["anonymized"].pop("seconds_a_face")
    assert first == second
    assert (first["n"], first["keys"]) == (20, 3)
    assert all(bar.n == bar.total for bar in bars)
    # Looks: an original is itself, noise is not; and the report has them.
    for part, grain in ((first["sanity"]["identity"], 100), (first["anonymized"], None)):
        assert part["looks"]["grain"]["n"] == 20
        assert (part["looks"]["grain"]["value"] == 100) == (grain == 100)
    first["anonymized"]["seconds_a_face"] = 0.0
    text = markdown_report(first)
    assert "## Looks" in text
    assert "| *identity* | 100.0 % (83.9-100.0) | 1.00 (1.00-1.00) | 100.0 (100.0-100.0) |" in text
    # An older result has none.
    older = {**first, "anonymized": {k: v for k, v in first["anonymized"].items() if k != "looks"}, "sanity": {}}
    assert "## Looks" not in markdown_report(older)


def test_looks_of_a_method_that_fails_leave_its_faces_out(packed):
    settings = dataclasses.replace(SETTINGS, looks=True, formats=("png",), limit=24)
    result = evaluate_model(Careless(), packed, name="careless", judges=[judge("taught")], settings=settings)
    failed = result["anonymized"]["failed"]
    assert 0 < failed < 24
    # The faces that did not fail are the originals; those that did are not counted as such.
    for name in ("detail", "grain", "tone"):
        figure = result["anonymized"]["looks"][name]
        assert (figure["n"], figure["missing"]) == (24 - failed, failed)
    assert result["anonymized"]["looks"]["grain"]["value"] == 100


def test_keys_follow_from_the_seed_and_near_ones_differ_in_one_character():
    keys = EvaluationKeys(7, 4)
    phrases = {(kind, i): keys.phrase(kind, i) for kind in keys.kinds for i in range(4)}
    assert len(set(phrases.values())) == 12
    for i in range(4):
        differing = sum(a != b for a, b in zip(phrases["right", i], phrases["near", i], strict=True))
        assert differing == 1
    assert EvaluationKeys(8, 4).phrase("right", 0) != phrases["right", 0]
    assert keys.key("right", 1).seed("test") == EvaluationKeys(7, 4).key("right", 1).seed("test")


def test_files_are_real(packed):
    picture = packed.images[0]
    assert (through_file(picture, "png") == picture).all()
    errors = []
    for name in ("webp90", "jpeg95", "jpeg75", "resize075"):
        result = through_file(picture, name)
        assert result.shape == picture.shape
        assert result.dtype == np.uint8
        errors.append(np.abs(result.astype(int) - picture).mean())
    assert min(errors) > 0
    assert errors[1] < errors[2]
    for name in ("gif", "jpeg0", "jpeg101", "resize100", "png9"):
        with pytest.raises(UnknownNameError):
            through_file(picture, name)


def test_sanity_pictures(packed):
    originals, people = packed.batch(np.arange(10)), packed.identity[:10]
    others = sanity_pictures("other_person", originals, people, seed=1)
    for index, picture in enumerate(others):
        source = next(i for i in range(10) if (originals[i] == picture).all())
        assert people[source] != people[index]
    blurred = sanity_pictures("heavy_blur", originals, people, 0)
    assert blurred.std() < originals.std() / 2
    with pytest.raises(InputError, match="two people"):
        sanity_pictures("other_person", originals, np.zeros(10, dtype=int), 0)


def test_bad_arguments_are_refused_before_the_work(packed, tmp_path):
    with pytest.raises(InputError, match="cannot be evaluated"):
        evaluate_model(object(), packed, name="x", judges=[judge("a")], settings=SETTINGS)
    with pytest.raises(InputError, match="different names"):
        evaluate_model(Cipher(), packed, name="x", judges=[judge("a"), judge("a")], settings=SETTINGS)
    with pytest.raises(InputError, match="impostor pairs"):
        evaluate_model(
            Cipher(), packed, name="x", judges=[judge("a")], settings=EvaluationSettings(far=(1e-5,), progress=False)
        )
    with pytest.raises(UnknownNameError, match="tiff"):
        EvaluationSettings(formats=("tiff",))
    (tmp_path / "evaluation.json").write_text("older")
    with pytest.raises(OutputError):
        run_evaluation("no_such_model", packed.path, tmp_path)
    assert (tmp_path / "evaluation.json").read_text() == "older"


def test_a_damaged_lpips_file_is_told(packed, tmp_path, monkeypatch):
    """Without the file the column stays empty; a broken one is an error, not an empty column."""
    (tmp_path / "lpips_alex.safetensors").write_bytes(b"broken")
    monkeypatch.setenv("FACEZOO_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match="lpips_alex"):
        evaluate_model(Cipher(), packed, name="x", judges=[judge("a")], settings=SETTINGS)


def test_the_report_shows_the_figures(cipher_result):
    text = markdown_report(json.loads(json.dumps(cipher_result, allow_nan=False)))
    assert "| cipher | 0.0 % (0.0-7.4) |" in text
    assert "| right key, png | 100.0 % (92.6-100.0) | 100.0 % (92.6-100.0) | 100.00 (100.00-100.00) |" in text
    assert "taught*" in text
    assert "*black box*" in text
    assert "key one character apart" in text


def test_run_evaluation_of_a_classic_writes_a_report(packed, tmp_path):
    settings = EvaluationSettings(
        judges=("sface",), far=(1e-2,), detector=None, looks=False, progress=False, formats=("png",)
    )
    folder = tmp_path / "new" / "report"
    result = run_evaluation("black_box", packed.path, folder, limit=20, settings=settings)
    assert result["recovered"] is None
    assert result["diversity"] is None
    assert taken(result["anonymized"], "sface")["n"] == 20
    assert json.loads(Path(folder, "evaluation.json").read_text()) == json.loads(json.dumps(result))
    assert Path(folder, "evaluation.md").read_text() == markdown_report(result)
