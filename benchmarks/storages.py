"""What a transaction costs on SQLite and on PostgreSQL, and where its time goes.

One session on each, no locks, no queue: blocks of the same log in turn, so that a busy
minute meets both. A round trip that does nothing is timed in the same turn.

    python benchmarks/storages.py [TRANSACTIONS]
"""

import json
import tempfile
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np
from record import Record, command, ratio, seconds_of, tell

from thesis_lib.sequencer.engine.postgres import connect, postgres_database
from thesis_lib.sequencer.engine.sqlite import SQLite
from thesis_lib.sequencer.engine.storage import UNITS, Storage
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.transactions import Log, Scale, YcsbScale
from thesis_lib.sequencer.workload.ycsb import ycsb

BLOCK, WARM_UP = 100, 5  # transactions to a block; blocks that are not counted


def empty_round_trip_s(dsn: str, times: int = 100) -> float:
    """Median of a prepared query that reads nothing."""
    with closing(connect(dsn)) as server:
        taken = [
            seconds_of(lambda: server.execute("SELECT 1", prepare=True).fetchone())
            for _ in range(times)
        ]
    return float(np.median(taken))


def compare(log: Log, storages: dict[str, Storage], dsn: str) -> dict:
    """Medians by type and engine in µs, and the ratio of time a block."""
    taken = {engine: np.zeros((len(log), 1 + len(UNITS))) for engine in storages}
    round_trips = []
    sessions = {engine: storage.session() for engine, storage in storages.items()}
    for first in range(0, len(log), BLOCK):
        for engine, session in sessions.items():
            for i in range(first, first + BLOCK):
                start_s = perf_counter()
                session.run(log.transactions[i])
                taken[engine][i, 0] = perf_counter() - start_s
                taken[engine][i, 1:] = session.units_s
        round_trips.append(empty_round_trip_s(dsn))
    for session in sessions.values():
        session.close()
    counted = np.arange(len(log)) >= WARM_UP * BLOCK
    blocks = {
        engine: times[counted, 0].reshape(-1, BLOCK).sum(axis=1)
        for engine, times in taken.items()
    }
    return {
        "types": {
            name: {
                engine: dict(
                    zip(
                        ("transactions", "whole_us", *(f"{u}_us" for u in UNITS)),
                        [
                            int(rows.sum()),
                            *np.round(np.median(times[rows], axis=0) * 1e6, 1),
                        ],
                        strict=True,
                    )
                )
                for engine, times in taken.items()
            }
            for kind, name in enumerate(log.kinds)
            if (rows := counted & (log.kind == kind)).any()
        },
        "transactions_per_s": {
            engine: BLOCK / float(np.median(sums)) for engine, sums in blocks.items()
        },
        "postgresql over sqlite": ratio(blocks["postgresql"], blocks["sqlite"]),
        "empty_round_trip_us": float(np.median(round_trips)) * 1e6,
        "blocks_s": {engine: sums.tolist() for engine, sums in blocks.items()},
    }  # fmt: skip


def logs(n: int) -> dict[str, Log]:
    """The same number of transactions of each workload."""
    return {
        "TPC-C, specification": tpcc(n, Scale(), 0),
        "TPC-C, New-Order and Payment": tpcc(n, Scale(), 0, mix="new-order/payment"),
        "YCSB A": ycsb(n, YcsbScale(), 0, mix="A", hot=0.1),
        "YCSB C": ycsb(n, YcsbScale(), 0, mix="C", hot=0.1),
        "YCSB F": ycsb(n, YcsbScale(), 0, mix="F", hot=0.1),
    }


def main(words: list[str] | None = None) -> None:
    """Measure every workload, print, and keep the record."""
    given = command(__doc__, "storages", transactions=6_000).parse_args(words)
    n = max(WARM_UP + 2, given.transactions // BLOCK) * BLOCK
    record, summary = Record(given.out), {}
    for name, log in logs(n).items():
        with tempfile.TemporaryDirectory() as folder, postgres_database() as server:
            storages = {"sqlite": SQLite(Path(folder) / "db"), "postgresql": server}
            for storage in storages.values():
                storage.load(log.scale, log.seed)
            summary[name] = compare(log, storages, server.dsn)
            states = {storage.digest() for storage in storages.values()}
            assert len(states) == 1, f"{name} ended in two states"
        tell(name)
    record.write(
        summary=summary,
        block=BLOCK,
        note="one session each, client and server on the same cores; the commit of "
        "PostgreSQL includes the rest of its round trip",
    )
    for name, found in summary.items():
        print(name, json.dumps({k: v for k, v in found.items() if k != "blocks_s"}))


if __name__ == "__main__":
    main()
