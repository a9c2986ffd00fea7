"""What a lossless code of bfloat16 weights saves, and what decoding it costs.

First the codecs, on a layer of SmolLM2 and on Gaussian weights: the bytes that remain,
and the rate at which one and two threads decode them from memory to memory. Then the
stream: the same random weights, dense and in code, through plans of the same memory on
the same disk, in turn: the reads alone, tokens that follow one another, and the
arithmetic alone.

    python benchmarks/lossless.py [--layers 8] [--rounds 8] [--mib 64]

Needs `pip install -e .[codecs]`, and 0.7 GB of disk for each layer.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numba import njit
from record import Record, benchmark, show, turns  # before torch, as the package asks
from torch import equal, tensor, uint8

from thesis_lib.common.errors import choice
from thesis_lib.common.files import cache_folder
from thesis_lib.common.provenance import seconds_of
from thesis_lib.common.units import MiB
from thesis_lib.memory.compress.convert import read_words
from thesis_lib.memory.compress.random_weights import gaussian, synthesize
from thesis_lib.memory.evaluate.rates import (
    measure_machine,
    plan_streamed,
    with_decoder,
)
from thesis_lib.memory.formats import lossless
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.measure import interleave
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint
from thesis_lib.memory.offload.plan import MemoryPlan

GEOMETRY = "llama2-7b"
DRIFT = 0.05  # of drains on a disk that is at rest
REPEATS = 3  # passes that are timed at a turn, of each kind
U8 = lossless.U8
# Of one chunk: to bytes, and back into the memory of the chunk.
Codec = tuple[Callable[[U8], Any], Callable[[Any, U8], None]]


def shuffled(codec: str, level: int) -> Codec:
    """blosc2: bytes of the same weight of all numbers side by side, then a codec."""
    import blosc2  # pyright: ignore[reportMissingImports]

    blosc2.set_nthreads(1)
    options = {
        "codec": blosc2.Codec[codec],
        "clevel": level,
        "typesize": 2,
        "filters": [blosc2.Filter.SHUFFLE],
    }

    def code(chunk: U8) -> bytes:
        return blosc2.compress2(chunk, nthreads=1, **options)

    def decode(coded: bytes, out: U8) -> None:
        blosc2.decompress2(coded, dst=out, nthreads=1)

    return code, decode


@njit(cache=True, nogil=True)
def _part(words, noise, exponents):
    for i in range(len(words)):
        noise[i] = (words[i] & 0x7F) | (words[i] >> 8 & 0x80)
        exponents[i] = words[i] >> 7 & 0xFF


@njit(cache=True, nogil=True)
def _join(noise, exponents, words):
    for i in range(len(words)):
        value = np.uint16(noise[i])
        value = np.uint16(np.uint16(value | np.uint16(value << 8)) & 0x807F)
        words[i] = value | np.uint16(np.uint16(exponents[i]) << 7)


def planes(level: int) -> Codec:
    """Sign and mantissa as they are, zstandard over the exponents."""
    import zstandard  # pyright: ignore[reportMissingImports]

    def code(chunk: U8) -> tuple[U8, bytes]:
        noise, exponents = np.empty((2, len(chunk) // 2), np.uint8)
        _part(chunk.view(np.uint16), noise, exponents)
        return noise, zstandard.ZstdCompressor(level=level).compress(exponents.data)

    own = threading.local()  # a decompressor serves one thread

    def decode(coded: tuple[U8, bytes], out: U8) -> None:
        noise, packed = coded
        if not hasattr(own, "made"):
            own.made = zstandard.ZstdDecompressor()
        exponents = own.made.decompress(packed)
        _join(noise, np.frombuffer(exponents, np.uint8), out.view(np.uint16))

    return code, decode


def zipped() -> Codec:
    """zipnn: a Huffman code of the exponents."""
    import zipnn  # pyright: ignore[reportMissingImports]

    options = {"bytearray_dtype": "bfloat16", "threads": 1, "input_format": "byte"}

    def code(chunk: U8) -> bytes:
        return bytes(zipnn.ZipNN(**options).compress(chunk.tobytes()))

    def decode(coded: bytes, out: U8) -> None:
        out[:] = np.frombuffer(zipnn.ZipNN(**options).decompress(coded), np.uint8)

    return code, decode


CODECS: dict[str, Callable[[], Codec]] = {  # imported when they are asked for
    # The patched code of this project.
    "exponent code": lambda: (lossless._encode_chunk, lossless._decode_chunk),
    "blosc2 zstd 1": partial(shuffled, "ZSTD", 1),
    "blosc2 zstd 3": partial(shuffled, "ZSTD", 3),
    "blosc2 lz4 1": partial(shuffled, "LZ4", 1),
    "zstandard 1, exponents": partial(planes, 1),
    "zstandard -1, exponents": partial(planes, -1),
    "zipnn": zipped,
}


def weights(n_bytes: int) -> dict[str, U8]:
    """Bytes of bfloat16 numbers, by origin."""
    layer = read_words(smollm2.checkpoint(), 0).view(np.uint8)
    drawn = gaussian((n_bytes // 2,), 0.02, (0,)).view(uint8).numpy()
    return {"SmolLM2": np.resize(layer, n_bytes), "Gaussian": drawn}


def size(coded: Any) -> int:
    """Bytes of a coded chunk, or of its parts."""
    return sum(map(len, coded)) if isinstance(coded, tuple) else len(coded)


def decode_all(pool: Executor, decode: Any, coded: list[Any], out: list[U8]) -> None:
    """Every chunk to its place."""
    list(pool.map(decode, coded, out))


def compare_codecs(
    codecs: dict[str, Codec], n_bytes: int, chunk_bytes: int, rounds: int
) -> list[dict[str, Any]]:
    """Ratio and seconds of decoding, a row for each codec and origin.

    Codecs take turns in every round. Each is checked to give the same bytes.
    """
    rows = []
    for origin, plain in weights(n_bytes).items():
        chunks = np.split(plain, range(chunk_bytes, n_bytes, chunk_bytes))
        out = np.zeros_like(plain)
        targets = np.split(out, range(chunk_bytes, n_bytes, chunk_bytes))
        coded = {name: list(map(code, chunks)) for name, (code, _) in codecs.items()}
        for threads in (1, 2):
            with ThreadPoolExecutor(threads) as pool:
                steps = {
                    name: partial(decode_all, pool, decode, coded[name], targets)
                    for name, (_, decode) in codecs.items()
                }
                for step in steps.values():
                    out[:] = 0
                    step()
                    assert np.array_equal(out, plain)
                samples = interleave(steps, rounds, warmup=1)
            for name, seconds in samples.items():
                ratio = sum(map(size, coded[name])) / n_bytes
                row = {"weights": origin, "codec": name, "threads": threads}
                row |= {"ratio": ratio, "bytes": n_bytes, "seconds": seconds}
                rows.append(row)
    return rows


def same_memory(folders: dict[str, Path], ring: int) -> dict[str, MemoryPlan]:
    """Plans that stream every layer, of the memory of the larger one."""
    tight = [plan_streamed(folder, 1, 16, 1, ring) for folder in folders.values()]
    machine = Machine(max(made.device_peak_bytes for made in tight), 1.0)
    plan = partial(plan_checkpoint, context=16, logit_tokens=1, ring=ring)
    return {name: plan(folder, machine) for name, folder in folders.items()}


def time_passes(model: StreamedModel) -> dict[str, list[float]]:
    """Seconds of drains, of tokens, and of the arithmetic of a token alone.

    Each behind one of its kind, as while a text is written: what came before leaves
    the ring as full as the next one will. What a pass has asked for on behalf of the
    next one has landed before another clock starts.
    """
    token = partial(model.step, tensor([[1]]), model.new_cache(), keep=1)

    def repeat(run: Callable[[], object]) -> list[float]:
        run()
        return [seconds_of(run) for _ in range(REPEATS)]

    seconds = {"drain": repeat(model.drain), "token": repeat(token)}
    with model.without_reading():
        seconds["compute"] = repeat(token)
    return seconds


def settle(model: StreamedModel, most: int = 60) -> list[float]:
    """Seconds of drains until two in a row agree with the fastest within `DRIFT`.

    A disk that was written to is slow for a while after the last page is on it.
    """
    seconds: list[float] = []
    for _ in range(most):
        seconds.append(seconds_of(model.drain))
        if len(seconds) > 4 and max(seconds[-2:]) <= (1 + DRIFT) * min(seconds):
            break
    return seconds


def stream_in_turn(folders: dict[str, Path], rounds: int, ring: int) -> dict[str, Any]:
    """Seconds of the reads alone and of tokens of two checkpoints, in turn.

    The first is that which the other one is as fast as so many times.
    """
    os.sync()  # or pages would be written while others are read
    plans = same_memory(folders, ring)
    row = tensor([[1]])
    with ExitStack() as stack:
        models = {
            name: stack.enter_context(StreamedModel(folder, plans[name]))
            for name, folder in folders.items()
        }
        first, other = models
        settling, logits = settle(models[first]), []
        for model in models.values():
            logits.append(model.step(row, model.new_cache(), keep=1))
            with model.without_reading():
                continue
        samples: dict[str, list[list[float]]] = {}  # by turn
        for _, name in turns([other, first], rounds):
            for kind, seconds in time_passes(models[name]).items():
                samples.setdefault(f"{name} {kind}", []).append(seconds)
    medians = {name: float(np.median(seconds)) for name, seconds in samples.items()}
    summary = {
        kind: medians[f"{first} {kind}"] / medians[f"{other} {kind}"]
        for kind in ("drain", "token")
    }
    same = equal(*logits)
    print(f"times as fast as {first}: {summary}, equal logits: {same}", flush=True)
    return {
        "ring": ring,
        "device_bytes": plans[first].machine.device_bytes,
        "resident_layers": {n: made.resident_layers for n, made in plans.items()},
        "planned_peak_bytes": {n: m.device_peak_bytes for n, m in plans.items()},
        "bytes_per_step": {n: made.bytes_per_step for n, made in plans.items()},
        "decoded_bytes_per_step": plans[other].decoded_bytes_per_step,
        "equal_logits": same,
        "settling_s": settling,
        "seconds": samples,
        "times_as_fast": summary,
    }


def compare_streams(
    home: Path, layers: int, rounds: int, ring: int, distinct: int | None
) -> dict[str, Any]:
    """Random weights, dense and in code."""
    folders = {"bf16": home / "dense", "lossless": home / "lossless"}
    for folder in folders.values():
        synthesize(
            GEOMETRY, folder, layers=layers, distinct_layers=distinct, kind=folder.name
        )
    stream = stream_in_turn(folders, rounds, ring)
    decoder = with_decoder(measure_machine(folders["lossless"]), folders["lossless"])
    rate = {"decode_bytes_per_s": decoder.decode_bytes_per_s}
    return {"geometry": GEOMETRY, "layers": layers, **stream, **rate}


@benchmark
def main(
    out: Path,
    *,
    mib: Annotated[float, "of weights to decode"] = 64,
    codecs: Annotated[str, "names, separated by ;"] = ";".join(CODECS),
    layers: Annotated[int, "of the streamed model"] = 8,
    distinct: Annotated[int | None, "of them; all by default"] = None,
    rounds: int = 8,
    ring: int = 3,
) -> None:
    names = [choice("--codecs", name, CODECS) for name in codecs.split(";")]
    record, start = Record(out), time.perf_counter()
    chosen = {name: CODECS[name]() for name in names}
    rows = compare_codecs(chosen, int(mib * MiB), MiB, rounds)
    show(rows)
    with tempfile.TemporaryDirectory(dir=cache_folder("benchmarks")) as home:
        stream = compare_streams(Path(home), layers, rounds, ring, distinct)
    record.write(codecs=rows, stream=stream, seconds=time.perf_counter() - start)
