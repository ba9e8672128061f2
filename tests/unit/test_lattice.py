"""The lattice code: what it writes is read again from saved files, nobody else's key reads it, and nobody sees it."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from facezoo.concealment import placement
from facezoo.concealment.lattice import LATTICE_CELL, Lattice, LatticeLayout
from facezoo.faces.mask import face_mask
from facezoo.keys import Key

SIZE, NUMBERS = 128, 220
KEY, OTHER = Key.from_bytes(bytes(range(32))), Key.from_bytes(bytes(range(1, 33)))


@pytest.fixture(scope="module")
def lattice() -> Lattice:
    return Lattice(SIZE, [8] * 100 + [4] * 120, 12.0, 8.0, torch.from_numpy(face_mask(SIZE).copy()), "test/lattice")


def cover(seed: int = 0, brightness: float = 0.0) -> Tensor:
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) - 0.5 + brightness
    return functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(-1, 1)


@pytest.fixture(scope="module")
def numbers() -> Tensor:
    return torch.randn(1, NUMBERS, generator=torch.Generator().manual_seed(1)).clamp(-2.9, 2.9)


@pytest.fixture(scope="module")
def written(lattice, numbers) -> tuple[Tensor, bytes]:
    nonce = lattice.layout.face_nonce(KEY, cover()[0])
    phasors = lattice.layout.encrypt(lattice.angles(numbers), [KEY], [nonce])
    return lattice.write(cover(), phasors), nonce


def eight_bits(pictures: Tensor) -> Tensor:
    return ((pictures + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def jpeg(pictures: Tensor, quality: int) -> Tensor:
    pixels = ((pictures[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1)[None].float() / 127.5 - 1


def read(lattice: Lattice, saved: Tensor, key: Key = KEY) -> tuple[Tensor, bytes, bool]:
    phasors = lattice.read(saved)[0]
    nonce, fits = lattice.layout.read_header(phasors, key)
    return lattice.numbers(lattice.layout.decrypt(phasors, key, nonce), lattice.coherence(phasors)), nonce, fits


def test_without_noise_everything_is_read_exactly(lattice, written, numbers):
    saved, nonce = written
    found, found_nonce, fits = read(lattice, saved)
    assert fits
    assert found_nonce == nonce
    assert lattice.coherence(lattice.read(saved)[0]) > 0.999
    assert (found - numbers[0]).abs().max() < 0.02


@pytest.mark.parametrize(
    ("save", "most"), [(eight_bits, 0.1), (lambda p: jpeg(p, 95), 0.25)], ids=["8 bits", "JPEG 95"]
)
def test_saved_files_are_read(lattice, written, numbers, save, most):
    saved, nonce = written
    found, found_nonce, fits = read(lattice, save(saved))
    assert fits
    assert found_nonce == nonce
    assert (found - numbers[0]).square().mean().sqrt() < most


def test_damage_gives_vaguer_numbers_and_not_wild_ones(lattice, written):
    noise = torch.randn(written[0].shape, generator=torch.Generator().manual_seed(5)) * 0.2
    found, _, _ = read(lattice, eight_bits(written[0] + noise))
    assert found.abs().mean() < 0.5, "the mean of what is likely"


def test_nobody_sees_it(lattice, written):
    change = (eight_bits(written[0]) - eight_bits(cover())) * 127.5
    assert 20 * math.log10(255 / change.square().mean().sqrt()) >= 45
    assert change.abs().max() < 25
    # A margin of one cell carries nothing.
    inner = slice(LATTICE_CELL, -LATTICE_CELL)
    margin = torch.ones(SIZE, SIZE, dtype=torch.bool)
    margin[inner, inner] = False
    assert torch.equal(eight_bits(written[0])[..., margin], eight_bits(cover())[..., margin])
    # The colours move together: what is written is brightness.
    assert torch.allclose((written[0] - cover())[:, 0], (written[0] - cover())[:, 2], atol=1e-5)


def test_another_key_reads_nothing(lattice, written, numbers):
    found, _, fits = read(lattice, eight_bits(written[0]), OTHER)
    assert not fits
    assert torch.corrcoef(torch.stack([found, numbers[0]]))[0, 1].abs() < 0.25
    with_context = lattice.layout.read_header(lattice.read(written[0])[0], KEY, b"something else")
    assert not with_context[1]


def test_a_picture_without_a_code_fits_no_key(lattice):
    phasors = lattice.read(cover(3))[0]
    assert abs(lattice.coherence(phasors)) < 0.4
    assert not lattice.layout.read_header(phasors, KEY)[1]


def test_the_same_numbers_look_different_under_another_nonce(lattice, numbers):
    angles = lattice.angles(numbers)
    first, second = (lattice.layout.encrypt(angles, [KEY], [bytes([n]) * 8]) for n in (1, 2))
    real, other = first.chunk(2, 1)[0].flatten()[lattice.places], second.chunk(2, 1)[0].flatten()[lattice.places]
    assert torch.corrcoef(torch.stack([real, other]))[0, 1].abs() < 0.1


def test_pilots_are_found_after_a_shift_by_cells(lattice, written):
    picture = eight_bits(written[0])
    for right, down in ((0, 0), (1, -2), (-3, 2)):
        moved = torch.roll(picture, (8 * down, 8 * right), dims=(2, 3))
        score, shift = lattice.layout.pilot_search(lattice.read(moved), 3)
        assert shift[0].tolist() == [right, down]
        assert score > 6
    scores, _ = lattice.layout.pilot_search(lattice.read(torch.cat([cover(4), cover(5)])), 3)
    assert scores.max() < 5


def test_a_crop_is_found_again_in_a_picture(lattice, written):
    """The picture is the crop inside a larger one; the detector is off by some pixels."""
    whole = functional.pad(eight_bits(written[0]), (24, 24, 24, 24), mode="replicate")
    true = np.array([[1.0, 0.0, -24.0], [0.0, 1.0, -24.0]])
    assert np.array_equal(placement.snapped(true[None], SIZE, LATTICE_CELL)[0], true)

    def crop(transforms):
        rows = []
        for transform in transforms:
            if abs(transform[0, 0] - 1) > 1e-6 or abs(transform[0, 1]) > 1e-6:
                rows.append(cover(9)[0])  # another turn or size: nothing to read
                continue
            x, y = (-int(v) for v in transform[:, 2])
            rows.append(functional.pad(whole, (64, 64, 64, 64))[0, :, y + 64 : y + 64 + SIZE, x + 64 : x + 64 + SIZE])
        return lattice.read(torch.stack(rows))

    start = true + np.array([[0.0, 0.0, 9.0], [0.0, 0.0, -14.0]])
    found = placement.find(start, SIZE, crop, lattice.layout, LATTICE_CELL)
    assert np.allclose(found, true)


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_black_and_white_pictures_leave_room(lattice, numbers, value):
    flat = torch.full((1, 3, SIZE, SIZE), value)
    phasors = lattice.layout.encrypt(lattice.angles(numbers), [KEY], [bytes(8)])
    saved = eight_bits(lattice.write(flat, phasors).clamp(-1, 1))
    assert (saved[..., :8, :] == value).all(), "the margin is as it was"
    assert ((saved - flat).abs() * 127.5).max() < 30
    _, nonce, fits = read(lattice, saved)
    assert fits
    assert nonce == bytes(8)


def test_the_layout_uses_every_place_once(lattice):
    layout = lattice.layout
    used = torch.cat([layout.pilots, layout.nonce.flatten(), layout.tag.flatten(), layout.numbers])
    assert len(used.unique()) == len(used)
    cells = used % (layout.side**2)
    row, column = cells // layout.side, cells % layout.side
    assert min(row.min(), column.min()) == 1
    assert max(row.max(), column.max()) == layout.side - 2
    again = LatticeLayout(layout.side, "another/purpose")
    assert torch.equal(again.numbers, layout.numbers), "the places are public and fixed"
    assert layout.payload_mask.sum() == len(layout.numbers)


@pytest.mark.parametrize(
    ("size", "repeats", "message"),
    [
        (100, [1], "a multiple of 8, not 100"),
        (64, [1], "8x8 cells has no room for 96 pilots"),
        (128, [8] * 400, "a crop of 128 pixels has no room for 3200 angles"),
    ],
)
def test_too_small_a_crop_is_refused(size, repeats, message):
    with pytest.raises(ValueError, match=message):
        Lattice(size, repeats, 12.0, 8.0, torch.ones(size, size), "test/lattice")
