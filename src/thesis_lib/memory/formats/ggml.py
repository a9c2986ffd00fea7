"""Matrices in the blocks of a GGUF file, restored for the time of a product.

llama.cpp cuts each row into blocks of 32 or 256 weights that share their scales. A
matrix stays in the type that the file has it in, so that a layer is read in a third of
its bytes, and is restored bit for bit as the gguf package decodes it: logits are those
of the dense checkpoint that the file becomes otherwise. The usual types are restored by
compiled code on several threads, the others by that package.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor, nn

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import cache_folder
from thesis_lib.common.units import MiB
from thesis_lib.memory.formats.base import (
    PackedLinear,
    WeightFormat,
    read_by_layer,
    register,
)
from thesis_lib.memory.formats.bitplanes import most_threads, restore, round_words
from thesis_lib.memory.model.checkpoint import Entry
from thesis_lib.memory.model.gguf import WORK_PER_WEIGHT, convert
from thesis_lib.memory.model.gguf_file import is_decoded
from thesis_lib.memory.model.linears import linears

Types = Sequence[Mapping[str, str]]  # by layer: the type of each matrix in blocks

# What the mixes of llama.cpp hold. Their codes and scales have few digits: products are
# exact in float32, so that each weight is rounded once, as the gguf package rounds it.
COMPILED = (
    Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K,
    Type.Q6_K,
)  # fmt: skip
_Q4_0, _Q4_1, _Q5_0, _Q5_1, _Q8_0, _Q4_K, _Q5_K, _Q6_K = map(int, COMPILED)
_SLAB = 4 * MiB  # of work at a time where nothing is compiled
_LANES = 16  # weights that are restored at once
_I8, _I16, _I32, _F32 = (*map(ir.IntType, (8, 16, 32)), ir.FloatType())
# Untyped: numba passes the first argument itself, which a type checker would miss.
_emitting: Any = intrinsic
_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def known_types() -> dict[str, Type]:
    """The types of blocks that are decoded, by name."""
    return {kind.name: kind for kind in Type if is_decoded(kind)}


def cached_checkpoint(path: Path) -> Path:
    """The folder of a GGUF file as a checkpoint that keeps its blocks.

    Made in the cache on the first call, and anew where the file has changed since.
    Raises InvalidInput as `memory.model.gguf.convert`.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be opened ({error.strerror}): expected a GGUF file"
        ) from error
    seen = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    key = hashlib.sha256(seen.encode()).hexdigest()[:12]
    folder = cache_folder("blocks-1") / f"{path.stem}-{key}"
    if not folder.is_dir():
        convert(path, folder, keep=Blocks)
    return folder


def unpack(blocks: Tensor, kind: Type) -> Tensor:
    """The matrix (m, n) in bfloat16 that rows of blocks, bytes (m, b), stand for.

    Bit for bit what the gguf package decodes, rounded.
    """
    return _restore(blocks, kind.value)


def _weights(row_bytes: int, kind: Type) -> int:
    """Return the number of weights in blocks of so many bytes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return row_bytes // size * block


def _slab(n: int) -> int:
    """Rows of n weights that the gguf package decodes at a time."""
    return max(1, _SLAB // (WORK_PER_WEIGHT * n))


@torch.library.custom_op("thesis_lib::restore_blocks", mutates_args=())
def _restore(blocks: Tensor, kind: int) -> Tensor:
    """An operator of its own: a rehearsal has no codes, and a meter sees its result."""
    rows, of = blocks.numpy(), Type(kind)
    n = _weights(rows.shape[1], of)

    def compiled(part: slice, words: np.ndarray) -> None:
        _restore_rows(kind, rows[part], _HALVES, words)

    def decoded(part: slice, words: np.ndarray) -> None:
        step = _slab(n)
        for first in range(part.start, part.stop, step):
            values = gguf.dequantize(rows[first : min(first + step, part.stop)], of)
            into = words[first - part.start :][: len(values)]
            round_words(values.reshape(-1).view(np.uint32), into.reshape(-1))

    return restore(len(rows), n, compiled if of in COMPILED else decoded)


@_restore.register_fake
def _(blocks: Tensor, kind: int) -> Tensor:
    shape = blocks.shape[0], _weights(blocks.shape[1], Type(kind))
    return blocks.new_empty(shape, dtype=torch.bfloat16)


class _Lanes(NamedTuple):
    """Sixteen weights as one vector for LLVM: faster than a plain loop."""

    context: Any
    builder: Any

    def same(self, value: Any) -> Any:
        """A value, or an integer, in every lane."""
        if isinstance(value, int):
            return ir.Constant(_vector(_I32), [value] * _LANES)
        empty = ir.Constant(_vector(value.type), ir.Undefined)
        first = self.builder.insert_element(empty, value, _I32(0))
        return self.builder.shuffle_vector(first, empty, self.same(0))

    def place(self, kind: Any, array: Any, at: Any, of: Any) -> Any:
        """Return the address of sixteen numbers of an array."""
        data = self.context.make_array(kind)(self.context, self.builder, array).data
        first = self.builder.gep(data, [at])
        return self.builder.bitcast(first, _vector(of).as_pointer())

    def bytes(self, kind: Any, row: Any, at: Any) -> Any:
        """Sixteen bytes of a row."""
        return self.builder.load(self.place(kind, row, at, _I8), align=1)

    def bits(self, words: Any, shift: Any, mask: Any) -> Any:
        """Bits of each word, from `shift` on, which may differ by lane."""
        return self.builder.and_(self.builder.lshr(words, shift), mask)

    def nibbles(self, kind: Any, row: Any, at: Any, shift: Any) -> Any:
        """Four bits of each of sixteen bytes."""
        words = self.builder.zext(self.bytes(kind, row, at), _vector(_I32))
        return self.bits(words, self.same(shift), self.same(15))

    def codes(self, below: Any, above: Any, middle: Any) -> Any:
        """Four bits with others above them, less their middle."""
        whole = self.builder.or_(below, self.builder.shl(above, self.same(4)))
        return self.builder.sub(whole, self.same(middle))

    def put(
        self, kind: Any, out: Any, to: Any, codes: Any, scale: Any, low: Any
    ) -> None:
        """Write scale · code + low as the nearest bfloat16; ties to even."""
        build = self.builder
        exact = build.sitofp(codes, _vector(_F32))
        weights = build.fadd(build.fmul(self.same(scale), exact), self.same(low))
        word = build.bitcast(weights, _vector(_I32))
        odd = self.bits(word, self.same(16), self.same(1))
        near = build.add(build.add(word, self.same(0x7FFF)), odd)
        near = build.lshr(near, self.same(16))
        size = build.and_(word, self.same(0x7FFFFFFF))
        no_number = build.icmp_unsigned(">", size, self.same(0x7F800000))
        half = build.select(no_number, self.same(0x7FC0), near)
        half = build.trunc(half, _vector(_I16))
        build.store(half, self.place(kind, out, to, _I16), align=2)


def _vector(of: Any) -> Any:
    return ir.VectorType(of, _LANES)


@_emitting
def _put_bytes(_, out, to, row, at, scale):
    """Write out[to : to + 16] of the signed bytes from row[at] on."""
    arguments = types.void(out, types.intp, row, types.intp, types.float32)

    def build(context, builder, signature, values):
        lanes, (of_out, _, of_row, *_) = _Lanes(context, builder), signature.args
        out, to, row, at, scale = values
        codes = builder.sext(lanes.bytes(of_row, row, at), _vector(_I32))
        lanes.put(of_out, out, to, codes, scale, _F32(-0.0))
        return context.get_dummy_value()

    return arguments, build


@_emitting
def _put_nibbles(_, out, to, row, at, shift, high, part, mask, middle, scale, low):
    """Write out[to : to + 16] of codes: bits of row[at] from `shift` on, four of each.

    Above them stand bits of row[high] from `part` on, as many as `mask` has; `middle`
    is taken off.
    """
    word, single = types.int32, types.float32
    arguments = types.void(
        out, types.intp, row, types.intp, word, types.intp, word, word, word, single,
        single,
    )  # fmt: skip

    def build(context, builder, signature, values):
        lanes, (of_out, _, of_row, *_) = _Lanes(context, builder), signature.args
        out, to, row, at, shift, high, part, mask, middle, scale, low = values
        above = builder.zext(lanes.bytes(of_row, row, high), _vector(_I32))
        above = lanes.bits(above, lanes.same(part), lanes.same(mask))
        codes = lanes.codes(lanes.nibbles(of_row, row, at, shift), above, middle)
        lanes.put(of_out, out, to, codes, scale, low)
        return context.get_dummy_value()

    return arguments, build


@_emitting
def _put_fifths(_, out, to, row, at, shift, fifths, middle, scale, low):
    """As `_put_nibbles`; the bit above each stands in `fifths`, the first lowest."""
    word, single = types.int32, types.float32
    arguments = types.void(
        out, types.intp, row, types.intp, word, word, word, single, single
    )

    def build(context, builder, signature, values):
        lanes, (of_out, _, of_row, *_) = _Lanes(context, builder), signature.args
        out, to, row, at, shift, fifths, middle, scale, low = values
        lane = ir.Constant(_vector(_I32), list(range(_LANES)))
        above = lanes.bits(lanes.same(fifths), lane, lanes.same(1))
        codes = lanes.codes(lanes.nibbles(of_row, row, at, shift), above, middle)
        lanes.put(of_out, out, to, codes, scale, low)
        return context.get_dummy_value()

    return arguments, build


@njit(cache=True, nogil=True)
def _restore_rows(kind, rows, halves, out):
    """Fill `out` (m, n) with bfloat16 bits of bytes (m, b)."""
    for row in range(len(out)):
        if kind == _Q8_0:
            _q8_0(rows[row], halves, out[row])
        elif kind == _Q6_K:
            _q6_k(rows[row], halves, out[row])
        elif kind in (_Q4_K, _Q5_K):
            _q4_k_or_q5_k(rows[row], kind == _Q5_K, halves, out[row])
        else:
            fifth, least = kind in (_Q5_0, _Q5_1), kind in (_Q4_1, _Q5_1)
            _of_32(rows[row], fifth, least, halves, out[row])


@njit(cache=True, nogil=True)
def _scale_at(row, at, halves):
    return halves[np.uint16(row[at]) | np.uint16(row[at + 1]) << 8]


@njit(cache=True, nogil=True)
def _q8_0(row, halves, out):
    for block in range(len(out) // 32):
        scale = _scale_at(row, 34 * block, halves)
        for half in range(2):
            to = 32 * block + 16 * half
            _put_bytes(out, to, row, 34 * block + 2 + 16 * half, scale)


@njit(cache=True, nogil=True)
def _of_32(row, fifth, least, halves, out):
    """Restore blocks of 32 codes with a scale and, if `least`, an offset."""
    head = 4 if least else 2
    size = head + 16 + 4 * fifth
    middle = 0 if least else 16 if fifth else 8
    low = np.float32(-0.0)  # added, it changes no number, not even a zero
    for block in range(len(out) // 32):
        at = size * block
        scale, first = _scale_at(row, at, halves), at + size - 16
        if least:
            low = _scale_at(row, at + 2, halves)
        bits = np.uint32(0)
        if fifth:
            for byte in range(4):
                bits |= np.uint32(row[at + head + byte]) << np.uint32(8 * byte)
        for half in range(2):
            to, nibble = 32 * block + 16 * half, 4 * half
            if fifth:
                above = bits >> np.uint32(16 * half)
                _put_fifths(out, to, row, first, nibble, above, middle, scale, low)
            else:
                _put_nibbles(
                    out, to, row, first, nibble, first, 0, 0, middle, scale, low
                )


@njit(cache=True, nogil=True)
def _q4_k_or_q5_k(row, fifth, halves, out):
    """Eight groups of 32 codes, each with a scale and a least value, in six bits."""
    size, mask = (176, 1) if fifth else (144, 0)
    for block in range(len(out) // 256):
        at = size * block
        scales = row[at + 4 : at + 16]
        whole, least = _scale_at(row, at, halves), _scale_at(row, at + 2, halves)
        for group in range(8):
            if group < 4:
                of_scale, of_least = scales[group] & 63, scales[group + 4] & 63
            else:
                both = scales[group + 4]
                of_scale = both & 15 | scales[group - 4] >> 2 & 48
                of_least = both >> 4 | scales[group] >> 2 & 48
            scale, low = whole * np.float32(of_scale), -least * np.float32(of_least)
            first, nibble = at + size - 128 + group // 2 * 32, group % 2 * 4
            for half in range(2):
                to, k = 256 * block + 32 * group + 16 * half, 16 * half
                _put_nibbles(
                    out, to, row, first + k, nibble, at + 16 + k, group, mask, 0,
                    scale, low,
                )  # fmt: skip


@njit(cache=True, nogil=True)
def _q6_k(row, halves, out):
    """Sixteen groups of 16 codes about 32: four bits, and two that stand apart."""
    for block in range(len(out) // 256):
        at = 210 * block
        whole = _scale_at(row, at + 208, halves)
        for group in range(16):
            half, part, k = group // 8, group % 8 // 2, group % 2 * 16
            first, high = at + 64 * half + 32 * (part % 2) + k, at + 128 + 32 * half + k
            scale = whole * np.float32(np.int8(row[at + 192 + group]))
            _put_nibbles(
                out, 256 * block + 16 * group, row, first, part // 2 * 4, high,
                2 * part, 3, 32, scale, np.float32(-0.0),
            )  # fmt: skip


@cache
def _compile() -> None:
    """Compile what restores: in a forward pass a compiler would hold its tensors."""
    row, out = np.zeros((2, 34), np.uint8), np.zeros((2, 32), np.uint16)
    _restore_rows(_Q8_0, row, _HALVES, out)
    round_words(np.zeros(32, np.uint32), out[0])


class BlocksLinear(PackedLinear):
    """A linear layer that restores its matrix for the time of a product."""

    def __init__(self, dense: nn.Linear, entries: Mapping[str, Entry], kind: Type):
        _compile()
        super().__init__(dense, entries)
        self.kind = kind

    def scratch_bytes(self, rows: int) -> int:
        """Return the work space of a matrix: none, or a slab for each thread."""
        n = self.in_features
        if self.kind in COMPILED:
            return 0
        return most_threads(self.out_features, n) * n * WORK_PER_WEIGHT * _slab(n)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (…, n) to (…, m)."""
        weight = unpack(self.get_buffer("blocks"), self.kind)
        return nn.functional.linear(hidden, weight, self.bias)


@register
@dataclass(frozen=True)
class Blocks(WeightFormat):
    """Rows of blocks for each matrix that has a type in its layer."""

    kind = "gguf"
    needs_processor = True

    layout: str = "blocks"
    types: Types = ()

    def __hash__(self) -> int:
        return hash(str(self.types))

    @classmethod
    def here(cls) -> Self:
        """Refused: no word tells the types."""
        raise InvalidInput(
            "kind='gguf' says no types of blocks: expected a checkpoint that has them; "
            "convert a GGUF file and keep its blocks"
        )

    @classmethod
    def read(cls, folder: Path, layout: str) -> Self:
        """Return the format with the types that the configuration lists."""
        return cls(layout, read_by_layer(folder, "types", str))

    def describe(self) -> dict[str, Any]:
        """The types too."""
        return {**super().describe(), "types": list(self.types)}

    def matrix_entries(self, layer: int, name: str, entry: Entry) -> dict[str, Entry]:
        """Rows (m, b) of a matrix (m, n), or the matrix.

        Rejects one that blocks do not fill, or that is not in bfloat16.
        """
        if name not in self.types[layer]:
            return {"weight": entry}
        (m, n), kind = entry[1], self._type(layer, name)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        require(
            entry[0] == "BF16" and n % block == 0,
            f"{name} is {m} x {n} in {entry[0]}: expected BF16, in which blocks "
            f"compute, and rows of a multiple of {block}, the weights of one of "
            f"{kind.name}",
        )
        return {"blocks": ("U8", (m, n // block * size))}

    def swap(self, layers: nn.ModuleList) -> None:
        """Replace the linear layers. Rejects types of names without a matrix."""
        for layer, names in zip(layers, self.types, strict=True):
            linears(layer, names)
        super().swap(layers)

    def linear(self, layer: int, name: str, dense: nn.Linear) -> nn.Module:
        """The layer that restores the matrix."""
        if name not in self.types[layer]:
            return dense
        entry = "BF16", (dense.out_features, dense.in_features)
        entries = self.matrix_entries(layer, name, entry)
        return BlocksLinear(dense, entries, self._type(layer, name))

    def for_dry_run(self, layers: int) -> Self:
        """Return the format with the largest type of each matrix in every layer."""
        kinds_by_part: dict[str, set[str]] = defaultdict(set)
        for layer in self.types:
            for name, kind in layer.items():
                kinds_by_part[name].add(kind)
        worst = {name: max(kinds, key=_takes) for name, kinds in kinds_by_part.items()}
        return replace(self, types=[worst] * layers)

    def _type(self, layer: int, name: str) -> Type:
        known = known_types()
        return known[choice(f"type of {name}", self.types[layer][name], known)]


def _takes(kind: str) -> tuple[bool, float, int]:
    """Return the sort key of a type: restoring time, size, block; unknown last."""
    known = known_types().get(kind)
    if known is None:
        return True, np.inf, 0
    block, size = gguf.GGML_QUANT_SIZES[known]
    return known not in COMPILED, size / block, block
