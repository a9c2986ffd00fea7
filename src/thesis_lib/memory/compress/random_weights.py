"""Seeded random checkpoints of true geometries, for measurements of systems.

The weights of the largest published models are not distributed with this project, and
how fast a model streams does not depend on what its weights say. What this module
writes is an ordinary checkpoint in every respect but meaning.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from thesis_lib.common.errors import require, require_count
from thesis_lib.common.units import MiB
from thesis_lib.memory.formats.base import WeightFormat, find_format
from thesis_lib.memory.model.checkpoint import (
    NON_LAYER,
    Entry,
    contents,
    file_bytes,
    in_file_order,
    new_checkpoint,
    split_name,
)
from thesis_lib.memory.model.spec import ModelSpec, geometry
from thesis_lib.memory.offload.architectures import configure

_STD = 0.02  # what most published models start from
_BLOCK = 4 * MiB  # weights drawn from one generator
_THREADS = os.cpu_count() or 1


def synthesize(
    model: ModelSpec | str,
    out: Path | str,
    distinct_layers: int | None = None,
    layers: int | None = None,
    seed: int = 0,
    kind: str = "dense",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a checkpoint of a geometry with Gaussian weights into a new folder.

    Matrices have mean 0 and standard deviation 0.02, or less to keep unit gain; norms
    are one. A layer depends on `seed` and on its number alone. One rename completes
    the folder.

    Args:
        model: A geometry or its name.
        out: The new folder.
        distinct_layers: Number of different layers; the files of others are hard links
            to these, in turn. None for all.
        layers: Number of layers; None for those of the geometry.
        seed: Seed of the weights.
        kind: Format of the weights, "dense" for bfloat16.
        progress: Function called with the layers done and their number.

    Returns:
        `bytes` of all files, `distinct_bytes` without links, and `layers`.

    Raises:
        InvalidInput: If the geometry is unknown, a number is out of range, the target
            exists, or the disk is too small; nothing is written then.

    Example:
        >>> from thesis_lib.memory import ModelSpec, synthesize
        >>> spec = ModelSpec("tiny", layers=2, hidden=64, intermediate=128, heads=4,
        ...                  kv_heads=2, head_dim=16, vocab=256, tied=True)
        >>> synthesize(spec, folder / "tiny")["layers"]
        2
    """
    require_count("seed", seed, 0)
    spec = geometry(model) if isinstance(model, str) else model
    weights = find_format(kind)
    count = _chosen("layers", layers, spec.layers, f"the depth of {spec.name}")
    distinct = _chosen("distinct_layers", distinct_layers, count, "those of the stack")
    config = configure(replace(spec, layers=count))
    if packing := weights.describe():
        config.quantization_config = packing
    dense = _parts(config)
    stored = {part: weights.entries(part, dense[part]) for part in dense}
    written = (NON_LAYER, *range(distinct))
    needed = sum(file_bytes(stored[part]) for part in written)  # or less, in code
    with new_checkpoint(Path(out), needed) as checkpoint:
        config.save_pretrained(checkpoint.folder)
        for done, part in enumerate(written):
            drawn = _draw(dense[part], (seed, part + 1))
            tensors = _encode(weights, part, drawn, stored[part])
            weights.write(checkpoint, part, stored[part], contents(tensors))
            if progress is not None:
                progress(done, distinct)
        manifest = {"distinct_bytes": checkpoint.bytes, "layers": count}
        for layer in range(distinct, count):
            checkpoint.link(layer, layer % distinct)
        about = {"geometry": spec.name, "layers": count, "seed": seed}
        if distinct < count:
            about["distinct_layers"] = distinct
        checkpoint.finish(**weights.manifest(), **about)
        manifest["bytes"] = checkpoint.bytes
    return {**manifest, "distinct_layers": distinct, "weights": kind}


def _chosen(name: str, number: int | None, most: int, what: str) -> int:
    number = most if number is None else number
    require(0 < number <= most, f"{name}={number}: expected 1 to {most}, {what}")
    return number


def _parts(config: PretrainedConfig) -> dict[int, dict[str, Entry]]:
    """Type and shape of every parameter, by layer, those outside the stack first."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    parts: dict[int, dict[str, Entry]] = {NON_LAYER: {}}
    for name, parameter in model.named_parameters():  # a tied head is named once
        part = parts.setdefault(split_name(name)[0], {})
        part[name] = "BF16", tuple(parameter.shape)
    return parts


def _draw(
    entries: Mapping[str, Entry], seed: tuple[int, ...]
) -> Iterator[tuple[str, Tensor]]:
    """One tensor after the other, with its name, in the order of the file."""
    for number, (name, (_, shape)) in enumerate(in_file_order(entries).items()):
        if len(shape) == 1 and name.endswith(".weight"):
            yield name, torch.ones(shape, dtype=torch.bfloat16)  # a norm
        else:
            std = min(_STD, 1 / math.sqrt(shape[-1]))
            yield name, gaussian(shape, std, (*seed, number))


def _encode(
    weights: WeightFormat,
    layer: int,
    drawn: Iterator[tuple[str, Tensor]],
    entries: Mapping[str, Entry],
) -> Iterator[Tensor]:
    """The tensors as they are stored, in the order of the file that holds `entries`."""
    ahead: dict[str, Tensor] = {}
    order = iter(in_file_order(entries))
    following = next(order)
    for name, tensor in drawn:
        ahead |= weights.encode(layer, {name: tensor})
        while following in ahead:
            yield ahead.pop(following)
            following = next(order, "")


@cache
def _quantiles(std: float) -> np.ndarray:
    """The bit patterns of 2^16 equally likely values of a normal law, in bfloat16."""
    likely = (np.arange(2**16) + 0.5) / 2**16
    values = torch.from_numpy(std * norm.ppf(likely)).to(torch.bfloat16)
    return values.view(torch.int16).numpy()


def gaussian(shape: tuple[int, ...], std: float, seed: tuple[int, ...]) -> Tensor:
    """Normal weights of mean 0 in bfloat16, the same for any number of threads.

    Each is one of 2^16 equally likely quantiles, which costs a fraction of a transform
    and leaves what bfloat16 tells of the law: tails end at 4.3 standard deviations.
    """
    table = _quantiles(std)
    drawn = np.empty(math.prod(shape), np.int16)

    def fill(block: int) -> None:
        part = drawn[block * _BLOCK : (block + 1) * _BLOCK]
        draw = np.random.Generator(np.random.SFC64([*seed, block]))
        part[:] = table[draw.integers(0, 2**16, len(part), np.uint16)]

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fill, range(-(-len(drawn) // _BLOCK))))
    return torch.from_numpy(drawn).view(torch.bfloat16).view(shape)
