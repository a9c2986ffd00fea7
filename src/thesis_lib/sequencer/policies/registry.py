"""Policies of the sequencer: how to order, drop or hold the transactions of a batch.

A `Policy` is a compiled rule (`rules`) or a Python function, and its settings: full
batches or not, the look-ahead, and the most transactions past the sequencer. Each
defect of the thesis' policies can be corrected or put back alone (`Defects`).
"""

import inspect
import runpy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

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
from thesis_lib.sequencer.policies.decisions import decide_compiled
from thesis_lib.sequencer.policies.lookahead import Feedback, OpenLoop
from thesis_lib.sequencer.policies.parameters import (
    AS_PUBLISHED,
    CORRECTED,
    TIMER,
    Defects,
    LateBound,
    Machine,
    Parameters,
    QueueParameters,
    When,
)
from thesis_lib.sequencer.policies.rules import (
    OBSERVING,
    RULES,
    BidPrice,
    LateBinding,
    RuleCode,
    Thesis,
)

P = TypeVar("P")
OwnRule = Callable[[Batch, Forecast, float], Decision]  # a policy in plain Python
POLICIES = tuple(RULES)
THESIS = ("drop", "reorder", "hybrid")
WATCHING = tuple(n for n in RULES if isinstance(RULES[n].parameters, QueueParameters))


def rule_parameters(name: str, constants: Mapping[str, Any]) -> Parameters:
    """Return the parameters of the policy `name`, some of them replaced.

    Raises InvalidInput for a policy without parameters, and for a constant that it does
    not have or cannot take.
    """
    shipped: Any = RULES[choice("rule", name, RULES)].parameters
    known = shipped._asdict() if name == "bid-price" else asdict(shipped)
    for constant in constants:
        choice(f"constant of {name}", constant, known)
    return type(shipped)(**{**known, **constants})


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule, in plain Python or as `code`, and its surroundings.

    With `in_flight`, the sequencer releases only so many of a decision's `order` that
    at most `in_flight` transactions are released and uncommitted, holds the rest, and
    asks the rule again at the next commit: late binding under back-pressure. `flush_s`
    is a timer of its own beside that of the run.
    """

    name: str
    rule: OwnRule | None = None  # None: `code` decides
    code: RuleCode | None = None
    when: When = When.FULL_BATCH
    defects: Defects = AS_PUBLISHED  # of its look-ahead
    tolerance_s: float = np.inf  # see `lookahead.Feedback`
    in_flight: int | None = None
    flush_s: float = np.inf
    control: F64 | None = None  # what it remembers at first, if it learns

    @property
    def batched(self) -> bool:
        """Return whether it waits for whole batches."""
        return self.when is When.FULL_BATCH

    @property
    def learns(self) -> bool:
        """Return whether its decisions depend on what has committed."""
        observing = self.code is not None and self.code.kind in OBSERVING
        return self.control is not None or observing

    def make_lookahead(
        self, state: State, keys: KeySets, estimated_s: F64, deadline_s: F64,
        spread: float, lag_s: float, group: I64 | None = None,
    ) -> OpenLoop | Feedback:  # fmt: skip
        """The look-ahead that forecasts for it over a database observed in `state`.

        `group` (n,) says whose violations are compared with whose, all alike if None.
        """
        inputs = keys, estimated_s, deadline_s, spread
        ghosts, cpu = self.defects.ghosts, not self.defects.no_cpu
        if self.defects.no_feedback:
            return OpenLoop(
                *inputs, lag_s=lag_s, tolerance_s=self.tolerance_s, ghosts=ghosts,
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
            state, *inputs, lag_s, self.tolerance_s, cpu=cpu, ghosts=ghosts,
            control=self.control, group=group,
        )  # fmt: skip


def decide(
    policy: Policy, lookahead: OpenLoop | Feedback, batch: Batch, now_s: float
) -> Decision:
    """Return the decision of `policy` at `now_s` on a batch in order of arrival.

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
    """A rejection that says where in the user's own code `error` was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith((PACKAGE, "<frozen"))]
    at = ([f for f in theirs if f.filename == theirs[0].filename] or frames)[-1]
    where = f" ({at.filename}, line {at.lineno}: {at.line})" if at.line else ""
    return InvalidInput(
        f"policy {name!r} raised {type(error).__name__}: {error}{where}"
    )


PACKAGE = str(Path(__file__).parents[3] / "thesis_")  # the start of our packages


def own_rule(name: str) -> OwnRule:
    """Return the function that FILE.py:FUNCTION names.

    The file is run anew each time, so what its module remembers begins anew. Raises
    InvalidInput for another name that is no policy, for a file that cannot be run and
    for what is not a function of a batch, its forecast and the time.
    """
    if ".py:" not in name:
        choice("policy", name, POLICIES)
    file, _, called = name.rpartition(":")
    require(Path(file).is_file(), f"policy {name!r}: there is no file {file}")
    try:
        module = runpy.run_path(file, run_name=called)
    except (Exception, SystemExit) as error:
        raise _blamed(name, error) from error
    functions = {
        key: value
        for key, value in module.items()
        if inspect.isfunction(value) and value.__module__ == called
    }
    function = functions[choice(f"a function of {file}", called, functions)]
    try:
        inspect.signature(function).bind("batch", "forecast", "now_s")
    except TypeError as error:
        raise InvalidInput(
            f"policy {name!r}: expected a function of (batch, forecast, now_s): {error}"
        ) from error
    return function


def policy(
    name: str | OwnRule,
    *,
    slo_s: float,
    cores: int,
    lag_s: float = 0.0,
    params: Parameters | None = None,
) -> Policy:
    """Return a policy for a machine and an SLO.

    Args:
        name: One of `POLICIES`, FILE.py:FUNCTION, or a function (below).
        slo_s: SLO in seconds, which constants of rules are shares of.
        cores: Number of workers.
        lag_s: Seconds from a decision to the booking of its locks.
        params: Parameters of the class of the default, `RULES[name].parameters`. A
            function takes the `flight` of a `LateBound`.

    Raises:
        InvalidInput: If the name is unknown or a value is out of range.

    A function `rule(batch, forecast, now_s)` is a policy too. It gets the ids,
    arrivals, deadlines, features and keys of a batch in order of arrival, and the
    `Forecast` of each transaction as if it were released next. It returns
    `batch.decide(...)`: positions in the order to run them, and a mask of those to
    drop; the rest is held. It runs at every arrival and, if it holds any, at commits.

    Example:
        >>> from thesis_lib.sequencer import POLICIES, policy
        >>> policy("bid-price", slo_s=0.0125, cores=8).name in POLICIES
        True
        >>> def shortest_first(batch, forecast, now_s):
        ...     order, drop = forecast.service_s.argsort(), forecast.p_on_time < 0.5
        ...     return batch.decide(order, drop)
        >>> from thesis_lib.sequencer import SystemConfig, scenario, simulate
        >>> trace = scenario("A", n=40, seed=1)
        >>> own = policy(shortest_first, slo_s=0.001, cores=1)
        >>> system = SystemConfig(cores=1, slo_s=0.001)
        >>> history = simulate(trace, own, trace.service_s, system)
        >>> int(history.violated.sum()), int(history.dropped.sum())
        (19, 19)
    """
    require(0 < slo_s < np.inf, f"slo_s={slo_s:g} must be positive and finite")
    require_count("cores", cores)
    require(0 <= lag_s < np.inf, f"lag_s={lag_s:g} must be finite and not negative")
    machine = Machine(slo_s, cores, lag_s)
    if not isinstance(name, str):
        require(callable(name), f"policy={name!r}: expected a name or a function")
        return _own(str(getattr(name, "__name__", name)), name, machine, params)
    if name not in RULES:
        return _own(name, own_rule(name), machine, params)
    return _named(name, machine, _checked(name, params, RULES[name].parameters))


def _named(name: str, on: Machine, params: Parameters) -> Policy:
    """Return the policy of a row of RULES with these parameters."""
    rule = RULES[name]
    code = rule.code(on, params)
    defects = CORRECTED if rule.observes else AS_PUBLISHED
    in_flight, flush_s, control, tolerance_s = None, np.inf, None, np.inf
    if isinstance(code, LateBinding | BidPrice):
        tolerance_s = -np.inf  # each is forecast as if it were released next
    elif isinstance(code, Thesis) and code.drops:
        tolerance_s = code.allowance_s
    if isinstance(params, Defects):
        defects, flush_s = params, np.inf if params.no_timer else TIMER * on.slo_s
    elif isinstance(params, BidPriceParameters):
        control = initial_state(on.slo_s, params.groups)
        in_flight = 2 * on.cores if on.lag_s == 0 else None
    elif isinstance(params, LateBound):
        in_flight = on.places(params.flight)
    elif isinstance(params, QueueParameters) and rule.when is When.ARRIVAL_AND_COMMIT:
        in_flight = on.places(params.depth)
    return Policy(
        name, code=code, when=rule.when, defects=defects, flush_s=flush_s,
        tolerance_s=tolerance_s, in_flight=in_flight, control=control,
    )  # fmt: skip


def _own(
    name: str, rule: OwnRule, machine: Machine, params: Parameters | None
) -> Policy:
    """Return a rule in plain Python as a policy that binds late."""
    bound = _checked(name, params, LateBound())
    return Policy(
        name, rule, when=When.ARRIVAL_AND_COMMIT, defects=CORRECTED,
        tolerance_s=-np.inf, in_flight=machine.places(bound.flight),
    )  # fmt: skip


def _checked(name: str, params: Parameters | None, shipped: P) -> P:
    """Return `params` of the policy `name`, or those shipped."""
    if params is None:
        return shipped
    kind = type(shipped)
    if not isinstance(params, kind):
        raise InvalidInput(
            f"params of policy {name!r} must be {kind.__name__}, got "
            f"{type(params).__name__}. Leave them out, or pass a {kind.__name__}."
        )
    if isinstance(params, BidPriceParameters):
        require(
            params.exploration_period > 0,
            f"exploration_period must be positive, got {params.exploration_period:g}.",
        )
        require(params.gap >= 0, f"gap must be at least 0, got {params.gap:g}.")
        require_count("groups", params.groups)
    return params
