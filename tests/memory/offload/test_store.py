"""Bytes read are bytes written; what is not the file that was opened is refused."""

import fcntl
import json
import os
import re
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model.checkpoint import (
    ALIGNMENT,
    NON_LAYER,
    allocate,
    contents,
    entry_of,
    new_checkpoint,
    split_name,
)
from thesis_lib.memory.offload import store as module
from thesis_lib.memory.offload import weight_file
from thesis_lib.memory.offload.store import SafetensorsStore, StoreDamaged
from thesis_lib.memory.offload.transfer import read_tensors, views

LAYERS = 3


def tensors(seed=0, layers=LAYERS, dtype=torch.bfloat16):
    draw = torch.Generator().manual_seed(seed)
    made = {"model.embed_tokens.weight": torch.randn(50, 37, generator=draw)}
    for i in range(layers):
        made[f"model.layers.{i}.mlp.up_proj.weight"] = torch.randn(
            301, 37, generator=draw
        )
        made[f"model.layers.{i}.input_layernorm.weight"] = torch.randn(
            37, generator=draw
        )
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def write(folder, made):
    save_file(made, folder / "model.safetensors")
    return folder / "model.safetensors"


def write_sharded(folder, made):
    """Every other tensor in another file, so that layers cross files."""
    shards = {"a.safetensors": list(made)[::2], "b.safetensors": list(made)[1::2]}
    for shard, names in shards.items():
        save_file({name: made[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )


def matches(store, made, layers=range(LAYERS)):
    """Whether the store holds the tensors of those layers, bit for bit."""
    found = {}
    for layer in layers:
        for name, tensor in read_tensors(store, layer).items():
            found[store.full_name(layer, name)] = tensor
    wanted = {name for name in made if split_name(name)[0] in layers}
    return found.keys() == wanted and all(
        torch.equal(found[name], made[name]) for name in wanted
    )


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("layout", [write, write_sharded])
def test_bytes_read_are_bytes_written(tmp_path, layout, dtype):
    made, everything = tensors(dtype=dtype), range(NON_LAYER, LAYERS)
    layout(tmp_path, made)
    with SafetensorsStore(tmp_path) as store:
        assert store.layers == LAYERS
        assert matches(store, made, everything)
        least, most = (
            sum(map(size, everything)) for size in (store.tensor_bytes, store.nbytes)
        )
        assert least <= store.bytes_read <= most
    assert least == sum(tensor.nbytes for tensor in made.values())


def read_in_many_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", ALIGNMENT)


def read_buffered(monkeypatch):
    monkeypatch.setattr(weight_file.WeightFile, "_open_direct", lambda self: None)


def refuse_to_open(monkeypatch):
    """A file system that knows of no direct input."""

    def open_(path, flags, *rest, real=os.open):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(weight_file.os, "open", open_)


def refuse_to_read(monkeypatch):
    """One that only says so when it is to read."""

    def preadv(descriptor, buffers, offset, real=os.preadv):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(weight_file.os, "preadv", preadv)


@pytest.mark.parametrize(
    "reads", [read_in_many_chunks, read_buffered, refuse_to_open, refuse_to_read]
)
def test_however_the_disk_is_read_the_bytes_are_the_same(tmp_path, monkeypatch, reads):
    made = tensors()
    write(tmp_path, made)
    reads(monkeypatch)
    with SafetensorsStore(tmp_path) as store:
        assert store.mode == "buffered" or reads is read_in_many_chunks
        assert matches(store, made)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a tmpfs")
def test_a_file_system_in_memory_serves_the_same_bytes():
    made = tensors()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        write(Path(folder), made)
        with SafetensorsStore(folder) as store:
            assert matches(store, made)


def test_many_reads_in_flight_do_not_mix(tmp_path):
    made = tensors(layers=8)
    write(tmp_path, made)
    with SafetensorsStore(tmp_path) as store:
        buffers = [allocate(store.nbytes(i)) for i in range(8)]
        tickets = [store.read_layer(i, buffers[i]) for i in range(8)]
        for ticket in reversed(tickets):
            ticket.wait()
        for i, buffer in enumerate(buffers):
            raw = torch.frombuffer(buffer, dtype=torch.uint8)
            for name, found in views(store, i, raw).items():
                assert torch.equal(found, made[store.full_name(i, name)])


def rewrite_header(path, change):
    """Let the text of a header be what `change` makes of it."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    text = change(content[8:end].rstrip())
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])


SIZE, LAYER = 2 * 37 * 50, 2 * 37 * 302  # bytes of what comes first, and of a layer
FIRST, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


def entry(name=FIRST, rows=50, **fields):
    """The part of a header for one tensor of `tensors`, with other fields."""
    return {name: {"dtype": "BF16", "shape": [rows, 37]} | fields}


def with_parts(text, parts):
    return json.dumps(json.loads(text) | parts).encode()


HEADERS = {  # that the library refuses as well
    "a hole": entry(data_offsets=[2, SIZE]),
    "an end before its start": entry(data_offsets=[SIZE, 0]),
    "true for one": entry(data_offsets=[0, SIZE], shape=[50, 37, True]),
    "half a number": entry(data_offsets=[0, SIZE], shape=[50, 37, 1.0]),
    "a negative shape": entry(data_offsets=[0, SIZE], shape=[-1, -50, 37]),
    "three offsets": entry(data_offsets=[0, SIZE, 0]),
    "a shape beyond 64 bits": entry(data_offsets=[0, SIZE], shape=[2**64, 0]),
    "a shape beyond its bytes": entry(data_offsets=[0, SIZE], shape=[50, 37, 2]),
    "an unknown type": entry(data_offsets=[0, SIZE], dtype="BF17"),
    "a type that is no text": entry(data_offsets=[0, SIZE], dtype=["BF16"]),
    "no type": {FIRST: {"data_offsets": [0, SIZE], "shape": [50, 37]}},
    "no object": {FIRST: [1]},
    "metadata that is no text": {"__metadata__": {"format": 1}},
    # With an equal hole, so that the sum of all bytes is that of a whole file.
    "an overlap": entry(UP, 301, data_offsets=[SIZE + LAYER + 74, SIZE + 2 * LAYER]),
}
LENGTHS = {
    f"the first {end} bytes": lambda content, end=end: content[:end]
    for end in (0, 7, 100, -1)
} | {"bytes to spare": lambda content: content + b"\0"}


@pytest.mark.parametrize("changes", HEADERS.values(), ids=HEADERS)
def test_a_header_that_the_library_rejects_is_rejected_by_its_name(tmp_path, changes):
    path = write(tmp_path, tensors())
    same = entry(data_offsets=[0, SIZE])
    same |= entry(UP, 301, data_offsets=[SIZE + 74, SIZE + LAYER])
    for parts in (same, changes):
        load_file(path)
        rewrite_header(path, lambda text, parts=parts: with_parts(text, parts))
    refused_by_both(path)


@pytest.mark.parametrize("change", LENGTHS.values(), ids=LENGTHS)
def test_a_length_that_the_library_rejects_is_rejected_by_its_name(tmp_path, change):
    path = write(tmp_path, tensors())
    path.write_bytes(change(path.read_bytes()))
    refused_by_both(path)


def refused_by_both(path):
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(StoreDamaged, match=r"model\.safetensors"):
        SafetensorsStore(path.parent)


def test_a_name_given_twice_is_rejected(tmp_path):
    """Readers differ about which of the two is meant."""
    path = write(tmp_path, tensors())

    def repeat(header):
        entries = {k: v for k, v in json.loads(header).items() if k[0] != "_"}
        name, entry = next(iter(entries.items()))
        return header[:-1] + f",{json.dumps(name)}:{json.dumps(entry)}}}".encode()

    rewrite_header(path, repeat)
    load_file(path)
    with pytest.raises(StoreDamaged, match="twice"):
        SafetensorsStore(tmp_path)


def without_a_shard(folder):
    write_sharded(folder, tensors())
    (folder / "b.safetensors").unlink()


def with_a_broken_promise(folder):
    write_sharded(folder, tensors())
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.1.mlp.up_proj.bias"] = "a.safetensors"
    index.write_text(json.dumps(content))


FOLDERS = {
    "expected a safetensors checkpoint": lambda folder: (
        folder / "pytorch_model.bin"
    ).write_bytes(b"PK"),
    r"b\.safetensors": without_a_shard,
    r"a\.safetensors does not hold model\.lay": with_a_broken_promise,
    "unbroken": lambda folder: write(
        folder, {name: t for name, t in tensors().items() if ".1." not in name}
    ),
    "several stacks": lambda folder: write(
        folder, tensors() | {"vision.layers.2.a.weight": torch.ones(3)}
    ),
}


@pytest.mark.parametrize("named", FOLDERS)
def test_folders_that_hold_no_whole_stack_are_rejected(tmp_path, named):
    FOLDERS[named](tmp_path)
    with pytest.raises(StoreDamaged, match=named):
        SafetensorsStore(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")]
)
def test_weights_that_are_no_regular_file_are_rejected_as_that(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(StoreDamaged, match=f"{name} cannot be .*not a regular file"):
        SafetensorsStore(tmp_path)


def test_a_folder_named_like_the_weights_does_not_hide_an_index(tmp_path):
    write_sharded(tmp_path, made := tensors())
    (tmp_path / "model.safetensors").mkdir()
    with SafetensorsStore(tmp_path) as store:
        assert matches(store, made)


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def put(path, content, later_ns=0):
    """Write other bytes into the same file; its time stays, or is `later_ns` later."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + later_ns))


def overwrite(path):
    """Same size, inode and header; other weights and another time."""
    put(path, path.read_bytes()[:-100] + bytes(100), later_ns=1)


def relabel(path):
    """Same size, inode and time; another header."""
    put(path, path.read_bytes().replace(b"BF16", b"F16 ", 1))


def replace(path):
    """Another file under the same name, size, time and header."""
    os.replace(shutil.copy2(path, path.with_name("twin")), path)


def flip(path):
    """One bit of the last tensor, under the same size, inode and times."""
    content = path.read_bytes()
    put(path, content[:-1] + bytes([content[-1] ^ 1]))


def write_with_manifest(folder, made):
    """As this project writes: a file for each layer, and a checksum of each."""
    parts = {}
    for name, tensor in made.items():
        parts.setdefault(split_name(name)[0], {})[name] = tensor
    with new_checkpoint(folder / "new", 0) as new:
        for layer, part in parts.items():
            entries = {name: entry_of(tensor) for name, tensor in part.items()}
            new.write(layer, entries, contents(part.values()))
        new.finish(kind="dense")
    for file in (folder / "new").iterdir():
        file.rename(folder / file.name)
    return folder / f"layer-{LAYERS - 1:04d}.safetensors"


@pytest.mark.parametrize("layout", [write, write_with_manifest])
@pytest.mark.parametrize(
    "damage", [grow, truncate, overwrite, relabel, flip, replace, os.unlink]
)
def test_a_file_that_changes_while_open_is_named_when_read(tmp_path, layout, damage):
    path = layout(tmp_path, tensors())
    with SafetensorsStore(tmp_path) as store:
        buffer = allocate(store.nbytes(LAYERS - 1))
        store.read_layer(LAYERS - 1, buffer).wait()
        damage(path)
        with pytest.raises(StoreDamaged, match=re.escape(path.name)):
            store.read_layer(LAYERS - 1, buffer).wait()


@pytest.mark.parametrize("direct", [True, False])
def test_one_bit_is_noticed_where_a_checksum_was_recorded(
    tmp_path, monkeypatch, direct
):
    made = tensors()
    path = write_with_manifest(tmp_path, made)
    read_in_many_chunks(monkeypatch)
    if not direct:
        read_buffered(monkeypatch)
    with SafetensorsStore(tmp_path, verify=True) as store:
        assert matches(store, made)
        flip(path)
        read_tensors(store, 0)
        with pytest.raises(StoreDamaged, match=rf"{path.name} does not have the check"):
            read_tensors(store, LAYERS - 1)
    with SafetensorsStore(tmp_path) as store, pytest.raises(StoreDamaged):
        read_tensors(store, LAYERS - 1)
    with pytest.raises(StoreDamaged, match=rf"{path.name} does not have the SHA-256"):
        SafetensorsStore(tmp_path, verify=True)


def test_what_has_no_manifest_cannot_be_verified(tmp_path):
    write(tmp_path, tensors())
    with pytest.raises(InvalidInput, match=r"no manifest\.json.*model\.safetensors"):
        SafetensorsStore(tmp_path, verify=True)


def test_wrong_requests_are_rejected(tmp_path):
    write(tmp_path, tensors())
    with SafetensorsStore(tmp_path) as store:
        with pytest.raises(InvalidInput, match="layers 0 to 2"):
            store.nbytes(LAYERS)
        with pytest.raises(InvalidInput, match="needs a buffer"):
            store.read_layer(0, allocate(ALIGNMENT))
        buffer = allocate(store.nbytes(0))
    with pytest.raises(InvalidInput, match="closed"):
        store.read_layer(0, buffer)
