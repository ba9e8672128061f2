"""The two shapes that nearly every figure has: a rate over cases, and a mean over cases.

Both are ``torchmetrics.Metric``: fed in chunks of any size, on any device, summed over processes, picklable; and both
give their n and a 95 % interval beside the value (`RateMetric.interval`, `MeanMetric.interval`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from facezoo.errors import InputError
from facezoo.metrics.intervals import Interval, bootstrap_mean, wilson

__all__ = ["MeanMetric", "RateMetric", "check_pairs", "collected"]


def collected(state: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor: (N,), float64; it is a list before processes are summed and a tensor after."""
    if isinstance(state, Tensor):
        return state
    return dim_zero_cat(state) if state else torch.zeros(0, dtype=torch.float64)


def check_pairs(first: Tensor, second: Tensor, dimensions: int, what: str) -> None:
    """Refuses what cannot be compared row by row.

    Raises:
        InputError: two shapes, or another number of dimensions.
    """
    if first.shape != second.shape or first.ndim != dimensions:
        raise InputError(
            f"{what} must be two tensors of one shape with {dimensions} dimensions, "
            f"not {tuple(first.shape)} and {tuple(second.shape)}"
        )


class RateMetric(Metric):
    """Part of the cases for which something holds. Subclasses call `count`."""

    full_state_update = False
    higher_is_better: bool | None = None

    hits: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def count(self, flags: Tensor) -> None:
        """Adds cases: (B,) bool."""
        self.hits += flags.sum().to(self.hits.device)
        self.total += len(flags)

    def compute(self) -> Tensor:
        """The rate, float64; NaN without cases."""
        return self.hits.double() / self.total

    def interval(self) -> Interval:
        """The rate with Wilson's interval, over all processes."""
        with self.sync_context(should_sync=self._to_sync):
            return wilson(int(self.hits), int(self.total))


class MeanMetric(Metric):
    """Mean of one number a case, kept in float64; subclasses call `keep`.

    A case for which there is no number (no face was found in the result, say) is never dropped in silence: it is
    counted in ``missing``, which stands beside the mean. The values themselves are kept (8 bytes a case), because the
    bootstrap needs them; they are sorted first, so that neither the chunks nor the processes change the interval.
    """

    full_state_update = False
    higher_is_better: bool | None = None

    values: list[Tensor] | Tensor
    missing: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)  # a process without cases takes part with an empty tensor of this type
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("missing", torch.tensor(0), dist_reduce_fx="sum")

    def keep(self, values: Tensor) -> None:
        """Adds cases: (B,); those that are not finite count as missing.

        Raises:
            InputError: another shape.
        """
        if values.ndim != 1:
            raise InputError(f"one number a case is needed, not {tuple(values.shape)}")
        if not isinstance(self.values, list):
            raise InputError("this metric's processes are summed already: reset it before it is fed again")
        values = values.detach().double()
        known = values.isfinite()
        self.missing += int((~known).sum())
        self.values.append(values[known])

    def compute(self) -> Tensor:
        """The mean, float64; NaN without cases."""
        values = collected(self.values)
        return values.sort().values.mean() if len(values) else torch.tensor(math.nan, dtype=torch.float64)

    def interval(self, seed: int = 0) -> Interval:
        """The mean with its bootstrap interval, over all processes."""
        with self.sync_context(should_sync=self._to_sync):
            return bootstrap_mean(collected(self.values).sort().values.cpu().numpy(), seed)
