"""Allocate bytes: ranks and bits where the next byte reduces the loss most.

Each matrix offers its choices, of more size and less loss. `allocate` walks down the
lower convex hulls of all of them together; `allocate_ranks` and `allocate_recipes` say
what a choice is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.stats import F64
from thesis_lib.memory.compress.blockwise import matrices, require_calibratable
from thesis_lib.memory.compress.fisher import both_factors
from thesis_lib.memory.compress.gptq import Metric, gptq, whitening
from thesis_lib.memory.compress.svd import Decomposition
from thesis_lib.memory.formats.low_bit import Grid, LowBitConfig
from thesis_lib.memory.model.linears import linears
from thesis_lib.memory.offload.architectures import stack


@dataclass(frozen=True, slots=True)
class Offer:
    """A way to store a matrix, or some that are stored alike: its size and loss."""

    recipe: Any  # what is stored: a rank, or a LowBitConfig
    nbytes: int  # or entries, where all have one type
    loss: float


def allocate(
    offers: Mapping[str, Sequence[Offer]], budget: float, fill: bool = False
) -> dict[str, Offer]:
    """One offer for each matrix, by name, within a budget of size.

    Steps down the hulls of all are taken by the loss that a unit of size saves, up to
    the first one that goes past the budget. No other offers of as much size, or less,
    then leave less loss, and a larger budget never takes a step back: Everett,
    Operations Research 11(3), 1963. With `fill` the walk goes on with those steps of
    other hulls that still fit, which leaves less loss in the budget and gives both
    promises up.

    Raises InvalidInput where the smallest offers go past the budget.
    """
    hulls = {name: _lower_hull(some) for name, some in offers.items()}
    used = sum(hull[0].nbytes for hull in hulls.values())
    require(
        used <= budget,
        f"the smallest offers take {used:,} together, more than {budget:,.0f}: "
        "expected a larger budget, or smaller offers",
    )
    taken = dict.fromkeys(hulls, 0)
    steps = sorted(
        (_slope(old, new), name, place, new.nbytes - old.nbytes)
        for name, hull in hulls.items()
        for place, (old, new) in enumerate(pairwise(hull))
    )
    for _, name, place, size in steps:
        if used + size <= budget and taken[name] == place:
            taken[name] += 1
            used += size
        elif not fill:
            break
    return {name: hulls[name][place] for name, place in taken.items()}


def _lower_hull(some: Sequence[Offer]) -> list[Offer]:
    """The offers on the lower convex hull of loss over size, smallest first."""
    hull: list[Offer] = []
    for offer in sorted(some, key=lambda one: (one.nbytes, one.loss)):
        if hull and offer.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], offer):
            hull.pop()
        hull.append(offer)
    return hull


def _slope(one: Offer, other: Offer) -> float:
    return (other.loss - one.loss) / (other.nbytes - one.nbytes)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Return the reduction of the loss by each rank of an (m, n) matrix."""

    m: int
    n: int
    gains: F64  # (k,) loss saved by the first rank, the second, …; descending

    def offers(self) -> list[Offer]:
        """Yield each rank smaller than the matrix, and last the matrix itself."""
        m, n = self.m, self.n
        left = [*np.cumsum(self.gains[::-1])[::-1].tolist(), 0.0]  # by rank from 0
        smaller = range(1, min(-(-m * n // (m + n)), len(left)))
        # On unseen inputs, a rank that loses nothing here loses something.
        dense = Offer(None, m * n, -np.finfo(np.float64).tiny)
        return [*(Offer(rank, rank * (m + n), left[rank]) for rank in smaller), dense]


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


def allocate_ranks(
    spectra: Mapping[str, Spectrum], ratio: float
) -> dict[str, int | None]:
    """Ranks that keep at most `ratio` of the entries of all matrices together.

    None leaves a matrix dense. No other ranks with as many entries, or fewer, leave
    less loss, as `allocate` promises.

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
    taken = allocate({name: each.offers() for name, each in spectra.items()}, budget)
    return {name: offer.recipe for name, offer in taken.items()}


def allocate_recipes(
    choices: Mapping[str, Sequence[Offer]], budget_bytes: int
) -> dict[str, LowBitConfig]:
    """One recipe for each matrix, within the bytes, where the next byte does most.

    The budget is filled, as `allocate` says, and rejected as there.
    """
    taken = allocate(choices, budget_bytes, fill=True)
    return {name: offer.recipe for name, offer in taken.items()}


def judge(
    model: nn.Module,
    windows: Tensor,
    names: Sequence[str],
    recipes: Sequence[LowBitConfig],
) -> dict[str, list[Offer]]:
    """Return the cost of each recipe for matrices such as `0.mlp.up_proj`.

    Inputs and gradients are those of the model as it is, on `windows` (w, t) of token
    ids. The loss of a rank is that of the first round with factors in full precision:
    the squares of the dropped singular values of what GPTQ leaves, whitened by the
    moments of both. Raises InvalidInput as `require_calibratable` does.
    """
    prefix, _ = stack(model)
    whole = {name: f"{prefix}.{name}" for name in names}
    require_calibratable(model, windows)
    grams, outputs = both_factors(model, windows, "empirical", names=whole.values())
    layers = matrices(model)
    return {
        name: _offers(
            layers[name].weight.detach().double().numpy(),
            grams[whole[name]],
            outputs[whole[name]],
            recipes,
        )
        for name in names
    }


def _offers(
    weight: F64, gram: F64, output_factor: F64, recipes: Iterable[LowBitConfig]
) -> list[Offer]:
    outputs = whitening(output_factor, len(output_factor))
    squares: dict[Grid, F64] = {}
    for grid in {recipe.grid: None for recipe in recipes}:
        metric = Metric(whitening(gram, grid.group), outputs)
        error = weight - gptq(weight, metric.inputs, grid).restore()
        squares[grid] = _squared_singular_values(metric.whiten(error))
    return [
        Offer(
            one, one.nbytes(*weight.shape), float(squares[one.grid][one.rank :].sum())
        )
        for one in recipes
    ]


def _squared_singular_values(matrix: F64) -> F64:
    """Descending; from the smaller one of its two products with itself."""
    wide = matrix if len(matrix) <= len(matrix.T) else matrix.T
    return np.maximum(np.linalg.eigvalsh(wide @ wide.T)[::-1], 0)


def shares(some: Sequence[Offer], reference: LowBitConfig) -> pd.DataFrame:
    """Bytes and loss of each offer, over those of the reference.

    Indexed by bits and rank; columns `bytes` and `loss`. Raises InvalidInput without
    an offer of the reference.
    """
    base = next((one for one in some if one.recipe == reference), None)
    if base is None:
        raise InvalidInput(f"{reference} is not among the {len(some)} offers")
    index = pd.MultiIndex.from_tuples(
        [(one.recipe.grid.bits, one.recipe.rank) for one in some],
        names=["bits", "rank"],
    )
    rows = [(one.nbytes / base.nbytes, one.loss / base.loss) for one in some]
    return pd.DataFrame(rows, index=index, columns=["bytes", "loss"])


def alike(some: Iterable[Sequence[Offer]]) -> list[Offer]:
    """Offers for matrices that are stored alike, from those for each, in one order."""
    return [
        Offer(
            together[0].recipe,
            sum(one.nbytes for one in together),
            sum(one.loss for one in together),
        )
        for together in zip(*some, strict=True)
    ]
