"""Few bits a weight and a correction of low rank: W ≈ Q + L R.

What rounding leaves behind is a matrix like any other. Its largest part in the metric
of the calibration text has a closed form of low rank, and what that part takes off the
weights need not be rounded: the two are found in turn. The factors are rounded too, so
that every byte of the result is counted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from thesis_lib.checks import require
from thesis_lib.memory.rounding import Grid, Quantised, Whitening, gptq

F64 = NDArray[np.float64]

ROUNDS = 3
FACTOR_BITS = 4


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one matrix is stored: its grid, and the rank and bits of its correction."""

    grid: Grid
    rank: int = 0
    factor_bits: int = FACTOR_BITS

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"rank={self.rank} must not be negative")
        Grid(self.factor_bits, 8)  # refuses other bits

    def nbytes(self, m: int, n: int) -> int:
        """Bytes of a matrix (m, n): codes and scales, those of the factors too."""
        left, right = self.factor_grids(m)
        return (
            self.grid.nbytes(m, n)
            + left.nbytes(self.rank, m)
            + right.nbytes(self.rank, n)
        )

    def factor_grids(self, m: int) -> tuple[Grid, Grid]:
        """Of L, transposed, one scale for each component; of R, one for each group."""
        return Grid(self.factor_bits, m), Grid(self.factor_bits, self.grid.group)


@dataclass(frozen=True, slots=True)
class Metric:
    """What calibration says of a matrix (m, n): which errors matter.

    `inputs` whitens by the Gram matrix G of what flows in, `outputs` by that of the
    gradients of the model's loss at what flows out, S. The loss of an error E is
    tr(S E G Eᵀ), to second order what it adds to the model's own loss if inputs and
    gradients are independent; without `outputs` it is tr(E G Eᵀ), what it adds to the
    squared error of the layer's outputs.
    """

    inputs: Whitening
    outputs: Whitening | None = None  # of the group m

    def whiten(self, error: F64) -> F64:
        """The matrix (m, n) whose squares sum up to the loss of `error`."""
        if self.outputs is not None:
            error = self.outputs.root.T @ error[self.outputs.order]
        return self.inputs.whiten(error)

    def loss(self, error: F64) -> float:
        """The loss of an error (m, n)."""
        return float(np.sum(self.whiten(error) ** 2))


@dataclass(frozen=True, slots=True)
class Corrected:
    """Q + L R: codes of a matrix (m, n) and, with a rank r > 0, of its factors."""

    base: Quantised  # (m, n)
    left: Quantised | None = None  # (r, m), transposed
    right: Quantised | None = None  # (r, n)

    def restore(self) -> F64:
        """The weights that all of it stands for, (m, n)."""
        if self.left is None or self.right is None:
            return self.base.restore()
        restored = self.base.restore()
        # One component after the other: a layer that restores them does it alike.
        for left, right in zip(self.left.restore(), self.right.restore(), strict=True):
            restored += np.outer(left, right)
        return restored

    @property
    def nbytes(self) -> int:
        """Bytes of all codes and scales."""
        parts = (self.base, self.left, self.right)
        return sum(part.nbytes for part in parts if part is not None)


def correct(
    weight: ArrayLike, metric: Metric, recipe: Recipe, rounds: int = ROUNDS
) -> Corrected:
    """Quantise a matrix (m, n) with GPTQ, and correct it by a product of low rank.

    A round takes the best factors of what Q leaves of the matrix, rounded. It is kept
    if the loss fell, and is else the last one; before the next, Q is quantised anew
    from what the factors leave. Rank 0 is GPTQ. The alternation is that of CALDERA,
    Saha et al., NeurIPS 2024. Raises InvalidInput for a rank beyond min(m, n), and as
    `gptq` does.
    """
    matrix = np.asarray(weight, np.float64)
    base = gptq(matrix, metric.inputs, recipe.grid)
    if recipe.rank == 0:
        return Corrected(base)
    m, n = matrix.shape
    for_left, for_right = recipe.factor_grids(m)
    left, right = _zeros(for_left, recipe.rank, m), _zeros(for_right, recipe.rank, n)
    found = Corrected(base, left, right)
    least = metric.loss(matrix - found.restore())
    for number in range(rounds):
        if number > 0:
            rest = matrix - left.restore().T @ right.restore()
            base = gptq(rest, metric.inputs, recipe.grid)
        left, right = quantised_factors(matrix - base.restore(), metric, recipe)
        tried = Corrected(base, left, right)
        loss = metric.loss(matrix - tried.restore())
        if loss >= least:
            break
        found, least = tried, loss
    return found


def _zeros(grid: Grid, m: int, n: int) -> Quantised:
    return Quantised(grid, np.zeros((m, n), np.uint8), np.zeros((m, n // grid.group)))


def quantised_factors(
    error: F64, metric: Metric, recipe: Recipe
) -> tuple[Quantised, Quantised]:
    """The best factors of an error (m, n), both rounded: Lᵀ (r, m) and R (r, n).

    R is the best one for L as it was rounded.
    """
    for_left, for_right = recipe.factor_grids(len(error))
    left = left_factor(error, metric, recipe.rank)
    outputs = metric.outputs or _identity(len(error))
    stored = gptq(left.T, outputs, for_left)
    rounded = stored.restore().T
    weighed = rounded[outputs.order].T @ outputs.root @ outputs.root.T
    # A least-norm solution, should rounding have made two components alike.
    right, *_ = np.linalg.lstsq(
        weighed @ rounded[outputs.order], weighed @ error[outputs.order], rcond=None
    )
    return stored, gptq(right, metric.inputs, for_right)


def left_factor(error: F64, metric: Metric, rank: int) -> F64:
    """L (m, r) of the product L R of rank r that is closest to an error (m, n).

    In the loss of the metric; R then follows by least squares. Of the whitened error
    M = U Σ Vᵀ it is the first columns of U, taken back to where errors live.
    """
    m, n = error.shape
    require(
        1 <= rank <= min(m, n),
        f"rank={rank} must lie in [1, {min(m, n)}] for {m} x {n}",
    )
    whitened = metric.whiten(error)
    if m <= n:
        left = eigh(whitened @ whitened.T, subset_by_index=(m - rank, m - 1))[1]
    else:
        right = eigh(whitened.T @ whitened, subset_by_index=(n - rank, n - 1))[1]
        left = np.linalg.qr(whitened @ right)[0]
    if metric.outputs is None:
        return left
    unwhitened = np.empty_like(left)
    unwhitened[metric.outputs.order] = metric.outputs.inverse.T @ left
    return unwhitened


def _identity(m: int) -> Whitening:
    return Whitening(np.arange(m), m, np.eye(m), np.eye(m))
