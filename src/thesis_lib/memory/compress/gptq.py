"""Two to four bits a weight: rounding to the nearest level, and GPTQ.

A matrix (m, n) keeps a code of few bits for each weight and a scale for each group of
neighbouring inputs of an output. `round_to_nearest` looks at the weights alone. `gptq`
also looks at what flows in, by its Gram matrix, and lets the weights that are not yet
rounded make up for the error of those that are.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.stats import F64
from thesis_lib.memory.formats.low_bit import (
    CompensatedMatrix,
    Grid,
    LowBitConfig,
    QuantizedMatrix,
)

DAMPING = 0.01  # of the mean of the Gram's diagonal, added to it
SHRINKS = np.linspace(1.0, 0.4, 25)  # of a group's largest magnitude, to be tried


@dataclass(frozen=True, slots=True)
class Whitening:
    """A Gram matrix (n, n), factored once for every matrix that its inputs flow into.

    `order` (n,) puts the groups with the most input first, and within each the inputs
    with the most. In that order the damped Gram is V Vᵀ with V upper triangular.
    """

    order: NDArray[np.int64]
    group: int
    root: F64  # V, (n, n)
    inverse: F64  # of V, (n, n)

    def whiten(self, error: F64) -> F64:
        """E V for E (m, n): its squares sum up to the squared error of outputs."""
        return error[:, self.order] @ self.root


def whitening(gram: ArrayLike, group: int) -> Whitening:
    """Order the inputs of a Gram matrix (n, n) and factor it.

    The diagonal is raised by `DAMPING` of its mean: a weight must not be moved along
    what the calibration text happened not to excite. Raises InvalidInput for a group
    that does not divide n, and for a matrix that is no Gram.
    """
    moments = np.asarray(gram, np.float64)
    n = len(moments)
    require(
        n % group == 0, f"group={group} does not divide {n} inputs: expected a divisor"
    )
    power = np.diag(moments)
    require(
        bool(np.isfinite(moments).all() and power.min() >= 0 and power.max() > 0),
        "gram must be finite, with squares on its diagonal and not all of them zero",
    )
    within = np.argsort(-power.reshape(-1, group), axis=1, kind="stable")
    groups = np.argsort(-power.reshape(-1, group).sum(axis=1), kind="stable")
    order = (within + group * np.arange(n // group)[:, None])[groups].reshape(-1)
    damped = moments + DAMPING * power.mean() * np.eye(n)
    backwards = damped[np.ix_(order, order)][::-1, ::-1]
    try:
        lower = cholesky(backwards, lower=True, check_finite=False)
    except LinAlgError as error:
        raise InvalidInput(
            "gram is not positive semidefinite: expected the sum of x xᵀ over inputs x"
        ) from error
    root = np.ascontiguousarray(lower[::-1, ::-1])
    inverse = solve_triangular(root, np.eye(n), check_finite=False)
    return Whitening(order, group, root, np.ascontiguousarray(inverse))


def round_to_nearest(weight: ArrayLike, grid: Grid) -> QuantizedMatrix:
    """Every weight to its nearest level, the largest of its group to the last one."""
    matrix = _checked(weight, grid)
    m, n = matrix.shape
    blocks = matrix.reshape(m, -1, grid.group)
    scales = _bfloat16(np.abs(blocks).max(axis=-1) / grid.middle)
    steps = np.where(scales > 0, scales, 1)[..., None]
    codes = np.clip(np.rint(blocks / steps + grid.middle), 0, 2 * grid.middle)
    return QuantizedMatrix(grid, codes.astype(np.uint8).reshape(m, n), scales)


def gptq(weight: ArrayLike, whitened: Whitening, grid: Grid) -> QuantizedMatrix:
    """Round input by input, the error of each made good by those that follow.

    Frantar et al., GPTQ, ICLR 2023: V⁻¹ is the Cholesky factor of the inverse Gram that
    it updates with. The scale of a group is found when its turn comes, for its weights
    as they then are: of `SHRINKS` the one with the least error in the metric of the
    method. `whitened` is `whitening(gram, grid.group)`. Raises InvalidInput for weights
    that are not finite or whose shape does not fit.
    """
    matrix = _checked(weight, grid)
    m, n = matrix.shape
    require(
        len(whitened.order) == n and whitened.group == grid.group,
        f"whitening is of {len(whitened.order)} inputs in groups of {whitened.group}: "
        f"expected {n} in groups of {grid.group}",
    )
    work = np.ascontiguousarray(matrix[:, whitened.order])
    codes = np.empty((m, n), np.uint8)
    scales = np.empty((m, n // grid.group))
    for start in range(0, n, grid.group):
        stop = start + grid.group
        block = np.ascontiguousarray(work[:, start:stop])
        square = np.ascontiguousarray(whitened.inverse[start:stop, start:stop])
        importance = 1 / np.diag(square) ** 2
        chosen = _bfloat16(_search(block, importance, SHRINKS, grid.middle))
        errors = np.empty_like(block)
        _round_group(block, chosen, square, grid.middle, codes[:, start:stop], errors)
        work[:, stop:] -= errors @ whitened.inverse[start:stop, stop:]
        scales[:, whitened.order[start] // grid.group] = chosen
    unordered = np.empty_like(codes)
    unordered[:, whitened.order] = codes
    return QuantizedMatrix(grid, unordered, scales)


def _checked(weight: ArrayLike, grid: Grid) -> F64:
    matrix = np.asarray(weight, np.float64)
    require(
        matrix.ndim == 2 and bool(np.isfinite(matrix).all()),
        f"weight of shape {matrix.shape} must be a matrix of finite numbers",
    )
    require(
        matrix.shape[1] % grid.group == 0,
        f"group={grid.group} does not divide {matrix.shape[1]} inputs: expected a "
        "divisor",
    )
    return matrix


def _bfloat16(values: F64) -> F64:
    return torch.from_numpy(values).to(torch.bfloat16).double().numpy()


@njit(cache=True, nogil=True)
def _search(block, importance, shrinks, middle):
    """For each row of `block`, (m, group), the scale of least weighted error, (m,)."""
    m, group = block.shape
    best = np.empty(m)
    for row in range(m):
        largest = 0.0
        for k in range(group):
            largest = max(largest, abs(block[row, k]))
        least = np.inf
        best[row] = largest / middle
        for shrink in shrinks:
            scale = shrink * largest / middle
            if scale == 0:
                break
            inverse = 1 / scale
            loss = 0.0
            for k in range(group):
                level = np.floor(block[row, k] * inverse + middle + 0.5)
                level = min(max(level, 0.0), 2 * middle) - middle
                wrong = block[row, k] - scale * level
                loss += importance[k] * wrong * wrong
            if loss < least:
                least = loss
                best[row] = scale
    return best


@njit(cache=True, nogil=True)
def _round_group(block, scales, upper, middle, codes, errors):
    """Fill `codes` and `errors`, (m, group), in order; `block` is used up."""
    m, group = block.shape
    for row in range(m):
        scale = scales[row]
        inverse = 1 / scale if scale > 0 else 0.0
        for k in range(group):
            value = block[row, k]
            level = np.floor(value * inverse + middle + 0.5)
            level = min(max(level, 0.0), 2 * middle)
            codes[row, k] = np.uint8(level)
            error = (value - scale * (level - middle)) / upper[k, k]
            errors[row, k] = error
            for later in range(k + 1, group):
                block[row, later] -= error * upper[k, later]


ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Metric:
    """Calibration of a matrix (m, n): which errors matter.

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


def correct(
    weight: ArrayLike, metric: Metric, recipe: LowBitConfig, rounds: int = ROUNDS
) -> CompensatedMatrix:
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
        return CompensatedMatrix(base)
    m, n = matrix.shape
    for_left, for_right = recipe.factor_grids(m)
    left, right = _zeros(for_left, recipe.rank, m), _zeros(for_right, recipe.rank, n)
    best = CompensatedMatrix(base, left, right)
    least = metric.loss(matrix - best.restore())
    for number in range(rounds):
        if number > 0:
            rest = matrix - left.restore().T @ right.restore()
            base = gptq(rest, metric.inputs, recipe.grid)
        left, right = quantized_factors(matrix - base.restore(), metric, recipe)
        tried = CompensatedMatrix(base, left, right)
        loss = metric.loss(matrix - tried.restore())
        if loss >= least:
            break
        best, least = tried, loss
    return best


def _zeros(grid: Grid, m: int, n: int) -> QuantizedMatrix:
    return QuantizedMatrix(
        grid, np.zeros((m, n), np.uint8), np.zeros((m, n // grid.group))
    )


def quantized_factors(
    error: F64, metric: Metric, recipe: LowBitConfig
) -> tuple[QuantizedMatrix, QuantizedMatrix]:
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
