"""Low-rank factors of a matrix: plain, and weighted by its inputs.

A linear layer y = W x with W of shape (m, n) becomes y = L (R x) with L (m, r) and
R (r, n). `decompose` finds the best factors of every rank at once, either of W
itself or, given the Gram matrix of the layer's inputs, of W as those inputs see it.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from os import cpu_count
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.stats import F64
from thesis_lib.memory.formats.lowrank import LowRankLinear
from thesis_lib.memory.model.linears import before, linears

BLIND = 1e-4  # of the mean sensitivity: what every output matters at least


@dataclass(frozen=True, slots=True)
class Decomposition:
    """The best factors of one (m, n) matrix for every rank up to k.

    The norm of `values[r:]` is the loss of rank r: the Frobenius norm of the error for
    a plain decomposition, and that of the error's output over the calibration inputs
    for a whitened one.
    """

    left: NDArray  # (m, k) singular vectors on the output side
    right: NDArray  # (k, n) on the input side, un-whitened
    values: F64  # (min(m, n),) singular values, the dropped ones included

    def factors(self, rank: int) -> tuple[NDArray, NDArray]:
        """Left (m, rank) and right (rank, n), each with half of the scale."""
        top = len(self.left.T)
        require(
            1 <= rank <= top, f"rank={rank} must lie in [1, {top}], the rank kept here"
        )
        scale = np.sqrt(self.values[:rank]).astype(self.left.dtype)
        return self.left[:, :rank] * scale, scale[:, None] * self.right[:rank]


def decompose(
    weight: ArrayLike,
    gram: ArrayLike | None = None,
    sensitivity: ArrayLike | None = None,
) -> Decomposition:
    """The best factors of every rank of an (m, n) matrix, computed in float64.

    Of the matrix itself, Eckart and Young, Psychometrika 1(3), 1936. With `gram` (n, n)
    they are whitened, as in SVD-LLM, Wang et al., ICLR 2025: the squared error of the
    layer's outputs over the inputs that G = Σ x xᵀ = S Sᵀ sums up is ‖(W − L R) S‖²,
    and the singular values are those of W S. A singular G, from fewer inputs than
    features, leaves a smaller top rank: what no input excites is dropped. With
    `sensitivity` (m, m) = T Tᵀ as well, the second moment of the loss's gradient at the
    outputs, they are those of Tᵀ W S,
    and their squares estimate what the *loss* loses, not the layer: the Kronecker
    factorisation of the Fisher information, Martens and Grosse, ICML 2015.

    Values below 1e-8 of the largest are lost in rounding.
    """
    matrix = np.asarray(weight, np.float64)
    require(
        matrix.ndim == 2 and bool(np.isfinite(matrix).all()),
        f"weight of shape {matrix.shape} must be a finite matrix",
    )
    if gram is None:
        require(sensitivity is None, "a sensitivity needs a gram beside it: give both")
        left, values, right = _fast_svd(matrix)
        return Decomposition(left, right, values)
    m, n = matrix.shape
    spread, gather = _root(_moments("gram", gram, n))
    if sensitivity is None:
        left, values, right = _fast_svd(matrix @ spread)
        return Decomposition(left, right @ gather, values)
    moments = _moments("sensitivity", sensitivity, m)
    blind = BLIND * np.trace(moments) / m
    outward, inward = _root(moments + blind * np.eye(m))
    left, values, right = _fast_svd(outward.T @ matrix @ spread)
    return Decomposition(inward.T @ left, right @ gather, values)


def _moments(name: str, moments: ArrayLike, size: int) -> F64:
    array = np.asarray(moments, np.float64)
    require(
        array.shape == (size, size),
        f"{name} has shape {array.shape}: expected ({size}, {size})",
    )
    require(
        bool(np.isfinite(array).all())
        and np.allclose(array, array.T, rtol=1e-9, atol=1e-12 * np.trace(array)),
        f"{name} must be finite and symmetric: expected a sum of x xᵀ over vectors x",
    )
    return array


def _root(moments: F64) -> tuple[F64, F64]:
    """S (n, k) with S Sᵀ = moments, and a left inverse (k, n) of it."""
    try:
        lower = cholesky(moments, lower=True, check_finite=False)
    except LinAlgError:
        return _singular_root(moments)
    eye = np.eye(len(moments))
    return lower, solve_triangular(lower, eye, lower=True, overwrite_b=True)


def _singular_root(moments: F64) -> tuple[F64, F64]:
    """Return the square root by eigenvectors, of the directions that carry input."""
    eigenvalues, vectors = np.linalg.eigh(moments)
    largest = max(eigenvalues[-1], 0.0)
    noise = len(moments) * np.finfo(np.float64).eps * largest
    require(
        eigenvalues[0] >= -noise and largest > 0,
        f"gram has eigenvalues in [{eigenvalues[0]:.3g}, {eigenvalues[-1]:.3g}]: "
        "expected a sum of x xᵀ, whose eigenvalues are not negative and not all zero",
    )
    excited = eigenvalues > noise
    root, basis = np.sqrt(eigenvalues[excited]), vectors[:, excited]
    return basis * root, (basis / root).T


def _fast_svd(matrix: F64) -> tuple[F64, F64, F64]:
    """Return the thin SVD by the smaller Gram matrix: faster, with half the digits."""
    if len(matrix) > len(matrix.T):
        left, values, right = _fast_svd(matrix.T)
        return right.T, values, left.T
    squares, vectors = np.linalg.eigh(matrix @ matrix.T)
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    left = vectors[:, ::-1]
    scale = np.where(values > 0, values, 1.0)
    return left, values, (left.T @ matrix) / scale[:, None]


def break_even_rank(m: int, n: int) -> float:
    """The rank r = mn / (m + n) at which two factors hold as much as the matrix."""
    require(m > 0 and n > 0, f"a {m} x {n} matrix is empty: expected m, n > 0")
    return m * n / (m + n)


def rank_for_ratio(m: int, n: int, ratio: float) -> int | None:
    """The largest rank whose factors hold at most `ratio` of the matrix's entries.

    None where factors would not save: from a ratio of 1 on, or when even rank 1 is
    too large. The matrix then stays dense.
    """
    require(0 < ratio <= 1, f"ratio={ratio:g} must lie in (0, 1]: the share kept")
    rank = int(ratio * break_even_rank(m, n) * (1 + 1e-12))
    return rank if ratio < 1 and rank >= 1 else None


def rank_for_energy(values: ArrayLike, energy: float) -> int:
    """The smallest rank whose squared singular values make up `energy` of the sum.

    `values` (k,) descend. Raises InvalidInput for an energy outside (0, 1].
    """
    require(0 < energy <= 1, f"energy={energy:g} must lie in (0, 1]")
    squares = np.asarray(values, np.float64) ** 2
    share = np.cumsum(squares) / squares.sum()
    return min(int(np.searchsorted(share, energy * (1 - 1e-12))) + 1, len(squares))


@torch.no_grad()
def gram_matrices(
    model: nn.Module,
    batches: Iterable[Tensor],
    names: Iterable[str] | None = None,
) -> dict[str, F64]:
    """G = Σ x xᵀ over all inputs x of each linear layer, in float64.

    `batches` are what the model is called with, token ids (b, t) for a language
    model; `names` chooses layers, by default all but the output head. The model is
    observed, never changed. Raises InvalidInput without any batch.
    """
    return sum_grams(linears(model, names), model, batches)


def sum_grams(
    layers: Mapping[str, nn.Linear],
    run: Callable[[Tensor], object],
    batches: Iterable[Tensor],
) -> dict[str, F64]:
    """`gram_matrices` of these layers, while `run` takes one batch after the other."""
    totals: dict[str, Tensor] = {}
    # Projections share their input and so its Gram, unless it was changed in place.
    last: list[Any] = [None, 0, None]  # an input, its version, its Gram

    def observe(name: str):
        def hook(inputs: tuple[Tensor, ...], _: object) -> None:
            (x,) = inputs
            if last[0] is not x or last[1] != x._version:
                rows = x.detach().reshape(-1, x.shape[-1]).double()
                last[:] = [x, x._version, rows.T @ rows]
            if name in totals:
                totals[name] += last[2]
            else:
                totals[name] = last[2].clone()

        return hook

    with before({layer: observe(name) for name, layer in layers.items()}):
        for batch in batches:
            run(batch)
    silent = [name for name in layers if name not in totals]
    if silent:
        raise InvalidInput(
            f"no input reached {len(silent)} of {len(layers)} layers, such as "
            f"{silent[0]}: give at least one batch that runs through them"
        )
    return {name: total.cpu().numpy() for name, total in totals.items()}


def decompose_layers(
    model: nn.Module,
    grams: Mapping[str, F64] | None = None,
    names: Iterable[str] | None = None,
    output_factors: Mapping[str, F64] | None = None,
) -> dict[str, Decomposition]:
    """Decompose each linear layer once, for factors of any ratio below 1.

    Factors are kept in float32 up to the break-even rank, beyond which they would be
    larger than the matrix. Raises InvalidInput where `grams` or `output_factors` lack
    a layer, and for an invalid weight or moment, with the layer's name.
    """
    chosen = linears(model, names)
    for what, matrices in (("grams", grams), ("output_factors", output_factors)):
        missing = [
            name for name in chosen if matrices is not None and name not in matrices
        ]
        require(
            not missing,
            f"{what} hold no entry for {', '.join(missing)}: expected one for every "
            "layer, of the same model",
        )

    def decompose_one(name: str) -> Decomposition:
        layer = chosen[name]
        with naming(name):
            whole = decompose(
                layer.weight.detach().double().cpu().numpy(),
                None if grams is None else grams[name],
                None if output_factors is None else output_factors[name],
            )
        top = int(break_even_rank(layer.out_features, layer.in_features))
        return Decomposition(
            whole.left[:, :top].astype(np.float32),
            whole.right[:top].astype(np.float32),
            whole.values,
        )

    # One thread a matrix: two threads on one of this size mostly wait for each other.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cpu_count()) as pool:
        return dict(zip(chosen, pool.map(decompose_one, chosen), strict=True))


def uniform_ranks(
    model: nn.Module, ratio: float, names: Iterable[str] | None = None
) -> dict[str, int | None]:
    """The ranks at which each linear layer keeps `ratio` of its own entries."""
    return {
        name: rank_for_ratio(layer.out_features, layer.in_features, ratio)
        for name, layer in linears(model, names).items()
    }


def with_ranks(
    model: nn.Module,
    decompositions: Mapping[str, Decomposition],
    ranks: Mapping[str, int | None],
) -> nn.Module:
    """A copy of the model with factors of these ranks; None leaves a layer dense.

    The model itself is unchanged; factors take the dtype and device of the weight that
    they replace.
    """
    twin = copy.deepcopy(model)
    for name in linears(twin, ranks):
        if (rank := ranks[name]) is not None:
            # A singular Gram has less of them.
            rank = min(rank, len(decompositions[name].left.T))
            replace_by_factors(twin, name, *decompositions[name].factors(rank))
    return twin


def replace_by_factors(
    model: nn.Module, name: str, left: NDArray, right: NDArray
) -> None:
    """Put factors in the place of a linear layer, with its type, device and bias."""
    layer = linears(model, [name])[name]
    outer, inner = (torch.from_numpy(f).to(layer.weight) for f in (left, right))
    model.set_submodule(name, LowRankLinear(outer, inner, layer.bias))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which layer a rejection is about."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error
