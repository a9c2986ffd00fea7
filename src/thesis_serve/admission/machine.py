"""The sequencer in front of a service, as a machine of events without a clock.

The caller reports events with their times: an arrival, a completion, a client that has
disconnected, time that has passed. Each answer lists the requests to start and the
requests to reject. There is no other input, so the same events give the same decisions:
a log can be replayed (`log`), and simulated arrivals and services give the results of
the simulator.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite, log
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any

import numpy as np

from thesis_lib.common.errors import InvalidInput, require, require_count
from thesis_lib.sequencer.core.events import (
    COMMITTED,
    LOGGED,
    READY,
    STARTED,
    State,
    idle_state,
)
from thesis_lib.sequencer.core.locks import NONE
from thesis_lib.sequencer.core.observed import commit, dispatch
from thesis_lib.sequencer.core.trace import I64, Batch, Decision, KeySets
from thesis_lib.sequencer.policies.decisions import (
    commit_by,
    decide_by,
    decider,
    dispatch_by,
)
from thesis_lib.sequencer.policies.lookahead import PENDING, READ, SPREAD
from thesis_lib.sequencer.policies.recalibration import LEAST_S, all_corrected_s
from thesis_lib.sequencer.policies.registry import OwnRule, Policy, decide, policy
from thesis_lib.sequencer.policies.rules import (
    AT_ARRIVAL,
    FIFO,
    LIFO,
    RANDOM,
    Fifo,
)
from thesis_serve.admission.estimator import OnlineEstimator, ServiceEstimator

Note = Callable[[dict[str, Any]], None]  # takes an event and what was decided at it
LOOK_S = 0.001  # behind a deadline it is over, beyond what any clock rounds
_SAYS = logging.getLogger(__name__)
_ROOM = 4096  # requests at least that columns have room for
_WORKERS = 10_000  # at most: a decision looks at each
_KINDS = 256  # whose shortest services are remembered: those that were served last
_FADING = 0.9  # of a shortest service, at each rejection that rests on it


@dataclass(slots=True)
class Decided:
    """Numbers of the requests that start now, in that order, and that are rejected."""

    started: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """Counts of accepted, rejected and failed requests."""

    arrived: int = 0
    started: int = 0
    on_time: int = 0  # ended by their deadlines
    late: int = 0
    refused: int = 0
    full: int = 0  # of the rejected, because the queue was full
    failed: int = 0  # the service had no answer
    left: int = 0  # their clients were gone first


def _no_keys(n: int) -> KeySets:
    nothing = np.empty(0, np.int64)
    return KeySets(np.zeros(n + 1, np.int64), nothing, nothing.astype(bool))


def seconds(name: str, value: object) -> float:
    """Return `value` if it is a time that may be allowed or foretold."""
    good = isinstance(value, Real) and not isinstance(value, bool)
    require(
        good and 0 < float(value) < np.inf,  # type: ignore[arg-type]
        f"{name}={value!r}: expected positive, finite seconds",
    )
    return float(value)  # type: ignore[arg-type]


def at_hand(policy: Policy, workers: int) -> Policy:
    """Return a policy that never passes a request on before a worker is free.

    So a waiting request can still be rejected, overtaken or withdrawn.
    """
    code = policy.code
    if code is not None and code.kind in AT_ARRIVAL:
        return policy
    if code is not None and code.kind == LIFO:
        code = code._replace(most=workers)
    return replace(policy, code=code, in_flight=workers)


def _carry(old: State, new: State, slots: I64, to: I64) -> None:
    """Repeat in the new `new` what happened in `old` to the slots (k,), as `to[i]`."""
    entries = np.flatnonzero(to[old.log[: old.progress[LOGGED]]] != NONE)
    logged = to[old.log[entries]]
    dispatch(new, logged, 0.0)
    finish_s = old.finish_s[old.log[entries]]
    ended, ends_s = logged[~np.isnan(finish_s)], finish_s[~np.isnan(finish_s)]
    commit(new, ended, ends_s, ends_s, 0.0)
    new.dispatch_s[: len(logged)] = old.dispatch_s[entries]
    for name in ("granted_s", "start_s", "finish_s"):
        getattr(new, name)[: len(slots)] = getattr(old, name)[slots]


class LiveSequencer:
    """Run a policy in front of a service with `workers` requests at a time.

    Args:
        name: A policy, FILE.py:FUNCTION, or a function (see `policy`).
        workers: Requests that run at a time.
        slo_s: SLO of requests without one of their own, in seconds.
        most_waiting: Waiting requests above which the next one is rejected.
        feature_names: Names of what is known of a request before it runs.
        estimator: Estimator that learns from the features while it serves.
        note: Function called with every event.
        batch_size, flush_s: As in `SystemConfig`; a policy may set a shorter timer.
        shortest_s: Least service time in seconds. A policy never explores with a
            request whose SLO is shorter, or below the shortest service of its kind.

    Raises:
        InvalidInput: If a value is out of range, or a policy for batches has no timer.

    Times are seconds of any monotonic clock. If a function raises or does not partition
    its batch, `fault` names it, and requests are then served first come, first served.

    Example:
        >>> from thesis_serve import LiveSequencer
        >>> live = LiveSequencer("bid-price", workers=1, slo_s=0.2)
        >>> live.arrive(0, 0.00)
        Decided(started=[0], refused=[])
        >>> live.arrive(1, 0.01)
        Decided(started=[], refused=[])
        >>> live.end(0, 0.05)
        Decided(started=[1], refused=[])
    """

    def __init__(
        self, name: str | OwnRule = "bid-price", *, workers: int, slo_s: float,
        most_waiting: int = 1000, feature_names: Sequence[str] = (),
        estimator: ServiceEstimator | None = None, note: Note | None = None,
        batch_size: int = 10, flush_s: float = np.inf, shortest_s: float = 0.0,
    ) -> None:  # fmt: skip
        require_count("workers", workers)
        require(workers <= _WORKERS, f"workers={workers}: expected {_WORKERS} at most")
        require_count("most_waiting", most_waiting)
        require_count("batch_size", batch_size)
        flush_s = flush_s if flush_s == np.inf else seconds("flush_s", flush_s)
        slo_s = seconds("slo_s", slo_s)
        shortest_s = shortest_s and seconds("shortest_s", shortest_s)
        names = tuple(feature_names)
        require(
            not isinstance(feature_names, str) and len(set(names)) == len(names),
            f"feature_names={feature_names!r}: expected names that differ, in a tuple",
        )
        rule = policy(name, slo_s=slo_s, cores=int(workers))
        require(
            rule.code is None or rule.code.kind != RANDOM,
            f"policy must decide by the requests, got {rule.name!r}, which draws its "
            "rejections by position in a trace. Choose another, such as bid-price.",
        )
        require(
            not rule.batched or batch_size == 1 or min(flush_s, rule.flush_s) < np.inf,
            f"policy {rule.name!r} waits until {batch_size} requests have come, and "
            "the last of them for ever: give flush_s, the seconds after which a batch "
            "is closed, or choose one with a timer (hybrid-corrected) or without "
            "batches (bid-price)",
        )
        self.policy, self.own = at_hand(rule, int(workers)), not isinstance(name, str)
        self.workers, self.slo_s = int(workers), slo_s
        self.most_waiting = int(most_waiting)
        self.batch_size, self.flush_s = int(batch_size), float(flush_s)
        self.shortest_s = shortest_s
        # The shortest service of a kind, and the bound that falls.
        self._shortest_s: dict[str, tuple[float, float]] = {}
        self.feature_names, self.taken = names, False
        if estimator is None:
            estimator = OnlineEstimator(len(names), first_s=slo_s / 10)
        self.estimator = estimator
        takes = getattr(self.estimator, "features", len(names))
        require(
            takes == len(names),
            f"the estimator takes {takes} features and feature_names "
            f"are {len(names)}: expected as many",
        )
        self.note = note
        self.counts = Counts()
        self.fault: str | None = None
        self.now_s = -np.inf
        self._slot: dict[int, int] = {}  # of who waits or runs, by number
        self._about: dict[int, tuple[str, tuple[float, ...]]] = {}  # kind and features
        self._open: list[int] = []  # slots of a batch that is not closed yet
        self._held = nobody = np.empty(0, np.int64)  # and of whom the policy keeps
        self._gone: set[int] = set()  # slots in the queue whose clients left
        self._number = nobody
        self._arrival_s = self._deadline_s = np.empty(0)
        self._features = np.empty((0, len(self.feature_names)))
        self._state: Any = None
        self._lookahead: Any = None
        self._decider: Any = None
        self._make_room(nobody)
        self._compile(nobody)

    def _compile(self, nobody: I64) -> None:
        """Decide on an empty queue once, so that no client waits for the compiler."""
        dispatch_by(self._decider, nobody, 0.0)
        commit_by(self._decider, nobody, 0.0)
        if self.policy.code is None:
            self._lookahead.peek(nobody, 0.0)
        elif self.policy.code.kind != FIFO:
            decide_by(self._decider, nobody, 0.0)

    # --- What happens -----------------------------------------------------------
    def arrive(
        self, number: int, now_s: float, *, kind: str = "",
        features: Sequence[float] = (), slo_s: float | None = None,
        estimate_s: float | None = None,
    ) -> Decided:  # fmt: skip
        """Add the new request `number`, whose deadline is `slo_s` from now.

        `estimate_s` replaces the estimator's prediction for its `kind` and `features`.
        """
        now_s = self._time(now_s)
        slo_s = self.slo_s if slo_s is None else seconds("slo_s", slo_s)
        require(now_s + slo_s > now_s, f"slo_s={slo_s:g} is nothing at {now_s:g} s")
        require(
            isinstance(number, Integral) and 0 <= number < 2**62,
            f"number={number!r}: expected a whole number from 0",
        )
        number = int(number)
        require(isinstance(kind, str), f"kind={kind!r}: expected text")
        require(number not in self._slot, f"request {number} is here already")
        try:
            known = tuple(map(float, features))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(f"features={features!r}: expected numbers") from error
        require(
            len(known) == len(self.feature_names) and all(map(isfinite, known)),
            f"features={known}: expected {len(self.feature_names)} finite numbers, "
            f"those of feature_names={self.feature_names}",
        )
        if estimate_s is None:
            estimate_s = self.estimator.predict(kind, known)
        estimate_s = seconds("estimate_s", estimate_s)
        self.now_s = now_s
        self.counts.arrived += 1
        event = {
            "arrive": number, "kind": kind, "features": known,
            "slo_s": slo_s, "estimate_s": estimate_s,
        }  # fmt: skip
        if self.waiting >= self.most_waiting:
            self.counts.refused += 1
            self.counts.full += 1
            return self._say(event, Decided(refused=[number]))
        if self._is_hopeless(kind, slo_s, estimate_s):
            self.counts.refused += 1
            return self._say(event, Decided(refused=[number]))
        if self._next == len(self._number):
            self._make_room(self._known())
        i = self._next
        self._next += 1
        self._slot[number], self._number[i] = i, number
        self._about[number] = kind, known
        self._features[i] = known
        self._arrival_s[i], self._deadline_s[i] = now_s, now_s + slo_s
        memory = self._lookahead.memory
        memory.estimated_s[i] = estimate_s
        if len(memory.online.given):
            memory.online.given[i] = log(max(estimate_s, LEAST_S))
        self._open.append(i)
        if self.policy.batched and len(self._open) < self.batch_size:
            return self._say(event, Decided())
        self._close_batch()
        return self._say(event, self._ask())

    def end(self, number: int, now_s: float, *, failed: bool = False) -> Decided:
        """Record that the running request `number` was served or has `failed`.

        The time of a failed request teaches neither the estimator nor the policy.
        """
        now_s, i = self._time(now_s), self._place(number)
        require(self._runs(i), f"request {number} ends and has not started")
        self.now_s = now_s
        if failed:
            self.counts.failed += 1
            event = {"end": int(number), "failed": True}
            return self._say(event, self._ended(i, taught=False))
        took_s = float(now_s - self._state.start_s[i])
        self._learn(number, took_s)
        kind = self._about[number][0]
        least_s = min(took_s, self._shortest_s.pop(kind, (took_s, 0.0))[0])
        if len(self._shortest_s) == _KINDS:
            del self._shortest_s[next(iter(self._shortest_s))]
        self._shortest_s[kind] = least_s, least_s
        if now_s <= self._deadline_s[i]:
            self.counts.on_time += 1
        else:
            self.counts.late += 1
        return self._say({"end": int(number)}, self._ended(i))

    def leave(self, number: int, now_s: float) -> Decided:
        """Remove the request `number`, whose client has disconnected.

        Neither the estimator nor the policy learns from its time.
        """
        now_s, i = self._time(now_s), self._place(number)
        self.now_s = now_s
        self.counts.left += 1
        decided = Decided()
        if self._runs(i):
            decided = self._ended(i, taught=False)
        elif i in self._open:
            self._open.remove(i)
            self._forget(i)
        elif i in self._held:
            self._held = self._held[self._held != i]
            self._forget(i)
        else:  # it has its place in the queue, and gives it up when its turn comes
            self._gone.add(i)
        return self._say({"leave": int(number)}, decided)

    def look(self, now_s: float) -> Decided:
        """Decide again on waiting requests between events; close a batch that is due.

        `bid-price` rejects requests past their deadline.
        """
        self.now_s = self._time(now_s)
        if self._flush_due_s <= self.now_s:
            self._close_batch()
        decided = self._ask(late=True) if len(self._held) else Decided()
        if self.policy.control is not None:  # which asks nothing while no worker frees
            over = self._deadline_s[self._held] <= self.now_s
            decided.refused += self._reject(self._held[over])
            self._held = self._held[~over]
        return self._say({"look": True}, decided)

    # --- What can be seen -------------------------------------------------------
    def __contains__(self, number: int) -> bool:
        """Return whether request `number` waits or runs."""
        return number in self._slot

    @property
    def running(self) -> int:
        """Requests that run."""
        return int(np.count_nonzero(self._state.running != NONE))

    @property
    def waiting(self) -> int:
        """Requests that neither run nor have been rejected, and whose clients wait."""
        progress = self._state.progress
        queue = int(progress[READY] - progress[STARTED]) - len(self._gone)
        return len(self._open) + len(self._held) + queue

    @property
    def next_look_s(self) -> float:
        """Return when to call `look` without an event before it, or infinity.

        It is just after the next deadline, or when an incomplete batch is due.
        """
        look_s = self._deadline_s[self._held] + LOOK_S
        first_s = np.min(look_s, initial=np.inf, where=look_s > self.now_s)
        return float(min(first_s, self._flush_due_s))

    @property
    def _flush_due_s(self) -> float:
        if not self._open:
            return np.inf
        return self._arrival_s[self._open[0]] + min(self.flush_s, self.policy.flush_s)

    def wait_s(self) -> float:
        """Predict the wait of a request that arrives now: all work over all workers.

        A request that exceeds its prediction counts as half done.
        """
        if self.running < self.workers:
            return 0.0
        known = self._known()
        known = known[np.isnan(self._state.finish_s[known])]
        memory = self._lookahead.memory
        expected_s = memory.estimated_s[known]
        if len(memory.online.given):  # calibrate only when needed
            expected_s = all_corrected_s(memory.online, known)
        ran_s = np.nan_to_num(self.now_s - self._state.start_s[known])
        left_s = np.where(ran_s > expected_s, ran_s, expected_s - ran_s)
        return float(left_s.sum() / self.workers)

    def settings(self) -> dict[str, Any]:
        """Return the configuration that a replay needs."""
        return {
            "policy": self.policy.name, "own": self.own, "workers": self.workers,
            "slo_s": self.slo_s, "most_waiting": self.most_waiting,
            "feature_names": self.feature_names, "batch_size": self.batch_size,
            **({"flush_s": self.flush_s} if self.flush_s < np.inf else {}),
            **({"shortest_s": self.shortest_s} if self.shortest_s else {}),
        }  # fmt: skip

    def totals(self) -> dict[str, int]:
        """`Counts`, and how many run and wait at present."""
        return asdict(self.counts) | {"running": self.running, "waiting": self.waiting}

    # --- How it is decided ------------------------------------------------------
    def _close_batch(self) -> None:
        """Have the policy decide on who came since the last batch."""
        self._held = np.append(self._held, np.array(self._open, np.int64))
        self._open = []

    def _time(self, now_s: float) -> float:
        require(
            self.now_s <= now_s < np.inf,
            f"now_s={now_s}: expected a time that is finite and not before "
            f"{self.now_s}, the last one",
        )
        return float(now_s)

    def _is_hopeless(self, kind: str, slo_s: float, estimate_s: float) -> bool:
        """Return whether a new request could only explore: its SLO is too short."""
        if self.policy.control is None or slo_s >= estimate_s:
            return False
        if slo_s < self.shortest_s:
            return True
        least_s, bound_s = self._shortest_s.get(kind, (0.0, 0.0))
        if slo_s >= bound_s:
            return False
        self._shortest_s[kind] = least_s, _FADING * bound_s
        return True

    def _place(self, number: int) -> int:
        """The slot of request `number`."""
        require(
            number in self._slot,
            f"request {number} is not here: it has ended, or never came",
        )
        return self._slot[number]

    def _say(self, event: dict[str, Any], decided: Decided) -> Decided:
        if self.note is not None:
            events = {"start": decided.started, "refuse": decided.refused}
            events = {word: numbers for word, numbers in events.items() if numbers}
            try:
                self.note({"t": self.now_s} | event | events)
            except Exception:
                self.note = None
                _SAYS.exception("events are noted no more, and requests served on")
        return decided

    def _learn(self, number: int, took_s: float) -> None:
        try:
            self.estimator.learn(*self._about[number], took_s)
        except Exception:
            _SAYS.exception("nothing is learned of request %s, which is over", number)

    def _runs(self, i: int) -> bool:
        start_s, finish_s = self._state.start_s[i], self._state.finish_s[i]
        return bool(np.isnan(finish_s) and not np.isnan(start_s))

    def _ended(self, i: int, taught: bool = True) -> Decided:
        """Slot i is free of what ran; its worker takes the next, and others may too."""
        before = self._state.progress[STARTED]
        self._commit(i)
        started, untaught = self._begun(before)
        decided = Decided(started=started)
        untaught += [] if taught else [i]
        if untaught and self.policy.learns:  # as if they had never been
            known = self._known()
            self._make_room(known[~np.isin(known, untaught)])
        if len(self._held):
            more = self._ask()
            decided.started += more.started
            decided.refused += more.refused
        return decided

    def _commit(self, i: int) -> None:
        commit_by(self._decider, np.array([i]), self.now_s)
        self._forget(i)

    def _begun(self, before: int) -> tuple[list[int], list[int]]:
        """Return the numbers that started since, and slots of clients that left."""
        started, gone = [], []
        while before < self._state.progress[STARTED]:
            i = int(self._state.queue[before])
            before += 1
            if i in self._gone:
                self._gone.remove(i)
                gone.append(i)
                self._commit(i)
            else:
                started.append(int(self._number[i]))
        self.counts.started += len(started)
        return started, gone

    def _forget(self, i: int) -> None:
        number = int(self._number[i])
        del self._slot[number], self._about[number]

    def _ask(self, late: bool = False) -> Decided:
        """Ask the policy about held and new requests; if full, only about `late`."""
        state, ids = self._state, self._held
        flying, room = int(state.progress[LOGGED] - state.progress[COMMITTED]), len(ids)
        if self.policy.in_flight is not None:
            room = max(self.policy.in_flight - flying, 0)
        if room == 0 and not late:
            return Decided()
        try:
            decision = self._decision(ids)
            behind, released = decision.order[room:], decision.order[:room]
            held = decision.held  # which rise, of a compiled rule
            if len(behind) or self.policy.code is None:
                held = np.sort(np.concatenate([behind, held]), kind="stable")
            require(
                len(held) == 0 or flying + len(released) > 0,
                f"policy {self.policy.name!r} holds {len(held)} requests while the "
                "service idles: a rule must release or drop then",
            )
        except Exception as error:
            self._fall_back(str(error))
            return self._ask()
        before, self._held = state.progress[STARTED], held
        dispatch_by(self._decider, released, self.now_s)
        started, _ = self._begun(before)  # no request that the policy keeps is gone
        return Decided(started, self._reject(decision.dropped))

    def _reject(self, ids: I64) -> list[int]:
        """Numbers of the slots `ids`, which are free from now on."""
        refused = [int(self._number[i]) for i in ids]
        self.counts.refused += len(refused)
        for i in ids:
            self._forget(i)
        return refused

    def _decision(self, ids: I64) -> Decision:
        code, lookahead = self.policy.code, self._lookahead
        if code is None:  # a rule knows requests by their numbers, which stay
            batch = Batch(
                ids=self._number[ids],
                arrival_s=self._arrival_s[ids],
                deadline_s=self._deadline_s[ids],
                features=self._features[ids],
                feature_names=self.feature_names,
                keys=_no_keys(len(ids)),
            )
            by_slot: Any = SimpleNamespace(
                forecast=lambda _, now_s: lookahead.forecast(ids, now_s)
            )
            decision = decide(self.policy, by_slot, batch, self.now_s)
            return Decision(
                *(
                    np.array([self._slot[int(n)] for n in numbers], np.int64)
                    for numbers in (decision.order, decision.dropped, decision.held)
                )
            )
        if code.kind == FIFO:
            return Decision(order=ids, dropped=ids[:0])  # whatever a forecast would say
        return Decision(*decide_by(self._decider, ids, self.now_s))

    def _fall_back(self, fault: str) -> None:
        """Serve in order of arrival from now on, and say why."""
        self.fault = fault
        _SAYS.error("%s; requests are served first come, first served now", fault)
        fifo = policy("fifo", slo_s=self.slo_s, cores=self.workers)
        self.policy = at_hand(fifo, self.workers)
        self._close_batch()
        self._make_room(self._known())

    # --- Room for more ----------------------------------------------------------
    def _known(self) -> I64:
        """Return rising slots that wait, run, or ended and are not learned from."""
        memory, progress = self._lookahead.memory, self._state.progress
        pending, read = memory.counts[[PENDING, READ]]
        learning = self.policy.learns
        entries = np.arange(progress[LOGGED])
        if learning:
            entries = np.append(memory.pending[:pending], entries[read:])
        logged = self._state.log[entries]
        if not learning:
            logged = logged[np.isnan(self._state.finish_s[logged])]
        waiting = np.append(self._held, np.array(self._open, np.int64))
        return np.sort(np.append(logged, waiting))

    def _make_room(self, slots: I64) -> None:
        """Start new columns with the slots (k,) and all that was learned, once full."""
        k = len(slots)
        n = max(_ROOM, 2 * (k + 1))
        to = np.full(len(self._number), NONE)
        to[slots] = np.arange(k)

        def moved(column, fill):
            longer = np.full((n, *column.shape[1:]), fill, column.dtype)
            longer[:k] = column[slots]
            return longer

        state = idle_state(_no_keys(n), self.workers)
        if self._state is not None:
            _carry(self._state, state, slots, to)
        self._number = moved(self._number, NONE)
        self._arrival_s = moved(self._arrival_s, 0.0)
        self._deadline_s = moved(self._deadline_s, np.inf)
        self._features = moved(self._features, 0.0)
        self._slot = {number: int(to[i]) for number, i in self._slot.items()}
        self._gone = {int(to[i]) for i in self._gone}
        self._lookahead = self._look_ahead(state, moved)
        code = self.policy.code or Fifo(FIFO)  # no rule in Python has one
        memory, model = self._lookahead.memory, self._lookahead.model
        self._decider = decider(code, memory, model, state)
        self._open = [int(to[i]) for i in self._open]
        self._state, self._held, self._next = state, to[self._held], k

    def _look_ahead(self, state: State, moved: Callable[..., Any]) -> Any:
        """A look-ahead over `state` that knows what the one before it had learned."""
        lookahead = self.policy.make_lookahead(
            state, _no_keys(len(self._number)), np.zeros(len(self._number)),
            self._deadline_s, SPREAD, 0.0,
        )  # fmt: skip
        if self._lookahead is None:
            return lookahead
        old, new = self._lookahead.memory, lookahead.memory
        new.estimated_s[:] = moved(old.estimated_s, 0.0)
        if len(new.pending):
            uncommitted = int(state.progress[LOGGED])
            new.pending[:uncommitted] = np.arange(uncommitted)
            new.counts[[PENDING, READ]] = uncommitted
        if len(new.control) == len(old.control):
            new.control[:] = old.control
        if len(new.online.given) and len(old.online.given):
            for name in ("moments", "residuals", "fits", "doubts"):
                getattr(new.online, name)[:] = getattr(old.online, name)
            for name, fill in (("given", 0.0), ("asked_s", np.nan), ("probes", False)):
                getattr(new.online, name)[:] = moved(getattr(old.online, name), fill)
        return lookahead
