"""The command log: what makes a deterministic database durable.

Before a batch is dispatched, the sequencer appends its transactions with all their
parameters, customers resolved, in their total order. What a policy dropped is not in
it. Executed from the start on any database of this scale and seed, with any number of
workers, it leads to the same state.

A file is a header and one record a batch. Each begins with a frame: length of the
content, its checksum, the position in the total order of its first transaction, and a
checksum of these three. So a record that a killed process began to write, which ends
with the file, differs from one that was altered.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from struct import Struct
from typing import Any, Self, get_origin
from zlib import crc32

from thesis_lib.common.errors import (
    InvalidInput,
    choice,
    parse_json,
    parse_object,
    require,
)
from thesis_lib.sequencer.core.trace import I64
from thesis_lib.sequencer.workload import transactions as txn

LOG_VERSION = 1
MAGIC = b"thesis command log\n"
FRAME = Struct("<IIQ")  # bytes of content, its CRC-32, position of its first
SEAL = Struct("<I")  # CRC-32 of the frame
SCALES = {scale.__name__: scale for scale in (txn.Scale, txn.YcsbScale)}
ROWS = {
    txn.NewOrder: txn.OrderLine,
    txn.Ycsb: txn.Operation,
}  # what the lists of a type consist of


class CommandLog:
    """A new log file on disk; a context manager.

    `append` returns when the record is the operating system's, which survives the end
    of this process. Raises InvalidInput for a file that exists or cannot be made.
    """

    def __init__(self, path: Path | str, log: txn.Log) -> None:
        self.commands = [_encode(t) for t in log.transactions]  # as clients send them
        self.position = 0
        try:
            self.file = open(path, "xb")  # noqa: SIM115
        except FileExistsError:
            raise InvalidInput(
                f"{path} exists: a log is only ever appended to by who began it; "
                "name a new file"
            ) from None
        except OSError as error:
            raise InvalidInput(
                f"{path} cannot be written: {error.strerror}; name a file in a folder "
                "that exists and that you may write to"
            ) from error
        scale = {"name": type(log.scale).__name__, **asdict(log.scale)}
        header = {"version": LOG_VERSION, "scale": scale, "seed": log.seed}
        self._write(MAGIC + _record(json.dumps(header).encode(), 0))

    def append(self, ids: I64) -> None:
        """Append transactions `ids` (k,) of the log, in this order, as one batch.

        A batch of none leaves no record.
        """
        if len(ids) == 0:
            return
        content = b"\n".join([self.commands[i] for i in ids.tolist()])
        self._write(_record(content, self.position))
        self.position += len(ids)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.file.flush()


@dataclass(frozen=True, slots=True)
class Recovered:
    """The content of a log file, whole records only."""

    log: txn.Log
    torn_bytes: int  # of a last record that was not written to its end


def read_log(path: Path | str) -> Recovered:
    """Read a command log, also one whose writer was killed.

    Raises InvalidInput, with the position in bytes, for a file that is no log, is of
    another version, or was altered: a record whose checksum fails, or that does not
    continue the one before it. A transaction that this database cannot run is named
    by its position in the total order and its field.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"log {path} cannot be read: {error.strerror}") from error
    require(
        content.startswith(MAGIC),
        f"{path} is not a command log: expected a file that `CommandLog` wrote",
    )
    at, transactions = len(MAGIC), []
    header, at = _read_record(content, at, 0, path)
    if header is None:
        raise InvalidInput(
            f"log {path} ends within its header, at byte {len(content)}: its writer "
            "was killed before the first transaction; there is nothing to replay"
        )
    scale, seed = _read_header(header, path)
    kinds, limits = _kinds(scale), _limits(scale)
    while True:
        batch, end = _read_record(content, at, len(transactions), path)
        if batch is None:
            log = txn.Log.declare(scale, seed, transactions)
            return Recovered(log=log, torn_bytes=len(content) - at)
        for command in batch.split(b"\n"):
            try:
                transactions.append(_decode(command, kinds, limits))
            except ValueError as error:
                raise InvalidInput(
                    f"log {path} holds no transaction of this database at byte {at}: "
                    f"transaction {len(transactions)}: {error}; replay it with the "
                    "version that wrote it"
                ) from error
        at = end


def _record(content: bytes, position: int) -> bytes:
    frame = FRAME.pack(len(content), crc32(content), position)
    return frame + SEAL.pack(crc32(frame)) + content


def _read_record(
    content: bytes, at: int, position: int, path: Path | str
) -> tuple[bytes | None, int]:
    """The record that begins at byte `at` and where it ends; None where it is torn."""
    body = at + FRAME.size + SEAL.size
    if body > len(content):
        return None, at
    frame = content[at : at + FRAME.size]
    length, checksum, first = FRAME.unpack(frame)
    sealed = SEAL.unpack(content[at + FRAME.size : body]) == (crc32(frame),)
    altered = (
        f"log {path} was altered at byte {at}, after {position} transactions: "
        "expected what its writer wrote; restore the file, or replay a copy cut there"
    )
    require(sealed and first == position, altered)
    if body + length > len(content):
        return None, at
    body_bytes = content[body : body + length]
    require(crc32(body_bytes) == checksum, altered)
    return body_bytes, body + length


def _read_header(
    header: bytes, path: Path | str
) -> tuple[txn.Scale | txn.YcsbScale, int]:
    try:
        content = parse_object(header, f"the header of log {path}", "that of a log")
        version, seed, sizes = content["version"], content["seed"], content["scale"]
        name = sizes.pop("name")
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"the header of log {path} must have version, seed and scale: restore it"
        ) from error
    require(
        version == LOG_VERSION,
        f"log {path} has version {version}: expected {LOG_VERSION}; replay it "
        "with the version that wrote it",
    )
    try:
        require(type(seed) is int, f"seed is {seed!r}: expected int")
        scale = SCALES[choice("scale", name, SCALES)]
        for field, value in sizes.items():
            _require_field(choice("field", field, scale.__annotations__), value, int)
        return scale(**sizes), seed
    except ValueError as error:
        raise InvalidInput(
            f"the header of log {path} does not name a database: {error}"
        ) from error


def _kinds(scale: txn.Scale | txn.YcsbScale) -> dict[str, type[txn.Transaction]]:
    """The types that a database of this scale runs, by their name in a log."""
    ycsb = isinstance(scale, txn.YcsbScale)
    return {kind.__name__: kind for kind in txn.TYPES if (kind is txn.Ycsb) == ycsb}


def _limits(scale: txn.Scale | txn.YcsbScale) -> dict[str, int]:
    """Return the number of things that a field numbers, from 0."""
    if isinstance(scale, txn.YcsbScale):
        return {
            "partition": scale.files, "counter": scale.partitions,
            "record": scale.records, "field": txn.FIELDS,
        }  # fmt: skip
    return {
        "warehouse": scale.warehouses, "customer_warehouse": scale.warehouses,
        "supply_warehouse": scale.warehouses, "district": txn.DISTRICTS,
        "customer_district": txn.DISTRICTS, "customer": scale.customers,
        "item": scale.items + 1,  # the last is the unknown one
    }  # fmt: skip


def _require_field(
    name: str, value: Any, declared: Any, limit: int | None = None, where: str = ""
) -> None:
    """Reject a value of another type, and a number of what is not there."""
    expected = getattr(declared, "__name__", declared)
    require(
        isinstance(value, declared) and not isinstance(value, bool),
        f"{where}{name} is {value!r}: expected {expected}",
    )
    if isinstance(value, int):
        below = "" if limit is None else f" and below {limit}"
        require(
            value >= 0 and (limit is None or value < limit),
            f"{where}{name} is {value}: expected at least 0{below}",
        )


def _encode(t: txn.Transaction) -> bytes:
    values: Sequence = [getattr(t, field.name) for field in fields(t)]
    return json.dumps([type(t).__name__, *values], separators=(",", ":")).encode()


def _decode(
    command: bytes,
    kinds: Mapping[str, type[txn.Transaction]],
    limits: Mapping[str, int],
) -> txn.Transaction:
    content = parse_json(command, "its command", "a list")
    require(
        isinstance(content, list) and len(content) > 0 and isinstance(content[0], str),
        "expected a list that begins with the name of a type",
    )
    name, *values = content
    return _made(kinds[choice("type", name, kinds)], values, limits)


def _made(kind: Any, values: Any, limits: Mapping[str, int], where: str = "") -> Any:
    """A transaction, or a row of one, from its fields; `where` begins a rejection."""
    declared = kind.__annotations__
    require(
        isinstance(values, list) and len(values) == len(declared),
        f"{where or f'{kind.__name__} '}{values!r}: expected {', '.join(declared)}",
    )
    decisions = []
    for (field, type_), value in zip(declared.items(), values, strict=True):
        if get_origin(type_) is tuple:
            _require_field(field, value, list)
            value = tuple(
                _made(ROWS[kind], row, limits, f"row {k} of {field}: ")
                for k, row in enumerate(value)
            )
        else:
            _require_field(field, value, type_, limits.get(field), where)
            if field == "what":
                choice(f"{where}what", value, txn.OPERATIONS)
        decisions.append(value)
    return kind(*decisions)
