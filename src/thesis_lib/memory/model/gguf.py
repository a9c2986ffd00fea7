"""Convert a GGUF file, llama.cpp's format, to a checkpoint that transformers reads.

A setting or a tensor that is not known here could change what the model computes, and
is rejected.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from tokenizers import Regex, pre_tokenizers
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from thesis_lib.common.errors import choice, require, shown, whole
from thesis_lib.common.units import MiB, format_size
from thesis_lib.memory.model.checkpoint import (
    DTYPE_NAMES,
    NON_LAYER,
    Entry,
    contents,
    file_bytes,
    in_file_order,
    nbytes,
    new_checkpoint,
    split_name,
)
from thesis_lib.memory.model.gguf_file import GgufFile, GgufTensor, read_gguf
from thesis_lib.memory.model.pretrained import transformers_reads
from thesis_lib.memory.model.spec import ModelSpec

Progress = Callable[[int, int], None]  # layers written, and of all
# The weight format of matrices that stay in blocks, of their `types` by layer and name.
Keep = Callable[..., Any]

WORK_BYTES = 64 * MiB  # of decoding, beside the tensor that is decoded
WORK_PER_WEIGHT = 32  # bytes that a decoder of the gguf package takes at most
_LARGEST = 2**31 - 1

_WINDOW = {"attention.sliding_window": "sliding_window"}
_SOFT_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


class Architecture(NamedTuple):
    """The layout in which llama.cpp stores the models of an architecture."""

    model_type: str  # transformers' name
    settings: Mapping[str, str] = {}  # that transformers' table of GGUF files lacks
    partly: bool = False  # it may rotate a part of each head
    paired: bool = False  # rotary pairs of queries and keys are adjacent
    shifted: bool = False  # norms are one more than the weight


ARCHITECTURES = {
    "llama": Architecture("llama", paired=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", _SOFT_CAPS, shifted=True),
    "gemma3": Architecture("gemma3_text", _SOFT_CAPS, shifted=True),
    "phi3": Architecture("phi3", _WINDOW, partly=True),
    "stablelm": Architecture("stablelm", partly=True),
}
_HEAD_DIM = "attention.key_length"
_OPTIONAL = {"attention.head_count_kv", _HEAD_DIM, *_SOFT_CAPS}
_REAL = {"rms_norm_eps", "layer_norm_eps", *_SOFT_CAPS}  # other settings are counts
_ROTATED, _ROPE = "rope.dimension_count", "rope.freq_base"
_SCALING, _FACTOR = "rope.scaling.type", "rope.scaling.factor"
_IMPLIED = {  # settings that follow from another one
    "attention.value_length": "head_dim",
    _ROTATED: "head_dim",
    "vocab_size": "vocab_size",
    "rope.scaling.original_context_length": "max_position_embeddings",
}
_PARALLEL = "use_parallel_residual"
_FREQUENCIES = "rope_freqs.weight"  # what llama 3 divides its own by
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_PLAIN_FILE = "expected a file of the plain architecture"
_SPECIAL = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
# How the text is cut before bytes are merged, by llama.cpp's names, where transformers
# knows no rule of that name and would take GPT-2's.
_AS_GPT2 = {"gpt-2", "jais", "mpt", "olmo", "phi-2"}
_DIGITS_APART = {
    "codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder",
}  # fmt: skip
_AS_QWEN2 = {"hunyuan", "stablelm2"}
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Rules that take a piece whole where it is a token, whatever merges make of it, and
# begin a text with the token for that unless the file says otherwise.
_WHOLE = {
    "falcon-h1", "falcon3", "jina-v5-nano", "lfm2", "llama-bpe", "llama-v3", "llama3",
    "midm-2.0", "pixtral", "tekken",
}  # fmt: skip
# The layers of the two models whose attention is scaled by hidden size over heads and
# not by the size of a head, as llama.cpp knows them.
_SCALED_BY_HIDDEN = {"gemma2": 46, "gemma3": 62}


def _layout(file: GgufFile) -> Architecture:
    return ARCHITECTURES[file.architecture]


def read_config(file: GgufFile) -> Any:
    """Return the transformers configuration of a GGUF file.

    Names of settings are those of transformers' own table; what it leaves out, scaled
    rotary frequencies, soft caps and Phi-3's window, is read here.

    Raises InvalidInput for an architecture that is not converted, for a setting that
    is missing or not what it has to be, and for one that is not known here.
    """
    path, kind = file.path, file.architecture
    choice(f"the architecture of {path}:", kind, ARCHITECTURES)
    fields = _settings(file)
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    size = fields.setdefault("head_dim", hidden // heads)
    fields.setdefault("num_key_value_heads", heads)
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        file.reject("has no table of tokens", "copy it again")
    fields["vocab_size"] = table.shape[0]
    _require_implied(file, fields)
    if kind in _SCALED_BY_HIDDEN:
        by_hidden = fields["num_hidden_layers"] == _SCALED_BY_HIDDEN[kind]
        fields["query_pre_attn_scalar"] = hidden // heads if by_hidden else size
    if kind == "stablelm":
        fields[_PARALLEL] = bool(file.field(_PARALLEL))
        fields["use_qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
    for name, ours in _SPECIAL.items():
        token = file.metadata.get(f"tokenizer.ggml.{name}")
        if token is not None:
            token = whole(token, f"{name} in {path}", 0, fields["vocab_size"] - 1)
        fields[ours] = token
    with transformers_reads(
        f"{path} gives no configuration", "one of its architecture"
    ):
        config: Any = AutoConfig.for_model(
            _layout(file).model_type,
            tie_word_embeddings="output.weight" not in file.tensors,
            rope_parameters=_rope(file, size),
            dtype=_dtype(file),
            **fields,
        )
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [model.__name__]
    return config


def _settings(file: GgufFile) -> dict[str, Any]:
    """The settings of a file, by transformers' names. Rejects unknown ones."""
    names = {**GGUF_CONFIG_MAPPING[file.architecture], _HEAD_DIM: "head_dim"}
    names |= _layout(file).settings
    for name in (_ROTATED, _ROPE, "vocab_size"):  # read apart
        names.pop(name, None)
    (window,) = _WINDOW
    # A window of 0 is none; of Phi-3 without a word llama.cpp guesses one.
    if file.architecture == "phi3" and file.field(window) == 0:
        del names[window]
    known = {*names, *_IMPLIED, _ROPE, _SCALING, _FACTOR}
    known |= {_PARALLEL} if file.architecture == "stablelm" else set()
    for name, value in file.metadata.items():
        inside = name.removeprefix(f"{file.architecture}.")
        if inside != name and inside not in known and value not in (0, "none"):
            file.reject(
                f"sets {shown(name)[1:-1]} to {shown(value)}, which may change what "
                "the model computes and is not known here",
                _PLAIN_FILE,
            )
    return {
        ours: _number(file, name) if ours in _REAL else _count(file, name)
        for name, ours in names.items()
        if file.field(name) is not None or name not in _OPTIONAL
    }


def _require_implied(file: GgufFile, fields: Mapping[str, Any]) -> None:
    """Reject a setting that contradicts the one that it follows from."""
    for name, ours in _IMPLIED.items():
        if name == _ROTATED and _layout(file).partly:
            continue
        if file.field(name) not in (None, fields[ours]):
            file.reject(
                f"sets {file.architecture}.{name} to {shown(file.field(name))} where "
                f"its other settings ask for {fields[ours]}",
                _PLAIN_FILE,
            )


def _count(file: GgufFile, name: str) -> int:
    what = f"{file.architecture}.{name} in {file.path}"
    return whole(file.field(name), what, 1, _LARGEST)


def _number(file: GgufFile, name: str) -> float:
    value = file.field(name)
    if not isinstance(value, float) or not 0 < value < math.inf:
        file.reject(
            f"sets {file.architecture}.{name} to {shown(value)}",
            "expected a positive number; copy it again",
        )
    return value


def _rope(file: GgufFile, head_dim: int) -> dict[str, Any]:
    """The rotary parameters, in transformers' words."""
    theta = _number(file, _ROPE) if file.field(_ROPE) is not None else 1e4
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    scaling, factored = file.field(_SCALING), _factored(file)
    if scaling == "linear" and not factored:
        rope |= {"rope_type": "linear", "factor": _number(file, _FACTOR)}
    elif scaling not in (None, "none"):
        file.reject(
            f"scales its rotary frequencies by {shown(scaling)}",
            "expected none, linear, or the factors of llama 3",
        )
    if factored:
        rope |= _llama3(file, head_dim, theta)
    if _layout(file).partly and file.field(_ROTATED) is not None:
        what = f"{file.architecture}.{_ROTATED} in {file.path}"
        rotated = whole(file.field(_ROTATED), what, 2, head_dim)
        rope["partial_rotary_factor"] = rotated / head_dim
    if file.architecture != "gemma3":
        return rope
    # Its windows keep their frequencies, whatever the other layers do.
    local = {"rope_type": "default", "rope_theta": 1e4}
    return {"full_attention": rope, "sliding_attention": local}


def _factored(file: GgufFile) -> bool:
    """Return whether the file has a tensor that is a setting and not a parameter."""
    return file.architecture == "llama" and _FREQUENCIES in file.tensors


def _llama3(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any]:
    """Return Llama 3's scaling; raise InvalidInput for factors that break its rule."""
    tensor = file.tensors[_FREQUENCIES]
    stored = file.decode(tensor, 0, tensor.rows).ravel()
    factor = float(stored.max())
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)  # share that is not slowed
    with np.errstate(all="ignore"):  # a factor of zero, or none, is no rule
        rule = 1 / ((1 - share) / factor + share)
    if stored.shape != rule.shape or not np.allclose(stored, rule, rtol=1e-4):
        file.reject(
            f"divides its rotary frequencies by {shown(stored.tolist())}",
            f"expected the factors of llama 3, {shown(rule.tolist())}",
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _dtype(file: GgufFile) -> torch.dtype:
    """The type of the matrices where all have one that torch has, else bfloat16."""
    kinds = {t.kind for t in file.tensors.values() if len(t.shape) > 1}
    alone = kinds.pop() if len(kinds) == 1 else None
    return torch.bfloat16 if alone is None else _PLAIN.get(alone, torch.bfloat16)


def place(file: GgufFile, config: Any) -> dict[str, GgufTensor]:
    """The tensors of a model by the names of its parameters.

    Raises InvalidInput where the file lacks one, has another shape or holds more.
    """
    layers = config.num_hidden_layers
    blocks = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if len(blocks) != layers:
        file.reject(
            f"has tensors of {len(blocks)} layers and says that it has {layers}",
            "a part is missing; copy it again",
        )
    with (
        transformers_reads(f"{file.path} gives no model", "one of its architecture"),
        torch.device("meta"),
    ):
        parameters = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(numbers[file.architecture], layers)
    placed = {}
    for name, parameter in parameters.items():
        theirs = known.get_name(name, (".weight", ".bias"))
        tensor = file.tensors.get(theirs or "")
        if tensor is None or tensor.shape != tuple(parameter.shape):
            has = "no such tensor" if tensor is None else f"{list(tensor.shape)}"
            file.reject(
                f"has {has} for {theirs} where {list(parameter.shape)} was expected",
                "it is cut, or of another architecture than it says",
            )
        placed[name] = tensor
    held = {tensor.name for tensor in placed.values()}
    held |= {_FREQUENCIES} if _factored(file) else set()
    odd = sorted(file.tensors.keys() - held)
    if odd:
        file.reject(
            f"holds {shown(odd)}, of which its architecture has no use", _PLAIN_FILE
        )
    return placed


def read_tensor(file: GgufFile, tensor: GgufTensor, name: str, config: Any) -> Tensor:
    """Return a parameter of the model, in the type of its configuration.

    A few rows are decoded at a time, to float32. llama.cpp keeps the two coordinates
    of a rotary pair adjacent where they are `paired`, and one more than the weight
    of a norm where it is `shifted`; transformers does neither.
    """
    weight = torch.empty((tensor.rows, tensor.shape[-1]), dtype=config.dtype)
    step = max(1, WORK_BYTES // (WORK_PER_WEIGHT * tensor.shape[-1]))
    for first in range(0, tensor.rows, step):
        values = file.decode(tensor, first, min(first + step, tensor.rows))
        if _layout(file).shifted and name.endswith("norm.weight"):
            values = values - 1
        weight[first : first + step] = torch.from_numpy(values)
    return _apart(weight.view(tensor.shape), _paired(file, name, config))


def _apart(rows: Tensor, heads: int) -> Tensor:
    """Rows (m, …) of so many heads, whose rotary pairs were adjacent; 0: none."""
    if not heads:
        return rows
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _paired(file: GgufFile, name: str, config: Any) -> int:
    """The heads whose rotary pairs are adjacent in a parameter, 0 for none."""
    part = name.split(".")[-2] if _layout(file).paired else ""
    if part == "q_proj":
        return config.num_attention_heads
    return config.num_key_value_heads if part == "k_proj" else 0


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter of the model, and how the checkpoint stores it."""

    file: GgufFile
    config: Any
    name: str
    tensor: GgufTensor
    in_blocks: bool

    @property
    def stored_name(self) -> str:
        stem = self.name.removesuffix(".weight")
        return f"{stem}.blocks" if self.in_blocks else self.name

    @property
    def entry(self) -> Entry:
        if self.in_blocks:
            return "U8", (self.tensor.rows, self.tensor.row_bytes)
        return DTYPE_NAMES[self.config.dtype], self.tensor.shape

    def read(self) -> Tensor:
        """The parameter, or its rows of blocks, bytes (m, b), in transformers' order.

        A block has weights of one row.
        """
        if not self.in_blocks:
            return read_tensor(self.file, self.tensor, self.name, self.config)
        rows = torch.from_numpy(self.file.read(self.tensor, 0, self.tensor.rows))
        return _apart(rows, _paired(self.file, self.name, self.config))

    @property
    def peak_bytes(self) -> int:
        """Return the peak memory of `read`."""
        copies = 2 if _paired(self.file, self.name, self.config) else 1
        if self.in_blocks:
            return copies * self.tensor.nbytes
        row = WORK_PER_WEIGHT * self.tensor.shape[-1]
        work = max(min(WORK_BYTES, self.tensor.rows * row), row)
        return copies * nbytes(self.entry) + work


def convert(
    path: Path | str,
    out: Path | str,
    memory_bytes: int | None = None,
    progress: Progress | None = None,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Write a GGUF file as a checkpoint into the new folder `out`.

    One tensor is in memory at a time, and a part of it while it is decoded:
    `peak_bytes`, beside the interpreter and the tokenizer. Quantised weights become
    bfloat16, others keep their type; with `keep`, quantised matrices of the layers stay
    in their blocks, in the format that it makes of their types. Tokenizer and special
    tokens come along. All or nothing, as `new_checkpoint`. `progress` is called with
    the layers that are written and with all.

    Returns `bytes_before` of the file and `bytes_after` of the tensors, `layers`,
    `types`, the number of tensors by type, `kept`, how many of them stay in blocks, and
    `dtype`. Raises InvalidInput as `read_gguf`, `read_config` and `place`, for a file
    without a tokenizer, and where `memory_bytes` are too few.
    """
    file = read_gguf(path)
    config = read_config(file)
    if "tokenizer.ggml.model" not in file.metadata:
        file.reject("has no tokenizer", "expected a file of a whole language model")
    parameters = [
        _Parameter(file, config, name, tensor, bool(keep) and _stays(name, tensor))
        for name, tensor in place(file, config).items()
    ]
    peak = max(parameter.peak_bytes for parameter in parameters)
    require(
        memory_bytes is None or peak <= memory_bytes,
        f"{path} needs {format_size(peak)} at a time where "
        f"{format_size(memory_bytes or 0)} are allowed: allow more",
    )
    layers = config.num_hidden_layers
    types = _types(parameters, layers)
    packing: dict[str, str] = {}
    if keep and any(types):
        weights = keep(types=types)
        packing, config.quantization_config = weights.manifest(), weights.describe()
    _write(file, config, Path(out), parameters, packing, progress)
    return {
        "bytes_before": file.path.stat().st_size,
        "bytes_after": sum(nbytes(parameter.entry) for parameter in parameters),
        "layers": layers,
        "types": dict(Counter(tensor.kind.name for tensor in file.tensors.values())),
        "kept": sum(map(len, types)),
        "dtype": DTYPE_NAMES[config.dtype],
        "peak_bytes": peak,
    }


def _write(
    file: GgufFile,
    config: Any,
    out: Path,
    parameters: list[_Parameter],
    packing: Mapping[str, str],
    progress: Progress | None,
) -> None:
    parts: dict[int, dict[str, _Parameter]] = {}
    for parameter in parameters:
        part = parts.setdefault(split_name(parameter.name)[0], {})
        part[parameter.stored_name] = parameter
    entries = {
        layer: {name: parameter.entry for name, parameter in part.items()}
        for layer, part in sorted(parts.items())
    }
    layers = config.num_hidden_layers
    with new_checkpoint(out, sum(map(file_bytes, entries.values()))) as checkpoint:
        config.save_pretrained(checkpoint.folder)
        ModelSpec.from_config(checkpoint.folder)  # rejects what cannot be streamed
        write_tokenizer(file, checkpoint.folder)
        for done, (layer, stored) in enumerate(entries.items()):
            tensors = (parts[layer][name].read() for name in in_file_order(stored))
            checkpoint.write(layer, stored, contents(tensors))
            if progress is not None:
                progress(done, layers)
        checkpoint.finish(**packing, layers=layers, source=file.path.name)


def _stays(name: str, tensor: GgufTensor) -> bool:
    """Return whether a parameter is a matrix of a layer in blocks."""
    matrix = len(tensor.shape) == 2 and split_name(name)[0] != NON_LAYER
    return matrix and tensor.kind not in _PLAIN


def _types(parameters: list[_Parameter], layers: int) -> list[dict[str, str]]:
    """The types of the matrices that stay in blocks, by layer and name."""
    types: list[dict[str, str]] = [{} for _ in range(layers)]
    for parameter in parameters:
        if parameter.in_blocks:
            layer, matrix = split_name(parameter.name.removesuffix(".weight"))
            types[layer][matrix] = parameter.tensor.kind.name
    return types


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write the tokenizer of a GGUF file, as transformers makes it, into `folder`.

    Two details of byte-level tokenizers differ from it: the split before the merges,
    where it uses GPT-2's, and rules that keep a piece whole. Raises InvalidInput for an
    unknown split.
    """
    whole_pieces = file.metadata.get("tokenizer.ggml.pre") in _WHOLE
    begins: dict[str, Any] = {"add_bos_token": True} if whole_pieces else {}
    with transformers_reads(
        f"{file.path} gives no tokenizer", "one of its architecture"
    ):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            file.path.parent, gguf_file=file.path.name, **begins
        )
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        cut = _cut(file)
        if cut is not None:
            whole_bytes = isinstance(cut, pre_tokenizers.Split)
            merged = pre_tokenizers.ByteLevel(False, use_regex=not whole_bytes)
            backend.pre_tokenizer = pre_tokenizers.Sequence([cut, merged])
    if whole_pieces:
        backend.model.ignore_merges = True
    tokenizer.save_pretrained(folder)


def _cut(file: GgufFile) -> Any:
    """Return the pre-tokenizer where transformers has no rule, None for GPT-2's."""
    name = file.metadata.get("tokenizer.ggml.pre")
    if name in _AS_GPT2:
        return None
    if name in _DIGITS_APART:
        return pre_tokenizers.Digits(individual_digits=True)
    if name in _AS_QWEN2:
        return pre_tokenizers.Split(Regex(_QWEN2), "isolated")
    if name in (None, "default"):
        file.reject(
            "does not say how its tokenizer cuts a text",
            "expected a file that was made since llama.cpp writes it (May 2024)",
        )
    file.reject(
        f"cuts a text by the rule {shown(name)}, which is not known here",
        "expected one that llama.cpp and transformers share",
    )
