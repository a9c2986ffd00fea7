"""A checkpoint in factors that were calibrated on a text, from one ratio alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thesis_lib.checks import require
from thesis_lib.memory.allocation import allocate_ranks, spectra
from thesis_lib.memory.architectures import load_resident
from thesis_lib.memory.factored import require_dense, write_factors
from thesis_lib.memory.fisher import sensitivities
from thesis_lib.memory.lowrank import decompose_layers, gram_matrices
from thesis_lib.memory.pretrained import (
    encode,
    read_text,
    read_tokenizer,
    require_known,
)
from thesis_lib.memory.refine import factorise_blocks, require_tokens
from thesis_lib.memory.store import SafetensorsStore
from thesis_lib.paths import data_folder

CALIBRATION_TEXT = data_folder() / "text" / "persuasion.txt"
WINDOWS, CONTEXT = 32, 512  # of the calibration text


def factor_checkpoint(
    folder: Path | str,
    out: Path | str,
    progress: Callable[[int, int], None] | None = None,
    rank_ratio: float = 0.8,
    text: Path | str = CALIBRATION_TEXT,
    windows: int = WINDOWS,
    context: int = CONTEXT,
) -> dict[str, Any]:
    """Write the checkpoint `folder` in low-rank factors into the new folder `out`.

    The factors keep `rank_ratio` of the entries of all matrices of the layers
    together. Ranks go where an entry saves most loss, and layers are calibrated one
    after the other, on at most `windows` windows of `context` tokens of `text`. The
    model is in memory meanwhile, and the moments of its layers in double precision.
    `progress` hears of layers done and of all. Returns what `write_factors` does.

    Raises InvalidInput for a ratio outside (0, 1], a checkpoint that is compressed
    already, that has no tokenizer or weights that are not finite, and a text too short
    for the Gram matrix of a layer.
    """
    folder = Path(folder)
    require(
        0 < rank_ratio <= 1,
        f"rank_ratio={rank_ratio:g} must lie in (0, 1]: the share of entries kept",
    )
    with SafetensorsStore(folder) as store:
        require_dense(store)
    model = load_resident(folder)
    context = min(context, getattr(model.config, "max_position_embeddings", context))
    tokenizer = read_tokenizer(folder)
    require_finite(model)
    ids = read_windows(tokenizer, text, windows, context)
    require_known(ids.flatten().tolist(), model.config.vocab_size)
    require_tokens(model, ids.numel())
    minded = sensitivities(model, ids)
    parts = decompose_layers(
        model, gram_matrices(model, ids[:, None]), sensitivities=minded
    )
    ranks = allocate_ranks(spectra(model, parts), rank_ratio)
    twin = factorise_blocks(model, ids, ranks, minded, progress=progress)
    return write_factors(folder, out, twin)


def require_finite(model: nn.Module) -> None:
    """Refuse a model with weights that are not numbers, by their name."""
    for name, weight in model.named_parameters():
        require(
            bool(torch.isfinite(weight).all()),
            f"{name} holds weights that are not finite: the checkpoint is damaged; "
            "copy it again",
        )


def read_windows(
    tokenizer: Any, path: Path | str, windows: int, context: int
) -> Tensor:
    """At most `windows` windows of a UTF-8 text, (w, context), evenly spread over it.

    They do not overlap: a short text has fewer. Raises InvalidInput for a missing file
    and for a text shorter than one window.
    """
    ids = torch.tensor(encode(tokenizer, read_text(path), add_special_tokens=False))
    require(
        len(ids) >= context,
        f"{Path(path).name} has {len(ids):,} tokens: expected {context:,} at least, "
        "one window; give a longer text",
    )
    count = min(windows, len(ids) // context)
    last = len(ids) - context
    starts = [last * at // max(count - 1, 1) for at in range(count)]
    return torch.stack([ids[at : at + context] for at in starts])
