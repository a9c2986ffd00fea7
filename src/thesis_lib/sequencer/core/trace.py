"""The columns that flow through Part I, checked once where they are made.

`Trace` holds the truth, service times included. `Batch` is what a sequencer may
see of it; `Forecast` is what an estimator says of a batch; `Decision` is what a
policy makes of both; `History` is what happened.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from thesis_lib.common.errors import InvalidInput, require, require_all, shown, vector
from thesis_lib.sequencer.core.trace_file import (
    Contents,
    read_contents,
    write_contents,
)

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

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
        rows = list(zip(shared, exclusive, strict=True))
        flat: list = [key for row in rows for keys in row for key in keys]
        modes = [mode for row in rows for mode in (0, 1) for _ in row[mode]]
        names = None
        if any(isinstance(key, str) for key in flat):
            names = list(dict.fromkeys(flat))
            numbers = {name: number for number, name in enumerate(names)}
            flat = [numbers[key] for key in flat]
        return cls(
            offsets=np.cumsum([0, *(len(s) + len(x) for s, x in rows)]),
            keys=vector("keys", flat, np.int64),
            exclusive=np.array(modes, bool),
            names=names,
        )

    def numbered(self) -> Self:
        """The same sets; with keys above MOST_KEYS, numbered in the order of the keys.

        The names of keys do not change which transactions wait for each other.
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

    def keep(self, selected: Bool) -> Self:
        """Return these sets with those outside the mask `selected` (n,) emptied."""
        sizes = np.diff(self.offsets)
        mask = np.repeat(selected, sizes)
        offsets = np.concatenate([[0], np.cumsum(np.where(selected, sizes, 0))])
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
    """The sequencer's view of b transactions: no service time.

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
        """Return the input of an estimator: (b, d) features, and by default no keys."""
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
    """Forecasts for b transactions by an estimator and the look-ahead schedule."""

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
    """Hold n transactions in order of arrival, with their true service times.

    Args:
        kinds: Names of the transaction types.
        kind: Index into `kinds` (n,).
        arrival_s: Arrival times (n,) in seconds from the start of the run.
        service_s: Service times (n,) in seconds.
        features: Static features (n, d), with `feature_names` (d,).
        keys: Keys that each transaction reads and writes; only equality matters.
        units_s: Seconds by operating unit (n, u), at most `service_s` in sum.
        measured: Columns (n,) of a real run, such as `cpu_s` and `lock_wait_s`.
        meta: Origin of the trace.

    Raises:
        InvalidInput: If columns differ in length, arrivals are out of order, a time is
            negative, or a value is not finite; names the first row and the column.

    Example:
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
        set_(self, "features", _matrix("feature", self.features, n, self.feature_names))
        set_(self, "units_s", _matrix("unit", self.units_s, n, self.unit_names, 0.0))
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
        """Return the sequencer's view of rows `ids`, with their deadlines.

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
        return dataclasses.replace(
            self,
            kind=self.kind[rows],
            arrival_s=self.arrival_s[rows] if arrival_s is None else arrival_s,
            service_s=self.service_s[rows],
            features=self.features[rows],
            keys=self.keys.take(rows),
            units_s=self.units_s[rows],
            measured={name: column[rows] for name, column in self.measured.items()},
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
        fields = {
            each.name: getattr(self, each.name) for each in dataclasses.fields(self)
        }
        keys = fields.pop("keys")
        key_sets = keys.offsets, keys.keys, keys.exclusive, None
        write_contents(Path(path), Contents(fields, key_sets, trace_hash(self)))

    @classmethod
    def read(cls, path: Path | str, rows: tuple[int, int] | None = None) -> Self:
        """Read what `write` wrote, or a file of those columns from elsewhere.

        `keys` are lists of integers of any width, or of strings, which are numbered as
        they first appear; a header without `sha256` promises nothing about alteration.
        Or read CSV, if the name ends so. `data/traces/README.md` describes the columns
        of both. `rows` selects a range of rows, counted from 0, without the last. An
        error then counts rows from the start of the range; other rows are not checked.

        Raises InvalidInput for a missing or other file, for one of another version,
        without rows, without those asked for or altered since, and for what `Trace`
        rejects; it names the row, counted from 0, and the column.
        """
        path = Path(path)
        try:
            fields, key_sets, sha256 = read_contents(path, rows)
            trace = cls(keys=KeySets(*key_sets), **fields)
            require(
                sha256 in (None, trace_hash(trace)),
                "it was altered after it was written: collect it again",
            )
        except InvalidInput as error:
            raise InvalidInput(f"trace {path} is rejected: {error}") from error
        return trace


def _row_numbers(rows: Any) -> I64:
    """`rows` as numbers; a mask would otherwise be read as rows 0 and 1."""
    rows = np.asarray(rows)
    require(
        rows.size == 0 or rows.dtype.kind in "iu",
        f"rows hold {rows.dtype}: expected numbers of rows from 0; those of a mask are "
        "np.flatnonzero of it",
    )
    return rows.astype(np.int64)


def _matrix(
    prefix: str, values: F64, n: int, names: tuple[str, ...],
    minimum: float | None = None,
) -> F64:  # fmt: skip
    """Return `values` as (n, d) doubles, each column of a name checked as a vector."""
    table = np.asarray(values)
    require(
        table.shape == (n, len(names)),
        f"{prefix}s have shape {table.shape}: expected ({n}, {len(names)})",
    )
    require(len(set(names)) == len(names), f"a {prefix} has its name twice: {names}")
    for name, column in zip(names, table.T, strict=True):
        vector(f"{prefix}:{name}", column, np.float64, n, minimum)
    return np.ascontiguousarray(table, np.float64)


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
    """The history of the n transactions of a trace.

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
