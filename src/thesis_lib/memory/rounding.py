"""Two to four bits a weight: rounding to the nearest level, and GPTQ.

A matrix (m, n) keeps a code of few bits for each weight and a scale for each group of
neighbouring inputs of an output. `round_to_nearest` looks at the weights alone. `gptq`
also looks at what flows in, by its Gram matrix, and lets the weights that are not yet
rounded make up for the error of those that are.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from thesis_lib.checks import InvalidInput, require

F64 = NDArray[np.float64]

BITS = (2, 3, 4, 8)
DAMPING = 0.01  # of the mean of the Gram's diagonal, added to it
SHRINKS = np.linspace(1.0, 0.4, 25)  # of a group's largest magnitude, to be tried


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels for the weights of one matrix: 2^bits of them, evenly about zero.

    Level c of a group with scale s is s (c − (2^bits − 1) / 2): half a scale, three
    halves, and so on, on both sides. Each output has one scale, in bfloat16, for every
    `group` inputs. Raises InvalidInput for bits other than 2, 3, 4 or 8.
    """

    bits: int
    group: int

    def __post_init__(self) -> None:
        require(self.bits in BITS, f"bits={self.bits} must be one of 2, 3, 4, 8")
        require(
            self.group > 0 and self.group % 8 == 0,
            f"group={self.group} must be a positive multiple of 8: codes fill bytes",
        )

    @property
    def middle(self) -> float:
        """The code, between two, of zero."""
        return (2**self.bits - 1) / 2

    def nbytes(self, m: int, n: int) -> int:
        """Bytes of the codes and of the scales of a matrix (m, n)."""
        return m * n * self.bits // 8 + 2 * m * (n // self.group)


@dataclass(frozen=True, slots=True)
class Quantised:
    """Codes and scales of one matrix (m, n)."""

    grid: Grid
    codes: NDArray[np.uint8]  # (m, n)
    scales: F64  # (m, n / group), each one that bfloat16 holds

    def restore(self) -> F64:
        """The weights that the codes stand for, (m, n)."""
        scales = np.repeat(self.scales, self.grid.group, axis=1)
        return scales * (self.codes - self.grid.middle)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of the scales."""
        return self.grid.nbytes(*self.codes.shape)


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


def whitening(gram: ArrayLike, group: int, damping: float = DAMPING) -> Whitening:
    """Order the inputs of a Gram matrix (n, n) and factor it.

    The diagonal is raised by `damping` of its mean: a weight must not be moved along
    what the calibration text happened not to excite. Raises InvalidInput for a group
    that does not divide n, for damping that is not positive, and for a matrix that is
    no Gram.
    """
    moments = np.asarray(gram, np.float64)
    n = len(moments)
    require(
        n % group == 0, f"group={group} does not divide {n} inputs: expected a divisor"
    )
    require(damping > 0, f"damping={damping:g} must be positive: try {DAMPING:g}")
    power = np.diag(moments)
    require(
        bool(np.isfinite(moments).all()) and power.min() >= 0 and power.max() > 0,
        "gram must be finite, with squares on its diagonal and not all of them zero",
    )
    within = np.argsort(-power.reshape(-1, group), axis=1, kind="stable")
    groups = np.argsort(-power.reshape(-1, group).sum(axis=1), kind="stable")
    order = (within + group * np.arange(n // group)[:, None])[groups].reshape(-1)
    damped = moments + damping * power.mean() * np.eye(n)
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


def round_to_nearest(weight: ArrayLike, grid: Grid) -> Quantised:
    """Every weight to its nearest level, the largest of its group to the last one."""
    matrix = _checked(weight, grid)
    m, n = matrix.shape
    blocks = matrix.reshape(m, -1, grid.group)
    scales = _bfloat16(np.abs(blocks).max(axis=-1) / grid.middle)
    steps = np.where(scales > 0, scales, 1)[..., None]
    codes = np.clip(np.rint(blocks / steps + grid.middle), 0, 2 * grid.middle)
    return Quantised(grid, codes.astype(np.uint8).reshape(m, n), scales)


def gptq(weight: ArrayLike, given: Whitening, grid: Grid) -> Quantised:
    """Round input by input, the error of each made good by those that follow.

    Frantar et al., GPTQ, ICLR 2023: V⁻¹ is the Cholesky factor of the inverse Gram that
    it updates with. The scale of a group is found when its turn comes, for its weights
    as they then are: of `SHRINKS` the one with the least error in the metric of the
    method. `given` is `whitening(gram, grid.group)`. Raises InvalidInput for weights
    that are not finite or whose shape does not fit.
    """
    matrix = _checked(weight, grid)
    m, n = matrix.shape
    require(
        len(given.order) == n and given.group == grid.group,
        f"whitening is of {len(given.order)} inputs in groups of {given.group}: "
        f"expected {n} in groups of {grid.group}",
    )
    work = np.ascontiguousarray(matrix[:, given.order])
    codes = np.empty((m, n), np.uint8)
    scales = np.empty((m, n // grid.group))
    for start in range(0, n, grid.group):
        stop = start + grid.group
        block = np.ascontiguousarray(work[:, start:stop])
        square = np.ascontiguousarray(given.inverse[start:stop, start:stop])
        importance = 1 / np.diag(square) ** 2
        chosen = _bfloat16(_search(block, importance, SHRINKS, grid.middle))
        errors = np.empty_like(block)
        _round_group(block, chosen, square, grid.middle, codes[:, start:stop], errors)
        work[:, stop:] -= errors @ given.inverse[start:stop, stop:]
        scales[:, given.order[start] // grid.group] = chosen
    unordered = np.empty_like(codes)
    unordered[:, given.order] = codes
    return Quantised(grid, unordered, scales)


def calibration_loss(error: ArrayLike, gram: ArrayLike) -> float:
    """Squared error of a layer's outputs over the inputs of `gram`, for `error` (m, n).

    tr(E G Eᵀ), summed over inputs and outputs.
    """
    wrong = np.asarray(error, np.float64)
    return float(np.sum(wrong @ np.asarray(gram, np.float64) * wrong))


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
