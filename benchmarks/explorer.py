"""The grid behind the explorer of the page "Play", and how far lines between it err.

Every combination of load, objective, error of the estimates, lag and policy in
scenario A, on the first paired seeds of chapter 4, beside the lower bound; then points
half way between neighbours, against the straight line that a page could draw there. A
seed that is done is kept in `--work`, so that the script goes on where it was stopped.
A quarter of an hour of one core.

    python benchmarks/explorer.py [SEEDS [TRANSACTIONS]] [--only 4]
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from record import ELSEWHERE, Record, benchmark, checkout, tell

from thesis_lib.common.stats import mean_interval
from thesis_lib.sequencer.core.events import Delays
from thesis_lib.sequencer.experiments.configuration import (
    SimulationConfig,
    noisy_estimate,
)
from thesis_lib.sequencer.experiments.grid import paired_seeds
from thesis_lib.sequencer.experiments.metrics import (
    difference_interval,
    fewest_counted_violations,
)

SEED = 2024
AXES = {
    "load": (0.7, 0.8, 0.9, 0.95, 0.99, 1.05, 1.1, 1.3, 1.5),
    "slo_ms": (5.0, 8.0, 12.5, 25.0),
    "sigma": (0.0, 0.2, 0.5, 1.0),
    "lag_ms": (0.0, 0.5, 2.0),
}
MIDDLE = {"load": (0.95, 1.1), "slo_ms": (12.5,), "sigma": (0.2,), "lag_ms": (0.0,)}
POLICIES = (
    "fifo", "codel", "drop", "reorder", "hybrid", "hybrid-corrected", "late-edf",
    "bid-price",
)  # fmt: skip
BOUND = "bound"
UNREAD = {BOUND: ("sigma", "lag_ms"), "fifo": ("sigma",), "codel": ("sigma",)}


class Cell(NamedTuple):
    """A point of the grid; what its policy does not read is the least of its axis."""

    policy: str
    load: float
    slo_ms: float
    sigma: float
    lag_ms: float

    @classmethod
    def of(cls, policy: str, at: dict[str, float]) -> "Cell":
        """The cell of a policy at a point."""
        unread = {axis: AXES[axis][0] for axis in UNREAD.get(policy, ())}
        return cls(policy, **(at | unread))

    @property
    def bound(self) -> "Cell":
        """That of the lower bound at the same point."""
        return Cell.of(BOUND, dict(zip(AXES, self[1:], strict=True)))


def between() -> Iterator[tuple[str, Cell, Cell, Cell]]:
    """An axis, a held-out cell half way between neighbours on it, and those two."""
    for policy, axis in product(POLICIES, AXES):
        if axis in UNREAD.get(policy, ()):
            continue
        others = {name: at for name, at in MIDDLE.items() if name != axis}
        for values in product(*others.values()):
            at = dict(zip(others, values, strict=True))
            for low, high in pairwise(AXES[axis]):
                half, *ends = (
                    Cell.of(policy, at | {axis: x})
                    for x in ((low + high) / 2, low, high)
                )
                yield axis, half, ends[0], ends[1]


def cells() -> list[Cell]:
    """All that is run, each once."""
    points = [
        dict(zip(AXES, values, strict=True)) for values in product(*AXES.values())
    ]
    grid = [Cell.of(name, at) for at in points for name in (*POLICIES, BOUND)]
    return list(dict.fromkeys([*grid, *(cell for _, cell, _, _ in between())]))


def run_seed(
    config: SimulationConfig, seeds: tuple[int, int, int]
) -> list[tuple[float, float]]:
    """Violations, a share, and goodput a second of each of `cells`, on one seed."""
    transactions = config.make_trace(seeds[0])
    arrange = cache(lambda load: config.arrange(transactions, load, seeds[1]))
    estimate = cache(lambda sigma: noisy_estimate(sigma)(transactions, seeds[2]))

    def run(cell: Cell) -> tuple[float, float]:
        trace, slo_s = arrange(cell.load), cell.slo_ms / 1e3
        if cell.policy == BOUND:
            fewest = fewest_counted_violations(trace, cores=config.cores, slo_s=slo_s)
            return fewest, 0.0
        here = replace(config, slo_s=slo_s, delays=Delays(lag_s=cell.lag_ms / 1e3))
        rule = here.policy(cell.policy)
        found = here.run(trace, rule, estimate(cell.sigma), cell.load)
        return found.violations, found.goodput_per_s

    return [run(cell) for cell in cells()]


def table(violations: dict[Cell, Any], goodput: dict[Cell, Any]) -> list[dict]:
    """A row for each policy, error, lag and objective; its lists are by load."""

    def percent(values: Any) -> list[float]:
        return [round(100 * value, 2) for value in values]

    rows = []
    _, *others = AXES
    points = list(product(*(AXES[axis] for axis in others)))
    for policy, at in product((*POLICIES, BOUND), points):
        place = dict(zip(others, at, strict=True))
        here = [Cell.of(policy, place | {"load": load}) for load in AXES["load"]]
        if here[0][2:] != at:
            continue  # it reads less, and has a row already
        found = [mean_interval(violations[cell]) for cell in here]
        row: dict[str, Any] = {"policy": policy} | place
        row["violations"] = percent(each.value for each in found)
        row["reach"] = percent(each.high - each.value for each in found)
        if policy != BOUND:
            above = [
                difference_interval(violations[cell], violations[cell.bound])
                for cell in here
            ]
            row["above_reach"] = percent(each.high - each.value for each in above)
            row["goodput_per_s"] = [round(float(goodput[cell].mean())) for cell in here]
        rows.append(row)
    return rows


def errors(violations: dict[Cell, Any]) -> list[dict]:
    """How far the straight line errs at held-out points, by axis and policy.

    In points of violations: `most`, and the `median`.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for axis, half, low, high in between():
        line = (violations[low].mean() + violations[high].mean()) / 2
        error = abs(float(violations[half].mean() - line))
        found.setdefault((axis, half.policy), []).append(100 * error)
    return [
        {
            "axis": axis, "policy": policy, "held_out": len(each),
            "most": round(max(each), 2), "median": round(float(np.median(each)), 2),
        }
        for (axis, policy), each in found.items()
    ]  # fmt: skip


@benchmark
def main(
    out: Path,
    seeds: int = 20,
    transactions: int = 8000,
    *,
    work: Annotated[Path | None, "where finished seeds are kept"] = None,
    only: Annotated[int | None, "stop after so many more seeds"] = None,
    elsewhere: Annotated[bool, ELSEWHERE] = False,
) -> None:
    settings = {
        "scenario": "A", "seeds": seeds, "transactions": transactions, "seed": SEED,
        "axes": {axis: list(values) for axis, values in AXES.items()},
        "policies": list(POLICIES),
    }  # fmt: skip
    kept = work or checkout() / "build" / "explorer"
    done = Record(kept / "explorer_seeds.json", settings, ["points"], elsewhere)
    config = SimulationConfig.of_scenario("A", transactions=transactions)
    missing = [n for n in range(seeds) if done.find(number=n) is None]
    sources = paired_seeds(SEED, seeds)
    for number in missing[:only]:
        done.add({"number": number, "found": run_seed(config, sources[number])})
        tell(f"seed {number + 1} of {seeds}")
    if len(done.points) < seeds:
        tell(f"{seeds - len(done.points)} seeds are left: run it again")
        return
    found = np.array([point["found"] for point in done.points])  # (seeds, cells, 2)
    columns = [dict(zip(cells(), found[..., k].T, strict=True)) for k in (0, 1)]
    record = Record(out, settings)
    record.write(
        saturation_per_s=config.saturation_per_s,
        cores=config.cores,
        middle={axis: list(values) for axis, values in MIDDLE.items()},
        grid=table(*columns),
        between=errors(columns[0]),
    )
    tell(f"{out}: {out.stat().st_size / 1e3:.0f} kB")
