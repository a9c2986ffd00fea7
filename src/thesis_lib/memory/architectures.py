"""The decoders that can be streamed, as transformers itself defines them.

A skeleton is the model of a configuration without a single weight: every parameter
is on the meta device, and only the small tables that no file holds are real.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
)

from thesis_lib.checks import InvalidInput
from thesis_lib.memory import factored
from thesis_lib.memory.bits import KIND as BITS
from thesis_lib.memory.bits import swap_bits
from thesis_lib.memory.packed import KINDS, swap_linears
from thesis_lib.memory.smollm2 import quiet
from thesis_lib.memory.spec import ModelSpec

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


def configure(spec: ModelSpec) -> Any:
    """The transformers configuration of a geometry, for models without a file."""
    if spec.architecture == "opt":
        shape: dict[str, Any] = {
            "ffn_dim": spec.intermediate,
            "word_embed_proj_dim": spec.hidden,
            "max_position_embeddings": spec.positions - 2,
            "enable_bias": spec.mlp_bias,
        }
    else:
        shape = {
            "intermediate_size": spec.intermediate,
            "num_key_value_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
        }
    if spec.architecture == "llama":
        shape |= {"attention_bias": spec.attention_bias, "mlp_bias": spec.mlp_bias}
    elif spec.architecture == "mistral":
        shape |= {"sliding_window": None}
    if spec.context:
        shape |= {"max_position_embeddings": spec.context}
    config: Any = AutoConfig.for_model(
        spec.architecture,
        vocab_size=spec.vocab,
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        tie_word_embeddings=spec.tied,
        dtype=_DTYPES[spec.dtype_bytes],
        **shape,
    )
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [model.__name__]
    return config


def read_config(folder: Path | str) -> Any:
    """The transformers configuration of a checkpoint that can be streamed.

    Raises InvalidInput for a file that is missing, unreadable or of another
    architecture.
    """
    ModelSpec.from_config(folder)  # refuses by name, before transformers guesses
    with quiet():
        config = AutoConfig.from_pretrained(folder)
    packing = vars(config).pop("quantization_config", None) or {}
    # The store says how layers are packed, and says more; ranks are of each layer.
    if packing.get("kind") == factored.KIND:
        config.factor_ranks = factored.read_ranks(folder)
    return config


def skeleton(config: Any, kind: str = "dense", layout: str | None = None) -> Any:
    """The causal language model of `config` without weights, in eval mode.

    Parameters are on the meta device; tables that no checkpoint holds (rotary
    frequencies, an embedding's scale) are computed on the processor. With a `kind` of
    packed weights the decoder layers take those, in the `layout` of this machine or
    another; lossless weights are dense ones by the time that a layer sees them.
    """
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            _fill_tables(model, name, module, config)
    if kind == factored.KIND:
        for layer, ranks in zip(stack(model)[1], _ranks(config), strict=True):
            factored.swap_factors(layer, ranks)
    elif kind == BITS:
        for layer in stack(model)[1]:
            swap_bits(layer, layout or "")
    elif kind in KINDS:
        for layer in stack(model)[1]:
            swap_linears(layer, kind, layout)
    return flatten_head(model)


def _ranks(config: Any) -> factored.Ranks:
    """The ranks of each layer, which only a checkpoint's configuration has."""
    ranks = getattr(config, "factor_ranks", None)
    if ranks is None:
        raise InvalidInput(
            "the configuration has no ranks of factors: expected that of a factored "
            "checkpoint, as read_config(folder) returns it"
        )
    return ranks


class FlatHead(nn.Linear):
    """An output head that takes rows.

    transformers keeps the last positions of each sequence as a slice, and for a slice
    of several sequences torch passes over the whole matrix once for each of them.
    """

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input.flatten(0, -2))
        return rows.unflatten(0, input.shape[:-1])


def flatten_head(model: Any) -> Any:
    """Put a `FlatHead` with the same weights in the place of a model's output head.

    Returns the model. Logits are the same bits, but for slices of several sequences,
    where torch would take another kernel.
    """
    head = model.get_output_embeddings()
    with torch.device("meta"):
        flat = FlatHead(head.in_features, head.out_features, head.bias is not None)
    flat.weight, flat.bias = head.weight, head.bias
    model.set_output_embeddings(flat)
    return model


def stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The uniform stack of decoder layers, and its dotted name in the model."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.endswith("layers")
    ]
    if len(found) != 1:
        raise InvalidInput(
            f"{type(model).__name__} has {len(found)} stacks of layers: expected a "
            "decoder with one"
        )
    return found[0]


def _fill_tables(model: nn.Module, name: str, module: nn.Module, config: Any) -> None:
    """Compute the buffers of `module`, which no checkpoint stores."""
    if name.endswith("rotary_emb"):
        model.set_submodule(name, type(module)(config))
    elif hasattr(module, "scalar_embed_scale"):
        scale = torch.tensor(module.scalar_embed_scale, dtype=config.dtype)
        module.register_buffer("embed_scale", scale, persistent=False)
    else:
        tables = ", ".join(key for key, _ in module.named_buffers(recurse=False))
        raise InvalidInput(
            f"{name} of {type(model).__name__} has tables ({tables}) that this version "
            f"cannot compute: expected one of the architectures that it streams"
        )
