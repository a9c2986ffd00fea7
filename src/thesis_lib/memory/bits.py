"""Checkpoints of two to four bits a weight, with or without a correction of low rank.

A matrix lies on the disk as what `correct` found: codes in planes of one bit, scales,
and the same of its two factors. A layer that computes with it restores the matrix into
memory of its own, which a plan counts, and multiplies by it: logits are those of a
dense model that holds the restored weights.
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from thesis_lib.checks import InvalidInput, require
from thesis_lib.memory.checkpoint import Entry
from thesis_lib.memory.corrected import Corrected, Recipe
from thesis_lib.memory.linears import linears, replace
from thesis_lib.memory.rounding import Grid, Quantised

KIND = "bits"
_SLAB = 64  # outputs restored at a time


def layout_of(recipes: Mapping[str, Recipe]) -> str:
    """How a checkpoint names the recipes of the matrices of a layer.

    By their names in the layer, such as mlp.up_proj=3b192+8r4b: three bits, a scale
    for each 192 inputs, and factors of rank 8 in four bits. All layers are alike.
    """
    return " ".join(
        f"{name}={one.grid.bits}b{one.grid.group}+{one.rank}r{one.factor_bits}b"
        for name, one in sorted(recipes.items())
    )


def recipes_of(layout: str) -> dict[str, Recipe]:
    """The recipes that a layout names. Raises InvalidInput for any other text."""
    found: dict[str, Recipe] = {}
    for part in layout.split(" "):
        match = re.fullmatch(r"(.+)=(\d+)b(\d+)\+(\d+)r(\d+)b", part)
        if match is None:
            raise InvalidInput(
                f"layout {part!r} names no recipe: expected a matrix with its bits, "
                "group, rank and bits of factors, such as mlp.up_proj=3b192+8r4b"
            )
        bits, group, rank, factor_bits = map(int, match.groups()[1:])
        found[match[1]] = Recipe(Grid(bits, group), rank, factor_bits)
    return found


def entries(recipe: Recipe, m: int, n: int) -> dict[str, Entry]:
    """Types and shapes of what is stored of a matrix (m, n)."""
    stored = _quantised_entries(recipe.grid, "", m, n)
    if recipe.rank:
        left, right = recipe.factor_grids(m)
        stored |= _quantised_entries(left, "left_", recipe.rank, m)
        stored |= _quantised_entries(right, "right_", recipe.rank, n)
    return stored


def _quantised_entries(grid: Grid, prefix: str, m: int, n: int) -> dict[str, Entry]:
    require(
        n % grid.group == 0,
        f"group={grid.group} does not divide {n} inputs: expected a divisor",
    )
    return {
        f"{prefix}codes": ("U8", (m, grid.bits, n // 8)),
        f"{prefix}scales": ("BF16", (m, n // grid.group)),
    }


def pack(stored: Corrected) -> dict[str, Tensor]:
    """The tensors that a checkpoint keeps of a matrix, as `entries` describes them."""
    packed = _pack_quantised(stored.base, "")
    if stored.left is not None and stored.right is not None:
        packed |= _pack_quantised(stored.left, "left_")
        packed |= _pack_quantised(stored.right, "right_")
    return packed


def _pack_quantised(stored: Quantised, prefix: str) -> dict[str, Tensor]:
    planes = np.arange(stored.grid.bits, dtype=np.uint8)[:, None]
    bits = stored.codes[:, None, :] >> planes & 1
    return {
        f"{prefix}codes": torch.from_numpy(np.packbits(bits, -1, bitorder="little")),
        f"{prefix}scales": torch.from_numpy(stored.scales).to(torch.bfloat16),
    }


def unpack(packed: Mapping[str, Tensor]) -> Tensor:
    """The matrix (m, n) in bfloat16 that packed tensors stand for.

    Bit for bit what `Corrected.restore` computes, rounded.
    """
    left = packed.get("left_codes")
    factors = [] if left is None else [packed[name] for name in _FACTORS]
    return _restore(packed["codes"], packed["scales"], factors)


_FACTORS = ("left_codes", "left_scales", "right_codes", "right_scales")


@torch.library.custom_op("thesis_lib::restore_bits", mutates_args=())
def _restore(codes: Tensor, scales: Tensor, factors: list[Tensor]) -> Tensor:
    """An operator of its own: a rehearsal has no codes, and a meter sees its result."""
    m, n = codes.shape[0], 8 * codes.shape[2]
    out = torch.empty(m, n, dtype=torch.bfloat16)
    left, right = _factors(factors, m, n)
    slab = np.empty((min(_SLAB, m), n))
    for start in range(0, m, _SLAB):
        part = slab[: min(_SLAB, m - start)]
        rows = slice(start, start + len(part))
        steps = scales[rows].double().numpy()
        _decode(codes[rows].numpy(), steps, part)
        _add_product(left[:, rows], right, part)
        out[rows] = torch.from_numpy(part)
    return out


@_restore.register_fake
def _(codes: Tensor, scales: Tensor, factors: list[Tensor]) -> Tensor:
    return codes.new_empty(codes.shape[0], 8 * codes.shape[2], dtype=torch.bfloat16)


def _factors(factors: list[Tensor], m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Lᵀ (r, m) and R (r, n), in float64."""
    if not factors:
        return np.empty((0, m)), np.empty((0, n))
    left, right = np.empty((len(factors[0]), m)), np.empty((len(factors[0]), n))
    for into, codes, scales in ((left, *factors[:2]), (right, *factors[2:])):
        _decode(codes.numpy(), scales.double().numpy(), into)
    return left, right


@njit(cache=True, nogil=True)
def _decode(codes, scales, out):
    """Fill `out`, (m, n), from planes (m, bits, n / 8) and scales (m, groups)."""
    m, bits, eighth = codes.shape
    group = 8 * eighth // scales.shape[1]
    middle = (2**bits - 1) / 2
    for row in range(m):
        for byte in range(eighth):
            scale = scales[row, 8 * byte // group]
            for k in range(8):
                code = 0
                for bit in range(bits):
                    code |= (codes[row, bit, byte] >> k & 1) << bit
                out[row, 8 * byte + k] = scale * (code - middle)


@njit(cache=True, nogil=True)
def _add_product(left, right, out):
    """Add Lᵀ's transpose, (m, r), times R, (r, n), one component after the other."""
    for row in range(out.shape[0]):
        for k in range(len(left)):
            factor = left[k, row]
            for column in range(out.shape[1]):
                out[row, column] += factor * right[k, column]


class BitsLinear(nn.Module):
    """A linear layer that restores its matrix for the time of a product.

    Its state, on the meta device until it is lent one, is what `pack` writes.
    """

    def __init__(self, dense: nn.Linear, recipe: Recipe) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.recipe = recipe
        found = entries(recipe, dense.out_features, dense.in_features)
        for name, (dtype, shape) in found.items():
            torch_dtype = torch.uint8 if dtype == "U8" else torch.bfloat16
            self.register_buffer(name, torch.empty(shape, dtype=torch_dtype))
        self.bias = dense.bias

    def extra_repr(self) -> str:
        return f"{self.in_features} to {self.out_features}, {self.recipe}"

    def scratch_bytes(self, rows: int) -> int:
        """What restoring holds beside the matrix, whatever the number of rows.

        In float64: some rows of it, their scales, and the factors, the longer one with
        its scales.
        """
        m, n, recipe = self.out_features, self.in_features, self.recipe
        slab = min(_SLAB, m) * (n + n // recipe.grid.group)
        return 8 * (slab + recipe.rank * (m + 2 * n))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (…, n) to (…, m)."""
        weight = unpack(dict(self.named_buffers()))
        return nn.functional.linear(hidden, weight, self.bias)


def swap_bits(layer: nn.Module, layout: str) -> nn.Module:
    """Replace every `nn.Linear` of a decoder layer on the meta device, in place.

    As `packed.swap_linears`, with a recipe in the place of a kind. Returns the layer.
    Raises InvalidInput for a layout that lacks one of them.
    """
    recipes = recipes_of(layout)
    for name, dense in linears(layer).items():
        require(
            name in recipes,
            f"layout {layout!r} has no recipe for {name}: it is another architecture's",
        )
        with torch.device("meta"):
            replace(layer, name, BitsLinear(dense, recipes[name]))
    return layer
