"""SQLite as a storage: one connection a session, and the transactions in it."""

import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Self

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
    canonical_digest,
    empty_folder,
    heard,
    initial_rows,
    stale,
)
from thesis_lib.sequencer.workload.transactions import (
    DISTRICTS,
    Delivery,
    NewOrder,
    OrderStatus,
    Payment,
    Scale,
    StockLevel,
    Transaction,
    Ycsb,
    YcsbScale,
)


@dataclass(frozen=True, slots=True)
class SQLite:
    """One file to a partition in `folder`."""

    folder: Path
    engine = "sqlite"
    one_writer = True

    def load(self, scale: Scale | YcsbScale, seed: int) -> None:
        """Fill the folder, which holds no database yet, with a file to a partition."""
        empty_folder(self.folder)
        for w in range(scale.partitions):
            with closing(connect(warehouse_file(self.folder, w))) as db:
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

        def rows(table: str) -> Iterable[tuple]:
            for w, path in enumerate(warehouse_files(self.folder)):
                with closing(connect(path)) as db:
                    key = TABLES[table].key
                    for row in db.execute(f"SELECT * FROM {table} ORDER BY {key}"):
                        yield (w, *row)

        return canonical_digest(rows)


def connect(path: Path) -> sqlite3.Connection:
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

    def close(self) -> None:
        for connection in self.files:
            connection.close()

    def _in_all(self, files: Iterable[int], statement: str, unit: int) -> None:
        # Nobody else can see one file committed and the other not: both are locked.
        for w in files:
            self.files[w].execute(statement)
        self.lap(unit)

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
                self._in_all(files, "ROLLBACK", COMMIT)
                raise stale(t, found)

    def _new_order(self, t: NewOrder) -> bool:
        db = self.files[t.warehouse]
        files = sorted({t.warehouse, *(line.supply_warehouse for line in t.lines)})
        self._in_all(files, "BEGIN IMMEDIATE", BEGIN)
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
                self._in_all(files, "ROLLBACK", COMMIT)
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
        self._in_all(files, "COMMIT", COMMIT)
        return True

    def _payment(self, t: Payment) -> bool:
        db, theirs = self.files[t.warehouse], self.files[t.customer_warehouse]
        files = sorted({t.warehouse, t.customer_warehouse})
        self._in_all(files, "BEGIN IMMEDIATE", BEGIN)
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
        self._in_all(files, "COMMIT", COMMIT)
        return True

    def _order_status(self, t: OrderStatus) -> bool:
        db, d = self.files[t.warehouse], t.district
        self._in_all([t.warehouse], "BEGIN", BEGIN)
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
        self._in_all([t.warehouse], "COMMIT", COMMIT)
        return True

    def _delivery(self, t: Delivery) -> bool:
        db = self.files[t.warehouse]
        self._in_all([t.warehouse], "BEGIN IMMEDIATE", BEGIN)
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
        self._in_all([t.warehouse], "COMMIT", COMMIT)
        return True

    def _stock_level(self, t: StockLevel) -> bool:
        db = self.files[t.warehouse]
        self._in_all([t.warehouse], "BEGIN", BEGIN)
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
        self._in_all([t.warehouse], "COMMIT", COMMIT)
        return True

    def _ycsb(self, t: Ycsb) -> bool:
        db = self.files[t.partition]
        self._in_all(t.files, "BEGIN IMMEDIATE", BEGIN)
        if t.partition not in t.files:
            self._in_all([t.partition], "BEGIN", BEGIN)
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
        self._in_all(sorted({t.partition, *t.files}), "COMMIT", COMMIT)
        return True


# --- The files of SQLite -----------------------------------------------------
def warehouse_file(folder: Path, w: int) -> Path:
    """The database file of warehouse, or other partition, w."""
    return folder / f"warehouse-{w}.sqlite"


def warehouse_files(folder: Path) -> list[Path]:
    """The database files in `folder`, by partition. Refuses a folder without any."""
    files = sorted(folder.glob("warehouse-*.sqlite"), key=lambda f: (len(f.name), f))
    require(len(files) > 0, f"{folder} holds no warehouse file: expected a database")
    return files
