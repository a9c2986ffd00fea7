"""Service level agreements: which latency is owed, and what a later answer costs.

An objective is the latency that is owed, in seconds; a deadline is the arrival plus
the objective. A cost is 0 for an answer in time and 1 for one that is worth nothing.
"""

import numpy as np

from thesis_lib.checks import require
from thesis_lib.sequencer.trace import F64, I64, Trace


def constant_objective_s(
    unloaded_s: F64, factor: float = 2.0, quantile: float = 0.95
) -> float:
    """One objective for all: `factor` times a quantile of unloaded latencies (n,)."""
    require(factor > 0, f"factor={factor:g} must be positive")
    require(0 < quantile <= 1, f"quantile={quantile:g} must lie in (0, 1]")
    return factor * float(np.quantile(unloaded_s, quantile, method="higher"))


def type_objectives_s(trace: Trace, factor: float) -> F64:
    """(k,) an objective a type: `factor` times its median service time.

    Service is all that an unloaded transaction takes. A type that the trace does not
    hold has none: infinity.
    """
    require(factor > 0, f"factor={factor:g} must be positive")
    rows = [trace.kind == k for k in range(len(trace.kinds))]
    return np.array(
        [factor * np.median(trace.service_s[r]) if r.any() else np.inf for r in rows]
    )


def step_cost(latency_s: F64, slo_s: float | F64) -> F64:
    """(n,) cost under a firm agreement: whatever is late is worth nothing."""
    return (np.asarray(latency_s) > slo_s).astype(np.float64)


def linear_cost(latency_s: F64, slo_s: float | F64, worthless_s: float | F64) -> F64:
    """(n,) cost under a soft agreement: from 0 at the objective to 1 at `worthless_s`.

    Raises InvalidInput unless the latter is later; the limit is `step_cost`.
    """
    require(
        bool((np.asarray(worthless_s) > slo_s).all()),
        f"worthless_s={worthless_s} must be later than slo_s={slo_s}",
    )
    late_s = np.asarray(latency_s) - slo_s
    return np.clip(late_s / (np.asarray(worthless_s) - slo_s), 0.0, 1.0)


def tails_s(latency_s: F64, kind: I64, kinds: int, quantile: float = 0.99) -> F64:
    """(kinds,) latency that a share `quantile` of each class stays within.

    A promise for a class, not for a transaction: kept if the tail is no later than the
    objective. A dropped transaction has latency NaN and is never answered: infinity. So
    is the tail of a class without a transaction.
    """
    require(0 < quantile <= 1, f"quantile={quantile:g} must lie in (0, 1]")
    answered_s = np.where(np.isnan(latency_s), np.inf, latency_s)
    rows = [answered_s[kind == k] for k in range(kinds)]
    return np.array(
        [np.quantile(r, quantile, method="higher") if len(r) else np.inf for r in rows]
    )
