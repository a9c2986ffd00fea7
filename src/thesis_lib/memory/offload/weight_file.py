"""The files of a checkpoint's weights: what the index promises, and guarded reads."""

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from thesis_lib.common.errors import open_regular, read_object, shown, whole
from thesis_lib.common.units import MiB
from thesis_lib.memory.formats import lossless
from thesis_lib.memory.model.checkpoint import (
    CODED,
    INDEX,
    ITEM_BYTES,
    LAYER_DIGITS,
    NON_LAYER,
    SINGLE,
    allocate,
    renumbered,
    split_name,
)
from thesis_lib.memory.model.spec import ALIGNMENT
from thesis_lib.memory.offload.header import (
    Placement,
    StoreDamaged,
    bare,
    read_header,
    reject,
)

_HEADER_LIMIT = 10**8  # bytes, the format's own limit
_NAME_LIMIT = 255  # bytes of a file's name, that of Linux


@dataclass(frozen=True, slots=True)
class Index:
    """Which tensors the index promises in which file; none for a single file.

    With `distinct` D the file of layer l is that of layer l mod D under another name,
    and the tensors inside carry the number l mod D.
    """

    files: Mapping[Path, Sequence[str]]
    distinct: int | None = None

    def outward(self, path: Path, name: str) -> str:
        """Return the checkpoint's name of the tensor that its file calls `name`."""
        layer, _ = split_name(name)
        if self.distinct is None or layer == NON_LAYER:
            return name
        number, *others = {split_name(promised)[0] for promised in self.files[path]}
        if others or number == NON_LAYER or number % self.distinct != layer:
            reject(
                f"weight file {path}",
                f"holds {bare(name)} where one of {self.distinct} distinct layers was "
                f"expected as layer {number}",
                "write it again",
            )
        return renumbered(name, number)


def read_index(folder: Path) -> Index:
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() or (os.path.lexists(single) and not index.is_file()):
        return Index({single: ()})
    if not os.path.lexists(index):
        reject(
            folder,
            f"has neither {SINGLE} nor {INDEX}: expected a safetensors checkpoint",
            "convert other formats with save_pretrained",
        )
    content = read_object(index, "an index of safetensors", StoreDamaged)
    weight_map, metadata = content.get("weight_map"), content.get("metadata") or {}
    if not isinstance(weight_map, dict) or not isinstance(metadata, dict):
        reject(index, "is no index: expected the objects weight_map and metadata")
    distinct = metadata.get("distinct_layers")
    if distinct is not None:
        name = f"distinct_layers in {index}"
        distinct = whole(distinct, name, 1, 10**LAYER_DIGITS, StoreDamaged)
    files: dict[Path, list[str]] = {}
    for tensor, name in sorted(weight_map.items(), key=lambda item: str(item[1])):
        if not _is_file_name(name):
            reject(
                index,
                f"points outside its folder, with {shown(name)} for {bare(tensor)}: "
                "expected the name of a file beside it",
            )
        files.setdefault(folder / name, []).append(tensor)
    return Index(files, distinct)


def _is_file_name(name: Any) -> bool:
    """Return whether a name is a plain file of its folder."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and "/" not in name
        and name not in {"", ".", ".."}
        and len(name.encode()) <= _NAME_LIMIT
    )


class WeightFile:
    """An open safetensors file, its header, and what it looked like when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.buffered = open_regular(path)
        except OSError as error:
            self.reject(
                f"cannot be opened ({error.strerror}): expected the safetensors file "
                "that the checkpoint names",
                "copy the checkpoint again",
            )
        self.direct: int | None = None
        try:
            self.identity = self._identify()
            self.spans, self.data_start, metadata = self._parse()
            self.coded: tuple[int, int] | None = None
            if CODED in metadata:
                self.spans, self.coded = self._parse_coded(metadata[CODED])
            self.digest = self._digest()
            self.direct = self._open_direct()
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return f"weight file {self.path}"

    def reject(self, what: str, do: str = "copy it again") -> NoReturn:
        """Raise StoreDamaged: what is wrong with this file, and what to do."""
        reject(self, what, do)

    def _identify(self) -> tuple[int, ...]:
        """Return what every write changes, even if its time is set back."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            self.reject(f"has gone ({error.strerror})", "put it back and open it anew")
        return (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def _parse(self) -> tuple[dict[str, Placement], int, dict[str, str]]:
        size = self.identity[2]
        try:
            prefix = os.pread(self.buffered, 8, 0)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
                self.reject(
                    f"of {size} bytes is truncated or not safetensors: expected a "
                    "header length and a header first"
                )
            raw = os.pread(self.buffered, length, 8)
        except OSError as error:
            self.reject(f"cannot be read ({error.strerror})", "check the disk")
        spans, metadata = read_header(raw, str(self))
        expected = 8 + length + max((span.end for span in spans.values()), default=0)
        if size != expected:
            self.reject(
                f"has {size} bytes where its header promises {expected}: it is "
                "truncated or overwritten"
            )
        return spans, 8 + length, metadata

    def _parse_coded(self, text: str) -> tuple[dict[str, Placement], tuple[int, int]]:
        """The tensors that the one tensor of the file is the code of, and its span."""
        if self.spans.keys() != {CODED}:
            self.reject(
                f"says that it is coded but holds {shown(list(self.spans))}",
                "write the checkpoint again",
            )
        spans, _ = read_header(text.encode(), f"{self}, of what it codes,")
        code = self.spans[CODED]
        decoded = max((span.end for span in spans.values()), default=0)
        if not 0 < decoded <= lossless.MOST_DECODED * code.nbytes:
            self.reject(
                f"says that {code.nbytes} bytes are the code of {decoded}, which no "
                "code is",
                "write the checkpoint again",
            )
        return spans, (self.data_start + code.start, self.data_start + code.end)

    def _digest(self) -> bytes:
        return hashlib.sha256(os.pread(self.buffered, self.data_start, 0)).digest()

    def _open_direct(self) -> int | None:
        """A descriptor that bypasses the page cache, where the file system has one."""
        flag = getattr(os, "O_DIRECT", 0)
        if not flag:
            return None
        try:
            descriptor = os.open(self.path, os.O_RDONLY | flag)
        except OSError:
            return None
        try:
            os.preadv(descriptor, [allocate(ALIGNMENT)], 0)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def verify(self) -> None:
        """Raise StoreDamaged unless the file is the one that was opened."""
        if self._identify() != self.identity or self._digest() != self.digest:
            self.reject(
                "has changed since it was opened (size, time or header): the model "
                "would mix two checkpoints",
                "open it again",
            )

    def read(
        self, target: memoryview, offset: int, needed: int, direct: bool = True
    ) -> int:
        """Fill `target` from `offset`; at least `needed` bytes, or StoreDamaged.

        A request in whole blocks may end past the end of the file, hence `needed`.
        Without `direct` it may be of any bytes.
        """
        past_cache = self.direct if direct else None
        descriptor = self.buffered if past_cache is None else past_cache
        filled = 0
        while filled < needed:
            n_bytes = os.preadv(descriptor, [target[filled:]], offset + filled)
            if n_bytes == 0:
                self.reject(
                    f"ends at byte {offset + filled}, before byte {offset + needed} "
                    "that its header promises: truncated while open"
                )
            filled += n_bytes
        if past_cache is None and hasattr(os, "posix_fadvise"):
            # Keeps the page cache from holding the model that the budget excludes.
            os.posix_fadvise(self.buffered, offset, filled, os.POSIX_FADV_DONTNEED)
        return filled

    def sha256(self) -> str:
        """Return the SHA-256 of the file on disk."""
        digest, block = hashlib.sha256(), allocate(8 * MiB)
        size = self.identity[2]
        for at in range(0, size, len(block)):
            needed = min(len(block), size - at)
            self.read(block, at, needed)
            digest.update(block[:needed])
        return digest.hexdigest()

    def close(self) -> None:
        for descriptor in (self.buffered, self.direct):
            if descriptor is not None:
                os.close(descriptor)


def list_tensors(index: Index, files: Sequence[WeightFile]) -> Iterator[Placement]:
    """The tensors of all files, by the names that the checkpoint gives them."""
    for number, file in enumerate(files):
        names = {index.outward(file.path, name): name for name in file.spans}
        if missing := set(index.files[file.path]) - set(names):
            file.reject(
                f"does not hold {bare(min(missing))}, which {INDEX} promises in "
                "it: the two are of different checkpoints"
            )
        # Of a coded file: in what it decodes to.
        shift = 0 if file.coded else file.data_start
        for name, inside in names.items():
            span = file.spans[inside]
            begin, size = span.start + shift, ITEM_BYTES[span.dtype]
            if begin % size:
                file.reject(
                    f"has {bare(name)} at byte {begin}, not a multiple of {size}, "
                    "where it cannot be used in place",
                    "save the checkpoint again with safetensors",
                )
            yield replace(span, name=name, start=begin, file=number)
