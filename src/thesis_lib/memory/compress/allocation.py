"""Who gets how many bytes: ranks and bits where the next byte takes most off the loss.

Each matrix offers its choices, of more size and less loss. `allocate` walks down the
lower convex hulls of all of them together; `allocate_ranks` and `allocate_recipes` say
what a choice is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.stats import F64
from thesis_lib.memory.compress.blockwise import matrices, require_calibratable
from thesis_lib.memory.compress.fisher import output_factors
from thesis_lib.memory.compress.gptq import Metric, gptq, whitening
from thesis_lib.memory.compress.svd import (
    Decomposition,
    break_even_rank,
    gram_matrices,
)
from thesis_lib.memory.formats.low_bit import Grid, LowBitConfig
from thesis_lib.memory.model.linears import linears
from thesis_lib.memory.offload.architectures import stack


@dataclass(frozen=True, slots=True)
class Hull:
    """The lower convex hull of loss over size, step by step from the smallest choice.

    `rates` descend: no step pays more than the one before it.
    """

    smallest: int  # size of the first choice
    sizes: Sequence[int]  # (k,) what each step adds
    rates: Sequence[float]  # (k,) loss saved by each unit of size that a step adds


def allocate(
    hulls: Mapping[str, Hull], budget: float, fill: bool = False
) -> dict[str, int]:
    """How many steps to take down each hull within a budget of size, by name.

    Steps are taken by the loss that a unit of size saves, up to the first one that goes
    past the budget. No other choices of as much size, or less, then leave less loss,
    and a larger budget never takes a step back: Everett, Operations Research 11(3),
    1963. With `fill` the walk goes on with those steps of other hulls that still fit,
    which leaves less loss in the budget and gives both promises up.

    Raises InvalidInput where the smallest choices go past the budget.
    """
    used = sum(hull.smallest for hull in hulls.values())
    require(
        used <= budget,
        f"the smallest choices take {used:,} together, more than {budget:,.0f}: "
        "expected a larger budget, or smaller choices",
    )
    taken = dict.fromkeys(hulls, 0)
    steps = sorted(
        (-rate, name, place)
        for name, hull in hulls.items()
        for place, rate in enumerate(hull.rates)
    )
    for _, name, place in steps:
        fits = used + hulls[name].sizes[place] <= budget
        if fits and taken[name] == place:
            taken[name] += 1
            used += hulls[name].sizes[place]
        elif not fill:
            break
    return taken


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What each rank of an (m, n) matrix would save of the loss."""

    m: int
    n: int
    gains: F64  # (k,) loss saved by the first rank, the second, …; descending

    def hull(self) -> Hull:
        """Entries against loss: rank by rank, and last the jump to the matrix itself.

        The jump is made from the rank where it pays more than one more rank would.
        """
        pair = self.m + self.n
        top = min(int(np.ceil(break_even_rank(self.m, self.n))) - 1, len(self.gains))
        ranks = np.arange(1, max(top, 1) + 1)
        left = self.gains.sum() - np.cumsum(self.gains)[ranks - 1]
        jump = left / np.maximum(self.m * self.n - ranks * pair, 1)
        single = self.gains[1 : len(ranks)] / pair
        pays = np.flatnonzero(jump[:-1] >= single)
        last = int(ranks[pays[0]] if len(pays) else ranks[-1])
        return Hull(
            pair,
            [*[pair] * (last - 1), self.m * self.n - last * pair],
            np.append(single[: last - 1], jump[last - 1]).tolist(),
        )


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
    hulls = {name: spectrum.hull() for name, spectrum in spectra.items()}
    least = sum(hull.smallest for hull in hulls.values())
    require(
        least <= budget,
        f"ratio={ratio:g} keeps {int(budget):,} entries where rank 1 everywhere needs "
        f"{least:,}: expected a larger ratio",
    )
    return {
        name: steps + 1 if steps < len(hulls[name].sizes) else None
        for name, steps in allocate(hulls, budget).items()
    }


@dataclass(frozen=True, slots=True)
class Offer:
    """A way to store a matrix, or some that are stored alike: bytes and loss."""

    recipe: LowBitConfig
    nbytes: int
    loss: float


def offers(
    weight: F64, gram: F64, output_factor: F64, recipes: Iterable[LowBitConfig]
) -> list[Offer]:
    """What each recipe would cost a matrix (m, n).

    The loss of a rank is that of the first round with factors in full precision: the
    squares of the dropped singular values of what GPTQ leaves, whitened by `gram`
    (n, n) and `output_factor` (m, m).
    """
    outputs = whitening(output_factor, len(output_factor))
    squares: dict[Grid, F64] = {}
    found = []
    for recipe in recipes:
        grid = recipe.grid
        if grid not in squares:
            metric = Metric(whitening(gram, grid.group), outputs)
            error = weight - gptq(weight, metric.inputs, grid).restore()
            squares[grid] = _squared_singular_values(metric.whiten(error))
        loss = float(squares[grid][recipe.rank :].sum())
        found.append(Offer(recipe, recipe.nbytes(*weight.shape), loss))
    return found


def _squared_singular_values(matrix: F64) -> F64:
    """Descending; from the smaller one of its two products with itself."""
    wide = matrix if len(matrix) <= len(matrix.T) else matrix.T
    return np.maximum(np.linalg.eigvalsh(wide @ wide.T)[::-1], 0)


def judge(
    model: nn.Module,
    windows: Tensor,
    names: Sequence[str],
    recipes: Sequence[LowBitConfig],
) -> dict[str, list[Offer]]:
    """`offers` for matrices of a model, by names such as `0.mlp.up_proj`.

    Inputs and gradients are those of the model as it is, on `windows` (w, t) of token
    ids. Raises InvalidInput as `require_calibratable` does.
    """
    prefix, _ = stack(model)
    whole = {name: f"{prefix}.{name}" for name in names}
    require_calibratable(model, windows)
    outputs = output_factors(model, windows, "empirical", names=whole.values())
    grams = gram_matrices(model, windows[:, None], whole.values())
    layers = matrices(model)
    return {
        name: offers(
            layers[name].weight.detach().double().numpy(),
            grams[whole[name]],
            outputs[whole[name]],
            recipes,
        )
        for name in names
    }


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


def allocate_recipes(
    choices: Mapping[str, Sequence[Offer]], budget_bytes: int
) -> dict[str, LowBitConfig]:
    """One recipe for each matrix, within the bytes, where the next byte does most.

    The budget is filled, as `allocate` says. Raises InvalidInput where the cheapest
    recipes do not fit.
    """
    ends = {name: _lower_hull(some) for name, some in choices.items()}
    hulls = {
        name: Hull(
            hull[0].nbytes,
            [new.nbytes - old.nbytes for old, new in pairwise(hull)],
            [-_slope(old, new) for old, new in pairwise(hull)],
        )
        for name, hull in ends.items()
    }
    taken = allocate(hulls, budget_bytes, fill=True)
    return {name: ends[name][steps].recipe for name, steps in taken.items()}


def _lower_hull(some: Sequence[Offer]) -> list[Offer]:
    """The offers on the lower convex hull of loss over bytes, cheapest first."""
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
