"""Figures: verification, retrieval, picture quality, and how sure one may be of them."""

from __future__ import annotations

from facezoo.metrics.frechet import frechet_distance
from facezoo.metrics.images import PSNR_CEILING, psnr, ssim
from facezoo.metrics.intervals import Interval, bootstrap_mean, wilson
from facezoo.metrics.modules import RankOneRate, VerifiedRate
from facezoo.metrics.verification import (
    accepted,
    pairwise_similarity,
    rank_one,
    rank_one_hits,
    similarity,
    thresholds_from_impostors,
    verified_rate,
)

__all__ = [
    "PSNR_CEILING",
    "Interval",
    "RankOneRate",
    "VerifiedRate",
    "accepted",
    "bootstrap_mean",
    "frechet_distance",
    "pairwise_similarity",
    "psnr",
    "rank_one",
    "rank_one_hits",
    "similarity",
    "ssim",
    "thresholds_from_impostors",
    "verified_rate",
    "wilson",
]
