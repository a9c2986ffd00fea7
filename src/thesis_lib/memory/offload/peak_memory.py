"""Predict the peak memory of a step to the byte, before any allocation.

A rehearsal runs transformers' own code on fake tensors, which have shapes and
storages but no memory, under the meter that watches the real step. Both see the same
operators in the same order, so the rehearsed peak is not an estimate of the metered
one: it is equal to it, for the same shapes.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
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

from thesis_lib.memory.formats.base import DENSE, PackedLinear, WeightFormat
from thesis_lib.memory.model.batch_invariant import BatchInvariant
from thesis_lib.memory.model.pretrained import quiet, transformers_reads
from thesis_lib.memory.model.shape import PeakMemory, Shape
from thesis_lib.memory.offload.architectures import skeleton, split_tables, stack
from thesis_lib.memory.offload.measure import DeviceBudget

# What a configuration says of each layer: of which type it is, and whether it rotates.
_BY_LAYER = ("layer_types", "no_rope_layers")
Run = dict[str, Tensor]  # whole numbers, (batch, context) each, that a caller holds


def dry_run(
    config: Any, shape: Shape, weights: WeightFormat = DENSE, head_parts: int = 0
) -> PeakMemory:
    """Run the extreme steps of `shape` without memory, and meter them.

    The longest pass onto an empty and onto an almost full cache, a single token at
    the full context, and a pass without a cache; with `generating` also what
    transformers does to the logits in between, sampling and beams included; with
    `rollback` also passes of `logit_tokens` whose rows are kept apart, and the trials
    of their kernels. Layers of one type are alike, so one of each type is rehearsed and
    counted as often as it occurs. With `head_parts` the token table is read by rows and
    the output head comes in so many parts.
    """
    return _dry_run(config.to_json_string(use_diff=False), shape, weights, head_parts)


@lru_cache(maxsize=4096)
def _dry_run(
    text: str, shape: Shape, weights: WeightFormat, head_parts: int
) -> PeakMemory:
    known = json.loads(text)
    with quiet():
        config = AutoConfig.for_model(known.pop("model_type"), **known)
    short, counts = _shorten(config)
    model = skeleton(short, weights.for_dry_run(short.num_hidden_layers))
    if head_parts:
        sizes: dict[str, Any] = {"dtype": short.dtype, "device": "cpu"}

        def rows(tokens: Tensor) -> Tensor:
            return torch.empty((len(tokens), short.hidden_size), **sizes)

        split_tables(model, head_parts, rows)
    layers = stack(model)[1]
    tables = {
        b.untyped_storage().data_ptr(): b for b in model.buffers() if not b.is_meta
    }
    layer_bytes = sum(t.nbytes for t in layers[-1].state_dict().values())
    table_bytes = sum(table.untyped_storage().nbytes() for table in tables.values())
    rehearsal = _Rehearsal(model, short, shape, counts)
    rests, kv_bytes = [rehearsal.uncached()], 0
    for past in sorted({shape.context - shape.pass_tokens, 0, shape.context - 1}):
        rest, caches = rehearsal.cached(past)
        kv_bytes = max(kv_bytes, caches)
        rests.append(rest)
    if shape.rollback:
        rests += rehearsal.verified()
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
    """Return a stack with every type of layer, and how many each represents."""
    n = config.num_hidden_layers
    by_layer = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == n and name in _BY_LAYER
    }
    types = [*zip(*by_layer.values(), strict=True)] or [()] * n
    length = 1
    while length < n and set(types[-length:][1:]) != set(types):
        length += 1
    short = copy.deepcopy(config)
    short.num_hidden_layers = length
    for name, value in by_layer.items():
        setattr(short, name, value[-length:])
    last = {kind: position for position, kind in enumerate(types[-length:])}
    counts = Counter(range(length))
    for kind in types[:-length]:
        counts[last[kind]] += 1
    return short, counts


class _Rehearsal:
    """A short stack of fake weights under a meter; `counts` scales it to all layers."""

    def __init__(
        self, model: Any, config: Any, shape: Shape, counts: Counter[int]
    ) -> None:
        self.model, self.config = model, config
        self.shape, self.counts = shape, counts
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)
        held = dict(model.named_parameters()) | dict(model.named_buffers())
        with self.mode:
            self.weights = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                for name, tensor in held.items()
            }

    def uncached(self) -> int:
        """Peak of the longest pass without a cache."""
        with self.mode, self._meter() as meter, torch.no_grad():
            self._forward(self.shape.pass_tokens, self.shape.logit_tokens)
        return meter.peak_bytes - self.weight_bytes

    def cached(self, past: int) -> tuple[int, int]:
        """Return the peak of the longest pass after `past` tokens, and its cache."""
        new = min(self.shape.pass_tokens, self.shape.context - past)

        def step(cache: Any, run: Run) -> Any:
            logit_rows = min(self.shape.logit_tokens, new)
            logits = self._forward(new, logit_rows, cache, run)
            if run:
                _choose(logits, run)
            return logits

        return self._peak(step, past, new)

    def verified(self) -> list[int]:
        """Peaks of what `speculate` does.

        The trial of kernels after one token; a pass of `logit_tokens` rows kept apart
        at the end of the context; and a token there after others that may be given
        back.
        """
        verified, back = self.shape.logit_tokens, self.shape.rollback
        rows = BatchInvariant(self.model, dry_running=True)

        def together(cache: Any, _: Run) -> Any:
            with rows.passing():
                return self._forward(verified, verified, cache)

        def one(cache: Any, _: Run) -> Any:
            return self._forward(1, 1, cache)

        passes = [(one, self.shape.context - back, back - 1)]
        if verified > 1:
            late = self.shape.context - verified
            passes += [(together, min(1, late), 0), (together, late, 0)]
        return [
            self._peak(step, past, verified, logit_rows)[0]
            for step, past, logit_rows in passes
        ]

    def _peak(
        self,
        step: Callable[[Any, Run], Any],
        past: int,
        new: int,
        recorded: int | None = None,
    ) -> tuple[int, int]:
        """Peak of a step of `new` tokens after `past`, and the cache at its end.

        With `recorded` the cache can give back what comes after `past`: so many tokens
        before the step. The last pass over `past` left its mark in the cache too: a
        window is a view of what it had.
        """
        with self.mode, self._meter() as meter, torch.no_grad():
            run = self._run() if recorded is None else {"text": self._numbers(1)}
            cache = DynamicCache(config=self.config)
            before = min(past, self.shape.pass_tokens)
            if past > before:
                self._forward(past - before, 1, cache, run)
            left = self._leave(before, new, cache, run) if before else ()
            if recorded is not None:
                cache.activate_past_recording()
                if recorded:
                    self._forward(recorded, 1, cache)
            then = _held(cache)
            meter.peak_bytes = meter.bytes
            step(cache, run)
            now = _held(cache)
            del left
        counts = self.counts
        # Layers that are not rehearsed hold what they held, or what they will hold.
        absent = sum((counts[at] - 1) * max(now[at], then.get(at, 0)) for at in counts)
        peak = meter.peak_bytes - self.weight_bytes + absent
        return peak, sum(now[at] * counts[at] for at in counts)

    def _meter(self) -> DeviceBudget:
        meter = DeviceBudget()
        meter.charge(*self.weights.values())
        self.weight_bytes = meter.bytes
        return meter

    def _numbers(self, *size: int, more: int = 0) -> Tensor:
        return torch.ones((*size, self.shape.context + more), dtype=torch.long)

    def _run(self) -> Run:
        """Return the memory that transformers' generate holds during all passes."""
        if not self.shape.generating:
            return {}
        batch = self.shape.batch
        return {
            "prompt": self._numbers(batch),
            "mask": self._numbers(batch),
            "positions": self._numbers(batch),
            "tokens": self._numbers(batch, more=1),
            "beams": self._numbers(2, batch, more=1),  # that run, and that ended
        }

    def _leave(self, before: int, new: int, cache: Any, run: Run) -> tuple[Tensor, ...]:
        """Return what a pass of `new` tokens leaves alive for the next one."""
        logits = self._forward(before, 1, cache, run)
        if "mask" not in run:
            return ()
        return _choose(logits, run) if new == 1 else (logits,)

    def _forward(
        self, new: int, keep: int, cache: Any = None, run: Run | None = None
    ) -> Tensor:
        row = torch.zeros((self.shape.batch, new), dtype=torch.long)
        options: dict[str, Any] = {
            "use_cache": cache is not None,
            "logits_to_keep": keep,
        }
        if cache is not None:
            options["cache"] = cache
        if cache is not None and run and "mask" in run:
            past = cache.get_seq_length()
            options["attention_mask"] = run["mask"][:, : past + new]
            options["position_ids"] = run["positions"][:, past : past + new].clone()
        with transformers_reads(
            "a model of this configuration fails", "the configuration of one that runs"
        ):
            return functional_call(self.model, self.weights, (row,), options).logits


def _held(cache: Any) -> dict[int, int]:
    """Return bytes of keys and values by layer; a window counts its whole storage."""
    return {
        at: sum(
            value.untyped_storage().nbytes()
            for value in vars(layer).values()
            if isinstance(value, Tensor)
        )
        for at, layer in enumerate(cache.layers)
        if layer.is_initialized
    }


def _choose(logits: Tensor, run: Run) -> tuple[Tensor, ...]:
    """Return the peak of transformers' generate on the logits of a step.

    Sampling with temperature, top-k and top-p, which holds more than a greedy choice,
    and the log-probabilities of a beam search beside the tokens so far. Returns what
    its loop still holds while the next step runs.
    """
    tokens: Any = run["tokens"]
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
