"""The simulator of Part I: a sequencer in front of a deterministic database.

Clients' transactions wait in the sequencer until a batch closes; the policy decides
on it; what it orders goes to the log and, after the dispatch lag, books its locks in
log order. Transactions that hold all their locks wait for a core in one FIFO queue;
a transaction that waits for a lock holds no core. Commit releases the locks.
"""

import hashlib
from dataclasses import replace

import numpy as np

from thesis_lib.checks import InvalidInput, require, vector
from thesis_lib.sequencer.kernel import COMMITTED, LOGGED, State, advance, idle_state
from thesis_lib.sequencer.policies import Policy
from thesis_lib.sequencer.shadow import Mended, Published, Shadow
from thesis_lib.sequencer.trace import F64, I64, Bool, Decision, History, Trace

SPREAD = 0.2  # relative standard error that forecasts assume of the estimates


def replay(
    trace: Trace, log: I64, dispatch_s: F64, *, cores: int, slo_s: float
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
    require(cores >= 1, f"cores={cores}: expected at least 1")
    state = idle_state(trace.keys, cores)
    state.log[: len(log)] = log
    state.dispatch_s[: len(log)] = dispatch_s
    state.progress[LOGGED] = len(log)
    advance(state, trace.service_s, np.inf, False)
    dropped = np.ones(n, bool)
    dropped[log] = False
    decided_s = trace.arrival_s.copy()
    decided_s[log] = dispatch_s
    return _history(trace, state, trace.arrival_s + slo_s, decided_s, dropped)


def simulate(
    trace: Trace,
    policy: Policy,
    estimated_s: F64,
    *,
    cores: int,
    slo_s: float,
    batch_size: int = 10,
    flush_s: float = np.inf,
    lag_s: float = 0.0,
    spread: float = SPREAD,
) -> History:
    """Run `trace` under `policy`, which sees the estimates (n,) and no truth.

    A batch closes when it holds `batch_size` transactions or `flush_s` after its
    first, whichever comes first (the thesis knows only the former: infinity); the
    end of the trace closes the last one. Policies that do not wait for batches
    decide at every arrival. What a decision holds back is decided on again, with
    what has come since, at the next commit or batch. `lag_s` passes between decision
    and booking; `spread` is the relative standard error that the forecast's
    probabilities assume.

    Raises InvalidInput for bad parameters, for a decision that does not partition
    its batch, and for a policy that holds transactions with nothing left to wait for.
    """
    n = len(trace)
    estimated_s = vector("estimated_s", estimated_s, np.float64, n, 0.0)
    require(cores >= 1, f"cores={cores}: expected at least 1")
    require(slo_s > 0, f"slo_s={slo_s:g} must be positive")
    require(batch_size >= 1, f"batch_size={batch_size}: expected at least 1")
    require(flush_s >= 0, f"flush_s={flush_s:g} must not be negative")
    require(lag_s >= 0, f"lag_s={lag_s:g} must not be negative")
    require(spread >= 0, f"spread={spread:g} must not be negative")
    if policy.rule is None:
        passed = replay(
            trace, np.arange(n), trace.arrival_s + lag_s, cores=cores, slo_s=slo_s
        )
        return replace(passed, decided_s=trace.arrival_s)
    size = batch_size if policy.batched else 1
    arrival_s, deadline_s = trace.arrival_s, trace.arrival_s + slo_s
    state = idle_state(trace.keys, cores)
    shadow: Shadow
    if policy.shadow == "published":
        shadow = Published(trace.keys, estimated_s, deadline_s, spread)
    else:
        shadow = Mended(
            state, trace.keys, estimated_s, deadline_s, spread, lag_s,
            policy.tolerance_s,
        )  # fmt: skip
    decided_s, dropped = np.full(n, np.nan), np.zeros(n, bool)
    held = np.empty(0, np.int64)
    seen = 0  # arrivals that have been in a batch
    while seen < n or len(held):
        due_s = np.inf
        if seen < n:
            full_s = arrival_s[min(seen + size, n) - 1]
            due_s = min(full_s, arrival_s[seen] + flush_s)
        now_s = advance(state, trace.service_s, due_s, len(held) > 0)
        if now_s == np.inf:
            raise InvalidInput(
                f"policy {policy.name!r} holds {len(held)} transactions with nothing "
                "left to wait for: a rule must release or drop when the database idles"
            )
        ids = held
        if now_s == due_s:
            last = np.searchsorted(arrival_s, now_s, "right")
            upto = min(int(last), seen + size)
            ids = np.concatenate([held, np.arange(seen, upto)])
            seen = upto
        room = len(ids)
        if policy.in_flight is not None:
            released = int(state.progress[LOGGED] - state.progress[COMMITTED])
            room = policy.in_flight - released
            if room <= 0:
                held = ids
                continue
        decision = policy.rule(
            trace.batch(ids, deadline_s[ids]), shadow.forecast(ids, now_s), now_s
        )
        _require_partition(decision, ids, policy.name)
        order, behind = decision.order[:room], decision.order[room:]
        first = int(state.progress[LOGGED])
        state.log[first : first + len(order)] = order
        state.dispatch_s[first : first + len(order)] = now_s + lag_s
        state.progress[LOGGED] += len(order)
        decided_s[order] = now_s
        decided_s[decision.dropped] = now_s
        dropped[decision.dropped] = True
        held = np.sort(np.concatenate([behind, decision.held]))
    advance(state, trace.service_s, np.inf, False)
    return _history(trace, state, deadline_s, decided_s, dropped)


def digest(history: History) -> str:
    """SHA-256 of the log: two replicas with equal digests executed the same."""
    return hashlib.sha256(history.log.astype("<i8").tobytes()).hexdigest()


def _require_partition(decision: Decision, ids: I64, name: str) -> None:
    parts = np.concatenate([decision.order, decision.dropped, decision.held])
    parts.sort()
    require(
        np.array_equal(parts, ids),
        f"policy {name!r} must put each of the {len(ids)} transactions of a batch "
        "into exactly one of order, dropped and held",
    )


def _history(
    trace: Trace, state: State, deadline_s: F64, decided_s: F64, dropped: Bool
) -> History:
    return History(
        arrival_s=trace.arrival_s,
        deadline_s=deadline_s,
        decided_s=decided_s,
        granted_s=state.granted_s,
        start_s=state.start_s,
        finish_s=state.finish_s,
        dropped=dropped,
        log=state.log[: state.progress[LOGGED]].copy(),
    )
