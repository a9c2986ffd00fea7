"""Cost of a million tokens: rented by the hour, or on owned hardware.

Rates are tokens a second, measured or predicted; prices come from `prices.py`. A cost
falls as the rate rises, so that the ends of a measured rate are those of its cost.

Wherever an `Amount` stands, an array (n,) may: a number for each of n draws of the
inputs. Nothing here is written a second time; the page's calculator repeats it in
JavaScript, and `tests/browser` holds the two together.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from thesis_lib.common.errors import require
from thesis_lib.common.stats import F64

Amount = float | F64

HOURS_PER_MONTH = 365.25 * 24 / 12
HEADINGS = {  # of the columns that readers are shown, for `rename`
    "first_token_s": "s to the first token",
    "token_s": "s a token",
    "tokens_per_s": "tokens a s",
    "usd_per_hour": "USD an hour",
    "usd_per_million": "USD a million tokens",
    "low": "from",
    "high": "to",
}


@dataclass(frozen=True, slots=True)
class Mix:
    """A request: so many tokens are read, so many written. Costs are per token written.

    Reading is charged to what is written, because one pass reads a prompt that a pass
    each has to write.
    """

    prompt_tokens: int
    generated_tokens: int

    def __post_init__(self) -> None:
        _require_positive(
            prompt_tokens=self.prompt_tokens, generated_tokens=self.generated_tokens
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Return the time of a batch: prompts and first tokens, then each further step."""

    first_token_s: Amount
    step_s: Amount
    batch: int = 1  # sequences that make tokens in a step
    tokens_per_step: float = 1.0  # of one sequence, on average; above 1 by speculation

    def __post_init__(self) -> None:
        _require_positive(first_token_s=self.first_token_s, step_s=self.step_s)
        require(
            self.batch >= 1 and self.tokens_per_step >= 1,
            f"batch={self.batch} and tokens_per_step={self.tokens_per_step:g} must be "
            "at least 1",
        )

    @property
    def token_s(self) -> Any:
        """Seconds between two tokens of one sequence."""
        return self.step_s / self.tokens_per_step

    def tokens_per_s(self, mix: Mix) -> Any:
        """Generated tokens a second of the batch, prompts included in the time."""
        further = (mix.generated_tokens - 1) * self.token_s
        return self.batch * mix.generated_tokens / (self.first_token_s + further)


def usd_per_million_tokens(
    usd_per_hour: Amount, tokens_per_s: Amount, utilization: Amount = 1.0
) -> Any:
    """Dollars per million tokens on a machine that is paid by the hour.

    `utilization` is the share of the paid hours in which tokens are made, at
    `tokens_per_s`. Raises InvalidInput for a utilisation outside (0, 1] and for a
    price or rate that is not positive.
    """
    _require_positive(tokens_per_s=tokens_per_s, usd_per_hour=usd_per_hour)
    _require_share(utilization)
    return usd_per_hour / (3600 * tokens_per_s * utilization) * 1e6


@dataclass(frozen=True, slots=True)
class Bill:
    """The monthly cost of a machine: a fixed part, and a part for each token."""

    fixed_usd: float
    usd_per_million: float
    most_tokens: float = math.inf  # that the machine can make in a month

    def __post_init__(self) -> None:
        require(
            self.fixed_usd >= 0 and self.usd_per_million >= 0 and self.most_tokens > 0,
            f"fixed_usd={self.fixed_usd:g} and usd_per_million="
            f"{self.usd_per_million:g} must not be negative, most_tokens="
            f"{self.most_tokens:g} must be positive",
        )

    def usd(self, tokens: float) -> float:
        """Dollars for `tokens` in a month; infinite beyond what the machine makes."""
        if tokens > self.most_tokens:
            return math.inf
        return self.fixed_usd + self.usd_per_million * tokens / 1e6


def metered_bill(
    usd_per_hour: float, tokens_per_s: float, utilization: float = 1.0
) -> Bill:
    """Rent by the hour for the hours in use: nothing is due in an idle month.

    As many such machines can be rented as the tokens need.
    """
    return Bill(0.0, usd_per_million_tokens(usd_per_hour, tokens_per_s, utilization))


def reserved_bill(usd_per_hour: float, tokens_per_s: float) -> Bill:
    """Rent for all hours of the month, used or not."""
    _require_positive(tokens_per_s=tokens_per_s, usd_per_hour=usd_per_hour)
    return Bill(usd_per_hour * HOURS_PER_MONTH, 0.0, most_tokens(tokens_per_s))


def most_tokens(tokens_per_s: float) -> float:
    """Return the tokens of a machine in a month without a pause."""
    return tokens_per_s * 3600 * HOURS_PER_MONTH


def break_even_tokens(bill: Bill, other: Bill) -> float:
    """The smallest volume of a month from which `bill` is no dearer than `other`.

    Zero where that holds from the start, and infinite where it holds of no volume that
    both machines can make: to make more than another can is not to be cheaper.
    """
    extra = bill.fixed_usd - other.fixed_usd
    saved = (other.usd_per_million - bill.usd_per_million) / 1e6
    tokens = math.inf
    if extra <= 0:
        tokens = 0.0
    elif saved > 0:
        tokens = extra / saved
    most = min(bill.most_tokens, other.most_tokens)
    return tokens if tokens <= most else math.inf


@dataclass(frozen=True, slots=True)
class Owned:
    """A machine of one's own: bought once, written off, and fed with electricity."""

    capex_usd: Amount
    months: Amount  # over which the purchase is written off
    watts: Amount  # while it makes tokens; off or negligible otherwise
    usd_per_kwh: Amount
    pue: Amount = 1.0  # power drawn in all over power of the machine

    def __post_init__(self) -> None:
        _require_positive(
            capex_usd=self.capex_usd, months=self.months, usd_per_kwh=self.usd_per_kwh
        )
        watts, pue = np.min(self.watts), np.min(self.pue)
        require(watts >= 0, f"watts={watts:g} must not be negative")
        require(pue >= 1, f"pue={pue:g} must be at least 1")

    @property
    def monthly_usd(self) -> Any:
        """Dollars a month whether it works or not."""
        return self.capex_usd / self.months

    @property
    def capital_usd_per_hour(self) -> Any:
        """Dollars an hour whether it works or not."""
        return self.capex_usd / (self.months * HOURS_PER_MONTH)

    @property
    def energy_usd_per_hour(self) -> Any:
        """Dollars an hour while it works."""
        return self.watts / 1000 * self.pue * self.usd_per_kwh

    def energy_usd_per_million(self, tokens_per_s: Amount) -> Any:
        """Dollars of electricity per million tokens: all that idle hardware costs."""
        _require_positive(tokens_per_s=tokens_per_s)
        return self.energy_usd_per_hour / (3600 * tokens_per_s) * 1e6

    def usd_per_million_tokens(
        self, tokens_per_s: Amount, utilization: Amount = 1.0
    ) -> Any:
        """Dollars per million tokens: capital by the month, energy by the token."""
        _require_positive(tokens_per_s=tokens_per_s)
        _require_share(utilization)
        per_hour = self.capital_usd_per_hour / utilization + self.energy_usd_per_hour
        return per_hour / (3600 * tokens_per_s) * 1e6

    def bill(self, tokens_per_s: float) -> Bill:
        """Return its monthly cost."""
        return Bill(
            self.monthly_usd,
            self.energy_usd_per_million(tokens_per_s),
            most_tokens(tokens_per_s),
        )


def _require_positive(**amounts: Amount) -> None:
    for name, amount in amounts.items():
        least, most = np.min(amount), np.max(amount)
        require(
            bool(least > 0 and most < math.inf),
            f"{name}={least if least <= 0 else most:g} must be positive and finite",
        )


def _require_share(utilization: Amount) -> None:
    least, most = np.min(utilization), np.max(utilization)
    require(
        bool(least > 0 and most <= 1),
        f"utilization={least if least <= 0 else most:g} must lie in (0, 1]: the busy "
        "share of paid hours",
    )
