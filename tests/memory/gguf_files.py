"""GGUF files of tiny random models, written as llama.cpp's converter writes them."""

import gguf
import numpy as np
import tiny
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

from thesis_lib.memory.model.gguf import ARCHITECTURES

SHAPE = {"vocab_size": 263, "hidden_size": 64, "num_attention_heads": 4}
GROUPED = {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}
WINDOW = "sliding_attention"
CHANGES = {
    "llama": {},
    "qwen2": {"head_dim": None},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {
        "query_pre_attn_scalar": 16, "num_hidden_layers": 7,
        "layer_types": [*[WINDOW] * 5, "full_attention", WINDOW],
    },
    "phi3": {"sliding_window": 7},
    "stablelm": {"partial_rotary_factor": 0.5},
}  # fmt: skip
WITH_LENGTHS = ("llama", "qwen3", "gemma2", "gemma3")


def make(folder, architecture="llama", dtype=torch.float32, **changes):
    """A tiny random model, in `folder` and resident."""
    shape = {**SHAPE, **GROUPED, **CHANGES[architecture], **changes}
    options = {name: value for name, value in shape.items() if value is not None}
    return tiny.write(
        folder, ARCHITECTURES[architecture].model_type, dtype=dtype, **options
    )


def describe(writer, architecture, config, **fields):
    """Write the settings of a model, as llama.cpp does; `fields` are other ones."""
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    settings = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if architecture == "stablelm":
        settings |= {
            "attention.layer_norm_epsilon": config.layer_norm_eps,
            "rope.dimension_count": 8,
            "use_parallel_residual": config.use_parallel_residual,
        }
    else:
        settings["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    if architecture in WITH_LENGTHS:
        settings |= {
            f"attention.{which}_length": config.head_dim for which in ("key", "value")
        }
    if getattr(config, "sliding_window", None):
        settings["attention.sliding_window"] = config.sliding_window
    pre = fields.pop("pre", "gpt-2")
    merges = fields.pop("merges", ["h e", "l l", "ll o", "he llo", "Ġ w"])
    adds = {
        bool: writer.add_bool, float: writer.add_float32, int: writer.add_uint32,
        str: writer.add_string,
    }  # fmt: skip
    for name, value in {**settings, **fields}.items():
        key = name if name.startswith("tokenizer.") else f"{architecture}.{name}"
        adds[type(value)](key, value)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *letters, "he", "ll", "llo", "hello", "Ġw"]
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3, 3] + [1] * (len(words) - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def weights(architecture, model):
    """The parameters as llama.cpp keeps them, under its names."""
    number = {name: n for n, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    config = model.config
    known = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if architecture == "llama" and name.split(".")[-2] in heads:
            pairs = values.reshape(heads[name.split(".")[-2]], 2, -1, values.shape[1])
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        yield known.get_name(name, (".weight", ".bias")), values


def write(
    path, architecture, model, kind=Kind.F32, more=(), pack=gguf.quantize, **fields
):
    """The GGUF file of a model, its matrices in a type, or in one by their name."""
    writer = GGUFWriter(path, architecture)
    describe(writer, architecture, model.config, **fields)
    for name, values in [*weights(architecture, model), *more]:
        of = kind(name) if callable(kind) else kind
        matrix = values.ndim > 1 and of != Kind.F32
        packed = pack(values, of) if matrix else values
        writer.add_tensor(name, packed, raw_dtype=of if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
