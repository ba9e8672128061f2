"""Rows of the book's tables 4.1 and 5.1, to stand beside figures of ours. Not the same faces nor judges."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["TABLES", "BookRow", "BookTable"]


@dataclass(frozen=True)
class BookRow:
    """A row.

    Attributes:
        name: as the book calls it.
        values: in the order of the table's columns.
        model: what stands beside it here; "" where there is nothing of the kind.
        setting: key of the classics' ``BOOK_SETTINGS``; "" where ``options`` say.
        options: of the model.
    """

    name: str
    values: tuple[float, ...]
    model: str = ""
    setting: str = ""
    options: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class BookTable:
    """A table.

    Attributes:
        title: what it is and on which faces.
        columns: of the book.
        ours: our column (see `facezoo.evaluate.curves.Measured`) for each of them; "" where we measure nothing like it.
        rows: see `BookRow`.
    """

    title: str
    columns: tuple[str, ...]
    ours: tuple[str, ...]
    rows: tuple[BookRow, ...]


_SEEDED: Final = ("randomness", "seeded")
_EDITOR: Final = "dp_kanonymity.faces64"
_FEW: Final = (("gamma", 0.2),)
"""The book samples 5 % of 75,160 people; of the thousand or so pictures measured here 5 % would be fewer than k."""

TABLES: Final = MappingProxyType(
    {
        "4.1": BookTable(
            "book, Table 4.1 (CelebA, 128 px; identity distance by dlib's network, detection by OpenCV)",
            ("Id-dis", "PSNR", "SSIM", "FID", "LPIPS", "Face-det"),
            ("distance", "psnr", "ssim", "", "", "detected"),
            (
                BookRow(
                    "Blurring r=5",
                    (0.2573, 24.931, 0.8005, 66.866, 0.0654, 0.8600),
                    "gaussian_blur",
                    "table 4.1 blurring r=5",
                ),
                BookRow(
                    "Blurring r=20",
                    (0.4203, 22.666, 0.7419, 91.623, 0.0755, 0.6917),
                    "gaussian_blur",
                    "table 4.1 blurring r=20",
                ),
                BookRow(
                    "Noise s=10",
                    (0.2565, 21.917, 0.7739, 32.126, 0.0534, 0.8136),
                    "pixel_noise",
                    "table 4.1 noise s=10",
                ),
                BookRow(
                    "Noise s=30",
                    (0.2911, 17.968, 0.6281, 83.169, 0.1265, 0.2832),
                    "pixel_noise",
                    "table 4.1 noise s=30",
                ),
                BookRow(
                    "Pixelation 4x4",
                    (0.3251, 25.221, 0.8278, 26.073, 0.0326, 0.9302),
                    "pixelation",
                    "table 4.1 pixelation 4x4",
                ),
                BookRow(
                    "Pixelation 8x8",
                    (0.6908, 22.686, 0.7010, 83.666, 0.0915, 0.0211),
                    "pixelation",
                    "table 4.1 pixelation 8x8",
                ),
                BookRow("DeepPrivacy", (0.7232, 20.046, 0.7605, 27.569, 0.0868, 0.9606)),
                BookRow("CIAGAN", (0.5740, 19.014, 0.5349, 36.719, 0.0782, 0.9455)),
                BookRow(
                    "AnonymousNet",
                    (0.4891, 19.102, 0.7380, 55.047, 0.0965, 0.8224),
                    _EDITOR,
                    options=(("selection", "t_closeness"), _SEEDED),
                ),
                BookRow(
                    "DP k-anonymity, k=100, eps=0.05",
                    (0.5608, 19.069, 0.7726, 52.888, 0.0411, 0.9728),
                    _EDITOR,
                    options=(("k", 100), ("epsilon", 0.05), *_FEW, _SEEDED),
                ),
                BookRow(
                    "DP k-anonymity, k=100, eps=0.10",
                    (0.5269, 20.308, 0.7588, 52.214, 0.0345, 0.9614),
                    _EDITOR,
                    options=(("k", 100), ("epsilon", 0.1), *_FEW, _SEEDED),
                ),
                BookRow(
                    "DP k-anonymity, k=200, eps=0.05",
                    (0.4795, 21.029, 0.8024, 38.315, 0.0323, 0.9502),
                    _EDITOR,
                    options=(("k", 200), ("epsilon", 0.05), *_FEW, _SEEDED),
                ),
            ),
        ),
        "5.1": BookTable(
            "book, Table 5.1 (CelebA-HQ, 256 px; distances by FaceNet, PSR by Azure Face, detection by HOG)",
            ("ID_DIS CASIA", "ID_DIS VGGFace2", "PSR", "PSNR", "SSIM", "FDR"),
            ("distance", "", "psr", "psnr", "ssim", "detected"),
            (
                BookRow(
                    "Pixelization 8x8",
                    (0.8646, 0.8993, 0.0, 26.735, 0.7671, 0.923),
                    "pixelation",
                    "table 5.1 pixelization 8x8",
                ),
                BookRow(
                    "Pixelization 16x16",
                    (1.1541, 1.2195, 0.017, 23.926, 0.7223, 0.058),
                    "pixelation",
                    "table 5.1 pixelization 16x16",
                ),
                BookRow(
                    "Noise s=9", (0.3317, 0.2723, 0.002, 23.831, 0.8312, 0.986), "pixel_noise", "table 5.1 noise s=9"
                ),
                BookRow(
                    "Noise s=49", (1.1267, 1.0280, 0.012, 14.370, 0.5533, 0.425), "pixel_noise", "table 5.1 noise s=49"
                ),
                BookRow(
                    "Blur 7x7", (0.8491, 0.8380, 0.0, 27.405, 0.806, 0.888), "low_resolution", "table 5.1 blur 7x7"
                ),
                BookRow(
                    "Blur 19x19",
                    (1.1102, 1.1857, 0.669, 24.829, 0.7719, 0.518),
                    "low_resolution",
                    "table 5.1 blur 19x19",
                ),
                BookRow("DeepPrivacy", (1.0860, 1.1829, 0.961, 21.012, 0.7808, 0.989)),
                BookRow("Fawkes", (0.7267, 0.8585, 0.0, 35.898, 0.9487, 0.985)),
                BookRow(
                    "IdentityDP eps=6",
                    (1.1403, 1.2012, 0.908, 24.640, 0.8606, 0.997),
                    "identity_dp.faces128",
                    options=(("epsilon", 6.0), _SEEDED),
                ),
                BookRow(
                    "IdentityDP eps=0.57",
                    (1.1644, 1.2307, 0.967, 23.909, 0.8519, 0.997),
                    "identity_dp.faces128",
                    options=(("epsilon", 0.57), _SEEDED),
                ),
            ),
        ),
    }
)
"""Tables by number."""
