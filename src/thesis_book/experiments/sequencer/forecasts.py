"""Accuracy of latency forecasts on arrival, through queues and locks."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from thesis_book.experiments.sequencer import accuracy
from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.trace import F64, Batch, Bool, Decision, History, Trace
from thesis_lib.sequencer.estimators.conformal import (
    fewest_scores,
    group_offsets,
    track,
)
from thesis_lib.sequencer.estimators.models import LEVELS, STEP
from thesis_lib.sequencer.experiments.configuration import Estimate, SimulationConfig
from thesis_lib.sequencer.experiments.grid import Paired, run_paired
from thesis_lib.sequencer.experiments.metrics import counted
from thesis_lib.sequencer.policies.parameters import CORRECTED, When
from thesis_lib.sequencer.policies.registry import Policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, simulate

CALIBRATED = 0.3  # of a run, warm-up included, before its latency bounds are judged


def forecast_finish(
    trace: Trace, estimated_s: F64, *, cores: int, slo_s: float
) -> tuple[F64, History]:
    """Return each transaction's forecast commit on arrival, and the history.

    First come, first served, nothing dropped, so that every forecast comes true or
    not. The forecast (n,), in seconds, is what the look-ahead schedule makes of the
    estimates (n,), of what is in the log and of the commits seen so far.
    """
    forecast_s = np.full(len(trace), np.nan)

    def rule(batch: Batch, forecast: Any, now_s: float) -> Decision:
        forecast_s[batch.ids] = forecast.finish_s
        return Decision(order=batch.ids, dropped=batch.ids[:0])

    watched = Policy("forecast", rule, when=When.ARRIVAL, defects=CORRECTED)
    history = simulate(
        trace, watched, estimated_s, SystemConfig(cores=cores, slo_s=slo_s)
    )
    return forecast_s, history


def track_latency(
    trace: Trace, forecast_s: F64, history: History
) -> tuple[Bool, dict[float, F64]]:
    """Bounds on the latency that follow what has committed, and whom they are for.

    The log of true over forecast latency is tracked by type, as `conformal.track`
    does it, from what the transactions after the warm-up say that have committed when
    the last 70 % begin to arrive; where a queue has kept back so many that the highest
    level cannot be promised, when enough have. Returned are the (n,) mask of those that
    come from then on, and by level the (n,) seconds that their latency is to stay
    within, NaN for the others. Raises InvalidInput if no arrival is left after that.
    """
    true_s, guess_s = history.latency_s, forecast_s - trace.arrival_s
    scores, at = np.log(true_s / guess_s), np.arange(len(trace))
    warm = at >= counted(len(trace)).start
    commits_s, enough = np.sort(history.finish_s[warm]), fewest_scores(LEVELS[-1])
    require(
        len(commits_s) >= enough and commits_s[enough - 1] <= trace.arrival_s[-1],
        f"{LEVELS[-1]:.0%} cannot be promised: {enough} transactions must commit "
        f"after the warm-up and before the last of {len(trace)} arrives; "
        "judge a longer run",
    )
    judged = at >= round(CALIBRATED * len(trace))
    judged &= trace.arrival_s >= commits_s[enough - 1]
    begins_s = trace.arrival_s[judged][0]
    past = ~judged & warm & (history.finish_s <= begins_s)
    step = STEP * float(np.diff(np.quantile(scores[past], [0.1, 0.9]))[0])
    bounds_s, least = {}, np.full(int(judged.sum()), -np.inf)
    for level in LEVELS[1:]:
        start = group_offsets(scores[past], trace.kind[past], len(trace.kinds), level)
        least = track(
            scores[judged], trace.arrival_s[judged], history.finish_s[judged],
            trace.kind[judged], start, level, step, least,
        )  # fmt: skip
        bounds_s[level] = np.full(len(trace), np.nan)
        bounds_s[level][judged] = guess_s[judged] * np.exp(least)
    return judged, bounds_s


def end_to_end(
    config: SimulationConfig, estimate: Estimate, loads: Iterable[float], *,
    seeds: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Return the accuracy of latency forecasts: for each load and seed, by type.

    Columns: load, seed, type (`all` first); q-error p50, p95, p99 and MAE in µs of the
    latency; `late`, the share that commits late; `auroc` of being late by the forecast,
    NaN where none or all are; and the percentage of latencies within each bound of
    `track_latency`, NaN for a type that comes no more. Seeds are made as
    `grid.replicate` makes them; the warm-up does not count.
    """

    def measure(at: Paired) -> Iterator[dict]:
        forecast_s, history = forecast_finish(
            at.trace, at.estimated_s, cores=config.cores, slo_s=config.slo_s
        )
        return _judged(at.trace, forecast_s, history)

    return run_paired(measure, config, loads, estimate, seeds=seeds, seed=seed)


def _judged(
    trace: Trace, forecast_s: F64, history: History
) -> Iterator[dict[str, Any]]:
    """The columns of `end_to_end` that say how good the forecasts of one run were."""
    counts = np.zeros(len(trace), bool)
    counts[counted(len(trace))] = True
    bounded, bounds_s = track_latency(trace, forecast_s, history)
    for name, of in accuracy.rows_by_type(trace):
        of &= counts
        if not of.any():
            continue
        true_s, guess_s = history.latency_s[of], (forecast_s - trace.arrival_s)[of]
        late, held = history.late[of], bounded[of]
        row = {
            "type": name,
            **accuracy.q_errors(true_s, guess_s),
            "MAE µs": accuracy.mean_error_us(true_s, guess_s),
            "late": late.mean(),
            "auroc": accuracy.auroc(late, guess_s) if 0 < late.mean() < 1 else np.nan,
        }
        for level, bound_s in bounds_s.items():
            within = true_s[held] <= bound_s[of][held]
            row[f"within {level:.0%}"] = 100 * within.mean() if len(within) else np.nan
        yield row
