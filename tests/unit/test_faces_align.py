"""Alignment, masks, cropping and pasting back."""

from __future__ import annotations

import csv
import functools
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from facezoo.errors import InputError
from facezoo.faces.align import (
    alignment_error,
    apply_transform,
    crop_faces,
    crop_faces_float,
    crop_quad,
    invert_transform,
    native_ratio,
    paste_faces,
    similarity,
    template,
)
from facezoo.faces.mask import Edge, border_taper, cover_mask, face_mask

Bytes = npt.NDArray[np.uint8]


@functools.lru_cache(maxsize=32)
def scene(width: int = 400, height: int = 300, seed: int = 0) -> Bytes:
    """A picture with detail at every scale, and no person in it."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 110.0, np.float32)
    for step, strength in ((2, 8.0), (8, 18.0), (40, 60.0)):
        coarse = rng.normal(0, strength, (height // step + 2, width // step + 2, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    result = np.clip(picture, 0, 255).astype(np.uint8)
    result.setflags(write=False)
    return result


def placed(centre: tuple[float, float], ratio: float, degrees: float = 0.0) -> npt.NDArray[np.float64]:
    """Transform of a face whose template centre lies at `centre`, with `ratio` picture pixels a crop pixel."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * ratio
    return similarity((template(128) - 64.0) @ turn.T + centre, 128)


def psnr(first: npt.ArrayLike, second: npt.ArrayLike, weight: npt.ArrayLike) -> float:
    error = (np.asarray(first, np.float64) - np.asarray(second, np.float64)) ** 2
    share = np.broadcast_to(np.asarray(weight, np.float64)[..., None], error.shape)
    return float(10 * np.log10(255**2 / max((error * share).sum() / share.sum(), 1e-9)))


def coded(crops: Bytes, strength: float = 4.0, seed: int = 5) -> Bytes:
    """What a method may give: a smoother face with a code of white noise in it."""
    smooth = np.stack([cv2.GaussianBlur(crop, (0, 0), 1.5) for crop in crops]).astype(np.float64)
    noise = np.random.default_rng(seed).normal(0, strength, crops.shape)
    return np.clip(np.rint(smooth + noise), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- transforms


def test_template_is_the_contract() -> None:
    arcface = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    )
    assert np.allclose(template(128), (arcface - (56, 72)) * 0.945 + (64, 76))
    assert np.allclose(template(256), template(128) * 2)


def test_similarity_recovers_scale_turn_and_shift() -> None:
    truth = np.array([[0.6, -0.2, 14.0], [0.2, 0.6, -30.0]])
    points = apply_transform(invert_transform(truth), template(128))
    assert np.allclose(similarity(points, 128), truth)
    assert native_ratio(truth) == pytest.approx(1 / np.hypot(0.6, 0.2))


def test_similarity_never_mirrors_and_is_the_least_squares_answer() -> None:
    rng = np.random.default_rng(3)
    points = template(128) + rng.normal(0, 4, (5, 2))
    best = similarity(points, 128)
    error = np.sum((apply_transform(best, points) - template(128)) ** 2)
    for _ in range(50):
        a, b, x, y = rng.normal(0, 0.01, 4)
        other = best + np.array([[a, -b, 100 * x], [b, a, 100 * y]])
        assert np.sum((apply_transform(other, points) - template(128)) ** 2) >= error
    assert np.linalg.det(similarity(template(128) * (-1, 1), 128)[:, :2]) > 0


@pytest.mark.parametrize(
    "points", [np.zeros((5, 2)), np.zeros((4, 2)), np.full((5, 2), np.nan), np.full((5, 2), 7.5), np.zeros(10)]
)
def test_points_that_are_no_face_are_refused(points: npt.NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="points"):
        similarity(points)


def test_alignment_error_tells_a_wrong_order() -> None:
    assert alignment_error(template(128) * 3 + 50) < 1e-6
    assert alignment_error(template(128)[[1, 0, 2, 4, 3]]) > 15


def test_crops_agree_with_the_shared_sets(shared_folder: Path) -> None:
    """The shared crops were made by a similarity to the template: one exists that gives them again."""
    detector_file = shared_folder / "weights" / "yunet_n_320_320.onnx"
    pictures = sorted((shared_folder / "data" / "lfw250").glob("*.jpg"))[::75]
    if not detector_file.is_file() or not pictures:
        pytest.skip("needs the shared detector and pictures")
    # The detector that made the shared crops, on the whole pictures as it was then.
    net = cv2.FaceDetectorYN.create(str(detector_file), "", (250, 250), 0.5)
    with (shared_folder / "data" / "lfw128.csv").open() as stream:
        known = {row["file"] for row in csv.DictReader(stream)}
    agreements = []
    with tarfile.open(shared_folder / "data" / "lfw128.tar") as tar:
        members = {Path(member.name).name: member for member in tar.getmembers()}
        for path in pictures:
            name = f"{path.stem}.webp"
            if name not in known:
                continue
            rgb = np.array(Image.open(path).convert("RGB"))
            reader = tar.extractfile(members[name])
            assert reader is not None
            reference = np.array(Image.open(io.BytesIO(reader.read())).convert("RGB"))
            _, rows = net.detect(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
            points = min((row[4:14].reshape(5, 2) for row in rows), key=lambda p: np.abs(p.mean(axis=0) - 125).sum())
            crop = crop_faces(rgb, [similarity(points)])[0]
            agreements.append(psnr(crop, reference, np.ones((128, 128))))
    # WebP leaves about 40 dB; half a pixel of disagreement would leave less than 35.
    assert np.median(agreements) > 38


# ---------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("size", [8, 64, 128, 256])
def test_mask_covers_the_features_and_ends_inside_the_crop(size: int) -> None:
    mask = face_mask(size)
    assert mask.dtype == np.float32
    assert mask.min() == 0
    assert mask.max() <= 1
    assert not mask[0].any()
    assert not mask[-1].any()
    assert not mask[:, 0].any()
    assert not mask[:, -1].any()
    for x, y in template(size):
        assert mask[round(y), round(x)] == pytest.approx(1.0)


def test_mask_covers_brows_forehead_cheeks_and_chin() -> None:
    mask = face_mask(128)
    for x, y in ((64, 22), (35, 42), (93, 42), (26, 70), (102, 70), (64, 119), (45, 112), (83, 112)):
        assert mask[y, x] > 0.95, (x, y)
    assert mask[5, 5] == mask[5, 122] == mask[122, 5] == 0
    half = face_mask(256)[::2, ::2]
    assert np.abs(half - mask).max() < 0.2


def test_masks_are_read_only_and_refuse_tiny_crops() -> None:
    with pytest.raises(ValueError, match="read-only"):
        face_mask(128)[0, 0] = 1
    for function in (face_mask, border_taper):
        with pytest.raises(ValueError, match="at least 8"):
            function(4)


# ---------------------------------------------------------------------------------------------------- cropping


def test_crop_at_whole_pixels_is_a_copy() -> None:
    picture = scene()
    transform = np.array([[1.0, 0, -50], [0, 1.0, -20]])
    assert np.array_equal(crop_faces(picture, [transform])[0], picture[20:148, 50:178])


@pytest.mark.parametrize("ratio", [2.5, 4.0, 9.0])
def test_shrinking_does_not_alias(ratio: float) -> None:
    """Stripes finer than the crop can show must become flat gray, not moire."""
    side = int(140 * ratio)
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = crop_faces(stripes, [placed((side / 2, side / 2), ratio, 9.0)])[0].astype(float)
    assert np.abs(crop[20:108, 20:108].mean() - 127.5) < 3
    assert crop[20:108, 20:108].std() < 25  # the mean over crop pixels passes a little; plain sampling gives 60 to 90


def test_a_face_cut_by_the_border_is_completed_by_its_mirror_image() -> None:
    picture = scene(300, 300)
    whole = cv2.copyMakeBorder(picture, 200, 200, 200, 200, cv2.BORDER_REFLECT_101)
    for centre in ((5.0, 150.0), (295.0, 290.0), (150.0, 2.0)):
        for ratio in (0.8, 1.3, 5.0 if centre[0] == 150.0 else 2.2):
            inside = crop_faces_float(picture, [placed(centre, min(ratio, 2.2), 12.0)])
            outside = crop_faces_float(whole, [placed((centre[0] + 200, centre[1] + 200), min(ratio, 2.2), 12.0)])
            assert np.abs(inside - outside).max() < 1.0


def test_only_the_neighbourhood_of_a_face_is_read() -> None:
    """The same crop out of a 5,000-pixel picture and out of a small cutting."""
    small = scene(300, 300)
    big = np.zeros((5000, 5000, 3), np.uint8)
    big[4000:4300, 3000:3300] = small
    assert np.array_equal(
        crop_faces(big, [placed((3150.3, 4150.7), 1.4, 8)]), crop_faces(small, [placed((150.3, 150.7), 1.4, 8)])
    )


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (np.array([[np.nan, 0, 0], [0, 1, 0]]), "similarity"),
        (np.array([[-1.0, 0, 0], [0, 1, 0]]), "similarity"),
        (np.array([[0.0, 0, 0], [0, 0, 0]]), "similarity"),
        (np.array([[1e-4, 0, 0], [0, 1e-4, 0]]), "beyond"),
        (np.array([[1.0, 0, 1e7], [0, 1.0, 0]]), "beyond"),
    ],
)
def test_absurd_transforms_are_refused(transform: npt.NDArray[np.float64], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        crop_faces(scene(), [transform])


@pytest.mark.parametrize("picture", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_what_is_no_rgb_picture_is_refused(picture: npt.NDArray[np.generic]) -> None:
    with pytest.raises(InputError, match="uint8 RGB"):
        crop_faces(picture, [placed((5, 5), 1.0)])  # type: ignore[arg-type]


def test_no_faces_is_no_work() -> None:
    picture = scene()
    crops = crop_faces(picture, [])
    assert crops.shape == (0, 128, 128, 3)
    assert np.array_equal(paste_faces(picture, crops, crops, []), picture)


# ---------------------------------------------------------------------------------------------------- pasting


def weights_in_picture(shape: tuple[int, int], transform: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(face_mask(128), transform, shape[::-1], flags=flags)


@pytest.mark.parametrize(("ratio", "degrees", "least"), [(0.6, 5, 45), (1.0, 0, 50), (1.0, 17, 45), (1.5, 8, 35)])
def test_unchanged_crops_leave_the_picture(ratio: float, degrees: float, least: float) -> None:
    picture = cv2.GaussianBlur(scene(), (0, 0), 1.2)
    transform = placed((201.3, 149.6), ratio, degrees)
    crops = crop_faces(picture, [transform])
    pasted = paste_faces(picture, crops, crops, [transform])
    inside = weights_in_picture(picture.shape[:2], transform)
    assert np.array_equal(pasted[inside == 0], picture[inside == 0])
    assert psnr(pasted, picture, inside) > least


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 5.0])
def test_nothing_is_written_outside_the_crop(ratio: float) -> None:
    side = int(260 * ratio)
    picture = scene(side, side)
    transform = placed((side / 2, side / 2), ratio, 23.0)
    crops = crop_faces(picture, [transform])
    pasted = paste_faces(picture, crops, 255 - crops, [transform])
    quad = np.zeros((side, side), np.uint8)
    cv2.fillConvexPoly(quad, np.rint(crop_quad(transform, 128)).astype(np.int32), 1)
    changed = (pasted != picture).any(axis=2)
    assert not changed[quad == 0].any()
    assert changed[weights_in_picture((side, side), transform) > 0.5].mean() > 0.9


@pytest.mark.parametrize("degrees", [0.0, 7.0, 20.0])
@pytest.mark.parametrize(("ratio", "least"), [(0.7, 34), (1.0, 45), (1.5, 58), (2.0, 58), (3.0, 58), (5.0, 58)])
def test_a_code_in_the_result_is_read_again_from_the_saved_picture(ratio: float, least: float, degrees: float) -> None:
    side = int(230 * ratio)
    picture = scene(side, side)
    transform = placed((side / 2 + 0.37, side / 2 - 0.21), ratio, degrees)
    crops = crop_faces(picture, [transform])
    result = coded(crops)
    again = crop_faces(paste_faces(picture, crops, result, [transform]), [transform])
    around = (border_taper(128) >= 1) & (face_mask(128) == 0)
    assert psnr(again[0], result[0], face_mask(128)) > least
    assert psnr(again[0], result[0], around) > least - 2


def test_back_projection_is_worth_its_time() -> None:
    picture = scene(600, 600)
    transform = placed((300, 300), 2.0, 9.0)
    crops = crop_faces(picture, [transform])
    result = coded(crops)
    quality = []
    for rounds in (0, 1, 3):
        pasted = paste_faces(picture, crops, result, [transform], refine=rounds)
        quality.append(psnr(crop_faces(pasted, [transform])[0], result[0], face_mask(128)))
    assert quality[1] > quality[0] + 3
    assert quality[2] > quality[1] + 3


def test_no_detail_of_the_original_stays_inside_the_mask() -> None:
    """Two originals that differ in detail give the same pixels inside the mask, once the result is the same."""
    first, second = scene(seed=1), scene(seed=2)
    transform = placed((200, 150), 2.0)
    result = np.full((1, 128, 128, 3), 90, np.uint8)
    inside = weights_in_picture(first.shape[:2], transform) >= 0.9999
    pasted = [paste_faces(picture, None, result, [transform]).astype(int) for picture in (first, second)]
    assert np.abs(pasted[0] - pasted[1])[inside].max() <= 2
    assert np.abs(pasted[0][inside] - 90).max() <= 2


def test_there_is_no_seam() -> None:
    """A result that is brighter all over makes no step at the crop's border, nor a hard edge at the mask."""
    picture = np.full((300, 400, 3), 100, np.uint8)
    transform = placed((200, 150), 1.2, 15)
    crops = crop_faces(picture, [transform])
    pasted = paste_faces(picture, crops, crops + 30, [transform]).astype(int)
    steps = max(np.abs(np.diff(pasted, axis=0)).max(), np.abs(np.diff(pasted, axis=1)).max())
    assert pasted.max() >= 129
    assert steps <= 14


def test_surroundings_keep_their_own_resolution() -> None:
    """Outside the mask a change of colour is added; the picture's fine detail stays."""
    picture = scene(800, 800)
    transform = placed((400, 400), 4.0)
    crops = crop_faces(picture, [transform])
    pasted = paste_faces(picture, crops, np.clip(crops.astype(int) + 10, 0, 255), [transform])
    y, x = 400, 400 - int(56 * 4.0)  # beside the cheek, inside the crop
    patch = np.s_[y - 12 : y + 12, x - 12 : x + 12]
    change = pasted[patch].astype(int) - picture[patch]
    assert abs(change.mean() - 10) < 1
    assert change.std() < 2


def test_neighbours_split_where_their_masks_meet() -> None:
    """In each face's middle stands its own result, although the other's crop reaches over it."""
    picture = scene(400, 300)
    transforms = [placed((160, 150), 1.0), placed((235, 150), 1.0)]
    crops = crop_faces(picture, transforms)
    results = np.stack([np.full((128, 128, 3), 30, np.uint8), np.full((128, 128, 3), 220, np.uint8)])
    for order in ([0, 1], [1, 0]):
        pasted = paste_faces(picture, crops[order], results[order], [transforms[i] for i in order]).astype(int)
        assert np.abs(pasted[140:160, 150:170] - 30).max() <= 3
        assert np.abs(pasted[140:160, 225:245] - 220).max() <= 3
        assert 60 < pasted[145:155, 196:200].mean() < 190


def test_unchanged_neighbours_stay_unchanged() -> None:
    picture = cv2.GaussianBlur(scene(400, 300), (0, 0), 1.2)
    transforms = [placed((160, 150), 1.0), placed((230, 150), 1.1, 10)]
    crops = crop_faces(picture, transforms)
    pasted = paste_faces(picture, crops, crops, transforms)
    inside = np.maximum(*(weights_in_picture((300, 400), transform) for transform in transforms))
    assert np.array_equal(pasted[inside == 0], picture[inside == 0])
    assert psnr(pasted, picture, np.ones((300, 400))) > 45


def test_a_face_cut_by_the_border_is_pasted() -> None:
    picture = scene(300, 300)
    for centre in ((4.0, 150.0), (298.0, 297.0)):
        transform = placed(centre, 1.3, 10)
        crops = crop_faces(picture, [transform])
        result = coded(crops)
        pasted = paste_faces(picture, crops, result, [transform])
        back = apply_transform(invert_transform(transform), np.argwhere(np.ones((128, 128)))[:, ::-1])
        seen = ((back > 2) & (back < 297)).all(axis=1).reshape(128, 128)
        again = crop_faces(pasted, [transform])
        assert psnr(again[0], result[0], seen * face_mask(128)) > 45


def test_a_face_outside_the_picture_changes_nothing() -> None:
    picture = scene(300, 300)
    transform = placed((-150.0, 150.0), 1.0)
    crops = crop_faces(picture, [transform])
    assert np.array_equal(paste_faces(picture, crops, 255 - crops, [transform]), picture)


def test_float_results_and_other_sizes() -> None:
    picture = scene(600, 500)
    points = (template(128) - 64) * 1.5 + (300, 250)
    for size in (64, 200):
        transform = similarity(points, size)
        crops = crop_faces_float(picture, [transform], size)
        pasted = paste_faces(picture, crops, crops * 0.5, [transform])
        centre = pasted[230:270, 280:320].mean() / picture[230:270, 280:320].mean()
        assert centre == pytest.approx(0.5, abs=0.02)


def test_bad_arguments_of_paste_are_refused() -> None:
    picture = scene()
    transform = placed((200, 150), 1.0)
    crops = crop_faces(picture, [transform])
    broken = crops.astype(np.float32)
    broken[0, 5, 5] = np.nan
    cases = [
        ((crops, crops, [transform, transform]), "transforms"),
        ((crops, crops[:, :64], [transform]), "crops"),
        ((crops[:, :64, :64], crops, [transform]), "originals"),
        ((crops, broken, [transform]), "not numbers"),
        ((crops, crops, [transform], np.ones((64, 64), np.float32)), "mask"),
        ((crops, crops, [transform], np.full((128, 128), 2, np.float32)), "mask"),
    ]
    for arguments, reason in cases:
        with pytest.raises(InputError, match=reason):
            paste_faces(picture, *arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="refine"):
        paste_faces(picture, crops, crops, [transform], refine=99)


def test_a_full_mask_replaces_the_whole_crop_and_nothing_else() -> None:
    picture = scene()
    transform = placed((200, 150), 1.0, 30)
    crops = crop_faces(picture, [transform])
    pasted = paste_faces(picture, crops, np.zeros_like(crops), [transform], np.ones((128, 128), np.float32))
    inside = cv2.warpAffine(
        np.ones((128, 128), np.float32), transform, (400, 300), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    # (Not the outermost pixels: there the average over crop pixels reaches beyond the crop.)
    assert pasted[cv2.erode(inside, np.ones((5, 5), np.uint8)) >= 0.999].max() <= 3
    assert np.array_equal(pasted[inside == 0], picture[inside == 0])


# ---------------------------------------------------------------------------------------------------- covering


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("edge", ["soft", "sharp", "square"])
def test_covers_hide_the_whole_face_and_end_inside_the_crop(size: int, edge: Edge) -> None:
    cover = cover_mask(size, edge)
    assert cover.min() == 0
    assert cover.max() == 1
    for border in (cover[0], cover[-1], cover[:, 0], cover[:, -1]):
        assert not border.any()
    # No soft edge lies on the face, from the forehead to the chin and from cheek to cheek.
    scaled = size / 128
    for x, y in ((64, 12), (64, 119), (30, 30), (98, 30), (16, 64), (112, 64), (33, 108), (95, 108)):
        assert cover[round(y * scaled), round(x * scaled)] > 0.999, (x, y)
    assert (cover[face_mask(size) > 0.9] > 0.9).all()


def test_covers_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="soft, sharp or square"):
        cover_mask(128, "round")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 8"):
        cover_mask(4)


@pytest.mark.parametrize(("ratio", "degrees"), [(0.6, 0.0), (1.0, 20.0), (3.0, 7.0)])
def test_without_surroundings_only_the_mask_is_touched(ratio: float, degrees: float) -> None:
    """However much a result differs from the original: outside the mask every pixel stays, and there is no square."""
    side = int(240 * ratio)
    picture = scene(side, side)
    transform = placed((side / 2, side / 2), ratio, degrees)
    crops = crop_faces(picture, [transform])
    pasted = paste_faces(picture, crops, 255 - crops, [transform], cover_mask(128), surround=False, refine=0)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    weight = cv2.warpAffine(cover_mask(128), transform, (side, side), flags=flags)
    outside = cv2.dilate(weight, np.ones((3, 3), np.uint8)) == 0
    assert np.array_equal(pasted[outside], picture[outside])
    assert (pasted != picture).any(axis=2)[weight > 0.99].mean() > 0.95


@pytest.mark.parametrize("ratio", [0.8, 1.0, 2.5])
def test_the_short_way_of_pasting_gives_what_the_long_way_gives(ratio: float) -> None:
    """A face that stands alone is pasted by other code than one that has a neighbour."""
    picture = scene(1400, 500)
    transforms = [placed((300, 250), ratio, 9), placed((300 + 140 * ratio, 250), ratio)]
    crops = crop_faces(picture, transforms)
    results = np.stack([cv2.GaussianBlur(crop, (0, 0), 6) for crop in crops])
    alone = paste_faces(picture, crops[:1], results[:1], transforms[:1], cover_mask(128), surround=False, refine=0)
    both = paste_faces(picture, crops, results, transforms, cover_mask(128), surround=False, refine=0)
    left = np.s_[:, : int(300 + 20 * ratio)]  # here only the first face's mask reaches
    assert np.abs(alone[left].astype(int) - both[left]).max() <= 3
    assert (alone[left] != picture[left]).any()


def test_each_face_may_have_a_mask_of_its_own() -> None:
    picture = scene(500, 300)
    transforms = [placed((120, 150), 1.0), placed((380, 150), 1.0)]
    crops = crop_faces(picture, transforms)
    masks = np.zeros((2, 128, 128), np.float32)
    masks[0, 30:50, 20:100] = 1
    masks[1, 80:100, 20:100] = 1
    pasted = paste_faces(picture, crops, np.zeros_like(crops), transforms, masks, surround=False, refine=0)
    black = (pasted == 0).all(axis=2)
    for index, rows in ((0, (30, 50)), (1, (80, 100))):
        x, y = apply_transform(invert_transform(transforms[index]), [[20, rows[0]], [99, rows[1] - 1]]).T
        assert black[round(y[0]) + 1 : round(y[1]), round(x[0]) + 1 : round(x[1])].all()
    assert black.sum() < 1.15 * 2 * 20 * 80


def test_draft_crops_are_close_and_do_not_alias() -> None:
    picture = cv2.GaussianBlur(scene(900, 900), (0, 0), 2.0)
    for ratio in (1.0, 2.3, 5.0):
        transform = placed((450, 450), ratio, 8)
        exact, draft = (crop_faces_float(picture, [transform], draft=answer) for answer in (False, True))
        assert psnr(draft[0], exact[0], np.ones((128, 128))) > 38
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = crop_faces_float(stripes, [placed((300, 300), 2.5, 9.0)], draft=True)
    assert crop[0, 20:108, 20:108].std() < 25
