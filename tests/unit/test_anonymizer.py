"""The whole-picture path: what is changed, what is not, what is refused, and what comes back."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import facezoo
from facezoo.anonymizer import Anonymizer, MissedFaceError
from facezoo.errors import FacezooError, InputError, KeyMaterialError, NoFaceError, OutputError, RecordError
from facezoo.faces.align import crop_quad, similarity
from facezoo.faces.detect import get_detector
from facezoo.keys import Key
from facezoo.records import find_record, read_sidecar, sidecar_path
from tests.tiny_method import SIZE, TinySwap, registered, write_tiny_checkpoint


def portrait(name: str = "astronaut.jpg") -> np.ndarray:
    data = (resources.files("facezoo") / "assets" / "demo" / name).read_bytes()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module")
def two() -> np.ndarray:
    """Two people side by side."""
    return np.concatenate([portrait(), portrait("obama.jpg")], axis=1)


@pytest.fixture(scope="module")
def two_points(two: np.ndarray) -> np.ndarray:
    return np.stack([face.points for face in get_detector("yunet").detect(two)])


@pytest.fixture(scope="module")
def blur() -> Anonymizer:
    return facezoo.from_pretrained("gaussian_blur")


@pytest.fixture
def tiny(tmp_path: Path):
    with registered():
        yield facezoo.from_pretrained(write_tiny_checkpoint(tmp_path / "tiny_swap.test"))


KEY = Key.from_bytes(bytes(range(32)))
OTHER = Key.from_bytes(bytes(range(1, 33)))


def inside_crops(points: np.ndarray, shape: tuple[int, ...], size: int = 128) -> np.ndarray:
    import cv2

    mask = np.zeros(shape[:2], np.uint8)
    for five in points:
        cv2.fillConvexPoly(mask, np.round(crop_quad(similarity(five, size), size)).astype(np.int32), 1)
    return cv2.dilate(mask, np.ones((5, 5), np.uint8)).astype(bool)


def test_only_faces_change_and_every_face_does(blur, two):
    result = blur.anonymize(two, verify="off")
    assert result.record is not None
    assert len(result.report.faces) == 2
    found = np.array([face.points for face in result.record.faces])
    changed = (result.picture.pixels != two).any(axis=2)
    assert not changed[~inside_crops(found, two.shape)].any()
    for five in found:
        x, y = five.mean(axis=0).astype(int)
        assert changed[y - 15 : y + 15, x - 15 : x + 15].mean() > 0.9


def test_detectors_agree_on_the_portraits_by_default(blur, two):
    result = blur.anonymize(two)
    assert result.record is not None
    assert result.record.options["run"]["verify"] == {"mode": "on", "detector": "centerface", "added": 0}


def test_points_or_boxes_of_ones_own(blur, two, two_points):
    one = blur.anonymize(two, points=two_points[:1], verify="off")
    assert (one.picture.pixels[:, 300:] == two[:, 300:]).all()
    assert not (one.picture.pixels[:, :300] == two[:, :300]).all()
    # A box without points: the mask covers all of it.
    box = [[330, 10, 480, 170]]
    boxed = blur.anonymize(two, boxes=box, verify="off")
    change = np.abs(boxed.picture.pixels.astype(int) - two).max(axis=2)
    assert (change[20:160, 345:465] > 0).mean() > 0.95
    with pytest.raises(MissedFaceError, match="--verify"):
        blur.anonymize(two, points=two_points[:1])
    for wrong in ([[1, 2, 3]], [[5, 5, 5, 9]], [[-90, -90, -5, -5]], [[0, 0, float("nan"), 5]], "box"):
        with pytest.raises(InputError):
            blur.anonymize(two, boxes=wrong, verify="off")
    with pytest.raises(InputError, match="go with"):
        blur.anonymize(two, boxes=box, points=two_points, verify="off")
    with pytest.raises(NoFaceError):
        blur.anonymize(two, boxes=[], verify="off")


def test_eye_bars_of_overlapping_faces_do_not_uncover_each_other(two_points):
    """Each bar is put on what the last one left; cut out of the original it would bring the other's eyes back."""
    bar = facezoo.from_pretrained("eye_bar")
    picture = np.random.default_rng(0).integers(40, 200, (336, 300, 3), dtype=np.uint8)
    first = two_points[0]
    near = np.stack([first, first + np.float32([28, 10])])
    result = bar.anonymize(picture, points=near, verify="off")
    for five in near:
        for x, y in five[:2].astype(int):
            assert result.picture.pixels[y - 2 : y + 3, x - 2 : x + 3].max() < 30


def test_faces_of_very_different_sizes(blur):
    small = np.asarray(Image.fromarray(portrait()).resize((90, 101), Image.Resampling.LANCZOS))
    big = np.asarray(Image.fromarray(portrait("obama.jpg")).resize((900, 1008), Image.Resampling.LANCZOS))
    picture = np.full((1008, 1000, 3), 120, np.uint8)
    picture[:, :900] = big
    picture[300:401, 905:995] = small
    result = blur.anonymize(picture, verify="off")
    sizes = [face.size for face in result.report.faces]
    assert len(sizes) == 2
    assert sizes == sorted(sizes)
    assert sizes[1] > 8 * sizes[0]
    changed = (result.picture.pixels != picture).any(axis=2)
    assert changed[300:401, 905:995].any()


@pytest.mark.parametrize("kind", ["gray", "gray16", "rgba", "cmyk", "palette", "turned"])
def test_every_kind_of_picture(blur, tmp_path, kind):
    image = Image.fromarray(portrait())
    path = tmp_path / "in.png"
    if kind == "gray":
        image.convert("L").save(path)
    elif kind == "gray16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    elif kind == "rgba":
        image.putalpha(Image.fromarray(np.tile(np.arange(300) % 256, (336, 1)).astype(np.uint8)))
        image.save(path)
    elif kind == "cmyk":
        path = tmp_path / "in.jpg"
        image.convert("CMYK").save(path, quality=95)
    elif kind == "palette":
        image.quantize(128).save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / "in.jpg"
        image.rotate(90, expand=True).save(path, exif=exif, quality=95)
    out = tmp_path / "out.png"
    blur.anonymize(path, verify="off").save(out)
    with Image.open(out) as saved:
        assert saved.size == (300, 336)
        assert not saved.getexif()
        if kind == "rgba":
            alpha = np.asarray(saved)[..., 3]
            assert (alpha == np.tile(np.arange(300) % 256, (336, 1))).all()
        if kind.startswith("gray"):
            assert saved.mode == "L"
        eyes = np.asarray(saved.convert("RGB"))[95:110, 120:185].astype(int)
    assert np.abs(eyes - portrait()[95:110, 120:185]).mean() > 8


def test_thumbnail_and_place_are_not_carried_along(blur, tmp_path):
    image = Image.fromarray(portrait())
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif.get_ifd(0x8825)[1] = "N"
    path = tmp_path / "in.jpg"
    image.save(path, exif=exif, quality=95)
    marker = b"the original face, small"
    data = path.read_bytes()
    comment = struct.pack(">BBH", 0xFF, 0xFE, len(marker) + 2) + marker
    path.write_bytes(data[:2] + comment + data[2:])
    for policy in ("drop", "keep-safe"):
        out = tmp_path / f"{policy}.jpg"
        blur.anonymize(path, verify="off", metadata=policy).save(out)
        assert marker not in out.read_bytes()
        with Image.open(out) as saved:
            assert not saved.getexif().get_ifd(0x8825)


# ------------------------------------------------------------------------------------------------ a learned method


def test_round_trip_with_and_without_record(tiny, two, tmp_path):
    path = tmp_path / "anon.png"
    result = tiny.anonymize(two, KEY, verify="off")
    result.save(path)
    record = read_sidecar(path)
    assert record.matches_key(KEY)
    assert record.belongs_to(path)
    record.verify(KEY)
    assert str(bytes(range(32)).hex()) not in sidecar_path(path).read_text()

    back = tiny.recover(path, KEY)
    assert [face.verified for face in back.report.faces] == [True, True]
    covered = result.picture.pixels
    for face in record.faces:
        x0, y0, x1, y1 = (int(value) for value in face.box)
        area = np.s_[y0:y1, x0:x1]
        lost = np.abs(covered[area].astype(int) - two[area]).mean()
        assert np.abs(back.picture.pixels[area].astype(int) - two[area]).mean() < 0.25 * lost

    with pytest.raises(KeyMaterialError, match="right key"):
        tiny.recover(path, OTHER)
    wrong = tiny.recover(path, OTHER, check_key=False)
    assert [face.verified for face in wrong.report.faces] == [False, False]

    in_memory = tiny.recover(covered, KEY, record=result.record)
    assert [face.verified for face in in_memory.report.faces] == [True, True]
    stripped = dataclasses.replace(record, mac=None)
    with pytest.raises(RecordError, match="authentication"):
        tiny.recover(covered, KEY, record=stripped)


def test_same_key_same_picture_and_another_key_another(tiny, two):
    first, again, other = (tiny.anonymize(two, key, verify="off").picture.pixels for key in (KEY, KEY, OTHER))
    assert (first == again).all()
    assert not (first == other).all()


def test_all_faces_go_through_in_one_call(tiny, two, monkeypatch):
    batches = []
    real = TinySwap.anonymize
    monkeypatch.setattr(
        TinySwap, "anonymize", lambda self, faces, context: batches.append(len(faces)) or real(self, faces, context)
    )
    tiny.anonymize(two, KEY, verify="off")
    assert batches == [2]


@pytest.mark.parametrize("how", ["nan", "same", "shape"])
def test_a_failing_method_fails_the_picture(tiny, two, how):
    TinySwap.broken = how
    with pytest.raises(FacezooError, match="nothing was written"):
        tiny.anonymize(two, KEY, verify="off")


def test_one_unchanged_face_of_several_fails_the_picture(tiny, two, monkeypatch):
    real = TinySwap.anonymize

    def lazy(self, faces, context):
        result = real(self, faces, context).clone()
        result[1] = faces[1] + 0.001
        return result.clamp(-1, 1)

    monkeypatch.setattr(TinySwap, "anonymize", lazy)
    with pytest.raises(FacezooError, match="left a face, or much of it, as it was"):
        tiny.anonymize(two, KEY, verify="off")


def test_crops_that_the_method_moves_are_its_own(tiny, two, monkeypatch):
    """What is changed, checked and sealed is where the method wants its crops, not where the points put them."""
    monkeypatch.setattr(
        TinySwap, "place_crops", lambda self, transforms: transforms + np.float64([[0, 0, 9], [0, 0, -7]])
    )
    result = tiny.anonymize(two, KEY, seal=True, verify="off")
    back = tiny.recover(result.picture, KEY, record=result.record)
    assert (back.picture.pixels == two).all()
    plain = tiny.recover(result.picture, KEY, record=result.record, use_seal=False)
    assert [face.verified for face in plain.report.faces] == [True, True]


def test_aligned_tensors(tiny):
    faces = torch.rand(3, 3, SIZE, SIZE) * 1.2 - 0.6
    covered = tiny.anonymize_faces(faces, KEY)
    assert covered.shape == faces.shape
    recovered = tiny.recover_faces(covered, KEY)
    assert recovered.verified == [True] * 3
    assert (recovered.faces - faces).abs().max() < 0.02
    with pytest.raises(InputError):
        tiny.anonymize_faces(faces[..., :-1], KEY)
    with pytest.raises(InputError, match="points"):
        tiny.anonymize_faces(faces, KEY, points=np.zeros((1, 5, 2)))


def test_small_faces_are_warned_about(tiny):
    picture = np.asarray(Image.fromarray(portrait()).resize((75, 84), Image.Resampling.LANCZOS))
    report = tiny.anonymize(picture, KEY, verify="off").report
    assert "recovery from the picture alone will be weak" in report.faces[0].warnings[0]
    assert not tiny.anonymize(picture, KEY, verify="off", seal=True).report.faces[0].warnings


# ------------------------------------------------------------------------------------------------ keys and records


@pytest.mark.parametrize("wrong", ["passphrase", b"0" * 32, 7])
def test_a_key_of_the_wrong_type(tiny, two, wrong):
    for call in (tiny.anonymize, tiny.recover):
        with pytest.raises(KeyMaterialError, match=r"facezoo\.Key"):
            call(two, wrong)


def test_no_key(tiny, blur, two):
    with pytest.raises(KeyMaterialError, match="needs a key"):
        tiny.anonymize(two)
    with pytest.raises(KeyMaterialError, match="needs a key"):
        blur.anonymize(two, seal=True)


def test_record_of_another_method_or_size(tiny, blur, two):
    foreign = blur.anonymize(two, verify="off").record
    with pytest.raises(RecordError, match="gaussian_blur"):
        tiny.recover(two, KEY, record=foreign)
    own = tiny.anonymize(two, KEY, verify="off").record
    assert own is not None
    with pytest.raises(RecordError, match="600x336"):
        tiny.recover(two[:300], KEY, record=dataclasses.replace(own, mac=None), check_key=False)


def test_seal_restores_overlapping_faces_bit_by_bit(blur, two, two_points, tmp_path):
    near = np.stack([two_points[0], two_points[0] + np.float32([35, 12]), two_points[1]])
    result = blur.anonymize(two, KEY, points=near, seal=True, verify="off")
    path = tmp_path / "anon.png"
    result.save(path, embed=True, write_record=False)
    assert not sidecar_path(path).exists()
    back = blur.recover(path, KEY)
    assert (back.picture.pixels == two).all()
    assert all(face.sealed for face in back.report.faces)
    # Nothing of the originals is readable in the file.
    record = find_record(path)
    assert record is not None
    assert b"PNG" not in json.dumps(record.to_json()).encode()[:200]
    with pytest.raises(KeyMaterialError):
        blur.recover(path, OTHER)
    lost = dataclasses.replace(record, faces=tuple(reversed(record.faces)), mac=None)
    with pytest.raises(RecordError):
        blur.recover(path, KEY, record=lost)


def test_saving_is_all_or_nothing(blur, two, tmp_path, monkeypatch):
    result = blur.anonymize(two, verify="off")
    path = tmp_path / "x.png"
    sidecar_path(path).write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        result.save(path)
    assert not path.exists()
    assert sidecar_path(path).read_text() == "mine"

    import facezoo.anonymizer as module

    real, written = module.atomic_write, []

    def failing(target, data, *arguments, **options):
        if Path(target) == path:
            raise OutputError("disk full")
        written.append(Path(target))
        return real(target, data, *arguments, **options)

    monkeypatch.setattr(module, "atomic_write", failing)
    with pytest.raises(OutputError):
        result.save(path, overwrite=True)
    assert sidecar_path(path).read_text() == "mine"  # the old record is back
    assert written
    sidecar_path(path).unlink()
    with pytest.raises(OutputError):
        result.save(path)
    assert list(tmp_path.iterdir()) == []


def test_no_face_is_refused_unless_a_copy_is_asked_for(blur):
    plain = np.full((90, 120, 3), 128, np.uint8)
    with pytest.raises(NoFaceError):
        blur.anonymize(plain)
    result = blur.anonymize(plain, no_face="copy")
    assert (result.picture.pixels == plain).all()
    assert result.record is not None
    assert result.record.options["run"]["no_face"] == "copy"


def test_odd_landmarks_fall_back_to_the_whole_box(blur, two, monkeypatch):
    import facezoo.faces.detect as detect

    real = detect.Detector.detect

    def scrambled(self, rgb):
        return [dataclasses.replace(face, points=face.points[[4, 2, 0, 3, 1]]) for face in real(self, rgb)]

    monkeypatch.setattr(detect.Detector, "detect", scrambled)
    result = blur.anonymize(two, verify="off")
    changed = (result.picture.pixels != two).any(axis=2)
    for face in result.report.faces:
        assert "landmarks look wrong" in face.warnings[0]
        x0, y0, x1, y1 = (int(value) for value in face.box)
        assert changed[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5].mean() > 0.95


def test_unknown_options_are_refused_before_any_picture(two):
    with pytest.raises(FacezooError, match="sigma"):
        facezoo.from_pretrained("gaussian_blur", radius=3)
    with pytest.raises(FacezooError, match="sigma"):
        facezoo.from_pretrained("gaussian_blur", sigma=-1)


def test_version_is_the_package_version(repository):
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert project.get("version", facezoo.__version__) == facezoo.__version__
    for name in facezoo.__all__:
        assert getattr(facezoo, name) is not None


def test_arguments_of_the_wrong_type_are_one_clear_error(blur, tiny, two, tmp_path):
    with pytest.raises(InputError, match="no_face"):
        blur.anonymize(two, no_face="skip")
    with pytest.raises(RecordError, match="int"):
        tiny.recover(two, KEY, record=5)
    with pytest.raises(InputError, match="torch tensor"):
        tiny.anonymize_faces(np.zeros((1, 3, SIZE, SIZE), np.float32), KEY)
    with pytest.raises(FacezooError, match="NoneType"):
        facezoo.from_pretrained(None)
    with pytest.raises(InputError, match="cannot be used here"):
        facezoo.from_pretrained(write_tiny_checkpoint(tmp_path / "tiny_swap.device"), device="teapot")


def test_texts_show_neither_pixels_nor_key(tiny, two):
    result = tiny.anonymize(two, KEY, verify="off")
    assert repr(result) == "<facezoo.Result: 600x336, 2 faces>"
    assert KEY._master.hex() not in repr((tiny, KEY, result.record))


# ------------------------------------------------------------------------------------------------ how it looks


def inner_face(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels of the whole face: hair above the forehead to chin, ear to ear."""
    import cv2

    from facezoo.faces.mask import cover_mask

    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(cover_mask(128).copy(), similarity(points, 128), shape[1::-1], flags=flags) > 0.995


def detail(picture: np.ndarray) -> np.ndarray:
    """Strength of the finest structure, pixel by pixel."""
    import cv2

    return np.abs(cv2.Laplacian(picture.astype(np.float32), cv2.CV_32F)).max(axis=2)


@pytest.mark.parametrize("name", ["gaussian_blur", "low_resolution", "pixelation", "pixel_noise", "black_box"])
@pytest.mark.parametrize("enlarged", [1, 5])
def test_nothing_of_the_face_shines_through(name, enlarged):
    """Two pictures that differ in the fine structure of a face only come out the same (5: larger than any crop)."""
    import cv2

    size = (300 * enlarged, 336 * enlarged)
    first = np.asarray(Image.fromarray(portrait()).resize(size, Image.Resampling.BICUBIC))
    points = (get_detector("yunet").detect(portrait())[0].points + 0.5) * enlarged - 0.5
    face = inner_face(points, first.shape)
    noise = np.zeros(first.shape, np.float32)
    noise[face] = np.random.default_rng(1).choice([-30.0, 30.0], (int(face.sum()), 3))
    noise -= cv2.blur(noise, (9, 9))  # no mean: a blur, a mosaic and a box have nothing to show of it
    second = np.clip(first + noise, 0, 255).astype(np.uint8)
    options = {"sigma": 2550.0} if name == "pixel_noise" else {}
    anonymizer = facezoo.from_pretrained(name, **options)
    out = [anonymizer.anonymize(p, points=points[None], verify="off").picture.pixels for p in (first, second)]
    if name == "pixel_noise":  # its noise depends on the face: nothing to compare, but nothing to see either
        assert ((out[1] < 5) | (out[1] > 250))[face].mean() > 0.8
    else:
        assert np.abs(second[face].astype(int) - first[face]).mean() > 20
        assert np.abs(out[0][face].astype(int) - out[1][face]).mean() < 2.0
    if name == "black_box":
        assert out[0][face].max() == 0


@pytest.mark.parametrize("name", ["gaussian_blur", "low_resolution"])
def test_blurs_end_softly_and_not_at_a_square(name, two):
    result = facezoo.from_pretrained(name).anonymize(two, verify="off")
    assert result.record is not None
    pixels = result.picture.pixels
    for face in result.record.faces:
        five = np.array(face.points)
        inside = inner_face(five, two.shape)
        assert detail(pixels)[inside].mean() < 0.12 * detail(two)[inside].mean()
        corners = crop_quad(similarity(five, 128), 128)
        for x, y in corners.mean(axis=0) + 0.9 * (corners - corners.mean(axis=0)):
            if 0 <= x < two.shape[1] and 0 <= y < two.shape[0]:
                assert (pixels[int(y), int(x)] == two[int(y), int(x)]).all()  # the crop's corners stay


def test_another_persons_face_brings_nothing_of_its_surroundings(two):
    """k-Same: one mean face for all, inside the face mask; the gallery's backgrounds stay out of the picture."""
    from facezoo.faces.align import crop_faces
    from facezoo.methods.ksame.gallery import Gallery

    points = np.stack([face.points for face in get_detector("yunet").detect(two)])
    gallery = Gallery(
        crop_faces(two, similarity(points[0])[None]).repeat(2, axis=0) // np.uint8([1, 2]).reshape(2, 1, 1, 1)
    )
    anonymizer = facezoo.from_pretrained("ksame_pixel", gallery=gallery, k=2, mode="open")
    pixels = anonymizer.anonymize(two, points=points, verify="off").picture.pixels
    changed = (pixels != two).any(axis=2)
    middles = []
    for five in points:
        (x, y), reach = five[2].astype(int), 5
        middles.append(pixels[y - reach : y + reach, x - reach : x + reach].mean(axis=(0, 1)))
        corners = crop_quad(similarity(five, 128), 128)
        for x, y in (corners.mean(axis=0) + 0.75 * (corners - corners.mean(axis=0))).astype(int):
            assert not changed[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].any()
    assert np.abs(middles[0] - middles[1]).max() < 8


def test_an_eye_bar_touches_nothing_but_its_bar(two, two_points):
    result = facezoo.from_pretrained("eye_bar").anonymize(two, points=two_points, verify="off")
    pixels = result.picture.pixels
    changed = (pixels != two).any(axis=2)
    black = (pixels <= 3).all(axis=2) & changed
    import cv2

    assert not (changed & ~cv2.dilate(black.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)).any()
    for five in two_points:
        for x, y in five[:2].round().astype(int):
            assert black[y - 3 : y + 4, x - 4 : x + 5].all()
        for x, y in five[2:].round().astype(int):
            assert not changed[y, x]


# ------------------------------------------------------------------------------------------------ faces of every kind


def hidden(result: facezoo.Result, original: np.ndarray, centre: tuple[float, float], reach: int) -> bool:
    """Whether most pixels around a place were changed."""
    x, y = (round(value) for value in centre)
    window = np.s_[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach]
    return bool((result.picture.pixels[window] != original[window]).any(axis=2).mean() > 0.9)


def test_a_face_cut_by_the_border(blur, tiny):
    whole = portrait("obama.jpg")
    face = get_detector("yunet").detect(whole)[0]
    cut = np.ascontiguousarray(whole[:, round(face.box[0] + 0.3 * (face.box[2] - face.box[0])) :])
    offset = whole.shape[1] - cut.shape[1]
    assert hidden(blur.anonymize(cut, verify="off"), cut, (face.points[2, 0] - offset, face.points[2, 1]), 12)
    covered = tiny.anonymize(cut, KEY, verify="off")
    back = tiny.recover(covered.picture, KEY, record=covered.record)
    area = np.s_[60:120, 0 : round(face.box[2] - offset)]
    lost = np.abs(covered.picture.pixels[area].astype(int) - cut[area]).mean()
    assert np.abs(back.picture.pixels[area].astype(int) - cut[area]).mean() < 0.35 * lost


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_face(blur, tiny, turns):
    turned = np.ascontiguousarray(np.rot90(portrait(), turns))
    truth = get_detector("yunet").detect(portrait())[0].points[2]
    height, width = portrait().shape[:2]
    x, y = truth
    nose = {1: (y, width - x), 2: (width - x, height - y), 3: (height - y, x)}[turns]
    assert hidden(blur.anonymize(turned, verify="off"), turned, nose, 20)
    covered = tiny.anonymize(turned, KEY, verify="off")
    back = tiny.recover(covered.picture, KEY, record=covered.record)
    assert [face.verified for face in back.report.faces] == [True]


@pytest.mark.parametrize("side", [20, 28])
def test_a_tiny_face(blur, side):
    face = get_detector("yunet").detect(portrait())[0]
    scale = side / face.size
    small = np.asarray(
        Image.fromarray(portrait()).resize((round(300 * scale), round(336 * scale)), Image.Resampling.LANCZOS)
    )
    picture = np.full((400, 600, 3), 140, np.uint8)
    picture[200 : 200 + small.shape[0], 300 : 300 + small.shape[1]] = small
    result = blur.anonymize(picture, verify="off")
    assert len(result.report.faces) == 1
    x, y = face.points[2] * scale
    assert hidden(result, picture, (300 + x, 200 + y), side // 3)


@pytest.mark.slow
def test_a_picture_of_5000_pixels(blur, tmp_path):
    """In one process of its own, so that its memory can be told: one face of 2,000 pixels, one of 20."""
    import subprocess
    import sys

    code = """
import io, resource, numpy as np, facezoo
from importlib import resources
from PIL import Image
data = (resources.files("facezoo") / "assets" / "demo" / "obama.jpg").read_bytes()
face = Image.open(io.BytesIO(data)).convert("RGB")
picture = np.full((5000, 5000, 3), 140, np.uint8)
picture[:4480, :4000] = np.asarray(face.resize((4000, 4480), Image.Resampling.BICUBIC))
picture[4700:4779, 4300:4370] = np.asarray(face.resize((70, 79), Image.Resampling.LANCZOS))
result = facezoo.from_pretrained("gaussian_blur").anonymize(picture, verify="off")
print(len(result.report.faces), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
seconds = resource.getrusage(resource.RUSAGE_SELF)
print(seconds.ru_utime + seconds.ru_stime)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    faces, megabytes, seconds = run.stdout.split()
    assert int(faces) == 2
    assert int(megabytes) < 1500
    assert float(seconds) < 60


def test_people_of_the_keep_list_stay_and_are_counted(tiny, two, tmp_path):
    people = tmp_path / "people"
    people.mkdir()
    Image.fromarray(portrait("obama.jpg")).resize((450, 504)).save(people / "him.png")
    result = tiny.anonymize(two, KEY, keep=people, verify="off")
    assert [face.kept for face in sorted(result.report.faces, key=lambda face: face.box[0])] == [False, True]
    assert (result.picture.pixels[:, 330:] == two[:, 330:]).all()
    assert (result.picture.pixels[:, :300] != two[:, :300]).any()
    assert result.record is not None
    assert len(result.record.faces) == 1  # nothing is said about a person who is kept
    assert result.record.options["run"]["kept"] == 1


def test_a_new_face_is_drawn_where_the_old_one_is_not_where_the_box_is(tiny, two, two_points):
    """A box that is drawn loosely: a method that draws a face needs the face's own points, which lie in the box."""
    box = [[330, 10, 480, 170]]
    result = tiny.anonymize(two, KEY, boxes=box, verify="off")
    assert result.record is not None
    (face,) = result.record.faces
    assert np.abs(np.array(face.points) - two_points[1]).max() < 6
    assert face.box == (330, 10, 480, 170)
    # Where there is no face to be found the box is covered all the same.
    blank = np.random.default_rng(2).integers(90, 160, two.shape, dtype=np.uint8)
    covered = tiny.anonymize(blank, KEY, boxes=box, verify="off").picture.pixels
    assert (covered[30:150, 355:455] != blank[30:150, 355:455]).any(axis=2).mean() > 0.9
