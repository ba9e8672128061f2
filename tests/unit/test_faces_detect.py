"""Detection at every size, turn and place; faces that the user gives; the keep-list."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from facezoo.errors import InputError, NoFaceError, UnknownNameError
from facezoo.faces import detect as detect_module
from facezoo.faces.align import alignment_error, crop_faces, similarity, template
from facezoo.faces.detect import (
    Detector,
    DetectorOptions,
    Face,
    box_overlap,
    face_from_points,
    faces_from_boxes,
    get_detector,
    list_detectors,
    points_from_box,
    register_detector,
)
from facezoo.faces.keep import KeepList
from facezoo.faces.picture import load_picture

Bytes = npt.NDArray[np.uint8]
DEMO = Path(detect_module.__file__).parents[1] / "assets" / "demo"
PORTRAITS = ("astronaut", "obama", "biden")


@pytest.fixture(scope="module")
def portraits() -> dict[str, Bytes]:
    return {name: load_picture(DEMO / f"{name}.jpg").pixels for name in PORTRAITS}


@pytest.fixture(scope="module")
def yunet() -> Detector:
    return get_detector("yunet")


@pytest.fixture(scope="module")
def truth(portraits: dict[str, Bytes], yunet: Detector) -> dict[str, Face]:
    return {name: yunet.detect(picture)[0] for name, picture in portraits.items()}


def shrunk(picture: Bytes, scale: float) -> Bytes:
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=method))


def set_in(background: Bytes, picture: Bytes, x: int, y: int) -> None:
    background[y : y + picture.shape[0], x : x + picture.shape[1]] = picture


def near(points: npt.ArrayLike, expected: npt.ArrayLike, limit: float) -> bool:
    return bool(np.linalg.norm(np.asarray(points) - np.asarray(expected), axis=1).max() < limit)


# ---------------------------------------------------------------------------------------------------- whole pictures


@pytest.mark.parametrize("name", ["yunet", "centerface"])
def test_each_portrait_has_one_face_with_ordered_points(name: str, portraits: dict[str, Bytes]) -> None:
    detector = get_detector(name, DetectorOptions(minimum_face=16))
    for picture in portraits.values():
        (face,) = detector.detect(picture)
        eye, other_eye, nose, mouth, other_mouth = face.points
        assert eye[0] < nose[0] < other_eye[0]
        assert mouth[0] < other_mouth[0]
        assert max(eye[1], other_eye[1]) < nose[1] < min(mouth[1], other_mouth[1])
        assert face.points.dtype == np.float32
        assert 0.6 < face.score <= 1
        assert alignment_error(face.points) < 6
        x0, y0, x1, y1 = face.box
        assert (face.points > (x0, y0)).all()
        assert (face.points < (x1, y1)).all()


def test_the_two_detectors_agree(portraits: dict[str, Bytes], truth: dict[str, Face]) -> None:
    other = get_detector("centerface", DetectorOptions(minimum_face=16, rotations=False))
    for name, picture in portraits.items():
        (face,) = other.detect(picture)
        assert box_overlap(face.box, truth[name].box) > 0.6
        assert near(face.points, truth[name].points, 0.12 * truth[name].size)


def test_centerface_survives_a_change_of_size(portraits: dict[str, Bytes]) -> None:
    """OpenCV 4.14 gives nonsense for this network after a change of shape; a network a shape does not."""
    detector = get_detector("centerface", DetectorOptions(minimum_face=16, rotations=False, steady=False))
    for scale in (0.5, 0.4, 0.6, 0.5):
        assert len(detector.detect(shrunk(portraits["obama"], scale))) == 1


@pytest.mark.parametrize("size", [16, 20, 40])
def test_small_faces(size: int, portraits: dict[str, Bytes], truth: dict[str, Face], yunet: Detector) -> None:
    background = np.full((500, 900, 3), 120, np.uint8)
    wanted = []
    for column, name in enumerate(PORTRAITS):
        scale = size / truth[name].size
        set_in(background, shrunk(portraits[name], scale), 60 + column * 280, 100 + column * 60)
        wanted.append(truth[name].points * scale + (60 + column * 280, 100 + column * 60))
    faces = yunet.detect(background)
    assert len(faces) == 3
    for face, points in zip(faces, wanted, strict=True):
        assert near(face.points, points, 0.2 * size + 1)


@pytest.mark.slow
def test_small_and_big_faces_of_a_big_picture(
    portraits: dict[str, Bytes], truth: dict[str, Face], yunet: Detector
) -> None:
    """A face of 20 pixels, one of 90 over the seam of two tiles, and one of 700, in one picture of 12 megapixels."""
    background = np.full((3000, 4200, 3), 120, np.uint8)
    set_in(background, shrunk(portraits["biden"], 700 / truth["biden"].size), 300, 200)
    set_in(background, shrunk(portraits["obama"], 90 / truth["obama"].size), 3100, 1150)
    set_in(background, shrunk(portraits["astronaut"], 20 / truth["astronaut"].size), 3700, 2700)
    faces = sorted(yunet.detect(background), key=lambda face: -face.size)
    assert len(faces) == 3
    assert [round(face.size, -1) for face in faces][1:] == [90, 20]
    assert 600 < faces[0].size < 800
    only_big = get_detector("yunet", DetectorOptions(minimum_face=200)).detect(background)
    assert len(only_big) == 1


def test_a_small_face_on_the_seam_of_two_tiles(
    portraits: dict[str, Bytes], truth: dict[str, Face], yunet: Detector
) -> None:
    background = np.full((300, 2400, 3), 120, np.uint8)
    for column in range(6):
        small = shrunk(portraits["obama"], 20 / truth["obama"].size)
        set_in(background, small, 1020 + column * 70, 60 + 30 * (column % 2))
    assert len(yunet.detect(background)) == 6


@pytest.mark.slow
def test_a_picture_of_5000_pixels(portraits: dict[str, Bytes], truth: dict[str, Face], yunet: Detector) -> None:
    background = np.full((5000, 5000, 3), 120, np.uint8)
    places = [(x, y) for y in (60, 1240, 2500, 3770, 4880) for x in (30, 1230, 2470, 3700, 4900)]
    small = shrunk(portraits["obama"], 20 / truth["obama"].size)
    for x, y in places:
        set_in(background, small, x, y)
    assert len(yunet.detect(background)) == len(places)


def test_a_face_that_fills_its_picture(portraits: dict[str, Bytes], truth: dict[str, Face], yunet: Detector) -> None:
    for name, picture in portraits.items():
        crop = crop_faces(picture, [similarity(truth[name].points)])[0]
        for side in (48, 500):
            face = max(yunet.detect(shrunk(crop, side / 128)), key=lambda found: found.size)
            assert near(face.points, template(side), 0.07 * side)


@pytest.mark.parametrize("share", [0.25, 0.35])
def test_faces_cut_by_the_border(
    share: float, portraits: dict[str, Bytes], truth: dict[str, Face], yunet: Detector
) -> None:
    for name, picture in portraits.items():
        x0, _, x1, _ = truth[name].box
        cut = np.ascontiguousarray(picture[:, round(x0 + share * (x1 - x0)) :])
        faces = yunet.detect(cut)
        assert len(faces) == 1, name


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_pictures(turns: int, portraits: dict[str, Bytes], truth: dict[str, Face], yunet: Detector) -> None:
    """Points come back in the order of the upright face: the alignment turns it upright without mirroring."""
    for name, picture in portraits.items():
        turned = np.ascontiguousarray(np.rot90(picture, turns))
        face = max(yunet.detect(turned), key=lambda found: found.score)
        assert near(face.points, turned_points(truth[name].points, turns, 300, 336), 0.1 * truth[name].size)


def turned_points(points: npt.ArrayLike, turns: int, width: int, height: int) -> npt.NDArray[np.float64]:
    """Where pixels of a picture go in ``np.rot90(picture, turns)``."""
    places = np.asarray(points, np.float64)
    for _ in range(turns):
        places = np.stack([places[:, 1], width - 1 - places[:, 0]], axis=1)
        width, height = height, width
    return places


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotations_find_turned_faces_beside_upright_ones(
    turns: int, portraits: dict[str, Bytes], truth: dict[str, Face]
) -> None:
    both = np.full((340, 700, 3), 120, np.uint8)
    set_in(both, portraits["obama"], 0, 0)
    set_in(both, np.ascontiguousarray(np.rot90(portraits["biden"], turns)), 350, 0)
    faces = get_detector("yunet", DetectorOptions(rotations=True)).detect(both)
    faces = [face for face in faces if face.score > 0.9]
    assert len(faces) == 2
    assert near(faces[0].points, truth["obama"].points, 0.12 * truth["obama"].size)
    expected = turned_points(truth["biden"].points, turns, 300, 336) + np.array([350, 0])
    assert near(faces[1].points, expected, 0.12 * truth["biden"].size)


@pytest.mark.parametrize("degrees", [-30, 15, 30])
def test_tilted_faces(degrees: int, portraits: dict[str, Bytes], truth: dict[str, Face], yunet: Detector) -> None:
    picture = portraits["obama"]
    turn = cv2.getRotationMatrix2D((150, 168), degrees, 1.0)
    tilted = cv2.warpAffine(picture, turn, (300, 336), borderMode=cv2.BORDER_REPLICATE)
    (face,) = yunet.detect(tilted)
    expected = truth["obama"].points @ turn[:, :2].T + turn[:, 2]
    assert near(face.points, expected, 0.12 * truth["obama"].size)


def test_nothing_is_found_in_noise_or_in_tiny_pictures(yunet: Detector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    for picture in (noise, np.zeros((1, 1, 3), np.uint8), np.zeros((3, 900, 3), np.uint8), noise[:9, :9].copy()):
        assert yunet.detect(picture) == []


def test_points_are_steady(portraits: dict[str, Bytes]) -> None:
    """The crop moves less between versions of a picture when faces are looked at again."""
    spread = {}
    for steady in (True, False):
        detector = get_detector("yunet", DetectorOptions(steady=steady))
        moves = []
        for picture in portraits.values():
            found = []
            for scale in (0.6, 0.8, 1.0, 1.4):
                (face,) = detector.detect(shrunk(picture, scale))
                found.append((face.points + 0.5) / scale - 0.5)
            centred = np.array(found) - np.mean(found, axis=0)
            moves.append(np.sqrt((centred**2).sum(axis=2).mean()))
        spread[steady] = float(np.mean(moves))
    assert spread[True] < 0.8 * spread[False]


def test_what_is_no_picture_is_refused(yunet: Detector) -> None:
    for array in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8 RGB"):
            yunet.detect(array)  # type: ignore[arg-type]


def test_one_detector_in_several_threads(portraits: dict[str, Bytes], yunet: Detector) -> None:
    answers: list[int] = []

    def work(scale: float) -> None:
        answers.extend(len(yunet.detect(shrunk(portraits["biden"], scale))) for _ in range(3))

    threads = [threading.Thread(target=work, args=(scale,)) for scale in (0.7, 1.0, 1.2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [1] * 9


# ---------------------------------------------------------------------------------------------------- plug-ins


class FakeDetector(Detector):
    """Gives fixed boxes, whatever it sees."""

    def __init__(self, boxes: list[tuple[tuple[float, float, float, float], float]]) -> None:
        super().__init__(DetectorOptions(minimum_face=16, rotations=False, steady=False))
        self.boxes = boxes
        self.calls = 0

    def find(self, rgb: Bytes, threshold: float) -> list[Face]:
        self.calls += 1
        if self.calls > 1:  # the coarse view adds nothing
            return []
        return [Face(box, points_from_box(box), score) for box, score in self.boxes if score >= threshold]


def test_duplicates_are_removed_and_neighbours_stay() -> None:
    detector = FakeDetector(
        [
            ((100, 100, 160, 180), 0.7),
            ((104, 97, 163, 178), 0.9),  # the same face
            ((70, 60, 190, 220), 0.6),  # the same face, drawn larger
            ((150, 100, 210, 180), 0.8),  # a neighbour who overlaps
            ((300, 100, 340, 150), 0.4),  # too unsure
            ((400, 100, 405, 106), 0.9),  # too small
        ]
    )
    faces = detector.detect(np.zeros((300, 450, 3), np.uint8))
    assert [round(face.score, 1) for face in faces] == [0.9, 0.8]


def test_detectors_are_plugged_in_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_module, "_DETECTORS", dict(detect_module._DETECTORS))
    register_detector("fake", lambda options: FakeDetector([((10, 10, 50, 60), 0.9)]))
    assert "fake" in list_detectors()
    assert len(get_detector("fake").detect(np.zeros((100, 100, 3), np.uint8))) == 1
    with pytest.raises(InputError, match="already"):
        register_detector("fake", FakeDetector)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="centerface, fake, yunet"):
        get_detector("retina")


@pytest.mark.parametrize(
    "options", [{"score_threshold": 0.0}, {"minimum_face": 1}, {"rotations": "yes"}, {"overlap": 0.0}]
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        DetectorOptions(**options)  # type: ignore[arg-type]


def test_damaged_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_module, "_WEIGHTS", dict.fromkeys(detect_module._WEIGHTS, "0" * 64))
    for name in ("yunet", "centerface"):
        with pytest.raises(InputError, match="install facezoo again"):
            get_detector(name)


# ---------------------------------------------------------------------------------------------------- given faces


def test_given_boxes_get_points(portraits: dict[str, Bytes], truth: dict[str, Face]) -> None:
    for name, picture in portraits.items():
        x0, y0, x1, y1 = truth[name].box
        loose = (x0 - 12, y0 - 20, x1 + 15, y1 + 9)
        (face,) = faces_from_boxes(picture, [loose])
        assert face.box == pytest.approx(loose)
        assert face.score > 0.5
        assert near(face.points, truth[name].points, 0.12 * truth[name].size)


def test_a_given_box_without_a_visible_face_is_still_a_face() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    faces = faces_from_boxes(noise, [(40, 50, 100, 130), (250, 150, 320, 230)])
    assert [face.score for face in faces] == [0, 0]
    assert near(faces[0].points, points_from_box((40, 50, 100, 130)), 1e-3)


def test_points_estimated_from_a_box_look_like_a_face(portraits: dict[str, Bytes], truth: dict[str, Face]) -> None:
    for face in truth.values():
        estimated = points_from_box(face.box)
        assert alignment_error(estimated) < 3
        assert near(estimated, face.points, 0.25 * face.size)
    wide = points_from_box((0, 0, 200, 100))
    assert np.ptp(wide[:, 0]) > np.ptp(points_from_box((0, 0, 75, 100))[:, 0])


def test_given_points_get_a_box_and_an_order(truth: dict[str, Face]) -> None:
    for known in truth.values():
        face = face_from_points(known.points[[1, 0, 2, 4, 3]])
        assert np.array_equal(face.points, known.points)
        assert box_overlap(face.box, known.box) > 0.6


@pytest.mark.parametrize("box", [(10, 10, 10, 20), (30, 10, 20, 20), (0, 0, float("nan"), 5), (900, 900, 990, 990)])
def test_boxes_without_area_or_outside_are_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="box"):
        faces_from_boxes(np.zeros((100, 100, 3), np.uint8), [box])


# ---------------------------------------------------------------------------------------------------- keep-list


def test_keep_list_keeps_its_people_and_nobody_else(
    portraits: dict[str, Bytes], truth: dict[str, Face], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "obama.jpg").write_bytes((DEMO / "obama.jpg").read_bytes())
    (tmp_path / "notes.txt").write_text("not a picture")
    keeper = KeepList.from_folder(tmp_path)
    assert len(keeper) == 1
    crops = np.concatenate([crop_faces(portraits[name], [similarity(truth[name].points)]) for name in PORTRAITS])
    # Not the example itself, but the same face mirrored, darker and smaller.
    seen = cv2.resize(np.ascontiguousarray((crops[1][:, ::-1] * 0.8).astype(np.uint8)), (80, 80))
    crops[1] = cv2.resize(seen, (128, 128))
    assert keeper.keeps(crops).tolist() == [False, True, False]
    assert keeper.keeps(crops[:0]).shape == (0,)


class OneNumber:
    """A recogniser whose vector is the mean colour: enough to test the rule."""

    name = "one-number"

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def __call__(self, faces: object) -> object:
        return faces.mean(dim=(2, 3))  # type: ignore[attr-defined]


def test_keep_list_thresholds_point_the_right_way() -> None:
    pytest.importorskip("torch")
    examples = np.zeros((1, 16, 16, 3), np.uint8)
    near_by, far = examples + 5, examples + 250
    keeper = KeepList(examples, OneNumber("euclidean"), 0.3)  # type: ignore[arg-type]
    assert keeper.keeps(np.concatenate([near_by, far])).tolist() == [True, False]
    for threshold in (0.0, -1.0):
        with pytest.raises(InputError, match="threshold"):
            KeepList(examples, OneNumber("euclidean"), threshold)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threshold"):
        KeepList(examples, OneNumber("cosine"), 1.5)  # type: ignore[arg-type]


def test_bad_keep_lists(portraits: dict[str, Bytes], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        KeepList.from_folder(tmp_path / "nobody")
    with pytest.raises(InputError, match="no pictures"):
        KeepList.from_folder(tmp_path)
    with pytest.raises(NoFaceError, match="example 1"):
        KeepList.from_pictures([np.zeros((64, 64, 3), np.uint8)])
    two = np.concatenate([portraits["obama"], portraits["biden"]], axis=1)
    with pytest.raises(InputError, match="2 faces"):
        KeepList.from_pictures([two])
    with pytest.raises(InputError, match="no examples"):
        KeepList.from_pictures([])
    with pytest.raises(InputError, match="aligned crops"):
        KeepList(np.zeros((1, 8, 9, 3), np.uint8))
