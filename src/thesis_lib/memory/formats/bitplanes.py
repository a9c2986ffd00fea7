"""Checkpoints of two to four bits a weight, with or without a correction of low rank.

A matrix lies on the disk as what `correct` found: codes in planes of one bit, scales,
and the same of its two factors. A layer that computes with it restores the matrix into
memory of its own, which a plan counts, and multiplies by it: logits are those of a
dense model that holds the restored weights.
"""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.units import MiB
from thesis_lib.memory.formats.base import PackedLinear, WeightFormat, register
from thesis_lib.memory.formats.low_bit import (
    CompensatedMatrix,
    Grid,
    LowBitConfig,
)
from thesis_lib.memory.model.checkpoint import Entry, allocate

_RETURNED = 32 * MiB  # from here on the C library never keeps what it is given back
_WORKERS = 8
_SHARE = 2**22  # weights, at least, that one of several threads restores


def format_layout(recipes: Mapping[str, LowBitConfig]) -> str:
    """The names that a checkpoint uses for the recipes of a layer's matrices.

    By their names in the layer, such as mlp.up_proj=3b192+8r4b: three bits, a scale
    for each 192 inputs, and factors of rank 8 in four bits. All layers are alike.
    """
    return " ".join(
        f"{name}={one.grid.bits}b{one.grid.group}+{one.rank}r{one.factor_bits}b"
        for name, one in sorted(recipes.items())
    )


def parse_layout(layout: str) -> dict[str, LowBitConfig]:
    """The recipes that a layout names. Raises InvalidInput for any other text."""
    configs: dict[str, LowBitConfig] = {}
    for part in layout.split(" "):
        match = re.fullmatch(r"(.+)=(\d+)b(\d+)\+(\d+)r(\d+)b", part)
        if match is None:
            raise InvalidInput(
                f"layout {part!r} names no recipe: expected a matrix with its bits, "
                "group, rank and bits of factors, such as mlp.up_proj=3b192+8r4b"
            )
        bits, group, rank, factor_bits = map(int, match.groups()[1:])
        configs[match[1]] = LowBitConfig(Grid(bits, group), rank, factor_bits)
    return configs


def entries(recipe: LowBitConfig, m: int, n: int) -> dict[str, Entry]:
    """Types and shapes of what is stored of a matrix (m, n)."""
    stored: dict[str, Entry] = {}
    for part, (grid, rows, columns) in recipe.parts(m, n).items():
        require(
            columns % grid.group == 0,
            f"group={grid.group} does not divide {columns} inputs: expected a divisor",
        )
        stored[f"{part}codes"] = "U8", (rows, grid.bits, columns // 8)
        stored[f"{part}scales"] = "BF16", (rows, columns // grid.group)
    return stored


def pack(stored: CompensatedMatrix) -> dict[str, Tensor]:
    """The tensors that a checkpoint keeps of a matrix, as `entries` describes them."""
    packed: dict[str, Tensor] = {}
    for part, each in stored.parts.items():
        planes = np.arange(each.grid.bits, dtype=np.uint8)[:, None]
        bits = each.codes[:, None, :] >> planes & 1
        codes = np.packbits(bits, -1, bitorder="little")
        packed[f"{part}codes"] = torch.from_numpy(codes)
        packed[f"{part}scales"] = torch.from_numpy(each.scales).to(torch.bfloat16)
    return packed


def unpack(packed: Mapping[str, Tensor]) -> Tensor:
    """The matrix (m, n) in bfloat16 that packed tensors stand for.

    Bit for bit what `CompensatedMatrix.restore` computes, rounded.
    """
    left = packed.get("left_codes")
    factors = [] if left is None else [packed[name] for name in _FACTORS]
    return _restore(packed["codes"], packed["scales"], factors)


_FACTORS = ("left_codes", "left_scales", "right_codes", "right_scales")


@torch.library.custom_op("thesis_lib::restore_bits", mutates_args=())
def _restore(codes: Tensor, scales: Tensor, factors: list[Tensor]) -> Tensor:
    """An operator of its own: a rehearsal has no codes, and a meter sees its result."""
    m, n = codes.shape[0], 8 * codes.shape[2]
    left, right = _factors(factors, m, n)
    planes, steps = codes.numpy(), _words(scales)

    def fill(rows: slice, words: np.ndarray) -> None:
        _restore_rows(planes[rows], steps[rows], left[:, rows], right, words)

    return restore(m, n, fill)


def restore(m: int, n: int, fill: Callable[[slice, np.ndarray], None]) -> Tensor:
    """A matrix (m, n) in bfloat16, whose bits `fill` puts into their memory.

    It is called with a slice of rows and the words of these, (rows, n), by several
    threads with parts of the matrix, each but the last of an even number of rows.
    """
    out = _empty(m, n)
    words = _words(out)

    def share(start: int, stop: int) -> None:
        fill(slice(start, stop), words[start:stop])

    # A thread that computes with torch waits for the next product busily, for about a
    # millisecond: what is restored in less is restored sooner by one thread alone.
    workers = min(most_threads(m, n), torch.get_num_threads())
    ends = [2 * (part * m // (2 * workers)) for part in range(workers)] + [m]
    if workers == 1:
        share(0, m)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(share, ends, ends[1:]))
    return out


def _empty(m: int, n: int) -> Tensor:
    """Allocate a matrix (m, n) of bfloat16 in huge pages, which are faster to touch."""
    if 2 * m * n < _RETURNED:
        return torch.empty(m, n, dtype=torch.bfloat16)
    memory = allocate(2 * m * n)
    return torch.frombuffer(memory, dtype=torch.bfloat16).view(m, n)


def most_threads(m: int, n: int) -> int:
    """Return the most threads that restore a matrix (m, n)."""
    return max(1, min(_WORKERS, m * n // _SHARE))


@_restore.register_fake
def _(codes: Tensor, scales: Tensor, factors: list[Tensor]) -> Tensor:
    return codes.new_empty(codes.shape[0], 8 * codes.shape[2], dtype=torch.bfloat16)


def _words(numbers: Tensor) -> np.ndarray:
    """The memory of a tensor in bfloat16, a type that numpy does not know."""
    return numbers.view(torch.uint16).numpy()


def _factors(factors: list[Tensor], m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Lᵀ (r, m) and R (r, n), in float64."""
    if not factors:
        return np.empty((0, m)), np.empty((0, n))
    left, right = np.empty((len(factors[0]), m)), np.empty((len(factors[0]), n))
    for into, codes, scales in ((left, *factors[:2]), (right, *factors[2:])):
        _decode_rows(codes.numpy(), _words(scales), into)
    return left, right


@njit(cache=True, nogil=True)
def _restore_rows(planes, scales, left, right, out):
    """Fill `out` (m, n) with bfloat16 bits, two rows at a time; add `left`ᵀ `right`."""
    m, n = out.shape
    codes, steps = np.empty(n // 8, np.uint64), np.empty(scales.shape[1], np.uint32)
    single = np.empty(n, np.float32)
    if len(left) == 0:
        for row in range(m):
            _decode(planes[row], scales[row], codes, steps, single)
            round_words(single.view(np.uint32), out[row])
        return
    pair = np.empty((2, n))
    for row in range(0, m, 2):  # the rows of a factored matrix fill bytes: m is even
        for i in range(2):
            _decode(planes[row + i], scales[row + i], codes, steps, pair[i])
        _add_components(left[:, row : row + 2], right, pair)
        for i in range(2):
            single[:] = pair[i]
            round_words(single.view(np.uint32), out[row + i])


@njit(cache=True, nogil=True)
def _decode_rows(planes, scales, out):
    """Fill `out`, (m, n) in float64, from planes (m, bits, n / 8) and their scales."""
    codes = np.empty(out.shape[1] // 8, np.uint64)
    steps = np.empty(scales.shape[1], np.uint32)
    for row in range(len(out)):
        _decode(planes[row], scales[row], codes, steps, out[row])


@njit(cache=True, nogil=True)
def _decode(planes, scales, codes, steps, out):
    """One row. `codes`, (n / 8,), and `steps`, one a scale, are room to work in."""
    _spread(planes, codes)
    _widen(scales, steps)
    _scale(codes.view(np.uint8), steps.view(np.float32), len(planes), out)


# The eight bits of a byte as eight bytes.
_SPREAD = np.unpackbits(
    np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"
).view(np.uint64)[:, 0]


@njit(cache=True, nogil=True)
def _spread(planes, codes):
    """Eight codes, a byte each, to every word of `codes`, from planes (bits, n / 8)."""
    for byte in range(len(codes)):
        codes[byte] = _SPREAD[planes[0, byte]]
    for bit in range(1, len(planes)):
        plane, shift = planes[bit], np.uint64(bit)
        for byte in range(len(codes)):
            codes[byte] |= _SPREAD[plane[byte]] << shift


@njit(cache=True, nogil=True)
def _widen(halves, words):
    """The bits of bfloat16 numbers to those of the same ones in float32."""
    for i in range(len(halves)):
        words[i] = np.uint32(halves[i]) << np.uint32(16)


@njit(cache=True, nogil=True)
def _scale(codes, scales, bits, out):
    """Levels, (n,), of codes in as many groups as there are scales."""
    group = len(codes) // len(scales)
    middle = np.float32((2**bits - 1) / 2)
    for g in range(len(scales)):
        scale, start, end = scales[g], g * group, (g + 1) * group
        source, target = codes[start:end], out[start:end]
        for i in range(group):
            target[i] = scale * (np.float32(np.int32(source[i])) - middle)


@njit(cache=True, nogil=True)
def _add_components(left, right, rows):
    """Add left[k, i] right[k] to rows[i], in blocks that load `right` least often."""
    first, second = rows[0], rows[1]
    whole = len(left) // 4 * 4
    for k in range(0, whole, 4):
        a, b, c, d = left[k, 0], left[k + 1, 0], left[k + 2, 0], left[k + 3, 0]
        e, f, g, h = left[k, 1], left[k + 1, 1], left[k + 2, 1], left[k + 3, 1]
        one, two, three, four = right[k], right[k + 1], right[k + 2], right[k + 3]
        for i in range(len(first)):
            w, x, y, z = one[i], two[i], three[i], four[i]
            first[i] = first[i] + a * w + b * x + c * y + d * z
            second[i] = second[i] + e * w + f * x + g * y + h * z
    for k in range(whole, len(left)):
        for i in range(len(first)):
            first[i] += left[k, 0] * right[k, i]
            second[i] += left[k, 1] * right[k, i]


@njit(cache=True, nogil=True)
def round_words(words, halves):
    """The bits of float32 numbers to those of the nearest in bfloat16, ties to even.

    What is no number becomes the one that torch writes.
    """
    for i in range(len(words)):
        word = words[i]
        odd = word >> np.uint32(16) & np.uint32(1)
        near = (word + np.uint32(0x7FFF) + odd) >> np.uint32(16)
        no_number = word & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000)
        halves[i] = np.uint16(np.uint32(0x7FC0) if no_number else near)


@cache
def _compile(rank: int) -> None:
    """Compile the kernels before a pass: the compiler would hold the pass's tensors."""
    planes, scales = np.zeros((4, 1, 1), np.uint8), np.zeros((4, 1), np.uint16)
    left, right, out = np.zeros((rank, 4)), np.zeros((rank, 8)), np.zeros((4, 8))
    _decode_rows(planes, scales, out)
    for rows in (slice(4), slice(2)):
        words = np.zeros((4, 8), np.uint16)[rows]
        _restore_rows(planes[rows], scales[rows], left[:, rows], right, words)


class BitsLinear(PackedLinear):
    """A linear layer that restores its matrix for the time of a product."""

    def __init__(self, dense: nn.Linear, recipe: LowBitConfig) -> None:
        _compile(recipe.rank)
        super().__init__(dense, entries(recipe, dense.out_features, dense.in_features))
        self.recipe = recipe

    def scratch_bytes(self, rows: int) -> int:
        """Return the work space of a matrix, for any number of rows.

        Each thread has the codes of a row, its scales, and its numbers in float32, and
        with factors two rows in float64. The factors are in float64 too.
        """
        m, n, recipe = self.out_features, self.in_features, self.recipe
        row = n + 4 * n + 4 * (n // recipe.grid.group)
        if recipe.rank:
            row += 8 * 2 * n
        return most_threads(m, n) * row + 8 * recipe.rank * (m + n)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (…, n) to (…, m)."""
        weight = unpack(dict(self.named_buffers()))
        return nn.functional.linear(hidden, weight, self.bias)


@register
class LowBit(WeightFormat):
    """Codes of two to four bits; the layout says the recipe of each matrix."""

    kind = "bits"
    needs_processor = True

    @classmethod
    def here(cls) -> Self:
        """Refused: no word tells the recipes."""
        raise InvalidInput(
            "kind='bits' names no recipe of a matrix: expected a checkpoint that has "
            "them; write one with bits"
        )

    def recipe(self, name: str) -> LowBitConfig:
        """Return the layout of the matrix `name`. Raises InvalidInput without it."""
        recipes = parse_layout(self.layout)
        require(
            name in recipes,
            f"layout {self.layout!r} has no recipe for {name}: it is another "
            "architecture's",
        )
        return recipes[name]

    def matrix_entries(self, layer: int, name: str, entry: Entry) -> dict[str, Entry]:
        """Return what is stored of a matrix (m, n). Rejects one not in bfloat16."""
        require(
            entry[0] == "BF16",
            f"{name} is stored as {entry[0]}: expected a checkpoint in bfloat16, in "
            "which weights of few bits compute",
        )
        m, n = entry[1]
        return entries(self.recipe(name), m, n)

    def linear(self, layer: int, name: str, dense: nn.Linear) -> nn.Module:
        """The layer that restores the matrix."""
        return BitsLinear(dense, self.recipe(name))
