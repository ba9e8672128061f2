"""Reading and writing pictures: every kind of input, every kind of bad input."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from facezoo.errors import InputError, OutputError
from facezoo.faces.picture import Picture, encode_picture, load_picture, save_picture

Bytes = npt.NDArray[np.uint8]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def ramp(height: int = 24, width: int = 40) -> Bytes:
    """Smooth and different in every corner and channel."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (width + height - 2)], 2).astype(
        np.uint8
    )


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reopened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


# ---------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    upright = ramp()
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, 3),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    picture = load_picture(encoded(stored, kind, exif=exif, **options))
    assert picture.size == (40, 24)
    assert np.abs(picture.pixels.astype(int) - upright).max() <= (6 if kind == "JPEG" else 0)
    again = reopened(encode_picture(picture, "png"))
    assert again.getexif().get(0x0112, 1) == 1
    assert again.size == (40, 24)


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_alpha_is_kept(kind: str) -> None:
    alpha = np.linspace(0, 255, 24 * 40).reshape(24, 40).astype(np.uint8)
    picture = load_picture(encoded(Image.fromarray(np.dstack([ramp(), alpha]))))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, alpha)
    assert np.array_equal(picture.pixels, ramp())  # also under transparent pixels, where a face may be hidden
    again = load_picture(encode_picture(picture, kind, quality=100))
    assert again.alpha is not None
    assert np.array_equal(again.alpha, alpha)
    assert np.array_equal(again.pixels, ramp())


@pytest.mark.parametrize("kind", ["jpeg", "bmp"])
def test_transparency_is_not_dropped_silently(kind: str) -> None:
    picture = load_picture(np.dstack([ramp(), np.full((24, 40), 200, np.uint8)]))
    with pytest.raises(InputError, match="transparency"):
        encode_picture(picture, kind)
    opaque = load_picture(np.dstack([ramp(), np.full((24, 40), 255, np.uint8)]))
    assert reopened(encode_picture(opaque, kind)).mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_gray_stays_gray_until_it_gets_colour(mode: str) -> None:
    picture = load_picture(encoded(Image.fromarray(ramp()).convert(mode)))
    assert picture.gray
    assert np.array_equal(picture.pixels[..., 0], picture.pixels[..., 2])
    assert reopened(encode_picture(picture, "png")).mode == ("LA" if mode == "LA" else "L")
    pixels = picture.pixels.copy()
    pixels[3, 3] = (10, 200, 30)
    coloured = Picture(pixels, picture.alpha, gray=True)
    assert reopened(encode_picture(coloured, "png")).mode == ("RGBA" if mode == "LA" else "RGB")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_reduced_not_clipped(kind: str) -> None:
    values = (ramp()[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    picture = load_picture(encoded(Image.fromarray(values), kind))
    assert np.array_equal(picture.pixels[..., 1], ramp()[..., 0])
    assert picture.mode_note == "16-bit gray"
    assert picture.depth == 8


def png_16_bit_rgb(values: npt.NDArray[np.uint16]) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour() -> None:
    picture = load_picture(png_16_bit_rgb(ramp().astype(np.uint16) * 257))
    assert np.abs(picture.pixels.astype(int) - ramp()).max() <= 1
    assert picture.mode_note == "16-bit"
    array = load_picture(ramp().astype(np.uint16) * 257)
    assert np.array_equal(array.pixels, ramp())


def test_cmyk_becomes_rgb() -> None:
    picture = load_picture(encoded(Image.fromarray(ramp()).convert("CMYK"), "JPEG", quality=98))
    assert picture.mode_note == "CMYK"
    assert picture.icc is None
    assert np.abs(picture.pixels.astype(int) - ramp()).mean() < 6
    assert reopened(encode_picture(picture, "jpeg")).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palette(kind: str) -> None:
    image = Image.fromarray(ramp()).quantize(64)
    picture = load_picture(encoded(image, kind))
    assert picture.mode_note == "palette"
    assert np.array_equal(picture.pixels, np.array(image.convert("RGB")))


def test_palette_with_transparency() -> None:
    image = Image.fromarray(ramp()).quantize(16)
    picture = load_picture(encoded(image, "PNG", transparency=3))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, np.array(image) == 3)


def test_icc_profile_is_kept() -> None:
    picture = load_picture(encoded(Image.fromarray(ramp()), "JPEG", icc_profile=SRGB))
    for kind in ("png", "jpeg", "webp", "tiff"):
        assert reopened(encode_picture(picture, kind)).info["icc_profile"] == SRGB


@pytest.mark.parametrize("profile", [b"nonsense", b"\0" * 200, SRGB[:16] + b"CMYK" + SRGB[20:]])
def test_profiles_that_do_not_fit_are_dropped(profile: bytes) -> None:
    picture = load_picture(encoded(Image.fromarray(ramp()), "PNG", icc_profile=profile))
    assert picture.icc is None


def test_formats_are_told_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(Image.fromarray(ramp())))
    assert load_picture(path).format == "png"


def test_phone_pictures_with_a_second_picture_behind() -> None:
    first, second = Image.fromarray(ramp()), Image.fromarray(255 - ramp())
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    picture = load_picture(data)
    assert picture.pixels[0, 0].sum() < 60
    assert picture.format == "jpeg"
    assert "first of 2" in picture.mode_note
    assert getattr(reopened(encode_picture(picture)), "n_frames", 1) == 1


@pytest.mark.parametrize(
    ("kind", "word"), [("GIF", "animation"), ("WEBP", "animation"), ("PNG", "animation"), ("TIFF", "pages")]
)
def test_animations_and_pages_are_refused(kind: str, word: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(np.roll(ramp(), shift, 1)) for shift in (0, 5, 9)]
    path = tmp_path / f"moving.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=word) as caught:
        load_picture(path)
    assert str(path) in caught.value.message


# ---------------------------------------------------------------------------------------------------- metadata


def with_metadata() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010F] = "Maker"
    exif[0x010E] = "Jane Doe at home"
    details = exif.get_ifd(0x8769)
    details[0x9003] = "2024:01:02 03:04:05"
    details[0xA431] = "SERIAL12345"
    details[0x927C] = b"MAKERNOTE-secret"
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2] = "N", (52.0, 31.0, 12.0)
    thumbnail = encoded(Image.fromarray(ramp()).resize((16, 10)), "JPEG")
    data = encoded(Image.fromarray(ramp()), "JPEG", exif=exif, comment=b"COMMENT-secret", icc_profile=SRGB)
    # A thumbnail and XMP by hand: Pillow writes neither.
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>XMP-secret</x:xmpmeta>"
    jfxx = b"JFXX\0\x10" + thumbnail
    extra = b"".join(
        marker + struct.pack(">H", len(body) + 2) + body for marker, body in ((b"\xff\xe1", xmp), (b"\xff\xe0", jfxx))
    )
    return data[:2] + extra + data[2:]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("policy", ["drop", "keep-safe"])
def test_places_thumbnails_and_notes_are_never_written(kind: str, policy: str) -> None:
    picture = load_picture(with_metadata(), metadata=policy)  # type: ignore[arg-type]
    data = encode_picture(picture, kind)
    for secret in (b"secret", b"SERIAL", b"Jane", b"JFXX", b"xmpmeta"):
        assert secret not in data
    if kind == "jpeg":
        assert data.count(b"\xff\xd8\xff") == 1  # one picture, no thumbnail
    exif = reopened(data).getexif()
    assert not exif.get_ifd(0x8825)
    assert (exif.get(0x010F) == "Maker") is (policy == "keep-safe")
    assert (exif.get_ifd(0x8769).get(0x9003) == "2024:01:02 03:04:05") is (policy == "keep-safe")
    assert reopened(data).info["icc_profile"] == SRGB
    assert bool(picture.kept_metadata) is (policy == "keep-safe")


def test_damaged_exif_does_not_stop_a_picture() -> None:
    data = encoded(Image.fromarray(ramp()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    for policy in ("drop", "keep-safe"):
        assert load_picture(data, metadata=policy).size == (40, 24)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- bad input


def test_bad_files_are_named_in_one_line(tmp_path: Path) -> None:
    good = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)))
    jpeg = encoded(Image.fromarray(ramp(200, 300)), "JPEG")
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0xFF
    cases = {
        "empty.png": (b"", "empty"),
        "text.png": (b"These are words, not pixels.\n" * 50, "not a picture"),
        "cut.png": (good[: len(good) // 2], "damaged or cut off"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged or cut off"),
        "head.png": (good[:20], "not a picture|damaged"),
        "flipped.png": (bytes(damaged), "damaged"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript, which is not looked into"),
    }
    for name, (data, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError, match=reason) as caught:
            load_picture(path)
        assert name in caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.exit_code == 2


def test_missing_files_folders_and_devices(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "missing.png", "does not exist"),
        (tmp_path, "folder"),
        (Path("/dev/null"), "regular"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (Path("nul\0byte.png"), "cannot be read"),
    ):
        if path == Path("/dev/null") and not path.exists():
            continue
        with pytest.raises(InputError, match=reason):
            load_picture(path)


def test_bombs_are_refused_before_they_are_decoded() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for side in (16_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
        with pytest.raises(InputError, match="million pixels"):
            load_picture(bomb)
    with pytest.raises(InputError, match="million pixels"):
        load_picture(ramp(2000, 1500), max_pixels=2_000_000)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((4, 4), np.int64),
    ],
)
def test_bad_arrays(array: npt.NDArray[np.generic]) -> None:
    with pytest.raises(InputError, match="array must be"):
        load_picture(array)


def test_other_bad_arguments() -> None:
    with pytest.raises(InputError, match="metadata"):
        load_picture(ramp(), metadata="all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="path, bytes or an array"):
        load_picture(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="floating-point"):
        load_picture(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    with pytest.raises(InputError, match="uint8 RGB"):
        Picture(np.zeros((4, 4), np.uint8))


# ---------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp", ".webp", ".JPG", ".jpeg"])
def test_round_trip_through_files(ending: str, tmp_path: Path) -> None:
    path = save_picture(load_picture(ramp()), tmp_path / f"out{ending}", quality=100)
    assert np.abs(load_picture(path).pixels.astype(int) - ramp()).max() <= (4 if ending.lower().startswith(".j") else 0)


def test_jpeg_keeps_colour_at_full_resolution() -> None:
    """A code in the colour of single pixels survives JPEG 95 better than with the usual halved chroma."""
    noise = np.random.default_rng(0).integers(-8, 9, (64, 64, 3))
    pixels = np.clip(128 + noise, 0, 255).astype(np.uint8)

    def error(data: bytes) -> float:
        return float(np.abs(load_picture(data).pixels.astype(int) - pixels).mean())

    assert error(encode_picture(load_picture(pixels), "jpg", 95)) < 3.2
    assert error(encoded(Image.fromarray(pixels), "JPEG", quality=95)) > 3.7


def test_writing_is_refused_clearly(tmp_path: Path) -> None:
    picture = load_picture(ramp())
    target = tmp_path / "there.png"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists"):
        save_picture(picture, target)
    assert target.read_bytes() == b"old"
    save_picture(picture, target, overwrite=True)
    for name in ("out.gif", "out", "out.txt"):
        with pytest.raises(InputError, match="ending"):
            save_picture(picture, tmp_path / name)
    for quality in (0, 101, 95.0, True):
        with pytest.raises(InputError, match="quality"):
            encode_picture(picture, "jpeg", quality)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="choose one of"):
        encode_picture(picture, "heic")
    with pytest.raises(InputError, match="cannot hold"):
        encode_picture(load_picture(np.zeros((2, 17000, 3), np.uint8)), "webp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.png"]
