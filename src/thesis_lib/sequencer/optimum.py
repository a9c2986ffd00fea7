"""How far a policy is from the offline optimum, and how much of that is ignorance.

The optimum of a whole trace lies between a proven bound and the best schedule found by
somebody who knows the future; that of a short window is often known. What separates a
policy from that schedule is what it does not know and does not do; what separates the
schedule from the bound is open.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from thesis_lib.checks import require
from thesis_lib.sequencer import report
from thesis_lib.sequencer.bounds import fewest_violations
from thesis_lib.sequencer.clairvoyant import LARGEST, search, solve, would_be_on_time
from thesis_lib.sequencer.report import (
    Cell,
    Estimate,
    noisy_estimate,
    paired_seeds,
    run_grid,
    run_paired,
)
from thesis_lib.sequencer.simulate import simulate
from thesis_lib.sequencer.trace import F64, History, Trace

IN_VAIN, IN_VAIN_LOAD = 0.01, 0.99  # the goal: so few drops in vain, up to this load
BEGUN = ("ours", "late-edf")  # whose decisions the search begins with


def _run(cell: Cell, trace: Trace, policy: str, estimated_s: F64) -> History:
    require(
        cell.clients is None,
        "a closed loop has no optimum: its arrivals depend on the policy",
    )
    return simulate(
        trace, cell.policy(policy), estimated_s, cores=cell.cores, slo_s=cell.slo_s,
        batch_size=cell.batch_size, flush_s=cell.flush_s, delays=cell.delays,
    )  # fmt: skip


def distances(
    cell: Cell,
    loads: Iterable[float],
    *,
    seeds: int,
    seed: int,
    sweeps: int,
    estimate: Estimate | None = None,
) -> pd.DataFrame:
    """One row per load, seed and policy, from FIFO down to the bound.

    The policies are `fifo` and `ours` with `estimate` (by default `noisy`),
    `ours-oracle` with the true service times, `search`, the best schedule found that
    knows the future as well, and `bound`. Unlike in `report`, every transaction counts,
    the first included: a schedule and a bound are about the same ones. Columns: load,
    seed, policy, `violations` and `dropped`, of all arrivals, and `in_vain`, the drops
    of `ours` that would have been on time, of all arrivals. `sweeps` as in `search`.
    """
    estimate = noisy_estimate() if estimate is None else estimate

    def measure(
        number: int, load: float, trace: Trace, estimated_s: F64
    ) -> Iterator[dict]:
        exact = {name: _run(cell, trace, name, trace.service_s) for name in BEGUN}
        ours = _run(cell, trace, "ours", estimated_s)
        made = {
            "fifo": _run(cell, trace, "fifo", estimated_s),
            "ours": ours,
            "ours-oracle": exact["ours"],
            "search": search(
                trace, cores=cell.cores, slo_s=cell.slo_s, sweeps=sweeps,
                begun=list(exact.values()), seed=number,
            ),
        }  # fmt: skip
        fewest = fewest_violations(trace, cores=cell.cores, slo_s=cell.slo_s)
        in_vain = would_be_on_time(
            trace, ours, cores=cell.cores, lag_s=cell.delays.lag_s
        )
        for name, history in made.items():
            yield {
                "policy": name,
                "violations": history.violated.mean(),
                "dropped": history.dropped.mean(),
                "in_vain": in_vain.mean() if name == "ours" else np.nan,
            }
        yield {"policy": "bound", "violations": fewest / len(trace)}

    return run_paired(measure, cell, loads, estimate, seeds=seeds, seed=seed)


def windows(
    cell: Cell, load: float, *, number: int, seed: int, effort: float
) -> pd.DataFrame:
    """One row per window of 40 transactions that arrive at `load` and find it idle.

    Columns, violations of 40: `relaxed`, the bound of `bounds`; `proven`, what CP-SAT
    has proven; `found`, its best schedule; `search`, without CP-SAT; `oracle` and
    `ours`, ours with true and with noisy service times; `fifo`. `effort` as in
    `clairvoyant.solve`.
    """
    ((trace_seed, arrival_seed, estimate_seed),) = paired_seeds(seed, 1)
    trace = cell.arrange(cell.make_trace(trace_seed), load, arrival_seed)
    require(
        1 <= number <= len(trace) // LARGEST,
        f"number={number} windows of {LARGEST}: expected at least 1, and as many as "
        f"the {len(trace)} transactions of a trace hold",
    )
    estimated_s = noisy_estimate()(trace, estimate_seed)
    place = {"cores": cell.cores, "slo_s": cell.slo_s}

    def measure(at: int) -> Iterator[dict]:
        inside = np.arange(at * LARGEST, (at + 1) * LARGEST)
        window = trace.take(inside)
        solved = solve(window, **place, effort=effort)
        exact = [_run(cell, window, name, window.service_s) for name in BEGUN]
        noisy = _run(cell, window, "ours", estimated_s[inside])
        yield {
            "relaxed": fewest_violations(window, **place),
            "proven": solved.bound,
            "found": solved.violations,
            "search": search(window, **place, begun=exact).violated.sum(),
            "oracle": exact[0].violated.sum(),
            "ours": noisy.violated.sum(),
            "fifo": _run(cell, window, "fifo", estimated_s[inside]).violated.sum(),
        }

    return run_grid(measure, [(at,) for at in range(number)]).astype(int)


def summarise_windows(solved: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Totals of `windows` by name: how many, how many solved, then violations."""
    rows = {
        name: {
            "windows": len(runs),
            "solved": int(np.sum(runs["proven"] == runs["found"])),
        }
        | runs.sum().to_dict()
        for name, runs in solved.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").astype(int)


def distance(runs: pd.DataFrame) -> pd.DataFrame:
    """Where the violations of ours come from, in percent of arrivals, by load.

    Means over the seeds of `distances`. Columns: `ours`, and how it adds up: `bound`,
    which nobody avoids; `open`, from there to the best schedule found, where the
    optimum lies; `unforeseen`, from there to ours with true service times, which knows
    no arrival before it comes; `misjudged`, the rest, by the errors of its estimates.
    Then drops in vain, of arrivals (`in_vain`) and of the drops (`of_drops`).
    """
    mean = report.table(runs)
    dropped = np.asarray(report.table(runs, "dropped").loc["ours"])
    in_vain = np.asarray(report.table(runs, "in_vain").loc["ours"])
    return pd.DataFrame(
        {
            "ours": mean.loc["ours"],
            "bound": mean.loc["bound"],
            "open": mean.loc["search"] - mean.loc["bound"],
            "unforeseen": mean.loc["ours-oracle"] - mean.loc["search"],
            "misjudged": mean.loc["ours"] - mean.loc["ours-oracle"],
            "in_vain": in_vain,
            "of_drops": 100 * in_vain / np.where(dropped > 0, dropped, 1.0),
        }
    )
