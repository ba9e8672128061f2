"""identity_rotation: the algebra of the book, the losses by hand, the code's encryption, both phases, resume."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from facezoo.concealment import placement
from facezoo.concealment.phase_code import CodeLayout
from facezoo.core import saved_file
from facezoo.core.recipe import load_recipe
from facezoo.core.run import train
from facezoo.errors import CheckpointError, InputError, KeyMaterialError
from facezoo.keys import Key
from facezoo.methods.base import FaceContext
from facezoo.methods.identity_rotation import losses
from facezoo.methods.identity_rotation.config import IdentityRotationConfig
from facezoo.methods.identity_rotation.method import IdentityRotation
from facezoo.methods.identity_rotation.model import IdentityRotationNetworks
from facezoo.methods.identity_rotation.rotation import rotate, rotation_degrees, unrotate
from facezoo.nets.concealed_code import carrier_patterns, to_phasors, turn
from facezoo.nets.disentangled import IdentityDistribution
from facezoo.nets.linear_painter import LinearPainter, coarse_face
from facezoo.nets.patch_discriminator import discriminator_loss, generator_loss
from tests.core.toy import make_set

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

KEY, OTHER = Key.from_bytes(bytes(range(32))), Key.from_bytes(bytes(range(1, 33)))
TINY = {
    "size": 128,
    "generator_scale": 4,
    "identity_dim": 128,
    "generator_widths": [16, 16, 16, 8, 8, 8],
    "attribute_widths": [16, 16, 8, 8, 4, 4],
    "attribute_grid": 8,
    "masked": True,
    "generator_constants": True,
    "linear_painter": True,
    "discriminator_width": 4,
    "discriminator_layers": 2,
    "discriminator_scales": 1,
    "conceal_width": 8,
    "conceal_blocks": 1,
    "swap_share": 0.5,
}


def unit(rows: int, dim: int = 128, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


class TestRotation:
    def test_angles_of_the_levels(self):
        assert [rotation_degrees(d) for d in range(10)] == [70, 75, 80, 85, 95, 100, 105, 110, 115, 120]
        for level in (-1, 10):
            with pytest.raises(ValueError, match=r"not one of 0\.\.9"):
                rotation_degrees(level)

    @pytest.mark.parametrize("level", range(10))
    def test_inverse_is_exact_for_the_vector_of_the_book(self, level):
        z, f = unit(50, seed=1), unit(50, seed=2)
        degrees = rotation_degrees(level)
        turned = rotate(z, f, degrees)
        assert torch.allclose(unrotate(turned, f, degrees), z, atol=1e-9)
        assert torch.allclose((turned * z).sum(1), torch.full((50,), math.cos(math.radians(degrees))).double())

    def test_length_of_the_rotated_vector(self):
        z, f = unit(20, seed=3), unit(20, seed=4)
        expected = 1 - ((z * f).sum(1) * math.sin(math.radians(70))) ** 2
        assert torch.allclose(rotate(z, f, 70.0).square().sum(1), expected)

    def test_unnormalised_reference_changes_nothing(self):
        z, f = unit(5), unit(5, seed=9)
        assert torch.allclose(rotate(z, 37 * f, 100.0), rotate(z, f, 100.0))

    def test_error_grows_near_a_right_angle(self):
        """The encoder re-normalises: recovered cosines of the specification's table, 1.00 at 120 and less at 95."""
        z, f = unit(300, 512, seed=5), unit(300, 512, seed=6)
        cosine = {
            d: float((unrotate(functional.normalize(rotate(z, f, d), dim=-1), f, d) * z).sum(1).mean())
            for d in (70, 95, 120)
        }
        assert cosine[120] > 0.99
        assert cosine[70] > 0.99
        assert 0.90 < cosine[95] < 0.97

    def test_wrong_key_gives_another_identity(self):
        z, f, g = unit(100, seed=1), unit(100, seed=2), unit(100, seed=3)
        wrong = unrotate(rotate(z, f, 95.0), g, 95.0)
        assert (wrong * z).sum(1).abs().mean() < 0.15


class TestLosses:
    def test_by_hand(self):
        a, b = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [6.0, 8.0]])
        assert torch.allclose(losses.identity_loss(a, b), torch.tensor([1.0, 0.0]), atol=1e-6)
        x, y = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8)
        assert losses.reconstruction_loss(x, y).item() == pytest.approx(0.125)
        assert losses.attribute_loss([x, 2 * x], [y, y]).item() == pytest.approx(0.125 + 0.5)
        assert losses.coarse_loss(x, y).item() == pytest.approx(0.5)

    def test_adversarial_by_hand(self):
        real, fake = [torch.tensor([2.0])], [torch.tensor([-0.5])]
        assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5)
        assert generator_loss(fake, "hinge").item() == pytest.approx(0.5)
        log = math.log1p(math.exp(-2)) + math.log1p(math.exp(-0.5))
        assert discriminator_loss(real, fake, "log").item() == pytest.approx(log, rel=1e-6)
        assert generator_loss(fake, "log").item() == pytest.approx(math.log1p(math.exp(0.5)), rel=1e-6)

    def test_reveal_loss_of_equal_pictures(self):
        x = torch.rand(2, 3, 32, 32) * 2 - 1
        l1, dissimilarity = saved_file.reveal_loss(x, x)
        assert l1.item() == 0
        assert dissimilarity.item() == pytest.approx(0, abs=1e-5)

    def test_rounding_is_that_of_a_file_and_passes_the_gradient(self):
        x = (torch.rand(1, 3, 8, 8) * 2.4 - 1.2).requires_grad_()
        y = saved_file.to_8_bit(x)
        levels = (y + 1) * 127.5
        assert torch.allclose(levels, levels.round(), atol=1e-4)
        y.sum().backward()
        assert torch.equal(x.grad, (x.detach().abs() <= 1).float())

    def test_simulated_jpeg_is_near_a_real_one(self):
        pytest.importorskip("kornia")
        import io

        from PIL import Image

        rng = np.random.default_rng(0)
        small = rng.integers(40, 215, (8, 8, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
        real = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float()
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        simulated = (saved_file.through_jpeg(x, torch.tensor([75.0]))[0] + 1) * 127.5
        assert (simulated - real).abs().mean() < 2.0

    def test_coarse_face_keeps_the_outside(self):
        x, mask = torch.rand(1, 3, 64, 64), torch.zeros(64, 64)
        mask[16:48, 16:48] = 1
        y = coarse_face(x, mask, 8)
        assert torch.equal(y[..., :16, :], x[..., :16, :])
        inside = y[..., 16:48, 16:48]
        assert inside.std() < 0.3 * x[..., 16:48, 16:48].std()
        assert coarse_face(x, mask, 0) is x


class TestCode:
    layout = CodeLayout(4, 32, "test/code")

    def angles(self, seed: int = 0) -> torch.Tensor:
        return (torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(seed)) - 0.5) * 5

    def test_round_trip_and_header(self):
        angles, nonce = self.angles(), b"\x01\x02\x03\xff"
        phasors = self.layout.encrypt(angles, [KEY], [nonce])
        assert self.layout.read_header(phasors[0], KEY) == (nonce, True)
        read = self.layout.decrypt(phasors[0], KEY, nonce)
        assert torch.allclose(read, to_phasors(angles)[0] * self.layout.payload_mask.repeat(2, 1, 1), atol=1e-4)
        score, shift = self.layout.pilot_search(phasors, 5)
        # Each cosine is 1; by chance the sum varies by sqrt(64 / 2).
        assert score.item() == pytest.approx(64 / 32**0.5, abs=1e-4)
        assert shift.tolist() == [[0, 0]]

    def test_header_survives_noise(self):
        phasors = self.layout.encrypt(self.angles(), [KEY], [b"abcd"])
        noisy = phasors + 0.8 * torch.randn(phasors.shape, generator=torch.Generator().manual_seed(1))
        assert self.layout.read_header(noisy[0], KEY) == (b"abcd", True)

    def test_wrong_keys_do_not_fit(self):
        phasors = self.layout.encrypt(self.angles(), [KEY], [b"abcd"])
        keys = [Key.from_bytes(n.to_bytes(2, "big") * 15 + b"xy") for n in range(300)]
        assert not any(self.layout.read_header(phasors[0], key)[1] for key in keys)  # expected: 300 * 7e-5 = .02

    def test_encrypted_code_is_uniform_and_independent_of_the_face(self):
        """Flat angles (the worst case) come out uniform, and two faces' codes are uncorrelated."""
        flat = self.layout.encrypt(torch.zeros(1, 4, 32, 32), [KEY], [b"abcd"])[0]
        mask = self.layout.payload_mask.bool()
        real, imaginary = flat.chunk(2)
        turns = torch.atan2(imaginary, real)[mask] / (2 * math.pi) + 0.5
        counts = torch.histc(turns, bins=16, min=0, max=1)
        expected = counts.sum() / 16
        assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-squared, 15 degrees: p < 1e-4
        other = self.layout.encrypt(torch.zeros(1, 4, 32, 32), [KEY], [b"abce"])[0]
        payload = self.layout.payload_mask.repeat(2, 1, 1)  # pilots are public, header bits repeat
        assert abs(float((flat * other * payload).mean())) < 0.02

    def test_wrong_key_reads_noise(self):
        angles = self.angles()
        phasors = self.layout.encrypt(angles, [KEY], [b"abcd"])
        wrong = self.layout.decrypt(phasors[0], OTHER, b"abcd")
        true = to_phasors(angles)[0] * self.layout.payload_mask.repeat(2, 1, 1)
        assert abs(float((wrong * true).sum() / true.square().sum())) < 0.06

    def test_nonce_is_of_the_face_and_the_key(self):
        crop = torch.rand(3, 16, 16) * 2 - 1
        assert self.layout.face_nonce(KEY, crop) == self.layout.face_nonce(KEY, crop.clone())
        assert self.layout.face_nonce(KEY, crop) != self.layout.face_nonce(OTHER, crop)
        assert self.layout.face_nonce(KEY, crop) != self.layout.face_nonce(KEY, -crop)

    def test_turning_there_and_back(self):
        phasors, angles = to_phasors(self.angles(1)), self.angles(2)
        assert torch.allclose(turn(turn(phasors, angles), -angles), phasors, atol=1e-6)

    def test_carriers_are_orthonormal(self):
        patterns = carrier_patterns(8)
        assert torch.allclose(patterns @ patterns.T, torch.eye(8), atol=1e-6)

    def test_too_small_for_the_header(self):
        with pytest.raises(ValueError, match="no room"):
            CodeLayout(4, 12, "test/code")

    def test_fewer_repeats_in_small_crops(self):
        layout = CodeLayout(4, 16, "test/code")
        assert layout.repeats == 3
        phasors = layout.encrypt(torch.zeros(1, 4, 16, 16), [KEY], [b"abcd"])
        assert layout.read_header(phasors[0], KEY) == (b"abcd", True)

    def test_two_doubtful_bits_are_put_right(self):
        phasors = self.layout.encrypt(self.angles(), [KEY], [b"abcd"])
        flat = phasors[0].flatten()
        half = flat.numel() // 2
        for bit in (5, 17):  # most of the bit's positions say the opposite: it is read wrong, without much certainty
            wrong = self.layout.nonce[:9, bit]
            flat[wrong] *= -1
            flat[half + wrong] *= -1
        assert self.layout.read_header(phasors[0], KEY) == (b"abcd", True)
        assert self.layout.read_header(phasors[0], OTHER)[1] is False

    def test_one_wild_position_does_not_outvote_the_others(self):
        phasors = self.layout.encrypt(self.angles(), [KEY], [b"abcd"])
        flat = phasors[0].flatten()
        wild = self.layout.nonce[0]
        flat[wild] *= -40
        flat[flat.numel() // 2 + wild] *= -40
        assert self.layout.read_header(phasors[0], KEY) == (b"abcd", True)


class TestPlacement:
    layout = CodeLayout(4, 32, "test/code")

    def transforms(self, count: int = 40) -> np.ndarray:
        random = np.random.default_rng(0)
        angle, scale = random.uniform(-0.6, 0.6, count), np.exp(random.uniform(-2, 1, count))
        shift = random.uniform(-300, 300, (count, 2))
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        return np.stack([np.stack([cosine, -sine, shift[:, 0]], 1), np.stack([sine, cosine, shift[:, 1]], 1)], 1)

    def test_snapping_moves_little_and_once(self):
        before = self.transforms()
        after = placement.snapped(before, 128)
        assert np.allclose(placement.snapped(after, 128), after)
        assert np.allclose(after[:, :, 2] % 4 % 4, 0, atol=1e-9)
        for a, b in zip(before, after, strict=True):
            # Where a crop's centre and corners came from, seen in the crop that is used.
            for corner, limit in (((63.5, 63.5), 2 * 2**0.5), ((0, 0), 2 * 2**0.5 + 90 * (0.0175 + 0.015) + 0.1)):
                source = np.linalg.solve(a[:, :2], np.array(corner) - a[:, 2])
                assert np.linalg.norm(b[:, :2] @ source + b[:, 2] - corner) <= limit

    def test_finds_the_place_from_the_pilots(self):
        """A reader that knows the true place: pilots there, shifted by whole cells; elsewhere noise."""
        true = placement.snapped(self.transforms(1), 128)[0]
        noise = torch.Generator().manual_seed(3)
        code = self.layout.encrypt(torch.zeros(1, 4, 32, 32), [KEY], [b"abcd"])[0]

        def read(places: np.ndarray) -> torch.Tensor:
            answers = []
            for place in places:
                answer = torch.randn(8, 32, 32, generator=noise)
                if np.allclose(place[:, :2], true[:, :2]):
                    right, down = np.round((place[:, 2] - true[:, 2]) / 4).astype(int)
                    answer = torch.roll(code, (down, right), (1, 2))
                answers.append(answer)
            return torch.stack(answers)

        angle, factor = 0.07, 1.05
        centre = np.array([63.5, 63.5])
        turn = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        start = np.column_stack([turn @ true[:, :2], turn @ (true[:, 2] - centre) + centre + [9.0, -7.0]])
        assert np.allclose(placement.find(start, 128, read, self.layout), true)

    def test_nothing_there(self):
        start = self.transforms(1)[0]
        noise = torch.Generator().manual_seed(4)
        found = placement.find(start, 128, lambda p: torch.randn(len(p), 8, 32, 32, generator=noise), self.layout)
        assert np.array_equal(found, start)


class TestLinearPainter:
    def test_finds_a_linear_rule(self):
        rng = torch.Generator().manual_seed(0)
        identity = functional.normalize(torch.randn(400, 6, generator=rng), dim=-1)
        faces = torch.rand(400, 3, 8, 8, generator=rng) * 0.2 - 0.1
        true = LinearPainter(6, 2, 8)
        with torch.no_grad():
            true.linear.weight.mul_(0.1)
        painter = LinearPainter(6, 2, 8)
        # Targets keep the coarse version of their input, as faces do.
        flat = true.linear(true.features(identity, faces)).view(-1, 3, 8, 8).detach()
        target = flat - functional.interpolate(functional.adaptive_avg_pool2d(flat - faces, 2), scale_factor=4)
        painter.fit([(identity[:200], target[:200]), (identity[200:], target[200:])], ridge=1e-9)
        assert torch.allclose(painter(identity, target), target, atol=1e-3)

    def test_only_the_coarse_face_is_used(self):
        painter = LinearPainter(6, 2, 8)
        identity, faces = unit(1, 6).float(), torch.rand(1, 3, 8, 8)
        shuffled = functional.interpolate(functional.adaptive_avg_pool2d(faces, 2), scale_factor=4)
        assert torch.allclose(painter(identity, faces), painter(identity, shuffled), atol=1e-5)


class TestDistribution:
    def test_draws_follow_the_fitted_people(self):
        people = unit(4000, 8, seed=1).float() @ torch.diag(torch.tensor([3.0, 2, 1, 1, 1, 1, 0.5, 0.2]))
        people = functional.normalize(people + 0.4, dim=-1)
        distribution = IdentityDistribution(8)
        distribution.fit(people)
        draws = distribution(torch.randn(4000, 8, generator=torch.Generator().manual_seed(2)))
        assert torch.allclose(draws.norm(dim=1), torch.ones(4000), atol=1e-5)
        assert functional.cosine_similarity(draws.mean(0), people.mean(0), dim=0) > 0.98


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    data = make_set(folder / "set.safetensors", count=9, size=128, dim=128)
    path = folder / "tiny.yaml"
    config = {**TINY, "disentangle_batches": 2, "conceal_batches": 2, "adversarial_start": 0, "jpeg_share": 0.0}
    settings = {"batch_size": 4, "sheet_every_batches": 100, "log_every_batches": 1, "tick_batches": 2}
    path.write_text(
        json.dumps(
            {
                "name": "identity_rotation.tiny",
                "method": "identity_rotation",
                "summary": "a test",
                "data": [str(data)],
                "train": settings,
                "config": config,
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    return train(recipe, output=tmp_path_factory.mktemp("run") / "whole", accelerator="cpu")


class TestTraining:
    def test_a_run_leaves_everything(self, trained):
        assert trained.finished
        assert trained.batches_seen == 4
        for name in ("log.csv", "curves.png", "last.ckpt", "sheets", "checkpoint/manifest.json"):
            assert (trained.folder / name).exists(), name
        header = (trained.folder / "log.csv").read_text().splitlines()[0]
        assert "disentangle/cos_target" in header
        assert "conceal/psnr" in header

    def test_frozen_in_phase_two(self, recipe, trained, tmp_path):
        part = train(recipe, output=tmp_path / "part", accelerator="cpu", overrides=["config.conceal_batches=0"])
        first = torch.load(part.folder / "last.ckpt", weights_only=True)["state_dict"]
        last = torch.load(trained.folder / "last.ckpt", weights_only=True)["state_dict"]
        for name, value in first.items():
            same = torch.equal(value, last[name])
            frozen = name.startswith(("model.generator.", "model.attribute_encoder.", "discriminator."))
            learned = name.startswith(("model.code", "model.revealer")) and name.endswith("weight")
            assert same or not frozen, f"{name} moved in phase two"
            assert not (same and learned), f"{name} did not learn"

    def test_stopped_run_goes_on_bit_for_bit(self, recipe, trained, tmp_path):
        pieces = [
            train(recipe, output=tmp_path / "pieces", accelerator="cpu", max_minutes=0.0)
            for _ in range(trained.batches_seen)  # a batch each
        ]
        assert [piece.batches_seen for piece in pieces] == list(range(1, trained.batches_seen + 1))
        assert [piece.finished for piece in pieces] == [False] * (trained.batches_seen - 1) + [True]
        a, b = (torch.load(r.folder / "last.ckpt", weights_only=True) for r in (trained, pieces[-1]))
        for name, value in a["state_dict"].items():
            assert torch.equal(value, b["state_dict"][name]), name
        for network, state in a["facezoo_ema"]["networks"].items():
            for name, value in state.items():
                assert torch.equal(value, b["facezoo_ema"]["networks"][network][name]), (network, name)

    @pytest.mark.parametrize("weight", ["lambda_id", "lambda_attr"])
    def test_the_books_losses_count_without_foreign_identities(self, recipe, tmp_path, weight):
        """The paper's recipe swaps nothing (swap_share 0): (6.11) and (6.12) are of every face's own identity."""
        book = ["config.swap_share=0", "config.conceal_batches=0", "config.masked=false", "config.attribute_grid=0"]
        book += ["config.linear_painter=false", "config.lambda_coarse=0"]
        weights = []
        for value in (0, 5):
            run = train(
                recipe, output=tmp_path / str(value), accelerator="cpu", overrides=[*book, f"config.{weight}={value}"]
            )
            weights.append(torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"])
            with (run.folder / "log.csv").open() as stream:
                rows = list(csv.DictReader(stream))
            assert all(float(row["disentangle/attr"]) > 0 for row in rows)
            assert all(-1 <= float(row["disentangle/cos_target"]) <= 1 for row in rows)
        moved = [key for key in weights[0] if key.startswith("model.generator.") and key.endswith("weight")]
        assert any(not torch.equal(weights[0][key], weights[1][key]) for key in moved), f"{weight} is a dead number"

    def test_another_configuration_is_refused(self, recipe, trained):
        with pytest.raises(CheckpointError, match=r"config\.lambda_id"):
            train(recipe, output=trained.folder, accelerator="cpu", overrides=["config.lambda_id=7"])

    def test_checkpoint_loads_and_works(self, trained):
        manifest = json.loads((trained.checkpoint / "manifest.json").read_text())
        method = IdentityRotation.from_checkpoint(trained.checkpoint, manifest)
        faces = torch.rand(2, 3, 128, 128) * 2 - 1
        result = method.anonymize(faces, FaceContext(key=KEY))
        assert result.shape == faces.shape
        assert not torch.equal(result, method.anonymize(faces, FaceContext(key=OTHER)))
        assert torch.equal(result, method.anonymize(faces, FaceContext(key=KEY)))
        assert torch.allclose(result[:1], method.anonymize(faces[:1], FaceContext(key=KEY)), atol=1e-3)
        recovered = method.recover(result, FaceContext(key=OTHER))
        assert recovered.verified == [False, False]
        with pytest.raises(KeyMaterialError):
            method.anonymize(faces, FaceContext())
        with pytest.raises(InputError, match="128"):
            method.anonymize(faces[..., :64, :64], FaceContext(key=KEY))

    def test_damaged_config_is_refused(self, trained):
        manifest = json.loads((trained.checkpoint / "manifest.json").read_text())
        manifest["config"]["conceal_width"] = 12
        with pytest.raises(CheckpointError, match="does not fit"):
            IdentityRotation.from_checkpoint(trained.checkpoint, manifest)
        manifest["config"] = {"sizes": 3}
        with pytest.raises(CheckpointError, match="unknown key 'sizes'"):
            IdentityRotation.from_checkpoint(trained.checkpoint, manifest)


def test_paper_size_exists():
    """The book's network: eight levels from 2x2 to 256x256 and a 512-d identity, on the meta device."""
    with torch.device("meta"):
        config = IdentityRotationConfig()
        assert (config.size, config.identity_dim, config.start, len(config.generator_widths)) == (256, 512, 2, 8)


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("recipes/identity_rotation/*.yaml")), ids=lambda p: p.stem
)
def test_recipes_parse_and_build(path):
    recipe = load_recipe(path)
    config = losses and recipe.config
    built = IdentityRotationConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    if built.size <= 128:
        networks = IdentityRotationNetworks(built)
        faces = torch.rand(1, 3, built.size, built.size) * 2 - 1
        assert networks.cover(faces, unit(1, built.identity_dim).float()).shape == faces.shape
