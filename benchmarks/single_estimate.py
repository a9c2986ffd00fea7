"""One estimate at a time: flat trees against scikit-learn, on the same trees.

Checks on every held-out transaction that both give the same bits, then asks each for
one transaction after the other, in turn, round by round; scikit-learn as its manual has
it for this: with all threads, with one, and with one and its checks off.

    python benchmarks/single_estimate.py
"""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import sklearn
from numba import njit
from record import Record, benchmark, both_clocks
from threadpoolctl import threadpool_limits

from thesis_lib.common.files import data_folder
from thesis_lib.sequencer.core.trace import F64, Trace
from thesis_lib.sequencer.estimators import models
from thesis_lib.sequencer.estimators.trees import I32, Trees, flatten, sum_leaves
from thesis_lib.sequencer.workload.features import STATIC, with_features

TRACE = "sqlite-tpcc-2w-1worker.parquet"
PAST = 0.7
ROUNDS = 15
CALLS = 2_000  # a round; scikit-learn gets a tenth of them
PEERS: dict[str, Callable[[], AbstractContextManager]] = {  # beside one thread, checked
    "scikit_learn_threads": partial(threadpool_limits, os.cpu_count(), "openmp"),
    "scikit_learn": nullcontext,
    "scikit_learn_unchecked": partial(
        sklearn.config_context, assume_finite=True, skip_parameter_validation=True
    ),
}


@njit
def compiled(nodes: tuple[I32, I32, I32, F64, float, float], features: F64) -> float:
    """The sum of the estimates of all rows, as compiled code would ask for them."""
    total = 0.0
    for row in range(len(features)):
        total += sum_leaves(*nodes, features[row])
    return total


def each(
    ask: Callable[[Any], object],
    rows: Iterable[Any],
    within: Callable[[], AbstractContextManager] = nullcontext,
) -> Callable[[], None]:
    """A run that asks for one row after the other, in a context."""

    def run() -> None:
        with within():
            for row in rows:
                ask(row)

    return run


def grow_trees(past: Trace, future: Trace) -> tuple[models.Boosted, Any, Trees]:
    """An estimator, its boosting in scikit-learn, and flat: all agree on the future."""
    estimator = models.Boosted().fit(past)
    model = models.boosting(estimator.rounds, loss="squared_error")
    with models.one_thread():
        model.fit(past.features, np.log(past.service_s) - estimator.center)
    trees = flatten(model)
    expected = model.predict(future.features)
    one_by_one = [trees.predict_one(row) for row in future.features]
    np.testing.assert_array_equal(one_by_one, expected)
    np.testing.assert_array_equal(trees.predict(future.features), expected)
    estimates_s = [estimator.predict_one(row) for row in future.features]
    np.testing.assert_allclose(
        estimates_s, estimator.predict(models.everything(future)), rtol=1e-15
    )
    return estimator, model, trees


@benchmark
def main(out: Path) -> None:
    record = Record(out)
    whole = with_features(Trace.read(data_folder() / "traces" / TRACE), STATIC)
    past, future = replace(whole, service_s=whole.measured["cpu_s"]).split(PAST)
    estimator, model, trees = grow_trees(past, future)
    linear = models.Linear().fit(past)
    rows, few = future.features[:CALLS], future.features[: CALLS // 10]
    batches = [models.everything(future.take(np.array([i]))) for i in range(len(few))]
    nodes = trees.nodes()
    compiled(nodes, rows)
    runs = {
        peer: (each(lambda row: model.predict(row[None]), few, within), len(few))
        for peer, within in PEERS.items()
    } | {
        "flat": (each(trees.predict_one, rows), len(rows)),
        "flat_compiled": (lambda: compiled(nodes, rows), len(rows)),
        "estimator": (each(estimator.predict_one, rows), len(rows)),
        "estimator_batch_of_one": (each(estimator.predict, batches), len(batches)),
        "linear_batch_of_one": (each(linear.predict, batches), len(batches)),
    }
    with models.one_thread():
        for run, _ in runs.values():
            run()
        rounds = [
            {name: both_clocks(run, calls) for name, (run, calls) in runs.items()}
            for _ in range(ROUNDS)
        ]
    median_us = {
        name: {
            clock: median(r[name][clock] for r in rounds)
            for clock in ("cpu_us", "wall_us")
        }
        for name in runs
    }
    print(json.dumps(median_us, indent=1))
    record.write(
        scikit_learn=sklearn.__version__,
        trace=TRACE,
        features=len(STATIC),
        trees=len(trees.roots),
        nodes=len(trees.feature),
        held_out=len(future),
        bits_equal=True,  # asserted above, on all that is held out
        rounds=rounds,
        median_us=median_us,
    )
