"""What a sequencer does with a batch: order it, drop from it, hold some back.

A `Policy` is a rule and what the rule needs around it: whether it waits for whole
batches, which look-ahead forecasts for it, and how many transactions it allows past the
sequencer at once. Rules are compiled, each once (`rules`); what they see is
the batch, its forecast and the time. A policy of one's own is a function in plain
Python, which simulator and live engine ask instead.

The thesis' three policies have defects; each can be corrected or put back alone
(`Defects`).
"""

import inspect
import runpy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thesis_lib.common.errors import InvalidInput, choice, require, require_count
from thesis_lib.sequencer.core.events import State
from thesis_lib.sequencer.core.trace import (
    F64,
    I64,
    Batch,
    Decision,
    Forecast,
    KeySets,
)
from thesis_lib.sequencer.policies.admission import (
    BidPriceParameters,
    group_count,
    initial_state,
)
from thesis_lib.sequencer.policies.lookahead import Feedback, OpenLoop
from thesis_lib.sequencer.policies.rules import (
    BANDED,
    BREAKWATER,
    CAP,
    CINNAMON,
    CODEL,
    EDF,
    ENVOY,
    FIFO,
    GRADIENT,
    KEY_CAP,
    LATE,
    LIFO,
    OBSERVING,
    OURS,
    RANDOM,
    SHORT,
    SJF,
    SLACK,
    BidPrice,
    Code,
    Fifo,
    LateBinding,
    Thesis,
    Undirected,
    decide_compiled,
)

Rule = Callable[[Batch, Forecast, float], Decision]  # a policy in plain Python

BAND = 0.2  # error band of the thesis over its objective: 2.5 ms of 12.5 ms
# Of the simpler designs with late binding (chapter 3), the best for each in scenario A,
# with and without a dispatch delay, on design seeds. `bid-price` has
# `BidPriceParameters`.
LATE_BOUND = {  # transactions past the sequencer for each core, and the probability of
    "late-edf": (3.0, 0.999),  # being on time below which it drops
    "late-sjf": (4.0, 0.99),
    "least-slack": (10.0, 0.999),
    "startable-first": (2.0, 0.999),
    "late-demote": (2.0, 0.999),
}


class QueueParameters(NamedTuple):
    """Constants of the rules that watch a queue, the best in scenario A as well.

    Times are shares of the objective.
    """

    room: float = 0.3  # work of all cores that `queue-cap` lets into the system
    target: float = 0.25  # of the wait in `codel`
    interval: float = 0.0125  # in which `codel` judges it
    depth: float = 3.0  # past a queue for each core: with fewer, locks idle the cores
    patience: float = 0.75  # most that one waits in `adaptive-lifo`,
    standing: float = 0.5  # and once its queue has not been empty for that long
    delay: float = 0.5  # of the queue that `breakwater` aims at
    credit: float = 1.0  # in which it renews its credits
    window: float = 0.25  # in which `envoy` counts
    gradient: float = 1.0  # in which `gradient2` renews its limit
    writers: int = 3  # in front of a lock: `lock-queue-cap`
    cycle: float = 0.0625  # in which `cinnamon` renews the share that it refuses
    gain: float = 0.3  # of its last error,
    sum_gain: float = 0.3  # and of the sum of all
    places: float = 4.0  # for each core, of which it counts the free ones


def rule_options(name: str, constants: Mapping[str, float]) -> dict[str, Any]:
    """Return the options of `policy` that give the rule `name` these constants.

    Args:
        name: one of LATE_BOUND or WATCHING.
        constants: `flight` and `least_p` of the former, fields of QueueParameters of
            the latter.

    Raises:
        InvalidInput: for another rule, or a constant that it does not have.
    """
    choice("rule", name, [*LATE_BOUND, *WATCHING])
    known = ("flight", "least_p") if name in LATE_BOUND else QueueParameters._fields
    for constant in constants:
        choice(f"constant of {name}", constant, known)
    if name in LATE_BOUND:
        return {**constants}
    return {"terms": QueueParameters()._replace(**constants)}


TIMER = 0.04  # share of the objective after which a corrected policy flushes a batch


@dataclass(frozen=True, slots=True)
class Defects:
    """What the thesis' policies leave out, each to be corrected or put back alone."""

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


AS_PUBLISHED = Defects(*[True] * len(Defects.names()))
CORRECTED = Defects()
AT_ONCE: dict[str, Any] = {"batched": False, "defects": CORRECTED}


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule, in plain Python or as `code`, and its surroundings.

    With `in_flight`, the sequencer releases only so many of a decision's `order` that
    at most `in_flight` transactions are released and uncommitted, holds the rest, and
    asks the rule again at the next commit: late binding under back-pressure. `flush_s`
    is a timer of its own beside that of the run.
    """

    name: str
    rule: Rule | None = None  # None: `code` decides
    code: Code | None = None
    batched: bool = True  # waits for whole batches
    defects: Defects = AS_PUBLISHED  # of its look-ahead
    tolerance_s: float = np.inf  # see `lookahead.Feedback`
    in_flight: int | None = None
    flush_s: float = np.inf
    control: F64 | None = None  # what it remembers at first, if it learns

    @property
    def late(self) -> bool:
        """It binds late: what cannot start yet is held and decided on again."""
        return self.in_flight is not None or self.control is not None

    @property
    def learns(self) -> bool:
        """What has committed changes what it decides."""
        observing = self.code is not None and self.code.kind in OBSERVING
        return self.control is not None or observing

    def make_lookahead(
        self, state: State, keys: KeySets, estimated_s: F64, deadline_s: F64,
        spread: float, lag_s: float, group: I64 | None = None,
    ) -> OpenLoop | Feedback:  # fmt: skip
        """The look-ahead that forecasts for it over a database observed in `state`.

        `group` (n,) says whose violations are compared with whose, all alike if None.
        """
        given = keys, estimated_s, deadline_s, spread
        ghosts, cpu = self.defects.ghosts, not self.defects.no_cpu
        if self.defects.no_feedback:
            return OpenLoop(
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
        return Feedback(
            state, *given, lag_s, self.tolerance_s, cpu=cpu, ghosts=ghosts,
            control=self.control, group=group,
        )  # fmt: skip


def decide(
    policy: Policy, lookahead: OpenLoop | Feedback, batch: Batch, now_s: float
) -> Decision:
    """What `policy` does at `now_s` with a batch in order of arrival.

    Raises InvalidInput for a rule in Python whose decision does not partition it.
    """
    if policy.rule is None:
        assert policy.code is not None
        return Decision(
            *decide_compiled(
                policy.code, lookahead.memory, lookahead.model, batch.ids, now_s
            )
        )
    ids = batch.ids.copy()  # a rule may write into what it is given
    forecast = lookahead.forecast(batch.ids, now_s)
    try:
        decision = policy.rule(batch, forecast, now_s)
    except Exception as error:
        raise _blamed(policy.name, error) from error
    require(
        isinstance(decision, Decision),
        f"policy {policy.name!r} answered with {type(decision).__name__}: expected a "
        "Decision, such as `batch.decide(order, dropped)` makes",
    )
    return decision.partition_of(ids, policy.name)


def _blamed(name: str, error: BaseException) -> InvalidInput:
    """A refusal that says where in the user's own code `error` was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith((PACKAGE, "<frozen"))]
    at = ([f for f in theirs if f.filename == theirs[0].filename] or frames)[-1]
    where = f" ({at.filename}, line {at.lineno}: {at.line})" if at.line else ""
    return InvalidInput(
        f"policy {name!r} raised {type(error).__name__}: {error}{where}"
    )


PACKAGE = str(Path(__file__).parents[3] / "thesis_")  # the start of our packages
ENTRY_POINTS = "thesis_lib.policies"  # the group of packages that bring policies


def own_rule(name: str) -> Rule:
    """The function that `name` stands for: of FILE.py:FUNCTION, or of an entry point.

    A file is run anew each time, so what its module remembers begins anew. Raises
    InvalidInput for an unknown name, for a file that cannot be run and for what is no
    function of a batch, its forecast and the time.
    """
    try:
        if ".py:" not in name:
            brought = entry_points(group=ENTRY_POINTS)
            choice("policy", name, [*POLICIES, *brought.names])
            return _rule_of(name, brought[name].load())
        file, _, called = name.rpartition(":")
        require(Path(file).is_file(), f"policy {name!r}: there is no file {file}")
        made = runpy.run_path(file, run_name=called)
    except InvalidInput:
        raise
    except (Exception, SystemExit) as error:
        raise _blamed(name, error) from error
    has = {
        key: value
        for key, value in made.items()
        if inspect.isfunction(value) and value.__module__ == called
    }
    return _rule_of(name, has[choice(f"a function of {file}", called, has)])


def _rule_of(name: str, function: Any) -> Rule:
    try:
        inspect.signature(function).bind("batch", "forecast", "now_s")
    except TypeError as error:
        raise InvalidInput(
            f"policy {name!r}: expected a function of (batch, forecast, now_s): {error}"
        ) from error
    return function


THESIS = ("drop", "reorder", "hybrid")
WATCHING = (
    "queue-cap", "lock-queue-cap", "codel", "adaptive-lifo", "breakwater", "envoy",
    "cinnamon", "gradient2",
)  # fmt: skip
POLICIES = (
    "fifo", *THESIS, *(f"{name}-corrected" for name in THESIS), "fifo-batched",
    "random-drop", *WATCHING, "headroom", "edf", "sjf", "late-edf", "late-sjf",
    "least-slack", "startable-first", "late-demote", "bid-price",
)  # fmt: skip


def policy(
    name: str | Rule,
    *,
    slo_s: float,
    cores: int,
    lag_s: float = 0.0,
    band_s: float | None = None,
    drop_share: float = 0.1,
    seed: int = 0,
    flight: float | None = None,
    least_p: float | None = None,
    defects: Defects | None = None,
    gap: float = np.inf,
    groups: int = 1,
    terms: BidPriceParameters | QueueParameters | None = None,
) -> Policy:
    """The policy of this name for a machine with `cores` and an objective `slo_s`.

    `band_s` is the error band of the thesis, by default a fifth of the objective
    (2.5 ms of 12.5 ms). `drop_share` is read by random-drop alone, `seed` by it, by
    envoy and by cinnamon; `flight` (transactions past the sequencer for each core) and
    `least_p` (below which probability of being on time a transaction is dropped) by the
    simpler policies with late binding, whose defaults are in `LATE_BOUND`. `terms`
    replaces the configuration of `bid-price`, or as QueueParameters that of a rule that
    watches a queue. With `gap`, `bid-price` keeps the violations of each of `groups` of
    transactions, as a share of them, within so much of the smallest share. `defects`
    replaces all (`drop`, `reorder`, `hybrid`) or none (the same `-corrected`) of the
    thesis' defects. Raises InvalidInput for an unknown name, for values out of range,
    and for defects or terms of a policy that has none.

    >>> from thesis_lib.sequencer import POLICIES, policy
    >>> policy("bid-price", slo_s=0.0125, cores=8).name in POLICIES
    True

    A function is a policy of one's own: `rule(batch, forecast, now_s)` sees ids,
    arrivals, deadlines, features and keys of a batch in order of arrival, and the
    `Forecast` of each, and answers with `batch.decide`: positions in the order in which
    to run them, and a mask of those to drop; the rest is held. Like late-edf it is
    asked at every arrival and, for what it holds, at every commit; each is forecast as
    if it were released next; and `flight` bounds what is released. It runs wherever a
    named one does, live too, at the speed of Python. FILE.py:FUNCTION names one, and
    so does an entry point of the group `thesis_lib.policies`.

    >>> def shortest_first(batch, forecast, now_s):
    ...     return batch.decide(forecast.service_s.argsort(), forecast.p_on_time < 0.5)
    >>> from thesis_lib.sequencer import scenario, simulate
    >>> trace = scenario("A", n=40, seed=1)
    >>> own = policy(shortest_first, slo_s=0.001, cores=1)
    >>> history = simulate(trace, own, trace.service_s, cores=1, slo_s=0.001)
    >>> int(history.violated.sum()), int(history.dropped.sum())
    (19, 19)
    """
    if not isinstance(name, str):
        require(callable(name), f"policy={name!r}: expected a name or a function")
        own, called = name, str(getattr(name, "__name__", name))
    elif (called := name) in POLICIES:
        own = None
    else:
        own = own_rule(name)
    require(0 < slo_s < np.inf, f"slo_s={slo_s:g} must be positive and finite")
    require_count("cores", cores)
    require(0 <= lag_s < np.inf, f"lag_s={lag_s:g} must be finite and not negative")
    require(0 <= drop_share <= 1, f"drop_share={drop_share:g} must lie in [0, 1]")
    best_flight, best_p = LATE_BOUND.get(called, LATE_BOUND["late-edf"])
    flight = best_flight if flight is None else flight
    least_p = best_p if least_p is None else least_p
    require(0 <= least_p <= 1, f"least_p={least_p:g} must lie in [0, 1]")
    require(0 < flight < np.inf, f"flight={flight:g} must be positive and finite")
    require(gap >= 0, f"gap={gap:g} must not be negative")
    require_count("groups", groups)
    require(
        called == "bid-price" or gap == np.inf,
        f"policy {called!r} has no gap: only 'bid-price' has",
    )
    takes = BidPriceParameters if called == "bid-price" else QueueParameters
    require(
        terms is None
        or (called in ("bid-price", *WATCHING) and isinstance(terms, takes)),
        f"terms={terms!r}: 'bid-price' takes BidPriceParameters, a rule that watches a "
        f"queue QueueParameters, and {called!r} not these",
    )
    if isinstance(terms, QueueParameters):
        for given, value in terms._asdict().items():
            require(0 < value < np.inf, f"terms: {given}={value:g} must be positive")
    elif terms is not None:
        require(terms.probe > 0, f"terms: probe={terms.probe:g} must be positive")
    band = BAND * slo_s if band_s is None else band_s
    require(band >= 0, f"band_s={band:g} must not be negative")
    base = called.removesuffix("-corrected")
    if own is None and base in THESIS:
        if defects is None:
            defects = AS_PUBLISHED if called == base else CORRECTED
        return _thesis(called, base, band, TIMER * slo_s, defects)
    require(
        defects is None,
        f"policy {called!r} has none of the thesis' defects: leave `defects` out, or "
        f"choose one of {', '.join(THESIS)}",
    )
    if called in WATCHING:
        given = terms if isinstance(terms, QueueParameters) else QueueParameters()
        return _watching(called, slo_s, cores, seed, given)
    late = AT_ONCE | {
        "tolerance_s": -np.inf, "in_flight": max(1, round(flight * cores)),
    }  # fmt: skip
    if own is not None:
        return Policy(called, own, **late)
    likely = LateBinding(LATE, least_p=least_p)
    priced = terms if isinstance(terms, BidPriceParameters) else BidPriceParameters()
    code, surroundings = {
        "fifo": (Fifo(FIFO), {"batched": False}),
        "fifo-batched": (Fifo(FIFO), {}),
        "random-drop": (Undirected(RANDOM, share=drop_share, seed=seed), {}),
        "edf": (Undirected(EDF), {}),
        "sjf": (Undirected(SJF), {}),
        "headroom": (Thesis(BANDED, drops=True), AT_ONCE | {"tolerance_s": 0.0}),
        "late-edf": (likely, late),
        "late-sjf": (likely._replace(kind=SHORT), late),
        "least-slack": (likely._replace(kind=SLACK), late),
        "startable-first": (likely._replace(slack_s=lag_s), late),
        "late-demote": (likely._replace(slack_s=lag_s, cores=cores), late),
        "bid-price": (
            BidPrice(OURS, terms=priced._replace(gap=gap)),
            late
            | {
                "in_flight": 2 * cores if lag_s == 0 else None,
                "control": initial_state(slo_s, groups),
            },
        ),
    }[called]
    return Policy(called, code=code, **surroundings)


def _watching(
    name: str, slo_s: float, cores: int, seed: int, given: QueueParameters
) -> Policy:
    """A rule that watches a queue: at its end, at its front, or in front of locks."""
    past = max(1, round(given.depth * cores))
    code = {
        "queue-cap": Undirected(CAP, room_s=given.room * slo_s * cores),
        "lock-queue-cap": Undirected(KEY_CAP, most=given.writers),
        "codel": Undirected(
            CODEL, spare_s=(1 - given.target) * slo_s,
            interval_s=given.interval * slo_s,
        ),
        "adaptive-lifo": Undirected(
            LIFO, most=past, interval_s=given.patience * slo_s,
            spare_s=(1 - given.patience) * slo_s,
            standing_s=(1 - given.standing) * slo_s,
        ),
        "breakwater": Undirected(
            BREAKWATER, cores=cores, target_s=given.delay * slo_s,
            interval_s=given.credit * slo_s,
        ),
        "envoy": Undirected(ENVOY, seed=seed, interval_s=given.window * slo_s),
        "cinnamon": Undirected(
            CINNAMON, seed=seed, most=max(1, round(given.places * cores)),
            interval_s=given.cycle * slo_s, gains=(given.gain, given.sum_gain),
        ),
        "gradient2": Undirected(
            GRADIENT, cores=cores, interval_s=given.gradient * slo_s
        ),
    }[name]  # fmt: skip
    held = past if name in ("codel", "adaptive-lifo") else None
    return Policy(name, code=code, in_flight=held, **AT_ONCE)


def _thesis(
    name: str, base: str, band_s: float, flush_s: float, defects: Defects
) -> Policy:
    drops, moves = base != "reorder", base != "drop"
    fresh = moves and not defects.stale
    allowance_s = band_s if defects.allowance else 0.0
    return Policy(
        name,
        code=Thesis(BANDED, drops, moves, defects.band, fresh, band_s, allowance_s),
        defects=defects,
        tolerance_s=allowance_s if drops else np.inf,
        flush_s=np.inf if defects.no_timer else flush_s,
    )
