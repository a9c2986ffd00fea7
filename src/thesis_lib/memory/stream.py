"""A model larger than the device: its layers stream through a fixed ring of buffers.

Composition, not hooks: one decoder layer without weights of its own is called once
for each layer of the model, its parameters being views of the staging buffer that
holds that layer now.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoTokenizer, DynamicCache, LlamaConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from thesis_lib.checks import InvalidInput, require
from thesis_lib.memory import smollm2
from thesis_lib.memory.measure import DeviceBudget, Measurement, fingerprint, interleave
from thesis_lib.memory.plan import MemoryPlan, plan
from thesis_lib.memory.spec import Machine, ModelSpec, geometries, geometry
from thesis_lib.memory.store import OUTER, SafetensorsStore, Ticket, allocate
from thesis_lib.units import format_size

# Rates that nobody measured here: a solid-state disk on four lanes of PCIe 4, and
# sixteen lanes to a graphics card. A plan that rests on them says so.
ASSUMED_DISK_BYTES_PER_S = 7e9
ASSUMED_LINK_BYTES_PER_S = 25.5e9

_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
_EMBEDDING, _NORM, _HEAD = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
)


class _Slot:
    """One staging buffer, and the same memory as a tensor."""

    def __init__(self, nbytes: int) -> None:
        self.memory = allocate(nbytes)
        self.tensor = torch.frombuffer(self.memory, dtype=torch.uint8)


class StreamedModel:
    """A LLaMA checkpoint that runs inside a plan's device memory, on the processor.

    A context manager: entering allocates the buffers, reads what stays resident and
    starts to fill the ring; leaving closes the files. Logits are bitwise those of the
    resident transformers model for the same dtype, shapes and chunking. Raises
    InvalidInput for another architecture, for a plan of another checkpoint, and for a
    step that the plan does not cover.
    """

    def __init__(self, folder: Path | str, plan: MemoryPlan) -> None:
        self.folder = Path(folder)
        self.plan = plan
        self.spec = _llama_spec(self.folder)
        require(
            self.spec == plan.spec,
            f"the plan is for {plan.spec.name}, whose geometry is not that of "
            f"{self.folder}: plan with the ModelSpec of this folder",
        )
        require(
            plan.host_layers == 0,
            f"the plan keeps {plan.host_layers} layers in host memory, but layers "
            "stream from disk to the processor's own memory: plan with host_bytes=0",
        )
        self.stall_s = 0.0  # time that computing has waited for reading
        self._store: SafetensorsStore | None = None
        self._streamed = [i for i in range(self.spec.layers) if plan.is_streamed(i)]

    def __enter__(self) -> Self:
        store = SafetensorsStore(self.folder)
        try:
            self._open(store)
        except BaseException:
            store.close()
            raise
        self._store = store
        return self

    def _open(self, store: SafetensorsStore) -> None:
        plan = self.plan
        if store.layers != self.spec.layers:
            raise InvalidInput(
                f"{self.folder} stores {store.layers} layers but its config.json says "
                f"{self.spec.layers}: copy the checkpoint again"
            )
        needed = max(store.nbytes(i) for i in range(store.layers))
        if needed > plan.staging_bytes or store.nbytes(OUTER) > plan.outer_bytes:
            raise InvalidInput(
                f"a layer of {self.folder} needs a buffer of {format_size(needed)}, "
                f"the plan has {format_size(plan.staging_bytes)}: make the plan with "
                "plan_checkpoint, which knows the sizes in the files"
            )
        config = LlamaConfig.from_pretrained(self.folder, attn_implementation="sdpa")
        self._config = config
        with torch.device("meta"):
            self._layer = LlamaDecoderLayer(config, 0).eval()
            self._norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._rotary = LlamaRotaryEmbedding(config)
        names = {name for name, _ in self._layer.named_parameters()}
        for layer in range(OUTER, store.layers):
            for placed in store.placements(layer):
                if _DTYPES.get(placed.dtype) != config.dtype:
                    raise InvalidInput(
                        f"{placed.name} of {self.folder} is {placed.dtype} where "
                        f"config.json says {config.dtype}: save it in one type"
                    )
        for layer in range(store.layers):
            stored = {placed.name for placed in store.placements(layer)}
            if stored != names:
                odd = ", ".join(sorted(stored ^ names))
                raise InvalidInput(
                    f"layer {layer} of {self.folder} does not have the tensors of a "
                    f"LLaMA layer: {odd} missing or unexpected"
                )

        outer = _Slot(store.nbytes(OUTER))
        resident = {
            layer: _Slot(store.nbytes(layer))
            for layer in range(store.layers)
            if layer not in self._streamed
        }
        ring = [_Slot(plan.staging_bytes) for _ in range(plan.ring)]
        reads = [store.read_layer(OUTER, outer.memory)]
        reads += [store.read_layer(i, slot.memory) for i, slot in resident.items()]
        for read in reads:
            read.wait()

        weights = _views(store, OUTER, outer)
        absent = {_EMBEDDING, _NORM, *(() if self.spec.tied else (_HEAD,))} - {*weights}
        if absent:
            raise InvalidInput(
                f"{self.folder} lacks {', '.join(sorted(absent))}: expected a LLaMA "
                "causal language model"
            )
        self._embedding = weights[_EMBEDDING]
        self._norm_weight = {"weight": weights[_NORM]}
        self._head = self._embedding if self.spec.tied else weights[_HEAD]

        self._slots = [outer, *resident.values(), *ring]
        self._resident = {i: _views(store, i, slot) for i, slot in resident.items()}
        self._pending: deque[tuple[int, _Slot, Ticket]] = deque()
        for at, slot in enumerate(ring):
            self._prefetch(store, at, slot)

    def __exit__(self, *_: object) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()
            # Views keep their buffers alive: let go of both.
            self._slots, self._resident, self._norm_weight = [], {}, {}
            self._embedding = self._head = torch.empty(0)
            self._pending.clear()

    def _opened(self) -> SafetensorsStore:
        if self._store is None:
            raise InvalidInput(
                "the streamed model is closed: use it inside `with StreamedModel(…)`"
            )
        return self._store

    @property
    def bytes_read(self) -> int:
        """Bytes asked of the disk so far."""
        return self._opened().bytes_read

    @property
    def mode(self) -> str:
        """How the disk is read: "direct" or "buffered"."""
        return self._opened().mode

    def charge(self, budget: DeviceBudget) -> None:
        """Count the buffers, which were allocated before the meter could see them."""
        self._opened()
        budget.charge(*(slot.tensor for slot in self._slots))
        budget.charge(*self._rotary.buffers())

    def new_cache(self) -> DynamicCache:
        """An empty cache of keys and values."""
        return DynamicCache(config=self._config)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits of all positions, (b, t, vocab), of `tokens`, (b, t), uncached."""
        return self.step(tokens, None)

    @torch.no_grad()
    def step(
        self, tokens: Tensor, cache: DynamicCache | None, keep: int | None = None
    ) -> Tensor:
        """Logits, (b, t, vocab), of new `tokens`, (b, t), after those in `cache`.

        `keep` asks for the last positions only, (b, keep, vocab).
        """
        self._opened()
        past = 0 if cache is None else cache.get_seq_length()
        keep = tokens.shape[-1] if keep is None else keep
        self._admit(tokens, past, keep)
        hidden = functional.embedding(tokens, self._embedding)
        positions = (torch.arange(tokens.shape[1]) + past).unsqueeze(0)
        mask = create_causal_mask(
            config=self._config,
            inputs_embeds=hidden,
            attention_mask=None,
            cache=cache,
            position_ids=positions,
        )
        rotation = self._rotary(hidden, position_ids=positions)

        def compute(layer: int, weights: dict[str, Tensor]) -> None:
            nonlocal hidden
            self._layer.self_attn.layer_idx = layer
            hidden = functional_call(
                self._layer,
                weights,
                (hidden,),
                {
                    "attention_mask": mask,
                    "position_embeddings": rotation,
                    "position_ids": positions,
                    "cache": cache,
                    "use_cache": cache is not None,
                },
            )

        self._pass(compute)
        hidden = functional_call(self._norm, self._norm_weight, (hidden,))
        # Flat rows: for a slice of three dimensions torch would copy the whole head.
        kept = hidden[:, -keep:].flatten(0, 1)
        return functional.linear(kept, self._head).unflatten(0, (-1, keep))

    def drain(self) -> None:
        """The reads of one step through the same ring, without computing."""
        self._pass(lambda layer, weights: None)

    def generate(self, tokens: Tensor, n: int) -> Tensor:
        """The `n` tokens, (b, n), that greedy decoding appends to `tokens`, (b, t)."""
        require(n > 0, f"n={n}: ask for at least one token")
        cache, new = self.new_cache(), [tokens]
        for _ in range(n):
            logits = self.step(new[-1], cache, keep=1)
            new.append(logits[:, -1].argmax(-1, keepdim=True))
            del logits  # or they would be alive during the next step
        return torch.cat(new[1:], dim=1)

    def _pass(self, compute: Callable[[int, dict[str, Tensor]], None]) -> None:
        """Call `compute(layer, weights)` in order, and keep the ring full.

        A buffer is refilled as soon as its layer is done, with the layer one ring
        ahead; after the last layer comes the first one of the next step.
        """
        store = self._opened()
        try:
            for layer in range(self.spec.layers):
                if layer in self._resident:
                    compute(layer, self._resident[layer])
                    continue
                at, slot, ticket = self._pending.popleft()
                start = time.perf_counter()
                ticket.wait()
                self.stall_s += time.perf_counter() - start
                compute(layer, _views(store, layer, slot))
                self._prefetch(store, (at + self.plan.ring), slot)
        except BaseException:
            # The ring has stopped between two layers: another step would mix them.
            self.__exit__()
            raise

    def _prefetch(self, store: SafetensorsStore, at: int, slot: _Slot) -> None:
        at %= len(self._streamed)
        ticket = store.read_layer(self._streamed[at], slot.memory)
        self._pending.append((at, slot, ticket))

    def _admit(self, tokens: Tensor, past: int, keep: int) -> None:
        plan = self.plan
        require(
            tokens.ndim == 2 and tokens.numel() > 0,
            f"tokens have shape {tuple(tokens.shape)}: expected (batch, tokens)",
        )
        batch, new = tokens.shape
        if (
            batch > plan.batch
            or new > plan.pass_tokens
            or past + new > plan.context
            or not 0 < keep <= min(new, plan.logit_tokens)
        ):
            raise InvalidInput(
                f"a step of {batch} x {new} tokens after {past}, keeping the logits of "
                f"{keep}, is outside the plan: batch {plan.batch}, "
                f"{plan.pass_tokens} tokens a pass, context {plan.context}, logits of "
                f"{plan.logit_tokens}; make a larger plan"
            )


def _views(store: SafetensorsStore, layer: int, slot: _Slot) -> dict[str, Tensor]:
    """The tensors of `layer` inside the memory of `slot`, without a copy."""
    return {
        placed.name: slot.tensor[placed.start : placed.start + placed.nbytes]
        .view(_DTYPES[placed.dtype])
        .view(placed.shape)
        for placed in store.placements(layer)
    }


def _llama_spec(folder: Path) -> ModelSpec:
    spec = ModelSpec.from_config(folder)
    config = LlamaConfig.from_pretrained(folder)
    if config.model_type != "llama":
        raise InvalidInput(
            f"{folder} is a {config.model_type} model: this version streams LLaMA"
        )
    return spec


def plan_checkpoint(
    folder: Path | str,
    machine: Machine,
    batch: int = 1,
    context: int = 512,
    ring: int = 3,
    pass_tokens: int = 1,
    logit_tokens: int | None = None,
) -> MemoryPlan:
    """As `plan`, for a checkpoint: with the sizes of the reads that its files need."""
    with SafetensorsStore(folder) as store:
        layer_read_bytes = [store.nbytes(layer) for layer in range(store.layers)]
        outer_read_bytes = store.nbytes(OUTER)
    return plan(
        ModelSpec.from_config(folder),
        machine,
        batch=batch,
        context=context,
        ring=ring,
        pass_tokens=pass_tokens,
        logit_tokens=logit_tokens,
        layer_read_bytes=layer_read_bytes,
        outer_read_bytes=outer_read_bytes,
    )


def disk_bytes_per_s(folder: Path | str, seconds: float = 1.0) -> float:
    """The rate at which layers of a checkpoint reach memory, through three buffers.

    Reads whole layers, around the stack, until `seconds` have passed.
    """
    with SafetensorsStore(folder) as store:
        size = max(store.nbytes(layer) for layer in range(store.layers))
        buffers = deque(allocate(size) for _ in range(3))
        for buffer in buffers:  # first touch of the memory, not of the disk
            store.read_layer(0, buffer).wait()
        flying: deque[Ticket] = deque()
        before, start, layer = store.bytes_read, time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            flying.append(store.read_layer(layer % store.layers, buffers[0]))
            buffers.rotate(-1)
            layer += 1
            if len(flying) == len(buffers):
                flying.popleft().wait()
        for ticket in flying:
            ticket.wait()
        return (store.bytes_read - before) / (time.perf_counter() - start)


def is_identical(model: StreamedModel, resident: Any, prompt: Tensor, n: int) -> bool:
    """Whether the logits of `prompt`, (1, t), and of `n` greedy tokens are equal.

    Every bit of every logit, against the resident model in the same chunks.
    """
    cache, twin, new = model.new_cache(), model.new_cache(), prompt
    with torch.no_grad():
        for _ in range(n + 1):
            expected = resident(new, cache=twin, use_cache=True).logits
            if not torch.equal(model.step(new, cache), expected):
                return False
            new = expected[:, -1].argmax(-1, keepdim=True)
    return True


def measure_decoding(
    model: StreamedModel, resident: Any, prompt: Tensor, rounds: int
) -> dict[str, Measurement]:
    """Time one decoding step: "drain", "streamed" and "resident", interleaved.

    Each step appends one token to a cache that holds `prompt`, (b, t), and takes it
    off again. "drain" reads what "streamed" reads and computes nothing. 2 * `rounds`
    samples of each.
    """
    last = prompt[:, -1:]
    cache, twin = model.new_cache(), model.new_cache()
    model.step(prompt, cache, keep=1)

    def streamed() -> None:
        model.step(last, cache, keep=1)
        cache.crop(-1)

    def in_memory() -> None:
        resident(last, cache=twin, use_cache=True)
        twin.crop(-1)

    with torch.no_grad():
        resident(prompt, cache=twin, use_cache=True, logits_to_keep=1)
        before, warmup = model.bytes_read, 2
        samples = interleave(
            {"drain": model.drain, "streamed": streamed, "resident": in_memory},
            rounds,
            warmup,
        )
    passes = 2 * (2 * rounds + warmup)  # of drain and streamed together
    n_bytes = round((model.bytes_read - before) / passes)
    return {
        name: Measurement(
            name,
            seconds,
            tokens=prompt.shape[0],
            bytes_read=0 if name == "resident" else n_bytes,
            machine=fingerprint(),
        )
        for name, seconds in samples.items()
    }


@dataclass(frozen=True, slots=True)
class PassTiming:
    """Median seconds of one pass of `tokens` new tokens."""

    tokens: int
    drain_s: float  # reading alone
    streamed_s: float
    computing_s: float  # the part of streamed_s that does not wait for reading
    resident_s: float


def measure_passes(
    model: StreamedModel, resident: Any, tokens: Sequence[int], rounds: int, seed: int
) -> list[PassTiming]:
    """Time a pass of each number of random tokens: reading, streamed and resident."""
    draw = torch.Generator().manual_seed(seed)
    timings = []
    for t in tokens:
        row = torch.randint(0, model.spec.vocab, (1, t), generator=draw)
        computing: list[float] = []

        def streamed(row: Tensor = row, computing: list[float] = computing) -> None:
            stalled, start = model.stall_s, time.perf_counter()
            model.step(row, model.new_cache(), keep=1)
            passed = time.perf_counter() - start
            computing.append(passed - (model.stall_s - stalled))

        def in_memory(row: Tensor = row) -> None:
            resident(row, use_cache=True, logits_to_keep=1)

        with torch.no_grad():
            samples = interleave(
                {"drain": model.drain, "streamed": streamed, "resident": in_memory},
                rounds,
                warmup=1,
            )
        timings.append(
            PassTiming(
                t,
                drain_s=float(np.median(samples["drain"])),
                streamed_s=float(np.median(samples["streamed"])),
                computing_s=float(np.median(computing[1:])),
                resident_s=float(np.median(samples["resident"])),
            )
        )
    return timings


def describe_plan(
    model: str,
    device_bytes: int,
    host_bytes: int = 0,
    batch: int = 1,
    context: int = 512,
    ring: int = 3,
    disk_rate: float | None = None,
) -> dict[str, Any]:
    """The plan for a folder, `smollm2` or a known geometry, as the command prints it.

    Without a `disk_rate` in bytes per second, that of a checkpoint is measured and
    that of a geometry assumed; "rates" says which. Raises PlanInfeasible.
    """
    folder = None if model in geometries() else _checkpoint_folder(model)
    origin = "given"
    if disk_rate is None and folder is not None:
        origin, disk_rate = "measured", disk_bytes_per_s(folder)
    elif disk_rate is None:
        origin, disk_rate = "assumed", ASSUMED_DISK_BYTES_PER_S
    machine = Machine(
        device_bytes,
        disk_rate,
        host_bytes=host_bytes,
        link_bytes_per_s=ASSUMED_LINK_BYTES_PER_S if host_bytes else float("inf"),
    )
    made = (
        plan(geometry(model), machine, batch, context, ring)
        if folder is None
        else plan_checkpoint(folder, machine, batch, context, ring)
    )
    rates: dict[str, Any] = {"disk_bytes_per_s": disk_rate, "disk": origin}
    if host_bytes:
        rates |= {"link_bytes_per_s": ASSUMED_LINK_BYTES_PER_S, "link": "assumed"}
    return {**made.summary(), "rates": rates}


def generate_text(
    checkpoint: str,
    device_bytes: int,
    prompt: str,
    max_new_tokens: int = 32,
    ring: int = 3,
) -> dict[str, Any]:
    """Greedy continuation of `prompt` by a streamed model, as the command prints it.

    The meter enforces `device_bytes` throughout. Stops at the end-of-text token. The
    fraction of the link is the time of the same reads without computing over the time
    of a decoding step.
    """
    require(max_new_tokens > 0, f"max_new_tokens={max_new_tokens} must be positive")
    folder = _checkpoint_folder(checkpoint)
    with smollm2.quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    require(tokens.numel() > 0, "the prompt is empty: give at least one word")
    machine = Machine(device_bytes, ASSUMED_DISK_BYTES_PER_S)
    made = plan_checkpoint(
        folder,
        machine,
        context=tokens.shape[1] + max_new_tokens,
        ring=ring,
        pass_tokens=tokens.shape[1],
        logit_tokens=1,
    )
    seconds: list[float] = []
    written: list[int] = []
    with StreamedModel(folder, made) as model, DeviceBudget(device_bytes) as budget:
        model.charge(budget)
        cache, new = model.new_cache(), tokens
        for _ in range(max_new_tokens):
            start = time.perf_counter()
            logits = model.step(new, cache, keep=1)
            seconds.append(time.perf_counter() - start)
            new = logits[:, -1].argmax(-1, keepdim=True)
            del logits  # or they would be alive during the next step
            if int(new) == tokenizer.eos_token_id:
                break
            written.append(int(new))
        bytes_read = model.bytes_read
        drained: list[float] = []
        for _ in range(3):
            start = time.perf_counter()
            model.drain()
            drained.append(time.perf_counter() - start)
    decoding_s = float(np.median(seconds[1:] or seconds))
    return {
        "text": tokenizer.decode(written, skip_special_tokens=True),
        "tokens": len(written),
        "s_per_token": decoding_s,
        "first_token_s": seconds[0],
        "device_bytes": device_bytes,
        "device_peak_bytes": budget.peak_bytes,
        "planned_peak_bytes": made.device_peak_bytes,
        "model_bytes": made.spec.total_bytes,
        "bytes_read": bytes_read,
        "fraction_of_link": float(np.median(drained)) / decoding_s,
    }


def _checkpoint_folder(name: str) -> Path:
    if name == "smollm2":
        return smollm2.checkpoint()
    if (Path(name) / "config.json").is_file():
        return Path(name)
    raise InvalidInput(
        f"{name!r} is not a checkpoint: expected a folder with a config.json or "
        f"'smollm2' (a plan also knows {', '.join(geometries())})"
    )
