"""Calibrated upper bounds of estimates, which hold as often as promised.

Conformal prediction: whatever the model, the ranks of its errors on transactions that
it was not fitted on say how often the next error is exceeded (Vovk, Gammerman and
Shafer, Algorithmic Learning in a Random World, 2005). An error here is a difference of
logarithms, the truth over the estimate, so a bound is a factor.
"""

from math import erf, exp, log, sqrt
from typing import NamedTuple

import numpy as np

from thesis_lib.common.compiled import njit
from thesis_lib.sequencer.core.locks import borrowing
from thesis_lib.sequencer.core.trace import F64, I64, Bool

# --- While it runs: a regression, and what it leaves over --------------------------

# Positions in `Online.moments`.
COMMITS, MEAN_X, MEAN_Y, VARIANCE, COVARIANCE, SLOPE, TYPICAL_Y = range(7)
BINS, BIN = 128, 1 / 32  # of the logarithm of service over calibrated estimate
PRIOR, PRIOR_VARIANCE = 50.0, 0.25  # commits that the given estimates are worth
STEEPEST = 1.5  # a slope beyond is noise
LEAST_S = 1e-9  # times count as a nanosecond at least, to have a logarithm
OCTAVES = 64  # of estimates, from 2^-32 s on
SPAN = 64  # neighbours by number
# Columns of `Online.spans`: the first deadline, minus infinity where it is not known,
# and the largest and the least of `given`.
SOONEST, LONGEST, SHORTEST = range(3)
FITTED, UNKNOWN = 0.1, 0.25  # weight of the last probe in `fits`, and its first value


class Online(NamedTuple):
    """Statistics of the estimates, from the commits so far.

    A regression of y, the logarithm of a service time, on x, that of its estimate, and
    the distribution of what it leaves over, both forgetting exponentially. Estimates
    without bias leave it at a slope of one; noise flattens it, for then large ones are
    too large more often than not; and estimates that say nothing of the truth shrink to
    their mean, the slope being zero.

    It learns from commits, so what is never released must be tried: of *probes* it
    notes, by the octave of their estimates, how many would have fitted into the time
    that they had when they were first seen, whatever they then waited for.
    """

    given: F64  # (n,) logarithms of the estimates as given; empty: nothing is learned
    moments: F64  # (7,)
    residuals: F64  # (BINS,) shares of the past, of y less the regression at x
    fits: F64  # (OCTAVES,) share of the last probes that fitted
    doubts: F64  # (OCTAVES,) how many have been doubted
    asked_s: F64  # (n,) when first decided on; NaN before
    probes: Bool  # (n,)
    spans: F64  # (ceil(n / SPAN), 3) bounds of who waits: SOONEST, LONGEST, SHORTEST


def initial_calibration(given_s: F64, spread: float) -> Online:
    """Trust the estimates (n,) as given, with a normal error of sigma `spread`."""
    edges = BIN * (np.arange(BINS + 1) - BINS // 2)
    below = (edges >= 0).astype(np.float64)
    if spread > 0:
        below = np.array([0.5 * (1 + erf(z / spread / sqrt(2))) for z in edges])
        below[0], below[-1] = 0.0, 1.0
    moments, n = np.zeros(7), len(given_s)
    moments[SLOPE] = 1.0
    moments[VARIANCE] = moments[COVARIANCE] = PRIOR_VARIANCE
    return Online(
        given=np.log(np.maximum(given_s, LEAST_S)),
        moments=moments,
        residuals=np.diff(below),
        fits=np.full(OCTAVES, UNKNOWN),
        doubts=np.zeros(OCTAVES),
        asked_s=np.full(n, np.nan),
        probes=np.zeros(n, np.bool_),
        spans=np.outer(np.ones(-(-n // SPAN)), [-np.inf, 0.0, 0.0]),
    )


@njit(cache=True, inline="always")
def regressed_s(online: Online, i: int) -> float:
    """The calibrated estimate of transaction i that is no probe."""
    moments = online.moments
    return exp(moments[MEAN_Y] + moments[SLOPE] * (online.given[i] - moments[MEAN_X]))


@njit(cache=True, inline="always")
def typical_s(online: Online) -> float:
    """The typical service, or nothing before the first commit."""
    moments = online.moments
    return exp(moments[TYPICAL_Y]) if moments[COMMITS] > 0 else 0.0


@njit(cache=True, inline="always")
def corrected_s(online: Online, i: int) -> float:
    """The calibrated estimate of transaction i, of a probe at most the typical one."""
    took_s = regressed_s(online, i)
    return min(took_s, typical_s(online)) if online.probes[i] else took_s


@njit(cache=True)
def all_corrected_s(online: Online, ids: I64) -> F64:
    """The same of `ids` (b,)."""
    took_s = np.empty(len(ids))
    for at in range(len(ids)):
        took_s[at] = corrected_s(online, ids[at])
    return took_s


@borrowing
def octave(log_estimate: float) -> int:
    """Position in `fits` and `doubts` of an estimate of which this is the logarithm."""
    return min(
        max(int(np.floor(log_estimate / log(2.0))) + OCTAVES // 2, 0), OCTAVES - 1
    )


@borrowing
def doubt(online: Online, i: int, least_p: float, one_in: float) -> None:
    """Transaction i would be rejected on its estimate alone; it may become a probe.

    Every one does where such estimates are refuted, since a share `least_p` or more of
    the probes of its octave fitted; elsewhere the first of its octave, the next after
    one that fitted, and one in `one_in`. Of d that are doubted rightly, at most
    1 + d / `one_in` in each octave are therefore released for nothing.
    """
    at = octave(online.given[i])
    due = online.doubts[at] % one_in == 0
    online.doubts[at] += 1
    online.probes[i] = due or online.fits[at] >= least_p


@borrowing
def learn(
    online: Online, i: int, took_s: float, window: float, left_s: float = np.inf
) -> None:
    """Transaction i took `took_s`; what is older than `window` commits fades.

    A probe fitted if it had `left_s` or more when it was first seen.
    """
    log_estimates, moments, residuals = online.given, online.moments, online.residuals
    x, y = log_estimates[i], log(max(took_s, LEAST_S))
    if moments[COMMITS] == 0:
        moments[MEAN_X] = moments[MEAN_Y] = x
    dx, dy = x - moments[MEAN_X], y - moments[MEAN_Y]
    error = dy - moments[SLOPE] * dx
    rate = 1 / min(window, PRIOR + moments[COMMITS])
    moments[COMMITS] += 1
    moments[MEAN_X] += rate * dx
    moments[MEAN_Y] += rate * dy
    moments[VARIANCE] = (1 - rate) * (moments[VARIANCE] + rate * dx * dx)
    moments[COVARIANCE] = (1 - rate) * (moments[COVARIANCE] + rate * dx * dy)
    slope = moments[COVARIANCE] / max(moments[VARIANCE], LEAST_S)
    moments[SLOPE] = min(max(slope, 0.0), STEEPEST)
    at = int(np.ceil(error / BIN - 1e-9)) + BINS // 2 - 1  # bins hold their upper edge
    for each in range(BINS):
        residuals[each] *= 1 - rate
    residuals[min(max(at, 0), BINS - 1)] += rate
    moments[TYPICAL_Y] += (y - moments[TYPICAL_Y]) / min(window, moments[COMMITS])
    if online.probes[i]:
        fits, at = online.fits, octave(x)
        fits[at] += FITTED * ((took_s <= left_s) - fits[at])
        if took_s <= left_s:
            online.doubts[at] = 0  # one that fits calls for the next


@borrowing
def allowance(online: Online, p: float) -> float:
    """Return the p-quantile of the ratio of truth to calibrated estimate so far.

    Rounded up to the next edge of a bin.
    """
    share = 0.0
    for at in range(BINS):
        share += online.residuals[at]
        if share >= p:
            return exp(BIN * (at + 1 - BINS // 2))
    return exp(BIN * (BINS // 2))
