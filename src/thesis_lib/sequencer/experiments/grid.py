"""Experiments: every policy on the same transactions, arrivals and estimates.

These are common random numbers, seed by seed, so that differences have narrow
intervals. Points of a grid are measured on all cores.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd

from thesis_lib.common.errors import InvalidInput, choice, require, require_count
from thesis_lib.sequencer.core.trace import F64, Trace
from thesis_lib.sequencer.estimators.models import ESTIMATORS, LEARNED, cut_tail
from thesis_lib.sequencer.estimators.saved import is_file
from thesis_lib.sequencer.experiments import metrics
from thesis_lib.sequencer.experiments.configuration import (
    NOISE,
    NOISY,
    Estimate,
    SimulationConfig,
    learned_estimate,
    named_estimate,
    replay_config,
)
from thesis_lib.sequencer.policies.registry import (
    AS_PUBLISHED,
    CORRECTED,
    Defects,
)

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
    made = (source.generate_state(3).tolist() for source in spawned)
    return [(trace, arrivals, estimates) for trace, arrivals, estimates in made]


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
    """End this process within a second of that one, even amid a point.

    Where it computes in compiled code, once that returns.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _rows_of(measure: Callable[..., Iterable[dict]], point: tuple) -> list[dict]:
    return list(measure(*point))


class Paired(NamedTuple):
    """What everything that is compared at a seed and a load has in common."""

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


Policies = Sequence[str] | Mapping[str, tuple[str, Mapping[str, Any]]]


def replicate(
    config: SimulationConfig,
    policies: Policies,
    loads: Iterable[float],
    estimate: Estimate = NOISY,
    *,
    seeds: int,
    seed: int,
    bound: bool = False,
    **options,
) -> pd.DataFrame:
    """One row per load, seed and policy, each seed the same for every policy.

    `policies` are names, or labels with a name and options each; `options` are those of
    all, as of `policy`. Columns: load, seed, policy, then the numbers of `Report` and,
    as policy "bound", the lower bound if asked for; where types have objectives of
    their own it takes the longest for all, and is weak. Raises InvalidInput
    for a bound on a closed loop, whose arrivals are what the policy makes of them.

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
        policies = {name: (name, {}) for name in policies}

    def measure(at: Paired) -> Iterator[dict]:
        for label, (name, own) in policies.items():
            policy = config.policy(name, **options, **own)
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
    cases: Mapping[Any, SimulationConfig | Mapping[str, Any]], by: str, **common: Any
) -> pd.DataFrame:
    """The rows of `replicate` in every case, whose label the column `by` keeps.

    A case is a configuration, or holds those arguments of `replicate` that differ;
    `common` is what all share, their seeds among it.
    """
    made = []
    for label, case in cases.items():
        differs = {"config": case} if isinstance(case, SimulationConfig) else case
        made.append(replicate(**{**common, **differs}).assign(**{by: label}))
    return pd.concat(made, ignore_index=True)


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
    """What each of the thesis' defects costs `policy` ("drop", "reorder", "hybrid").

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

    def labelled(cut: bool) -> Policies:
        return {
            " ".join(variant): (policy, {"defects": defects})
            for variant, defects in variants.items()
            if defects.cut_tail == cut
        }

    cases = {
        cut: {
            "policies": labelled(cut),
            "estimate": learned_estimate(estimator, cut_tail(past) if cut else past),
        }
        for cut in (False, True)
    }
    runs = run_grid(
        cases, "cut_tail", config=config, loads=[load], seeds=seeds, seed=seed
    )
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


def compare_designs(
    config: SimulationConfig, designs: Policies, loads: Sequence[float], seeds: int
) -> pd.DataFrame:
    """Violations of policies in percent, by load, on design seeds."""
    runs = replicate(config, designs, loads, seeds=seeds, seed=DESIGN_SEED)
    return metrics.table(runs).rename_axis("design")


# --- One point of the evaluation -----------------------------------------------
class Point(NamedTuple):
    """A configuration, a load, and the estimates that a policy gets there."""

    config: SimulationConfig
    load: float
    estimate: Estimate
    labels: dict[str, Any]  # how the estimates and arrivals came about
    transactions: int
    drawn: bool = True  # whether one seed differs from another


def simulate_cell(
    *, policy: str, seeds: int = 5, seed: int = 0, gap: float = np.inf, **options: Any
) -> dict:
    """What `thesis simulate` says: a policy in a `scenario` or on a `trace`.

    `policy` stands beside FIFO and the lower bound on the same seeds. `gap` bounds, for
    bid-price, how much larger the share of violations of one type may be than of
    another. `options` are those of `_point`, and what `SimulationConfig` may be made
    with; None stands for what is not given. Shares are fractions of 1; intervals are
    (low, high), and None where a replayed trace is one sample and nothing was drawn for
    it; a closed loop has no lower bound (None). Raises InvalidInput for anything that
    cannot be run.
    """
    point = _point(**options)
    fair: dict = {}
    if gap != np.inf:
        fair = {"gap": gap, "groups": len(point.config.make_trace(seed).kinds)}
    designs = {"fifo": ("fifo", {}), policy: (policy, fair)}
    return _said(point, _runs(point, designs, seeds, seed), policy)


def compare_policies(
    policies: Sequence[str], *, seeds: int = 8, seed: int = 0, **options: Any
) -> dict:
    """Which policy has the fewest violations, judged on seeds that did not choose it.

    In a scenario, the one with the fewest on `seeds` seeds is `chosen`, and stands
    against each of the others on as many more. `policies` holds what `simulate_cell`
    says of each on those, the fewest violations first, with `more`, by how much its
    share is larger than that of the chosen one, the ends of that in `more_ci`, and in
    `chosen_has` whether the chosen one has "fewer" or "more" violations, or that is
    "untold" for all of them together (`told_apart`). A trace is one sample of
    transactions, of which seeds draw the errors of the estimates alone: the same seeds
    choose and judge, and neither interval nor side is given. `options` are those of
    `simulate_cell` but for `gap`. Raises InvalidInput for one policy alone.
    """
    names = list(dict.fromkeys(policies))
    require(len(names) > 1, f"policies={names}: expected two or more to compare")
    require_count("seeds", seeds)
    sampled = options.get("trace") is None
    point = _point(**options)
    designs = {name: (name, {}) for name in ("fifo", *names)}
    runs = _runs(point, designs, 2 * seeds if sampled else seeds, seed)
    chooses, judged = runs.loc[runs["seed"] < seeds], runs.loc[runs["seed"] >= seeds]
    if not sampled:
        judged = chooses
    chosen = min(names, key=lambda name: metrics.mean(chooses, name, point.load))
    sides: Mapping[str, str] = {}
    if sampled:
        beside = metrics.told_apart(judged.query("policy in @names"), chosen)
        sides = dict(zip(beside["policy"], beside["side"], strict=True))
    said = []
    for name in names:
        more = metrics.difference_interval(
            *(
                metrics.column(judged, each, point.load, "violations")
                for each in (name, chosen)
            )
        )
        ends = (more.low, more.high) if sampled else None
        compared = {"more": more.value, "more_ci": ends, "chosen_has": sides.get(name)}
        said.append(_said(point, judged, name) | compared)
    said.sort(key=lambda each: each["violations"])
    return {"chosen": chosen, "policies": said}


def _point(
    *, scenario: str | None = None, trace: Trace | Path | str | None = None,
    bias: float = 1.0, **options: Any,
) -> Point:  # fmt: skip
    """A point in a scenario or on a trace; every estimate is multiplied by `bias`.

    `options` are `load`, `estimator`, `transactions`, `noise`, of a trace `rows`, and
    those of a SimulationConfig.
    """
    load, clients = options.get("load"), options.get("clients")
    require(load is None or load > 0, f"load={load} must be positive")
    require(
        load != np.inf or clients is not None,
        "load=inf needs clients of a closed loop, who then do not think between two "
        "transactions: expected a finite load in an open one",
    )
    if clients is not None:
        require_count("clients", clients)
    require(
        (scenario is None) != (trace is None),
        "give either a scenario or a trace: exactly one of the two",
    )
    require(
        trace is not None or options.get("rows") is None,
        f"rows={options.get('rows')} are of a trace, and a scenario has none: give "
        "transactions instead",
    )
    estimator = options.get("estimator") or "noisy"
    if not is_file(estimator):
        choice("estimator", estimator, ESTIMATORS)
    given = {name: value for name, value in options.items() if value is not None}
    point = (
        _in_scenario(scenario or "", **given)
        if trace is None
        else _on_trace(trace, **given)
    )
    require(
        0 < bias < np.inf,
        f"bias={bias:g}: expected a positive, finite factor; 1 leaves estimates alone",
    )
    return point._replace(estimate=_biased(point.estimate, bias))


def _biased(estimate: Estimate, bias: float) -> Estimate:
    return lambda trace, seed: bias * estimate(trace, seed)


def _in_scenario(
    name: str, load: float | None = None, estimator: str = "noisy", *,
    transactions: int = 20_000, noise: float = NOISE, **options,
) -> Point:  # fmt: skip
    """A reference scenario; a learned estimator is fitted on another seed of it."""
    if load is None:
        raise InvalidInput(
            "a scenario has no arrivals of its own: give the load, such as 1.1"
        )
    config = SimulationConfig.of_scenario(name, transactions=transactions, **options)
    labels = {
        "estimator": estimator,
        "fitted_on": transactions if estimator in LEARNED else 0,
        "arrivals": "Poisson",
    }
    estimate = named_estimate(estimator, config, noise)
    return Point(config, load, estimate, labels, transactions)


def _on_trace(
    trace: Trace | Path | str, load: float | None = None, estimator: str = "noisy", *,
    transactions: int | None = None, noise: float = NOISE,
    warehouses: int | None = None, rows: tuple[int, int] | None = None, **options,
) -> Point:  # fmt: skip
    """A collected trace or the path of one, replayed: see `replay_config`.

    Of a path only `rows` are read, if given. A learned estimator is fitted on its first
    half, FITTED of its transactions by arrival, and only what came later is replayed,
    or its first `transactions`.
    """
    require(
        warehouses is None,
        f"warehouses={warehouses} belongs to a scenario: a trace says itself which "
        "keys its transactions lock",
    )
    judged, past = trace if isinstance(trace, Trace) else Trace.read(trace, rows), None
    if estimator in LEARNED:
        past, judged = _held_out(judged, estimator)
    n = len(judged) if transactions is None else transactions
    require(
        1 <= n <= len(judged),
        f"transactions={transactions}: expected 1 to the {len(judged)} that are to be "
        "replayed",
    )
    config, at = replay_config(judged.take(np.arange(n)), load, **options)
    estimate = (
        named_estimate(estimator, config, noise)
        if past is None
        else learned_estimate(estimator, past)
    )
    labels = {
        "estimator": estimator,
        "fitted_on": 0 if past is None else len(past),
        "arrivals": "its own" if load is None else "its own, stretched",
    }
    return Point(config, at, estimate, labels, n, estimator == "noisy")


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


def _runs(point: Point, designs: Policies, seeds: int, seed: int) -> pd.DataFrame:
    """Of every policy, and of the lower bound where the loop is open."""
    return replicate(
        point.config, designs, [point.load], point.estimate,
        seeds=seeds if point.drawn else min(seeds, 1), seed=seed,  # else all the same
        bound=point.config.clients is None,
    )  # fmt: skip


def _said(point: Point, runs: pd.DataFrame, policy: str) -> dict:
    """What is said of a policy: how it was simulated, and its outcome beside FIFO."""
    config, load, is_open = point.config, point.load, point.config.clients is None
    full = config.saturation
    unsure = {} if point.drawn else {"violations_ci": None, "reduction_ci": None}
    return {
        "policy": policy,
        **point.labels,
        **({} if is_open else {"arrivals": "closed loop"}),
        "load": load,
        "rate_per_s": load * config.saturation_per_s,
        "saturation_per_s": config.saturation_per_s,
        "saturation_ci": full and (full.low, full.high),
        "clients": config.clients,
        "seeds": runs["seed"].nunique(),
        "transactions": point.transactions,
        **metrics.outcome(runs, policy, load),
        **unsure,
        "lower_bound": metrics.mean(runs, "bound", load) if is_open else None,
    }
