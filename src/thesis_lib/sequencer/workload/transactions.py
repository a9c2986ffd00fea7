"""The transactions of TPC-C and YCSB, their logs, and the locks that they declare."""

from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple, Self, get_args

import numpy as np

from thesis_lib.common.errors import InvalidInput, require, require_count
from thesis_lib.sequencer.core.trace import I64, KeySets

ZIPF_UNIT, ZIPF_LARGEST = 10**10, 400_000  # their product stays below 2^52

ORDER_LINES = 5, 15  # fewest and most, TPC-C clause 2.4.1.3


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


DISTRICTS = 10  # to a warehouse, TPC-C clause 1.2.1

# --- TPC-C -------------------------------------------------------------------
NEW_ORDER, PAYMENT, ORDER_STATUS, DELIVERY, STOCK_LEVEL = range(5)
TPCC_KINDS = ("new_order", "payment", "order_status", "delivery", "stock_level")
TPCC_MIXES = {
    "spec": (0.45, 0.43, 0.04, 0.04, 0.04),  # TPC-C clause 5.2.3, as widely run
    "new-order/payment": (0.5, 0.5, 0.0, 0.0, 0.0),
}
_SYLLABLES = (
    *("BAR", "OUGHT", "ABLE", "PRI", "PRES"),
    *("ESE", "ANTI", "CALLY", "ATION", "EING"),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a TPC-C database, and the number of each of its locks.

    The specification has 3,000 customers to a district and 100,000 items; the
    defaults are a tenth and a hundredth of that, and non-uniform choices scale along.
    Raises InvalidInput for a database too small to run every transaction.
    """

    warehouses: int = 2
    customers: int = 300  # to a district
    items: int = 1_000
    kinds = TPCC_KINDS

    def __post_init__(self) -> None:
        for name, least in {"warehouses": 1, "customers": 30, "items": 100}.items():
            value = getattr(self, name)
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


@dataclass(frozen=True, slots=True)
class YcsbScale:
    """The size of a YCSB database, and the number of each of its locks.

    Records lie in `files` partitions; one more holds the counter, so that counting
    locks no file of records. Raises InvalidInput for a count out of range.
    """

    files: int = 2
    records: int = 1_000  # to a file
    kinds = YCSB_KINDS

    def __post_init__(self) -> None:
        require_count("files", self.files)
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
TYPES: tuple[type[Transaction], ...] = get_args(Transaction)


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
        mask = (keys.keys < files.start) | (keys.keys >= files.stop)
        offsets = np.concatenate([[0], np.cumsum(mask)])[keys.offsets]
        rows = KeySets(offsets, keys.keys[mask], keys.exclusive[mask])
        return replace(self, keys=rows)


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
        every = scale.last_names
        lasts = [
            c if c < every else draw.skewed(255, 1_000, every, shift=0)
            for c in range(scale.customers)
        ]
        pairs = zip(lasts, firsts, strict=True)
        names.append([(last_name(last), f"N{first:05d}") for last, first in pairs])
    return names


def declared_locks(
    scale: Scale | YcsbScale, t: Transaction
) -> tuple[list[int], list[int]]:
    """(shared, exclusive) locks that `t` declares before it runs.

    Orders, and the customers of a district, are locked as groups where a transaction
    cannot name its rows in advance: Delivery does not know whose orders are oldest.
    Stock-Level takes no locks on stock: TPC-C asks only for reads of committed
    data there (level 1 isolation, clause 3.4.1). The row of an unknown item is
    declared too, or the size of the set would give a rollback away. Raises
    InvalidInput for a transaction of the other benchmark.
    """
    if isinstance(scale, YcsbScale):
        return _ycsb_locks(scale, t)
    match t:
        case NewOrder(w, d, c, lines):
            files = {w, *(line.supply_warehouse for line in lines)}
            stock = {scale.stock(line.supply_warehouse, line.item) for line in lines}
            buyer = scale.customers_of(w, d), scale.customer(w, d, c)
            shared = [scale.warehouse(w), *buyer]
            written = [scale.district(w, d), scale.orders(w, d), *sorted(stock)]
        case Payment(w, d, cw, cd, c):
            files, shared = {w, cw}, [scale.customers_of(cw, cd)]
            payer = scale.customer(cw, cd, c)
            written = [scale.warehouse(w), scale.district(w, d), payer]
        case OrderStatus(w, d, c):
            buyer = scale.customers_of(w, d), scale.customer(w, d, c)
            files, shared, written = set(), [*buyer, scale.orders(w, d)], []
        case Delivery(w):
            groups = (scale.orders, scale.customers_of)
            written = [lock(w, d) for lock in groups for d in range(DISTRICTS)]
            files, shared = {w}, []
        case StockLevel(w, d):
            shared = [scale.district(w, d), scale.orders(w, d)]
            files, written = set(), []
        case _:
            raise InvalidInput(f"{t.kind} is no transaction of TPC-C: see YcsbScale")
    return shared, [*written, *(scale.file(f) for f in sorted(files))]


def _ycsb_locks(scale: YcsbScale, t: Transaction) -> tuple[list[int], list[int]]:
    if not isinstance(t, Ycsb):
        raise InvalidInput(f"{t.kind} is no transaction of YCSB: see Scale")
    touched = {o.record for o in t.operations}
    written = {o.record for o in t.operations if o.what != "read"}
    shared, exclusive = (
        [scale.record(t.partition, r) for r in sorted(records)]
        for records in (touched - written, written)
    )
    exclusive += [] if t.counter is None else [scale.counter]
    return shared, exclusive + [scale.file(f) for f in t.files]
