"""A policy live: in front of the real engine, in an open loop, against FIFO.

What `grid.simulate_cell` simulates, measured. Every round runs the same requests at
the same intended times twice, once under FIFO and once under the policy, each on a
fresh copy of the database.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.common.errors import choice, require, require_count
from thesis_lib.common.provenance import undisturbed
from thesis_lib.common.stats import mean_interval
from thesis_lib.sequencer.core.events import Delays
from thesis_lib.sequencer.core.trace import F64, Batch, History, Trace
from thesis_lib.sequencer.engine.engine import database, make_log, trace_of
from thesis_lib.sequencer.engine.overheads import Overheads, as_delays, overheads
from thesis_lib.sequencer.engine.scheduler import (
    Requests,
    Run,
    Scheduler,
    history,
    run_closed,
    run_open,
)
from thesis_lib.sequencer.engine.storage import Storage
from thesis_lib.sequencer.estimators.models import LEARNED, LatencyEstimator
from thesis_lib.sequencer.estimators.models import estimator as named_estimator
from thesis_lib.sequencer.estimators.saved import is_file, load_estimator
from thesis_lib.sequencer.experiments import metrics
from thesis_lib.sequencer.experiments.configuration import default_objective_s
from thesis_lib.sequencer.policies.registry import policy as named_policy
from thesis_lib.sequencer.workload.arrivals import poisson_arrivals
from thesis_lib.sequencer.workload.features import (
    static_features,
    static_names,
    with_features,
)
from thesis_lib.sequencer.workload.transactions import Log

# How near a simulated share must be to a measured one: either is near enough.
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 0.01, 0.15
PLACE = ["engine", "workers", "load", "policy"]  # of a live run


def _near(difference: float, measured: float) -> bool:
    nearest = np.maximum(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * measured)
    return abs(difference) <= nearest


def beside_measured(runs: pd.DataFrame, model: str = "simulated") -> pd.DataFrame:
    """Measured violations beside those of a model, at each PLACE and in percent.

    `runs` has a row a run, with PLACE and the shares `measured` and `model`. Means over
    the runs; the error is the model's less the measured one, run by run, with its
    interval (`low`, `high`). `near` where it is at most the larger of one
    point and 15 % of the measured share.
    """

    def row(at: pd.DataFrame, *place: Any) -> dict[str, Any]:
        measured, modeled = (at[c].to_numpy(np.float64) for c in ("measured", model))
        error = mean_interval(modeled - measured)
        return {
            "measured": 100 * measured.mean(),
            model: 100 * modeled.mean(),
            **metrics.in_percent("error", error),
            "near": _near(error.value, measured.mean()),
        }

    return metrics.by_case(runs, PLACE, row)


def measured_again(runs: pd.DataFrame) -> pd.DataFrame:
    """The even `repeat`s as `measured` beside the odd ones as `again`, like a model.

    How near an engine comes to itself bounds how near any model can be seen to come.
    Raises InvalidInput for runs of one repeat alone.
    """
    require(
        len(set(runs["repeat"])) > 1,
        "every run was made once: expected two repeats at least, so that the engine "
        "can be compared with itself; measure again with more",
    )
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

    def row(at: pd.DataFrame, *place: Any) -> dict[str, int]:
        shares = at[["measured", model]].to_numpy(np.float64) / 100
        pairs = [
            one - other
            for other, one in combinations(shares, 2)
            if not _near(one[0] - other[0], max(one[0], other[0]))
        ]
        return {"pairs": len(pairs), "alike": sum(a * b > 0 for a, b in pairs)}

    by_load = metrics.by_case(beside.reset_index(), PLACE[:-1], row)
    return pd.DataFrame(by_load.groupby(["engine", "workers"], sort=False).sum())


def middleware_rates(engines: Mapping[str, Mapping[str, Mapping]]) -> pd.DataFrame:
    """Transactions a second that a live engine passes, by engine and workers.

    `engines` is that of the record of `benchmarks/middleware.py`; medians over its
    rounds. Closed loops of threads, of processes with one system call for each
    transaction, and of processes as they are; and the highest rate of an open loop
    that was sustained.
    """
    rows = {}
    for engine, by_workers in engines.items():
        for workers, by_loop in by_workers.items():
            open_loop = {"open loop": by_loop["open_loop_sustained_per_s"]}
            loops = by_loop["transactions_per_s"] | open_loop
            rows[engine, int(workers)] = {
                how: float(np.median(rates)) for how, rates in loops.items()
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["engine", "workers"])


CLIENTS, BATCH = 64, 8  # of the closed loop that measures saturation
WARM_UP = 200  # transactions that warm the workers before a clock starts
LEAST = 50  # transactions of a round
QUIET = 0.2  # load with hardly any queue


@dataclass(frozen=True, slots=True)
class Testbed:
    """A loaded database, a long log, and what a burst of its beginning has shown."""

    storage: Storage
    log: Log
    burst: int  # transactions at its beginning that the burst has used
    workers: int
    past: Trace  # of the burst
    saturation_per_s: float  # commits of a closed loop of CLIENTS under FIFO
    quiet: Overheads  # of the middleware, in an open loop at a load of QUIET
    busy: Overheads  # the same in the closed loop
    slo_s: float  # latency objective of every transaction

    @property
    def delays(self) -> Delays:
        """Return the middleware's overheads, for forecasts and for simulations."""
        return as_delays(self.quiet, self.busy)

    def requests(self, number: int, n: int) -> Log:
        """The log of round `number`: WARM_UP transactions and n that are measured."""
        size = WARM_UP + n
        first = self.burst + number * size
        require(
            first + size <= len(self.log),
            f"round {number} of {n} transactions needs {first + size} in the log: it "
            f"has {len(self.log)}",
        )
        return part(self.log, first, first + size)


def part(log: Log, first: int, end: int) -> Log:
    """Transactions `first` to `end` - 1 as a log of their own, on the same data."""
    keys = log.keys.take(np.arange(first, end))
    return replace(log, transactions=log.transactions[first:end], keys=keys)


def measure_burst(storage: Storage, log: Log, workers: int, name: str = "burst") -> Run:
    """Run `log` in a closed loop of CLIENTS on a copy `name` of the database."""
    with Scheduler(storage.copy(name), log, workers) as scheduler:
        return run_closed(scheduler, len(log), CLIENTS, BATCH)


def rate(run: Run) -> float:
    """Commits a second after the first WARM_UP of a closed loop."""
    ends_s = np.sort(run.finish_s)
    return float((len(ends_s) - WARM_UP) / (ends_s[-1] - ends_s[WARM_UP - 1]))


def measure_quiet(
    storage: Storage, log: Log, workers: int, rate_per_s: float
) -> Overheads:
    """Measure the middleware's overheads while `log`, after WARM_UP, arrives slowly."""
    n = len(log)
    due_s = poisson_arrivals(rate_per_s, n - WARM_UP, np.random.default_rng(n))
    requests = Requests.of_log(log, _behind_warm_up(due_s), np.inf, np.zeros(n))
    fifo = named_policy("fifo", slo_s=1.0, cores=workers)
    with Scheduler(storage.copy("quiet"), log, workers) as scheduler:
        run_closed(scheduler, WARM_UP, CLIENTS, BATCH)
        run = run_open(scheduler, requests, fifo, first=WARM_UP)
    return overheads(run, log.keys, WARM_UP)


def _behind_warm_up(arrival_s: F64) -> F64:
    return np.concatenate([np.zeros(WARM_UP), arrival_s])


@contextmanager
def bench(
    engine: str, log: Log, burst: int, workers: int, dsn: str | None = None,
    slo_s: float | None = None,
) -> Iterator[Testbed]:  # fmt: skip
    """Load a database for `log` and measure it and its middleware on the first `burst`.

    The rate of saturation and the past are those of the transactions after the first
    WARM_UP of a closed loop. The objective is `default_objective_s` of that past unless
    given. Raises InvalidInput for a burst of at most WARM_UP transactions.
    """
    require(
        WARM_UP < burst <= len(log),
        f"burst={burst}: expected more than {WARM_UP}, at most the log's {len(log)}",
    )
    with database(engine, dsn) as storage:
        storage.load(log.scale, log.seed)
        if not storage.one_writer:
            log = log.without_files()
        first = part(log, 0, burst)
        run = measure_burst(storage, first, workers)
        meta = {"engine": storage.engine, "workers": workers, "in_flight": CLIENTS}
        past = trace_of(first, [run], {**meta, "batch": BATCH})
        past = past.take(np.arange(WARM_UP, burst))
        saturation_per_s = rate(run)
        yield Testbed(
            storage=storage,
            log=log,
            burst=burst,
            workers=workers,
            past=past,
            saturation_per_s=saturation_per_s,
            quiet=measure_quiet(storage, first, workers, QUIET * saturation_per_s),
            busy=overheads(run, first.keys, WARM_UP),
            slo_s=default_objective_s(past) if slo_s is None else slo_s,
        )


def fitted(name: str, bench: Testbed) -> LatencyEstimator:
    """The learned estimator of this name, fitted on static features of the burst.

    Raises InvalidInput for one that would read the service times it judges.
    """
    _require_learned(name)
    return named_estimator(name).fit(with_features(bench.past, static_names(bench.log)))


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One live run of WARM_UP + n transactions; the history is of the n."""

    requests: Requests
    run: Run
    history: History
    log: Log

    @property
    def trace(self) -> Trace:
        """The transactions with the service times that this run measured.

        Raises InvalidInput where a run dropped some of them.
        """
        require(
            not self.history.dropped.any(),
            "a dropped transaction has no service time: take the trace of FIFO",
        )
        n = len(self.log)
        return Trace(
            kinds=self.log.kinds,
            kind=self.log.kind[WARM_UP:],
            arrival_s=self.history.arrival_s,
            service_s=(self.run.finish_s - self.run.start_s)[WARM_UP:],
            features=self.requests.features[WARM_UP:],
            feature_names=static_names(self.log),
            keys=self.log.keys.take(np.arange(WARM_UP, n)),
            units_s=np.empty((n - WARM_UP, 0)),
            unit_names=(),
        )


def run_live(
    bench: Testbed, log: Log, policy: str, arrival_s: F64, estimated_s: F64, *,
    name: str, batch_size: int = 10, flush_s: float = np.inf,
) -> LiveRun:  # fmt: skip
    """Run `log` under `policy` on a copy `name` of the database.

    `arrival_s` (n,) are those of the transactions after the first WARM_UP, which a
    closed loop runs before the clock starts; `estimated_s` is of all of them.
    """
    arrival_s = _behind_warm_up(arrival_s)
    requests = Requests.of_log(log, arrival_s, bench.slo_s, estimated_s)
    delays = bench.delays
    rule = named_policy(
        policy, slo_s=bench.slo_s, cores=bench.workers, lag_s=delays.lag_s
    )
    with Scheduler(bench.storage.copy(name), log, bench.workers) as scheduler:
        run_closed(scheduler, WARM_UP, CLIENTS, BATCH)
        run = run_open(
            scheduler, requests, rule, first=WARM_UP, batch_size=batch_size,
            flush_s=flush_s, delays=delays,
        )  # fmt: skip
    return LiveRun(requests, run, history(run, requests.deadline_s, WARM_UP), log)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """The settings of `serve`. Raises InvalidInput for invalid ones."""

    policy: str
    load: float  # rate of the Poisson arrivals over the saturation of FIFO
    seconds: float  # of all rounds together, under each of policy and FIFO
    engine: str = "sqlite"
    dsn: str | None = None  # of a server of PostgreSQL
    estimator: str = "boosted"  # a learned one, or a file of `save_estimator`
    rounds: int = 5
    workers: int = 2
    slo_s: float | None = None  # None for the `default_objective_s` of the burst
    seed: int = 0
    workload: str = "tpcc"
    mix: str | None = None
    zipf: float | None = None
    warehouses: int = 2
    batch_size: int = 10
    flush_s: float = 1e-3
    burst: int = 2_000  # transactions that saturation and estimates come from
    fewest: int = 0  # transactions of a round, which then lasts as long as they take

    def __post_init__(self) -> None:
        for name in ("load", "seconds"):
            value = getattr(self, name)
            require(0 < value < np.inf, f"{name}={value:g} must be positive and finite")
        for name in ("rounds", "workers", "batch_size"):
            value = getattr(self, name)
            require_count(name, value)
        require_count("seed", self.seed, 0)
        require(self.flush_s >= 0, f"flush_s={self.flush_s:g} must not be negative")
        require(
            self.slo_s is None or 0 < self.slo_s < np.inf,
            f"slo_s={self.slo_s} must be positive and finite",
        )
        named_policy(self.policy, slo_s=1.0, cores=self.workers)  # rejected, or fine
        if not is_file(self.estimator):
            _require_learned(self.estimator)

    def log(self, n: int) -> Log:
        """The first n transactions of the workload."""
        return make_log(
            self.workload, n, self.seed, warehouses=self.warehouses, mix=self.mix,
            zipf=self.zipf,
        )  # fmt: skip


def serve(*, policy: str, **options: Any) -> dict:
    """Measure `policy` on a live database against FIFO, on the same requests.

    A closed loop first measures the saturation of FIFO. The estimator learns from that
    run, unless a file holds it. Then rounds of both policies take turns.

    Args:
        policy: Name of the policy.
        load: Rate of Poisson arrivals over the saturation of FIFO. Required.
        seconds: Duration of all rounds under each policy. Required.
        engine, dsn: "sqlite", or "postgresql" with the address of a server.
        workload, mix, zipf, warehouses: "tpcc" or another workload, and its parameters.
        workers: Number of workers, 2 by default.
        estimator: "boosted", the name of another estimator, or a file.
        rounds, fewest: Number of rounds, and least number of transactions in each.
        burst: Transactions of the closed loop.
        slo_s, batch_size, flush_s, seed: As in `SystemConfig`.

    Returns:
        The dictionary that `thesis serve --json` prints. Its lower bound uses the
        service times of the rounds under FIFO.

    Raises:
        InvalidInput: If an option is unknown or out of range.

    Example:
        >>> from thesis_lib.sequencer import serve
        >>> short = {"seconds": 0.2, "rounds": 2, "burst": 400, "fewest": 50}
        >>> result = serve(policy="bid-price", load=1.0, estimator="constant", **short)
        >>> 0 <= result["violations"] <= 1
        True
    """
    serving = LiveConfig(policy=policy, **options)
    log, estimator = serving.log(serving.burst), None
    if is_file(serving.estimator):
        estimator = load_estimator(serving.estimator)
        estimate(estimator, log)  # rejected for its features before anything runs

    def measured() -> dict:
        with bench(
            serving.engine,
            log,
            serving.burst,
            serving.workers,
            serving.dsn,
            serving.slo_s,
        ) as ready:
            rate_per_s = serving.load * ready.saturation_per_s
            n = max(
                round(rate_per_s * serving.seconds / serving.rounds), serving.fewest
            )
            require(
                n >= LEAST,
                f"a round must have at least {LEAST} transactions, got {n} from "
                f"{serving.seconds:g} s at {rate_per_s:.0f}/s in {serving.rounds} "
                "rounds: serve longer",
            )
            whole = serving.log(serving.burst + serving.rounds * (WARM_UP + n))
            if not ready.storage.one_writer:
                whole = whole.without_files()
            ready = replace(ready, log=whole)
            model = fitted(serving.estimator, ready) if estimator is None else estimator
            runs = []
            sources = np.random.SeedSequence(serving.seed).spawn(serving.rounds)
            for number, source in enumerate(sources):
                rng = np.random.default_rng(source)
                arrival_s = poisson_arrivals(rate_per_s, n, rng)
                runs.append(_round(ready, number, model, arrival_s, serving))
        result = _result(ready, runs, serving)
        return result if estimator is None else result | {"fitted_on": 0}

    # a server's processes would count as a disturbance by other programs
    return undisturbed(measured) if serving.engine == "sqlite" else measured()


def _require_learned(name: str) -> None:
    require(
        name not in ("noisy", "oracle"),
        f"estimator {name!r} reads service times, which a live run has yet to measure: "
        f"expected one of {', '.join(LEARNED)}",
    )
    choice("estimator", name, LEARNED)


def estimate(model: LatencyEstimator, log: Log) -> F64:
    """(n,) service times that a model of static features expects of `log`."""
    batch = Batch.of_features(static_features(log), static_names(log), log.keys)
    return model.predict(batch)


def _round(
    ready: Testbed, number: int, model: LatencyEstimator, arrival_s: F64,
    serving: LiveConfig,
) -> tuple[LiveRun, LiveRun]:  # fmt: skip
    """The same requests under FIFO and under the policy, in turn the first to run."""
    log = ready.requests(number, len(arrival_s))
    estimated_s = estimate(model, log)
    policies, done = ("fifo", serving.policy), {}
    for which, policy in sorted(enumerate(policies), reverse=number % 2 == 1):
        done[which] = run_live(
            ready, log, policy, arrival_s, estimated_s, name=f"round{number}-{which}",
            batch_size=serving.batch_size, flush_s=serving.flush_s,
        )  # fmt: skip
    return done[0], done[1]


def _result(
    ready: Testbed, runs: Sequence[tuple[LiveRun, LiveRun]], serving: LiveConfig
) -> dict:
    load, rate_per_s = serving.load, serving.load * ready.saturation_per_s
    n = len(runs[0][0].history.arrival_s)
    truths = [fifo.trace for fifo, _ in runs]
    rows = [
        {"policy": name, "load": load, "seed": number}
        | metrics.numbers(metrics.summarize(truth, live.history))
        for number, (truth, pair) in enumerate(zip(truths, runs, strict=True))
        for name, live in zip(("fifo", "policy"), pair, strict=True)
    ]
    bounds = [
        metrics.fewest_counted_violations(truth, cores=ready.workers, slo_s=ready.slo_s)
        for truth in truths
    ]
    loops_s = [live.run.loop_cpu_s for _, live in runs]
    return {
        "engine": ready.storage.engine,
        "policy": serving.policy,
        "estimator": serving.estimator,
        "fitted_on": len(ready.past),
        "arrivals": "Poisson",
        "load": load,
        "rate_per_s": rate_per_s,
        "saturation_per_s": ready.saturation_per_s,
        "slo_s": ready.slo_s,
        "workers": ready.workers,
        "seconds": max(serving.seconds, serving.rounds * serving.fewest / rate_per_s),
        "rounds": len(runs),
        "transactions": n,
        **metrics.outcome(
            pd.DataFrame(rows), "policy", load, (*metrics.MEANS, "p50_s", "p99_s")
        ),
        "lower_bound": float(np.mean(bounds)),
        "sequencer_cpu_s": float(np.mean(loops_s) / n),
    }
