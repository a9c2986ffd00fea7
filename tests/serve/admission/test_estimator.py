"""What is learned of service times while they are served."""

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_serve import OnlineEstimator
from thesis_serve.admission import estimator as room


def taught(features, took_s, **options):
    learns = OnlineEstimator(features.shape[1], first_s=1.0, **options)
    for row, s in zip(features, took_s, strict=True):
        learns.learn("kind", row, s)
    return learns


def test_within_its_window_it_is_ridge_regression_on_all_that_was_served():
    random = np.random.default_rng(4)
    features = random.lognormal(2, 1, (80, 3))
    took_s = random.lognormal(-4, 1, 80)
    x, y = np.arcsinh(features), np.log(took_s)
    dx, dy = x - x.mean(0), y - y.mean()
    slope = np.linalg.solve(dx.T @ dx + room._RIDGE * np.eye(3), dx.T @ dy)
    learns = taught(features, took_s, window=1000)
    for row in features[:5] * 1.5:
        expected = np.exp(y.mean() + slope @ (np.arcsinh(row) - x.mean(0)))
        assert learns.predict("kind", row) == pytest.approx(expected, rel=1e-9)


def test_a_power_law_is_found_and_one_feature_that_never_moves_does_no_harm():
    items = np.random.default_rng(5).uniform(50, 5000, 400)
    features = np.stack([items, np.full(400, 7.0)], 1)
    learns = taught(features, 1e-4 * items**0.7)
    for n in (100.0, 3000.0):
        assert learns.predict("kind", (n, 7.0)) == pytest.approx(1e-4 * n**0.7, rel=0.1)


def test_what_is_past_fades():
    took_s = np.repeat([0.01, 0.5], 400)
    learns = taught(np.zeros((800, 0)), took_s, window=50)
    assert learns.predict("kind", ()) == pytest.approx(0.5, rel=0.01)
    slow = taught(np.zeros((800, 0)), took_s, window=10_000)
    assert slow.predict("kind", ()) == pytest.approx((0.01 * 0.5) ** 0.5)


def test_kinds_are_told_apart_and_strangers_are_taken_for_all():
    learns = OnlineEstimator(0, first_s=0.2)
    assert learns.predict("a", ()) == 0.2
    for kind, s in (("a", 0.1), ("b", 0.4)):
        learns.learn(kind, (), s)
    assert learns.predict("a", ()) == pytest.approx(0.1)
    assert learns.predict("b", ()) == pytest.approx(0.4)
    assert learns.predict("c", ()) == pytest.approx(0.2)  # the geometric mean


def test_no_more_kinds_are_kept_than_there_is_room_for():
    learns = OnlineEstimator(0, first_s=0.2)
    for number in range(5000):
        learns.learn(f"/orders/{number}", (), 0.1)
    assert len(learns.kinds) == room._KINDS
    assert "/orders/0" not in learns.kinds
    learns.learn("/orders/4800", (), 0.1)  # and is kept, though it came before others
    for number in range(room._KINDS - 1):
        learns.learn(f"/new/{number}", (), 0.4)
    assert "/orders/4800" in learns.kinds
    assert "/orders/4999" not in learns.kinds
    assert learns.predict("/new/3", ()) == pytest.approx(0.4)


def test_nothing_is_foretold_that_is_no_time():
    learns = OnlineEstimator(1, first_s=0.2)
    for n, s in ((1.0, 1e-9), (2.0, 1e4), (3.0, 0.0)):
        learns.learn("a", (n,), s)
    for n in (-1e300, 0.0, 1e300):
        assert 0 < learns.predict("a", (n,)) <= 1e6 * (1 + 1e-9)


@pytest.mark.parametrize("options", [{"first_s": 0.0}, {"first_s": 1.0, "window": 0}])
def test_an_estimator_that_cannot_be_is_rejected(options):
    with pytest.raises(InvalidInput, match=r"first_s|window"):
        OnlineEstimator(0, **options)
