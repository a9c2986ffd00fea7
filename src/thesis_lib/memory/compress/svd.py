"""Low-rank factors in place of a matrix: plain, and weighted by what flows in.

A linear layer y = W x with W of shape (m, n) becomes y = L (R x) with L (m, r) and
R (r, n). `decompose` finds the best factors of every rank at once, either of W
itself or, given the Gram matrix of the layer's inputs, of W as those inputs see it.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
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
from thesis_lib.memory.formats.lowrank import LowRankLinear
from thesis_lib.memory.model.linears import linears, replace

F64 = NDArray[np.float64]
BLIND = 1e-4  # of the mean sensitivity: what every output matters at least


@dataclass(frozen=True, slots=True)
class Decomposition:
    """The best factors of one (m, n) matrix for every rank up to k.

    `tail(r)` is the loss of rank r: the Frobenius norm of the error for a plain
    decomposition, and that of the error's output over the calibration inputs for a
    whitened one.
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

    def tail(self, rank: int) -> float:
        """Root of the sum of the squared singular values after the first `rank`."""
        return float(np.linalg.norm(self.values[rank:]))


def low_rank(weight: ArrayLike, rank: int) -> tuple[F64, F64]:
    """The best approximation of rank `rank`: left (m, rank), right (rank, n).

    The Frobenius norm of the error is the root of the sum of the squares of the
    dropped singular values; no matrix of this rank does better. Raises InvalidInput
    for a rank outside [1, min(m, n)]. Eckart and Young, Psychometrika 1(3), 1936.
    """
    return decompose(weight).factors(rank)


def whitened_low_rank(weight: ArrayLike, gram: ArrayLike, rank: int) -> tuple[F64, F64]:
    """The best factors of rank `rank` for inputs whose Gram matrix is `gram`.

    With gram G = Σ x xᵀ (n, n) = S Sᵀ, the squared error of the layer's outputs over
    those inputs is ‖(W − L R) S‖², which is the sum of the squares of the dropped
    singular values of W S. Raises InvalidInput for a gram that is not symmetric
    positive semidefinite. The whitening of SVD-LLM, Wang et al., ICLR 2025.
    """
    return decompose(weight, gram).factors(rank)


def decompose(
    weight: ArrayLike,
    gram: ArrayLike | None = None,
    sensitivity: ArrayLike | None = None,
) -> Decomposition:
    """The factors of every rank of an (m, n) matrix, computed in float64.

    With `gram` (n, n) they are whitened: the singular values are those of W S with
    G = S Sᵀ. A singular G, from fewer inputs than features, leaves a smaller top
    rank: what no input excites is dropped. With `sensitivity` (m, m) = T Tᵀ as well,
    the second moment of the loss's gradient at the outputs, they are those of Tᵀ W S,
    and their squares estimate what the *loss* loses, not the layer: the Kronecker
    factorisation of the Fisher information, Martens and Grosse, ICML 2015.

    Whitened values below 1e-8 of the largest are lost in rounding.
    """
    matrix = np.asarray(weight, np.float64)
    require(
        matrix.ndim == 2 and bool(np.isfinite(matrix).all()),
        f"weight of shape {matrix.shape} must be a finite matrix",
    )
    if gram is None:
        require(sensitivity is None, "a sensitivity needs a gram beside it: give both")
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
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
    found = np.asarray(moments, np.float64)
    require(
        found.shape == (size, size),
        f"{name} has shape {found.shape}: expected ({size}, {size})",
    )
    require(
        bool(np.isfinite(found).all())
        and np.allclose(found, found.T, rtol=1e-9, atol=1e-12 * np.trace(found)),
        f"{name} must be finite and symmetric: expected a sum of x xᵀ over vectors x",
    )
    return found


def _root(moments: F64) -> tuple[F64, F64]:
    """S (n, k) with S Sᵀ = moments, and a left inverse (k, n) of it."""
    try:
        lower = cholesky(moments, lower=True, check_finite=False)
    except LinAlgError:
        return _singular_root(moments)
    eye = np.eye(len(moments))
    return lower, solve_triangular(lower, eye, lower=True, overwrite_b=True)


def _singular_root(moments: F64) -> tuple[F64, F64]:
    """By eigenvectors, of the directions that carry any input."""
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
    """The thin singular value decomposition by eigenvectors of the smaller Gram.

    Several times faster than a bidiagonalisation, at half of its digits.
    """
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
    chosen = linears(model, names)
    totals: dict[str, Tensor] = {}
    # Projections share their input and so its Gram, unless it was changed in place.
    last: list[Any] = [None, 0, None]  # an input, its version, its Gram

    def observe(name: str):
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (x,) = inputs
            if last[0] is not x or last[1] != x._version:
                rows = x.reshape(-1, x.shape[-1]).double()
                last[:] = [x, x._version, rows.T @ rows]
            if name in totals:
                totals[name] += last[2]
            else:
                totals[name] = last[2].clone()

        return hook

    hooks = [
        layer.register_forward_pre_hook(observe(name)) for name, layer in chosen.items()
    ]
    try:
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    silent = [name for name in chosen if name not in totals]
    if silent:
        raise InvalidInput(
            f"no input reached {len(silent)} of {len(chosen)} layers, such as "
            f"{silent[0]}: give at least one batch that runs through them"
        )
    return {name: total.cpu().numpy() for name, total in totals.items()}


def decompose_layers(
    model: nn.Module,
    grams: Mapping[str, F64] | None = None,
    names: Iterable[str] | None = None,
    sensitivities: Mapping[str, F64] | None = None,
) -> dict[str, Decomposition]:
    """Decompose each linear layer once, for factors of any ratio below 1.

    Factors are kept in float32 and up to the break-even rank: beyond it nobody
    stores them. Raises InvalidInput where `grams` or `sensitivities` lack a layer, and
    for a weight or a moment that is none, by the layer's name.
    """
    chosen = linears(model, names)
    for what, given in (("grams", grams), ("sensitivities", sensitivities)):
        missing = [name for name in chosen if given is not None and name not in given]
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
                None if sensitivities is None else sensitivities[name],
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


def with_factors(
    model: nn.Module, decompositions: Mapping[str, Decomposition], ratio: float
) -> nn.Module:
    """A copy of the model with each decomposed layer at `ratio` of its entries.

    The model itself is unchanged. Layers that factors would not shrink stay dense;
    factors take the dtype and device of the weight that they replace. Raises
    InvalidInput for a ratio outside (0, 1].
    """
    return with_ranks(
        model, decompositions, uniform_ranks(model, ratio, decompositions)
    )


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
    """A copy of the model with factors of these ranks; None leaves a layer dense."""
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
    replace(model, name, LowRankLinear(outer, inner, layer.bias))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which layer a refusal is about."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error


def factorise(
    model: nn.Module,
    ratio: float,
    grams: Mapping[str, F64] | None = None,
    names: Iterable[str] | None = None,
) -> nn.Module:
    """A copy of the model whose linear layers keep `ratio` of their entries.

    Plain truncation without `grams`, whitened with them. To try several ratios,
    decompose once with `decompose_layers` and call `with_factors` for each.
    """
    return with_factors(model, decompose_layers(model, grams, names), ratio)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What each rank of an (m, n) matrix would save of the loss."""

    m: int
    n: int
    gains: F64  # (k,) loss saved by the first rank, the second, …; descending

    def loss(self, rank: int | None) -> float:
        """The loss that is left at a rank; none where the matrix stays dense."""
        return 0.0 if rank is None else float(self.gains[rank:].sum())

    def entries(self, rank: int | None) -> int:
        """The entries that are stored."""
        return self.m * self.n if rank is None else rank * (self.m + self.n)

    def steps(self) -> tuple[F64, int]:
        """Loss saved by an entry in each step from rank 1 on, and the last rank.

        Ranks one by one, up to the one from which it pays more to leave the matrix
        dense; that jump is the last step. The savings descend: the steps walk along
        the lower convex hull of loss over entries.
        """
        top = min(int(np.ceil(break_even_rank(self.m, self.n))) - 1, len(self.gains))
        ranks = np.arange(1, max(top, 1) + 1)
        left = self.gains.sum() - np.cumsum(self.gains)[ranks - 1]
        jump = left / np.maximum(self.m * self.n - ranks * (self.m + self.n), 1)
        single = self.gains[1 : len(ranks)] / (self.m + self.n)
        pays = np.flatnonzero(jump[:-1] >= single)
        last = int(ranks[pays[0]] if len(pays) else ranks[-1])
        return np.append(single[: last - 1], jump[last - 1]), last


def allocate_ranks(
    spectra: Mapping[str, Spectrum], ratio: float
) -> dict[str, int | None]:
    """Ranks that keep at most `ratio` of the entries of all matrices together.

    None leaves a matrix dense. No other ranks with as many entries, or fewer, leave
    less loss: steps are taken by the loss that an entry saves, up to the first one that
    goes past the budget. Everett, Operations Research 11(3), 1963.

    Raises InvalidInput for a ratio outside (0, 1], for one that rank 1 everywhere
    exceeds already, and for gains that do not descend or are not finite.
    """
    require(0 < ratio <= 1, f"ratio={ratio:g} must lie in (0, 1]: the share kept")
    for name, spectrum in spectra.items():
        gains = spectrum.gains
        require(
            len(gains) > 0
            and bool(np.isfinite(gains).all())
            and bool((np.diff(gains) <= 0).all() and gains[-1] >= 0),
            f"gains of {name} must be finite, descending and not negative",
        )
    budget = ratio * sum(each.m * each.n for each in spectra.values()) * (1 + 1e-12)
    ranks: dict[str, int | None] = dict.fromkeys(spectra, 1)
    used = sum(each.entries(1) for each in spectra.values())
    require(
        used <= budget,
        f"ratio={ratio:g} keeps {int(budget):,} entries where rank 1 everywhere needs "
        f"{used:,}: expected a larger ratio",
    )
    walks = {name: spectrum.steps() for name, spectrum in spectra.items()}
    steps = sorted(
        (-float(saved), name, at + 2)
        for name, (savings, _) in walks.items()
        for at, saved in enumerate(savings)
    )
    for _, name, rank in steps:
        spectrum, last = spectra[name], walks[name][1]
        target = rank if rank <= last else None
        more = spectrum.entries(target) - spectrum.entries(ranks[name])
        if used + more > budget:
            break
        ranks[name], used = target, used + more
    return ranks


def spectra(
    model: nn.Module, decompositions: Mapping[str, Decomposition]
) -> dict[str, Spectrum]:
    """The spectra of decompositions whose squared values estimate one loss."""
    return {
        name: Spectrum(
            layer.out_features, layer.in_features, decompositions[name].values ** 2
        )
        for name, layer in linears(model, decompositions).items()
    }
