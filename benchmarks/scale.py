"""What a decision costs when one sequencer decides for ever more cores.

The loop of `decide.py`, compiled and with a clock in it, on the workload of scenario A
at the size of the machine: 10 warehouses and the load of 8 cores for every 8 cores, so
that 10^5 arrivals a second take about a hundred cores and 10^6 about a thousand. A
decision's time is shared equally by the transactions that it decides on, as there.
Every history of the first round is compared with the simulator's.

    python benchmarks/scale.py
"""

import numpy as np
from decide import Case, compiled, shape, two_readings
from record import Record, both_clocks, command, medians, own_core, show

from thesis_lib.sequencer.experiments.configuration import (
    SimulationConfig,
    noisy_estimate,
)
from thesis_lib.sequencer.experiments.scaling import grown
from thesis_lib.sequencer.workload.scenarios import SCENARIOS

CORES = (8, 16, 32, 64, 128, 256, 512, 1024)
LOADS = (0.9, 1.1)
POLICIES = ("fifo", "bid-price")
SEED = 1
ROUNDS = 3


def transactions(cores: int) -> int:
    """Enough to outlast the objective, which is when the queue stops growing."""
    return 4_000 + 12 * cores


def cases() -> list[tuple[dict, Case]]:
    """Every policy at every load and size, on the same transactions."""
    made = []
    one_per_s = SimulationConfig.of_scenario("A", transactions=1).saturation_per_s
    for cores in CORES:
        times = cores // SCENARIOS["A"].cores
        each = transactions(cores) // times
        cell = grown("A", times, transactions=each, saturation_per_s=one_per_s)
        trace = cell.make_trace(SEED)
        estimated_s = noisy_estimate()(trace, SEED)
        for load in LOADS:
            arranged = cell.arrange(trace, load, SEED)
            for policy in POLICIES:
                label = {
                    "policy": policy,
                    "load": load,
                    "cores": cores,
                    "transactions": len(trace),
                    "rate_per_s": load * cell.saturation_per_s,
                }
                made.append(
                    (label, Case(cell, arranged, estimated_s, cell.policy(policy)))
                )
    return made


def measure(case: Case, check: bool) -> dict[str, float]:
    """One run: the cost of a transaction and of a decision, and how many of these."""
    cost_us, decisions_us = compiled(case, check=check)
    return {
        **{f"decide_{k}": v for k, v in shape(cost_us).items()},
        **{f"decision_{k}": v for k, v in shape(decisions_us).items()},
        "decisions": len(decisions_us),
    }


def main(words: list[str] | None = None) -> None:
    """Measure, print, and keep the record."""
    record = Record(command(__doc__, "scale").parse_args(words).out)
    own_core()
    labelled = cases()
    for _, case in labelled[: len(POLICIES)]:  # compiles everything
        measure(case, check=True)
    rounds: list[list[dict]] = []

    def run() -> None:
        for number in range(ROUNDS):
            rounds.append([measure(case, check=number == 0) for _, case in labelled])

    spent = both_clocks(run)
    rows = [
        medians({**label, "decisions": own[0]["decisions"]}, own)
        for (label, _), own in zip(labelled, zip(*rounds, strict=True), strict=True)
    ]
    record.write(
        "cases",
        rounds=ROUNDS,
        histories_equal=True,  # asserted above, in the first round
        clock_us=float(np.median(two_readings(10_000))) / 1e3,  # not subtracted
        cpu_share=spent["cpu_s"] / spent["wall_s"],
        cases=rows,
    )
    show(rows, "samples")


if __name__ == "__main__":
    main()
