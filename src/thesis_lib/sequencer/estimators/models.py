"""Estimators of a transaction's own service time, from its features alone.

`fit` may read the service times of the past; `predict` sees a `Batch`, which has
none. What waiting adds to a service time is the look-ahead schedule's part.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from importlib import import_module
from math import exp
from typing import Any, Protocol, Self

import numpy as np

from thesis_lib.common.errors import InvalidInput, choice, require, require_all
from thesis_lib.sequencer.core.trace import F64, Batch, Trace
from thesis_lib.sequencer.estimators.conformal import (
    conformal_offset,
    fewest_scores,
    group_offsets,
    track,
)
from thesis_lib.sequencer.estimators.trees import Trees, flatten

SHORTEST_S = 1e-7  # one tick of the collector's clock; logarithms need a positive time
SEED = 0  # of what a learner draws
FAR = 300.0  # logarithm of a time in seconds that nothing measured comes near
LARGEST_FEATURE = 1e30  # that is learned from
LEVELS = (0.5, 0.9, 0.95, 0.99)  # of the quantiles that are learned and calibrated
STEP = 0.1  # of a tracked bound, in units of the middle 80 % of its errors


class LatencyEstimator(Protocol):
    """Predict the service times of transactions, learned from a past trace.

    `fit(trace)` learns and returns the estimator itself. `predict(batch)` returns the
    service times (n,) of the batch in seconds. `name` labels it in tables.

    Example:
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


class Learned(ABC):
    """An estimator: `fit` on the past, then `predict` for the same features."""

    name: str
    feature_names: tuple[str, ...] | None = None  # None until it is fitted

    def fit(self, trace: Trace) -> Self:
        """Learn from transactions that have finished; returns itself."""
        self._learn(trace, _past(trace))
        self.feature_names = trace.feature_names
        return self

    def predict(self, batch: Batch) -> F64:
        """(b,) service times in seconds, each > 0."""
        return self._predict(self._features(batch))

    @abstractmethod
    def _learn(self, trace: Trace, service_s: F64) -> None:
        """Learn from a trace with features and service times (n,) that are sound."""

    @abstractmethod
    def _predict(self, features: F64) -> F64:
        """(b,) seconds of features (b, d), those that it was fitted on."""

    def _names(self) -> tuple[str, ...]:
        if self.feature_names is None:
            raise InvalidInput(
                f"the {self.name} estimator is not fitted: call fit(trace) first"
            )
        return self.feature_names

    def _features(self, batch: Batch) -> F64:
        """The features of a batch if they are those that it was fitted on."""
        names = self._names()
        if batch.feature_names != names:
            missing = [name for name in names if name not in batch.feature_names]
            unknown = [name for name in batch.feature_names if name not in names]
            raise InvalidInput(
                f"the batch has {len(batch.feature_names)} features: expected the "
                f"{len(names)} that the estimator was fitted on, in their order; "
                f"missing: {', '.join(missing) or 'none'}; "
                f"unknown: {', '.join(unknown) or 'none'}"
            )
        return batch.features


class Constant(Learned):
    """The mean service time of the past, for every transaction, whatever is known."""

    name = "constant"
    mean_s: float

    def _learn(self, trace: Trace, service_s: F64) -> None:
        self.mean_s = float(service_s.mean())

    def predict(self, batch: Batch) -> F64:
        """(b,) seconds, of a batch with any features."""
        self._names()
        return self._predict(batch.features)

    def _predict(self, features: F64) -> F64:
        return np.full(len(features), self.mean_s)


class Linear(Learned):
    """Ridge regression of log service time on standardised features.

    A product of factors, so an estimate is always positive; it estimates the
    geometric mean, which under scatter lies below the mean. However far from the past
    a feature is, an estimate is finite: its logarithm ends at FAR.
    """

    name = "linear"
    penalty = 1.0
    slope: F64  # (d,) of standardised features

    def _learn(self, trace: Trace, service_s: F64) -> None:
        features = _known(trace, self.name)
        scaler = _learner("preprocessing", "StandardScaler")().fit(features)
        ridge = _learner("linear_model", "Ridge")(alpha=self.penalty).fit(
            scaler.transform(features), np.log(service_s)
        )
        self.center, self.scale = np.asarray(scaler.mean_), np.asarray(scaler.scale_)
        self.slope, self.intercept = ridge.coef_, float(ridge.intercept_)

    def _predict(self, features: F64) -> F64:
        with np.errstate(over="ignore"):
            standardized = (features - self.center) / self.scale
        log_s = self.intercept + np.clip(standardized, -1e100, 1e100) @ self.slope
        return np.exp(np.clip(log_s, -FAR, FAR))


class SumMax(Learned):
    """One random forest for each operating unit; their sum is the service time.

    The sum of the thesis' sum-max estimate. Its maximum, over the predicted ends of
    conflicting predecessors, is taken by the look-ahead schedule, which knows them.
    Time that no unit claims is a unit of its own, `rest`, or the sum would fall short.
    """

    name = "sum-max"
    forests: dict[str, Trees]  # by unit, of service / scale_s

    def _learn(self, trace: Trace, service_s: F64) -> None:
        rest_s = service_s - trace.units_s.sum(axis=1)
        features = _known(trace, self.name)
        # Forests compare variances, which for microseconds sink to rounding errors.
        self.scale_s = max(float(trace.service_s.mean()), SHORTEST_S)
        names = (*trace.unit_names, "rest")
        self.forests = {
            name: flatten(
                _learner("ensemble", "RandomForestRegressor")(
                    n_estimators=30,
                    min_samples_leaf=10,
                    max_features=0.5,
                    random_state=SEED,
                ).fit(features, unit_s / self.scale_s)
            )
            for name, unit_s in zip(names, (*trace.units_s.T, rest_s), strict=True)
            if np.any(unit_s > 0)
        }

    def predict_units(self, batch: Batch) -> dict[str, F64]:
        """(b,) seconds in each operating unit."""
        return self._units(self._features(batch))

    def _units(self, features: F64) -> dict[str, F64]:
        return {
            unit: self.scale_s * forest.predict(features)
            for unit, forest in self.forests.items()
        }

    def _predict(self, features: F64) -> F64:
        units_s = list(self._units(features).values())
        return np.maximum(np.sum(units_s, axis=0), SHORTEST_S)


class Boosted(Learned):
    """Gradient-boosted trees on log service time.

    It estimates the geometric mean, as `Linear` does. Deterministic: no early
    stopping, hence no validation split drawn from the past.
    """

    name = "boosted"
    rounds = 150
    ensemble: Trees  # of the logarithm, less `center`

    def _learn(self, trace: Trace, service_s: F64) -> None:
        log_s = np.log(service_s)
        self.center = float(log_s.mean())
        model = boosting(self.rounds, loss="squared_error")
        with one_thread():
            model.fit(_known(trace, self.name), log_s - self.center)
        self.ensemble = flatten(model)

    def _predict(self, features: F64) -> F64:
        return np.exp(self.center + self.ensemble.predict(features))

    def predict_one(self, features: F64) -> float:
        """Seconds for one row of features (d,), as a sequencer asks: microseconds.

        The last bit of the exponential may differ from that of `predict`.
        """
        self._names()
        return exp(self.center + self.ensemble.predict_one(features))


class Quantiles(Learned):
    """Boosted trees for quantiles of log service time, calibrated.

    One ensemble for each of `LEVELS`, grown on the pinball loss (Koenker and Bassett,
    Econometrica 46(1), 1978) of the first part of the past. The rest of it says how
    often each was exceeded, and moves it by what keeps the promise: conformalised
    quantile regression (Romano, Patterson and Candès, NeurIPS 2019), one-sided.
    """

    name = "quantiles"
    rounds = 60
    held_back = 0.3  # share of the past that calibrates
    ensembles: dict[str, Trees]  # by level

    def _learn(self, trace: Trace, service_s: F64) -> None:
        older, newer = trace.split(1 - self.held_back)
        enough = fewest_scores(LEVELS[-1])
        require(
            len(older) > 0 and len(newer) >= enough,
            f"{len(trace)} transactions, of which {len(newer)} calibrate: expected at "
            f"least {enough} there for {LEVELS[-1]:.0%}",
        )
        log_s = np.log(_past(older))
        self.center = float(log_s.mean())
        self.ensembles = {}
        for level in LEVELS:
            model = boosting(self.rounds, loss="quantile", quantile=level)
            with one_thread():
                model.fit(_known(older, self.name), log_s - self.center)
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

    def _raw(self, features: F64) -> F64:
        """(b, levels) quantiles of the logarithm before calibration; they rise."""
        trees = self.ensembles.values()
        raw = self.center + np.column_stack([one.predict(features) for one in trees])
        return np.maximum.accumulate(raw, axis=1)

    def bounds(self, batch: Batch) -> F64:
        """(b, levels) seconds that the truth stays within as often as `LEVELS` say."""
        return self._bounds(self._features(batch))

    def _bounds(self, features: F64) -> F64:
        raw = self._raw(features)
        return np.exp(np.maximum.accumulate(raw + self.offsets, axis=1))

    def _predict(self, features: F64) -> F64:
        return self._bounds(features)[:, 0]  # the median

    def tracked_bounds(self, trace: Trace, asked_s: F64, known_s: F64) -> F64:
        """(n, levels) bounds as `bounds`, that follow what has committed by then.

        `asked_s` (n,) is when each transaction is forecast, `known_s` (n,) when it has
        committed. Every type is followed by itself, from where the past left it: see
        `conformal.track`.
        """
        raw = self._raw(self._features(everything(trace)))
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


LEARNED = {kind.name: kind for kind in (Constant, SumMax, Linear, Boosted, Quantiles)}
ESTIMATORS = (*LEARNED, "noisy", "oracle")  # which read the truth, in simulation


def estimator(name: str) -> Learned:
    """Return the estimator `name`, not yet fitted.

    Example:
        >>> from thesis_lib.sequencer import estimator, predict_all, scenario
        >>> past, coming = scenario("A", n=500, seed=1), scenario("A", n=3, seed=2)
        >>> fitted = estimator("constant").fit(past)
        >>> (1e3 * predict_all(fitted, coming)).round(2)  # milliseconds
        array([1.15, 1.15, 1.15])
    """
    return LEARNED[choice("estimator", name, LEARNED)]()


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
    mask = np.abs(service_s - service_s.mean()) <= limit_s
    return trace.take(np.flatnonzero(mask))


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


def _learner(module: str, name: str) -> Any:
    """A class of scikit-learn, which only what learns needs."""
    try:
        return getattr(import_module(f"sklearn.{module}"), name)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "a learned estimator needs scikit-learn, which is not installed: "
            "pip install 'thesis-lib[estimators]', or take 'constant'"
        ) from error


def boosting(rounds: int, **loss: Any) -> Any:
    """Return the unfitted trees of `Boosted` and `Quantiles`, for a `loss`."""
    return _learner("ensemble", "HistGradientBoostingRegressor")(
        max_iter=rounds,
        learning_rate=0.08,
        max_leaf_nodes=31,
        min_samples_leaf=30,
        early_stopping=False,
        random_state=SEED,
        **loss,
    )


def everything(trace: Trace) -> Batch:
    """A whole trace as one batch without an objective."""
    return trace.batch(np.arange(len(trace)), np.full(len(trace), np.inf))


def predict_all(estimator: LatencyEstimator, trace: Trace) -> F64:
    """Return the service times (n,) in seconds that a fitted estimator predicts.

    Example:
        >>> from thesis_lib.sequencer import estimator, predict_all, scenario
        >>> trace = scenario("A", n=300, seed=2)
        >>> predict_all(estimator("linear").fit(trace), trace).shape
        (300,)
    """
    return estimator.predict(everything(trace))
