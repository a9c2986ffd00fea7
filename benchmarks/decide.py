"""What estimating and deciding cost a transaction, for every policy, on one core.

Runs the simulator's loop with its real look-ahead and reads the clock before and
after every decision, in three ways: with the objects in Python that a rule of one's own
sees, called from a loop in Python as the live engine does, and inside the compiled
loop, as the simulator does. A decision's time is shared equally by the transactions
that it decides on, and a transaction pays its share of every decision that it takes
part in, so that what is held back and asked for again costs again. An estimate is one
row through the flat trees of the boosted estimator. Every history is compared with the
simulator's.

    python benchmarks/decide.py

What is held grows with the load and with the objective. The compiled decision of
`bid-price` is measured up to loads and objectives at which thousands wait as well, in
processor time. So is a decision of `LiveSequencer`, with all of Python around it, while
up to ten thousand wait who may all be on time.
"""

import ctypes
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from record import Record, benchmark, both_clocks, medians, own_core, show

from thesis_lib.sequencer.core.events import (
    NOW,
    RunConfig,
    SequencerState,
    State,
    enter,
    next_decision,
)
from thesis_lib.sequencer.core.trace import F64, Decision, Trace
from thesis_lib.sequencer.estimators.models import Boosted
from thesis_lib.sequencer.estimators.trees import I32, sum_leaves
from thesis_lib.sequencer.experiments.configuration import (
    SimulationConfig,
    noisy_estimate,
)
from thesis_lib.sequencer.policies.decisions import decide_by, decide_into, decider
from thesis_lib.sequencer.policies.lookahead import Feedback, OpenLoop
from thesis_lib.sequencer.policies.registry import Policy, decide
from thesis_lib.sequencer.policies.rules import RuleCode
from thesis_lib.sequencer.simulator.simulator import SystemConfig, begin
from thesis_serve import LiveSequencer

SCENARIOS, LOADS = ("A", "C"), (0.9, 1.1, 1.5)
POLICIES = (
    "fifo-batched", "drop", "reorder", "hybrid", "drop-corrected", "reorder-corrected",
    "hybrid-corrected", "edf", "sjf", "queue-cap", "codel", "least-slack", "late-sjf",
    "late-edf", "startable-first", "late-demote", "bid-price",
)  # fmt: skip
TRANSACTIONS, SEED, PAST_SEED = 4_000, 1, 777_777
ROUNDS = 7
CROWDED_ROUNDS = 5
CROWDED_LOADS, CROWDED_SLO_S = (1.1, 10.0, 30.0), (0.0125, 0.125, 1.0)
HELD, WORKERS, EVENTS, SERVICE_S = (100, 1_000, 10_000), 8, 400, 0.01

clock_gettime = ctypes.CDLL(None).clock_gettime
clock_gettime.argtypes = [ctypes.c_int, ctypes.c_void_p]
clock_gettime.restype = ctypes.c_int
MONOTONIC, PROCESSOR = time.CLOCK_MONOTONIC, time.CLOCK_THREAD_CPUTIME_ID


Nodes = tuple[I32, I32, I32, F64, float, float]  # of trees, as `sum_leaves` wants them


@njit
def read_clock(words, clock=MONOTONIC):
    """Nanoseconds; `words` (2,) is where the system writes them."""
    clock_gettime(clock, words.ctypes)
    return words[0] * 1_000_000_000 + words[1]


@dataclass(frozen=True, slots=True)
class Case:
    """One policy that meets one trace."""

    cell: SimulationConfig
    trace: Trace
    estimated_s: F64
    policy: Policy

    def prepare(
        self,
    ) -> tuple[State, SequencerState, RunConfig, OpenLoop | Feedback]:
        """What the simulator sets up before its loop, for an open loop without lag."""
        cell = self.cell
        run = begin(
            self.trace, self.policy, self.estimated_s,
            SystemConfig(
                cores=cell.cores, slo_s=cell.slo_s, batch_size=cell.batch_size,
                flush_s=cell.flush_s,
            ),
        )  # fmt: skip
        return run.state, run.before, run.setting, run.lookahead

    @property
    def code(self) -> RuleCode:
        """What the compiled decision is told of the policy."""
        assert self.policy.code is not None, f"{self.policy.name} is not compiled"
        return self.policy.code

    def check(self, state: State, before: SequencerState) -> None:
        """The history is the simulator's, bit for bit."""
        history = self.cell.history(self.trace, self.policy, self.estimated_s, load=1)
        np.testing.assert_array_equal(state.finish_s, history.finish_s)
        np.testing.assert_array_equal(before.dropped, history.dropped)


def in_python(case: Case, objects: bool) -> tuple[F64, F64]:
    """Microseconds of each transaction (n,) and of each decision (d,).

    Batch and decision are `objects` in Python, or the compiled decision is called.
    """
    state, before, setting, lookahead = case.prepare()
    trace, policy = case.trace, case.policy
    asked = np.empty(len(trace), np.int64)
    cost_ns, decisions_ns = np.zeros(len(trace)), []
    as_one = decider(case.code, lookahead.memory, lookahead.model, state)
    while (size := next_decision(state, before, trace.service_s, setting, asked)) > 0:
        ids, now_s = asked[:size].copy(), float(before.clock_s[NOW])
        begin = time.perf_counter_ns()
        if objects:
            batch = trace.batch(ids, before.deadline_s[ids], trace.arrival_s[ids])
            decision = decide(policy, lookahead, batch, now_s)
        else:
            decision = Decision(*decide_by(as_one, ids, now_s))
        took = time.perf_counter_ns() - begin
        cost_ns[ids] += took / size
        decisions_ns.append(took)
        held = np.sort(decision.held)
        enter(state, before, setting, decision.order, decision.dropped, held)
    case.check(state, before)
    return cost_ns / 1e3, np.array(decisions_ns) / 1e3


@njit
def run_compiled(  # what numba compiles takes its state apart
    state, before, busy_s, setting, memory, model, code, decisions_ns, clock
):
    """The loop of the simulator with a clock in it; (n,) nanoseconds and how many."""
    words = np.empty(2, np.int64)
    asked = np.empty(len(busy_s), np.int64)
    cost_ns, number, made = np.zeros(len(busy_s)), 0, memory.decided
    while True:
        size = next_decision(state, before, busy_s, setting, asked)
        if size <= 0:
            return cost_ns, number
        ids = asked[:size]
        begin = read_clock(words, clock)
        order, dropped, held = decide_into(
            code, memory, model, ids, before.clock_s[NOW]
        )
        took = read_clock(words, clock) - begin
        for i in ids:
            cost_ns[i] += took / size
        decisions_ns[number] = took
        number += 1
        enter(
            state, before, setting, made.order[:order], made.dropped[:dropped],
            made.held[:held],
        )  # fmt: skip


def compiled(case: Case, clock: int = MONOTONIC, check: bool = True) -> tuple[F64, F64]:
    """The same, compiled."""
    state, before, setting, lookahead = case.prepare()
    decisions_ns = np.empty(2 * len(case.trace))  # an arrival and a commit each
    cost_ns, number = run_compiled(
        state, before, case.trace.service_s, setting, lookahead.memory, lookahead.model,
        case.code, decisions_ns, clock,
    )  # fmt: skip
    if check:
        case.check(state, before)
    return cost_ns / 1e3, decisions_ns[:number] / 1e3


WAYS: dict[str, Callable[[Case], tuple[F64, F64]]] = {
    "python": partial(in_python, objects=True),
    "called": partial(in_python, objects=False),
    "compiled": compiled,
}


@njit
def estimate_compiled(nodes: Nodes, center, features):
    """Microseconds of each estimate (n,), asked for by compiled code."""
    words, estimated_s = np.empty(2, np.int64), np.empty(len(features))
    took_ns = np.empty(len(features))
    for row in range(len(features)):
        begin = read_clock(words)
        estimated_s[row] = exp(center + sum_leaves(*nodes, features[row]))
        took_ns[row] = read_clock(words) - begin
    assert estimated_s.min() > 0  # or none would have to be made
    return took_ns / 1e3


@njit
def two_readings(times):
    """Nanoseconds between two readings of the clock with nothing between, (times,)."""
    words, took = np.empty(2, np.int64), np.empty(times)
    for at in range(times):
        begin = read_clock(words)
        took[at] = read_clock(words) - begin
    return took


def estimate_in_python(model: Boosted, features: F64) -> F64:
    """Microseconds of each estimate (n,), asked for from Python."""
    took_ns = np.empty(len(features))
    for at, row in enumerate(features):
        begin = time.perf_counter_ns()
        model.predict_one(row)
        took_ns[at] = time.perf_counter_ns() - begin
    return took_ns / 1e3


def shape(times_us: F64, name: str) -> dict[str, float]:
    """Mean and 99th percentile of what is named."""
    p99_us = float(np.quantile(times_us, 0.99, method="higher"))
    return {f"{name}_mean_us": float(times_us.mean()), f"{name}_p99_us": p99_us}


def cases() -> Iterable[tuple[dict, Case]]:
    """Every policy at every load in every scenario, on the same transactions."""
    for name in SCENARIOS:
        cell = SimulationConfig.of_scenario(name, transactions=TRANSACTIONS)
        transactions = cell.make_trace(SEED)
        estimated_s = noisy_estimate()(transactions, SEED)
        for load in LOADS:
            trace = cell.arrange(transactions, load, SEED)
            for policy in POLICIES:
                label = {"scenario": name, "load": load, "policy": policy}
                yield label, Case(cell, trace, estimated_s, cell.policy(policy))


def estimates() -> dict[str, dict[str, Callable[[], F64]]]:
    """By scenario and way: a run that estimates every transaction, one by one."""
    made = {}
    for name in SCENARIOS:
        cell = SimulationConfig.of_scenario(name, transactions=TRANSACTIONS)
        model = Boosted().fit(cell.make_trace(PAST_SEED))
        features = cell.make_trace(SEED).features
        assert model.ensemble is not None
        nodes = model.ensemble.nodes()
        made[name] = {
            "compiled": partial(estimate_compiled, nodes, model.center, features),
            "python": partial(estimate_in_python, model, features),
        }
    return made


def one_round(
    labeled: list[tuple[dict, Case]], estimating: dict, number: int
) -> list[dict]:
    """A row for each case and way; every second round runs the other way round."""
    spent = {
        name: {way: run() for way, run in ways.items()}
        for name, ways in estimating.items()
    }
    rows = []
    for label, case in labeled if number % 2 == 0 else reversed(labeled):
        for way, run in WAYS.items():
            cost_us, decisions_us = run(case)
            asked = "compiled" if way == "compiled" else "python"
            estimate_us = spent[label["scenario"]][asked]
            rows.append(
                label
                | {"way": way, "decisions": len(decisions_us)}
                | shape(cost_us, "decide")
                | shape(estimate_us, "estimate")
                | shape(cost_us + estimate_us, "both")
                | shape(decisions_us, "decision")
            )
    return rows


def in_rounds(rounds: int, one_round: Callable[[int], list[dict]]) -> dict[str, Any]:
    """Medians of the rows of each case over the rounds, and how the clock was read."""
    groups: dict[tuple, list[dict]] = {}

    def run() -> None:
        for number in range(rounds):
            for row in one_round(number):
                label = {name: v for name, v in row.items() if not name.endswith("_us")}
                groups.setdefault(tuple(label.items()), []).append(row)

    spent = both_clocks(run)
    return {
        "rounds": rounds,
        "histories_equal": True,  # asserted by every run that checks its case
        "clock_us": float(np.median(two_readings(10_000))) / 1e3,  # not subtracted
        "cpu_share": spent["cpu_s"] / spent["wall_s"],
        "cases": [medians(dict(label), group) for label, group in groups.items()],
    }


def crowd() -> list[dict]:
    """The mean processor time of a decision of `bid-price` where ever more is held."""
    rows = []
    for slo_s in CROWDED_SLO_S:
        cell = SimulationConfig.of_scenario("A", transactions=TRANSACTIONS, slo_s=slo_s)
        transactions = cell.make_trace(SEED)
        estimated_s = noisy_estimate()(transactions, SEED)
        for load in CROWDED_LOADS:
            trace = cell.arrange(transactions, load, SEED)
            case = Case(cell, trace, estimated_s, cell.policy("bid-price"))
            cost_us, decisions_us = compiled(case, PROCESSOR)
            rows.append(
                {"load": load, "slo_s": slo_s, "decisions": len(decisions_us)}
                | shape(decisions_us, "decision")
                | shape(cost_us, "decide")  # a transaction's share of all of them
            )
    return rows


def held() -> list[dict]:
    """The mean processor time of an end at `LiveSequencer`, while so many wait.

    At each end it is decided on all who wait, and one of them starts.
    """
    rows = []
    for waiting in HELD:
        rng = np.random.default_rng(waiting)
        front = LiveSequencer(
            "bid-price", workers=WORKERS, slo_s=1e3 * SERVICE_S * max(HELD),
            most_waiting=2 * waiting,
        )  # fmt: skip
        took_s = SERVICE_S * rng.lognormal(0, 0.5, waiting + WORKERS + EVENTS)
        running: list[int] = []
        for number in range(waiting + WORKERS):
            decided = front.arrive(number, 0.0, estimate_s=took_s[number])
            running += decided.started
        used_ns = 0
        for number in range(waiting + WORKERS, len(took_s)):
            now_s = front.now_s + SERVICE_S / WORKERS
            begin_ns = time.process_time_ns()
            running += front.end(running.pop(0), now_s).started
            used_ns += time.process_time_ns() - begin_ns
            front.arrive(number, now_s, estimate_s=took_s[number])
        assert front.waiting == waiting, front.totals()
        rows.append({"waiting": waiting, "decision_us": used_ns / 1e3 / EVENTS})
    return rows


@benchmark
def main(out: Path) -> None:
    record = Record(out, points="cases")
    own_core()
    labeled, estimating = list(cases()), estimates()
    one_round(labeled[: len(POLICIES)], estimating, 0)  # compiles everything
    found = in_rounds(ROUNDS, partial(one_round, labeled, estimating))
    crowded = in_rounds(CROWDED_ROUNDS, lambda _: crowd())
    waiting = in_rounds(CROWDED_ROUNDS, lambda _: held())
    record.write(
        transactions=TRANSACTIONS, crowded=crowded, held=waiting["cases"], **found
    )
    show(record.points, "samples")
    show(crowded["cases"], "samples")
    show(waiting["cases"], "samples")
