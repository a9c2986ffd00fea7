"""Service times for logs that no engine has run: a price for every declared record.

A generated log of TPC-C or YCSB says which records each transaction will read, update
and insert, and which locks it takes, but not how long it runs. Prices fitted to a
collected trace answer that well enough to compare policies on other mixes and another
skew; what they leave out of a real engine is noise of its own (`priced`).
"""

from dataclasses import astuple, dataclass

import numpy as np
from scipy.optimize import nnls

from thesis_lib.checks import require
from thesis_lib.sequencer.features import (
    RECORDS,
    columns,
    static_features,
    static_names,
)
from thesis_lib.sequencer.trace import F64, Trace
from thesis_lib.sequencer.workload import Log, mean_one_lognormal, poisson_arrivals

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
    found, _ = nnls(design, trace.service_s)
    return Prices(*(GRAIN_S * np.rint(found / GRAIN_S)).tolist())


def priced(log: Log, prices: Prices, sigma: float, seed: int) -> Trace:
    """The transactions of `log`, locking rows alone, arriving at 1/s.

    Each takes its price times a mean-one lognormal of `sigma`. `workload.at_rate` sets
    the load. Raises InvalidInput for a negative sigma, and where nothing has a price.
    """
    require(sigma >= 0, f"sigma={sigma:g} must not be negative")
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
