"""What a busy process beside the book does to its times: threads that spin or sleep.

A token of SmolLM2, streamed through 96 MiB and resident, and the reads alone: alone on
the machine, beside one process that never rests, and beside two. Threads of OpenMP that
wait for each other *spin* as torch has it by itself, or *sleep* as `thesis_lib` sets it
(OMP_WAIT_POLICY=PASSIVE); the two take turns, each in a process of its own that rests
while the other measures. Ratios are to the same way alone, within a round.

    python benchmarks/beside.py [ROUNDS]

Each round takes about half a minute on a machine that is otherwise idle.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from record import Record, answering, benchmark, show, tell, turns

from thesis_lib.common.stats import median_interval

WAYS = {"spinning": "300000", "sleeping": "0"}  # turns of GNU's loop before it sleeps
BESIDE = (0, 1, 2)
STEPS = ("drain", "streamed", "resident")
BUDGET_MIB, CONTEXT, SAMPLES = 96, 256, 3  # SAMPLES: half of those of each step
GOAL = 2.5  # most that a time may grow by when one of two cores is taken


def measure() -> Iterator[Any]:
    """In a process of its own: a measurement for each line of standard input."""
    from thesis_book.experiments.memory import timing
    from thesis_lib.common.provenance import undisturbed
    from thesis_lib.common.units import MiB
    from thesis_lib.memory.model import smollm2, spec
    from thesis_lib.memory.offload import offloaded_model

    folder = smollm2.checkpoint()
    resident, tokenizer = smollm2.load()
    sentence = "It is a truth universally acknowledged, that a single man"
    prompt = tokenizer(sentence, return_tensors="pt").input_ids
    plan = offloaded_model.plan_checkpoint(
        folder,
        spec.Machine(BUDGET_MIB * MiB, 1e9),
        context=CONTEXT, pass_tokens=CONTEXT, logit_tokens=1,
    )  # fmt: skip
    with offloaded_model.StreamedModel(folder, plan) as model:
        yield "ready"
        for _ in sys.stdin:
            used = time.process_time()
            runs = undisturbed(
                lambda: timing.measure_decoding(model, resident, prompt, SAMPLES),
                tries=1,
            )
            taken = {name: run.median_s for name, run in runs.items()}
            yield taken | {"cpu_s": time.process_time() - used}


@contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that never rest."""
    with ExitStack() as beside:
        for _ in range(number):
            spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            beside.enter_context(spinning)
            beside.callback(spinning.kill)
        time.sleep(0.3)
        yield


def summarize(samples: list[dict]) -> list[dict]:
    """A row for each way, number beside and step: its median, and its growth.

    The growth is the median over the rounds of the time over the same alone. Its 95 %
    interval is widened by the drift: the larger end of the interval of the time alone
    over that of the round before (of the last one for the first), or its inverse.
    """
    found = pd.DataFrame(samples).pivot(index="round", columns=["way", "beside"])
    rows = []
    for way, beside, step in product(WAYS, BESIDE, STEPS):
        seconds, alone = (found[step, way, n].to_numpy() for n in (beside, 0))
        growth = median_interval(seconds / alone)
        drift = median_interval(alone / np.roll(alone, 1))
        widened = max(drift.high, 1 / drift.low) if beside else 1.0
        rows.append(
            {
                "way": way, "beside": beside, "step": step,
                "median_s": float(np.median(seconds)),
                "grown": growth.value, "low": growth.low / widened,
                "high": growth.high * widened,
            }
        )  # fmt: skip
    return rows


@benchmark
def main(out: Path, rounds: int = 10) -> None:
    record, samples = Record(out), []
    with ExitStack() as stack:
        ways = {
            name: stack.enter_context(answering(measure, GOMP_SPINCOUNT=spins))
            for name, spins in WAYS.items()
        }
        for number, beside in turns(BESIDE, rounds):
            with busy(beside):
                for way in ways if number % 2 == 0 else reversed(ways):
                    told = {"round": number, "way": way, "beside": beside}
                    samples.append(told | ways[way]())
            tell(f"round {number + 1} of {rounds}, {beside} beside")
    rows = summarize(samples)
    show(rows)
    record.write(rounds=rounds, goal=GOAL, rows=rows, samples=samples)
