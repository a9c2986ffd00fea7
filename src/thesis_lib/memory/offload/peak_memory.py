"""What a step will allocate, to the byte, before anything is allocated.

A rehearsal runs transformers' own code on fake tensors, which have shapes and
storages but no memory, under the meter that watches the real step. Both see the same
operators in the same order, so the rehearsed peak is not an estimate of the metered
one: it is equal to it, for the same shapes.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers import AutoConfig, DynamicCache
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from thesis_lib.common.errors import require
from thesis_lib.memory.formats.base import DENSE, PackedLinear, WeightFormat
from thesis_lib.memory.model.batch_invariant import BatchInvariant
from thesis_lib.memory.model.pretrained import transformers_reads
from thesis_lib.memory.model.smollm2 import quiet
from thesis_lib.memory.offload.architectures import skeleton, stack
from thesis_lib.memory.offload.measure import DeviceBudget


@dataclass(frozen=True, slots=True)
class Shape:
    """The largest step that a plan admits."""

    batch: int  # sequences; beams count as sequences
    context: int  # positions in the cache of one sequence, the new ones included
    pass_tokens: int  # new tokens of one sequence
    logit_tokens: int  # positions of one sequence whose logits are kept
    generating: bool = False  # whether transformers' generate chooses the tokens
    rollback: int = 0  # tokens that the cache can give back after verifying them


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Bytes that steps of a shape hold at most, beside the weights."""

    layer_bytes: int  # of the weights of one decoder layer
    table_bytes: int  # what no checkpoint holds: rotary frequencies and the like
    kv_bytes: int  # keys and values at the full context
    activation_bytes: int  # everything else that is alive at the worst moment
    scratch_bytes: int = 0  # what kernels of packed layers take, unseen by a meter

    @property
    def step_bytes(self) -> int:
        """All that a step needs beside weights and tables."""
        return self.kv_bytes + self.activation_bytes + self.scratch_bytes


def dry_run(config: Any, shape: Shape, weights: WeightFormat = DENSE) -> PeakMemory:
    """Run the extreme steps of `shape` without memory, and meter them.

    The longest pass onto an empty and onto an almost full cache, a single token at
    the full context, and a pass without a cache; with `generating` also what
    transformers does to the logits in between, sampling and beams included; with
    `rollback` also passes of `logit_tokens` whose rows are kept apart, and the trials
    of their kernels. Layers of one type are alike, so one of each type is rehearsed and
    counted as often as it occurs.
    """
    require(
        0 < shape.pass_tokens <= shape.context
        and 0 < shape.logit_tokens <= shape.pass_tokens
        and shape.batch > 0,
        f"{shape} is no step: expected a positive batch and "
        "0 < logit_tokens <= pass_tokens <= context",
    )
    require(
        shape.rollback == 0
        or (shape.batch == 1 and 0 < shape.rollback <= shape.context),
        f"rollback={shape.rollback} of {shape.batch} sequences of {shape.context} "
        "positions: expected one sequence, and at most its positions",
    )
    return _dry_run(config.to_json_string(use_diff=False), shape, weights)


@lru_cache(maxsize=4096)
def _dry_run(text: str, shape: Shape, weights: WeightFormat) -> PeakMemory:
    known = json.loads(text)
    with quiet():
        config = AutoConfig.for_model(known.pop("model_type"), **known)
    short, counts = _shorten(config)
    model = skeleton(short, weights.for_dry_run(short.num_hidden_layers))
    layers = stack(model)[1]
    tables = {
        b.untyped_storage().data_ptr(): b for b in model.buffers() if not b.is_meta
    }
    layer_bytes = sum(t.nbytes for t in layers[-1].state_dict().values())
    table_bytes = sum(table.untyped_storage().nbytes() for table in tables.values())
    stage = _Stage(model, short, shape)
    past = {shape.context - shape.pass_tokens, 0, shape.context - 1}
    rests = [stage.rest()]
    kv_bytes = 0
    for before in sorted(past):
        new = min(shape.pass_tokens, shape.context - before)
        rest, caches = stage.cached(before, new, counts)
        kv_bytes = max(kv_bytes, caches)
        rests.append(rest)
    if shape.rollback:
        rests += stage.verified(counts)
    scratch = max(
        (
            part.scratch_bytes(shape.batch * shape.pass_tokens)
            for part in layers.modules()
            if isinstance(part, PackedLinear)
        ),
        default=0,
    )
    return PeakMemory(
        layer_bytes, table_bytes, kv_bytes, max(rests) - kv_bytes, scratch
    )


def _shorten(config: Any) -> tuple[Any, Counter[int]]:
    """A stack of the last layers that has every type, and how often each stands.

    The counter maps positions in the short stack to the layers that it stands for.
    Every type comes after another layer, as its input and the embedding are two
    tensors there and one in the first layer.
    """
    n = config.num_hidden_layers
    types = list(getattr(config, "layer_types", None) or ["full_attention"] * n)
    length = 1
    while length < n and set(types[-length:][1:]) != set(types):
        length += 1
    short = copy.deepcopy(config)
    short.num_hidden_layers = length
    if getattr(config, "layer_types", None):
        short.layer_types = types[-length:]
    last = {kind: position for position, kind in enumerate(types[-length:])}
    counts = Counter(range(length))
    for kind in types[:-length]:
        counts[last[kind]] += 1
    return short, counts


class _Stage:
    """A model with fake weights, and the meter that watches it."""

    def __init__(self, model: Any, config: Any, shape: Shape) -> None:
        self.model, self.config, self.shape = model, config, shape
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)
        held = dict(model.named_parameters()) | dict(model.named_buffers())
        with self.mode:
            self.weights = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                for name, tensor in held.items()
            }

    def cached(self, past: int, new: int, counts: Counter[int]) -> tuple[int, int]:
        """Peak beside the weights, and the cache at its end, of all layers.

        The step of `new` tokens comes after `past` ones.
        """
        with self.mode:
            meter = self._meter()
            with meter, torch.no_grad():
                run = self._run()
                cache, left = self._filled(past, new, run)
                step = partial(self._choosing, new, cache, run)
                peak, held = self._extreme(meter, cache, step, counts)
                del left
        return peak, held

    def verified(self, counts: Counter[int]) -> list[int]:
        """Peaks beside the weights of what `speculate` does, of all layers.

        The trial of kernels after one token; a pass of `logit_tokens` rows kept apart
        at the end of the context; and a token there after others that may be given
        back.
        """
        verified, back = self.shape.logit_tokens, self.shape.rollback
        peaks = []
        with self.mode:
            rows = BatchInvariant(self.model, dry_running=True)

            def together(cache: Any) -> Tensor:
                with rows.passing():
                    return self._forward(verified, verified, cache)

            def one(cache: Any) -> Tensor:
                return self._forward(1, 1, cache)

            passes = [(self.shape.context - back, back - 1, one)]
            if verified > 1:
                late = self.shape.context - verified
                passes += [(min(1, late), 0, together), (late, 0, together)]
            for past, before, step in passes:
                meter = self._meter()
                with meter, torch.no_grad():
                    text = torch.ones((1, self.shape.context), dtype=torch.long)
                    cache, left = self._filled(past, verified, None)
                    cache.activate_past_recording()
                    if before:
                        self._forward(before, 1, cache)
                    peaks.append(
                        self._extreme(meter, cache, partial(step, cache), counts)[0]
                    )
                    del text, left
        return peaks

    def _filled(
        self, past: int, new: int, run: "_Run | None"
    ) -> tuple[DynamicCache, tuple[Tensor, ...]]:
        """A cache of `past` tokens, and what their last pass leaves beside it.

        That pass left its mark in the cache too: a window is a view of what it had.
        """
        cache = DynamicCache(config=self.config)
        before = min(past, self.shape.pass_tokens)
        if past > before:
            self._forward(past - before, 1, cache, run)
        return cache, self._leave(before, new, cache, run) if before else ()

    def _extreme(
        self,
        meter: DeviceBudget,
        cache: DynamicCache,
        step: Callable[[], Tensor],
        counts: Counter[int],
    ) -> tuple[int, int]:
        """Peak of `step` beside the weights and the cache at its end, of all layers."""
        then = _held(cache)
        meter.peak_bytes = meter.bytes
        logits = step()
        now = _held(cache)
        del logits
        # Layers that are not rehearsed hold what they held, or what they will hold.
        absent = {at: (counts[at] - 1) * max(now[at], then.get(at, 0)) for at in counts}
        peak = meter.peak_bytes - self.weight_bytes + sum(absent.values())
        return peak, sum(now[at] * counts[at] for at in counts)

    def _choosing(self, new: int, cache: DynamicCache, run: "_Run | None") -> Tensor:
        """The step of `new` tokens, and in a run of generate the choice after it."""
        logits = self._forward(new, min(self.shape.logit_tokens, new), cache, run)
        if run is not None:
            _choose(logits, run)
        return logits

    def rest(self) -> int:
        """Peak beside the weights of the longest pass without a cache."""
        with self.mode:
            meter = self._meter()
            with meter, torch.no_grad():
                new, keep = self.shape.pass_tokens, self.shape.logit_tokens
                self._forward(new, keep)
        return meter.peak_bytes - self.weight_bytes

    def _meter(self) -> DeviceBudget:
        meter = DeviceBudget()
        meter.charge(*self.weights.values())
        self.weight_bytes = meter.bytes
        return meter

    def _run(self) -> "_Run | None":
        """What transformers' generate holds from its first pass to its last."""
        if not self.shape.generating:
            return None
        batch, context = self.shape.batch, self.shape.context
        return _Run(
            prompt=torch.ones((batch, context), dtype=torch.long),
            mask=torch.ones((batch, context), dtype=torch.long),
            positions=torch.ones((batch, context), dtype=torch.long),
            tokens=torch.ones((batch, context + 1), dtype=torch.long),
            beams=torch.ones((2, batch, context + 1), dtype=torch.long),
        )

    def _leave(
        self, before: int, new: int, cache: Any, run: "_Run | None"
    ) -> tuple[Tensor, ...]:
        """What a pass leaves alive for the next one, of `new` tokens.

        In a run of generate the logits of a part of the prompt, or a token's choice.
        """
        logits = self._forward(before, 1, cache, run)
        if run is None:
            return ()
        return _choose(logits, run) if new == 1 else (logits,)

    def _forward(
        self, new: int, keep: int, cache: Any = None, run: "_Run | None" = None
    ) -> Tensor:
        row = torch.zeros((self.shape.batch, new), dtype=torch.long)
        options: dict[str, Any] = {
            "use_cache": cache is not None,
            "logits_to_keep": keep,
        }
        if cache is not None:
            options["cache"] = cache
        past = 0 if cache is None else cache.get_seq_length()
        if run is not None:
            options["attention_mask"] = run.mask[:, : past + new]
            options["position_ids"] = run.positions[:, past : past + new].clone()
        with transformers_reads(
            "a model of this configuration fails", "the configuration of one that runs"
        ):
            return functional_call(self.model, self.weights, (row,), options).logits


@dataclass(frozen=True, slots=True)
class _Run:
    """Of a run of transformers' generate: whole numbers, (batch, context) each."""

    prompt: Tensor
    mask: Tensor
    positions: Tensor
    tokens: Tensor  # (batch, context + 1)
    beams: Tensor  # (2, batch, context + 1): those that run and those that ended


def _held(cache: Any) -> dict[int, int]:
    """Bytes of the keys and values of each layer that has any.

    A window is a view, and its storage is what counts.
    """
    return {
        at: sum(
            value.untyped_storage().nbytes()
            for value in vars(layer).values()
            if isinstance(value, Tensor)
        )
        for at, layer in enumerate(cache.layers)
        if layer.is_initialized
    }


def _choose(logits: Tensor, run: _Run) -> tuple[Tensor, ...]:
    """What transformers' generate does to the logits of a step, at most.

    Sampling with temperature, top-k and top-p, which holds more than a greedy choice,
    and the log-probabilities of a beam search beside the tokens so far. Returns what
    its loop still holds while the next step runs.
    """
    tokens: Any = run.tokens
    scores = logits[:, -1].to(copy=True, dtype=torch.float32)
    warped: Any = scores
    for warper in (
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(50),
        TopPLogitsWarper(0.9),
    ):
        warped = warper(tokens, warped)
    probabilities = torch.softmax(warped, dim=-1)
    chosen = torch.multinomial(probabilities, num_samples=1)
    torch.cat([tokens, chosen], dim=-1)
    return scores, warped, probabilities, chosen
