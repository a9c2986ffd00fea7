"""Calvin's pipeline, live: total order, lock table, worker processes, notifications.

One loop in one process owns the lock table, so nothing is locked to protect it: it
takes what has committed, releases and books in compiled code, and hands over what may
start, whole batches at a time. What it observes fills a `events.State`, the same value
from which the look-ahead schedule forecasts in the simulator.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Self

import numpy as np
from numpy.typing import NDArray

from thesis_lib.common.errors import require, require_count
from thesis_lib.sequencer.core.events import (
    COMMITTED,
    LOGGED,
    NO_DELAYS,
    READY,
    Delays,
    State,
    idle_state,
)
from thesis_lib.sequencer.core.observed import commit, dispatch
from thesis_lib.sequencer.core.trace import (
    F64,
    I64,
    Batch,
    Bool,
    Decision,
    History,
    KeySets,
)
from thesis_lib.sequencer.engine.storage import UNITS, Storage
from thesis_lib.sequencer.engine.workers import COMMITTED as DID_COMMIT
from thesis_lib.sequencer.engine.workers import Workers
from thesis_lib.sequencer.policies.decisions import decide_by, decider
from thesis_lib.sequencer.policies.lookahead import SPREAD
from thesis_lib.sequencer.policies.registry import Policy, decide
from thesis_lib.sequencer.policies.rules import FIFO
from thesis_lib.sequencer.workload.features import static_features, static_names
from thesis_lib.sequencer.workload.transactions import Log

Append = Callable[[I64], None]  # ids that enter the total order, before they run


@dataclass(frozen=True, slots=True)
class Run:
    """Times of one execution of n transactions, from its start; rows are ids.

    Of a transaction that was dropped every time but the first two is NaN. A client has
    its answer at `notified_s`, or where its transaction was dropped at `decided_s`.
    """

    arrival_s: F64  # (n,) submitted by its client, or due to be
    decided_s: F64  # (n,) ordered or dropped by the sequencer
    sequenced_s: F64  # (n,) in the log, its locks booked
    granted_s: F64  # (n,) last lock granted
    start_s: F64  # (n,) taken by a worker
    finish_s: F64  # (n,) committed or rolled back
    notified_s: F64  # (n,) known to the sequencer, which answers the client
    cpu_s: F64  # (n,) processor time of the worker
    units_s: F64  # (n, len(UNITS))
    worker: F64  # (n,)
    committed: Bool  # (n,) False where rolled back or dropped
    log: I64  # ids in total order
    loop_cpu_s: float  # processor time of sequencer and scheduler, of the whole run


class Scheduler:
    """A log's lock table above worker processes on one database; a context manager.

    `dispatch` puts transactions into the total order, `commits` waits for what ends;
    both hand over whatever may start. `append`, if given, makes ids durable before
    they are dispatched. Times count from `begin`.
    """

    def __init__(
        self, storage: Storage, log: Log, workers: int, append: Append | None = None
    ) -> None:
        if not storage.one_writer:
            log = log.without_files()
        n = len(log)
        self.log = log
        self.workers = Workers(storage, log.transactions, workers)
        self.append = append
        self.state = idle_state(log.keys, workers)
        self.handed = 0  # of the queue, to the workers
        self.notified_s, self.cpu_s = np.full(n, np.nan), np.full(n, np.nan)
        self.units_s, self.worker = np.full((n, len(UNITS)), np.nan), np.full(n, np.nan)
        self.committed = np.zeros(n, bool)
        nobody = np.empty(0, np.int64)  # compile before the first client
        dispatch(self.state, nobody, 0.0)
        commit(self.state, nobody, np.empty(0), np.empty(0), 0.0)

    def __enter__(self) -> Self:
        gc.freeze()  # no collection until the end, in this process or a worker
        self.workers.__enter__()
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.workers.__exit__(kind)
        gc.unfreeze()

    def begin(self) -> None:
        """Start the clock."""
        self.origin_s, self.origin_cpu_s = perf_counter(), thread_time()

    def now_s(self) -> float:
        """Seconds since `begin`."""
        return perf_counter() - self.origin_s

    @property
    def in_flight(self) -> int:
        """Transactions in the total order that have not committed."""
        return int(self.state.progress[LOGGED] - self.state.progress[COMMITTED])

    def dispatch(self, ids: I64) -> None:
        """Append `ids` (k,) to the total order."""
        if len(ids) == 0:
            return
        if self.append is not None:
            self.append(ids)
        dispatch(self.state, ids, self.now_s())
        self._hand_over()

    def commits(self, timeout_s: float) -> int:
        """Take what has ended, waiting at most `timeout_s` for it; how many."""
        records = self.workers.receive(timeout_s)
        if len(records) == 0:
            return 0
        now_s = self.now_s()
        ids = records["id"].astype(np.int64)
        start_s = records["start_s"] - self.origin_s
        finish_s = records["finish_s"] - self.origin_s
        commit(self.state, ids, start_s, finish_s, now_s)
        self._hand_over()
        self._record(ids, records, now_s)
        return len(ids)

    def _hand_over(self) -> None:
        ready = int(self.state.progress[READY])
        if ready > self.handed:
            self.workers.send(self.state.queue[self.handed : ready])
            self.handed = ready

    def _record(self, ids: I64, records: NDArray[np.void], now_s: float) -> None:
        self.notified_s[ids] = now_s
        self.cpu_s[ids], self.units_s[ids] = records["cpu_s"], records["units_s"]
        self.worker[ids] = records["worker"]
        self.committed[ids] = records["outcome"] == DID_COMMIT

    def run(self, arrival_s: F64, decided_s: F64) -> Run:
        """Return the observed history, with the times that the caller knows (n,)."""
        state = self.state
        logged = int(state.progress[LOGGED])
        require(self.in_flight == 0, f"{self.in_flight} transactions still run")
        sequenced_s = np.full(len(arrival_s), np.nan)
        sequenced_s[state.log[:logged]] = state.dispatch_s[:logged]
        return Run(
            arrival_s=arrival_s,
            decided_s=decided_s,
            sequenced_s=sequenced_s,
            granted_s=state.granted_s,
            start_s=state.start_s,
            finish_s=state.finish_s,
            notified_s=self.notified_s,
            cpu_s=self.cpu_s,
            units_s=self.units_s,
            worker=self.worker,
            committed=self.committed,
            log=state.log[:logged].copy(),
            loop_cpu_s=thread_time() - self.origin_cpu_s,
        )


def run_closed(scheduler: Scheduler, n: int, in_flight: int, batch: int) -> Run:
    """Run transactions 0 to n - 1 in order, asked for by a closed loop of clients.

    `in_flight` clients each submit one, wait for its commit and submit the next; every
    `batch` submissions enter the total order together. Raises InvalidInput where a
    batch would wait for clients that wait for it.
    """
    require(
        1 <= batch <= in_flight,
        f"batch={batch} must lie between 1 and in_flight={in_flight}: "
        "a larger batch would wait for clients that wait for it",
    )
    arrival_s, decided_s = np.zeros(n), np.zeros(n)
    arrived, sequenced, finished = min(in_flight, n), 0, 0
    while finished < n:
        whole = arrived if arrived == n else arrived - (arrived - sequenced) % batch
        decided_s[sequenced:whole] = scheduler.now_s()
        scheduler.dispatch(np.arange(sequenced, whole))
        sequenced = whole
        ended = scheduler.commits(np.inf)
        finished += ended
        submitted = min(ended, n - arrived)
        arrival_s[arrived : arrived + submitted] = scheduler.now_s()
        arrived += submitted
    return scheduler.run(arrival_s, decided_s)


@dataclass(frozen=True, slots=True)
class Requests:
    """Return the sequencer's view of n requests of an open loop: no service time.

    `arrival_s` are the intended times: a request that the loop reads late has waited
    since then.
    """

    arrival_s: F64  # (n,)
    deadline_s: F64  # (n,)
    features: F64  # (n, d)
    feature_names: tuple[str, ...]  # (d,)
    keys: KeySets  # n sets
    estimated_s: F64  # (n,) service time that an estimator expects

    @classmethod
    def of_log(cls, log: Log, arrival_s: F64, slo_s: float, estimated_s: F64) -> Self:
        """The transactions of `log` with their static features and one objective."""
        deadline_s, known = arrival_s + slo_s, static_features(log)
        return cls(
            arrival_s, deadline_s, known, static_names(log), log.keys, estimated_s
        )

    def batch(self, ids: I64) -> Batch:
        """Rows `ids`, as a policy sees them."""
        return Batch(
            ids=ids,
            arrival_s=self.arrival_s[ids],
            deadline_s=self.deadline_s[ids],
            features=self.features[ids],
            feature_names=self.feature_names,
            keys=self.keys.take(ids),
        )


def _rule(
    state: State, requests: Requests, policy: Policy, delays: Delays
) -> Callable[[I64, float], Decision]:
    """Return the decision of `policy` on ids at a time, compiled if possible."""
    lookahead = policy.make_lookahead(
        state, requests.keys, requests.estimated_s + delays.worker_s,
        requests.deadline_s, SPREAD, delays.lag_s,
    )  # fmt: skip
    if policy.code is None:
        return lambda ids, now_s: decide(policy, lookahead, requests.batch(ids), now_s)
    if policy.code.kind == FIFO:  # whatever a forecast would say
        return lambda ids, now_s: Decision(order=ids, dropped=ids[:0])
    compiled = decider(policy.code, lookahead.memory, lookahead.model, state)
    return lambda ids, now_s: Decision(*decide_by(compiled, ids, now_s))


def run_open(
    scheduler: Scheduler,
    requests: Requests,
    policy: Policy,
    *,
    first: int,
    batch_size: int = 10,
    flush_s: float = np.inf,
    delays: Delays = NO_DELAYS,
) -> Run:
    """Run requests `first` to n - 1 as they come, decided on by `policy`.

    The live counterpart of `simulator.simulate`, with the same meaning of every option:
    a batch closes when it holds `batch_size` or `flush_s` after its first request, and
    what a decision holds back is decided on again at the next commit or batch. `delays`
    delay nothing: forecasts allow for their lag and their work of a worker. Requests
    before `first` have been run already, to warm the workers. Raises InvalidInput for a
    decision that does not partition its batch, and for a policy that holds requests
    with nothing left to wait for.
    """
    require_count("batch_size", batch_size)
    n, arrival_s = len(requests.arrival_s), requests.arrival_s
    size = batch_size if policy.batched else n
    wait_s = min(flush_s, policy.flush_s) if policy.batched else 0.0
    decided_s = np.zeros(n)
    held, seen = np.empty(0, np.int64), first
    decide_on = _rule(scheduler.state, requests, policy, delays)
    decide_on(held, 0.0)  # compiled here, or a client waits
    scheduler.begin()
    while seen < n or len(held) or scheduler.in_flight:
        due_s = np.inf
        if seen < n:
            due_s = min(arrival_s[min(seen + size, n) - 1], arrival_s[seen] + wait_s)
        ended = scheduler.commits(due_s - scheduler.now_s())
        now_s = scheduler.now_s()
        ids = held
        if now_s >= due_s:
            come = int(np.searchsorted(arrival_s, now_s, "right"))
            upto = min(come, seen + size)
            ids, seen = np.concatenate([held, np.arange(seen, upto)]), upto
        elif ended == 0 or len(held) == 0:
            continue
        held, room = ids, len(ids)
        if policy.in_flight is not None:
            room = policy.in_flight - scheduler.in_flight
        if room <= 0:
            continue
        decision = decide_on(ids, now_s)
        released, behind = decision.order[:room], decision.order[room:]
        scheduler.dispatch(released)
        decided_s[released] = decided_s[decision.dropped] = now_s
        held = np.sort(np.concatenate([behind, decision.held]))
        require(
            len(held) == 0 or seen < n or scheduler.in_flight > 0,
            f"policy {policy.name!r} holds {len(held)} transactions with nothing left "
            "to wait for: a rule must release or drop when the database idles",
        )
    return scheduler.run(arrival_s, decided_s)


def history(run: Run, deadline_s: F64, first: int = 0) -> History:
    """Return the history from request `first` on; answers to clients are the ends."""
    rows = slice(first, None)
    return History(
        arrival_s=run.arrival_s[rows],
        deadline_s=deadline_s[rows],
        decided_s=run.decided_s[rows],
        granted_s=run.granted_s[rows],
        start_s=run.start_s[rows],
        finish_s=run.notified_s[rows],
        dropped=np.isnan(run.finish_s[rows]),
        log=run.log[run.log >= first] - first,
    )
