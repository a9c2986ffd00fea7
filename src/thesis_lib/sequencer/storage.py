"""Where a log leaves its state: one contract, and the databases that keep it.

`Storage` is a value that names a database; a worker, in this process or another,
opens a `Session` on it and runs transactions. The engine above knows nothing else of
a database, so the same log can be run on each of them.
"""

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from time import perf_counter
from typing import NamedTuple, Protocol, Self

from thesis_lib.checks import InvalidInput, Lost, require
from thesis_lib.sequencer.workload import (
    DISTRICTS,
    FIELDS,
    Delivery,
    Draw,
    NewOrder,
    OrderStatus,
    Payment,
    Scale,
    StockLevel,
    Transaction,
    Ycsb,
    YcsbScale,
    customer_names,
)

UNITS = ("begin", "read", "compute", "write", "commit")
BEGIN, READ, COMPUTE, WRITE, COMMIT = range(5)


class Session(Protocol):
    """One worker's connection to a database."""

    units_s: list[float]  # (len(UNITS),) of the transaction that ran last

    def run(self, t: Transaction) -> bool:
        """Execute `t`, which holds its locks; True if it committed.

        Raises Stale where `t` was declared after a reading that no longer holds.
        """
        ...

    def reconnoitre(self, t: Transaction) -> Transaction:
        """`t` with the customer that its name means now, to be declared.

        A read without locks before the log, as Calvin has it for key sets that only
        the data tell. A transaction that names nobody comes back as it is. Raises
        InvalidInput for a name that nobody bears.
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

    def load(self, scale: Scale | YcsbScale, seed: int) -> None:
        """Fill the empty database with the initial state of this seed."""
        ...

    def copy(self, name: str) -> Self:
        """A database of its own with the same state, beside this one."""
        ...

    def session(self) -> Session: ...

    def digest(self) -> str:
        """`canonical_digest` of its rows: equal states, equal digests, anywhere."""
        ...


@dataclass(frozen=True, slots=True)
class SQLite:
    """One file to a partition in `folder`."""

    folder: Path
    engine = "sqlite"
    one_writer = True

    def load(self, scale: Scale | YcsbScale, seed: int) -> None:
        """Fill the folder, which holds no database yet."""
        load(empty_folder(self.folder), scale, seed)

    def copy(self, name: str) -> Self:
        """The same files in the folder `name` beside this one."""
        try:
            shutil.copytree(self.folder, self.folder.parent / name)
        except OSError as error:
            raise Lost(
                f"the database in {self.folder} cannot be copied: {heard(error)}; see "
                "whether it is still there and its disk has room, and run again"
            ) from error
        return type(self)(self.folder.parent / name)

    def session(self) -> Session:
        """Connections to every file, of one thread."""
        return SQLiteSession(self.folder)

    def digest(self) -> str:
        """`canonical_digest` of the rows of every file."""
        return state_digest(self.folder)


class Stale(InvalidInput):
    """What a reconnaissance found holds no longer; the transaction wrote nothing.

    A transaction reads under its locks, so every replica finds it stale or none does.
    """


def heard(error: BaseException) -> str:
    """An error by its name and text, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def stale(t: Payment | OrderStatus, found: int | None) -> Stale:
    """The refusal of `t`, whose name now means customer `found`, None for nobody."""
    whom = "nobody" if found is None else f"customer {found}"
    return Stale(
        f"{t.last_name} of the district means {whom}, the log says {t.customer}: "
        "reconnoitre the transaction again, or load the database with the scale and "
        "seed of the log"
    )


def resolved(
    t: Transaction, find: Callable[[int, int, str], tuple[int | None, int]]
) -> Transaction:
    """`t` with its customer by `find`: warehouse, district, name to number, bearers.

    The number is None for a name that nobody bears.
    """
    match t:
        case Payment(last_name=str(name)):
            found = find(t.customer_warehouse, t.customer_district, name)
        case OrderStatus(last_name=str(name)):
            found = find(t.warehouse, t.district, name)
        case _:
            return t
    number, matches = found
    if number is None:
        raise InvalidInput(f"no customer is named {name}: expected a name of the data")
    return replace(t, customer=number, name_matches=matches)


def empty_folder(folder: Path) -> Path:
    """Create `folder`; refuse one that holds anything."""
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} exists and is not empty: name a new folder",
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
        "w_id INTEGER, w_name TEXT, w_tax INTEGER, w_ytd INTEGER",
        "w_id",
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
    "new_order": Table(
        "no_d_id INTEGER, no_o_id INTEGER",
        "no_d_id, no_o_id",
    ),
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
    "item": Table(
        "i_id INTEGER, i_name TEXT, i_price INTEGER, i_data TEXT",
        "i_id",
    ),
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


def _text(draw: Draw, length: int) -> str:
    digits = f"{int(draw.unit() * 16**12):012x}"
    return (digits * (length // 12 + 1))[:length]


def initial_rows(
    scale: Scale | YcsbScale, seed: int, partition: int
) -> dict[str, list[tuple]]:
    """Rows of a partition by table, without its number: a function of the seed.

    TPC-C as clause 4.3.3 at this scale: one order to a customer, in a random order of
    customers, of which the last three tenths are still to be delivered. YCSB: records
    of random fields, and the counter alone in the last partition.
    """
    if isinstance(scale, Scale):
        return _initial_tpcc(scale, seed, partition)
    if partition == scale.files:
        return {"counter": [(0, 0)]}
    draw = Draw(f"ycsb {seed} {partition}")
    records = range(scale.records)
    fields = ("".join(_text(draw, FIELD) for _ in range(FIELDS)) for _ in records)
    return {"usertable": list(zip(records, fields, strict=True))}


def _initial_tpcc(scale: Scale, seed: int, w: int) -> dict[str, list[tuple]]:
    items = Draw(f"items {seed}")  # the same in every warehouse
    draw = Draw(f"load {seed} {w}")
    names = customer_names(scale, seed, w)
    shuffle = Random(f"orders {seed} {w}").random
    rows: dict[str, list[tuple]] = {table: [] for table in TABLES}
    rows["warehouse"] = [(w, f"W{w}", draw.between(0, 2_000), DISTRICTS * 3_000_000)]
    for i in range(scale.items):
        price = items.between(100, 10_000)
        rows["item"].append((i, f"item {i}", price, _text(items, 30)))
    for i in range(scale.items):
        quantity = draw.between(10, 100)
        districts, data = _text(draw, 24 * DISTRICTS), _text(draw, 30)
        rows["stock"].append((i, quantity, districts, 0, 0, 0, data))
    customers = scale.customers
    for d in range(DISTRICTS):
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


# --- The files of SQLite -----------------------------------------------------


def warehouse_file(folder: Path, w: int) -> Path:
    """The database file of warehouse, or other partition, w."""
    return folder / f"warehouse-{w}.sqlite"


def warehouse_files(folder: Path) -> list[Path]:
    """The database files in `folder`, by partition. Refuses a folder without any."""
    files = sorted(folder.glob("warehouse-*.sqlite"), key=lambda f: (len(f.name), f))
    require(len(files) > 0, f"{folder} holds no warehouse file: expected a database")
    return files


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit: transactions begin and end where we say so.

    The log is what makes a deterministic database durable, so the files need no
    synchronous write of their own.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def load(folder: Path, scale: Scale | YcsbScale, seed: int) -> None:
    """Fill an empty folder with the initial state, one file to a partition."""
    for w in range(scale.partitions):
        with closing(connect(warehouse_file(folder, w))) as db:
            for name, table in TABLES.items():
                rowid = " WITHOUT ROWID" if "," in table.key else ""
                db.execute(
                    f"CREATE TABLE {name} ({table.columns}, "
                    f"PRIMARY KEY ({table.key})){rowid}"
                )
            for name, (table, columns) in INDEXES.items():
                db.execute(f"CREATE INDEX {name} ON {table} ({columns})")
            db.execute("BEGIN")
            for table, rows in initial_rows(scale, seed, w).items():
                if rows:
                    marks = ", ".join("?" * len(rows[0]))
                    db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
            db.execute("COMMIT")


def state_digest(folder: Path) -> str:
    """`canonical_digest` of the files in `folder`."""

    def rows(table: str) -> Iterable[tuple]:
        for w, path in enumerate(warehouse_files(folder)):
            with closing(connect(path)) as db:
                key = TABLES[table].key
                for row in db.execute(f"SELECT * FROM {table} ORDER BY {key}"):
                    yield (w, *row)

    return canonical_digest(rows)


# --- Transactions ------------------------------------------------------------


class SQLiteSession:
    """One worker's connections, and the time its transaction spends in each unit."""

    def __init__(self, folder: Path) -> None:
        self.files = [connect(path) for path in warehouse_files(folder)]
        self.units_s = [0.0] * len(UNITS)
        self.lap_s = 0.0

    def lap(self, unit: int) -> None:
        """Charge the time since the last lap to `unit`."""
        now = perf_counter()
        self.units_s[unit] += now - self.lap_s
        self.lap_s = now

    def run(self, t: Transaction) -> bool:
        """Execute `t`, which holds its locks; True if it committed."""
        self.units_s = [0.0] * len(UNITS)
        self.lap_s = perf_counter()
        match t:
            case NewOrder():
                return self._new_order(t)
            case Payment():
                return self._payment(t)
            case OrderStatus():
                return self._order_status(t)
            case Delivery():
                return self._delivery(t)
            case StockLevel():
                return self._stock_level(t)
            case Ycsb():
                return self._ycsb(t)

    def reconnoitre(self, t: Transaction) -> Transaction:
        """`t` with the customer that its name means now, to be declared."""
        return resolved(t, lambda w, d, last: self._find(self.files[w], d, last))

    def close(self) -> None:
        for connection in self.files:
            connection.close()

    def _end(self, files, statement: str) -> None:
        # Nobody else can see one file committed and the other not: both are locked.
        for w in files:
            self.files[w].execute(statement)
        self.lap(COMMIT)

    def _begin(self, files, statement: str) -> None:
        for w in files:
            self.files[w].execute(statement)
        self.lap(BEGIN)

    def _find(self, db, d: int, last: str) -> tuple[int | None, int]:
        found = db.execute(
            "SELECT c_id FROM customer WHERE c_d_id = ? AND c_last = ? "
            "ORDER BY c_first",
            (d, last),
        ).fetchall()
        return found[(len(found) - 1) // 2][0] if found else None, len(found)

    def _check(self, t: Payment | OrderStatus, db, d: int, files: list[int]) -> None:
        """Look up the name again, under the locks; roll back and refuse if stale."""
        if t.last_name is not None:
            found, _ = self._find(db, d, t.last_name)
            if found != t.customer:
                self._end(files, "ROLLBACK")
                raise stale(t, found)

    def _new_order(self, t: NewOrder) -> bool:
        db = self.files[t.warehouse]
        files = sorted({t.warehouse, *(line.supply_warehouse for line in t.lines)})
        self._begin(files, "BEGIN IMMEDIATE")
        w_tax = db.execute("SELECT w_tax FROM warehouse").fetchone()[0]
        d_tax, o_id = db.execute(
            "SELECT d_tax, d_next_o_id FROM district WHERE d_id = ?", (t.district,)
        ).fetchone()
        discount = db.execute(
            "SELECT c_discount FROM customer WHERE c_d_id = ? AND c_id = ?",
            (t.district, t.customer),
        ).fetchone()[0]
        prices, stock = [], {}
        for item, supply, _ in t.lines:
            price = db.execute(
                "SELECT i_price FROM item WHERE i_id = ?", (item,)
            ).fetchone()
            if price is None:  # an unused item number: clause 2.4.1.4
                self.lap(READ)
                self._end(files, "ROLLBACK")
                return False
            prices.append(price[0])
            if (supply, item) not in stock:
                stock[supply, item] = (
                    self.files[supply]
                    .execute(
                        "SELECT s_quantity, s_ytd, s_order_cnt, s_remote_cnt, "
                        "substr(s_dists, ?, 24) FROM stock WHERE s_i_id = ?",
                        (24 * t.district + 1, item),
                    )
                    .fetchone()
                )
        self.lap(READ)

        lines = []
        for number, (line, price) in enumerate(zip(t.lines, prices, strict=True)):
            item, supply, quantity = line
            left, ytd, orders, remote, info = stock[supply, item]
            left = left - quantity if left >= quantity + 10 else left - quantity + 91
            remote += supply != t.warehouse
            stock[supply, item] = (left, ytd + quantity, orders + 1, remote, info)
            rate = (10_000 - discount) * (10_000 + w_tax + d_tax)
            amount = quantity * price * rate // 10**8
            lines.append(
                (t.district, o_id, number, item, supply, quantity, amount, info)
            )
        local = all(line.supply_warehouse == t.warehouse for line in t.lines)
        self.lap(COMPUTE)

        db.execute(
            "UPDATE district SET d_next_o_id = ? WHERE d_id = ?", (o_id + 1, t.district)
        )
        db.execute(
            "INSERT INTO orders VALUES (?, ?, ?, ?, NULL, ?, ?)",
            (t.district, o_id, t.customer, t.entered, len(lines), local),
        )
        db.execute("INSERT INTO new_order VALUES (?, ?)", (t.district, o_id))
        for w in files:
            self.files[w].executemany(
                "UPDATE stock SET s_quantity = ?, s_ytd = ?, s_order_cnt = ?, "
                "s_remote_cnt = ? WHERE s_i_id = ?",
                [
                    (*row[:4], item)
                    for (supply, item), row in stock.items()
                    if supply == w
                ],
            )
        db.executemany(
            "INSERT INTO order_line VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?)", lines
        )
        self.lap(WRITE)
        self._end(files, "COMMIT")
        return True

    def _payment(self, t: Payment) -> bool:
        db, theirs = self.files[t.warehouse], self.files[t.customer_warehouse]
        files = sorted({t.warehouse, t.customer_warehouse})
        self._begin(files, "BEGIN IMMEDIATE")
        w_name = db.execute("SELECT w_name FROM warehouse").fetchone()[0]
        d_name = db.execute(
            "SELECT d_name FROM district WHERE d_id = ?", (t.district,)
        ).fetchone()[0]
        customer = t.customer
        self._check(t, theirs, t.customer_district, files)
        credit, data = theirs.execute(
            "SELECT c_credit, c_data FROM customer WHERE c_d_id = ? AND c_id = ?",
            (t.customer_district, customer),
        ).fetchone()
        self.lap(READ)
        if credit == "BC":  # clause 2.5.2.2: the record of a bad payer grows
            data = (
                f"{customer} {t.customer_district} {t.customer_warehouse} "
                f"{t.district} {t.warehouse} {t.amount_cents} {data}"
            )[:500]
        self.lap(COMPUTE)
        cents = t.amount_cents
        db.execute("UPDATE warehouse SET w_ytd = w_ytd + ?", (cents,))
        db.execute(
            "UPDATE district SET d_ytd = d_ytd + ? WHERE d_id = ?", (cents, t.district)
        )
        theirs.execute(
            "UPDATE customer SET c_balance = c_balance - ?, "
            "c_ytd_payment = c_ytd_payment + ?, c_payment_cnt = c_payment_cnt + 1, "
            "c_data = ? WHERE c_d_id = ? AND c_id = ?",
            (cents, cents, data, t.customer_district, customer),
        )
        db.execute(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                t.entered,
                t.customer_warehouse,
                t.customer_district,
                customer,
                t.district,
                cents,
                f"{w_name}    {d_name}",
            ),
        )
        self.lap(WRITE)
        self._end(files, "COMMIT")
        return True

    def _order_status(self, t: OrderStatus) -> bool:
        db, d = self.files[t.warehouse], t.district
        self._begin([t.warehouse], "BEGIN")
        customer = t.customer
        self._check(t, db, d, [t.warehouse])
        db.execute(
            "SELECT c_balance, c_first, c_last FROM customer "
            "WHERE c_d_id = ? AND c_id = ?",
            (d, customer),
        ).fetchone()
        order = db.execute(
            "SELECT o_id, o_entry, o_carrier_id FROM orders "
            "WHERE o_d_id = ? AND o_c_id = ? ORDER BY o_id DESC LIMIT 1",
            (d, customer),
        ).fetchone()
        db.execute(
            "SELECT ol_i_id, ol_supply_w_id, ol_quantity, ol_amount, ol_delivery "
            "FROM order_line WHERE ol_d_id = ? AND ol_o_id = ?",
            (d, order[0]),
        ).fetchall()
        self.lap(READ)
        self._end([t.warehouse], "COMMIT")
        return True

    def _delivery(self, t: Delivery) -> bool:
        db = self.files[t.warehouse]
        self._begin([t.warehouse], "BEGIN IMMEDIATE")
        for d in range(DISTRICTS):
            oldest = db.execute(
                "SELECT no_o_id FROM new_order WHERE no_d_id = ? "
                "ORDER BY no_o_id LIMIT 1",
                (d,),
            ).fetchone()
            if oldest is None:  # clause 2.7.4.2: skip a district with none
                self.lap(READ)
                continue
            (customer,) = db.execute(
                "SELECT o_c_id FROM orders WHERE o_d_id = ? AND o_id = ?",
                (d, oldest[0]),
            ).fetchone()
            (total,) = db.execute(
                "SELECT sum(ol_amount) FROM order_line "
                "WHERE ol_d_id = ? AND ol_o_id = ?",
                (d, oldest[0]),
            ).fetchone()
            self.lap(READ)
            db.execute(
                "DELETE FROM new_order WHERE no_d_id = ? AND no_o_id = ?",
                (d, oldest[0]),
            )
            db.execute(
                "UPDATE orders SET o_carrier_id = ? WHERE o_d_id = ? AND o_id = ?",
                (t.carrier, d, oldest[0]),
            )
            db.execute(
                "UPDATE order_line SET ol_delivery = ? "
                "WHERE ol_d_id = ? AND ol_o_id = ?",
                (t.entered, d, oldest[0]),
            )
            db.execute(
                "UPDATE customer SET c_balance = c_balance + ?, "
                "c_delivery_cnt = c_delivery_cnt + 1 WHERE c_d_id = ? AND c_id = ?",
                (total, d, customer),
            )
            self.lap(WRITE)
        self._end([t.warehouse], "COMMIT")
        return True

    def _stock_level(self, t: StockLevel) -> bool:
        db = self.files[t.warehouse]
        self._begin([t.warehouse], "BEGIN")
        (next_order,) = db.execute(
            "SELECT d_next_o_id FROM district WHERE d_id = ?", (t.district,)
        ).fetchone()
        db.execute(
            "SELECT count(DISTINCT s_i_id) FROM order_line "
            "JOIN stock ON s_i_id = ol_i_id "
            "WHERE ol_d_id = ? AND ol_o_id BETWEEN ? AND ? AND s_quantity < ?",
            (t.district, next_order - 20, next_order - 1, t.threshold),
        ).fetchone()
        self.lap(READ)
        self._end([t.warehouse], "COMMIT")
        return True

    def _ycsb(self, t: Ycsb) -> bool:
        db = self.files[t.partition]
        self._begin(t.files, "BEGIN IMMEDIATE")
        if t.partition not in t.files:
            self._begin([t.partition], "BEGIN")
        for what, record, field, value in t.operations:
            first, behind = FIELD * field, FIELD * (field + 1)
            if what == "update":
                db.execute(
                    "UPDATE usertable SET y_fields = "
                    "substr(y_fields, 1, ?) || ? || substr(y_fields, ?) "
                    "WHERE y_id = ?",
                    (first, f"{value:010d}" * (FIELD // 10), behind + 1, record),
                )
                self.lap(WRITE)
                continue
            (old,) = db.execute(
                "SELECT y_fields FROM usertable WHERE y_id = ?", (record,)
            ).fetchone()
            self.lap(READ)
            if what == "modify":
                changed = f"{value:010d}{old[first:behind]}"[:FIELD]
                self.lap(COMPUTE)
                db.execute(
                    "UPDATE usertable SET y_fields = ? WHERE y_id = ?",
                    (old[:first] + changed + old[behind:], record),
                )
                self.lap(WRITE)
        if t.counter is not None:
            self.files[t.counter].execute("UPDATE counter SET n_value = n_value + 1")
            self.lap(WRITE)
        self._end(sorted({t.partition, *t.files}), "COMMIT")
        return True
