"""Intervals: how far a number would move on other seeds, windows or repeats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, inf, log, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thesis_lib.common.errors import require

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LEVEL = 0.95  # of every interval in the book
LEAST = 8  # independent observations below which there is a range and no interval
RANGE = "range"
BATCHES = 20  # stretches of observations that depend on each other


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its interval, and what the ends rest on.

    `n` independent observations and the method's name; RANGE says that they were too
    few for an interval, and that the ends are the least and the largest of them.
    """

    value: float
    low: float
    high: float
    n: int = field(default=0, kw_only=True)
    method: str = field(default="", kw_only=True)

    def numbers(self, name: str, times: float = 1.0) -> dict[str, float | str]:
        """Return the published form: `name`, its ends, n, and the kind of interval."""
        return {
            name: times * self.value,
            f"{name}_low": times * self.low,
            f"{name}_high": times * self.high,
            f"{name}_n": self.n,
            f"{name}_interval": self.method,
        }

    def rate(self, amount: float) -> "Interval":
        """Divide a number by the interval, as a rate from a time."""
        high = amount / self.low if self.low > 0 else inf
        return replace(
            self, value=amount / self.value, low=amount / self.high, high=high
        )

    def within(self, least: float, most: float = inf) -> "Interval":
        """The same, with no end beyond what the quantity can be."""
        low, high = np.clip((self.low, self.high), least, most)
        return replace(self, low=float(low), high=float(high))


def mean_interval(values: ArrayLike) -> Interval:
    """Mean of (n,) independent values; its ends are Student's, Biometrika 6(1), 1908.

    Raises InvalidInput without a value and for one that is not finite.
    """
    sample = _observed(values)
    mean = float(sample.mean())
    if len(sample) < LEAST:
        return _range(mean, sample)
    reach = _student(len(sample)) * float(sample.std(ddof=1)) / sqrt(len(sample))
    return Interval(mean, mean - reach, mean + reach, n=len(sample), method="Student")


def ratio_interval(above: ArrayLike, below: ArrayLike) -> Interval:
    """Mean of (n,) values over the mean of what they are paired with, (n,).

    Its ends are Fieller's, J. R. Stat. Soc. B 16(2), 1954: those ratios r at which the
    mean of `above - r * below` cannot be told from zero. Where the mean of `below`
    itself cannot, there are no ends, and the range of the pairs is given. Raises
    InvalidInput for unequal numbers, without a pair, for values that are not finite and
    for a mean of `below` that is zero.
    """
    one, other = _observed(above), _observed(below)
    require(
        len(one) == len(other),
        f"{len(one)} values over {len(other)}: expected pairs",
    )
    mean = float(other.mean())
    require(mean != 0, "the mean below is zero: expected one to divide by")
    ratio, n = float(one.mean()) / mean, len(one)
    pairs = one[other != 0] / other[other != 0]
    if n < LEAST:
        return _range(ratio, pairs, n)
    spread = np.cov(one, other) * (_student(n) / mean) ** 2 / n
    unsure = float(spread[1, 1])  # how far the mean below is from being told from zero
    middle = ratio - float(spread[0, 1])
    square = middle**2 - (1 - unsure) * (ratio**2 - float(spread[0, 0]))
    if unsure >= 1:
        return _range(ratio, pairs, n)
    reach = sqrt(max(square, 0.0))
    low, high = ((middle + end) / (1 - unsure) for end in (-reach, reach))
    return Interval(ratio, low, high, n=n, method="Fieller")


def median_interval(values: ArrayLike) -> Interval:
    """Median of (n,) independent values, whatever their distribution.

    Its ends lie between order statistics, interpolated to the level; Hettmansperger and
    Sheather, Statistics & Probability Letters 4(2), 1986. Raises InvalidInput as
    `mean_interval`.
    """
    sample = np.sort(_observed(values))
    median, n = float(np.median(sample)), len(sample)
    if n < LEAST:
        return _range(median, sample)
    # covered[d]: how often the median lies between the d-th least and the d-th largest.
    covered = 1 - 2 * _binomial(n)
    d = int(np.searchsorted(-covered, -LEVEL, side="right")) - 1
    share = (covered[d] - LEVEL) / (covered[d] - covered[d + 1])
    share = (n - d) * share / (d + (n - 2 * d) * share)
    low = (1 - share) * sample[d - 1] + share * sample[d]
    high = (1 - share) * sample[n - d] + share * sample[n - d - 1]
    return Interval(median, float(low), float(high), n=n, method="order statistics")


def pool(intervals: Sequence[Interval]) -> Interval:
    """Return the median of several estimates of one quantity, from end to end.

    The ends are the lowest and the highest of all, so that what moved between the
    estimates is in them. `n` counts all observations.
    """
    return Interval(
        float(np.median([each.value for each in intervals])),
        min(each.low for each in intervals),
        max(each.high for each in intervals),
        n=sum(each.n for each in intervals),
        method=RANGE,
    )


def batch_interval(n: int, statistic: Callable[[slice], float]) -> Interval:
    """A statistic of n observations that follow each other in time and depend so.

    `statistic` is asked for all rows, and for each of BATCHES stretches of them, which
    hardly depend on each other where they are long. The ends are as far from the whole
    as Student's are for the stretches; Schmeiser, Operations Research 30(3), 1982.
    Raises InvalidInput where a stretch would have fewer than two rows.
    """
    require(
        n >= 2 * BATCHES,
        f"{n} observations: expected two at least for each of {BATCHES} stretches",
    )
    ends = np.linspace(0, n, BATCHES + 1).astype(int).tolist()
    interval = mean_interval([statistic(slice(*pair)) for pair in pairwise(ends)])
    whole, reach = float(statistic(slice(n))), (interval.high - interval.low) / 2
    return Interval(
        whole, whole - reach, whole + reach, n=BATCHES, method="batch means"
    )


def quantile_interval(values: F64, share: float) -> Interval:
    """Return `batch_interval` of a quantile of (n,) consecutive values."""
    return batch_interval(len(values), lambda rows: np.quantile(values[rows], share))


def share_interval(count: int, n: int) -> Interval:
    """The share `count` of n independent trials; Wilson, J. Am. Stat. Assoc. 22, 1927.

    Raises InvalidInput for a count outside 0 .. n and without a trial.
    """
    require(
        0 <= count <= n and n > 0,
        f"{count} of {n}: expected one trial at least, and a count of them",
    )
    share, square = count / n, _NORMAL**2 / n
    middle = (share + square / 2) / (1 + square)
    reach = sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return Interval(share, middle - reach, middle + reach, n=n, method="Wilson")


def p_value(values: ArrayLike) -> float:
    """Return the probability that (n,) values of mean zero have a mean as far off.

    Two-sided, by Student's t; 1 for fewer than LEAST values. Raises InvalidInput as
    `mean_interval`.
    """
    sample = _observed(values)
    if len(sample) < LEAST or not sample.any():
        return 1.0
    from scipy.special import stdtr

    with np.errstate(divide="ignore"):
        t = abs(sample.mean()) / sample.std(ddof=1) * sqrt(len(sample))
    return round(2 * float(stdtr(len(sample) - 1, -t)), 12)


def holm(p_values: ArrayLike) -> NDArray[np.bool_]:
    """Which of (m,) hypotheses that were tested together are rejected.

    That any of them is rejected wrongly happens at most once in twenty times (LEVEL),
    however they depend on each other; Holm, Scandinavian Journal of Statistics 6(2),
    1979. Raises InvalidInput as `mean_interval`.
    """
    p = _observed(p_values)
    order = np.argsort(p, kind="stable")
    passed = p[order] <= (1 - LEVEL) / np.arange(len(p), 0, -1)
    rejected = np.empty(len(p), bool)
    rejected[order] = np.logical_and.accumulate(passed)
    return rejected


def least_samples(quantile: float) -> int:
    """Samples without which the largest may lie below a quantile.

    With so many, the largest lies above it with a probability of 99 %: 1 - quantile^n,
    the bound of no overrun. 459 for the 99th percentile.
    """
    require(0 < quantile < 1, f"quantile={quantile:g} must lie in (0, 1)")
    return ceil(log(1 - 0.99) / log(quantile))


_NORMAL = 1.959963984540054  # quantile of the normal distribution at 97.5 %


def _student(n: int) -> float:
    """Return the t quantile of n observations, rounded to be equal on any processor."""
    from scipy.special import stdtrit  # a third of a second, which few wait for

    return round(float(stdtrit(n - 1, (1 + LEVEL) / 2)), 9)


def _binomial(n: int) -> F64:
    """P(fewer than d of n fair coins fall heads) for d = 0 .. n // 2, (n // 2 + 1,)."""
    from scipy.special import bdtr

    return np.append(0.0, bdtr(np.arange(n // 2), n, 0.5))


def _observed(values: ArrayLike) -> F64:
    sample = np.asarray(values, np.float64)
    require(
        sample.ndim == 1 and len(sample) > 0 and bool(np.isfinite(sample).all()),
        f"values of shape {sample.shape}: expected one at least, each finite",
    )
    return sample


def _range(value: float, values: F64, n: int | None = None) -> Interval:
    low, high = (values.min(), values.max()) if len(values) else (value, value)
    n = len(values) if n is None else n
    return Interval(value, float(low), float(high), n=n, method=RANGE)
