"""Weights that stay in the blocks of a GGUF file, streamed beside the same in bfloat16.

SmolLM2 from its file, unpacked and with its blocks kept, whose logits are the same; and
layers of the geometry of LLaMA-2-7B, in random blocks of the types that llama.cpp mixes
as Q4_K_M. Both ways stream in the same memory from the same disk, in turn: the reads
alone, tokens that follow one another, and the arithmetic alone.

    python benchmarks/blocks.py [--layers 16] [--rounds 8]

Needs 0.6 GB of disk for each layer.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from lossless import GEOMETRY, stream_in_turn
from record import Record, benchmark
from torch import Tensor, from_numpy

from thesis_lib.common.files import cache_folder
from thesis_lib.memory.compress.convert import convert
from thesis_lib.memory.compress.random_weights import synthesize
from thesis_lib.memory.formats.base import stored_tensors
from thesis_lib.memory.formats.ggml import Blocks
from thesis_lib.memory.model import gguf as files
from thesis_lib.memory.model import smollm2

MIX = {  # of Q4_K_M; in every second layer the last two are Q4_K as well
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj"), Type.Q4_K),
    **dict.fromkeys(("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"), Type.Q4_K),
    **dict.fromkeys(("self_attn.v_proj", "mlp.down_proj"), Type.Q6_K),
}
SCALE = 2e-4  # of a block, so that logits stay finite


def random_blocks(kind: Type, m: int, n: int, seed: int) -> Tensor:
    """Rows of blocks, bytes (m, b), of random codes and one scale."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng([seed, m, n])
    rows = draw.integers(0, 256, (m, n // block, size), np.uint8)
    at = slice(208, 210) if kind == Type.Q6_K else slice(0, 4)
    halves = np.full((at.stop - at.start) // 2, SCALE, np.float16)
    rows[..., at] = halves.view(np.uint8)
    return from_numpy(rows.reshape(m, -1))


def from_file(home: Path) -> dict[str, Path]:
    """SmolLM2, unpacked and with its blocks."""
    folders = {"bf16": smollm2.checkpoint(), "blocks": home / "kept"}
    files.convert(smollm2.source(), folders["blocks"], keep=Blocks)
    return folders


def at_random(home: Path, layers: int) -> dict[str, Path]:
    """Random weights in bfloat16, and random blocks in their place."""
    folders = {"bf16": home / "dense", "blocks": home / "blocks"}
    mixes = [dict.fromkeys(MIX, Type.Q4_K) if i % 2 else MIX for i in range(layers)]
    synthesize(GEOMETRY, folders["bf16"], layers=layers)

    def encode(layer: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        def blocks(name: str, weight: Tensor) -> dict[str, Tensor]:
            kind = mixes[layer][name]
            return {"blocks": random_blocks(kind, *weight.shape, seed=layer)}

        return stored_tensors(layer, tensors, blocks)

    types = [{name: kind.name for name, kind in mix.items()} for mix in mixes]
    weights = Blocks(types=types)
    convert(folders["bf16"], folders["blocks"], weights, encode=encode)
    return folders


@benchmark
def main(
    out: Path,
    *,
    layers: Annotated[int, "of the random model"] = 16,
    rounds: int = 8,
    ring: int = 3,
) -> None:
    record, streams = Record(out), {}
    with tempfile.TemporaryDirectory(dir=cache_folder("benchmarks")) as home:
        streams["SmolLM2"] = stream_in_turn(from_file(Path(home)), rounds, ring)
        folders = at_random(Path(home), layers)
        streams["LLaMA-2-7B"] = stream_in_turn(folders, rounds, ring)
    record.write(layers=layers, streams=streams)
