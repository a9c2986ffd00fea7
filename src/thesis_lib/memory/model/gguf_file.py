"""Read the head of a GGUF file, llama.cpp's format: metadata, and where tensors lie.

Everything that the head says is checked before a tensor is read. It is read here and
not by `gguf.GGUFReader`, which does not compare the length of an array with the file:
65 bytes that announce an array of two million are accepted and take 1.8 GB.
"""

import math
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from thesis_lib.common.errors import InvalidInput, open_regular, require, shown

_ALIGNMENT = 32  # of tensors, where the file has no other
_ALIGNMENTS = [2**n for n in range(21)]
_MOST_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a GGUF file: shape as torch has it, type, where it begins."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int  # byte offset in the file

    @property
    def row_bytes(self) -> int:
        """Bytes of the weights that share all indices but the last."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Metadata and tensors of a GGUF file, without the weights."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def reject(self, what: str, do: str) -> NoReturn:
        """Raise InvalidInput: what is wrong with this file, and what to do."""
        raise InvalidInput(f"{self.path} {what}; {do}")

    def field(self, name: str) -> Any:
        """A value of this architecture, None where the file has none."""
        return self.metadata.get(f"{self.architecture}.{name}")

    def read(self, tensor: GgufTensor, first: int, last: int) -> np.ndarray:
        """Return rows of a tensor as the file has them, bytes (last - first, b)."""
        count = (last - first) * tensor.row_bytes
        start = tensor.start + first * tensor.row_bytes
        try:
            raw = np.fromfile(self.path, np.uint8, count, offset=start)
        except OSError as error:
            self.reject(f"cannot be read ({error.strerror})", "check the disk")
        if len(raw) != count:
            self.reject(
                f"ends before byte {start + count}: cut while open", "copy it again"
            )
        return raw.reshape(-1, tensor.row_bytes)

    def decode(self, tensor: GgufTensor, first: int, last: int) -> np.ndarray:
        """Return rows of a tensor as float32, (last - first, n)."""
        return gguf.dequantize(self.read(tensor, first, last), tensor.kind)


def read_gguf(path: Path | str) -> GgufFile:
    """Return the metadata and the table of tensors of a GGUF file; reads no weight.

    Raises InvalidInput for a file that is missing, cut, of another format, version or
    byte order, with a type that the gguf package cannot decode, or whose table does not
    describe its bytes.
    """
    path = Path(path)
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be opened ({error.strerror}): expected a GGUF file"
        ) from error
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        require(size > 0, f"{path} is empty: expected a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()


class _Reader:
    """A walk through the head of a file, which never leaves it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def reject(self, what: str) -> NoReturn:
        raise InvalidInput(
            f"{self.path} {what}: expected a whole GGUF file; copy it again"
        )

    def read(self) -> GgufFile:
        magic, version = self.take(4), self.number(4)
        if magic != b"GGUF":
            self.reject(f"begins with {shown(magic)}, not with GGUF")
        if version not in (2, 3):
            self.reject(f"is of version {version} or of another byte order, not 2 or 3")
        tensors, values = self.number(8), self.number(8)
        metadata: dict[str, Any] = {}
        for _ in range(values):
            name = self.text()
            if name in metadata:
                self.reject(f"says {shown(name)} twice")
            metadata[name] = self.value()
        table = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if alignment not in _ALIGNMENTS or type(alignment) is not int:
            self.reject(
                f"aligns tensors to {shown(alignment)}, no power of two to 2^20"
            )
        return GgufFile(self.path, metadata, self.placed(table, alignment))

    def take(self, count: int) -> bytes:
        """The next bytes; every length is checked here, before memory is taken."""
        if count > len(self.data) - self.at:
            self.reject(f"ends before the {count} bytes that it announces at {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        raw = self.take(self.number(8))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.reject(f"has a name that is no text, {shown(raw)}")

    def value(self) -> Any:
        kind = self.number(4)
        if kind == GGUFValueType.ARRAY:
            return self.values(self.number(4), self.number(8))
        return self.values(kind, 1)[0]

    def values(self, kind: int, count: int) -> list[Any]:
        if kind == GGUFValueType.STRING:
            return [self.text() for _ in range(count)]
        scalars: Mapping[int, Any] = {**gguf.GGUFReader.gguf_scalar_to_np}
        if kind not in scalars:
            self.reject(f"has a value of the type {kind}, which is not read")
        dtype = np.dtype(scalars[kind]).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

    def tensor(self) -> GgufTensor:
        name, dimensions = self.text(), self.number(4)
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            self.reject(f"gives {shown(name)} {dimensions} dimensions")
        shape = tuple(self.number(8) for _ in range(dimensions))[::-1]
        kind, start = self.number(4), self.number(8)
        if not is_decoded(kind):
            self.reject(f"holds {shown(name)} in the unknown type {kind}")
        known = GGMLQuantizationType(kind)
        block, _ = gguf.GGML_QUANT_SIZES[known]
        if not all(shape) or shape[-1] % block or math.prod(shape) >= 2**63:
            self.reject(
                f"gives {shown(name)} the shape {list(shape)}, which blocks of {block} "
                "weights do not fill"
            )
        return GgufTensor(name, shape, known, start)

    def placed(
        self, tensors: list[GgufTensor], alignment: int
    ) -> dict[str, GgufTensor]:
        """Return tensors with offsets; raise unless only aligned zeros lie between."""
        first = end = self.padded(self.at, alignment)
        last = self.at
        by_name = {}
        for tensor in tensors:
            if tensor.name in by_name:
                self.reject(f"holds {shown(tensor.name)} twice")
            start = first + tensor.start
            if start != end:
                self.reject(
                    f"has {shown(tensor.name)} at byte {start}, where byte {end} is "
                    "the next after the tensor before it"
                )
            by_name[tensor.name] = replace(tensor, start=start)
            last = start + tensor.nbytes
            end = self.padded(last, alignment)
        if len(self.data) not in (last, end):
            self.reject(
                f"has {len(self.data)} bytes, and its last tensor ends at {last}"
            )
        return by_name

    def padded(self, end: int, alignment: int) -> int:
        """The first aligned byte from `end`. Reject anything but zeros up to there."""
        aligned = -(-end // alignment) * alignment
        if any(self.data[end:aligned]):
            self.reject(f"has data between bytes {end} and {aligned}, not zeros")
        return aligned


@cache
def is_decoded(kind: int) -> bool:
    """Return whether the gguf package decodes a type, tried on a block of zeros.

    It lists no types that it decodes: of others it raises NotImplementedError.
    """
    sizes: dict[int, tuple[int, int]] = {**gguf.GGML_QUANT_SIZES}
    if kind not in sizes:
        return False
    block = np.zeros((1, sizes[kind][1]), np.uint8)
    with suppress(NotImplementedError):
        gguf.dequantize(block, GGMLQuantizationType(kind))
        return True
    return False
