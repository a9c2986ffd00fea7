"""Greedy decoding of a streamed model with several tokens verified a pass.

Reading the weights is most of a step, and a pass reads them once for all its tokens. So
the next tokens are proposed, by a draft that costs little, and one pass verifies them:
it accepts those that the model would have chosen itself, and adds the one that it
chooses after them. The tokens are those of plain greedy decoding, whatever is proposed,
because the rows of a pass are kept to the bits of single tokens (`rowwise`).

Leviathan, Kalman and Matias, Fast inference from transformers via speculative decoding,
ICML 2023.
"""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.provenance import seconds_of
from thesis_lib.common.stats import LEVEL
from thesis_lib.common.units import format_size
from thesis_lib.memory.decode.generate import describe_bytes, read_prompts
from thesis_lib.memory.model.batch_invariant import BatchInvariant
from thesis_lib.memory.model.pretrained import decode
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.measure import compute_rates
from thesis_lib.memory.offload.offloaded_model import (
    StreamedModel,
    checkpoint_folder,
    enforced,
    plan_checkpoint,
)
from thesis_lib.memory.offload.plan import ASSUMED_DISK_BYTES_PER_S, MemoryPlan

SIZES = (2, 4, 8, 16)  # tokens of a pass that verifies, tried in this order
DRAFT_TIME_DECAY = 0.9  # what a pass without proposals leaves of the time of one


class Draft(Protocol):
    """Who proposes tokens. What is proposed costs time at worst, never a token."""

    def propose(self, tokens: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens that may follow `tokens`, prompt and answer so far."""
        ...


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """Proposes what followed the last time that the text went like this.

    The longest n-gram, of `least` to `most` tokens, that ends the text and stands
    earlier in it, and of several the latest. Saxena, Prompt lookup decoding, 2023.
    """

    least: int = 2
    most: int = 8

    def __post_init__(self) -> None:
        require(
            0 < self.least <= self.most,
            f"n-grams of {self.least} to {self.most} tokens: expected "
            "0 < least <= most",
        )

    def propose(self, tokens: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens that followed the longest match; none without one."""
        text = np.asarray(tokens)
        n = len(text)
        alive = np.arange(n - 1)  # ends of what agrees with the end of the text
        best: list[int] = []
        for length in range(1, min(self.most, n - 1) + 1):
            alive = alive[alive >= length - 1]
            alive = alive[text[alive - length + 1] == text[n - length]]
            if len(alive) == 0:
                break
            if length >= self.least:
                end = int(alive[-1]) + 1
                best = text[end : end + k].tolist()
        return best


class ModelDraft:
    """Proposes what a small or compressed model would write, greedily.

    A copy that stays on the device: a `StreamedModel` whose plan has every layer
    resident, so that its bytes are `plan.device_peak_bytes`, counted and certified like
    those of the model that it works for. Raises InvalidInput for one that streams.
    """

    def __init__(self, model: StreamedModel) -> None:
        require(
            model.plan.streamed_layers == 0,
            f"{model.plan.streamed_layers} layers of the draft would be streamed: "
            "expected a plan with every layer resident; give it more memory",
        )
        require(
            model.plan.rollback > 0,
            "the plan of the draft has no tokens to give back: make it with rollback, "
            "as open_draft does",
        )
        self.model = model
        self._cache = model.new_cache()
        self._held: list[int] = []  # tokens whose keys and values are in the cache

    def propose(self, tokens: Sequence[int], k: int) -> list[int]:
        """The `k` tokens that the draft would write after `tokens`, or none.

        None where its plan has no room for them, and no more than it can give back.
        """
        k = min(k, self.model.plan.rollback)
        if k < 1 or len(tokens) + k - 1 > self.model.plan.context:
            return []
        same = 0
        for held, token in zip(self._held, tokens[:-1], strict=False):
            if held != token:
                break
            same += 1
        if self._held:
            self._cache.crop(same - len(self._held))
        row = torch.tensor([tokens[same:]], device=self.model.device)
        proposed = _choose(self._read(row))
        while len(proposed) < k:
            row = torch.tensor([proposed[-1:]], device=self.model.device)
            proposed += _choose(self.model.step(row, self._cache))
        self._held = [*tokens, *proposed[:-1]]
        return proposed

    def _read(self, row: Tensor) -> Tensor:
        """Logits, (1, 1, vocab), after text of which nothing will be given back."""
        *first, last = row.split(self.model.plan.pass_tokens, dim=1)
        for part in first:
            self.model.step(part, self._cache, keep=1)
            self._settle()
        logits = self.model.step(last, self._cache, keep=1)
        self._settle()
        self._cache.activate_past_recording()
        return logits

    def _settle(self) -> None:
        """Cut windows, which record what they had once something has been proposed."""
        if self._held:
            self._cache.crop(0)


@dataclass(frozen=True, slots=True)
class Verifier:
    """Which passes of a model may verify, and how long each takes.

    `sizes` are the numbers of tokens, 1 among them, whose passes were found to leave
    the bits of as many passes of one: logits, keys and values. `plan` is the model's
    with rates that were measured along the way.
    """

    rows: BatchInvariant
    sizes: tuple[int, ...]
    plan: MemoryPlan

    @property
    def fallbacks(self) -> int:
        """Shapes of linear layers that verify one token at a time.

        Their kernels mix rows; a shape counts once for each size of a pass.
        """
        return sum(self.rows.mixing.values())

    @property
    def depths(self) -> tuple[int, ...]:
        """Proposals that a pass can verify."""
        return tuple(size - 1 for size in self.sizes)


def calibrate(model: StreamedModel) -> Verifier:
    """Try passes of `SIZES` random tokens beside as many passes of one.

    Sizes that the plan does not cover are left out, and so are those whose bits differ.
    Which kernel runs depends on shapes alone, so that buffers serve with the weights
    that they hold, and are read anew only where those give no finite numbers. Raises
    InvalidInput for a model that gives none either, and for a plan without `rollback`,
    which does not cover the trials.
    """
    plan = model.plan
    require(
        plan.rollback > 0,
        "the plan covers no trials of kernels: make it with rollback, as "
        "plan_speculation does",
    )
    largest = min(plan.logit_tokens, plan.pass_tokens, plan.context - 1)
    tried = sorted({size for size in SIZES if 1 < size <= largest})
    drain_s = seconds_of(model.drain)
    found = None
    with suppress(InvalidInput), model.without_reading():
        found = _try_sizes(model, tried)
    # Not in an except block, whose error would keep what the first try held.
    rows, seconds = found or _try_sizes(model, tried)
    exact = tuple(size for size, (same, _) in seconds.items() if same)
    timed = {size: taken for size, (_, taken) in seconds.items()}
    return Verifier(rows, exact, _with_rates(plan, drain_s, timed))


def _try_sizes(
    model: StreamedModel, tried: Sequence[int]
) -> tuple[BatchInvariant, dict[int, tuple[bool, float]]]:
    """Of each size, 1 included: whether its bits are those of 1, and its seconds."""
    rows = BatchInvariant(model.model)
    single, single_s = _fingerprints(model, max(tried, default=1), 1)
    found = {1: (True, single_s)}
    for size in tried:
        _fingerprints(model, size, size, rows)  # tries its linear layers
        together, seconds = _fingerprints(model, size, size, rows)
        found[size] = together == single[:size], seconds
    return rows, found


def _fingerprints(
    model: StreamedModel, tokens: int, size: int, rows: BatchInvariant | None = None
) -> tuple[list[bytes], float]:
    """A hash for each token, of its logits, keys and values; and seconds of a pass.

    Those of the last pass, without its waiting for reads. Raises InvalidInput for
    logits that are not finite, since their bits say nothing.
    """
    draw = torch.Generator().manual_seed(0)
    row = torch.randint(0, model.spec.vocab, (1, tokens + 1), generator=draw)
    row = row.to(model.device)
    cache, hashes, seconds = model.new_cache(), [], math.inf
    cache.activate_past_recording()
    model.step(row[:, :1], cache, keep=1)
    for part in row[:, 1:].split(size, dim=1):
        start, stalled_s = time.perf_counter(), model.stall_s
        with rows.passing() if rows else nullcontext():
            logits = model.step(part, cache, keep=size)
        seconds = time.perf_counter() - start - (model.stall_s - stalled_s)
        require(
            all(_is_finite(one) for one in logits[0]),
            f"{model.folder} has logits that are not finite: look for NaN in its files",
        )
        hashes += [hashlib.blake2b(_bytes(one)) for one in logits[0]]
        del logits  # or they would be held beside the next ones
    layers: Any = cache.layers
    for layer in layers:
        for values in (layer.keys, layer.values):
            for i, found in enumerate(hashes):
                found.update(_bytes(values[:, :, i - len(hashes)]))
    return [found.digest() for found in hashes], seconds


def _is_finite(row: Tensor) -> bool:
    """Whether all of `row` is finite, without a second row."""
    return all(math.isfinite(end) for end in torch.aminmax(row))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def _with_rates(
    plan: MemoryPlan, drain_s: float, seconds: dict[int, float]
) -> MemoryPlan:
    """The plan on a machine with the rates that were measured for it."""
    machine = plan.machine
    if plan.streamed_layers:
        disk_bytes = plan.disk_layers * plan.layer_read_bytes
        machine = replace(
            machine,
            disk_bytes_per_s=max(disk_bytes, 1) / drain_s,
            link_bytes_per_s=plan.bytes_per_step / drain_s,
        )
    if len(seconds) > 1:
        weights, flops = compute_rates(plan.spec, [*seconds], [*seconds.values()])
        machine = replace(machine, weight_bytes_per_s=weights, flops_per_s=flops)
    return replace(plan, machine=machine)


def expected_tokens(acceptance: float, depth: int) -> float:
    """Tokens that a pass over `depth` proposals is expected to bring.

    Where each is accepted with probability `acceptance`, independently, as long as all
    before it were: (1 - a^(k + 1)) / (1 - a). Leviathan, Kalman and Matias (2023),
    equation 1. Raises InvalidInput for a probability outside [0, 1].
    """
    require(
        0 <= acceptance <= 1 and depth >= 0,
        f"acceptance={acceptance:g} must lie in [0, 1] and depth={depth} not be "
        "negative",
    )
    return sum(acceptance**i for i in range(depth + 1))


def choose_depth(
    acceptance: float,
    step_s: Callable[[int], float],
    depths: Collection[int],
    draft_s: float = 0.0,
) -> int:
    """The number of proposals with the most expected tokens a second.

    `step_s` gives the seconds of a pass of that many tokens, `draft_s` those of one
    proposal. No proposal is always among the choices, so that what is chosen is not
    slower, in expectation, than plain decoding; of equals the smallest is taken.
    """

    def rate(depth: int) -> float:
        seconds = step_s(depth + 1) + depth * draft_s
        return expected_tokens(acceptance, depth) / seconds

    return max(sorted({0, *depths}), key=rate)


def acceptance_interval(
    accepted: int, judged: int, level: float = LEVEL
) -> tuple[float, float]:
    """Wilson's interval of the probability that a proposal is accepted.

    `judged` proposals were accepted or the first to be refused; those behind a refused
    one were not judged. (0, 1) before any was. Wilson, JASA 22(158), 1927.
    """
    require(
        0 <= accepted <= judged,
        f"accepted={accepted} must lie in 0 to judged={judged}",
    )
    if judged == 0:
        return 0.0, 1.0
    interval = binomtest(accepted, judged).proportion_ci(level, "wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True, slots=True)
class Speculation:
    """What greedy decoding wrote, and what it took beside the pass of the prompt."""

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

    def describe(self) -> dict[str, float]:
        """What speculation came to, under the names of the command's JSON."""
        return {
            "passes": self.passes,
            "accepted": sum(self.accepted),
            "tokens_per_pass": self.tokens_per_pass,
            "acceptance": self.acceptance,
        }


def _judge(proposed: Sequence[int], accepted: Sequence[int]) -> tuple[int, int]:
    """Proposals that were accepted; those, and the first of each pass to be refused."""
    refusals = sum(a < p for p, a in zip(proposed, accepted, strict=True))
    return sum(accepted), sum(accepted) + refusals


class _Asked:
    """A draft, and how much it is asked for.

    Of the interval of its acceptance the upper end is believed, so that it is tried
    before it is given up; of its times the least, and less of it with each pass that
    proposes nothing, so that one slow proposal does not end it.
    """

    def __init__(self, draft: Draft, verifier: Verifier) -> None:
        self._draft, self._verifier = draft, verifier
        self._proposal_s, self._least_s = 0.0, math.inf

    def propose(self, text: Sequence[int], left: int, run: Speculation) -> list[int]:
        """The tokens that are worth verifying, of `left` that may be written."""
        start = time.perf_counter()
        depths = [n for n in self._verifier.depths if n < left]
        _, acceptance = acceptance_interval(*_judge(run.proposed, run.accepted))
        step_s = self._verifier.plan.step_s
        depth = choose_depth(acceptance, step_s, depths, self._proposal_s)
        proposed = self._draft.propose(text, depth) if depth else []
        if proposed:
            taken_s = (time.perf_counter() - start) / len(proposed)
            self._least_s = min(self._least_s, taken_s)
        self._proposal_s = (
            self._least_s if proposed else DRAFT_TIME_DECAY * self._proposal_s
        )
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

    With a `draft` its proposals are verified, as many a pass as its acceptance so far
    and the times of the `verifier` make worthwhile. Tokens are those that are written
    without a draft, and end after one of `stop`. The plan has to cover the prompt and
    `max_new_tokens` more.
    """
    require(
        prompt.ndim == 2 and prompt.shape[0] == 1 and prompt.numel() > 0,
        f"the prompt has shape {tuple(prompt.shape)}: expected one sequence, (1, t)",
    )
    require(max_new_tokens > 0, f"max_new_tokens={max_new_tokens} must be positive")
    require(
        (draft is None) == (verifier is None),
        "a draft and a verifier belong together: give both, or neither",
    )
    cache, text = model.new_cache(), prompt[0].tolist()
    end = len(text) + max_new_tokens
    require(
        end - 1 <= model.plan.context,  # the last token is not stored
        f"a prompt of {len(text)} tokens and an answer of {max_new_tokens} leave the "
        f"context of {model.plan.context} that is planned: make a longer plan",
    )
    text += _choose(model.prefill(prompt, cache))
    cache.activate_past_recording()  # a window gives back what is refused
    run = Speculation((), (), (), ())
    asked = _Asked(draft, verifier) if draft and verifier else None
    while len(text) < end and text[-1] not in stop:
        start = time.perf_counter()
        proposed = asked.propose(text, end - len(text), run) if asked else []
        row = torch.tensor([[text[-1], *proposed]], device=prompt.device)
        with verifier.rows.passing() if verifier and proposed else nullcontext():
            chosen = _choose(model.step(row, cache, keep=row.shape[1]))
        pairs = enumerate(zip(proposed, chosen, strict=False))
        taken = next((i for i, (a, b) in pairs if a != b), len(proposed))
        cache.crop(taken - len(proposed))
        new = chosen[: taken + 1]
        stops = [i + 1 for i, token in enumerate(new) if token in stop]
        text += new[: min(stops, default=len(new))]
        run = Speculation(
            (),
            (*run.proposed, len(proposed)),
            (*run.accepted, taken),
            (*run.seconds, time.perf_counter() - start),
        )
    return replace(run, tokens=tuple(text[end - max_new_tokens :]))


def _choose(logits: Tensor) -> list[int]:
    """The greedy token of each position of (1, t, vocab)."""
    return [int(one.argmax()) for one in logits[0]]


def plan_speculation(
    folder: Path | str,
    machine: Machine,
    prompt_tokens: int,
    max_new_tokens: int,
    ring: int = 3,
    draft: MemoryPlan | None = None,
) -> MemoryPlan:
    """The plan of a checkpoint that verifies proposals after a prompt.

    The prompt goes in one pass, and a pass that verifies is one of the largest of
    `SIZES` that is of use and fits: without memory for two tokens it verifies none. A
    resident `draft` lives on the same device: its peak comes off the memory first.
    Raises PlanInfeasible, and InvalidInput where the draft alone is too large.
    """
    held = draft.device_peak_bytes if draft else 0
    require(
        held < machine.device_bytes,
        f"the draft holds {format_size(held)} of {format_size(machine.device_bytes)}: "
        "expected room for the model beside it; take a smaller draft or more memory",
    )
    left = replace(machine, device_bytes=machine.device_bytes - held)

    def made(machine: Machine, verified: int) -> MemoryPlan:
        return plan_checkpoint(
            folder,
            machine,
            context=prompt_tokens + max_new_tokens,
            ring=ring,
            pass_tokens=max(prompt_tokens, verified),
            logit_tokens=verified,
            rollback=verified,
        )

    for verified in sorted(SIZES, reverse=True):
        if verified <= max_new_tokens:
            ample = made(replace(left, device_bytes=2**62), verified)
            if ample.least_device_bytes(ring) <= left.device_bytes:
                return made(left, verified)
    return made(left, 1)


def open_draft(
    folder: Path | str, context: int, device: str | torch.device = "cpu"
) -> StreamedModel:
    """A checkpoint as a draft: all of it resident, for texts of `context` tokens."""
    boundless = Machine(2**62, ASSUMED_DISK_BYTES_PER_S)
    made = plan_checkpoint(
        folder,
        boundless,
        context=context,
        pass_tokens=min(64, context),
        logit_tokens=1,
        rollback=min(SIZES[-1], context),
    )
    return StreamedModel(folder, made, device)


@contextmanager
def _beside(
    model: StreamedModel, resident: StreamedModel | None
) -> Iterator[tuple[Draft, list[StreamedModel]]]:
    """Who proposes to an open model, and all that is then on its device."""
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


def speculate_text(  # nine: the options of the command, one by one
    checkpoint: str,
    device_bytes: int,
    prompt: str,
    max_new_tokens: int = 32,
    draft: str | None = None,
    ring: int = 3,
    host_bytes: int = 0,
    device: str = "cpu",
    verify: bool = False,
) -> dict[str, Any]:
    """As `generate_text`, several tokens a pass: the same text, and what it took.

    Proposals come from the text itself, or from the checkpoint `draft`, which then is
    resident on the same device. Raises InvalidInput for a draft of another vocabulary
    and for a model whose generation is not plainly greedy.

    >>> from thesis_lib.memory import speculate_text
    >>> said = speculate_text("smollm2", 96 * 2**20, "One, two, three. One, two,", 4)
    >>> said["text"]
    ' three, four,'
    """
    folder, tokenizer, tokens, _ = read_prompts(
        checkpoint, [prompt], max_new_tokens, device
    )
    resident = None
    if draft is not None:
        context = tokens.shape[1] + max_new_tokens
        resident = open_draft(checkpoint_folder(draft), context, device)
    made = plan_speculation(
        folder,
        Machine(device_bytes, ASSUMED_DISK_BYTES_PER_S, host_bytes=host_bytes),
        tokens.shape[1],
        max_new_tokens,
        ring,
        resident.plan if resident else None,
    )
    with (
        StreamedModel(folder, made, device, verify) as model,
        _beside(model, resident) as (proposer, models),
        enforced(device_bytes, device) as budget,
    ):
        stop = _stop_tokens(model)
        for each in models:
            each.charge(budget)
        start = time.perf_counter()
        verifier = calibrate(model)
        calibrated_s = time.perf_counter() - start
        found = decode_greedily(model, tokens, max_new_tokens, proposer, verifier, stop)
        total_s = time.perf_counter() - start - calibrated_s
        spent = describe_bytes(budget, models)
        drain_s = seconds_of(model.drain)
    decoding_s = sum(found.seconds)
    return {
        "text": decode(tokenizer, found.tokens),
        "tokens": len(found.tokens),
        "s_per_token": decoding_s / max(1, len(found.tokens) - 1),
        "first_token_s": total_s - decoding_s,
        **spent,
        "fraction_of_link": found.passes * drain_s / decoding_s if decoding_s else 1.0,
        "fallbacks": verifier.fallbacks,
        "calibrated_s": calibrated_s,
        **found.describe(),
    }


# What would make transformers' greedy choice another than the largest logit.
_PLAIN = {
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
