"""Checkpoints whose layers hold factors, each matrix with a rank of its own.

A matrix `a.weight`, (m, n), becomes `a.left`, (m, r), and `a.right`, (r, n), in the
model's own type; one that factors would not shrink stays as it is. The configuration
lists the ranks by layer and name, since no geometry tells them.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thesis_lib.checks import InvalidInput, read_object, require, shown
from thesis_lib.memory.checkpoint import (
    OUTER,
    Entry,
    file_bytes,
    in_file_order,
    nbytes,
    new_checkpoint,
    split_name,
)
from thesis_lib.memory.linears import linears, replace
from thesis_lib.memory.lowrank import LowRankLinear
from thesis_lib.memory.pages import allocate
from thesis_lib.memory.store import SafetensorsStore

KIND, LAYOUT = "lowrank", "factors"
Ranks = Sequence[Mapping[str, int]]  # by layer: rank of each factorised matrix

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def swap_factors(layer: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """Put factors of these ranks in the place of matrices of a layer, in place.

    Names are relative to the layer. The factors are on the meta device, and
    `torch.func.functional_call` runs the layer on those of a store. Returns the layer.
    Raises InvalidInput for a name without a matrix and for a rank that it cannot have.
    """
    for name, dense in linears(layer, ranks).items():
        m, n, rank = dense.out_features, dense.in_features, ranks[name]
        require(
            1 <= rank <= min(m, n),
            f"{name} is {m} x {n} and cannot have rank {rank}: expected 1 to "
            f"{min(m, n)}",
        )
        dtype = dense.weight.dtype
        left = torch.empty(m, rank, dtype=dtype, device="meta")
        right = torch.empty(rank, n, dtype=dtype, device="meta")
        replace(layer, name, LowRankLinear(left, right, dense.bias))
    return layer


def largest_ranks(ranks: Ranks) -> dict[str, int]:
    """The ranks of a layer that needs as much memory as any of them.

    A step holds the inner result of one pair of factors at a time, so the worst moment
    of all layers is the worst one of a layer that has the largest rank of each name.
    """
    largest: dict[str, int] = defaultdict(int)
    for layer in ranks:
        for name, rank in layer.items():
            largest[name] = max(largest[name], rank)
    return dict(largest)


def ranks_of(model: nn.Module, layers: int) -> list[dict[str, int]]:
    """The ranks of the factors in each decoder layer of a model."""
    ranks: list[dict[str, int]] = [{} for _ in range(layers)]
    for name, part in model.named_modules():
        if isinstance(part, LowRankLinear):
            number, inside = split_name(name)
            ranks[number][inside] = part.left.shape[1]
    return ranks


def read_ranks(folder: Path | str) -> list[dict[str, int]]:
    """The ranks that the configuration of a factored checkpoint lists.

    Raises InvalidInput where it does not list those of every layer.
    """
    path = Path(folder) / "config.json"
    config = read_object(path, "the configuration of a factored checkpoint")
    packing = config.get("quantization_config")
    ranks: Any = packing.get("ranks") if isinstance(packing, dict) else None
    complete = (
        isinstance(ranks, list)
        and len(ranks) == config.get("num_hidden_layers")
        and all(isinstance(layer, dict) for layer in ranks)
        and all(type(rank) is int for layer in ranks for rank in layer.values())
    )
    if not complete:
        raise InvalidInput(
            f"{path} does not list the ranks of a factored checkpoint: expected one "
            f"object of whole numbers for each of "
            f"{shown(config.get('num_hidden_layers'))} layers; write the checkpoint "
            "again"
        )
    return ranks


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
                "kind": KIND,
                "layout": LAYOUT,
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
            checkpoint.finish(kind=KIND, layout=LAYOUT, layers=store.layers)
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
