"""Checkpoints whose layers hold factors, each matrix with a rank of its own.

A matrix `a.weight`, (m, n), becomes `a.left`, (m, r), and `a.right`, (r, n), in the
model's own type; one that factors would not shrink stays as it is. The configuration
lists the ranks by layer and name, since no geometry tells them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, read_object, require, shown
from thesis_lib.memory.model.checkpoint import split_name
from thesis_lib.memory.model.linears import linears, replace


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


LOW_RANK_KIND, LOW_RANK_LAYOUT = "lowrank", "factors"

Ranks = Sequence[Mapping[str, int]]  # by layer: rank of each factorised matrix

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def swap_factors(layer: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """Put factors of these ranks in the place of matrices of a layer, in place.

    Names are relative to the layer. The factors are on the meta device, and
    `torch.func.functional_call` runs the layer on those of a store. Returns the layer.
    Raises InvalidInput for a name without a matrix and for a rank that it cannot have.
    """
    for name, dense in linears(layer, ranks).items():
        m, n, rank = dense.out_features, dense.in_features, ranks[name]
        require(
            1 <= rank <= min(m, n),
            f"{name} is {m} x {n} and cannot have rank {rank}: expected 1 to "
            f"{min(m, n)}",
        )
        dtype = dense.weight.dtype
        left = torch.empty(m, rank, dtype=dtype, device="meta")
        right = torch.empty(rank, n, dtype=dtype, device="meta")
        replace(layer, name, LowRankLinear(left, right, dense.bias))
    return layer


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


def read_ranks(folder: Path | str) -> list[dict[str, int]]:
    """The ranks that the configuration of a factored checkpoint lists.

    Raises InvalidInput where it does not list those of every layer.
    """
    path = Path(folder) / "config.json"
    config = read_object(path, "the configuration of a factored checkpoint")
    packing = config.get("quantization_config")
    ranks: Any = packing.get("ranks") if isinstance(packing, dict) else None
    complete = (
        isinstance(ranks, list)
        and len(ranks) == config.get("num_hidden_layers")
        and all(isinstance(layer, dict) for layer in ranks)
        and all(type(rank) is int for layer in ranks for rank in layer.values())
    )
    if not complete:
        raise InvalidInput(
            f"{path} does not list the ranks of a factored checkpoint: expected one "
            f"object of whole numbers for each of "
            f"{shown(config.get('num_hidden_layers'))} layers; write the checkpoint "
            "again"
        )
    return ranks
