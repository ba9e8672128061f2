"""Attacks on methods whose leak is known: each finds what is there, and nothing where nothing is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.cli import main
from facezoo.cli.attacking import _ATTACKS
from facezoo.data.packed import PackedFaces, write_packed
from facezoo.errors import InputError, OutputError, UnknownNameError
from facezoo.evaluate.attacks import ATTACKS, AttackSettings, Scene, attack_model, run_attack
from facezoo.evaluate.attacks.deblurring import WienerFilter
from facezoo.evaluate.attacks.linkability import link
from facezoo.keys import Key
from facezoo.methods.base import Recovered
from facezoo.methods.classics.cover import BlackBox
from facezoo.recognition import Recogniser
from facezoo.recognition.window import TemplateWindow

SIZE = 32
QUIET = AttackSettings(progress=False, far=0.05, identity=None)


class Coarse(nn.Module):
    """Sees 4 x 4 fields without their mean."""

    def forward(self, pictures: Tensor) -> Tensor:
        flat = pictures.flatten(1)
        return functional.normalize(flat - flat.mean(1, keepdim=True), dim=1, eps=1e-3)


def judge(name: str = "coarse") -> Recogniser:
    return Recogniser(name, Coarse(), TemplateWindow(4, 32, 14, 14), 48, "test")


def make(path, people: int, pictures: int, prefix: str, seed: int) -> PackedFaces:
    """Each person is a pattern of 4 x 4 colours with fine stripes of their own."""
    random = np.random.default_rng(seed)
    patterns = random.integers(30, 226, (people, 4, 4, 3)).repeat(8, 1).repeat(8, 2).astype(float)
    stripes = random.integers(-40, 40, (people, 1, SIZE // 2, 3)).repeat(2, 2)
    images = (patterns + stripes).repeat(pictures, 0)
    images += random.normal(0, 10, images.shape)
    write_packed(
        path,
        images.clip(0, 255).round().astype(np.uint8),
        size=SIZE,
        identities=[f"{prefix}{i // pictures}" for i in range(people * pictures)],
        files=[f"{prefix}{i}.png" for i in range(people * pictures)],
        source="synthetic",
    )
    return PackedFaces(path)


@pytest.fixture(scope="module")
def victims(tmp_path_factory) -> PackedFaces:
    return make(tmp_path_factory.mktemp("v") / "victims.safetensors", 30, 2, "victim", 0)


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> PackedFaces:
    return make(tmp_path_factory.mktemp("o") / "others.safetensors", 300, 1, "other", 1)


class Subject:
    """Base of methods for tests: not a `Method`, as a user's own tool is."""

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        return faces

    def recover_faces(self, faces: Tensor, key: Key | None = None) -> Tensor | Recovered:
        return faces


class Blurred(Subject):
    """A light blur: leaks nearly everything."""

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        return functional.avg_pool2d(functional.pad(faces, (1, 1, 1, 1), mode="replicate"), 3, 1)


class Negative(Subject):
    """Turns colours round: a recogniser of real faces is lost, the information is all there."""

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        return -faces


class Faded(Subject):
    """A light blur, and a third of the contrast in the dark: there is something to learn in a few batches."""

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        return Blurred().anonymize_faces(faces) * 0.3 - 0.5


class Nothing(Subject):
    """Everything is taken away."""

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        return torch.zeros_like(faces) - 1


class Scatter(Subject):
    """Wrong keys give the original under noise of their own; the method tells a right key."""

    def __init__(self) -> None:
        self.keys: list[Key] = []

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        assert key is not None
        self.keys.append(key)
        return faces

    def recover_faces(self, faces: Tensor, key: Key | None = None) -> Recovered:
        assert key is not None
        right = key in self.keys
        noise = torch.from_numpy(key.uniform("test/scatter", (3, 4, 4))).repeat_interleave(8, 1).repeat_interleave(8, 2)
        return Recovered((faces / 4 + (0 if right else 0.7) * noise).clamp(-1, 1), [right] * len(faces))


def attack(subject: object, name: str, victims: PackedFaces, others: PackedFaces | None = None, **changes: object):
    settings = AttackSettings(**{**vars(QUIET), **changes})
    return attack_model(subject, victims, name, name="test", settings=settings, attacker_data=others, judges=[judge()])


def test_link_by_hand():
    # Cosines of probes (rows) with the gallery: own person first, second, ...
    gallery = np.eye(3)
    probes = np.array([[3.0, 1, 2], [2, 1, 0], [0, 0, 1]])
    found = link(gallery, probes, "cosine", 0)
    assert found["rank_one"]["value"] == pytest.approx(2 / 3)
    # First 2 of 2 strangers are further away, second 1 of 2, third 2 of 2 (equal to each other).
    assert found["auc"]["value"] == pytest.approx((1 + 0.5 + 1) / 3)
    same = link(np.ones((4, 3)), np.ones((4, 3)), "cosine", 0)
    assert (same["rank_one"]["value"], same["auc"]["value"]) == (0.0, 0.5)


def test_linkability_finds_the_leak_and_no_more(victims):
    leaky = attack(Blurred(), "linkability", victims)
    setups = leaky["figures"]["setups"]
    assert set(setups) == {"originals", "one_key", "two_keys"}
    assert setups["one_key"]["coarse"]["rank_one"]["low"] > 3 * leaky["figures"]["chance"]
    assert setups["two_keys"]["coarse"]["auc"]["value"] > 0.9
    tight = attack(Nothing(), "linkability", victims)["figures"]["setups"]
    assert tight["one_key"]["coarse"]["rank_one"]["value"] == 0.0
    assert tight["one_key"]["coarse"]["auc"]["value"] == 0.5
    assert tight["originals"]["coarse"]["rank_one"]["value"] > 0.9


def test_parrot_learns_what_the_recogniser_could_not_see(victims, others):
    found = attack(Negative(), "parrot", victims, others, budget=150)
    result = found["figures"]["judges"]["coarse"]
    chance = found["figures"]["chance"]["with_original"]
    assert result["before"]["with_original"]["value"] <= 2 * chance
    assert result["after"]["with_original"]["low"] > 5 * chance
    assert result["after"]["other_pictures"]["low"] > 5 * found["figures"]["chance"]["other_pictures"]
    assert found["budget"]["spent"] == 150
    assert "trained head" in found["finding"]


def test_parrot_finds_nothing_in_nothing_and_much_in_a_light_blur(victims, others):
    tight = attack(Nothing(), "parrot", victims, others, budget=30)
    rate = tight["figures"]["judges"]["coarse"]["after"]["with_original"]
    assert rate["low"] <= 2 * tight["figures"]["chance"]["with_original"]
    leaky = attack(Blurred(), "parrot", victims, others, budget=30)["figures"]
    assert leaky["judges"]["coarse"]["after"]["with_original"]["low"] > 10 * leaky["chance"]["with_original"]


def test_inversion_learns_to_undo(victims, others):
    figures = attack(Faded(), "inversion", victims, others, budget=40, limit=20)["figures"]
    assert figures["inverted"]["psnr"]["value"] > figures["released"]["psnr"]["value"] + 3
    assert figures["loss"]["last"] < 0.8 * figures["loss"]["first"]
    rate = figures["inverted"]["judges"]["coarse"]["rank_one"]["with_original"]
    assert rate["low"] > 3 * figures["chance"]["with_original"]


def test_inversion_beats_chance_on_a_light_blur_and_follows_from_the_seed(victims, others):
    first, second = (attack(Blurred(), "inversion", victims, others, budget=6, limit=20) for _ in range(2))
    assert first["figures"] == second["figures"]
    rate = first["figures"]["inverted"]["judges"]["coarse"]["rank_one"]["with_original"]
    assert rate["low"] > 5 * first["figures"]["chance"]["with_original"]


def test_inversion_needs_a_judge_that_is_not_in_its_loss(victims, others):
    with pytest.raises(InputError, match="cannot be the only judge"):
        attack_model(
            Blurred(), victims, "inversion", name="x", attacker_data=others,
            settings=AttackSettings(judges=("sface",), progress=False, far=0.05),
        )  # fmt: skip


def test_the_filter_undoes_a_known_blur():
    random = np.random.default_rng(0)
    sharp = random.integers(60, 196, (40, 16, 16, 3)).astype(np.uint8)
    padded = np.pad(sharp.astype(float), ((0, 0), (1, 1), (0, 0), (0, 0)), mode="symmetric")
    blurred = (0.15 * padded[:, :-2] + 0.7 * padded[:, 1:-1] + 0.15 * padded[:, 2:]).round().astype(np.uint8)
    restored = WienerFilter(blurred[:30], sharp[:30]).apply(blurred[30:], 1e-5)
    before = np.abs(blurred[30:].astype(float) - sharp[30:]).mean()
    assert np.abs(restored.astype(float) - sharp[30:]).mean() < before / 6


def test_deblurring_gains_on_a_blur_and_nothing_on_black(victims, others):
    leaky = attack(Blurred(), "deblur", victims, others)["figures"]["pictures"]
    assert leaky["filter"]["psnr"]["value"] > leaky["released"]["psnr"]["value"] + 2
    assert leaky["filter"]["psnr"]["value"] > leaky["sharpened"]["psnr"]["value"]
    tight = attack(Nothing(), "deblur", victims, others)["figures"]
    rate = tight["pictures"]["filter"]["judges"]["coarse"]["rank_one"]["with_original"]
    assert rate["low"] <= 2 * tight["chance"]["with_original"]


def test_average_over_wrong_keys_shows_a_mean_that_leaks(victims):
    found = attack(Scatter(), "average", victims, budget=12, limit=10)
    answers = found["figures"]["answers"]
    assert list(answers) == ["1", "2", "4", "8", "12"]
    rates = [answers[count]["judges"]["coarse"]["cosine"]["value"] for count in answers]
    assert rates[0] < rates[2] < rates[-1]
    assert rates[-1] > rates[0] + 0.2
    assert found["figures"]["right_key"]["judges"]["coarse"]["cosine"]["value"] > 0.95
    assert "right key" in found["finding"]


def test_a_common_passphrase_is_found_and_spaces_are_priced(victims):
    found = attack(Scatter(), "key_guessing", victims, budget=3)
    figures = found["figures"]
    assert figures["dictionary"]["found_at_word"] == figures["dictionary"]["victim_is_word"]
    assert figures["dictionary"]["found_at_word"] == found["budget"]["spent"] == found["n"]
    spaces = figures["spaces"]
    six, sixteen = (
        spaces[name]["core_years_to_half"] for name in ("six digits (the book's form)", "16 bits (SDN, MfM)")
    )
    assert six / sixteen == pytest.approx(1e6 / 2**16)
    assert figures["memory_mib_a_guess"] == 32
    assert figures["seconds_of_scrypt"]["value"] > 0.005


def test_what_an_attack_cannot_say_is_an_error(victims, others, tmp_path):
    with pytest.raises(UnknownNameError, match="there are linkability"):
        attack(Blurred(), "magic", victims)
    with pytest.raises(InputError, match="has no key"):
        attack(BlackBox(), "key_guessing", victims)
    with pytest.raises(InputError, match="always gives the same picture"):
        attack(BlackBox(), "average", victims)
    lonely = make(tmp_path / "lonely.safetensors", 6, 1, "lonely", 3)
    with pytest.raises(InputError, match="two victims with two pictures"):
        attack(Blurred(), "linkability", lonely)
    with pytest.raises(InputError, match="--attacker-data"):
        attack(Blurred(), "deblur", victims, victims)
    with pytest.raises(InputError, match="limit >= 2"):
        AttackSettings(limit=1)
    (tmp_path / "old.json").write_text("old")
    with pytest.raises(OutputError):
        run_attack("no such model", victims.path, "deblur", tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "old"


def test_nobody_is_on_both_sides(victims, others):
    half = Scene(Blurred(), victims, QUIET, judges=[judge()])
    people = np.asarray(victims.identity)
    sides = set(people[half.victim_rows]), set(people[half.attacker_rows])
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 30
    assert min(map(len, sides)) > 5
    assert len(Scene(Blurred(), victims, QUIET, others, [judge()]).attacker_rows) == 300
    keys = {repr(key): key for side in ("victims", "attacker") for key in half.keys(side, 3)}
    seeds = {key.seed("t") for side in ("victims", "attacker") for key in half.keys(side, 3) if key is not None}
    assert keys
    assert len(seeds) == 6


def test_minutes_end_an_attack(victims, others):
    found = attack(Blurred(), "inversion", victims, others, budget=1000, minutes=1e-6, limit=4)
    assert found["budget"]["spent"] == 1
    assert found["budget"]["allowed"] == 1000


def test_the_command_writes_one_file_and_one_line(victims, tmp_path, capsys):
    assert tuple(ATTACKS) == _ATTACKS
    output = tmp_path / "new" / "found.json"
    words = ["attack", "gaussian_blur", "--data", str(victims.path), "--attack", "linkability", "-o", str(output)]
    assert main([*words, "--limit", "6", "--judge", "sface"]) == 0
    text = capsys.readouterr().out
    result = json.loads(output.read_text())
    assert result["finding"] in text
    assert text.count("\n") == 1
    assert result["n"] <= 6
    assert result["judges"]["sface"]["took_part_in_training"] is False
    assert result["data_sha256"]
    assert main([*words, "--judge", "sface"]) == 7
    assert main([*words[:-1], str(tmp_path / "x.json"), "--dictionary", str(tmp_path / "none.txt")]) == 2
    assert "cannot read the dictionary" in capsys.readouterr().err
