"""Byte and FLOP arithmetic of a decoder-only transformer, and of a machine.

Nothing here allocates: a model is its geometry, a machine is its rates.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from thesis_lib.common.errors import (
    InvalidInput,
    choice,
    read_object,
    require,
    shown,
    whole,
)

# Kinds of a store by format, of those whose bytes a geometry alone says.
WEIGHTS = {"bf16": "dense", "nf4": "nf4", "int8": "int8", "lossless": "lossless"}

ALIGNMENT = 4096  # direct I/O wants offsets, lengths and addresses in whole blocks


def whole_blocks(n_bytes: int) -> int:
    """Round a number of bytes up to a multiple of ALIGNMENT."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Of every size that a file gives, so that no product of them leaves 64 bits: several
# times what any published model has.
_LARGEST, _DEEPEST, _LONGEST = 2**20, 2**13, 2**31 - 1

# What `config.json` cannot say, because the code of the architecture says it: shape
# fields of `ModelSpec` by transformers' model_type.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma": {},
    "gemma2": {"layer_norms": 4},
    "gemma3_text": {"layer_norms": 4, "qk_norm": True},
    "phi3": {"fused": True},
    "olmo2": {"flat_qk_norm": True},
    "granite": {},
    "smollm3": {},
    "cohere": {"layer_norms": 1},
    "cohere2": {"layer_norms": 1},
    "stablelm": {"norm_bias": True},
    "phi": {
        "gated": False, "attention_bias": True, "mlp_bias": True, "norm_bias": True,
        "layer_norms": 1, "head_bias": True,
    },
    "opt": {"gated": False, "norm_bias": True},
    "gpt_neox": {"gated": False, "norm_bias": True, "mlp_bias": True, "fused": True},
}  # fmt: skip
ARCHITECTURES = tuple(_FAMILIES)
# transformers makes its caches by these, whichever the family.
_WINDOWS = ("sliding_window", "attention_chunk_size")
# The head of these is the embedding where their configuration does not say.
_TIED = {"opt", "gemma", "gemma2", "gemma3_text", "smollm3", "cohere", "cohere2"}
_ROPES = ("default", "linear", "llama3", "yarn")
_LONG = ("longrope", "su")  # other frequencies for texts beyond the first positions
_ENDLESS = 2**31  # positions that no model has: a number that says nothing


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Describe the geometry of a uniform stack of decoder layers.

    A gated feed-forward block has three matrices (LLaMA), a plain one two (OPT).
    `positions` counts the rows of a learned position table, 0 for rotary ones;
    `context` the positions that the model was made for, 0 if unknown. `architecture`
    is transformers' model_type.

    Example:
        >>> from thesis_lib.memory import ModelSpec
        >>> spec = ModelSpec("tiny", layers=2, hidden=64, intermediate=128, heads=4,
        ...                  kv_heads=2, head_dim=16, vocab=256, tied=True)
        >>> spec.parameters, spec.layer_bytes
        (90432, 73984)
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool  # the output head is the embedding
    dtype_bytes: int = 2  # a weight, an activation, a key or a value
    gated: bool = True
    attention_bias: bool = False  # on all four projections
    qkv_bias: bool = False  # on three of them
    mlp_bias: bool = False
    norm_bias: bool = False
    layer_norms: int = 2  # of the hidden state, in one layer
    qk_norm: bool = False  # one more for queries and one for keys, of a head's size
    flat_qk_norm: bool = False  # or of the size of all heads
    fused: bool = False  # queries, keys and values in one matrix, as gate and up
    head_bias: bool = False
    positions: int = 0
    context: int = 0
    architecture: str = "llama"

    def __post_init__(self) -> None:
        sizes = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim")
        for field in (*sizes, "vocab"):
            require(
                getattr(self, field) > 0,
                f"{self.name}: {field}={getattr(self, field)} must be positive",
            )
        require(
            self.dtype_bytes in (2, 4),
            f"{self.name}: dtype_bytes={self.dtype_bytes}: expected 2 or 4",
        )
        require(
            self.heads % self.kv_heads == 0,
            f"{self.name}: heads={self.heads} must be a multiple of "
            f"kv_heads={self.kv_heads}",
        )

    @classmethod
    def from_config(cls, path: Path | str) -> Self:
        """The geometry in a transformers `config.json`, or in the folder of one.

        Raises InvalidInput for a missing or unreadable file, and for an
        architecture whose bytes this arithmetic does not describe.
        """
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        read = _Config(
            path, read_object(path, "the config.json of a transformers checkpoint")
        )
        family = read.word("model_type", ARCHITECTURES)
        opt = family == "opt"
        for window in _WINDOWS:
            read.count(window, 1, _LONGEST)
        try:
            heads, hidden = read.count("num_attention_heads"), read.count("hidden_size")
            most = _LARGEST if opt else _LONGEST
            positions = read.count("max_position_embeddings", most=most)
            if opt:
                width = read.count("word_embed_proj_dim", hidden)
                require(
                    width == hidden,
                    f"{path}: word_embed_proj_dim={width} differs from "
                    f"hidden_size={hidden}: expected embeddings of the hidden size",
                )
            dtype = "dtype" if read.content.get("dtype") else "torch_dtype"
            return cls(
                name=path.resolve().parent.name,
                layers=read.count("num_hidden_layers", most=_DEEPEST),
                hidden=hidden,
                intermediate=read.count("ffn_dim" if opt else "intermediate_size"),
                heads=heads,
                kv_heads=read.count("num_key_value_heads", heads),
                head_dim=read.count("head_dim", max(1, hidden // heads)),
                vocab=read.count("vocab_size"),
                tied=read.flag("tie_word_embeddings", family in _TIED),
                dtype_bytes=_DTYPE_BYTES[read.word(dtype, _DTYPE_BYTES)],
                positions=positions + 2 if opt else 0,
                context=_longest(read.content, path),
                architecture=family,
                **read.parts(family),
            )
        except KeyError as error:
            raise InvalidInput(
                f"{path} lacks {error.args[0]!r}: expected a full configuration with a "
                f"dtype among {', '.join(_DTYPE_BYTES)}"
            ) from error

    @property
    def most_positions(self) -> int:
        """The longest sequence that the model was made for; 0 where nothing says."""
        return self.positions - 2 if self.positions else self.context

    @property
    def layer_matrix_parameters(self) -> int:
        """Weights that one token multiplies in one layer."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def matrix_outputs(self) -> tuple[int, ...]:
        """Return the numbers of outputs of a layer's matrices."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = (queries + 2 * keys,) if self.fused else (queries, keys)
        inner = 2 if self.fused and self.gated else 1
        return (*attention, inner * self.intermediate, self.hidden)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer, biases and norms included."""
        count = self.layer_matrix_parameters + self.layer_norms * self._norm_parameters
        if self.attention_bias or self.qkv_bias:
            count += self.head_dim * (self.heads + 2 * self.kv_heads)
        if self.attention_bias:
            count += self.hidden
        if self.qk_norm:
            count += 2 * self.head_dim
        if self.flat_qk_norm:
            count += (self.heads + self.kv_heads) * self.head_dim
        if self.mlp_bias:
            count += (2 if self.gated else 1) * self.intermediate + self.hidden
        return count

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; a tied head counts once."""
        outer = (self.vocab + self.positions) * self.hidden + self._norm_parameters
        return self.layers * self.layer_parameters + outer + self._head_parameters

    @property
    def _head_parameters(self) -> int:
        weights = 0 if self.tied else self.vocab * self.hidden
        return weights + (self.vocab if self.head_bias else 0)

    @property
    def _norm_parameters(self) -> int:
        return (2 if self.norm_bias else 1) * self.hidden

    @property
    def layer_bytes(self) -> int:
        """Bytes of one decoder layer."""
        return self.layer_parameters * self.dtype_bytes

    @property
    def embedding_bytes(self) -> int:
        """Bytes of the token table and of learned positions."""
        return (self.vocab + self.positions) * self.hidden * self.dtype_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes after the last layer: the final norm, and the head unless tied."""
        return (self._head_parameters + self._norm_parameters) * self.dtype_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of every weight: what a checkpoint's tensors hold."""
        return self.parameters * self.dtype_bytes

    def kv_bytes(self, batch: int, context: int) -> int:
        """Bytes of the keys and values of `batch` sequences of `context` tokens."""
        row = self.kv_heads * self.head_dim * self.dtype_bytes
        return 2 * self.layers * batch * context * row

    def flops_per_token(self, context: int = 0) -> int:
        """Multiplications and additions of one token that attends to `context`."""
        matrices = self.layers * self.layer_matrix_parameters
        matrices += self.vocab * self.hidden
        attention = self.layers * 2 * context * self.heads * self.head_dim
        return 2 * (matrices + attention)


@dataclass(frozen=True, slots=True)
class _Config:
    """Read a configuration field by field; reject wrong types."""

    path: Path
    content: dict[str, Any]

    def count(
        self, name: str, otherwise: int | None = None, most: int = _LARGEST
    ) -> int:
        if otherwise is not None and self.content.get(name) is None:
            return otherwise
        return whole(self.content[name], f"{name} in {self.path}", 1, most)

    def flag(self, name: str, otherwise: bool) -> bool:
        value = self.content.get(name, otherwise)
        require(
            isinstance(value, bool),
            f"{name} in {self.path} is {shown(value)}: expected true or false",
        )
        return value

    def parts(self, family: str) -> dict[str, Any]:
        """Return which tensors a family's layers have apart from matrices."""
        biased = family == "opt" and self.flag("enable_bias", True)
        fields: dict[str, Any] = {
            "attention_bias": self.flag(
                "attention_bias", biased or family == "gpt_neox"
            ),
            "mlp_bias": biased or self.flag("mlp_bias", False),
        }
        if family == "cohere":
            fields["flat_qk_norm"] = self.flag("use_qk_norm", False)
        elif family == "stablelm":
            fields["qkv_bias"] = self.flag("use_qkv_bias", False)
            fields["flat_qk_norm"] = self.flag("qk_layernorm", False)
            fields["layer_norms"] = (
                1 if self.flag("use_parallel_residual", False) else 2
            )
        elif family == "phi":
            require(
                not self.flag("qk_layernorm", False),
                f"qk_layernorm in {self.path} is true: expected a Phi whose queries "
                "and keys have no norm, as all published ones",
            )
        return fields | _FAMILIES[family]

    def word(self, name: str, allowed: Iterable[str]) -> str:
        return choice(f"{name} in {self.path}:", str(self.content.get(name)), allowed)


def _longest(config: dict[str, Any], path: Path) -> int:
    """The positions that a configuration is made for, its rotary scaling included.

    Of a scaling that takes other frequencies for a longer text, those before it does.
    Raises InvalidInput for one that depends on the length in another way: a plan is
    made before there is any text.
    """

    def number(name: str, of: dict[str, Any]) -> float:
        value = of.get(name)
        if isinstance(value, int | float) and 0 < value < _ENDLESS:
            return value
        return 0

    longest, span = number("max_position_embeddings", config), math.inf
    ropes = [config.get("rope_parameters"), config.get("rope_scaling")]
    # Some families have one for each type of layer.
    ropes += [
        part for rope in ropes if isinstance(rope, dict) for part in rope.values()
    ]
    for rope in ropes:
        if not isinstance(rope, dict):
            continue
        kind = rope.get("rope_type") or rope.get("type") or _ROPES[0]
        before = number("original_max_position_embeddings", rope)
        if kind in _LONG:
            outer = number("original_max_position_embeddings", config)
            span = min(span, before or outer, outer or before)
        require(
            kind in _ROPES or (kind in _LONG and span > 0),
            f"rope_type {shown(kind)} in {path} is not streamed: expected one of "
            f"{', '.join(_ROPES)}, whose frequencies no text changes",
        )
        longest = max(longest, before * number("factor", rope))
    return int(min(longest, span))


@dataclass(frozen=True, slots=True)
class Machine:
    """Describe a machine to a plan: sizes in bytes, rates per second.

    `host_bytes` is host memory that may hold weights, apart from the device. If the
    device is the processor itself, layers come straight from the disk.

    Example:
        >>> from thesis_lib.memory import Machine
        >>> Machine(device_bytes=8 * 2**30, disk_bytes_per_s=3e9).host_bytes
        0
    """

    device_bytes: int
    disk_bytes_per_s: float  # disk to staging buffer
    host_bytes: int = 0
    link_bytes_per_s: float = float("inf")  # host memory to device
    decode_bytes_per_s: float = float("inf")  # what decoders write of lossless weights
    weight_bytes_per_s: float = float("inf")  # weights read by a one-token pass
    flops_per_s: float = float("inf")  # matrix products of a long pass
    theft: float = 0.0  # seconds of computing that a second of reading takes away
    drag: float = 0.0  # seconds of reading that a second over weights takes away
    spread: float = 0.0  # relative half-width of a predicted time

    def __post_init__(self) -> None:
        require(
            self.device_bytes > 0 and self.host_bytes >= 0,
            f"device_bytes={self.device_bytes} must be positive and "
            f"host_bytes={self.host_bytes} not negative",
        )
        for rate in (
            "disk_bytes_per_s",
            "link_bytes_per_s",
            "decode_bytes_per_s",
            "weight_bytes_per_s",
            "flops_per_s",
        ):
            require(
                getattr(self, rate) > 0,
                f"{rate}={getattr(self, rate):g} must be positive",
            )

        require(
            max(self.theft, self.drag, self.spread) < 1
            and min(self.theft, self.drag, self.spread) >= 0,
            f"theft={self.theft:g}, drag={self.drag:g} and spread={self.spread:g} must "
            "lie in [0, 1)",
        )

    def with_memory(self, device_bytes: int, host_bytes: int = 0) -> Self:
        """The same rates with other sizes."""
        return replace(self, device_bytes=device_bytes, host_bytes=host_bytes)


# Hugo Touvron and others (LLaMA, 2023; Llama 2, 2023), Susan Zhang and others
# (OPT, 2022) and Albert Jiang and others (Mistral 7B, 2023) publish these shapes.
_GEOMETRIES = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "llama-65b", 80, 8192, 22016, 64, 64, 128, 32000, tied=False, context=2048
        ),
        ModelSpec(
            "llama2-7b", 32, 4096, 11008, 32, 32, 128, 32000, tied=False, context=4096
        ),
        ModelSpec(
            "llama2-13b", 40, 5120, 13824, 40, 40, 128, 32000, tied=False, context=4096
        ),
        ModelSpec(
            "llama2-70b", 80, 8192, 28672, 64, 8, 128, 32000, tied=False, context=4096
        ),
        ModelSpec(
            "mistral-7b", 32, 4096, 14336, 32, 8, 128, 32000, tied=False, context=8192,
            architecture="mistral",
        ),
        ModelSpec(
            "opt-66b", 64, 9216, 36864, 72, 72, 128, 50272, tied=True, positions=2050,
            architecture="opt", gated=False, attention_bias=True, mlp_bias=True,
            norm_bias=True,
        ),
    )
}  # fmt: skip


def geometries() -> tuple[str, ...]:
    """The names that `geometry` knows."""
    return tuple(_GEOMETRIES)


def geometry(name: str) -> ModelSpec:
    """Return a published geometry in 16-bit weights.

    Raises:
        InvalidInput: If no published geometry has this name.

    Example:
        >>> from thesis_lib.memory import geometry
        >>> llama = geometry("llama-65b")
        >>> llama.layers, round(llama.total_bytes / 1e9, 1)  # 16-bit weights, GB
        (80, 130.6)
    """
    return _GEOMETRIES[choice("model", name, _GEOMETRIES)]
