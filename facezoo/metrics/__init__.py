"""Figures: verification, retrieval, picture quality, and how sure one may be of them.

Functions take arrays and give a number or an `Interval`; classes are ``torchmetrics.Metric`` (docs/measuring.md lists
them with their formulas and sources).
"""

from __future__ import annotations

from facezoo.metrics.cases import MeanMetric, RateMetric
from facezoo.metrics.frechet import FrechetDistance, frechet_distance
from facezoo.metrics.identity import (
    IdentityDistance,
    IdentityInvarianceScore,
    KnownFactorFeatureAngle,
    ProtectionRate,
    RankOneRate,
    TarAtFar,
    VerifiedRate,
)
from facezoo.metrics.images import PSNR_CEILING, psnr, ssim
from facezoo.metrics.intervals import Interval, bootstrap_correlation, bootstrap_mean, wilson
from facezoo.metrics.looks import (
    DetailRatio,
    ExpressionKept,
    GazeError,
    GrainOutside,
    HalvesFrechet,
    MeshError,
    SeamStep,
    ToneShift,
)
from facezoo.metrics.pictures import MeanAbsoluteError, NetworkDistance, PeakSignalToNoise, StructuralSimilarity
from facezoo.metrics.utility import (
    AttributeAccuracy,
    BoxDistance,
    DetectionRate,
    ExpressionDistance,
    LandmarkDistance,
    PoseDistance,
)
from facezoo.metrics.verification import (
    accepted,
    pairwise_similarity,
    rank_one,
    rank_one_hits,
    similarity,
    thresholds_from_impostors,
    thresholds_from_scores,
    verified_rate,
)

__all__ = [
    "PSNR_CEILING",
    "AttributeAccuracy",
    "BoxDistance",
    "DetailRatio",
    "DetectionRate",
    "ExpressionDistance",
    "ExpressionKept",
    "FrechetDistance",
    "GazeError",
    "GrainOutside",
    "HalvesFrechet",
    "IdentityDistance",
    "IdentityInvarianceScore",
    "Interval",
    "KnownFactorFeatureAngle",
    "LandmarkDistance",
    "MeanAbsoluteError",
    "MeanMetric",
    "MeshError",
    "NetworkDistance",
    "PeakSignalToNoise",
    "PoseDistance",
    "ProtectionRate",
    "RankOneRate",
    "RateMetric",
    "SeamStep",
    "StructuralSimilarity",
    "TarAtFar",
    "ToneShift",
    "VerifiedRate",
    "accepted",
    "bootstrap_correlation",
    "bootstrap_mean",
    "frechet_distance",
    "pairwise_similarity",
    "psnr",
    "rank_one",
    "rank_one_hits",
    "similarity",
    "ssim",
    "thresholds_from_impostors",
    "thresholds_from_scores",
    "verified_rate",
    "wilson",
]
