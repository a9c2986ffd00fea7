"""Metrics of a run: violations, goodput, tails, fairness, and intervals.

The headline is the strict count: a transaction violates its objective if it commits
late or is dropped. Policies are compared on the same transactions, arrivals and
estimates (common random numbers), seed by seed, so that differences have narrow
intervals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.common.errors import require
from thesis_lib.common.stats import (
    RANGE,
    Interval,
    holm,
    mean_interval,
    p_value,
    ratio_interval,
)
from thesis_lib.sequencer.core.trace import F64, I64, History, Trace
from thesis_lib.sequencer.optimum.bounds import fewest_violations

WARM_UP = 0.1  # share of the transactions that is run but not counted

WORTHLESS = 2.0  # objectives after which an answer costs as much as none


@dataclass(frozen=True, slots=True)
class Report:
    """Shares are of the counted arrivals; rates over the counted arrivals' time."""

    arrived: int
    violations: float  # (late + dropped) / arrived
    late: float
    dropped: float
    goodput_per_s: float  # commits on time
    throughput_per_s: float  # commits
    p50_s: float  # latency of what was admitted; NaN if nothing was
    p95_s: float
    p99_s: float
    violations_by_kind: dict[str, float]
    fairness: float  # Jain's index of the kinds' attainments, 1 is fair
    lenient: float  # late / admitted: a drop is no violation; NaN if none is admitted
    p999_s: float
    wasted: float  # share of the cores' busy time that went into late transactions
    cost: float  # mean: from 0 at the objective to 1 at WORTHLESS of it or for a drop


def numbers(report: Report) -> dict[str, float]:
    """A row of a frame: the fields, violations of a kind as `violations:<kind>`."""
    row = asdict(report)
    by_kind = row.pop("violations_by_kind")
    return row | {f"violations:{kind}": share for kind, share in by_kind.items()}


def counted(n: int) -> slice:
    """The rows that count: all after the warm-up."""
    return slice(round(WARM_UP * n), None)


def jain(shares: F64) -> float:
    """Jain's fairness index of (k,) shares: 1 if equal, 1/k if one has everything.

    Jain, Chiu and Hawe, DEC Research Report TR-301, 1984. All zero counts as equal.
    """
    shares = np.asarray(shares, np.float64)
    squares = float((shares**2).sum())
    if squares == 0:
        return 1.0
    return float(shares.sum()) ** 2 / (len(shares) * squares)


def summarize(trace: Trace, history: History) -> Report:
    """Return the report of one run, without its warm-up.

    Raises:
        InvalidInput: If there are fewer than 10 transactions.

    Example:
        >>> from thesis_lib.sequencer import policy, scenario, simulate, summarize
        >>> from thesis_lib.sequencer import SystemConfig
        >>> system = SystemConfig(cores=8, slo_s=0.0125)
        >>> fifo = policy("fifo", slo_s=0.0125, cores=8)
        >>> trace = scenario("A", n=100, seed=1)
        >>> history = simulate(trace, fifo, trace.service_s, system)
        >>> report = summarize(trace, history)
        >>> report.arrived, report.violations
        (90, 0.0)
    """
    n = len(trace)
    require(n >= 10, f"{n} transactions: a report needs at least 10")
    require(
        len(history.arrival_s) == n,
        f"the history has {len(history.arrival_s)} transactions and the trace {n}: "
        "expected the history of this trace",
    )
    rows = counted(n)
    arrival_s = history.arrival_s
    first_s, last_s = arrival_s[rows][0], arrival_s[-1]
    in_time = (history.finish_s > first_s) & (history.finish_s <= last_s)
    on_time = in_time & ~history.violated
    dropped, late = history.dropped[rows], history.late[rows]
    latency_s, violated = history.latency_s[rows], history.violated[rows]
    busy_s = (history.finish_s - history.start_s)[rows]
    admitted_s, kind = latency_s[~dropped], trace.kind[rows]
    tails = np.full(4, np.nan)
    if len(admitted_s):
        tails = np.quantile(admitted_s, [0.5, 0.95, 0.99, 0.999], method="higher")
    p50_s, p95_s, p99_s, p999_s = tails.tolist()
    by_kind = {
        name: float(violated[kind == k].mean())
        for k, name in enumerate(trace.kinds)
        if (kind == k).any()
    }
    span_s = (last_s - first_s) or np.nan  # of arrivals all at once nothing is known
    slo_s = (history.deadline_s - arrival_s)[rows]
    cost = linear_cost(latency_s, slo_s, WORTHLESS * slo_s)
    return Report(
        arrived=len(violated),
        violations=float(violated.mean()),
        late=float(late.mean()),
        dropped=float(dropped.mean()),
        goodput_per_s=float(on_time.sum() / span_s),
        throughput_per_s=float(in_time.sum() / span_s),
        p50_s=p50_s,
        p95_s=p95_s,
        p99_s=p99_s,
        violations_by_kind=by_kind,
        fairness=jain(1 - np.array(list(by_kind.values()))),
        lenient=float(late.sum() / len(admitted_s)) if len(admitted_s) else np.nan,
        p999_s=p999_s,
        wasted=float(busy_s[late].sum() / (np.nansum(busy_s) or np.nan))
        if len(admitted_s)
        else 0.0,
        cost=float(np.where(history.dropped[rows], 1.0, cost).mean()),
    )


def fewest_counted_violations(trace: Trace, *, cores: int, slo_s: float | F64) -> float:
    """The lower bound on the share of violations after the warm-up.

    The counted transactions alone, on an idle machine, are a relaxation too. `slo_s` is
    one objective or one for each transaction, (n,).
    """
    rows = np.arange(len(trace))[counted(len(trace))]
    tail = trace.take(rows)
    objective_s = np.broadcast_to(slo_s, len(trace))[rows]
    return fewest_violations(tail, cores=cores, slo_s=objective_s) / len(rows)


def _paired(values: F64, baseline: F64) -> tuple[F64, F64]:
    require(
        len(values) == len(baseline) > 0,
        f"{len(values)} seeds against {len(baseline)}: pairs are needed",
    )
    return np.asarray(values, np.float64), np.asarray(baseline, np.float64)


def difference_interval(values: F64, baseline: F64) -> Interval:
    """mean(values) - mean(baseline) over paired (seeds,)."""
    return mean_interval(np.subtract(*_paired(values, baseline)))


def reduction_interval(violations: F64, baseline: F64) -> Interval:
    """1 - mean(violations) / mean(baseline) over paired (seeds,).

    Raises InvalidInput for unequal numbers of seeds; 0 where the baseline has no
    violation.
    """
    violations, baseline = _paired(violations, baseline)
    if baseline.mean() == 0:
        return Interval(0.0, 0.0, 0.0, n=len(baseline), method=RANGE)
    left = ratio_interval(violations, baseline).within(0.0)
    return replace(left, value=1 - left.value, low=1 - left.high, high=1 - left.low)


def column(runs: pd.DataFrame, policy: str, load: float, name: str) -> F64:
    """(seeds,) one column of `replicate` for a policy and a load, by seed."""
    rows = runs.loc[(runs["policy"] == policy) & (runs["load"] == load)]
    require(len(rows) > 0, f"no run of policy {policy!r} at load {load:g}")
    return np.asarray(rows[name])[np.argsort(np.asarray(rows["seed"]))]


def mean(runs: pd.DataFrame, policy: str, load: float, of: str = "violations") -> float:
    """Mean over the seeds of a `column`."""
    return float(column(runs, policy, load, of).mean())


def share(
    runs: pd.DataFrame, policy: str, load: float, of: str = "violations"
) -> Interval:
    """Mean over the seeds of a `column` of shares, with its interval."""
    return mean_interval(column(runs, policy, load, of)).within(0.0, 1.0)


def reduction(
    runs: pd.DataFrame, policy: str, load: float, baseline: str = "fifo"
) -> Interval:
    """Return by which share `policy` reduces the violations of `baseline`.

    Args:
        runs: A frame of `replicate`, with columns load, seed, policy and violations.
        policy: Name of the policy.
        load: Load at which both are compared.
        baseline: Name of the policy to compare with.

    Example:
        >>> import pandas as pd
        >>> from thesis_lib.sequencer import reduction
        >>> policies, seeds = ["fifo", "fifo", "bid-price", "bid-price"], [0, 1, 0, 1]
        >>> shares = {"load": 1.1, "violations": [0.4, 0.6, 0.1, 0.15]}
        >>> runs = pd.DataFrame({"policy": policies, "seed": seeds} | shares)
        >>> reduction(runs, "bid-price", 1.1)
        Interval(value=0.75, low=0.75, high=0.75, n=2, method='range')
    """
    treated, compared = (
        column(runs, name, load, "violations") for name in (policy, baseline)
    )
    return reduction_interval(treated, compared)


def by_case(
    runs: pd.DataFrame, by: list[str], row: Callable[..., dict[str, Any]]
) -> pd.DataFrame:
    """A row for each case that the columns `by` tell apart: `row(its runs, *case)`."""
    cases: Any = runs.groupby(by, sort=False)
    rows = {case: row(at, *case) for case, at in cases}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)


ENDS = ("low", "high", "n", "interval")  # what is published with a value


def in_percent(name: str, share: Interval, ends: str = "") -> dict[str, float | str]:
    """A share and its interval in percent, as `name` and `<ends>…` for each of ENDS."""
    numbers = share.numbers(name, 100)
    return {name: numbers[name]} | {
        f"{ends}{end}": numbers[f"{name}_{end}"] for end in ENDS
    }


def told_apart(runs: pd.DataFrame, policy: str) -> pd.DataFrame:
    """`policy` beside each other one at each load, in points of violations.

    A row for each: mean difference over the seeds with its interval, and the `side` on
    which it lies: "fewer" violations, "more", or "untold". That any row is on a wrong
    side has a chance of 5 % at most (`holm`), so an interval may leave zero out and be
    untold.
    """

    def row(other: str, load: float) -> dict[str, Any]:
        of = (column(runs, name, load, "violations") for name in (policy, other))
        difference = np.subtract(*_paired(*of))
        points = in_percent("points", mean_interval(difference))
        return {"policy": other, "load": load, **points, "p": p_value(difference)}

    others = [name for name in runs["policy"].unique() if name != policy]
    require(len(others) > 0, f"runs hold {policy!r} alone: expected two policies")
    cases = product(others, np.unique(runs["load"]))
    table = pd.DataFrame([row(*at) for at in cases])
    sides = np.where(table["points"] < 0, "fewer", "more")
    return table.assign(side=np.where(holm(table["p"]), sides, "untold"))


MEANS = (
    "lenient", "late", "dropped", "goodput_per_s", "throughput_per_s", "p999_s",
    "wasted",
)  # fmt: skip


def outcome(
    runs: pd.DataFrame, policy: str, load: float, means: Sequence[str] = MEANS
) -> dict[str, Any]:
    """Compare a policy with FIFO: shares and rates, intervals (low, high).

    `means` are columns of `replicate` that are averaged over the seeds.
    """
    violations = share(runs, policy, load)
    fewer = reduction(runs, policy, load)
    return {
        "violations": violations.value,
        "violations_ci": (violations.low, violations.high),
        **{name: mean(runs, policy, load, name) for name in means},
        "fifo_violations": mean(runs, "fifo", load),
        "reduction": fewer.value,
        "reduction_ci": (fewer.low, fewer.high),
    }


def table(
    runs: pd.DataFrame, column: str = "violations", factor: float = 100.0
) -> pd.DataFrame:
    """Means of one column over the seeds: a row a policy, a column a load."""
    return factor * runs.pivot_table(
        index="policy", columns="load", values=column, aggfunc="mean", sort=False
    )


def spans(runs: Mapping[str, pd.DataFrame], policy: str) -> dict[str, float]:
    """The least and the most reduction of a policy over the loads, in percent.

    `runs` of `replicate` by scenario; named `<policy>_least_<scenario>` and so on.
    """
    reductions = {
        place: [reduction(table, policy, load).value for load in table["load"].unique()]
        for place, table in runs.items()
    }
    return {
        f"{policy}_{end}_{place}": 100 * find(each)
        for place, each in reductions.items()
        for end, find in (("least", min), ("most", max))
    }


RATES = {"throughput_per_s": "all", "goodput_per_s": "on time"}  # of the commits


def rates(
    runs: Mapping[str, pd.DataFrame], saturation_per_s: Mapping[str, float], load: float
) -> pd.DataFrame:
    """Commits at one load in percent of FIFO's saturation: all, and those on time.

    `runs` of `replicate` and rates by scenario. Means over the seeds: a row a policy,
    two columns a scenario.
    """
    columns = {
        (place, label): table(runs_there, name)[load] / saturation_per_s[place]
        for place, runs_there in runs.items()
        for name, label in RATES.items()
    }
    return pd.DataFrame(columns)


HEADLINE = ("drop", "reorder", "hybrid", "hybrid-corrected", "bid-price")


def headline(runs: pd.DataFrame, load: float) -> dict[str, float | str]:
    """The published numbers at one load, in percent, by their published names."""
    named = {policy: policy.replace("-", "_") for policy in HEADLINE}
    named |= {"fifo": "fifo"}
    commits = {name: column(runs, name, load, "throughput_per_s") for name in named}
    numbers = share(runs, "bound", load).numbers("lower_bound_percent", 100)
    for policy, name in named.items():
        numbers |= share(runs, policy, load).numbers(f"{name}_violations_percent", 100)
    for policy in HEADLINE:
        numbers |= reduction(runs, policy, load).numbers(
            f"reduction_{named[policy]}", 100
        )
    for policy in ("hybrid", "bid-price"):
        of_fifo = ratio_interval(commits[policy], commits["fifo"])
        numbers |= of_fifo.numbers(f"throughput_{named[policy]}_percent", 100)
    return numbers


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
