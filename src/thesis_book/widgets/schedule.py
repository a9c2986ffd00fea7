"""Data of the schedule player: the batch of chapter 3 under every policy.

A policy's decisions are embedded, and the script replays them. An order that a reader
makes is replayed by `by_hand`, which the script repeats.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from thesis_book.experiments.optimum.cpsat import solve
from thesis_book.figures import style
from thesis_book.tables.worked_example import (
    ROWS,
    WorkedBatch,
    run_worked,
    worked_batch,
)
from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.trace import History
from thesis_lib.sequencer.policies.parameters import AS_PUBLISHED
from thesis_lib.sequencer.simulator.simulator import replay

NO_GHOSTS = "hybrid-no-ghosts"
POLICIES = {  # and what each does with the batch
    "fifo": "runs everything in order of arrival, at once",
    "fifo-batched": "waits for all eight, then keeps their order",
    "drop": "rejects what it forecasts to be hopeless",
    "reorder": "moves to the front what it forecasts to be critical",
    "hybrid": "rejects the hopeless and moves the critical to the front",
    NO_GHOSTS: "forgets what it rejected",
    "drop-corrected": "forecasts again at every decision",
    "reorder-corrected": "puts the least slack first",
    "hybrid-corrected": "does both, without any defect",
    "bid-price": "lets first what need not wait, rejects what is not worth its time",
    "edf": "sorts the batch by deadline",
    "sjf": "sorts the batch by length",
    "late-edf": "chooses by deadline only when there is room",
    "late-sjf": "chooses by length when there is room",
    "least-slack": "chooses by slack when there is room",
    "startable-first": "lets lock waits go last",
    "late-demote": "lets those go last whom a selection for one machine would give up",
    "codel": "rejects when waiting stays long, and needs no estimate",
    "queue-cap": "rejects when the queue is long",
    "random-drop": "rejects one in ten, whichever it is",
}


def _title(name: str) -> str:
    """The printed name of a policy, at the start of a sentence."""
    label = style.policy(name)["label"]
    return label[0].upper() + label[1:]


def history(batch: WorkedBatch, name: str) -> History:
    """The batch under a policy of POLICIES."""
    if name == NO_GHOSTS:
        return run_worked(batch, "hybrid", replace(AS_PUBLISHED, ghosts=False))
    return run_worked(batch, name)


def by_hand(batch: WorkedBatch, log: Sequence[int]) -> History:
    """The batch in an order of one's own; what is not in `log` is dropped.

    A transaction enters the log when it has arrived, and everything before it has.
    """
    order = np.array(log, np.int64)
    dispatch_s = np.maximum.accumulate(batch.trace.arrival_s[order])
    return replay(batch.trace, order, dispatch_s, cores=batch.cores, slo_s=batch.slo_s)


def schedule() -> dict[str, Any]:
    """The batch, the decisions of every policy, and a best order with its proof."""
    batch = worked_batch()
    histories = {name: history(batch, name) for name in POLICIES}
    optimum = solve(batch.trace, cores=batch.cores, slo_s=batch.slo_s)
    best = by_hand(batch, optimum.history.log.tolist())
    fewest = int(best.violated.sum())
    require(
        fewest == optimum.bound,
        f"the order found has {fewest} violations in the page, the proof allows "
        f"{optimum.bound}: expected both to be equal",
    )
    return {
        "cores": batch.cores,
        "slo_s": batch.slo_s,
        "arrival_s": batch.trace.arrival_s.tolist(),
        "service_s": batch.trace.service_s.tolist(),
        "rows": list(ROWS),
        "policies": [
            {
                "name": name,
                "title": _title(name),
                "does": does,
                "log": histories[name].log.tolist(),
                "decided_s": histories[name].decided_s.tolist(),
            }
            for name, does in POLICIES.items()
        ],
        "best": {"log": best.log.tolist(), "violations": fewest},
    }
