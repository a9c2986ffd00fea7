"""Measure perplexity on held-out text, and time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from thesis_lib.common.errors import InvalidInput, choice, require, require_count
from thesis_lib.common.stats import F64, I64, Interval, ratio_interval
from thesis_lib.memory.model.pretrained import encode, read_text

TEXTS = {"sense_and_sensibility": "fiction", "jargon": "technical English"}

HEADINGS = {  # of the columns that readers are shown, for `rename`
    "bytes_percent": "bytes (%)",
    "low": "from",
    "high": "to",
    "ratio_low": "ratio from",
    "ratio_high": "ratio to",
}


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean negative log-likelihood of a token, window by window."""

    nll: F64  # (w,) nats, summed over the tokens that a window scores
    counts: I64  # (w,) tokens that a window scores

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return int(self.counts.sum())

    @property
    def value(self) -> float:
        """Perplexity over all tokens scored."""
        return float(np.exp(self.nll.sum() / self.tokens))

    def interval(self) -> Interval:
        """Return the perplexity with its interval, for text of this kind.

        Windows are the observations, because tokens within one depend on each other.
        """
        return _of_windows(self.nll, self.counts)

    def ratio(self, reference: "Perplexity") -> Interval:
        """This perplexity over the reference's, with its interval.

        Both must have scored the same windows: the difficulty of the text then cancels,
        and the interval is much tighter than either one's.
        """
        require(
            np.array_equal(self.counts, reference.counts),
            f"{self.tokens} tokens against {reference.tokens}: expected both to score "
            "the same windows of the same text",
        )
        return _of_windows(self.nll - reference.nll, self.counts)


def pooled_ratio(scores: Sequence[Perplexity], reference: Perplexity) -> Interval:
    """Over a reference, of scores that differ by the luck of a calibration.

    The geometric mean, and the outermost ends of the intervals of `Perplexity.ratio`,
    so that they cover windows and calibrations. Raises InvalidInput for scores of other
    windows.
    """
    ratios = [score.ratio(reference) for score in scores]
    mean = math.exp(sum(math.log(ratio.value) for ratio in ratios) / len(ratios))
    low, high = min(r.low for r in ratios), max(r.high for r in ratios)
    return replace(ratios[0], value=mean, low=low, high=high)


def window_tokens(tokens: int, context: int) -> I64:
    """Return how many of `tokens` each window scores without overlap.

    The context each, and what is left for the last, (w,).
    """
    return np.diff([*range(0, tokens, context), tokens])


def _of_windows(nll: F64, counts: I64) -> Interval:
    """exp of nats per token, (w,) and (w,): the sums of windows."""
    nats = ratio_interval(nll, counts)
    value, low, high = map(math.exp, (nats.value, nats.low, nats.high))
    return replace(nats, value=value, low=low, high=high)


@torch.inference_mode()
def perplexity(
    model: Callable[[Tensor], Any], tokens: Tensor, context: int
) -> Perplexity:
    """Return the perplexity of a causal model on one text.

    Windows do not overlap. Each scores the tokens that follow its inputs, so that every
    token except the first is scored once.

    Args:
        model: Function from ids (1, t) to logits (1, t, vocabulary), or to an object
            with `logits`.
        tokens: Token ids (n,).
        context: Most inputs in a window.

    Raises:
        InvalidInput: If the context is not positive, there are fewer than two tokens,
            or a token is outside the vocabulary.

    Example:
        >>> import torch
        >>> from thesis_lib.memory import perplexity
        >>> uniform = lambda ids: torch.zeros(1, ids.shape[1], 50)
        >>> round(perplexity(uniform, torch.arange(20), context=8).value, 3)
        50.0
    """
    require_count("context", context)
    require(
        tokens.ndim == 1 and len(tokens) >= 2,
        f"tokens have shape {tuple(tokens.shape)}: expected one text of two or more",
    )
    config = getattr(model, "config", None)
    words = getattr(config, "vocab_size", None) or torch.iinfo(torch.long).max
    require(
        not (tokens.is_floating_point() or tokens.is_complex())
        and bool(((tokens >= 0) & (tokens < words)).all()),
        f"tokens are {tokens.dtype} from {tokens.min()} to {tokens.max()}: expected "
        "numbers of the vocabulary, from 0, as the tokenizer of this model gives",
    )
    windows = tokens[:-1].split(context), tokens[1:].split(context)
    nll, counts = [], []
    for inputs, targets in zip(*windows, strict=True):
        output = model(inputs[None])
        logits = getattr(output, "logits", output)[0].float()
        loss = torch.nn.functional.cross_entropy(
            logits, targets.to(logits.device), reduction="sum"
        )
        nll.append(float(loss))
        counts.append(len(targets))
    return Perplexity(np.array(nll), np.array(counts, np.int64))


def compare(scores: Mapping[str, Perplexity], reference: str) -> pd.DataFrame:
    """One row a score: perplexity, its interval, and the paired ratio with its own.

    Columns perplexity, low, high, ratio, ratio_low, ratio_high. Raises InvalidInput for
    an unknown reference and for scores of other windows.
    """
    base = scores[choice("reference", reference, scores)]
    ends = {name: (s.interval(), s.ratio(base)) for name, s in scores.items()}
    return pd.DataFrame(
        {
            name: [end for each in both for end in (each.value, each.low, each.high)]
            for name, both in ends.items()
        },
        index=["perplexity", "low", "high", "ratio", "ratio_low", "ratio_high"],
    ).T


def token_step(model: Callable[[Tensor], Any], token: int) -> Callable[[], object]:
    """One pass of a single token, to be timed: every weight is read once.

    The context is empty. Attention over a longer one costs the same whatever the
    format of the weights, and would blur the comparison.
    """
    ids = torch.tensor([[token]])

    @torch.inference_mode()
    def step() -> object:
        return model(ids)

    return step


def read_tokens(
    tokenizer: Any, path: Path | str, n_tokens: int, offset: int = 0
) -> Tensor:
    """`n_tokens` consecutive tokens of a UTF-8 text from token `offset` on, (n,).

    Raises InvalidInput for a missing file and for a text that is too short.
    """
    text = read_text(path)
    require(
        n_tokens > 0 and offset >= 0,
        f"n_tokens={n_tokens} must be positive and offset={offset} not negative",
    )
    ids = encode(tokenizer, text, add_special_tokens=False)
    if offset + n_tokens > len(ids):
        raise InvalidInput(
            f"{Path(path).name} has {len(ids):,} tokens: {n_tokens:,} from "
            f"{offset:,} on go past its end; ask for fewer or start earlier"
        )
    return torch.tensor(ids[offset : offset + n_tokens])
