"""Worker processes: ids go down one pipe, fixed-size records come up another.

A worker is forked with the transactions in its memory, so afterwards only numbers
travel. All workers read one pipe, first come, first served, which makes the kernel
the run queue: a worker takes its next transaction without its parent. Records are
shorter than PIPE_BUF, so one pipe carries those of all workers whole.
"""

import contextlib
import json
import os
import select
import signal
import tempfile
from collections.abc import Sequence
from contextlib import closing
from struct import Struct
from time import perf_counter, thread_time
from typing import Self

import numpy as np
from numpy.typing import NDArray

from thesis_lib.common.errors import InvalidInput, Lost, require, require_count
from thesis_lib.sequencer.core.trace import I64
from thesis_lib.sequencer.engine.storage import UNITS, Storage, heard
from thesis_lib.sequencer.workload.transactions import Transaction

RECORD = np.dtype(
    [
        ("id", "<i8"),
        ("start_s", "<f8"),  # on the machine's monotonic clock, as is the next
        ("finish_s", "<f8"),
        ("cpu_s", "<f8"),  # processor time of the worker in between
        ("units_s", "<f8", (len(UNITS),)),
        ("worker", "<i4"),
        ("outcome", "<i4"),
    ]
)

PACK = Struct(f"<q3d{len(UNITS)}dii").pack
ROLLED_BACK, COMMITTED, READY, FAILED = range(4)  # outcomes
ID_BYTES = 8
AT_ONCE = select.PIPE_BUF // ID_BYTES  # ids that one write passes whole or not at all
READ_BYTES = 512 * RECORD.itemsize
ALIVE_S = 1.0  # how often it is asked whether every worker still lives


class WorkerDied(Lost):
    """A worker ended without a word: killed, or out of memory."""


class Workers:
    """`count` processes that execute transactions of one sequence; a context manager.

    `send` hands ids over, `receive` takes what has been done. At the end of the block
    workers finish and exit; after an error they are killed. A worker whose parent is
    gone, whatever ended it, reads the end of its pipe and exits. What a worker rejects
    is rejected here, any other error of it is Lost with its name and text; WorkerDied
    where one ended without raising.
    """

    def __init__(
        self, storage: Storage, transactions: Sequence[Transaction], count: int
    ) -> None:
        require_count("workers", count)
        require(
            hasattr(os, "fork"),
            "this system cannot fork a process: expected Linux or macOS",
        )
        self.storage, self.transactions, self.count = storage, transactions, count
        self.waiting = bytearray()  # ids for which the pipe had no room
        self.pids: list[int] = []
        self.asked_s = perf_counter()

    def __enter__(self) -> Self:
        self.failure = tempfile.TemporaryFile()
        self.take, self.give = os.pipe()
        self.read, self.write = os.pipe()
        os.set_blocking(self.give, False)
        try:
            for number in range(self.count):
                self.pids.append(self._fork(number))
            ready = 0
            while ready < self.count:
                ready += len(self.receive(ALIVE_S))
        except BaseException:
            self._end(signal.SIGKILL)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(None if kind is None else signal.SIGKILL)

    def send(self, ids: I64) -> None:
        """Hand transactions (k,) over, to be taken in this order."""
        self.waiting += ids.astype("<i8").tobytes()
        self._flush()

    def receive(self, timeout_s: float) -> NDArray[np.void]:
        """(k,) records of RECORD that have come, after at most `timeout_s` of waiting.

        One read takes as many as there are.
        """
        patience_s = min(max(timeout_s, 0.0), ALIVE_S)
        spoke = select.select([self.read], [], [], patience_s)[0]
        if perf_counter() - self.asked_s > ALIVE_S:  # others may go on without one
            self.asked_s = perf_counter()
            self._require_alive()
        if not spoke:
            return np.empty(0, RECORD)
        content = os.read(self.read, READ_BYTES)
        if not content:
            self._require_alive()
        self._flush()
        records = np.frombuffer(content, RECORD)
        if (records["outcome"] == FAILED).any():
            self._raise_failure()
        return records

    def _flush(self) -> None:
        while self.waiting:
            try:
                sent = os.write(self.give, self.waiting[: AT_ONCE * ID_BYTES])
            except BlockingIOError:  # the pipe is full; workers empty it
                return
            del self.waiting[:sent]

    def _fork(self, number: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:  # the child: whatever happens, it never returns into the caller's code
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
            for end in (signal.SIGTERM, signal.SIGHUP):
                if callable(signal.getsignal(end)):  # clears up what is the parent's
                    signal.signal(end, signal.SIG_DFL)
            os.close(self.give)
            os.close(self.read)
            self._work(number)
        finally:
            os._exit(0)

    def _work(self, number: int) -> None:
        """Execute what comes down the pipe until it ends; report a failure."""
        nothing = (0.0,) * (3 + len(UNITS))
        try:
            with closing(self.storage.session()) as session:
                os.write(self.write, PACK(-1, *nothing, number, READY))
                while word := os.read(self.take, ID_BYTES):
                    i = int.from_bytes(word, "little")
                    start_s, cpu_s = perf_counter(), thread_time()
                    committed = session.run(self.transactions[i])
                    times_s = start_s, perf_counter(), thread_time() - cpu_s
                    units_s = session.units_s
                    os.write(self.write, PACK(i, *times_s, *units_s, number, committed))
        except BrokenPipeError:  # the parent is gone
            return
        except BaseException as error:
            invalid = isinstance(error, InvalidInput)
            text = str(error) if invalid else heard(error)
            line = json.dumps({"invalid": invalid, "text": text})
            self.failure.write(line.encode() + b"\n")  # workers may fail together
            self.failure.flush()
            with contextlib.suppress(BrokenPipeError):
                os.write(self.write, PACK(-1, *nothing, number, FAILED))

    def _require_alive(self) -> None:
        for number, pid in enumerate(self.pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.pids.remove(pid)
                self._raise_failure()
                how = os.waitstatus_to_exitcode(status)
                raise WorkerDied(
                    f"worker {number} of {self.count} ended with status {how} in the "
                    "middle of its work: expected it to wait for more; see whether "
                    "the system killed it for memory"
                )

    def _raise_failure(self) -> None:
        """Raise the error that a worker reported before it ended, if one did."""
        self.failure.seek(0)
        if not (line := self.failure.readline()):
            return
        error = json.loads(line)
        if error["invalid"]:
            raise InvalidInput(error["text"])
        raise Lost(
            f"a worker failed in the middle of its work: {error['text']}; see whether "
            "its database still runs and has room, and run again"
        )

    def _end(self, how: int | None) -> None:
        for end in (self.give, self.take, self.write):
            os.close(end)
        for pid in self.pids:
            if how is not None:
                os.kill(pid, how)
            os.waitpid(pid, 0)
        self.pids.clear()
        os.close(self.read)
        self.failure.close()
