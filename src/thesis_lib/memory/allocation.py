"""Which matrix gets how many ranks: the next entry goes where it saves most loss.

The squared singular values of matrices can be held against each other where all of
them estimate one loss, as those weighted by sensitivity do (`lowrank.decompose`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from thesis_lib.checks import require
from thesis_lib.memory.linears import linears
from thesis_lib.memory.lowrank import Decomposition, break_even_rank

F64 = NDArray[np.float64]


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
