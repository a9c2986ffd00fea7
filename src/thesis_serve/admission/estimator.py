"""Estimate the duration of a request from those already served.

For each kind a linear regression of the logarithm of service time on its features,
which forgets exponentially: the means, variances and covariances of all so far, the
newest weighing most.
"""

from collections.abc import Sequence
from math import exp, log
from typing import Protocol

import numpy as np

from thesis_lib.common.errors import require, require_count
from thesis_lib.sequencer.core.trace import F64
from thesis_lib.sequencer.policies.recalibration import LEAST_S

_RIDGE = 1.0  # of a request that would not vary: few have been served, flat slopes
_KINDS = 256  # of requests that are distinguished: the most recent


class ServiceEstimator(Protocol):
    """An estimator that a sequencer trains; `features` is its number of inputs."""

    def predict(self, kind: str, features: Sequence[float]) -> float:
        """Seconds that a request of this kind will take on a worker."""
        ...

    def learn(self, kind: str, features: Sequence[float], took_s: float) -> None:
        """A request of this kind took `took_s`."""
        ...


class _Regression:
    def __init__(self, features: int) -> None:
        self.count = 0
        self.mean_x, self.mean_y = np.zeros(features), 0.0
        self.variance = np.zeros((features, features))
        self.covariance, self.slope = np.zeros(features), np.zeros(features)

    def learn(self, x: F64, y: float, window: int) -> None:
        self.count += 1
        rate = 1 / min(window, self.count)
        dy = y - self.mean_y
        self.mean_y += rate * dy
        if len(x) == 0:
            return
        dx = x - self.mean_x
        self.mean_x = self.mean_x + rate * dx
        keep = 1 - rate
        self.variance = keep * (self.variance + rate * np.outer(dx, dx))
        self.covariance = keep * (self.covariance + rate * dx * dy)
        ridge = rate * _RIDGE * np.eye(len(x))
        self.slope = np.linalg.solve(self.variance + ridge, self.covariance)

    def predict(self, x: F64) -> float:
        slopes = float(self.slope @ (x - self.mean_x)) if len(x) else 0.0
        return self.mean_y + slopes


class OnlineEstimator:
    """Learn service times in seconds while serving, for each kind of request.

    A feature enters as its inverse hyperbolic sine. A new kind gets the prediction of
    all kinds. It remembers the last 256 kinds.

    Args:
        features: Number of features.
        first_s: Prediction in seconds before anything is served.
        window: Requests of a kind that it remembers, about.

    Example:
        >>> from thesis_serve import OnlineEstimator
        >>> learns = OnlineEstimator(0, first_s=0.02)
        >>> learns.learn("/orders", (), 0.05)
        >>> round(learns.predict("/orders", ()), 3)
        0.05
    """

    def __init__(self, features: int, *, first_s: float, window: int = 500) -> None:
        require(0 < first_s < np.inf, f"first_s={first_s:g}: expected positive seconds")
        require_count("window", window)
        require_count("features", features, 0)
        self.features, self.first_s, self.window = features, first_s, window
        self.all = _Regression(features)
        self.kinds: dict[str, _Regression] = {}

    def predict(self, kind: str, features: Sequence[float]) -> float:
        """Seconds that a request of this kind will take on a worker."""
        known = self.kinds.get(kind, self.all)
        if known.count == 0:
            return self.first_s
        x = np.arcsinh(np.array(features, np.float64))
        return exp(min(max(known.predict(x), log(LEAST_S)), log(1e6)))

    def learn(self, kind: str, features: Sequence[float], took_s: float) -> None:
        """A request of this kind took `took_s`."""
        x, y = np.arcsinh(np.array(features, np.float64)), log(max(took_s, LEAST_S))
        own = self.kinds.pop(kind, None) or _Regression(self.features)
        if len(self.kinds) == _KINDS:
            del self.kinds[next(iter(self.kinds))]
        self.kinds[kind] = own  # the last, as it was served last
        for known in (self.all, own):
            known.learn(x, y, self.window)
