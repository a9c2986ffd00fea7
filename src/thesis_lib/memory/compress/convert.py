"""A checkpoint in another weight format, calibrated on a text where that needs one."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thesis_lib.common.errors import choice, read_object, require, require_count
from thesis_lib.common.files import data_folder
from thesis_lib.memory.compress.allocation import allocate_ranks, spectra
from thesis_lib.memory.compress.blockwise import (
    factorize_blocks,
    matrices,
    quantize_model,
    require_calibratable,
)
from thesis_lib.memory.compress.fisher import both_factors, output_factors, per_token
from thesis_lib.memory.compress.svd import decompose_layers
from thesis_lib.memory.evaluate.perplexity import (
    TEXTS,
    Perplexity,
    perplexity,
    read_tokens,
)
from thesis_lib.memory.evaluate.rates import plan_streamed
from thesis_lib.memory.evaluate.windows import Placement, read_windows
from thesis_lib.memory.formats import bitplanes
from thesis_lib.memory.formats.base import (
    DENSE,
    WeightFormat,
    find_format,
    is_matrix,
    stored_tensors,
    words,
)
from thesis_lib.memory.formats.bitplanes import LowBit
from thesis_lib.memory.formats.lossless import U16, Lossless
from thesis_lib.memory.formats.low_bit import CompensatedMatrix, Grid, LowBitConfig
from thesis_lib.memory.formats.lowrank import LowRank, ranks_of
from thesis_lib.memory.model.checkpoint import (
    NON_LAYER,
    Entry,
    contents,
    entry_of,
    file_bytes,
    in_file_order,
    new_checkpoint,
    split_name,
)
from thesis_lib.memory.model.pretrained import read_tokenizer, require_known
from thesis_lib.memory.model.spec import ModelSpec
from thesis_lib.memory.offload.architectures import (
    load_resident,
    read_config,
    require_checkpoint,
)
from thesis_lib.memory.offload.offloaded_model import StreamedModel, checkpoint_folder
from thesis_lib.memory.offload.store import SafetensorsStore
from thesis_lib.memory.offload.transfer import read_tensors

Progress = Callable[[int, int], None]  # layers done, and of all
Encoder = Callable[[int, Mapping[str, Tensor]], dict[str, Tensor]]  # of one layer

CALIBRATION_TEXT = data_folder() / "text" / "persuasion.txt"
WINDOWS, CONTEXT = 32, 512  # of that text, for factors
CALIBRATION_TOKENS = 8192  # of that text, for few bits
WIDTHS = (2, 3, 4)  # bits that the command writes
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def convert(
    folder: Path | str,
    out: Path | str,
    weights: WeightFormat,
    progress: Progress | None = None,
    encode: Encoder | None = None,
) -> dict[str, Any]:
    """Write the checkpoint `folder` in another format into the new folder `out`.

    `encode` gives what is stored of a layer, from its number and its dense tensors, as
    `weights.encode` does by default; it is called once the files are known to be dense
    and to fit. Configuration and tokenizer are copied. One layer is in memory at a
    time; all or nothing, as `new_checkpoint`. `progress` hears of layers done and of
    all. Returns `bytes_before` and `bytes_after` of the tensors, and `layers`.

    Raises InvalidInput for a checkpoint that is compressed already, and as the format
    and the store do.
    """
    folder, encode = Path(folder), encode or weights.encode
    with SafetensorsStore(folder) as store:
        require_dense(store)
        parts = range(NON_LAYER, store.layers)
        expected = (weights.entries(i, _entries(store, i)) for i in parts)
        needed = sum(map(file_bytes, expected))
        after = 0
        with new_checkpoint(Path(out), needed) as checkpoint:
            copy_description(folder, checkpoint.folder, weights.describe())
            for layer in parts:
                tensors = {
                    store.full_name(layer, name): tensor
                    for name, tensor in encode(
                        layer, read_tensors(store, layer)
                    ).items()
                }
                entries = {name: entry_of(tensor) for name, tensor in tensors.items()}
                ordered = (tensors[name] for name in in_file_order(entries))
                after += weights.write(checkpoint, layer, entries, contents(ordered))
                if progress is not None:
                    progress(layer + 1, store.layers)
            checkpoint.finish(**weights.manifest(), layers=store.layers)
        return {
            "bytes_before": sum(map(store.tensor_bytes, parts)),
            "bytes_after": after,
            "layers": store.layers,
        }


def require_dense(store: SafetensorsStore) -> None:
    """Reject a checkpoint that is compressed already, by what it holds."""
    require(
        store.kind == DENSE.kind,
        f"{store.folder} is packed as {store.kind} already: compress the checkpoint "
        "that it was made from",
    )


def copy_description(folder: Path, out: Path, packing: dict[str, Any]) -> None:
    """Copy configuration and tokenizer, and say how the weights are packed."""
    for path in folder.iterdir():
        if path.suffix in {".json", ".txt", ".model", ".jinja"}:
            shutil.copyfile(path, out / path.name)
    config = read_object(folder / "config.json", "the configuration of a checkpoint")
    if packing:
        config["quantization_config"] = packing
    text = json.dumps(config, indent=2, sort_keys=True)
    (out / "config.json").write_text(text + "\n")


def _entries(store: SafetensorsStore, layer: int) -> dict[str, Entry]:
    return {p.name: (p.dtype, p.shape) for p in store.placements(layer)}


def read_words(folder: Path | str, layer: int) -> U16:
    """The bit patterns of all bfloat16 numbers of a dense layer, (n,).

    Raises InvalidInput for a checkpoint of another type, and as the store does.
    """
    with SafetensorsStore(folder) as store:
        require_dense(store)
        Lossless.here().entries(layer, _entries(store, layer))
        tensors = read_tensors(store, layer).values()
    return torch.cat([each.flatten() for each in tensors]).view(torch.uint16).numpy()


def write_factors(
    folder: Path | str, out: Path | str, model: nn.Module
) -> dict[str, Any]:
    """Write `model`, factors of the checkpoint `folder`, into the new folder `out`.

    `model` is what `with_ranks` or `factorize_blocks` made of the checkpoint: its
    layers are written, everything outside them is copied. As `convert`, and raises
    InvalidInput for weights that are not finite.
    """
    parts: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in model.state_dict().items():
        require(
            bool(torch.isfinite(tensor).all()),
            f"{name} holds weights that are not finite: they cannot be written",
        )
        number, inside = split_name(name)
        parts[number][inside] = tensor
    ranks = ranks_of(model, ModelSpec.from_config(folder).layers)
    return convert(
        folder,
        out,
        LowRank(ranks=ranks),
        encode=lambda layer, dense: dict(dense) if layer == NON_LAYER else parts[layer],
    )


def write_bits(
    folder: Path | str,
    out: Path | str,
    recipes: Mapping[str, LowBitConfig],
    quantize: Callable[[], Mapping[str, CompensatedMatrix]],
) -> dict[str, Any]:
    """Write the checkpoint `folder` with matrices in few bits into the new `out`.

    `recipes` are by the names of matrices in a layer, such as `mlp.up_proj`; `quantize`
    finds what is stored of each, by names such as `0.mlp.up_proj`. As `convert`, and
    raises InvalidInput for a checkpoint that is not in bfloat16.
    """
    quantized = cache(quantize)

    def encode(layer: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return stored_tensors(
            layer,
            tensors,
            lambda name, _: bitplanes.pack(quantized()[f"{layer}.{name}"]),
        )

    return convert(folder, out, LowBit(bitplanes.format_layout(recipes)), encode=encode)


@dataclass(frozen=True, slots=True)
class CompressionConfig:
    """One way to compress, and what belongs to it alone.

    `weights` is a format of packed weights, or lossless; `rank_ratio` the share of the
    entries of the layers' matrices that low-rank factors keep; `bits` asks for GPTQ
    with a scale for each `group` inputs, and with a `correction_rank` for factors of
    that rank beside each matrix. Factors and few bits are calibrated on the UTF-8 text
    `calibration`. Raises InvalidInput for no way, for two and for what is unknown.
    """

    weights: str | None = None
    rank_ratio: float | None = None
    bits: int | None = None
    correction_rank: int = 0
    group: int = 64
    calibration: Path | None = None

    def __post_init__(self) -> None:
        ways = {
            "weights": self.weights, "rank_ratio": self.rank_ratio, "bits": self.bits,
        }  # fmt: skip
        chosen = [
            f"{way}={value!r}" for way, value in ways.items() if value is not None
        ]
        require(
            len(chosen) > 0,
            f"no compression is asked for: give weights {' or '.join(_kinds())}, or a "
            "rank_ratio, or bits 2, 3 or 4",
        )
        require(
            len(chosen) == 1,
            f"{' and '.join(chosen)} are two compressions: give one of them",
        )
        for name, default in (("correction_rank", 0), ("group", 64)):
            require(
                self.bits is not None or getattr(self, name) == default,
                f"{name}={getattr(self, name)} belongs to bits: give 2, 3 or 4",
            )
        if self.weights is not None:
            choice("weights", self.weights, _kinds())
        require(
            self.weights is None or self.calibration is None,
            f"weights={self.weights!r} are not calibrated: a calibration text is "
            "for rank_ratio and for bits",
        )
        require(
            self.rank_ratio is None or 0 < self.rank_ratio <= 1,
            f"rank_ratio={self.rank_ratio} must lie in (0, 1]: the share of entries "
            "kept",
        )
        require(
            self.bits is None or self.bits in WIDTHS,
            f"bits={self.bits} must be one of 2, 3, 4",
        )


def _kinds() -> dict[str, str]:
    """Return the formats that `weights` accepts."""
    return {word: kind for word, kind in words().items() if kind != DENSE.kind}


def write_compressed(
    folder: Path | str,
    out: Path | str,
    wish: CompressionConfig,
    context: int = CONTEXT,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the checkpoint `folder` as `wish` says into the new folder `out`.

    Factors and few bits have the model in memory meanwhile, and are calibrated layer
    after layer, behind compressed ones: factors on at most 32 windows of 512 tokens,
    with ranks where an entry saves most loss; few bits on 8,192 tokens in windows of
    `context`, or of as many as the model takes. Returns at least `bytes_before` and
    `bytes_after` of the tensors, and `layers`. Raises InvalidInput for a checkpoint
    that is compressed already, that has no tokenizer or weights that are not finite,
    for a text too short for the Gram matrix of a layer, and as `convert` does.
    """
    require_count("context", context)
    folder, text = Path(folder), wish.calibration or CALIBRATION_TEXT
    with SafetensorsStore(folder) as store:
        require_dense(store)
        placed = store.placements(0)
    config = require_checkpoint(folder)
    if wish.weights is not None:
        weights = find_format(_kinds()[wish.weights])
        return convert(folder, out, weights, progress)
    if wish.rank_ratio is not None:
        longest = min(CONTEXT, getattr(config, "max_position_embeddings", CONTEXT))
        windows = _calibration(folder, text, longest, WINDOWS, "spread")
        model = load_resident(folder)
        factored = _factorize(model, windows, wish.rank_ratio, progress)
        return write_factors(folder, out, factored)
    recipe = LowBitConfig(Grid(wish.bits or 0, wish.group), wish.correction_rank)
    context = min(context, getattr(config, "max_position_embeddings", None) or context)
    count = max(CALIBRATION_TOKENS // context, 1)
    windows = _calibration(folder, text, context, count, "grid")

    def quantize() -> Mapping[str, CompensatedMatrix]:
        model = load_resident(folder, torch.bfloat16)
        require_calibratable(model, windows)
        factors = output_factors(model, windows, "empirical") if recipe.rank else None
        every = dict.fromkeys(matrices(model), recipe)
        return quantize_model(model, windows, every, factors, progress=progress)[1]

    names = [p.name for p in placed if is_matrix(p.name, p.shape)]
    recipes = {name.removesuffix(".weight"): recipe for name in names}
    return write_bits(folder, out, recipes, quantize)


def _calibration(
    folder: Path, text: Path, context: int, count: int, placement: Placement
) -> Tensor:
    """Windows (w, t) of a text, in tokens of a checkpoint."""
    windows = read_windows(read_tokenizer(folder), text, context, count, placement)
    require_known(windows.flatten().tolist(), ModelSpec.from_config(folder).vocab)
    return windows


def _factorize(
    model: nn.Module, windows: Tensor, ratio: float, progress: Progress | None
) -> nn.Module:
    """A copy with factors that keep `ratio` of the entries of all matrices together."""
    require_calibratable(model, windows)
    grams, sums = both_factors(model, windows)
    factors = per_token(sums, windows.numel())
    parts = decompose_layers(model, grams, output_factors=factors)
    ranks = allocate_ranks(spectra(model, parts), ratio)
    return factorize_blocks(model, windows, ranks, factors, progress=progress)


def compress_checkpoint(
    checkpoint: str,
    out: Path | str,
    how: str | CompressionConfig,
    tokens: int = 4096,
    context: int = CONTEXT,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a compressed copy of a checkpoint into a new folder.

    Args:
        checkpoint: A folder, a GGUF file or "smollm2".
        out: The new folder.
        how: A format, "nf4", "int8" or "lossless", or a `CompressionConfig`.
        tokens: Tokens scored of each held-out text; 0 for none.
        context: Tokens in each window of the perplexity.
        progress: Function called with the layers done and their number.

    Returns:
        The bytes of the tensors and the perplexities before and after, by streamed
        models: of the first text, and in `domains` of all. They are None, and `domains`
        is empty, without `tokens` or a tokenizer.

    Raises:
        InvalidInput: If a text has fewer tokens, and as `write_compressed`.

    Example:
        >>> from thesis_lib.memory import compress_checkpoint
        >>> report = compress_checkpoint("smollm2", folder / "nf4", "nf4", tokens=0)
        >>> round(report["bytes_after"] / report["bytes_before"], 2)
        0.42
    """
    folder = checkpoint_folder(checkpoint)
    config = CompressionConfig(how) if isinstance(how, str) else how
    texts = _held_out_texts(folder, tokens)
    written = write_compressed(folder, out, config, context, progress)
    domains = {
        domain: {
            f"perplexity_{when}": streamed_perplexity(each, ids, context).value
            for when, each in (("before", folder), ("after", out))
        }
        for domain, ids in texts.items()
    }
    first = next(iter(domains.values()), {})
    return {
        **written,
        "weights": config.weights,
        "rank_ratio": config.rank_ratio,
        "bits": config.bits,
        "perplexity_before": first.get("perplexity_before"),
        "perplexity_after": first.get("perplexity_after"),
        "domains": domains,
        "tokens": tokens if texts else 0,
    }


def _held_out_texts(folder: Path, tokens: int) -> dict[str, Tensor]:
    """Return the first tokens (n,) of each held-out text, by domain."""
    require(
        tokens == 0 or tokens > 1,
        f"tokens={tokens}: expected two at least, of which the second is judged, or 0",
    )
    if tokens == 0 or not any((folder / name).is_file() for name in _TOKENIZER):
        return {}
    tokenizer, vocab = read_tokenizer(folder), ModelSpec.from_config(folder).vocab
    texts = {
        domain: read_tokens(tokenizer, data_folder() / "text" / f"{text}.txt", tokens)
        for text, domain in TEXTS.items()
    }
    for ids in texts.values():
        require_known(ids.tolist(), vocab)
    return texts


def streamed_perplexity(folder: Path | str, tokens: Tensor, context: int) -> Perplexity:
    """Perplexity of a checkpoint on one text, tokens (n,), with every layer streamed.

    In windows of `context` tokens without overlap, or of as many as the model takes.
    Every layer is read from the disk for each window, so that a checkpoint larger than
    the memory has one too.
    """
    longest = getattr(read_config(Path(folder)), "max_position_embeddings", context)
    context = min(context, longest)
    sized = plan_streamed(folder, 1, context, context, ring=3, logit_tokens=context)
    with StreamedModel(folder, sized) as model:
        return perplexity(model.logits, tokens, context)
