"""bfloat16 weights in about 0.7 of their bytes, bit for bit.

Sign and mantissa of a trained weight look like noise, so their byte is stored
unchanged. The exponent is stored as its rank among the most frequent ones of a chunk,
in three bits; an escape leads to a list of rarer ones in four bits, and its own escape
to a list of bytes. This is a patched code of fixed width (Zukowski et al., Super-Scalar
RAM-CPU Cache Compression, ICDE 2006), which vector instructions decode.

Several threads decode chunks as they arrive, from the end of a buffer to its front.
"""

import math
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.units import MiB
from thesis_lib.memory.formats.base import WeightFormat, register
from thesis_lib.memory.model.checkpoint import (
    CODED,
    Entry,
    NewCheckpoint,
    in_file_order,
    nbytes,
)

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]

CHUNK_BYTES = MiB  # decoded, of all chunks but the last
MOST_DECODED = 2  # bytes from one: sign and mantissa of a number are kept as they are
RATIO = 0.70  # of normally distributed weights; trained layers are close to it

_THREADS = os.cpu_count() or 1
CODE_BITS = 3  # of the rank of an exponent
_COMMON, _RARE = (
    2**CODE_BITS - 1,
    15,
)  # exponents with a code of those, and of four bits

_LANES = 64  # words that one vector of bits serves, side by side
_TILE = 16 * _LANES  # words of one tile: bit k of lane l belongs to word k * 64 + l
_PLANES_BYTES = CODE_BITS * _TILE // 8
# Bytes of the chunk, and decoded; tiles; escapes from three bits and from four; the
# exponents by rank.
_HEADER = struct.Struct("<IIIII22s22x")

# The place of a single bit in 64, by the top six bits of its product with a number in
# which every run of six bits occurs once (Leiserson and others, 1998).
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT = np.zeros(64, np.uint8)
for _place in range(64):
    _BIT[(int(_DE_BRUIJN) << _place & 2**64 - 1) >> 58] = _place


@register
class Lossless(WeightFormat):
    """Every layer as the code of its dense tensors, embedding and head included."""

    kind = word = "lossless"
    is_coded = True

    @classmethod
    def here(cls) -> Self:
        """The one layout."""
        return cls("patched")

    def entries(self, layer: int, dense: Mapping[str, Entry]) -> dict[str, Entry]:
        """Return the stored tensors. Rejects dense tensors that are not bfloat16."""
        for name, (dtype, _) in dense.items():
            require(
                dtype == "BF16",
                f"{name} is {dtype}: expected BF16, whose exponents the code is made "
                "for; save the model in bfloat16 first",
            )
        return dict(dense)

    def write(
        self,
        checkpoint: NewCheckpoint,
        layer: int,
        entries: Mapping[str, Entry],
        contents: Iterable[memoryview],
    ) -> int:
        """Write the code of the tensors of a layer; its bytes."""
        ordered = in_file_order(entries)
        plain = np.empty(sum(map(nbytes, ordered.values())), np.uint8)
        at = 0
        for data in contents:
            plain[at : at + len(data)] = data
            at += len(data)
        stream = encode(plain)
        one = {CODED: ("U8", stream.shape)}
        checkpoint.write(layer, one, [stream.data], ordered)
        return len(stream)

    def estimate_read_bytes(self, layer_bytes: int) -> int:
        """Return the expected ratio of normally distributed weights."""
        return math.ceil(RATIO * layer_bytes)

    def buffer_bytes(self, read_bytes: int, layer_bytes: int) -> int:
        """Return the bytes needed to decode a layer in the memory of its code."""
        return buffer_bytes(read_bytes, layer_bytes)

    def decoder_bytes(self, threads: int) -> int:
        """A coded chunk for each thread."""
        return scratch_bytes(threads)


class CodeDamaged(InvalidInput):
    """Coded bytes that are not what the encoder wrote."""


def encode(data: memoryview | U8) -> U8:
    """The chunks of bytes that hold bfloat16 numbers, (n,) bytes to (m,).

    Any bytes are coded: those that do not shrink, and what a tile does not fill, are
    kept as they are, which adds at most a header to each chunk.
    """
    plain = np.frombuffer(data, np.uint8)
    parts = [plain[at : at + CHUNK_BYTES] for at in range(0, len(plain), CHUNK_BYTES)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate([np.empty(0, np.uint8), *pool.map(_encode_chunk, parts)])


def chunks(decoded_bytes: int) -> int:
    """Return the number of chunks of a code of so many bytes."""
    return -(-decoded_bytes // CHUNK_BYTES)


def buffer_bytes(coded_bytes: int, decoded_bytes: int) -> int:
    """The memory in which a stream can be decoded if it lies at its end.

    A chunk may be written as soon as those before it are copied out: what is written
    never overtakes what is to be read, if there is room for the headers.
    """
    return max(coded_bytes, decoded_bytes) + chunks(decoded_bytes) * _HEADER.size


def scratch_bytes(threads: int) -> int:
    """Return the bytes that so many decoding threads need in addition."""
    return threads * (CHUNK_BYTES + _HEADER.size)


@dataclass(frozen=True, slots=True)
class FieldBits:
    """Entropies of the fields of bfloat16 numbers, in bits of a number."""

    sign: float  # of 1 bit
    exponent: float  # of 8
    mantissa: float  # of 7

    @property
    def ideal_ratio(self) -> float:
        """The fewest bytes of any code of one field after the other, over all bytes."""
        return (self.sign + self.exponent + self.mantissa) / 16


def field_bits(words: U16) -> FieldBits:
    """The entropies of the fields of bfloat16 bit patterns, (n,), n > 0."""

    def entropy(field: NDArray[Any]) -> float:
        shares = np.bincount(field) / len(words)
        shares = shares[shares > 0]
        return float(-(shares * np.log2(shares)).sum())

    return FieldBits(
        entropy(words >> 15), entropy(words >> 7 & 0xFF), entropy(words & 0x7F)
    )


def decode_bytes_per_s(
    stream: U8, decoded_bytes: int, threads: int = 1, rounds: int = 5
) -> float:
    """The median rate at which a stream in memory is decoded, by so many threads."""
    buffer = np.empty(buffer_bytes(len(stream), decoded_bytes), np.uint8)
    start = len(buffer) - len(stream)
    scratch = Scratch(threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds + 1):
            buffer[start:] = stream
            decoding = InPlace(buffer, start, decoded_bytes, pool, scratch)
            begin = time.perf_counter()
            for share in range(threads):  # a job of its own for each thread
                ends = (len(stream) * np.array([share, share + 1])) // threads
                decoding.arrive(*map(int, ends))
            decoding.finish()
            seconds.append(time.perf_counter() - begin)
    return decoded_bytes / float(np.median(seconds[1:]))


class Scratch:
    """A buffer for each decoding thread, which holds one coded chunk."""

    def __init__(self, threads: int) -> None:
        size = scratch_bytes(1)
        self.buffers = [np.empty(size, np.uint8) for _ in range(threads)]
        self._free: SimpleQueue[U8] = SimpleQueue()
        for buffer in self.buffers:
            self._free.put(buffer)

    @contextmanager
    def lend(self) -> Iterator[U8]:
        """Lease a buffer exclusively."""
        buffer = self._free.get()
        try:
            yield buffer
        finally:
            self._free.put(buffer)


class InPlace:
    """A stream that is decoded to the front of the memory at whose end it arrives.

    `buffer`, (b,) bytes, holds the stream from `start` to its end, in whatever order
    its parts arrive, and afterwards `decoded_bytes` from 0. Chunks are decoded by the
    jobs that `arrive` gives to `pool`, or at once without one; `scratch` is shared
    with other streams of the same pool. `digest`, of hashlib or the like, is fed the
    stream; `end_s` is the second of `time.perf_counter` at which the last job ended.
    """

    def __init__(
        self,
        buffer: U8,
        start: int,
        decoded_bytes: int,
        pool: Executor | None = None,
        scratch: Scratch | None = None,
        digest: Any = None,
    ) -> None:
        self._buffer, self._decoded_bytes = buffer, decoded_bytes
        self._pool, self._scratch = pool, scratch or Scratch(1)
        self._start = self._read = self._ready = start  # ready: all before has arrived
        self._written = 0
        self._digest, self.end_s = digest, math.nan
        self._parts: dict[int, int] = {}
        self._jobs: list[Future[None]] = []
        self._lock = threading.Lock()

    def arrive(self, start: int, end: int) -> None:
        """Bytes `start` to `end` of the stream have arrived."""
        with self._lock:
            self._parts[self._start + start] = self._start + end
            while self._ready in self._parts:
                self._ready = self._parts.pop(self._ready)
        if self._pool is None:
            self._decode_ready()
        else:
            self._jobs.append(self._pool.submit(self._decode_ready))

    def settle(self) -> None:
        """Return when nothing writes to the buffer any more."""
        wait(self._jobs)

    def finish(self) -> None:
        """Return when all is decoded, after everything has arrived.

        Raises CodeDamaged for a stream that is not whole.
        """
        self.settle()
        for job in self._jobs:
            job.result()
        if self._written != self._decoded_bytes or self._read != len(self._buffer):
            raise CodeDamaged(
                f"its code ends after {self._written} of {self._decoded_bytes} bytes"
            )

    def _decode_ready(self) -> None:
        """Decode chunks that have arrived until there are none left."""
        with self._scratch.lend() as scratch:
            while (taken := self._take(scratch)) is not None:
                _decode_chunk(*taken)
        with self._lock:
            self.end_s = time.perf_counter()

    def _take(self, scratch: U8) -> tuple[U8, U8] | None:
        """Copy the next chunk out and return its place; free the memory before it."""
        with self._lock:
            read, written = self._read, self._written
            if read + _HEADER.size > self._ready:
                return None
            size, decoded, *_ = _HEADER.unpack_from(self._buffer.data, read)
            whole = _HEADER.size <= size <= len(scratch)
            fits = written + decoded <= min(self._decoded_bytes, read + size)
            if not whole or not fits or decoded > CHUNK_BYTES:
                self._ready = 0  # stop the other threads
                raise CodeDamaged(f"its code has no chunk at byte {read - self._start}")
            if read + size > self._ready:
                return None
            coded = scratch[:size]
            np.copyto(coded, self._buffer[read : read + size])
            if self._digest is not None:
                self._digest.update(coded.data)
            self._read, self._written = read + size, written + decoded
        return coded, self._buffer[written : written + decoded]


def _encode_chunk(plain: U8) -> U8:
    tiles = len(plain) // (2 * _TILE)
    n = tiles * _TILE
    words, rest = plain[: 2 * n].view(np.uint16), plain[2 * n :]
    noise, planes = np.empty(n, np.uint8), np.empty(3 * n // 16, np.uint16)
    ranked, rank = _by_frequency(words)
    rare, raw = _split(words, rank, noise, planes)
    parts = [noise, planes.view(np.uint8), _in_nibbles(rare), raw, rest]
    if sum(map(len, parts)) >= len(plain):
        tiles, rare, raw, parts = 0, rare[:0], raw[:0], [plain]
    size = _HEADER.size + sum(map(len, parts))
    head = _HEADER.pack(
        size, len(plain), tiles, len(rare), len(raw), ranked[:22].tobytes()
    )
    return np.concatenate([np.frombuffer(head, np.uint8), *parts])


def _by_frequency(words: U16) -> tuple[U8, U8]:
    """Exponents from the most to the least frequent, (256,), and the rank of each."""
    counts = np.bincount(words >> 7 & 0xFF, minlength=256)
    ranked = np.argsort(-counts, kind="stable").astype(np.uint8)
    rank = np.empty(256, np.uint8)
    rank[ranked] = np.arange(256)
    return ranked, rank


def _split(words: U16, rank: U8, noise: U8, planes: U16) -> tuple[U8, U8]:
    """Fill `noise` and `planes`; return the ranks of rare exponents, and raw ones."""
    escaped = np.empty(len(words), np.uint8)
    n = _fill_planes(words, rank, noise, planes, escaped)
    escaped = escaped[:n]
    places = rank[escaped].astype(np.int64) - _COMMON
    rare = np.minimum(places, _RARE).astype(np.uint8)
    return rare, escaped[places >= _RARE]


@njit(cache=True, nogil=True)
def _fill_planes(words, rank, noise, planes, escaped):
    """Split `words`; the number of exponents that went to `escaped`."""
    planes[:] = 0
    for at in range(len(words)):
        word = words[at]
        noise[at] = (word & 0x7F) | (word >> 8 & 0x80)
        code = min(rank[word >> 7 & 0xFF], 7)
        tile, inside = at // 1024, at % 1024
        lane, bit = inside % 64, inside // 64
        for plane in range(3):
            planes[(3 * tile + plane) * 64 + lane] |= (code >> plane & 1) << bit
    n = 0
    for tile in range(len(words) // 1024):
        for lane in range(64):
            for bit in range(16):
                exponent = words[tile * 1024 + bit * 64 + lane] >> 7 & 0xFF
                if rank[exponent] >= 7:
                    escaped[n] = exponent
                    n += 1
    return n


def _in_nibbles(values: U8) -> U8:
    """Two values in a byte, the first in its lower half."""
    even = np.zeros(-(-len(values) // 2) * 2, np.uint8)
    even[: len(values)] = values
    return even[::2] | even[1::2] * np.uint8(16)


def _decode_chunk(chunk: U8, out: U8) -> None:
    """Decode a chunk to `out`, whose length the chunk states."""
    _, decoded, tiles, n_rare, n_raw, ranked = _HEADER.unpack_from(chunk.data)
    n = 2 * tiles * _TILE
    planes_at = _HEADER.size + tiles * _TILE
    rare_at = planes_at + tiles * _PLANES_BYTES
    raw_at = rare_at + -(-n_rare // 2)
    rest_at = raw_at + n_raw
    if n > decoded or rest_at + decoded - n != len(chunk):
        raise CodeDamaged("a chunk of its code has parts that do not fill it")
    out[n:] = chunk[rest_at:]
    if tiles == 0:
        return
    planes, rare, raw = np.split(chunk[:rest_at], [planes_at, rare_at, raw_at])[1:]
    exponents = np.frombuffer(ranked, np.uint8).astype(np.uint16) << 7
    words = out[:n].view(np.uint16)
    noise = chunk[_HEADER.size : planes_at]
    _merge(noise, planes.view(np.uint16), exponents, words)
    patches = rare, raw, exponents[_COMMON:], n_rare
    if _patch(planes.view(np.uint64), *patches, words) != n_rare:
        raise CodeDamaged("a chunk of its code has other escapes than it says")


@njit(cache=True, nogil=True)
def _merge(noise, planes, common, words):
    """Combine sign, mantissa and common exponents in a loop that vectorizes."""
    c0, c1, c2, c3, c4, c5, c6 = common[:7]
    for tile in range(len(noise) // 1024):
        low = planes[tile * 192 : tile * 192 + 64]
        middle = planes[tile * 192 + 64 : tile * 192 + 128]
        high = planes[tile * 192 + 128 : tile * 192 + 192]
        for bit in range(16):
            at = tile * 1024 + bit * 64
            mask, zero = np.uint16(1 << bit), np.uint16(0)
            source, target = noise[at : at + 64], words[at : at + 64]
            for lane in range(64):
                one = np.uint16(low[lane] & mask) != zero
                two = np.uint16(middle[lane] & mask) != zero
                four = np.uint16(high[lane] & mask) != zero
                lower = (c3 if one else c2) if two else (c1 if one else c0)
                upper = c6 if two else (c5 if one else c4)
                value = np.uint16(source[lane])
                value = np.uint16(np.uint16(value | np.uint16(value << 8)) & 0x807F)
                target[lane] = value | (upper if four else lower)


@njit(cache=True, nogil=True)
def _patch(planes, rare, raw, exponents, n_rare, words):
    """Write the escaped exponents; return their number, or -1 for short lists."""
    n = n_raw = 0
    for group in range(len(planes) // 48 * 16):
        tile, lanes = group // 16, group % 16
        at = tile * 48 + lanes
        escapes = planes[at] & planes[at + 16] & planes[at + 32]
        while escapes != 0:
            lowest = escapes & (np.uint64(0) - escapes)
            bit = np.intp(_BIT[lowest * _DE_BRUIJN >> np.uint64(58)])
            escapes ^= lowest
            if n >= n_rare:
                return -1
            code = np.intp(rare[n // 2]) >> 4 * (n % 2) & 15
            if code < 15:
                exponent = exponents[code]
            elif n_raw < len(raw):
                exponent = np.uint16(raw[n_raw]) << 7
                n_raw += 1
            else:
                return -1
            n += 1
            word = tile * 1024 + (bit % 16) * 64 + lanes * 4 + bit // 16
            words[word] = (words[word] & 0x807F) | exponent
    return n
