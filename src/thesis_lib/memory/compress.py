"""A checkpoint made smaller, and what that did to the text that it predicts.

What writes each format lives beside its arithmetic; this module chooses the one that
is asked for, and measures the same held-out tokens before and after.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thesis_lib.checks import InvalidInput, choice, require
from thesis_lib.memory.architectures import (
    load_resident,
    read_config,
    require_checkpoint,
)
from thesis_lib.memory.calibrated import CALIBRATION_TEXT, factor_checkpoint
from thesis_lib.memory.coded import code_checkpoint
from thesis_lib.memory.corrected import Recipe
from thesis_lib.memory.fewbits import (
    matrices,
    quantise_model,
    require_calibratable,
    sensitivities,
    write_bits,
)
from thesis_lib.memory.packed import KINDS, pack_checkpoint
from thesis_lib.memory.pareto import TEXTS
from thesis_lib.memory.pretrained import (
    encode,
    read_text,
    read_tokenizer,
    require_known,
)
from thesis_lib.memory.quality import Perplexity, perplexity, read_tokens
from thesis_lib.memory.rates import plan_streamed
from thesis_lib.memory.rounding import Grid
from thesis_lib.memory.spec import ModelSpec
from thesis_lib.memory.store import SafetensorsStore
from thesis_lib.memory.stream import StreamedModel, checkpoint_folder
from thesis_lib.paths import data_folder

WEIGHTS = (*KINDS, "lossless")
WIDTHS = (2, 3, 4)  # bits that the command writes
CALIBRATION_TOKENS = 8192  # of few bits
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

Progress = Callable[[int, int], None]  # layers done, and of all
Writer = Callable[[Path, Path, Progress | None], dict[str, Any]]


def compress(
    checkpoint: str,
    out: Path | str,
    weights: str | None = None,
    tokens: int = 4096,
    context: int = 512,
    progress: Progress | None = None,
    rank_ratio: float | None = None,
    bits: int | None = None,
    correction_rank: int = 0,
    group: int = 64,
    calibration: Path | str | None = None,
) -> dict[str, Any]:
    """Write `checkpoint` smaller into the new folder `out`, as the command prints it.

    `weights` is a format of packed weights, or lossless; `rank_ratio` the share of the
    entries of the layers' matrices that low-rank factors keep; `bits` asks for GPTQ
    with a scale for each `group` inputs, and with a `correction_rank` for factors of
    that rank beside each matrix. One of the three; factors and few bits are calibrated
    on the UTF-8 text `calibration`, by default *Persuasion*.

    Returns the bytes of the tensors and the perplexities before and after, of `tokens`
    tokens of each held-out text in windows of `context`, through streamed models:
    `domains` has those of all by the name of the domain, since a calibration serves
    texts like its own best, `perplexity_before` and `perplexity_after` are those of the
    first, *Sense and Sensibility*. Without `tokens`, or for a checkpoint without a
    tokenizer, they are None and `domains` is empty.

    Raises InvalidInput where no way of compressing is asked for, or two, for more
    tokens than a text has, and as its writer does, with nothing written then.
    """
    folder, out = checkpoint_folder(checkpoint), Path(out)
    text = None if calibration is None else Path(calibration)
    wish = Wish(weights, rank_ratio, bits, correction_rank, group, text)
    texts = held_out_texts(folder, tokens)
    written = write_compressed(folder, out, wish, context, progress)
    before = held_out_perplexities(folder, texts, context)
    after = held_out_perplexities(out, texts, context)
    first = next(iter(TEXTS.values()))
    return {
        **written,
        "weights": weights,
        "rank_ratio": rank_ratio,
        "bits": bits,
        "perplexity_before": before.get(first),
        "perplexity_after": after.get(first),
        "domains": {
            name: {"perplexity_before": before[name], "perplexity_after": after[name]}
            for name in texts
        },
        "tokens": tokens if texts else 0,
    }


@dataclass(frozen=True, slots=True)
class Wish:
    """One way to compress, and what belongs to it alone."""

    weights: str | None = None
    rank_ratio: float | None = None
    bits: int | None = None
    correction_rank: int = 0
    group: int = 64
    calibration: Path | None = None

    def __post_init__(self) -> None:
        asked = {
            name: getattr(self, name)
            for name in ("weights", "rank_ratio", "bits")
            if getattr(self, name) is not None
        }
        if not asked:
            raise InvalidInput(
                f"no compression is asked for: give weights {_listed()}, or a "
                "rank_ratio, or bits 2, 3 or 4"
            )
        require(
            len(asked) == 1,
            f"{' and '.join(f'{n}={v!r}' for n, v in asked.items())} are two "
            "compressions: give one of them",
        )
        require(
            self.correction_rank == 0 or self.bits is not None,
            f"correction_rank={self.correction_rank} belongs to bits: give 2, 3 or 4",
        )
        require(
            self.calibration is None or self.weights is None,
            f"weights={self.weights!r} are not calibrated: a calibration text is for "
            "rank_ratio and for bits",
        )


def write_compressed(
    folder: Path | str,
    out: Path | str,
    wish: Wish,
    context: int = 512,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the checkpoint `folder` as `wish` says into the new folder `out`.

    Few bits are calibrated on windows of `context` tokens. Returns at least
    `bytes_before` and `bytes_after` of the tensors, and `layers`. Raises InvalidInput
    for a format or a number of bits that is unknown, and as the writer does.
    """
    write = _writer(wish, context)
    with SafetensorsStore(folder) as store:
        dense = store.kind == "dense"
    if dense:  # what is compressed already, its writer refuses
        require_checkpoint(folder)
    return write(Path(folder), Path(out), progress)


def _writer(wish: Wish, context: int) -> Writer:
    """The one place where a wish becomes a way to write a checkpoint."""
    text = CALIBRATION_TEXT if wish.calibration is None else wish.calibration
    if wish.rank_ratio is not None:
        return partial(factor_checkpoint, rank_ratio=wish.rank_ratio, text=text)
    if wish.bits is not None:
        require(wish.bits in WIDTHS, f"bits={wish.bits} must be one of 2, 3, 4")
        recipe = Recipe(Grid(wish.bits, wish.group), wish.correction_rank)
        return _bits_writer(recipe, text, context)
    kind = choice("weights", str(wish.weights), WEIGHTS)
    if kind == "lossless":
        return code_checkpoint
    return lambda folder, out, progress: pack_checkpoint(
        folder, out, kind, progress=progress
    )


def _bits_writer(recipe: Recipe, text: Path, context: int) -> Writer:
    """What writes few bits. The whole model is in memory while it is calibrated."""

    def write(folder: Path, out: Path, progress: Progress | None) -> dict[str, Any]:
        windows = calibration_windows(read_tokenizer(folder), text, context)
        require_known(
            torch.cat(windows).flatten().tolist(), ModelSpec.from_config(folder).vocab
        )

        def quantise():
            model = load_resident(folder, torch.bfloat16)
            require_calibratable(model, windows)
            _, stored = quantise_model(
                model,
                windows,
                dict.fromkeys(matrices(model), recipe),
                sensitivities(model, windows) if recipe.rank else None,
                progress=progress,
            )
            return stored

        return write_bits(folder, out, recipe, quantise)

    return write


def calibration_windows(
    tokenizer: Any, text: Path | str, context: int, most: int = CALIBRATION_TOKENS
) -> list[torch.Tensor]:
    """Windows (1, context) of a text, evenly spread, of `most` tokens together.

    Of a shorter text all whole windows. Raises InvalidInput for a missing file, and for
    a text without one whole window.
    """
    ids = encode(tokenizer, read_text(text), add_special_tokens=False)
    available = len(ids) // context
    require(
        available > 0,
        f"calibration text {Path(text).name} has {len(ids)} tokens: give at least "
        f"{context:,}, a whole window",
    )
    count = min(available, max(most // context, 1))
    places = [i * available // count for i in range(count)]
    return [torch.tensor([ids[i * context : (i + 1) * context]]) for i in places]


def _listed() -> str:
    return f"{', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}"


def held_out_texts(folder: Path, tokens: int) -> dict[str, Tensor]:
    """By domain, the first tokens (n,) of each text that no calibration reads.

    None of them without tokens to score or a tokenizer to make them. Raises
    InvalidInput for a text that is shorter.
    """
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


def held_out_perplexities(
    folder: Path, texts: Mapping[str, Tensor], context: int
) -> dict[str, float]:
    """Perplexities of a checkpoint on tokens by domain, (n,) each.

    Through the streamed model, every layer read from the disk for each window, so that
    a checkpoint larger than the memory has them too.
    """
    longest = getattr(read_config(folder), "max_position_embeddings", context)
    return {
        domain: streamed_perplexity(folder, ids, min(context, longest)).value
        for domain, ids in texts.items()
    }


def streamed_perplexity(folder: Path | str, tokens: Tensor, context: int) -> Perplexity:
    """Perplexity of a checkpoint on one text, tokens (n,), with every layer streamed.

    In windows of `context` tokens without overlap.
    """
    made = plan_streamed(folder, 1, context, context, ring=3, logit_tokens=context)
    with StreamedModel(folder, made) as model:
        return perplexity(model.logits, tokens, context)
