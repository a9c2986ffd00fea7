"""The simulator of Part I: clients, a sequencer, and a deterministic database.

Clients' transactions wait in the sequencer until a batch closes; the policy decides
on it; what it orders goes to the log and, after the dispatch lag, books its locks in
log order. Transactions that hold all their locks wait for a core in one FIFO queue;
a transaction that waits for a lock holds no core. Commit releases the locks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import require, require_all, require_count, vector
from thesis_lib.sequencer.core.events import (
    HELD,
    LOGGED,
    NO_DELAYS,
    NOW,
    Delays,
    RunConfig,
    SequencerState,
    State,
    advance,
    enter,
    front,
    idle_state,
    next_decision,
)
from thesis_lib.sequencer.core.trace import (
    F64,
    I64,
    Batch,
    Bool,
    Decision,
    History,
    Trace,
)
from thesis_lib.sequencer.policies.decisions import decide_into
from thesis_lib.sequencer.policies.lookahead import SPREAD, Feedback, OpenLoop
from thesis_lib.sequencer.policies.registry import Policy, decide


def replay(
    trace: Trace, log: I64, dispatch_s: F64, *, cores: int, slo_s: float | F64
) -> History:
    """Run a given log: what a replica does, without a sequencer or a model.

    `log` holds ids in total order, each at most once; `dispatch_s`, as long and
    rising, says when each books its locks. Transactions outside the log count as
    dropped at their arrival. Raises InvalidInput for a log that is none.
    """
    n = len(trace)
    log = vector("log", log, np.int64, minimum=0)
    dispatch_s = vector("dispatch_s", dispatch_s, np.float64, len(log))
    require(
        len(log) == 0 or (int(log.max()) < n and int(np.bincount(log).max()) == 1),
        f"the log must name transactions 0 to {n - 1}, each at most once",
    )
    require(
        bool((np.diff(dispatch_s) >= 0).all()),
        "dispatch_s falls somewhere: the log is dispatched in its own order",
    )
    require_count("cores", cores)
    state = idle_state(trace.keys, cores)
    state.log[: len(log)] = log
    state.dispatch_s[: len(log)] = dispatch_s
    state.progress[LOGGED] = len(log)
    advance(state, trace.service_s, np.inf, False, 0.0)
    dropped = np.ones(n, bool)
    dropped[log] = False
    decided_s = trace.arrival_s.copy()
    decided_s[log] = dispatch_s
    deadline_s = trace.arrival_s + _each_s(slo_s, n)
    return _history(state, trace.arrival_s, deadline_s, decided_s, dropped)


def _each_s(slo_s: float | F64, n: int) -> F64:
    """Return the SLO of each of n transactions."""
    each_s = np.full(n, slo_s) if np.ndim(slo_s) == 0 else slo_s
    each_s = vector("slo_s", each_s, np.float64, n)
    require_all(each_s > 0, "slo_s", each_s, "an SLO must be positive")
    return each_s


def _history(
    state: State, arrival_s: F64, deadline_s: F64, decided_s: F64, dropped: Bool
) -> History:
    """Return the history of a database whose log has ended, with known times (n,)."""
    return History(
        arrival_s=arrival_s,
        deadline_s=deadline_s,
        decided_s=decided_s,
        granted_s=state.granted_s,
        start_s=state.start_s,
        finish_s=state.finish_s,
        dropped=dropped,
        log=state.log[: state.progress[LOGGED]].copy(),
    )


class Run(NamedTuple):
    """A simulation that stands before its next decision."""

    state: State
    before: SequencerState
    lookahead: OpenLoop | Feedback
    busy_s: F64  # (n,) that each transaction keeps a core
    setting: RunConfig

    def ask(self, trace: Trace) -> tuple[Batch, float] | None:
        """The next batch to decide on, and when; None if there is none any more.

        Transactions may be held then, which have nothing left to wait for.
        """
        state, before, _, busy_s, setting = self
        decided_ids = np.empty(len(busy_s), np.int64)
        size = next_decision(state, before, busy_s, setting, decided_ids)
        if size <= 0:
            return None
        ids = decided_ids[:size].copy()
        batch = trace.batch(ids, before.deadline_s[ids], before.arrival_s[ids])
        return batch, float(before.clock_s[NOW])

    def carry_out(self, decision: Decision) -> None:
        """Do what was decided on the batch that was asked about."""
        held = np.sort(decision.held)
        enter(
            self.state, self.before, self.setting, decision.order, decision.dropped,
            held,
        )  # fmt: skip

    def history(self) -> History:
        """Return the history of all transactions after the last decision."""
        before = self.before
        return _history(
            self.state, before.arrival_s, before.deadline_s, before.decided_s,
            before.dropped,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemConfig:
    """Describe the clients, the sequencer and the database of a simulation.

    The sequencer works on one batch at a time. It takes the first `batch_size`
    transactions of its inbox, or fewer `flush_s` after the first one or when no client
    is left to fill the batch. A policy may set a shorter timer. One that does not wait
    for batches takes each transaction by itself.

    Args:
        cores: Number of workers.
        slo_s: SLO in seconds, one number or one for each transaction (n,).
        batch_size: Transactions that complete a batch.
        flush_s: Seconds after which an incomplete batch is taken; infinity for never.
        delays: Seconds for reading a request, deciding, booking, and releasing locks.
        believed: Delays that the policy assumes; None for the true ones.
        clients: Clients of a closed loop, each with one transaction at a time. None
            for an open loop, where arrivals come from the trace.
        think_s: Seconds from a client's answer to its next transaction.
        spread: Relative error that forecasts assume of estimates.

    Raises:
        InvalidInput: If a value is out of range.

    Example:
        >>> from thesis_lib.sequencer import SystemConfig
        >>> SystemConfig(cores=8, slo_s=0.0125).batch_size
        10
    """

    cores: int
    slo_s: float | F64  # target latency of all transactions, or of each (n,)
    batch_size: int = 10
    flush_s: float = np.inf
    delays: Delays = NO_DELAYS
    believed: Delays | None = None  # that forecasts allow for; None: `delays`
    clients: int | None = None
    think_s: float = 0.0
    spread: float = SPREAD  # relative standard error that forecasts assume of estimates

    def __post_init__(self) -> None:
        require_count("cores", self.cores)
        require_count("batch_size", self.batch_size)
        require(self.flush_s >= 0, f"flush_s={self.flush_s:g} must not be negative")
        require(
            0 <= self.think_s < np.inf,
            f"think_s={self.think_s:g} must be finite and at least 0",
        )
        require(self.spread >= 0, f"spread={self.spread:g} must not be negative")
        if self.clients is not None:
            require_count("clients", self.clients)


def begin(trace: Trace, policy: Policy, estimated_s: F64, config: SystemConfig) -> Run:
    """A run of `simulate`, of which nothing has happened yet.

    Raises InvalidInput for bad parameters.
    """
    n, delays, clients = len(trace), config.delays, config.clients
    estimated_s = vector("estimated_s", estimated_s, np.float64, n, 0.0)
    slo_s = _each_s(config.slo_s, n)
    # More than all are as many as all that could fill it, and one.
    size = min(config.batch_size, n + 1) if policy.batched else 1
    setting = RunConfig(
        closed=clients is not None,
        think_s=float(config.think_s),
        size=size,
        flush_s=float(min(config.flush_s, policy.flush_s)),
        in_flight=policy.in_flight or 0,
        lag_s=float(delays.lag_s),
        sequencer_s=float(delays.sequencer_s),
        read_s=float(delays.read_s),
        release_s=float(delays.release_s),
    )
    require(
        clients is None or clients >= size or setting.flush_s < np.inf,
        f"clients={clients} never fill a batch of {size}, and policy {policy.name!r} "
        "flushes none: lower batch_size or set flush_s",
    )
    busy_s = trace.service_s + delays.worker_s
    expected = delays if config.believed is None else config.believed
    state = idle_state(trace.keys, config.cores)
    before = front(trace.arrival_s, slo_s, setting, clients or 0)
    lookahead = policy.make_lookahead(
        state, trace.keys, estimated_s + expected.worker_s, before.deadline_s,
        config.spread, float(expected.lag_s), trace.kind,
    )  # fmt: skip
    return Run(state, before, lookahead, busy_s, setting)


def simulate(
    trace: Trace, policy: Policy, estimated_s: F64, config: SystemConfig
) -> History:
    """Run `trace` under `policy` and return the history.

    The policy decides again on transactions that it holds, at no cost, at the next
    commit or batch. Committed transactions hold no locks in forecasts.

    Args:
        trace: The transactions with their true service times.
        policy: A policy of `policy()`.
        estimated_s: Estimated service times (n,) in seconds, which the policy sees.
        config: The simulated system.

    Raises:
        InvalidInput: If estimates or SLOs do not fit the trace, if a decision does not
            partition its batch, or if a policy holds transactions for ever.

    Example:
        >>> from thesis_lib.sequencer import SystemConfig, policy, scenario, simulate
        >>> bid_price = policy("bid-price", slo_s=0.0125, cores=8)
        >>> trace = scenario("A", n=100, seed=1)
        >>> system = SystemConfig(cores=8, slo_s=0.0125)
        >>> history = simulate(trace, bid_price, trace.service_s, system)
        >>> int(history.late.sum()), int(history.dropped.sum())
        (0, 0)
    """
    run = begin(trace, policy, estimated_s, config)
    if policy.code is None:
        held = _run_rule(trace, policy, run)
    else:
        held = _run(
            run.state,
            run.before,
            run.busy_s,
            run.setting,
            run.lookahead.memory,
            run.lookahead.model,
            policy.code,
        )
    require(
        held == 0,
        f"policy {policy.name!r} holds {held} transactions with nothing left to wait "
        "for: a rule must release or drop when the database idles",
    )
    return run.history()


@njit(cache=True)
def _run(state, before, busy_s, setting, memory, model, code):
    """Everything, compiled; returns how many are held for ever."""
    ids, decided = np.empty(len(busy_s), np.int64), memory.decided
    while True:
        size = next_decision(state, before, busy_s, setting, ids)
        if size <= 0:
            return before.counts[HELD]
        order, dropped, held = decide_into(
            code, memory, model, ids[:size], before.clock_s[NOW]
        )
        enter(
            state, before, setting, decided.order[:order], decided.dropped[:dropped],
            decided.held[:held],
        )  # fmt: skip


def _run_rule(trace: Trace, policy: Policy, run: Run) -> int:
    """The same, asking a rule in Python."""
    while (ids := run.ask(trace)) is not None:
        run.carry_out(decide(policy, run.lookahead, *ids))
    return int(run.before.counts[HELD])
