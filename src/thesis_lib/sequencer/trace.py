"""The columns that flow through Part I, checked once where they are made.

`Trace` holds the truth, service times included. `Batch` is what a sequencer may
see of it; `Forecast` is what an estimator says of a batch; `Decision` is what a
policy makes of both; `History` is what happened.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from thesis_lib.checks import InvalidInput, require, vector

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class KeySets:
    """Declared read and write sets of n transactions, compressed by row.

    Transaction i holds `keys[offsets[i]:offsets[i + 1]]`, each at most once; a key
    that is both read and written is listed as exclusive. Keys are dense integers
    from 0. Raises InvalidInput for offsets that do not describe `keys`, and for a
    key listed twice in one transaction.
    """

    offsets: I64  # (n + 1,)
    keys: I64  # (offsets[-1],)
    exclusive: Bool  # (offsets[-1],)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "offsets", vector("offsets", self.offsets, np.int64, minimum=0))
        set_(self, "keys", vector("keys", self.keys, np.int64, minimum=0))
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
        owner = np.repeat(np.arange(len(self)), np.diff(bounds))
        order = np.lexsort((self.keys, owner))
        twice = (np.diff(self.keys[order]) == 0) & (np.diff(owner[order]) == 0)
        if twice.any():
            at = order[int(np.argmax(twice))]
            raise InvalidInput(
                f"transaction {owner[at]} lists key {self.keys[at]} twice: "
                "list it once, exclusive if it is written"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_lists(cls, shared: list[list[int]], exclusive: list[list[int]]) -> Self:
        """Key sets from one list of shared and one of exclusive keys each."""
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
        return cls(
            offsets=np.cumsum([0, *(len(row) for row in rows)]),
            keys=np.array([k for row in rows for k in row], np.int64),
            exclusive=np.array([m for row in modes for m in row], bool),
        )

    def take(self, rows: I64) -> Self:
        """The key sets of `rows`, in that order."""
        rows = np.asarray(rows, np.int64)
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        flat = np.repeat(self.offsets[:-1][rows] - offsets[:-1], sizes)
        flat += np.arange(offsets[-1])
        return type(self)(offsets, self.keys[flat], self.exclusive[flat])

    @property
    def n_keys(self) -> int:
        """One more than the largest key: the size of a lock table."""
        return int(self.keys.max()) + 1 if len(self.keys) else 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What a sequencer may see of b transactions: no service time."""

    ids: I64  # (b,) rows of the trace
    arrival_s: F64  # (b,)
    deadline_s: F64  # (b,) arrival + service level objective
    features: F64  # (b, d) known before execution
    keys: KeySets  # declared read and write sets

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an estimator and the shadow schedule say of b transactions."""

    service_s: F64  # (b,) own work, >= 0
    finish_s: F64  # (b,) predicted completion, waiting included
    p_on_time: F64  # (b,) probability of finishing by the deadline, in [0, 1]


@dataclass(frozen=True, slots=True)
class Decision:
    """A partition of a batch: run in `order`, `dropped` for good, `held` for later."""

    order: I64  # ids, first to run first
    dropped: I64  # ids
    held: I64 = field(default_factory=lambda: np.empty(0, np.int64))  # ids


@dataclass(frozen=True, slots=True)
class Trace:
    """n transactions in order of arrival, with the truth about each.

    `units_s` splits the service time into operating units and sums to at most
    `service_s`. `measured` holds columns that only a real run has (`cpu_s`,
    `lock_wait_s`, `queue_s`, …), each (n,). `meta` says where the trace comes from.
    Raises InvalidInput for columns of unequal length, arrivals out of order, or
    negative times.
    """

    kinds: tuple[str, ...]  # names of the transaction types
    kind: I64  # (n,) index into kinds
    arrival_s: F64  # (n,) from the start of the run
    service_s: F64  # (n,) > 0
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
        require(
            n == 0 or bool((np.diff(self.arrival_s) >= 0).all()),
            "arrival_s falls somewhere: sort the transactions by arrival",
        )
        require(len(self.keys) == n, f"{len(self.keys)} key sets for {n} transactions")
        for name, table, columns in (
            ("features", self.features, self.feature_names),
            ("units_s", self.units_s, self.unit_names),
        ):
            require(
                table.shape == (n, len(columns)),
                f"{name} has shape {table.shape}: expected ({n}, {len(columns)})",
            )
        require(
            n == 0 or int(self.kind.max()) < len(self.kinds),
            f"kind refers past the {len(self.kinds)} names in kinds",
        )
        for name, column in self.measured.items():
            vector(name, column, np.float64, n)

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

    def batch(self, ids: I64, deadline_s: F64) -> Batch:
        """What a sequencer may see of rows `ids`, whose deadlines are given."""
        return Batch(
            ids=np.asarray(ids, np.int64),
            arrival_s=self.arrival_s[ids],
            deadline_s=np.asarray(deadline_s, np.float64),
            features=self.features[ids],
            keys=self.keys.take(ids),
        )

    def take(self, rows: I64) -> Self:
        """The trace of `rows`, in that order (arrivals must stay sorted)."""
        rows = np.asarray(rows, np.int64)
        return type(self)(
            kinds=self.kinds,
            kind=self.kind[rows],
            arrival_s=self.arrival_s[rows],
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
        """Write Parquet; an existing file is replaced only by a complete one."""
        path = Path(path)
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
        frame["keys"] = pa.ListArray.from_arrays(
            offsets, pa.array(self.keys.keys, pa.int32())
        )
        frame["exclusive"] = pa.ListArray.from_arrays(
            offsets, pa.array(self.keys.exclusive)
        )
        table = pa.table(frame).replace_schema_metadata(
            {
                "thesis_trace": json.dumps(
                    {"version": SCHEMA_VERSION, "kinds": self.kinds, "meta": self.meta}
                )
            }
        )
        partial = path.with_name(path.name + ".partial")
        pq.write_table(table, partial, compression="zstd", compression_level=9)
        partial.replace(path)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read what `write` wrote. Raises InvalidInput for a missing or other file."""
        path = Path(path)
        if not path.is_file():
            raise InvalidInput(
                f"trace {path} does not exist: collect one with "
                "`thesis collect --engine sqlite --transactions N OUT.parquet`"
            )
        try:
            table = pq.read_table(path)
            header = json.loads((table.schema.metadata or {})[b"thesis_trace"])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise InvalidInput(
                f"{path} is not a trace ({type(error).__name__}): expected a Parquet "
                "file written by `thesis collect`"
            ) from error
        require(
            header.get("version") == SCHEMA_VERSION,
            f"{path} has trace version {header.get('version')}: expected "
            f"{SCHEMA_VERSION}; collect it again with this version",
        )

        def columns(prefix: str) -> dict[str, F64]:
            return {
                name.removeprefix(prefix): table[name].to_numpy()
                for name in table.column_names
                if name.startswith(prefix)
            }

        features, units = columns("feature:"), columns("unit:")
        lists = table["keys"].combine_chunks()
        modes = table["exclusive"].combine_chunks()
        n = table.num_rows
        return cls(
            kinds=tuple(header["kinds"]),
            kind=table["kind"].to_numpy(),
            arrival_s=table["arrival_s"].to_numpy(),
            service_s=table["service_s"].to_numpy(),
            features=np.column_stack(list(features.values()) or [np.empty((n, 0))]),
            feature_names=tuple(features),
            keys=KeySets(
                offsets=lists.offsets.to_numpy().astype(np.int64),
                keys=lists.values.to_numpy(zero_copy_only=False).astype(np.int64),
                exclusive=modes.values.to_numpy(zero_copy_only=False),
            ),
            units_s=np.column_stack(list(units.values()) or [np.empty((n, 0))]),
            unit_names=tuple(units),
            measured=columns("measured:"),
            meta=header["meta"],
        )

    def frame(self) -> pd.DataFrame:
        """Everything but the key sets as a table, one row per transaction."""
        table = pd.DataFrame(self.features, columns=list(self.feature_names))
        table.insert(0, "kind", np.array(self.kinds)[self.kind])
        table["arrival_s"] = self.arrival_s
        table["service_s"] = self.service_s
        return table.assign(**self.measured)


@dataclass(frozen=True, slots=True)
class History:
    """What happened to the n transactions of a trace.

    Dropped transactions have NaN in every time but `decided_s`.
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
