"""The small batch that chapter 3 works through by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from thesis_lib.common.units import MILLISECONDS
from thesis_lib.sequencer.core import locks
from thesis_lib.sequencer.core.trace import History, KeySets, Trace
from thesis_lib.sequencer.policies.lookahead import OpenLoop
from thesis_lib.sequencer.policies.parameters import BAND, Defects
from thesis_lib.sequencer.policies.registry import policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, simulate

SERVICE_MS = (1.0, 6.0, 5.0, 3.0, 5.0, 2.0, 1.0, 1.0)
ROWS = ("a", "ab", "b", "ac", "a", "c", "a", "ab")  # that each transaction writes
GAP_MS = 0.2  # between arrivals


@dataclass(frozen=True, slots=True)
class WorkedBatch:
    """A trace of one batch, and the machine that it meets."""

    trace: Trace
    cores: int = 2
    slo_s: float = 12.5 * MILLISECONDS


def worked_batch() -> WorkedBatch:
    """Eight transactions, six of which write the same row."""
    n = len(SERVICE_MS)
    return WorkedBatch(
        Trace.of_jobs(
            arrival_s=np.arange(n, dtype=np.float64) * GAP_MS * MILLISECONDS,
            service_s=np.array(SERVICE_MS) * MILLISECONDS,
            keys=KeySets.from_lists(
                [[]] * n, [["abc".index(r) for r in rows] for rows in ROWS]
            ),
        )
    )


def run_worked(
    batch: WorkedBatch, name: str, defects: Defects | None = None
) -> History:
    """The batch under a policy whose estimates are exact; `defects` as in `policy`."""
    return simulate(
        batch.trace,
        policy(name, slo_s=batch.slo_s, cores=batch.cores, params=defects),
        batch.trace.service_s,
        SystemConfig(
            cores=batch.cores,
            slo_s=batch.slo_s,
            batch_size=len(batch.trace),
            spread=0.0,
        ),
    )


def forecasts(batch: WorkedBatch) -> pd.DataFrame:
    """One row a transaction: what the thesis forecasts of it, and calls it.

    Times are in milliseconds. The batch is forecast when it closes, in order of
    arrival, by the look-ahead schedule as described; the estimates are exact.
    """
    trace = batch.trace
    ids, deadline_s = np.arange(len(trace)), trace.arrival_s + batch.slo_s
    lookahead = OpenLoop(trace.keys, trace.service_s, deadline_s, spread=0.0)
    finish_s = lookahead.forecast(ids, float(trace.arrival_s[-1])).finish_s
    over_s, band_s = finish_s - deadline_s, BAND * batch.slo_s
    called = np.where(np.abs(over_s) < band_s, "critical", "safe")
    called[over_s > band_s] = "hopeless"
    return pd.DataFrame(
        {
            "arrives": trace.arrival_s / MILLISECONDS,
            "works": trace.service_s / MILLISECONDS,
            "writes": [" ".join(rows) for rows in ROWS],
            "predicted end": finish_s / MILLISECONDS,
            "predicted latency": (finish_s - trace.arrival_s) / MILLISECONDS,
            "called": called,
        },
        index=pd.Index(ids, name="transaction"),
    )


def bookings(batch: WorkedBatch, log: Sequence[int]) -> pd.DataFrame:
    """One row a lock that the log books, before anything of it has run.

    In the order of the log: transaction, the row of the data, and whether the
    transaction holds it at once, by the lock table of the engine.
    """
    keys = batch.trace.keys
    table = locks.lock_table(keys)
    for i in log:
        locks.book(table, int(i))
    waits = {int(request) for request in (*table.head, *table.follows)} - {locks.NONE}
    return pd.DataFrame(
        [
            {
                "transaction": int(i),
                "row": "abc"[keys.keys[request]],
                "holds": request not in waits,
            }
            for i in log
            for request in range(keys.offsets[i], keys.offsets[i + 1])
        ]
    )


def outcomes(histories: dict[str, History]) -> pd.DataFrame:
    """One row a policy: its log, what it dropped, what was late, how many violate."""
    return pd.DataFrame(
        [
            {
                "policy": name,
                "log": " ".join(map(str, history.log)),
                "dropped": " ".join(map(str, np.flatnonzero(history.dropped))) or "-",
                "late": " ".join(map(str, np.flatnonzero(history.late))) or "-",
                "violations": int(history.violated.sum()),
            }
            for name, history in histories.items()
        ]
    ).set_index("policy")
