"""Distance of `bid-price` from its goals, and from all baselines.

The goals were set before the policy was designed. Every run here is of one
configuration and on seeds that no design has seen; what has to pass is the pessimistic
end of an interval.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thesis_book.experiments.optimum.cpsat import LARGEST, solve
from thesis_book.experiments.optimum.local_search import search, would_be_on_time
from thesis_lib.common.errors import require
from thesis_lib.common.stats import mean_interval
from thesis_lib.sequencer.core.events import Delays
from thesis_lib.sequencer.core.trace import F64, History, Trace
from thesis_lib.sequencer.experiments import grid, metrics
from thesis_lib.sequencer.experiments.configuration import (
    NOISY,
    SimulationConfig,
    named_estimate,
    noisy_estimate,
)
from thesis_lib.sequencer.experiments.metrics import reduction
from thesis_lib.sequencer.optimum.bounds import fewest_violations
from thesis_lib.sequencer.policies.admission import BidPriceParameters
from thesis_lib.sequencer.policies.parameters import RandomDrop
from thesis_lib.sequencer.policies.registry import WATCHING

LOADS = (0.9, 0.95, 0.99, 1.1, 1.5)
KEEPS, KEEPS_LOAD = 0.99, 0.8  # of FIFO's commits, up to this load


@dataclass(frozen=True, slots=True)
class Goal:
    """A row of the goals: at each of LOADS, how much fewer violations than FIFO's.

    With `regret`, also how far above the lower bound at most, both as shares of 1.
    """

    scenario: str
    lag_s: float
    reduction: tuple[float, ...]  # (5,)
    regret: tuple[float, ...] | None = None  # (5,)

    def cell(self, transactions: int, **options: Any) -> SimulationConfig:
        """Return where it is to be reached; `options` as of `of_scenario`."""
        return SimulationConfig.of_scenario(
            self.scenario, transactions=transactions, delays=Delays(lag_s=self.lag_s),
            **options,
        )  # fmt: skip


GOALS = {
    "A": Goal(
        "A", 0.0, (0.95, 0.97, 0.97, 0.97, 0.86), (0.0005, 0.0005, 0.003, 0.01, 0.015)
    ),
    "A, lag": Goal("A", 0.5e-3, (0.50, 0.80, 0.92, 0.96, 0.84)),
    "B": Goal("B", 0.0, (0.78, 0.87, 0.92, 0.95, 0.86)),
}


def run_goals(
    *, transactions: int, seeds: int, seed: int, loads: Sequence[float] = LOADS
) -> pd.DataFrame:
    """FIFO, bid-price and the bound at every goal, as from `replicate` with a `row`."""
    cases = {row: goal.cell(transactions) for row, goal in GOALS.items()}
    return grid.run_grid(
        cases, "row", policies=["fifo", "bid-price"], loads=loads, seeds=seeds,
        seed=seed, bound=True,
    )  # fmt: skip


def against_goals(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the results of `run_goals`, by row and load.

    In percent: mean violations of FIFO, bid-price and the bound; the reduction with its
    interval (`low`, `high`), its goal, and whether the low end reaches it; and in
    points the regret, bid-price above the bound, its high end, and its goal, where
    there is one (else NaN), and whether the high end keeps it (else true).
    """

    def row(at: pd.DataFrame, name: str, load: float) -> dict:
        goal, place = GOALS[name], LOADS.index(load)
        fifo, bid_price, bound = (
            metrics.column(at, policy, load, "violations")
            for policy in ("fifo", "bid-price", "bound")
        )
        fewer = reduction(at, "bid-price", load)
        above = metrics.difference_interval(bid_price, bound)
        most = np.nan if goal.regret is None else goal.regret[place]
        return {
            "fifo": 100 * fifo.mean(),
            "bid-price": 100 * bid_price.mean(),
            "bound": 100 * bound.mean(),
            **metrics.in_percent("reduction", fewer),
            "goal": 100 * goal.reduction[place],
            "reached": fewer.low >= goal.reduction[place],
            **metrics.in_percent("regret", above, "regret_"),
            "its goal": 100 * most,
            "kept": not above.high > most,
        }

    return metrics.by_case(runs, ["row", "load"], row)


JUDGED_ESTIMATORS = ("noisy", "boosted", "constant", "oracle")


def by_estimator(
    *, transactions: int, seeds: int, seed: int, loads: Sequence[float] = LOADS
) -> pd.DataFrame:
    """Low end of the reduction of bid-price, in percent, with other estimators.

    A row a goal and load; a column for each of JUDGED_ESTIMATORS, and the `goal`. The
    learned ones are fitted on transactions of another seed, of which they see what the
    scenarios have: type and lines. All on the same seeds.
    """
    lows = {name: {} for name in ("noisy", "goal", *JUDGED_ESTIMATORS)}
    for row, goal in GOALS.items():
        config = goal.cell(transactions)
        runs = {
            name: grid.replicate(
                config, ["fifo", "bid-price"], loads, named_estimate(name, config),
                seeds=seeds, seed=seed,
            )
            for name in JUDGED_ESTIMATORS
        }  # fmt: skip
        for load in loads:
            lows["goal"][row, load] = 100 * goal.reduction[LOADS.index(load)]
            for name, of in runs.items():
                lows[name][row, load] = 100 * reduction(of, "bid-price", load).low
    return pd.DataFrame(lows).rename_axis(["row", "load"])


def compare_designs(
    config: SimulationConfig, designs: grid.Policies, loads: Sequence[float], seeds: int
) -> pd.DataFrame:
    """Violations of policies in percent, by load, on design seeds."""
    runs = grid.replicate(config, designs, loads, seeds=seeds, seed=grid.DESIGN_SEED)
    return metrics.table(runs).rename_axis("design")


_HALVED = (  # and doubled
    "step", "price_recovery", "window", "reservation_window", "deadline_weight",
)  # fmt: skip


def constants(
    config: SimulationConfig, loads: Sequence[float], *, seeds: int
) -> pd.DataFrame:
    """Return violations (%) of `bid-price` by load, constants halved and doubled."""
    varied = {("as it is", ""): BidPriceParameters()} | {
        (name, word): BidPriceParameters()._replace(
            **{name: factor * getattr(BidPriceParameters(), name)}
        )
        for name in _HALVED
        for word, factor in (("half", 0.5), ("twice", 2.0))
    }
    policies = {" ".join(of): ("bid-price", terms) for of, terms in varied.items()}
    table = compare_designs(config, policies, loads, seeds).rename_axis(columns=None)
    table.index = pd.MultiIndex.from_tuples(list(varied), names=["constant", ""])
    return table


def censored(config: SimulationConfig, load: float, *, seeds: int) -> pd.DataFrame:
    """Describe what `bid-price` admits and rejects, in truth, on design seeds.

    The calibration sees the admitted alone. Its line, of the logarithm of the time on
    that of the estimate, is fitted here to all of these, and the residuals of both rows
    are from it: `within` is the share of a row, in percent, that took no longer than
    the factor that covers a share `confidence_threshold` of the admitted, and quantiles
    are factors too. `share` is of the arrivals, in percent; medians are in
    milliseconds. Without a row `refused` where nothing was.
    """

    def measure(at: grid.Paired) -> Iterator[dict]:
        history = config.history(
            at.trace, config.policy("bid-price"), at.estimated_s, load
        )
        yield {
            "admitted": ~history.dropped,
            "truth_s": at.trace.service_s,
            "estimated_s": at.estimated_s,
        }

    runs = grid.run_paired(measure, config, [load], seeds=seeds, seed=grid.DESIGN_SEED)
    admitted, truth_s, estimated_s = (np.concatenate(runs[n]) for n in runs.columns[2:])
    y, x = np.log(truth_s), np.log(estimated_s)
    slope, intercept = np.polyfit(x[admitted], y[admitted], 1)
    residual = y - slope * x - intercept
    edge = np.quantile(residual[admitted], BidPriceParameters().confidence_threshold)
    rows = {}
    for name, part in {"admitted": admitted, "refused": ~admitted}.items():
        if part.any():
            rows[name] = {
                "share": 100 * part.mean(),
                "estimate (ms)": 1e3 * np.exp(np.median(x[part])),
                "service (ms)": 1e3 * np.exp(np.median(y[part])),
                "within": 100 * (residual[part] <= edge).mean(),
            } | {
                f"{100 * q:.0f} %": np.exp(np.quantile(residual[part], q))
                for q in (0.1, 0.5, 0.9)
            }
    return pd.DataFrame.from_dict(rows, orient="index")


NEUTRAL = BidPriceParameters()
WITHOUT = {  # bid-price without one of its ingredients
    "bid-price": NEUTRAL,
    "without price": BidPriceParameters(step=0.0),
    "without reservations": BidPriceParameters(reservation_window=-np.inf),
    "without calibration": BidPriceParameters(window=0.0),
    "without deadline weight": BidPriceParameters(deadline_weight=0.0),
    "without price or deadline weight": NEUTRAL._replace(step=0.0, deadline_weight=0.0),
    "one threshold": NEUTRAL._replace(confidence_threshold=NEUTRAL.least_p),
    "never sent ahead": BidPriceParameters(max_wait=0.0),
}


def ablate_components(
    configs: Mapping[str, SimulationConfig], loads: Sequence[float], *, seeds: int,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Bid-price without each ingredient beside simpler designs, as from `run_grid`.

    `place` is the name of a configuration. `late-edf`, `startable-first` and
    `late-demote` are the earlier designs with late binding, `hybrid-corrected` decides
    at arrival.
    """
    designs = ("late-demote", "startable-first", "late-edf", "hybrid-corrected")
    policies = {of: ("bid-price", terms) for of, terms in WITHOUT.items()}
    policies |= {name: (name, None) for name in designs}
    return grid.run_grid(
        configs, "place", policies=policies, loads=loads, seeds=seeds, seed=seed
    )


def by_place(runs: pd.DataFrame) -> pd.DataFrame:
    """Violations in percent of `ablate_components`: a row a variant.

    Columns are a place and a load. Means over the seeds.
    """
    table = runs.pivot_table(
        index="policy", columns=["place", "load"], values="violations", sort=False
    )
    return 100 * table.rename_axis(columns=[None, None])


BASELINES = (
    "fifo", "fifo-batched", "random-drop", *WATCHING, "headroom", "edf", "sjf",
    "least-slack", "late-edf", "late-sjf", "drop", "reorder", "hybrid",
    "drop-corrected", "reorder-corrected", "hybrid-corrected", "bid-price",
)  # fmt: skip


def against_baselines(
    config: SimulationConfig, loads: Sequence[float], own: Sequence[str] = (), *,
    seeds: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Every baseline beside bid-price, as from `replicate`.

    `random-drop` rejects as large a share as bid-price does, at each load. `own` are
    policies of one's own, as FILE.py:FUNCTION, told by file and function.
    """
    others = {name: (name, None) for name in BASELINES if name != "random-drop"}
    others |= {Path(name).name: (name, None) for name in own}
    require(
        len(others) == len(BASELINES) - 1 + len(own),
        f"own={[*own]}: two have the same file name and function, which tell them "
        "apart: rename one",
    )
    runs = grid.replicate(config, others, loads, seeds=seeds, seed=seed, bound=True)
    blind = [
        grid.replicate(
            config, {"random-drop": ("random-drop", RandomDrop(share))}, [load],
            seeds=seeds, seed=seed,
        )
        for load in loads
        for share in [metrics.mean(runs, "bid-price", load, "dropped")]
    ]  # fmt: skip
    return pd.concat([runs, *blind], ignore_index=True)


# Simple rules to compare with, in addition to FIFO.
SIMPLE = (*WATCHING, "headroom", "edf", "sjf", "least-slack", "late-edf", "late-sjf")
LEARNED, CONSTANT = "boosted", "constant"


def learning(
    config: SimulationConfig, load: float, *, seeds: int, seed: int
) -> pd.DataFrame:
    """Compare `bid-price` with a learned and a constant estimate at one load.

    FIFO, SIMPLE, `bid-price` and the lower bound with boosted trees, and `bid-price`
    once more with a constant, as `bid-price-constant`. Both are fitted on transactions
    of another seed, and all run on the same ones.
    """
    learned, blind = (
        grid.replicate(
            config, policies, [load], named_estimate(name, config),
            seeds=seeds, seed=seed, bound=name == LEARNED,
        )
        for name, policies in (
            (LEARNED, ["fifo", *SIMPLE, "bid-price"]),
            (CONSTANT, {f"bid-price-{CONSTANT}": ("bid-price", None)}),
        )
    )  # fmt: skip
    return pd.concat([learned, blind], ignore_index=True)


def worth_of_learning(runs: pd.DataFrame, load: float) -> dict[str, float | str]:
    """The numbers that the front pages rest on, in percent, from `learning`.

    Violations of each; reductions against FIFO with their ends; what learning saves
    over a constant, and over the best of SIMPLE, which is named; and the points that
    are left to the lower bound.
    """
    violations = {
        policy: 100 * metrics.mean(runs, policy, load)
        for policy in runs["policy"].unique()
    }
    best, constant = min(SIMPLE, key=violations.__getitem__), f"bid-price-{CONSTANT}"
    numbers: dict[str, float | str] = {
        "learned_percent": violations["bid-price"],
        "constant_percent": violations[constant],
        "simple_percent": violations[best],
        "simple_best": best,
        "codel_percent": violations["codel"],
        "learned_bound_percent": violations["bound"],
        "learned_regret": violations["bid-price"] - violations["bound"],
    }
    for name, policy, baseline in (
        ("reduction_learned", "bid-price", "fifo"),
        ("reduction_constant", constant, "fifo"),
        ("reduction_codel", "codel", "fifo"),
        ("learned_over_constant", "bid-price", constant),
        ("learned_over_simple", "bid-price", best),
    ):
        gain = reduction(runs, policy, load, baseline)
        numbers |= gain.numbers(name, 100)
    return numbers


def over_best_rule(
    config: SimulationConfig, load: float, place: str, *, seeds: int, seed: int
) -> dict[str, float | str]:
    """bid-price against the best of SIMPLE, both learned, in percent.

    The reduction `learned_over_simple_PLACE` with its ends, the rule, and the
    violations of both.
    """
    runs = learning(config, load, seeds=seeds, seed=seed)
    worth = worth_of_learning(runs, load)
    over = reduction(runs, "bid-price", load, str(worth["simple_best"]))
    return over.numbers(f"learned_over_simple_{place}", 100) | {
        f"{name}_{place}": worth[name]
        for name in ("simple_best", "simple_percent", "learned_percent")
    }


def random_settings(number: int, seed: int) -> pd.DataFrame:
    """`number` settings, a row each, drawn around the scenarios in every respect.

    2 to 40 warehouses, 2 to 32 cores, an objective of 4 to 30 ms and, for every other,
    a lag of 0.1 to 1 ms, all uniform in their logarithm; a load of 0.7 to 1.6 and
    estimates with a scatter of 0.1 to 0.5, uniform. Times are rounded to the
    microsecond, shares to a hundredth.
    """
    rng = np.random.default_rng(seed)

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    return pd.DataFrame(
        [
            {
                "warehouses": round(between(2, 40)),
                "cores": round(between(2, 32)),
                "slo_s": round(between(4e-3, 30e-3), 6),
                "lag_s": round(between(0.1e-3, 1e-3), 6) if at % 2 else 0.0,
                "load": round(float(rng.uniform(0.7, 1.6)), 2),
                "scatter": round(float(rng.uniform(0.1, 0.5)), 2),
            }
            for at in range(number)
        ]
    )


def elsewhere(
    settings: pd.DataFrame, policies: Sequence[str], *, transactions: int,
    seeds: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """A row a setting: what it is, and the violations of policies and bound.

    In percent; with the reduction of bid-price against FIFO and its interval.
    """
    rows = []
    for at in settings.to_dict("records"):
        config = SimulationConfig.of_scenario(
            "A", transactions=transactions, warehouses=at["warehouses"],
            cores=at["cores"], slo_s=at["slo_s"], delays=Delays(at["lag_s"]),
        )  # fmt: skip
        runs = grid.replicate(
            config, policies, [at["load"]], noisy_estimate(at["scatter"]), seeds=seeds,
            seed=seed, bound=True,
        )  # fmt: skip
        rows.append(
            {
                "warehouses": at["warehouses"],
                "cores": at["cores"],
                "deadline, ms": 1e3 * at["slo_s"],
                "lag, ms": 1e3 * at["lag_s"],
                "load": at["load"],
                "scatter": at["scatter"],
                **{
                    name: 100 * metrics.mean(runs, name, at["load"])
                    for name in (*policies, "bound")
                },
                **metrics.in_percent(
                    "reduction", reduction(runs, "bid-price", at["load"])
                ),
            }
        )
    return pd.DataFrame(rows)


def price_of_fairness(
    config: SimulationConfig, gaps: Sequence[float], load: float, *, seeds: int,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """A row a gap that is allowed between types: what it costs, and what is reached.

    In percent: violations in all and of each type, and on-time commits over the
    saturation of FIFO (`goodput`), the difference between the types (`between`), and
    Jain's index (`fairness`): means over the seeds, with `metrics.ENDS` of the goodput
    and, as `between_…`, of the difference. An infinite gap is bid-price without the
    mode.
    """
    groups = len(config.make_trace(grid.paired_seeds(seed, 1)[0][0]).kinds)
    policies = {
        str(gap): ("bid-price", BidPriceParameters(gap=gap, groups=groups))
        for gap in gaps
    }
    runs = grid.replicate(config, policies, [load], seeds=seeds, seed=seed)
    rows = []
    for gap in gaps:
        at = runs.loc[runs["policy"] == str(gap)]
        by_kind = at.filter(like="violations:")
        by_kind.columns = by_kind.columns.str.removeprefix("violations:")
        goodput = at["goodput_per_s"].to_numpy() / config.saturation_per_s
        apart = (by_kind.max(axis=1) - by_kind.min(axis=1)).to_numpy()
        rows.append(
            {
                "gap": 100 * gap,
                "violations": 100 * at["violations"].mean(),
                **{kind: 100 * by_kind[kind].mean() for kind in by_kind},
                **metrics.in_percent("between", mean_interval(apart), "between_"),
                **metrics.in_percent("goodput", mean_interval(goodput)),
                "fairness": 100 * at["fairness"].mean(),
            }
        )
    return pd.DataFrame(rows)


IN_VAIN, IN_VAIN_LOAD = 0.01, 0.99  # the goal: so few drops in vain, up to this load
BEGUN = ("bid-price", "late-edf")  # whose decisions the search begins with


def _run(
    config: SimulationConfig, trace: Trace, policy: str, estimated_s: F64
) -> History:
    return config.history(trace, config.policy(policy), estimated_s, load=1.0)


def distances(
    config: SimulationConfig, loads: Iterable[float], *, seeds: int, seed: int,
    sweeps: int,
) -> pd.DataFrame:  # fmt: skip
    """One row per load, seed and policy, from FIFO down to the bound.

    The policies are `fifo` and `bid-price` with noisy estimates, `bid-price-oracle`
    with the true service times, `search`, the best schedule found that knows the future
    as well, and `bound`. Unlike in `metrics`, every transaction counts, the first
    included: a schedule and a bound are about the same ones. Columns: load, seed,
    policy, `violations` and `dropped`, of all arrivals, and `in_vain`, the drops of
    `bid-price` that would have been on time, of all arrivals. `sweeps` as in `search`.
    """
    place = {"cores": config.cores, "slo_s": config.slo_s}

    def measure(at: grid.Paired) -> Iterator[dict]:
        exact = {
            name: _run(config, at.trace, name, at.trace.service_s) for name in BEGUN
        }
        bid_price = _run(config, at.trace, "bid-price", at.estimated_s)
        row = {
            "fifo": _run(config, at.trace, "fifo", at.estimated_s),
            "bid-price": bid_price,
            "bid-price-oracle": exact["bid-price"],
            "search": search(
                at.trace, **place, sweeps=sweeps, begun=list(exact.values()),
                seed=at.number,
            ),
        }  # fmt: skip
        in_vain = would_be_on_time(
            at.trace, bid_price, cores=config.cores, lag_s=config.delays.lag_s
        )
        for name, history in row.items():
            yield {
                "policy": name,
                "violations": history.violated.mean(),
                "dropped": history.dropped.mean(),
                "in_vain": in_vain.mean() if name == "bid-price" else np.nan,
            }
        fewest = fewest_violations(at.trace, **place)
        yield {"policy": "bound", "violations": fewest / len(at.trace)}

    return grid.run_paired(measure, config, loads, seeds=seeds, seed=seed)


def windows(
    config: SimulationConfig, load: float, *, number: int, seed: int, effort: float
) -> pd.DataFrame:
    """One row per window of 40 transactions that arrive at `load` and find it idle.

    Columns, violations of 40: `relaxed`, the bound of `bounds`; `proven`, what CP-SAT
    has proven; `found`, its best schedule; `search`, without CP-SAT; `oracle` and
    `bid-price`, bid-price with true and with noisy service times; `fifo`. `effort` as
    in `cpsat.solve`.
    """
    ((trace_seed, arrival_seed, estimate_seed),) = grid.paired_seeds(seed, 1)
    trace = config.arrange(config.make_trace(trace_seed), load, arrival_seed)
    estimated_s = NOISY(trace, estimate_seed)
    place = {"cores": config.cores, "slo_s": config.slo_s}

    def measure(at: int) -> Iterator[dict]:
        inside = np.arange(at * LARGEST, (at + 1) * LARGEST)
        window, guess_s = trace.take(inside), estimated_s[inside]
        solved = solve(window, **place, effort=effort)
        exact = [_run(config, window, name, window.service_s) for name in BEGUN]
        yield {
            "relaxed": fewest_violations(window, **place),
            "proven": solved.bound,
            "found": solved.violations,
            "search": search(window, **place, begun=exact).violated.sum(),
            "oracle": exact[0].violated.sum(),
            "bid-price": _run(config, window, "bid-price", guess_s).violated.sum(),
            "fifo": _run(config, window, "fifo", guess_s).violated.sum(),
        }

    return grid.run_points(measure, [(at,) for at in range(number)]).astype(int)


def summarize_windows(solved: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Totals of `windows` by name: how many, how many solved, then violations."""
    rows = {
        name: {
            "windows": len(runs),
            "solved": (runs["proven"] == runs["found"]).sum(),
            **runs.sum(),
        }
        for name, runs in solved.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").astype(int)


def distance(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the sources of bid-price's violations, in percent of arrivals, by load.

    Means over the seeds of `distances`. Columns: `bid-price`, and its parts: `bound`,
    which no policy avoids; `open`, from there to the best schedule found, where the
    optimum lies; `unforeseen`, from there to bid-price with true service times, which
    does not know future arrivals; `misjudged`, the rest, by the errors of its
    estimates. Then drops in vain, of arrivals (`in_vain`) and of the drops
    (`of_drops`).
    """
    mean, dropped, in_vain = (
        metrics.table(runs, name) for name in ("violations", "dropped", "in_vain")
    )
    drops = np.asarray(dropped.loc["bid-price"])
    return pd.DataFrame(
        {
            "bid-price": mean.loc["bid-price"],
            "bound": mean.loc["bound"],
            "open": mean.loc["search"] - mean.loc["bound"],
            "unforeseen": mean.loc["bid-price-oracle"] - mean.loc["search"],
            "misjudged": mean.loc["bid-price"] - mean.loc["bid-price-oracle"],
            "in_vain": in_vain.loc["bid-price"],
            "of_drops": 100
            * in_vain.loc["bid-price"]
            / np.where(drops > 0, drops, 1.0),
        }
    )
