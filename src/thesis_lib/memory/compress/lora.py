"""An adapter of low rank, merged into the weights that it was trained beside.

Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, in the files
that PEFT writes: `adapter_config.json` and `adapter_model.safetensors`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from thesis_lib.common.errors import InvalidInput, read_object, require, shown
from thesis_lib.memory.compress.convert import Progress, convert, require_dense
from thesis_lib.memory.formats.base import DENSE
from thesis_lib.memory.model.checkpoint import NON_LAYER, split_name
from thesis_lib.memory.offload.architectures import require_checkpoint
from thesis_lib.memory.offload.store import SafetensorsStore

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's, before the name of a module
_PARTS = (".lora_A.weight", ".lora_B.weight")
# Settings that say how an adapter was trained, and change nothing of what it is.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
}  # fmt: skip
_READ = {"alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora"}
_STARTS = {True, False, None, "gaussian", "eva", "orthogonal"}  # that keep the weights


@dataclass(frozen=True, slots=True)
class Adaptation:
    """Added to a matrix (m, n): `scaling` times `up` (m, r) by `down` (r, n)."""

    down: Tensor
    up: Tensor
    scaling: float

    def merged(self, weight: Tensor) -> Tensor:
        """`weight` (m, n) with it, rounded once, to the type that it has."""
        return (weight + (self.up @ self.down) * self.scaling).to(weight.dtype)


def read_adapter(folder: Path | str) -> dict[str, Adaptation]:
    """By the name of its matrix, what an adapter adds; in float32.

    Raises InvalidInput for files that are missing or unreadable, for an adapter of
    another kind, with a setting that changes more than these matrices, and for tensors
    that are no pairs of finite factors of the rank that it says.
    """
    folder = Path(folder)
    config = read_object(folder / CONFIG, "the configuration of an adapter of PEFT")
    _require_plain(folder / CONFIG, config)
    path = folder / WEIGHTS
    require(path.is_file(), f"{path} is no regular file: save the adapter with PEFT")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(
            f"{path} cannot be read ({error}): expected a whole file; copy it again"
        ) from error
    found = {}
    for module in dict.fromkeys(_module(path, name) for name in tensors):
        down, up = (tensors.get(_PREFIX + module + part) for part in _PARTS)
        if down is None or up is None:
            raise InvalidInput(
                f"{path} has one factor of {module} and not the other: copy it again"
            )
        rank = _by_pattern(config, "rank_pattern", module, config.get("r"))
        require(
            down.ndim == up.ndim == 2 and len(down) == up.shape[1] == rank > 0,
            f"{path} holds {list(down.shape)} and {list(up.shape)} for {module} where "
            f"factors of rank {shown(rank)} were expected: copy the adapter again",
        )
        require(
            bool(torch.isfinite(down).all() and torch.isfinite(up).all()),
            f"{path} holds factors of {module} that are not finite: train it again",
        )
        alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
        require(
            isinstance(alpha, int | float) and math.isfinite(alpha),
            f"lora_alpha={shown(alpha)} in {folder / CONFIG}: expected a number",
        )
        root = math.sqrt(rank) if config.get("use_rslora") else rank
        found[f"{module}.weight"] = Adaptation(down.float(), up.float(), alpha / root)
    require(len(found) > 0, f"{path} is empty: it adapts nothing")
    return found


def _require_plain(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse an adapter that is more than factors beside matrices."""
    kind, start = config.get("peft_type"), config.get("init_lora_weights", True)
    require(
        kind == "LORA",
        f"{path} says peft_type {shown(kind)}: only 'LORA' is merged here",
    )
    require(
        isinstance(start, bool | str | None) and start in _STARTS,
        f"{path} says init_lora_weights {shown(start)}, which may change the weights "
        "beside it: merge it with PEFT, where it was trained",
    )
    for name in ("rank_pattern", "alpha_pattern"):
        require(
            _are_patterns(config.get(name) or {}),
            f"{path} sets {name} to {shown(config.get(name))}: expected a number for "
            "each pattern of names; copy the adapter again",
        )
    slow = config.get("use_rslora")
    require(
        slow is None or isinstance(slow, bool),
        f"{path} sets use_rslora to {shown(slow)}: expected true or false; "
        "copy the adapter again",
    )
    known = {*_HARMLESS, *_READ, "peft_type", "init_lora_weights"}
    for name, value in config.items():
        require(
            name in known or value in (None, False, "none", [], {}),
            f"{path} sets {shown(name)[1:-1]} to {shown(value)}, which is not known "
            "here: merge it with PEFT",
        )


def _are_patterns(given: Any) -> bool:
    try:
        return isinstance(given, dict) and all(map(re.compile, given))
    except re.error:
        return False


def _module(path: Path, name: str) -> str:
    """The module whose factor a tensor is."""
    for part in _PARTS:
        if name.startswith(_PREFIX) and name.endswith(part):
            return name.removeprefix(_PREFIX).removesuffix(part)
    raise InvalidInput(
        f"{path} holds {shown(name)}, which is no factor of a matrix: merge it with "
        "PEFT"
    )


def _by_pattern(
    config: Mapping[str, Any], patterns: str, module: str, otherwise: Any
) -> Any:
    """What the first pattern that ends the name of a module says of it."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def merge_adapter(
    checkpoint: Path | str,
    adapter: Path | str,
    out: Path | str,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a dense checkpoint with an adapter merged into the new folder `out`.

    The weights are those of PEFT's `merge_and_unload`, in every bit. Configuration and
    tokenizer are copied; one layer is in memory at a time, beside the adapter; all or
    nothing. Returns `bytes_before` and `bytes_after` of the tensors, `layers`, and
    `matrices`, how many the adapter changes.

    Raises InvalidInput as `read_adapter`, for an adapter of another model, and as
    `convert` does.
    """
    folder, added = Path(checkpoint), read_adapter(adapter)
    require_checkpoint(folder)
    with SafetensorsStore(folder) as store:
        require_dense(store)
        shapes = {
            store.full_name(layer, placed.name): placed.shape
            for layer in range(NON_LAYER, store.layers)
            for placed in store.placements(layer)
        }
    for name, each in added.items():
        shape = (len(each.up), each.down.shape[1])
        require(
            shapes.get(name) == shape,
            f"{adapter} adapts {shown(name)[1:-1]} of the shape {list(shape)}, and "
            f"{folder} has {list(shapes.get(name, ())) or 'no such matrix'}: it is of "
            "another model",
        )
    parts = {split_name(name): each for name, each in added.items()}

    def encode(layer: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: each.merged(tensor)
            if (each := parts.get((layer, name))) is not None
            else tensor
            for name, tensor in tensors.items()
        }

    written = convert(folder, out, DENSE, progress, encode)
    return {**written, "matrices": len(added)}
