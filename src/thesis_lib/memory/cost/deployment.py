"""Methods on rented and owned machines: their times, their costs, what those owe to."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.common.answers import remembered
from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import read_record
from thesis_lib.common.stats import F64, Interval, median_interval
from thesis_lib.memory.cost.cost import (
    Amount,
    Bill,
    Mix,
    Owned,
    Timing,
    break_even_tokens,
    reserved_bill,
    usd_per_million_tokens,
)
from thesis_lib.memory.cost.prices import Quantity, read_prices, read_quantities
from thesis_lib.memory.cost.published import Card, raw_bytes_per_s, read_cards
from thesis_lib.memory.model.spec import WEIGHTS, ModelSpec, geometry
from thesis_lib.memory.offload.plan import MemoryPlan, least_device_bytes, plan

Evaluate = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """The result with one input at its low and its high, all others at their value."""

    name: str
    range: Quantity
    at_low: float
    at_high: float

    @property
    def swing(self) -> float:
        """How far the result moves over the range of this input."""
        return abs(self.at_high - self.at_low)


def values(ranges: Mapping[str, Quantity]) -> dict[str, float]:
    """Each input as it is believed to be."""
    return {name: each.value for name, each in ranges.items()}


def tornado(evaluate: Evaluate, ranges: Mapping[str, Quantity]) -> list[Bar]:
    """A bar for each input, the one that moves the result furthest first."""
    base = values(ranges)
    bars = [
        Bar(
            name,
            each,
            float(evaluate(base | {name: each.low})),
            float(evaluate(base | {name: each.high})),
        )
        for name, each in ranges.items()
    ]
    return sorted(bars, key=lambda bar: bar.swing, reverse=True)


def draw(
    ranges: Mapping[str, Quantity], draws: int = 10_000, seed: int = 0
) -> dict[str, F64]:
    """Independent random inputs, (draws,) each, for a result that takes arrays.

    The logarithm of an input has a triangular density over its range with the mode at
    its value: prices err by factors. An input without a range is a constant. Each
    input has a stream of its own, so that leaving one out does not move the others.
    """
    require(draws > 0, f"draws={draws} must be positive")
    return {
        name: _draw(each, draws, [seed, *name.encode()])
        for name, each in ranges.items()
    }


def _draw(each: Quantity, draws: int, seed: list[int]) -> F64:
    if each.low == each.high:
        return np.full(draws, each.value)
    low, mode, high = np.log([each.low, each.value, each.high])
    return np.exp(np.random.default_rng(seed).triangular(low, mode, high, draws))


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
LABELS = {  # of the inputs, for readers
    "card_usd": "used card (USD)",
    "host_usd": "host (USD)",
    "memory_usd_per_gb": "memory (USD/GB)",
    "storage_usd_per_gb": "storage (USD/GB)",
    "usd_per_kwh": "electricity (USD/kWh)",
    "usd_per_hour": "rent (USD/h)",
    "months": "writing off (months)",
    "watts": "power (W)",
    "pue": "power overhead (times)",
    "utilisation": "utilisation (share)",
    "link_gb_per_s": "link (GB/s)",
}
STORAGE_GB = 1000  # of an owned machine
_SYSTEM_GB, _MODULE_GB = 16, 32  # memory beside the weights; memory is sold by modules
_RING = 3  # staging buffers
_PREDICTED = "predicted"
_COLUMNS = [
    "basis", "machine", "batch", "first_token_s", "token_s", "tokens_per_s",
    "usd_per_hour", "usd_per_million", "low", "high",
]  # fmt: skip


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
    """What a step reads and computes, and the machine that is paid for it."""

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
    """What the plan of `spec` on `count` cards promises, each step at its bound.

    Several cards share the weights and the work without loss: a bound as well. Products
    read weights in 16 bits, in whatever format they came. The link is `assumed_link`
    unless given. Raises PlanInfeasible where the batch does not fit.
    """
    made = make_plan(spec, method, mix, card, count, link_bytes_per_s)
    return Configuration(
        name=method.name,
        item=item,
        count=count,
        read_bytes=made.decoded_bytes_per_step,
        link_bytes_per_s=made.machine.link_bytes_per_s,
        compute_s=made.compute_s(),
        first_compute_s=made.compute_s(mix.prompt_tokens),
        batch=method.batch,
        tokens_per_step=method.tokens_per_step,
        streamed_layers=made.streamed_layers,
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
    made = plan(spec, machine, ring=_RING, **_request(method, mix))
    read_bytes = round(made.layer_read_bytes * method.coded)
    return replace(made, layer_read_bytes=read_bytes)


def _request(method: Method, mix: Mix) -> dict[str, Any]:
    """What `plan` has to know of whole requests."""
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


def recorded_rates(
    headline: Mapping[str, Any] | None, streaming: Mapping[str, Any] | None
) -> dict[str, Interval]:
    """Tokens a second of decoding, with their interval, of the runs on record.

    Keys name the record and the run in it, such as headline:bf16-8192MiB. The runs of
    the claimed size have few steps, and a range.
    """
    seconds: dict[str, tuple[float, float, float]] = {}
    for name, part in (headline["parts"] if headline else {}).items():
        steps = median_interval(part["trial"]["step_s"])
        seconds[f"headline:{name}"] = steps.value, steps.low, steps.high
    for name, found in (streaming["summary"]["systems"] if streaming else {}).items():
        if "interval_s" in found:
            seconds[f"streaming:{name}"] = found["median_s"], *found["interval_s"]
    return {name: Interval(*ends).rate(1.0) for name, ends in seconds.items()}


def table(
    configurations: Iterable[Configuration],
    prices: Mapping[str, Quantity],
    mix: Mix,
    utilisation: float = 1.0,
    measured: Mapping[str, tuple[str, Interval]] | None = None,
) -> pd.DataFrame:
    """A row a configuration: its times, its rate and what a million tokens cost.

    `measured` holds, by name, the item that prices the machine and the rate of
    decoding: such a row has an interval, and no time to the first token.
    """

    def priced(basis: str, item: str, count: int, rate: float) -> dict[str, Any]:
        hourly = count * prices[item].value
        return {
            "basis": basis,
            "machine": f"{count} × {item}",
            "tokens_per_s": rate,
            "usd_per_hour": hourly,
            "usd_per_million": usd_per_million_tokens(hourly, rate, utilisation),
        }

    rows: dict[str, dict[str, Any]] = {}
    for each in configurations:
        timing = each.timing
        found = priced(_PREDICTED, each.item, each.count, timing.tokens_per_s(mix))
        rows[each.name] = found | {
            "batch": each.batch,
            "first_token_s": timing.first_token_s,
            "token_s": timing.token_s,
        }
    for name, (item, rate) in (measured or {}).items():
        found = priced("measured", item, 1, rate.value)
        ends = {  # what costs least is the highest rate
            end: priced("measured", item, 1, per_s)["usd_per_million"]
            for end, per_s in (("low", rate.high), ("high", rate.low))
        }
        rows[name] = found | {"batch": 1, "token_s": 1 / rate.value} | ends
    return pd.DataFrame(list(rows.values()), list(rows), _COLUMNS)


def workstation(
    prices: Mapping[str, Quantity],
    quantities: Mapping[str, Quantity],
    memory_gb: float,
) -> Owned:
    """A used card in its host with so much memory, written off as the tables say."""
    return _owned(values(inputs(prices, quantities, OWNED_ITEM)), memory_gb)


def _owned(at: Mapping[str, Any], memory_gb: float) -> Owned:
    """The machine that the inputs `at` describe: numbers or arrays (n,)."""
    memory_usd = memory_gb * at["memory_usd_per_gb"]
    storage_usd = STORAGE_GB * at["storage_usd_per_gb"]
    return Owned(
        capex_usd=at["card_usd"] + at["host_usd"] + (memory_usd + storage_usd),
        **{name: at[name] for name in ("months", "watts", "usd_per_kwh", "pue")},
    )


def inputs(
    prices: Mapping[str, Quantity],
    quantities: Mapping[str, Quantity],
    rented: str,
    **fixed: float,
) -> dict[str, Quantity]:
    """Everything that `evaluate` reads, with its range, by name.

    `rented` is the item that pays for an hour of rent; `fixed` puts another value with
    no range in the place of a table's.
    """
    ranges = {
        name: prices[item] for name, item in (PARTS | {"usd_per_hour": rented}).items()
    } | dict(quantities)
    for name, value in fixed.items():
        choice("input", name, ranges)
        ranges[name] = Quantity(value, value, value, name)
    return ranges


def evaluate(
    configuration: Configuration, mix: Mix, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Times, rate and costs at `values`, the inputs by name: numbers or arrays (n,).

    `utilisation` is of the hours paid for, those of rent and those of the owned machine
    alike.
    """
    timing = configuration.timing_over(values["link_gb_per_s"] * 1e9)
    rate, busy = timing.tokens_per_s(mix), values["utilisation"]
    owned = _owned(values, configuration.memory_gb)
    hourly_usd = configuration.count * values["usd_per_hour"]
    return {
        "token_s": timing.token_s,
        "tokens_per_s": rate,
        "rented_usd": usd_per_million_tokens(hourly_usd, rate, busy),
        "energy_usd": owned.energy_usd_per_million(rate),
        "owned_usd": owned.usd_per_million_tokens(rate, busy),
        "monthly_usd": owned.monthly_usd,
    }


_PLANNED = ("llama-65b", "bf16", 1)  # model, weights and batch where none is asked for


@dataclass(frozen=True, slots=True)
class Question:
    """What `thesis cost` is asked: a machine for rent, and where its rate comes from.

    The rate is given, with an interval if `between` says so; or it is that of a run on
    `record`, such as headline:bf16-8192MiB; or the plan of `model` promises it on so
    many `cards` of the item, over which the weights that do not fit are streamed.
    """

    gpu: str = OWNED_ITEM
    cards: int = 1
    tokens_per_s: float | None = None
    between: tuple[float, float] | None = None
    record: str | None = None
    model: str = _PLANNED[0]
    weights: str = _PLANNED[1]
    batch: int = _PLANNED[2]
    mix: Mix = MIX
    utilisation: float = 1.0

    def __post_init__(self) -> None:
        require(self.cards > 0, f"cards={self.cards} must be positive")
        require(
            self.tokens_per_s is None or self.record is None,
            f"tokens_per_s={self.tokens_per_s} and record={self.record!r} exclude each "
            "other: give one of them",
        )
        planned = self.tokens_per_s is None and self.record is None
        require(
            planned or (self.model, self.weights, self.batch) == _PLANNED,
            "model, weights and batch say what a rate is predicted for: leave them out "
            "where the rate is given or on record",
        )
        require(
            self.between is None or self.tokens_per_s is not None,
            "an interval needs the rate that lies in it: give tokens_per_s as well",
        )


@dataclass(frozen=True, slots=True)
class _Rates:
    """Tokens a second of the rented machine and, by its own plan, of the owned one."""

    rented: Interval
    basis: str
    own: float | None = None  # None for that of the rented machine, nan if not known
    memory_gb: int = 2 * _MODULE_GB  # of the host of the owned machine
    streamed_layers: int | None = None


def _rates(asked: Question, folder: Path | None) -> _Rates:
    """The rates that a question gives, refers to, or leaves to be predicted."""
    is_owned = base_item(asked.gpu) == OWNED_ITEM and asked.cards == 1
    own = None if is_owned else math.nan
    if asked.tokens_per_s is not None:
        ends = asked.between or (asked.tokens_per_s, asked.tokens_per_s)
        given = Quantity(asked.tokens_per_s, *ends, name="tokens_per_s")
        return _Rates(given, "given", own)
    if asked.record is not None:
        found = recorded_rates(
            read_record("headline", folder), read_record("streaming", folder)
        )
        rate = found[choice("record", asked.record, found)]
        return _Rates(rate, f"measured, {asked.record}", own)
    made = _predict_item(asked)
    rate = made.timing.tokens_per_s(asked.mix)
    promised = _Rates(
        Interval(rate, rate, rate),
        _PREDICTED,
        math.nan,
        streamed_layers=made.streamed_layers,
    )
    with suppress(InvalidInput):  # of a batch that does not fit the owned machine
        mine = _predict_item(replace(asked, gpu=OWNED_ITEM, cards=1))
        own = mine.timing.tokens_per_s(asked.mix)
        return replace(promised, own=own, memory_gb=mine.memory_gb)
    return promised


def summarise(
    asked: Question,
    override: Mapping[str, float] | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """What `thesis cost` prints: rent against owning a used card with its host.

    `override` are prices of one's own, `folder` that of the records. Keys
    `usd_per_million_tokens` and `break_even_tokens` (a month, None where owning never
    pays) with their intervals, None where the rate has none; `streamed_layers` is None
    for a rate that is not predicted. Owning means the used card of the tables in its
    host: a predicted rate is that of each machine. The keys of owning are None where
    the batch does not fit it, and for a rate that is not predicted and is of another
    machine.
    """
    prices, quantities = read_prices(override=override), read_quantities()
    hourly = [item for item, price in prices.items() if price.unit == "hour"]
    price = prices[choice("gpu", asked.gpu, hourly)]
    rates = _rates(asked, folder)
    owned = workstation(prices, quantities, rates.memory_gb)
    usd_per_hour, rented = asked.cards * price.value, rates.rented
    at, fast, slow = (
        _costs(
            asked, usd_per_hour, owned, rate, rate if rates.own is None else rates.own
        )
        for rate in (rented.value, rented.high, rented.low)
    )
    sharp = rented.low == rented.high
    result: dict[str, Any] = {}
    for name, value in at.items():
        # break-even grows with the rate, all other costs fall with it
        ends = (slow, fast) if name == "break_even" else (fast, slow)
        result[f"{name}_tokens"] = _finite(value)
        result[f"{name}_interval"] = (
            None if sharp else [_finite(end[name]) for end in ends]
        )
    return result | {
        "gpu": asked.gpu,
        "cards": asked.cards,
        "streamed_layers": rates.streamed_layers,
        "tokens_per_s": rented.value,
        "tokens_per_s_interval": None if sharp else [rented.low, rented.high],
        "basis": rates.basis,
        "utilisation": asked.utilisation,
        "usd_per_hour": usd_per_hour,
        "owned_item": OWNED_CARD,
        "owned_usd": owned.capex_usd,
        "price_date": price.date.isoformat() if price.date else None,
        "price_source": price.source,
        "price_status": price.status,
    }


def _costs(
    asked: Question, usd_per_hour: float, owned: Owned, rate: float, own: float
) -> dict[str, float]:
    """Both machines, rented at a rate and owned at its own; nan where that is none."""
    usd = usd_per_million_tokens(usd_per_hour, rate, asked.utilisation)
    even = own_usd = energy_usd = math.nan
    if math.isfinite(own):
        reserved = asked.gpu.endswith(RESERVED)
        rent = reserved_bill(usd_per_hour, rate) if reserved else Bill(0.0, usd)
        even = break_even_tokens(owned.bill(own), rent)
        own_usd = owned.usd_per_million_tokens(own, asked.utilisation)
        energy_usd = owned.energy_usd_per_million(own)
    return {
        "usd_per_million": usd,
        "break_even": even,
        "owned_usd_per_million": own_usd,
        "electricity_usd_per_million": energy_usd,
    }


def _predict_item(asked: Question) -> Configuration:
    if base_item(asked.gpu) not in CARDS:
        raise InvalidInput(
            f"no data sheet is known for {asked.gpu}, so that its rate cannot be "
            f"predicted: give tokens_per_s or record, or one of {', '.join(CARDS)}"
        )
    choice("weights", asked.weights, WEIGHTS)
    request = asked.mix.prompt_tokens, asked.mix.generated_tokens
    method = asked.weights, asked.batch
    return Configuration(
        **_predicted(asked.gpu, asked.cards, asked.model, *method, *request)
    )


@remembered
def _predicted(
    item: str, cards: int, model: str, weights: str, batch: int, prompt: int, new: int
) -> dict[str, Any]:
    method = Method(weights, WEIGHTS[weights], batch=batch)
    card = read_cards()[CARDS[base_item(item)]]
    return asdict(predict(geometry(model), method, Mix(prompt, new), item, card, cards))


def about(tokens: float) -> str:
    """A number of tokens in words, to two digits: prices are known no better."""
    near = float(f"{tokens:.2g}")
    return f"{near:,.0f}" if near < 1e6 else f"{near / 1e6:,.10g} million"


def volume(tokens: float) -> str:
    """From `about` how many tokens a month on; at no volume where it is infinite."""
    if math.isinf(tokens):
        return "at no volume"
    return f"from {about(tokens)} tokens a month" if tokens else "from the first token"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
