"""Read the weights of a streamed model from disk, one layer at a time.

The store knows every byte range before the first read, and reads straight into memory
that the caller owns.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from thesis_lib.common.errors import InvalidInput, read_object, require, shown
from thesis_lib.common.units import KiB, MiB
from thesis_lib.memory.formats import lossless
from thesis_lib.memory.formats.base import WeightFormat, read_format
from thesis_lib.memory.model.checkpoint import (
    MANIFEST,
    NON_LAYER,
    allocate,
    checksum,
    read_manifest,
    split_name,
)
from thesis_lib.memory.model.spec import ALIGNMENT, ModelSpec, whole_blocks
from thesis_lib.memory.offload.header import Placement, StoreDamaged, bare, reject
from thesis_lib.memory.offload.weight_file import WeightFile, list_tensors, read_index

# What measured best: larger requests take less of the processor, more of them in flight
# bring no more bytes. A ring of io_uring with as many requests was as fast and cost as
# much; reading through the page cache costs several times the processor's time, and the
# pages count against a hard limit of memory.
CHUNK_BYTES = 4 * MiB  # one request to the disk
READERS = 4  # requests in flight
DECODERS = 2  # threads that decode what has arrived, of a lossless checkpoint
_GAP_BYTES = 64 * KiB  # reading a smaller gap costs less than a second request
_MOST_LAYERS_SHOWN = 8

HEADS = "lm_head.weight", "embed_out.weight"  # the output head, in code and in files
HEAD = "weight"  # what a part of a split one is called

# Kernels of matrix products work on 16, 32, 48 or 64 outputs together, and on a few
# last ones, or on few at all, in another way: parts of whole groups, with what is left
# over in the last one, give every output the bits that it has in the whole. In 32 bits
# this holds for one thread: more share the outputs out, and each has its own last ones.
_GROUP = 192


def head_bounds(vocab: int, parts: int) -> list[int]:
    """Return the starts of the parts of an output head, and the end of the last."""
    groups = vocab // _GROUP
    return [part * groups // parts * _GROUP for part in range(parts)] + [vocab]


Seconds = tuple[float, float]  # of `time.perf_counter`, when something began and ended


@dataclass(frozen=True, slots=True)
class PendingRead:
    """A read in flight.

    `wait` returns when the buffer is filled, with the seconds in which that happened,
    and raises what went wrong otherwise.
    """

    wait: Callable[[], Seconds]


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


def _floor(n_bytes: int) -> int:
    return n_bytes // ALIGNMENT * ALIGNMENT


def _lower_priority() -> None:
    """Let this thread run only on a core that no other thread wants (Linux)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


# A file, where to read it to, from which byte on, and how many bytes.
_Chunk = tuple[WeightFile, memoryview, int, int]


class _Reads:
    """The chunks of one layer in flight; the last to finish runs `check`."""

    def __init__(
        self,
        read: Callable[[WeightFile, memoryview, int, int], None],
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

    def _run(self, file: WeightFile, target: memoryview, at: int, needed: int) -> None:
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
            file.reject(f"was altered ({error})", "write the checkpoint again")
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
        self._files: list[WeightFile] = []
        self._pool: ThreadPoolExecutor | None = None
        try:
            index = read_index(self.folder)
            for path in index.files:
                self._files.append(WeightFile(path))
            tensors = list(list_tensors(index, self._files))
            coded = {i: file.coded for i, file in enumerate(self._files) if file.coded}
            self._parts = _partition(tensors, self.folder, coded)
            self.layers = len(self._parts) - 1  # decoder layers
            self._outside = [t for t in tensors if split_name(t.name)[0] == NON_LAYER]
            self._prefix = _prefix(tensors, self.folder)
            recorded = manifest.get("files", {})
            self._sums = {
                number: recorded[file.path.name]["xxh3_64"]
                for number, file in enumerate(self._files)
                if "xxh3_64" in recorded.get(file.path.name, {})
            }
            if verify:
                self._verify(recorded)
        except BaseException:
            self.close()
            raise
        direct = all(file.direct is not None for file in self._files)
        self.mode = "direct" if direct else "buffered"
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="weights")
        self._decoders = ThreadPoolExecutor(
            DECODERS, thread_name_prefix="decode", initializer=_lower_priority
        )
        self.scratch = lossless.Scratch(DECODERS if coded else 0)

    @property
    def weights(self) -> WeightFormat:
        """The format of the layers. Raises InvalidInput for one that is unknown."""
        return read_format(self.folder, self.kind, self.layout)

    def require_geometry(self, spec: ModelSpec) -> None:
        """Reject a geometry that these files cannot have, before anything is built.

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
        """Return the checkpoint's name of a tensor of `placements(layer)`."""
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
        file: WeightFile,
        target: memoryview,
        offset: int,
        needed: int,
        direct: bool = True,
    ) -> None:
        try:
            filled = file.read(target, offset, needed, direct)
        except OSError as error:
            file.reject(
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

    def _compare(self, number: int, checksum: str) -> None:
        """Hold the checksum of a file's tensors against the manifest, if it has one."""
        if checksum != self._sums.get(number, checksum):
            self._files[number].reject(
                f"does not have the checksum that its {MANIFEST} recorded: its bytes "
                "were altered",
                "write the checkpoint again",
            )

    def _verify(self, entries: Mapping[str, Any]) -> None:
        """Hold every file whole against the manifest; one under two names once."""
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
                file.reject(
                    f"does not have the SHA-256 that its {MANIFEST} recorded: it was "
                    "altered"
                )


def _format(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and layout of the layers, on which manifest and configuration agree."""
    recorded = str(manifest.get("kind", "dense")), str(manifest.get("layout", ""))
    path = folder / "config.json"
    if not path.exists():
        return recorded
    config = read_object(path, "the configuration of a checkpoint", StoreDamaged)
    packing = config.get("quantization_config") or {}
    if not isinstance(packing, dict):
        what = f"describes how weights are packed as {shown(packing)}"
        reject(path, f"{what}: expected an object")
    configured = "dense", ""
    if packing.get("quant_method") == "thesis_lib":
        configured = str(packing.get("kind")), str(packing.get("layout", ""))
    if configured != recorded:
        reject(
            folder,
            f"holds {bare(' '.join(configured).strip())} weights by its config.json "
            f"but {bare(' '.join(recorded).strip())} ones by its {MANIFEST}: one of "
            "the two is missing or of another checkpoint",
        )
    return recorded


def _prefix(tensors: Iterable[Placement], folder: Path) -> str:
    """Return the prefix before `layers.` in the names of a stack."""
    layered = (t.name for t in tensors if split_name(t.name)[0] != NON_LAYER)
    prefix, *others = sorted({name.split("layers.")[0] for name in layered})
    if others:
        reject(folder, f"holds several stacks of layers, {shown([prefix, *others])}")
    return prefix


def _partition(
    tensors: Iterable[Placement], folder: Path, coded: Mapping[int, tuple[int, int]]
) -> dict[int, _Part]:
    """Return the tensors by layer; those outside the stack are under NON_LAYER."""
    by_layer: dict[int, dict[str, Placement]] = {NON_LAYER: {}}
    users: dict[int, set[int]] = {}  # layers in each file
    for tensor in tensors:
        layer, name = split_name(tensor.name)
        named = by_layer.setdefault(layer, {})
        if name in named:
            reject(folder, f"has {bare(tensor.name)} in two files")
        named[name] = replace(tensor, name=name)
        users.setdefault(tensor.file, set()).add(layer)
    numbers = sorted(by_layer.keys() - {NON_LAYER})
    if not numbers or numbers != list(range(len(numbers))):
        more = ", …" if len(numbers) > _MOST_LAYERS_SHOWN else ""
        shown_numbers = ", ".join(map(str, numbers[:_MOST_LAYERS_SHOWN]))
        reject(
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
            reject(
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
