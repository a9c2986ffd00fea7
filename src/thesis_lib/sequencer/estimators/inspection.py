"""What an estimator has found in its features: patterns that nobody programmed.

Both questions are asked of the fitted estimator as it stands, one transaction type at
a time, since within a type the flags that name it explain nothing any more.
"""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.inspection import partial_dependence, permutation_importance

from thesis_lib.common.errors import choice, require
from thesis_lib.sequencer.core.trace import F64, Batch, KeySets, Trace
from thesis_lib.sequencer.estimators.models import LatencyEstimator
from thesis_lib.sequencer.workload.features import columns


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
        b = len(features)
        nothing = KeySets.from_lists([[]] * b, [[]] * b)
        return self.estimator.predict(
            Batch(
                ids=np.arange(b),
                arrival_s=np.zeros(b),
                deadline_s=np.full(b, np.inf),
                features=features,
                keys=nothing,
                feature_names=self.names,
            )
        )


def _log_error(readable: _Readable, features: F64, service_s: F64) -> float:
    """The mean logarithm of the q-error, negative, so that more is better."""
    ratio = np.log(readable.predict(features) / service_s)
    return -float(np.abs(ratio).mean())


def importance(
    estimator: LatencyEstimator, trace: Trace, repeats: int = 5, seed: int = 0
) -> pd.DataFrame:
    """How much worse it gets when a feature is shuffled: a row a type, a column each.

    By how many percent the mean q-error (geometric) grows if the values of a feature
    are exchanged among the transactions of the type, on average over `repeats`. Best
    asked of transactions that the estimator was not fitted on: shuffling tells what
    it uses, and there also whether that was worth using. Breiman, Machine Learning
    45 (2001). Features of two that say the same hide each other.
    """
    require(repeats >= 1, f"repeats={repeats}: expected at least 1")
    readable = _Readable(estimator, trace.feature_names)
    rows = {}
    for k, kind in enumerate(trace.kinds):
        of = trace.kind == k
        if of.any():
            found: Any = permutation_importance(
                readable, trace.features[of], trace.service_s[of], scoring=_log_error,
                n_repeats=repeats, random_state=seed,
            )  # fmt: skip
            rows[kind.replace("_", " ")] = 100 * np.expm1(found["importances_mean"])
    return pd.DataFrame(rows, index=list(trace.feature_names)).T.rename_axis("type")


def dependence(
    estimator: LatencyEstimator, trace: Trace, kind: str, feature: str
) -> pd.Series:
    """What it would estimate for a type if all had the same value of one feature.

    Seconds, the mean over the transactions of the type, by each value that they have.
    Friedman, Annals of Statistics 29(5), 2001. Raises InvalidInput for a type without
    a transaction.
    """
    of = trace.kind == trace.kinds.index(choice("type", kind, trace.kinds))
    require(bool(of.any()), f"the trace has no {kind}")
    (column,) = columns(trace, (feature,))
    features = trace.features[of]
    values = np.unique(features[:, column])
    found: Any = partial_dependence(
        _Readable(estimator, trace.feature_names), features, [int(column)],
        custom_values={int(column): values}, kind="average",
    )  # fmt: skip
    return pd.Series(found["average"][0], index=values).rename_axis(feature)
