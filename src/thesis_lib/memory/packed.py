"""Checkpoints whose matrices are NF4 or int8, in the very bytes that kernels read.

bitsandbytes quantises a model in memory, and on a processor with AVX512-BF16 lays its
4-bit codes out anew at the first forward pass, which takes seconds a layer. A model
that streams has no first pass, only next ones: here the codes lie on the disk as the
kernel wants them, and it reads them in the staging buffer, without a copy.

Three layouts. `rows` of int8 is LLM.int8(): a byte for each weight and a float32 scale
for each output. `blocks` of NF4 is bitsandbytes' own, on every processor and on a GPU:
two weights in a byte and a float32 scale for each 64. `avx512` is what it makes of that
where the processor has AVX512-BF16: 32 outputs side by side and bfloat16 scales.
"""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from thesis_lib.checks import choice, read_object, require
from thesis_lib.memory.checkpoint import (
    OUTER,
    Entry,
    file_bytes,
    in_file_order,
    nbytes,
    new_checkpoint,
)
from thesis_lib.memory.linears import replace
from thesis_lib.memory.pages import allocate
from thesis_lib.memory.quantise import BLOCK, OUTLIER, bitsandbytes
from thesis_lib.memory.store import SafetensorsStore
from thesis_lib.units import KiB

LAYOUTS = {"nf4": ("avx512", "blocks"), "int8": ("rows",)}
KINDS = tuple(LAYOUTS)
_TOGETHER = 32  # outputs that the kernel for AVX512-BF16 computes side by side
_SLACK = 64 * KiB  # what a kernel of a matrix product keeps for itself
_SLAB = 2**21  # weights quantised at a time
_THREADS = os.cpu_count() or 1


def layout_here(kind: str) -> str:
    """The fastest layout of a kind that this machine can run."""
    choice("kind", kind, KINDS)
    return next(layout for layout in LAYOUTS[kind] if _runs(layout))


def require_layout(kind: str, layout: str) -> str:
    """Return `layout`, or refuse one that is unknown or that cannot run here."""
    choice("kind", kind, KINDS)
    choice(f"layout of {kind}", layout, LAYOUTS[kind])
    require(
        _runs(layout),
        f"weights in the layout {layout!r} need a processor with AVX512-BF16, which "
        f"this one lacks: pack the checkpoint again with layout={LAYOUTS[kind][-1]!r}",
    )
    return layout


def _runs(layout: str) -> bool:
    return layout != "avx512" or bool(bitsandbytes().functional.has_avx512bf16())


def pack_layer(
    tensors: Mapping[str, Tensor], kind: str, layout: str | None = None
) -> dict[str, Tensor]:
    """The packed tensors of one decoder layer, from its dense ones.

    Names are relative to the layer. A matrix `a.weight`, (m, n), becomes `a.codes` and
    the scales `a.absmax` (NF4) or `a.SCB` (int8); all else, biases and norms, stays as
    it is. The codes are those of bitsandbytes, bit for bit; scales are not quantised
    once more. `layout` is that of this machine unless given.

    Raises InvalidInput for another kind or layout, for weights that are not finite, and
    for a matrix that does not fill the blocks of NF4.
    """
    layout = layout_here(kind) if layout is None else layout
    choice(f"layout of {kind}", layout, LAYOUTS[kind])
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_matrix(name, tuple(tensor.shape)):
            packed[name] = tensor
            continue
        module = name.removesuffix(".weight")
        _require_shape(module, tensor.shape[0], tensor.shape[1], kind)
        codes, scales = _PACK[layout](tensor)
        require(
            bool(torch.isfinite(scales).all()),
            f"{name} holds weights that are not finite: they cannot be quantised",
        )
        packed |= {f"{module}.codes": codes, f"{module}.{_SCALES[kind]}": scales}
    return packed


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a decoder layer is the weight of an `nn.Linear`."""
    return len(shape) == 2 and name.endswith(".weight")


def packed_entries(
    entries: Mapping[str, Entry], kind: str, layout: str
) -> dict[str, Entry]:
    """Types and shapes of what `pack_layer` makes of tensors of these."""
    packed: dict[str, Entry] = {}
    for name, (dtype, shape) in entries.items():
        if not is_matrix(name, shape):
            packed[name] = dtype, shape
            continue
        module = name.removesuffix(".weight")
        m, n = shape
        _require_shape(module, m, n, kind)
        codes, scales = _FORMAT[layout](m, n)
        packed |= {f"{module}.codes": codes, f"{module}.{_SCALES[kind]}": scales}
    return packed


_SCALES = {"nf4": "absmax", "int8": "SCB"}
_FORMAT: dict[str, Callable[[int, int], tuple[Entry, Entry]]] = {
    "avx512": lambda m, n: (("U8", (m, n // 2)), ("BF16", (n // BLOCK, m))),
    "blocks": lambda m, n: (("U8", (m, n // 2)), ("F32", (m, n // BLOCK))),
    "rows": lambda m, n: (("I8", (m, n)), ("F32", (m,))),
}
_DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _require_shape(name: str, m: int, n: int, kind: str) -> None:
    require(
        kind != "nf4" or (n % BLOCK == 0 and m % _TOGETHER == 0),
        f"{name} has {n} inputs and {m} outputs: 4-bit kernels expect multiples of "
        f"{BLOCK} and {_TOGETHER}; use int8",
    )


def _four_bit(weight: Tensor, fill: Callable[..., None], codes: Tensor) -> Tensor:
    """Fill the `codes` of a matrix (m, n); its scales, float32 (m, n / 64)."""
    m, n = weight.shape
    absmax = torch.empty(m, n // BLOCK)
    book = _code_book()
    bounds = ((book[:-1] + book[1:]) / 2).numpy()  # nearest level; NF4 ascends

    def quantise(start: int, stop: int) -> None:
        blocks = weight[start:stop].float().view(stop - start, -1, BLOCK)
        largest = blocks.abs().amax(-1)
        absmax[start:stop] = largest
        inverse = 1.0 / largest.clamp(min=1e-38)
        nibbles = np.empty((stop - start, n), np.uint8)
        _nearest(blocks.view(-1, n).numpy(), inverse.numpy(), bounds, nibbles)
        fill(nibbles, codes[start:stop].numpy())

    _by_rows(m, n, quantise)
    return absmax


def _by_rows(m: int, n: int, work: Callable[[int, int], None]) -> None:
    """Call `work(start, stop)` for slabs of rows, on all cores."""
    rows = max(_SLAB // n // _TOGETHER, 1) * _TOGETHER
    with ThreadPoolExecutor(_THREADS) as pool:
        done = [pool.submit(work, i, min(i + rows, m)) for i in range(0, m, rows)]
        for slab in done:
            slab.result()


def _pack_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.empty(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8)
    return codes, _four_bit(weight, _in_pairs, codes)


def _pack_avx512(weight: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.empty(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8)
    absmax = _four_bit(weight, _side_by_side, codes)
    return codes, absmax.T.to(torch.bfloat16).contiguous()


def _pack_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    m, n = weight.shape
    codes, scales = torch.empty(m, n, dtype=torch.int8), torch.empty(m)

    def quantise(start: int, stop: int) -> None:
        rows = weight[start:stop].half()  # as bitsandbytes does first
        codes[start:stop], scales[start:stop], _ = (
            bitsandbytes().functional.int8_vectorwise_quant(rows)
        )

    _by_rows(m, n, quantise)
    return codes, scales


_PACK = {"avx512": _pack_avx512, "blocks": _pack_blocks, "rows": _pack_rows}


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
    """32 rows side by side, row r in the lower and r + 16 in the upper half.

    In tiles of 64 columns, whose reads and writes stay in the first cache.
    """
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


class PackedLinear(nn.Module, ABC):
    """A linear layer over packed weights, which `functional_call` puts in its place.

    Its state, on the meta device until then, is what `pack_layer` writes.
    """

    codes: Tensor
    bias: Tensor | None

    def __init__(self, dense: nn.Linear, kind: str, layout: str) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        for name, (dtype, shape) in zip(
            ("codes", _SCALES[kind]),
            _FORMAT[layout](dense.out_features, dense.in_features),
            strict=True,
        ):
            empty = torch.empty(shape, dtype=_DTYPES[dtype], device="meta")
            self.register_buffer(name, empty)
        self.bias = dense.bias

    def extra_repr(self) -> str:
        return f"{self.in_features} to {self.out_features}"

    @abstractmethod
    def scratch_bytes(self, rows: int) -> int:
        """The most that the kernel holds beside inputs, weights and output.

        For `rows` rows of 16-bit inputs. Its own buffers show to no meter of tensors.
        """


class _AVX512(PackedLinear):
    absmax: Tensor
    book: Tensor

    def __init__(self, dense: nn.Linear, kind: str, layout: str) -> None:
        super().__init__(dense, kind, layout)
        self.register_buffer("book", _code_book(), persistent=False)

    def scratch_bytes(self, rows: int) -> int:
        return 0

    def forward(self, hidden: Tensor) -> Tensor:
        shape = [self.out_features, self.in_features]
        out = torch.ops.bitsandbytes.gemv_4bit.default(  # of any number of rows
            hidden, self.codes, shape, self.absmax, self.book, BLOCK
        )
        if self.bias is not None:
            out += self.bias
        return out


class _Blocks(PackedLinear):
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
    """The product of LLM.int8(), by bitsandbytes.

    An operator of its own: how many columns are computed in 16 bits depends on the
    values, and a rehearsal has none.
    """
    inputs, input_scales, outliers = bitsandbytes().functional.int8_vectorwise_quant(
        rows.half(), threshold=OUTLIER
    )
    return torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        rows, inputs, codes, input_scales, scales, outliers, bias
    )[0]


@_mixed_product.register_fake
def _(rows: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    return rows.new_empty(rows.shape[0], codes.shape[0])


_LINEAR = {"avx512": _AVX512, "blocks": _Blocks, "rows": _Rows}


@cache
def _code_book() -> Tensor:
    return bitsandbytes().functional.get_4bit_type("nf4", device="cpu")


def swap_linears(layer: nn.Module, kind: str, layout: str | None = None) -> nn.Module:
    """Replace every `nn.Linear` of a decoder layer on the meta device, in place.

    The names, shapes and types of its state are then those that `pack_layer` writes,
    and `torch.func.functional_call` runs it on views of them. Returns the layer. Raises
    InvalidInput for a layer without linear layers, and for a layout that this machine
    cannot run.
    """
    layout = require_layout(kind, layout_here(kind) if layout is None else layout)
    found = {n: part for n, part in layer.named_modules() if type(part) is nn.Linear}
    require(bool(found), f"{type(layer).__name__} holds no nn.Linear to pack")
    for name, dense in found.items():
        _require_shape(name, dense.out_features, dense.in_features, kind)
        replace(layer, name, _LINEAR[layout](dense, kind, layout))
    return layer


def contents(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """The bytes of one tensor after the other."""
    for tensor in tensors:
        yield tensor.contiguous().view(torch.uint8).numpy().data.cast("B")


def describe(kind: str, layout: str) -> dict[str, Any]:
    """What the configuration of a packed checkpoint says of it.

    transformers, which does not know it, then warns, and misses every matrix.
    """
    return {"quant_method": "thesis_lib", "kind": kind, "layout": layout}


def copy_description(folder: Path, out: Path, packing: dict[str, Any]) -> None:
    """Copy configuration and tokenizer, and say how the weights are packed."""
    for path in folder.iterdir():
        if path.suffix in {".json", ".txt", ".model", ".jinja"}:
            shutil.copyfile(path, out / path.name)
    config = read_object(folder / "config.json", "the configuration of a checkpoint")
    config["quantization_config"] = packing
    text = json.dumps(config, indent=2, sort_keys=True)
    (out / "config.json").write_text(text + "\n")


def pack_checkpoint(
    folder: Path | str,
    out: Path | str,
    kind: str,
    layout: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the checkpoint `folder` with packed layers into the new folder `out`.

    Embedding, final norm and output head keep their bytes, as do the configuration and
    the tokenizer. One layer is in memory at a time; all or nothing, as
    `new_checkpoint`. `progress` hears of layers done and of all. Returns `bytes_before`
    and `bytes_after` of the tensors, and `layers`.

    Raises InvalidInput for a checkpoint that is packed already, and as `pack_layer` and
    the store do.
    """
    folder = Path(folder)
    layout = layout_here(kind) if layout is None else layout
    with SafetensorsStore(folder) as store:
        require(
            store.kind == "dense",
            f"{folder} is packed as {store.kind} already: pack the checkpoint that it "
            "was made from",
        )
        parts: dict[int, dict[str, Entry]] = {
            layer: {p.name: (p.dtype, p.shape) for p in store.placements(layer)}
            for layer in range(OUTER, store.layers)
        }
        packed = {
            layer: part if layer == OUTER else packed_entries(part, kind, layout)
            for layer, part in parts.items()
        }
        named = {
            layer: {store.full_name(layer, name): part[name] for name in part}
            for layer, part in packed.items()
        }
        needed = sum(file_bytes(part) for part in named.values())
        with new_checkpoint(Path(out), needed) as checkpoint:
            copy_description(folder, checkpoint.folder, describe(kind, layout))
            for layer in range(OUTER, store.layers):
                buffer = allocate(store.nbytes(layer))
                store.read_layer(layer, buffer).wait()
                raw = torch.frombuffer(buffer, dtype=torch.uint8)
                tensors = {
                    p.name: raw[p.start : p.start + p.nbytes]
                    .view(_DTYPES[p.dtype])
                    .view(p.shape)
                    for p in store.placements(layer)
                }
                if layer != OUTER:
                    tensors = pack_layer(tensors, kind, layout)
                ordered = [tensors[name] for name in in_file_order(packed[layer])]
                checkpoint.write(layer, named[layer], contents(ordered))
                if progress is not None:
                    progress(layer + 1, store.layers)
            checkpoint.finish(kind=kind, layout=layout, layers=store.layers)
        return {
            "bytes_before": sum(map(store.tensor_bytes, parts)),
            "bytes_after": sum(
                sum(map(nbytes, part.values())) for part in packed.values()
            ),
            "layers": store.layers,
        }
