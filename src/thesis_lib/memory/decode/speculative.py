"""Speculative greedy decoding of a streamed model.

A cheap draft proposes tokens, and one pass over the weights verifies them all. The
tokens are those of plain greedy decoding, because `memory.model.batch_invariant` gives
rows of a pass the bits of single tokens.

Leviathan et al., Fast inference from transformers via speculative decoding, ICML 2023.
"""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from thesis_lib.common.errors import require
from thesis_lib.common.provenance import seconds_of
from thesis_lib.memory.decode.generate import (
    STREAMING,
    Streaming,
    describe_bytes,
    read_prompts,
)
from thesis_lib.memory.decode.verifier import (
    SIZES,
    Verifier,
    acceptance_interval,
    calibrate,
    choose_depth,
    plan_speculation,
)
from thesis_lib.memory.model.pretrained import decode
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.offloaded_model import (
    StreamedModel,
    checkpoint_folder,
    enforced,
    plan_checkpoint,
)
from thesis_lib.memory.offload.plan import ASSUMED_DISK_BYTES_PER_S, RINGS

DRAFT_TIME_DECAY = 0.9  # what a pass without proposals leaves of the time of one


class Draft(Protocol):
    """A proposer of tokens. Bad proposals cost time but never change a token."""

    def propose(self, tokens: Sequence[int], k: int) -> list[int]:
        """Propose at most `k` tokens after `tokens`, prompt and answer so far."""
        ...


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """Proposes what followed the last time that the text went like this.

    The longest n-gram, of `least` to `most` tokens, that ends the text and occurs
    earlier in it, and of several the latest. Saxena, Prompt lookup decoding, 2023.
    """

    least: int = 2
    most: int = 8

    def propose(self, tokens: Sequence[int], k: int) -> list[int]:
        """Return at most `k` tokens that followed the longest match, if any."""
        text = np.asarray(tokens)
        for n in range(min(self.most, len(text) - 1), self.least - 1, -1):
            matches = (sliding_window_view(text[:-1], n) == text[-n:]).all(axis=1)
            if matches.any():
                end = int(np.flatnonzero(matches)[-1]) + n
                return text[end : end + k].tolist()
        return []


class ModelDraft:
    """Proposes what a small or compressed `model`, all resident, would write greedily.

    `open_draft` opens one, whose peak is counted and certified like that of the model
    that it works for.
    """

    def __init__(self, model: StreamedModel) -> None:
        self.model = model
        self._cache = model.new_cache()
        self._held: list[int] = []  # tokens whose keys and values are in the cache

    def propose(self, tokens: Sequence[int], k: int) -> list[int]:
        """The `k` tokens that the draft would write after `tokens`, or none.

        None where its plan has no room for them, and no more than it can give back.
        """
        plan, device = self.model.plan, self.model.device
        k = min(k, plan.rollback)
        if k < 1 or len(tokens) + k - 1 > plan.context:
            return []
        same = _count_alike(self._held, tokens[:-1])
        if self._held:
            self._cache.crop(same - len(self._held))
        proposed: list[int] = []
        row = torch.tensor([tokens[same:]], device=device)
        for part in row.split(plan.pass_tokens, dim=1):
            proposed = _choose(self.model.step(part, self._cache, keep=1))
            if self._held:
                self._cache.crop(0)  # windows drop what will not be given back
        self._cache.activate_past_recording()
        while len(proposed) < k:
            row = torch.tensor([proposed[-1:]], device=device)
            proposed += _choose(self.model.step(row, self._cache))
        self._held = [*tokens, *proposed[:-1]]
        return proposed


@dataclass(frozen=True, slots=True)
class Speculation:
    """The tokens of greedy decoding, and their cost without the prompt's pass."""

    tokens: tuple[int, ...]
    proposed: tuple[int, ...]  # in each pass
    accepted: tuple[int, ...]  # of them
    seconds: tuple[float, ...]  # of each pass, its proposals included

    @property
    def passes(self) -> int:
        """Passes over the weights after that of the prompt."""
        return len(self.accepted)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass brought; the first one is the prompt's."""
        return (len(self.tokens) - 1) / self.passes if self.passes else 1.0

    @property
    def acceptance(self) -> float:
        """Share of the judged proposals that was accepted; 0 where none was judged."""
        accepted, judged = _judge(self.proposed, self.accepted)
        return accepted / judged if judged else 0.0


def _judge(proposed: Sequence[int], accepted: Sequence[int]) -> tuple[int, int]:
    """Return how many proposals were accepted, and how many were verified."""
    rejections = sum(a < p for p, a in zip(proposed, accepted, strict=True))
    return sum(accepted), sum(accepted) + rejections


class _Proposer:
    """Asks a draft for as many proposals as their acceptance and time justify."""

    def __init__(self, draft: Draft, verifier: Verifier) -> None:
        self._draft, self._verifier = draft, verifier
        self._proposal_s, self._least_s = 0.0, math.inf

    def propose(
        self, text: Sequence[int], left: int, judged: tuple[int, int]
    ) -> list[int]:
        """Tokens to verify, of `left` that may be written; `judged` as of `_judge`."""
        start = time.perf_counter()
        depths = [n for n in self._verifier.depths if n < left]
        _, acceptance = acceptance_interval(*judged)
        step_s = self._verifier.plan.step_s
        depth = choose_depth(acceptance, step_s, depths, self._proposal_s)
        proposed = self._draft.propose(text, depth) if depth else []
        if proposed:
            taken_s = (time.perf_counter() - start) / len(proposed)
            self._proposal_s = self._least_s = min(self._least_s, taken_s)
        else:
            self._proposal_s *= DRAFT_TIME_DECAY
        return proposed[: max(n for n in depths if n <= len(proposed))]


def decode_greedily(
    model: StreamedModel,
    prompt: Tensor,
    max_new_tokens: int,
    draft: Draft | None = None,
    verifier: Verifier | None = None,
    stop: Collection[int] = (),
) -> Speculation:
    """The greedy continuation of `prompt`, (1, t), and what it took.

    A `verifier` verifies the proposals of a `draft`, as many a pass as their acceptance
    so far and the times of passes make worthwhile. Tokens are those that are written
    without a draft, and end after one of `stop`. Raises InvalidInput where the plan
    does not cover the prompt and `max_new_tokens` more.
    """
    cache, text = model.new_cache(), prompt[0].tolist()
    end = len(text) + max_new_tokens
    require(
        end - 1 <= model.plan.context,  # the last token is not stored
        f"a prompt of {len(text)} tokens and an answer of {max_new_tokens} leave the "
        f"context of {model.plan.context} that is planned: make a longer plan",
    )
    text += _choose(model.prefill(prompt, cache))
    cache.activate_past_recording()  # a window gives back what is rejected
    proposer = _Proposer(draft, verifier) if draft and verifier else None
    depths, accepted, seconds = [], [], []
    while len(text) < end and text[-1] not in stop:
        start, proposed = time.perf_counter(), []
        if proposer:
            proposed = proposer.propose(text, end - len(text), _judge(depths, accepted))
        row = torch.tensor([[text[-1], *proposed]], device=prompt.device)
        with verifier.rows.passing() if verifier and proposed else nullcontext():
            chosen = _choose(model.step(row, cache, keep=row.shape[1]))
        taken = _count_alike(proposed, chosen)
        cache.crop(taken - len(proposed))
        for token in chosen[: taken + 1]:
            text.append(token)
            if token in stop:
                break
        depths.append(len(proposed))
        accepted.append(taken)
        seconds.append(time.perf_counter() - start)
    written = text[end - max_new_tokens :]
    return Speculation(*map(tuple, (written, depths, accepted, seconds)))


def _count_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _choose(logits: Tensor) -> list[int]:
    """The greedy token of each position of (1, t, vocab)."""
    return [int(one.argmax()) for one in logits[0]]


def open_draft(
    folder: Path | str, context: int, device: str | torch.device = "cpu"
) -> StreamedModel:
    """A checkpoint as a draft: all of it resident, for texts of `context` tokens."""
    plan = plan_checkpoint(
        folder,
        Machine(2**62, ASSUMED_DISK_BYTES_PER_S),
        context=context,
        pass_tokens=min(64, context),
        logit_tokens=1,
        rollback=min(SIZES[-1], context),
    )
    return StreamedModel(folder, plan, device)


@contextmanager
def _proposing(
    model: StreamedModel, resident: StreamedModel | None
) -> Iterator[tuple[Draft, list[StreamedModel]]]:
    """A draft for an open model, and all models that are then on its device."""
    if resident is None:
        yield PromptLookup(), [model]
        return
    require(
        resident.spec.vocab == model.spec.vocab,
        f"the draft knows {resident.spec.vocab} tokens, the model {model.spec.vocab}: "
        "expected a draft with the same tokenizer",
    )
    with resident:
        yield ModelDraft(resident), [model, resident]


def speculate_text(
    checkpoint: str,
    device_bytes: int,
    prompt: str,
    max_new_tokens: int = 32,
    draft: str | None = None,
    streaming: Streaming = STREAMING,
) -> dict[str, Any]:
    """Continue `prompt` as `generate_text` does, with several tokens in a pass.

    The text is the same. Proposals come from the text itself or from `draft`, a
    checkpoint that is resident on the same device.

    Raises:
        InvalidInput: If the draft has another vocabulary, or the model's generation is
            not plainly greedy.

    Example:
        >>> from thesis_lib.memory import speculate_text
        >>> prompt = "One, two, three. One, two,"
        >>> speculate_text("smollm2", 96 * 2**20, prompt, 4)["text"]
        ' three, four,'
    """
    device = streaming.device
    folder, tokenizer, tokens, _ = read_prompts(
        checkpoint, [prompt], max_new_tokens, device
    )
    prompt_tokens, resident = tokens.shape[1], None
    if draft is not None:
        context = prompt_tokens + max_new_tokens
        resident = open_draft(checkpoint_folder(draft), context, device)
    plan = plan_speculation(
        folder,
        Machine(
            device_bytes, ASSUMED_DISK_BYTES_PER_S, host_bytes=streaming.host_bytes
        ),
        prompt_tokens,
        max_new_tokens,
        streaming.ring or RINGS[0],
        resident.plan if resident else None,
    )
    with (
        StreamedModel(folder, plan, device, streaming.verify) as model,
        _proposing(model, resident) as (proposer, models),
        enforced(device_bytes, device) as budget,
    ):
        stop = _stop_tokens(model)
        for each in models:
            each.charge(budget)
        start = time.perf_counter()
        verifier = calibrate(model)
        calibrated_s = time.perf_counter() - start
        run = decode_greedily(model, tokens, max_new_tokens, proposer, verifier, stop)
        total_s = time.perf_counter() - start - calibrated_s
        spent = describe_bytes(budget, models)
        drain_s = seconds_of(model.drain)
    decoding_s = sum(run.seconds)
    return {
        "text": decode(tokenizer, run.tokens),
        "tokens": len(run.tokens),
        "s_per_token": decoding_s / max(1, len(run.tokens) - 1),
        "first_token_s": total_s - decoding_s,
        **spent,
        "fraction_of_link": run.passes * drain_s / decoding_s if decoding_s else 1.0,
        "fallbacks": verifier.fallbacks,
        "calibrated_s": calibrated_s,
        "passes": run.passes,
        "accepted": sum(run.accepted),
        "tokens_per_pass": run.tokens_per_pass,
        "acceptance": run.acceptance,
    }


# What would make transformers' greedy choice another than the largest logit.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "num_beams": (None, 1),
}


def _stop_tokens(model: StreamedModel) -> tuple[int, ...]:
    """The tokens that end a text of this model."""
    options = model.model.generation_config
    for name, plain in _PLAIN.items():
        value = getattr(options, name, None)
        require(
            value in plain,
            f"generation_config.json of {model.folder} sets {name}={value}: expected "
            "plain greedy decoding; generate without speculation",
        )
    end = options.eos_token_id
    return () if end is None else tuple(end) if isinstance(end, list) else (end,)
