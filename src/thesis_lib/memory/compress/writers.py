"""Checkpoints in other weight formats, written layer by layer."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thesis_lib.common.errors import read_object, require
from thesis_lib.memory.formats import bitplanes, lossless
from thesis_lib.memory.formats.lossless import CODED_KIND, CODED_LAYOUT
from thesis_lib.memory.formats.low_bit import Corrected, Recipe
from thesis_lib.memory.formats.lowrank import (
    _NAMES,
    LOW_RANK_KIND,
    LOW_RANK_LAYOUT,
    ranks_of,
)
from thesis_lib.memory.formats.nf4 import (
    _DTYPES,
    is_matrix,
    layout_here,
    pack_layer,
    packed_entries,
)
from thesis_lib.memory.model.checkpoint import (
    CODED,
    OUTER,
    Entry,
    NewCheckpoint,
    allocate,
    file_bytes,
    in_file_order,
    nbytes,
    new_checkpoint,
    split_name,
)
from thesis_lib.memory.model.checkpoint import allocate as allocate_buffer
from thesis_lib.memory.offload.store import SafetensorsStore


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
            copy_description(
                folder, checkpoint.folder, describe(CODED_KIND, CODED_LAYOUT)
            )
            for layer in parts:
                entries, tensors = _read(store, layer)
                after += write_coded(checkpoint, layer, entries, tensors)
                if progress is not None:
                    progress(layer + 1, store.layers)
            checkpoint.finish(kind=CODED_KIND, layout=CODED_LAYOUT, layers=store.layers)
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


def write_factors(
    folder: Path | str,
    out: Path | str,
    model: nn.Module,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `model`, factors of the checkpoint `folder`, into the new folder `out`.

    `model` is what `with_factors`, `factorise_blocks` or `refine_blocks` made of the
    checkpoint: its layers are written, everything outside them is copied from the
    folder, as are configuration and tokenizer. All or nothing, as `new_checkpoint`.
    Returns `bytes_before` and `bytes_after` of the tensors, and `layers`.

    Raises InvalidInput for a checkpoint that is compressed already, and for a model
    without factors or with weights that are not finite.
    """
    folder = Path(folder)
    with SafetensorsStore(folder) as store:
        require_dense(store)
        ranks = ranks_of(model, store.layers)
        require(
            any(ranks), f"{type(model).__name__} holds no factors: factorise it first"
        )
        parts = _layers(model)
        require(
            len(parts) == store.layers,
            f"the model has {len(parts)} layers where {folder} has {store.layers}: "
            "expected the model that was made of it",
        )
        outer = {p.name: (p.dtype, p.shape) for p in store.placements(OUTER)}
        entries = {
            OUTER: outer,
            **{
                layer: {
                    store.full_name(layer, name): (
                        _NAMES[tensor.dtype],
                        tuple(tensor.shape),
                    )
                    for name, tensor in tensors.items()
                }
                for layer, tensors in parts.items()
            },
        }
        needed = sum(file_bytes(part) for part in entries.values())
        with new_checkpoint(Path(out), needed) as checkpoint:
            for path in folder.iterdir():
                if path.suffix in {".json", ".txt", ".model", ".jinja"}:
                    shutil.copyfile(path, checkpoint.folder / path.name)
            config = read_object(
                folder / "config.json", "the configuration of a checkpoint"
            )
            config["quantization_config"] = {
                "quant_method": "thesis_lib",
                "kind": LOW_RANK_KIND,
                "layout": LOW_RANK_LAYOUT,
                "ranks": ranks,
            }
            text = json.dumps(config, indent=2, sort_keys=True)
            (checkpoint.folder / "config.json").write_text(text + "\n")
            checkpoint.write(OUTER, outer, _outer_contents(store, outer))
            for layer, tensors in sorted(parts.items()):
                named = {store.full_name(layer, name): t for name, t in tensors.items()}
                ordered = in_file_order(entries[layer])
                checkpoint.write(
                    layer, entries[layer], [_bytes(named[name]) for name in ordered]
                )
                if progress is not None:
                    progress(layer + 1, store.layers)
            checkpoint.finish(
                kind=LOW_RANK_KIND, layout=LOW_RANK_LAYOUT, layers=store.layers
            )
        return {
            "bytes_before": sum(
                store.tensor_bytes(layer) for layer in range(OUTER, store.layers)
            ),
            "bytes_after": sum(
                sum(map(nbytes, part.values())) for part in entries.values()
            ),
            "layers": store.layers,
        }


def require_dense(store: SafetensorsStore) -> None:
    """Refuse a checkpoint that is compressed already, by what it holds."""
    require(
        store.kind == "dense",
        f"{store.folder} is compressed already, as {store.kind}: factorise the "
        "checkpoint that it was made from",
    )


def _layers(model: nn.Module) -> dict[int, dict[str, Tensor]]:
    """The tensors of each decoder layer. Raises InvalidInput for one not finite."""
    parts: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in model.state_dict().items():
        number, inside = split_name(name)
        if number != OUTER:
            require(
                bool(torch.isfinite(tensor).all()),
                f"{name} holds weights that are not finite: they cannot be written",
            )
            parts[number][inside] = tensor
    return dict(parts)


def _outer_contents(
    store: SafetensorsStore, entries: Mapping[str, Entry]
) -> list[memoryview]:
    buffer = allocate(store.nbytes(OUTER))
    store.read_layer(OUTER, buffer).wait()
    placed = {p.name: p for p in store.placements(OUTER)}
    return [
        buffer[placed[name].start : placed[name].start + placed[name].nbytes]
        for name in in_file_order(entries)
    ]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data.cast("B")


def write_bits(
    folder: Path | str,
    out: Path | str,
    recipes: Recipe | Mapping[str, Recipe],
    quantise: Callable[[], Mapping[str, Corrected]],
) -> dict[str, Any]:
    """Write the checkpoint `folder` with matrices in few bits into the new `out`.

    `recipes` are by the names of matrices in a layer, such as `mlp.up_proj`, or one
    for all. `quantise` finds what is stored of each, by names such as `0.mlp.up_proj`;
    it is called once the files are known to be dense and to fit. Everything else keeps
    its bytes. All or nothing, as `new_checkpoint`. Returns `bytes_before` and
    `bytes_after` of the tensors, and `layers`.

    Raises InvalidInput for a checkpoint that is packed already, and for one that is
    not in bfloat16.
    """
    folder = Path(folder)
    with SafetensorsStore(folder) as store:
        require(
            store.kind == "dense",
            f"{folder} is packed as {store.kind} already: compress the checkpoint that "
            "it was made from",
        )
        if isinstance(recipes, Recipe):
            first = store.placements(0)
            inner = [p.name for p in first if is_matrix(p.name, p.shape)]
            recipes = {name.removesuffix(".weight"): recipes for name in inner}
        layout = bitplanes.layout_of(recipes)
        before = {
            layer: {p.name: (p.dtype, p.shape) for p in store.placements(layer)}
            for layer in range(OUTER, store.layers)
        }
        after = {
            layer: part if layer == OUTER else _bits_entries(part, recipes)
            for layer, part in before.items()
        }
        named = {
            layer: {store.full_name(layer, name): part[name] for name in part}
            for layer, part in after.items()
        }
        needed = sum(file_bytes(part) for part in named.values())
        with new_checkpoint(Path(out), needed) as checkpoint:
            stored = quantise()
            copy_description(
                folder, checkpoint.folder, describe(bitplanes.BITS_KIND, layout)
            )
            for layer in range(OUTER, store.layers):
                tensors = _packed_layer(store, layer, stored)
                ordered = [tensors[name] for name in in_file_order(after[layer])]
                checkpoint.write(layer, named[layer], contents(ordered))
            checkpoint.finish(
                kind=bitplanes.BITS_KIND, layout=layout, layers=store.layers
            )
    totals = [
        sum(sum(map(nbytes, part.values())) for part in parts.values())
        for parts in (before, after)
    ]
    return {
        "bytes_before": totals[0],
        "bytes_after": totals[1],
        "layers": len(before) - 1,
    }


def _bits_entries(
    part: Mapping[str, Entry], recipes: Mapping[str, Recipe]
) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for name, (dtype, shape) in part.items():
        if not is_matrix(name, shape):
            found[name] = dtype, shape
            continue
        require(
            dtype == "BF16",
            f"{name} is stored as {dtype}: expected a checkpoint in bfloat16, in which "
            "weights of few bits compute",
        )
        module = name.removesuffix(".weight")
        packed = bitplanes.entries(recipes[module], *shape)
        found |= {f"{module}.{key}": entry for key, entry in packed.items()}
    return found


def _packed_layer(
    store: SafetensorsStore, layer: int, stored: Mapping[str, Corrected]
) -> dict[str, Tensor]:
    """The tensors of a layer as they are written."""
    buffer = allocate_buffer(store.nbytes(layer))
    store.read_layer(layer, buffer).wait()
    raw = torch.frombuffer(buffer, dtype=torch.uint8)
    tensors: dict[str, Tensor] = {}
    for place in store.placements(layer):
        if layer == OUTER or not is_matrix(place.name, place.shape):
            tensors[place.name] = raw[place.start : place.start + place.nbytes]
            continue
        module = place.name.removesuffix(".weight")
        packed = bitplanes.pack(stored[f"{layer}.{module}"])
        tensors |= {f"{module}.{key}": tensor for key, tensor in packed.items()}
    return tensors


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
