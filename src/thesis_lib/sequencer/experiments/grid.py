"""Experiments: every policy on the same transactions, arrivals and estimates.

These are common random numbers, seed by seed, so that differences have narrow
intervals. Points of a grid are measured on all cores.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd

from thesis_lib.common.errors import choice, require, require_count
from thesis_lib.sequencer.core.trace import F64, Trace
from thesis_lib.sequencer.estimators.models import ESTIMATORS, LEARNED, cut_tail
from thesis_lib.sequencer.estimators.saved import is_file
from thesis_lib.sequencer.experiments import metrics
from thesis_lib.sequencer.experiments.configuration import (
    NOISE,
    NOISY,
    Estimate,
    SimulationConfig,
    SystemOptions,
    learned_estimate,
    named_estimate,
    replay_config,
)
from thesis_lib.sequencer.policies.admission import BidPriceParameters
from thesis_lib.sequencer.policies.parameters import (
    AS_PUBLISHED,
    CORRECTED,
    Defects,
    Parameters,
)
from thesis_lib.sequencer.policies.registry import OwnRule

FITTED = 0.5  # share of a replayed trace, its first, that an estimator is fitted on
LEAST_FITTED = 100  # transactions there
POINTS = 4  # for each core: so many of a few seeds that no core waits long for another

Seeds = tuple[int, int, int]  # of transactions, arrivals and estimates


def paired_seeds(seed: int, seeds: int) -> list[Seeds]:
    """Seeds of transactions, arrivals and estimates for each of `seeds` replicates.

    Every policy is run on the same. Raises InvalidInput for none.
    """
    require_count("seeds", seeds)
    require_count("seed", seed, 0)
    spawned = np.random.SeedSequence(seed).spawn(seeds)
    states = (source.generate_state(3).tolist() for source in spawned)
    return [(trace, arrivals, estimates) for trace, arrivals, estimates in states]


def run_points(
    measure: Callable[..., Iterable[dict]], points: Iterable[tuple]
) -> pd.DataFrame:
    """The rows of `measure(*point)` for every point, in the order of the points.

    As many processes as there are cores share the points; LOKY_MAX_CPU_COUNT makes it
    fewer. A point brings its own seeds, so that the rows do not depend on how many.
    """
    with warnings.catch_warnings():
        # joblib replaces a process whose memory has grown, as a long trace makes it,
        # and warns. No point is lost: the next process takes what it has not begun.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs")
        # Arrays that joblib maps from a file are read-only, another type to numba.
        parallel = joblib.Parallel(
            n_jobs=-1, max_nbytes=None, backend="loky", initializer=_end_with,
            initargs=(os.getpid(),),
        )  # fmt: skip
        first, *others = points
        # This process compiles what the points need; workers load it from the cache.
        compiled = _rows_of(measure, first)
        measured: Any = parallel(
            joblib.delayed(_rows_of)(measure, point) for point in others
        )
    return pd.DataFrame([row for rows in [compiled, *measured] for row in rows])


def _end_with(parent: int) -> None:
    """End this process within a second after its parent ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _rows_of(measure: Callable[..., Iterable[dict]], point: tuple) -> list[dict]:
    return list(measure(*point))


class Paired(NamedTuple):
    """Inputs shared by everything that is compared at a seed and a load."""

    number: int  # of the seed, from 0
    load: float
    trace: Trace
    estimated_s: F64  # (n,)
    seeds: Seeds


def run_paired(
    measure: Callable[[Paired], Iterable[dict]],
    config: SimulationConfig,
    loads: Iterable[float],
    estimate: Estimate = NOISY,
    *,
    seeds: int,
    seed: int,
) -> pd.DataFrame:
    """Rows of `measure` at each seed and load, in this order.

    They begin with the columns `load` and `seed`, its number. Transactions and
    estimates of a seed are made once for several loads.
    """
    loads = list(loads)
    require(
        len(loads) == len(set(loads)) > 0,
        f"loads={loads}: expected one at least, and each once",
    )
    together = max(1, len(loads) * seeds // (POINTS * joblib.cpu_count()))

    def rows(number: int, drawn: Seeds, some: list[float]) -> Iterator[dict]:
        trace_seed, arrival_seed, estimate_seed = drawn
        transactions = config.make_trace(trace_seed)
        estimated_s = estimate(transactions, estimate_seed)
        for load in some:
            trace = config.arrange(transactions, load, arrival_seed)
            for row in measure(Paired(number, load, trace, estimated_s, drawn)):
                yield {"load": load, "seed": number} | row

    return run_points(
        rows,
        [
            (number, drawn, loads[at : at + together])
            for number, drawn in enumerate(paired_seeds(seed, seeds))
            for at in range(0, len(loads), together)
        ],
    )


# Names, or labels with a name and its parameters, the default ones if None.
Policies = Sequence[str] | Mapping[str, tuple[str | OwnRule, Parameters | None]]


def replicate(
    config: SimulationConfig,
    policies: Policies,
    loads: Iterable[float],
    estimate: Estimate = NOISY,
    *,
    seeds: int,
    seed: int,
    bound: bool = False,
) -> pd.DataFrame:
    """Simulate each policy at each load with the same seeds.

    Args:
        config: The simulated system and workload.
        policies: Names, or labels with a name and parameters each.
        loads: Loads in multiples of the saturation.
        estimate: Function (trace, seed) to estimated service times (n,) in seconds.
        seeds: Number of seeds.
        seed: Seed that the others derive from.
        bound: Whether to add the lower bound, as policy "bound". If types have SLOs of
            their own, it takes the longest one and is weak.

    Returns:
        A frame with a row per load, seed and policy, and the columns of `Report`.

    Raises:
        InvalidInput: If a bound is requested of a closed loop.

    Example:
        >>> from thesis_lib.sequencer import SimulationConfig, noisy_estimate, replicate
        >>> config = SimulationConfig.of_scenario("A", transactions=500)
        >>> policies, estimate = ["fifo", "bid-price"], noisy_estimate()
        >>> runs = replicate(config, policies, [1.1], estimate, seeds=2, seed=1)
        >>> runs.groupby("policy")["violations"].mean().round(3).to_dict()
        {'bid-price': 0.0, 'fifo': 0.032}
    """
    require(
        not bound or config.clients is None,
        "a closed loop has no lower bound: its arrivals depend on the policy",
    )
    if not isinstance(policies, Mapping):
        policies = {name: (name, None) for name in policies}

    def measure(at: Paired) -> Iterator[dict]:
        for label, (name, params) in policies.items():
            policy = config.policy(name, params)
            report = config.run(at.trace, policy, at.estimated_s, at.load)
            yield {"policy": label} | metrics.numbers(report)
        if bound:
            each_s = config.objectives_s or [config.slo_s]
            longest_s = max(each for each in each_s if each < np.inf)
            fewest = metrics.fewest_counted_violations(
                at.trace, cores=config.cores, slo_s=longest_s
            )
            yield {"policy": "bound", "violations": fewest}

    return run_paired(measure, config, loads, estimate, seeds=seeds, seed=seed)


def run_grid(
    cases: Mapping[Any, SimulationConfig], by: str, policies: Policies,
    loads: Iterable[float], *, seeds: int, seed: int, bound: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """The rows of `replicate` in every case, whose label the column `by` keeps."""
    loads = list(loads)
    runs = [
        replicate(config, policies, loads, seeds=seeds, seed=seed, bound=bound)
        for config in cases.values()
    ]
    labeled = zip(cases, runs, strict=True)
    return pd.concat(
        [rows.assign(**{by: label}) for label, rows in labeled], ignore_index=True
    )


def against_sequencing(
    config: SimulationConfig, policies: Sequence[str], load: float,
    sequencer_s: Sequence[float], *, seeds: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Runs against what the sequencer works on each transaction, in seconds.

    As from `replicate`, with a column `sequencer_s`; all else stays the same.
    """
    cases = {
        works_s: replace(config, delays=replace(config.delays, sequencer_s=works_s))
        for works_s in sequencer_s
    }
    return run_grid(
        cases, "sequencer_s", policies=policies, loads=[load], seeds=seeds, seed=seed
    )


def ablation(
    config: SimulationConfig,
    policy: str,
    load: float,
    *,
    estimator: str,
    past: Trace,
    seeds: int,
    seed: int,
) -> pd.DataFrame:
    """Return the cost of each defect of `policy` ("drop", "reorder", "hybrid").

    One row for the policy as described, for each defect corrected alone in it, for the
    policy without any, and for each defect put back alone into that; all on the same
    seeds. Columns: `from` ("described" or "corrected"), `defect` (empty for the two
    ends), the strict and the lenient count in percent, and for either its difference
    from the end it started `from`, in points, with the interval of paired seeds
    (`strict_change`, `strict_low`, `strict_high`, and so on). The learned `estimator`
    is fitted on `past`, and for the defect `cut_tail` on what that leaves of it.
    """
    variants = {
        (start, defect): defects if not defect else replace(
            defects, **{defect: not getattr(defects, defect)}
        )
        for start, defects in (("described", AS_PUBLISHED), ("corrected", CORRECTED))
        for defect in ("", *Defects.names())
    }  # fmt: skip

    def labeled(cut: bool) -> Policies:
        return {
            " ".join(variant): (policy, defects)
            for variant, defects in variants.items()
            if defects.cut_tail == cut
        }

    runs = pd.concat(
        replicate(
            config, labeled(cut), [load],
            learned_estimate(estimator, cut_tail(past) if cut else past),
            seeds=seeds, seed=seed,
        )
        for cut in (False, True)
    )  # fmt: skip
    rows = []
    for start, defect in variants:
        row: dict[str, str | float] = {"from": start, "defect": defect}
        for count, name in (("strict", "violations"), ("lenient", "lenient")):
            shares, ends = (
                metrics.column(runs, f"{start} {of}", load, name) for of in (defect, "")
            )
            change = metrics.difference_interval(shares, ends)
            row |= {
                count: 100 * shares.mean(),
                **metrics.in_percent(f"{count}_change", change, f"{count}_"),
            }
        rows.append(row)
    return pd.DataFrame(rows)


DESIGN_SEED = 31_337  # policies were chosen on its traces; evaluations use others

# Where Hybrid as described reduces violations as much as was published: found among
# scenarios, loads, batches, timers, loops and biases on design seeds (chapter 4).
PUBLISHED_SCENARIO, PUBLISHED_LOAD = "B", 0.98


# --- One point of the evaluation -----------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Study:
    """One point of the evaluation: transactions, their arrivals, estimates, a system.

    A learned estimator is fitted on another seed of a scenario, or on the first half of
    a trace, of which only the rest is replayed. `estimator` may also name a file of
    `save_estimator`. Raises InvalidInput for values that contradict one another.
    """

    scenario: str | None = None  # either a name: A, B or C
    trace: Trace | Path | str | None = None  # or a trace to replay, or its file,
    rows: tuple[int, int] | None = None  # of which only these rows are read
    load: float | None = None  # over FIFO's saturation rate; None: as the trace arrives
    estimator: str = "noisy"
    noise: float = NOISE  # sigma of the estimator "noisy"
    bias: float = 1.0  # multiplies every estimate
    seed: int = 0
    transactions: int | None = None  # None: 20,000 of a scenario, all of a trace
    warehouses: int | None = None  # of the scenario
    system: SystemOptions = field(default_factory=SystemOptions)

    def __post_init__(self) -> None:
        load, clients = self.load, self.system.get("clients")
        require(load is None or load > 0, f"load={load} must be positive")
        require(
            load != np.inf or clients is not None,
            "load=inf needs clients of a closed loop, who then do not think between "
            "two transactions: expected a finite load in an open one",
        )
        require(
            (self.scenario is None) != (self.trace is None),
            "give either a scenario or a trace: exactly one of the two",
        )
        require(
            self.trace is not None or self.rows is None,
            f"rows={self.rows} are of a trace, and a scenario has none: give "
            "transactions instead",
        )
        require(
            self.trace is None or self.warehouses is None,
            f"warehouses={self.warehouses} belongs to a scenario: a trace says itself "
            "which keys its transactions lock",
        )
        require(
            self.trace is not None or load is not None,
            "a scenario has no arrivals of its own: give the load, such as 1.1",
        )
        require(
            0 < self.bias < np.inf,
            f"bias={self.bias:g}: expected a positive, finite factor; 1 leaves "
            "estimates alone",
        )
        if clients is not None:
            require_count("clients", clients)
        if not is_file(self.estimator):
            choice("estimator", self.estimator, ESTIMATORS)

    def prepare(self) -> "Point":
        """Return the configuration, the load and the estimates of this point."""
        point = self._in_scenario() if self.trace is None else self._on_trace()
        estimate = point.estimate
        return point._replace(
            estimate=lambda trace, seed: self.bias * estimate(trace, seed)
        )

    def _in_scenario(self) -> "Point":
        assert self.scenario is not None
        assert self.load is not None
        n = 20_000 if self.transactions is None else self.transactions
        config = SimulationConfig.of_scenario(
            self.scenario, transactions=n, warehouses=self.warehouses, **self.system
        )
        fitted_on = n if self.estimator in LEARNED else 0
        estimate = named_estimate(self.estimator, config, self.noise)
        return Point(config, self.load, estimate, "Poisson", fitted_on, n)

    def _on_trace(self) -> "Point":
        judged, past = self.trace, None
        if not isinstance(judged, Trace):
            assert judged is not None
            judged = Trace.read(judged, self.rows)
        if self.estimator in LEARNED:
            past, judged = _held_out(judged, self.estimator)
        n = len(judged) if self.transactions is None else self.transactions
        require(
            1 <= n <= len(judged),
            f"transactions={n}: expected 1 to the {len(judged)} that are to be "
            "replayed",
        )
        config, load = replay_config(
            judged.take(np.arange(n)), self.load, **self.system
        )
        estimate = (
            named_estimate(self.estimator, config, self.noise)
            if past is None
            else learned_estimate(self.estimator, past)
        )
        arrivals = "its own" if self.load is None else "its own, stretched"
        fitted_on, drawn = 0 if past is None else len(past), self.estimator == "noisy"
        return Point(config, load, estimate, arrivals, fitted_on, n, drawn)


class Point(NamedTuple):
    """A configuration, a load, and the estimates that a policy gets there."""

    config: SimulationConfig
    load: float
    estimate: Estimate
    arrivals: str  # how they came about
    fitted_on: int  # transactions that the estimator has learned from
    transactions: int
    drawn: bool = True  # whether one seed differs from another

    def run(self, policies: Policies, seeds: int, seed: int) -> pd.DataFrame:
        """Run every policy, and the lower bound where the loop is open."""
        return replicate(
            self.config, policies, [self.load], self.estimate,
            seeds=seeds if self.drawn else min(seeds, 1), seed=seed,  # else all alike
            bound=self.config.clients is None,
        )  # fmt: skip

    def result(self, runs: pd.DataFrame, policy: str, estimator: str) -> dict[str, Any]:
        """Return how a policy was simulated, and its outcome with that of FIFO."""
        config, load, is_open = self.config, self.load, self.config.clients is None
        full = config.saturation
        unsure = {} if self.drawn else {"violations_ci": None, "reduction_ci": None}
        return {
            "policy": policy,
            "estimator": estimator,
            "fitted_on": self.fitted_on,
            "arrivals": self.arrivals if is_open else "closed loop",
            "load": load,
            "rate_per_s": load * config.saturation_per_s,
            "saturation_per_s": config.saturation_per_s,
            "saturation_ci": full and (full.low, full.high),
            "clients": config.clients,
            "seeds": runs["seed"].nunique(),
            "transactions": self.transactions,
            **metrics.outcome(runs, policy, load),
            **unsure,
            "lower_bound": metrics.mean(runs, "bound", load) if is_open else None,
        }


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


def simulate_cell(
    policy: str, study: Study, *, seeds: int = 5, gap: float = np.inf
) -> dict[str, Any]:
    """Return the result of `thesis simulate`: a policy, FIFO and the lower bound.

    All run on the same seeds. `gap` bounds, for bid-price, how much larger the share of
    violations of one type may be than of another. Shares are fractions of 1; intervals
    are (low, high), and None where a replayed trace is one sample and nothing was drawn
    for it; a closed loop has no lower bound (None). Raises InvalidInput for anything
    that cannot be run.
    """
    point, fair = study.prepare(), None
    if gap != np.inf:
        groups = len(point.config.make_trace(study.seed).kinds)
        fair = BidPriceParameters(gap=gap, groups=groups)
    runs = point.run(
        {"fifo": ("fifo", None), policy: (policy, fair)}, seeds, study.seed
    )
    return point.result(runs, policy, study.estimator)


def compare_policies(
    policies: Sequence[str], study: Study, *, seeds: int = 8
) -> dict[str, Any]:
    """Which policy has the fewest violations, judged on seeds that did not choose it.

    In a scenario, the one with the fewest on `seeds` seeds is `chosen`, and is compared
    with each of the others on as many more. `policies` holds what `simulate_cell`
    returns of each on those, the fewest violations first, with `more`, by how much its
    share is larger than that of the chosen one, the ends of that in `more_ci`, and in
    `chosen_has` whether the chosen one has "fewer" or "more" violations, or that is
    "untold" for all of them together (`told_apart`). A trace is one sample of
    transactions, of which seeds draw the errors of the estimates alone: the same seeds
    choose and judge, and neither interval nor side is given. Raises InvalidInput for
    one policy alone.
    """
    names = list(dict.fromkeys(policies))
    require(len(names) > 1, f"policies={names}: expected two or more to compare")
    require_count("seeds", seeds)
    sampled, point = study.trace is None, study.prepare()
    designs = ["fifo", *(name for name in names if name != "fifo")]
    runs = point.run(designs, 2 * seeds if sampled else seeds, study.seed)
    chooses, judged = runs.loc[runs["seed"] < seeds], runs.loc[runs["seed"] >= seeds]
    if not sampled:
        judged = chooses
    chosen = min(names, key=lambda name: metrics.mean(chooses, name, point.load))
    sides: Mapping[str, str] = {}
    if sampled:
        beside = metrics.told_apart(judged.query("policy in @names"), chosen)
        sides = dict(zip(beside["policy"], beside["side"], strict=True))
    results = []
    for name in names:
        more = metrics.difference_interval(
            *(
                metrics.column(judged, each, point.load, "violations")
                for each in (name, chosen)
            )
        )
        ends = (more.low, more.high) if sampled else None
        compared = {"more": more.value, "more_ci": ends, "chosen_has": sides.get(name)}
        results.append(point.result(judged, name, study.estimator) | compared)
    results.sort(key=lambda each: each["violations"])
    return {"chosen": chosen, "policies": results}
