"""A model larger than the device: its layers stream through a fixed ring of buffers.

Composition, not hooks: the stack of a transformers model is filled with layers that
own no weights and are lent them for the time of a call, as views of the staging
buffer that holds the layer now. Everything else is transformers' own forward and its
own `generate`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear
from transformers import DynamicCache

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.units import format_size, parse_size
from thesis_lib.memory.formats.ggml import cached_checkpoint
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.checkpoint import NON_LAYER, allocate
from thesis_lib.memory.model.pretrained import read_generation
from thesis_lib.memory.model.shape import Shape, Step, read_step
from thesis_lib.memory.model.spec import Machine, ModelSpec, geometries
from thesis_lib.memory.offload.architectures import (
    TIED_HEAD,
    multiply_by,
    read_config,
    renamed,
    require_tensors,
    skeleton,
    split_tables,
    stack,
)
from thesis_lib.memory.offload.footprint import Footprint, footprint
from thesis_lib.memory.offload.measure import DeviceBudget, Span
from thesis_lib.memory.offload.peak_memory import dry_run
from thesis_lib.memory.offload.plan import ASSUMED_DISK_BYTES_PER_S, MemoryPlan, place
from thesis_lib.memory.offload.store import (
    HEAD,
    PendingRead,
    SafetensorsStore,
    Seconds,
    StoreDamaged,
)
from thesis_lib.memory.offload.transfer import (
    Cuda,
    Device,
    Ring,
    StagingBuffer,
    ThroughHost,
    find_device,
    views,
)

Weights = dict[str, Tensor]  # of a layer, by the names of its parameters

_NEW_TOKENS = 20  # that transformers generates where nothing says how many
_ROWS = 64  # compared at a time


class _Lent(nn.Module):
    """A decoder layer without weights, which are lent to it for the time of a call."""

    def __init__(self, layer: nn.Module, number: int, owner: "StreamedModel") -> None:
        super().__init__()
        self.layer, self.number = layer, number
        self._owner = (owner,)  # not a module: hidden from parameters() and the like

    def forward(self, hidden: Tensor, *args: Any, **options: Any) -> Any:
        with self._owner[0]._lend(self.number, hidden, options.get("cache")) as weights:
            if not weights:  # they are in their place
                return self.layer(hidden, *args, **options)
            return functional_call(self.layer, weights, (hidden, *args), options)


class StreamedModel:
    """A checkpoint that runs inside a plan's device memory.

    A context manager: entering allocates the buffers, reads what stays resident and
    starts to fill the ring; leaving closes the files. `model` is the transformers
    model, whose `generate` is `generate` here. Logits are bitwise those of the
    resident transformers model for the same dtype, shapes and chunking.

    `device` is "cpu" or "cuda". With `verify` every byte of the files is hashed
    first. Raises InvalidInput for another architecture, for a plan of another
    checkpoint, and for a step that the plan does not cover; StoreDamaged for files
    that are not what they were.

    >>> import torch
    >>> from thesis_lib.memory import Machine, StreamedModel, plan_checkpoint
    >>> from thesis_lib.memory.model import smollm2
    >>> checkpoint = smollm2.checkpoint()
    >>> plan = plan_checkpoint(checkpoint, Machine(96 * 2**20, 1e9), pass_tokens=4)
    >>> with StreamedModel(checkpoint, plan) as model:
    ...     model.logits(torch.tensor([[1, 2, 3, 4]])).shape
    torch.Size([1, 4, 49152])
    """

    def __init__(
        self,
        folder: Path | str,
        plan: MemoryPlan,
        device: str | torch.device = "cpu",
        verify: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.plan = plan
        self.spec = ModelSpec.from_config(self.folder)
        self.device = find_device(device)
        require(
            self.spec == plan.spec,
            f"the plan is for {plan.spec.name}, whose geometry is not that of "
            f"{self.folder}: plan with the ModelSpec of this folder",
        )
        require(
            self.device.type == "cpu"
            or plan.streamed_layers == 0
            or plan.host_layers + plan.host_buffers > 0,
            f"the plan has no host memory, without which nothing reaches {device}: "
            "plan with host_bytes",
        )
        self.stall_s = 0.0  # time that computing has waited for reading
        self._verify = verify
        self._still = False  # whether steps compute without reading
        self._spans: list[Span] | None = None
        self._asks: Callable[[int], Weights] | None = None  # who lends, if others do
        self._product: Callable[..., Tensor] = linear
        self._let_go()

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for reads in flight, close the files and give the memory back."""
        if self._ring is not None:
            self._ring.settle()
        for owner in (self._host, self._store):
            if owner is not None:
                owner.close()
        self._let_go()

    def _let_go(self) -> None:
        """Hold nothing: views keep their buffers alive, so let go of both."""
        self._store: SafetensorsStore | None = None
        self._host: ThroughHost | None = None  # on the way to another device
        self._ring: Ring[StagingBuffer] | None = None
        self._slots: list[StagingBuffer] = []
        self._resident: dict[int, StagingBuffer] = {}
        self._views: dict[tuple[int, int], Weights] = {}
        self._model: Any = None

    def _open(self) -> None:
        plan = self.plan
        store = self._store = SafetensorsStore(self.folder, verify=self._verify)
        store.require_geometry(self.spec)
        require(
            self.device.type == "cpu" or not store.weights.needs_processor,
            f"{self.folder} holds {store.kind} weights, which a processor restores and "
            f"{self.device} cannot: stream them on device='cpu', or write them in "
            "bfloat16 or NF4",
        )
        config = read_config(self.folder)
        model = skeleton(config, store.weights)
        self._check(store, model)
        device = Device() if self.device.type == "cpu" else Cuda(self.device)
        tiers = {i: plan.tier(i) for i in range(plan.parts)}
        if plan.host_layers + plan.host_buffers:
            kept = [i for i, tier in tiers.items() if tier == "host"]
            sizes = plan.host_buffers, plan.staging_bytes
            self._host = ThroughHost(store, device, kept, *sizes)
        outer = StagingBuffer(store.nbytes(NON_LAYER), self.device)
        self._resident = {
            layer: StagingBuffer(store.nbytes(layer), self.device)
            for layer, tier in tiers.items()
            if tier == "device"
        }
        ring = [
            StagingBuffer(plan.staging_bytes, self.device) for _ in range(plan.ring)
        ]
        self._slots = [outer, *self._resident.values(), *ring]
        reads = [
            self._bring(store, device, layer, slot)
            for layer, slot in {NON_LAYER: outer, **self._resident}.items()
        ]
        for read in reads:
            read.wait()
        self._attach(store, model, outer)
        self._model = model
        streamed = [i for i, tier in tiers.items() if tier != "device"]
        self._ring = Ring(streamed, ring, self._fetch)

    def _bring(
        self, store: SafetensorsStore, device: Device, layer: int, slot: StagingBuffer
    ) -> PendingRead:
        """Start to read what will stay on the device."""
        if slot.memory is not None:
            return store.read_layer(layer, slot.memory)
        memory = allocate(store.nbytes(layer))
        read = store.read_layer(layer, memory)
        read.wait()
        source = torch.frombuffer(memory, dtype=torch.uint8)
        device.finish(device.copy(slot.tensor, source, device.mark()))
        return read

    def _check(self, store: SafetensorsStore, model: Any) -> None:
        """Refuse files that are not those of the plan and of the architecture."""
        plan, folder = self.plan, self.folder
        require(
            store.kind == plan.kind,
            f"{folder} holds {store.kind} weights but the plan is for {plan.kind}: "
            "make the plan with plan_checkpoint",
        )
        require_tensors(store, self.spec, model)
        needed = max(store.nbytes(i) for i in range(store.layers))
        if plan.head_parts:
            found = store.split_tables(self.spec, plan.staging_bytes)
            require(
                found == plan.head_parts,
                f"the head of {folder} has {found} parts, the plan {plan.head_parts}: "
                "make the plan with plan_checkpoint",
            )
        if (
            needed > plan.staging_bytes
            or store.nbytes(NON_LAYER) > plan.non_layer_bytes
        ):
            raise InvalidInput(
                f"a layer of {folder} needs a buffer of {format_size(needed)}, "
                f"the plan has {format_size(plan.staging_bytes)}: make the plan with "
                "plan_checkpoint, which knows the sizes in the files"
            )

    def _attach(
        self, store: SafetensorsStore, model: Any, outer: StagingBuffer
    ) -> None:
        """Give the model its outer weights, and layers that borrow theirs."""
        prefix, layers = stack(model)
        outside = {
            name: tensor
            for name, tensor in model.named_parameters()
            if not name.startswith(f"{prefix}.")
        }
        names = renamed(store, NON_LAYER, outside)
        tensors = views(store, NON_LAYER, outer.tensor)
        for name, view in tensors.items():
            if name in names:
                _assign(model, names[name], nn.Parameter(view, requires_grad=False))
        if self.plan.head_parts:
            split_tables(model, self.plan.head_parts, self._rows, self._lend_head)
        elif self.spec.tied:
            table = model.get_input_embeddings().weight
            require(
                TIED_HEAD not in tensors or _are_equal(tensors[TIED_HEAD], table),
                f"{TIED_HEAD} of {self.folder} is not its token table, although its "
                "config.json says that the two are tied: set tie_word_embeddings to "
                "what the model was trained with",
            )
            model.get_output_embeddings().weight = table
        for name, table in list(model.named_buffers()):
            if not name.startswith(f"{prefix}."):
                _assign(model, name, table.to(self.device))
        self._names = {
            number: renamed(store, number, dict(layer.state_dict()))
            for number, layer in enumerate(layers)
        }
        for part in range(self.plan.head_parts):
            self._names[self.spec.layers + part] = {HEAD: HEAD}
        multiply_by(model, self._multiply)
        self._layers = list(layers)
        for number, layer in enumerate(layers):
            layers[number] = _Lent(layer, number, self)
        model.generation_config = read_generation(self.folder, model.config)

    def _fetch(self, layer: int, slot: StagingBuffer) -> PendingRead:
        if self._host is not None:
            read = self._host.fetch(layer, slot)
        else:
            assert slot.memory is not None  # as __init__ has seen to
            read = self._opened().read_layer(layer, slot.memory)
        return PendingRead(partial(self._await, read, layer))

    def _await(self, read: PendingRead, layer: int) -> Seconds:
        """Wait for a read, and note how long."""
        start = time.perf_counter()
        span = read.wait()
        end = time.perf_counter()
        self.stall_s += end - start
        self._note("read", layer, *span)
        self._note("wait", layer, start, end)
        return span

    def _opened(self) -> SafetensorsStore:
        if self._store is None:
            raise InvalidInput(
                "the streamed model is closed: use it inside `with StreamedModel(…)`"
            )
        return self._store

    def _turning(self) -> Ring[StagingBuffer]:
        self._opened()
        assert self._ring is not None
        return self._ring

    @property
    def model(self) -> Any:
        """The transformers model whose layers are streamed."""
        self._opened()
        return self._model

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

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
        budget.charge(*(slot.tensor for slot in self._slots))
        budget.charge(*map(torch.from_numpy, self._opened().scratch.buffers))
        budget.charge(*self.model.buffers())

    def new_cache(self) -> DynamicCache:
        """An empty cache of keys and values."""
        return DynamicCache(config=self.config)

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
        require(
            tokens.ndim == 2 and tokens.numel() > 0,
            f"tokens have shape {tuple(tokens.shape)}: expected (batch, tokens)",
        )
        require(
            bool(((tokens >= 0) & (tokens < self.spec.vocab)).all()),
            f"tokens reach beyond the {self.spec.vocab} that {self.folder} knows: use "
            "its own tokenizer",
        )
        keep = tokens.shape[1] if keep is None else keep
        past = 0 if cache is None else cache.get_seq_length()
        self._admit(tokens.shape[0], tokens.shape[1], past, keep)
        options = {} if cache is None else {"cache": cache}
        return self._model(
            tokens, use_cache=cache is not None, logits_to_keep=keep, **options
        ).logits

    @torch.no_grad()
    def prefill(self, tokens: Tensor, cache: DynamicCache) -> Tensor:
        """Logits of the last position, (b, 1, vocab), of a prompt of any length.

        Passes of `plan.pass_tokens` tokens, in order.
        """
        *first, last = tokens.split(self.plan.pass_tokens, dim=1)
        for part in first:
            self.step(part, cache, keep=1)
        return self.step(last, cache, keep=1)

    def generate(self, input_ids: Tensor, **options: Any) -> Any:
        """As transformers' `generate`: sampling, beams, streamers, stopping criteria.

        A prompt longer than a pass of the plan goes in several. Raises InvalidInput,
        with nothing written, where prompt and answer may be longer than the context.
        """
        self._opened()
        require(
            self.plan.generating,
            "the plan covers single steps, not generate: make it with generating=True",
        )
        vocab = self.spec.vocab
        require(
            input_ids.ndim == 2
            and input_ids.numel() > 0
            and not input_ids.is_floating_point(),
            f"input_ids are {input_ids.dtype} of shape {tuple(input_ids.shape)}: "
            "expected numbers of tokens, (sequences, positions), one at least",
        )
        require(
            bool(((input_ids >= 0) & (input_ids < vocab)).all()),
            f"input_ids reach from {int(input_ids.min())} to {int(input_ids.max())}: "
            f"expected tokens from 0 to {vocab - 1}",
        )
        self._require_room(input_ids.shape[1], options)
        if input_ids.shape[1] > self.plan.pass_tokens:
            options = {"prefill_chunk_size": self.plan.pass_tokens} | options
        return self._model.generate(input_ids, **options)

    def _require_room(self, prompt_tokens: int, options: Mapping[str, Any]) -> None:
        """Refuse what may leave the plan when half of it is written."""
        configs = options.get("generation_config"), self._model.generation_config

        def wish(name: str) -> int | None:
            wishes = [options.get(name), *(getattr(c, name, None) for c in configs)]
            return next((found for found in wishes if found is not None), None)

        new, longest = wish("max_new_tokens"), wish("max_length")
        if new is not None or longest is None:
            longest = prompt_tokens + (_NEW_TOKENS if new is None else new)
        require(
            longest - 1 <= self.plan.context,  # the last token is not stored
            f"a prompt of {prompt_tokens} tokens and its answer may have {longest} but "
            f"the plan is for a context of {self.plan.context}: give fewer "
            "max_new_tokens, or make the plan for a longer context",
        )

    def drain(self) -> None:
        """The reads of one step through the same ring, without computing."""
        ring = self._turning()
        if not ring.at_start:
            ring.rewind()
        with self._alive():
            for layer in ring.layers:
                with ring.hold(layer):
                    continue

    @contextmanager
    def without_reading(self) -> Iterator[None]:
        """Steps in here compute with what the buffers happen to hold.

        The arithmetic of a step alone, as `drain` is its reading: for its seconds,
        never for its answers.
        """
        self._turning().settle()
        self._still = True
        try:
            yield
        finally:
            self._still = False

    @contextmanager
    def timeline(self) -> Iterator[list[Span]]:
        """A list that fills with what is read, computed and waited for meanwhile.

        On another device than the processor every layer is then waited for, so that
        its seconds are its own.
        """
        spans: list[Span] = []
        self._spans = spans
        try:
            yield spans
        finally:
            self._spans = None

    def _note(self, kind: Any, layer: int, start_s: float, end_s: float) -> None:
        if self._spans is not None:
            self._spans.append(Span(kind, layer, start_s, end_s))

    @contextmanager
    def _lend(
        self, layer: int, hidden: Tensor, cache: DynamicCache | None
    ) -> Iterator[Weights]:
        """The weights of `layer` while it computes."""
        if layer == 0:
            past = 0 if cache is None else cache.get_seq_length()
            self._admit(hidden.shape[0], hidden.shape[1], past)
        with self._hold(layer) as weights:
            yield weights

    @contextmanager
    def _lend_head(self, part: int) -> Iterator[Tensor]:
        """A part of a split output head while it computes."""
        with self._hold(self.spec.layers + part) as weights:
            yield weights[HEAD]

    def _rows(self, tokens: Tensor) -> Tensor:
        """Rows of the token table, (n, hidden), read for `tokens`, (n,)."""
        numbers = tokens.tolist()
        rows = torch.empty((len(numbers), self.spec.hidden), dtype=self.config.dtype)
        with self._alive():
            self._opened().read_rows(numbers, rows.view(torch.uint8).numpy().data)
        return rows.to(self.device)

    @contextmanager
    def borrowing(
        self, ask: Callable[[int], Weights], multiply: Callable[..., Tensor]
    ) -> Iterator[None]:
        """Steps in here ask for the weights of each layer instead of holding them.

        Who is asked holds them, once for all that compute with them (`holding`), and
        may have put them in their place (`placing`): then its answer has none. All
        products of a row or more with a matrix are made by `multiply`.
        """
        self._asks, self._product = ask, multiply
        try:
            yield
        finally:
            self._asks, self._product = None, linear

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._product(x, weight, bias)

    @contextmanager
    def placing(self, layer: int, weights: Weights) -> Iterator[Weights]:
        """The weights of a layer are its own in here, whoever computes with it.

        Yields what is still to be lent: nothing, or a part of the head.
        """
        if layer >= self.spec.layers:
            yield weights
            return
        module = self._layers[layer]
        before = {name: _assign(module, name, weights[name]) for name in weights}
        try:
            yield {}
        finally:
            for name, tensor in before.items():
                _assign(module, name, tensor)

    def _hold(self, layer: int) -> AbstractContextManager[Weights]:
        if self._asks is not None:
            return nullcontext(self._asks(layer))
        return self.holding(layer)

    @contextmanager
    def holding(self, layer: int) -> Iterator[Weights]:
        """The weights of a layer, or of a part of the head, in its turn.

        A buffer is refilled as soon as its layer is done. An interrupted pass leaves
        the ring between two layers; the next one starts it anew.
        """
        ring = self._turning()
        if layer == 0 and not ring.at_start and not self._still:
            ring.rewind()
        with self._alive():
            if layer in self._resident:
                held = nullcontext(self._resident[layer])
            elif self._still:
                held = nullcontext(ring.buffers[layer % self.plan.ring])
            else:
                held = ring.hold(layer)
            with held as slot, self._computing(layer):
                yield self._weights(layer, slot)

    @contextmanager
    def _computing(self, layer: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._spans is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._note("compute", layer, start, time.perf_counter())

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Close the model for good when a file turns out to be damaged."""
        try:
            yield
        except StoreDamaged:
            self.close()
            raise

    def _weights(self, layer: int, slot: StagingBuffer) -> Weights:
        key = layer, id(slot)
        if key not in self._views:
            names = self._names[layer]
            self._views[key] = {
                names[name]: view
                for name, view in views(self._opened(), layer, slot.tensor).items()
                if name in names
            }
        return self._views[key]

    def _admit(self, batch: int, new: int, past: int, keep: int = 1) -> None:
        plan = self.plan
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


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two matrices are the same, without room for a comparison of all."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and all(
        map(torch.equal, one.split(_ROWS), other.split(_ROWS))
    )


def _assign(model: nn.Module, name: str, tensor: Tensor | None) -> Tensor | None:
    """Put a parameter or a table where the dotted `name` is; returns what was there."""
    parent, _, attribute = name.rpartition(".")
    module = model.get_submodule(parent)
    table: Any = module._buffers
    table = table if attribute in table else module._parameters
    before, table[attribute] = table[attribute], tensor
    return before


def plan_checkpoint(
    folder: Path | str,
    machine: Machine,
    batch: int = 1,
    context: int | None = None,
    ring: int | None = 3,
    **step: Unpack[Step],
) -> MemoryPlan:
    """As `plan`, for a checkpoint: with the sizes of the reads that its files need.

    Where the token table and the output head do not fit, they stay on the disk, as
    `MemoryPlan` says; with `rollback` they do not.
    Raises InvalidInput for another architecture before a file of weights is opened.

    >>> from thesis_lib.memory import Machine, plan_checkpoint
    >>> from thesis_lib.memory.model import smollm2
    >>> made = plan_checkpoint(smollm2.checkpoint(), Machine(96 * 2**20, 1e9))
    >>> made.resident_layers, made.disk_layers
    (1, 29)
    """
    spec = ModelSpec.from_config(folder)
    with SafetensorsStore(folder) as store:
        weights = store.weights
        read_bytes = sum(map(store.read_bytes, range(store.layers))) / store.layers
        sizes = (
            math.ceil(read_bytes),
            max(map(store.nbytes, range(store.layers))),
            store.nbytes(NON_LAYER),
        )
        store.require_geometry(spec)
        parts = store.split_tables(spec, sizes[1])
        heads = [store.read_bytes(store.layers + part) for part in range(parts)]
        small = *sizes[:2], store.nbytes(NON_LAYER)
    shape, config = read_step(spec, batch, context, step), read_config(folder)

    def needed(shape: Shape) -> Footprint:
        return footprint(dry_run(config, shape, weights), weights, *sizes)

    def split(shape: Shape) -> Footprint:
        peak = dry_run(config, shape, weights, parts)
        return footprint(peak, weights, *small, parts, math.ceil(sum(heads) / parts))

    splits = parts > 0 and shape.rollback == 0
    return place(spec, machine, ring, shape, needed, split if splits else None)


def open_streamed(  # nine: the words of `from_pretrained`, in the place of it
    checkpoint: Path | str,
    device_bytes: int | str,
    host_bytes: int | str = 0,
    batch: int = 1,
    context: int = 512,
    ring: int | None = None,
    pass_tokens: int = 64,
    device: str | torch.device = "cpu",
    verify: bool = False,
) -> StreamedModel:
    """A checkpoint for transformers' `generate`, in `device_bytes`, or a refusal.

    To be used in a `with` statement, in the place of `from_pretrained`. A checkpoint
    is a folder, a GGUF file or "smollm2", the packaged model. Memory is in bytes or in
    words, such as "8GiB". `batch` counts sequences, beams included;
    `context` positions, prompt and answer together; a prompt longer than `pass_tokens`
    goes in several passes. `ring` is as in `plan`. What was chosen and why, the `plan`
    of the model says in a line. Raises PlanInfeasible before anything is allocated.

    >>> import torch
    >>> from thesis_lib.memory import open_streamed
    >>> prompt = torch.tensor([[504, 3575, 282]])
    >>> with open_streamed("smollm2", "96MiB", context=8) as model:
    ...     print(model.plan)
    ...     model.generate(prompt, max_new_tokens=3, do_sample=False)
    smollm2: 2 of 30 layers stay, as many as fit beside 3 staging buffers; 28 from the
    disk for each step; at most 90 MiB of 96 MiB
    tensor([[ 504, 3575,  282,  260, 1797, 1918]])
    """
    on_device, on_host = (
        parse_size(size) if isinstance(size, str) else size
        for size in (device_bytes, host_bytes)
    )
    folder = checkpoint_folder(str(checkpoint))
    made = plan_checkpoint(
        folder,
        Machine(on_device, ASSUMED_DISK_BYTES_PER_S, host_bytes=on_host),
        batch=batch,
        context=context,
        ring=ring,
        pass_tokens=min(pass_tokens, context),
        logit_tokens=1,
        generating=True,
    )
    return StreamedModel(folder, made, device, verify)


def disk_bytes_per_s(folder: Path | str, seconds: float = 1.0) -> float:
    """The rate at which layers of a checkpoint reach memory, through three buffers.

    Reads whole layers, around the stack, until `seconds` have passed.
    """
    with SafetensorsStore(folder) as store:
        size = max(store.nbytes(layer) for layer in range(store.layers))
        buffers = [allocate(size) for _ in range(3)]
        for buffer in buffers:  # first touch of the memory, not of the disk
            store.read_layer(0, buffer).wait()
        before, start = store.bytes_read, time.perf_counter()
        ring = Ring(range(store.layers), buffers, store.read_layer)
        for layer in cycle(ring.layers):
            if time.perf_counter() - start >= seconds:
                break
            with ring.hold(layer):
                continue
        ring.settle()
        return (store.bytes_read - before) / (time.perf_counter() - start)


@contextmanager
def enforced(limit_bytes: int, device: str | torch.device) -> Iterator[DeviceBudget]:
    """The meter that enforces a budget, and refuses in a sentence what exceeds it.

    Raises InvalidInput in the place of torch.OutOfMemoryError, also the device's own.
    """
    try:
        with DeviceBudget(limit_bytes, device) as budget:
            yield budget
    except torch.OutOfMemoryError as error:
        raise InvalidInput(str(error).splitlines()[0]) from error


def checkpoint_folder(name: str) -> Path:
    """The folder of a checkpoint, of the packaged model for `smollm2`, or of a file.

    The last is a GGUF file, which becomes one in the cache, its blocks kept. Raises
    InvalidInput for a folder without a configuration, and for a model that is not
    streamed, whatever its weights are.
    """
    if name == "smollm2":
        return smollm2.checkpoint()
    if name.endswith(".gguf"):
        return cached_checkpoint(Path(name))
    if (Path(name) / "config.json").is_file():
        ModelSpec.from_config(name)
        return Path(name)
    raise InvalidInput(
        f"{name!r} is not a checkpoint: expected a folder with a config.json, a GGUF "
        f"file or 'smollm2' (a plan also knows {', '.join(geometries())})"
    )
