"""Features of a transaction that are known before it runs, as a matrix.

Static features come from the transaction itself; dynamic ones from what a sequencer
has seen when it orders the transaction: what it let in before, and what has
committed by then. Neither reads a service time.
"""

from collections import deque
from dataclasses import replace

import numpy as np

from thesis_lib.common.errors import choice
from thesis_lib.sequencer.core.trace import F64, I64, KeySets, Trace
from thesis_lib.sequencer.workload import transactions as txn

RECORDS = ("records_read", "records_updated", "records_inserted")
STATIC = (
    *(f"is_{kind}" for kind in txn.TPCC_KINDS),
    *("order_lines", "remote_lines", "distinct_stock", "remote_customer", "by_name"),
    *("name_matches", "threshold", "files_written", *RECORDS),
)
YCSB_STATIC = (
    *(f"is_{kind}" for kind in txn.YCSB_KINDS),
    *("reads", "updates", "modifies"),  # as OPERATIONS
    *("distinct_records", "distinct_written"),
    "most_popular",  # lowest number, hence rank, of its records
    *("files_written", *RECORDS),
)
WINDOWS_S = (1e-4, 1e-3, 1e-2)
DYNAMIC = (
    *("uncommitted", "first_layer", "depth"),
    *(
        f"{what}_{window}"
        for window in ("100us", "1ms", "10ms")
        for what in ("commits", *RECORDS)
    ),
)


def declared_records(t: txn.Transaction) -> tuple[int, int, int]:
    """Records that `t` announces to read, update or delete, and insert.

    Where a transaction cannot know its rows (Delivery, Order-Status, Stock-Level)
    one order, not its lines, counts as a record.
    """
    match t:
        case txn.NewOrder(lines=lines):
            return 3 + 2 * len(lines), 1 + len(lines), 2 + len(lines)
        case txn.Payment(name_matches=matches):
            return 3 + matches, 3, 1
        case txn.OrderStatus(name_matches=matches):
            return 2 + matches, 0, 0
        case txn.Delivery():
            return 3 * txn.DISTRICTS, 3 * txn.DISTRICTS, 0
        case txn.StockLevel():
            return 21, 0, 0
        case txn.Ycsb(operations=operations):
            reads, updates, modifies = (
                sum(o.what == what for o in operations) for what in txn.OPERATIONS
            )
            counts = t.counter is not None
            return reads + modifies, updates + modifies + counts, 0


def static_names(log: txn.Log) -> tuple[str, ...]:
    """Names of the columns of `static_features`."""
    return YCSB_STATIC if isinstance(log.scale, txn.YcsbScale) else STATIC


def static_features(log: txn.Log) -> F64:
    """(n, len(static_names(log))) features of the transactions of a log.

    Whether a New-Order will roll back is not among them: only execution finds the
    unknown item, so nothing here depends on it.
    """
    flags = np.eye(len(log.kinds))[log.kind]
    rows = [
        (_ycsb_row(t) if isinstance(t, txn.Ycsb) else _tpcc_row(t))
        + [*declared_records(t)]
        for t in log.transactions
    ]
    return np.column_stack([flags, np.array(rows, np.float64)])


def _tpcc_row(t: txn.Transaction) -> list[float]:
    lines, remote, stock, remote_customer, threshold = 0, 0, 0, False, 0
    name, matches, files = None, 0, 0
    match t:
        case txn.NewOrder(warehouse=w):
            lines = len(t.lines)
            remote = sum(line.supply_warehouse != w for line in t.lines)
            stock = len({line[:2] for line in t.lines})
            files = len({w, *(line.supply_warehouse for line in t.lines)})
        case txn.Payment():
            remote_customer = t.customer_warehouse != t.warehouse
            name, matches = t.last_name, t.name_matches
            files = 1 + remote_customer
        case txn.OrderStatus():
            name, matches = t.last_name, t.name_matches
        case txn.Delivery():
            files = 1
        case txn.StockLevel():
            threshold = t.threshold
    named = name is not None
    return [lines, remote, stock, remote_customer, named, matches, threshold, files]


def _ycsb_row(t: txn.Ycsb) -> list[float]:
    whats = [operation.what for operation in t.operations]
    records = {operation.record for operation in t.operations}
    written = {o.record for o in t.operations if o.what != "read"}
    shares = [whats.count(what) for what in txn.OPERATIONS]
    return [*shares, len(records), len(written), min(records), len(t.files)]


def dynamic_features(
    sequenced_s: F64, finish_s: F64, keys: KeySets, records: F64
) -> F64:
    """(n, len(DYNAMIC)) features of n transactions in log order.

    For each transaction, at the instant `sequenced_s` at which it was ordered:
    earlier transactions that had not committed, how many of them it must wait for
    directly (the first layer of its conflict graph), the longest chain of such waits
    above it, and the commits and their declared `records` (n, 3) within the last
    100 µs, 1 ms and 10 ms. Of `finish_s` (n,) only commits up to that instant are
    read, so the features of a transaction never depend on its future.
    """
    n = len(keys)
    by_finish = np.argsort(finish_s, kind="stable")
    committed = 0  # prefix of by_finish
    graph = _ConflictGraph(keys)
    table = np.zeros((n, len(DYNAMIC)))
    recent: deque[int] = deque()
    for i in range(n):
        now = sequenced_s[i]
        while committed < n and finish_s[by_finish[committed]] <= now:
            done = int(by_finish[committed])
            graph.commit(done)
            recent.append(done)
            committed += 1
        while recent and finish_s[recent[0]] <= now - WINDOWS_S[-1]:
            recent.popleft()
        counts = np.zeros((len(WINDOWS_S), 4))
        for done in recent:
            inside = np.array([finish_s[done] > now - window for window in WINDOWS_S])
            counts[inside] += (1.0, *records[done])
        first_layer, depth = graph.add(i)
        table[i] = (i - committed, first_layer, depth, *counts.ravel())
    return table


class _ConflictGraph:
    """Uncommitted transactions and the direct predecessors that each waits for."""

    def __init__(self, keys: KeySets) -> None:
        self.keys = keys
        self.writer: dict[int, int] = {}
        self.readers: dict[int, set[int]] = {}
        self.waits_for: dict[int, set[int]] = {}  # in log order

    def _requests(self, i: int) -> list[tuple[int, bool]]:
        rows, keys = slice(self.keys.offsets[i], self.keys.offsets[i + 1]), self.keys
        modes = keys.exclusive[rows].tolist()
        return list(zip(keys.keys[rows].tolist(), modes, strict=True))

    def add(self, i: int) -> tuple[int, int]:
        """Add i behind all others; (direct predecessors, longest chain above)."""
        direct: set[int] = set()
        for key, exclusive in self._requests(i):
            readers = self.readers.setdefault(key, set())
            if exclusive and readers:
                direct |= readers
            elif key in self.writer:
                direct.add(self.writer[key])
            if exclusive:
                self.writer[key] = i
                readers.clear()
            else:
                readers.add(i)
        self.waits_for[i], depth = direct, {}
        for other, predecessors in self.waits_for.items():
            depth[other] = max((depth[p] + 1 for p in predecessors), default=0)
        return len(direct), depth[i]

    def commit(self, i: int) -> None:
        """Remove i, which waits for nothing any more."""
        del self.waits_for[i]
        for predecessors in self.waits_for.values():
            predecessors.discard(i)
        for key, exclusive in self._requests(i):
            if exclusive and self.writer.get(key) == i:
                del self.writer[key]
            self.readers[key].discard(i)


def columns(trace: Trace, names: tuple[str, ...]) -> I64:
    """Return the columns of the features `names` in the matrix of `trace`."""
    for name in names:
        choice("feature", name, trace.feature_names)
    return np.array([trace.feature_names.index(name) for name in names], np.int64)


def with_features(trace: Trace, names: tuple[str, ...]) -> Trace:
    """The same trace with only the features `names`, in that order."""
    return replace(
        trace, features=trace.features[:, columns(trace, names)], feature_names=names
    )
