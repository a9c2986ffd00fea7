"""Fewer bits a weight with the kernels of bitsandbytes: int8, NF4 and FP4.

`quantize` puts their layers in the place of a model's linear layers, in memory. `NF4`
and `Int8` store the same codes, so that a layer is read as its kernel wants it.
"""

import copy
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import norm
from torch import Tensor, nn

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import choice, require
from thesis_lib.common.stats import F64
from thesis_lib.common.units import KiB
from thesis_lib.memory.formats.base import PackedLinear, WeightFormat, register
from thesis_lib.memory.formats.low_bit import BITS
from thesis_lib.memory.model.checkpoint import Entry, entry_of
from thesis_lib.memory.model.linears import linears

KINDS = ("int8", "nf4", "fp4")
BLOCK = 64  # weights that share one scale in the 4-bit kinds
SCALE_BLOCK = 256  # scales that share one scale of scales
OUTLIER = 6.0  # LLM.int8() computes input columns beyond this in 16 bits

# Said by bitsandbytes on import and on every int8 product; neither tells a user of
# this module what it could do: the hub is not needed, and float16 is what int8 uses.
_EXPECTED_LOG = ("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be")


def blockwise_error(weight: ArrayLike, bits: int) -> float:
    """Relative Frobenius error of absmax quantisation in blocks of 64 entries.

    Blocks run along the rows of a matrix (m, n); n must be a multiple of 64.
    """
    blocks = normalized_blocks(weight)
    top = 2 ** (bits - 1) - 1
    require(bits in BITS, f"bits={bits} must be one of 2, 3, 4, 8")
    scale = np.abs(np.asarray(weight, np.float64).reshape(-1, BLOCK)).max(axis=1)
    error = (blocks - np.rint(blocks * top) / top) * scale[:, None]
    return float(np.linalg.norm(error) / np.linalg.norm(blocks * scale[:, None]))


def normalized_blocks(weight: ArrayLike) -> F64:
    """Blocks of a matrix's rows over their largest magnitude, (blocks, 64).

    Blocks of zeros stay zero. Raises InvalidInput for rows that blocks do not tile.
    """
    matrix = np.asarray(weight, np.float64)
    require(
        matrix.ndim == 2 and matrix.shape[1] % BLOCK == 0,
        f"weight of shape {matrix.shape} does not split into blocks of {BLOCK}: "
        "expected a matrix whose rows are a multiple of it",
    )
    blocks = matrix.reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    return np.divide(blocks, largest, out=np.zeros_like(blocks), where=largest > 0)


def nf4_levels() -> F64:
    """The 16 levels of NormalFloat4, ascending from -1 to 1, zero among them.

    Eight quantiles of the standard normal above zero and seven below it, each side
    spaced evenly in probability and scaled to end at one. Dettmers et al., QLoRA,
    NeurIPS 2023; the outermost probability is that of bitsandbytes.
    """
    outermost = 0.9677083
    above = norm.ppf(np.linspace(0.5, outermost, 9)[1:])
    below = -norm.ppf(np.linspace(0.5, outermost, 8)[1:])
    return np.concatenate([below[::-1] / above[-1], [0.0], above / above[-1]])


def levels(kind: str) -> F64:
    """The 16 levels of bitsandbytes' own 4-bit code book, ascending."""
    choice("kind", kind, ("nf4", "fp4"))
    book = bitsandbytes().functional.get_4bit_type(kind, device="cpu")
    return np.sort(book.double().numpy())


def quantize(
    model: nn.Module, kind: str, names: Iterable[str] | None = None
) -> nn.Module:
    """A copy of the model with its linear layers in int8, NF4 or FP4.

    int8 is LLM.int8(): one scale per output row, input columns with an entry beyond
    6 computed in 16 bits. NF4 and FP4 share a scale among 64 weights and quantise
    the scales once more (double quantisation). The embedding and the output head
    keep their precision; `names` chooses layers. The model itself is unchanged.

    Raises InvalidInput for another kind, for a model that is not in eval mode, and
    for layers that 4-bit kernels cannot take (inputs a multiple of 64, outputs of
    32). On a CPU with AVX512-BF16 the first forward pass of a 4-bit layer lays its
    codes out anew and unfolds its scales to bfloat16: count stored bytes before it.
    """
    choice("kind", kind, KINDS)
    require(not model.training, "model is in training mode: call model.eval() before")
    twin = copy.deepcopy(model)
    for name, layer in linears(twin, names).items():
        made = in_memory(layer, kind, name)
        made.bias = layer.bias
        twin.set_submodule(name, made.to(layer.weight.device))
    return twin.eval()


def in_memory(
    dense: nn.Linear, kind: str, name: str = "a layer", double: bool = True
) -> Any:
    """bitsandbytes' own layer of a weight, without its bias, as `quantize` says.

    4-bit scales are quantised once more if `double`.
    """
    bnb, weight = bitsandbytes(), dense.weight.data.cpu()
    shape = dense.in_features, dense.out_features
    if kind == "int8":
        state: dict[str, Any] = {"has_fp16_weights": False}
        options = state | {"bias": False, "threshold": OUTLIER, "device": "meta"}
        module = bnb.nn.Linear8bitLt(*shape, **options)
        module.weight = bnb.nn.Int8Params(weight, requires_grad=False, **state)
        return module
    require(
        shape[0] % BLOCK == 0 and shape[1] % 32 == 0,
        f"{name} has {shape[0]} inputs and {shape[1]} outputs: 4-bit kernels expect "
        f"multiples of {BLOCK} and 32; leave it out of names",
    )
    state = {"quant_type": kind, "compress_statistics": double}
    options = state | {"bias": False, "compute_dtype": weight.dtype, "device": "meta"}
    module = bnb.nn.Linear4bit(*shape, **options)
    module.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, blocksize=BLOCK, module=module, **state
    )
    return module


def four_bit_bytes(weights: int) -> int:
    """Bytes of one matrix of that many weights in NF4 or FP4, doubly quantised.

    Half a byte for each, a byte for the scale of each block of 64, and four bytes
    for each 256 scales and once for their mean.
    """
    require(
        weights > 0 and weights % BLOCK == 0,
        f"weights={weights} must be a positive multiple of {BLOCK}, the block",
    )
    scales = weights // BLOCK
    return weights // 2 + scales + 4 * -(-scales // SCALE_BLOCK) + 4


def weight_bytes(model: nn.Module, names: Iterable[str] | None = None) -> int:
    """Bytes that the weights of a model hold, or those of the submodules in `names`.

    Every tensor counts as it is now, scales and biases included, and one that is
    shared counts once. The 16 or 256 levels of a code book, constants of the format,
    do not count.
    """
    parts = [model] if names is None else [model.get_submodule(n) for n in names]
    held = {
        (tensor.untyped_storage().data_ptr(), tensor.storage_offset()): tensor
        for part in parts
        for layer in part.modules()
        for tensor in _tensors(layer)
    }
    return sum(tensor.nbytes for tensor in held.values())


def _tensors(layer: nn.Module) -> Iterable[Tensor]:
    """Return a layer's own weights, with the state that bitsandbytes adds."""
    yield from layer.parameters(recurse=False)
    weight = getattr(layer, "weight", None)
    if (state := getattr(weight, "quant_state", None)) is not None:
        yield state.absmax
        if state.nested:
            yield from (state.state2.absmax, state.offset)
    # The scales of an int8 layer move at its first forward pass.
    for holder in (weight, getattr(layer, "state", None)):
        if (scales := getattr(holder, "SCB", None)) is not None:
            yield scales


@cache
def bitsandbytes() -> ModuleType:
    """bitsandbytes, imported on first use and without its expected log lines."""
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).addFilter(
            lambda record: not record.msg.startswith(_EXPECTED_LOG)
        )
    import bitsandbytes

    return bitsandbytes


_TOGETHER = 32  # outputs that the kernel for AVX512-BF16 computes side by side
_SLACK = 64 * KiB  # what a kernel of a matrix product keeps for itself
_SLAB = 2**21  # weights quantised at a time
_THREADS = os.cpu_count() or 1


def _four_bit(weight: Tensor, fill: Callable[..., None], codes: Tensor) -> Tensor:
    """Fill the `codes` of a matrix (m, n); its scales, float32 (m, n / 64)."""
    m, n = weight.shape
    absmax = torch.empty(m, n // BLOCK)
    book = _code_book()
    bounds = ((book[:-1] + book[1:]) / 2).numpy()  # nearest level; NF4 ascends

    def quantize(start: int, stop: int) -> None:
        blocks = weight[start:stop].float().view(stop - start, -1, BLOCK)
        largest = blocks.abs().amax(-1)
        absmax[start:stop] = largest
        inverse = 1.0 / largest.clamp(min=1e-38)
        nibbles = np.empty((stop - start, n), np.uint8)
        _nearest(blocks.view(-1, n).numpy(), inverse.numpy(), bounds, nibbles)
        fill(nibbles, codes[start:stop].numpy())

    _by_rows(m, n, quantize)
    return absmax


def _by_rows(m: int, n: int, work: Callable[[int, int], None]) -> None:
    """Call `work(start, stop)` for slabs of rows, on all cores."""
    rows = max(_SLAB // n // _TOGETHER, 1) * _TOGETHER
    with ThreadPoolExecutor(_THREADS) as pool:
        done = [pool.submit(work, i, min(i + rows, m)) for i in range(0, m, rows)]
        for slab in done:
            slab.result()


@njit(cache=True, nogil=True)
def _nearest(rows, inverse, bounds, codes):
    """The code of each entry of `rows`, (m, n), scaled by `inverse`, (m, n / 64)."""
    m, n = rows.shape
    scaled = np.empty(64, np.float32)
    for row in range(m):
        for block in range(n // 64):
            factor = inverse[row, block]
            values = rows[row, block * 64 : block * 64 + 64]
            into = codes[row, block * 64 : block * 64 + 64]
            for k in range(64):
                scaled[k] = min(max(values[k] * factor, np.float32(-1)), np.float32(1))
                into[k] = 0
            for bound in bounds:
                for k in range(64):
                    into[k] += scaled[k] > bound


@njit(cache=True, nogil=True)
def _in_pairs(nibbles, codes):
    """Neighbours of a row in one byte, the first in its upper half."""
    m, half = codes.shape
    for row in range(m):
        for k in range(half):
            codes[row, k] = nibbles[row, 2 * k] << 4 | nibbles[row, 2 * k + 1]


@njit(cache=True, nogil=True)
def _side_by_side(nibbles, codes):
    """Pack 32 rows, r in the lower and r + 16 in the upper half, by tiles."""
    m, half = codes.shape
    flat = codes.reshape(-1)
    for first in range(0, m, 32):
        for tile in range(0, half, 32):
            for row in range(16):
                lower, upper = nibbles[first + row], nibbles[first + row + 16]
                for k in range(tile, tile + 32):
                    at = first * half + 32 * k + 2 * row
                    flat[at] = upper[2 * k] << 4 | lower[2 * k]
                    flat[at + 1] = upper[2 * k + 1] << 4 | lower[2 * k + 1]


class _AVX512(PackedLinear):
    codes: Tensor
    absmax: Tensor
    book: Tensor

    def __init__(self, dense: nn.Linear, entries: Mapping[str, Entry]) -> None:
        super().__init__(dense, entries)
        self.register_buffer("book", _code_book(), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        shape = [self.out_features, self.in_features]
        out = torch.ops.bitsandbytes.gemv_4bit.default(  # of any number of rows
            hidden, self.codes, shape, self.absmax, self.book, BLOCK
        )
        if self.bias is not None:
            out += self.bias
        return out


class _Blocks(PackedLinear):
    codes: Tensor
    absmax: Tensor

    def scratch_bytes(self, rows: int) -> int:
        m, n = self.out_features, self.in_features
        # The matrix in 16 bits and as the product lays it out, and sums of rows.
        return 4 * m * n + 4 * rows * (m + n) + _SLACK

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.ops.bitsandbytes.gemm_4bit.default(
            hidden,
            self.codes.view(-1, 1),
            [self.out_features, self.in_features],
            self.absmax.view(-1),
            BLOCK,
            "nf4",
            bias=self.bias,
        )


class _Rows(PackedLinear):
    codes: Tensor
    SCB: Tensor

    def scratch_bytes(self, rows: int) -> int:
        m, n = self.out_features, self.in_features
        # Input: in float16, its magnitudes, scaled, rounded; output: whole numbers,
        # scales, two products. Were every input column an outlier, then the matrix as
        # int8 and twice as float32.
        return rows * (16 * n + 20 * m) + 9 * m * n + _SLACK

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, self.in_features)
        out = _mixed_product(rows, self.codes, self.SCB, self.bias)
        return out.reshape(*hidden.shape[:-1], self.out_features)


@torch.library.custom_op("thesis_lib::int8_mixed_product", mutates_args=())
def _mixed_product(
    rows: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None
) -> Tensor:
    """Multiply by bitsandbytes' LLM.int8(), as an operator for rehearsals."""
    inputs, input_scales, outliers = bitsandbytes().functional.int8_vectorwise_quant(
        rows.half(), threshold=OUTLIER
    )
    return torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        rows, inputs, codes, input_scales, scales, outliers, bias
    )[0]


@_mixed_product.register_fake
def _(rows: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    return rows.new_empty(rows.shape[0], codes.shape[0])


@cache
def _code_book() -> Tensor:
    return bitsandbytes().functional.get_4bit_type("nf4", device="cpu")


@dataclass(frozen=True)
class _Packed(WeightFormat, ABC):
    """Codes and scales of bitsandbytes, bit for bit; scales are not quantised again."""

    layouts: ClassVar[tuple[str, ...]]  # from the fastest to the one that runs anywhere

    def __post_init__(self) -> None:
        choice(f"layout of {self.kind}", self.layout, self.layouts)

    @classmethod
    def here(cls) -> Self:
        """Return the fastest layout that this machine can run."""
        return cls(next(layout for layout in cls.layouts if _runs(layout)))

    def encode_matrix(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Codes and scales of a matrix (m, n). Rejects weights that are not finite."""
        names = self.matrix_entries(0, name, entry_of(weight))
        packed = self._pack(weight)
        require(
            bool(torch.isfinite(packed[1]).all()),
            f"{name}.weight holds weights that are not finite: they cannot be "
            "quantised",
        )
        return dict(zip(names, packed, strict=True))

    def swap(self, layers: nn.ModuleList) -> None:
        """Replace the linear layers. Rejects a layout that this machine cannot run."""
        require(
            _runs(self.layout),
            f"weights in the layout {self.layout!r} need a processor with AVX512-BF16, "
            "which this one lacks: pack the checkpoint again with "
            f"layout={self.layouts[-1]!r}",
        )
        super().swap(layers)

    def linear(self, layer: int, name: str, dense: nn.Linear) -> nn.Module:
        """The layer whose kernel reads this layout."""
        entry = "BF16", (dense.out_features, dense.in_features)
        return _LINEAR[self.layout](dense, self.matrix_entries(layer, name, entry))

    @abstractmethod
    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a matrix (m, n)."""


def _runs(layout: str) -> bool:
    return layout != "avx512" or bool(bitsandbytes().functional.has_avx512bf16())


_LINEAR = {"avx512": _AVX512, "blocks": _Blocks, "rows": _Rows}


@register
class NF4(_Packed):
    """Two codes in a byte, and a scale for each block of 64 weights."""

    kind = word = "nf4"
    layouts = ("avx512", "blocks")

    def matrix_entries(self, layer: int, name: str, entry: Entry) -> dict[str, Entry]:
        """Return what is stored of a matrix (m, n). Rejects partial blocks."""
        m, n = entry[1]
        require(
            n % BLOCK == 0 and m % _TOGETHER == 0,
            f"{name} has {n} inputs and {m} outputs: 4-bit kernels expect multiples of "
            f"{BLOCK} and {_TOGETHER}; use int8",
        )
        wide = self.layout == "avx512"
        scales = ("BF16", (n // BLOCK, m)) if wide else ("F32", (m, n // BLOCK))
        return {"codes": ("U8", (m, n // 2)), "absmax": scales}

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        m, n = weight.shape
        codes = torch.empty(m, n // 2, dtype=torch.uint8)
        if self.layout == "avx512":
            absmax = _four_bit(weight, _side_by_side, codes)
            return codes, absmax.T.to(torch.bfloat16).contiguous()
        return codes, _four_bit(weight, _in_pairs, codes)


@register
class Int8(_Packed):
    """One code in a byte, and a scale for each output."""

    kind = word = "int8"
    layouts = ("rows",)

    def matrix_entries(self, layer: int, name: str, entry: Entry) -> dict[str, Entry]:
        """Return what is stored of a matrix (m, n)."""
        m, n = entry[1]
        return {"codes": ("I8", (m, n)), "SCB": ("F32", (m,))}

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        m, n = weight.shape
        codes, scales = torch.empty(m, n, dtype=torch.int8), torch.empty(m)

        def quantize(start: int, stop: int) -> None:
            rows = weight[start:stop].half()  # as bitsandbytes does first
            codes[start:stop], scales[start:stop], _ = (
                bitsandbytes().functional.int8_vectorwise_quant(rows)
            )

        _by_rows(m, n, quantize)
        return codes, scales
