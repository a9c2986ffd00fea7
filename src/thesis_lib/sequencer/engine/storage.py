"""The interface of a database that executes a log, and its implementations.

`Storage` is a value that names a database; a worker, in this process or another,
opens a `Session` on it and runs transactions. The engine above knows nothing else of
a database, so the same log can be run on each of them.
"""

import hashlib
from collections.abc import Callable, Iterable
from random import Random
from typing import NamedTuple, Protocol, Self

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.workload import transactions as txn

UNITS = ("begin", "read", "compute", "write", "commit")
BEGIN, READ, COMPUTE, WRITE, COMMIT = range(5)


class Session(Protocol):
    """One worker's connection to a database."""

    units_s: list[float]  # (len(UNITS),) of the transaction that ran last

    def run(self, t: txn.Transaction) -> bool:
        """Execute `t`, which holds its locks; True if it committed.

        Raises Stale where `t` was declared after a reading that no longer holds.
        """
        ...

    def close(self) -> None: ...


class Storage(Protocol):
    """A database by name: opening it is a session's affair. It can be pickled."""

    @property
    def engine(self) -> str: ...

    @property
    def one_writer(self) -> bool:
        """Whether a partition has one writer at a time, so that its file is locked."""
        ...

    def load(self, scale: txn.Scale | txn.YcsbScale, seed: int) -> None:
        """Fill the empty database with the initial state of this seed."""
        ...

    def copy(self, name: str) -> Self:
        """Return a separate copy of this database."""
        ...

    def session(self) -> Session: ...

    def digest(self) -> str:
        """`canonical_digest` of its rows: equal states, equal digests, anywhere."""
        ...


class Stale(InvalidInput):
    """A reconnaissance is outdated; the transaction wrote nothing.

    A transaction reads under its locks, so every replica finds it stale or none does.
    """


def heard(error: BaseException) -> str:
    """An error by its name and text, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def stale(t: txn.Payment | txn.OrderStatus, customer: int | None) -> Stale:
    """Return the error for `t`, whose name now means `customer`, or no customer."""
    whom = "nobody" if customer is None else f"customer {customer}"
    return Stale(
        f"{t.last_name} of the district means {whom}, the log says {t.customer}: "
        "declare the transaction again with whom it means now, or load the database "
        "with the scale and seed of the log"
    )


# --- One state in every database ---------------------------------------------
class Table(NamedTuple):
    """Columns with their types, and the primary key within a partition."""

    columns: str
    key: str


# Money is in cents, rates in basis points, times are positions in the log: integers
# only, so that equal states are equal bytes. A partition has a file of its own, or
# else is a column `w` in front, hence no warehouse column in these keys.
TABLES = {
    "warehouse": Table(
        "w_id INTEGER, w_name TEXT, w_tax INTEGER, w_ytd INTEGER", "w_id"
    ),
    "district": Table(
        "d_id INTEGER, d_name TEXT, d_tax INTEGER, d_ytd INTEGER, d_next_o_id INTEGER",
        "d_id",
    ),
    "customer": Table(
        "c_d_id INTEGER, c_id INTEGER, c_last TEXT, c_first TEXT, c_credit TEXT, "
        "c_discount INTEGER, c_balance INTEGER, c_ytd_payment INTEGER, "
        "c_payment_cnt INTEGER, c_delivery_cnt INTEGER, c_data TEXT",
        "c_d_id, c_id",
    ),
    "history": Table(
        "h_id INTEGER, h_c_w_id INTEGER, h_c_d_id INTEGER, h_c_id INTEGER, "
        "h_d_id INTEGER, h_amount INTEGER, h_data TEXT",
        "h_id",
    ),
    "new_order": Table("no_d_id INTEGER, no_o_id INTEGER", "no_d_id, no_o_id"),
    "orders": Table(
        "o_d_id INTEGER, o_id INTEGER, o_c_id INTEGER, o_entry INTEGER, "
        "o_carrier_id INTEGER, o_ol_cnt INTEGER, o_all_local INTEGER",
        "o_d_id, o_id",
    ),
    "order_line": Table(
        "ol_d_id INTEGER, ol_o_id INTEGER, ol_number INTEGER, ol_i_id INTEGER, "
        "ol_supply_w_id INTEGER, ol_delivery INTEGER, ol_quantity INTEGER, "
        "ol_amount INTEGER, ol_dist_info TEXT",
        "ol_d_id, ol_o_id, ol_number",
    ),
    "item": Table("i_id INTEGER, i_name TEXT, i_price INTEGER, i_data TEXT", "i_id"),
    "stock": Table(
        "s_i_id INTEGER, s_quantity INTEGER, s_dists TEXT, s_ytd INTEGER, "
        "s_order_cnt INTEGER, s_remote_cnt INTEGER, s_data TEXT",
        "s_i_id",
    ),
    "usertable": Table("y_id INTEGER, y_fields TEXT", "y_id"),
    "counter": Table("n_id INTEGER, n_value INTEGER", "n_id"),
}
INDEXES = {
    "customer_name": ("customer", "c_d_id, c_last, c_first"),
    "orders_customer": ("orders", "o_d_id, o_c_id, o_id"),
}
FIELD = 100  # characters of a field of a YCSB record


def _text(draw: txn.Draw, length: int) -> str:
    digits = f"{int(draw.unit() * 16**12):012x}"
    return (digits * (length // 12 + 1))[:length]


def initial_rows(
    scale: txn.Scale | txn.YcsbScale, seed: int, partition: int
) -> dict[str, list[tuple]]:
    """Rows of a partition by table, without its number: a function of the seed.

    TPC-C as clause 4.3.3 at this scale: one order to a customer, in a random order of
    customers, of which the last three tenths are still to be delivered. YCSB: records
    of random fields, and the counter alone in the last partition.
    """
    if isinstance(scale, txn.Scale):
        return _initial_tpcc(scale, seed, partition)
    if partition == scale.files:
        return {"counter": [(0, 0)]}
    draw = txn.Draw(f"ycsb {seed} {partition}")
    records = range(scale.records)
    fields = ("".join(_text(draw, FIELD) for _ in range(txn.FIELDS)) for _ in records)
    return {"usertable": list(zip(records, fields, strict=True))}


def _initial_tpcc(scale: txn.Scale, seed: int, w: int) -> dict[str, list[tuple]]:
    items = txn.Draw(f"items {seed}")  # the same in every warehouse
    draw = txn.Draw(f"load {seed} {w}")
    names = txn.customer_names(scale, seed, w)
    shuffle = Random(f"orders {seed} {w}").random
    rows: dict[str, list[tuple]] = {table: [] for table in TABLES}
    rows["warehouse"] = [
        (w, f"W{w}", draw.between(0, 2_000), txn.DISTRICTS * 3_000_000)
    ]
    for i in range(scale.items):
        price = items.between(100, 10_000)
        rows["item"].append((i, f"item {i}", price, _text(items, 30)))
    for i in range(scale.items):
        quantity = draw.between(10, 100)
        districts, data = _text(draw, 24 * txn.DISTRICTS), _text(draw, 30)
        rows["stock"].append((i, quantity, districts, 0, 0, 0, data))
    customers = scale.customers
    for d in range(txn.DISTRICTS):
        tax = draw.between(0, 2_000)
        rows["district"].append((d, f"D{d}", tax, 3_000_000, customers + 1))
        for c, (last, first) in enumerate(names[d]):
            credit = "BC" if draw.unit() < 0.1 else "GC"
            discount, data = draw.between(0, 5_000), _text(draw, 400)
            rows["customer"].append(
                (d, c, last, first, credit, discount, -1000, 1000, 1, 0, data)
            )
        buyers = sorted(range(customers), key=lambda _: shuffle())
        for o, c in enumerate(buyers, start=1):
            delivered = o <= customers - customers * 3 // 10
            count = draw.between(5, 15)
            carrier = draw.between(1, 10) if delivered else None
            rows["orders"].append((d, o, c, -1, carrier, count, 1))
            if not delivered:
                rows["new_order"].append((d, o))
            for number in range(count):
                item = draw.between(0, scale.items - 1)
                amount = 0 if delivered else draw.between(1, 999_999)
                entry = -1 if delivered else None
                rows["order_line"].append(
                    (d, o, number, item, 0, entry, 5, amount, _text(draw, 24))
                )
    return rows


def canonical_digest(rows: Callable[[str], Iterable[tuple]]) -> str:
    """SHA-256 of a state, whichever database keeps it.

    `rows(table)` gives every row of a table as integers, strings and None, the
    partition in front, ordered by partition and primary key. Each counts as the text
    of its tuple, under the name of its table.
    """
    state = hashlib.sha256()
    for table in TABLES:
        state.update(f"{table}\n".encode())
        for row in rows(table):
            state.update(f"{row!r}\n".encode())
    return state.hexdigest()
