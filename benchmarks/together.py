"""What a pass takes for one text and for several, each by itself and in one product.

A token of each of 1, 2, 4 and 8 texts with SmolLM2, streamed in a third of the memory
of its weights and resident. *Apart* is how `memory.decode.together` shares a pass:
each text has a pass of its own, with the bits that it has alone, and rows are
multiplied at once only where that keeps them. *In one product* the texts are a batch.
All ways in turn.

    python benchmarks/together.py [ROUNDS]
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import Record, benchmark, show, tell

from thesis_lib.common.errors import require
from thesis_lib.common.units import GiB, MiB
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.offload.measure import interleave
from thesis_lib.memory.offload.offloaded_model import StreamedModel, open_streamed
from thesis_serve.model.together import ContinuousBatch

MEMORY = {"streamed": 85 * MiB, "resident": 1 * GiB}
TEXTS = (1, 2, 4, 8)
SHAPE: dict[str, Any] = {"context": 16, "pass_tokens": 4, "batch": max(TEXTS)}


def apart(model: StreamedModel, together: ContinuousBatch, texts: int) -> None:
    """A pass of as many texts, each of which has a pass of its own."""
    token = torch.zeros((1, 1), dtype=torch.long)
    for _ in range(texts):
        together.join(lambda: model.step(token, model.new_cache(), keep=1))
    ended = together.step()
    require(
        len(ended) == texts and all(lane.failure is None for lane in ended),
        f"{ended} did not end as expected, each with its token",
    )


def in_one_product(model: StreamedModel, texts: int) -> None:
    """A pass of as many texts as a batch."""
    token = torch.zeros((texts, 1), dtype=torch.long)
    model.step(token, model.new_cache(), keep=1)


@benchmark
def main(out: Path, rounds: int = 15) -> None:
    record, runs = Record(out), []
    for place, device_bytes in MEMORY.items():
        with open_streamed(smollm2.checkpoint(), device_bytes, **SHAPE) as model:
            ways = (
                partial(apart, model, ContinuousBatch(model)),
                partial(in_one_product, model),
            )
            steps: dict[str, Callable[[], None]] = {
                f"{way.func.__name__} {texts}": partial(way, texts)
                for way in ways
                for texts in TEXTS
            }
            for name, samples_s in interleave(steps, rounds).items():
                way, _, texts = name.rpartition(" ")
                at = {"place": place, "way": way, "texts": int(texts)}
                runs.append({**at, "samples_s": samples_s})
            tell(place)
    show([{**run, "samples_s": median(run["samples_s"])} for run in runs])
    record.write(device_bytes=MEMORY, rounds=rounds, runs=runs)
