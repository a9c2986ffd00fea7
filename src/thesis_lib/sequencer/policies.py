"""What a sequencer does with a batch: order it, drop from it, hold some back.

Each rule is a pure function of what may be seen of the batch, its forecast and the
time. A `Policy` says beside its rule what the rule needs around it: whether it waits
for whole batches, which shadow schedule forecasts for it, and how many transactions
it allows past the sequencer at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numba import njit

from thesis_lib.checks import choice, require
from thesis_lib.sequencer.trace import F64, I64, Batch, Bool, Decision, Forecast

Rule = Callable[[Batch, Forecast, float], Decision]

# The one configuration of `ours`, chosen on design seeds (chapter 3).
BAND = 0.2  # error band of the thesis over its objective: 2.5 ms of 12.5 ms
FLIGHT = 1.25  # transactions past the sequencer for each core
LEAST_P = 0.8  # dropped below this probability of being on time


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule and its surroundings.

    Without a rule, every transaction enters the log as it arrives. With `in_flight`,
    the sequencer releases only so many of a decision's `order` that at most
    `in_flight` transactions are released and uncommitted, holds the rest, and asks
    the rule again at the next commit: late binding under back-pressure.
    """

    name: str
    rule: Rule | None
    batched: bool = True
    shadow: Literal["published", "mended"] = "published"
    tolerance_s: float = np.inf  # see shadow.Mended
    in_flight: int | None = None


def _keep(batch: Batch, order: I64, dropped: Bool) -> Decision:
    """Drop where told; run the others in `order`, positions of the whole batch."""
    kept = order[~dropped[order]]
    return Decision(order=batch.ids[kept], dropped=batch.ids[dropped])


def fifo(batch: Batch, forecast: Forecast, now_s: float) -> Decision:
    """Arrival order, nothing dropped."""
    return Decision(order=batch.ids, dropped=batch.ids[:0])


def drop(batch: Batch, forecast: Forecast, now_s: float, band_s: float) -> Decision:
    """Drop what is forecast to end more than `band_s` after its deadline."""
    late = forecast.finish_s > batch.deadline_s + band_s
    return _keep(batch, np.arange(len(batch)), late)


def _critical_first(batch: Batch, forecast: Forecast, band_s: float) -> I64:
    critical = np.abs(forecast.finish_s - batch.deadline_s) < band_s
    return np.argsort(~critical, kind="stable")


def reorder(batch: Batch, forecast: Forecast, now_s: float, band_s: float) -> Decision:
    """Move what is forecast to end within `band_s` of its deadline to the front."""
    order = _critical_first(batch, forecast, band_s)
    return _keep(batch, order, np.zeros(len(batch), bool))


def hybrid(batch: Batch, forecast: Forecast, now_s: float, band_s: float) -> Decision:
    """Drop the hopeless, then move the critical to the front."""
    late = forecast.finish_s > batch.deadline_s + band_s
    return _keep(batch, _critical_first(batch, forecast, band_s), late)


def edf(batch: Batch, forecast: Forecast, now_s: float) -> Decision:
    """Earliest deadline first within the batch."""
    order = np.argsort(batch.deadline_s, kind="stable")
    return _keep(batch, order, np.zeros(len(batch), bool))


def sjf(batch: Batch, forecast: Forecast, now_s: float) -> Decision:
    """Shortest estimated service first within the batch."""
    order = np.argsort(forecast.service_s, kind="stable")
    return _keep(batch, order, np.zeros(len(batch), bool))


def random_drop(
    batch: Batch, forecast: Forecast, now_s: float, share: float, seed: int
) -> Decision:
    """Drop each transaction with probability `share`, whatever its forecast.

    Pure: the coin of a transaction depends on `seed` and its id alone.
    """
    with np.errstate(over="ignore"):  # splitmix64 is arithmetic modulo 2**64
        mixed = batch.ids.astype(np.uint64) + np.uint64(seed)
        mixed = (mixed + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    coin = (mixed >> np.uint64(11)) / 2.0**53
    return _keep(batch, np.arange(len(batch)), coin < share)


def late_edf(
    batch: Batch, forecast: Forecast, now_s: float, least_p: float
) -> Decision:
    """Drop what can hardly be on time any more; the rest by deadline."""
    hopeless = forecast.p_on_time < least_p
    return _keep(batch, np.argsort(batch.deadline_s, kind="stable"), hopeless)


def startable_first(
    batch: Batch, forecast: Forecast, now_s: float, least_p: float, slack_s: float
) -> Decision:
    """As `late_edf`, but what would wait more than `slack_s` for a lock goes last."""
    hopeless = forecast.p_on_time < least_p
    waits = forecast.finish_s - forecast.service_s > now_s + slack_s
    return _keep(batch, np.lexsort((batch.deadline_s, waits)), hopeless)


@njit(cache=True)
def _demote(deadline_s: F64, service_s: F64, now_s: float, cores: int) -> Bool:
    """Moore and Hodgson on one machine as fast as all cores; (b,) who loses.

    `deadline_s` rises. Whenever a deadline would be missed, the longest so far goes.
    """
    loses = np.zeros(len(deadline_s), np.bool_)
    end_s = now_s
    for at in range(len(deadline_s)):
        end_s += service_s[at] / cores
        if end_s > deadline_s[at]:
            longest = -1
            for other in range(at + 1):
                if not loses[other] and (
                    longest < 0 or service_s[other] > service_s[longest]
                ):
                    longest = other
            loses[longest] = True
            end_s -= service_s[longest] / cores
    return loses


def ours(
    batch: Batch,
    forecast: Forecast,
    now_s: float,
    least_p: float,
    slack_s: float,
    cores: int,
) -> Decision:
    """Release first what can start now and need not be sacrificed.

    The hopeless are dropped. Of the rest, those that an optimal selection for a
    single machine of the speed of all cores would give up (Moore and Hodgson) are
    demoted behind the others, but kept while there is hope; among equals, what need
    not wait for a lock goes first, then the earliest deadline.
    """
    hopeless = forecast.p_on_time < least_p
    edd = np.argsort(batch.deadline_s, kind="stable")
    edd = edd[~hopeless[edd]]
    loses = np.zeros(len(batch), bool)
    loses[edd] = _demote(batch.deadline_s[edd], forecast.service_s[edd], now_s, cores)
    waits = forecast.finish_s - forecast.service_s > now_s + slack_s
    return _keep(batch, np.lexsort((batch.deadline_s, waits, loses)), hopeless)


POLICIES = (
    "fifo", "drop", "reorder", "hybrid", "drop-fixed", "reorder-fixed",
    "hybrid-fixed", "fifo-batched", "random-drop", "edf", "sjf", "late-edf",
    "startable-first", "ours",
)  # fmt: skip


def policy(
    name: str,
    *,
    slo_s: float,
    cores: int,
    lag_s: float = 0.0,
    band_s: float | None = None,
    drop_share: float = 0.1,
    seed: int = 0,
    flight: float = FLIGHT,
    least_p: float = LEAST_P,
) -> Policy:
    """The policy of this name for a machine with `cores` and an objective `slo_s`.

    `band_s` is the error band of the thesis, by default a fifth of the objective
    (2.5 ms of 12.5 ms). `drop_share` and `seed` are read by random-drop alone;
    `flight` (transactions past the sequencer for each core) and `least_p` (below
    which probability of being on time a transaction is dropped) by the policies with
    late binding. A dispatch lag adds as many in flight as keep the cores busy over it.
    Raises InvalidInput for an unknown name and for values out of range.
    """
    choice("policy", name, POLICIES)
    require(slo_s > 0, f"slo_s={slo_s:g} must be positive")
    require(cores >= 1, f"cores={cores}: expected at least 1")
    require(0 <= drop_share <= 1, f"drop_share={drop_share:g} must lie in [0, 1]")
    require(0 <= least_p <= 1, f"least_p={least_p:g} must lie in [0, 1]")
    require(flight > 0, f"flight={flight:g} must be positive")
    band = BAND * slo_s if band_s is None else band_s
    require(band >= 0, f"band_s={band:g} must not be negative")
    bound = max(1, round(flight * cores))
    late = {
        "batched": False,
        "shadow": "mended",
        "tolerance_s": -np.inf,
        "in_flight": bound,
    }
    banded = {"drop": drop, "reorder": reorder, "hybrid": hybrid}
    base = name.removesuffix("-fixed")
    if base in banded:
        rule = partial(banded[base], band_s=band)
        if name == base:
            return Policy(name, rule)
        # What the rule will drop must not delay what it keeps.
        tolerance = np.inf if base == "reorder" else band
        return Policy(name, rule, shadow="mended", tolerance_s=tolerance)
    match name:
        case "fifo":
            return Policy(name, None, batched=False)
        case "fifo-batched":
            return Policy(name, fifo)
        case "random-drop":
            return Policy(name, partial(random_drop, share=drop_share, seed=seed))
        case "edf":
            return Policy(name, edf)
        case "sjf":
            return Policy(name, sjf)
        case "late-edf":
            return Policy(name, partial(late_edf, least_p=least_p), **late)
        case "startable-first":
            rule = partial(startable_first, least_p=least_p, slack_s=lag_s)
            return Policy(name, rule, **late)
        case _:
            rule = partial(ours, least_p=least_p, slack_s=lag_s, cores=cores)
            return Policy(name, rule, **late)
