"""The shadow schedule: when would each transaction of a batch commit?

Both shadows chain estimates along the declared keys, as the operating-unit model
does: a transaction starts when its conflicting predecessors are predicted to have
ended and ends one estimated service later. `Published` does it as the thesis
describes; `Mended` corrects what that leaves out.
"""

from math import erf, sqrt
from typing import Any, Protocol

import numpy as np
from numba import njit

from thesis_lib.sequencer.kernel import LOGGED, State
from thesis_lib.sequencer.locktable import NONE
from thesis_lib.sequencer.trace import F64, I64, Forecast, KeySets


class Shadow(Protocol):
    """Forecasts a batch; what it remembers between batches is its own affair."""

    def forecast(self, ids: I64, now_s: float) -> Forecast: ...


@njit(cache=True)
def _free_at(keys, i, exclusive_end_s, shared_end_s, at_least_s):
    """When every lock of i is predicted to be free, at the earliest `at_least_s`."""
    free_s = at_least_s
    for request in range(keys[0][i], keys[0][i + 1]):
        key = keys[1][request]
        free_s = max(free_s, exclusive_end_s[key])
        if keys[2][request]:
            free_s = max(free_s, shared_end_s[key])
    return free_s


@njit(cache=True)
def _register(keys, i, finish_s, exclusive_end_s, shared_end_s):
    for request in range(keys[0][i], keys[0][i + 1]):
        key = keys[1][request]
        if keys[2][request]:
            exclusive_end_s[key] = max(exclusive_end_s[key], finish_s)
        else:
            shared_end_s[key] = max(shared_end_s[key], finish_s)


@njit(cache=True)
def _published(keys, ids, estimated_s, now_s, exclusive_end_s, shared_end_s):
    finish_s = np.empty(len(ids))
    for at in range(len(ids)):
        i = ids[at]
        start_s = _free_at(keys, i, exclusive_end_s, shared_end_s, now_s)
        finish_s[at] = start_s + estimated_s[i]
        _register(keys, i, finish_s[at], exclusive_end_s, shared_end_s)
    return finish_s


@njit(cache=True)
def _take_core(core_free_s, ready_s, service_s):
    """Run on the core that idles least before `ready_s`; return the finish."""
    best = 0
    for core in range(1, len(core_free_s)):
        a, b = core_free_s[core], core_free_s[best]
        if (a > b and a <= ready_s) or (a < b and b > ready_s):
            best = core
    core_free_s[best] = max(core_free_s[best], ready_s) + service_s
    return core_free_s[best]


@njit(cache=True)
def _mended(
    keys, ids, deadline_s, estimated_s, now_s, lag_s, tolerance_s, oldest,
    state, exclusive_end_s, shared_end_s, core_free_s,
):  # fmt: skip
    log, logged = state.log, state.progress[LOGGED]
    while oldest < logged and not np.isnan(state.finish_s[log[oldest]]):
        oldest += 1
    for core in range(len(core_free_s)):
        i = state.running[core]
        core_free_s[core] = now_s
        if i != NONE:
            core_free_s[core] = max(now_s, state.start_s[i] + estimated_s[i])
            _register(keys, i, core_free_s[core], exclusive_end_s, shared_end_s)
    for at in range(oldest, logged):
        i = log[at]
        if np.isnan(state.start_s[i]):
            at_least_s = max(now_s, state.dispatch_s[at])
            ready_s = _free_at(keys, i, exclusive_end_s, shared_end_s, at_least_s)
            end_s = _take_core(core_free_s, ready_s, estimated_s[i])
            _register(keys, i, end_s, exclusive_end_s, shared_end_s)
    finish_s = np.empty(len(ids))
    spare = core_free_s.copy()
    for at in range(len(ids)):
        i = ids[at]
        ready_s = _free_at(keys, i, exclusive_end_s, shared_end_s, now_s + lag_s)
        spare[:] = core_free_s
        finish_s[at] = _take_core(spare, ready_s, estimated_s[i])
        if finish_s[at] <= deadline_s[i] + tolerance_s:
            core_free_s[:] = spare
            _register(keys, i, finish_s[at], exclusive_end_s, shared_end_s)
    # Forget everything: the next forecast starts from what is observed then.
    for at in range(oldest, logged):
        for request in range(keys[0][log[at]], keys[0][log[at] + 1]):
            exclusive_end_s[keys[1][request]] = 0.0
            shared_end_s[keys[1][request]] = 0.0
    for i in ids:
        for request in range(keys[0][i], keys[0][i + 1]):
            exclusive_end_s[keys[1][request]] = 0.0
            shared_end_s[keys[1][request]] = 0.0
    return finish_s, oldest


@njit(cache=True)
def probability_on_time(
    finish_s: F64, deadline_s: F64, now_s: float, spread: float
) -> F64:
    """P(finish <= deadline) where the time left is normal with this relative spread.

    All (b,). A spread of 0 trusts the forecast: the probability is 0 or 1.
    """
    on_time = np.empty(len(finish_s))
    for at in range(len(finish_s)):
        slack_s = deadline_s[at] - finish_s[at]
        scale_s = spread * (finish_s[at] - now_s)
        if scale_s > 0:
            on_time[at] = 0.5 * (1 + erf(slack_s / scale_s / sqrt(2)))
        else:
            on_time[at] = 1.0 if slack_s >= 0 else 0.0
    return on_time


def _forecast(shadow: Any, ids: I64, finish_s: F64, now_s: float) -> Forecast:
    deadline_s = shadow.deadline_s[ids]
    return Forecast(
        service_s=shadow.estimated_s[ids],
        finish_s=finish_s,
        p_on_time=probability_on_time(finish_s, deadline_s, now_s, shadow.spread),
    )


class Published:
    """The shadow schedule as the thesis has it.

    Every transaction that is forecast registers for good, in order of arrival,
    whether it is then dropped or moved. Observed commits correct nothing, and cores
    are taken to be free.
    """

    def __init__(
        self, keys: KeySets, estimated_s: F64, deadline_s: F64, spread: float
    ) -> None:
        self.keys = (keys.offsets, keys.keys, keys.exclusive)
        self.estimated_s, self.deadline_s = estimated_s, deadline_s
        self.spread = spread
        self.exclusive_end_s = np.zeros(keys.n_keys)
        self.shared_end_s = np.zeros(keys.n_keys)

    def forecast(self, ids: I64, now_s: float) -> Forecast:
        """Forecast `ids` (b,), in order of arrival, and remember all of them."""
        finish_s = _published(
            self.keys, ids, self.estimated_s, now_s,
            self.exclusive_end_s, self.shared_end_s,
        )  # fmt: skip
        return _forecast(self, ids, finish_s, now_s)


class Mended:
    """A shadow schedule made anew at every decision from what is observed.

    Observed are the log, starts and commits; never a service time. Only what is in
    the log and has not committed counts, in log order, and it shares the cores. In
    the batch, a transaction delays those behind it if it is itself forecast to end
    by its deadline + `tolerance_s`: infinity counts all, minus infinity none, which
    forecasts each as if it were released next.
    """

    def __init__(
        self, state: State, keys: KeySets, estimated_s: F64, deadline_s: F64,
        spread: float, lag_s: float, tolerance_s: float,
    ) -> None:  # fmt: skip
        self.state = state
        self.keys = (keys.offsets, keys.keys, keys.exclusive)
        self.estimated_s, self.deadline_s = estimated_s, deadline_s
        self.spread, self.lag_s, self.tolerance_s = spread, lag_s, tolerance_s
        self.exclusive_end_s = np.zeros(keys.n_keys)
        self.shared_end_s = np.zeros(keys.n_keys)
        self.core_free_s = np.zeros(len(state.running))
        self.oldest = 0  # log position before which everything has committed

    def forecast(self, ids: I64, now_s: float) -> Forecast:
        """Forecast `ids` (b,), to be dispatched in that order after the lag."""
        finish_s, self.oldest = _mended(
            self.keys, ids, self.deadline_s, self.estimated_s, now_s, self.lag_s,
            self.tolerance_s, self.oldest, self.state,
            self.exclusive_end_s, self.shared_end_s, self.core_free_s,
        )  # fmt: skip
        return _forecast(self, ids, finish_s, now_s)
