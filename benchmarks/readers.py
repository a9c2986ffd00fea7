"""How layers reach memory fastest, and what it costs the processor.

Threads that read a checkpoint around the page cache, one to sixteen of them and a
quarter to eight mebibytes at a time, into huge pages and into small ones, and threads
that read through the cache; with and without the checksum of every read. All variants
take turns, each from where the last one stopped, so that none reads what another has
just brought. CPU time counts user and kernel time of this process; on few cores it is
taken from computing.

    python benchmarks/readers.py CHECKPOINT [ROUNDS]

CHECKPOINT: of a few gigabytes, more than the page cache may keep, such as
`thesis synth llama2-7b FOLDER --layers 8` writes.
"""

import sys
from collections import deque
from collections.abc import Iterator
from itertools import cycle, islice
from mmap import mmap
from pathlib import Path
from time import perf_counter, process_time
from unittest.mock import patch

import numpy as np
from memory_limit import forget_pages
from record import Record, command, show

from thesis_lib.common.units import KiB, MiB
from thesis_lib.memory.model.checkpoint import allocate
from thesis_lib.memory.offload import store as module
from thesis_lib.memory.offload.store import SafetensorsStore

SAMPLE_BYTES = 2**30  # at least, in whole layers
BUFFERS = 3  # as in the ring of a streamed model
VARIANTS = [
    *(
        ("direct", readers, chunk, True, True)
        for readers in (1, 2, 4, 8, 16)
        for chunk in (256 * KiB, MiB, 4 * MiB, 8 * MiB)
    ),
    ("direct", 4, 4 * MiB, False, True),
    ("direct", 4, MiB, True, False),
    ("direct", 4, 4 * MiB, True, False),
    ("buffered", 4, 4 * MiB, True, True),
    ("buffered", 4, 4 * MiB, False, True),
]  # mode, threads, bytes a request, whether checksums are compared and pages huge


def sample(folder: Path, variant: tuple, layers: Iterator[int]) -> dict[str, float]:
    """Read about SAMPLE_BYTES as the variant says; seconds by the wall and of CPU."""
    mode, readers, chunk, checked, huge = variant
    direct = module._File._open_direct if mode == "direct" else lambda self: None
    with (
        patch.multiple(module, READERS=readers, CHUNK_BYTES=chunk),
        patch.object(module._File, "_open_direct", direct),
        SafetensorsStore(folder) as store,
    ):
        if store.mode != mode:
            sys.exit(f"the file system of {folder} has no direct input: choose another")
        if not checked:
            store._sums = {}
        made = allocate if huge else lambda n_bytes: memoryview(mmap(-1, n_bytes))
        buffers = deque(made(store.nbytes(0)) for _ in range(BUFFERS))
        for buffer in buffers:  # first touch of the memory is not the disk's
            np.frombuffer(buffer, np.uint8)[:: 4 * KiB] = 1
        forget_pages(folder.glob("*.safetensors"))
        flying: deque = deque()
        start, cpu = perf_counter(), process_time()
        for layer in islice(layers, -(-SAMPLE_BYTES // store.nbytes(0))):
            if len(flying) == BUFFERS:
                flying.popleft().wait()
            flying.append(store.read_layer(layer, buffers[0]))
            buffers.rotate(-1)
        for ticket in flying:
            ticket.wait()
        n_bytes = store.bytes_read
        wall_s, used_s = perf_counter() - start, process_time() - cpu
    return {"gb_per_s": n_bytes / wall_s / 1e9, "cpu_s_per_gb": used_s / n_bytes * 1e9}


def main(words: list[str] | None = None) -> None:
    """Measure, print, and keep the record."""
    parser = command(__doc__, "readers")
    parser.add_argument("checkpoint", type=Path, help="a folder of some gigabytes")
    parser.add_argument("rounds", nargs="?", type=int, default=4)
    given = parser.parse_args(words)
    record, folder = Record(given.out), given.checkpoint
    with SafetensorsStore(folder) as store:
        layers = cycle(range(store.layers))
        stored = sum(map(store.tensor_bytes, range(store.layers)))
    samples: list[list[dict[str, float]]] = [[] for _ in VARIANTS]
    for number in range(given.rounds):  # forwards and backwards in turn
        order = range(len(VARIANTS))
        for i in order if number % 2 == 0 else reversed(order):
            samples[i].append(sample(folder, VARIANTS[i], layers))
    rows = [
        {
            "mode": mode, "threads": threads, "chunk_bytes": chunk, "checksum": checked,
            "huge_pages": huge,
            **{name: [round(one[name], 4) for one in taken] for name in taken[0]},
        }
        for (mode, threads, chunk, checked, huge), taken in zip(
            VARIANTS, samples, strict=True
        )
    ]  # fmt: skip
    show(rows)
    record.write(
        layers_bytes=stored, sample_bytes=SAMPLE_BYTES, buffers=BUFFERS, rows=rows
    )


if __name__ == "__main__":
    main()
