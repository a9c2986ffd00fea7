"""A GGUF file, llama.cpp's, as a checkpoint that transformers reads and that streams.

The format is one file: metadata by name, a table of tensors, their bytes. Everything
that it says is checked before a tensor is read: what this module does not know by name
could change what the model computes, and is refused.
"""

import math
import mmap
import os
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from tokenizers import Regex, pre_tokenizers
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from thesis_lib.common.errors import (
    InvalidInput,
    choice,
    open_regular,
    require,
    shown,
    whole,
)
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
from thesis_lib.memory.model.pretrained import transformers_reads
from thesis_lib.memory.model.spec import ModelSpec

Progress = Callable[[int, int], None]  # layers done, and of all
# The weight format of matrices that stay in blocks, of their `types` by layer and name.
Keep = Callable[..., Any]

WORK_BYTES = 64 * MiB  # of decoding, beside the tensor that is made
WORK_PER_WEIGHT = 32  # bytes that a decoder of the gguf package takes at most
_ALIGNMENT = 32  # of tensors, where the file says nothing
_ALIGNMENTS = [2**n for n in range(21)]
_MOST_DIMENSIONS = 4
_FIXED: dict[int, str] = {  # values of one size, in the words of struct
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h", GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip

_WINDOW = {"attention.sliding_window": "sliding_window"}
_SOFT_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_LOGIT_SCALE = {"logit_scale": "logit_scale"}


class Architecture(NamedTuple):
    """How llama.cpp keeps the models of an architecture."""

    model_type: str  # transformers' name
    counts: Mapping[str, str] = {}  # settings beside those of all, by transformers'
    numbers: Mapping[str, str] = {}
    centred: bool = False  # its norms take the mean away
    partly: bool = False  # it may rotate a part of each head
    paired: bool = False  # rotary pairs of queries and keys stand side by side
    shifted: bool = False  # norms are one more than the weight


ARCHITECTURES = {
    "llama": Architecture("llama", paired=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", shifted=True),
    "gemma2": Architecture("gemma2", _WINDOW, _SOFT_CAPS, shifted=True),
    "gemma3": Architecture("gemma3_text", _WINDOW, _SOFT_CAPS, shifted=True),
    "phi3": Architecture("phi3", _WINDOW, partly=True),
    "phi2": Architecture("phi", centred=True, partly=True),
    "stablelm": Architecture("stablelm", centred=True, partly=True),
    "olmo2": Architecture("olmo2"),
    "granite": Architecture("granite", {}, _SCALES, paired=True),
    "smollm3": Architecture("smollm3", paired=True),
    "command-r": Architecture("cohere", {}, _LOGIT_SCALE, centred=True),
    "cohere2": Architecture("cohere2", _WINDOW, _LOGIT_SCALE, centred=True),
}
_LARGEST = 2**31 - 1
_COUNTS = {  # whole numbers of an architecture, by transformers' names
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}
_ROTATED = "rope.dimension_count"
_EPSILON = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_CENTRED = {"attention.layer_norm_epsilon": "layer_norm_eps"}
_PARALLEL = "use_parallel_residual"
_OPTIONAL = {"attention.head_count_kv", "attention.key_length", *_SOFT_CAPS}
_ROPE, _SCALING, _FACTOR = "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"
_BEFORE, _STRETCH = "rope.scaling.original_context_length", "rope.scaling.attn_factor"
_IMPLIED = {  # settings that follow from another one
    "attention.value_length": "head_dim",
    _ROTATED: "head_dim",
    "vocab_size": "vocab_size",
    _BEFORE: "max_position_embeddings",
}
_FREQUENCIES = "rope_freqs.weight"  # what llama 3 divides its own by
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"  # of Phi-3
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


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a GGUF file: shape as torch has it, type, where it begins."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int  # byte offset in the file

    @property
    def row_bytes(self) -> int:
        """Bytes of the weights that share all indices but the last."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says before its weights."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    @property
    def kept(self) -> Architecture:
        """How its architecture is kept; for one that `read_config` takes."""
        return ARCHITECTURES[self.architecture]

    def refuse(self, what: str, do: str) -> NoReturn:
        """Raise InvalidInput: what is wrong with this file, and what to do."""
        raise InvalidInput(f"{self.path} {what}; {do}")

    def field(self, name: str) -> Any:
        """A value of this architecture, None where the file has none."""
        return self.metadata.get(f"{self.architecture}.{name}")


def read_gguf(path: Path | str) -> GgufFile:
    """The metadata and the table of tensors of a GGUF file; no weight is read.

    Raises InvalidInput for a file that is missing, cut, of another format, version or
    byte order, with a type that the gguf package cannot decode, or whose table does not
    describe its bytes.
    """
    path = Path(path)
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be opened ({error.strerror}): expected a GGUF file"
        ) from error
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        require(size > 0, f"{path} is empty: expected a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()


class _Reader:
    """A walk through the head of a file, which never leaves it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def refuse(self, what: str) -> NoReturn:
        raise InvalidInput(
            f"{self.path} {what}: expected a whole GGUF file; copy it again"
        )

    def read(self) -> GgufFile:
        if self.data[:4] != b"GGUF":
            self.refuse(f"begins with {shown(self.data[:4])}, not with GGUF")
        self.at = 4
        (version,) = self.take("I")
        if version not in (2, 3):
            self.refuse(f"is of version {version} or of another byte order, not 2 or 3")
        tensors, values = self.take("QQ")
        metadata: dict[str, Any] = {}
        for _ in range(values):
            name = self.text()
            if name in metadata:
                self.refuse(f"says {shown(name)} twice")
            metadata[name] = self.value(self.take("I")[0])
        found = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if alignment not in _ALIGNMENTS or type(alignment) is not int:
            self.refuse(
                f"aligns tensors to {shown(alignment)}, no power of two to 2^20"
            )
        return GgufFile(self.path, metadata, self.placed(found, alignment))

    def take(self, words: str) -> tuple[Any, ...]:
        """The next values, in the words of struct."""
        try:
            found = struct.unpack_from("<" + words, self.data, self.at)
        except struct.error:
            self.refuse(f"ends at byte {len(self.data)}, in the middle of its head")
        self.at += struct.calcsize("<" + words)
        return found

    def text(self) -> str:
        (length,) = self.take("Q")
        self.hold(length)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.refuse(f"has a name that is no text, {shown(raw)}")

    def hold(self, n_bytes: int) -> None:
        """Refuse what the rest of the file cannot hold, before memory is taken."""
        if n_bytes > len(self.data) - self.at:
            self.refuse(f"announces {n_bytes} bytes at byte {self.at} and is shorter")

    def value(self, kind: int) -> Any:
        if kind in _FIXED:
            return self.take(_FIXED[kind])[0]
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            self.refuse(f"has a value of the unknown type {kind}")
        kind, count = self.take("IQ")
        if kind in _FIXED:
            self.hold(count * struct.calcsize(_FIXED[kind]))
            return list(self.take(f"{count}{_FIXED[kind]}"))
        if kind != GGUFValueType.STRING:
            self.refuse(f"has an array of the type {kind}, which is not read")
        self.hold(8 * count)
        return [self.text() for _ in range(count)]

    def tensor(self) -> GgufTensor:
        name, (dimensions,) = self.text(), self.take("I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            self.refuse(f"gives {shown(name)} {dimensions} dimensions")
        shape = tuple(reversed(self.take(f"{dimensions}Q")))
        kind, start = self.take("IQ")
        if not is_decoded(kind):
            self.refuse(f"holds {shown(name)} in the type {kind}, which nobody decodes")
        known = GGMLQuantizationType(kind)
        block, _ = gguf.GGML_QUANT_SIZES[known]
        if not all(shape) or shape[-1] % block or math.prod(shape) >= 2**63:
            self.refuse(
                f"gives {shown(name)} the shape {list(shape)}, which blocks of {block} "
                "weights do not fill"
            )
        return GgufTensor(name, shape, known, start)

    def placed(
        self, tensors: list[GgufTensor], alignment: int
    ) -> dict[str, GgufTensor]:
        """Return the tensors by name, each with its offset in the file.

        As in llama.cpp, tensors are in the order of the table. Zeros alone are between
        them, and after the last one at most those up to the next aligned byte.
        """
        first = end = self.padded(self.at, alignment)
        last = self.at
        by_name = {}
        for tensor in tensors:
            if tensor.name in by_name:
                self.refuse(f"holds {shown(tensor.name)} twice")
            start = first + tensor.start
            if start != end:
                self.refuse(
                    f"has {shown(tensor.name)} at byte {start}, where byte {end} is "
                    "the next after the tensor before it"
                )
            by_name[tensor.name] = replace(tensor, start=start)
            last = start + tensor.nbytes
            if last > len(self.data):
                self.refuse(
                    f"ends at byte {len(self.data)}, and {shown(tensor.name)} at {last}"
                )
            end = self.padded(last, alignment)
        if len(self.data) not in (last, end):
            self.refuse(
                f"has {len(self.data)} bytes, and its last tensor ends at {last}"
            )
        return by_name

    def padded(self, end: int, alignment: int) -> int:
        """The first aligned byte from `end`. Refuse anything but zeros up to there."""
        aligned = -(-end // alignment) * alignment
        if any(self.data[end:aligned]):
            self.refuse(f"has data between bytes {end} and {aligned}, not zeros")
        return aligned


@cache
def is_decoded(kind: int) -> bool:
    """Whether the gguf package decodes a type, tried on a block of zeros.

    It lists no types that it decodes: of others it raises NotImplementedError.
    """
    sizes: dict[int, tuple[int, int]] = {**gguf.GGML_QUANT_SIZES}
    if kind not in sizes:
        return False
    block = np.zeros((1, sizes[kind][1]), np.uint8)
    with suppress(NotImplementedError):
        gguf.dequantize(block, GGMLQuantizationType(kind))
        return True
    return False


def read_config(file: GgufFile) -> Any:
    """The transformers configuration of a GGUF file.

    Raises InvalidInput for an architecture that is not converted, for a setting that
    is missing or not what it has to be, and for one that is not known here.
    """
    path, kind = file.path, file.architecture
    choice(f"the architecture of {path}:", kind, ARCHITECTURES)
    kept, fields = file.kept, _settings(file)
    longer = _LONG in _uses(file)
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    size = fields.setdefault("head_dim", hidden // heads)
    fields.setdefault("num_key_value_heads", heads)
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        file.refuse("has no table of tokens", "copy it again")
    fields["vocab_size"] = table.shape[0]
    for name, ours in _IMPLIED.items():
        if (name == _ROTATED and kept.partly) or (name == _BEFORE and longer):
            continue
        if file.field(name) not in (None, fields[ours]):
            file.refuse(
                f"sets {kind}.{name} to {shown(file.field(name))} where its other "
                f"settings ask for {fields[ours]}",
                _PLAIN_FILE,
            )
    if longer:  # which transformers takes from here
        fields["original_max_position_embeddings"] = file.field(_BEFORE)
    if kind in _SCALED_BY_HIDDEN:
        by_hidden = fields["num_hidden_layers"] == _SCALED_BY_HIDDEN[kind]
        fields["query_pre_attn_scalar"] = hidden // heads if by_hidden else size
    if kind == "stablelm":
        fields[_PARALLEL] = bool(file.field(_PARALLEL))
        fields["use_qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
    if kind == "command-r":
        fields["use_qk_norm"] = "blk.0.attn_q_norm.weight" in file.tensors
    for name, ours in _SPECIAL.items():
        token = file.metadata.get(f"tokenizer.ggml.{name}")
        if token is not None:
            token = whole(token, f"{name} in {path}", 0, fields["vocab_size"] - 1)
        fields[ours] = token
    with transformers_reads(
        f"{path} gives no configuration", "one of its architecture"
    ):
        config: Any = AutoConfig.for_model(
            kept.model_type,
            tie_word_embeddings="output.weight" not in file.tensors,
            rope_parameters=_rope(file, size, fields["max_position_embeddings"]),
            dtype=_dtype(file),
            **fields,
        )
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [model.__name__]
    return config


def _settings(file: GgufFile) -> dict[str, Any]:
    """The numbers that a file says, by transformers' names; refuses unknown ones."""
    kind, kept = file.architecture, file.kept
    counts, (window, *_) = {**_COUNTS, **kept.counts}, _WINDOW
    # A window of 0 is none; of Phi-3 without a word llama.cpp guesses one.
    if kind == "phi3" and file.field(window) == 0:
        del counts[window]
    numbers = {**kept.numbers, **(_CENTRED if kept.centred else _EPSILON)}
    known = {*counts, *numbers, *_IMPLIED, _ROPE, _SCALING, _FACTOR}
    known |= {_STRETCH} if _LONG in _uses(file) else set()
    _refuse_others(file, known | ({_PARALLEL} if kind == "stablelm" else set()))
    return {
        ours: _number(file, name) if name in numbers else _count(file, name)
        for name, ours in {**counts, **numbers}.items()
        if file.field(name) is not None or name not in _OPTIONAL
    }


def _refuse_others(file: GgufFile, known: set[str]) -> None:
    """Refuse a setting of the architecture that is none of those known, and set."""
    for name, value in file.metadata.items():
        inside = name.removeprefix(f"{file.architecture}.")
        if inside != name and inside not in known and value not in (0, "none"):
            file.refuse(
                f"sets {shown(name)[1:-1]} to {shown(value)}, which may change what "
                "the model computes and is not known here",
                _PLAIN_FILE,
            )


def _count(file: GgufFile, name: str) -> int:
    what = f"{file.architecture}.{name} in {file.path}"
    return whole(file.field(name), what, 1, _LARGEST)


def _number(file: GgufFile, name: str) -> float:
    value = file.field(name)
    if not isinstance(value, float) or not 0 < value < math.inf:
        file.refuse(
            f"sets {file.architecture}.{name} to {shown(value)}",
            "expected a positive number; copy it again",
        )
    return value


def _rope(file: GgufFile, head_dim: int, positions: int) -> dict[str, Any]:
    """The rotary parameters, in transformers' words."""
    theta = _number(file, _ROPE) if file.field(_ROPE) is not None else 1e4
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    scaling, factored = file.field(_SCALING), _FREQUENCIES in _uses(file)
    if scaling == "linear" and not factored:
        rope |= {"rope_type": "linear", "factor": _number(file, _FACTOR)}
    elif scaling not in (None, "none"):
        file.refuse(
            f"scales its rotary frequencies by {shown(scaling)}",
            "expected none, linear, or the factors of llama 3",
        )
    if factored:
        rope |= _llama3(file, head_dim, theta)
    if _LONG in _uses(file):
        rope |= _longrope(file, positions)
    if file.kept.partly and file.field(_ROTATED) is not None:
        what = f"{file.architecture}.{_ROTATED} in {file.path}"
        rotated = whole(file.field(_ROTATED), what, 2, head_dim)
        rope["partial_rotary_factor"] = rotated / head_dim
    if file.architecture != "gemma3":
        return rope
    # Its windows keep their frequencies, whatever the other layers do.
    local = {"rope_type": "default", "rope_theta": 1e4}
    return {"full_attention": rope, "sliding_attention": local}


def _uses(file: GgufFile) -> set[str]:
    """Tensors that are there and that become a setting, not a parameter."""
    known = {"llama": {_FREQUENCIES}, "phi3": {_LONG, _SHORT}}
    return known.get(file.architecture, set()) & file.tensors.keys()


def _longrope(file: GgufFile, positions: int) -> dict[str, Any]:
    """Phi-3's scaling, with factors for texts within its first positions and beyond.

    Raises InvalidInput where one table is missing, and where the attention is scaled in
    another way than transformers does it.
    """
    tables = [file.tensors.get(name) for name in (_LONG, _SHORT)]
    before = whole(file.field(_BEFORE), f"{_BEFORE} in {file.path}", 2, positions)
    rule = math.sqrt(1 + math.log(positions / before) / math.log(before))
    told = file.field(_STRETCH) or 1.0  # as llama.cpp takes it
    right = isinstance(told, float) and math.isclose(told, rule, rel_tol=1e-5)
    if None in tables or not right:
        file.refuse(
            f"has the tables {[each and each.name for each in tables]} and scales the "
            f"attention by {shown(told)}",
            f"expected both, and {rule:.6g}",
        )
    long, short = (
        _decode(file, each, 0, each.rows).ravel() for each in tables if each is not None
    )
    if not all((each > 0).all() and np.isfinite(each).all() for each in (long, short)):
        file.refuse(f"divides frequencies by {shown(long.tolist())}", "copy it again")
    return {
        "rope_type": "longrope",
        "long_factor": long.tolist(), "short_factor": short.tolist(),
        "original_max_position_embeddings": before,
    }  # fmt: skip


def _llama3(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any]:
    """Llama 3's scaling, whose factors the file holds as a tensor.

    Raises InvalidInput for factors that are not those of its rule.
    """
    tensor = file.tensors[_FREQUENCIES]
    stored = _decode(file, tensor, 0, tensor.rows).ravel()
    factor = float(stored.max())
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)  # share that is not slowed
    with np.errstate(all="ignore"):  # a factor of zero, or none, is no rule
        rule = 1 / ((1 - kept) / factor + kept)
    if stored.shape != rule.shape or not np.allclose(stored, rule, rtol=1e-4):
        file.refuse(
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
        file.refuse(
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
            file.refuse(
                f"has {has} for {theirs} where {list(parameter.shape)} was expected",
                "it is cut, or of another architecture than it says",
            )
        placed[name] = tensor
    held = {tensor.name for tensor in placed.values()} | _uses(file)
    odd = sorted(file.tensors.keys() - held)
    if odd:
        file.refuse(
            f"holds {shown(odd)}, of which its architecture has no use", _PLAIN_FILE
        )
    return placed


def _decode(file: GgufFile, tensor: GgufTensor, first: int, last: int) -> np.ndarray:
    """Rows of a tensor as float32, (last - first, n)."""
    return gguf.dequantize(_read(file, tensor, first, last), tensor.kind)


def _read(file: GgufFile, tensor: GgufTensor, first: int, last: int) -> np.ndarray:
    """Rows of a tensor as the file has them, bytes (last - first, b)."""
    count = (last - first) * tensor.row_bytes
    start = tensor.start + first * tensor.row_bytes
    try:
        raw = np.fromfile(file.path, np.uint8, count, offset=start)
    except OSError as error:
        file.refuse(f"cannot be read ({error.strerror})", "check the disk")
    if len(raw) != count:
        file.refuse(
            f"ends before byte {start + count}: cut while open", "copy it again"
        )
    return raw.reshape(-1, tensor.row_bytes)


def read_tensor(file: GgufFile, tensor: GgufTensor, name: str, config: Any) -> Tensor:
    """A parameter of the model, in the type of its configuration.

    A few rows are decoded at a time, to float32. llama.cpp keeps the two coordinates
    of a rotary pair side by side where they are `paired`, and one more than the weight
    of a norm where it is `shifted`; transformers does neither.
    """
    made = torch.empty((tensor.rows, tensor.shape[-1]), dtype=config.dtype)
    step = max(1, WORK_BYTES // (WORK_PER_WEIGHT * tensor.shape[-1]))
    for first in range(0, tensor.rows, step):
        values = _decode(file, tensor, first, min(first + step, tensor.rows))
        if file.kept.shifted and name.endswith("norm.weight"):
            values = values - 1
        made[first : first + step] = torch.from_numpy(values)
    return _apart(made.view(tensor.shape), _paired(file, name, config))


def _apart(rows: Tensor, heads: int) -> Tensor:
    """Rows (m, …) of so many heads, whose rotary pairs stood side by side; 0: none."""
    if not heads:
        return rows
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _paired(file: GgufFile, name: str, config: Any) -> int:
    """The heads whose rotary pairs stand side by side in a parameter, 0 for none."""
    part = name.split(".")[-2] if file.kept.paired else ""
    if part == "q_proj":
        return config.num_attention_heads
    return config.num_key_value_heads if part == "k_proj" else 0


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
    tokens come along. All or nothing, as `new_checkpoint`. `progress` hears of layers
    done and of all.

    Returns `bytes_before` of the file and `bytes_after` of the tensors, `layers`,
    `types`, the number of tensors by type, `kept`, how many of them stay in blocks, and
    `dtype`. Raises InvalidInput as `read_gguf`, `read_config` and `place`, for a file
    without a tokenizer, and where `memory_bytes` are too few.
    """
    file = read_gguf(path)
    config = read_config(file)
    if "tokenizer.ggml.model" not in file.metadata:
        file.refuse("has no tokenizer", "expected a file of a whole language model")
    placed = place(file, config)
    kept = {name for name in placed if keep and _stays(name, placed[name])}
    peak = max(_peak(file, name, placed[name], config, name in kept) for name in placed)
    require(
        memory_bytes is None or peak <= memory_bytes,
        f"{path} needs {format_size(peak)} at a time where "
        f"{format_size(memory_bytes or 0)} are allowed: allow more",
    )
    dtype = DTYPE_NAMES[config.dtype]
    parts: dict[int, dict[str, Entry]] = {}
    origins = {}  # of what is stored: the parameter
    for name, tensor in placed.items():
        stored, entry = name, (dtype, tensor.shape)
        if name in kept:
            stored = f"{name.removesuffix('.weight')}.blocks"
            entry = "U8", (tensor.rows, tensor.row_bytes)
        origins[stored] = name
        parts.setdefault(split_name(name)[0], {})[stored] = entry
    packing: dict[str, str] = {}
    if keep and kept:
        weights = keep(types=_types(placed, kept, config.num_hidden_layers))
        packing, config.quantization_config = weights.manifest(), weights.describe()

    def made(stored: str) -> Tensor:
        name = origins[stored]
        read = read_blocks if name in kept else read_tensor
        return read(file, placed[name], name, config)

    with new_checkpoint(Path(out), sum(map(file_bytes, parts.values()))) as checkpoint:
        config.save_pretrained(checkpoint.folder)
        ModelSpec.from_config(checkpoint.folder)  # refuses what cannot be streamed
        write_tokenizer(file, checkpoint.folder)
        for done, (layer, entries) in enumerate(sorted(parts.items())):
            checkpoint.write(
                layer, entries, contents(map(made, in_file_order(entries)))
            )
            if progress is not None:
                progress(done, config.num_hidden_layers)
        checkpoint.finish(
            **packing, layers=config.num_hidden_layers, source=file.path.name
        )
    return {
        "bytes_before": file.path.stat().st_size,
        "bytes_after": sum(nbytes(e) for part in parts.values() for e in part.values()),
        "layers": config.num_hidden_layers,
        "types": dict(Counter(tensor.kind.name for tensor in file.tensors.values())),
        "kept": len(kept),
        "dtype": dtype,
        "peak_bytes": peak,
    }


def _stays(name: str, tensor: GgufTensor) -> bool:
    """Whether a parameter is a matrix of a layer in blocks."""
    matrix = len(tensor.shape) == 2 and split_name(name)[0] != NON_LAYER
    return matrix and tensor.kind not in _PLAIN


def _types(
    placed: Mapping[str, GgufTensor], kept: set[str], layers: int
) -> list[dict[str, str]]:
    """The types of the matrices that stay in blocks, by layer and name."""
    types: list[dict[str, str]] = [{} for _ in range(layers)]
    for name, tensor in placed.items():
        if name in kept:
            layer, matrix = split_name(name.removesuffix(".weight"))
            types[layer][matrix] = tensor.kind.name
    return types


def read_blocks(file: GgufFile, tensor: GgufTensor, name: str, config: Any) -> Tensor:
    """A matrix (m, n) of the model as rows of blocks, bytes (m, b).

    In transformers' order of rows, as `read_tensor`: a block has weights of one row.
    """
    rows = torch.from_numpy(_read(file, tensor, 0, tensor.rows))
    return _apart(rows, _paired(file, name, config))


def _peak(
    file: GgufFile, name: str, tensor: GgufTensor, config: Any, stays: bool
) -> int:
    """Bytes that `read_tensor`, or `read_blocks` of one that stays, takes at most."""
    copies = 2 if _paired(file, name, config) else 1
    if stays:
        return copies * tensor.nbytes
    made = math.prod(tensor.shape) * config.dtype.itemsize
    row = WORK_PER_WEIGHT * tensor.shape[-1]
    return copies * made + max(min(WORK_BYTES, tensor.rows * row), row)


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write the tokenizer of a GGUF file, as transformers makes it, into `folder`.

    But for what it does not know of byte-level ones: the cut before the merges, where
    it takes GPT-2's, and rules that take a piece whole. Raises InvalidInput for a cut
    that nobody knows here.
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
    """What cuts a text where transformers knows no rule, None for GPT-2's alone."""
    name = file.metadata.get("tokenizer.ggml.pre")
    if name in _AS_GPT2:
        return None
    if name in _DIGITS_APART:
        return pre_tokenizers.Digits(individual_digits=True)
    if name in _AS_QWEN2:
        return pre_tokenizers.Split(Regex(_QWEN2), "isolated")
    if name in (None, "default"):
        file.refuse(
            "does not say how its tokenizer cuts a text",
            "expected a file that was made since llama.cpp writes it (May 2024)",
        )
    file.refuse(
        f"cuts a text by the rule {shown(name)}, which is not known here",
        "expected one that llama.cpp and transformers share",
    )
