"""What the clients ask for: arrivals, reference scenarios, TPC-C.

Every function is seeded: the same arguments give the same transactions, on every
machine and in every process.
"""

from dataclasses import dataclass, replace

import numpy as np

from thesis_lib.checks import choice, require, vector
from thesis_lib.sequencer.trace import F64, KeySets, Trace

DISTRICTS = 10  # to a warehouse, TPC-C clause 1.2.1


# --- Arrivals ----------------------------------------------------------------


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
    return np.cumsum(rng.exponential(1.0, n)) / rate_per_s


def with_arrivals(trace: Trace, arrival_s: F64) -> Trace:
    """The same transactions in the same order, arriving at `arrival_s` (n,)."""
    return replace(
        trace, arrival_s=vector("arrival_s", arrival_s, np.float64, len(trace), 0.0)
    )


def at_rate(trace: Trace, rate_per_s: float, seed: int) -> Trace:
    """The same transactions in the same order as a Poisson process of this rate."""
    rng = np.random.default_rng(seed)
    return with_arrivals(trace, poisson_arrivals(rate_per_s, len(trace), rng))


# --- Reference scenarios -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scenario:
    """A machine and an objective for the Payment and New-Order mix."""

    warehouses: int
    cores: int
    slo_s: float  # one latency objective for every transaction


SCENARIOS = {
    "A": Scenario(warehouses=10, cores=8, slo_s=12.5e-3),
    "B": Scenario(warehouses=10, cores=8, slo_s=5e-3),
    "C": Scenario(warehouses=2, cores=16, slo_s=12.5e-3),
}
PAYMENT_S, NEW_ORDER_S, ORDER_LINE_S = 0.5e-3, 0.4e-3, 0.12e-3
SERVICE_SIGMA = 0.4


def mean_one_lognormal(sigma: float, n: int, rng: np.random.Generator) -> F64:
    """(n,) lognormal factors of mean 1, so that they scatter without a bias."""
    return rng.lognormal(-(sigma**2) / 2, sigma, n)


def scenario(name: str, n: int, seed: int, warehouses: int | None = None) -> Trace:
    """n transactions of reference scenario A, B or C, arriving at 1/s.

    Payment takes 0.5 ms and New-Order 0.4 ms + 0.12 ms for each of its 5 to 15 order
    lines, both times a mean-one lognormal of sigma 0.4; they are equally frequent
    and uniform over warehouses and districts. Payment locks its warehouse and its
    district exclusively; New-Order shares the warehouse. A and B differ only in
    machine and objective (`SCENARIOS`). `at_rate` sets the load.
    """
    spec = SCENARIOS[choice("scenario", name, SCENARIOS)]
    warehouses = spec.warehouses if warehouses is None else warehouses
    require(warehouses >= 1, f"warehouses={warehouses}: expected at least 1")
    rng = np.random.default_rng(seed)
    arrival_s = poisson_arrivals(1.0, n, rng)
    kind = rng.integers(0, 2, n)
    payment = kind == 0
    lines = np.where(payment, 0, rng.integers(5, 16, n))
    warehouse = rng.integers(0, warehouses, n)
    district = warehouses + DISTRICTS * warehouse + rng.integers(0, DISTRICTS, n)
    base_s = np.where(payment, PAYMENT_S, NEW_ORDER_S + ORDER_LINE_S * lines)
    service_s = base_s * mean_one_lognormal(SERVICE_SIGMA, n, rng)
    return Trace(
        kinds=("payment", "new_order"),
        kind=kind,
        arrival_s=arrival_s,
        service_s=service_s,
        features=np.column_stack([payment, ~payment, lines]).astype(np.float64),
        feature_names=("is_payment", "is_new_order", "order_lines"),
        keys=KeySets(
            offsets=np.arange(n + 1) * 2,
            keys=np.column_stack([warehouse, district]).ravel(),
            exclusive=np.column_stack([payment, np.ones(n, bool)]).ravel(),
        ),
        units_s=service_s[:, None],
        unit_names=("execute",),
        meta={
            "source": "synthetic",
            "scenario": name,
            "seed": seed,
            "warehouses": warehouses,
        },
    )


def from_measured(trace: Trace, n: int, seed: int) -> Trace:
    """n transactions of a collected trace as an open loop, arriving at 1/s.

    Service times, key sets and features keep their collected order, from a seeded
    starting point and around the end, so a trace shorter than n repeats itself.
    Only the arrivals are new; `at_rate` sets the load. Columns that belong to the
    collected run (waiting times) are left behind.
    """
    require(len(trace) >= 1, "the collected trace is empty: collect one first")
    rng = np.random.default_rng(seed)
    arrival_s = poisson_arrivals(1.0, n, rng)
    rows = (rng.integers(len(trace)) + np.arange(n)) % len(trace)
    return Trace(
        kinds=trace.kinds,
        kind=trace.kind[rows],
        arrival_s=arrival_s,
        service_s=trace.service_s[rows],
        features=trace.features[rows],
        feature_names=trace.feature_names,
        keys=trace.keys.take(rows),
        units_s=trace.units_s[rows],
        unit_names=trace.unit_names,
        meta={**trace.meta, "resampled": {"n": n, "seed": seed}},
    )
