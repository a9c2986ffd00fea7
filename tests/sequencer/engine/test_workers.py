"""Workers end with their parent, however it ends, and say why they fail."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from processes import ended

from thesis_lib.common.errors import InvalidInput, Lost
from thesis_lib.sequencer.engine.storage import UNITS
from thesis_lib.sequencer.engine.workers import (
    COMMITTED,
    RECORD,
    ROLLED_BACK,
    WorkerDied,
    Workers,
)


@dataclass
class Echo:
    """A session that commits the even, rolls back the odd and fails as it is told."""

    units_s = [0.0] * len(UNITS)

    def run(self, t):
        if isinstance(t, BaseException):
            raise t
        if t == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return t % 2 == 0

    def close(self):
        pass


class Storage:
    def session(self):
        return Echo()


class Broken:
    def session(self):
        raise InvalidInput("there is no such database")


def drain(workers, n):
    records = np.empty(0, RECORD)
    while len(records) < n:
        records = np.concatenate([records, workers.receive(np.inf)])
    return records


@pytest.mark.parametrize("count", [1, 3])
def test_every_id_comes_back_once_with_its_outcome(count):
    n = 30_000  # more than a pipe has room for
    with Workers(Storage(), range(n), count) as workers:
        workers.send(np.arange(n))
        records = drain(workers, n)
        pids = list(workers.pids)
    assert sorted(records["id"]) == list(range(n))
    expected = np.where(records["id"] % 2 == 0, COMMITTED, ROLLED_BACK)
    np.testing.assert_array_equal(records["outcome"], expected)
    assert (records["finish_s"] >= records["start_s"]).all()
    assert set(records["worker"]) <= set(range(count))
    for k in range(count):  # one after the other, and on one worker in the order sent
        mine = records[records["worker"] == k]
        assert (np.diff(mine["id"]) > 0).all()
        assert (mine["start_s"][1:] >= mine["finish_s"][:-1]).all()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.lock = threading.Lock()  # cannot travel, whoever helps pickle


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InvalidInput("row 3 is odd"), InvalidInput, "row 3 is odd"),
        (KeyError("gone"), Lost, "KeyError: 'gone'"),
        (Unpicklable(1, 2), Lost, "Unpicklable: 1 and 2"),
        (OSError("no room\n\tleft"), Lost, "OSError: no room left; see"),
    ],
)
def test_an_error_is_raised_here_with_its_text(error, kind, text):
    workers = Workers(Storage(), [0, error, *range(100)], 2)
    with pytest.raises(kind, match=text), workers:  # noqa: PT012
        workers.send(np.arange(102))
        drain(workers, 102)
    assert workers.pids == []


def test_a_worker_that_was_killed_is_noticed_while_others_live():
    with (  # noqa: PT012
        pytest.raises(WorkerDied, match="of 2 ended with status -9"),
        Workers(Storage(), [0, "die", 2], 2) as workers,
    ):
        workers.send(np.array([0, 1]))
        drain(workers, 2)


def test_a_worker_that_was_killed_is_noticed_although_others_go_on():
    """Those that remain need never be silent."""
    began_s = time.monotonic()
    with (  # noqa: PT012
        pytest.raises(WorkerDied, match="of 2 ended with status -9"),
        Workers(Storage(), ["die", *range(10**6)], 2) as workers,
    ):
        workers.send(np.array([0]))
        for k in range(1, 10**6):
            workers.send(np.array([k]))
            workers.receive(0.001)
            assert time.monotonic() - began_s < 30


@pytest.mark.parametrize(
    ("storage", "count", "message"),
    [
        (Broken(), 2, "there is no such database"),
        (Storage(), 0, "workers=0: expected at least 1"),
    ],
)
def test_workers_that_cannot_begin_are_rejected(storage, count, message):
    with pytest.raises(InvalidInput, match=message), Workers(storage, [], count):
        pass


PARENT = """
import os, sys, time
sys.path[:0] = sys.argv[1:]
from test_workers import Storage
from thesis_lib.sequencer.engine.workers import Workers
with Workers(Storage(), [], 3) as workers:
    print(*workers.pids, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_a_killed_parent(how):
    here = Path(__file__)
    folders = [str(here.parent), str(here.parents[2])]  # of this test and its helpers
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *folders], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout as words:
        pids = [int(word) for word in words.readline().split()]
    assert len(pids) == 3
    assert not ended(pids, within_s=0)
    parent.send_signal(how)
    parent.wait()
    assert ended(pids)
