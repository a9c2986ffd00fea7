import numpy as np
import pytest

from thesis_lib.checks import InvalidInput
from thesis_lib.sequencer.accuracy import log_r2, q_error, replay_ceiling


def test_q_error_is_symmetric_and_at_least_one():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(size=(2, 1_000))
    np.testing.assert_array_equal(q_error(a, b), q_error(b, a))
    np.testing.assert_allclose(q_error(7 * a, 7 * b), q_error(a, b), rtol=1e-12)
    assert (q_error(a, b) >= 1).all()
    np.testing.assert_array_equal(q_error(a, a), 1)
    np.testing.assert_allclose(q_error(np.array([2.0]), np.array([0.5])), 4)
    with pytest.raises(InvalidInput, match="positive times"):
        q_error(np.array([0.0]), np.array([1.0]))


def test_log_r2_of_the_truth_and_of_its_mean():
    true_s = np.random.default_rng(1).lognormal(size=500)
    assert log_r2(true_s, true_s) == 1
    middle = np.full(500, np.exp(np.log(true_s).mean()))
    assert abs(log_r2(true_s, middle)) < 1e-12


@pytest.mark.parametrize(("shared", "own"), [(1.0, 0.5), (0.3, 0.6), (0.0, 1.0)])
def test_replay_ceiling_is_the_shared_part_of_the_variance(shared, own):
    rng = np.random.default_rng(2)
    n, replays = 20_000, 3
    log_s = rng.normal(0, shared, (n, 1)) + rng.normal(0, own, (n, replays))
    expected = shared**2 / (shared**2 + own**2)
    assert abs(replay_ceiling(np.exp(log_s)) - expected) < 0.02
    with pytest.raises(InvalidInput, match="at least 2"):
        replay_ceiling(np.ones((5, 1)))
