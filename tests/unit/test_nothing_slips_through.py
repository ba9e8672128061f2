"""No picture is written with a face as it was: faces of any size, turn, place and cover, in generated pictures.

The faces are the demo's portraits, whose five points are known; each test draws its pictures from a fixed seed. A
picture may be refused, but not often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

import facezoo
from facezoo.anonymizer import Anonymizer, MissedFaceError
from facezoo.errors import FacezooError, InputError, NoFaceError
from facezoo.faces import detect as detect_module
from facezoo.faces.align import apply_transform, invert_transform, similarity
from facezoo.faces.coverage import changed_enough, is_covered
from facezoo.faces.detect import DetectorOptions, Face, get_detector
from facezoo.faces.mask import cover_mask, face_mask
from facezoo.faces.picture import load_picture
from facezoo.keys import Key
from tests.tiny_method import registered, write_tiny_checkpoint

Bytes = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
DEMO = Path(detect_module.__file__).parents[1] / "assets" / "demo"


@pytest.fixture(scope="module")
def people() -> list[tuple[Bytes, Face]]:
    """Each portrait with its face."""
    pictures = [load_picture(DEMO / f"{name}.jpg").pixels for name in ("astronaut", "obama", "biden")]
    detector = get_detector("yunet")
    return [(picture, detector.detect(picture)[0]) for picture in pictures]


@pytest.fixture(scope="module")
def blur() -> Anonymizer:
    return facezoo.from_pretrained("gaussian_blur")


def background(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Large coloured patches under a little noise."""
    coarse = rng.integers(60, 200, (5, 7, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def put(
    picture: Bytes,
    person: tuple[Bytes, Face],
    centre: tuple[float, float],
    size: float,
    degrees: float = 0.0,
    treat: Callable[[Bytes, Face], Bytes] = lambda portrait, face: portrait,
) -> Points:
    """Draw a head, its face's box `size` pixels high and its middle at a place; returns where its five points are."""
    portrait, face = person
    x0, y0, x1, y1 = face.box
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    scale = size / (y1 - y0)
    place = cv2.getRotationMatrix2D(middle, degrees, scale)
    place[:, 2] += np.array(centre) - middle
    portrait = treat(portrait, face)
    if scale < 1:
        portrait = cv2.GaussianBlur(portrait, (0, 0), 0.4 / scale).astype(np.uint8)
    head = np.zeros(portrait.shape[:2], np.float32)
    cv2.ellipse(
        head,
        (round(middle[0]), round(middle[1])),
        (round(0.8 * (x1 - x0)), round(0.75 * (y1 - y0))),
        0,
        0,
        360,
        1.0,
        -1,
    )
    shape = (picture.shape[1], picture.shape[0])
    share = cv2.warpAffine(head, place, shape)[..., None]
    drawn = cv2.warpAffine(portrait, place, shape, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    picture[:] = np.rint(picture * (1 - share) + drawn * share).astype(np.uint8)
    return np.asarray(apply_transform(place, face.points))


def visible_part_changed(before: Bytes, after: Bytes, points: Points) -> float:
    """Part of a face's visible inner region (eyes to mouth, cheek to cheek) whose pixels differ."""
    height, width = before.shape[:2]
    x, y = np.meshgrid(np.linspace(40, 88, 25), np.linspace(48, 100, 25))
    inner = np.stack([x.ravel(), y.ravel()], axis=1)
    spots = np.rint(apply_transform(invert_transform(similarity(points, 128)), inner)).astype(int)
    spots = spots[((spots >= 0) & (spots < (width, height))).all(axis=1)]
    assert len(spots) > 0
    return float((before != after).any(axis=2)[spots[:, 1], spots[:, 0]].mean())


def check(
    anonymizer: Anonymizer, scenes: Iterator[tuple[Bytes, list[Points]]], refused_at_most: float, part: float = 0.8
) -> None:
    """Every picture is refused, or comes out with every face changed."""
    count = refused = 0
    for picture, faces in scenes:
        count += 1
        try:
            after = anonymizer.anonymize(picture).picture.pixels
        except NoFaceError:
            refused += 1
            continue
        for points in faces:
            assert visible_part_changed(picture, after, points) >= part, f"picture {count - 1}"
    assert refused <= refused_at_most * count


# ---------------------------------------------------------------------------------------------------------- the kinds


def turned(people: list[tuple[Bytes, Face]], seed: int, count: int) -> Iterator[tuple[Bytes, list[Points]]]:
    """A turned face beside an upright one."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        picture = background(rng, 640, 400)
        first, second = rng.permutation(3)[:2]
        upright = put(picture, people[first], (160, rng.uniform(120, 280)), rng.uniform(70, 130), rng.uniform(-15, 15))
        degrees = 90.0 * (1 + index % 3) + rng.uniform(-20, 20)
        other = put(picture, people[second], (rng.uniform(380, 500), 200), rng.uniform(60, 130), degrees)
        yield picture, [upright, other]


def at_the_border(people: list[tuple[Bytes, Face]], seed: int, count: int) -> Iterator[tuple[Bytes, list[Points]]]:
    """A face of which a good third is visible, at each of the four borders, beside a whole one."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        picture = background(rng, 640, 400)
        whole = put(picture, people[index % 3], (320, 200), rng.uniform(60, 100))
        size = rng.uniform(90, 150)
        width = size * 0.75
        beyond = 0.5 - rng.uniform(0.36, 0.45)
        centre = [
            (-beyond * width, 200),
            (640 + beyond * width, 200),
            (120, -beyond * size),
            (520, 400 + beyond * size),
        ]
        yield picture, [whole, put(picture, people[(index + 1) % 3], centre[index % 4], size)]


def on_the_seam(people: list[tuple[Bytes, Face]], seed: int, count: int) -> Iterator[tuple[Bytes, list[Points]]]:
    """A panorama of 360 degrees whose left and right borders meet in a face."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        picture = background(rng, 800, 400)
        split = put(picture, people[index % 3], (400 + rng.uniform(-20, 20), 200), rng.uniform(80, 140))
        picture = np.ascontiguousarray(np.roll(picture, 400, axis=1))
        whole = put(picture, people[(index + 1) % 3], (400, 200), rng.uniform(80, 140))
        yield picture, [whole, split + np.array([400, 0]), split - np.array([400, 0])]


def out_of_focus(people: list[tuple[Bytes, Face]], seed: int, count: int) -> Iterator[tuple[Bytes, list[Points]]]:
    """Somebody near the camera and out of focus, before small sharp faces."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        picture = background(rng, 640, 400)
        behind = put(picture, people[index % 3], (120, 150), 40)
        sigma = rng.uniform(0.03, 0.06)

        def soften(portrait: Bytes, face: Face, sigma: float = sigma) -> Bytes:
            return cv2.GaussianBlur(portrait, (0, 0), sigma * (face.box[3] - face.box[1])).astype(np.uint8)

        front = put(picture, people[(index + 1) % 3], (400, 210), rng.uniform(200, 300), rng.uniform(-10, 10), soften)
        yield picture, [behind, front]


def masked(people: list[tuple[Bytes, Face]], seed: int, count: int) -> Iterator[tuple[Bytes, list[Points]]]:
    """Somebody whose mouth and nose are under a mask."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        picture = background(rng, 640, 400)

        def wear(
            portrait: Bytes, face: Face, colour: tuple[int, ...] = tuple(rng.integers(30, 240, 3).tolist())
        ) -> Bytes:
            x0, _, x1, y1 = face.box
            eyes, nose, mouth = face.points[:2].mean(axis=0), face.points[2], face.points[3:].mean(axis=0)
            top = 0.5 * (eyes + nose)
            outline = [
                (x0, top[1]),
                (nose[0], top[1]),
                (x1, top[1]),
                (x1 - 8, mouth[1]),
                (mouth[0], y1),
                (x0 + 8, mouth[1]),
            ]
            return cv2.fillPoly(portrait.copy(), [np.round(outline).astype(np.int32)], colour).astype(np.uint8)

        covered = put(picture, people[index % 3], (430, 200), rng.uniform(60, 200), rng.uniform(-10, 10), wear)
        yield picture, [put(picture, people[(index + 1) % 3], (140, 200), rng.uniform(60, 100)), covered]


KINDS = {
    "turned": (turned, 0.34),
    "at_the_border": (at_the_border, 0.5),
    "on_the_seam": (on_the_seam, 0.34),
    "out_of_focus": (out_of_focus, 0.34),
    "masked": (masked, 0.5),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_face_is_changed_or_the_picture_refused(
    kind: str, blur: Anonymizer, people: list[tuple[Bytes, Face]]
) -> None:
    scenes, refused_at_most = KINDS[kind]
    check(blur, scenes(people, 11, 4), refused_at_most)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_face_is_changed_or_the_picture_refused_in_a_sweep(
    kind: str, blur: Anonymizer, people: list[tuple[Bytes, Face]]
) -> None:
    scenes, refused_at_most = KINDS[kind]
    check(blur, scenes(people, 2, 40), refused_at_most)


# -------------------------------------------------------------------------------------------------------- small faces


def row_of_small_faces(people: list[tuple[Bytes, Face]], seed: int, size: float) -> Bytes:
    """Eight faces of `size` pixels and, at the bottom, one of 100."""
    rng = np.random.default_rng(seed)
    picture = background(rng, 600, 300)
    for index in range(8):
        put(picture, people[index % 3], (40 + 70 * index, rng.uniform(25, 60)), size, rng.uniform(-8, 8))
    put(picture, people[0], (300, 200), 100)
    return picture


@pytest.mark.parametrize("size", [11, 14])
def test_small_faces_that_are_found_are_covered(
    size: float, blur: Anonymizer, people: list[tuple[Bytes, Face]]
) -> None:
    picture = row_of_small_faces(people, 3, size)
    finer = get_detector("yunet", DetectorOptions(minimum_face=6, steady=False))
    seen = finer.detect(picture)
    result = blur.anonymize(picture, verify="off")
    assert len(seen) == 9
    assert len(result.report.faces) == 9
    assert result.report.left_small == 0
    for face in seen:
        assert visible_part_changed(picture, result.picture.pixels, face.points.astype(np.float64)) > 0.8


def test_a_learned_method_covers_small_faces_too(people: list[tuple[Bytes, Face]], tmp_path: Path) -> None:
    picture = row_of_small_faces(people, 3, 13)
    with registered():
        tiny = facezoo.from_pretrained(write_tiny_checkpoint(tmp_path / "tiny_swap.test"))
        result = tiny.anonymize(picture, Key.from_bytes(bytes(range(32))), verify="off")
    assert len(result.report.faces) == 9
    assert result.report.summary().count("recovery from the picture alone will be weak") == 1  # said once for all


def test_faces_below_min_face_are_counted_and_named(people: list[tuple[Bytes, Face]]) -> None:
    picture = row_of_small_faces(people, 3, 13)
    chosen = facezoo.from_pretrained("gaussian_blur", min_face=40)
    result = chosen.anonymize(picture)
    assert len(result.report.faces) == 1
    assert result.report.left_small == 8
    assert "8 faces below 40 px" in result.report.summary()
    assert result.record is not None
    assert result.record.options["run"]["left_small"] == 8
    with pytest.raises(NoFaceError, match="8 faces below 40 px"):
        chosen.anonymize(picture[:100])
    with pytest.raises(InputError, match="min_face"):
        facezoo.from_pretrained("gaussian_blur", min_face=-1)


# ------------------------------------------------------------------------------------------------- parts of a face


def test_a_box_on_a_part_of_a_face_does_not_hide_it(blur: Anonymizer, people: list[tuple[Bytes, Face]]) -> None:
    for portrait, face in people:
        x0, y0, x1, y1 = face.box
        middle, (nose_x, nose_y) = (x0 + x1) / 2, face.points[2]
        parts = [
            (nose_x - 10, nose_y - 10, nose_x + 10, nose_y + 10),
            (x0, y0, middle - 12, y1),  # one half
            (x0, y0, x1, nose_y - 12),  # eyes and forehead
        ]
        with pytest.raises(MissedFaceError, match="in part"):
            blur.anonymize(portrait, boxes=[parts[0]])
        for box in parts[1:]:  # what is covered is never smaller than a face as high or as wide as the box
            try:
                after = blur.anonymize(portrait, boxes=[box]).picture.pixels
            except MissedFaceError:
                continue
            assert visible_part_changed(portrait, after, face.points.astype(np.float64)) > 0.6
            for x, y in np.rint(face.points).astype(int):
                assert (portrait[y, x] != after[y, x]).any()
        assert len(blur.anonymize(portrait, boxes=[parts[0]], verify="add").report.faces) == 2
        after = blur.anonymize(portrait, boxes=[(x0, y0, x1, y1)]).picture.pixels
        assert visible_part_changed(portrait, after, face.points.astype(np.float64)) > 0.9


def test_two_boxes_may_hide_a_face_together(people: list[tuple[Bytes, Face]]) -> None:
    _, face = people[1]
    step = np.float32([14, 0])
    left, right = face.points * 1.0 - step, face.points * 1.0 + step
    mask, shape = cover_mask(128, "sharp"), (336, 300)
    assert is_covered(face, [left, right], mask, shape)
    assert not is_covered(face, [face.points + np.float32([60, 0])], mask, shape)
    assert not is_covered(face, [], mask, shape)
    # What lies beyond the border need not be hidden.
    outside = Face((-90, 10, -5, 110), face.points - np.float32([200, 0]), 0.9)
    assert is_covered(outside, [], face_mask(128), shape)


def test_a_picture_in_which_half_a_face_is_unchanged_is_refused(
    people: list[tuple[Bytes, Face]], monkeypatch: pytest.MonkeyPatch
) -> None:
    portrait, face = people[1]
    changed = np.ones(portrait.shape[:2], bool)
    assert changed_enough(face.points, changed)
    changed[round(float(face.points[2, 1])) :] = False
    assert not changed_enough(face.points, changed)

    lazy = facezoo.from_pretrained("gaussian_blur")
    real = type(lazy.method).anonymize

    def upper_half(self: object, faces: object, context: object) -> object:
        result = real(self, faces, context).clone()  # type: ignore[arg-type]
        half = result.shape[-1] // 2
        result[..., half:, :] = faces[..., half:, :]  # type: ignore[index]
        return result

    monkeypatch.setattr(type(lazy.method), "anonymize", upper_half)
    with pytest.raises(FacezooError, match="or much of it"):
        lazy.anonymize(portrait, verify="off")


# ------------------------------------------------------------------------------------------------------- the search


def test_options_of_the_search_reach_the_detector(people: list[tuple[Bytes, Face]]) -> None:
    picture = background(np.random.default_rng(5), 640, 400)
    put(picture, people[1], (160, 200), 110)
    put(picture, people[2], (450, 200), 50, 90)
    upright_only = facezoo.from_pretrained("gaussian_blur", rotations=False)
    assert len(upright_only.anonymize(picture, verify="off").report.faces) == 1
    assert len(facezoo.from_pretrained("gaussian_blur").anonymize(picture, verify="off").report.faces) == 2
    with pytest.raises(NoFaceError):
        facezoo.from_pretrained("gaussian_blur", threshold=0.97).anonymize(picture, verify="off")
    with pytest.raises(InputError, match="score_threshold"):
        facezoo.from_pretrained("gaussian_blur", threshold=1.5)


def test_a_turned_face_is_found_once(people: list[tuple[Bytes, Face]]) -> None:
    detector = get_detector("yunet", DetectorOptions(steady=False, borders=True))
    for picture, faces in turned(people, 4, 3):
        assert len(detector.detect(picture)) == len(faces)


def test_what_is_seen_in_the_mirror_only_is_no_face_of_its_own(people: list[tuple[Bytes, Face]]) -> None:
    """Whole faces close to the border have whole mirror images beyond it."""
    portrait, face = people[1]
    x0, y0, x1, y1 = (round(value) for value in face.box)
    detector = get_detector("yunet", DetectorOptions(steady=False, borders=True, rotations=False))
    for cut in (portrait[:, x0 - 2 :], portrait[:, : x1 + 2], portrait[y0 - 2 :], portrait[: y1 + 2]):
        (found,) = detector.detect(np.ascontiguousarray(cut))
        assert found.size == pytest.approx(face.size, rel=0.25)


def test_a_face_on_the_seam_comes_twice_and_only_in_panoramas(people: list[tuple[Bytes, Face]]) -> None:
    ((picture, (_, right, left)), *_) = on_the_seam(people, 11, 1)
    detector = get_detector("yunet", DetectorOptions(steady=False))
    faces = sorted(detector.detect_across_seam(picture), key=lambda face: face.box[0])
    assert len(faces) == 2
    for face, points in zip(faces, (left, right), strict=True):
        assert np.abs(face.points - points).max() < 12
    assert detector.detect_across_seam(picture[:, :700]) == []
