"""Service times for logs that no engine has run: a price for every declared record.

A generated log of TPC-C or YCSB says which records each transaction will read, update
and insert, and which locks it takes, but not how long it runs. Prices fitted to a
collected trace answer that well enough to compare policies on other mixes and another
skew; what they leave out of a real engine is noise of its own (`priced`).
"""

from dataclasses import astuple, dataclass, replace

import numpy as np
from scipy.optimize import nnls

from thesis_lib.common.errors import choice, require, require_count
from thesis_lib.sequencer.core.trace import F64, KeySets, Trace
from thesis_lib.sequencer.workload.arrivals import on_grid, poisson_arrivals
from thesis_lib.sequencer.workload.features import (
    RECORDS,
    columns,
    static_features,
    static_names,
)
from thesis_lib.sequencer.workload.transactions import DISTRICTS, ORDER_LINES, Log


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
    return on_grid(rng.lognormal(-(sigma**2) / 2, sigma, n))


def scenario(name: str, n: int, seed: int, warehouses: int | None = None) -> Trace:
    """Return n transactions of reference scenario A, B or C, arriving at 1/s.

    Payment takes 0.5 ms, New-Order 0.4 ms + 0.12 ms for each of its 5 to 15 lines, both
    times a mean-one lognormal of sigma 0.4. They are equally frequent and uniform over
    warehouses and districts. Payment locks its warehouse and district exclusively;
    New-Order shares the warehouse. A and B differ in machine and SLO (`SCENARIOS`).

    Args:
        name: "A", "B" or "C".
        n: Number of transactions.
        seed: Seed of the workload.
        warehouses: Number of warehouses; None for that of the scenario.

    Example:
        >>> from thesis_lib.sequencer import scenario
        >>> trace = scenario("A", n=1_000, seed=1)
        >>> trace.kinds, round(1e3 * float(trace.service_s.mean()), 2)  # milliseconds
        (('payment', 'new_order'), 1.06)
    """
    spec = SCENARIOS[choice("scenario", name, SCENARIOS)]
    warehouses = spec.warehouses if warehouses is None else warehouses
    require_count("warehouses", warehouses)
    require_count("seed", seed, 0)
    rng = np.random.default_rng(seed)
    arrival_s = poisson_arrivals(1.0, n, rng)
    kind = rng.integers(0, 2, n)
    payment = kind == 0
    lines = np.where(payment, 0, rng.integers(*ORDER_LINES, n, endpoint=True))
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
        meta={"source": "synthetic", "scenario": name, "seed": seed}
        | {"warehouses": warehouses},
    )


def from_measured(trace: Trace, n: int, seed: int) -> Trace:
    """n transactions of a collected trace as an open loop, arriving at 1/s.

    Service times, key sets and features keep their collected order, from a seeded
    starting point and around the end, so a trace shorter than n repeats itself.
    Only the arrivals are new; `at_rate` sets the load. Columns that belong to the
    collected run (waiting times) are left behind.
    """
    require(len(trace) >= 1, "the collected trace is empty: collect one first")
    require_count("seed", seed, 0)
    rng = np.random.default_rng(seed)
    arrival_s = poisson_arrivals(1.0, n, rng)
    rows = (rng.integers(len(trace)) + np.arange(n)) % len(trace)
    meta = {**trace.meta, "resampled": {"n": n, "seed": seed}}
    return replace(trace.take(rows, arrival_s), measured={}, meta=meta)


GRAIN_S = 1e-7  # to which prices are rounded, so that they are the same everywhere


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of a core, for a transaction and for each record that it declares."""

    transaction_s: float
    read_s: float
    update_s: float
    insert_s: float

    def service_s(self, records: F64) -> F64:
        """(n,) mean service time for (n, 3) records read, updated and inserted."""
        each = np.array(astuple(self))
        return each[0] + records @ each[1:]


def fit_prices(trace: Trace) -> Prices:
    """Non-negative least squares of the service times of a collected trace.

    Raises InvalidInput for an empty trace and for one without declared records.
    """
    require(len(trace) > 0, "the collected trace is empty: collect one first")
    records = trace.features[:, columns(trace, RECORDS)]
    design = np.column_stack([np.ones(len(trace)), records])
    prices, _ = nnls(design, trace.service_s)
    return Prices(*(GRAIN_S * np.rint(prices / GRAIN_S)).tolist())


def priced(log: Log, prices: Prices, sigma: float, seed: int) -> Trace:
    """The transactions of `log`, locking rows alone, arriving at 1/s.

    Each takes its price times a mean-one lognormal of `sigma`. `arrivals.at_rate` sets
    the load. Raises InvalidInput for a negative sigma, and where nothing has a price.
    """
    require(sigma >= 0, f"sigma={sigma:g} must not be negative")
    require_count("seed", seed, 0)
    rng = np.random.default_rng(seed)
    features, names = static_features(log), static_names(log)
    records = features[:, [names.index(record) for record in RECORDS]]
    mean_s = prices.service_s(records)
    require(
        bool((mean_s > 0).all()), f"{prices} leave some transaction without a price"
    )
    arrival_s = poisson_arrivals(1.0, len(log), rng)
    service_s = mean_s * mean_one_lognormal(sigma, len(log), rng)
    return Trace(
        kinds=log.kinds,
        kind=log.kind,
        arrival_s=arrival_s,
        service_s=service_s,
        features=features,
        feature_names=names,
        keys=log.without_files().keys,
        units_s=service_s[:, None],
        unit_names=("execute",),
        meta={"source": "synthetic", "seed": seed, "prices_s": astuple(prices)},
    )
