"""Estimators of a transaction's own service time, from its features alone.

`fit` may read the service times of the past; `predict` sees a `Batch`, which has
none. What waiting adds to a service time is the look-ahead schedule's part.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from math import exp
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from thesis_lib.common.errors import InvalidInput, choice, require, require_all
from thesis_lib.sequencer.core.trace import F64, Batch, Trace
from thesis_lib.sequencer.estimators.conformal import (
    conformal_offset,
    group_offsets,
    track,
)
from thesis_lib.sequencer.estimators.trees import Trees, flatten
from thesis_lib.sequencer.workload.scenarios import mean_one_lognormal

T = TypeVar("T")
SHORTEST_S = 1e-7  # one tick of the collector's clock; logarithms need a positive time
FAR = 300.0  # logarithm of a time in seconds that nothing measured comes near
LARGEST_FEATURE = 1e30  # that is learned from
LEVELS = (0.5, 0.9, 0.95, 0.99)  # of the quantiles that are learned and calibrated
STEP = 0.1  # of a tracked bound, in units of the middle 80 % of its errors
AIMS = ("median", "mean")


class LatencyEstimator(Protocol):
    """A learned guess of service times.

    >>> import numpy as np
    >>> from thesis_lib.sequencer import LatencyEstimator, predict_all, scenario
    >>> class Median:
    ...     name = "median"
    ...     def fit(self, trace):
    ...         self.s = np.median(trace.service_s)
    ...         return self
    ...     def predict(self, batch):
    ...         return np.full(len(batch), self.s)
    >>> fitted: LatencyEstimator = Median().fit(scenario("A", n=500, seed=1))
    >>> (1e3 * predict_all(fitted, scenario("A", n=2, seed=2))).round(2)  # ms
    array([0.81, 0.81])
    """

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
        self.feature_names: tuple[str, ...] | None = None

    def fit(self, trace: Trace) -> Self:
        """Learn the mean."""
        self.feature_names = trace.feature_names
        self.mean_s = float(_past(trace).mean())
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        return np.full(len(batch), _fitted(self.mean_s, self.name))


class Linear:
    """Ridge regression of log service time on standardised features.

    A product of factors, so an estimate is always positive; it estimates the
    geometric mean, which under scatter lies below the mean. However far from the past
    a feature is, an estimate is finite: its logarithm ends at FAR.
    """

    name = "linear"

    def __init__(self, penalty: float = 1.0) -> None:
        require(penalty > 0, f"penalty={penalty:g} must be positive")
        self.penalty = penalty
        self.feature_names: tuple[str, ...] | None = None
        self.slope: F64 | None = None  # (d,) of standardised features

    def fit(self, trace: Trace) -> Self:
        """Learn one factor for each feature."""
        log_s = np.log(_past(trace))
        features = _known(trace, self.name)
        scaler = _learner("preprocessing", "StandardScaler")().fit(features)
        ridge = _learner("linear_model", "Ridge")(alpha=self.penalty).fit(
            scaler.transform(features), log_s
        )
        self.feature_names = trace.feature_names
        self.centre, self.scale = np.asarray(scaler.mean_), np.asarray(scaler.scale_)
        self.slope, self.intercept = ridge.coef_, float(ridge.intercept_)
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        slope = _fitted(self.slope, self.name)
        with np.errstate(over="ignore"):
            features = (_features(batch, self) - self.centre) / self.scale
        log_s = self.intercept + np.clip(features, -1e100, 1e100) @ slope
        return np.exp(np.clip(log_s, -FAR, FAR))


class SumMax:
    """One random forest for each operating unit; their sum is the service time.

    The sum of the thesis' sum-max estimate. Its maximum, over the predicted ends of
    conflicting predecessors, is taken by the look-ahead schedule, which knows them.
    Time that no unit claims is a unit of its own, `rest`, or the sum would fall short.
    """

    name = "sum-max"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.feature_names: tuple[str, ...] | None = None
        self.forests: dict[str, Trees] | None = None  # by unit, of service / scale_s

    def fit(self, trace: Trace) -> Self:
        """Learn every unit."""
        rest_s = _past(trace) - trace.units_s.sum(axis=1)
        features = _known(trace, self.name)
        # Forests compare variances, which for microseconds sink to rounding errors.
        self.scale_s = float(trace.service_s.mean())
        self.feature_names = trace.feature_names
        names = (*trace.unit_names, "rest")
        self.forests = {
            name: flatten(
                _learner("ensemble", "RandomForestRegressor")(
                    n_estimators=30,
                    min_samples_leaf=10,
                    max_features=0.5,
                    random_state=self.seed,
                ).fit(features, unit_s / self.scale_s)
            )
            for name, unit_s in zip(names, (*trace.units_s.T, rest_s), strict=True)
            if np.any(unit_s > 0)
        }
        return self

    def predict_units(self, batch: Batch) -> dict[str, F64]:
        """(b,) seconds in each operating unit."""
        forests = _fitted(self.forests, self.name)
        features = _features(batch, self)
        return {
            unit: self.scale_s * forest.predict(features)
            for unit, forest in forests.items()
        }

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        units_s = self.predict_units(batch)
        return np.maximum(np.sum(list(units_s.values()), axis=0), SHORTEST_S)


class Boosted:
    """Gradient-boosted trees on log service time.

    It estimates the geometric mean, as `Linear` does. Deterministic: no early
    stopping, hence no validation split drawn from the past.
    """

    name = "boosted"

    def __init__(self, seed: int = 0, rounds: int = 150) -> None:
        require(rounds >= 1, f"rounds={rounds}: expected at least 1")
        self.seed, self.rounds = seed, rounds
        self.feature_names: tuple[str, ...] | None = None
        self.ensemble: Trees | None = None  # of the logarithm, less `centre`

    def fit(self, trace: Trace) -> Self:
        """Grow the trees."""
        log_s = np.log(_past(trace))
        self.centre = float(log_s.mean())
        self.feature_names = trace.feature_names
        model = boosting(self.seed, self.rounds, loss="squared_error")
        with one_thread():
            model.fit(_known(trace, self.name), log_s - self.centre)
        self.ensemble = flatten(model)
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        trees = _fitted(self.ensemble, self.name)
        return np.exp(self.centre + trees.predict(_features(batch, self)))

    def predict_one(self, features: F64) -> float:
        """Seconds for one row of features (d,), as a sequencer asks: microseconds.

        The last bit of the exponential may differ from that of `predict`.
        """
        trees = _fitted(self.ensemble, self.name)
        return exp(self.centre + trees.predict_one(features))


class Quantiles:
    """Boosted trees for quantiles of log service time, calibrated.

    One ensemble for each of `LEVELS`, grown on the pinball loss (Koenker and Bassett,
    Econometrica 46(1), 1978) of the first part of the past. The rest of it says how
    often each was exceeded, and moves it by what keeps the promise: conformalised
    quantile regression (Romano, Patterson and Candès, NeurIPS 2019), one-sided.
    """

    name = "quantiles"
    rounds = 60
    held_back = 0.3  # share of the past that calibrates

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.feature_names: tuple[str, ...] | None = None
        self.ensembles: dict[str, Trees] | None = None  # by level

    def fit(self, trace: Trace) -> Self:
        """Grow the trees and calibrate them."""
        _past(trace)
        older, newer = trace.split(1 - self.held_back)
        require(
            len(older) > 0 and len(newer) >= 1 / (1 - LEVELS[-1]) - 1,
            f"{len(trace)} transactions, of which {len(newer)} calibrate: expected at "
            f"least {1 / (1 - LEVELS[-1]) - 1:.0f} there for {LEVELS[-1]:.0%}",
        )
        self.feature_names = trace.feature_names
        log_s = np.log(_past(older))
        self.centre = float(log_s.mean())
        self.ensembles = {}
        for level in LEVELS:
            model = boosting(self.seed, self.rounds, loss="quantile", quantile=level)
            with one_thread():
                model.fit(_known(older, self.name), log_s - self.centre)
            self.ensembles[f"{level}"] = flatten(model)
        scores = np.log(_past(newer))[:, None] - self._raw(newer.features)
        self.spreads = np.diff(np.quantile(scores, [0.1, 0.9], axis=0), axis=0)[0]
        by_level = list(zip(scores.T, LEVELS, strict=True))
        self.offsets = np.array([conformal_offset(*of) for of in by_level])
        self.type_offsets = np.column_stack(
            [
                group_offsets(column, newer.kind, len(trace.kinds), level)
                for column, level in by_level
            ]
        )
        return self

    def _raw(self, features: F64) -> F64:
        """(b, levels) quantiles of the logarithm before calibration; they rise."""
        trees = _fitted(self.ensembles, self.name).values()
        raw = self.centre + np.column_stack([one.predict(features) for one in trees])
        return np.maximum.accumulate(raw, axis=1)

    def bounds(self, batch: Batch) -> F64:
        """(b, levels) seconds that the truth stays within as often as `LEVELS` say."""
        raw = self._raw(_features(batch, self))
        return np.exp(np.maximum.accumulate(raw + self.offsets, axis=1))

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds: the median."""
        return self.bounds(batch)[:, 0]

    def tracked_bounds(self, trace: Trace, asked_s: F64, known_s: F64) -> F64:
        """(n, levels) bounds as `bounds`, that follow what has committed by then.

        `asked_s` (n,) is when each transaction is forecast, `known_s` (n,) when it has
        committed. Every type is followed by itself, from where the past left it: see
        `conformal.track`.
        """
        raw = self._raw(_features(everything(trace), self))
        require(
            len(self.type_offsets) == len(trace.kinds),
            f"the trace has {len(trace.kinds)} types: expected the "
            f"{len(self.type_offsets)} that the estimator was fitted on",
        )
        log_s, bounds = np.log(_past(trace)), np.empty_like(raw)
        least = np.full(len(trace), -np.inf)
        for at, level in enumerate(LEVELS):
            offsets = track(
                log_s - raw[:, at], asked_s, known_s, trace.kind,
                self.type_offsets[:, at], level, STEP * self.spreads[at],
                least - raw[:, at],
            )  # fmt: skip
            bounds[:, at] = least = raw[:, at] + offsets
        return np.exp(bounds)


class Aimed:
    """Another estimator, times one factor that moves it to the median or the mean.

    What learns logarithms estimates a geometric mean, and a sequencer that adds up
    estimates is late by what that lacks. The factor is the median or the mean of
    truth / estimate on the last part of the past, which `base` is not fitted on; the
    mean of such ratios is the smearing estimate of Duan, JASA 78 (1983).
    """

    held_back = 0.2  # share of the past that measures the factor

    def __init__(self, base: "Learned", aim: str) -> None:
        self.base, self.aim = base, choice("aim", aim, AIMS)
        self.factor: float | None = None

    @property
    def name(self) -> str:
        return f"{self.base.name}-{self.aim}"

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        return self.base.feature_names

    def fit(self, trace: Trace) -> Self:
        """Fit the base and measure where it aims."""
        _past(trace)
        older, newer = trace.split(1 - self.held_back)
        ratios = _past(newer) / predict_all(self.base.fit(older), newer)
        average = np.median if self.aim == "median" else np.mean
        self.factor = float(average(ratios))
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds."""
        return _fitted(self.factor, self.name) * self.base.predict(batch)


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


Learned = Constant | SumMax | Linear | Boosted | Quantiles
LEARNED: dict[str, Callable[[int], Learned]] = {
    "constant": lambda seed: Constant(),
    "sum-max": SumMax,
    "linear": lambda seed: Linear(),
    "boosted": Boosted,
    "quantiles": Quantiles,
}
ESTIMATORS = (*LEARNED, "noisy", "oracle")


def estimator(
    name: str,
    truth: Trace | None = None,
    sigma: float = 0.2,
    seed: int = 0,
    aim: str | None = None,
) -> LatencyEstimator:
    """The estimator of this name, not yet fitted.

    `noisy` (of `sigma`) and `oracle` read the judged trace, `truth`, and are refused
    without it; no other estimator receives it. A learned one estimates what its model
    does, or, with an `aim`, the median or the mean: see `Aimed`.

    >>> from thesis_lib.sequencer import estimator, predict_all, scenario
    >>> past, coming = scenario("A", n=500, seed=1), scenario("A", n=3, seed=2)
    >>> fitted = estimator("constant").fit(past)
    >>> (1e3 * predict_all(fitted, coming)).round(2)  # milliseconds
    array([1.15, 1.15, 1.15])
    """
    choice("estimator", name, ESTIMATORS)
    if name in LEARNED:
        learned = LEARNED[name](seed)
        return learned if aim is None else Aimed(learned, aim)
    require(aim is None, f"estimator {name!r} knows the truth: it has no aim")
    if truth is None:
        raise InvalidInput(
            f"estimator {name!r} needs the trace whose service times it reads"
        )
    return Oracle(truth) if name == "oracle" else Noisy(truth, sigma, seed)


def one_thread() -> AbstractContextManager:
    """Boosting in one thread: on shared cores its team of threads mostly waits."""
    from threadpoolctl import threadpool_limits  # with scikit-learn, where that is

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


def _known(trace: Trace, name: str) -> F64:
    """(n, d) features to learn from: some, of sizes that a model can square."""
    require(
        trace.features.shape[1] > 0,
        f"the {name} estimator learns from features, of which the trace has none: add "
        "columns feature:NAME to it, or take the estimator 'constant'",
    )
    for of, column in zip(trace.feature_names, trace.features.T, strict=True):
        far = np.abs(column) <= LARGEST_FEATURE
        require_all(far, f"feature:{of}", column, f"beyond {LARGEST_FEATURE:g}")
    return trace.features


def _fitted(learned: T | None, name: str) -> T:
    if learned is None:
        raise InvalidInput(f"the {name} estimator is not fitted: call fit(trace) first")
    return learned


def _features(batch: Batch, estimator: "Learned") -> F64:
    """The features of a batch if they are those that the estimator was fitted on."""
    names = _fitted(estimator.feature_names, estimator.name)
    if batch.feature_names != names:
        missing = [name for name in names if name not in batch.feature_names]
        unknown = [name for name in batch.feature_names if name not in names]
        raise InvalidInput(
            f"the batch has {len(batch.feature_names)} features: expected the "
            f"{len(names)} that the estimator was fitted on, in their order; missing: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    return batch.features


def _learner(module: str, name: str) -> Any:
    """A class of scikit-learn, which only what learns needs."""
    try:
        return getattr(import_module(f"sklearn.{module}"), name)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "a learned estimator needs scikit-learn, which is not installed: "
            "pip install 'thesis-lib[estimators]', or take 'constant'"
        ) from error


def boosting(seed: int, rounds: int, **loss: Any) -> Any:
    """What `Boosted` and `Quantiles` grow, not yet fitted; `loss` says for what."""
    return _learner("ensemble", "HistGradientBoostingRegressor")(
        max_iter=rounds,
        learning_rate=0.08,
        max_leaf_nodes=31,
        min_samples_leaf=30,
        early_stopping=False,
        random_state=seed,
        **loss,
    )


def everything(trace: Trace) -> Batch:
    """A whole trace as one batch without an objective."""
    return trace.batch(np.arange(len(trace)), np.full(len(trace), np.inf))


def predict_all(estimator: LatencyEstimator, trace: Trace) -> F64:
    """(n,) service times that a fitted estimator predicts for a whole trace.

    >>> from thesis_lib.sequencer import estimator, predict_all, scenario
    >>> trace = scenario("A", n=3, seed=2)
    >>> oracle = estimator("oracle", truth=trace)
    >>> bool((predict_all(oracle, trace) == trace.service_s).all())
    True
    """
    return estimator.predict(everything(trace))
