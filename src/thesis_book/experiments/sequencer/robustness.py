"""Policies where the world is not as assumed: estimates, arrivals, workloads.

Every comparison is with FIFO on the same transactions, which asks no estimate and gains
or loses nothing by a wrong one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from thesis_book.experiments.sequencer.perturbations import (
    MISESTIMATIONS,
    View,
    anything,
)
from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.trace import F64, I64
from thesis_lib.sequencer.experiments import metrics
from thesis_lib.sequencer.experiments.configuration import NOISY, SimulationConfig
from thesis_lib.sequencer.experiments.grid import Paired, run_paired, run_points
from thesis_lib.sequencer.workload.arrivals import flash_crowd_arrivals, mmpp2_arrivals
from thesis_lib.sequencer.workload.scenarios import SERVICE_SIGMA, Prices, priced
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.transactions import Scale, YcsbScale
from thesis_lib.sequencer.workload.ycsb import ycsb

CROWD_LOADS = 0.9, 1.5  # before and in a flash crowd
RECOVERY_TOLERANCE = 0.01  # so many more violations than before it count as recovered
RECOVERY_GOAL_S = 0.02  # goal: in that time
NON_INFERIORITY_MARGIN = 0.002  # goal: never more violations than FIFO and so much
# Arrivals under wrong estimates before those that `under_random_misestimation` counts.
LEARNING = 4_000
DRAWN_LOADS, DRAWN_OBJECTIVES = (0.3, 1.5), (0.5, 1, 2)

BURSTS, BURST_S = (0.5, 1.5), 0.05  # rates of an MMPP-2 over their mean, mean sojourn


def under_misestimation(
    config: SimulationConfig, policies: Sequence[str], loads: Sequence[float],
    names: Sequence[str] = tuple(MISESTIMATIONS), *, seeds: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """One row per misestimation, load, seed and policy; FIFO is always among these.

    Columns: misestimation, load, seed, policy and the share of violations.
    """
    policies = list(dict.fromkeys(["fifo", *policies]))

    def measure(at: Paired) -> Iterator[dict]:
        for name in names:
            rng = np.random.default_rng([at.seeds[-1], 1])
            seen = MISESTIMATIONS[name](View(at.trace, at.estimated_s), rng)
            for policy in policies:
                report = config.run(
                    seen.trace, config.policy(policy), seen.estimated_s, at.load
                )
                yield {
                    "misestimation": name,
                    "policy": policy,
                    "violations": report.violations,
                }

    runs = run_paired(measure, config, loads, seeds=seeds, seed=seed)
    order = ["misestimation", "load", "seed", "policy", "violations"]
    return runs.reindex(columns=order)


def beyond_fifo(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a policy's violations minus FIFO's, in points, over paired seeds.

    `runs` as from `under_misestimation`. A row for each misestimation, load and policy
    but FIFO: `fifo` and the policy's `percent`, the difference `points` with its 95 %
    interval (`low`, `high`), and whether the whole interval is `within`
    NON_INFERIORITY_MARGIN.
    """

    def row(at: pd.DataFrame, name: str, load: float, policy: str) -> dict:
        at = runs.loc[(runs["misestimation"] == name) & (runs["load"] == load)]
        fifo, share = (
            metrics.column(at, p, load, "violations") for p in ("fifo", policy)
        )
        more = metrics.difference_interval(share, fifo)
        return {
            "fifo": 100 * fifo.mean(),
            "percent": 100 * share.mean(),
            **metrics.in_percent("points", more),
            "within": more.high <= NON_INFERIORITY_MARGIN,
        }

    others = runs.loc[runs["policy"] != "fifo"]
    return metrics.by_case(
        others, ["misestimation", "load", "policy"], row
    ).reset_index()


def verdict(table: pd.DataFrame, policy: str) -> dict[str, float | int | str]:
    """Return the results of `policy` in a table of `beyond_fifo`, and the worst.

    `settings`, of which so many are `within`; and of the one whose interval ends
    highest its `misestimation`, `load` and `points` with their `metrics.ENDS`.
    """
    at = table.loc[table["policy"] == policy]
    worst = at.iloc[int(np.argmax(at["high"]))]
    return {
        "settings": len(at),
        "within": int(np.sum(at["within"])),
        "misestimation": worst["misestimation"],
        **{name: worst[name] for name in ("load", "points", *metrics.ENDS)},
    }


def added(table: pd.DataFrame, policy: str, names: Sequence[str]) -> float:
    """The most that any of the misestimations `names` adds to a policy, in points.

    From a table of `beyond_fifo`: against its violations under "none" at the same load.
    """
    at = table.loc[table["policy"] == policy].pivot_table(
        index="misestimation", columns="load", values="percent"
    )
    return float((at.loc[list(names)] - at.loc["none"]).to_numpy().max())


def under_random_misestimation(
    configs: Mapping[str, SimulationConfig], policy: str, *, cases: int, seed: int
) -> pd.DataFrame:
    """One row per case: a random misestimation somewhere, FIFO, and a policy.

    Drawn are one of `configs`, a load between DRAWN_LOADS, one of DRAWN_OBJECTIVES as a
    multiple of its own objective, what is wrong with the estimates
    (`perturbations.anything`), and whether from the start or from which row on. The
    shares of violations `fifo` and `policy` are of what arrives LEARNING transactions
    later or after that, in runs of twice LEARNING or more. Columns: cell (the name of
    the configuration), load, objective, after, fifo, policy.
    """

    def measure(source: np.random.SeedSequence) -> Iterator[dict]:
        rng = np.random.default_rng(source)
        name = str(rng.choice(list(configs)))
        load = float(rng.uniform(*DRAWN_LOADS))
        times = float(rng.choice(DRAWN_OBJECTIVES))
        config = replace(configs[name], slo_s=times * configs[name].slo_s)
        transactions = config.make_trace(int(rng.integers(2**31)))
        n = len(transactions)
        estimated_s = NOISY(transactions, int(rng.integers(2**31)))
        trace = config.arrange(transactions, load, int(rng.integers(2**31)))
        after = int(rng.choice([0, int(rng.integers(n - 2 * LEARNING + 1))]))
        seen = anything(View(trace, estimated_s), rng, after)
        row = {"cell": name, "load": load, "objective": times, "after": after}
        for label, tried in (("fifo", "fifo"), ("policy", policy)):
            past = config.history(trace, config.policy(tried), seen.estimated_s, load)
            row[label] = float(past.violated[after + LEARNING :].mean())
        yield row

    sources = np.random.SeedSequence(seed).spawn(cases)
    return run_points(measure, [(source,) for source in sources])


def bursty_arrivals(rate_per_s: float, n: int, rng: np.random.Generator) -> F64:
    """(n,) arrivals of an MMPP-2 of this mean rate: half and one and a half of it."""
    low, high = BURSTS
    return mmpp2_arrivals(
        (low * rate_per_s, high * rate_per_s), (BURST_S, BURST_S), n, rng
    )


@dataclass(frozen=True, slots=True)
class FlashCrowd:
    """A flash crowd: for `last_s`, from `begin_s` on, `times` as many arrive."""

    times: float
    begin_s: float
    last_s: float

    @property
    def end_s(self) -> float:
        """Return when the rate is back to normal."""
        return self.begin_s + self.last_s

    def arrivals(self, rate_per_s: float, n: int, rng: np.random.Generator) -> F64:
        """(n,) arrival times; the rate is that before and after."""
        span_s = self.begin_s, self.end_s
        return flash_crowd_arrivals(rate_per_s, self.times * rate_per_s, span_s, n, rng)

    def transactions(self, rate_per_s: float, after_s: float) -> int:
        """Return the expected arrivals up to `after_s` after the crowd."""
        spans_s = self.begin_s + after_s + self.times * self.last_s
        return round(rate_per_s * spans_s)


def through_a_crowd(
    config: SimulationConfig, crowd: FlashCrowd, policies: Sequence[str], load: float,
    *, window_s: float, seeds: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """(windows x policies) share of the arrivals of each window that violate.

    Windows of `window_s` count from the end of the crowd, at which one begins; the
    index is where they begin, in seconds. Only whole windows within the run of every
    seed are there. Every seed counts by its arrivals.
    """
    crowded = replace(config, arrivals=crowd.arrivals)
    first = -int(crowd.end_s / window_s)

    def measure(at: Paired) -> Iterator[dict]:
        window = np.floor((at.trace.arrival_s - crowd.end_s) / window_s).astype(int)
        inside = window >= first
        place = window[inside] - first
        row = {"arrived": _by_window(place, np.ones(len(place)))}
        for name in policies:
            policy = crowded.policy(name)
            history = crowded.history(at.trace, policy, at.estimated_s, at.load)
            row[name] = _by_window(place, history.violated[inside].astype(float))
        yield row

    runs = run_paired(measure, crowded, [load], seeds=seeds, seed=seed)
    arrived = runs["arrived"]
    whole = min(len(count) for count in arrived)
    require(
        whole > -first,
        f"the runs end before the crowd does, at {crowd.end_s:g} s: more transactions "
        "are needed",
    )
    total = sum(count[:whole] for count in arrived)
    shares = {
        policy: sum(count[:whole] for count in runs[policy]) / np.maximum(total, 1)
        for policy in policies
    }
    begins_s = window_s * (first + np.arange(whole))
    return pd.DataFrame(shares, index=pd.Index(begins_s, name="from_s"))


def _by_window(window: I64, weights: F64) -> F64:
    """Sums of `weights` (n,) in each of the whole windows, all but the last."""
    return np.bincount(window, weights)[:-1].astype(np.float64)


def recovery_s(shares: pd.DataFrame, crowd: FlashCrowd, policy: str) -> float:
    """When, after the crowd's end, violations are about what they were before it.

    From `through_a_crowd`. The level before is the mean up to the crowd, without the
    first tenth of that time; the answer is where the first window begins that is at
    most RECOVERY_TOLERANCE above it, together with the next one, infinity if none is.
    """
    begins_s = shares.index.to_numpy()
    values = shares[policy].to_numpy()
    before = (begins_s >= -crowd.end_s + crowd.begin_s / 10) & (
        begins_s < -crowd.last_s - 0.99 * np.diff(begins_s)[0]
    )
    after = begins_s > -np.diff(begins_s)[0] / 2
    within = after & (values <= values[before].mean() + RECOVERY_TOLERANCE)
    back = np.flatnonzero(within[:-1] & within[1:])
    return float(max(begins_s[back[0]], 0.0)) if len(back) else np.inf


ZIPF_EXPONENTS = 0.0, 0.5, 0.9, 0.99  # skews of YCSB
FACTORS = 5, 10  # objectives of a type over its median service time
WAREHOUSES, CORES = 10, 8  # as scenario A; partitions of YCSB


def ycsb_name(at: int) -> str:
    """Return the name in `workload_cells` of YCSB A with one of ZIPF_EXPONENTS."""
    return f"YCSB A, zipf {ZIPF_EXPONENTS[at]:g}"


def workload_cells(
    prices: Prices, *, transactions: int, seed: int
) -> dict[str, SimulationConfig]:
    """TPC-C and YCSB beside scenario A, with one objective for all or one a type.

    Each by a name. TPC-C (as specified) and YCSB A have generated logs that are priced,
    with the scatter of scenario A. One objective is that of A, or twice the 95th
    percentile of the service time.
    """
    n, scale = 3 * transactions, YcsbScale(files=WAREHOUSES)
    logs = {"TPC-C": tpcc(n, Scale(warehouses=WAREHOUSES), seed)} | {
        ycsb_name(at): ycsb(n, scale, seed, theta=theta)
        for at, theta in enumerate(ZIPF_EXPONENTS)
    }
    cells = {
        "A": SimulationConfig.of_scenario("A", transactions=transactions, cores=CORES)
    } | {
        name: SimulationConfig.of_trace(
            priced(log, prices, SERVICE_SIGMA, seed), transactions=transactions,
            cores=CORES,
        )
        for name, log in logs.items()
    }  # fmt: skip
    by_type = {
        f"{name}, {factor} x median": cells[name].by_type(factor)
        for name in ("A", "TPC-C")
        for factor in FACTORS
    }
    return cells | by_type


def by_workload(runs: pd.DataFrame, load: float) -> pd.DataFrame:
    """Violations and mean cost in percent at one load: a row a `workload`.

    Columns: violations or cost, then the policy. Means over the seeds.
    """
    at = runs[runs["load"] == load]
    table = at.pivot_table(
        index="workload", columns="policy", values=["violations", "cost"], sort=False
    )
    return 100 * table.loc[:, ["violations", "cost"]]
