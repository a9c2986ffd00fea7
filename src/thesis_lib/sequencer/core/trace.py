"""The columns that flow through Part I, checked once where they are made.

`Trace` holds the truth, service times included. `Batch` is what a sequencer may
see of it; `Forecast` is what an estimator says of a batch; `Decision` is what a
policy makes of both; `History` is what happened.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from thesis_lib.common.errors import InvalidInput, require, require_all, shown, vector
from thesis_lib.common.files import write_whole

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

SCHEMA_VERSION = 1
MOST_KEYS = 2**22  # numbers that a lock table has an entry for; beyond, keys are mapped


@dataclass(frozen=True, slots=True)
class KeySets:
    """Declared read and write sets of n transactions, compressed by row.

    Transaction i holds `keys[offsets[i]:offsets[i + 1]]`, each at most once; a key
    that is both read and written is listed as exclusive. Keys are integers from 0,
    and what is made of them has an entry for each up to the largest. Raises
    InvalidInput for offsets that do not describe `keys`, for a negative key, and for a
    key listed twice in one transaction.
    """

    offsets: I64  # (n + 1,)
    keys: I64  # (offsets[-1],)
    exclusive: Bool  # (offsets[-1],)
    names: InitVar[Sequence[Any] | None] = None  # of the keys by number, for errors

    def __post_init__(self, names: Sequence[Any] | None) -> None:
        set_ = object.__setattr__
        set_(self, "offsets", vector("offsets", self.offsets, np.int64, minimum=0))
        set_(self, "keys", vector("keys", self.keys, np.int64))
        n_keys = len(self.keys)
        set_(self, "exclusive", vector("exclusive", self.exclusive, np.bool_, n_keys))
        bounds = self.offsets
        require(
            len(bounds) > 0
            and bounds[0] == 0
            and bounds[-1] == n_keys
            and bool((np.diff(bounds) >= 0).all()),
            f"offsets must rise from 0 to the number of keys, {n_keys}",
        )
        owner = self.owner
        if n_keys and self.keys.min() < 0:
            at = int(np.argmax(self.keys < 0))
            raise InvalidInput(
                f"row {owner[at]} of keys lists {self.keys[at]}: keys count from 0"
            )
        order = np.lexsort((self.keys, owner))
        twice = (np.diff(self.keys[order]) == 0) & (np.diff(owner[order]) == 0)
        if twice.any():
            at = order[int(np.argmax(twice))]
            number = int(self.keys[at])
            key = names[number] if names else number
            raise InvalidInput(
                f"row {owner[at]} of keys lists {shown(key)} twice: "
                "list it once, exclusive if it is written"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_lists(
        cls, shared: list[list[int]] | list[list[str]],
        exclusive: list[list[int]] | list[list[str]],
    ) -> Self:  # fmt: skip
        """Key sets from one list of shared and one of exclusive keys each.

        Keys are integers, kept as they are, or strings, numbered as they first appear.
        """
        require(
            len(shared) == len(exclusive),
            f"{len(shared)} shared sets but {len(exclusive)} exclusive sets: "
            "expected one of each per transaction",
        )
        rows = [[*s, *x] for s, x in zip(shared, exclusive, strict=True)]
        modes = [
            [False] * len(s) + [True] * len(x)
            for s, x in zip(shared, exclusive, strict=True)
        ]
        flat: list = [key for row in rows for key in row]
        names = None
        if any(isinstance(key, str) for key in flat):
            names = list(dict.fromkeys(flat))
            numbers = {name: number for number, name in enumerate(names)}
            flat = [numbers[key] for key in flat]
        return cls(
            offsets=np.cumsum([0, *(len(row) for row in rows)]),
            keys=vector("keys", flat, np.int64),
            exclusive=np.array([m for row in modes for m in row], bool),
            names=names,
        )

    def numbered(self) -> Self:
        """The same sets; with keys above MOST_KEYS, numbered in the order of the keys.

        Whoever holds a lock waits for the same others whatever the key is called.
        """
        if self.n_keys <= MOST_KEYS:
            return self
        _, numbers = np.unique(self.keys, return_inverse=True)
        return type(self)(self.offsets, numbers, self.exclusive)

    def take(self, rows: I64) -> Self:
        """The key sets of `rows`, in that order."""
        rows = _row_numbers(rows)
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        flat = np.repeat(self.offsets[:-1][rows] - offsets[:-1], sizes)
        flat += np.arange(offsets[-1])
        return type(self)(offsets, self.keys[flat], self.exclusive[flat])

    @classmethod
    def concatenate(cls, sets: Sequence[Self]) -> Self:
        """The key sets of all `sets`, one behind the other."""
        sizes = np.concatenate([np.diff(keys.offsets) for keys in sets])
        return cls(
            np.concatenate([[0], np.cumsum(sizes)]),
            np.concatenate([keys.keys for keys in sets]),
            np.concatenate([keys.exclusive for keys in sets]),
        )

    def keep(self, kept: Bool) -> Self:
        """The sets where `kept` (n,) says so, and empty ones in place of the others."""
        sizes = np.diff(self.offsets)
        mask = np.repeat(kept, sizes)
        offsets = np.concatenate([[0], np.cumsum(np.where(kept, sizes, 0))])
        return type(self)(offsets, self.keys[mask], self.exclusive[mask])

    @property
    def owner(self) -> I64:
        """(offsets[-1],) the transaction of each entry of `keys`."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def n_keys(self) -> int:
        """One more than the largest key: the size of a lock table."""
        return int(self.keys.max()) + 1 if len(self.keys) else 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What a sequencer may see of b transactions: no service time.

    Without an objective a deadline is infinite. Raises InvalidInput for columns of
    unequal length, for a deadline that is not after its arrival, and for a feature
    that is not finite.
    """

    ids: I64  # (b,) rows of the trace
    arrival_s: F64  # (b,)
    deadline_s: F64  # (b,) arrival + service level objective
    features: F64  # (b, d) known before execution
    keys: KeySets  # declared read and write sets
    feature_names: tuple[str, ...]  # (d,)

    def __post_init__(self) -> None:
        b = len(self.ids)
        for name, column in (
            ("arrival_s", self.arrival_s),
            ("deadline_s", self.deadline_s),
            ("features", self.features),
            ("keys", self.keys),
        ):
            require(len(column) == b, f"{name} has {len(column)} rows for {b} ids")
        require_all(
            self.deadline_s > self.arrival_s,
            "deadline_s",
            self.deadline_s,
            "expected a time after the arrival; deadlines are arrival + objective",
        )
        require(
            self.features.shape == (b, len(self.feature_names)),
            f"features have shape {self.features.shape}: expected "
            f"({b}, {len(self.feature_names)}), as many columns as names",
        )
        finite = np.isfinite(self.features)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise InvalidInput(
                f"row {row} of feature {self.feature_names[column]} is "
                f"{self.features[row, column]}: every entry must be finite"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_features(
        cls, features: F64, names: tuple[str, ...], keys: KeySets | None = None
    ) -> Self:
        """What to ask an estimator about: (b, d) features, and by default no keys."""
        b = len(features)
        return cls(
            ids=np.arange(b),
            arrival_s=np.zeros(b),
            deadline_s=np.full(b, np.inf),
            features=features,
            keys=KeySets.from_lists([[]] * b, [[]] * b) if keys is None else keys,
            feature_names=names,
        )

    def decide(self, order: I64, dropped: Bool) -> "Decision":
        """Run positions `order` in turn, drop where `dropped` (b,) says, hold the rest.

        A position of `order` that is dropped does not run. Raises InvalidInput for
        positions that the batch has not, and for a mask of another length.
        """
        order = vector("order", order, np.int64, minimum=0)
        require_all(order < len(self), "order", order, f"a batch of {len(self)}")
        dropped = vector("dropped", dropped, bool, len(self))
        held = ~dropped
        held[order] = False
        return Decision(
            order=self.ids[order[~dropped[order]]],
            dropped=self.ids[dropped],
            held=self.ids[held],
        )


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an estimator and the look-ahead schedule say of b transactions."""

    service_s: F64  # (b,) own work, >= 0
    finish_s: F64  # (b,) predicted completion, waiting included
    p_on_time: F64  # (b,) probability of finishing by the deadline, in [0, 1]
    in_flight: int = 0  # transactions before them, past the sequencer and uncommitted


@dataclass(frozen=True, slots=True)
class Decision:
    """A partition of a batch: run in `order`, `dropped` for good, `held` for later."""

    order: I64  # ids, first to run first
    dropped: I64  # ids
    held: I64 = field(default_factory=lambda: np.empty(0, np.int64))  # ids

    def partition_of(self, ids: I64, policy: str) -> Self:
        """The same, as arrays of numbers.

        Raises InvalidInput, naming the policy, unless each of `ids` is here once.
        """
        parts = [
            vector(f"{name} of policy {policy!r}", part, np.int64)
            for name, part in (
                ("order", self.order), ("dropped", self.dropped), ("held", self.held)
            )
        ]  # fmt: skip
        require(
            np.array_equal(np.sort(np.concatenate(parts)), np.sort(ids)),
            f"policy {policy!r} must put each of the {len(ids)} transactions of a "
            "batch into exactly one of order, dropped and held",
        )
        return type(self)(*parts)


@dataclass(frozen=True, slots=True)
class Trace:
    """n transactions in order of arrival, with the truth about each.

    `units_s` splits the service time into operating units and sums to at most
    `service_s`. `measured` holds columns that only a real run has (`cpu_s`,
    `lock_wait_s`, `queue_s`, …), each (n,). `meta` says where the trace comes from.
    Keys say no more than which are equal: above MOST_KEYS they are numbered anew.
    Raises InvalidInput for columns of unequal length, unknown types, arrivals out of
    order, negative times, and anything that is not finite; it names the first row,
    counted from 0, and the column.

    >>> from thesis_lib.sequencer import scenario
    >>> trace = scenario("A", n=4, seed=1)
    >>> [trace.kinds[kind] for kind in trace.kind]
    ['new_order', 'payment', 'payment', 'new_order']
    >>> len(trace), trace.keys.n_keys  # transactions, keys that they lock
    (4, 99)
    """

    kinds: tuple[str, ...]  # names of the transaction types
    kind: I64  # (n,) index into kinds
    arrival_s: F64  # (n,) from the start of the run
    service_s: F64  # (n,) >= 0
    features: F64  # (n, d)
    feature_names: tuple[str, ...]  # (d,)
    keys: KeySets  # n sets
    units_s: F64  # (n, u)
    unit_names: tuple[str, ...]  # (u,)
    measured: dict[str, F64] = field(default_factory=dict)
    meta: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.kind)
        set_ = object.__setattr__
        set_(self, "kind", vector("kind", self.kind, np.int64, minimum=0))
        set_(self, "arrival_s", vector("arrival_s", self.arrival_s, np.float64, n))
        set_(self, "service_s", vector("service_s", self.service_s, np.float64, n, 0.0))
        rises = np.diff(self.arrival_s, prepend=self.arrival_s[:1]) >= 0
        require_all(
            rises, "arrival_s", self.arrival_s, "before the row above; sort by arrival"
        )
        require(len(self.keys) == n, f"{len(self.keys)} key sets for {n} transactions")
        set_(self, "keys", self.keys.numbered())
        names = ", ".join(self.kinds)
        require(
            len(set(self.kinds)) == len(self.kinds),
            f"a type has its name twice: {names}",
        )
        require_all(
            self.kind < len(self.kinds),
            "kind",
            self.kind,
            f"there are {len(self.kinds)} types, from 0: {names}",
        )
        set_(self, "features", _table("feature", self.features, n, self.feature_names))
        set_(self, "units_s", _table("unit", self.units_s, n, self.unit_names, 0.0))
        measured = {
            name: vector(f"measured:{name}", column, np.float64, n)
            for name, column in self.measured.items()
        }
        set_(self, "measured", measured)

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def of_jobs(cls, arrival_s: F64, service_s: F64, keys: KeySets) -> Self:
        """Jobs of one kind, without features or operating units."""
        n = len(service_s)
        return cls(
            kinds=("job",),
            kind=np.zeros(n, np.int64),
            arrival_s=arrival_s,
            service_s=service_s,
            features=np.empty((n, 0)),
            feature_names=(),
            keys=keys,
            units_s=np.empty((n, 0)),
            unit_names=(),
        )

    def batch(self, ids: I64, deadline_s: F64, arrival_s: F64 | None = None) -> Batch:
        """What a sequencer may see of rows `ids`, whose deadlines are given.

        So are arrivals (b,) where they are not those of the trace, in a closed loop.
        """
        return Batch(
            ids=np.asarray(ids, np.int64),
            arrival_s=self.arrival_s[ids] if arrival_s is None else arrival_s,
            deadline_s=np.asarray(deadline_s, np.float64),
            features=self.features[ids],
            keys=self.keys.take(ids),
            feature_names=self.feature_names,
        )

    def take(self, rows: I64, arrival_s: F64 | None = None) -> Self:
        """The trace of `rows`, in that order, arriving at `arrival_s` if given.

        Arrivals must stay sorted.
        """
        rows = _row_numbers(rows)
        return type(self)(
            kinds=self.kinds,
            kind=self.kind[rows],
            arrival_s=self.arrival_s[rows] if arrival_s is None else arrival_s,
            service_s=self.service_s[rows],
            features=self.features[rows],
            feature_names=self.feature_names,
            keys=self.keys.take(rows),
            units_s=self.units_s[rows],
            unit_names=self.unit_names,
            measured={name: column[rows] for name, column in self.measured.items()},
            meta=self.meta,
        )

    def split(self, fraction: float) -> tuple[Self, Self]:
        """The first `fraction` of the transactions, and the rest: past and future."""
        require(0 < fraction < 1, f"fraction={fraction:g} must lie in (0, 1)")
        at = round(len(self) * fraction)
        return self.take(np.arange(at)), self.take(np.arange(at, len(self)))

    def write(self, path: Path | str) -> None:
        """Write Parquet; an existing file is replaced only by a complete one.

        Raises InvalidInput for a name that `read` would take for a table of text.
        """
        path = Path(path)
        require_parquet(path)
        frame: dict[str, object] = {
            "kind": self.kind,
            "arrival_s": self.arrival_s,
            "service_s": self.service_s,
        }
        for name, column in zip(self.feature_names, self.features.T, strict=True):
            frame[f"feature:{name}"] = column
        for name, column in zip(self.unit_names, self.units_s.T, strict=True):
            frame[f"unit:{name}"] = column
        for name, column in self.measured.items():
            frame[f"measured:{name}"] = column
        offsets = pa.array(self.keys.offsets, pa.int32())
        for name, column in (
            ("keys", pa.array(self.keys.keys, pa.int32())),
            ("exclusive", pa.array(self.keys.exclusive)),
        ):
            frame[name] = pa.ListArray.from_arrays(offsets, column)
        header = {
            "version": SCHEMA_VERSION,
            "kinds": self.kinds,
            "meta": self.meta,
            "sha256": trace_hash(self),
        }
        table = pa.table(frame).replace_schema_metadata(
            {"thesis_trace": json.dumps(header)}
        )
        content = pa.BufferOutputStream()
        pq.write_table(table, content, compression="zstd", compression_level=9)
        write_whole(path, content.getvalue().to_pybytes())

    @classmethod
    def read(cls, path: Path | str, rows: tuple[int, int] | None = None) -> Self:
        """Read what `write` wrote, or a file of those columns from elsewhere.

        `keys` are lists of integers of any width, or of strings, which are numbered as
        they first appear; a header without `sha256` promises nothing about alteration.
        Or read CSV, if the name ends so. `data/traces/README.md` describes the columns
        of both. With `rows`, only those from the first, counted from 0, to before the
        last are read, however many there are, and a row that is refused is counted from
        the first of them; whether the others were altered is not known then.

        Raises InvalidInput for a missing or other file, for one of another version,
        without rows, without those asked for or altered since, and for what `Trace`
        refuses; it names the row, counted from 0, and the column.
        """
        path = Path(path)
        if rows is not None:
            require(
                0 <= rows[0] < rows[1],
                f"rows={rows[0]}:{rows[1]}: expected the first, counted from 0, and "
                "a larger number to end before",
            )
        if not path.is_file():
            raise InvalidInput(
                f"trace {path} does not exist: collect one with "
                "`thesis collect --engine sqlite --transactions N OUT.parquet`"
            )
        if path.suffix.lower() == ".csv":
            try:
                return cls._from_table(*_of_csv(path, rows), {"source": path.name})
            except InvalidInput as error:
                raise InvalidInput(f"trace {path} is refused: {error}") from error
        try:
            with pq.ParquetFile(path) as file:
                table = file.read() if rows is None else _groups(file, *rows)
            header = json.loads((table.schema.metadata or {})[b"thesis_trace"])
            version, kinds = header["version"], tuple(map(str, header["kinds"]))
            if not isinstance(header["kinds"], list):
                raise TypeError("kinds")
            meta, sha256 = dict(header["meta"]), header.pop("sha256", None)
            odd = sorted(header.keys() - {"version", "kinds", "meta"})
        except (
            *(pa.ArrowException, OSError, MemoryError),  # no Parquet, or a broken one
            *(KeyError, ValueError, TypeError, AttributeError),  # no header of ours
            *(RecursionError, OverflowError),
        ) as error:
            raise InvalidInput(
                f"{path} is not a trace ({type(error).__name__}): expected a Parquet "
                "file written by `thesis collect`"
            ) from error
        require(
            version == SCHEMA_VERSION,
            f"{path} has trace version {version}: expected {SCHEMA_VERSION}; collect "
            "it again with this version",
        )
        try:
            require(not odd, f"its header has unknown entries: {odd}")
            _all_there(table, rows)
            require(table.num_rows > 0, "it has no rows: collect some transactions")
            trace = cls._from_table(table, kinds, meta)
            # Files of before the hash have none.
            require(
                rows is not None or sha256 in (None, trace_hash(trace)),
                "it was altered after it was written: collect it again",
            )
        except InvalidInput as error:
            raise InvalidInput(f"trace {path} is refused: {error}") from error
        return trace

    @classmethod
    def _from_table(cls, table: pa.Table, kinds: tuple[str, ...], meta: dict) -> Self:
        columns = {
            name: _column(name, column)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
        for name in table.column_names:
            times = table.column_names.count(name)
            require(times == 1, f"column {name} is there {times} times: expected once")
        for name in _TYPES:
            require(name in columns, f"column {name} is missing")
        of = {prefix: {} for prefix in _PREFIXES}
        for name, column in columns.items():
            if name not in _TYPES:
                prefix, _, rest = name.partition(":")
                of[prefix][rest] = column.to_numpy()
        n = table.num_rows
        sizes, modes = (
            pc.list_value_length(columns[name]).to_numpy()  # type: ignore[attr-defined]
            for name in ("keys", "exclusive")
        )
        require_all(sizes == modes, "exclusive", modes, "not as many as keys")
        keys, names = _numbers(_flat("keys", columns["keys"]))
        return cls(
            kinds=kinds,
            kind=columns["kind"].to_numpy(),
            arrival_s=columns["arrival_s"].to_numpy(),
            service_s=columns["service_s"].to_numpy(),
            features=_stack(of["feature"], n),
            feature_names=tuple(of["feature"]),
            keys=KeySets(
                offsets=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
                keys=keys,
                exclusive=_flat("exclusive", columns["exclusive"]).to_numpy(
                    zero_copy_only=False
                ),
                names=names,
            ),
            units_s=_stack(of["unit"], n),
            unit_names=tuple(of["unit"]),
            measured=of["measured"],
            meta=meta,
        )


# Columns of a file, and what begins the names of those that a trace may have besides.
_TYPES = {
    "kind": pa.int64(),
    "arrival_s": pa.float64(),
    "service_s": pa.float64(),
    "keys": pa.int32(),
    "exclusive": pa.bool_(),
}
_LISTS = ("keys", "exclusive")
_PREFIXES = ("feature", "unit", "measured")


def _is_extra(name: str) -> bool:
    return ":" in name and name.partition(":")[0] in _PREFIXES


def require_parquet(path: Path) -> None:
    """Refuse the name of a table of text for a file that will be none."""
    require(
        path.suffix.lower() != ".csv",
        f"{path} would be read as text: name a file that ends in .parquet",
    )


def _row_numbers(rows: Any) -> I64:
    """`rows` as numbers; a mask would otherwise be read as rows 0 and 1."""
    rows = np.asarray(rows)
    require(
        rows.size == 0 or rows.dtype.kind in "iu",
        f"rows hold {rows.dtype}: expected numbers of rows from 0; those of a mask are "
        "np.flatnonzero of it",
    )
    return rows.astype(np.int64)


def _all_there(table: pa.Table, rows: tuple[int, int] | None) -> None:
    """Refuse a table that has fewer than the `rows` that were asked for."""
    if rows is not None:
        (first, last), found = rows, table.num_rows
        has = f"{first + found} rows" if found else f"no row {first}"
        require(
            found == last - first,
            f"rows={first}:{last}: it has {has}: ask for rows that it has",
        )


def _groups(file: pq.ParquetFile, first: int, last: int) -> pa.Table:
    """Rows `first` to `last`, of those row groups alone that have any."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = np.cumsum(sizes, dtype=np.int64)
    begins = ends - sizes
    within = np.flatnonzero((begins < last) & (ends > first))
    skipped = first - int(begins[within].min(initial=first))
    return file.read_row_groups(within.tolist()).slice(skipped, last - first)


def _rows_of_csv(path: Path, typed: dict[str, pa.DataType], first: int, last: int):
    """Rows `first` to `last` of a table of text, block by block."""
    names = csv.open_csv(path).schema.names
    typed = typed | {name: pa.float64() for name in names if _is_extra(name)}
    reader = csv.open_csv(
        path,
        csv.ReadOptions(use_threads=False, skip_rows_after_names=first),
        convert_options=csv.ConvertOptions(column_types=typed),
    )
    blocks, read = [], 0
    for block in reader:
        blocks.append(block)
        read += len(block)
        if read >= last - first:
            break
    return pa.Table.from_batches(blocks, reader.schema).slice(0, last - first)


def _of_csv(
    path: Path, rows: tuple[int, int] | None
) -> tuple[pa.Table, tuple[str, ...]]:
    """A table of text as the columns of a file, and the names of its types.

    `kind` is a name, by default one for all. `reads` and `writes` are keys with spaces
    between them; what is in both is written.
    """
    typed: dict[str, Any] = dict.fromkeys(("kind", "reads", "writes"), pa.string())
    typed |= dict.fromkeys(("arrival_s", "service_s"), pa.float64())
    try:
        if rows is None:
            table = csv.read_csv(
                path,
                csv.ReadOptions(use_threads=False),  # which tells the row of a fault
                convert_options=csv.ConvertOptions(column_types=typed),
            )
        else:
            table = _rows_of_csv(path, typed, *rows)
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise InvalidInput(
            f"it cannot be read as CSV with a header: {error}"
        ) from error
    names, n = table.column_names, table.num_rows
    for name in names:
        known = name in typed or _is_extra(name)
        require(
            known, f"column {name} is unknown: expected {', '.join(typed)}, feature:…"
        )
        require(names.count(name) == 1, f"column {name} is there twice: expected once")
    _all_there(table, rows)
    require(n > 0, "it has no rows: expected a transaction in each")

    def texts(name: str, default: str) -> list[str]:
        return table[name].to_pylist() if name in names else [default] * n

    numbers: dict[str, int] = {}
    kind = [numbers.setdefault(name, len(numbers)) for name in texts("kind", "job")]
    require("" not in numbers, f"row {kind.index(numbers.get('', 0))} has no kind")
    keys, exclusive = [], []
    for reads, writes in zip(texts("reads", ""), texts("writes", ""), strict=True):
        written = writes.split()
        read = [key for key in reads.split() if key not in written]
        keys.append(read + written)
        exclusive.append([False] * len(read) + [True] * len(written))
    frame: dict[str, Any] = {
        name: column.cast(pa.float64()) if pa.types.is_integer(column.type) else column
        for name, column in zip(names, table.columns, strict=True)
        if not pa.types.is_string(typed.get(name, pa.null()))
    }
    frame |= {
        "kind": pa.array(kind, pa.int64()),
        "keys": pa.array(keys, pa.list_(pa.string())),
        "exclusive": pa.array(exclusive, pa.list_(pa.bool_())),
    }
    return pa.table(frame), tuple(numbers)


def _column(name: str, column: pa.ChunkedArray) -> pa.Array:
    """A column of a file, of its type and without a gap."""
    known = name in _TYPES or _is_extra(name)
    require(known, f"column {name} is unknown: expected {', '.join(_TYPES)}, feature:…")
    kind, inner = _TYPES.get(name, pa.float64()), column.type
    is_list = pa.types.is_list(inner) or pa.types.is_large_list(inner)
    if is_list:
        inner = inner.value_type
    fits, expected = inner == kind, f"{'lists of ' * (name in _LISTS)}{kind}"
    if name == "keys":
        text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
        fits = text or pa.types.is_integer(inner)
        expected = "lists of integers or strings"
    require(
        fits and is_list == (name in _LISTS),
        f"column {name} holds {column.type}: expected {expected}",
    )
    present = column.is_valid().to_numpy()
    require_all(present, name, np.full(len(present), "missing"), "expected a value")
    return column.combine_chunks()


def _flat(name: str, lists: pa.ListArray) -> pa.Array:
    """The entries of all rows of a column of lists."""
    entries = lists.flatten()
    if entries.null_count:
        gap = entries.is_null().to_numpy(zero_copy_only=False)
        row = lists.value_parent_indices().to_numpy()[int(np.argmax(gap))]
        raise InvalidInput(f"row {row} of {name} has an empty entry: expected a value")
    return entries


def _numbers(keys: pa.Array) -> tuple[NDArray, Any]:
    """Integers for keys: their own, or where int64 has none, in order of appearance.

    With these come the names that they stand for, by number.
    """
    if pa.types.is_integer(keys.type):
        given = keys.to_numpy()
        if given.max(initial=0) < 2**63:
            return given.astype(np.int64), None
    encoded = keys.dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _stack(columns: dict[str, F64], n: int) -> F64:
    return np.column_stack(list(columns.values()) or [np.empty((n, 0))])


def _table(
    prefix: str,
    values: F64,
    n: int,
    names: tuple[str, ...],
    minimum: float | None = None,
) -> F64:
    """A column of (n,) for each name, checked like a vector: (n, d)."""
    table = np.asarray(values)
    require(
        table.shape == (n, len(names)),
        f"{prefix}s have shape {table.shape}: expected ({n}, {len(names)})",
    )
    require(len(set(names)) == len(names), f"a {prefix} has its name twice: {names}")
    return _stack(
        {
            name: vector(f"{prefix}:{name}", column, np.float64, n, minimum)
            for name, column in zip(names, table.T, strict=True)
        },
        n,
    )


def trace_hash(trace: Trace) -> str:
    """SHA-256 over all that a trace says, the same before and after a file."""
    names = [trace.feature_names, trace.unit_names, list(trace.measured)]
    text = json.dumps([trace.kinds, trace.meta, *names])
    content = hashlib.sha256(text.encode())
    for column in (
        *(trace.kind, trace.arrival_s, trace.service_s, trace.features, trace.units_s),
        *(trace.keys.offsets, trace.keys.keys, trace.keys.exclusive),
        *(trace.measured[name] for name in trace.measured),
    ):
        array = np.ascontiguousarray(column)
        content.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return content.hexdigest()


@dataclass(frozen=True, slots=True)
class History:
    """What happened to the n transactions of a trace.

    Dropped transactions have NaN in every time but `decided_s`.

    >>> from thesis_lib.sequencer import SystemConfig, policy, scenario, simulate
    >>> system = SystemConfig(cores=8, slo_s=0.0125)
    >>> trace, fifo = scenario("A", n=3, seed=1), policy("fifo", slo_s=0.0125, cores=8)
    >>> history = simulate(trace, fifo, trace.service_s, system)
    >>> (1e3 * history.latency_s).round(2)  # milliseconds
    array([0.47, 0.57, 1.43])
    """

    arrival_s: F64  # (n,)
    deadline_s: F64  # (n,)
    decided_s: F64  # (n,) when the sequencer ordered or dropped it
    granted_s: F64  # (n,) when its last lock was granted
    start_s: F64  # (n,) when a worker took it
    finish_s: F64  # (n,) when it committed
    dropped: Bool  # (n,)
    log: I64  # ids in total order

    @property
    def late(self) -> Bool:
        """(n,) committed, but after the deadline."""
        return ~self.dropped & (self.finish_s > self.deadline_s)

    @property
    def violated(self) -> Bool:
        """(n,) late or dropped: the strict count."""
        return self.dropped | self.late

    @property
    def latency_s(self) -> F64:
        """(n,) arrival to commit; NaN where dropped."""
        return self.finish_s - self.arrival_s
