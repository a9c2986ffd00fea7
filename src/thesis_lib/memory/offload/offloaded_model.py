"""A model larger than the device: its layers stream through a fixed ring of buffers.

Composition, not hooks: each layer in the stack of a transformers model enters the
context `layer` of its owner for the time of a call, in which its parameters are views
of the staging buffer that holds the layer. Everything else is transformers' own forward
and its own `generate`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
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
from thesis_lib.memory.offload.source import StoredLayers, Weights
from thesis_lib.memory.offload.store import HEAD, SafetensorsStore, StoreDamaged
from thesis_lib.memory.offload.transfer import Ring, find_device

Layers = Callable[[int], AbstractContextManager[Weights]]

_NEW_TOKENS = 20  # that transformers generates where nothing says how many
_ROWS = 64  # compared at a time
_CLOSED = "the streamed model is closed: use it inside `with StreamedModel(…)`"


class _StreamedLayer(nn.Module):
    """A decoder layer whose weights are in it for the time of a call."""

    def __init__(self, layer: nn.Module, number: int, owner: "StreamedModel") -> None:
        super().__init__()
        self.layer, self.number = layer, number
        self._owner = (owner,)  # not a module: hidden from parameters() and the like

    def forward(self, hidden: Tensor, *args: Any, **options: Any) -> Any:
        (owner,) = self._owner
        if self.number == 0:
            cache = options.get("cache")
            past = 0 if cache is None else cache.get_seq_length()
            owner._admit(hidden.shape[0], hidden.shape[1], past)
        with owner._layers(self.number):
            return self.layer(hidden, *args, **options)


class StreamedModel:
    """Run a checkpoint inside a plan's device memory, as a context manager.

    Entering allocates the buffers, reads the resident layers and starts to fill the
    ring; leaving closes the files. `model` is the transformers model. Logits are
    bitwise those of the resident model for the same dtype, shapes and chunking.

    Args:
        folder: Path of the checkpoint.
        plan: A plan of `plan_checkpoint`.
        device: "cpu" or "cuda".
        verify: Whether to compare every file with its hash first.

    Raises:
        InvalidInput: If the architecture is not supported, the plan is of another
            checkpoint, or a step exceeds the plan.
        StoreDamaged: If a file has changed.

    Example:
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
        self._verify = verify
        self._source: StoredLayers | None = None
        self._model: Any = None
        self._modules: list[nn.Module] = []  # the decoder layers
        self._layers: Layers = self.layer
        self._multiply: Callable[..., Tensor] = linear

    def __enter__(self) -> Self:
        store = SafetensorsStore(self.folder, verify=self._verify)
        try:
            store.require_geometry(self.spec)
            require(
                self.device.type == "cpu" or not store.weights.needs_processor,
                f"{self.folder} holds {store.kind} weights, which a processor restores "
                f"and {self.device} cannot: stream them on device='cpu', or write them "
                "in bfloat16 or NF4",
            )
            model = skeleton(read_config(self.folder), store.weights)
            self._check(store, model)
            self._modules = list(stack(model)[1])
            self._source = StoredLayers(
                store, self.plan, self.device, self._names(store)
            )
            self._fill(model)
        except BaseException:
            store.close()
            self.close()
            raise
        self._model = model
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for reads in flight, close the files and give the memory back."""
        if self._source is not None:
            self._source.close()
        self._source = self._model = None
        self._modules = []

    def _names(self, store: SafetensorsStore) -> dict[int, dict[str, str]]:
        """The names of the parameters of each layer by those in the files."""
        names = {
            number: renamed(store, number, dict(layer.state_dict()))
            for number, layer in enumerate(self._modules)
        }
        heads = range(self.spec.layers, self.plan.parts)
        return names | {number: {HEAD: HEAD} for number in heads}

    def _check(self, store: SafetensorsStore, model: Any) -> None:
        """Reject files that are not those of the plan and of the architecture."""
        plan, folder = self.plan, self.folder
        require(
            store.kind == plan.kind,
            f"{folder} holds {store.kind} weights but the plan is for {plan.kind}: "
            "make the plan with plan_checkpoint",
        )
        require_tensors(store, self.spec, model)
        needed = max(store.nbytes(i) for i in range(store.layers))
        if plan.head_parts:
            tables = store.split_tables(self.spec, plan.staging_bytes)
            require(
                tables == plan.head_parts,
                f"the head of {folder} has {tables} parts, the plan {plan.head_parts}: "
                "make the plan with plan_checkpoint",
            )
        outer = store.nbytes(NON_LAYER)
        require(
            needed <= plan.staging_bytes and outer <= plan.non_layer_bytes,
            f"a layer of {folder} needs a buffer of {format_size(needed)}, the plan "
            f"has {format_size(plan.staging_bytes)}: make the plan with "
            "plan_checkpoint, which knows the sizes in the files",
        )

    def _fill(self, model: Any) -> None:
        """Give the model its outer weights, and layers whose weights come and go."""
        prefix, layers = stack(model)
        outside = {
            name: tensor
            for name, tensor in model.named_parameters()
            if not name.startswith(f"{prefix}.")
        }
        source = self.source
        names = renamed(source.store, NON_LAYER, outside)
        for name, view in source.outer.items():
            if name in names:
                _assign(model, names[name], nn.Parameter(view, requires_grad=False))
        if self.plan.head_parts:
            split_tables(model, self.plan.head_parts, self._rows, self._head)
        elif self.spec.tied:
            table = model.get_input_embeddings().weight
            head = source.outer.get(TIED_HEAD)
            require(
                head is None or _are_equal(head, table),
                f"{TIED_HEAD} of {self.folder} is not its token table, although its "
                "config.json says that the two are tied: set tie_word_embeddings to "
                "what the model was trained with",
            )
            model.get_output_embeddings().weight = table
        for name, table in list(model.named_buffers()):
            if not name.startswith(f"{prefix}."):
                _assign(model, name, table.to(self.device))
        multiply_by(model, lambda *operands: self._multiply(*operands))
        for number, layer in enumerate(layers):
            layers[number] = _StreamedLayer(layer, number, self)
        model.generation_config = read_generation(self.folder, model.config)

    @property
    def source(self) -> StoredLayers:
        """Return the source of the weights. Raises InvalidInput after `close`."""
        if self._source is None:
            raise InvalidInput(_CLOSED)
        return self._source

    @property
    def model(self) -> Any:
        """The transformers model whose layers are streamed."""
        if self._model is None:
            raise InvalidInput(_CLOSED)
        return self._model

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

    @property
    def bytes_read(self) -> int:
        """Bytes asked of the disk so far."""
        return self.source.store.bytes_read

    @property
    def stall_s(self) -> float:
        """Seconds that computing has waited for reading."""
        return self.source.stall_s

    @property
    def mode(self) -> str:
        """Return how the disk is read: "direct" or "buffered"."""
        return self.source.store.mode

    def charge(self, budget: DeviceBudget) -> None:
        """Count the buffers, which were allocated before the meter could see them."""
        self.source.charge(budget)
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
        model = self.model
        self._require_tokens(tokens)
        keep = tokens.shape[1] if keep is None else keep
        past = 0 if cache is None else cache.get_seq_length()
        self._admit(tokens.shape[0], tokens.shape[1], past, keep)
        options = {} if cache is None else {"cache": cache}
        return model(
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
        """Call transformers' `generate`: sampling, beams, streamers, stopping criteria.

        A prompt longer than a pass of the plan goes in several. Raises InvalidInput,
        with nothing written, where prompt and answer may be longer than the context.
        """
        model = self.model
        require(
            self.plan.generating,
            "the plan covers single steps, not generate: make it with generating=True",
        )
        self._require_tokens(input_ids)
        self._require_room(input_ids.shape[1], options)
        if input_ids.shape[1] > self.plan.pass_tokens:
            options = {"prefill_chunk_size": self.plan.pass_tokens} | options
        return model.generate(input_ids, **options)

    def _require_tokens(self, tokens: Tensor) -> None:
        last = self.spec.vocab - 1
        require(
            tokens.ndim == 2 and tokens.numel() > 0 and not tokens.is_floating_point(),
            f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}: expected "
            "numbers of tokens, (sequences, positions), one at least",
        )
        least, most = int(tokens.min()), int(tokens.max())
        require(
            least >= 0 and most <= last,
            f"tokens reach from {least} to {most}: expected tokens from 0 to {last}, "
            f"of the tokenizer of {self.folder}",
        )

    def _require_room(self, prompt_tokens: int, options: Mapping[str, Any]) -> None:
        """Reject what may leave the plan when half of it is written."""
        configs = options.get("generation_config"), self._model.generation_config

        def wish(name: str) -> int | None:
            wishes = [options.get(name), *(getattr(c, name, None) for c in configs)]
            return next(
                (candidate for candidate in wishes if candidate is not None), None
            )

        new, longest = wish("max_new_tokens"), wish("max_length")
        if new is not None or longest is None:
            longest = prompt_tokens + (_NEW_TOKENS if new is None else new)
        require(
            longest - 1 <= self.plan.context,  # the last token is not stored
            f"a prompt of {prompt_tokens} tokens and its answer may have {longest} but "
            f"the plan is for a context of {self.plan.context}: give fewer "
            "max_new_tokens, or make the plan for a longer context",
        )

    @contextmanager
    def layer(self, number: int) -> Iterator[Weights]:
        """Hold the weights of a layer, or of a part of a split head, in its turn.

        Those of a decoder layer are in its module meanwhile, for all that compute with
        it. Layers come in order, from the first of a pass to the last. Raises
        StoreDamaged, and closes the model, for a file that is not what it was.
        """
        with self._closed_by_damage(), self.source.layer(number) as weights:
            if number >= self.spec.layers:
                yield weights
                return
            module = self._modules[number]
            before = {name: _assign(module, name, weights[name]) for name in weights}
            try:
                yield weights
            finally:
                for name, tensor in before.items():
                    _assign(module, name, tensor)

    @contextmanager
    def using(self, layers: Layers, multiply: Callable[..., Tensor]) -> Iterator[None]:
        """Let steps take layers from `layers` instead of `layer`.

        `multiply` computes all products of a row or more with a matrix; it is called as
        torch's `linear`.
        """
        self._layers, self._multiply = layers, multiply
        try:
            yield
        finally:
            self._layers, self._multiply = self.layer, linear

    @contextmanager
    def _head(self, part: int) -> Iterator[Tensor]:
        with self._layers(self.spec.layers + part) as weights:
            yield weights[HEAD]

    def _rows(self, tokens: Tensor) -> Tensor:
        """Rows of the token table, (n, hidden), read for `tokens`, (n,)."""
        with self._closed_by_damage():
            return self.source.rows(tokens.tolist(), self.config.dtype)

    @contextmanager
    def _closed_by_damage(self) -> Iterator[None]:
        """Close the model for good when a file turns out to be damaged."""
        try:
            yield
        except StoreDamaged:
            self.close()
            raise

    def drain(self) -> None:
        """Do the reads of one step through the same ring, without computing."""
        with self._closed_by_damage():
            self.source.drain()

    def without_reading(self) -> AbstractContextManager[None]:
        """Let steps compute with what the buffers happen to hold.

        The arithmetic of a step alone, as `drain` is its reading: for its seconds,
        never for its answers.
        """
        return self.source.without_reading()

    def timeline(self) -> AbstractContextManager[list[Span]]:
        """A list that fills with what is read, computed and waited for meanwhile.

        On another device than the processor every layer is then waited for, so that
        its seconds are its own.
        """
        return self.source.timeline()

    def _admit(self, batch: int, new: int, past: int, keep: int = 1) -> None:
        plan = self.plan
        require(
            batch <= plan.batch
            and new <= plan.pass_tokens
            and past + new <= plan.context
            and 0 < keep <= min(new, plan.logit_tokens),
            f"a step of {batch} x {new} tokens after {past}, keeping the logits of "
            f"{keep}, is outside the plan: batch {plan.batch}, {plan.pass_tokens} "
            f"tokens a pass, context {plan.context}, logits of {plan.logit_tokens}; "
            "make a larger plan",
        )


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Compare two matrices block by block, in little memory."""
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
    """Plan as `plan` does, with the read sizes of a checkpoint's files.

    If the token table and the output head do not fit, they stay on the disk (see
    `MemoryPlan`), except with `rollback`.

    Raises:
        InvalidInput: If the architecture is not supported, before weights are opened.

    Example:
        >>> from thesis_lib.memory import Machine, plan_checkpoint
        >>> from thesis_lib.memory.model import smollm2
        >>> chosen = plan_checkpoint(smollm2.checkpoint(), Machine(96 * 2**20, 1e9))
        >>> chosen.resident_layers, chosen.disk_layers
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
    """Open a checkpoint for transformers' `generate` within `device_bytes`.

    Use it in a `with` statement instead of `from_pretrained`. The `plan` of the model
    prints in one line what stays and why.

    Args:
        checkpoint: A folder, a GGUF file or "smollm2", the packaged model.
        device_bytes: Device memory in bytes or as text, such as "8GiB".
        host_bytes: Host memory that may hold layers, likewise.
        batch: Sequences, beams included.
        context: Positions of a sequence, prompt and answer together.
        ring: Staging buffers; None for as many as fit, at most three.
        pass_tokens: Tokens in a pass; a longer prompt takes several passes.
        device: "cpu" or "cuda".
        verify: Whether to compare every file with its hash first.

    Raises:
        PlanInfeasible: If the model does not fit, before anything is allocated.

    Example:
        >>> import torch
        >>> from thesis_lib.memory import open_streamed
        >>> prompt = torch.tensor([[504, 3575, 282]])
        >>> with open_streamed("smollm2", "96MiB", context=8) as model:
        ...     print(model.plan)
        ...     model.generate(prompt, max_new_tokens=3, do_sample=False)
        smollm2: 2 of 30 layers stay, as many as fit beside 3 staging buffers; 28 from
        the disk for each step; at most 90 MiB of 96 MiB
        tensor([[ 504, 3575,  282,  260, 1797, 1918]])
    """
    on_device, on_host = (
        parse_size(size) if isinstance(size, str) else size
        for size in (device_bytes, host_bytes)
    )
    folder = checkpoint_folder(str(checkpoint))
    streamed_plan = plan_checkpoint(
        folder,
        Machine(on_device, ASSUMED_DISK_BYTES_PER_S, host_bytes=on_host),
        batch=batch,
        context=context,
        ring=ring,
        pass_tokens=min(pass_tokens, context),
        logit_tokens=1,
        generating=True,
    )
    return StreamedModel(folder, streamed_plan, device, verify)


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
    """Enforce a memory budget, and raise an error if it is exceeded.

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
