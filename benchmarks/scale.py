"""What a decision costs when one sequencer decides for ever more cores.

The loop of `decide.py`, compiled and with a clock in it, on the workload of scenario A
at the size of the machine: 10 warehouses and the load of 8 cores for every 8 cores, so
that 10^5 arrivals a second take about a hundred cores and 10^6 about a thousand. A
decision's time is shared equally by the transactions that it decides on, as there.
Every history of the first round is compared with the simulator's.

    python benchmarks/scale.py
"""

from itertools import product
from pathlib import Path

from decide import Case, compiled, in_rounds, shape
from record import Record, benchmark, own_core, show

from thesis_book.experiments.sequencer.scaling import grown
from thesis_lib.sequencer.experiments.configuration import (
    SimulationConfig,
    noisy_estimate,
)
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
        for load, policy in product(LOADS, POLICIES):
            arranged = cell.arrange(trace, load, SEED)
            label = {
                "policy": policy, "load": load, "cores": cores,
                "transactions": len(trace), "rate_per_s": load * cell.saturation_per_s,
            }  # fmt: skip
            case = Case(cell, arranged, estimated_s, cell.policy(policy))
            made.append((label, case))
    return made


@benchmark
def main(out: Path) -> None:
    record = Record(out)
    own_core()
    labeled = cases()

    def one_round(number: int) -> list[dict]:
        rows = []
        for label, case in labeled:
            cost_us, decisions_us = compiled(case, check=number == 0)
            row = label | {"decisions": len(decisions_us)} | shape(cost_us, "decide")
            rows.append(row | shape(decisions_us, "decision"))
        return rows

    for _, case in labeled[: len(POLICIES)]:
        compiled(case)  # compiles everything
    found = in_rounds(ROUNDS, one_round)
    record.write(**found)
    show(found["cases"], "samples")
