"""The simulator against SimPy on one model, its growth, and three replicas.

Runs the same database in SimPy, checks that every time is equal bit for bit, and
measures both in turn; measures time and peak memory of a replay from 10^4 to 10^7
transactions, each size in a process of its own; and replays one log of 10^7
transactions with three numbers of workers, whose states must be equal.

    python benchmarks/simulator.py [--against PATH]

With `--against` another checkout, the script only compares the speed of the two: events
per second and time per decision of three policies, in turn, and equal histories.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, cast

import numpy as np
import psutil
import simpy
from record import Record, benchmark, both_clocks, checkout, ratio, show, turns
from replica import state_digest
from simpy.events import EventPriority

from thesis_book.execute.provenance import largest_resident_bytes
from thesis_lib.sequencer.core.trace import History, Trace
from thesis_lib.sequencer.experiments.configuration import saturation_rate
from thesis_lib.sequencer.simulator.simulator import replay
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import SCENARIOS, scenario

CASES = [("A", 0.9), ("A", 1.5), ("C", 0.9)]  # scenario, load
PEER_TRANSACTIONS = 20_000
ROUNDS = 7
SIZES = [10_000, 100_000, 1_000_000, 10_000_000]
GROWTH_LOAD = 0.9
REPLICA_WORKERS = [4, 8, 32]
# SimPy's priority of a dispatch: its own are 0 (urgent) and 1.
AFTER_COMMITS = cast("EventPriority", 2)

TIMES = ("granted_s", "start_s", "finish_s")


# --- The model in SimPy ------------------------------------------------------
#
# Ties are those of the kernel. A dispatch has a later priority than what a commit of
# the same time sets off, and a commit releases its locks before its worker.

Locks = list[list[tuple[int, bool]]]  # key and mode of each lock of each transaction
Times = dict[str, list[float]]
Steps = Generator[simpy.Event, Any, None]


def dispatches(env: simpy.Environment, arrival_s: list[float]) -> Steps:
    """One event for each entry of the log, after every commit of its time."""
    for due_s in arrival_s:
        event = simpy.Event(env)
        event._ok, event._value = True, None  # as `simpy.Timeout` does
        env.schedule(event, AFTER_COMMITS, due_s - env.now)
        yield event


def as_written(
    locks: Locks, arrival_s: list[float], service_s: list[float], cores: int
) -> Times:
    """The model as one writes it in SimPy: a process that waits for its resources."""
    env = simpy.Environment()
    workers = simpy.Resource(env, cores)
    n_keys = 1 + max(key for row in locks for key, _ in row)
    # First come first served: a reader takes one of as many tokens as there can be
    # readers, a writer all of them.
    all_of_them = len(locks)
    table = [simpy.Container(env, all_of_them, all_of_them) for _ in range(n_keys)]
    times = {name: [0.0] * len(locks) for name in TIMES}

    def transaction(i: int) -> Steps:
        taken = [(table[key], all_of_them if alone else 1) for key, alone in locks[i]]
        yield env.all_of([lock.get(tokens) for lock, tokens in taken])
        times["granted_s"][i] = env.now
        with workers.request() as worker:
            yield worker
            times["start_s"][i] = env.now
            yield env.timeout(service_s[i])
            times["finish_s"][i] = env.now
            for lock, tokens in taken:
                lock.put(tokens)
                lock._trigger_get(None)  # now, or another commit comes between

    def sequencer() -> Steps:
        for i, event in enumerate(dispatches(env, arrival_s)):
            yield event
            env.process(transaction(i))

    env.process(sequencer())
    env.run()
    return times


def called_back(
    locks: Locks, arrival_s: list[float], service_s: list[float], cores: int
) -> Times:
    """The same without a process or a resource: callbacks of two events each do it all.

    SimPy keeps the time alone. A commit frees its locks before its worker.
    """
    env = simpy.Environment()
    times = {name: [0.0] * len(locks) for name in TIMES}
    granted_s, start_s, finish_s = (times[name] for name in TIMES)
    ready, idle = deque[int](), cores
    n_keys = 1 + max(key for row in locks for key, _ in row)
    waiting: list[deque[tuple[int, bool]]] = [deque() for _ in range(n_keys)]
    shared, alone = [0] * n_keys, [False] * n_keys
    missing = [len(row) for row in locks]

    def grant(key: int) -> None:
        queue = waiting[key]
        while queue and not alone[key]:
            i, exclusive = queue[0]
            if exclusive and shared[key]:
                return
            queue.popleft()
            if exclusive:
                alone[key] = True
            else:
                shared[key] += 1
            missing[i] -= 1
            if not missing[i]:
                granted_s[i] = env.now
                ready.append(i)

    def ask(i: int) -> None:
        for key, exclusive in locks[i]:
            waiting[key].append((i, exclusive))
            grant(key)

    def free(i: int) -> None:
        for key, exclusive in locks[i]:
            if exclusive:
                alone[key] = False
            else:
                shared[key] -= 1
            grant(key)

    def start() -> None:
        nonlocal idle
        while idle and ready:
            idle -= 1
            i = ready.popleft()
            start_s[i] = env.now
            env.timeout(service_s[i], i).callbacks.append(commit)

    def commit(event: Any) -> None:
        nonlocal idle
        finish_s[event.value] = env.now
        free(event.value)
        idle += 1
        start()

    def sequencer() -> Steps:
        for i, event in enumerate(dispatches(env, arrival_s)):
            event.callbacks.append(follow)
            yield event
            ask(i)
            start()

    def follow(_: object) -> None:
        next(log, None)

    log = sequencer()
    follow(None)
    env.run()
    return times


PEERS = {"as_written": as_written, "called_back": called_back}


def rounded(trace: Trace, step_s: float) -> Trace:
    """The trace with all times multiples of `step_s`, a power of two.

    SimPy knows delays, not times: only where sums and differences are exact can it
    reach the same times as a simulator that is told them.
    """
    return replace(
        trace,
        arrival_s=np.floor(trace.arrival_s / step_s) * step_s,
        service_s=np.ceil(trace.service_s / step_s) * step_s,
    )


def plain(trace: Trace) -> tuple[Locks, list[float], list[float]]:
    """Locks, arrivals and service times as lists."""
    keys, exclusive = trace.keys.keys.tolist(), trace.keys.exclusive.tolist()
    rows = zip(trace.keys.offsets[:-1], trace.keys.offsets[1:], strict=True)
    locks = [list(zip(keys[a:b], exclusive[a:b], strict=True)) for a, b in rows]
    return locks, trace.arrival_s.tolist(), trace.service_s.tolist()


def at_load(name: str, load: float, n: int) -> Trace:
    """Transactions of a scenario at a share of what FIFO sustains."""
    probe = scenario(name, 100_000, seed=1)  # compiles the kernel, too
    limit = saturation_rate(probe, cores=SCENARIOS[name].cores)
    return at_rate(scenario(name, n, seed=2), load * limit, seed=3)


def against_simpy(name: str, load: float) -> dict:
    """Check that all agree, to the bit and with ties everywhere; time them in turn."""
    cores, slo_s = SCENARIOS[name].cores, SCENARIOS[name].slo_s
    log = np.arange(PEER_TRANSACTIONS)
    trace = rounded(at_load(name, load, PEER_TRANSACTIONS), 2.0**-30)
    ties = rounded(trace, 2.0**-10)  # a millisecond: most events share their time

    def compiled(trace: Trace) -> History:
        return replay(trace, log, trace.arrival_s, cores=cores, slo_s=slo_s)

    models: dict[str, Callable[[], object]] = {"thesis_lib": partial(compiled, trace)}
    columns = plain(trace)  # converted beforehand: not SimPy's time
    models |= {name: partial(run, *columns, cores) for name, run in PEERS.items()}
    for case in (trace, ties):
        history = compiled(case)
        for model in PEERS.values():
            times = model(*plain(case), cores)
            for column in TIMES:
                np.testing.assert_array_equal(getattr(history, column), times[column])
    rounds = [
        {name: both_clocks(run) for name, run in models.items()} for _ in range(ROUNDS)
    ]
    return {
        "scenario": name,
        "load": load,
        "transactions": PEER_TRANSACTIONS,
        "times_equal": True,  # asserted above, bit for bit, also with ties
        "commits_that_share_a_time": int(
            len(ties) - len(np.unique(compiled(ties).finish_s))
        ),
        "ratio": {
            peer: {
                clock: median(r[peer][clock] / r["thesis_lib"][clock] for r in rounds)
                for clock in ("cpu_s", "wall_s")
            }
            for peer in PEERS
        },
        "per_cpu_s": {
            model: PEER_TRANSACTIONS / median(r[model]["cpu_s"] for r in rounds)
            for model in models
        },
        "rounds": rounds,
    }


# --- Growth and replicas -----------------------------------------------------


def batched(n: int) -> tuple[Trace, Callable[[int], History]]:
    """A trace, and its replay by so many workers of a log that is not its order.

    Batches of ten, the shortest first.
    """
    trace = at_load("A", GROWTH_LOAD, n)
    batch = np.arange(n) // 10
    log = np.lexsort((trace.service_s, batch))
    dispatch_s = trace.arrival_s[np.minimum(10 * batch + 9, n - 1)]
    slo_s = SCENARIOS["A"].slo_s
    return trace, lambda cores: replay(trace, log, dispatch_s, cores=cores, slo_s=slo_s)


def grow(n: int) -> dict:
    """Time of a replay of n transactions, and what it allocates at most.

    Best in a process of its own, whose largest resident set is then that of this size,
    the trace and how it was made included.
    """
    _, replayed = batched(n)
    run = partial(replayed, SCENARIOS["A"].cores)
    repeats = [both_clocks(run) for _ in range(3)]
    cpu_s = median(r["cpu_s"] for r in repeats)
    tracemalloc.start()  # NumPy reports its arrays to it
    run()
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "transactions": n,
        "cpu_s": cpu_s,
        "cpu_us_per_transaction": 1e6 * cpu_s / n,
        "allocated_bytes": allocated,
        "bytes_per_transaction": allocated / n,
        "most_resident_bytes": largest_resident_bytes(psutil.Process()),
        "repeats": repeats,
    }


def agree(n: int) -> dict:
    """Replay one log with other numbers of workers and compare the states."""
    trace, replayed = batched(n)
    replicas = []
    for workers in REPLICA_WORKERS:
        start = time.perf_counter()
        history = replayed(workers)
        found = {"workers": workers, "state": state_digest(trace, history)}
        found["last_commit_s"] = float(history.finish_s.max())
        replicas.append(found | {"wall_s": time.perf_counter() - start})
    return {
        "transactions": n,
        "states": len({replica["state"] for replica in replicas}),
        "most_resident_bytes": largest_resident_bytes(psutil.Process()),
        "replicas": replicas,
    }


def slope(rows: list[dict], name: str) -> float:
    """Exponent of a power law through the rows, by least squares on logarithms."""
    n = np.log([row["transactions"] for row in rows])
    return float(np.polyfit(n, np.log([row[name] for row in rows]), 1)[0])


# --- Another checkout --------------------------------------------------------
SPEED_POLICIES = ("fifo", "hybrid-corrected", "bid-price")
SPEED_ROUNDS, SPEED_TRANSACTIONS, SPEED_LOAD = 15, 20_000, 1.1
# Answers each policy on a line of its input with the numbers of one run. It imports
# only names that both checkouts have: `decide` is the script of its own checkout.
_SPEED = """
import hashlib, json, sys, time
from decide import PROCESSOR, Case, compiled
from thesis_lib.sequencer import SimulationConfig, noisy_estimate

n, load = int(sys.argv[1]), float(sys.argv[2])
cell = SimulationConfig.of_scenario("A", transactions=n)
made = cell.make_trace(1)
trace, estimated_s = cell.arrange(made, load, 1), noisy_estimate()(made, 1)
for line in sys.stdin:
    rule = cell.policy(line.strip())
    begin = time.process_time()
    history = cell.history(trace, rule, estimated_s, load)
    run_s = time.process_time() - begin
    case = Case(cell, trace, estimated_s, rule)
    _, decisions_us = compiled(case, PROCESSOR, check=False)
    times = hashlib.sha256(history.finish_s.tobytes()).hexdigest()
    found = {"us_per_event": 5e5 * run_s / n, "history": times}
    found["us_per_decision"] = float(decisions_us.mean())
    print(json.dumps(found), flush=True)
"""


def compare_trees(trees: dict[str, Path]) -> list[dict[str, Any]]:
    """Return a row for each policy: medians of both checkouts, and their ratios.

    An event is an arrival or a commit. Ratios are those of the first checkout over the
    second, within a round. The histories must be equal.
    """
    cases = [(tree, policy) for policy in SPEED_POLICIES for tree in trees]
    samples: dict[tuple[str, str], list[dict[str, Any]]] = {case: [] for case in cases}
    words = [sys.executable, "-c", _SPEED, f"{SPEED_TRANSACTIONS}", f"{SPEED_LOAD}"]
    with ExitStack() as stack:
        workers: dict[str, Any] = {}
        for name, folder in trees.items():
            places = os.pathsep.join(str(folder / at) for at in ("src", "benchmarks"))
            workers[name] = stack.enter_context(
                subprocess.Popen(
                    words, cwd=folder, env=os.environ | {"PYTHONPATH": places},
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        for number, (name, policy) in turns(cases, SPEED_ROUNDS + 1):
            print(policy, file=workers[name].stdin, flush=True)
            row = json.loads(workers[name].stdout.readline())
            samples[name, policy] += [row] if number else []  # the first compiles
    own, other = trees
    rows = []
    for policy in SPEED_POLICIES:
        mine, theirs = samples[own, policy], samples[other, policy]
        assert len({row["history"] for row in mine + theirs}) == 1, policy
        for what in ("us_per_event", "us_per_decision"):
            seconds = [[row[what] for row in each] for each in (mine, theirs)]
            row = {"policy": policy, "what": what, own: seconds[0], other: seconds[1]}
            rows.append(row | ratio(*seconds))
    return rows


@benchmark
def main(
    out: Path, *, against: Annotated[Path | None, "a checkout to compare with"] = None
) -> None:
    record = Record(out)
    if against is not None:
        rows = compare_trees({"here": checkout(), "there": against.resolve()})
        show(rows)
        record.write(rows=rows)
        return
    peers = [against_simpy(*case) for case in CASES]
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as fresh:
        sizes = list(fresh.map(grow, SIZES))
        replicas = fresh.submit(agree, SIZES[-1]).result()
    assert replicas["states"] == 1
    growth = {
        "scenario": "A",
        "load": GROWTH_LOAD,
        "slope_cpu": slope(sizes, "cpu_s"),
        "slope_memory": slope(sizes, "allocated_bytes"),
        "sizes": sizes,
    }
    record.write(simpy=simpy.__version__, peers=peers, growth=growth, replicas=replicas)
    print(json.dumps(record.content, indent=1))
