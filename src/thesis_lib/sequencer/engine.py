"""A deterministic database engine: one lock table, and worker threads below it.

The sequencer fixes a total order, every transaction books its declared locks in that
order, and so conflicting transactions run in it whatever the number of workers: the
same log leaves the same state (Thomson et al., Calvin, SIGMOD 2012).
"""

import platform
import sqlite3
import tempfile
import threading
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter, thread_time

import numpy as np

from thesis_lib.checks import InvalidInput, choice, require
from thesis_lib.machine import cpu_model
from thesis_lib.sequencer.features import (
    DYNAMIC,
    STATIC,
    declared_records,
    dynamic_features,
    static_features,
)
from thesis_lib.sequencer.locktable import book, lock_table, release
from thesis_lib.sequencer.storage import UNITS, SQLite, Storage, empty_folder
from thesis_lib.sequencer.trace import F64, Bool, Trace
from thesis_lib.sequencer.workload import (
    TPCC_KINDS,
    Log,
    Scale,
    tpcc,
)

ENGINES = ("sqlite",)
STOP = -1  # in the run queue: no more work
CLOCK_S = 1e-7  # times are kept to 0.1 µs, finer than two laps of the clock differ


# --- Deterministic execution -------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """Times of one execution of a log, from its start."""

    arrival_s: F64  # (n,)
    sequenced_s: F64  # (n,) numbered, locks booked
    granted_s: F64  # (n,) last lock granted
    start_s: F64  # (n,) taken by a worker
    finish_s: F64  # (n,) committed or rolled back
    cpu_s: F64  # (n,) processor time of the worker thread
    units_s: F64  # (n, len(UNITS))
    worker: F64  # (n,)
    committed: Bool  # (n,) False where rolled back


class _Execution:
    """The shared state of one run; every method holds the one mutex."""

    def __init__(self, log: Log, workers: int, in_flight: int, batch: int) -> None:
        n = len(log)
        self.n, self.workers, self.batch = n, workers, batch
        self.granted = np.empty(n, np.int64)  # scratch of release
        self.table = lock_table(log.keys)
        book(self.table, 0)  # compiled here, or the first client would wait for it
        release(self.table, 0, self.granted)
        self.run_queue: SimpleQueue[int] = SimpleQueue()
        self.mutex = threading.Lock()
        self.arrived = self.sequenced = self.finished = 0
        self.failure: BaseException | None = None
        self.arrival_s, self.sequenced_s = np.zeros(n), np.zeros(n)
        self.granted_s = np.zeros(n)
        self.origin_s = perf_counter()
        with self.mutex:
            for _ in range(min(in_flight, n)):
                self._arrive(self.origin_s)

    def _arrive(self, now_s: float) -> None:
        """One client submits the next transaction; a full batch is sequenced."""
        self.arrival_s[self.arrived] = now_s
        self.arrived += 1
        waiting = self.arrived - self.sequenced
        if waiting < self.batch and self.arrived < self.n:
            return
        for i in range(self.sequenced, self.arrived):
            # one instant a transaction: the log is ordered within a batch as well
            self.sequenced_s[i] = perf_counter()
            if book(self.table, i):
                self._grant(i)
        self.sequenced = self.arrived

    def _grant(self, i: int) -> None:
        self.granted_s[i] = perf_counter()
        self.run_queue.put(i)

    def commit(self, i: int) -> None:
        """Release the locks of i; its client submits again."""
        with self.mutex:
            for j in self.granted[: release(self.table, i, self.granted)].tolist():
                self._grant(j)
            self.finished += 1
            if self.arrived < self.n:
                self._arrive(perf_counter())
            if self.finished == self.n:
                self._stop()

    def fail(self, error: BaseException) -> None:
        with self.mutex:
            self.failure = self.failure or error
            self._stop()

    def _stop(self) -> None:
        for _ in range(self.workers):
            self.run_queue.put(STOP)


def execute(
    storage: Storage, log: Log, workers: int, in_flight: int = 32, batch: int = 8
) -> Run:
    """Run the log on a database that was loaded for it.

    A closed loop: `in_flight` clients each submit one transaction, wait for its
    commit and submit the next. Every `batch` submissions the sequencer appends them
    to the total order and books their locks; workers take granted transactions first
    come, first served.
    """
    require(workers >= 1, f"workers={workers}: expected at least 1")
    require(
        1 <= batch <= in_flight,
        f"batch={batch} must lie between 1 and in_flight={in_flight}: "
        "a larger batch would wait for clients that wait for it",
    )
    n = len(log)
    shared = _Execution(log, workers, in_flight, batch)
    start_s, finish_s, cpu_s = np.zeros(n), np.zeros(n), np.zeros(n)
    units_s, worker = np.zeros((n, len(UNITS))), np.zeros(n)
    committed = np.zeros(n, bool)

    def work(number: int) -> None:
        try:
            session = storage.session()
            with closing(session):
                while (i := shared.run_queue.get()) != STOP:
                    t = log.transactions[i]
                    start, cpu = perf_counter(), thread_time()
                    ok = session.run(t)
                    cpu, finish = thread_time() - cpu, perf_counter()
                    start_s[i], finish_s[i], cpu_s[i] = start, finish, cpu
                    units_s[i], worker[i], committed[i] = session.units_s, number, ok
                    shared.commit(i)
        except BaseException as error:  # of any kind: re-raised by the caller
            shared.fail(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if shared.failure is not None:
        raise shared.failure
    origin = shared.origin_s
    return Run(
        arrival_s=shared.arrival_s - origin,
        sequenced_s=shared.sequenced_s - origin,
        granted_s=shared.granted_s - origin,
        start_s=start_s - origin,
        finish_s=finish_s - origin,
        cpu_s=cpu_s,
        units_s=units_s,
        worker=worker,
        committed=committed,
    )


def execute_serially(storage: Storage, log: Log) -> None:
    """Run the log one transaction at a time, without locks: the state to agree with."""
    with closing(storage.session()) as session:
        for t in log.transactions:
            session.run(t)


# --- Collection --------------------------------------------------------------


def collect(
    engine: str = "sqlite",
    transactions: int = 20_000,
    workers: int = 2,
    warehouses: int = 2,
    seed: int = 0,
    replays: int = 1,
    folder: Path | str | None = None,
    scale: Scale | None = None,
    in_flight: int = 32,
    batch: int = 8,
) -> Trace:
    """Run TPC-C on the real engine and record it.

    `service_s` is wall time from a worker's start to its commit, `units_s` its split
    into operating units. `measured` adds processor time and the stages before the
    start: arrival + sequence_s + lock_wait_s + queue_s is the start. With `replays`
    above 1 the same log runs again on fresh copies of the loaded database; columns
    of the first run lead, and `service_s_r1`, `cpu_s_r1`, … hold every run. Databases
    live in `folder`, or in a temporary one. `scale` overrides `warehouses`.

    Raises InvalidInput for an unknown engine, counts below 1, a folder that is not
    empty, and replays that end in different states.
    """
    if engine == "postgresql":
        raise InvalidInput(
            "engine='postgresql' belongs to a later version: expected 'sqlite'"
        )
    choice("engine", engine, ENGINES)
    for name, value in (
        ("transactions", transactions),
        ("workers", workers),
        ("replays", replays),
        ("warehouses", warehouses),
    ):
        require(value >= 1, f"{name}={value}: expected at least 1")
    scale = scale or Scale(warehouses=warehouses)
    log = tpcc(transactions, scale, seed)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="thesis-engine-") as scratch:
            runs, digest = _replay(
                Path(scratch), log, workers, replays, in_flight, batch
            )
    else:
        root = empty_folder(Path(folder))
        runs, digest = _replay(root, log, workers, replays, in_flight, batch)
    return _trace(log, runs, digest, workers, in_flight, batch)


def _replay(
    folder: Path, log: Log, workers: int, replays: int, in_flight: int, batch: int
) -> tuple[list[Run], str]:
    """Run the log on as many copies of one loaded database; the runs, their state."""
    loaded = SQLite(folder / "loaded")
    loaded.load(log.scale, log.seed)
    runs, digests = [], []
    for r in range(1, replays + 1):
        copy = loaded.copy(f"replay-{r}")
        runs.append(execute(copy, log, workers, in_flight, batch))
        digests.append(copy.digest())
    if len(set(digests)) > 1:
        raise InvalidInput(
            f"replays of one log ended in states {', '.join(d[:8] for d in digests)}: "
            "expected one; the engine is not deterministic on this machine"
        )
    return runs, digests[0]


def _trace(
    log: Log, runs: list[Run], digest: str, workers: int, in_flight: int, batch: int
) -> Trace:
    first = runs[0]
    arrival_s, sequenced_s, granted_s, start_s = (
        _tick(instant)
        for instant in (
            first.arrival_s,
            first.sequenced_s,
            first.granted_s,
            first.start_s,
        )
    )
    records = np.array([declared_records(t) for t in log.transactions], np.float64)
    dynamic = dynamic_features(first.sequenced_s, first.finish_s, log.keys, records)
    measured = {
        "cpu_s": _tick(first.cpu_s),
        "sequence_s": sequenced_s - arrival_s,
        "lock_wait_s": granted_s - sequenced_s,
        "queue_s": start_s - granted_s,
        "worker": first.worker,
        "committed": first.committed.astype(np.float64),
    }
    if len(runs) > 1:
        for r, run in enumerate(runs, start=1):
            measured[f"service_s_r{r}"] = _tick(run.finish_s - run.start_s)
            measured[f"cpu_s_r{r}"] = _tick(run.cpu_s)
    return Trace(
        kinds=TPCC_KINDS,
        kind=log.kind,
        arrival_s=arrival_s,
        service_s=_tick(first.finish_s - first.start_s),
        features=np.column_stack([static_features(log), dynamic]),
        feature_names=(*STATIC, *DYNAMIC),
        keys=log.keys,
        units_s=_tick(first.units_s),
        unit_names=UNITS,
        measured={
            name: _tick(column) if name.endswith("_s") else column
            for name, column in measured.items()
        },
        meta={
            "source": "collected",
            "engine": "sqlite",
            "sqlite": sqlite3.sqlite_version,
            "python": platform.python_version(),
            "machine": cpu_model(),
            **asdict(log.scale),
            "workers": workers,
            "in_flight": in_flight,
            "batch": batch,
            "seed": log.seed,
            "replays": len(runs),
            "digest": digest,
            "date": datetime.now(UTC).date().isoformat(),
        },
    )


def _tick(times_s: F64) -> F64:
    """Times on the grid of CLOCK_S, rounded down so that parts never exceed a sum."""
    return np.floor(times_s / CLOCK_S + 1e-6) * CLOCK_S
