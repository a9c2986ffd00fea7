"""Arrival processes of an open loop: Poisson, modulated and stepped.

Every function is seeded: the same arguments give the same arrivals, on every machine
and in every process.
"""

from dataclasses import replace

import numpy as np

from thesis_lib.common.errors import require, require_count
from thesis_lib.sequencer.core.trace import F64, Trace


def on_grid(draws: F64) -> F64:
    """Draws rounded to multiples of 2^-24, about 6e-8.

    Mathematical libraries differ in the last bit of a logarithm or an exponential; what
    is rounded here does not, so that a seed gives the same workload on every machine.
    Sums of fewer than 2^29 such draws of mean one are exact in any order.
    """
    return np.rint(draws * 2.0**24) / 2.0**24


def poisson_arrivals(rate_per_s: float, n: int, rng: np.random.Generator) -> F64:
    """(n,) arrival times of an open loop: a Poisson process from time 0.

    Two calls with equal seeds and other rates give the same process, stretched, so
    loads can be compared with common random numbers.
    """
    require(
        0 < rate_per_s < np.inf,
        f"rate_per_s={rate_per_s:g} must be positive and finite",
    )
    require(n >= 1, f"n={n} transactions: expected at least 1")
    return np.cumsum(on_grid(rng.exponential(1.0, n))) / rate_per_s


def _time_change(work: F64, starts_s: F64, rates_per_s: F64) -> F64:
    """(n,) times at which a rate, integrated over time, reaches `work` (n,), rising.

    The rate is `rates_per_s[k]` from `starts_s[k]` on, first from time 0, and may be
    zero but in the last piece. Unit Poisson arrivals become those of the changing rate
    (Lewis and Shedler, Naval Research Logistics 26(3), 1979). One operation at a time,
    because a fused one would round differently on another processor.
    """
    done = np.concatenate([[0.0], np.cumsum(np.diff(starts_s) * rates_per_s[:-1])])
    piece = np.searchsorted(done, work, side="right") - 1
    return starts_s[piece] + (work - done[piece]) / rates_per_s[piece]


def mmpp2_arrivals(
    rates_per_s: tuple[float, float], sojourns_s: tuple[float, float], n: int,
    rng: np.random.Generator,
) -> F64:  # fmt: skip
    """(n,) arrival times of a Poisson process that a two-state Markov chain modulates.

    In state k the rate is `rates_per_s[k]` for an exponential time of mean
    `sojourns_s[k]`; the chain starts in equilibrium, so the process is stationary. Of
    the rates one may be zero: bursts and silence. Two calls with equal seeds draw the
    same states, and the same arrivals measured in work, whatever the rates.
    Heffes and Lucantoni, IEEE JSAC 4(6), 1986, have its mean and dispersion.
    Raises InvalidInput for rates and times that describe no such process.
    """
    rates, means_s = np.array(rates_per_s, float), np.array(sojourns_s, float)
    require(
        rates.shape == (2,)
        and bool(((rates >= 0) & (rates < np.inf)).all() and rates.any()),
        f"rates_per_s={rates_per_s}: expected two, neither negative, not both zero",
    )
    require(
        means_s.shape == (2,) and bool(((means_s > 0) & (means_s < np.inf)).all()),
        f"sojourns_s={sojourns_s}: expected two positive and finite mean times",
    )
    require(n >= 1, f"n={n} transactions: expected at least 1")
    work = np.cumsum(on_grid(rng.exponential(1.0, n)))
    first = int(rng.random() * means_s.sum() >= means_s[0])
    order = [first, 1 - first]
    per_cycle = float((rates * means_s).sum())  # mean work of one stay in each state
    stays_s, ends_s, reached = np.empty(0), np.zeros(1), 0.0
    while reached <= work[-1]:
        cycles = 16 + int((work[-1] - reached) / per_cycle)
        drawn_s = on_grid(rng.exponential(1.0, (cycles, 2))) * means_s[order]
        stays_s = np.concatenate([stays_s, drawn_s.ravel()])
        ends_s = np.concatenate([[0.0], np.cumsum(stays_s)])
        reached = np.cumsum(np.diff(ends_s) * np.resize(rates[order], len(stays_s)))[-1]
    return _time_change(work, ends_s, np.resize(rates[order], len(ends_s)))


def flash_crowd_arrivals(
    rate_per_s: float, crowd_per_s: float, crowd_s: tuple[float, float], n: int,
    rng: np.random.Generator,
) -> F64:  # fmt: skip
    """(n,) arrival times of a Poisson process whose rate steps up and back.

    The rate is `crowd_per_s` from `crowd_s[0]` to `crowd_s[1]` and `rate_per_s` before
    and after. Before the crowd the arrivals are those of `poisson_arrivals` with the
    same seed; equal seeds give the same arrivals measured in work, whatever the rates.
    Raises InvalidInput for rates that are not positive and for a crowd that ends
    before it begins.
    """
    for name, rate in (("rate_per_s", rate_per_s), ("crowd_per_s", crowd_per_s)):
        require(0 < rate < np.inf, f"{name}={rate:g} must be positive and finite")
    begin_s, end_s = crowd_s
    require(
        0 <= begin_s <= end_s < np.inf,
        f"crowd_s={crowd_s}: expected a beginning and an end, in seconds from 0",
    )
    require(n >= 1, f"n={n} transactions: expected at least 1")
    work = np.cumsum(on_grid(rng.exponential(1.0, n)))
    starts_s = np.array([0.0, begin_s, end_s])
    return _time_change(work, starts_s, np.array([rate_per_s, crowd_per_s, rate_per_s]))


def at_rate(trace: Trace, rate_per_s: float, seed: int) -> Trace:
    """The same transactions in the same order as a Poisson process of this rate."""
    require_count("seed", seed, 0)
    rng = np.random.default_rng(seed)
    return replace(trace, arrival_s=poisson_arrivals(rate_per_s, len(trace), rng))
