"""Traces as files: Parquet that `Trace.write` wrote, and Parquet or CSV from elsewhere.

A file holds the columns of PARQUET or of CSV and any number of columns of numbers whose
names begin with `feature:`, `unit:` or `measured:`. `data/traces/README.md` describes
them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from thesis_lib.common.errors import InvalidInput, require, require_all
from thesis_lib.common.files import write_whole

SCHEMA_VERSION = 1
PARQUET = {
    "kind": pa.int64(),  # index into the kinds of the header
    "arrival_s": pa.float64(),
    "service_s": pa.float64(),
    "keys": pa.list_(pa.int32()),  # of integers of any width, or of strings
    "exclusive": pa.list_(pa.bool_()),  # one for each of `keys`
}
CSV = {
    "kind": pa.string(),  # a name; optional, "job" by default
    "arrival_s": pa.float64(),
    "service_s": pa.float64(),
    "reads": pa.string(),  # keys with spaces between them; optional
    "writes": pa.string(),  # the same; a key in both is written
}
EXTRAS = ("feature", "unit", "measured")  # what begins the names of other columns


Rows = tuple[int, int] | None  # the first and the one to end before, None for all


class Contents(NamedTuple):
    """The columns of a file with n transactions."""

    fields: dict[str, Any]  # of a `Trace`, all but its keys
    key_sets: tuple[NDArray, NDArray, NDArray, list[Any] | None]  # of `KeySets`
    sha256: str | None  # what the header promises of the whole trace


def require_parquet(path: Path) -> None:
    """Reject a name that `read_contents` would read as CSV."""
    require(
        path.suffix.lower() != ".csv",
        f"{path} would be read as text: name a file that ends in .parquet",
    )


def write_contents(path: Path, contents: Contents) -> None:
    """Write Parquet; an existing file is replaced only by a complete one."""
    require_parquet(path)
    fields = contents.fields
    frame = {name: fields[name] for name in ("kind", "arrival_s", "service_s")}
    for prefix, names, columns in (
        ("feature", fields["feature_names"], fields["features"].T),
        ("unit", fields["unit_names"], fields["units_s"].T),
        ("measured", fields["measured"], fields["measured"].values()),
    ):
        for name, column in zip(names, columns, strict=True):
            frame[f"{prefix}:{name}"] = column
    offsets, keys, exclusive, _ = contents.key_sets
    for name, flat in (("keys", keys), ("exclusive", exclusive)):
        entries = pa.array(flat, PARQUET[name].value_type)
        frame[name] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), entries)
    header = {"version": SCHEMA_VERSION, "kinds": fields["kinds"]}
    header |= {"meta": fields["meta"], "sha256": contents.sha256}
    table = pa.table(frame).replace_schema_metadata(
        {"thesis_trace": json.dumps(header)}
    )
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd", compression_level=9)
    write_whole(path, content.getvalue().to_pybytes())


def read_contents(path: Path, rows: Rows) -> Contents:
    """Read and check a file, or `rows` of it.

    Raises InvalidInput for a missing or other file, for one of another version, without
    rows or without those asked for, and for columns that are unknown, missing, of
    another type or incomplete; it names the row, counted from 0, and the column.
    """
    if rows is not None:
        require(
            0 <= rows[0] < rows[1],
            f"rows={rows[0]}:{rows[1]}: expected the first, counted from 0, and "
            "a larger number to end before",
        )
    require(
        path.is_file(),
        "it does not exist: collect one with "
        "`thesis collect --engine sqlite --transactions N OUT.parquet`",
    )
    read = _read_csv if path.suffix.lower() == ".csv" else _read_parquet
    table, header = read(path, rows)
    arrays = {name: _array(name, table[name]) for name in table.column_names}
    key_sets = _key_sets(arrays.pop("keys"), arrays.pop("exclusive"))
    columns = {name: array.to_numpy() for name, array in arrays.items()}
    extras = {
        prefix: {
            name.partition(":")[2]: columns.pop(name)
            for name in table.column_names
            if name.startswith(f"{prefix}:")
        }
        for prefix in EXTRAS
    }
    sha256 = header.pop("sha256", None)
    fields = header | columns | {"measured": extras["measured"]}
    for prefix, matrix in (("feature", "features"), ("unit", "units_s")):
        fields[f"{prefix}_names"] = tuple(extras[prefix])
        each = list(extras[prefix].values()) or [np.empty((len(table), 0))]
        fields[matrix] = np.column_stack(each)
    return Contents(fields, key_sets, sha256)


# --- Tables -------------------------------------------------------------------
def _read_parquet(path: Path, rows: Rows) -> tuple[pa.Table, dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read() if rows is None else _row_groups(file, *rows)
        header = json.loads((table.schema.metadata or {})[b"thesis_trace"])
        version, kinds = header.pop("version"), header.pop("kinds")
        if not isinstance(kinds, list):
            raise TypeError("kinds")
        known = {"kinds": tuple(map(str, kinds)), "meta": dict(header.pop("meta"))}
        sha256 = header.pop("sha256", None)
    except (
        *(pa.ArrowException, OSError, MemoryError),  # no Parquet, or a broken one
        *(KeyError, ValueError, TypeError, AttributeError),  # no header of ours
        *(RecursionError, OverflowError),
    ) as error:
        raise InvalidInput(
            f"it is not a trace ({type(error).__name__}): expected a Parquet file "
            "written by `thesis collect`"
        ) from error
    require(
        version == SCHEMA_VERSION,
        f"it has trace version {version}: expected {SCHEMA_VERSION}; collect it again "
        "with this version",
    )
    require(not header, f"its header has unknown entries: {sorted(header)}")
    _require_columns(table.column_names, PARQUET, required=PARQUET)
    _require_rows(table, rows)
    return table, known | {"sha256": sha256 if rows is None else None}


def _row_groups(file: pq.ParquetFile, first: int, last: int) -> pa.Table:
    """Rows `first` to `last`, from the row groups alone that contain any."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = np.cumsum(sizes, dtype=np.int64)
    begins = ends - sizes
    within = np.flatnonzero((begins < last) & (ends > first))
    skipped = first - int(begins[within].min(initial=first))
    return file.read_row_groups(within.tolist()).slice(skipped, last - first)


def _read_csv(path: Path, rows: Rows) -> tuple[pa.Table, dict[str, Any]]:
    """Read CSV, block by block up to the last row, into the columns of PARQUET."""
    first, last = rows or (0, np.inf)
    one_thread = csv.ReadOptions(use_threads=False)  # errors name the row
    try:
        names = csv.open_csv(path, one_thread).schema.names
        _require_columns(names, CSV, required=("arrival_s", "service_s"))
        types = {name: CSV.get(name, pa.float64()) for name in names}
        one_thread.skip_rows_after_names = first
        reader = csv.open_csv(
            path, one_thread, convert_options=csv.ConvertOptions(column_types=types)
        )
        blocks, count = [], 0
        while count < last - first and (block := next(reader, None)) is not None:
            blocks.append(block)
            count += len(block)
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise InvalidInput(
            f"it cannot be read as CSV with a header: {error}"
        ) from error
    table = pa.Table.from_batches(blocks, reader.schema)
    if rows is not None:
        table = table.slice(0, rows[1] - first)
    _require_rows(table, rows)

    def texts(name: str, default: str) -> list[str]:
        return table[name].to_pylist() if name in names else [default] * len(table)

    kind = pa.array(texts("kind", "job")).dictionary_encode()
    kinds = tuple(kind.dictionary.to_pylist())
    if "" in kinds:
        row = kind.indices.to_pylist().index(kinds.index(""))
        raise InvalidInput(f"row {row} has no kind: expected the name of a type")
    keys, exclusive = [], []
    for reads, writes in zip(texts("reads", ""), texts("writes", ""), strict=True):
        written = writes.split()
        read = [key for key in reads.split() if key not in written]
        keys.append(read + written)
        exclusive.append([False] * len(read) + [True] * len(written))
    frame = {
        name: column
        for name, column in zip(names, table.columns, strict=True)
        if not pa.types.is_string(column.type)
    }
    frame |= {
        "kind": kind.indices.cast(pa.int64()),
        "keys": pa.array(keys, pa.list_(pa.string())),
        "exclusive": pa.array(exclusive, PARQUET["exclusive"]),
    }
    return pa.table(frame), {"kinds": kinds, "meta": {"source": path.name}}


def _require_columns(names: list[str], known: dict, required: Any) -> None:
    for name in names:
        require(
            name in known or (":" in name and name.partition(":")[0] in EXTRAS),
            f"column {name} is unknown: expected {', '.join(known)}, feature:…",
        )
        times = names.count(name)
        require(times == 1, f"column {name} is there {times} times: expected once")
    for name in required:
        require(name in names, f"column {name} is missing")


def _require_rows(table: pa.Table, rows: Rows) -> None:
    """Reject a table that is empty, or has fewer than the `rows` asked for."""
    count = len(table)
    if rows is not None:
        first, last = rows
        has = f"{first + count} rows" if count else f"no row {first}"
        require(
            count == last - first,
            f"rows={first}:{last}: it has {has}: ask for rows that it has",
        )
    require(count > 0, "it has no rows: collect some transactions")


# --- Columns --------------------------------------------------------------------
def _array(name: str, column: pa.ChunkedArray) -> pa.Array:
    """The entries of a column of a file if they have its type and none is missing."""
    declared, stored = PARQUET.get(name, pa.float64()), column.type
    if pa.types.is_list(stored) or pa.types.is_large_list(stored):
        stored = pa.list_(stored.value_type)  # whatever a file calls its entries
    fits, expected = stored == declared, str(declared)
    if name == "keys" and pa.types.is_list(stored):
        inner = stored.value_type
        fits = pa.types.is_integer(inner) or inner in (pa.string(), pa.large_string())
    if name == "keys":
        expected = "lists of integers or strings"
    require(fits, f"column {name} holds {column.type}: expected {expected}")
    present = column.is_valid().to_numpy()
    require_all(present, name, np.full(len(present), "missing"), "expected a value")
    return column.combine_chunks()


def _key_sets(
    keys: pa.Array, exclusive: pa.Array
) -> tuple[NDArray, NDArray, NDArray, list[Any] | None]:
    """Return the fields of `KeySets`; keys beyond int64 are numbered by appearance."""
    sizes, modes = (
        pc.list_value_length(lists).to_numpy()  # type: ignore[attr-defined]
        for lists in (keys, exclusive)
    )
    require_all(sizes == modes, "exclusive", modes, "not as many as keys")
    for name, lists in (("keys", keys), ("exclusive", exclusive)):
        gap = lists.flatten().is_null().to_numpy(zero_copy_only=False)
        if gap.any():
            row = lists.value_parent_indices().to_numpy()[int(np.argmax(gap))]
            raise InvalidInput(
                f"row {row} of {name} has an empty entry: expected a value"
            )
    flat, names = keys.flatten(), None
    if not pa.types.is_integer(flat.type) or flat.to_numpy().max(initial=0) >= 2**63:
        encoded = flat.dictionary_encode()
        flat, names = encoded.indices, encoded.dictionary.to_pylist()
    return (
        np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        flat.to_numpy().astype(np.int64),
        exclusive.flatten().to_numpy(zero_copy_only=False),
        names,
    )
