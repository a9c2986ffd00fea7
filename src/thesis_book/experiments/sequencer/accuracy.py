"""Accuracy of an estimate, compared with the truth and with repeated replays.

An estimator is judged twice: on service times, where the replay ceiling says what can
be known at all, and end to end, where its estimates have gone through the look-ahead
schedule and the question is when a transaction commits and whether that is on time.
What it has found in its features is asked of the fitted estimator as it stands, one
transaction type at a time, since within a type the flags that name it explain nothing
any more.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.metrics import r2_score

from thesis_lib.sequencer.core.trace import F64, Batch, Bool, Trace
from thesis_lib.sequencer.estimators.models import SHORTEST_S, LatencyEstimator
from thesis_lib.sequencer.workload.features import columns


def q_error(true_s: F64, predicted_s: F64) -> F64:
    """(n,) max(true / predicted, predicted / true): 1 is exact, symmetric.

    For positive times. Moerkotte, Neumann and Steidl, VLDB 2009.
    """
    return np.maximum(true_s / predicted_s, predicted_s / true_s)


def q_errors(
    true_s: F64, predicted_s: F64, percents: Sequence[int] = (50, 95, 99)
) -> dict[str, float]:
    """Percentiles of the q-error by their names in a table."""
    q = q_error(true_s, predicted_s)
    return {f"q-error p{p}": float(np.quantile(q, p / 100)) for p in percents}


def mean_error_us(true_s: F64, predicted_s: F64) -> float:
    """Mean absolute error in microseconds."""
    return float(1e6 * np.abs(true_s - predicted_s).mean())


def least_q_error(sigma: float, share: float) -> float:
    """Return the least q-error that a `share` of any estimates exceeds.

    Where the truth is what can be known times a lognormal of `sigma` that cannot, an
    estimate off by a factor exp(d) has a q-error of at most exp(t) with probability
    P(|sigma Z - d| <= t), Z standard normal: most often for d = 0, whatever t.
    """
    return exp(sigma * NormalDist().inv_cdf(1 - share / 2))


def log_r2(true_s: F64, predicted_s: F64) -> float:
    """Share of the variance of log service time that the prediction explains."""
    return float(r2_score(np.log(true_s), np.log(predicted_s)))


def on_processor(trace: Trace) -> Trace:
    """Return a trace whose service and unit times are those on the processor."""
    cpu_s = trace.measured["cpu_s"]
    share = cpu_s / trace.service_s
    return replace(trace, service_s=cpu_s, units_s=trace.units_s * share[:, None])


def intraclass_correlation(service_s: F64) -> float:
    """The log R² that no estimator can pass, from (n, r) replays of one input.

    The intraclass correlation of log service time in a one-way random effects model:
    what replays of the same transaction share. Shrout and Fleiss, Psychological
    Bulletin 86 (1979), ICC(1,1). Both n and r must be 2 at least.
    """
    n, r = service_s.shape
    log_s = np.log(service_s)
    mean = log_s.mean(axis=1)
    between = r * np.sum((mean - mean.mean()) ** 2) / (n - 1)
    within = np.sum((log_s - mean[:, None]) ** 2) / (n * (r - 1))
    return float((between - within) / (between + (r - 1) * within))


# --- By type -------------------------------------------------------------------
def noise_ceilings(trace: Trace, column: str) -> pd.Series:
    """`intraclass_correlation` of `column`_r1, …, as measured, by type and of all."""
    replays = [n for n in trace.measured if re.fullmatch(rf"{column}_r\d+", n)]
    times_s = np.column_stack([trace.measured[name] for name in replays])
    return _of_each(trace, lambda rows: intraclass_correlation(times_s[rows]))


def by_type(
    trace: Trace, predicted_s: F64, bounds_s: Mapping[float, F64] | None = None
) -> pd.DataFrame:
    """Return the accuracy of (n,) predictions: a row for all, then one a type.

    Columns: transactions; q-error p50, p95, p99; R² of log; MAE in µs; and, for
    bounds (n,) by level, the percentage of the truth that each covers. A type with a
    single transaction explains nothing: its R² is NaN.
    """
    rows = {}
    for name, of in rows_by_type(trace):
        true_s, guess_s = trace.service_s[of], predicted_s[of]
        varied = len(true_s) > 1 and true_s.min() < true_s.max()
        rows[name] = {
            "transactions": len(true_s),
            **q_errors(true_s, guess_s),
            "R² of log": log_r2(true_s, guess_s) if varied else np.nan,
            "MAE µs": mean_error_us(true_s, guess_s),
        } | {
            f"within {level:.0%}": 100 * np.mean(true_s <= bound_s[of])
            for level, bound_s in (bounds_s or {}).items()
        }
    return pd.DataFrame(rows).T.rename_axis("type")


def totals(trace: Trace, predicted_s: Mapping[str, F64]) -> pd.DataFrame:
    """Sum of (n,) predictions over that of the truth, in percent: 100 is unbiased.

    A row for all, then one for each type; a column for each prediction.
    """

    def total(guess_s: F64) -> pd.Series:
        true_s = trace.service_s
        return _of_each(
            trace, lambda rows: 100 * guess_s[rows].sum() / true_s[rows].sum()
        )

    sums = {label: total(guess_s) for label, guess_s in predicted_s.items()}
    return pd.DataFrame(sums).rename_axis("type")


def missing(trace: Trace, subset: Trace) -> pd.Series:
    """Percentage of the transactions of `trace` that are not in `subset`, by type."""
    before, after = _of_each(trace, np.sum), _of_each(subset, np.sum)
    return 100 * (1 - after.reindex(before.index, fill_value=0) / before)


def _by_unit(trace: Trace) -> dict[str, F64]:
    """The times (n,) of each operating unit, and of what no unit claims: `rest`."""
    measured_s = dict(zip(trace.unit_names, trace.units_s.T, strict=True))
    return measured_s | {"rest": trace.service_s - trace.units_s.sum(axis=1)}


def squared_errors(trace: Trace, predicted_s: Mapping[str, F64]) -> dict[str, F64]:
    """Squared errors (n,) of predictions (n,), for each unit that takes time."""
    taking = {unit: s for unit, s in _by_unit(trace).items() if (s > 0).any()}
    return {unit: (true_s - predicted_s[unit]) ** 2 for unit, true_s in taking.items()}


def by_unit(trace: Trace, predicted_s: Mapping[str, F64]) -> pd.DataFrame:
    """Return the time and its prediction error by operating unit, a row each.

    `predicted_s` (n,) by unit, of which `rest` is what no unit claims. Columns: its
    percentage of the service time; the sum of the predictions over that of the truth,
    in percent; q-error p50 and p95 and R² of log where time was spent in it; and
    its percentage of the squared errors of all units together.
    """
    measured_s = _by_unit(trace)
    spent = {unit: true_s > 0 for unit, true_s in measured_s.items()}
    squared = squared_errors(trace, predicted_s)
    everything = sum(each.sum() for each in squared.values())
    rows = {}
    for unit in squared:
        some, true_s = spent[unit], measured_s[unit]
        guess_s = np.maximum(predicted_s[unit][some], SHORTEST_S)
        rows[unit] = {
            "of the time %": 100 * true_s.sum() / trace.service_s.sum(),
            "sum %": 100 * predicted_s[unit].sum() / true_s.sum(),
            **q_errors(true_s[some], guess_s, (50, 95)),
            "R² of log": log_r2(true_s[some], guess_s),
            "of the squared error %": 100 * squared[unit].sum() / everything,
        }
    return pd.DataFrame(rows).T.rename_axis("unit")


def rows_by_type(trace: Trace) -> Iterator[tuple[str, Bool]]:
    """Return the rows of a table: `all`, then each type of the trace; (n,) masks."""
    yield "all", np.ones(len(trace), bool)
    for k, name in enumerate(trace.kinds):
        if (trace.kind == k).any():
            yield name.replace("_", " "), trace.kind == k


def _of_each(trace: Trace, measure: Callable[[Bool], Any]) -> pd.Series:
    return pd.Series({name: measure(rows) for name, rows in rows_by_type(trace)})


# --- End to end ------------------------------------------------------------------
def auroc(late: Bool, score: F64) -> float:
    """Probability that a late transaction has a higher score than one on time.

    The area under the receiver operating characteristic; ties count one half (Mann
    and Whitney, Annals of Mathematical Statistics 18(1), 1947). Some must be late (n,)
    and some not.
    """
    positive, negative = int(late.sum()), int((~late).sum())
    above = rankdata(score)[late].sum() - positive * (positive + 1) / 2
    return float(above / (positive * negative))


# --- What it has found in its features --------------------------------------------
class _Readable(RegressorMixin, BaseEstimator):
    """A fitted estimator as scikit-learn's inspection tools expect one."""

    def __init__(self, estimator: LatencyEstimator, names: tuple[str, ...]) -> None:
        self.estimator, self.names = estimator, names

    def fit(self, features: F64, service_s: F64) -> "_Readable":
        """Nothing: it is fitted already."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, features: F64) -> F64:
        """(b,) seconds for (b, d) features."""
        return self.estimator.predict(Batch.of_features(features, self.names))


def _log_error(readable: _Readable, features: F64, service_s: F64) -> float:
    """The mean logarithm of the q-error, negative, so that more is better."""
    ratio = np.log(readable.predict(features) / service_s)
    return -float(np.abs(ratio).mean())


def importance(
    estimator: LatencyEstimator, trace: Trace, repeats: int = 5
) -> pd.DataFrame:
    """Return the permutation importance of each feature: a row a type.

    By how many percent the mean q-error (geometric) grows if the values of a feature
    are exchanged among the transactions of the type, on average over `repeats`. Best
    asked of transactions that the estimator was not fitted on: shuffling tells what
    it uses, and there also whether that was worth using. Breiman, Machine Learning
    45 (2001). Features of two that say the same hide each other.
    """
    readable = _Readable(estimator, trace.feature_names)
    rows = {}
    for k, kind in enumerate(trace.kinds):
        of = trace.kind == k
        if of.any():
            losses: Any = permutation_importance(
                readable, trace.features[of], trace.service_s[of], scoring=_log_error,
                n_repeats=repeats, random_state=0,
            )  # fmt: skip
            rows[kind.replace("_", " ")] = 100 * np.expm1(losses["importances_mean"])
    return pd.DataFrame(rows, index=list(trace.feature_names)).T.rename_axis("type")


def dependence(
    estimator: LatencyEstimator, trace: Trace, kind: str, feature: str
) -> pd.Series:
    """Return the mean estimate of a type if all had the same value of one feature.

    Seconds, the mean over the transactions of the type, by each value that they have.
    Friedman, Annals of Statistics 29(5), 2001.
    """
    of = trace.kind == trace.kinds.index(kind)
    (column,) = columns(trace, (feature,))
    features = trace.features[of]
    values = np.unique(features[:, column])
    partial: Any = partial_dependence(
        _Readable(estimator, trace.feature_names), features, [int(column)],
        custom_values={int(column): values}, kind="average",
    )  # fmt: skip
    return pd.Series(partial["average"][0], index=values).rename_axis(feature)
