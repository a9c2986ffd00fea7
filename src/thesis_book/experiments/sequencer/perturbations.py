"""Errors of an estimate, each as a seeded change of a policy's input.

A misestimation turns transactions as they arrive and what is estimated of them into the
same again. It leaves the truth alone, but for two things that no estimate can do by
itself: the truth may drift away from it, and traffic may move to one hot key. Every
policy is then judged on the same changed truth, FIFO included.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.trace import F64, I64, Bool, KeySets, Trace
from thesis_lib.sequencer.workload.arrivals import on_grid
from thesis_lib.sequencer.workload.scenarios import mean_one_lognormal

WANDER_DEPTH, WANDER_PERIOD_S = 0.3, 0.2  # of the speed that stale estimates lag
STALE_S = 0.1  # how long they lag it
BIAS, DRIFT, HOT, UNDERRATED = 0.3, 2.0, 0.3, 1 / 3  # see MISESTIMATIONS
DECADES = 1.5, 6.0  # of a factor of `anything`, either way: as likely few as many


@dataclass(frozen=True, slots=True)
class View:
    """Transactions as they are, and the estimates that a policy sees of them."""

    trace: Trace
    estimated_s: F64  # (n,)


Misestimation = Callable[[View, np.random.Generator], View]


def unchanged(seen: View, rng: np.random.Generator) -> View:
    """The estimates as they are: what every misestimation is compared with."""
    return seen


def scattered(seen: View, rng: np.random.Generator, sigma: float) -> View:
    """The truth times a mean-one lognormal of `sigma` in the place of the estimates."""
    service_s = seen.trace.service_s
    factors = mean_one_lognormal(sigma, len(service_s), rng)
    return replace(seen, estimated_s=service_s * factors)


def biased(seen: View, rng: np.random.Generator, factor: float) -> View:
    """Every estimate times `factor`."""
    return replace(seen, estimated_s=factor * seen.estimated_s)


def swapped(seen: View, rng: np.random.Generator, share: float) -> View:
    """A `share` of the transactions exchange estimates, in pairs of different types.

    The estimates stay the same as a whole. Raises InvalidInput where the types do not
    offer so many pairs.
    """
    kind = seen.trace.kind
    n = len(kind)
    mixed = rng.permutation(n)
    mixed = mixed[np.argsort(kind[mixed], kind="stable")]
    one, other = mixed[: n // 2], mixed[n - n // 2 :]
    differ = np.flatnonzero(kind[one] != kind[other])
    pairs = round(share * n / 2)
    require(
        pairs <= len(differ),
        f"share={share:g} asks for {pairs} pairs of different types, and only "
        f"{len(differ)} were found: one type is too frequent; ask for less",
    )
    chosen = rng.permutation(differ)[:pairs]
    ends = np.concatenate([one[chosen], other[chosen]])
    estimated_s = seen.estimated_s.copy()
    estimated_s[ends] = seen.estimated_s[np.roll(ends, len(chosen))]
    return replace(seen, estimated_s=estimated_s)


def slowed(trace: Trace, factor: F64) -> Trace:
    """The same transactions, each `factor` (n,) times as long, units included."""
    return replace(
        trace,
        service_s=trace.service_s * factor,
        units_s=trace.units_s * factor[:, None],
    )


def slowness(at_s: F64, depth: float, period_s: float) -> F64:
    """Return the slowdown at `at_s` (n,): a slow wave of mean one."""
    return 1 + depth * on_grid(np.sin(2 * np.pi / period_s * at_s))


def stale(
    seen: View, rng: np.random.Generator, lag_s: float, depth: float = WANDER_DEPTH,
    period_s: float = WANDER_PERIOD_S,
) -> View:  # fmt: skip
    """The truth speeds up and slows down, and estimates know how fast it was.

    At every arrival they are right, but for their own error, about the machine of
    `lag_s` before.
    """
    at_s = seen.trace.arrival_s
    return View(
        trace=slowed(seen.trace, slowness(at_s, depth, period_s)),
        estimated_s=seen.estimated_s * slowness(at_s - lag_s, depth, period_s),
    )


def drifting(seen: View, rng: np.random.Generator, to: float) -> View:
    """The truth takes gradually longer, at the end `to` times; estimates do not."""
    at_s = seen.trace.arrival_s
    factor = 1 + (to - 1) * (at_s - at_s[0]) / (at_s[-1] - at_s[0])
    return replace(seen, trace=slowed(seen.trace, factor))


def hottest(keys: KeySets) -> int:
    """The key that most transactions lock exclusively, the lowest among equals."""
    return int(np.bincount(keys.keys[keys.exclusive]).argmax())


def locking(keys: KeySets, key: int) -> Bool:
    """(n,) which transactions lock `key`, in either mode."""
    mask = np.zeros(len(keys), bool)
    mask[keys.owner[keys.keys == key]] = True
    return mask


def crowded(seen: View, rng: np.random.Generator, share: float) -> View:
    """Suddenly a `share` of the traffic moves to the hottest key.

    In the second half of the run each transaction takes, with the probability `share`,
    the key set of a random one of its own type that locks the hottest key. What is
    estimated, its service alone, stays right.
    """
    trace = seen.trace
    n = len(trace)
    moves = (np.arange(n) >= round(n / 2)) & (rng.random(n) < share)
    hot = locking(trace.keys, hottest(trace.keys))
    donor: I64 = np.arange(n)
    for kind in range(len(trace.kinds)):
        donors = np.flatnonzero(hot & (trace.kind == kind))
        guests = np.flatnonzero(moves & (trace.kind == kind))
        if len(donors):
            donor[guests] = rng.choice(donors, len(guests))
    return replace(seen, trace=replace(trace, keys=trace.keys.take(donor)))


def underestimated(seen: View, rng: np.random.Generator) -> View:
    """The estimates of exactly what locks the hottest key times UNDERRATED."""
    hot = locking(seen.trace.keys, hottest(seen.trace.keys))
    return replace(seen, estimated_s=np.where(hot, UNDERRATED, 1.0) * seen.estimated_s)


def crowded_and_underrated(seen: View, rng: np.random.Generator, share: float) -> View:
    """Both at once: what moved to the hottest key is underestimated there."""
    return underestimated(crowded(seen, rng, share), rng)


def anything(seen: View, rng: np.random.Generator, after: int = 0) -> View:
    """Return estimates with a random kind of error, from row `after` on.

    The error multiplies all estimates, those of some types, or those of some
    transactions. Or an estimate becomes a constant, that of another transaction, the
    truth with noise of several decades, or a power of the truth, also a negative one.
    """
    said_s, n = seen.estimated_s, len(seen.trace)
    typical_s, types = float(np.median(said_s)), len(seen.trace.kinds)

    def factor() -> float:
        most = rng.choice(DECADES)
        return 10 ** rng.uniform(-most, most)

    match int(rng.integers(7)):
        case 0:
            wrong_s = factor() * said_s
        case 1:
            factors = [factor() if rng.random() < 0.5 else 1.0 for _ in range(types)]
            wrong_s = np.array(factors)[seen.trace.kind] * said_s
        case 2:
            share = 10 ** rng.uniform(-2.5, 0)
            wrong_s = np.where(rng.random(n) < share, factor(), 1.0) * said_s
        case 3:
            wrong_s = np.full(n, factor() * typical_s)
        case 4:
            wrong_s = rng.permutation(said_s)
        case 5:
            wrong_s = said_s * rng.lognormal(0, rng.uniform(0, max(DECADES)), n)
        case _:
            wrong_s = typical_s * (said_s / typical_s) ** rng.uniform(-2, 2)
    turned = np.arange(n) >= after
    return replace(seen, estimated_s=np.where(turned, wrong_s, said_s))


MISESTIMATIONS: dict[str, Misestimation] = {
    "none": unchanged,
    "σ = 0": partial(scattered, sigma=0.0),
    "σ = 0.1": partial(scattered, sigma=0.1),
    "σ = 0.5": partial(scattered, sigma=0.5),
    "σ = 1": partial(scattered, sigma=1.0),
    "30 % too low": partial(biased, factor=1 - BIAS),
    "30 % too high": partial(biased, factor=1 + BIAS),
    "10 % of another type": partial(swapped, share=0.1),
    "50 % of another type": partial(swapped, share=0.5),
    "100 ms stale": partial(stale, lag_s=STALE_S),
    "truth drifts to 2x": partial(drifting, to=DRIFT),
    "30 % move to a hot key": partial(crowded, share=HOT),
    "hot key a third": underestimated,
    "both": partial(crowded_and_underrated, share=HOT),
}
