"""A deterministic database engine: one lock table, and worker processes below it.

The sequencer fixes a total order, every transaction books its declared locks in that
order, and so conflicting transactions run in it whatever the number of workers: the
same log leaves the same state (Thomson et al., Calvin, SIGMOD 2012).
"""

import os
import platform
import signal
import sqlite3
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from thesis_lib.common.errors import Lost, choice, require, require_count
from thesis_lib.common.provenance import cpu_model
from thesis_lib.sequencer.core.trace import F64, I64, Trace
from thesis_lib.sequencer.engine.command_log import CommandLog, Recovered, read_log
from thesis_lib.sequencer.engine.scheduler import Append, Run, Scheduler, run_closed
from thesis_lib.sequencer.engine.sqlite import SQLite
from thesis_lib.sequencer.engine.storage import UNITS, Storage, heard
from thesis_lib.sequencer.workload.features import (
    DYNAMIC,
    declared_records,
    dynamic_features,
    static_features,
    static_names,
)
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.transactions import Log, Scale, YcsbScale
from thesis_lib.sequencer.workload.ycsb import ycsb

ENGINES = ("sqlite", "postgresql")
WORKLOADS = ("tpcc", "ycsb")
CLIENTS, BATCH = 32, 8  # of the closed loop
CLOCK_S = 1e-7  # times are kept to 0.1 µs, finer than two laps of the clock differ


# --- Deterministic execution -------------------------------------------------
def execute(
    storage: Storage, log: Log, workers: int, append: Append | None = None
) -> Run:
    """Run the log on a database that was loaded for it, in its order.

    A closed loop: CLIENTS each submit one transaction, wait for its commit and submit
    the next. Every BATCH submissions the sequencer appends them to the total order and
    books their locks; worker processes take granted transactions first come, first
    served. Locks of files are booked only where the database has one writer to a file.
    `append` as in `Scheduler`.
    """
    with Scheduler(storage, log, workers, append) as scheduler:
        return run_closed(scheduler, len(log), CLIENTS, BATCH)


def replay(path: Path | str, storage: Storage, workers: int) -> Recovered:
    """Execute a command log from its start on `storage`, which is still to be loaded.

    What its writer did not finish writing was never dispatched and is left out.
    """
    recovered = read_log(path)
    storage.load(recovered.log.scale, recovered.log.seed)
    if len(recovered.log):
        execute(storage, recovered.log, workers)
    return recovered


# --- Databases and workloads -------------------------------------------------
@contextmanager
def cleared_by_signals() -> Iterator[None]:
    """Unwind the block on SIGTERM and SIGHUP before they end this process.

    By default these signals end the process at once, and a temporary server lives on.
    Of nested blocks, the outermost handles the signal. Signals that are ignored or have
    another handler, and threads other than the main one, are left alone.

    The signal raises an exception. If C code that called Python discards it, it is
    raised again a moment later.
    """
    caught: list[int] = []
    reports = sys.unraisablehook

    def unwind(number: int, frame: object) -> None:
        for each in ours:  # one is enough: a second must not stop the clearing up
            signal.signal(each, signal.SIG_IGN)
        caught.append(number)
        raise SystemExit(128 + number)

    def again(lost: Any) -> None:
        if not (caught and lost.exc_type is SystemExit):
            reports(lost)
            return
        signal.signal(caught[0], unwind)
        moment = threading.Timer(0.05, os.kill, (os.getpid(), caught[0]))
        moment.daemon = True
        moment.start()

    ours = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) == signal.SIG_DFL
    ]
    for number in ours:
        signal.signal(number, unwind)
    if ours:
        sys.unraisablehook = again
    try:
        yield
    finally:
        if ours:
            sys.unraisablehook = reports
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        if caught:
            os.kill(os.getpid(), caught[0])


@contextmanager
def database(engine: str, dsn: str | None = None) -> Iterator[Storage]:
    """A database still to be loaded; it and its copies are gone at the end.

    SQLite lives in a temporary folder; PostgreSQL on the server at `dsn`, or on a
    temporary one of this machine's own. SIGTERM and SIGHUP are an end like any other:
    see `cleared_by_signals`. Raises InvalidInput for an unknown engine and for a dsn of
    SQLite; Lost where the database fails in the middle.
    """
    choice("engine", engine, ENGINES)
    if engine == "postgresql":
        from thesis_lib.sequencer.engine.postgres import postgres_database  # an extra

        with cleared_by_signals(), postgres_database(dsn) as empty:
            yield empty
        return
    require(dsn is None, "dsn names a server of PostgreSQL: engine is 'sqlite'")
    with cleared_by_signals(), tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        try:
            yield SQLite(Path(folder) / "loaded")
        except sqlite3.Error as error:
            raise Lost(
                f"the database in {folder} failed in the middle: {heard(error)}; see "
                "whether its disk has room, and run again"
            ) from error


_PREFIX = "thesis-engine-"


def make_log(
    workload: str, transactions: int, seed: int, *, warehouses: int = 2,
    mix: str | None = None, zipf: float | None = None,
) -> Log:  # fmt: skip
    """A log of TPC-C or YCSB by the names of the command line.

    `warehouses` counts partitions of either. The mix is "spec" for TPC-C and "A" for
    YCSB unless given, `zipf` is 0.99. Raises InvalidInput for an unknown workload, an
    unknown mix and an option of the other workload.
    """
    choice("workload", workload, WORKLOADS)
    require_count("transactions", transactions)
    require_count("warehouses", warehouses)
    if workload == "ycsb":
        theta = 0.99 if zipf is None else zipf
        scale = YcsbScale(files=warehouses)
        return ycsb(transactions, scale, seed, mix=mix or "A", theta=theta)
    require(zipf is None, f"zipf={zipf} belongs to the workload 'ycsb', not to 'tpcc'")
    return tpcc(transactions, Scale(warehouses=warehouses), seed, mix=mix or "spec")


# --- Replicas ----------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Replica:
    """One execution of a log: on which engine, with how many workers."""

    log: Log
    engine: str
    workers: int


def states(replicas: Iterable[Replica]) -> list[str]:
    """Digest of the state that each replica reaches, in their order.

    Each runs on a database of its own: replicas on one engine, of one scale and seed,
    start from copies of what was loaded once. Raises InvalidInput for an unknown engine
    and for workers below 1.
    """
    digests, loaded = [], {}
    with ExitStack() as databases:
        for number, replica in enumerate(replicas):
            log = replica.log
            place = replica.engine, log.scale, log.seed
            if place not in loaded:
                loaded[place] = databases.enter_context(database(replica.engine))
                loaded[place].load(log.scale, log.seed)
            copy = loaded[place].copy(f"replica-{number}")
            if len(log):
                execute(copy, log, replica.workers)
            digests.append(copy.digest())
    return digests


def run_until_killed(log: Log, path: Path | str, after: int) -> Recovered:
    """Run `log` on SQLite, kill the run in its middle, and read what it leaves.

    The sequencer, in a process of its own, writes the command log `path`. As soon as
    `after` transactions stand in it, of its last batch only those that came so far, all
    processes of the run, workers in the middle of their transactions included, end by
    the signal that no process can catch (kill -9). Their database is lost; the log is
    what remains.

    Raises InvalidInput for a path that exists, and for an `after` at which nothing is
    logged or nothing is left to do; RuntimeError where the run ended by itself, whose
    error is on standard error.
    """
    require(
        1 <= after < len(log),
        f"after={after} must lie between 1 and {len(log) - 1}: a run of {len(log)} "
        "transactions is to be killed in its middle",
    )
    # What was killed may still be closing its files while the folder is removed.
    with (
        tempfile.TemporaryDirectory(
            prefix="thesis-killed-", ignore_cleanup_errors=True
        ) as folder,
        CommandLog(path, log) as commands,
    ):
        storage = SQLite(Path(folder) / "db")
        storage.load(log.scale, log.seed)
        pid = os.fork()
        if pid == 0:  # the child: whatever happens, it never returns from here
            try:
                os.setpgid(0, 0)  # a group of its own, which its workers inherit

                def append(ids: I64) -> None:
                    commands.append(ids[: after - commands.position])
                    if commands.position == after:
                        os.killpg(0, signal.SIGKILL)

                execute(storage, log, workers=2, append=append)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        how = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if how != -signal.SIGKILL:
        raise RuntimeError(
            f"the run ended by itself with status {how}: expected it to be killed "
            f"after {after} of {len(log)} transactions"
        )
    return read_log(path)


# --- Collection --------------------------------------------------------------
def collect(
    engine: str = "sqlite",
    transactions: int = 20_000,
    workers: int = 2,
    seed: int = 0,
    replays: int = 1,
    log: Log | None = None,
    dsn: str | None = None,
) -> Trace:
    """Record a trace of a workload on a real database, in a closed loop.

    Args:
        engine: Name of the engine, "sqlite" or "postgresql".
        transactions: Number of TPC-C transactions, in 2 warehouses.
        workers: Number of workers.
        seed: Seed of the workload.
        replays: Runs of the same log on fresh copies of the database.
        log: Transactions to run instead of TPC-C.
        dsn: Address of a PostgreSQL server; None to start one.

    Returns:
        A trace. `service_s` is wall time from a worker's start to its commit.
        `measured` adds processor time of the worker and the stages before the start:
        arrival + sequence_s + lock_wait_s + queue_s is the start. `notify_s` passes
        between commit and notification. With several replays, `service_s_r1`,
        `cpu_s_r1`, … hold every run.

    Raises:
        InvalidInput: If the engine is unknown, a count is below 1, or replays end in
            different states.

    Example:
        >>> from thesis_lib.sequencer import collect
        >>> trace = collect("sqlite", transactions=100, workers=1, seed=1)
        >>> len(trace), bool((trace.service_s > 0).all())
        (100, True)
    """
    require_count("workers", workers)
    require_count("replays", replays)
    if log is None:
        log = make_log("tpcc", transactions, seed)
    with database(engine, dsn) as loaded:
        loaded.load(log.scale, log.seed)
        if not loaded.one_writer:
            log = log.without_files()
        runs, digests = [], []
        for r in range(1, replays + 1):
            copy = loaded.copy(f"replay-{r}")
            runs.append(execute(copy, log, workers))
            digests.append(copy.digest())
    require(
        len(set(digests)) == 1,
        f"replays of one log ended in states {', '.join(d[:8] for d in digests)}: "
        "expected one; the engine is not deterministic on this machine",
    )
    how = {"engine": engine, "workers": workers, "in_flight": CLIENTS, "batch": BATCH}
    return trace_of(log, runs, how | {"digest": digests[0]})


def trace_of(log: Log, runs: list[Run], meta: dict) -> Trace:
    """The trace of runs of one log in its own order; `meta` says how they were made.

    Raises InvalidInput where a run dropped or reordered.
    """
    first = runs[0]
    instants = first.arrival_s, first.sequenced_s, first.granted_s, first.start_s
    arrival_s, sequenced_s, granted_s, start_s = map(_tick, instants)
    require(
        all(np.array_equal(run.log, np.arange(len(log))) for run in runs),
        "a run dropped or reordered transactions: expected the log in its own order",
    )
    records = np.array([declared_records(t) for t in log.transactions], np.float64)
    dynamic = dynamic_features(first.sequenced_s, first.finish_s, log.keys, records)
    measured = {
        "cpu_s": _tick(first.cpu_s),
        "sequence_s": sequenced_s - arrival_s,
        "lock_wait_s": granted_s - sequenced_s,
        "queue_s": start_s - granted_s,
        "notify_s": first.notified_s - first.finish_s,
        "worker": first.worker,
        "committed": first.committed.astype(np.float64),
    }
    if len(runs) > 1:
        for r, run in enumerate(runs, start=1):
            measured[f"service_s_r{r}"] = _tick(run.finish_s - run.start_s)
            measured[f"cpu_s_r{r}"] = _tick(run.cpu_s)
    return Trace(
        kinds=log.kinds,
        kind=log.kind,
        arrival_s=arrival_s,
        service_s=_tick(first.finish_s - first.start_s),
        features=np.column_stack([static_features(log), dynamic]),
        feature_names=(*static_names(log), *DYNAMIC),
        keys=log.keys,
        units_s=_tick(first.units_s),
        unit_names=UNITS,
        measured={
            name: _tick(column) if name.endswith("_s") else column
            for name, column in measured.items()
        },
        meta={
            "source": "collected",
            "sqlite": sqlite3.sqlite_version,
            "python": platform.python_version(),
            "machine": cpu_model(),
            **asdict(log.scale),
            **meta,
            "seed": log.seed,
            "replays": len(runs),
            "date": datetime.now(UTC).date().isoformat(),
        },
    )


def _tick(times_s: F64) -> F64:
    """Times on the grid of CLOCK_S, rounded down so that parts never exceed a sum."""
    return np.floor(times_s / CLOCK_S + 1e-6) * CLOCK_S
