"""The simulator as an environment of gymnasium, in which a policy can be learned.

A step is a decision, an episode a run. What a learner sees of a batch and what its
answer means are `observe` and `decide_by`; `scored` makes a policy of whatever was
learned, which decides the same and runs wherever a named one does.

Towers et al., "Gymnasium: A Standard Interface for Reinforcement Learning
Environments", 2024.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from thesis_lib.common.errors import InvalidInput, require, require_count, vector
from thesis_lib.sequencer.core.trace import F64, Batch, Decision, Forecast, Trace
from thesis_lib.sequencer.policies.parameters import LateBound
from thesis_lib.sequencer.policies.registry import OwnRule, policy
from thesis_lib.sequencer.simulator.simulator import Run, SystemConfig, begin

try:
    import gymnasium
    from gymnasium.spaces import Box
except ModuleNotFoundError as error:
    raise InvalidInput(
        "an environment to learn in needs the package gymnasium; install it with: "
        'pip install "thesis-lib[learn]"'
    ) from error

Episode = Callable[[int], tuple[Trace, F64]]  # seed -> transactions, estimates (n,)
Scores = Callable[[F64], F64]  # what is seen (window, 5) -> (window,) in [-1, 1]
# What is seen of each that waits. Times are shares of its objective.
SEEN = ("is_there", "waited", "service", "slack", "p_on_time")
WINDOW = 32  # transactions that are seen of those that wait


def observe(batch: Batch, forecast: Forecast, now_s: float, window: int) -> F64:
    """What is SEEN of the first `window` of a batch, (window, 5); zeros behind them."""
    seen, few = np.zeros((window, len(SEEN))), slice(window)
    arrival_s, deadline_s = batch.arrival_s[few], batch.deadline_s[few]
    columns = (
        np.ones(len(arrival_s)),
        (now_s - arrival_s) / (deadline_s - arrival_s),
        forecast.service_s[few] / (deadline_s - arrival_s),
        (deadline_s - forecast.finish_s[few]) / (deadline_s - arrival_s),
        forecast.p_on_time[few],
    )
    seen[: len(arrival_s)] = np.stack(columns, axis=1)
    return seen


def decide_by(scores: F64, batch: Batch) -> Decision:
    """Drop whose score is negative, and run the others, highest first.

    `scores` (window,) are those of the first of a batch; who comes behind them runs in
    order of arrival, after them.
    """
    score = np.zeros(len(batch))
    few = min(len(scores), len(batch))
    score[:few] = scores[:few]
    behind = np.arange(len(batch)) >= few
    return batch.decide(np.lexsort((-score, behind)), score < 0)


def _checked(scores: Any, window: int) -> F64:
    return vector("scores", scores, np.float64, window)


def scored(scores: Scores, window: int = WINDOW) -> OwnRule:
    """The policy that decides by what `scores` says of what it observes."""
    require_count("window", window)

    def rule(batch: Batch, forecast: Forecast, now_s: float) -> Decision:
        said = scores(observe(batch, forecast, now_s, window))
        return decide_by(_checked(said, window), batch)

    return rule


class SequencerEnv(gymnasium.Env):
    """Decisions of one run after the other, each of an `episode`.

    `episode(seed)` draws transactions with their arrivals, and estimates (n,) in
    seconds. They meet `cores` behind an objective `slo_s`; at most `flight` for each
    core are past the sequencer at once, as with any policy of one's own, and `options`
    are other fields of `SystemConfig`. An observation is `observe`, (window, 5); an
    action is a score for each place in it, (window,) in [-1, 1], as for `decide_by`.
    The reward is minus the violations since the decision before, so an episode returns
    minus all of its violations, and ends with its `History` in `info`. Raises
    InvalidInput for bad parameters, for an action of another shape or that is not
    finite, and for a step outside an episode.

    >>> from thesis_lib.sequencer import scenario
    >>> from environment import SequencerEnv
    >>> def episode(seed):
    ...     trace = scenario("A", n=40, seed=seed)
    ...     return trace, trace.service_s
    >>> env = SequencerEnv(episode, cores=1, slo_s=0.001, window=4)
    >>> seen, _ = env.reset(seed=1)
    >>> seen.shape, seen[:, 0].tolist()
    ((4, 5), [1.0, 0.0, 0.0, 0.0])
    >>> done, returned = False, 0.0
    >>> while not done:
    ...     seen, reward, done, _, info = env.step(seen[:, 4])  # the likeliest first
    ...     returned += reward
    >>> int(returned), int(info["history"].violated.sum())
    (-21, 21)
    """

    def __init__(
        self, episode: Episode, *, cores: int, slo_s: float, window: int = WINDOW,
        flight: float = LateBound().flight, **options: Any,
    ) -> None:  # fmt: skip
        require_count("window", window)
        self.episode, self.window = episode, window
        self.system = SystemConfig(cores=cores, slo_s=slo_s, **options)
        # Its rule is never called: the agent decides.
        self.policy = policy(
            scored(lambda seen: seen[:, 0], window),
            slo_s=slo_s, cores=cores, params=LateBound(flight),
        )  # fmt: skip
        self.observation_space = Box(
            -np.inf, np.inf, (window, len(SEEN)), dtype=np.float64
        )
        self.action_space = Box(-1.0, 1.0, (window,), dtype=np.float64)
        self._trace: Trace
        self._run: Run
        self._batch: Batch | None = None
        self._violations = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[F64, dict[str, Any]]:
        """Begin an episode: what is seen at its first decision."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31))
        self._trace, estimated_s = self.episode(drawn)
        require(len(self._trace) > 0, f"episode({drawn}) has no transactions")
        self._run = begin(self._trace, self.policy, estimated_s, self.system)
        self._violations = 0
        return self._next(), {}

    def step(self, action: Any) -> tuple[F64, float, bool, bool, dict[str, Any]]:
        """Decide: what is seen next, the reward, and whether that was all."""
        require(self._batch is not None, "no episode has begun, or it is over: reset")
        assert self._batch is not None
        self._run.carry_out(decide_by(_checked(action, self.window), self._batch))
        seen = self._next()
        before, state = self._run.before, self._run.state
        late = state.finish_s > before.deadline_s  # not of whom has not ended: NaN
        now = int(np.count_nonzero(late | before.dropped))
        reward, self._violations = float(self._violations - now), now
        over = self._batch is None
        info = {"history": self._run.history()} if over else {}
        return seen, reward, over, False, info

    def _next(self) -> F64:
        asked = self._run.ask(self._trace)
        if asked is None:
            self._batch = None
            return np.zeros((self.window, len(SEEN)))
        self._batch, now_s = asked
        forecast = self._run.lookahead.forecast(self._batch.ids, now_s)
        return observe(self._batch, forecast, now_s, self.window)
