"""The decoders that can be streamed, as transformers itself defines them.

A skeleton is the model of a configuration without a single weight: every parameter
is on the meta device, and only the small tables that no file holds are real.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from thesis_lib.common.errors import InvalidInput, shown
from thesis_lib.memory.formats.base import DENSE, WeightFormat
from thesis_lib.memory.model.checkpoint import DTYPES, NON_LAYER
from thesis_lib.memory.model.pretrained import transformers_reads
from thesis_lib.memory.model.spec import ModelSpec
from thesis_lib.memory.offload.store import HEADS, SafetensorsStore, head_bounds

TIED_HEAD, _FILED_HEAD = HEADS

_DTYPES = {2: torch.bfloat16, 4: torch.float32}
# What a file calls otherwise than the code does.
_ALIASES = {_FILED_HEAD: TIED_HEAD}
# Tables that older checkpoints store although the code computes them.
_COMPUTED = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")
_MOST_SHOWN = 6


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
    spec = ModelSpec.from_config(folder)  # rejects by name, where transformers guesses
    with transformers_reads(
        f"{Path(folder) / 'config.json'} cannot be used",
        "the configuration of a model of its model_type",
    ):
        config = AutoConfig.from_pretrained(folder)
    for name, ours in (
        ("num_hidden_layers", spec.layers),
        ("num_attention_heads", spec.heads),
        ("num_key_value_heads", spec.kv_heads),
        ("head_dim", spec.head_dim),
        ("hidden_size", spec.hidden),
        ("vocab_size", spec.vocab),
        ("tie_word_embeddings", spec.tied),
    ):
        theirs = getattr(config, name, ours)
        if theirs is not None and theirs != ours:
            raise InvalidInput(
                f"{Path(folder) / 'config.json'} does not set {name}: "
                f"transformers assumes {theirs}, this package {ours}. Set it."
            )
    vars(config).pop("quantization_config", None)  # the store says how and says more
    return config


def skeleton(config: Any, weights: WeightFormat = DENSE) -> Any:
    """The causal language model of `config` without weights, in eval mode.

    Parameters are on the meta device; tables that no checkpoint holds (rotary
    frequencies, an embedding's scale) are computed on the processor. Decoder layers
    compute with `weights` as they are stored, or once they are decoded.
    """
    with (
        transformers_reads(
            "the configuration gives no model", f"one of the type {config.model_type}"
        ),
        torch.device("meta"),
    ):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            _fill_tables(model, name, module, config)
    weights.swap(stack(model)[1])
    return flatten_head(model)


def require_checkpoint(folder: Path | str) -> Any:
    """The configuration of a checkpoint whose files hold the model that it describes.

    For who will hand the folder to transformers, which asks less. Raises InvalidInput
    for other files.
    """
    spec = ModelSpec.from_config(folder)
    with SafetensorsStore(folder) as store:
        store.require_geometry(spec)
        config = read_config(folder)
        model = skeleton(config, store.weights)
        require_tensors(store, spec, model)
    return config


def load_resident(folder: Path | str, dtype: torch.dtype | None = None) -> Any:
    """The whole model of a dense checkpoint, in memory and in eval mode.

    Raises InvalidInput as `require_checkpoint`.
    """
    require_checkpoint(folder)
    with transformers_reads(f"{folder} cannot be loaded", "a dense checkpoint"):
        options = {} if dtype is None else {"dtype": dtype}
        return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def require_tensors(store: SafetensorsStore, spec: ModelSpec, model: Any) -> None:
    """Reject files without the tensors of `model`, or with others.

    Names, types and shapes. Raises InvalidInput.
    """
    prefix, layers = stack(model)
    for number, layer in enumerate(layers):
        place = f"layer {number} of {store.folder}"
        _compare(store, spec, number, dict(layer.state_dict()), place)
    outside = {
        name: tensor
        for name, tensor in model.named_parameters()
        if not name.startswith(f"{prefix}.")
    }
    _compare(store, spec, NON_LAYER, outside, f"{store.folder}, outside its layers,")


def _compare(
    store: SafetensorsStore,
    spec: ModelSpec,
    layer: int,
    expected: Mapping[str, Tensor],
    place: str,
) -> None:
    names = renamed(store, layer, expected)
    placed = {names[p.name]: p for p in store.placements(layer) if p.name in names}
    if placed.keys() != expected.keys():
        odd = [shown(name)[1:-1] for name in sorted(placed.keys() ^ expected.keys())]
        more = ", …" if len(odd) > _MOST_SHOWN else ""
        raise InvalidInput(
            f"{place} does not have the tensors of a {spec.architecture} model: "
            f"{', '.join(odd[:_MOST_SHOWN])}{more} missing or unexpected"
        )
    for name, tensor in expected.items():
        stored = placed[name]
        if DTYPES[stored.dtype] != tensor.dtype or stored.shape != tuple(tensor.shape):
            raise InvalidInput(
                f"{name} in {place} is {stored.dtype} {list(stored.shape)} where "
                f"config.json asks for {tensor.dtype} {list(tensor.shape)}: the two do "
                "not belong together; copy the checkpoint again"
            )


def renamed(
    store: SafetensorsStore, layer: int, expected: Mapping[str, Tensor]
) -> dict[str, str]:
    """Stored names of a layer's tensors to those of the architecture.

    Some checkpoints leave the name of the base model away, some store tables that
    the code computes; those and a copy of a tied head are left out. Other names are
    kept, to be rejected, as is a second name of the same tensor.
    """
    stems = {name.split(".", 1)[-1]: name for name in expected}
    stored = {placed.name for placed in store.placements(layer)}
    names = {}
    for name in sorted(stored):
        alias = _ALIASES.get(name, name)
        stem = stems.get(name) if layer == NON_LAYER else None
        if alias in expected and (alias == name or alias not in stored):
            names[name] = alias
        elif stem is not None and stem not in stored:
            names[name] = stem
        elif not name.endswith(_COMPUTED) and not (
            layer == NON_LAYER and name == TIED_HEAD
        ):
            names[name] = name
    return names


class FlatHead(nn.Linear):
    """An output head that takes rows.

    transformers keeps the last positions of each sequence as a slice, and for a slice
    of several sequences torch passes over the whole matrix once for each of them.
    """

    multiply = staticmethod(nn.functional.linear)

    def forward(self, input: Tensor) -> Tensor:
        rows = self.multiply(input.flatten(0, -2), self.weight, self.bias)
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


class RowTable(nn.Module):
    """A token table of which a call gets the rows of its tokens, and no others.

    `fetch` gives them, (n, hidden), for tokens (n,).
    """

    def __init__(self, table: nn.Embedding, fetch: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        table.padding_idx = None  # a row of the whole table, and for training alone
        self.table, self._fetch = table, fetch

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self._fetch(tokens.flatten())
        places = torch.arange(len(rows), device=rows.device).view(tokens.shape)
        return functional_call(self.table, {"weight": rows}, (places,))


class SplitHead(nn.Module):
    """An output head of which one part after the other is there.

    `open_part` gives part number k, (rows, hidden), for the time of its product;
    without it the parts are those of the head's own weight.
    """

    multiply = staticmethod(nn.functional.linear)

    def __init__(
        self,
        head: nn.Linear,
        parts: int,
        open_part: Callable[[int], AbstractContextManager[Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self._bounds = head_bounds(head.out_features, parts)
        self._open_part = open_part or self._own

    def _own(self, part: int) -> AbstractContextManager[Tensor]:
        return nullcontext(self.weight[self._bounds[part] : self._bounds[part + 1]])

    def forward(self, input: Tensor) -> Tensor:
        states = input.flatten(0, -2)
        logits = states.new_empty(len(states), self._bounds[-1])
        for part, (first, end) in enumerate(pairwise(self._bounds)):
            bias = None if self.bias is None else self.bias[first:end]
            with self._open_part(part) as weight:
                logits[:, first:end] = self.multiply(states, weight, bias)
        return logits.unflatten(0, input.shape[:-1])


def split_tables(
    model: Any,
    parts: int,
    fetch: Callable[[Tensor], Tensor],
    open_part: Callable[[int], AbstractContextManager[Tensor]] | None = None,
) -> None:
    """Let a model do without its tables of tokens: a `RowTable` and a `SplitHead`."""
    model.set_input_embeddings(RowTable(model.get_input_embeddings(), fetch))
    head = SplitHead(model.get_output_embeddings(), parts, open_part)
    model.set_output_embeddings(head)


def multiply_by(model: nn.Module, multiply: Callable[..., Tensor]) -> None:
    """Let `multiply` make a model's products, called as torch's `linear` is."""
    for module in model.modules():
        if isinstance(module, FlatHead | SplitHead):
            module.multiply = multiply  # type: ignore[method-assign]
        elif type(module) is nn.Linear:
            module.forward = partial(_product, module, multiply)


def _product(
    module: nn.Linear, multiply: Callable[..., Tensor], input: Tensor
) -> Tensor:
    return multiply(input, module.weight, module.bias)


def stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The uniform stack of decoder layers, and its dotted name in the model."""
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.endswith("layers")
    ]
    if len(stacks) != 1:
        raise InvalidInput(
            f"{type(model).__name__} has {len(stacks)} stacks of layers: expected a "
            "decoder with one"
        )
    return stacks[0]


def _fill_tables(model: nn.Module, name: str, module: nn.Module, config: Any) -> None:
    """Compute the buffers of `module`, which no checkpoint stores."""
    if name.endswith("rotary_emb"):
        with transformers_reads(
            "the configuration gives no rotary table", "rope parameters that do"
        ):
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
