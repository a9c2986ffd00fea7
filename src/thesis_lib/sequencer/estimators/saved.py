"""A fitted estimator as a file, read without executing anything in it.

The file is skops': arrays and a tree of types, of which only those of TRUSTED are made
beside what skops trusts itself. No pickle is written or read.
"""

from pathlib import Path
from types import ModuleType

import numpy as np

from thesis_lib.common.errors import InvalidInput, open_regular, require
from thesis_lib.common.files import write_whole
from thesis_lib.sequencer.core.trace import Batch
from thesis_lib.sequencer.estimators.models import (
    ESTIMATORS,
    LEARNED,
    LatencyEstimator,
    Learned,
)
from thesis_lib.sequencer.estimators.trees import Trees

SUFFIX = ".skops"
TRUSTED = (*LEARNED.values(), Trees)


def is_file(estimator: str) -> bool:
    """Return whether the word for an estimator names a file rather than a kind."""
    path = Path(estimator)
    named = path.suffix == SUFFIX or path.name != estimator or path.exists()
    return named and estimator not in ESTIMATORS


def save_estimator(estimator: LatencyEstimator, path: Path | str) -> None:
    """Write a fitted estimator to `path`; replace an existing file only when complete.

    Raises:
        InvalidInput: If the estimator is not fitted, or not of this package.

    Example:
        >>> from thesis_lib.sequencer import estimator, save_estimator, scenario
        >>> fitted = estimator("linear").fit(scenario("A", n=500, seed=1))
        >>> save_estimator(fitted, folder / "linear.skops")
    """
    if not isinstance(estimator, Learned):
        raise InvalidInput(
            f"an estimator of type {type(estimator).__name__} cannot be saved: "
            f"expected one of {', '.join(LEARNED)}; keep what yours has learned in a "
            "file of your own"
        )
    _require_times(estimator)
    write_whole(Path(path), _skops().dumps(estimator))


def load_estimator(path: Path | str) -> Learned:
    """Load an estimator that `save_estimator` wrote; predictions are equal bit for bit.

    No code of the file runs. Whether its numbers were learned is not checked.

    Raises:
        InvalidInput: If the file is damaged or of another kind, has a type that is not
            trusted, or predicts an invalid time.

    Example:
        >>> from thesis_lib.sequencer import estimator, load_estimator, save_estimator
        >>> from thesis_lib.sequencer import predict_all, scenario
        >>> path = folder / "constant.skops"
        >>> save_estimator(estimator("constant").fit(scenario("A", 500, 1)), path)
        >>> (1e3 * predict_all(load_estimator(path), scenario("A", 2, 2))).round(2)
        array([1.15, 1.15])
    """
    skops = _skops()
    try:
        with open(open_regular(Path(path)), "rb") as file:
            content = file.read()
        estimator = skops.loads(content, trusted=list(TRUSTED))
        require(
            isinstance(estimator, Learned),
            f"it holds an object of type {type(estimator).__name__}",
        )
        _require_times(estimator)
    except Exception as error:  # a forged tree of types may raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidInput(
            f"{path} is no estimator ({why}): expected a whole file that "
            "save_estimator or `thesis collect --estimator` wrote; write it again"
        ) from error
    return estimator


def _require_times(estimator: Learned) -> None:
    """Reject an estimator that does not predict a time for features of zero."""
    names = estimator.feature_names or ()
    batch = Batch.of_features(np.zeros((1, len(names))), names)
    (predicted_s,) = estimator.predict(batch)
    require(
        bool(0 < predicted_s < np.inf),
        f"it predicts {predicted_s:g} s: expected a positive, finite time",
    )


def _skops() -> ModuleType:
    """skops.io, which only what is kept needs."""
    try:
        from skops import io
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "a saved estimator needs skops, which is not installed: "
            "pip install 'thesis-lib[estimators]'"
        ) from error
    return io
