"""Checkpoints whose layers hold factors, each matrix with a rank of its own.

A matrix `a.weight`, (m, n), becomes `a.left`, (m, r), and `a.right`, (r, n), in the
model's own type; one that factors would not shrink stays as it is. The configuration
lists the ranks by layer and name, since no geometry tells them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.memory.formats.base import WeightFormat, read_by_layer, register
from thesis_lib.memory.model.checkpoint import Entry, split_name
from thesis_lib.memory.model.linears import linears


class LowRankLinear(nn.Module):
    """y = left (right x) + bias: a linear layer of rank r."""

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        require(
            left.shape[1] == right.shape[0],
            f"left {tuple(left.shape)} and right {tuple(right.shape)} do not chain: "
            "expected (m, r) and (r, n)",
        )
        self.left = nn.Parameter(left, requires_grad=False)  # (m, r)
        self.right = nn.Parameter(right, requires_grad=False)  # (r, n)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, n) to (…, m)."""
        inner = nn.functional.linear(x, self.right)
        return nn.functional.linear(inner, self.left, self.bias)


Ranks = Sequence[Mapping[str, int]]  # by layer: rank of each factorised matrix


@register
@dataclass(frozen=True)
class LowRank(WeightFormat):
    """Two factors for each matrix that has a rank in its layer."""

    kind = "lowrank"

    layout: str = "factors"
    ranks: Ranks = ()

    def __hash__(self) -> int:
        return hash(str(self.ranks))

    @classmethod
    def here(cls) -> Self:
        """Refused: no word tells the ranks."""
        raise InvalidInput(
            "kind='lowrank' says no ranks of factors: expected a checkpoint that has "
            "them; write one with rank_ratio"
        )

    @classmethod
    def read(cls, folder: Path, layout: str) -> Self:
        """Return the format with the ranks that the configuration lists."""
        return cls(layout, read_by_layer(folder, "ranks", int))

    def describe(self) -> dict[str, Any]:
        """The ranks too."""
        return {**super().describe(), "ranks": list(self.ranks)}

    def matrix_entries(self, layer: int, name: str, entry: Entry) -> dict[str, Entry]:
        """Factors (m, r) and (r, n) of a matrix (m, n), or the matrix."""
        dtype, (m, n) = entry[0], entry[1]
        rank = self.ranks[layer].get(name)
        if rank is None:
            return {"weight": entry}
        return {"left": (dtype, (m, rank)), "right": (dtype, (rank, n))}

    def swap(self, layers: nn.ModuleList) -> None:
        """Replace the linear layers. Rejects ranks of names without a matrix."""
        for layer, ranks in zip(layers, self.ranks, strict=True):
            linears(layer, ranks)
        super().swap(layers)

    def linear(self, layer: int, name: str, dense: nn.Linear) -> nn.Module:
        """A pair of factors. Rejects a rank that the matrix cannot have."""
        rank = self.ranks[layer].get(name)
        if rank is None:
            return dense
        m, n, dtype = dense.out_features, dense.in_features, dense.weight.dtype
        require(
            1 <= rank <= min(m, n),
            f"{name} is {m} x {n} and cannot have rank {rank}: expected 1 to "
            f"{min(m, n)}",
        )
        left = torch.empty(m, rank, dtype=dtype, device="meta")
        right = torch.empty(rank, n, dtype=dtype, device="meta")
        return LowRankLinear(left, right, dense.bias)

    def for_dry_run(self, layers: int) -> Self:
        """Return the format with the largest rank of each matrix in every layer."""
        return replace(self, ranks=[largest_ranks(self.ranks)] * layers)


def largest_ranks(ranks: Ranks) -> dict[str, int]:
    """The ranks of a layer that needs as much memory as any of them.

    A step holds the inner result of one pair of factors at a time, so the worst moment
    of all layers is the worst one of a layer that has the largest rank of each name.
    """
    largest: dict[str, int] = defaultdict(int)
    for layer in ranks:
        for name, rank in layer.items():
            largest[name] = max(largest[name], rank)
    return dict(largest)


def ranks_of(model: nn.Module, layers: int) -> list[dict[str, int]]:
    """The ranks of the factors in each decoder layer of a model."""
    ranks: list[dict[str, int]] = [{} for _ in range(layers)]
    for name, part in model.named_modules():
        if isinstance(part, LowRankLinear):
            number, inside = split_name(name)
            ranks[number][inside] = part.left.shape[1]
    return ranks
