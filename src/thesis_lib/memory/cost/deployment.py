"""Methods on rented and owned machines: their plans, their times, their prices."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from thesis_lib.common.errors import choice, require
from thesis_lib.memory.cost.cards import Card, raw_bytes_per_s
from thesis_lib.memory.cost.cost import Amount, Mix, Owned, Timing
from thesis_lib.memory.cost.prices import Quantity, read_quantities
from thesis_lib.memory.model.spec import WEIGHTS, ModelSpec
from thesis_lib.memory.offload.plan import MemoryPlan, least_device_bytes, plan

CARDS = {  # by the item that prices it, whatever the terms of the rent
    "rtx-3090": "GeForce RTX 3090",
    "rtx-4090": "GeForce RTX 4090",
    "rtx-a6000": "RTX A6000",
    "h100": "H100 PCIe",
}
TERMS = ("-spot", "-reserved")
RESERVED = TERMS[1]  # due for every hour of the month
OWNED_ITEM, OWNED_CARD = "rtx-3090", "rtx-3090-used"  # as rented and as bought
MIX = Mix(512, 128)  # where a question does not say
# Parts of an owned machine: what the table prices, by the name of the input.
PARTS = {
    "card_usd": OWNED_CARD,
    "host_usd": "host",
    "memory_usd_per_gb": "memory",
    "storage_usd_per_gb": "storage",
    "usd_per_kwh": "electricity",
}
STORAGE_GB = 1000  # of an owned machine
_SYSTEM_GB, _MODULE_GB = 16, 32  # memory beside the weights; memory is sold by modules
_RING = 3  # staging buffers


@dataclass(frozen=True, slots=True)
class Method:
    """A way to hold the weights, and what a pass over them brings."""

    name: str
    kind: str = "dense"  # of the weights: dense, nf4, int8 or lossless
    coded: float = 1.0  # bytes that cross the link over bytes of the streamed layers
    tokens_per_step: float = 1.0  # of one sequence
    batch: int = 1

    def __post_init__(self) -> None:
        choice("kind", self.kind, tuple(WEIGHTS.values()))
        require(
            0 < self.coded <= 1, f"coded={self.coded:g} must lie in (0, 1]: a share"
        )


@dataclass(frozen=True, slots=True)
class Configuration:
    """A step and the machine that runs it."""

    name: str
    item: str  # of the price table
    count: int  # machines of that item
    read_bytes: float  # that cross the link in a step
    link_bytes_per_s: float
    compute_s: float  # of a step
    first_compute_s: float  # of the pass over the prompts
    batch: int
    tokens_per_step: float
    streamed_layers: int = 0

    @property
    def timing(self) -> Timing:
        """Over its link: reading and computing overlap, the slower one remains."""
        return self.timing_over(self.link_bytes_per_s)

    def timing_over(self, link_bytes_per_s: Amount) -> Timing:
        """The same over another link, or over links (n,)."""
        reading_s = self.read_bytes / link_bytes_per_s
        return Timing(
            np.maximum(reading_s, self.first_compute_s),
            np.maximum(reading_s, self.compute_s),
            self.batch,
            self.tokens_per_step,
        )

    @property
    def memory_gb(self) -> int:
        """Host memory that holds what is streamed, and a system, in whole modules."""
        return _MODULE_GB * math.ceil((self.read_bytes / 1e9 + _SYSTEM_GB) / _MODULE_GB)


def base_item(item: str) -> str:
    """The item without the terms of its rent: rtx-a6000 for rtx-a6000-spot."""
    for terms in TERMS:
        item = item.removesuffix(terms)
    return item


def predict(
    spec: ModelSpec,
    method: Method,
    mix: Mix,
    item: str,
    card: Card,
    count: int = 1,
    link_bytes_per_s: float | None = None,
) -> Configuration:
    """Return the configuration of `spec` on `count` cards, each step at its bound.

    Several cards share the weights and the work without loss: a bound as well. Products
    read weights in 16 bits, in whatever format they came. The link is `assumed_link`
    unless given. Raises PlanInfeasible where the batch does not fit.
    """
    streamed_plan = make_plan(spec, method, mix, card, count, link_bytes_per_s)
    return Configuration(
        name=method.name,
        item=item,
        count=count,
        read_bytes=streamed_plan.decoded_bytes_per_step,
        link_bytes_per_s=streamed_plan.machine.link_bytes_per_s,
        compute_s=streamed_plan.compute_s(),
        first_compute_s=streamed_plan.compute_s(mix.prompt_tokens),
        batch=method.batch,
        tokens_per_step=method.tokens_per_step,
        streamed_layers=streamed_plan.streamed_layers,
    )


def assumed_link(card: Card) -> float:
    """Bytes a second that reach a card: the table's, where it has 16 lanes of PCIe 4.

    More or less in proportion, where its lanes carry more or less than those.
    """
    lanes = card.raw_bytes_per_s / raw_bytes_per_s(4, 16)
    return 1e9 * read_quantities()["link_gb_per_s"].value * lanes


def make_plan(
    spec: ModelSpec,
    method: Method,
    mix: Mix,
    card: Card,
    count: int = 1,
    link_bytes_per_s: float | None = None,
) -> MemoryPlan:
    """The plan of a method for whole requests; host memory holds what does not fit."""
    machine = card.machine(count, link_bytes_per_s or assumed_link(card))
    streamed_plan = plan(spec, machine, ring=_RING, **_request(method, mix))
    read_bytes = round(streamed_plan.layer_read_bytes * method.coded)
    return replace(streamed_plan, layer_read_bytes=read_bytes)


def _request(method: Method, mix: Mix) -> dict[str, Any]:
    """Return the arguments of `plan` for whole requests."""
    return {
        "batch": method.batch,
        "context": mix.prompt_tokens + mix.generated_tokens,
        "pass_tokens": mix.prompt_tokens,
        "logit_tokens": 1,
        "kind": method.kind,
    }


def most_sequences(
    spec: ModelSpec,
    method: Method,
    mix: Mix,
    card: Card,
    most: int,
    count: int = 1,
    resident: bool = False,
) -> int:
    """The largest batch, of `most` at most, that `count` cards hold with its requests.

    With `resident` they hold all layers beside it, else a ring of buffers. 0 where not
    even one sequence fits.
    """
    buffers = spec.layers if resident else _RING

    def needed(batch: int) -> int:
        request = _request(replace(method, batch=batch), mix)
        return least_device_bytes(spec, ring=buffers, **request)

    return bisect_right(range(1, most + 1), count * card.memory_bytes, key=needed)


def workstation(
    prices: Mapping[str, Quantity],
    quantities: Mapping[str, Quantity],
    memory_gb: float,
) -> Owned:
    """A used card in its host with so much memory, written off as the tables say."""
    parts = {name: prices[item] for name, item in PARTS.items()} | dict(quantities)
    return owned_machine({name: each.value for name, each in parts.items()}, memory_gb)


def owned_machine(at: Mapping[str, Any], memory_gb: float) -> Owned:
    """The machine that the inputs `at` describe: numbers or arrays (n,)."""
    memory_usd = memory_gb * at["memory_usd_per_gb"]
    storage_usd = STORAGE_GB * at["storage_usd_per_gb"]
    return Owned(
        capex_usd=at["card_usd"] + at["host_usd"] + (memory_usd + storage_usd),
        **{name: at[name] for name in ("months", "watts", "usd_per_kwh", "pue")},
    )


def about(tokens: float) -> str:
    """A number of tokens in words, to two digits: prices are known no better."""
    near = float(f"{tokens:.2g}")
    return f"{near:,.0f}" if near < 1e6 else f"{near / 1e6:,.10g} million"


def volume(tokens: float) -> str:
    """Describe the break-even in tokens a month."""
    if math.isinf(tokens):
        return "at no volume"
    return f"from {about(tokens)} tokens a month" if tokens else "from the first token"
