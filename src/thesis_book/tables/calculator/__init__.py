"""A calculator of costs that works in a static page: HTML and a script, no server.

The page is `calculator.html`, its script `calculator.js`. Every constant of the script
comes from the configurations and tables that Python uses, and its formula repeats
`memory.cost.cost`; `tests/browser` holds the two together.
Without scripts a reader sees the table at the values of the price table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Template

from thesis_book.experiments.memory.costs import evaluate
from thesis_lib.common.units import significant
from thesis_lib.memory.cost.cost import HOURS_PER_MONTH, Bill, Mix, break_even_tokens
from thesis_lib.memory.cost.cost import most_tokens as month_of_tokens
from thesis_lib.memory.cost.deployment import STORAGE_GB, Configuration

STEPS = 100  # of a slider, evenly spaced in the logarithm
COLUMNS = {
    "token_s": "s a token",
    "tokens_per_s": "tokens a s",
    "rented_usd": "rented",
    "owned_usd": "owned",
    "energy_usd": "electricity alone",
}
_OWNING = ("owned_usd", "energy_usd")  # columns of a machine that can be bought


@dataclass(frozen=True, slots=True)
class Slider:
    """An input that the reader moves between two ends."""

    name: str  # of the input
    label: str
    unit: str
    low: float
    high: float
    factor: float = 1.0  # from the value to what is shown

    def position(self, value: float) -> int:
        """Return the slider's position for a value: 0 to STEPS."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return min(max(round(STEPS * share), 0), STEPS)

    def value(self, position: int) -> float:
        """Return the input at the slider's position."""
        return self.low * (self.high / self.low) ** (position / STEPS)


SLIDERS = (
    Slider("usd_per_hour", "Price of the rented card", "USD an hour", 0.05, 5.0),
    Slider("utilisation", "Utilisation of the hours paid for", "%", 0.01, 1.0, 100.0),
    Slider("link_gb_per_s", "Link from host memory to the card", "GB/s", 1.0, 64.0),
)


def results(
    configuration: Configuration,
    mix: Mix,
    values: Mapping[str, float],
    usd_per_hour: float | None = None,
) -> dict[str, float]:
    """Return a row of the calculator: numbers of `evaluate` and the break-even.

    `usd_per_hour` is the price of a machine whose rent no slider moves. The break-even
    is in tokens a month from which owning costs less than renting; infinite if never.
    """
    if usd_per_hour is not None:
        values = {**values, "usd_per_hour": usd_per_hour}
    row = {name: float(v) for name, v in evaluate(configuration, mix, values).items()}
    owned = Bill(
        row["monthly_usd"], row["energy_usd"], month_of_tokens(row["tokens_per_s"])
    )
    row["even_tokens"] = break_even_tokens(owned, Bill(0.0, row["rented_usd"]))
    return row


def shown(value: float) -> str:
    """Three significant digits, thousands apart, as the script writes them."""
    return "never" if math.isinf(value) else significant(value, 3)


def calculator(
    streamed: Sequence[Configuration],
    resident: Sequence[tuple[Configuration, float]],
    mix: Mix,
    values: Mapping[str, float],
) -> str:
    """The calculator as HTML that needs nothing else.

    `streamed` share the card whose price, utilisation and link are sliders; `resident`
    are rented configurations with the price of an hour of each machine, to compare
    with. `values` are all inputs of `evaluate`.
    """
    # the price of an hour is a slider's for those that stream
    rows = [*((each, None) for each in streamed), *resident]
    known = {  # by the script
        "hours_per_month": HOURS_PER_MONTH,
        "storage_gb": STORAGE_GB,
        "generated_tokens": mix.generated_tokens,
        "steps": STEPS,
        "values": dict(values),
        "sliders": [asdict(slider) for slider in SLIDERS],
        "rows": [
            asdict(each) | {"memory_gb": each.memory_gb, "usd_per_hour": price}
            for each, price in rows
        ],
    }
    template = Template(_beside("calculator.html"), autoescape=True, trim_blocks=True)
    return template.render(
        identifier="cost-calculator",
        streamed=streamed,
        sliders=SLIDERS,
        steps=STEPS,
        values=values,
        columns=COLUMNS,
        owning=_OWNING,
        shown=shown,
        rows=[
            {
                "name": each.name,
                "found": results(each, mix, values, price),
                "ownable": price is None,
            }
            for each, price in rows
        ],
        known=known,
        script=_beside("calculator.js"),
    )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text()
