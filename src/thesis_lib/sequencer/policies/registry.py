"""What a sequencer does with a batch: order it, drop from it, hold some back.

Each rule is a pure function of what may be seen of the batch, its forecast and the
time. A `Policy` says beside its rule what the rule needs around it: whether it waits
for whole batches, which shadow schedule forecasts for it, and how many transactions
it allows past the sequencer at once. The thesis' three have defects; each can be
mended or put back alone (`Defects`).

The rules are the definition. What the simulator runs compiled, `decide_compiled`, makes
the same decisions bit for bit, which a test compares.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from math import sqrt
from typing import NamedTuple

import numpy as np
from numba import njit

from thesis_lib.common.errors import choice, require
from thesis_lib.sequencer.core.events import State
from thesis_lib.sequencer.core.trace import (
    F64,
    I64,
    Batch,
    Bool,
    Decision,
    Forecast,
    KeySets,
)
from thesis_lib.sequencer.policies.admission import (
    Terms,
    bind_late,
    group_count,
    ranked,
    starting,
)
from thesis_lib.sequencer.policies.lookahead import (
    Memory,
    Mended,
    Model,
    Published,
    Shadow,
    in_flight,
    probability_on_time,
    schedule,
)

Rule = Callable[[Batch, Forecast, float], Decision]
Remembering = Callable[[Batch, Forecast, float, F64], Decision]  # `Memory.control`
Order = Callable[[Batch, Forecast], I64]  # positions of the whole batch

BAND = 0.2  # error band of the thesis over its objective: 2.5 ms of 12.5 ms
# Of the simpler designs with late binding (chapter 3); `Terms` are those of `ours`.
FLIGHT = 1.25  # transactions past the sequencer for each core
LEAST_P = 0.8  # dropped below this probability of being on time

# Of the baselines, shares of the objective, chosen on design seeds as well.
QUEUE = 0.5  # work of all cores that `queue-cap` lets into the system
TARGET, INTERVAL = 0.25, 0.1  # of `codel`
DEPTH = 2.0  # transactions past `codel` for each core: with fewer, locks idle the cores

TIMER = 0.04  # share of the objective after which a mended policy flushes a batch


@dataclass(frozen=True, slots=True)
class Defects:
    """What the thesis' policies leave out, each to be mended or put back alone."""

    ghosts: bool = False  # what is dropped stays registered
    no_feedback: bool = False  # predicted ends are never corrected by observed commits
    stale: bool = False  # estimates in order of arrival, though the batch is reordered
    no_cpu: bool = False  # every transaction is taken to have a core of its own
    no_timer: bool = False  # a batch is flushed only when it is full
    band: bool = False  # critical is |predicted - deadline| < band, not least slack
    allowance: bool = False  # dropped only if predicted a band after its deadline
    cut_tail: bool = False  # the estimator is fitted without the tail of its labels

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The defects by name."""
        return tuple(field.name for field in fields(cls))


AS_DESCRIBED = Defects(*[True] * len(Defects.names()))
MENDED = Defects()


class Code(NamedTuple):
    """A rule as numbers, for `decide_compiled`."""

    kind: int
    drops: bool = False
    moves: bool = False
    band: bool = False  # moves by band, else by least slack
    fresh: bool = False  # forecasts again in the new order
    band_s: float = 0.0
    allowance_s: float = 0.0
    share: float = 0.0
    seed: int = 0
    least_p: float = 0.0
    slack_s: float = np.inf  # what waits longer for a lock goes last
    cores: int = 0  # demotes what so many cannot bring home in time; 0 is nothing
    room_s: float = 0.0  # of `queue_cap`
    spare_s: float = 0.0  # of `codel`
    interval_s: float = 0.0  # of `codel`
    terms: Terms = Terms()  # of `ours`


# Kinds of code, and positions in what `queue_cap` and `codel` remember.
FIFO, RANDOM, BANDED, EDF, SJF, LATE, SLACK, SHORT, CAP, CODEL, OURS = range(11)
SEEN, TOTAL = range(2)
ABOVE, NEXT, COUNT, DROPPING = range(4)


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule and its surroundings.

    With `first`, the batch is brought into that order, by a forecast in order of
    arrival, before it is forecast for the rule. With `in_flight`, the sequencer
    releases only so many of a decision's `order` that at most `in_flight` transactions
    are released and uncommitted, holds the rest, and asks the rule again at the next
    commit: late binding under back-pressure. `flush_s` is a timer of its own beside
    that of the run. With `code`, the simulator decides without Python. A rule that is
    `remembering` is also handed an array that lasts as long as the run.
    """

    name: str
    rule: Rule | None  # None: `code` alone decides
    batched: bool = True
    defects: Defects = AS_DESCRIBED  # of its shadow
    tolerance_s: float = np.inf  # see shadow.Mended
    in_flight: int | None = None
    first: Order | None = None
    flush_s: float = np.inf
    code: Code | None = None
    remembering: Remembering | None = None  # in the place of `rule`
    control: F64 | None = None  # what it remembers at first, if it learns

    @property
    def late(self) -> bool:
        """It binds late: what cannot start yet is held and decided on again."""
        return self.in_flight is not None or self.rule is None

    def make_shadow(
        self, state: State, keys: KeySets, estimated_s: F64, deadline_s: F64,
        spread: float, lag_s: float, group: I64 | None = None,
    ) -> Published | Mended:  # fmt: skip
        """The shadow that forecasts for it over a database observed in `state`.

        `group` (n,) says whose violations are compared with whose, all alike if None.
        """
        given = keys, estimated_s, deadline_s, spread
        ghosts, cpu = self.defects.ghosts, not self.defects.no_cpu
        if self.defects.no_feedback:
            return Published(
                *given, lag_s=lag_s, tolerance_s=self.tolerance_s, ghosts=ghosts,
                cores=len(state.running) if cpu else None,
            )  # fmt: skip
        if self.control is None or group_count(self.control) == 1:
            group = None
        elif group is not None and len(group):
            require(
                int(np.max(group)) < group_count(self.control),
                f"group {np.max(group)}: policy {self.name!r} was made for "
                f"{group_count(self.control)} groups",
            )
        return Mended(
            state, *given, lag_s, self.tolerance_s, cpu=cpu, ghosts=ghosts,
            control=self.control, group=group,
        )  # fmt: skip


def decide(policy: Policy, shadow: Shadow, batch: Batch, now_s: float) -> Decision:
    """What `policy` does at `now_s` with a batch in order of arrival."""
    if policy.rule is None:
        assert policy.code is not None
        parts = decide_compiled(
            policy.code, shadow.memory, shadow.model, batch.ids, now_s
        )
        return Decision(*parts)
    if policy.first is not None:
        batch = batch.take(policy.first(batch, shadow.peek(batch.ids, now_s)))
    forecast = shadow.forecast(batch.ids, now_s)
    if policy.remembering is not None:
        return policy.remembering(batch, forecast, now_s, shadow.control)
    return policy.rule(batch, forecast, now_s)


def _keep(batch: Batch, order: I64, dropped: Bool) -> Decision:
    """Drop where told; run the others in `order`, positions of the whole batch."""
    kept = order[~dropped[order]]
    return Decision(order=batch.ids[kept], dropped=batch.ids[dropped])


def fifo(batch: Batch, forecast: Forecast, now_s: float) -> Decision:
    """Arrival order, nothing dropped."""
    return Decision(order=batch.ids, dropped=batch.ids[:0])


def drop(
    batch: Batch, forecast: Forecast, now_s: float, allowance_s: float
) -> Decision:
    """Drop what is forecast to end more than `allowance_s` after its deadline."""
    late = forecast.finish_s > batch.deadline_s + allowance_s
    return _keep(batch, np.arange(len(batch)), late)


def critical_first(batch: Batch, forecast: Forecast, band_s: float) -> I64:
    """First what is forecast to end within `band_s` of its deadline."""
    critical = np.abs(forecast.finish_s - batch.deadline_s) < band_s
    return np.argsort(~critical, kind="stable")


def least_slack_first(batch: Batch, forecast: Forecast, band_s: float) -> I64:
    """By the time left between forecast end and deadline; the hopeless go last.

    Hopeless is what is forecast to end more than `band_s` after its deadline.
    """
    hopeless = forecast.finish_s > batch.deadline_s + band_s
    return np.lexsort((batch.deadline_s - forecast.finish_s, hopeless))


def reorder(
    batch: Batch, forecast: Forecast, now_s: float, band_s: float,
    order: Callable[[Batch, Forecast, float], I64] = critical_first,
) -> Decision:  # fmt: skip
    """Move what is critical to the front."""
    moved = order(batch, forecast, band_s)
    return _keep(batch, moved, np.zeros(len(batch), bool))


def hybrid(
    batch: Batch, forecast: Forecast, now_s: float, band_s: float, allowance_s: float,
    order: Callable[[Batch, Forecast, float], I64] = critical_first,
) -> Decision:  # fmt: skip
    """Drop the hopeless, then move what is critical to the front."""
    late = forecast.finish_s > batch.deadline_s + allowance_s
    return _keep(batch, order(batch, forecast, band_s), late)


def edf(batch: Batch, forecast: Forecast, now_s: float) -> Decision:
    """Earliest deadline first within the batch."""
    order = np.argsort(batch.deadline_s, kind="stable")
    return _keep(batch, order, np.zeros(len(batch), bool))


def sjf(batch: Batch, forecast: Forecast, now_s: float) -> Decision:
    """Shortest estimated service first within the batch."""
    order = np.argsort(forecast.service_s, kind="stable")
    return _keep(batch, order, np.zeros(len(batch), bool))


def random_drop(
    batch: Batch, forecast: Forecast, now_s: float, share: float, seed: int
) -> Decision:
    """Drop each transaction with probability `share`, whatever its forecast.

    Pure: the coin of a transaction depends on `seed` and its id alone.
    """
    coin = np.array([_coin(seed, i) for i in batch.ids.tolist()])
    return _keep(batch, np.arange(len(batch)), coin < share)


def late_edf(
    batch: Batch, forecast: Forecast, now_s: float, least_p: float
) -> Decision:
    """Drop what can hardly be on time any more; the rest by deadline."""
    hopeless = forecast.p_on_time < least_p
    return _keep(batch, np.argsort(batch.deadline_s, kind="stable"), hopeless)


def least_slack(
    batch: Batch, forecast: Forecast, now_s: float, least_p: float
) -> Decision:
    """As `late_edf`, but by the latest time to start: deadline less estimate."""
    hopeless = forecast.p_on_time < least_p
    latest_s = batch.deadline_s - forecast.service_s
    return _keep(batch, np.argsort(latest_s, kind="stable"), hopeless)


def late_sjf(
    batch: Batch, forecast: Forecast, now_s: float, least_p: float
) -> Decision:
    """As `late_edf`, but the shortest estimated service first."""
    hopeless = forecast.p_on_time < least_p
    return _keep(batch, np.argsort(forecast.service_s, kind="stable"), hopeless)


@njit(cache=True)
def _admitted(control: F64, service_s: F64, in_flight: int, room_s: float) -> int:
    """How many `queue_cap` lets in; `control` (4,), their mean so far, is changed."""
    control[SEEN] += len(service_s)
    control[TOTAL] += service_s.sum()
    admitted = 0
    while admitted < len(service_s) and (
        in_flight + admitted == 0
        or (in_flight + admitted + 1) * control[TOTAL] <= room_s * control[SEEN]
    ):
        admitted += 1
    return admitted


def queue_cap(
    batch: Batch, forecast: Forecast, now_s: float, control: F64 | None = None, *,
    room_s: float,
) -> Decision:  # fmt: skip
    """Arrival order; refuse whoever finds the system full.

    Full are `room_s`, in seconds of one core, over the mean estimate of all that came
    so far: by Little's law a cap on latency at any load, if cores are what is short.
    `control` (4,) remembers the mean, and is changed; without, it starts.
    """
    order = np.arange(len(batch))
    remembered = np.zeros(4) if control is None else control
    fits = _admitted(remembered, forecast.service_s, forecast.in_flight, room_s)
    return _keep(batch, order, order >= fits)


@njit(cache=True)
def _controlled(
    control: F64, left_s: F64, now_s: float, spare_s: float, interval_s: float
) -> int:
    """How many of the front of a queue `codel` drops; `control` (4,) is changed."""
    front = 0
    while True:
        above = front < len(left_s) and left_s[front] < spare_s
        if not above:
            control[ABOVE] = 0.0
        elif control[ABOVE] == 0:
            control[ABOVE] = now_s + interval_s
        if not above or now_s < control[ABOVE]:
            control[DROPPING] = 0.0
            return front
        if control[DROPPING] == 0:
            again = now_s - control[NEXT] < interval_s
            control[COUNT] = max(control[COUNT] - 2, 1.0) if again else 1.0
            control[DROPPING], control[NEXT] = 1.0, now_s
        elif now_s < control[NEXT]:
            return front
        else:
            control[COUNT] += 1
        control[NEXT] += interval_s / sqrt(control[COUNT])
        front += 1


def codel(
    batch: Batch, forecast: Forecast, now_s: float, control: F64 | None = None, *,
    spare_s: float, interval_s: float,
) -> Decision:  # fmt: skip
    """Arrival order; drop from the front while it has waited too long for too long.

    A transaction has waited beyond the target when less than `spare_s` of its
    objective is left. Once every one that came to the front in `interval_s` had, one is
    dropped, and the next `interval_s` over the square root of their number later, until
    one had not. One decision is one look at the front. `control` (4,) is what it
    remembers, and changes; without, it starts. Nichols and Jacobson, ACM Queue 10(5),
    2012, with the latency objective in the place of a round trip.
    """
    order = np.arange(len(batch))
    remembered = np.zeros(4) if control is None else control
    left_s = batch.deadline_s - now_s
    front = _controlled(remembered, left_s, now_s, spare_s, interval_s)
    return _keep(batch, order, order < front)


def startable_first(
    batch: Batch, forecast: Forecast, now_s: float, least_p: float, slack_s: float
) -> Decision:
    """As `late_edf`, but what would wait more than `slack_s` for a lock goes last."""
    hopeless = forecast.p_on_time < least_p
    waits = forecast.finish_s - forecast.service_s > now_s + slack_s
    return _keep(batch, np.lexsort((batch.deadline_s, waits)), hopeless)


@njit(cache=True)
def _demote(deadline_s: F64, service_s: F64, now_s: float, cores: int) -> Bool:
    """Moore and Hodgson on one machine as fast as all cores; (b,) who loses.

    `deadline_s` rises. Whenever a deadline would be missed, the longest so far goes.
    """
    loses = np.zeros(len(deadline_s), np.bool_)
    end_s = now_s
    for at in range(len(deadline_s)):
        end_s += service_s[at] / cores
        if end_s > deadline_s[at]:
            longest = -1
            for other in range(at + 1):
                if not loses[other] and (
                    longest < 0 or service_s[other] > service_s[longest]
                ):
                    longest = other
            loses[longest] = True
            end_s -= service_s[longest] / cores
    return loses


def late_demote(
    batch: Batch,
    forecast: Forecast,
    now_s: float,
    least_p: float,
    slack_s: float,
    cores: int,
) -> Decision:
    """Release first what can start now and need not be sacrificed.

    The hopeless are dropped. Of the rest, those that an optimal selection for a
    single machine of the speed of all cores would give up (Moore and Hodgson) are
    demoted behind the others, but kept while there is hope; among equals, what need
    not wait for a lock goes first, then the earliest deadline.
    """
    hopeless = forecast.p_on_time < least_p
    edd = np.argsort(batch.deadline_s, kind="stable")
    edd = edd[~hopeless[edd]]
    loses = np.zeros(len(batch), bool)
    loses[edd] = _demote(batch.deadline_s[edd], forecast.service_s[edd], now_s, cores)
    waits = forecast.finish_s - forecast.service_s > now_s + slack_s
    return _keep(batch, np.lexsort((batch.deadline_s, waits, loses)), hopeless)


THESIS = ("drop", "reorder", "hybrid")
POLICIES = (
    "fifo", *THESIS, *(f"{name}-fixed" for name in THESIS),
    "fifo-batched", "random-drop", "queue-cap", "codel", "edf", "sjf", "late-edf",
    "late-sjf", "least-slack", "startable-first", "late-demote", "ours",
)  # fmt: skip


def policy(
    name: str,
    *,
    slo_s: float,
    cores: int,
    lag_s: float = 0.0,
    band_s: float | None = None,
    drop_share: float = 0.1,
    seed: int = 0,
    flight: float = FLIGHT,
    least_p: float = LEAST_P,
    defects: Defects | None = None,
    gap: float = np.inf,
    groups: int = 1,
    terms: Terms | None = None,
) -> Policy:
    """The policy of this name for a machine with `cores` and an objective `slo_s`.

    `band_s` is the error band of the thesis, by default a fifth of the objective
    (2.5 ms of 12.5 ms). `drop_share` and `seed` are read by random-drop alone;
    `flight` (transactions past the sequencer for each core) and `least_p` (below
    which probability of being on time a transaction is dropped) by the simpler policies
    with late binding. `terms` replaces the configuration of `ours`; with `gap` it keeps
    the violations of each of `groups` of transactions, as a share of them, within so
    much of the smallest share.
    `defects` replaces all (`drop`, `reorder`, `hybrid`) or none (the same `-fixed`) of
    the thesis' defects. Raises InvalidInput for an unknown name, for values out of
    range, and for defects of a policy that has none.

    >>> from thesis_lib.sequencer import POLICIES, policy
    >>> policy("ours", slo_s=0.0125, cores=8).name in POLICIES
    True
    """
    choice("policy", name, POLICIES)
    require(slo_s > 0, f"slo_s={slo_s:g} must be positive")
    require(cores >= 1, f"cores={cores}: expected at least 1")
    require(0 <= drop_share <= 1, f"drop_share={drop_share:g} must lie in [0, 1]")
    require(0 <= least_p <= 1, f"least_p={least_p:g} must lie in [0, 1]")
    require(flight > 0, f"flight={flight:g} must be positive")
    require(gap >= 0, f"gap={gap:g} must not be negative")
    require(groups >= 1, f"groups={groups}: expected at least 1")
    require(
        name == "ours" or (gap == np.inf and terms is None),
        f"policy {name!r} has neither a gap nor terms: only 'ours' has",
    )
    band = BAND * slo_s if band_s is None else band_s
    require(band >= 0, f"band_s={band:g} must not be negative")
    base = name.removesuffix("-fixed")
    if base in THESIS:
        if defects is None:
            defects = AS_DESCRIBED if name == base else MENDED
        return _thesis(name, base, band, TIMER * slo_s, defects)
    require(
        defects is None,
        f"policy {name!r} has none of the thesis' defects: leave `defects` out, or "
        f"choose one of {', '.join(THESIS)}",
    )
    match name:
        case "fifo":
            return Policy(name, fifo, batched=False, code=Code(FIFO))
        case "fifo-batched":
            return Policy(name, fifo, code=Code(FIFO))
        case "random-drop":
            rule = partial(random_drop, share=drop_share, seed=seed)
            return Policy(name, rule, code=Code(RANDOM, share=drop_share, seed=seed))
        case "edf":
            return Policy(name, edf, code=Code(EDF))
        case "sjf":
            return Policy(name, sjf, code=Code(SJF))
        case "queue-cap":
            rule = partial(queue_cap, room_s=QUEUE * slo_s * cores)
            return Policy(
                name, rule, batched=False, defects=MENDED, remembering=rule,
                code=Code(CAP, room_s=QUEUE * slo_s * cores),
            )  # fmt: skip
        case "codel":
            spare_s, interval_s = (1 - TARGET) * slo_s, INTERVAL * slo_s
            rule = partial(codel, spare_s=spare_s, interval_s=interval_s)
            return Policy(
                name, rule, batched=False, defects=MENDED, remembering=rule,
                in_flight=max(1, round(DEPTH * cores)),
                code=Code(CODEL, spare_s=spare_s, interval_s=interval_s),
            )  # fmt: skip
        case "least-slack":
            rule = partial(least_slack, least_p=least_p)
            code = Code(SLACK, least_p=least_p)
        case "late-sjf":
            rule = partial(late_sjf, least_p=least_p)
            code = Code(SHORT, least_p=least_p)
        case "late-edf":
            rule = partial(late_edf, least_p=least_p)
            code = Code(LATE, least_p=least_p)
        case "startable-first":
            rule = partial(startable_first, least_p=least_p, slack_s=lag_s)
            code = Code(LATE, least_p=least_p, slack_s=lag_s)
        case "ours":
            terms = (Terms() if terms is None else terms)._replace(gap=gap)
            return Policy(
                name, None, batched=False, defects=MENDED, tolerance_s=-np.inf,
                in_flight=2 * cores if lag_s == 0 else None,
                code=Code(OURS, terms=terms), control=starting(slo_s, groups),
            )  # fmt: skip
        case _:
            rule = partial(late_demote, least_p=least_p, slack_s=lag_s, cores=cores)
            code = Code(LATE, least_p=least_p, slack_s=lag_s, cores=cores)
    return Policy(
        name,
        rule,
        batched=False,
        defects=MENDED,
        tolerance_s=-np.inf,
        in_flight=max(1, round(flight * cores)),
        code=code,
    )


def _thesis(
    name: str, base: str, band_s: float, flush_s: float, defects: Defects
) -> Policy:
    drops, moves = base != "reorder", base != "drop"
    fresh = moves and not defects.stale
    by = critical_first if defects.band else least_slack_first
    allowance_s = band_s if defects.allowance else 0.0
    if drops and moves and not fresh:
        rule = partial(hybrid, band_s=band_s, allowance_s=allowance_s, order=by)
    elif drops:
        rule = partial(drop, allowance_s=allowance_s)
    else:
        rule = fifo if fresh else partial(reorder, band_s=band_s, order=by)
    return Policy(
        name,
        rule,
        defects=defects,
        tolerance_s=allowance_s if drops else np.inf,
        first=partial(by, band_s=band_s) if fresh else None,
        flush_s=np.inf if defects.no_timer else flush_s,
        code=Code(BANDED, drops, moves, defects.band, fresh, band_s, allowance_s),
    )


# --- The same, compiled ------------------------------------------------------
@njit(cache=True)
def _coin(seed, i):
    """The coin of `random_drop`, in [0, 1)."""
    mixed = np.uint64(i) + np.uint64(seed)
    mixed = (mixed + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.float64(mixed >> np.uint64(11)) / 2.0**53


@njit(cache=True)
def _moved(finish_s, deadline_s, code):
    """`critical_first` or `least_slack_first`: positions, stable."""
    order = np.empty(len(finish_s), np.int64)
    if code.band:
        front = 0
        for critical in (True, False):
            for at in range(len(finish_s)):
                if (abs(finish_s[at] - deadline_s[at]) < code.band_s) == critical:
                    order[front] = at
                    front += 1
        return order
    hopeless = finish_s > deadline_s + code.band_s
    return ranked(hopeless.astype(np.int64), deadline_s - finish_s)


@njit(cache=True)
def _late(memory, model, ids, now_s, code):
    """`late_edf`, `startable_first`, `late_demote`: in order, and who is hopeless."""
    b = len(ids)
    finish_s = schedule(memory, model, ids, now_s, True)
    deadline_s, service_s = memory.deadline_s[ids], memory.estimated_s[ids]
    on_time = probability_on_time(finish_s, deadline_s, now_s, model.spread)
    hopeless = on_time < code.least_p
    edd = ranked(np.zeros(b, np.int64), deadline_s)
    edd = edd[~hopeless[edd]]
    rank = np.zeros(b, np.int64)
    if code.cores > 0:
        loses = _demote(deadline_s[edd], service_s[edd], now_s, code.cores)
        rank[edd[loses]] = 2
    for at in edd:
        if finish_s[at] - service_s[at] > now_s + code.slack_s:
            rank[at] += 1
    order = np.empty(len(edd), np.int64)
    front = 0
    for turn in range(4):
        for at in edd:
            if rank[at] == turn:
                order[front] = at
                front += 1
    return order, hopeless


@njit(cache=True)
def decide_compiled(
    code: Code, memory: Memory, model: Model, ids: I64, now_s: float
) -> tuple[I64, I64, I64]:
    """`decide` for a policy with `code`: what is ordered, dropped, and held."""
    none = ids[:0]
    if code.kind == OURS:
        order, refused = bind_late(code.terms, memory, model, ids, now_s)
        held = ~refused
        held[order] = False
        return ids[order], ids[refused], ids[held]
    if code.kind == FIFO:
        return ids, none, none
    b = len(ids)
    if code.kind in (EDF, SJF):
        by = memory.deadline_s if code.kind == EDF else memory.estimated_s
        return ids[ranked(np.zeros(b, np.int64), by[ids])], none, none
    if code.kind == CAP:
        front = _admitted(
            memory.control, memory.estimated_s[ids], in_flight(memory), code.room_s
        )
        return ids[:front], ids[front:], none
    if code.kind == CODEL:
        left_s = memory.deadline_s[ids] - now_s
        front = _controlled(
            memory.control, left_s, now_s, code.spare_s, code.interval_s
        )
        return ids[front:], ids[:front], none
    if code.kind in (SLACK, SHORT):
        finish_s = schedule(memory, model, ids, now_s, True)
        deadline_s, by = memory.deadline_s[ids], memory.estimated_s[ids]
        on_time = probability_on_time(finish_s, deadline_s, now_s, model.spread)
        hopeless = on_time < code.least_p
        latest_s = deadline_s - by if code.kind == SLACK else by
        order = ranked(np.zeros(b, np.int64), latest_s)
        return ids[order[~hopeless[order]]], ids[hopeless], none
    if code.kind == LATE:
        order, hopeless = _late(memory, model, ids, now_s, code)
        return ids[order], ids[hopeless], none
    late = np.zeros(b, np.bool_)
    if code.kind == RANDOM:
        for at in range(b):
            late[at] = _coin(code.seed, ids[at]) < code.share
    else:
        if code.fresh:
            finish_s = schedule(memory, model, ids, now_s, False)
            ids = ids[_moved(finish_s, memory.deadline_s[ids], code)]
        finish_s = schedule(memory, model, ids, now_s, True)
        deadline_s = memory.deadline_s[ids]
        if code.drops:
            late[:] = finish_s > deadline_s + code.allowance_s
        if code.moves and not code.fresh:
            order = _moved(finish_s, deadline_s, code)
            ids, late = ids[order], late[order]
    return ids[~late], ids[late], none
