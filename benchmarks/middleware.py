"""What the live engine adds to a transaction, and how many it passes a second.

Processes against a peer of threads that share Python's interpreter lock, and batched
against single system calls, in turn, on a database that does nothing, on SQLite and on
PostgreSQL. Then the stages of a transaction, and the highest rate of an open loop that
is sustained.

    python benchmarks/middleware.py [ROUNDS]
"""

import itertools
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import numpy as np
from record import Record, benchmark, ratio, show, tell

from thesis_lib.sequencer.core.locks import book, lock_table, release
from thesis_lib.sequencer.engine import scheduler, workers
from thesis_lib.sequencer.engine.engine import ENGINES, database, make_log
from thesis_lib.sequencer.engine.overheads import as_delays, overheads
from thesis_lib.sequencer.engine.storage import UNITS
from thesis_lib.sequencer.policies.registry import policy
from thesis_lib.sequencer.workload.arrivals import poisson_arrivals
from thesis_lib.sequencer.workload.transactions import Log

N, WARM_UP = 4_000, 400
CLIENTS, BATCH = 64, 8
WORKERS = (1, 2, 4)
QUIET = 0.2  # of the closed loop's rate: a load with hardly any queue
STEPS = 1.1 ** np.arange(-8, 9)  # rates that are tried, around the closed loop's


class Nothing:
    """A database whose transactions do nothing: what remains is the middleware."""

    engine, one_writer = "nothing", True
    units_s = (0.0,) * len(UNITS)

    def copy(self, name: str) -> "Nothing":
        return self

    def session(self) -> "Nothing":
        return self

    def run(self, t) -> bool:
        return True

    def close(self) -> None:
        pass


def threads(storage, log: Log, count: int) -> float:
    """Transactions a second of the same closed loop on threads and one mutex."""
    table, unlocked = lock_table(log.keys), np.empty(len(log), np.int64)
    book(table, 0)  # compiled here
    release(table, 0, unlocked)
    ready: queue.SimpleQueue[int] = queue.SimpleQueue()
    mutex, counts = threading.Lock(), {"arrived": 0, "booked": 0}
    ends_s = []

    def arrive() -> None:
        counts["arrived"] += 1
        waiting = counts["arrived"] - counts["booked"]
        if waiting < BATCH and counts["arrived"] < len(log):
            return
        for i in range(counts["booked"], counts["arrived"]):
            if book(table, i):
                ready.put(i)
        counts["booked"] = counts["arrived"]

    def work() -> None:
        with closing(storage.session()) as session:
            while (i := ready.get()) >= 0:
                session.run(log.transactions[i])
                with mutex:
                    for j in unlocked[: release(table, i, unlocked)].tolist():
                        ready.put(j)
                    ends_s.append(perf_counter())
                    if counts["arrived"] < len(log):
                        arrive()
                    if len(ends_s) == len(log):
                        for _ in range(count):
                            ready.put(-1)

    with mutex:
        for _ in range(CLIENTS):
            arrive()
    with ThreadPoolExecutor(count) as at_work:
        for done in [at_work.submit(work) for _ in range(count)]:
            done.result()
    return (len(log) - WARM_UP) / (ends_s[-1] - ends_s[WARM_UP - 1])


def processes(storage, log: Log, count: int) -> tuple[float, scheduler.Run]:
    """Transactions a second of a closed loop, and its run."""
    with scheduler.Scheduler(storage, log, count) as ready:
        run = scheduler.run_closed(ready, len(log), CLIENTS, BATCH)
    ends_s = np.sort(run.finish_s)
    return (len(log) - WARM_UP) / (ends_s[-1] - ends_s[WARM_UP - 1]), run


def open_loop(
    storage, log: Log, count: int, rate_per_s: float, seed: int
) -> scheduler.Run:
    """A run at this rate under FIFO, behind a warm-up."""
    rng = np.random.default_rng(seed)
    due_s = poisson_arrivals(rate_per_s, len(log) - WARM_UP, rng)
    arrival_s = np.concatenate([np.zeros(WARM_UP), due_s])
    asked = scheduler.Requests.of_log(log, arrival_s, 1.0, np.zeros(len(log)))
    with scheduler.Scheduler(storage, log, count) as ready:
        scheduler.run_closed(ready, WARM_UP, CLIENTS, BATCH)
        fifo = policy("fifo", slo_s=1.0, cores=count)
        return scheduler.run_open(ready, asked, fifo, first=WARM_UP)


def sustained(run: scheduler.Run) -> bool:
    """Whether the queue at the last arrival took less than 1 % of the run to empty."""
    return bool(run.notified_s.max() < 1.01 * run.arrival_s[-1] + 5e-3)


def measure(loaded, log: Log, rounds: int) -> dict:
    """Everything about one engine, by number of workers."""
    copies, found = itertools.count(1), {}

    def fresh():
        return loaded.copy(f"m{next(copies)}")

    for count in WORKERS:
        rates: dict[str, list[float]] = {
            "threads": [], "processes, single calls": [], "processes": [],
        }  # fmt: skip
        busy, quiet, highest = [], [], []
        for r in range(rounds):
            rates["threads"].append(threads(fresh(), log, count))
            # One id a write and one record a read, as before calls were batched.
            with patch.multiple(workers, AT_ONCE=1, READ_BYTES=workers.RECORD.itemsize):
                single, _ = processes(fresh(), log, count)
            rates["processes, single calls"].append(single)
            rate, run = processes(fresh(), log, count)
            rates["processes"].append(rate)
            busy.append(overheads(run, log.keys, WARM_UP))
            run = open_loop(fresh(), log, count, QUIET * rate, r)
            quiet.append(overheads(run, log.keys, WARM_UP))
            held = [0.0]
            for step in STEPS:
                if not sustained(open_loop(fresh(), log, count, step * rate, r)):
                    break
                held.append(float(step * rate))
            highest.append(held[-1])
        middle = sorted(range(rounds), key=lambda r: busy[r].turn_s)[rounds // 2]
        found[str(count)] = {
            "transactions_per_s": rates,
            "processes over threads": ratio(rates["processes"], rates["threads"])[
                "ratio"
            ],
            "batched over single calls": ratio(
                rates["processes"], rates["processes, single calls"]
            )["ratio"],
            "open_loop_sustained_per_s": highest,
            "quiet": [asdict(o) for o in quiet],
            "busy": [asdict(o) for o in busy],
            "delays": asdict(as_delays(quiet[middle], busy[middle])),
        }
    return found


@benchmark
def main(out: Path, rounds: int = 3) -> None:
    record, log = Record(out), make_log("tpcc", N, 0, warehouses=4)
    engines = {"nothing": measure(Nothing(), log, rounds)}
    for engine in ENGINES:
        with database(engine) as loaded:
            loaded.load(log.scale, log.seed)
            rows = log if loaded.one_writer else log.without_files()
            engines[engine] = measure(loaded, rows, rounds)
        tell(f"measured {engine}")
    record.write(
        engines=engines,
        transactions=N,
        clients=CLIENTS,
        batch=BATCH,
        rounds=rounds,
        note="times in seconds; an open loop under FIFO, batching nothing; the "
        "server of PostgreSQL shares the cores",
    )
    show(
        [
            {"engine": engine, "workers": count, **numbers}
            for engine, by_count in engines.items()
            for count, numbers in by_count.items()
        ]
    )
