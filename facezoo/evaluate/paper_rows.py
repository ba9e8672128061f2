"""Figures that the papers give for themselves and others, to stand beside ours. Never the same data nor judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["PAPER_ROWS", "PaperRow"]


@dataclass(frozen=True)
class PaperRow:
    """One figure of a paper, or a few of one kind.

    Attributes:
        name: the method, as the paper calls it.
        ours: the method here that follows it; "" where there is none.
        what: what was measured, by whom.
        value: as printed.
        data: on which faces.
        source: paper and table.
    """

    name: str
    ours: str
    what: str
    value: str
    data: str
    source: str


_CH6 = "book, Table 6.1"
_CH6_ID = "protected: identity distance / success rate, dlib at 0.6"
_BOOK53 = "book, Table 5.3"
_TAR = "taken for the person: true accept rate, FaceNet CASIA / VGGFace2"
_IFADIT_ID = "cosine to the original, ArcFace / AdaFace"
_IFADIT_1, _IFADIT_2, _IFADIT_3 = "iFADIT, Table 1", "iFADIT, Table 2", "iFADIT, Table 3"
_DETECTED = "face detected, MTCNN / dlib; landmark distance, pixels of 256"
_RECOVERED = "recovered: PSNR / SSIM / LPIPS"
_SDN = "anonymized: LPIPS / FID / SSIM"
_HQ = "CelebA-HQ, 256 px"

PAPER_ROWS: Final = (
    PaperRow("Cao et al. (rotation)", "identity_rotation", _CH6_ID, ".792 / 97.5 %", _HQ, _CH6),
    PaperRow("DeepPrivacy", "", _CH6_ID, ".746 / 93.9 %", _HQ, _CH6),
    PaperRow("Gu et al. (FIT)", "", _CH6_ID, ".822 / 96.1 %", _HQ, _CH6),
    PaperRow(
        "Cao et al. (rotation)", "identity_rotation", "recovered: LPIPS / PSNR / SSIM / MAE",
        ".062 / 27.50 / .902 / .031", _HQ, "book, Table 6.4",
    ),
    PaperRow("IdentityDP, eps 6", "identity_dp", _TAR, "1.9 % / 3.1 %", "LFW pairs", _BOOK53),
    PaperRow("IdentityDP, eps .57", "identity_dp", _TAR, "1.6 % / 2.4 %", "LFW pairs", _BOOK53),
    PaperRow("DeepPrivacy", "", _TAR, "2.9 % / 3.9 %", "LFW pairs", _BOOK53),
    PaperRow("CIAGAN", "", _TAR, "1.9 % / 3.4 %", "LFW pairs", _BOOK53),
    PaperRow("Fawkes", "", _TAR, "89.8 % / 91.7 %", "LFW pairs", _BOOK53),
    PaperRow("iFADIT", "ifadit", _IFADIT_ID, ".020 / .015", "LFW", _IFADIT_1),
    PaperRow("RiDDLE", "", _IFADIT_ID, ".148 / .101", "LFW", _IFADIT_1),
    PaperRow("DeepPrivacy", "", _IFADIT_ID, ".555 / .373", "LFW", _IFADIT_1),
    PaperRow("iFADIT", "ifadit", _DETECTED, "1.000 / .995; 1.219 / .986", "CelebA-HQ", _IFADIT_2),
    PaperRow("DeepPrivacy", "", _DETECTED, "1.000 / .980; 3.280 / 2.896", "CelebA-HQ", _IFADIT_2),
    PaperRow("iFADIT", "ifadit", _RECOVERED, "35.20 / .945 / .041", "CelebA-HQ", _IFADIT_3),
    PaperRow("RiDDLE", "", _RECOVERED, "25.39 / .928 / .073", "CelebA-HQ", _IFADIT_3),
    PaperRow("SDN", "sdn", _SDN, ".15 / 28 / .96", "not stated beside the table", "SDN, Table 1"),
    PaperRow("MfM", "mfm", _SDN, ".35 / 27 / .83", "not stated beside the table", "SDN, Table 1"),
    PaperRow("DP k-anonymity, k=100, eps=.1", "dp_kanonymity", "identity distance (dlib) / SSIM / face detected",
             ".527 / .759 / 96.1 %", "CelebA, 128 px", "book, Table 4.1"),
)  # fmt: skip
"""Rows by what was measured."""
