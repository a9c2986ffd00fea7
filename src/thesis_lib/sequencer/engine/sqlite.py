"""SQLite as a storage: one connection a session, and the transactions in it."""

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from time import perf_counter
from typing import Any, Self, TypeVar

from thesis_lib.common.errors import Lost, require
from thesis_lib.sequencer.engine.storage import (
    BEGIN,
    COMMIT,
    COMPUTE,
    FIELD,
    INDEXES,
    READ,
    TABLES,
    UNITS,
    WRITE,
    Session,
    Stale,
    canonical_digest,
    heard,
    initial_rows,
    stale,
)
from thesis_lib.sequencer.workload import transactions as txn

T = TypeVar("T", bound=txn.Transaction)


@dataclass(frozen=True, slots=True)
class SQLite:
    """One file to a partition in `folder`."""

    folder: Path
    engine = "sqlite"
    one_writer = True

    def load(self, scale: txn.Scale | txn.YcsbScale, seed: int) -> None:
        """Fill the folder, which holds no database yet, with a file to a partition."""
        require(
            not self.folder.exists()
            or (self.folder.is_dir() and not any(self.folder.iterdir())),
            f"{self.folder} exists and is not empty: name a new folder",
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        for w in range(scale.partitions):
            path = self.folder / f"warehouse-{w}.sqlite"
            with closing(connect(path)) as db:
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

    def files(self) -> list[Path]:
        """The database files, by partition. Raises InvalidInput where there is none."""
        databases = self.folder.glob("warehouse-*.sqlite")
        files = sorted(databases, key=lambda file: (len(file.name), file))
        require(bool(files), f"{self.folder} holds no warehouse file: load it first")
        return files

    def copy(self, name: str) -> Self:
        """Return a copy of the files in the sibling folder `name`."""
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
        return SQLiteSession(self.files())

    def digest(self) -> str:
        """`canonical_digest` of the rows of every file."""

        def rows(table: str) -> Iterable[tuple]:
            for w, path in enumerate(self.files()):
                with closing(connect(path)) as db:
                    key = TABLES[table].key
                    for row in db.execute(f"SELECT * FROM {table} ORDER BY {key}"):
                        yield (w, *row)

        return canonical_digest(rows)


def connect(path: Path) -> Connection:
    """A connection in autocommit: transactions begin and end where we say so.

    The log is what makes a deterministic database durable, so the files need no
    synchronous write of their own.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


# --- Transactions ------------------------------------------------------------
class SQLiteSession:
    """One worker's connections, and the time its transaction spends in each unit."""

    def __init__(self, paths: list[Path]) -> None:
        self.files = [connect(path) for path in paths]
        self.units_s = [0.0] * len(UNITS)
        self.lap_s = 0.0

    def lap(self, unit: int) -> None:
        """Charge the time since the last lap to `unit`."""
        now = perf_counter()
        self.units_s[unit] += now - self.lap_s
        self.lap_s = now

    def run(self, t: txn.Transaction) -> bool:
        """Execute `t`, which holds its locks; True if it committed."""
        self.units_s = [0.0] * len(UNITS)
        self.lap_s = perf_counter()
        match t:
            case txn.NewOrder(warehouse=w):
                written = {w, *(line.supply_warehouse for line in t.lines)}
                return self._within(t, self._new_order, written)
            case txn.Payment(warehouse=w):
                return self._within(t, self._payment, {w, t.customer_warehouse})
            case txn.OrderStatus():
                return self._within(t, self._order_status, read={t.warehouse})
            case txn.Delivery():
                return self._within(t, self._delivery, {t.warehouse})
            case txn.StockLevel():
                return self._within(t, self._stock_level, read={t.warehouse})
            case txn.Ycsb():
                return self._within(t, self._ycsb, {*t.files}, {t.partition})

    def close(self) -> None:
        for connection in self.files:
            connection.close()

    def _within(
        self,
        t: T,
        steps: Callable[[T], bool],
        written: Set[int] = frozenset(),
        read: Set[int] = frozenset(),
    ) -> bool:
        """Begin in every file, run the steps, then commit or roll back all of them."""
        files, rejection, committed = sorted(written | read), None, False
        for w in files:
            self.files[w].execute("BEGIN IMMEDIATE" if w in written else "BEGIN")
        self.lap(BEGIN)
        try:
            committed = steps(t)
        except Stale as error:
            rejection = error
        for w in files:
            self.files[w].execute("COMMIT" if committed else "ROLLBACK")
        self.lap(COMMIT)
        if rejection is not None:
            raise rejection
        return committed

    def _check(self, t: txn.Payment | txn.OrderStatus, db: Connection, d: int) -> None:
        """Look up the name again, under the locks; reject the transaction if stale."""
        if t.last_name is not None:
            bearers = db.execute(
                "SELECT c_id FROM customer WHERE c_d_id = ? AND c_last = ? "
                "ORDER BY c_first",
                (d, t.last_name),
            ).fetchall()
            customer = bearers[(len(bearers) - 1) // 2][0] if bearers else None
            if customer != t.customer:
                raise stale(t, customer)

    def _new_order(self, t: txn.NewOrder) -> bool:
        db, d = self.files[t.warehouse], t.district
        (w_tax,) = _one(db, "SELECT w_tax FROM warehouse")
        d_tax, o_id = _one(
            db, "SELECT d_tax, d_next_o_id FROM district WHERE d_id = ?", d
        )
        (discount,) = _one(
            db,
            "SELECT c_discount FROM customer WHERE c_d_id = ? AND c_id = ?",
            *(d, t.customer),
        )
        prices, stock = [], {}
        for item, supply, _ in t.lines:
            price = _one(db, "SELECT i_price FROM item WHERE i_id = ?", item)
            if price is None:  # an unused item number: clause 2.4.1.4
                self.lap(READ)
                return False
            prices.append(price[0])
            if (supply, item) not in stock:
                stock[supply, item] = _one(
                    self.files[supply],
                    "SELECT s_quantity, s_ytd, s_order_cnt, s_remote_cnt, "
                    "substr(s_dists, ?, 24) FROM stock WHERE s_i_id = ?",
                    *(24 * d + 1, item),
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
            lines.append((d, o_id, number, item, supply, quantity, amount, info))
        local = all(line.supply_warehouse == t.warehouse for line in t.lines)
        self.lap(COMPUTE)

        db.execute("UPDATE district SET d_next_o_id = ? WHERE d_id = ?", (o_id + 1, d))
        db.execute(
            "INSERT INTO orders VALUES (?, ?, ?, ?, NULL, ?, ?)",
            (d, o_id, t.customer, t.entered, len(lines), local),
        )
        db.execute("INSERT INTO new_order VALUES (?, ?)", (d, o_id))
        for (supply, item), row in stock.items():
            self.files[supply].execute(
                "UPDATE stock SET s_quantity = ?, s_ytd = ?, s_order_cnt = ?, "
                "s_remote_cnt = ? WHERE s_i_id = ?",
                (*row[:4], item),
            )
        db.executemany(
            "INSERT INTO order_line VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?)", lines
        )
        self.lap(WRITE)
        return True

    def _payment(self, t: txn.Payment) -> bool:
        db, theirs = self.files[t.warehouse], self.files[t.customer_warehouse]
        cd, c, cents = t.customer_district, t.customer, t.amount_cents
        (w_name,) = _one(db, "SELECT w_name FROM warehouse")
        (d_name,) = _one(db, "SELECT d_name FROM district WHERE d_id = ?", t.district)
        self._check(t, theirs, cd)
        credit, data = _one(
            theirs,
            "SELECT c_credit, c_data FROM customer WHERE c_d_id = ? AND c_id = ?",
            *(cd, c),
        )
        self.lap(READ)
        if credit == "BC":  # clause 2.5.2.2: the record of a bad payer grows
            who = f"{c} {cd} {t.customer_warehouse} {t.district} {t.warehouse}"
            data = f"{who} {cents} {data}"[:500]
        self.lap(COMPUTE)
        db.execute("UPDATE warehouse SET w_ytd = w_ytd + ?", (cents,))
        db.execute(
            "UPDATE district SET d_ytd = d_ytd + ? WHERE d_id = ?", (cents, t.district)
        )
        theirs.execute(
            "UPDATE customer SET c_balance = c_balance - ?, "
            "c_ytd_payment = c_ytd_payment + ?, c_payment_cnt = c_payment_cnt + 1, "
            "c_data = ? WHERE c_d_id = ? AND c_id = ?",
            (cents, cents, data, cd, c),
        )
        note = f"{w_name}    {d_name}"
        db.execute(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?)",
            (t.entered, t.customer_warehouse, cd, c, t.district, cents, note),
        )
        self.lap(WRITE)
        return True

    def _order_status(self, t: txn.OrderStatus) -> bool:
        db, d = self.files[t.warehouse], t.district
        self._check(t, db, d)
        _one(
            db,
            "SELECT c_balance, c_first, c_last FROM customer "
            "WHERE c_d_id = ? AND c_id = ?",
            *(d, t.customer),
        )
        order, *_ = _one(
            db,
            "SELECT o_id, o_entry, o_carrier_id FROM orders "
            "WHERE o_d_id = ? AND o_c_id = ? ORDER BY o_id DESC LIMIT 1",
            *(d, t.customer),
        )
        db.execute(
            "SELECT ol_i_id, ol_supply_w_id, ol_quantity, ol_amount, ol_delivery "
            "FROM order_line WHERE ol_d_id = ? AND ol_o_id = ?",
            (d, order),
        ).fetchall()
        self.lap(READ)
        return True

    def _delivery(self, t: txn.Delivery) -> bool:
        db = self.files[t.warehouse]
        for d in range(txn.DISTRICTS):
            oldest = _one(
                db,
                "SELECT no_o_id FROM new_order WHERE no_d_id = ? "
                "ORDER BY no_o_id LIMIT 1",
                d,
            )
            if oldest is None:  # clause 2.7.4.2: skip a district with none
                self.lap(READ)
                continue
            order = (d, *oldest)
            (customer,) = _one(
                db, "SELECT o_c_id FROM orders WHERE o_d_id = ? AND o_id = ?", *order
            )
            (total,) = _one(
                db,
                "SELECT sum(ol_amount) FROM order_line "
                "WHERE ol_d_id = ? AND ol_o_id = ?",
                *order,
            )
            self.lap(READ)
            db.execute("DELETE FROM new_order WHERE no_d_id = ? AND no_o_id = ?", order)
            db.execute(
                "UPDATE orders SET o_carrier_id = ? WHERE o_d_id = ? AND o_id = ?",
                (t.carrier, *order),
            )
            db.execute(
                "UPDATE order_line SET ol_delivery = ? "
                "WHERE ol_d_id = ? AND ol_o_id = ?",
                (t.entered, *order),
            )
            db.execute(
                "UPDATE customer SET c_balance = c_balance + ?, "
                "c_delivery_cnt = c_delivery_cnt + 1 WHERE c_d_id = ? AND c_id = ?",
                (total, d, customer),
            )
            self.lap(WRITE)
        return True

    def _stock_level(self, t: txn.StockLevel) -> bool:
        db, d = self.files[t.warehouse], t.district
        (coming,) = _one(db, "SELECT d_next_o_id FROM district WHERE d_id = ?", d)
        _one(
            db,
            "SELECT count(DISTINCT s_i_id) FROM order_line "
            "JOIN stock ON s_i_id = ol_i_id "
            "WHERE ol_d_id = ? AND ol_o_id BETWEEN ? AND ? AND s_quantity < ?",
            *(d, coming - 20, coming - 1, t.threshold),
        )
        self.lap(READ)
        return True

    def _ycsb(self, t: txn.Ycsb) -> bool:
        db = self.files[t.partition]
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
            (old,) = _one(db, "SELECT y_fields FROM usertable WHERE y_id = ?", record)
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
        return True


def _one(db: Connection, query: str, *values: Any) -> Any:
    """The first row that a query finds, None for none."""
    return db.execute(query, values).fetchone()
