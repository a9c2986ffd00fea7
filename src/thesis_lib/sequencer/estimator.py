"""Estimators of a transaction's own service time, from its features alone.

`fit` may read the service times of the past; `predict` sees a `Batch`, which has
none. What waiting adds to a service time is the shadow schedule's part.
"""

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from thesis_lib.checks import InvalidInput, choice, require, vector
from thesis_lib.sequencer.trace import F64, Batch, Trace
from thesis_lib.sequencer.workload import mean_one_lognormal

T = TypeVar("T")
SHORTEST_S = 1e-7  # one tick of the collector's clock; logarithms need a positive time


class LatencyEstimator(Protocol):
    """A learned guess of service times."""

    @property
    def name(self) -> str: ...

    def fit(self, trace: Trace) -> Self:
        """Learn from transactions that have finished; returns itself."""
        ...

    def predict(self, batch: Batch) -> F64:
        """(b,) service times in seconds, each > 0."""
        ...


class Constant:
    """The mean service time of the past, for every transaction."""

    name = "constant"

    def __init__(self) -> None:
        self.mean_s: float | None = None

    def fit(self, trace: Trace) -> Self:
        """Learn the mean."""
        self.mean_s = float(_past(trace).mean())
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        return np.full(len(batch), _fitted(self.mean_s, self.name))


class Linear:
    """Ridge regression of log service time on standardised features.

    A product of factors, so an estimate is always positive; it estimates the
    geometric mean, which under scatter lies below the mean.
    """

    name = "linear"

    def __init__(self, penalty: float = 1.0) -> None:
        require(penalty > 0, f"penalty={penalty:g} must be positive")
        self.penalty = penalty
        self.model: Pipeline | None = None

    def fit(self, trace: Trace) -> Self:
        """Learn one factor for each feature."""
        log_s = np.log(_past(trace))
        model = make_pipeline(StandardScaler(), Ridge(alpha=self.penalty))
        self.model = model.fit(trace.features, log_s)
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        model = _fitted(self.model, self.name)
        return np.exp(model.predict(_features(batch, model)))


class SumMax:
    """One random forest for each operating unit; their sum is the service time.

    The sum of the thesis' sum-max estimate. Its maximum, over the predicted ends of
    conflicting predecessors, is taken by the shadow schedule, which knows them. Time
    that no unit claims is a unit of its own, or the sum would fall short.
    """

    name = "sum-max"

    def __init__(self, seed: int = 0, trees: int = 30, leaf: int = 10) -> None:
        require(
            trees >= 1 and leaf >= 1,
            f"trees={trees} and leaf={leaf} must be at least 1",
        )
        self.seed, self.trees, self.leaf = seed, trees, leaf
        self.forests: list[RandomForestRegressor] | None = None

    def fit(self, trace: Trace) -> Self:
        """Learn every unit."""
        rest_s = _past(trace) - trace.units_s.sum(axis=1)
        # Forests compare variances, which for microseconds sink to rounding errors.
        self.scale_s = float(trace.service_s.mean())
        self.forests = [
            RandomForestRegressor(
                n_estimators=self.trees,
                min_samples_leaf=self.leaf,
                max_features=0.5,
                random_state=self.seed,
            ).fit(trace.features, unit_s / self.scale_s)
            for unit_s in (*trace.units_s.T, rest_s)
            if np.any(unit_s > 0)
        ]
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        forests = _fitted(self.forests, self.name)
        features = _features(batch, forests[0])
        total = np.sum([forest.predict(features) for forest in forests], axis=0)
        return np.maximum(total * self.scale_s, SHORTEST_S)


class Boosted:
    """Gradient-boosted trees on log service time.

    It estimates the geometric mean, as `Linear` does. Deterministic: no early
    stopping, hence no validation split drawn from the past.
    """

    name = "boosted"

    def __init__(self, seed: int = 0, rounds: int = 150) -> None:
        require(rounds >= 1, f"rounds={rounds}: expected at least 1")
        self.seed, self.rounds = seed, rounds
        self.model: HistGradientBoostingRegressor | None = None

    def fit(self, trace: Trace) -> Self:
        """Grow the trees."""
        log_s = np.log(_past(trace))
        self.centre = float(log_s.mean())
        model = HistGradientBoostingRegressor(
            max_iter=self.rounds,
            learning_rate=0.08,
            max_leaf_nodes=31,
            min_samples_leaf=30,
            early_stopping=False,  # pyright: ignore[reportArgumentType]
            random_state=self.seed,
        )
        with one_thread():
            self.model = model.fit(trace.features, log_s - self.centre)
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        model = _fitted(self.model, self.name)
        with one_thread():
            return np.exp(self.centre + model.predict(_features(batch, model)))


class Oracle:
    """The true service times of `trace`, read by id: a reference, not an estimator."""

    name = "oracle"

    def __init__(self, trace: Trace) -> None:
        self.service_s = trace.service_s

    def fit(self, trace: Trace) -> Self:
        """Nothing to learn."""
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        require(
            len(batch) == 0 or int(batch.ids.max()) < len(self.service_s),
            f"the {self.name} knows {len(self.service_s)} transactions, not those of "
            "this batch: build it from the trace that is judged",
        )
        return self.service_s[batch.ids]


class Noisy(Oracle):
    """The truth times a mean-one lognormal: misestimation of a known size.

    One factor for each transaction of `trace`, drawn once. The median q-error of
    factors of sigma s is exp(0.674 s) around their median.
    """

    name = "noisy"

    def __init__(self, trace: Trace, sigma: float = 0.2, seed: int = 0) -> None:
        require(sigma >= 0, f"sigma={sigma:g} must not be negative")
        rng = np.random.default_rng(seed)
        self.service_s = trace.service_s * mean_one_lognormal(sigma, len(trace), rng)


LEARNED: dict[str, Callable[[], LatencyEstimator]] = {
    "constant": Constant,
    "sum-max": SumMax,
    "linear": Linear,
    "boosted": Boosted,
}
ESTIMATORS = (*LEARNED, "noisy", "oracle")


def estimator(
    name: str, truth: Trace | None = None, sigma: float = 0.2, seed: int = 0
) -> LatencyEstimator:
    """The estimator of this name, not yet fitted.

    `noisy` (of `sigma`) and `oracle` read the judged trace, `truth`, and are refused
    without it; no other estimator receives it.
    """
    choice("estimator", name, ESTIMATORS)
    if name == "sum-max":
        return SumMax(seed=seed)
    if name == "boosted":
        return Boosted(seed=seed)
    if name in LEARNED:
        return LEARNED[name]()
    if truth is None:
        raise InvalidInput(
            f"estimator {name!r} needs the trace whose service times it reads"
        )
    return Oracle(truth) if name == "oracle" else Noisy(truth, sigma, seed)


def one_thread() -> threadpool_limits:
    """Boosting in one thread: on shared cores its team of threads mostly waits."""
    return threadpool_limits(1, user_api="openmp")


def cut_tail(trace: Trace) -> Trace:
    """The trace without what lies beyond one standard deviation from the mean.

    A defect of the published estimator, kept for its ablation: it learns from labels
    of which the extreme ones are deleted, whatever their type, and so never sees the
    transactions that miss an objective. Raises InvalidInput for an empty trace.
    """
    service_s = _past(trace)
    # the rounding of equal labels is no deviation
    limit_s = service_s.std() * (1 + 1e-9)
    kept = np.abs(service_s - service_s.mean()) <= limit_s
    return trace.take(np.flatnonzero(kept))


def _past(trace: Trace) -> F64:
    require(len(trace) >= 1, "the past is empty: fit on at least one transaction")
    return np.maximum(trace.service_s, SHORTEST_S)


def _fitted(learned: T | None, name: str) -> T:
    if learned is None:
        raise InvalidInput(f"the {name} estimator is not fitted: call fit(trace) first")
    return learned


def _features(batch: Batch, model) -> F64:
    require(
        batch.features.shape[1] == model.n_features_in_,
        f"the batch has {batch.features.shape[1]} features: expected the "
        f"{model.n_features_in_} that the estimator was fitted on",
    )
    return batch.features


# --- How good an estimate is -------------------------------------------------


def predict_all(estimator: LatencyEstimator, trace: Trace) -> F64:
    """(n,) service times that a fitted estimator predicts for a whole trace."""
    return estimator.predict(
        trace.batch(np.arange(len(trace)), np.full(len(trace), np.inf))
    )


def q_error(true_s: F64, predicted_s: F64) -> F64:
    """(n,) max(true / predicted, predicted / true): 1 is exact, symmetric.

    Raises InvalidInput for times that are not positive. Moerkotte, Neumann and
    Steidl, VLDB 2009.
    """
    true_s = vector("true_s", true_s, np.float64)
    predicted_s = vector("predicted_s", predicted_s, np.float64, len(true_s))
    require(
        bool((true_s > 0).all() and (predicted_s > 0).all()),
        "q-error compares positive times: some are zero or negative",
    )
    return np.maximum(true_s / predicted_s, predicted_s / true_s)


def log_r2(true_s: F64, predicted_s: F64) -> float:
    """Share of the variance of log service time that the prediction explains."""
    log_true, log_predicted = np.log(true_s), np.log(predicted_s)
    spread = np.sum((log_true - log_true.mean()) ** 2)
    require(bool(spread > 0), "all true times are equal: nothing to explain")
    return float(1 - np.sum((log_true - log_predicted) ** 2) / spread)


def replay_ceiling(service_s: F64) -> float:
    """The log R² that no estimator can pass, from (n, r) replays of one input.

    The intraclass correlation of log service time in a one-way random effects model:
    what replays of the same transaction share. Shrout and Fleiss, Psychological
    Bulletin 86 (1979), ICC(1,1). Raises InvalidInput for fewer than two replays.
    """
    n, r = service_s.shape
    require(
        n >= 2 and r >= 2,
        f"{n} transactions replayed {r} times: expected at least 2 and 2",
    )
    log_s = np.log(service_s)
    mean = log_s.mean(axis=1)
    between = r * np.sum((mean - mean.mean()) ** 2) / (n - 1)
    within = np.sum((log_s - mean[:, None]) ** 2) / (n * (r - 1))
    return float((between - within) / (between + (r - 1) * within))


# --- How sure an estimate is -------------------------------------------------


def ratio_quantiles(estimator: LatencyEstimator, trace: Trace) -> F64:
    """(n,) sorted true / predicted on a slice that the estimator was not fitted on.

    They carry the estimator's bias and its scatter in one list.
    """
    return np.sort(trace.service_s / predict_all(estimator, trace))


def on_time_probability(slack_ratio: F64, ratios: F64) -> F64:
    """(b,) probability that true / predicted is at most `slack_ratio` (b,).

    `slack_ratio` is the time left over the time predicted, `ratios` (m,) come sorted
    from `ratio_quantiles`. The k-th of m exchangeable ratios is not exceeded by the
    next one with probability k / (m + 1), whatever their distribution (split
    conformal prediction; Vovk, Gammerman and Shafer 2005).
    """
    ratios = vector("ratios", ratios, np.float64)
    require(
        len(ratios) >= 1 and bool((np.diff(ratios) >= 0).all()),
        "ratios must be sorted and not empty: take them from ratio_quantiles",
    )
    return np.searchsorted(ratios, slack_ratio, side="right") / (len(ratios) + 1)


def ratio_bound(ratios: F64, coverage: float) -> float:
    """The factor on a prediction that the truth stays below with `coverage`.

    Raises InvalidInput where `ratios` (m,) are too few to promise it.
    """
    rank = int(np.ceil(coverage * (len(ratios) + 1)))
    require(
        0 < coverage < 1 and rank <= len(ratios),
        f"coverage={coverage:g} cannot be promised from {len(ratios)} ratios: "
        f"it must lie in (0, {len(ratios) / (len(ratios) + 1):.4g}]",
    )
    return float(ratios[rank - 1])
