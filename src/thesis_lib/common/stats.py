"""Intervals: how far a number would move on other seeds, windows or repeats."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thesis_lib.common.errors import require

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LEVEL = 0.95  # of every interval in the book


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(
    n: int,
    statistic: Callable[[I64], F64],
    level: float = LEVEL,
    draws: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval, (low, high), of a statistic of n observations.

    `statistic` maps rows of indices into the observations, (draws, n), to the
    statistic of each resample, (draws,). Observations that belong together (pairs,
    the tokens of a window) are one index and stay together. Raises InvalidInput for
    a level outside (0, 1) and without an observation.
    Efron, Annals of Statistics 7(1), 1979.
    """
    require(0 < level < 1, f"level={level:g} must lie in (0, 1)")
    require(n >= 1, f"n={n}: an interval needs at least one observation")
    rows = np.random.default_rng(seed).integers(0, n, (draws, n))
    low, high = np.quantile(statistic(rows), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: F64) -> Interval:
    """Mean of (n,) values and its 95 % bootstrap interval."""
    values = np.asarray(values, np.float64)
    ends = bootstrap(len(values), lambda rows: values[rows].mean(axis=1))
    return Interval(float(values.mean()), *ends)
