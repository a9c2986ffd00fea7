"""What a run amounts to: violations, goodput, tails, fairness, and intervals.

The headline is the strict count: a transaction violates its objective if it commits
late or is dropped. Policies are compared on the same transactions, arrivals and
estimates (common random numbers), seed by seed, so that differences have narrow
intervals.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from thesis_lib.checks import InvalidInput, choice, require
from thesis_lib.sequencer.bounds import fewest_violations
from thesis_lib.sequencer.estimator import (
    ESTIMATORS,
    LEARNED,
    cut_tail,
    predict_all,
)
from thesis_lib.sequencer.estimator import estimator as named_estimator
from thesis_lib.sequencer.kernel import NO_DELAYS, Delays
from thesis_lib.sequencer.policies import AS_DESCRIBED, MENDED, Defects, Policy
from thesis_lib.sequencer.policies import policy as named_policy
from thesis_lib.sequencer.simulate import replay, simulate
from thesis_lib.sequencer.sla import linear_cost, type_objectives_s
from thesis_lib.sequencer.trace import F64, I64, Bool, History, Trace
from thesis_lib.sequencer.workload import (
    SCENARIOS,
    from_measured,
    mean_one_lognormal,
    poisson_arrivals,
    scenario,
    with_arrivals,
)
from thesis_lib.stats import Interval, bootstrap, mean_interval

WARM_UP = 0.1  # share of the transactions that is run but not counted
BACKLOG = 0.01  # share of a sustained run that its last queue takes to empty
WORTHLESS = 2.0  # objectives after which an answer costs as much as none
PROBE_SEED = 999_998  # of the trace that objectives of types are taken from
PROBES_OF_TYPES = 100  # short traces in which a rare type is looked for
NOISE = 0.2  # sigma of the logarithm of an estimate over the truth
PROBES, PROBE_TRANSACTIONS = 16, 20_000  # that a saturation rate is the mean of
SATURATION_SEED = 999_999
FITTED = 0.5  # share of a replayed trace, its first, that an estimator is fitted on
LEAST_FITTED = 100  # transactions there


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
    cost: (
        float  # mean, linear from 0 at the objective to 1 at WORTHLESS of it or a drop
    )


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


def summarise(trace: Trace, history: History) -> Report:
    """The report of one run. Raises InvalidInput for fewer than 10 transactions."""
    n = len(trace)
    require(n >= 10, f"{n} transactions: a report needs at least 10")
    rows = counted(n)
    arrival_s = history.arrival_s
    first_s, last_s = arrival_s[rows][0], arrival_s[-1]
    in_time = (history.finish_s > first_s) & (history.finish_s <= last_s)
    on_time = in_time & ~history.violated
    admitted_s = history.latency_s[rows][~history.dropped[rows]]
    tails = np.full(4, np.nan)
    if len(admitted_s):
        tails = np.quantile(admitted_s, [0.5, 0.95, 0.99, 0.999], method="higher")
    late, busy_s = history.late[rows], (history.finish_s - history.start_s)[rows]
    violated, kind = history.violated[rows], trace.kind[rows]
    by_kind = {
        name: float(violated[kind == k].mean())
        for k, name in enumerate(trace.kinds)
        if (kind == k).any()
    }
    span_s = last_s - first_s
    slo_s = (history.deadline_s - arrival_s)[rows]
    cost = linear_cost(history.latency_s[rows], slo_s, WORTHLESS * slo_s)
    return Report(
        arrived=len(violated),
        violations=float(violated.mean()),
        late=float(late.mean()),
        dropped=float(history.dropped[rows].mean()),
        goodput_per_s=float(on_time.sum() / span_s),
        throughput_per_s=float(in_time.sum() / span_s),
        p50_s=float(tails[0]),
        p95_s=float(tails[1]),
        p99_s=float(tails[2]),
        violations_by_kind=by_kind,
        fairness=jain(1 - np.array(list(by_kind.values()))),
        lenient=float(late.sum() / len(admitted_s)) if len(admitted_s) else np.nan,
        p999_s=float(tails[3]),
        wasted=float(busy_s[late].sum() / np.nansum(busy_s))
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


def saturation_rate(trace: Trace, *, cores: int, precision: float = 1e-3) -> float:
    """The highest rate, per second, that FIFO with its locks sustains.

    The arrivals of `trace` are stretched. A rate is sustained if the queue built up
    by the last arrival takes less than 1 % of the run to empty; the largest such rate
    is found by bisection to a relative `precision`.
    """
    require(len(trace) >= 100, f"{len(trace)} transactions: expected at least 100")
    require(0 < precision < 1, f"precision={precision:g} must lie in (0, 1)")
    unit_s = trace.arrival_s / trace.arrival_s[-1] * len(trace)  # one a second
    log = np.arange(len(trace))

    def sustained(rate_per_s: float) -> bool:
        arrival_s = unit_s / rate_per_s
        history = replay(trace, log, arrival_s, cores=cores, slo_s=1.0)
        return float(history.finish_s.max()) < (1 + BACKLOG) * arrival_s[-1]

    low, high = 0.0, 2 * cores / float(trace.service_s.mean())
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (middle, high) if sustained(middle) else (low, middle)
    return low


def saturation(
    make_trace: Callable[[int, int], Trace], *, cores: int, probes: int = PROBES
) -> Interval:
    """The saturation rate of a workload, per second, and its 95 % interval.

    `make_trace(n, seed)` draws transactions and arrivals. One probe of finite length
    differs from the next by its draws, so the rate is the mean `saturation_rate` of
    independent probes of PROBE_TRANSACTIONS each. Load 1 is this mean.
    """
    require(probes >= 1, f"probes={probes}: expected at least 1")
    seeds = np.random.SeedSequence(SATURATION_SEED).generate_state(probes).tolist()
    rates_per_s = [
        saturation_rate(make_trace(PROBE_TRANSACTIONS, seed), cores=cores)
        for seed in seeds
    ]
    return mean_interval(np.array(rates_per_s))


@cache
def scenario_saturation(name: str, warehouses: int | None, cores: int) -> Interval:
    """`saturation` of a reference scenario on so many cores."""
    return saturation(lambda n, seed: scenario(name, n, seed, warehouses), cores=cores)


Estimate = Callable[[Trace, int], F64]  # (trace, seed) -> (n,) seconds


def noisy_estimate(noise: float = NOISE, bias: float = 1.0) -> Estimate:
    """True service times, times a mean-one lognormal of sigma `noise`, times `bias`.

    Named for what it is: an estimator of known quality, not a learned one.
    """
    require(noise >= 0, f"noise={noise:g} must not be negative")
    require(bias > 0, f"bias={bias:g} must be positive")

    def estimate(trace: Trace, seed: int) -> F64:
        rng = np.random.default_rng(seed)
        return trace.service_s * bias * mean_one_lognormal(noise, len(trace), rng)

    return estimate


def learned_estimate(name: str, past: Trace) -> Estimate:
    """The learned estimator of this name, fitted once on a `past` trace."""
    model = named_estimator(name).fit(past)
    return lambda trace, seed: predict_all(model, trace)


def named_estimate(name: str, cell: "Cell", noise: float, seed: int) -> Estimate:
    """Any estimator by name; a learned one is fitted on a trace of this `seed`.

    Raises InvalidInput for an unknown name.
    """
    choice("estimator", name, ESTIMATORS)
    if name in LEARNED:
        return learned_estimate(name, cell.make_trace(seed))
    return noisy_estimate(0.0 if name == "oracle" else noise)


Arrivals = Callable[[float, int, np.random.Generator], F64]  # rate, n -> (n,) times


@dataclass(frozen=True, slots=True)
class Cell:
    """Everything about an evaluation but its load, policy and seed.

    With `clients` the loop is closed, and a load says what these would submit if
    answers took no time: each thinks for `clients` / (load x saturation). With
    `objectives_s`, each type of transaction has an objective of its own, and `slo_s` is
    what a policy takes for its constants. `saturation_ci` are the ends of the interval
    of the rate that load 1 stands for, None where it was not measured by probes.
    """

    make_trace: Callable[[int], Trace]  # seed -> transactions; arrivals are replaced
    saturation_per_s: float
    cores: int
    slo_s: float
    batch_size: int = 10
    flush_s: float = np.inf
    delays: Delays = NO_DELAYS
    clients: int | None = None
    arrivals: Arrivals = poisson_arrivals
    objectives_s: tuple[float, ...] | None = None
    saturation_ci: tuple[float, float] | None = None

    def think_s(self, load: float) -> float:
        """How long a client of a closed loop thinks at this load; 0 at infinity."""
        return (
            0.0
            if self.clients is None
            else self.clients / (load * self.saturation_per_s)
        )

    def policy(self, name: str, **options) -> Policy:
        """The policy of this name on this machine; `options` as `policies.policy`."""
        return named_policy(
            name, slo_s=self.slo_s, cores=self.cores, lag_s=self.delays.lag_s, **options
        )

    def arrange(self, transactions: Trace, load: float, seed: int) -> Trace:
        """The transactions as they arrive at this load; unchanged in a closed loop.

        Raises InvalidInput where the last is so late that the objective is lost in the
        precision of its time.
        """
        if self.clients is not None:
            return transactions
        rate_per_s, rng = load * self.saturation_per_s, np.random.default_rng(seed)
        arrival_s = self.arrivals(rate_per_s, len(transactions), rng)
        require(
            arrival_s[-1] <= 2.0**40 * self.slo_s,
            f"arrivals go on until {arrival_s[-1]:g} s, where an objective of "
            f"{self.slo_s:g} s is lost in the precision of a time: expected seconds, "
            "and a higher load or fewer transactions",
        )
        return with_arrivals(transactions, arrival_s)

    def history(
        self, trace: Trace, policy: Policy, estimated_s: F64, load: float
    ) -> History:
        """What happens to a trace from `arrange` under a policy."""
        slo_s = self.slo_s
        if self.objectives_s is not None:
            slo_s = np.array(self.objectives_s)[trace.kind]
        return simulate(
            trace, policy, estimated_s, cores=self.cores, slo_s=slo_s,
            batch_size=self.batch_size, flush_s=self.flush_s, delays=self.delays,
            clients=self.clients, think_s=self.think_s(load),
        )  # fmt: skip

    def run(
        self, trace: Trace, policy: Policy, estimated_s: F64, load: float
    ) -> Report:
        """What a policy makes of a trace from `arrange`."""
        return summarise(trace, self.history(trace, policy, estimated_s, load))

    def by_type(self, factor: float) -> "Cell":
        """The same with `factor` times its median service time as each type's SLA.

        The medians are of a trace of their own, which holds every type that this
        workload has; `slo_s` becomes the mean objective of its transactions.
        """
        seeds = range(PROBE_SEED, PROBE_SEED - PROBES_OF_TYPES, -1)
        probes = map(self.make_trace, seeds)
        whole = (p for p in probes if len(np.unique(p.kind)) == len(p.kinds))
        probe = next(whole, self.make_trace(PROBE_SEED))
        objectives_s = type_objectives_s(probe, factor)
        return replace(
            self,
            slo_s=float(objectives_s[probe.kind].mean()),
            objectives_s=tuple(objectives_s.tolist()),
        )


def scenario_cell(
    name: str, *, transactions: int, warehouses: int | None = None, **options
) -> Cell:
    """A reference scenario, its `saturation` measured on transactions of its own.

    `options` go to Cell.
    """
    spec = SCENARIOS[choice("scenario", name, SCENARIOS)]
    options = {"cores": spec.cores, "slo_s": spec.slo_s} | options
    full = scenario_saturation(name, warehouses, options["cores"])
    return Cell(
        make_trace=lambda seed: scenario(name, transactions, seed, warehouses),
        saturation_per_s=full.value,
        saturation_ci=(full.low, full.high),
        **options,
    )


def trace_cell(
    past: Trace,
    *,
    transactions: int,
    cores: int = 4,
    slo_s: float | None = None,
    **options,
) -> Cell:
    """A collected trace as the transactions of an open loop (scenario T).

    What a trace of a closed loop says of its arrivals is what the engine made of them,
    so here they are new: a Poisson process, a seed each. The objective defaults to
    twice the 95th percentile of the service time, which is the unloaded latency.
    `options` go to Cell.
    """  # fmt: skip
    with np.errstate(over="ignore"):
        mean_s = float(past.service_s.mean()) if len(past) else 0.0
    require(
        1e-9 <= mean_s <= 1e9,
        f"the {len(past)} transactions take {mean_s:g} s each in the mean: expected "
        "a trace of service times in seconds",
    )
    if slo_s is None:
        slo_s = 2 * float(np.quantile(past.service_s, 0.95))
        require(
            slo_s > 0,
            "19 of 20 transactions take no time, so twice the 95th percentile of their "
            "service times is no objective: give one",
        )
    full = saturation(lambda n, seed: from_measured(past, n, seed), cores=cores)
    return Cell(
        make_trace=lambda seed: from_measured(past, transactions, seed),
        saturation_per_s=full.value,
        saturation_ci=(full.low, full.high),
        cores=cores,
        slo_s=slo_s,
        **options,
    )


def replay_cell(
    judged: Trace, load: float | None = None, **options
) -> tuple[Cell, float]:
    """A trace replayed with the arrivals that it has, and the load that they are.

    With a `load`, its inter-arrival times are all stretched by one factor, so that
    their mean is that of the load and their pattern stays. Load 1 is the saturation
    rate of the same transactions as a Poisson process. `options` as of `trace_cell`; in
    a closed loop, where arrivals are not read, a load is needed. Raises InvalidInput
    for arrivals that have no rate.
    """
    cell = trace_cell(judged, transactions=len(judged), **options)
    since_s = judged.arrival_s - judged.arrival_s[0]
    own_per_s = np.inf
    if cell.clients is None:
        rows = counted(len(judged))
        require(
            0 < since_s[-1] < np.inf and since_s[-1] > since_s[rows][0],
            f"the last {len(since_s[rows])} transactions of the trace all arrive at "
            f"{judged.arrival_s[-1]:g} s: expected arrivals that spread; a closed loop "
            "(clients) needs none",
        )
        own_per_s = (len(judged) - 1) / float(since_s[-1])
    else:
        require(
            load is not None,
            "clients of a closed loop arrive when they have their answers, not as the "
            "trace says: give the load that they would submit if those took no time",
        )

    def arrivals(rate_per_s: float, n: int, rng: np.random.Generator) -> F64:
        return since_s if load is None else since_s * (own_per_s / rate_per_s)

    at = own_per_s / cell.saturation_per_s if load is None else load
    return replace(cell, make_trace=lambda seed: judged, arrivals=arrivals), at


def _row(report: Report, **labels: object) -> dict[str, object]:
    row = asdict(report)
    by_kind = row.pop("violations_by_kind")
    return labels | row | {f"violations:{kind}": v for kind, v in by_kind.items()}


def paired_seeds(seed: int, seeds: int) -> list[tuple[int, int, int]]:
    """Seeds of transactions, arrivals and estimates for each of `seeds` replicates.

    Every policy is run on the same. Raises InvalidInput for none.
    """
    require(seeds >= 1, f"seeds={seeds}: expected at least 1")
    spawned = np.random.SeedSequence(seed).spawn(seeds)
    made = (source.generate_state(3).tolist() for source in spawned)
    return [(trace, arrivals, estimates) for trace, arrivals, estimates in made]


Point = tuple[int, tuple[int, int, int], float]


def paired_points(loads: Iterable[float], *, seeds: int, seed: int) -> list[Point]:
    """(number of the seed, its `paired_seeds`, load), for each seed the loads."""
    loads = list(loads)
    return [
        (number, drawn, load)
        for number, drawn in enumerate(paired_seeds(seed, seeds))
        for load in loads
    ]


def run_grid(
    measure: Callable[..., Iterable[dict]], points: Iterable[tuple]
) -> pd.DataFrame:
    """The rows of `measure(*point)` for every point, in the order of the points.

    As many processes as there are cores share the points; LOKY_MAX_CPU_COUNT makes it
    fewer. A point brings its own seeds, so that the rows do not depend on how many.
    """
    # Arrays that joblib maps from a file are read-only, another type to numba.
    measured = Parallel(n_jobs=-1, max_nbytes=None)(
        delayed(_rows_of)(measure, point) for point in points
    )
    return pd.DataFrame([row for rows in measured or [] for row in rows])


def _rows_of(measure: Callable[..., Iterable[dict]], point: tuple) -> list[dict]:
    return list(measure(*point))


def run_paired(
    measure: Callable[[int, float, Trace, F64], Iterable[dict]],
    cell: Cell,
    loads: Iterable[float],
    estimate: Estimate,
    *,
    seeds: int,
    seed: int,
) -> pd.DataFrame:
    """Rows of `measure(number of the seed, load, trace, estimates)`, by seed and load.

    They begin with the columns `load` and `seed`. What has the same number of the seed
    has the same transactions and estimates, whatever it is compared with.
    """

    def rows(number: int, drawn: tuple[int, int, int], load: float) -> Iterator[dict]:
        trace_seed, arrival_seed, estimate_seed = drawn
        transactions = cell.make_trace(trace_seed)
        estimated_s = estimate(transactions, estimate_seed)
        trace = cell.arrange(transactions, load, arrival_seed)
        for row in measure(number, load, trace, estimated_s):
            yield {"load": load, "seed": number} | row

    return run_grid(rows, paired_points(loads, seeds=seeds, seed=seed))


def replicate(
    cell: Cell,
    policies: Sequence[str],
    loads: Iterable[float],
    estimate: Estimate,
    *,
    seeds: int,
    seed: int,
    bound: bool = False,
    **options,
) -> pd.DataFrame:
    """One row per load, seed and policy, each seed the same for every policy.

    Columns: load, seed, policy, then the numbers of `Report` and, as policy "bound",
    the lower bound if asked for; where types have objectives of their own it takes the
    longest for all, and is weak. `options` go to `policies.policy`. Raises InvalidInput
    for a bound on a closed loop, whose arrivals are what the policy makes of them.
    """
    require(
        not bound or cell.clients is None,
        "a closed loop has no lower bound: its arrivals depend on the policy",
    )

    def measure(
        number: int, load: float, trace: Trace, estimated_s: F64
    ) -> Iterator[dict]:
        for name in policies:
            policy = cell.policy(name, **options)
            yield _row(cell.run(trace, policy, estimated_s, load), policy=name)
        if bound:
            longest_s = max(cell.objectives_s or [cell.slo_s])
            fewest = fewest_counted_violations(trace, cores=cell.cores, slo_s=longest_s)
            yield {"policy": "bound", "violations": fewest}

    return run_paired(measure, cell, loads, estimate, seeds=seeds, seed=seed)


def reduction_interval(violations: F64, baseline: F64) -> Interval:
    """1 - mean(violations) / mean(baseline) over paired (seeds,), resampled in pairs.

    Raises InvalidInput for unequal numbers of seeds; 0 where the baseline has no
    violation in a resample.
    """
    violations = np.asarray(violations, np.float64)
    baseline = np.asarray(baseline, np.float64)
    require(
        len(violations) == len(baseline) > 0,
        f"{len(violations)} seeds against {len(baseline)}: pairs are needed",
    )

    def reductions(picks: I64) -> F64:
        ours, theirs = violations[picks].mean(axis=1), baseline[picks].mean(axis=1)
        safe = np.where(theirs > 0, theirs, 1.0)
        return np.where(theirs > 0, 1 - ours / safe, 0.0)

    value = 0.0 if baseline.mean() == 0 else 1 - violations.mean() / baseline.mean()
    return Interval(float(value), *bootstrap(len(violations), reductions))


def column(runs: pd.DataFrame, policy: str, load: float, name: str) -> F64:
    """(seeds,) one column of `replicate` for a policy and a load, by seed."""
    rows = runs.loc[(runs["policy"] == policy) & (runs["load"] == load)]
    require(len(rows) > 0, f"no run of policy {policy!r} at load {load:g}")
    return np.asarray(rows[name])[np.argsort(np.asarray(rows["seed"]))]


def reduction(
    runs: pd.DataFrame, policy: str, load: float, baseline: str = "fifo"
) -> Interval:
    """Share by which `policy` has fewer violations than `baseline` at this load."""
    return reduction_interval(
        column(runs, policy, load, "violations"),
        column(runs, baseline, load, "violations"),
    )


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
    numbers = {}
    for place, made in runs.items():
        each = [reduction(made, policy, load).value for load in made["load"].unique()]
        numbers |= {
            f"{policy}_least_{place}": 100 * min(each),
            f"{policy}_most_{place}": 100 * max(each),
        }
    return numbers


RATES = {"throughput_per_s": "all", "goodput_per_s": "on time"}  # of the commits


def rates(
    runs: Mapping[str, pd.DataFrame], saturation_per_s: Mapping[str, float], load: float
) -> pd.DataFrame:
    """Commits at one load in percent of FIFO's saturation: all, and those on time.

    `runs` of `replicate` and rates by scenario. Means over the seeds: a row a policy,
    two columns a scenario.
    """
    columns = {
        (place, label): table(made, name)[load] / saturation_per_s[place]
        for place, made in runs.items()
        for name, label in RATES.items()
    }
    return pd.DataFrame(columns)


def against_sequencing(
    cell: Cell, policies: Sequence[str], load: float, sequencer_s: Sequence[float], *,
    seeds: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Runs against what the sequencer works on each transaction, in seconds.

    As from `replicate`, with a column `sequencer_s`; all else stays the same.
    """
    made = [
        replicate(
            replace(cell, delays=replace(cell.delays, sequencer_s=works_s)),
            policies, [load], noisy_estimate(), seeds=seeds, seed=seed,
        ).assign(sequencer_s=works_s)
        for works_s in sequencer_s
    ]  # fmt: skip
    return pd.concat(made, ignore_index=True)


COST_MEAN_S, COST_P99_S = 10e-6, 25e-6  # goal: estimate and decision, a transaction


def decision_costs(cases: pd.DataFrame) -> pd.DataFrame:
    """The worst that estimating and deciding cost at any load in any scenario.

    `cases` are those of the record of `benchmarks/decide.py`. A row a policy, in
    microseconds a transaction: mean and 99th percentile of the decision, and of the
    decision and the estimate together, compiled; the mean of both if a loop in Python
    calls them compiled, and if the rule runs in Python; and whether the compiled two
    meet the goal.
    """
    worst = cases.pivot_table(
        index="policy",
        columns="way",
        values=["decide_mean_us", "decide_p99_us", "both_mean_us", "both_p99_us"],
        aggfunc="max",
        sort=False,
    )
    mean_us, p99_us = worst["both_mean_us"], worst["both_p99_us"]
    return pd.DataFrame(
        {
            "decision": worst["decide_mean_us"]["compiled"],
            "its p99": worst["decide_p99_us"]["compiled"],
            "with estimate": mean_us["compiled"],
            "p99 of both": p99_us["compiled"],
            "called": mean_us["called"],
            "in Python": mean_us["python"],
            "meets the goal": (mean_us["compiled"] <= 1e6 * COST_MEAN_S)
            & (p99_us["compiled"] <= 1e6 * COST_P99_S),
        }
    )


def crowded_numbers(crowded: dict) -> dict[str, float]:
    """The published numbers of what decisions cost where much is held, by name.

    `crowded` is that part of the record of `benchmarks/decide.py`.
    """
    cases = pd.DataFrame(crowded["cases"])
    took_us = cases.pivot_table(
        index=["load", "slo_s"], columns="code", values="decision_us"
    )
    ends = {
        "load": cases["load"],
        "slo_ms": 1e3 * cases["slo_s"],
        "us": took_us["now"],
        "ratio": took_us["before"] / took_us["now"],
    }
    return {
        f"crowded_{end}_{name}": float(find(values.to_numpy()))
        for name, values in ends.items()
        for end, find in (("least", np.min), ("most", np.max))
    }


def headline(runs: pd.DataFrame, load: float) -> dict[str, float]:
    """The published numbers at one load, in percent, by their published names."""
    numbers = {
        "fifo_violations_percent": 100
        * column(runs, "fifo", load, "violations").mean(),
        "lower_bound_percent": 100 * column(runs, "bound", load, "violations").mean(),
    }
    committed = column(runs, "fifo", load, "throughput_per_s").mean()
    for policy in ("drop", "reorder", "hybrid", "hybrid-fixed", "ours"):
        name = policy.replace("-", "_")
        share = column(runs, policy, load, "violations").mean()
        fewer = reduction(runs, policy, load)
        throughput = column(runs, policy, load, "throughput_per_s").mean()
        numbers |= {
            f"{name}_violations_percent": 100 * share,
            f"reduction_{name}": 100 * fewer.value,
            f"reduction_{name}_low": 100 * fewer.low,
            f"reduction_{name}_high": 100 * fewer.high,
            f"throughput_{name}_percent": 100 * throughput / committed,
        }
    return {name: float(value) for name, value in numbers.items()}


def difference_interval(values: F64, baseline: F64) -> Interval:
    """mean(values) - mean(baseline) over paired (seeds,), resampled in pairs."""
    values = np.asarray(values, np.float64)
    baseline = np.asarray(baseline, np.float64)
    require(
        len(values) == len(baseline) > 0,
        f"{len(values)} seeds against {len(baseline)}: pairs are needed",
    )
    return mean_interval(values - baseline)


def ablation(
    cell: Cell,
    policy: str,
    load: float,
    *,
    estimator: str,
    past: Trace,
    seeds: int,
    seed: int,
) -> pd.DataFrame:
    """What each of the thesis' defects costs `policy` ("drop", "reorder", "hybrid").

    One row for the policy as described, for each defect mended alone in it, for the
    policy without any, and for each defect put back alone into that; all on the same
    seeds. Columns: `from` ("described" or "fixed"), `defect` (empty for the two ends),
    the strict and the lenient count in percent, and for either its difference from
    the end it started `from`, in points, with the interval of paired seeds
    (`strict_change`, `strict_low`, `strict_high`, and so on). The learned `estimator`
    is fitted on `past`, and for the defect `cut_tail` on what that leaves of it.
    """
    fits = {
        False: learned_estimate(estimator, past),
        True: learned_estimate(estimator, cut_tail(past)),
    }
    variants = {
        (start, defect): defects if not defect else replace(
            defects, **{defect: not getattr(defects, defect)}
        )
        for start, defects in (("described", AS_DESCRIBED), ("fixed", MENDED))
        for defect in ("", *Defects.names())
    }  # fmt: skip

    def measure(number: int, drawn: tuple[int, int, int]) -> Iterator[dict]:
        trace_seed, arrival_seed, _ = drawn
        trace = cell.arrange(cell.make_trace(trace_seed), load, arrival_seed)
        estimated_s = {cut: fit(trace, 0) for cut, fit in fits.items()}
        for (start, defect), defects in variants.items():
            made = cell.policy(policy, defects=defects)
            report = cell.run(trace, made, estimated_s[defects.cut_tail], load)
            yield {
                "from": start,
                "defect": defect,
                "strict": report.violations,
                "lenient": report.lenient,
            }

    runs = run_grid(measure, enumerate(paired_seeds(seed, seeds)))
    both = ["strict", "lenient"]
    counts = {
        (start, defect): runs.query("`from` == @start and defect == @defect")[
            both
        ].to_numpy()
        for start, defect in variants
    }
    rows = []
    for (start, defect), shares in counts.items():
        row = {"from": start, "defect": defect}
        for at, count in enumerate(both):
            change = difference_interval(shares[:, at], counts[start, ""][:, at])
            row |= {
                count: 100 * shares[:, at].mean(),
                f"{count}_change": 100 * change.value,
                f"{count}_low": 100 * change.low,
                f"{count}_high": 100 * change.high,
            }
        rows.append(row)
    return pd.DataFrame(rows)


DESIGN_SEED = 31_337  # policies were chosen on its traces; evaluations use others

# Where Hybrid as described reduces violations as much as was published: found among
# scenarios, loads, batches, timers, loops and biases on design seeds (chapter 4).
PUBLISHED_SCENARIO, PUBLISHED_LOAD = "B", 0.98


def compare_designs(
    cell: Cell, designs: Sequence[str], loads: Sequence[float], seeds: int
) -> pd.DataFrame:
    """Violations of policies in percent, by load, on design seeds."""
    runs = replicate(
        cell, designs, loads, noisy_estimate(), seeds=seeds, seed=DESIGN_SEED
    )
    return table(runs).rename_axis("design")


def _held_out(trace: Trace, estimator: str) -> tuple[Trace, Trace]:
    """The part of a trace that an estimator is fitted on, and what came after it."""
    least = round(LEAST_FITTED / FITTED)
    require(
        len(trace) >= least,
        f"{len(trace)} transactions are too few for estimator {estimator!r}, which is "
        f"fitted on the first {FITTED:.0%} of a trace and judged on the rest: expected "
        f"at least {least}; collect more, or take the estimator 'noisy'",
    )
    return trace.split(FITTED)


def _first(judged: Trace, transactions: int | None) -> Trace:
    n = len(judged) if transactions is None else transactions
    require(
        1 <= n <= len(judged),
        f"transactions={transactions}: expected 1 to the {len(judged)} that are to be "
        "replayed",
    )
    return judged.take(np.arange(n))


def simulate_cell(
    *,
    scenario: str | None = None,
    trace: Trace | Path | str | None = None,
    load: float | None = None,
    policy: str,
    estimator: str = "noisy",
    seeds: int = 5,
    seed: int = 0,
    transactions: int | None = None,
    warehouses: int | None = None,
    cores: int | None = None,
    slo_s: float | None = None,
    delays: Delays = NO_DELAYS,
    batch_size: int = 10,
    flush_s: float = np.inf,
    clients: int | None = None,
    noise: float = NOISE,
    bias: float = 1.0,
    gap: float = np.inf,
) -> dict:
    """One cell of the evaluation, beside FIFO and the lower bound on the same seeds.

    Either a reference `scenario`, of 20,000 `transactions` for each seed if not given,
    or a collected `trace`, or the path of one, which by default runs on 4 cores with
    twice the 95th percentile of its service times as its objective.
    `load` is the arrival rate over the saturation rate of FIFO; for `clients` in a
    closed loop, see Cell. Without one a trace is replayed with the arrivals that it
    has, with one they are stretched to it: see `replay_cell`.

    Learned estimators are fitted on transactions of another seed; those of a trace on
    its first half, FITTED of its transactions by arrival, and only what came later is
    replayed, or its first `transactions`. Every estimate is multiplied by `bias`. A
    replayed trace is one sample: its intervals
    are over the noise of the estimates, None where they have none. `gap` bounds, for
    ours, how much larger the share of violations of one type may be than of another.
    Shares are fractions of 1; intervals are (low, high); a closed loop has no lower
    bound (None). Raises InvalidInput for anything that cannot be run.
    """
    require(load is None or load > 0, f"load={load} must be positive")
    require(
        0 < bias < np.inf,
        f"bias={bias:g}: expected a positive, finite factor; 1 leaves estimates alone",
    )
    require(
        (scenario is None) != (trace is None),
        "give either a scenario or a trace: exactly one of the two",
    )
    choice("estimator", estimator, ESTIMATORS)
    given = {"cores": cores, "slo_s": slo_s}
    options: dict = {name: value for name, value in given.items() if value is not None}
    options |= {
        "delays": delays, "batch_size": batch_size, "flush_s": flush_s,
        "clients": clients,
    }  # fmt: skip
    arrivals, fitted_on, drawn = "Poisson", 0, True
    if trace is None:
        if load is None:
            raise InvalidInput(
                "a scenario has no arrivals of its own: give the load, such as 1.1"
            )
        transactions = 20_000 if transactions is None else transactions
        cell = scenario_cell(
            scenario or "", transactions=transactions, warehouses=warehouses, **options
        )
        estimate = named_estimate(estimator, cell, noise, seed=777_777)
        fitted_on = transactions if estimator in LEARNED else 0
    else:
        require(
            warehouses is None,
            f"warehouses={warehouses} belongs to a scenario: a trace says itself which "
            "keys its transactions lock",
        )
        judged = trace if isinstance(trace, Trace) else Trace.read(trace)
        past = None
        if estimator in LEARNED:
            past, judged = _held_out(judged, estimator)
            fitted_on = len(past)
        judged = _first(judged, transactions)
        transactions = len(judged)
        arrivals = "its own" if load is None else "its own, stretched"
        cell, load = replay_cell(judged, load, **options)
        estimate = (
            named_estimate(estimator, cell, noise, seed=777_777)
            if past is None
            else learned_estimate(estimator, past)
        )
        drawn = estimator == "noisy"
        seeds = seeds if drawn else min(seeds, 1)  # each would be the same

    def biased(trace: Trace, seed: int) -> F64:
        return bias * estimate(trace, seed)

    setting = {"seeds": seeds, "seed": seed}
    runs = replicate(cell, ["fifo"], [load], biased, bound=clients is None, **setting)
    if policy != "fifo":
        fair: dict = {}
        if gap < np.inf:
            fair = {"gap": gap, "groups": len(cell.make_trace(seed).kinds)}
        tried = replicate(cell, [policy], [load], biased, **setting, **fair)
        runs = pd.concat([runs, tried], ignore_index=True)

    def interval(name: str) -> Interval:
        return mean_interval(column(runs, policy, load, name))

    def mean(of: str, name: str) -> float:
        return float(column(runs, of, load, name).mean())

    violations, fewer = interval("violations"), reduction(runs, policy, load)
    return {
        "policy": policy,
        "estimator": estimator,
        "fitted_on": fitted_on,
        "arrivals": arrivals if clients is None else "closed loop",
        "load": load,
        "rate_per_s": load * cell.saturation_per_s,
        "saturation_per_s": cell.saturation_per_s,
        "saturation_ci": cell.saturation_ci,
        "clients": clients,
        "seeds": seeds,
        "transactions": transactions,
        "violations": violations.value,
        "violations_ci": (violations.low, violations.high) if drawn else None,
        "lenient": mean(policy, "lenient"),
        "late": mean(policy, "late"),
        "dropped": mean(policy, "dropped"),
        "goodput_per_s": mean(policy, "goodput_per_s"),
        "throughput_per_s": mean(policy, "throughput_per_s"),
        "p999_s": mean(policy, "p999_s"),
        "wasted": mean(policy, "wasted"),
        "fifo_violations": mean("fifo", "violations"),
        "reduction": fewer.value,
        "reduction_ci": (fewer.low, fewer.high) if drawn else None,
        "lower_bound": mean("bound", "violations") if clients is None else None,
    }


POINT, RELATIVE = 0.01, 0.15  # how near a simulated share must be to a measured one
PLACE = ["engine", "workers", "load", "policy"]  # of a live run


def _near(difference: F64, measured: F64) -> Bool:
    return np.abs(difference) <= np.maximum(POINT, RELATIVE * measured)


def beside_measured(runs: pd.DataFrame, model: str = "simulated") -> pd.DataFrame:
    """Measured violations beside those of a model, at each PLACE and in percent.

    `runs` has a row a run, with PLACE and the shares `measured` and `model`. Means over
    the runs; the error is the model's less the measured one, run by run, with its 95 %
    bootstrap interval (`low`, `high`). `near` where it is at most the larger of one
    point and 15 % of the measured share.
    """
    rows = {}
    for place, at in runs.groupby(PLACE, sort=False):
        measured, modelled = (at[c].to_numpy(np.float64) for c in ("measured", model))
        error = mean_interval(modelled - measured)
        rows[place] = {
            "measured": 100 * measured.mean(),
            model: 100 * modelled.mean(),
            "error": 100 * error.value,
            "low": 100 * error.low,
            "high": 100 * error.high,
            "near": _near(np.array([error.value]), measured.mean(keepdims=True))[0],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(PLACE)


def measured_again(runs: pd.DataFrame) -> pd.DataFrame:
    """The even `repeat`s as `measured` beside the odd ones as `again`, like a model.

    How near an engine comes to itself bounds how near any model can be seen to come.
    """
    half = np.where(runs["repeat"] % 2 == 0, "measured", "again")
    halves = runs.assign(half=half).pivot_table(
        index=PLACE, columns="half", values="measured", sort=False
    )
    return beside_measured(halves.reset_index(), "again")


def ranked_alike(beside: pd.DataFrame, model: str = "simulated") -> pd.DataFrame:
    """Pairs of policies that differ where they were measured, and what a model says.

    From `beside_measured`, a row for each engine and number of workers: `pairs` of
    policies at one load whose measured shares are not near each other, and how many
    of them the model puts in the same order (`alike`).
    """
    rows = []
    for _, at in beside.groupby(PLACE[:-1], sort=False):
        engine, workers, *_ = at.index[0]
        for one, other in combinations(range(len(at)), 2):
            pair = at.iloc[[one, other]]
            measured = pair["measured"].to_numpy(np.float64) / 100
            apart = np.diff(measured)
            if _near(apart, measured.max(keepdims=True))[0]:
                continue
            alike = apart[0] * np.diff(pair[model].to_numpy(np.float64))[0] > 0
            rows.append((engine, workers, 1, int(alike)))
    pairs = pd.DataFrame(rows, columns=["engine", "workers", "pairs", "alike"])
    return pd.DataFrame(pairs.groupby(["engine", "workers"], sort=False).sum())


def middleware_rates(engines: Mapping[str, Mapping[str, Mapping]]) -> pd.DataFrame:
    """Transactions a second that a live engine passes, by engine and workers.

    `engines` is that of the record of `benchmarks/middleware.py`; medians over its
    rounds. Closed loops of threads, of processes with one system call for each
    transaction, and of processes as they are; and the highest rate of an open loop
    that was sustained.
    """
    rows = {
        (engine, int(workers)): {
            how: float(np.median(rates))
            for how, rates in {
                **found["transactions_per_s"],
                "open loop": found["open_loop_sustained_per_s"],
            }.items()
        }
        for engine, by_workers in engines.items()
        for workers, found in by_workers.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["engine", "workers"])
