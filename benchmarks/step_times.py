"""The time that a plan predicts beside the time that its steps take.

The rates of computing are measured once, the rate of the disk before each plan, as
`thesis plan` does; none of them in the run that is predicted. The disk is measured once
more after it, and a run during which its rate has moved by more than 5 % is repeated.
Random plans of a few
layers of the geometry of LLaMA-2-7B: batch 1 to 256, tokens of a pass, ring and
memory. Then the tokens of a pass at which computing meets reading, predicted from the
same rates and found by longer and longer passes.

    python benchmarks/step_times.py [--plans 20] [--layers 6] [--checkpoint FOLDER]
"""

import math
import random
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from record import Record, benchmark, tell
from timed_decode import random_checkpoint

from thesis_lib.common.provenance import seconds_of
from thesis_lib.memory.evaluate import rates
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.offloaded_model import (
    StreamedModel,
    checkpoint_folder,
    plan_checkpoint,
)
from thesis_lib.memory.offload.plan import MemoryPlan

GEOMETRY = "llama2-7b"
WARM_UP, STEPS, DRAINS = 1, 5, 3
DRIFT, ATTEMPTS = 0.05, 3  # of the disk's rate, and runs of a plan until it stands
SEQUENCES = (1, 1, 2, 4, 8, 16, 32, 64, 128, 256)
PASSES = (1, 1, 1, 4, 16, 64)
MOST = 256  # tokens of all sequences in a pass
SHARES = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5)  # of the predicted crossover


def finite(machine: Machine) -> dict[str, float]:
    """The rates of a machine but those that nothing limits."""
    return {
        name: value for name, value in asdict(machine).items() if math.isfinite(value)
    }


def choose(draw: random.Random, folder: Path, machine: Machine) -> MemoryPlan:
    """A random plan in which layers are streamed."""
    new = draw.choice(PASSES)
    batch = draw.choice([n for n in SEQUENCES if n * new <= MOST])
    ring = draw.choice([2, 3, 4])
    least = rates.plan_streamed(folder, batch, new + 8, new, ring)
    # Up to two thirds of the layers resident.
    resident = draw.randrange(2 * least.spec.layers // 3)
    size = least.device_peak_bytes + resident * least.staging_bytes
    return plan_checkpoint(
        folder, replace(machine, device_bytes=size), batch=batch, context=new + 8,
        ring=ring, pass_tokens=new, logit_tokens=1,
    )  # fmt: skip


def time_steps(model: StreamedModel, batch: int, new: int) -> list[float]:
    """Seconds of steps of random tokens, each onto an empty cache."""
    row = torch.randint(0, model.spec.vocab, (batch, new))
    seconds = []
    for _ in range(WARM_UP + STEPS):
        cache = model.new_cache()
        seconds.append(seconds_of(partial(model.step, row, cache, keep=1)))
    return seconds[WARM_UP:]


def predict(folder: Path, plans: int, seed: int) -> dict[str, Any]:
    """Random plans: predicted seconds of a step, and measured ones."""
    draw, rows = random.Random(seed), []
    machine = rates.measure_machine(folder)
    tell(str(machine))
    for number in range(plans):
        made = choose(draw, folder, machine)
        rate, after, attempts = 0.0, rates.drain_bytes_per_s(folder, drains=DRAINS), 0
        seconds: list[float] = []
        most = ATTEMPTS if made.streamed_layers else 1
        while attempts < most and abs(after - rate) > DRIFT * rate:
            rate, attempts = after, attempts + 1
            with StreamedModel(folder, made) as model:
                seconds = time_steps(model, made.batch, made.pass_tokens)
            after = rates.drain_bytes_per_s(folder, drains=DRAINS)
        made = replace(made, machine=replace(machine, disk_bytes_per_s=rate))
        computing = made.compute_s(made.pass_tokens) > made.transfer_s()
        row = {
            "attempts": attempts,
            "disk_bytes_per_s_after": after,
            "batch": made.batch,
            "pass_tokens": made.pass_tokens,
            "ring": made.ring,
            "resident_layers": made.resident_layers,
            "limit": "compute" if computing else "disk",
            "disk_bytes_per_s": rate,
            "predicted_s": made.step_s(made.pass_tokens),
        }
        rows.append(row | {"seconds": seconds})
        error = row["predicted_s"] / float(np.median(seconds)) - 1
        tell(f"{number + 1} of {plans}: {row}, error {error:+.1%}")
    return {"rates": finite(machine), "plans": rows}


def cross(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Where a pass begins to take longer than its reads, predicted and found."""
    machine = rates.measure_machine(folder)
    expected = replace(rates.plan_streamed(folder, 1, 1, 1, 3), machine=machine)
    ahead = max(expected.crossover_tokens(), len(SHARES) / SHARES[0])
    counts = [round(share * ahead) for share in SHARES]
    made = rates.plan_streamed(folder, 1, max(counts), max(counts), 3)
    draw = torch.Generator().manual_seed(seed)
    drains: list[float] = []
    passes: dict[int, list[float]] = {n: [] for n in counts}
    with StreamedModel(folder, made) as model:
        for turn in range(rounds + 1):
            for n in counts:
                row = torch.randint(0, model.spec.vocab, (1, n), generator=draw)
                drain_s, stalled = seconds_of(model.drain), model.stall_s
                step = partial(model.step, row, model.new_cache(), keep=1)
                whole = seconds_of(step)
                if turn:  # the first one warms up
                    drains.append(drain_s)
                    passes[n].append(whole - (model.stall_s - stalled))
    computing = {n: float(np.median(seconds)) for n, seconds in passes.items()}
    drain_s = float(np.median(drains))
    fitted = replace(
        made, machine=replace(machine, disk_bytes_per_s=made.bytes_per_step / drain_s)
    )
    return {
        "rates": finite(machine),
        "drain_s": drain_s,
        "computing_s": {str(n): seconds for n, seconds in computing.items()},
        "predicted_tokens": fitted.crossover_tokens(),
    }


@benchmark
def main(
    out: Path,
    *,
    checkpoint: Annotated[str | None, "folder or smollm2, instead of a new one"] = None,
    layers: Annotated[int, "of the new one"] = 6,
    plans: int = 20,
    rounds: Annotated[int, "of the crossover"] = 3,
    seed: int = 1,  # plans of 0 were looked at while the formula of a step was sought
) -> None:
    record, store = Record(out), random_checkpoint(GEOMETRY, layers)
    if checkpoint is not None:
        store = nullcontext(checkpoint_folder(checkpoint))
    with store as folder:
        record.write(
            checkpoint=folder.name,
            prediction=predict(folder, plans, seed),
            crossover=cross(folder, rounds, seed),
        )
