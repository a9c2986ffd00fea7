"""A checkpoint made smaller, and what that did to the text that it predicts.

What writes each format lives beside its arithmetic; this module chooses the one that
is asked for, and measures the same held-out tokens before and after.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from thesis_lib.checks import InvalidInput, choice
from thesis_lib.memory.architectures import read_config
from thesis_lib.memory.packed import KINDS, pack_checkpoint
from thesis_lib.memory.quality import perplexity, read_tokens
from thesis_lib.memory.rates import plan_streamed
from thesis_lib.memory.smollm2 import quiet
from thesis_lib.memory.stream import StreamedModel, checkpoint_folder
from thesis_lib.paths import data_folder

HELD_OUT = "sense_and_sensibility.txt"  # no calibration reads it
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
) -> dict[str, Any]:
    """Write `checkpoint` smaller into the new folder `out`, as the command prints it.

    `weights` is a format of packed weights. Returns the bytes of the tensors and the
    perplexity before and after: of `tokens` tokens of *Sense and Sensibility* in
    windows of `context`, through streamed models. Without `tokens`, or for a checkpoint
    without a tokenizer, perplexities are None.

    Raises InvalidInput where no way of compressing is asked for, and as its writer
    does, with nothing written then.
    """
    folder, out = checkpoint_folder(checkpoint), Path(out)
    written = _writer(weights)(folder, out, progress)
    before = held_out_perplexity(folder, tokens, context)
    return {
        **written,
        "weights": weights,
        "perplexity_before": before,
        "perplexity_after": held_out_perplexity(out, tokens, context),
        "tokens": 0 if before is None else tokens,
    }


def _writer(weights: str | None) -> Writer:
    """The one place where options become a way to write a checkpoint."""
    if weights is None:
        raise InvalidInput(f"no compression is asked for: give weights {_listed()}")
    kind = choice("weights", weights, KINDS)
    return lambda folder, out, progress: pack_checkpoint(
        folder, out, kind, progress=progress
    )


def _listed() -> str:
    return f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"


def held_out_perplexity(folder: Path, tokens: int, context: int) -> float | None:
    """Perplexity of a checkpoint on the first `tokens` tokens of a held-out novel.

    Through the streamed model, every layer read from the disk for each window, so that
    a checkpoint larger than the memory has one too. None without tokens to score or a
    tokenizer to make them.
    """
    if tokens == 0 or not any((folder / name).is_file() for name in _TOKENIZER):
        return None
    longest = getattr(read_config(folder), "max_position_embeddings", context)
    context = min(context, longest)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = read_tokens(tokenizer, data_folder() / "text" / HELD_OUT, tokens)
    made = plan_streamed(folder, 1, context, context, ring=3, logit_tokens=context)
    with StreamedModel(folder, made) as model:
        return perplexity(model.logits, ids, context).value
