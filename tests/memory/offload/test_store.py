"""Bytes read are bytes written; what is not the file that was opened is refused."""

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
from thesis_lib.memory.offload.store import SafetensorsStore, StoreDamaged
from thesis_lib.memory.offload.transfer import read_tensors

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


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("layout", [write, write_sharded])
def test_bytes_read_are_bytes_written(tmp_path, layout, dtype):
    made = tensors(dtype=dtype)
    layout(tmp_path, made)
    with SafetensorsStore(tmp_path) as store:
        assert store.layers == LAYERS
        found = dict(read_tensors(store, NON_LAYER))
        for i in range(LAYERS):
            found |= {
                f"model.layers.{i}.{k}": v for k, v in read_tensors(store, i).items()
            }
        asked = store.bytes_read
        least = sum(store.tensor_bytes(i) for i in range(NON_LAYER, LAYERS))
        most = sum(store.nbytes(i) for i in range(NON_LAYER, LAYERS))
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert torch.equal(found[name], tensor), name
    assert least == sum(tensor.nbytes for tensor in made.values())
    assert least <= asked <= most


def test_layers_read_in_one_chunk_or_many_are_the_same(tmp_path, monkeypatch):
    made = tensors()
    write(tmp_path, made)
    monkeypatch.setattr(module, "CHUNK_BYTES", ALIGNMENT)
    with SafetensorsStore(tmp_path) as store:
        for i in range(LAYERS):
            for name, tensor in read_tensors(store, i).items():
                assert torch.equal(tensor, made[f"model.layers.{i}.{name}"])


def test_without_direct_input_the_page_cache_serves_the_same_bytes(
    tmp_path, monkeypatch
):
    made = tensors()
    write(tmp_path, made)
    monkeypatch.setattr(module._File, "_open_direct", lambda self: None)
    with SafetensorsStore(tmp_path) as store:
        assert store.mode == "buffered"
        for name, tensor in read_tensors(store, 1).items():
            assert torch.equal(tensor, made[f"model.layers.1.{name}"])


@pytest.mark.parametrize("refuses", ["open", "preadv"])
def test_a_file_system_that_refuses_direct_input_is_read_buffered(
    tmp_path, monkeypatch, refuses
):
    made = tensors()
    write(tmp_path, made)
    opened = {}

    def open_(path, flags, *rest, real=os.open):
        if refuses == "open" and flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        descriptor = real(path, flags, *rest)
        opened[descriptor] = flags
        return descriptor

    def preadv(descriptor, buffers, offset, real=os.preadv):
        if refuses == "preadv" and opened.get(descriptor, 0) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(module.os, "open", open_)
    monkeypatch.setattr(module.os, "preadv", preadv)
    with SafetensorsStore(tmp_path) as store:
        assert store.mode == "buffered"
        for name, tensor in read_tensors(store, 1).items():
            assert torch.equal(tensor, made[f"model.layers.1.{name}"])


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a tmpfs")
def test_a_file_system_in_memory_serves_the_same_bytes():
    made = tensors()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        write(Path(folder), made)
        with SafetensorsStore(folder) as store:
            for name, tensor in read_tensors(store, 1).items():
                assert torch.equal(tensor, made[f"model.layers.1.{name}"])


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
            placed = store.placements(i)[0]
            got = raw[placed.start : placed.start + placed.nbytes]
            want = made[f"model.layers.{i}.{placed.name}"].flatten()
            assert torch.equal(got.view(torch.bfloat16), want)


@pytest.mark.parametrize("n_bytes", [0, 7, 100, -1])
def test_a_truncated_file_is_named(tmp_path, n_bytes):
    path = write(tmp_path, tensors())
    content = path.read_bytes()
    path.write_bytes(content[:n_bytes])
    with pytest.raises(StoreDamaged, match=r"model\.safetensors"):
        SafetensorsStore(tmp_path)


def test_a_file_with_bytes_to_spare_is_refused(tmp_path):
    path = write(tmp_path, tensors())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StoreDamaged, match="header promises"):
        SafetensorsStore(tmp_path)


def edited_header(path, edit):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_an_overlap_with_an_equal_hole_is_refused(tmp_path):
    """The sum of all bytes is then that of a whole file."""
    path = write(tmp_path, tensors())

    def overlap(header):
        first, second = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
        header[first]["data_offsets"] = header[second]["data_offsets"]

    edited_header(path, overlap)
    with pytest.raises(StoreDamaged, match="overlapping"):
        SafetensorsStore(tmp_path)


HEADERS = {
    "a hole": lambda h: [e["data_offsets"].__setitem__(0, 2) for e in _first(h)],
    "an end before its start": lambda h: [
        e["data_offsets"].reverse() for e in _first(h)
    ],
    "true for one": lambda h: [e["shape"].append(True) for e in _first(h)],
    "half a number": lambda h: [e["shape"].append(1.0) for e in _first(h)],
    "a negative shape": lambda h: [e.update(shape=[-1, -50, 37]) for e in _first(h)],
    "three offsets": lambda h: [e["data_offsets"].append(0) for e in _first(h)],
    "a shape beyond 64 bits": lambda h: [e.update(shape=[2**64, 0]) for e in _first(h)],
    "an unknown type": lambda h: [e.update(dtype="BF17") for e in _first(h)],
    "a type that is no text": lambda h: [e.update(dtype=["BF16"]) for e in _first(h)],
    "no type": lambda h: [e.pop("dtype") for e in _first(h)],
    "no object": lambda h: h.update({next(iter(h)): [1]}),
    "metadata that is no text": lambda h: h.update(__metadata__={"format": 1}),
}


def _first(header):
    """The tensor at the front of the file."""
    named = [e for name, e in header.items() if name != "__metadata__"]
    return [min(named, key=lambda entry: entry["data_offsets"])]


@pytest.mark.parametrize("edit", HEADERS.values(), ids=HEADERS)
def test_what_the_library_refuses_in_a_header_is_refused(tmp_path, edit):
    path = write(tmp_path, tensors())
    load_file(path)
    edited_header(path, edit)
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(StoreDamaged):
        SafetensorsStore(tmp_path)


def test_a_name_given_twice_is_refused(tmp_path):
    """Readers differ about which of the two is meant."""
    path = write(tmp_path, tensors())
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].rstrip()
    name, entry = next(
        item for item in json.loads(header).items() if item[0] != "__metadata__"
    )
    header = header[:-1] + f",{json.dumps(name)}:{json.dumps(entry)}}}".encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    load_file(path)
    with pytest.raises(StoreDamaged, match="twice"):
        SafetensorsStore(tmp_path)


def test_a_shape_that_does_not_fill_its_bytes_is_refused(tmp_path):
    path = write(tmp_path, tensors())
    name = "model.embed_tokens.weight"
    edited_header(path, lambda header: header[name]["shape"].append(2))
    with pytest.raises(StoreDamaged, match="embed_tokens"):
        SafetensorsStore(tmp_path)


def test_other_formats_and_missing_shards_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(StoreDamaged, match="safetensors checkpoint"):
        SafetensorsStore(tmp_path)
    write_sharded(tmp_path, tensors())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(StoreDamaged, match=r"b\.safetensors"):
        SafetensorsStore(tmp_path)


def test_a_hole_in_the_stack_is_refused(tmp_path):
    made = {name: t for name, t in tensors().items() if ".1." not in name}
    write(tmp_path, made)
    with pytest.raises(StoreDamaged, match="unbroken"):
        SafetensorsStore(tmp_path)


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path):
    """Same size, inode and header; other weights and another time."""
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def relabel(path):
    """Same size, inode and time; another header."""
    status, content = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.write(content.replace(b"BF16", b"F16 ", 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path):
    """Another file under the same name, size, time and header."""
    os.replace(shutil.copy2(path, path.with_name("twin")), path)


def flip(path):
    """One bit of the last tensor, under the same size, inode and times."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


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
    monkeypatch.setattr(module, "CHUNK_BYTES", ALIGNMENT)  # many reads to a layer
    if not direct:
        monkeypatch.setattr(module._File, "_open_direct", lambda self: None)
    with SafetensorsStore(tmp_path, verify=True) as store:
        for i in range(LAYERS):
            for name, tensor in read_tensors(store, i).items():
                assert torch.equal(tensor, made[f"model.layers.{i}.{name}"])
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


def test_an_index_that_promises_what_a_file_does_not_hold_is_refused(tmp_path):
    write_sharded(tmp_path, tensors())
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.1.mlp.up_proj.bias"] = "a.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(StoreDamaged, match=r"a\.safetensors does not hold model\.lay"):
        SafetensorsStore(tmp_path)


def test_two_stacks_are_refused(tmp_path):
    made = tensors()
    write(tmp_path, made | {"vision.layers.2.a.weight": torch.ones(3)})
    with pytest.raises(StoreDamaged, match="several stacks"):
        SafetensorsStore(tmp_path)


def test_wrong_requests_are_refused(tmp_path):
    write(tmp_path, tensors())
    with SafetensorsStore(tmp_path) as store:
        with pytest.raises(InvalidInput, match="layers 0 to 2"):
            store.nbytes(LAYERS)
        with pytest.raises(InvalidInput, match="needs a buffer"):
            store.read_layer(0, allocate(ALIGNMENT))
        buffer = allocate(store.nbytes(0))
    with pytest.raises(InvalidInput, match="closed"):
        store.read_layer(0, buffer)
