"""llama.cpp beside us: the same weights in a file that it maps, and its own steps.

pip install llama-cpp-python

Nothing here imports torch, so that a process of llama.cpp has its memory to itself.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quant_shape_to_byte_shape
from memory_limit import decoded
from numpy.typing import NDArray
from safetensors import safe_open


def write_gguf(folder: Path, path: Path, kind: GGMLQuantizationType) -> None:
    """A dense LLaMA checkpoint as a GGUF file without a vocabulary, or no file.

    Matrices in `kind`, norms in float32; one tensor is in memory at a time. llama.cpp
    wants the rotary pairs of queries and keys side by side.
    """
    config = json.loads((folder / "config.json").read_text())
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    stores = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
    placed = {name: store for store in stores for name in store.keys()}  # noqa: SIM118
    for name, store in placed.items():
        shape, raw = tuple(store.get_slice(name).get_shape()), GGMLQuantizationType.F32
        if len(shape) > 1:
            shape, raw = quant_shape_to_byte_shape(shape, kind), kind
        dtype = np.dtype(np.uint8 if raw == kind else np.float32)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        theirs = str(known.get_name(name, (".weight",)))
        writer.add_tensor_info(theirs, shape, dtype, n_bytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, store in placed.items():
        weight = store.get_tensor(name)
        if pairs := heads.get(name.split(".")[-2]):
            halves = weight.view(pairs, 2, -1, weight.shape[-1])
            weight = halves.transpose(1, 2).reshape(weight.shape)
        values = weight.float().numpy()
        writer.write_tensor_data(
            gguf.quantize(values, kind) if values.ndim > 1 else values
        )
    writer.close()
    partial.rename(path)


def llama_step(
    path: Path, context: int, maps: bool = True, rearranges: bool = True
) -> Callable[[list[int]], NDArray[np.float32]]:
    """A step of llama.cpp on a GGUF file that it maps, or reads, with its cache inside.

    Of blocks that it rearranges for its kernels it keeps a copy. The step takes tokens
    and returns the logits (v,) behind the last of them.
    """
    import llama_cpp  # pyright: ignore[reportMissingImports]

    threads, calls = os.cpu_count(), llama_cpp.llama_cpp
    defaults = calls.llama_model_default_params

    def asked() -> Any:  # what the class does not hand on
        given = defaults()
        given.use_extra_bufts = rearranges
        return given

    with patch.object(calls, defaults.__name__, asked):
        model: Any = llama_cpp.Llama(
            str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads,
            use_mmap=maps, verbose=False,
        )  # fmt: skip

    def step(tokens: list[int]) -> NDArray[np.float32]:
        model.eval(tokens)
        last = model._ctx.get_logits_ith(-1)
        return np.ctypeslib.as_array(last, (model.n_vocab(),)).copy()

    return step


def decode_alone(
    path: str, prompt: list[int], steps: int, maps: bool, rearranges: bool = True
) -> dict[str, Any]:
    """Greedy decoding in this process, by `llama_step`: see `memory_limit.decoded`."""
    begin = time.perf_counter()
    step = llama_step(Path(path), len(prompt) + steps + 1, maps, rearranges)
    load_s = time.perf_counter() - begin

    def taken() -> Iterator[tuple[float, int]]:
        new = prompt
        for _ in range(1 + steps):
            begin = time.perf_counter()
            new = [int(np.argmax(step(new)))]
            yield time.perf_counter() - begin, new[0]

    return {"load_s": load_s, **decoded(taken())}
