import pickle
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
from serial_execution import execute_serially

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import Trace
from thesis_lib.sequencer.engine.engine import (
    Replica,
    collect,
    database,
    execute,
    make_log,
    run_until_killed,
    states,
    trace_of,
)
from thesis_lib.sequencer.engine.scheduler import Scheduler, run_closed
from thesis_lib.sequencer.engine.sqlite import SQLite
from thesis_lib.sequencer.engine.storage import UNITS
from thesis_lib.sequencer.workload import transactions as txn
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.ycsb import ycsb

SMALL = txn.Scale(warehouses=3, customers=30, items=100)
N, SEED = 500, 4


@pytest.fixture(scope="module")
def log():
    return tpcc(N, SMALL, SEED)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    storage = SQLite(tmp_path_factory.mktemp("loaded") / "db")
    storage.load(SMALL, SEED)
    return storage


@pytest.fixture(scope="module")
def serial(loaded, log):
    storage = loaded.copy("serial")
    execute_serially(storage, log)
    return storage


@pytest.fixture(scope="module")
def runs(loaded, log):
    """Runs of the same log with 1, 2 and 4 workers: {workers: (run, storage)}."""
    copies = {workers: loaded.copy(f"run-{workers}") for workers in (1, 2, 4)}
    return {k: (execute(copy, log, k), copy) for k, copy in copies.items()}


def conflicts(keys):
    """(n, n) whether two transactions share a key that one of them writes."""
    touched = np.zeros((len(keys), keys.n_keys), np.int64)
    written = np.zeros_like(touched)
    touched[keys.owner, keys.keys] = 1
    written[keys.owner, keys.keys] = keys.exclusive
    return (written @ touched.T + touched @ written.T) > 0


def commits_before(run):
    """(n, n) whether the first of two transactions commits before the second starts."""
    return run.finish_s[:, None] <= run.start_s[None, :]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_keeps_log_order_and_the_serial_state(
    runs, log, serial, loaded, workers
):
    run, storage = runs[workers]
    assert storage.digest() == serial.digest() != loaded.digest()
    must = np.triu(conflicts(log.keys), k=1)
    assert must.sum() > N
    assert commits_before(run)[must].all()


def overlaps(run):
    """Pairs of transactions on different workers whose intervals intersect."""
    at_once = run.start_s[:, None] < run.finish_s[None, :]
    return int((at_once & at_once.T & (run.worker[:, None] < run.worker[None])).sum())


def test_both_engines_and_any_number_of_workers_reach_one_state():
    postgres = pytest.importorskip("thesis_lib.sequencer.engine.postgres")
    logs = [tpcc(300, SMALL, SEED), ycsb(300, txn.YcsbScale(3, 200), SEED, hot=0.1)]
    overlapped = set()  # engines that ran two at once, whatever else the machine did
    for log in logs:
        digests, runs = set(), {}
        with database("sqlite") as files, postgres.postgres_database() as tables:
            for loaded in (files, tables):
                loaded.load(log.scale, log.seed)
                for workers in (1, 2, 4):
                    copy = pickle.loads(pickle.dumps(loaded.copy(f"w{workers}")))
                    runs[loaded.engine, workers] = execute(copy, log, workers)
                    digests.add(copy.digest())
                serial = loaded.copy("serial")
                execute_serially(serial, log)
                digests.add(serial.digest())
        assert len(digests) == 1
        for (engine, workers), run in runs.items():
            assert workers > 1 or overlaps(run) == 0
            overlapped |= {engine} if overlaps(run) else set()
        # Rows alone are locked there: files of one writer do not exist.
        must = np.triu(conflicts(log.without_files().keys), k=1)
        free = np.triu(conflicts(log.keys), k=1) & ~must
        earlier = commits_before(runs["postgresql", 4])
        assert earlier[must].all()
        assert not earlier[free].all()
    assert overlapped == {"sqlite", "postgresql"}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_stages_follow_each_other_and_units_fit_in_the_service_time(runs, workers):
    run, _ = runs[workers]
    stages = [run.arrival_s, run.decided_s, run.sequenced_s, run.granted_s]
    stages += [run.start_s, run.finish_s, run.notified_s]
    for before, after in pairwise(stages):
        assert (before <= after).all()
    assert (np.diff(run.sequenced_s) >= 0).all()
    assert (run.units_s >= 0).all()
    assert (run.units_s.sum(axis=1) <= run.finish_s - run.start_s).all()


def test_exactly_the_unknown_items_roll_back(runs, log):
    unknown = [
        isinstance(t, txn.NewOrder) and t.lines[-1].item == SMALL.items
        for t in log.transactions
    ]
    assert any(unknown)
    for run, _ in runs.values():
        np.testing.assert_array_equal(run.committed, np.logical_not(unknown))


def test_closed_loop_bounds_what_is_in_flight(loaded, log):
    with Scheduler(loaded.copy("closed"), log, workers=2) as scheduler:
        run = run_closed(scheduler, N, in_flight=5, batch=3)
    for i in range(5, N):
        assert (run.finish_s[:i] > run.arrival_s[i]).sum() < 5


def test_the_database_holds_what_the_log_asked_for(runs, log):
    _, storage = runs[4]
    done = [t for t in log.transactions if isinstance(t, txn.NewOrder)]
    done = [t for t in done if t.lines[-1].item != SMALL.items]
    payments = [t for t in log.transactions if isinstance(t, txn.Payment)]
    assert any(isinstance(t, txn.Delivery) for t in log.transactions)

    def total(query):
        """The sum of what a query finds in each file."""
        with closing(storage.session()) as session:
            return sum(db.execute(query).fetchone()[0] for db in session.files)

    sold = sum(line.quantity for t in done for line in t.lines)
    paid = sum(t.amount_cents for t in payments)
    assert total("SELECT count(*) FROM orders WHERE o_entry >= 0") == len(done)
    assert total("SELECT sum(s_ytd) FROM stock") == sold
    assert total("SELECT sum(h_amount) FROM history") == paid


# --- Collection --------------------------------------------------------------


def test_a_collected_trace_round_trips_and_names_its_state(tmp_path, serial, log):
    trace = collect(log=log, workers=2, replays=2)
    assert trace.meta["digest"] == serial.digest()
    trace.write(tmp_path / "t.parquet")
    back = Trace.read(tmp_path / "t.parquet")
    np.testing.assert_array_equal(back.service_s, trace.service_s)
    assert back.meta == trace.meta
    assert back.unit_names == UNITS
    measured = back.measured
    np.testing.assert_array_equal(measured["service_s_r1"], back.service_s)
    assert {"service_s_r2", "cpu_s_r1", "cpu_s_r2", "cpu_s"} < measured.keys()
    start_s = back.arrival_s + sum(
        measured[stage] for stage in ("sequence_s", "lock_wait_s", "queue_s")
    )
    # The stages tell which transactions excluded each other, to the clock's tick.
    must = np.triu(conflicts(log.keys), k=1)
    finish_s = start_s + back.service_s
    assert (finish_s[:, None] <= start_s[None, :] + 1e-6)[must].all()
    assert (back.units_s.sum(axis=1) <= back.service_s + 1e-9).all()


TPCC, YCSB = (partial(make_log, workload, 5, 0) for workload in ("tpcc", "ycsb"))
CLOSED = partial(run_closed, cast(Scheduler, None), N, in_flight=8)


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (collect, {"engine": "sqlite", "dsn": "host=here"}, "dsn names a server of Po"),
        (collect, {"engine": "sqlight"}, "did you mean 'sqlite'"),
        (collect, {"workers": 0}, "workers=0: expected at least 1"),
        (collect, {"transactions": 0}, "transactions=0: expected at least 1"),
        (collect, {"replays": 0}, "replays=0: expected at least 1"),
        (TPCC, {"zipf": 0.5}, "zipf=0.5 belongs to the workload 'ycsb'"),
        (TPCC, {"mix": "A"}, "mix='A' is unknown: expected one of spec"),
        (YCSB, {"mix": "spec"}, "mix='spec' is unknown: expected one of A"),
        (YCSB, {"zipf": 1.5}, "theta=1.5: expected 0"),
        (YCSB, {"warehouses": 0}, "warehouses=0: expected at least 1"),
        (
            partial(make_log, "tpch", 5, 0),
            {},
            "workload='tpch' is unknown: .*did you mean 'tpcc'",
        ),
        (CLOSED, {"batch": 0}, "batch=0 must lie between"),
        (CLOSED, {"batch": 9}, "batch=9 must lie between"),
    ],
)
def test_bad_options_are_rejected(call, options, message):
    with pytest.raises(InvalidInput, match=message):
        call(**options)


def test_a_run_in_another_order_makes_no_trace(runs, log):
    run, _ = runs[1]
    with pytest.raises(InvalidInput, match="dropped or reordered"):
        trace_of(log, [replace(run, log=run.log[::-1])], {})


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InvalidInput, match="is not empty"):
        SQLite(tmp_path).load(SMALL, SEED)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_database_of_another_seed_is_noticed(tmp_path):
    SQLite(tmp_path).load(SMALL, SEED + 1)
    with pytest.raises(InvalidInput, match="scale and seed of the log"):
        execute(SQLite(tmp_path), tpcc(50, SMALL, SEED), workers=2)


def test_replays_that_differ_are_rejected(monkeypatch):
    digests = iter(["aaaaaaaa", "bbbbbbbb"])
    monkeypatch.setattr(SQLite, "digest", lambda storage: next(digests))
    with pytest.raises(InvalidInput, match="ended in states aaaaaaaa, bbbbbbbb"):
        collect(log=tpcc(5, SMALL, SEED), replays=2)


# --- Replicas ----------------------------------------------------------------


def test_replicas_of_a_log_end_in_its_serial_state_and_others_do_not(log, serial):
    another = tpcc(N, SMALL, SEED + 1)
    digests = states(
        Replica(of, "sqlite", k) for of, k in ((log, 1), (another, 2), (log, 4))
    )
    assert digests[0] == digests[2] == serial.digest()
    assert digests[1] != digests[0]


def test_a_replica_of_nothing_is_the_loaded_database(loaded, log):
    nothing = replace(log, transactions=(), keys=log.keys.take(np.arange(0)))
    assert states([Replica(nothing, "sqlite", 2)]) == [loaded.digest()]
    assert states([]) == []


def test_killed_run_leaves_a_beginning_of_its_log_alone(log, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = run_until_killed(log, tmp_path / "log", N // 2)
    n = len(found.log)
    assert (n, found.torn_bytes) == (N // 2, 0)
    assert found.log.transactions == log.transactions[:n]
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_a_run_that_ends_by_itself_says_so(log, tmp_path, capfd):
    for after in (0, N):
        message = f"after={after} must lie between 1 and {N - 1}"
        with pytest.raises(InvalidInput, match=message):
            run_until_killed(log, tmp_path / "log", after)
        assert not (tmp_path / "log").exists()
    stale = replace(log, seed=SEED + 1)  # its customers bear other names
    with pytest.raises(RuntimeError, match="ended by itself with status 1"):
        run_until_killed(stale, tmp_path / "log", N - 1)
    assert "InvalidInput" in capfd.readouterr().err
    with pytest.raises(InvalidInput, match="exists"):
        run_until_killed(log, tmp_path / "log", 9)


SWALLOWED = """
import ctypes, os, signal, time
from thesis_lib.sequencer.engine.engine import cleared_by_signals
def called_by_c():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass
with cleared_by_signals():
    try:
        ctypes.CFUNCTYPE(None)(called_by_c)()
        time.sleep(600)
    finally:
        print("cleared", flush=True)
"""


def test_a_signal_that_comes_where_no_exception_passes_ends_the_run_all_the_same():
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "cleared\n")
    assert done.stderr == ""
