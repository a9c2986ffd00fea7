"""Part I at scale: more partitions, and how far one sequencer goes.

*Weak scaling*: every partition has the cores, the transactions and the load of one, so
that a perfect system would do the same in each. *One sequencer*: what a decision costs,
by the cores that it decides for, against the time between two arrivals.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from thesis_book.experiments.sequencer.partitions import (
    EXCHANGE,
    Exchange,
    Partitioned,
    PartitionedHistory,
    merge,
    simulate_partitions,
)
from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.trace import F64
from thesis_lib.sequencer.experiments import grid
from thesis_lib.sequencer.experiments.configuration import NOISY, SimulationConfig
from thesis_lib.sequencer.experiments.metrics import summarize
from thesis_lib.sequencer.workload.scenarios import SCENARIOS, scenario

COST_MEAN_S, COST_P99_S = 10e-6, 25e-6  # goal: estimate and decision, a transaction
COST_HELD_S = 50e-6  # goal in front of a service, with ten thousand waiting


def decision_costs(cases: pd.DataFrame) -> pd.DataFrame:
    """The worst that estimating and deciding cost at any load in any scenario.

    `cases` are those of the record of `benchmarks/decide.py`. A row a policy, in
    microseconds a transaction: mean and 99th percentile of the decision, and of the
    decision and the estimate together, compiled; the mean of both if a loop in Python
    calls them compiled, and if the rule runs in Python; and whether the compiled two
    meet the goal.
    """
    costs = [f"{part}_{of}_us" for part in ("decide", "both") for of in ("mean", "p99")]
    worst = cases.pivot_table(
        costs, index="policy", columns="way", aggfunc="max", sort=False
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
    ends = {
        "load": cases["load"],
        "slo_ms": 1e3 * cases["slo_s"],
        "us": cases["decision_mean_us"],
    }
    return {
        f"crowded_{end}_{name}": float(find(values.to_numpy()))
        for name, values in ends.items()
        for end, find in (("least", np.min), ("most", np.max))
    }


OVERLOAD = 1.5  # so far above saturation, what commits is the capacity


def weak_scaling(
    config: SimulationConfig, policies: Sequence[str], partitions: Sequence[int],
    crossings: Sequence[float], load: float, *, seeds: int, seed: int,
    exchange: Exchange = EXCHANGE,
) -> pd.DataFrame:  # fmt: skip
    """One row per number of partitions, share that crosses, seed and policy.

    Every partition is one of `config` at this load, until the first runs out of
    arrivals; the k-th has the same transactions however many there are. One partition
    has nothing to cross to and stands for every share. Columns: partitions, crossing,
    seed, policy; `violations`, and of what crosses alone `violations_crossing`; commits
    a second of each partition, all and on time, as shares of the saturation of one
    (`throughput`, `goodput`); of the parts that cross, how long one waits for the other
    holding its locks (`wait_s`), and how many do so at a time in a partition (`aside`).
    """

    def measure(number: int, drawn: grid.Seeds, count: int) -> Iterator[dict]:
        trace_seed, crossing_seed, estimate_seed = drawn
        places = [
            config.arrange(config.make_trace(one), load, arrivals)
            for one, arrivals, _ in grid.paired_seeds(trace_seed, count)
        ]
        end_s = min(trace.arrival_s[-1] for trace in places)
        traces = [t.take(np.flatnonzero(t.arrival_s <= end_s)) for t in places]
        for crossing in crossings:
            work = merge(traces, crossing if count > 1 else 0.0, crossing_seed)
            estimated_s = NOISY(work.trace, estimate_seed)
            for name in policies:
                result = simulate_partitions(
                    work, config.policy(name), estimated_s, cores=config.cores,
                    slo_s=config.slo_s, exchange=exchange,
                )  # fmt: skip
                yield {
                    "partitions": count,
                    "crossing": crossing,
                    "seed": number,
                    "policy": name,
                    **_measures(work, result, config.saturation_per_s),
                }

    points = (
        (number, drawn, count)
        for number, drawn in enumerate(grid.paired_seeds(seed, seeds))
        for count in partitions
    )
    return grid.run_points(measure, points)


def _measures(
    work: Partitioned, result: PartitionedHistory, saturation_per_s: float
) -> dict[str, float]:
    report = summarize(work.trace, result.history)
    full_per_s = work.partitions * saturation_per_s
    aside_s = (result.ready_s - result.read_s)[~np.isnan(result.read_s)]
    violated = result.history.violated[work.crosses]
    until_s = work.trace.arrival_s[-1:]  # of a run in which nothing commits
    if not np.isnan(result.finish_s).all():
        until_s = result.finish_s
    span_s = np.nanmax(until_s) - work.trace.arrival_s[0]
    return {
        "violations": report.violations,
        "violations_crossing": float(violated.mean()) if len(violated) else np.nan,
        "throughput": report.throughput_per_s / full_per_s,
        "goodput": report.goodput_per_s / full_per_s,
        "wait_s": float(aside_s.mean()) if len(aside_s) else 0.0,
        "aside": float(aside_s.sum() / span_s / work.partitions),
    }


def capacities(runs: pd.DataFrame, exchange: Exchange = EXCHANGE) -> pd.DataFrame:
    """Throughput of `weak_scaling` at OVERLOAD, in percent of what saturates one alone.

    Means over the seeds: a row a number of partitions, a column a share that crosses
    and a policy; and, as policy "cores", what the cores alone would allow: what crosses
    is a share `exchange.repeated` more work than a local transaction, and waiting for
    locks can only make it less.
    """
    percent = 100 * runs.pivot_table(
        index="partitions", columns=["crossing", "policy"], values="throughput"
    )
    for crossing in sorted(runs["crossing"].unique()):
        percent[crossing, "cores"] = [
            100.0 / (1 + (crossing if count > 1 else 0.0) * exchange.repeated)
            for count in percent.index
        ]
    return percent.sort_index(axis=1)


def one_sequencer(cases: Sequence[Mapping]) -> pd.DataFrame:
    """Return a single sequencer's utilization, by policy, load and cores.

    `cases` are those of the record of `benchmarks/scale.py`. Columns: arrivals a second
    (`rate_per_s`), the mean cost of a decision to a transaction (`decide_us`), and
    their product (`busy`): above 1, one sequencer cannot keep up.
    """
    table = pd.DataFrame(cases).set_index(["policy", "load", "cores"]).sort_index()
    table = table.rename(columns={"decide_mean_us": "decide_us"})
    busy = 1e-6 * table["rate_per_s"] * table["decide_us"]
    return table[["rate_per_s", "decide_us"]].assign(busy=busy)


def decision_us(busy: pd.DataFrame, at: float, by: str = "rate_per_s") -> float:
    """Cost of a decision to a transaction between the sizes that were measured.

    `busy` are the rows of `one_sequencer` for a policy and a load, `at` a number of
    arrivals a second or, `by` "cores", of cores. Between two that were measured, cost
    is a power of it. Raises InvalidInput for what is not between any.
    """
    measured, costs_us = _in_order(busy, by, "decide_us")
    require(
        bool(measured[0] <= at <= measured[-1]),
        f"{by}={at:g} lies outside what was measured, {measured[0]:g} to "
        f"{measured[-1]:g}: measure more sizes",
    )
    return float(np.exp(np.interp(np.log(at), np.log(measured), np.log(costs_us))))


def saturated_at(busy: pd.DataFrame) -> float:
    """Arrivals a second at which one sequencer is always busy.

    `busy` as for `decision_us`; infinity if the largest rate measured does not saturate
    it. The smallest must not.
    """
    rates_per_s, shares = _in_order(busy, "rate_per_s", "busy")
    if shares[-1] < 1:
        return np.inf
    return float(np.exp(np.interp(0, np.log(shares), np.log(rates_per_s))))


def _in_order(busy: pd.DataFrame, by: str, name: str) -> tuple[F64, F64]:
    rows = busy.reset_index().sort_values(by)
    return rows[by].to_numpy(np.float64), rows[name].to_numpy(np.float64)


def grown(
    name: str, times: int, *, transactions: int, saturation_per_s: float
) -> SimulationConfig:
    """A reference scenario, `times` as large: one machine with one sequencer.

    It has as many cores, warehouses and `transactions` for each of them, and its
    saturation is taken to be as many times that of one, `saturation_per_s`.
    """
    spec = SCENARIOS[name]
    return SimulationConfig(
        make_trace=lambda seed: scenario(
            name, times * transactions, seed, times * spec.warehouses
        ),
        saturation_per_s=times * saturation_per_s,
        cores=times * spec.cores,
        slo_s=spec.slo_s,
    )


def behind_one_sequencer(
    machines: Sequence[SimulationConfig], policy: str, load: float,
    busy: pd.DataFrame, *, seeds: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Violations behind one sequencer, free of cost and with the cost measured.

    `busy` are the rows of `one_sequencer` for the policy and the load at which its
    decisions were measured: what one costs for as many cores as each of the `machines`
    has, whatever its `load`. Shares of 1: a row a machine, by its cores, and seed;
    columns "free" and "as measured".
    """
    columns = {}
    for config in machines:
        works_s = 1e-6 * decision_us(busy, config.cores, "cores")
        runs = grid.against_sequencing(
            config, [policy], load, [0.0, works_s], seeds=seeds, seed=seed
        )
        by_cost = runs.pivot_table("violations", "seed", "sequencer_s")
        columns[config.cores] = by_cost.set_axis(["free", "as measured"], axis=1)
    return pd.concat(columns, names=["cores"])


def one_or_many(
    machines: pd.DataFrame, runs: pd.DataFrame, policy: str, cores: int
) -> pd.DataFrame:
    """Violations in percent behind one sequencer beside those of partitions.

    `machines` are from `behind_one_sequencer`, `runs` from `weak_scaling` with `cores`
    in each partition. A row a number of cores that both have, and a seed: the two have
    the seed in common and no arrival, also where one partition is the machine.
    """
    chosen = runs[runs["policy"] == policy]
    chosen = chosen.assign(cores=cores * chosen["partitions"])
    many = chosen.pivot_table("violations", ["cores", "seed"], "crossing")
    many.columns = [f"partitions, {100 * share:g} % cross" for share in many.columns]
    one = machines.add_prefix("one sequencer, ")
    return 100 * one.join(many, how="inner")
