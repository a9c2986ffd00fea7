"""Trees of scikit-learn as flat arrays, summed one by one in its order.

A sequencer asks about one transaction at a time, for which scikit-learn's checks and
its team of threads cost a hundred times more than the trees themselves. Copied into
arrays, an ensemble is also bound to no version of scikit-learn.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import InvalidInput, require, vector
from thesis_lib.sequencer.core.trace import F64

I32 = NDArray[np.int32]

LEAF = -1  # instead of a feature
LARGEST_SINGLE = float(np.finfo(np.float32).max)


@njit(cache=True)
def sum_leaves(
    roots: I32, feature: I32, lower: I32, number: F64, base: float, divisor: float,
    features: F64,
) -> float:  # fmt: skip
    """The estimate for one row of features (d,), for compiled code; NaN if one lacks.

    The other arguments are `Trees.nodes`, in its order.
    """
    for known in features:
        if not np.isfinite(known):
            return np.nan
    total = base
    for root in roots:
        at = root
        while feature[at] != LEAF:
            at = lower[at] + (features[feature[at]] > number[at])
        total += number[at]
    return total / divisor  # pyright: ignore[reportReturnType]


@njit(cache=True)
def _sum_rows(
    roots: I32, feature: I32, lower: I32, number: F64, base: float, divisor: float,
    features: F64,
) -> F64:  # fmt: skip
    totals = np.empty(len(features))
    for row in range(len(features)):
        totals[row] = sum_leaves(
            roots, feature, lower, number, base, divisor, features[row]
        )
    return totals


@njit(cache=True)
def _ends(
    roots: I32, feature: I32, lower: I32, number: F64, base: float, divisor: float
) -> tuple[float, float]:
    """Least and largest that `sum_leaves` can return, added in its order."""
    least, most = number.copy(), number.copy()
    for node in range(len(feature) - 1, -1, -1):  # children come after their parents
        if feature[node] != LEAF:
            below = lower[node]
            least[node] = min(least[below], least[below + 1])
            most[node] = max(most[below], most[below + 1])
    low = high = base
    for root in roots:
        low += least[root]
        high += most[root]
    return low / divisor, high / divisor  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, slots=True)
class Trees:
    """An ensemble of t binary trees with m nodes together, children side by side.

    A node asks whether its feature exceeds its number: if not, the walk goes on at
    `lower`, else at the node behind that. The estimate is
    (base + the numbers of the leaves that are reached, tree by tree) / divisor. The
    order of these additions is scikit-learn's, and so is every bit of the result.

    Raises InvalidInput for arrays that do not describe trees: nodes, features or
    children that are not there, children that do not come after their parent, and
    leaves whose sum may overflow.
    """

    n_features: int
    roots: I32  # (t,) first node of each tree
    feature: I32  # (m,) LEAF or the column that is asked
    lower: I32  # (m,) child for values up to the number; 0 in a leaf
    number: F64  # (m,) threshold, in a leaf its contribution
    base: float
    divisor: float
    single: bool  # features are rounded into single precision first

    def __post_init__(self) -> None:
        m, set_ = len(self.feature), object.__setattr__
        for name in ("roots", "feature", "lower"):
            set_(self, name, vector(name, getattr(self, name), np.int32))
        set_(self, "number", vector("number", self.number, np.float64))
        require(
            len(self.lower) == len(self.number) == m > 0 and len(self.roots) > 0,
            f"{len(self.roots)} trees with {m} features, {len(self.lower)} children and"
            f" {len(self.number)} numbers: expected at least one, and one of each",
        )
        require(
            bool(((self.roots >= 0) & (self.roots < m)).all()),
            f"a tree begins outside of the {m} nodes",
        )
        inner, node = self.feature != LEAF, np.arange(m)
        features = self.feature[inner]
        require(
            bool(((features >= 0) & (features < self.n_features)).all()),
            f"features of nodes must be 0 to {self.n_features - 1}, got "
            f"{features.min(initial=0)} to {features.max(initial=0)}",
        )
        below = self.lower[inner]
        require(
            bool(((below > node[inner]) & (below < m - 1)).all()),
            "the children of a node do not come after it: a walk would not end",
        )
        require(
            bool(np.isfinite(self.base) and 0 < self.divisor < np.inf),
            f"base={self.base} and divisor={self.divisor}: expected a finite number "
            "and a positive one",
        )
        ends = self.ends()
        require(
            bool(np.isfinite(ends).all()),
            f"its estimates lie between {ends[0]:g} and {ends[1]:g}: expected finite "
            "ones, whichever leaves are reached",
        )

    def __setstate__(self, values: list[Any]) -> None:
        """Restore from a copy or a file, with the checks of a new instance."""
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)
        self.__post_init__()

    def ends(self) -> tuple[float, float]:
        """The least and the largest estimate that any features can have."""
        return _ends(*self.nodes())

    def predict(self, features: F64) -> F64:
        """(b,) estimates of (b, n_features) features; missing ones are rejected."""
        require(
            features.ndim == 2 and features.shape[1] == self.n_features,
            f"features have shape {features.shape}: expected (…, {self.n_features})",
        )
        totals = _sum_rows(*self.nodes(), self._rounded(features))
        if np.isnan(totals).any():
            row = int(np.argmax(np.isnan(totals)))
            column = int(np.argmin(np.isfinite(features[row])))
            raise InvalidInput(
                f"row {row} of feature {column} is {features[row, column]}: these "
                "trees have not learned what a missing value means"
            )
        return totals

    def predict_one(self, features: F64) -> float:
        """The estimate of one row of (n_features,) features in double precision."""
        if features.shape != (self.n_features,) or features.dtype != np.float64:
            raise InvalidInput(
                f"features are {features.dtype} of shape {features.shape}: expected "
                f"float64 of shape ({self.n_features},)"
            )
        total = sum_leaves(*self.nodes(), self._rounded(features))
        if total != total:
            raise InvalidInput(f"a feature is missing: every one of {features} counts")
        return total

    def nodes(self) -> tuple[I32, I32, I32, F64, float, float]:
        """Return the arguments of `sum_leaves` before the features."""
        return (
            self.roots, self.feature, self.lower, self.number, self.base, self.divisor,
        )  # fmt: skip

    def _rounded(self, features: F64) -> F64:
        if self.single:
            clipped = np.clip(features, -LARGEST_SINGLE, LARGEST_SINGLE)
            clipped = np.where(
                np.isfinite(features), clipped, features
            )  # to be rejected
            return clipped.astype(np.float32).astype(np.float64)
        return features if features.flags.c_contiguous else features.copy()


def flatten(model: Any) -> Trees:
    """The trees of a fitted random forest or histogram boosting of scikit-learn.

    Raises InvalidInput for one that predicts a function of the sum of its trees, and
    for trees that compare categories.
    """
    if hasattr(model, "estimators_"):
        parts = [
            (
                np.where(tree.children_left < 0, LEAF, tree.feature),
                tree.children_left,
                tree.children_right,
                np.where(tree.children_left < 0, tree.value.ravel(), tree.threshold),
            )
            for tree in (fitted.tree_ for fitted in model.estimators_)
        ]
        n_features = model.estimators_[0].tree_.n_features
        return _joined(parts, n_features, 0.0, float(len(parts)), True)
    require(
        model.loss in ("squared_error", "quantile"),
        f"loss={model.loss!r}: expected one that predicts the sum of its trees",
    )
    nodes = [tree.nodes for (tree,) in model._predictors]
    require(
        not any(tree["is_categorical"].any() for tree in nodes),
        "a tree compares categories: fit on numbers",
    )
    parts = [
        (
            np.where(tree["is_leaf"], LEAF, tree["feature_idx"]),
            tree["left"],
            tree["right"],
            np.where(tree["is_leaf"], tree["value"], tree["num_threshold"]),
        )
        for tree in nodes
    ]
    base = float(model._baseline_prediction.item())
    return _joined(parts, model.n_features_in_, base, 1.0, False)


def _joined(
    parts: list[tuple[NDArray, NDArray, NDArray, NDArray]],
    n_features: int, base: float, divisor: float, single: bool,
) -> Trees:  # fmt: skip
    """One list of nodes out of (feature, left, right, number) of each tree."""
    roots, features, lowers, numbers = [], [], [], []
    size = 0
    for feature, left, right, number in parts:
        order, lower = [0], np.zeros(len(feature), np.int32)
        for node in order:  # grows: breadth first, siblings side by side
            if feature[node] != LEAF:
                lower[node] = size + len(order)
                order += [int(left[node]), int(right[node])]
        roots.append(size)
        features.append(feature[order])
        lowers.append(lower[order])
        numbers.append(number[order])
        size += len(order)
    return Trees(
        n_features, np.array(roots), np.concatenate(features), np.concatenate(lowers),
        np.concatenate(numbers), base, divisor, single,
    )  # fmt: skip
