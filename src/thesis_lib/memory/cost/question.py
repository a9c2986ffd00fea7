"""The question of `thesis cost`: rent a machine, or own a used card with its host."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from thesis_lib.common.answers import remembered
from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.stats import Interval
from thesis_lib.memory.cost.cards import read_cards
from thesis_lib.memory.cost.cost import (
    Bill,
    Owned,
    break_even_tokens,
    reserved_bill,
    usd_per_million_tokens,
)
from thesis_lib.memory.cost.deployment import (
    CARDS,
    MIX,
    OWNED_CARD,
    OWNED_ITEM,
    RESERVED,
    Configuration,
    Method,
    base_item,
    predict,
    workstation,
)
from thesis_lib.memory.cost.prices import Quantity, read_prices, read_quantities
from thesis_lib.memory.model.spec import WEIGHTS, geometry

_PLANNED = ("llama-65b", "bf16", 1)  # model, weights and batch where none is asked for


@dataclass(frozen=True, slots=True)
class Question:
    """A machine for rent, and the rate of the tokens that it generates.

    The rate is given, with an interval if `between` says so, or the plan of `model`
    predicts it for one `gpu`, over whose link the weights that do not fit are streamed.
    """

    gpu: str = OWNED_ITEM
    tokens_per_s: float | None = None
    between: tuple[float, float] | None = None
    model: str = _PLANNED[0]
    weights: str = _PLANNED[1]
    batch: int = _PLANNED[2]
    utilization: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.tokens_per_s is None
            or (self.model, self.weights, self.batch) == _PLANNED,
            "model, weights and batch say what a rate is predicted for: leave them out "
            "where the rate is given",
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
    own: float | None  # None for that of the rented machine, nan if not known
    memory_gb: int = 64  # of the host of the owned machine
    streamed_layers: int | None = None


def _rates(question: Question) -> _Rates:
    """The rates that a question gives, or leaves to be predicted."""
    own = None if base_item(question.gpu) == OWNED_ITEM else math.nan
    if question.tokens_per_s is not None:
        ends = question.between or (question.tokens_per_s, question.tokens_per_s)
        stated = Quantity(question.tokens_per_s, *ends, name="tokens_per_s")
        return _Rates(stated, "given", own)
    configuration = _predict_item(question)
    rate = configuration.timing.tokens_per_s(MIX)
    streamed_layers = configuration.streamed_layers
    rates = _Rates(
        Interval(rate, rate, rate),
        "predicted",
        math.nan,
        streamed_layers=streamed_layers,
    )
    with suppress(InvalidInput):  # of a batch that does not fit the owned machine
        owned = _predict_item(replace(question, gpu=OWNED_ITEM))
        own = owned.timing.tokens_per_s(MIX)
        return replace(rates, own=own, memory_gb=owned.memory_gb)
    return rates


def summarize(
    question: Question, override: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Compare rent with owning a used card in its host, as `thesis cost` prints it.

    `override` are prices of one's own. Keys `usd_per_million_tokens` and
    `break_even_tokens` (a month, None where owning never pays) with their intervals,
    None where the rate has none; `streamed_layers` is None for a rate that is given.
    Owning means the used card of the tables in its host: a predicted rate is that of
    each machine. The keys of owning are None where the batch does not fit it, and for a
    given rate of another machine.
    """
    prices, quantities = read_prices(override=override), read_quantities()
    hourly = [item for item, price in prices.items() if price.unit == "hour"]
    price = prices[choice("gpu", question.gpu, hourly)]
    rates = _rates(question)
    owned = workstation(prices, quantities, rates.memory_gb)
    rented = rates.rented
    at, fast, slow = (
        _costs(
            question, price.value, owned, rate, rate if rates.own is None else rates.own
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
        "gpu": question.gpu,
        "streamed_layers": rates.streamed_layers,
        "tokens_per_s": rented.value,
        "tokens_per_s_interval": None if sharp else [rented.low, rented.high],
        "basis": rates.basis,
        "utilisation": question.utilization,
        "usd_per_hour": price.value,
        "owned_item": OWNED_CARD,
        "owned_usd": owned.capex_usd,
        "price_date": price.date.isoformat() if price.date else None,
        "price_source": price.source,
        "price_status": price.status,
    }


def _costs(
    question: Question, usd_per_hour: float, owned: Owned, rate: float, own: float
) -> dict[str, float]:
    """Both machines, rented at a rate and owned at its own; nan where that is none."""
    usd = usd_per_million_tokens(usd_per_hour, rate, question.utilization)
    even = own_usd = energy_usd = math.nan
    if math.isfinite(own):
        reserved = question.gpu.endswith(RESERVED)
        rent = reserved_bill(usd_per_hour, rate) if reserved else Bill(0.0, usd)
        even = break_even_tokens(owned.bill(own), rent)
        own_usd = owned.usd_per_million_tokens(own, question.utilization)
        energy_usd = owned.energy_usd_per_million(own)
    return {
        "usd_per_million": usd,
        "break_even": even,
        "owned_usd_per_million": own_usd,
        "electricity_usd_per_million": energy_usd,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _predict_item(question: Question) -> Configuration:
    if base_item(question.gpu) not in CARDS:
        raise InvalidInput(
            f"no data sheet is known for {question.gpu}, so that its rate cannot be "
            f"predicted: give tokens_per_s, or one of {', '.join(CARDS)}"
        )
    choice("weights", question.weights, WEIGHTS)
    return Configuration(
        **_predicted(question.gpu, question.model, question.weights, question.batch)
    )


@remembered
def _predicted(item: str, model: str, weights: str, batch: int) -> dict[str, Any]:
    method = Method(weights, WEIGHTS[weights], batch=batch)
    card = read_cards()[CARDS[base_item(item)]]
    return asdict(predict(geometry(model), method, MIX, item, card))
