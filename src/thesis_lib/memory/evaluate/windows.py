"""Windows of a text: what a model is calibrated on, a few hundred tokens at a time."""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from thesis_lib.common.errors import choice, require
from thesis_lib.memory.model.pretrained import encode, read_text

Placement = Literal["spread", "grid", "drawn", "anywhere"]


def cut_windows(
    tokens: Tensor,
    context: int,
    count: int | None = None,
    placement: Placement = "spread",
    seed: int = 0,
) -> Tensor:
    """Return at most `count` windows of a text, tokens (n,): (w, context).

    By default as many as the text holds without overlap. `placement` says where they
    begin; what is new takes the first, the others keep the windows of numbers that
    were measured with them:

    - "spread": evenly, the first at the beginning and the last at the end.
    - "grid": evenly among the ⌊n / context⌋ windows that follow one another; all of
      them where `count` is as large.
    - "drawn": a sample of those, by `seed`, in the order of the draw.
    - "anywhere": each from a token that is drawn by `seed`, whatever the others; they
      may overlap, and there are always `count`.

    Raises InvalidInput for another placement, for a count that is not positive, and
    for a text without one whole window.
    """
    choice("placement", placement, get_args(Placement))
    require(
        context > 0 and (count is None or count > 0),
        f"context={context} and count={count} must be positive",
    )
    require(
        tokens.ndim == 1 and len(tokens) >= context,
        f"the text has {len(tokens):,} tokens: expected {context:,} at least, one "
        "window; give a longer text",
    )
    whole, last = len(tokens) // context, len(tokens) - context
    wanted = min(count or whole, whole)
    if placement == "spread":
        starts = [last * at // max(wanted - 1, 1) for at in range(wanted)]
    elif placement == "grid":
        starts = [at * whole // wanted * context for at in range(wanted)]
    elif placement == "drawn":
        order = np.random.default_rng(seed).permutation(whole)
        starts = (order[:wanted] * context).tolist()
    else:
        draw = torch.Generator().manual_seed(seed)
        drawn = torch.randint(0, max(last, 1), (count or whole,), generator=draw)
        starts = drawn.tolist()
    return torch.stack([tokens[at : at + context] for at in starts])


def read_windows(
    tokenizer: Any,
    path: Path | str,
    context: int,
    count: int | None = None,
    placement: Placement = "spread",
) -> Tensor:
    """`cut_windows` of a UTF-8 text, (w, context).

    Raises InvalidInput for a missing file too.
    """
    ids = encode(tokenizer, read_text(path), add_special_tokens=False)
    return cut_windows(torch.tensor(ids), context, count, placement)
