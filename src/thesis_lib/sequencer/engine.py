"""A deterministic database engine on SQLite.

One file to a warehouse, one lock table over all of them, worker threads below it.
The sequencer fixes a total order, every transaction books its declared locks in that
order, and so conflicting transactions run in it whatever the number of workers: the
same log leaves the same state (Thomson et al., Calvin, SIGMOD 2012).
"""

import hashlib
import platform
import shutil
import sqlite3
import tempfile
import threading
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from random import Random
from time import perf_counter, thread_time

import numpy as np

from thesis_lib.checks import InvalidInput, choice, require
from thesis_lib.machine import cpu_model
from thesis_lib.sequencer.features import (
    DYNAMIC,
    STATIC,
    declared_records,
    dynamic_features,
    static_features,
)
from thesis_lib.sequencer.locktable import book, lock_table, release
from thesis_lib.sequencer.trace import F64, Bool, Trace
from thesis_lib.sequencer.workload import (
    DISTRICTS,
    TPCC_KINDS,
    Delivery,
    Draw,
    Log,
    NewOrder,
    OrderStatus,
    Payment,
    Scale,
    StockLevel,
    customer_names,
    tpcc,
)

ENGINES = ("sqlite",)
UNITS = ("begin", "read", "compute", "write", "commit")
BEGIN, READ, COMPUTE, WRITE, COMMIT = range(5)
STOP = -1  # in the run queue: no more work
CLOCK_S = 1e-7  # times are kept to 0.1 µs, finer than two laps of the clock differ

# Money is in cents, rates in basis points, times are positions in the log: integers
# only, so that equal states are equal bytes. A warehouse has a file of its own,
# hence no warehouse column in its keys.
SCHEMA = """
CREATE TABLE warehouse (w_id INTEGER PRIMARY KEY, w_name TEXT, w_tax INTEGER,
  w_ytd INTEGER);
CREATE TABLE district (d_id INTEGER PRIMARY KEY, d_name TEXT, d_tax INTEGER,
  d_ytd INTEGER, d_next_o_id INTEGER);
CREATE TABLE customer (c_d_id INTEGER, c_id INTEGER, c_last TEXT, c_first TEXT,
  c_credit TEXT, c_discount INTEGER, c_balance INTEGER, c_ytd_payment INTEGER,
  c_payment_cnt INTEGER, c_delivery_cnt INTEGER, c_data TEXT,
  PRIMARY KEY (c_d_id, c_id)) WITHOUT ROWID;
CREATE INDEX customer_name ON customer (c_d_id, c_last, c_first);
CREATE TABLE history (h_id INTEGER PRIMARY KEY, h_c_w_id INTEGER, h_c_d_id INTEGER,
  h_c_id INTEGER, h_d_id INTEGER, h_amount INTEGER, h_data TEXT);
CREATE TABLE new_order (no_d_id INTEGER, no_o_id INTEGER,
  PRIMARY KEY (no_d_id, no_o_id)) WITHOUT ROWID;
CREATE TABLE orders (o_d_id INTEGER, o_id INTEGER, o_c_id INTEGER, o_entry INTEGER,
  o_carrier_id INTEGER, o_ol_cnt INTEGER, o_all_local INTEGER,
  PRIMARY KEY (o_d_id, o_id)) WITHOUT ROWID;
CREATE INDEX orders_customer ON orders (o_d_id, o_c_id, o_id);
CREATE TABLE order_line (ol_d_id INTEGER, ol_o_id INTEGER, ol_number INTEGER,
  ol_i_id INTEGER, ol_supply_w_id INTEGER, ol_delivery INTEGER, ol_quantity INTEGER,
  ol_amount INTEGER, ol_dist_info TEXT,
  PRIMARY KEY (ol_d_id, ol_o_id, ol_number)) WITHOUT ROWID;
CREATE TABLE item (i_id INTEGER PRIMARY KEY, i_name TEXT, i_price INTEGER,
  i_data TEXT);
CREATE TABLE stock (s_i_id INTEGER PRIMARY KEY, s_quantity INTEGER, s_dists TEXT,
  s_ytd INTEGER, s_order_cnt INTEGER, s_remote_cnt INTEGER, s_data TEXT);
"""
PRIMARY_KEYS = {
    "warehouse": "w_id",
    "district": "d_id",
    "customer": "c_d_id, c_id",
    "history": "h_id",
    "new_order": "no_d_id, no_o_id",
    "orders": "o_d_id, o_id",
    "order_line": "ol_d_id, ol_o_id, ol_number",
    "item": "i_id",
    "stock": "s_i_id",
}


# --- Storage -----------------------------------------------------------------


def warehouse_file(folder: Path, w: int) -> Path:
    """The database file of warehouse w."""
    return folder / f"warehouse-{w}.sqlite"


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit: transactions begin and end where we say so.

    The log is what makes a deterministic database durable, so the files need no
    synchronous write of their own.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _text(draw: Draw, length: int) -> str:
    return f"{int(draw.unit() * 16**12):012x}" * (length // 12 + 1)


def load(folder: Path, scale: Scale, seed: int) -> None:
    """Fill an empty folder with the initial database, one file to a warehouse.

    Clause 4.3.3 at this scale: one order to a customer, in a random order of
    customers, of which the last three tenths are still to be delivered.
    """
    for w in range(scale.warehouses):
        items = Draw(f"items {seed}")  # the same in every file
        draw = Draw(f"load {seed} {w}")
        names = customer_names(scale, seed, w)
        shuffle = Random(f"orders {seed} {w}").random
        with closing(connect(warehouse_file(folder, w))) as db:
            db.executescript(SCHEMA)
            db.execute("BEGIN")
            db.execute(
                "INSERT INTO warehouse VALUES (?, ?, ?, ?)",
                (w, f"W{w}", draw.between(0, 2_000), DISTRICTS * 3_000_000),
            )
            db.executemany(
                "INSERT INTO item VALUES (?, ?, ?, ?)",
                (
                    (i, f"item {i}", items.between(100, 10_000), _text(items, 30)[:30])
                    for i in range(scale.items)
                ),
            )
            db.executemany(
                "INSERT INTO stock VALUES (?, ?, ?, 0, 0, 0, ?)",
                (
                    (
                        i,
                        draw.between(10, 100),
                        _text(draw, 24 * DISTRICTS)[: 24 * DISTRICTS],
                        _text(draw, 30)[:30],
                    )
                    for i in range(scale.items)
                ),
            )
            for d in range(DISTRICTS):
                _load_district(db, d, scale, draw, names[d], shuffle)
            db.execute("COMMIT")


def _load_district(db, d, scale: Scale, draw: Draw, names, shuffle) -> None:
    customers = scale.customers
    db.execute(
        "INSERT INTO district VALUES (?, ?, ?, ?, ?)",
        (d, f"D{d}", draw.between(0, 2_000), 3_000_000, customers + 1),
    )
    db.executemany(
        "INSERT INTO customer VALUES (?, ?, ?, ?, ?, ?, -1000, 1000, 1, 0, ?)",
        (
            (
                d,
                c,
                last,
                first,
                "BC" if draw.unit() < 0.1 else "GC",
                draw.between(0, 5_000),
                _text(draw, 400)[:400],
            )
            for c, (last, first) in enumerate(names)
        ),
    )
    buyers = sorted(range(customers), key=lambda _: shuffle())
    for o, c in enumerate(buyers, start=1):
        open_ = o > customers - customers * 3 // 10
        count = draw.between(5, 15)
        carrier = None if open_ else draw.between(1, 10)
        db.execute(
            "INSERT INTO orders VALUES (?, ?, ?, -1, ?, ?, 1)",
            (d, o, c, carrier, count),
        )
        if open_:
            db.execute("INSERT INTO new_order VALUES (?, ?)", (d, o))
        db.executemany(
            "INSERT INTO order_line VALUES (?, ?, ?, ?, 0, ?, 5, ?, ?)",
            (
                (
                    d,
                    o,
                    number,
                    draw.between(0, scale.items - 1),
                    None if open_ else -1,
                    draw.between(1, 999_999) if open_ else 0,
                    _text(draw, 24)[:24],
                )
                for number in range(count)
            ),
        )


def state_digest(folder: Path) -> str:
    """SHA-256 over every row of every table of every file, by primary key."""
    files = sorted(folder.glob("warehouse-*.sqlite"), key=lambda f: (len(f.name), f))
    require(len(files) > 0, f"{folder} holds no warehouse file: expected a database")
    state = hashlib.sha256()
    for path in files:
        with closing(connect(path)) as db:
            for table, key in PRIMARY_KEYS.items():
                state.update(f"{path.name} {table}\n".encode())
                for row in db.execute(f"SELECT * FROM {table} ORDER BY {key}"):
                    state.update(repr(row).encode())
    return state.hexdigest()


# --- Transactions ------------------------------------------------------------


class Session:
    """One worker's connections, and the time its transaction spends in each unit."""

    def __init__(self, folder: Path, warehouses: int) -> None:
        self.files = [connect(warehouse_file(folder, w)) for w in range(warehouses)]
        self.units_s = [0.0] * len(UNITS)
        self.lap_s = 0.0

    def lap(self, unit: int) -> None:
        """Charge the time since the last lap to `unit`."""
        now = perf_counter()
        self.units_s[unit] += now - self.lap_s
        self.lap_s = now

    def run(self, t) -> bool:
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
        raise InvalidInput(f"{type(t).__name__} is no transaction of TPC-C")

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

    def _named(self, db, d: int, last: str, expected: int) -> int:
        found = db.execute(
            "SELECT c_id FROM customer WHERE c_d_id = ? AND c_last = ? "
            "ORDER BY c_first",
            (d, last),
        ).fetchall()
        number = found[(len(found) - 1) // 2][0]
        require(
            number == expected,
            f"{last} of district {d} is customer {number}, the log says {expected}: "
            "load the database with the scale and seed of the log",
        )
        return number

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
        if t.last_name is not None:
            customer = self._named(theirs, t.customer_district, t.last_name, customer)
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
        if t.last_name is not None:
            customer = self._named(db, d, t.last_name, customer)
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


# --- Deterministic execution -------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """Times of one execution of a log, from its start."""

    arrival_s: F64  # (n,)
    sequenced_s: F64  # (n,) numbered, locks booked
    granted_s: F64  # (n,) last lock granted
    start_s: F64  # (n,) taken by a worker
    finish_s: F64  # (n,) committed or rolled back
    cpu_s: F64  # (n,) processor time of the worker thread
    units_s: F64  # (n, len(UNITS))
    worker: F64  # (n,)
    committed: Bool  # (n,) False where rolled back


class _Execution:
    """The shared state of one run; every method holds the one mutex."""

    def __init__(self, log: Log, workers: int, in_flight: int, batch: int) -> None:
        n = len(log)
        self.n, self.workers, self.batch = n, workers, batch
        self.granted = np.empty(n, np.int64)  # scratch of release
        self.table = lock_table(log.keys)
        book(self.table, 0)  # compiled here, or the first client would wait for it
        release(self.table, 0, self.granted)
        self.run_queue: SimpleQueue[int] = SimpleQueue()
        self.mutex = threading.Lock()
        self.arrived = self.sequenced = self.finished = 0
        self.failure: BaseException | None = None
        self.arrival_s, self.sequenced_s = np.zeros(n), np.zeros(n)
        self.granted_s = np.zeros(n)
        self.origin_s = perf_counter()
        with self.mutex:
            for _ in range(min(in_flight, n)):
                self._arrive(self.origin_s)

    def _arrive(self, now_s: float) -> None:
        """One client submits the next transaction; a full batch is sequenced."""
        self.arrival_s[self.arrived] = now_s
        self.arrived += 1
        waiting = self.arrived - self.sequenced
        if waiting < self.batch and self.arrived < self.n:
            return
        for i in range(self.sequenced, self.arrived):
            # one instant a transaction: the log is ordered within a batch as well
            self.sequenced_s[i] = perf_counter()
            if book(self.table, i):
                self._grant(i)
        self.sequenced = self.arrived

    def _grant(self, i: int) -> None:
        self.granted_s[i] = perf_counter()
        self.run_queue.put(i)

    def commit(self, i: int) -> None:
        """Release the locks of i; its client submits again."""
        with self.mutex:
            for j in self.granted[: release(self.table, i, self.granted)].tolist():
                self._grant(j)
            self.finished += 1
            if self.arrived < self.n:
                self._arrive(perf_counter())
            if self.finished == self.n:
                self._stop()

    def fail(self, error: BaseException) -> None:
        with self.mutex:
            self.failure = self.failure or error
            self._stop()

    def _stop(self) -> None:
        for _ in range(self.workers):
            self.run_queue.put(STOP)


def execute(
    folder: Path, log: Log, workers: int, in_flight: int = 32, batch: int = 8
) -> Run:
    """Run the log on the database in `folder`, which was loaded for it.

    A closed loop: `in_flight` clients each submit one transaction, wait for its
    commit and submit the next. Every `batch` submissions the sequencer appends them
    to the total order and books their locks; workers take granted transactions first
    come, first served.
    """
    require(workers >= 1, f"workers={workers}: expected at least 1")
    require(
        1 <= batch <= in_flight,
        f"batch={batch} must lie between 1 and in_flight={in_flight}: "
        "a larger batch would wait for clients that wait for it",
    )
    n = len(log)
    shared = _Execution(log, workers, in_flight, batch)
    start_s, finish_s, cpu_s = np.zeros(n), np.zeros(n), np.zeros(n)
    units_s, worker = np.zeros((n, len(UNITS))), np.zeros(n)
    committed = np.zeros(n, bool)

    def work(number: int) -> None:
        try:
            session = Session(folder, log.scale.warehouses)
            with closing(session):
                while (i := shared.run_queue.get()) != STOP:
                    t = log.transactions[i]
                    start, cpu = perf_counter(), thread_time()
                    ok = session.run(t)
                    cpu, finish = thread_time() - cpu, perf_counter()
                    start_s[i], finish_s[i], cpu_s[i] = start, finish, cpu
                    units_s[i], worker[i], committed[i] = session.units_s, number, ok
                    shared.commit(i)
        except BaseException as error:  # of any kind: re-raised by the caller
            shared.fail(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if shared.failure is not None:
        raise shared.failure
    origin = shared.origin_s
    return Run(
        arrival_s=shared.arrival_s - origin,
        sequenced_s=shared.sequenced_s - origin,
        granted_s=shared.granted_s - origin,
        start_s=start_s - origin,
        finish_s=finish_s - origin,
        cpu_s=cpu_s,
        units_s=units_s,
        worker=worker,
        committed=committed,
    )


def execute_serially(folder: Path, log: Log) -> None:
    """Run the log one transaction at a time, without locks: the state to agree with."""
    with closing(Session(folder, log.scale.warehouses)) as session:
        for t in log.transactions:
            session.run(t)


# --- Collection --------------------------------------------------------------


def empty_folder(folder: Path) -> Path:
    """Create `folder`; refuse one that holds anything."""
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} exists and is not empty: name a new folder",
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def collect(
    engine: str = "sqlite",
    transactions: int = 20_000,
    workers: int = 2,
    warehouses: int = 2,
    seed: int = 0,
    replays: int = 1,
    folder: Path | str | None = None,
    scale: Scale | None = None,
    in_flight: int = 32,
    batch: int = 8,
) -> Trace:
    """Run TPC-C on the real engine and record it.

    `service_s` is wall time from a worker's start to its commit, `units_s` its split
    into operating units. `measured` adds processor time and the stages before the
    start: arrival + sequence_s + lock_wait_s + queue_s is the start. With `replays`
    above 1 the same log runs again on fresh copies of the loaded database; columns
    of the first run lead, and `service_s_r1`, `cpu_s_r1`, … hold every run. Databases
    live in `folder`, or in a temporary one. `scale` overrides `warehouses`.

    Raises InvalidInput for an unknown engine, counts below 1, a folder that is not
    empty, and replays that end in different states.
    """
    if engine == "postgresql":
        raise InvalidInput(
            "engine='postgresql' belongs to a later version: expected 'sqlite'"
        )
    choice("engine", engine, ENGINES)
    for name, value in (
        ("transactions", transactions),
        ("workers", workers),
        ("replays", replays),
        ("warehouses", warehouses),
    ):
        require(value >= 1, f"{name}={value}: expected at least 1")
    scale = scale or Scale(warehouses=warehouses)
    log = tpcc(transactions, scale, seed)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="thesis-engine-") as scratch:
            runs, digest = _replay(
                Path(scratch), log, workers, replays, in_flight, batch
            )
    else:
        root = empty_folder(Path(folder))
        runs, digest = _replay(root, log, workers, replays, in_flight, batch)
    return _trace(log, runs, digest, workers, in_flight, batch)


def _replay(
    folder: Path, log: Log, workers: int, replays: int, in_flight: int, batch: int
) -> tuple[list[Run], str]:
    """Run the log on as many copies of one loaded database; the runs, their state."""
    loaded = empty_folder(folder / "loaded")
    load(loaded, log.scale, log.seed)
    runs, digests = [], []
    for r in range(1, replays + 1):
        copy = folder / f"replay-{r}"
        shutil.copytree(loaded, copy)
        runs.append(execute(copy, log, workers, in_flight, batch))
        digests.append(state_digest(copy))
    if len(set(digests)) > 1:
        raise InvalidInput(
            f"replays of one log ended in states {', '.join(d[:8] for d in digests)}: "
            "expected one; the engine is not deterministic on this machine"
        )
    return runs, digests[0]


def _trace(
    log: Log, runs: list[Run], digest: str, workers: int, in_flight: int, batch: int
) -> Trace:
    first = runs[0]
    arrival_s, sequenced_s, granted_s, start_s = (
        _tick(instant)
        for instant in (
            first.arrival_s,
            first.sequenced_s,
            first.granted_s,
            first.start_s,
        )
    )
    records = np.array([declared_records(t) for t in log.transactions], np.float64)
    dynamic = dynamic_features(first.sequenced_s, first.finish_s, log.keys, records)
    measured = {
        "cpu_s": _tick(first.cpu_s),
        "sequence_s": sequenced_s - arrival_s,
        "lock_wait_s": granted_s - sequenced_s,
        "queue_s": start_s - granted_s,
        "worker": first.worker,
        "committed": first.committed.astype(np.float64),
    }
    if len(runs) > 1:
        for r, run in enumerate(runs, start=1):
            measured[f"service_s_r{r}"] = _tick(run.finish_s - run.start_s)
            measured[f"cpu_s_r{r}"] = _tick(run.cpu_s)
    scale = log.scale
    return Trace(
        kinds=TPCC_KINDS,
        kind=log.kind,
        arrival_s=arrival_s,
        service_s=_tick(first.finish_s - first.start_s),
        features=np.column_stack([static_features(log), dynamic]),
        feature_names=(*STATIC, *DYNAMIC),
        keys=log.keys,
        units_s=_tick(first.units_s),
        unit_names=UNITS,
        measured={
            name: _tick(column) if name.endswith("_s") else column
            for name, column in measured.items()
        },
        meta={
            "source": "collected",
            "engine": "sqlite",
            "sqlite": sqlite3.sqlite_version,
            "python": platform.python_version(),
            "machine": cpu_model(),
            "warehouses": scale.warehouses,
            "customers": scale.customers,
            "items": scale.items,
            "workers": workers,
            "in_flight": in_flight,
            "batch": batch,
            "seed": log.seed,
            "replays": len(runs),
            "digest": digest,
            "date": datetime.now(UTC).date().isoformat(),
        },
    )


def _tick(times_s: F64) -> F64:
    """Times on the grid of CLOCK_S, rounded down so that parts never exceed a sum."""
    return np.floor(times_s / CLOCK_S + 1e-6) * CLOCK_S
