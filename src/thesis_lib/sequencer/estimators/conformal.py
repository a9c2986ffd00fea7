"""Conformal bounds of service times: calibrated on a set, or tracked as they come."""

import numpy as np

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import require, require_all
from thesis_lib.sequencer.core.trace import F64, I64


def fewest_scores(level: float) -> int:
    """The fewest scores from which `level` can be promised: 99 for 99 %."""
    require(0 < level < 1, f"level={level:g} must lie in (0, 1)")
    return int(np.ceil(level / (1 - level) - 1e-9))


def conformal_offset(scores: F64, level: float) -> float:
    """Return a bound that the next score meets with probability `level`, at least.

    `scores` (m,) in any order, exchangeable with the next one. Raises InvalidInput
    where they are too few to promise it.
    """
    rank = int(np.ceil(level * (len(scores) + 1) - 1e-9))
    require(
        0 < level < 1 and rank <= len(scores),
        f"level={level:g} cannot be promised from {len(scores)} scores: "
        f"it must lie in (0, {len(scores) / (len(scores) + 1):.4g}]",
    )
    return float(np.partition(scores, rank - 1)[rank - 1])


def group_offsets(scores: F64, group: I64, groups: int, level: float) -> F64:
    """(groups,) `conformal_offset` of the scores of each group, (m,) by number.

    Of a group whose scores are too few to promise `level`, that of all together.
    """
    offsets = np.full(groups, conformal_offset(scores, level))
    for k in range(groups):
        own = scores[group == k]
        if len(own) >= fewest_scores(level):
            offsets[k] = conformal_offset(own, level)
    return offsets


def track(
    scores: F64, asked_s: F64, known_s: F64, group: I64, start: F64, level: float,
    step: float, least: F64,
) -> F64:  # fmt: skip
    """(n,) offsets that follow the scores (n,) so that a share `level` stays below.

    A promise from the past alone is broken by the first drift. Here an offset rises
    by `step` x `level` whenever a score exceeded the offset that it was given, and
    falls by `step` x (1 - `level`) when it did not. Score i is given its offset at
    `asked_s[i]` and seen at `known_s[i]`, when its transaction commits; nothing else is
    read of the future. Each group follows its own scores from `start` (groups,). What
    is given is at least `least` (n,).

    After T scores of a group, whatever they are, the share that exceeded what they
    were given is 1 - level + (how far the offset has moved) / (`step` T): it converges
    wherever offsets stay bounded. Angelopoulos, Candès and Tibshirani, Conformal PID
    control (NeurIPS 2023), section 2. Raises InvalidInput for scores that are known
    before they are asked for.
    """
    require(0 < level < 1, f"level={level:g} must lie in (0, 1)")
    require(0 <= step < np.inf, f"step={step:g} must not be negative")
    require_all(known_s > asked_s, "known_s", known_s, "expected it after asked_s")
    require_all(group < len(start), "group", group, f"{len(start)} groups have a start")
    orders = np.argsort(asked_s, kind="stable"), np.argsort(known_s, kind="stable")
    columns = scores, asked_s, known_s, group, least
    return _track(columns, orders, start, level, step)


@njit(cache=True)
def _track(columns, orders, start, level, step):
    scores, asked_s, known_s, group, least = columns
    by_asked, by_known = orders
    offset, bounds = start.copy(), np.empty(len(scores))
    seen = 0  # prefix of by_known
    for i in by_asked:
        while seen < len(scores) and known_s[by_known[seen]] <= asked_s[i]:
            j = by_known[seen]
            if scores[j] > bounds[j]:
                offset[group[j]] += step * level
            else:
                offset[group[j]] -= step * (1 - level)
            seen += 1
        bounds[i] = max(offset[group[i]], least[i])
    return bounds
