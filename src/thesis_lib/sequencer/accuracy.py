"""How good an estimate is: against the truth, beside what replays have in common.

An estimator is judged twice: on service times, where the replay ceiling says what can
be known at all, and end to end, where its estimates have gone through the shadow
schedule and the question is when a transaction commits and whether that is on time.
"""

import numpy as np

from thesis_lib.checks import require, vector
from thesis_lib.sequencer.trace import F64


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
