"""What the clients ask for: arrivals, reference scenarios, TPC-C, YCSB.

Every function is seeded: the same arguments give the same transactions, on every
machine and in every process.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from random import Random
from typing import NamedTuple, Self

import numpy as np

from thesis_lib.checks import InvalidInput, choice, require, vector
from thesis_lib.sequencer.trace import F64, I64, KeySets, Trace

DISTRICTS = 10  # to a warehouse, TPC-C clause 1.2.1


# --- Arrivals ----------------------------------------------------------------


def on_grid(draws: F64) -> F64:
    """Draws rounded to multiples of 2^-24, about 6e-8.

    Mathematical libraries differ in the last bit of a logarithm or an exponential; what
    is rounded here does not, so that a seed gives the same workload on every machine.
    Sums of fewer than 2^29 such draws of mean one are exact in any order.
    """
    return np.rint(draws * 2.0**24) / 2.0**24


def poisson_arrivals(rate_per_s: float, n: int, rng: np.random.Generator) -> F64:
    """(n,) arrival times of an open loop: a Poisson process from time 0.

    Two calls with equal seeds and other rates give the same process, stretched, so
    loads can be compared with common random numbers.
    """
    require(
        0 < rate_per_s < np.inf,
        f"rate_per_s={rate_per_s:g} must be positive and finite",
    )
    require(n >= 1, f"n={n} transactions: expected at least 1")
    return np.cumsum(on_grid(rng.exponential(1.0, n))) / rate_per_s


def _time_change(work: F64, starts_s: F64, rates_per_s: F64) -> F64:
    """(n,) times at which a rate, integrated over time, reaches `work` (n,), rising.

    The rate is `rates_per_s[k]` from `starts_s[k]` on, first from time 0, and may be
    zero but in the last piece. Unit Poisson arrivals become those of the changing rate
    (Lewis and Shedler, Naval Research Logistics 26(3), 1979). One operation at a time,
    because a fused one would round differently on another processor.
    """
    done = np.concatenate([[0.0], np.cumsum(np.diff(starts_s) * rates_per_s[:-1])])
    piece = np.searchsorted(done, work, side="right") - 1
    return starts_s[piece] + (work - done[piece]) / rates_per_s[piece]


def mmpp2_arrivals(
    rates_per_s: tuple[float, float],
    sojourns_s: tuple[float, float],
    n: int,
    rng: np.random.Generator,
) -> F64:
    """(n,) arrival times of a Poisson process that a two-state Markov chain modulates.

    In state k the rate is `rates_per_s[k]` for an exponential time of mean
    `sojourns_s[k]`; the chain starts in equilibrium, so the process is stationary. Of
    the rates one may be zero: bursts and silence. Two calls with equal seeds draw the
    same states, and the same arrivals measured in work, whatever the rates.
    Heffes and Lucantoni, IEEE JSAC 4(6), 1986, have its mean and dispersion.
    Raises InvalidInput for rates and times that describe no such process.
    Heffes and Lucantoni, IEEE JSAC 4(6), 1986.
    """
    rates, means_s = np.array(rates_per_s, float), np.array(sojourns_s, float)
    require(
        rates.shape == (2,)
        and bool(((rates >= 0) & (rates < np.inf)).all() and rates.any()),
        f"rates_per_s={rates_per_s}: expected two, neither negative, not both zero",
    )
    require(
        means_s.shape == (2,) and bool(((means_s > 0) & (means_s < np.inf)).all()),
        f"sojourns_s={sojourns_s}: expected two positive and finite mean times",
    )
    require(n >= 1, f"n={n} transactions: expected at least 1")
    work = np.cumsum(on_grid(rng.exponential(1.0, n)))
    first = int(rng.random() * means_s.sum() >= means_s[0])
    order = [first, 1 - first]
    per_cycle = float((rates * means_s).sum())  # mean work of one stay in each state
    stays_s, ends_s, reached = np.empty(0), np.zeros(1), 0.0
    while reached <= work[-1]:
        cycles = 16 + int((work[-1] - reached) / per_cycle)
        drawn_s = on_grid(rng.exponential(1.0, (cycles, 2))) * means_s[order]
        stays_s = np.concatenate([stays_s, drawn_s.ravel()])
        ends_s = np.concatenate([[0.0], np.cumsum(stays_s)])
        reached = np.cumsum(np.diff(ends_s) * np.resize(rates[order], len(stays_s)))[-1]
    return _time_change(work, ends_s, np.resize(rates[order], len(ends_s)))


def flash_crowd_arrivals(
    rate_per_s: float,
    crowd_per_s: float,
    crowd_s: tuple[float, float],
    n: int,
    rng: np.random.Generator,
) -> F64:
    """(n,) arrival times of a Poisson process whose rate steps up and back.

    The rate is `crowd_per_s` from `crowd_s[0]` to `crowd_s[1]` and `rate_per_s` before
    and after. Before the crowd the arrivals are those of `poisson_arrivals` with the
    same seed; equal seeds give the same arrivals measured in work, whatever the rates.
    Raises InvalidInput for rates that are not positive and for a crowd that ends
    before it begins.
    """
    for name, rate in (("rate_per_s", rate_per_s), ("crowd_per_s", crowd_per_s)):
        require(0 < rate < np.inf, f"{name}={rate:g} must be positive and finite")
    begin_s, end_s = crowd_s
    require(
        0 <= begin_s <= end_s < np.inf,
        f"crowd_s={crowd_s}: expected a beginning and an end, in seconds from 0",
    )
    require(n >= 1, f"n={n} transactions: expected at least 1")
    work = np.cumsum(on_grid(rng.exponential(1.0, n)))
    return _time_change(
        work,
        np.array([0.0, begin_s, end_s]),
        np.array([rate_per_s, crowd_per_s, rate_per_s]),
    )


def with_arrivals(trace: Trace, arrival_s: F64) -> Trace:
    """The same transactions in the same order, arriving at `arrival_s` (n,)."""
    return replace(
        trace, arrival_s=vector("arrival_s", arrival_s, np.float64, len(trace), 0.0)
    )


def at_rate(trace: Trace, rate_per_s: float, seed: int) -> Trace:
    """The same transactions in the same order as a Poisson process of this rate."""
    rng = np.random.default_rng(seed)
    return with_arrivals(trace, poisson_arrivals(rate_per_s, len(trace), rng))


# --- Reference scenarios -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scenario:
    """A machine and an objective for the Payment and New-Order mix."""

    warehouses: int
    cores: int
    slo_s: float  # one latency objective for every transaction


SCENARIOS = {
    "A": Scenario(warehouses=10, cores=8, slo_s=12.5e-3),
    "B": Scenario(warehouses=10, cores=8, slo_s=5e-3),
    "C": Scenario(warehouses=2, cores=16, slo_s=12.5e-3),
}
PAYMENT_S, NEW_ORDER_S, ORDER_LINE_S = 0.5e-3, 0.4e-3, 0.12e-3
SERVICE_SIGMA = 0.4
ORDER_LINES = 5, 15  # fewest and most, TPC-C clause 2.4.1.3


def mean_one_lognormal(sigma: float, n: int, rng: np.random.Generator) -> F64:
    """(n,) lognormal factors of mean 1, so that they scatter without a bias."""
    return on_grid(rng.lognormal(-(sigma**2) / 2, sigma, n))


def scenario(name: str, n: int, seed: int, warehouses: int | None = None) -> Trace:
    """n transactions of reference scenario A, B or C, arriving at 1/s.

    Payment takes 0.5 ms and New-Order 0.4 ms + 0.12 ms for each of its 5 to 15 order
    lines, both times a mean-one lognormal of sigma 0.4; they are equally frequent
    and uniform over warehouses and districts. Payment locks its warehouse and its
    district exclusively; New-Order shares the warehouse. A and B differ only in
    machine and objective (`SCENARIOS`). `at_rate` sets the load.
    """
    spec = SCENARIOS[choice("scenario", name, SCENARIOS)]
    warehouses = spec.warehouses if warehouses is None else warehouses
    require(warehouses >= 1, f"warehouses={warehouses}: expected at least 1")
    rng = np.random.default_rng(seed)
    arrival_s = poisson_arrivals(1.0, n, rng)
    kind = rng.integers(0, 2, n)
    payment = kind == 0
    lines = np.where(payment, 0, rng.integers(*ORDER_LINES, n, endpoint=True))
    warehouse = rng.integers(0, warehouses, n)
    district = warehouses + DISTRICTS * warehouse + rng.integers(0, DISTRICTS, n)
    base_s = np.where(payment, PAYMENT_S, NEW_ORDER_S + ORDER_LINE_S * lines)
    service_s = base_s * mean_one_lognormal(SERVICE_SIGMA, n, rng)
    return Trace(
        kinds=("payment", "new_order"),
        kind=kind,
        arrival_s=arrival_s,
        service_s=service_s,
        features=np.column_stack([payment, ~payment, lines]).astype(np.float64),
        feature_names=("is_payment", "is_new_order", "order_lines"),
        keys=KeySets(
            offsets=np.arange(n + 1) * 2,
            keys=np.column_stack([warehouse, district]).ravel(),
            exclusive=np.column_stack([payment, np.ones(n, bool)]).ravel(),
        ),
        units_s=service_s[:, None],
        unit_names=("execute",),
        meta={
            "source": "synthetic",
            "scenario": name,
            "seed": seed,
            "warehouses": warehouses,
        },
    )


def from_measured(trace: Trace, n: int, seed: int) -> Trace:
    """n transactions of a collected trace as an open loop, arriving at 1/s.

    Service times, key sets and features keep their collected order, from a seeded
    starting point and around the end, so a trace shorter than n repeats itself.
    Only the arrivals are new; `at_rate` sets the load. Columns that belong to the
    collected run (waiting times) are left behind.
    """
    require(len(trace) >= 1, "the collected trace is empty: collect one first")
    rng = np.random.default_rng(seed)
    arrival_s = poisson_arrivals(1.0, n, rng)
    rows = (rng.integers(len(trace)) + np.arange(n)) % len(trace)
    return Trace(
        kinds=trace.kinds,
        kind=trace.kind[rows],
        arrival_s=arrival_s,
        service_s=trace.service_s[rows],
        features=trace.features[rows],
        feature_names=trace.feature_names,
        keys=trace.keys.take(rows),
        units_s=trace.units_s[rows],
        unit_names=trace.unit_names,
        meta={**trace.meta, "resampled": {"n": n, "seed": seed}},
    )


# --- TPC-C -------------------------------------------------------------------

NEW_ORDER, PAYMENT, ORDER_STATUS, DELIVERY, STOCK_LEVEL = range(5)
TPCC_KINDS = ("new_order", "payment", "order_status", "delivery", "stock_level")
TPCC_MIXES = {
    "spec": (0.45, 0.43, 0.04, 0.04, 0.04),  # TPC-C clause 5.2.3, as widely run
    "new-order/payment": (0.5, 0.5, 0.0, 0.0, 0.0),
}
UNRESOLVED = -1  # customer number before the reconnaissance of a name
_SYLLABLES = (
    *("BAR", "OUGHT", "ABLE", "PRI", "PRES"),
    *("ESE", "ANTI", "CALLY", "ATION", "EING"),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much data a TPC-C database holds, and the number of each of its locks.

    The specification has 3,000 customers to a district and 100,000 items; the
    defaults are a tenth and a hundredth of that, and non-uniform choices scale along.
    Raises InvalidInput for a database too small to run every transaction.
    """

    warehouses: int = 2
    customers: int = 300  # to a district
    items: int = 1_000
    kinds = TPCC_KINDS

    def __post_init__(self) -> None:
        for name, value, least in (
            ("warehouses", self.warehouses, 1),
            ("customers", self.customers, 30),
            ("items", self.items, 100),
        ):
            require(value >= least, f"{name}={value}: expected at least {least}")

    @property
    def partitions(self) -> int:
        """Parts of the database that a file each can hold."""
        return self.warehouses

    @property
    def file_locks(self) -> range:
        """Numbers of the locks of files."""
        return range(self.warehouses, 2 * self.warehouses)

    @property
    def last_names(self) -> int:
        """Distinct last names in a district: one for every three customers."""
        return min(1_000, self.customers // 3)

    def warehouse(self, w: int) -> int:
        """Lock of the row of warehouse w."""
        return w

    def file(self, w: int) -> int:
        """Lock of the file of warehouse w: SQLite has one writer to a file."""
        return self.warehouses + w

    def district(self, w: int, d: int) -> int:
        """Lock of the row of district d."""
        return 2 * self.warehouses + DISTRICTS * w + d

    def orders(self, w: int, d: int) -> int:
        """Lock of the orders, order lines and open orders of district d."""
        return (2 + DISTRICTS) * self.warehouses + DISTRICTS * w + d

    def customers_of(self, w: int, d: int) -> int:
        """Lock of the customers of district d as a group, above each of them."""
        return (2 + 2 * DISTRICTS) * self.warehouses + DISTRICTS * w + d

    def customer(self, w: int, d: int, c: int) -> int:
        """Lock of the row of customer c of district d."""
        base = (2 + 3 * DISTRICTS) * self.warehouses
        return base + (DISTRICTS * w + d) * self.customers + c

    def stock(self, w: int, i: int) -> int:
        """Lock of the stock of item i; i = items is the row that never exists."""
        base = (2 + DISTRICTS * (3 + self.customers)) * self.warehouses
        return base + w * (self.items + 1) + i


class OrderLine(NamedTuple):
    """One line of an order: what, from where, how many."""

    item: int
    supply_warehouse: int
    quantity: int


@dataclass(frozen=True, slots=True)
class NewOrder:
    """Clause 2.4. An unknown item, always the last line, rolls it back."""

    warehouse: int
    district: int
    customer: int
    lines: tuple[OrderLine, ...]
    entered: int  # logical time: the position in the log
    kind = "new_order"


@dataclass(frozen=True, slots=True)
class Payment:
    """Clause 2.5. `last_name` is None where the customer is given by number."""

    warehouse: int
    district: int
    customer_warehouse: int
    customer_district: int
    customer: int
    last_name: str | None
    name_matches: int  # customers of that last name, 0 where given by number
    amount_cents: int
    entered: int
    kind = "payment"


@dataclass(frozen=True, slots=True)
class OrderStatus:
    """Clause 2.6."""

    warehouse: int
    district: int
    customer: int
    last_name: str | None
    name_matches: int
    kind = "order_status"


@dataclass(frozen=True, slots=True)
class Delivery:
    """Clause 2.7: the oldest open order of each of the ten districts."""

    warehouse: int
    carrier: int
    entered: int
    kind = "delivery"


@dataclass(frozen=True, slots=True)
class StockLevel:
    """Clause 2.8."""

    warehouse: int
    district: int
    threshold: int
    kind = "stock_level"


# --- YCSB --------------------------------------------------------------------

YCSB_KINDS = ("ycsb_read", "ycsb_write", "ycsb_count")
OPERATIONS = ("read", "update", "modify")
YCSB_MIXES = {  # shares of OPERATIONS; D and E insert and scan, which is left out
    "A": (0.5, 0.5, 0.0),
    "B": (0.95, 0.05, 0.0),
    "C": (1.0, 0.0, 0.0),
    "F": (0.5, 0.0, 0.5),
}
FIELDS = 10  # of a record, 100 characters each
ZIPF_UNIT, ZIPF_LARGEST = 10**10, 400_000  # their product stays below 2^52


@dataclass(frozen=True, slots=True)
class YcsbScale:
    """How much data a YCSB database holds, and the number of each of its locks.

    Records lie in `files` partitions; one more holds the counter, so that counting
    locks no file of records. Raises InvalidInput for a count out of range.
    """

    files: int = 2
    records: int = 1_000  # to a file
    kinds = YCSB_KINDS

    def __post_init__(self) -> None:
        require(self.files >= 1, f"files={self.files}: expected at least 1")
        require(
            1 <= self.records <= ZIPF_LARGEST,
            f"records={self.records}: expected 1 to {ZIPF_LARGEST} to a file",
        )

    @property
    def partitions(self) -> int:
        """Parts of the database that a file each can hold."""
        return self.files + 1

    @property
    def file_locks(self) -> range:
        """Numbers of the locks of files."""
        return range(self.partitions)

    @property
    def counter(self) -> int:
        """Lock of the counter."""
        return self.partitions

    def file(self, f: int) -> int:
        """Lock of partition f, for a database with one writer to a file."""
        return f

    def record(self, f: int, r: int) -> int:
        """Lock of record r of partition f."""
        return self.partitions + 1 + f * self.records + r


class Operation(NamedTuple):
    """One operation on one record: what, which of its fields, and the new value."""

    what: str  # one of OPERATIONS
    record: int
    field: int
    value: int


@dataclass(frozen=True, slots=True)
class Ycsb:
    """Operations in order on one partition, and perhaps an increment of the counter.

    A read takes the whole record, an update overwrites one field unseen, and a
    read-modify-write puts its value in front of what it has read there.
    """

    partition: int
    operations: tuple[Operation, ...]
    counter: int | None  # partition of the counter, None where it does not count

    @property
    def kind(self) -> str:
        """One of YCSB_KINDS."""
        if self.counter is not None:
            return "ycsb_count"
        return "ycsb_write" if self.files else "ycsb_read"

    @property
    def files(self) -> list[int]:
        """Partitions that it writes."""
        writes = any(operation.what != "read" for operation in self.operations)
        counter = [] if self.counter is None else [self.counter]
        return [self.partition] * writes + counter


# --- Logs --------------------------------------------------------------------

Transaction = NewOrder | Payment | OrderStatus | Delivery | StockLevel | Ycsb
TYPES = (NewOrder, Payment, OrderStatus, Delivery, StockLevel, Ycsb)


@dataclass(frozen=True, slots=True)
class Log:
    """A seeded sequence of transactions over a database of this scale.

    The position in the log is the total order, the logical time and the id.
    """

    scale: Scale | YcsbScale
    seed: int
    transactions: tuple[Transaction, ...]
    keys: KeySets  # declared, one set a transaction

    @classmethod
    def declare(cls, scale: Scale | YcsbScale, seed: int, transactions) -> Self:
        """The log of `transactions` with the locks that each of them declares."""
        declared = [declared_locks(scale, t) for t in transactions]
        return cls(
            scale=scale,
            seed=seed,
            transactions=tuple(transactions),
            keys=KeySets.from_lists([s for s, _ in declared], [x for _, x in declared]),
        )

    def __len__(self) -> int:
        return len(self.transactions)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the types of transaction of this workload."""
        return self.scale.kinds

    @property
    def kind(self) -> I64:
        """(n,) index into `kinds`."""
        return np.array([self.kinds.index(t.kind) for t in self.transactions], np.int64)

    def without_files(self) -> Self:
        """The same log with locks of rows alone: for a database with many writers."""
        keys, files = self.keys, self.scale.file_locks
        kept = (keys.keys < files.start) | (keys.keys >= files.stop)
        offsets = np.concatenate([[0], np.cumsum(kept)])[keys.offsets]
        rows = KeySets(offsets, keys.keys[kept], keys.exclusive[kept])
        return replace(self, keys=rows)


# --- Generators --------------------------------------------------------------


class Draw:
    """Seeded draws as TPC-C defines them (clause 2.1).

    Built on `random.Random.random`, whose sequence Python promises to keep.
    """

    def __init__(self, seed: str) -> None:
        self.unit = Random(seed).random

    def between(self, low: int, high: int) -> int:
        """Uniform over low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def skewed(self, mask: int, full: int, size: int, shift: int) -> int:
        """NURand over 0..size - 1: clause 2.1.6 with its mask of `full` values.

        A smaller range gets the power of two that keeps mask/full nearest.
        """
        bits = max(0, round(np.log2((mask + 1) * size / full)))
        draw = self.between(0, 2**bits - 1) | self.between(0, size - 1)
        return (draw + shift) % size


class Zipf:
    """Ranks 0 to n - 1, rank r with a probability proportional to (r + 1)^-theta.

    The exact distribution that Gray et al. (SIGMOD 1994) approximate, by inversion of
    a table. Its weights are integers, from the correctly rounded logarithm and
    exponential of the decimal standard: no library's last bit decides a draw.
    Raises InvalidInput for theta outside [0, 1).
    """

    def __init__(self, theta: float, n: int) -> None:
        require(0 <= theta < 1, f"theta={theta}: expected 0 (uniform) to below 1")
        power, exact = -Decimal(repr(float(theta))), Context(prec=28)
        total, self.cumulative = 0, []
        for k in range(1, n + 1):
            weight = exact.exp(exact.multiply(power, exact.ln(Decimal(k))))
            total += round(exact.multiply(weight, ZIPF_UNIT))
            self.cumulative.append(total)

    def rank(self, draw: Draw) -> int:
        """The next rank."""
        return bisect_right(self.cumulative, int(draw.unit() * self.cumulative[-1]))


def last_name(number: int) -> str:
    """The last name of clause 4.3.2.3: three syllables, one to a decimal digit."""
    digits = (number // 100 % 10, number // 10 % 10, number % 10)
    return "".join(_SYLLABLES[digit] for digit in digits)


def customer_names(scale: Scale, seed: int, w: int) -> list[list[tuple[str, str]]]:
    """(last, first) name of every customer of warehouse w, by district.

    A fixed function of scale and seed, on which the loader and the generator agree:
    names never change, so a client may resolve them before the log. First names are
    unique within a district, which makes the middle customer of a name unambiguous.
    """
    draw = Draw(f"names {seed} {w}")
    names = []
    for _ in range(DISTRICTS):
        firsts = sorted(range(scale.customers), key=lambda _: draw.unit())
        lasts = [
            c
            if c < scale.last_names
            else draw.skewed(255, 1_000, scale.last_names, shift=0)
            for c in range(scale.customers)
        ]
        names.append(
            [
                (last_name(last), f"N{first:05d}")
                for last, first in zip(lasts, firsts, strict=True)
            ]
        )
    return names


def tpcc(n: int, scale: Scale, seed: int, mix: str = "spec") -> Log:
    """n transactions of TPC-C with its skew, remote accesses and rollbacks.

    The mix "spec" has 45 % New-Order (of which 1 % name an unknown item and roll back,
    and 1 % of order lines are supplied by another warehouse), 43 % Payment (15 % for a
    customer of another warehouse), 4 % each Order-Status, Delivery and Stock-Level;
    "new-order/payment" has half of each of these two, as the thesis ran it. 60 % of
    Payments and Order-Statuses name the customer by last name; the generator declares
    the number that a reconnaissance finds (`Session.reconnoitre`), and the engine
    still looks the name up.
    """
    shares = TPCC_MIXES[choice("mix", mix, TPCC_MIXES)]
    require(n >= 1, f"n={n} transactions: expected at least 1")
    draw = Draw(f"tpcc {seed}")
    directory = _directory(scale, seed)
    shift = draw.between(0, 255), draw.between(0, 1_023), draw.between(0, 8_191)

    def elsewhere(w: int) -> int:
        other = draw.between(0, scale.warehouses - 2)
        return other + (other >= w)

    def by_number() -> int:
        return draw.skewed(1_023, 3_000, scale.customers, shift[1])

    def customer(w: int, d: int) -> tuple[int, str | None, int]:
        if draw.unit() >= 0.6:
            return by_number(), None, 0
        name = last_name(draw.skewed(255, 1_000, scale.last_names, shift[0]))
        number, matches = directory[w, d, name]
        return number, name, matches

    def new_order(w: int, d: int, at: int) -> NewOrder:
        buyer = by_number()
        count = draw.between(*ORDER_LINES)
        lines = []
        for _ in range(count):
            item = draw.skewed(8_191, 100_000, scale.items, shift[2])
            remote = draw.unit() < 0.01 and scale.warehouses > 1
            supply = elsewhere(w) if remote else w
            lines.append(OrderLine(item, supply, draw.between(1, 10)))
        if draw.unit() < 0.01:
            lines[-1] = lines[-1]._replace(item=scale.items)
        return NewOrder(w, d, buyer, tuple(lines), at)

    def payment(w: int, d: int, at: int) -> Payment:
        cw, cd = w, d
        if draw.unit() < 0.15 and scale.warehouses > 1:
            cw, cd = elsewhere(w), draw.between(0, DISTRICTS - 1)
        number, name, matches = customer(cw, cd)
        cents = draw.between(100, 500_000)
        return Payment(w, d, cw, cd, number, name, matches, cents, at)

    transactions: list[Transaction] = []
    thresholds = np.cumsum(shares)
    for at in range(n):
        kind = int(np.searchsorted(thresholds[:-1], draw.unit(), side="right"))
        w = draw.between(0, scale.warehouses - 1)
        d = draw.between(0, DISTRICTS - 1)
        if kind == NEW_ORDER:
            transactions.append(new_order(w, d, at))
        elif kind == PAYMENT:
            transactions.append(payment(w, d, at))
        elif kind == ORDER_STATUS:
            transactions.append(OrderStatus(w, d, *customer(w, d)))
        elif kind == DELIVERY:
            transactions.append(Delivery(w, draw.between(1, 10), at))
        else:
            transactions.append(StockLevel(w, d, draw.between(10, 20)))
    return Log.declare(scale, seed, transactions)


def _directory(scale: Scale, seed: int) -> dict[tuple[int, int, str], tuple[int, int]]:
    """(w, d, last name) to (customer number, customers of that name).

    The customer is the middle one by first name, rounded up (clause 2.5.2.2).
    """
    bearers: dict[tuple[int, int, str], list[tuple[str, int]]] = {}
    for w in range(scale.warehouses):
        for d, names in enumerate(customer_names(scale, seed, w)):
            for c, (last, first) in enumerate(names):
                bearers.setdefault((w, d, last), []).append((first, c))
    return {
        name: (sorted(found)[(len(found) - 1) // 2][1], len(found))
        for name, found in bearers.items()
    }


def ycsb(
    n: int,
    scale: YcsbScale,
    seed: int,
    mix: str = "A",
    theta: float = 0.99,
    operations: int = 10,
    hot: float = 0.0,
) -> Log:
    """n transactions of a core workload of YCSB (Cooper et al., SoCC 2010).

    Each draws a partition and there `operations` independent operations in the
    shares of `mix`: A half reads, half updates; B 95:5; C reads alone; F half reads,
    half read-modify-writes. Records are Zipf within the partition, not scrambled: the
    record of the lowest number is the most popular of each partition. A share `hot`
    of transactions also increments the one counter.
    """
    require(n >= 1, f"n={n} transactions: expected at least 1")
    require(operations >= 1, f"operations={operations}: expected at least 1")
    require(0 <= hot <= 1, f"hot={hot}: expected a share from 0 to 1")
    thresholds = np.cumsum(YCSB_MIXES[choice("mix", mix, YCSB_MIXES)])[:-1].tolist()
    draw, popularity = Draw(f"ycsb {seed}"), Zipf(theta, scale.records)

    def operation() -> Operation:
        return Operation(
            what=OPERATIONS[bisect_right(thresholds, draw.unit())],
            record=popularity.rank(draw),
            field=draw.between(0, FIELDS - 1),
            value=draw.between(0, 10**9 - 1),
        )

    transactions = [
        Ycsb(
            partition=draw.between(0, scale.files - 1),
            operations=tuple(operation() for _ in range(operations)),
            counter=scale.files if draw.unit() < hot else None,
        )
        for _ in range(n)
    ]
    return Log.declare(scale, seed, transactions)


def declared_locks(
    scale: Scale | YcsbScale, t: Transaction
) -> tuple[list[int], list[int]]:
    """(shared, exclusive) locks that `t` declares before it runs.

    Orders, and the customers of a district, are locked as groups where a transaction
    cannot name its rows in advance: Delivery does not know whose orders are oldest.
    Stock-Level takes no locks on stock: TPC-C asks only for reads of committed
    data there (level 1 isolation, clause 3.4.1). The row of an unknown item is
    declared too, or the size of the set would give a rollback away. Raises
    InvalidInput for a name that no reconnaissance has resolved, and for a transaction
    of the other benchmark.
    """
    if isinstance(scale, YcsbScale):
        return _ycsb_locks(scale, t)
    match t:
        case Payment(customer=c) | OrderStatus(customer=c) if c == UNRESOLVED:
            raise InvalidInput(
                f"the customer named {t.last_name} has no number yet: "
                "let a session reconnoitre the transaction first"
            )
        case NewOrder(w, d, c, lines):
            files = {w, *(line.supply_warehouse for line in lines)}
            stock = {scale.stock(line.supply_warehouse, line.item) for line in lines}
            shared = [
                scale.warehouse(w),
                scale.customers_of(w, d),
                scale.customer(w, d, c),
            ]
            written = [scale.district(w, d), scale.orders(w, d), *sorted(stock)]
        case Payment(w, d, cw, cd, c):
            files = {w, cw}
            shared = [scale.customers_of(cw, cd)]
            written = [
                scale.warehouse(w),
                scale.district(w, d),
                scale.customer(cw, cd, c),
            ]
        case OrderStatus(w, d, c):
            files = set()
            shared = [
                scale.customers_of(w, d),
                scale.customer(w, d, c),
                scale.orders(w, d),
            ]
            written = []
        case Delivery(w):
            files = {w}
            shared = []
            written = [scale.orders(w, d) for d in range(DISTRICTS)]
            written += [scale.customers_of(w, d) for d in range(DISTRICTS)]
        case StockLevel(w, d):
            files = set()
            shared = [scale.district(w, d), scale.orders(w, d)]
            written = []
        case _:
            raise InvalidInput(f"{t.kind} is no transaction of TPC-C: see YcsbScale")
    return shared, [*written, *(scale.file(f) for f in sorted(files))]


def _ycsb_locks(scale: YcsbScale, t: Transaction) -> tuple[list[int], list[int]]:
    if not isinstance(t, Ycsb):
        raise InvalidInput(f"{t.kind} is no transaction of YCSB: see Scale")
    touched = {o.record for o in t.operations}
    written = {o.record for o in t.operations if o.what != "read"}
    counter = [] if t.counter is None else [scale.counter]
    return (
        [scale.record(t.partition, r) for r in sorted(touched - written)],
        [
            *(scale.record(t.partition, r) for r in sorted(written)),
            *counter,
            *(scale.file(f) for f in t.files),
        ],
    )
