"""Reading and writing pictures of every usual kind, as upright 8-bit RGB.

What happens to each kind

| kind | read as |
|---|---|
| EXIF orientation 1 to 8 | turned upright; the tag is not written again |
| alpha (RGBA, LA, palette with transparency) | kept beside the pixels and written back; a transparent face is a face |
| grayscale, bilevel | three equal channels; written as grayscale again while the channels are equal |
| 16 bit | reduced to 8 bit (`mode_note` says so) |
| CMYK | converted to sRGB, through its ICC profile where it has one |
| palette | RGB |
| ICC profile | kept (an RGB profile, and a gray one while the picture stays gray) |
| resolution in dots per inch | kept |
| thumbnail, maker notes, comments | never written: a thumbnail would show the original face |
| GPS, XMP | not written, but for the policy "keep-place" |
| HEIC, a camera's raw file | read with the extras `heic` and `raw` |
| MPO, HEIC (phones: more pictures in one file) | the first picture; the others show the face too and are dropped |
| animation, several pages | refused |

Metadata policy: "drop" keeps the ICC profile only. "keep-safe" also keeps a fixed list of EXIF fields about the camera,
the exposure, the time and the rights (`SAFE_EXIF`), none of which holds a place, a picture or a serial number.
"keep-place" is for mapping: it also keeps the place (the EXIF directory GPS) and what a panorama viewer needs (Google's
photo-sphere fields, written anew from their values), and so says where each picture was taken.

Memory: a picture of N million pixels needs about 3 N MB here, and anonymizing it about 20 N MB at the peak.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from facezoo.errors import InputError
from facezoo.files import atomic_write
from facezoo.images.formats import (
    HEAD_BYTES,
    WRITTEN_ENDINGS,
    FileFormat,
    by_name,
    file_format,
    missing_reader,
    pillow_readers,
    writer_name,
)

ByteArray = npt.NDArray[np.uint8]
MetadataPolicy = Literal["drop", "keep-safe", "keep-place"]
PictureSource = str | os.PathLike[str] | bytes | npt.NDArray[np.generic]

METADATA_POLICIES: tuple[MetadataPolicy, ...] = ("drop", "keep-safe", "keep-place")
#: Pictures with more pixels are refused before they are decoded (``--max-megapixels``): phones take 200 million.
MAX_PIXELS = 250_000_000
#: Files with more bytes are refused before they are read.
MAX_FILE_BYTES = 1 << 30
#: EXIF fields kept by the policy "keep-safe": name -> (directory, tag); directory 0 is the main one.
SAFE_EXIF: Mapping[str, tuple[int, int]] = {
    "Make": (0, 0x010F),
    "Model": (0, 0x0110),
    "DateTime": (0, 0x0132),
    "Artist": (0, 0x013B),
    "Copyright": (0, 0x8298),
    "ExposureTime": (0x8769, 0x829A),
    "FNumber": (0x8769, 0x829D),
    "ISOSpeedRatings": (0x8769, 0x8827),
    "DateTimeOriginal": (0x8769, 0x9003),
    "DateTimeDigitized": (0x8769, 0x9004),
    "ExposureBiasValue": (0x8769, 0x9204),
    "Flash": (0x8769, 0x9209),
    "FocalLength": (0x8769, 0x920A),
    "FocalLengthIn35mmFilm": (0x8769, 0xA405),
}

_MODE_NOTES = {
    "1": "bilevel",
    "L": "gray",
    "LA": "gray",
    "La": "gray",
    "P": "palette",
    "PA": "palette",
    "RGB": "",
    "RGBA": "",
    "RGBa": "",
    "RGBX": "",
}
#: Fields of a photo sphere (namespace GPano) that a viewer needs, all of them numbers or fixed words.
_SPHERE_FIELDS = (
    *("ProjectionType", "UsePanoramaViewer", "CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels"),
    *("FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaLeftPixels", "CroppedAreaTopPixels"),
    *("PoseHeadingDegrees", "PosePitchDegrees", "PoseRollDegrees", "InitialViewHeadingDegrees"),
    *("InitialViewPitchDegrees", "InitialViewRollDegrees", "InitialHorizontalFOVDegrees"),
)
_SPHERE_NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
_GPS = 0x8825
#: Pillow has one limit for the whole process, which is lower than ours; it is lifted while a header is read.
_HEADER_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """A decoded, upright picture.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        alpha: (H, W) uint8, 255 = opaque; None: no alpha channel.
        icc: the ICC profile to be written; None: none (sRGB).
        mode_note: what the file held where it was not plain 8-bit RGB, e.g. "16-bit gray"; else "".
        depth: bits a channel of `pixels`: always 8.
        format: name in `facezoo.images.formats.FORMATS`, or "array".
        gray: the file was grayscale; it is written so again while the channels are equal.
        exif: the metadata that is written, as an EXIF block; None under the policy "drop".
        kept_metadata: the same for people: field -> value.
        dpi: dots per inch, across and down; None: the file does not say.
        sphere: an XMP packet with the photo-sphere fields alone, under the policy "keep-place"; else None.
    """

    pixels: ByteArray
    alpha: ByteArray | None = None
    icc: bytes | None = None
    mode_note: str = ""
    depth: int = 8
    format: str = "array"
    gray: bool = False
    exif: bytes | None = None
    kept_metadata: Mapping[str, str] = field(default_factory=dict)
    dpi: tuple[float, float] | None = None
    sphere: bytes | None = None

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise InputError(f"a picture needs (H, W, 3) uint8 RGB pixels, got {pixels.dtype} of shape {pixels.shape}")
        if self.alpha is not None and (self.alpha.shape != pixels.shape[:2] or self.alpha.dtype != np.uint8):
            raise InputError(f"alpha must be (H, W) uint8 like the pixels, got {self.alpha.dtype} {self.alpha.shape}")

    def __repr__(self) -> str:
        """Size and format; no pixels."""
        return f"<facezoo.Picture: {self.size[0]}x{self.size[1]}, {self.mode_note or self.format}>"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def load_picture(source: PictureSource, *, metadata: MetadataPolicy = "drop", max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture.

    Args:
        source: a path, the bytes of a file, or an array: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or
            uint16.
        metadata: "drop", "keep-safe" or "keep-place", see the module.
        max_pixels: refuse bigger pictures before decoding them (decompression bombs).

    Returns:
        The upright picture.

    Raises:
        InputError: missing, empty, truncated or damaged file, a folder, not a picture, an animation, too big, or a
            kind of pixels that has no 8-bit meaning (floating point). The message names the file.
    """
    if metadata not in METADATA_POLICIES:
        raise InputError(f"metadata must be one of {', '.join(METADATA_POLICIES)}, got {metadata!r}")
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), "the given bytes", "", metadata, max_pixels)
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"a picture is a path, bytes or an array, got {type(source).__name__}")
    return _decode(_read(Path(source)), str(source), Path(source).name, metadata, max_pixels)


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is a folder, not a picture; give a picture, or use the folder mode")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file; save the picture to a file first")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} has {status.st_size >> 20} MB, more than the {MAX_FILE_BYTES >> 20} MB allowed")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the name") from None
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{str(path)!r} cannot be read: {reason}") from error


def _too_big(name: str, width: int, height: int, max_pixels: int) -> InputError:
    return InputError(
        f"{name} is {width}x{height}, more than the {max_pixels // 1_000_000} million pixels allowed; shrink it, or "
        f"allow more with --max-megapixels {-(-width * height // 1_000_000)} (about 20 MB of memory for each million)"
    )


def _from_array(array: npt.NDArray[np.generic], max_pixels: int) -> Picture:
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"a picture array must be uint8 or uint16, got {array.dtype}; scale it to 0..255 and round")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(f"a picture array must be (H, W), (H, W, 3) or (H, W, 4), got the shape {array.shape}")
    height, width, channels = array.shape
    if height * width > max_pixels:
        raise _too_big("the given array", width, height, max_pixels)
    note = ""
    if array.dtype == np.uint16:
        array, note = _to_8_bit(array), "16-bit"
    bytes_array = array.astype(np.uint8)
    gray = channels == 1
    pixels = np.ascontiguousarray(np.repeat(bytes_array, 3, axis=2) if gray else bytes_array[..., :3])
    alpha = np.ascontiguousarray(bytes_array[..., 3]) if channels == 4 else None
    return Picture(pixels, alpha, mode_note=" ".join(filter(None, [note, "gray" if gray else ""])), gray=gray)


def _to_8_bit(values: npt.NDArray[np.generic]) -> ByteArray:
    """0..65535 -> 0..255, rounded."""
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _decode(data: bytes, name: str, file_name: str, metadata: MetadataPolicy, max_pixels: int) -> Picture:
    if not data:
        raise InputError(f"{name} is empty; it holds no picture")
    entry = file_format(data[:HEAD_BYTES], file_name)
    if entry is None:
        raise InputError(f"{name} is not a picture, or of a kind that is not read; convert it to PNG or JPEG")
    if entry.kind != "picture" or not entry.readable:
        raise InputError(f"{name} {missing_reader(entry)}")
    try:
        with warnings.catch_warnings():
            # Size is checked here against a limit of our own; Pillow warns about damaged EXIF, which is dropped anyway.
            warnings.simplefilter("ignore")
            if entry.name == "raw":
                return _decode_raw(data, name, max_pixels)
            with _opened(data, entry) as image:
                return _decode_image(image, data, name, metadata, max_pixels)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture, or of a kind that is not read; convert it to PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{name} has more than the {max_pixels // 1_000_000} million pixels allowed; shrink it first"
        ) from None
    except MemoryError:
        raise InputError(f"{name} does not fit into memory; shrink it first") from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise InputError(f"{name} is damaged or cut off ({error}); get an intact copy") from error


def _opened(data: bytes, entry: FileFormat) -> Image.Image:
    """The picture with its header read and no pixel decoded, by the reader of its format and no other."""
    if entry.name == "heic":
        import pillow_heif

        return pillow_heif.HeifImageFile(io.BytesIO(data))
    Image.init()
    formats = [reader for reader in pillow_readers(Image.OPEN) if reader in entry.readers]
    with _HEADER_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode_raw(data: bytes, name: str, max_pixels: int) -> Picture:
    """A camera's raw file, developed with the white balance that the camera chose."""
    import rawpy

    with rawpy.imread(io.BytesIO(data)) as raw:
        if raw.sizes.iwidth * raw.sizes.iheight > max_pixels:
            raise _too_big(name, raw.sizes.iwidth, raw.sizes.iheight, max_pixels)
        pixels = np.ascontiguousarray(raw.postprocess(use_camera_wb=True, output_bps=8))
    return Picture(pixels, mode_note="developed from raw", format="raw")


def _decode_image(image: Image.Image, data: bytes, name: str, metadata: MetadataPolicy, max_pixels: int) -> Picture:
    if image.width * image.height > max_pixels:
        raise _too_big(name, image.width, image.height, max_pixels)
    kind = (image.format or "").lower()
    kind = "jp2" if kind == "jpeg2000" else by_name(kind).name
    frames = int(getattr(image, "n_frames", 1))
    notes: list[str] = []
    if image.format in ("MPO", "HEIF"):
        if frames > 1:
            notes.append(f"first of {frames} pictures in one file")
    elif frames > 1 or getattr(image, "is_animated", False):
        what = f"has {frames} pages" if kind == "tiff" else f"is an animation of {frames} frames"
        raise InputError(f"{name} {what}; give single pictures, one a file")
    image.load()
    icc = _usable_icc(image.info.get("icc_profile"))
    exif, kept = (None, {}) if metadata == "drop" else _safe_exif(image, place=metadata == "keep-place")
    sphere = _sphere(image, kept) if metadata == "keep-place" else None
    if kind == "png" and len(data) > 24 and data[24] == 16:
        notes.append("16-bit")
    dpi = _usable_dpi(image.info.get("dpi"))
    upright = _upright(image)
    if dpi is not None and upright.size != image.size:
        dpi = (dpi[1], dpi[0])
    pixels, alpha, gray, note, icc = _to_rgb(upright, icc, name)
    if note and note != "16-bit gray":
        notes.append(note)
    elif note:
        notes = [*(entry for entry in notes if entry != "16-bit"), note]
    return Picture(pixels, alpha, icc, ", ".join(notes), 8, kind, gray, exif, kept, dpi, sphere)


def _usable_dpi(value: object) -> tuple[float, float] | None:
    """Dots per inch as a file states them, where they are numbers that a file can hold."""
    try:
        across, down = (float(number) for number in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    if not all(math.isfinite(number) and 1.0 <= number <= 30_000.0 for number in (across, down)):
        return None
    return across, down


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says; damaged EXIF counts as none."""
    try:
        # (TIFF pictures were turned by load() already, and no longer carry the tag.)
        return ImageOps.exif_transpose(image)
    except Exception:  # the EXIF block is damaged: the pixels are shown as they lie in the file, as viewers do
        return image


def _usable_icc(profile: object) -> bytes | None:
    """The profile if it is one: header of 128 bytes with the signature `acsp`."""
    if isinstance(profile, bytes) and len(profile) >= 128 and profile[36:40] == b"acsp":
        return profile
    return None


def _icc_space(profile: bytes | None) -> str:
    return profile[16:20].decode("ascii", "replace").strip() if profile else ""


def _safe_exif(image: Image.Image, *, place: bool) -> tuple[bytes | None, dict[str, str]]:
    """The EXIF fields of the fixed list, and those of the place where they are asked for, as a fresh block."""
    kept: dict[str, str] = {}
    fresh = Image.Exif()
    try:
        found = image.getexif()
        directories: dict[int, Mapping[int, object]] = {0: dict(found), 0x8769: found.get_ifd(0x8769)}
        for field_name, (directory, tag) in SAFE_EXIF.items():
            value = directories[directory].get(tag)
            if isinstance(value, str):
                value = value.replace("\0", "").strip()[:200]
            if value is None or value == "" or isinstance(value, bytes):
                continue
            target = fresh if directory == 0 else fresh.get_ifd(directory)
            target[tag] = value
            kept[field_name] = str(value)
        if place and (gps := found.get_ifd(_GPS)):
            fresh.get_ifd(_GPS).update(gps)
            kept["GPS"] = f"{len(gps)} fields"
        return (fresh.tobytes() if kept else None), kept
    except Exception:  # a damaged EXIF block is no reason to refuse the picture: nothing of it is kept
        return None, {}


def _sphere(image: Image.Image, kept: dict[str, str]) -> bytes | None:
    """The photo-sphere fields of a picture's XMP as a packet of their own; what else the XMP says is dropped."""
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet)
    found: dict[str, str] = {}
    for name in _SPHERE_FIELDS:
        match = re.search(rf"GPano:{name}(?:\s*=\s*[\"']|>)\s*([A-Za-z0-9.+-]{{1,32}})\s*[\"'<]", text[: 1 << 20])
        if match:
            found[name] = match[1]
    if not found:
        return None
    kept.update({f"GPano {name}": value for name, value in found.items()})
    fields = " ".join(f'GPano:{name}="{value}"' for name, value in found.items())
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:GPano="{_SPHERE_NAMESPACE}" {fields}/></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode("ascii")


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """To sRGB through an ICC profile; None where the profile cannot be used."""
    try:
        converted = ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return converted


def _to_rgb(
    image: Image.Image, icc: bytes | None, name: str
) -> tuple[ByteArray, ByteArray | None, bool, str, bytes | None]:
    """Any mode -> pixels, alpha, was it gray, note, profile to keep."""
    mode = image.mode
    transparent = image.info.get("transparency")
    if mode == "I" or mode.startswith("I;16"):
        return _from_16_bit(image, icc, transparent, name)
    if mode == "F":
        raise InputError(f"{name} holds floating-point values without a fixed white; convert it to 8 or 16 bit first")
    if mode in ("CMYK", "LAB"):
        if mode == "LAB":
            rgb = _lab_to_rgb(image)
        else:
            converted = _through_profile(image, icc) if icc and _icc_space(icc) == "CMYK" else None
            rgb = converted if converted is not None else image.convert("RGB")
        return np.array(rgb, dtype=np.uint8), None, False, mode, None
    gray = mode in ("1", "L", "LA", "La")
    note = _MODE_NOTES.get(mode, mode)
    has_alpha = mode in ("RGBA", "LA", "PA", "RGBa", "La") or transparent is not None
    alpha: ByteArray | None = None
    if has_alpha:
        four = np.array(image.convert("RGBA"), dtype=np.uint8)
        pixels, alpha = np.ascontiguousarray(four[..., :3]), np.ascontiguousarray(four[..., 3])
    else:
        pixels = np.array(image.convert("RGB"), dtype=np.uint8)
    space = _icc_space(icc)
    keep = icc if (space == "RGB" and not gray) or (space == "GRAY" and gray) else None
    return pixels, alpha, gray, note, keep


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    """CIE Lab (D50) to sRGB."""
    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    return converted if converted is not None else image.convert("RGB")


def _from_16_bit(
    image: Image.Image, icc: bytes | None, transparent: object, name: str
) -> tuple[ByteArray, ByteArray | None, bool, str, bytes | None]:
    values = np.array(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{name} holds 32-bit values; convert it to 8 or 16 bit first")
    gray = _to_8_bit(values.astype(np.uint16))
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8) if isinstance(transparent, int) else None
    keep = icc if _icc_space(icc) == "GRAY" else None
    return np.repeat(gray[..., None], 3, axis=2), alpha, True, "16-bit gray", keep


def encode_picture(picture: Picture, format: str | None = None, quality: int = 95) -> bytes:
    """Encode a picture.

    Args:
        picture: what is written.
        format: "png", "jpeg" (or "jpg"), "webp", "avif", "tiff" or "bmp"; None: the picture's own, PNG where that is
            not one of these.
        quality: of JPEG (written with full colour resolution), AVIF and WebP, 1 to 100; WebP at 100 is lossless. PNG,
            TIFF and BMP are always lossless.

    Returns:
        The bytes of the file: pixels, alpha, ICC profile, dots per inch and the kept metadata; nothing else of the
        source.

    Raises:
        InputError: unknown format, or one that cannot hold the picture (alpha in JPEG or BMP, too many pixels a side).
    """
    entry = _written_format(picture, format)
    kind = entry.name
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise InputError(f"quality must be a whole number from 1 to 100, got {quality!r}")
    alpha = picture.alpha
    if alpha is not None and kind in ("jpeg", "bmp"):
        if alpha.min() < 255:
            raise InputError(f"{entry.title} cannot hold transparency; save as .png or .webp")
        alpha = None
    if max(picture.size) > {"jpeg": 65535, "webp": 16383, "avif": 65535}.get(kind, 2**31):
        raise InputError(f"{entry.title} cannot hold {picture.size[0]}x{picture.size[1]} pixels; save as .png")
    pixels = picture.pixels
    stays_gray = (
        picture.gray
        and kind not in ("webp", "avif")  # which Pillow writes in colour only
        and bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())
    )
    colour = pixels[..., :1] if stays_gray else pixels
    planes = colour if alpha is None else np.concatenate([colour, alpha[..., None]], axis=2)
    image = Image.fromarray(np.ascontiguousarray(planes[..., 0] if planes.shape[2] == 1 else planes))
    options = _file_options(picture, kind, quality, stays_gray)
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=entry.writer, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # KeyError: this build of Pillow has no such writer
        raise InputError(f"the picture cannot be written as {entry.title}: {error}; save as .png") from error
    return buffer.getvalue()


def gray_pixels(pixels: ByteArray) -> ByteArray:
    """The luminance in all three channels, so that a gray picture stays one; gray pixels stay as they are.

    Args:
        pixels: (H, W, 3) uint8 RGB.
    """
    return np.repeat(np.asarray(Image.fromarray(pixels).convert("L"))[..., None], 3, axis=2)


def _written_format(picture: Picture, wanted: str | None) -> FileFormat:
    if wanted is None:
        return by_name(picture.format if picture.format in WRITTEN_ENDINGS.values() else "png")
    try:
        entry = by_name(wanted.lower())
    except KeyError:
        entry = None
    if entry is None or not entry.writer:
        names = ", ".join(sorted(set(WRITTEN_ENDINGS.values())))
        raise InputError(f"pictures are not written as {wanted!r}; choose one of: {names}")
    return entry


def _file_options(picture: Picture, kind: str, quality: int, stays_gray: bool) -> dict[str, object]:
    """What Pillow's writer of a format is told."""
    options: dict[str, object] = {}
    if picture.icc is not None and (_icc_space(picture.icc) == "GRAY") == stays_gray and kind != "bmp":
        options["icc_profile"] = picture.icc
    if picture.exif is not None and kind != "bmp":
        options["exif"] = picture.exif
    if picture.dpi is not None and kind in ("jpeg", "png", "tiff", "bmp"):
        options["dpi"] = picture.dpi
    if picture.sphere is not None:
        if kind in ("jpeg", "webp", "avif"):
            options["xmp"] = picture.sphere
        elif kind == "png":
            texts = PngImagePlugin.PngInfo()
            texts.add_itxt("XML:com.adobe.xmp", picture.sphere.decode("ascii"))
            options["pnginfo"] = texts
    if kind == "jpeg":
        # Chroma at full resolution: halving it would destroy most of what a reversible method hides there.
        options |= {"quality": quality, "optimize": True}
        options |= {} if stays_gray else {"subsampling": 0}
    elif kind == "webp":
        options |= {"quality": quality, "method": 4, "lossless": quality == 100, "exact": True}
    elif kind == "avif":
        options |= {"quality": quality, "subsampling": "4:4:4", "speed": 8}
    elif kind == "png":
        # Runs and Huffman codes only (zlib's Z_RLE): photographs, filtered, hold no longer repetitions to search for.
        # Measured on a 1280x720 picture: half the time of level 4, and 1 % fewer bytes.
        options |= {"compress_level": 4, "compress_type": 3}
    elif kind == "tiff":
        # libtiff, which compresses, cannot write the directory of camera fields; Pillow's own plain writer can.
        options |= {"compression": "tiff_deflate"} if picture.exif is None else {}
    return options


def save_picture(picture: Picture, path: str | os.PathLike[str], *, overwrite: bool = False, quality: int = 95) -> Path:
    """Write a picture to a file, whole or not at all.

    Args:
        picture: what is written.
        path: the file; its ending chooses the format.
        overwrite: whether an existing file may be replaced.
        quality: see `encode_picture`.

    Returns:
        The path.

    Raises:
        InputError: unknown ending, or a format that cannot hold the picture.
        OutputError: the file exists or cannot be written.
    """
    target = Path(path)
    kind = writer_name(target.suffix)
    if kind is None:
        raise InputError(f"{target} has no ending that is written; use one of: {' '.join(WRITTEN_ENDINGS)}")
    return atomic_write(target, encode_picture(picture, kind, quality), overwrite)
