"""What was logged can be executed again, after kill -9 too; nothing else can."""

import json
import re
from dataclasses import fields
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serial_execution import execute_serially

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.engine import command_log
from thesis_lib.sequencer.engine.engine import (
    database,
    execute,
    replay,
    run_until_killed,
)
from thesis_lib.sequencer.workload import transactions as txn
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.ycsb import ycsb

SMALL, SEED = txn.Scale(warehouses=2, customers=30, items=100), 4
LOGS = [
    tpcc(120, SMALL, SEED),
    ycsb(60, txn.YcsbScale(2, 50), SEED, mix="F", hot=0.3),
]
NONE = np.empty(0, np.int64)  # which leaves no record
BATCHES = [
    np.arange(4), np.array([9, 7]), np.array([8]), np.arange(10, 60), NONE,
]  # fmt: skip


def written(log, path, batches=BATCHES):
    """The bytes of a log of these batches, and where each record ends."""
    ends = []
    with command_log.CommandLog(path, log) as file:
        for batch in batches:
            ends.append(path.stat().st_size)
            file.append(batch)
    return path.read_bytes(), sorted({*ends, path.stat().st_size})


@pytest.mark.parametrize("log", LOGS, ids=lambda log: type(log.scale).__name__)
def test_a_log_says_what_was_appended_in_that_order(log, tmp_path):
    written(log, tmp_path / "log")
    found = command_log.read_log(tmp_path / "log")
    ids = np.concatenate(BATCHES)
    expected = txn.Log.declare(log.scale, SEED, [log.transactions[i] for i in ids])
    assert found.torn_bytes == 0
    assert (found.log.scale, found.log.seed) == (log.scale, SEED)
    assert found.log.transactions == expected.transactions
    np.testing.assert_array_equal(found.log.keys.keys, expected.keys.keys)


def test_a_run_logs_batch_after_batch(tmp_path):
    log, path = LOGS[0], tmp_path / "log"
    with database("sqlite") as storage, command_log.CommandLog(path, log) as file:
        storage.load(log.scale, log.seed)
        logged = []

        def append(ids):
            file.append(ids)
            logged.append(len(command_log.read_log(path).log))

        execute(storage, log, workers=2, append=append)
        digest = storage.digest()
    assert logged == sorted(set(logged))
    assert len(logged) > 5
    assert logged[-1] == len(log)
    with database("sqlite") as again:
        replay(path, again, workers=1)
        assert again.digest() == digest


def test_what_cannot_be_logged_is_not_executed():
    log = LOGS[0]
    with database("sqlite") as storage:
        storage.load(log.scale, log.seed)
        before = storage.digest()

        def full(ids):
            raise OSError("no space left on device")

        with pytest.raises(OSError, match="no space left"):
            execute(storage, log, workers=2, append=full)
        assert storage.digest() == before


def test_a_torn_last_record_is_left_out(tmp_path):
    path = tmp_path / "log"
    content, ends = written(LOGS[0], path)
    for cut in range(ends[0], len(content)):
        path.write_bytes(content[:cut])
        found = command_log.read_log(path)
        whole = max(k for k, end in enumerate(ends) if end <= cut)
        assert len(found.log) == sum(map(len, BATCHES[:whole]))
        assert found.torn_bytes == cut - ends[whole]
    for cut in range(ends[0]):
        path.write_bytes(content[:cut])
        with pytest.raises(
            InvalidInput, match=r"not a command log|ends within its head"
        ):
            command_log.read_log(path)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_an_altered_byte_is_rejected_by_its_position(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("altered") / "log"
    content, ends = written(LOGS[1], path)
    at = data.draw(st.integers(len(command_log.MAGIC), len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    altered = bytearray(content)
    altered[at] ^= flip
    path.write_bytes(altered)
    record = max(end for end in [len(command_log.MAGIC), *ends] if end <= at)
    with pytest.raises(InvalidInput, match=f"altered at byte {record}, after"):
        command_log.read_log(path)


def test_a_missing_or_repeated_record_is_rejected(tmp_path):
    path = tmp_path / "log"
    content, ends = written(LOGS[0], path)
    for first, second in ((ends[1], ends[2]), (ends[2], ends[1])):
        path.write_bytes(content[:first] + content[second:])
        with pytest.raises(InvalidInput, match="altered at byte"):
            command_log.read_log(path)


@pytest.mark.parametrize(
    ("header", "scale", "batch", "message"),
    [
        ({"version": 9}, {}, b"", "version 9"),
        ({"scale": "Scale"}, {}, b"", "header of log"),
        ({}, {"name": "Big"}, b"", "scale='Big' is unknown"),
        ({"seed": 0.5}, {}, b"", "seed is 0.5: expected int"),
        ({}, {"items": 200.5}, b"", "items is 200.5: expected int"),
        ({}, {"items": 9}, b"", "items=9: expected at least 100"),
        ({}, {"shops": 3}, b"", "does not name a database"),
        ({}, {}, b'["Refund", 1]', "no transaction of this database at byte"),
        ({}, {}, b'["Delivery", 1]', "no transaction of this database at byte"),
    ],
)
def test_a_log_of_something_else_is_rejected(header, scale, batch, message, tmp_path):
    path, whole = tmp_path / "log", {"version": command_log.LOG_VERSION, "seed": 0}
    whole |= {"scale": {"name": "Scale"} | scale} | header
    records = (command_log._record(r, 0) for r in (json.dumps(whole).encode(), batch))
    path.write_bytes(command_log.MAGIC + b"".join(records))
    with pytest.raises(InvalidInput, match=message):
        command_log.read_log(path)


ODD = [None, True, -1, 10**9, 0.5, float("nan"), "", "customer", [], [[]], {}, [3]]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.data())
def test_a_forged_transaction_is_rejected_by_position_and_field(tmp_path_factory, data):
    log = LOGS[data.draw(st.integers(0, 1))]
    path = tmp_path_factory.mktemp("forged") / "log"
    header, _ = written(log, path, [])
    commands = [json.loads(command_log._encode(t)) for t in log.transactions[:20]]
    at = data.draw(st.integers(0, 19))
    command = commands[at]
    place = data.draw(st.integers(0, len(command) - 1))
    name = ["type", *(f.name for f in fields(log.transactions[at]))][place]
    if isinstance(command[place], list) and data.draw(st.booleans()):
        row = data.draw(st.integers(0, len(command[place]) - 1))
        command, place = command[place][row], data.draw(st.integers(0, 2))
        kind = command_log.ROWS[type(log.transactions[at])]
        name = f"row {row} of {name}: {kind._fields[place]}"
    command[place] = data.draw(st.sampled_from(ODD))
    forged = b"\n".join(json.dumps(command).encode() for command in commands)
    path.write_bytes(header + command_log._record(forged, 0))
    try:
        found, said = command_log.read_log(path).log, ""
    except InvalidInput as refusal:
        found, said = None, str(refusal)
    if found is not None:  # what a client might have sent
        assert found.keys.n_keys <= largest_lock(log.scale) + 1
        return
    assert str(path) in said
    # of a list that is none of ours its first row is named, of another type nothing
    place = rf"({re.escape(name)}|row 0 of {name}|expected a list|its command has)"
    assert re.search(f"transaction {at}: {place}", said)


def largest_lock(scale):
    if isinstance(scale, txn.YcsbScale):
        return scale.record(scale.files - 1, scale.records - 1)
    return scale.stock(scale.warehouses - 1, scale.items)


def test_a_log_never_overwrites(tmp_path):
    path = tmp_path / "log"
    path.write_text("precious")
    with pytest.raises(InvalidInput, match="exists: a log is only ever appended"):
        command_log.CommandLog(path, LOGS[0])
    assert path.read_text() == "precious"
    with pytest.raises(InvalidInput, match="No such file or directory; name a file"):
        command_log.CommandLog(tmp_path / "nowhere" / "log", LOGS[0])
    with pytest.raises(InvalidInput, match="cannot be read"):
        command_log.read_log(tmp_path / "missing")


def test_after_kill_9_every_replica_reaches_one_state(tmp_path):
    path = tmp_path / "log"
    run_until_killed(tpcc(400, SMALL, SEED), path, after=150)
    # Torn by hand where the kill did not: the rest of the law must not depend on it.
    path.write_bytes(path.read_bytes()[:-3])
    log = command_log.read_log(path).log
    assert len(log) < 150
    digests, engines = set(), ["sqlite"]
    if find_spec("psycopg") is not None:
        engines.append("postgresql")
    for engine in engines:
        for workers in (1, 4):
            with database(engine) as storage:
                assert replay(path, storage, workers).torn_bytes > 0
                digests.add(storage.digest())
    with database("sqlite") as storage:
        storage.load(log.scale, log.seed)
        before = storage.digest()
        execute_serially(storage, log)
        digests.add(storage.digest())
    assert len(digests) == 1
    assert before not in digests


def test_a_log_without_a_transaction_is_the_loaded_database(tmp_path):
    path = tmp_path / "log"
    command_log.CommandLog(path, LOGS[1]).close()
    with database("sqlite") as storage, database("sqlite") as other:
        assert len(replay(path, storage, 2).log) == 0
        other.load(LOGS[1].scale, SEED)
        assert storage.digest() == other.digest()
