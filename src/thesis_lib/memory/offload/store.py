"""Where the weights of a streamed model come from: a layer at a time, from disk.

The store parses the safetensors headers itself, so that it knows every byte range
before the first read, and reads straight into memory that the caller owns.
"""

import hashlib
import math
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from thesis_lib.common.errors import (
    InvalidInput,
    open_regular,
    parse_object,
    read_object,
    require,
    shown,
    whole,
)
from thesis_lib.common.units import KiB, MiB
from thesis_lib.memory.formats import lossless
from thesis_lib.memory.formats.base import WeightFormat, read_format
from thesis_lib.memory.model.checkpoint import (
    CODED,
    INDEX,
    ITEM_BYTES,
    LAYER_DIGITS,
    MANIFEST,
    NON_LAYER,
    SINGLE,
    allocate,
    checksum,
    read_manifest,
    renumbered,
    split_name,
)
from thesis_lib.memory.model.spec import ALIGNMENT, ModelSpec, whole_blocks

# What measured best: larger requests take less of the processor, more of them in flight
# bring no more bytes. A ring of io_uring with as many requests was as fast and cost as
# much; reading through the page cache costs several times the processor's time, and the
# pages count against a hard limit of memory.
CHUNK_BYTES = 4 * MiB  # one request to the disk
READERS = 4  # requests in flight
DECODERS = 2  # threads that decode what has arrived, of a lossless checkpoint
_GAP_BYTES = 64 * KiB  # reading a smaller gap costs less than a second request
_HEADER_LIMIT = 10**8  # bytes, the format's own limit
_NAME_LIMIT = 255  # bytes of a file's name, that of Linux
_MOST_DIMENSIONS = 8
_MOST_LAYERS_SHOWN = 8


HEADS = "lm_head.weight", "embed_out.weight"  # the output head, in code and in files
HEAD = "weight"  # what a part of a split one is called

# Kernels of matrix products work on 16, 32, 48 or 64 outputs together, and on a few
# last ones, or on few at all, in another way: parts of whole groups, with what is left
# over in the last one, give every output the bits that it has in the whole. In 32 bits
# this holds for one thread: more share the outputs out, and each has its own last ones.
_GROUP = 192


def head_bounds(vocab: int, parts: int) -> list[int]:
    """Where the parts of an output head begin, and where the last one ends."""
    groups = vocab // _GROUP
    return [part * groups // parts * _GROUP for part in range(parts)] + [vocab]


class StoreDamaged(InvalidInput):
    """A weight file that is missing, truncated, altered or not safetensors."""


def _refuse(place: object, what: str, do: str = "copy it again") -> NoReturn:
    raise StoreDamaged(f"{place} {what}; {do}")


Seconds = tuple[float, float]  # of `time.perf_counter`, when something began and ended


@dataclass(frozen=True, slots=True)
class PendingRead:
    """A read in flight.

    `wait` returns when the buffer is filled, with the seconds in which that happened,
    and raises what went wrong otherwise.
    """

    wait: Callable[[], Seconds]


@dataclass(frozen=True, slots=True)
class Placement:
    """A tensor, and where it lies: in a file, in what that codes, or in a buffer."""

    name: str  # within the layer, or the full name outside the stack
    dtype: str  # as safetensors writes it: BF16, F32, …
    shape: tuple[int, ...]
    start: int  # byte offset
    nbytes: int
    file: int = 0

    @property
    def end(self) -> int:
        return self.start + self.nbytes


@dataclass(frozen=True, slots=True)
class _Extent:
    """One contiguous range of a file, in whole blocks, and its place in a buffer."""

    file: int
    start: int
    end: int  # of the last tensor, not rounded
    at: int  # byte offset in the buffer

    @property
    def span(self) -> int:
        return whole_blocks(self.end - self.start)


@dataclass(frozen=True, slots=True)
class _Part:
    """A layer: the extents to read, and the tensors inside them, or in their code."""

    extents: tuple[_Extent, ...]
    placements: tuple[Placement, ...]
    decoded_bytes: int | None = None  # of a lossless layer

    @property
    def nbytes(self) -> int:
        return max((extent.at + extent.span for extent in self.extents), default=0)

    @property
    def read_bytes(self) -> int:
        return sum(extent.span for extent in self.extents)


@dataclass(frozen=True, slots=True)
class _Index:
    """Which tensors the index promises in which file; none for a single file.

    With `distinct` D the file of layer l is that of layer l mod D under another name,
    and the tensors inside carry the number l mod D.
    """

    files: Mapping[Path, Sequence[str]]
    distinct: int | None = None

    def outward(self, path: Path, name: str) -> str:
        """What the checkpoint calls the tensor that its file calls `name`."""
        layer, _ = split_name(name)
        if self.distinct is None or layer == NON_LAYER:
            return name
        number, *others = {split_name(promised)[0] for promised in self.files[path]}
        if others or number == NON_LAYER or number % self.distinct != layer:
            _refuse(
                f"weight file {path}",
                f"holds {_bare(name)} where one of {self.distinct} distinct layers was "
                f"expected as layer {number}",
                "write it again",
            )
        return renumbered(name, number)


def _floor(n_bytes: int) -> int:
    return n_bytes // ALIGNMENT * ALIGNMENT


class _File:
    """An open safetensors file, its header, and what it looked like when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.buffered = open_regular(path)
        except OSError as error:
            self.refuse(
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

    def refuse(self, what: str, do: str = "copy it again") -> NoReturn:
        """Raise StoreDamaged: what is wrong with this file, and what to do."""
        _refuse(self, what, do)

    def _identify(self) -> tuple[int, ...]:
        """What every way to write into a file changes, a time put back included."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            self.refuse(f"has gone ({error.strerror})", "put it back and open it anew")
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
                self.refuse(
                    f"of {size} bytes is truncated or not safetensors: expected a "
                    "header length and a header first"
                )
            raw = os.pread(self.buffered, length, 8)
        except OSError as error:
            self.refuse(f"cannot be read ({error.strerror})", "check the disk")
        spans, metadata = _read_header(raw, str(self))
        expected = 8 + length + max((span.end for span in spans.values()), default=0)
        if size != expected:
            self.refuse(
                f"has {size} bytes where its header promises {expected}: it is "
                "truncated or overwritten"
            )
        return spans, 8 + length, metadata

    def _parse_coded(self, text: str) -> tuple[dict[str, Placement], tuple[int, int]]:
        """The tensors that the one tensor of the file is the code of, and its span."""
        if self.spans.keys() != {CODED}:
            self.refuse(
                f"says that it is coded but holds {shown(list(self.spans))}",
                "write the checkpoint again",
            )
        spans, _ = _read_header(text.encode(), f"{self}, of what it codes,")
        code = self.spans[CODED]
        decoded = max((span.end for span in spans.values()), default=0)
        if not 0 < decoded <= lossless.MOST_DECODED * code.nbytes:
            self.refuse(
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
            self.refuse(
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
                self.refuse(
                    f"ends at byte {offset + filled}, before byte {offset + needed} "
                    "that its header promises: truncated while open"
                )
            filled += n_bytes
        if past_cache is None and hasattr(os, "posix_fadvise"):
            # Keeps the page cache from holding the model that the budget excludes.
            os.posix_fadvise(self.buffered, offset, filled, os.POSIX_FADV_DONTNEED)
        return filled

    def sha256(self) -> str:
        """Of the whole file as it is on the disk now."""
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


def _read_header(raw: bytes, place: str) -> tuple[dict[str, Placement], dict[str, str]]:
    """The tensors of a safetensors header, in the order of their bytes; its metadata.

    Holds them to what the safetensors library does (`Metadata::validate`): offsets
    that are whole numbers, each tensor starting where the one before ends, shape times
    type its bytes. Of what the library tolerates it also refuses a name or a field
    given twice, other fields, and tensors without entries. `place` begins the sentence.
    """

    refuse = partial(_refuse, place)
    header = parse_object(raw, place, "the header of safetensors", StoreDamaged)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        refuse(f"has the metadata {shown(metadata)}: expected texts by name")
    spans = [_read_span(name, entry, refuse) for name, entry in header.items()]
    spans.sort(key=lambda span: span.end)
    end = 0
    for span in spans:
        if span.start != end:
            refuse(
                f"has overlapping tensors or holes between them: {shown(span.name)} "
                f"starts at byte {span.start}, not {end}"
            )
        end = span.end
    return {span.name: span for span in spans}, metadata


def _read_span(name: str, entry: Any, refuse: Callable[[str], NoReturn]) -> Placement:
    """One entry of a header, of the right types and of as many bytes as it says."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        refuse(
            f"describes {shown(name)} as {shown(entry)}: expected "
            f"{', '.join(sorted(_FIELDS))}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    size = ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    if (
        size is None
        or not _are_sizes(shape)
        or not _are_sizes(offsets)
        or len(offsets) != 2
        or len(shape) > _MOST_DIMENSIONS
        or not offsets[1] - offsets[0] == size * math.prod(shape) > 0
    ):
        refuse(
            f"has {shown(name)} as {shown(dtype)} {shown(shape)} at the bytes "
            f"{shown(offsets)}, which do not agree: expected a known type, and whole "
            "numbers of which those of the shape fill those of the bytes"
        )
    return Placement(name, dtype, tuple(shape), offsets[0], offsets[1] - offsets[0])


_FIELDS = {"dtype", "shape", "data_offsets"}


def _are_sizes(value: Any) -> bool:
    """Whether a JSON value is a list of numbers that 64 bits count."""
    return isinstance(value, list) and all(
        type(part) is int and 0 <= part < 2**64 for part in value
    )


def _give_way() -> None:
    """Let this thread run where no other one wants the core.

    A layer is decoded well before it is needed, but its arithmetic has to wait for the
    slowest of the threads that share it. Linux alone has a priority for each thread.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


_Chunk = tuple[_File, memoryview, int, int]  # where to, from which byte on, how many


class _Reads:
    """The chunks of one layer in flight, and the decoding of what has arrived.

    `check` looks at the layer as a whole: in whichever read ends last, or after all is
    decoded.
    """

    def __init__(
        self,
        read: Callable[[_File, memoryview, int, int], None],
        check: Callable[[], None],
        decoding: lossless.InPlace | None = None,
    ) -> None:
        self._read, self._check, self._decoding = read, check, decoding
        self._lock = threading.Lock()

    def start(self, pool: ThreadPoolExecutor, chunks: list[_Chunk]) -> PendingRead:
        """Queue the reads."""
        self._files = dict.fromkeys(file for file, *_ in chunks)
        self._left = len(chunks)
        self._span: Seconds = time.perf_counter(), math.inf
        self._jobs = [pool.submit(self._run, *chunk) for chunk in chunks]
        return PendingRead(self._wait)

    def _run(self, file: _File, target: memoryview, at: int, needed: int) -> None:
        self._read(file, target, at, needed)
        if self._decoding is not None:
            begin, _ = file.coded or (0, 0)
            self._decoding.arrive(max(at - begin, 0), at + needed - begin)
            return
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._check()
            self._span = self._span[0], time.perf_counter()

    def _wait(self) -> Seconds:
        if self._decoding is None:
            self._land()
            return self._span
        try:
            self._land()
            self._decoding.finish()
            self._check()
        except lossless.CodeDamaged as error:
            (file,) = self._files
            file.refuse(f"was altered ({error})", "write the checkpoint again")
        finally:
            self._decoding.settle()
        return self._span[0], self._decoding.end_s

    def _land(self) -> None:
        wait(self._jobs)  # all of them, or a late one would write after an error
        for job in self._jobs:
            job.result()
        for file in self._files:  # after the reads: nothing changed under them
            file.verify()


class SafetensorsStore:
    """The layers of a safetensors checkpoint, one file or sharded, read on demand.

    `mode` says how: "direct" bypasses the page cache, "buffered" goes through it and
    drops the pages behind each read. `kind` and `layout` name the format of the layers,
    `weights`; where files are the code of dense tensors, those are decoded in the
    buffer while it fills. `bytes_read` counts what was asked of the disk.

    Every file is held against its size, identity, times and header before and after
    each read: of those the time of the last change to the file itself cannot be put
    back, so that nothing is written into an open checkpoint unnoticed. What this
    project wrote is held against a checksum of the bytes that came as well. What was
    done to a file before it was opened only a record from then can tell: `verify`
    first reads all files and holds them against the SHA-256 of the manifest.

    Headers are held to what the safetensors library demands of them. Raises
    StoreDamaged for a file that is missing, truncated, altered or of another
    format, both when the store is opened and when a layer is read.
    """

    def __init__(self, folder: Path | str, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.bytes_read = 0
        manifest = read_manifest(self.folder, StoreDamaged)
        self.kind, self.layout = _format(self.folder, manifest)
        self._lock = threading.Lock()
        self._files: list[_File] = []
        self._pool: ThreadPoolExecutor | None = None
        try:
            index = _read_index(self.folder)
            for path in index.files:
                self._files.append(_File(path))
            tensors = list(self._tensors(index))
            coded = {i: file.coded for i, file in enumerate(self._files) if file.coded}
            self._parts = _partition(tensors, self.folder, coded)
            self.layers = len(self._parts) - 1  # decoder layers
            self._outside = [t for t in tensors if split_name(t.name)[0] == NON_LAYER]
            self._prefix = _prefix(tensors, self.folder)
            self._sums = _checksums(manifest, [file.path for file in self._files])
            if verify:
                self._verify(manifest)
        except BaseException:
            self.close()
            raise
        direct = all(file.direct is not None for file in self._files)
        self.mode = "direct" if direct else "buffered"
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="weights")
        self._decoders = ThreadPoolExecutor(
            DECODERS, thread_name_prefix="decode", initializer=_give_way
        )
        self.scratch = lossless.Scratch(DECODERS if coded else 0)

    @property
    def weights(self) -> WeightFormat:
        """The format of the layers. Raises InvalidInput for one that is unknown."""
        return read_format(self.folder, self.kind, self.layout)

    def require_geometry(self, spec: ModelSpec) -> None:
        """Refuse a geometry that these files cannot have, before anything is built.

        Compares the number of layers, the token table and the outputs of the matrices
        of every layer, however they are packed. Raises InvalidInput.
        """
        fix = ", which its config.json asks for: copy the checkpoint again"
        require(
            self.layers == spec.layers,
            f"{self.folder} stores {self.layers} layers but its config.json says "
            f"{spec.layers}: copy the checkpoint again",
        )
        require(
            (spec.vocab, spec.hidden) in {p.shape for p in self.placements(NON_LAYER)},
            f"{self.folder} stores no table of {spec.vocab} tokens by {spec.hidden} "
            f"entries{fix}",
        )
        for layer in range(self.layers):
            shapes = [placed.shape for placed in self.placements(layer)]
            missing = {*spec.matrix_outputs} - {s[0] for s in shapes if len(s) > 1}
            require(
                not missing,
                f"layer {layer} of {self.folder} stores no matrix of "
                f"{min(missing, default=0)} outputs{fix}",
            )

    def nbytes(self, layer: int) -> int:
        """Bytes of a buffer for `layer`: whole blocks."""
        return self._part(layer).nbytes

    def read_bytes(self, layer: int) -> int:
        """Bytes that a read of `layer` asks of the disk: whole blocks."""
        return self._part(layer).read_bytes

    def tensor_bytes(self, layer: int) -> int:
        """Bytes of the tensors of `layer` alone."""
        return sum(tensor.nbytes for tensor in self._part(layer).placements)

    def full_name(self, layer: int, name: str) -> str:
        """What the checkpoint calls a tensor of `placements(layer)`."""
        return name if layer == NON_LAYER else f"{self._prefix}layers.{layer}.{name}"

    def placements(self, layer: int) -> tuple[Placement, ...]:
        """The tensors of `layer` and where `read_layer` puts them."""
        return self._part(layer).placements

    def read_layer(self, layer: int, buffer: memoryview) -> PendingRead:
        """Start to read `layer` into `buffer`, which the caller keeps until `wait`.

        Raises InvalidInput for a buffer that is too small, and in direct mode for one
        that does not start on a block: use `checkpoint.allocate`.
        """
        part = self._part(layer)
        if self._pool is None:
            raise InvalidInput(f"the store of {self.folder} is closed: open it again")
        require(
            len(buffer) >= part.nbytes,
            f"layer {layer} needs a buffer of {part.nbytes} bytes, not {len(buffer)}",
        )
        if part.decoded_bytes is None:
            reads = _Reads(self._read, partial(self._check, part, buffer))
        else:
            reads = self._decode(part, part.decoded_bytes, buffer)
        return reads.start(self._pool, list(self._requests(part, buffer)))

    def _decode(self, part: _Part, decoded_bytes: int, buffer: memoryview) -> _Reads:
        """Reads of the code of a layer, which is decoded in `buffer` as it arrives."""
        (extent,) = part.extents
        begin, end = self._files[extent.file].coded or (0, 0)
        shift = extent.at - extent.start  # from the file to the buffer
        digest = checksum()
        code = np.frombuffer(buffer, np.uint8)[: end + shift]
        decoding = lossless.InPlace(
            code, begin + shift, decoded_bytes, self._decoders, self.scratch, digest
        )

        def check() -> None:
            self._compare(extent.file, digest.hexdigest())

        return _Reads(self._read, check, decoding)

    def read_stream(self, layer: int) -> lossless.U8:
        """The code of a layer of a lossless checkpoint as it lies on the disk, (n,).

        Raises InvalidInput for another checkpoint.
        """
        part = self._part(layer)
        require(
            part.decoded_bytes is not None,
            f"layer {layer} of {self.folder} is not in code: expected a checkpoint "
            "that was compressed with lossless weights",
        )
        buffer = allocate(part.read_bytes)
        (extent,) = part.extents
        file = self._files[extent.file]
        self._read(file, buffer, extent.start, extent.end - extent.start)
        begin, end = file.coded or (0, 0)
        return np.frombuffer(buffer, np.uint8)[
            begin - extent.start : end - extent.start
        ]

    def split_tables(self, spec: ModelSpec, buffer_bytes: int) -> int:
        """Take the tables of tokens out of what is read as one; the parts of the head.

        Rows of the token table are read by `read_rows` from then on, and the output
        head in so many parts, by `head_bounds`, each in a buffer of `buffer_bytes`: the
        layers after the last one. 0, and nothing changed, for a checkpoint that is in
        code, for a tied head that is stored beside its table, for a small table and for
        a small buffer. A file that is read in pieces has no checksum: its size, times
        and header are held.
        """
        tables = [t for t in self._outside if t.shape == (spec.vocab, spec.hidden)]
        whole_part = self._part(NON_LAYER).decoded_bytes is None
        if not whole_part or len(tables) != (1 if spec.tied else 2):
            return 0
        tables.sort(key=lambda table: table.name.endswith(HEADS))
        self._table, head = tables[0], tables[-1]
        row, groups = head.nbytes // spec.vocab, spec.vocab // _GROUP
        # A part may straddle two blocks, and the last one has up to a group more.
        most = (buffer_bytes - 2 * ALIGNMENT) // (row * _GROUP) - 1
        if most < 1 or groups < 1:
            return 0
        parts = -(-groups // most)
        for table in tables:
            self._sums.pop(table.file, None)
        rest = [tensor for tensor in self._outside if tensor not in tables]
        self._parts[NON_LAYER] = _lay_out(rest)
        for number, (first, end) in enumerate(pairwise(head_bounds(spec.vocab, parts))):
            part = replace(
                head,
                name=HEAD,
                shape=(end - first, spec.hidden),
                start=head.start + first * row,
                nbytes=(end - first) * row,
            )
            self._parts[self.layers + number] = _lay_out([part])
        return parts

    def read_rows(self, rows: Sequence[int], target: memoryview) -> None:
        """Read `rows` of the token table into `target`, (n, bytes of a row).

        After `split_tables`. A row is small and wanted at once: it comes through the
        page cache, which is told to forget it.
        """
        table = self._table
        file, size = self._files[table.file], table.nbytes // table.shape[0]
        for number, row in enumerate(rows):
            place = table.start + row * size
            self._read(file, target[number : number + 1].cast("B"), place, size, False)
        file.verify()

    def close(self) -> None:
        """Wait for reads in flight and close the files."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._decoders.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        while self._files:
            self._files.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _part(self, layer: int) -> _Part:
        if layer not in self._parts:
            raise InvalidInput(
                f"layer {layer} does not exist: {self.folder} has layers 0 to "
                f"{self.layers - 1}"
            )
        return self._parts[layer]

    def _requests(self, part: _Part, buffer: memoryview) -> Iterator[_Chunk]:
        for extent in part.extents:
            file, needed = self._files[extent.file], extent.end - extent.start
            for at in range(0, extent.span, CHUNK_BYTES):
                size = min(CHUNK_BYTES, extent.span - at)
                target = buffer[extent.at + at : extent.at + at + size]
                yield file, target, extent.start + at, min(size, needed - at)

    def _read(
        self,
        file: _File,
        target: memoryview,
        offset: int,
        needed: int,
        direct: bool = True,
    ) -> None:
        try:
            filled = file.read(target, offset, needed, direct)
        except OSError as error:
            file.refuse(
                f"cannot be read at byte {offset} ({error.strerror})",
                "check the disk, and read into buffers from `checkpoint.allocate`",
            )
        with self._lock:
            self.bytes_read += filled

    def _check(self, part: _Part, buffer: memoryview) -> None:
        """Hold the bytes of a layer that has arrived against the manifest."""
        for extent in part.extents:
            file = self._files[extent.file]
            if extent.file not in self._sums:
                continue
            begin = extent.at + file.data_start - extent.start
            content = buffer[begin : extent.at + extent.end - extent.start]
            self._compare(extent.file, checksum(content).hexdigest())

    def _compare(self, number: int, found: str) -> None:
        """Hold the checksum of a file's tensors against the manifest, if it has one."""
        if found != self._sums.get(number, found):
            self._files[number].refuse(
                f"does not have the checksum that its {MANIFEST} recorded: its bytes "
                "were altered",
                "write the checkpoint again",
            )

    def _verify(self, manifest: Mapping[str, Any]) -> None:
        """Hold every file whole against the manifest; one under two names once."""
        entries = manifest.get("files", {})
        unknown = [f.path.name for f in self._files if f.path.name not in entries]
        if unknown:
            raise InvalidInput(
                f"{self.folder} has no {MANIFEST} with the SHA-256 of "
                f"{', '.join(unknown)}: there is nothing to verify it against; read "
                "without verifying, which still notices a file that changes"
            )
        hashes: dict[tuple[int, ...], str] = {}
        for file in self._files:
            if file.identity not in hashes:
                hashes[file.identity] = file.sha256()
            if hashes[file.identity] != entries[file.path.name]["sha256"]:
                file.refuse(
                    f"does not have the SHA-256 that its {MANIFEST} recorded: it was "
                    "altered"
                )

    def _tensors(self, index: _Index) -> Iterator[Placement]:
        for number, file in enumerate(self._files):
            names = {index.outward(file.path, name): name for name in file.spans}
            if missing := set(index.files[file.path]) - set(names):
                file.refuse(
                    f"does not hold {_bare(min(missing))}, which {INDEX} promises in "
                    "it: the two are of different checkpoints"
                )
            # Of a coded file: in what it decodes to.
            shift = 0 if file.coded else file.data_start
            for name, inside in names.items():
                span = file.spans[inside]
                begin, size = span.start + shift, ITEM_BYTES[span.dtype]
                if begin % size:
                    file.refuse(
                        f"has {_bare(name)} at byte {begin}, not a multiple of {size}, "
                        "where it cannot be used in place",
                        "save the checkpoint again with safetensors",
                    )
                yield replace(span, name=name, start=begin, file=number)


def _bare(name: str) -> str:
    """A tensor's name for a sentence, without the quotes."""
    return shown(name)[1:-1]


def _checksums(manifest: Mapping[str, Any], paths: Sequence[Path]) -> dict[int, str]:
    """The checksum of the tensors of each file, by its number, where there is one."""
    files = manifest.get("files", {})
    return {
        number: files[path.name]["xxh3_64"]
        for number, path in enumerate(paths)
        if "xxh3_64" in files.get(path.name, {})
    }


def _read_index(folder: Path) -> _Index:
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() or (os.path.lexists(single) and not index.is_file()):
        return _Index({single: ()})
    if not os.path.lexists(index):
        _refuse(
            folder,
            f"has neither {SINGLE} nor {INDEX}: expected a safetensors checkpoint",
            "convert other formats with save_pretrained",
        )
    content = read_object(index, "an index of safetensors", StoreDamaged)
    weight_map, metadata = content.get("weight_map"), content.get("metadata") or {}
    if not isinstance(weight_map, dict) or not isinstance(metadata, dict):
        _refuse(index, "is no index: expected the objects weight_map and metadata")
    distinct = metadata.get("distinct_layers")
    if distinct is not None:
        name = f"distinct_layers in {index}"
        distinct = whole(distinct, name, 1, 10**LAYER_DIGITS, StoreDamaged)
    files: dict[Path, list[str]] = {}
    for tensor, name in sorted(weight_map.items(), key=lambda item: str(item[1])):
        if not _is_file_name(name):
            _refuse(
                index,
                f"points outside its folder, with {shown(name)} for {_bare(tensor)}: "
                "expected the name of a file beside it",
            )
        files.setdefault(folder / name, []).append(tensor)
    return _Index(files, distinct)


def _is_file_name(name: Any) -> bool:
    """Whether a name can only be that of a file in the folder where it is said.

    A link of that name may lead elsewhere: hubs keep their files so.
    """
    return (
        isinstance(name, str)
        and name.isprintable()
        and "/" not in name
        and name not in {"", ".", ".."}
        and len(name.encode()) <= _NAME_LIMIT
    )


def _format(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and layout of the layers, on which manifest and configuration agree."""
    found = str(manifest.get("kind", "dense")), str(manifest.get("layout", ""))
    said = "dense", ""
    if (path := folder / "config.json").exists():
        config = read_object(path, "the configuration of a checkpoint", StoreDamaged)
        packing = config.get("quantization_config") or {}
        if not isinstance(packing, dict):
            what = f"describes how weights are packed as {shown(packing)}"
            _refuse(path, f"{what}: expected an object")
        if packing.get("quant_method") == "thesis_lib":
            said = str(packing.get("kind")), str(packing.get("layout", ""))
        if said != found:
            _refuse(
                folder,
                f"holds {_bare(' '.join(said).strip())} weights by its config.json but "
                f"{_bare(' '.join(found).strip())} ones by its {MANIFEST}: one of the "
                "two is missing or of another checkpoint",
            )
    return found


def _prefix(tensors: Iterable[Placement], folder: Path) -> str:
    """What stands before `layers.` in the names of a stack."""
    found = {
        tensor.name.split("layers.")[0]
        for tensor in tensors
        if split_name(tensor.name)[0] != NON_LAYER
    }
    if len(found) != 1:
        _refuse(folder, f"holds several stacks of layers, {shown(sorted(found))}")
    return found.pop()


def _partition(
    tensors: Iterable[Placement], folder: Path, coded: Mapping[int, tuple[int, int]]
) -> dict[int, _Part]:
    """The tensors by layer; those outside the stack under NON_LAYER.

    `coded` has the span of the code in each file, by number, that holds one.
    """
    by_layer: dict[int, dict[str, Placement]] = {NON_LAYER: {}}
    users: dict[int, set[int]] = {}  # layers in each file
    for tensor in tensors:
        layer, name = split_name(tensor.name)
        named = by_layer.setdefault(layer, {})
        if name in named:
            _refuse(folder, f"has {_bare(tensor.name)} in two files")
        named[name] = replace(tensor, name=name)
        users.setdefault(tensor.file, set()).add(layer)
    numbers = sorted(by_layer.keys() - {NON_LAYER})
    if not numbers or numbers != list(range(len(numbers))):
        more = ", …" if len(numbers) > _MOST_LAYERS_SHOWN else ""
        shown_numbers = ", ".join(map(str, numbers[:_MOST_LAYERS_SHOWN]))
        _refuse(
            folder,
            f"holds layers [{shown_numbers}{more}]: expected an unbroken stack from 0, "
            "of which a shard is missing",
        )
    parts = {}
    for layer, named in sorted(by_layer.items()):
        files = {tensor.file for tensor in named.values()}
        if not files & coded.keys():
            parts[layer] = _lay_out(named.values())
            continue
        if len(files) > 1 or any(len(users[file]) > 1 for file in files):
            _refuse(
                folder,
                f"codes layer {layer} together with others: expected a file for each",
                "write the checkpoint again",
            )
        (number,) = files
        parts[layer] = _lay_out_coded(named.values(), number, *coded[number])
    return parts


def _lay_out_coded(
    tensors: Iterable[Placement], number: int, start: int, end: int
) -> _Part:
    """One read to the end of the buffer, decoded to its front."""
    placements = tuple(tensors)
    decoded = max(tensor.end for tensor in placements)
    at = whole_blocks(lossless.buffer_bytes(end - start, decoded) - (end - start))
    return _Part((_Extent(number, _floor(start), end, at),), placements, decoded)


def _lay_out(tensors: Iterable[Placement]) -> _Part:
    """Few large reads: neighbours in a file share an extent."""
    extents: list[_Extent] = []
    placements: list[Placement] = []
    for tensor in sorted(tensors, key=lambda tensor: (tensor.file, tensor.start)):
        last = extents[-1] if extents else None
        near = last and last.file == tensor.file
        if last and near and tensor.start <= last.end + _GAP_BYTES:
            extents[-1] = replace(last, end=tensor.end)
        else:
            at = last.at + last.span if last else 0
            start = _floor(tensor.start)
            extents.append(_Extent(tensor.file, start, tensor.end, at))
        shift = extents[-1].at - extents[-1].start  # from the file to the buffer
        placements.append(replace(tensor, start=tensor.start + shift))
    return _Part(tuple(extents), tuple(placements))
