"""Checkpoints that hold a lossless code of their layers, in files of fewer bytes.

Every file is one stream, the code of the tensors that the file of a dense checkpoint
would hold, one after the other; its header says which. The store decodes a stream in
the buffer that it is read into, so that whoever streams such a checkpoint sees a dense
one.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thesis_lib.checks import require
from thesis_lib.memory import lossless
from thesis_lib.memory.checkpoint import (
    CODED,
    OUTER,
    Entry,
    NewCheckpoint,
    in_file_order,
    nbytes,
    new_checkpoint,
)
from thesis_lib.memory.packed import copy_description, describe
from thesis_lib.memory.pages import allocate
from thesis_lib.memory.store import DECODERS, SafetensorsStore

KIND = "lossless"
LAYOUT = "patched"


def code_checkpoint(
    folder: Path | str,
    out: Path | str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the bfloat16 checkpoint `folder` in code into the new folder `out`.

    Embedding and head are coded too; configuration and tokenizer are copied. One layer
    is in memory at a time; all or nothing, as `new_checkpoint`. `progress` hears of
    layers done and of all. Returns `bytes_before` and `bytes_after` of the tensors, and
    `layers`.

    Raises InvalidInput for a checkpoint that is packed or coded already, for tensors
    that are not bfloat16, and as the store does.
    """
    folder = Path(folder)
    with SafetensorsStore(folder) as store:
        parts = range(OUTER, store.layers)
        _require_codable(store)
        before, after = sum(map(store.tensor_bytes, parts)), 0
        with new_checkpoint(Path(out), before) as checkpoint:
            copy_description(folder, checkpoint.folder, describe(KIND, LAYOUT))
            for layer in parts:
                entries, tensors = _read(store, layer)
                after += write_coded(checkpoint, layer, entries, tensors)
                if progress is not None:
                    progress(layer + 1, store.layers)
            checkpoint.finish(kind=KIND, layout=LAYOUT, layers=store.layers)
        return {"bytes_before": before, "bytes_after": after, "layers": store.layers}


def write_coded(
    checkpoint: NewCheckpoint,
    layer: int,
    entries: Mapping[str, Entry],
    contents: Iterable[memoryview],
) -> int:
    """As `NewCheckpoint.write`, but the code of the tensors; the bytes of it."""
    ordered = in_file_order(entries)
    plain = np.empty(sum(map(nbytes, ordered.values())), np.uint8)
    at = 0
    for data in contents:
        plain[at : at + len(data)] = data
        at += len(data)
    stream = lossless.encode(plain)
    one = {CODED: ("U8", stream.shape)}
    checkpoint.write(layer, one, [stream.data], ordered)
    return len(stream)


def read_words(folder: Path | str, layer: int) -> lossless.U16:
    """The bit patterns of all bfloat16 numbers of a layer, (n,).

    Raises InvalidInput for a checkpoint of another type, and as the store does.
    """
    with SafetensorsStore(folder) as store:
        _require_codable(store)
        return np.frombuffer(b"".join(_read(store, layer)[1]), np.uint16)


def _require_codable(store: SafetensorsStore) -> None:
    require(
        store.kind == "dense",
        f"{store.folder} is packed as {store.kind} already: code the checkpoint that "
        "it was made from",
    )
    for layer in range(OUTER, store.layers):
        for placed in store.placements(layer):
            require(
                placed.dtype == "BF16",
                f"{store.full_name(layer, placed.name)} in {store.folder} is "
                f"{placed.dtype}: expected BF16, whose exponents the code is made for; "
                "save the model in bfloat16 first",
            )


def _read(
    store: SafetensorsStore, layer: int
) -> tuple[dict[str, Entry], list[memoryview]]:
    """The tensors of a layer by full name, and the bytes of each in file order."""
    buffer = allocate(store.nbytes(layer))
    store.read_layer(layer, buffer).wait()
    places = {store.full_name(layer, p.name): p for p in store.placements(layer)}
    entries = in_file_order({name: (p.dtype, p.shape) for name, p in places.items()})
    spans = [(places[name].start, places[name].nbytes) for name in entries]
    return entries, [buffer[start : start + size] for start, size in spans]


def decoder_bytes_per_s(folder: Path | str, rounds: int = 5) -> float:
    """The rate at which the decoders of a store write a layer of `folder`, from memory.

    Decoded bytes a second, with nothing else at work.
    """
    with SafetensorsStore(folder) as store:
        stream = store.read_stream(0)
        decoded_bytes = store.tensor_bytes(0)
    return lossless.decode_bytes_per_s(stream, decoded_bytes, DECODERS, rounds)
