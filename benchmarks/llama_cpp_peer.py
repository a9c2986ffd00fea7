"""llama.cpp beside us: the same weights in a file that it maps, and a step of its own.

pip install llama-cpp-python
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quant_shape_to_byte_shape
from safetensors import safe_open
from timed_decode import Step
from torch import Tensor
from transformers import AutoConfig


def write_gguf(folder: Path, path: Path, kind: GGMLQuantizationType) -> None:
    """A dense LLaMA checkpoint as a GGUF file without a vocabulary, or no file.

    Matrices in `kind`, norms in float32; one tensor is in memory at a time. llama.cpp
    wants the rotary pairs of queries and keys side by side.
    """
    config: Any = AutoConfig.from_pretrained(folder)
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
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


def mapped_step(path: Path, context: int) -> Step:
    """A step of llama.cpp on a GGUF file that it maps, with its cache inside."""
    import llama_cpp  # pyright: ignore[reportMissingImports]

    threads = torch.get_num_threads()
    model = llama_cpp.Llama(
        str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )  # fmt: skip

    def step(tokens: Tensor) -> Tensor:
        model.eval(tokens[0].tolist())
        last = model._ctx.get_logits_ith(-1)
        logits = np.ctypeslib.as_array(last, (model.n_vocab(),)).copy()
        return torch.from_numpy(logits).view(1, 1, -1)

    return step
