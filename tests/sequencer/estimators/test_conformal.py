import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.estimators.conformal import (
    conformal_offset,
    fewest_scores,
    track,
)


def test_coverage_equals_the_promised_probability():
    """Over many calibration lists, the k-th score covers k / (m + 1) exactly."""
    rng = np.random.default_rng(3)
    lists, m = 40_000, 19
    scores = rng.lognormal(0.1, 0.5, (lists, m))
    fresh = rng.lognormal(0.1, 0.5, lists)
    for coverage in (0.05, 0.5, 0.9, 0.95):
        bounds = np.array([conformal_offset(row, coverage) for row in scores])
        stderr = np.sqrt(coverage * (1 - coverage) / lists)
        assert abs(np.mean(fresh <= bounds) - coverage) < 4 * stderr


@pytest.mark.parametrize("level", [0.5, 0.75, 0.9, 0.95, 0.99, 0.999])
def test_the_fewest_scores_promise_a_level_and_one_fewer_do_not(level):
    scores = np.arange(float(fewest_scores(level)))
    assert conformal_offset(scores, level) == scores[-1]
    for few, promised in ((scores[1:], level), (scores, 0.0), (scores, 1.0)):
        message = f"cannot be promised from {len(few)} scores"
        with pytest.raises(InvalidInput, match=message):
            conformal_offset(few, promised)


# --- Bounds that follow a drift -----------------------------------------------
NO_LEAST = np.full(20_000, -np.inf)


def drifting(n, seed):
    """Scores, when each is asked for and known, and the group of each."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(np.linspace(0, 3, n), 1 + np.sin(np.arange(n) / 50) ** 2)
    asked_s = np.sort(rng.uniform(0, n, n))
    return scores, asked_s, asked_s + rng.exponential(9.0, n), rng.integers(0, 3, n)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_offset_counts_what_exceeded_it(level):
    """What an offset has moved by is the share that it missed, exactly."""
    scores, asked_s, known_s, group = drifting(2_000, seed=1)
    # one more of each group, asked for when all else is known
    scores, group = np.append(scores, np.zeros(3)), np.append(group, np.arange(3))
    asked_s, known_s = np.append(asked_s, [1e6] * 3), np.append(known_s, [2e6] * 3)
    start, step = np.array([0.0, 1.0, 2.0]), 0.1
    least = np.where(np.arange(2_003) % 7 == 0, 1.0, -np.inf)
    least[-3:] = -np.inf
    given = track(scores, asked_s, known_s, group, start, level, step, least)
    assert (given >= least).all()
    for g in range(3):
        rows = np.flatnonzero(group[:-3] == g)
        missed = np.mean(scores[rows] > given[rows])
        moved = given[2_000 + g] - start[g]
        np.testing.assert_allclose(
            missed, 1 - level + moved / (step * len(rows)), atol=1e-9
        )


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_a_tracked_bound_covers_where_a_fixed_one_fails(level):
    scores, asked_s, known_s, group = drifting(20_000, seed=2)
    start = np.full(3, conformal_offset(scores[:2_000], level))
    given = track(
        scores, asked_s, known_s, group, start, level, 0.2, NO_LEAST[: len(scores)]
    )
    assert abs(np.mean(scores <= given) - level) < 0.005
    assert np.mean(scores <= start[0]) < level - 0.05


def test_a_tracked_bound_never_reads_what_is_not_known_yet():
    scores, asked_s, known_s, group = drifting(2_000, seed=3)
    options = group, np.zeros(3), 0.9, 0.2, NO_LEAST[:2_000]
    given = track(scores, asked_s, known_s, *options)
    for now_s in (100.0, 900.0):
        other = np.where(known_s > now_s, -scores, scores)
        later_s = np.where(known_s > now_s, known_s + 5, known_s)
        changed = track(other, asked_s, later_s, *options)
        asked = asked_s <= now_s
        np.testing.assert_array_equal(changed[asked], given[asked])
        assert (changed != given).any()


@pytest.mark.parametrize(
    ("lag_s", "groups", "level", "message"),
    [
        (0.0, 3, 0.9, r"row 0 of known_s is .* after asked_s"),
        (1.0, 1, 0.9, r"of group is .*1 groups have a start"),
        (1.0, 3, 1.0, "level=1 must lie in"),
    ],
)
def test_tracking_rejects_what_no_clock_can_give(lag_s, groups, level, message):
    scores, asked_s, _, group = drifting(10, seed=4)
    known_s, start = asked_s + lag_s, np.zeros(groups)
    with pytest.raises(InvalidInput, match=message):
        track(scores, asked_s, known_s, group, start, level, 0.1, NO_LEAST[:10])
