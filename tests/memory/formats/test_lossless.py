"""The code gives back every bit, in any order of arrival, and nothing else."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from thesis_lib.memory.formats import lossless

TILE_BYTES = 2048  # of what is coded together


def gaussian(n, seed=0):
    """Normal weights in bfloat16, by cutting float32: bit patterns, (n,)."""
    draw = np.random.default_rng(seed).standard_normal(n, np.float32) * 0.02
    return (draw.view(np.uint32) >> 16).astype(np.uint16)


def begin(decoded_bytes, stream, threads=None, pool=None):
    """A decoding in memory of its own, at whose end the stream is to arrive."""
    size = lossless.buffer_bytes(len(stream), decoded_bytes)
    buffer = np.zeros(size, np.uint8)
    scratch = None if threads is None else lossless.Scratch(threads)
    start = size - len(stream)
    return lossless.InPlace(buffer, start, decoded_bytes, pool, scratch), buffer


def decode(stream, decoded_bytes):
    """What a whole stream at the end of its buffer is decoded to."""
    decoding, buffer = begin(decoded_bytes, stream)
    buffer[len(buffer) - len(stream) :] = stream
    decoding.arrive(0, len(stream))
    decoding.finish()
    return buffer[:decoded_bytes]


def round_trip(plain):
    stream = lossless.encode(plain)
    assert np.array_equal(decode(stream, len(plain)), plain)
    return len(stream)


def test_every_bit_pattern_comes_back_whichever_list_it_is_in():
    every = np.arange(2**16, dtype=np.uint16)  # NaN payloads, denormals and both zeros
    common = np.concatenate([every, gaussian(2**21)])
    np.random.default_rng(1).shuffle(common)
    for words in (every, common):
        plain = words.view(np.uint8)
        round_trip(plain)
    stream = lossless.encode(plain[: lossless.CHUNK_BYTES])
    _, _, tiles, rare, raw, _ = lossless._HEADER.unpack_from(stream.data)
    assert (tiles > 0, rare > raw > 100) == (True, True)  # both escapes were taken


@pytest.mark.parametrize(
    "length",
    [
        *(0, 1, 2, 3, TILE_BYTES - 1, TILE_BYTES, TILE_BYTES + 1, 5 * TILE_BYTES + 77),
        *(lossless.CHUNK_BYTES + d for d in (-1, 0, 1)),
    ],
)
def test_any_length_comes_back(length):
    plain = gaussian(length // 2 + 1).view(np.uint8)[:length]
    round_trip(plain)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.uint8, st.integers(0, 3 * TILE_BYTES)))
def test_any_bytes_come_back_and_grow_by_a_header_at_most(plain):
    assert round_trip(plain) <= len(plain) + lossless._HEADER.size


def test_a_normal_law_has_the_ratio_that_its_ranks_have():
    words = gaussian(2**20)
    counts = np.sort(np.bincount(words >> 7 & 0xFF, minlength=256))[::-1] / len(words)
    bits = 8 + 3 + 4 * (1 - counts[:7].sum()) + 8 * (1 - counts[:22].sum())
    found = round_trip(words.view(np.uint8)) / (2 * len(words))
    assert found == pytest.approx(bits / 16, abs=2e-4)
    assert lossless.field_bits(words).ideal_ratio < found < lossless.RATIO


def test_noise_is_kept_as_it_is():
    plain = np.random.default_rng(0).integers(0, 256, 2**20, np.uint8)
    assert round_trip(plain) == len(plain) + lossless._HEADER.size


def arrive_in_parts(seed, threads):
    """Whether a stream is decoded, whose parts arrive in an order of the seed."""
    draw = np.random.default_rng(seed)
    noise = draw.integers(0, 256, lossless.CHUNK_BYTES, np.uint8)
    plain = np.concatenate([gaussian(2**20, seed).view(np.uint8), noise])
    if seed % 2:  # what does not shrink first
        plain = np.concatenate([noise, plain])
    stream = lossless.encode(plain)
    cuts = np.sort(draw.integers(0, len(stream), 9))
    parts = list(itertools.pairwise([0, *map(int, cuts), len(stream)]))
    draw.shuffle(parts)
    with ThreadPoolExecutor(threads) as pool:
        decoding, buffer = begin(len(plain), stream, threads, pool)
        arriving = buffer[len(buffer) - len(stream) :]
        for start, end in parts:
            arriving[start:end] = stream[start:end]
            decoding.arrive(int(start), int(end))
        decoding.finish()
    return np.array_equal(buffer[: len(plain)], plain)


def test_parts_may_arrive_in_any_order():
    for seed, threads in itertools.product(range(4), (1, 3)):
        assert arrive_in_parts(seed, threads), f"seed {seed}, {threads} threads"


def test_a_chunk_that_is_late_is_not_overtaken(monkeypatch):
    """One thread is held in the first chunk while another decodes all others."""
    plain = gaussian(3 * 2**20).view(np.uint8)
    stream = lossless.encode(plain)
    decode, others = lossless._decode_chunk, threading.Event()
    order = itertools.count()
    decoded = []

    def slow(chunk, out):
        if next(order) == 0:
            assert others.wait(20)
        decode(chunk, out)
        decoded.append(len(out))
        if len(decoded) == lossless.chunks(len(plain)) - 1:
            others.set()

    monkeypatch.setattr(lossless, "_decode_chunk", slow)
    with ThreadPoolExecutor(2) as pool:
        decoding, buffer = begin(len(plain), stream, 2, pool)
        buffer[len(buffer) - len(stream) :] = stream
        decoding.arrive(0, len(stream) // 2)
        decoding.arrive(len(stream) // 2, len(stream))
        decoding.finish()
    assert np.array_equal(buffer[: len(plain)], plain)


@pytest.mark.parametrize("at", [0, 4, 8, 12, 16])
@pytest.mark.parametrize("value", [1, 2, 2**16, 2**32 - 1])
def test_a_header_that_lies_is_rejected(at, value):
    plain = gaussian(2**17).view(np.uint8)
    stream = lossless.encode(plain)
    stream[at : at + 4] = np.frombuffer(value.to_bytes(4, "little"), np.uint8)
    with pytest.raises(lossless.CodeDamaged, match="code"):
        decode(stream, len(plain))


def test_a_code_that_ends_early_is_rejected():
    plain = gaussian(2**20).view(np.uint8)
    stream = lossless.encode(plain)
    with pytest.raises(lossless.CodeDamaged, match=r"after 1048576 of 2097152 bytes"):
        decode(stream[:-1], len(plain))
    with pytest.raises(lossless.CodeDamaged, match="code"):
        decode(stream, len(plain) - 2)


def test_entropies_are_those_of_the_fields():
    every = np.arange(2**16, dtype=np.uint16)
    bits = lossless.field_bits(every)
    assert (bits.sign, bits.exponent, bits.mantissa) == (1, 8, 7)
    assert bits.ideal_ratio == 1
    two = np.array([0x3F80, 0x4000], np.uint16)  # 1 and 2
    bits = lossless.field_bits(two)
    assert (bits.sign, bits.exponent, bits.mantissa) == (0, 1, 0)
