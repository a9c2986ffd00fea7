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
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Any, Self
from zlib import crc32

from thesis_lib.checks import InvalidInput, require
from thesis_lib.sequencer.trace import I64
from thesis_lib.sequencer.workload import (
    TYPES,
    Log,
    NewOrder,
    Operation,
    OrderLine,
    Scale,
    Transaction,
    Ycsb,
    YcsbScale,
)

LOG_VERSION = 1
MAGIC = b"thesis command log\n"
FRAME = Struct("<IIQ")  # bytes of content, its CRC-32, position of its first
SEAL = Struct("<I")  # CRC-32 of the frame
SCALES = {scale.__name__: scale for scale in (Scale, YcsbScale)}
NAMES = {kind.__name__: kind for kind in TYPES}
ROWS = {NewOrder: OrderLine, Ycsb: Operation}  # what the lists of a type consist of


class CommandLog:
    """A new log file on disk; a context manager.

    `append` returns when the record is the operating system's, which survives the end
    of this process, or with `fsync` when it is on the disk. Raises InvalidInput for a
    file that exists or cannot be made.
    """

    def __init__(self, path: Path | str, log: Log, fsync: bool = False) -> None:
        self.commands = [_encode(t) for t in log.transactions]  # as clients send them
        self.fsync, self.position = fsync, 0
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
        """Append transactions `ids` (k,) of the log, in this order, as one batch."""
        content = b"\n".join([self.commands[i] for i in ids.tolist()])
        self._write(_record(content, self.position))
        self.position += len(ids)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.file.flush()
        if self.fsync:
            os.fsync(self.file.fileno())


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a log file holds, whole records only."""

    log: Log
    torn_bytes: int  # of a last record that was not written to its end


def read_log(path: Path | str) -> Recovered:
    """Read a command log, also one whose writer was killed.

    Raises InvalidInput, with the position in bytes, for a file that is no log, is of
    another version, or was altered: a record whose checksum fails, or that does not
    continue the one before it.
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
    while True:
        batch, end = _read_record(content, at, len(transactions), path)
        if batch is None:
            break
        try:
            transactions += [_decode(command) for command in batch.split(b"\n")]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"log {path} holds no transaction of this version at byte {at}: "
                f"{error!r}"
            ) from error
        at = end
    log = Log.declare(scale, seed, transactions)
    return Recovered(log=log, torn_bytes=len(content) - at)


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
    found = content[body : body + length]
    require(crc32(found) == checksum, altered)
    return found, body + length


def _read_header(header: bytes, path: Path | str) -> tuple[Scale | YcsbScale, int]:
    try:
        content = json.loads(header)
        version, seed = content["version"], int(content["seed"])
        name = content["scale"].pop("name")
        require(
            version == LOG_VERSION,
            f"log {path} has version {version}: expected {LOG_VERSION}; replay it "
            "with the version that wrote it",
        )
        return SCALES[name](**content["scale"]), seed
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"the header of log {path} does not name a database: {error!r}"
        ) from error


def _encode(t: Transaction) -> bytes:
    values: Sequence = [getattr(t, field.name) for field in fields(t)]
    return json.dumps([type(t).__name__, *values], separators=(",", ":")).encode()


def _decode(command: bytes) -> Transaction:
    name, *values = json.loads(command)
    kind: Any = NAMES[name]
    row: Any = ROWS.get(kind)
    if row is not None:
        values = [
            tuple(row(*entry) for entry in value) if isinstance(value, list) else value
            for value in values
        ]
    return kind(*values)
