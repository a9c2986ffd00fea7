import pickle
from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from threadpoolctl import threadpool_limits

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.estimators.trees import LEAF, flatten


def past(seed, n=800, d=5):
    """Features with ties and both infinities' neighbours, and what to learn of them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) * np.array([1, 1e-9, 1e9, 1, 1])
    features[:, 3] = np.round(features[:, 3])
    features[:, 4] = rng.integers(0, 2, n)
    learned = np.sin(features[:, 0]) + features[:, 3] * features[:, 4]
    return features, learned + rng.normal(0, 0.3, n)


@pytest.fixture(autouse=True)
def alone():
    with threadpool_limits(1, user_api="openmp"):
        yield


ENSEMBLES = [
    HistGradientBoostingRegressor(max_iter=40, early_stopping=False),
    HistGradientBoostingRegressor(loss="quantile", quantile=0.9, max_iter=20),
    HistGradientBoostingRegressor(max_iter=1, max_leaf_nodes=2),
    RandomForestRegressor(7, min_samples_leaf=2, random_state=1),
    RandomForestRegressor(1, max_depth=1, bootstrap=False),
]


@pytest.mark.parametrize("model", ENSEMBLES, ids=str)
def test_every_bit_is_that_of_scikit_learn(model):
    features, target = past(seed=1)
    trees = flatten(model.fit(features, target))
    fresh, _ = past(seed=2)
    # where a threshold itself is asked for, the side matters
    asked = np.flatnonzero(trees.feature != LEAF)
    rows = np.resize(asked, len(fresh))
    fresh[np.arange(len(fresh)), trees.feature[rows]] = trees.number[rows]
    expected = model.predict(fresh)
    np.testing.assert_array_equal(trees.predict(fresh), expected)
    np.testing.assert_array_equal([trees.predict_one(row) for row in fresh], expected)
    transposed = np.asfortranarray(fresh)
    np.testing.assert_array_equal(trees.predict(transposed), expected)
    again = pickle.loads(pickle.dumps(trees))
    np.testing.assert_array_equal(again.predict(fresh), expected)


def test_trees_without_a_split_are_constants():
    features, _ = past(seed=1, n=30)
    model = HistGradientBoostingRegressor(max_iter=3).fit(features, np.full(30, 2.5))
    np.testing.assert_array_equal(flatten(model).predict(features), 2.5)


def test_features_of_other_values_number_or_type_are_rejected():
    features, target = past(seed=1)
    trees = flatten(RandomForestRegressor(2).fit(features, target))
    for bad in (np.nan, np.inf, -np.inf):
        other = features.copy()
        other[7, 2] = bad
        with pytest.raises(InvalidInput, match=f"row 7 of feature 2 is {bad}"):
            trees.predict(other)
        with pytest.raises(InvalidInput, match="missing"):
            trees.predict_one(other[7])
    with pytest.raises(InvalidInput, match=r"shape \(800, 4\): expected \(…, 5\)"):
        trees.predict(features[:, :4])
    for row in (features[0, :4], features[:1], features[0].astype(np.float32)):
        with pytest.raises(InvalidInput, match="expected float64 of shape"):
            trees.predict_one(row)


def test_models_that_do_more_than_sum_are_rejected():
    features, target = past(seed=1)
    poisson = HistGradientBoostingRegressor(loss="poisson", max_iter=2)
    with pytest.raises(InvalidInput, match="predicts the sum"):
        flatten(poisson.fit(features, np.exp(target)))
    kinds = HistGradientBoostingRegressor(categorical_features=[4], max_iter=5)
    with pytest.raises(InvalidInput, match="compares categories"):
        flatten(kinds.fit(features, features[:, 4] + 0.1 * target))


def test_arrays_that_are_no_trees_are_rejected():
    features, target = past(seed=1)
    trees = flatten(HistGradientBoostingRegressor(max_iter=3).fit(features, target))
    m = len(trees.feature)
    inner = int(np.argmax(trees.feature != LEAF))

    def changed(array, at, value):
        other = array.copy()
        other[at] = value
        return other

    for change, message in (
        ({"roots": changed(trees.roots, 0, m)}, "begins outside"),
        ({"roots": changed(trees.roots, 0, -1)}, "begins outside"),
        ({"roots": trees.roots[:0]}, "expected at least one"),
        ({"feature": changed(trees.feature, inner, 5)}, "must be 0 to 4"),
        ({"feature": changed(trees.feature, inner, -2)}, "must be 0 to 4"),
        ({"lower": changed(trees.lower, inner, inner)}, "would not end"),
        ({"lower": changed(trees.lower, inner, m - 1)}, "would not end"),
        ({"number": changed(trees.number, 3, np.nan)}, "row 3 of number is nan"),
        ({"number": trees.number[1:]}, "one of each"),
        ({"divisor": 0.0}, "a positive one"),
        ({"base": np.inf}, "expected a finite number"),
    ):
        with pytest.raises(InvalidInput, match=message):
            replace(trees, **change)
