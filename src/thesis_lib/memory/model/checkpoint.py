"""A checkpoint on disk: the names and types of its tensors, and a new one under way."""

import fcntl
import hashlib
import json
import math
import mmap
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from thesis_lib.common.errors import InvalidInput, read_object, require, shown
from thesis_lib.common.units import format_size
from thesis_lib.memory.model.spec import ALIGNMENT


def allocate(nbytes: int) -> memoryview:
    """Zeroed memory that direct I/O can fill: a buffer that starts on a page.

    In huge pages where the system grants them: a request of the disk is a list of
    pages, and one of few long entries is served almost twice as fast.
    """
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[:nbytes]


NON_LAYER = -1  # the "layer" of everything outside the stack: embedding, norm, head
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "manifest.json"
CODED = "coded"  # the one tensor of a lossless file, and what its header calls its own
MANIFEST_VERSION = 1

DTYPES = {  # by the names of safetensors
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ITEM_BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()}

checksum = xxhash.xxh3_64  # of the tensors of a file, cheap enough for every read

LAYER_DIGITS = 7  # of the number of a layer, at most
# A number as it is printed: 01 or ٣ would be a second name of a layer.
_LAYER = re.compile(rf"(.*?\.)?layers\.(0|[1-9][0-9]{{0,{LAYER_DIGITS - 1}}})\.(.+)")

Shape = tuple[int, ...]
Entry = tuple[str, Shape]  # the type as safetensors writes it, and the shape


def split_name(name: str) -> tuple[int, str]:
    """The layer of a tensor and its name there, or NON_LAYER and its full name."""
    match = _LAYER.fullmatch(name)
    return (int(match[2]), match[3]) if match else (NON_LAYER, name)


def renumbered(name: str, layer: int) -> str:
    """The name of the same tensor in another layer."""
    match = _LAYER.fullmatch(name)
    require(match is not None, f"{name} belongs to no layer")
    return f"{match[1] or ''}layers.{layer}.{match[3]}" if match else name


def nbytes(entry: Entry) -> int:
    """Bytes of one tensor."""
    dtype, shape = entry
    return ITEM_BYTES[dtype] * math.prod(shape)


def entry_of(tensor: Tensor) -> Entry:
    """Type and shape of a tensor."""
    return DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)


def contents(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """The bytes of one tensor after the other."""
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        yield plain.numpy().data.cast("B")


def file_name(layer: int) -> str:
    """The file that a checkpoint of this project keeps a layer in."""
    return (
        "outer.safetensors" if layer == NON_LAYER else f"layer-{layer:04d}.safetensors"
    )


def in_file_order(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Wider types first, so that every tensor starts on a multiple of its type."""
    return dict(sorted(entries.items(), key=lambda item: -ITEM_BYTES[item[1][0]]))


def _described(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Tensors one after the other, in the words of a safetensors header."""
    content: dict[str, Any] = {}
    at = 0
    for name, entry in entries.items():
        end = at + nbytes(entry)
        dtype, shape = entry
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    return content


def _header(
    entries: Mapping[str, Entry], coded: Mapping[str, Entry] | None = None
) -> bytes:
    """Return a safetensors header of whole blocks; `coded` share one code."""
    metadata = {"format": "pt"}
    if coded is not None:
        metadata[CODED] = json.dumps(_described(coded), separators=(",", ":"))
    content = {"__metadata__": metadata, **_described(entries)}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def file_bytes(entries: Mapping[str, Entry]) -> int:
    """Bytes of the file that holds these tensors, header included."""
    header = len(_header(in_file_order(entries)))
    return header + sum(nbytes(entry) for entry in entries.values())


def read_manifest(
    folder: Path, error_type: type[InvalidInput] = InvalidInput
) -> dict[str, Any]:
    """Return the manifest of a checkpoint, or an empty one without a file.

    Raises `error_type` for a manifest that cannot be read, or of another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    manifest = read_object(path, "the manifest of a checkpoint", error_type)
    version, files = manifest.get("version"), manifest.get("files")
    if (
        type(version) is not int
        or version != MANIFEST_VERSION
        or not isinstance(files, dict)
        or not all(map(_is_recorded, files.values()))
    ):
        raise error_type(
            f"{path} is a manifest of version {shown(version)}: expected version "
            f"{MANIFEST_VERSION} with bytes and sha256 of each file; write the "
            "checkpoint again"
        )
    return manifest


def _is_recorded(entry: Any) -> bool:
    """Return whether a manifest says of a file what it has to."""
    return (
        isinstance(entry, dict)
        and type(entry.get("bytes")) is int
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("xxh3_64", ""), str)
    )


class NewCheckpoint:
    """A checkpoint under way, one file for each layer and one for all else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        self._weight_map: dict[str, str] = {}

    def write(
        self,
        layer: int,
        entries: Mapping[str, Entry],
        contents: Iterable[memoryview],
        coded: Mapping[str, Entry] | None = None,
    ) -> None:
        """Write the file of a layer: `contents` in the order of `in_file_order`.

        Contents may be made one after the other: none is kept. If they are the code of
        other tensors, `coded` are those, in the order in which they were coded.
        """
        name = file_name(layer)
        self._weight_map |= dict.fromkeys(entries if coded is None else coded, name)
        ordered = in_file_order(entries)
        whole, tensors = hashlib.sha256(), checksum()
        header = _header(ordered, coded)
        path = self.folder / name
        with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
            file.write(header)
            whole.update(header)
            for entry, data in zip(ordered.values(), contents, strict=True):
                require(
                    len(data) == nbytes(entry),
                    f"{path} was given {len(data)} bytes for {entry}",
                )
                hashed = pool.submit(whole.update, data)
                tensors.update(data)
                at = 0
                while at < len(data):  # one call writes at most 2 GiB
                    at += file.write(data[at:])
                hashed.result()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                # Who measures reads next is to read the disk, not this page cache.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.files[name] = {
            "bytes": path.stat().st_size,
            "sha256": whole.hexdigest(),
            "xxh3_64": tensors.hexdigest(),
        }

    def link(self, layer: int, origin: int) -> None:
        """Let `layer` be the file of the layer `origin`, under a second name.

        The tensors inside keep the numbers of `origin`; the index has the new ones.
        """
        name, first = file_name(layer), file_name(origin)
        try:
            os.link(self.folder / first, self.folder / name)
        except OSError as error:
            raise InvalidInput(
                f"the file system of {self.folder.parent} rejects hard links "
                f"({error.strerror}): write to another one, or make every layer "
                "distinct"
            ) from error
        self.files[name] = self.files[first]
        same = [key for key, file in self._weight_map.items() if file == first]
        self._weight_map |= {renumbered(key, layer): name for key in same}

    def finish(self, **description: Any) -> None:
        """Write the index and the manifest, which repeats `description`."""
        linked = {k: v for k, v in description.items() if k == "distinct_layers"}
        index = {
            "metadata": {"total_size": self.bytes, **linked},
            "weight_map": self._weight_map,
        }
        manifest = {"version": MANIFEST_VERSION, **description, "files": self.files}
        for name, content in ((INDEX, index), (MANIFEST, manifest)):
            (self.folder / name).write_text(json.dumps(content, indent=1) + "\n")

    @property
    def bytes(self) -> int:
        """Bytes of all files so far, a linked one counted each time."""
        return sum(entry["bytes"] for entry in self.files.values())


@contextmanager
def new_checkpoint(out: Path, needed_bytes: int) -> Iterator[NewCheckpoint]:
    """Write beside `out`, which takes its place by one rename when all went well.

    What a killed run left there is removed; a run that still writes is respected.
    Raises InvalidInput for a target that exists, for a disk without `needed_bytes`
    before anything is written, and for one that cannot be written.
    """
    require(
        not out.exists(), f"{out} exists already: choose another folder or remove it"
    )
    require(out.parent.is_dir(), f"folder {out.parent} does not exist: create it first")
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise InvalidInput(
            f"{partial} cannot be written ({error.strerror}): expected a folder that "
            "you may write to"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(
                f"another run is writing {out}: wait for it or choose another folder"
            ) from None
        try:
            for left in partial.iterdir():
                left.unlink()
            free = shutil.disk_usage(partial).free
            require(
                needed_bytes <= free,
                f"{out} needs {format_size(needed_bytes)} where its disk has "
                f"{format_size(free)} free: write less, or free "
                f"{format_size(needed_bytes - free)}",
            )
            yield NewCheckpoint(partial)
            partial.rename(out)
        except OSError as error:
            raise InvalidInput(
                f"{out} cannot be written ({error.strerror or error}): nothing of it "
                "was kept"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)
