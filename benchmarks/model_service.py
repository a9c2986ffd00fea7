"""Violations of a streamed model behind each policy, beside what a log foretells.

SmolLM2 in a third of the memory of its weights, and all of it resident, four texts at a
time. Prompts are passages of a novel from 4 to 64 tokens long and answers have from 1
to 6, asked for in an open loop and counted from the intended time. Unit of time is what
a text took just before, with all slots taken: loads are shares of that rate, the
objective is so many of these times, and a run lasts as many whatever its load, so that
neither rests on how fast the machine is this minute. Every policy gets the same
requests at the same times; batches are of ten, and those without a timer are always
filled. What the log of FIFO says of the others (`what_if`) is kept beside what
they then did, and how many would have been late under any schedule of the service times
of that log.

    python benchmarks/model_service.py [REPEATS [REQUESTS]]

REQUESTS are about those at a load of one; so many come that every batch is filled.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import numpy as np
from http_service import foretold, outcome
from record import Record, benchmark, show, tell

from thesis_lib.common.units import GiB, MiB
from thesis_lib.memory.compress.convert import CALIBRATION_TEXT
from thesis_lib.memory.decode.generate import Sampling
from thesis_lib.memory.evaluate.perplexity import read_tokens
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.pretrained import read_tokenizer
from thesis_lib.memory.model.spec import ModelSpec
from thesis_lib.sequencer import fewest_violations
from thesis_lib.sequencer.core.trace import F64, KeySets, Trace
from thesis_lib.sequencer.workload.arrivals import poisson_arrivals
from thesis_serve import ModelService, TextRequest
from thesis_serve.admission.controller import Refused
from thesis_serve.model.service import PassEstimator

SOME = ("fifo", "hybrid", "hybrid-corrected", "codel", "late-edf", "bid-price")
CASES = {  # policies by load, of each placement of the weights
    "streamed": {0.7: (*SOME, "drop", "reorder"), 1.1: SOME, 1.5: SOME},
    "resident": {1.5: ("fifo", "bid-price")},
}
DEVICE_BYTES = {"streamed": 85 * MiB, "resident": GiB}
ROOM: dict[str, Any] = {"slots": 4, "context": 80, "pass_tokens": 32}
SLO_MEANS = 3  # the objective, in mean service times of a full house
FLUSH_S = 3600.0  # of batches without a timer of their own: never
BATCH = 10  # of a policy that waits for batches
BURST = 32  # requests at once that saturate it
NOVEL, LONGEST = 20_000, 64  # tokens of the novel, and of the longest prompt


def asks(n: int, rng: np.random.Generator, novel: list[int]) -> list[TextRequest]:
    """`n` requests, whose lengths are uniform in their logarithms."""

    def lengths(least: int, most: int) -> np.ndarray:
        return np.exp(rng.uniform(np.log(least), np.log(most + 1), n)).astype(int)

    begins = rng.integers(0, len(novel) - LONGEST, n)
    return [
        TextRequest(novel[at : at + length], int(most), Sampling())
        for at, length, most in zip(
            begins, lengths(4, LONGEST), lengths(1, 6), strict=True
        )
    ]


@dataclass
class Seen:
    """What became of requests, and the most memory that they took."""

    latency_s: F64  # (n,) from the intended times; NaN where refused
    service_s: F64  # (n,) in a slot
    pass_s: float  # before any of them
    peak_bytes: int | None  # if it was metered
    plan_bytes: int


async def _asked(
    service: ModelService, asked: list[TextRequest], arrival_s: F64
) -> Seen:
    pass_s = service.estimator.predict("text", (1, 1))
    latency_s, service_s = np.full((2, len(asked)), np.nan)
    begins_s = monotonic() + 0.1

    async def one(i: int) -> None:
        due_s = begins_s + arrival_s[i]
        await asyncio.sleep(due_s - monotonic())
        with suppress(Refused):
            async with service.answer(asked[i]) as pieces:
                started_s = monotonic()
                async for _ in pieces:
                    continue
            latency_s[i] = monotonic() - due_s
            service_s[i] = monotonic() - started_s

    await asyncio.gather(*map(one, range(len(asked))))
    peak_bytes = None if service.budget is None else service.budget.peak_bytes
    return Seen(latency_s, service_s, pass_s, peak_bytes, service.plan_bytes)


def behind(
    policy: str, place: str, slo_s: float, log: Path, asked: list[TextRequest],
    arrival_s: F64, metered: bool = False,
) -> Seen:  # fmt: skip
    """What becomes of requests behind a policy, which is new to them."""

    async def serve() -> Seen:
        async with ModelService(
            "smollm2", DEVICE_BYTES[place], policy=policy, slo_s=slo_s, log=log,
            most_waiting=10**6, metered=metered, flush_s=FLUSH_S, **ROOM,
        ) as service:  # fmt: skip
            return await _asked(service, asked, arrival_s)

    return asyncio.run(serve())


def burst(place: str, log: Path, novel: list[int], metered: bool = False) -> Seen:
    """What becomes of requests that come at once, so that every slot is taken."""
    asked = asks(BURST, np.random.default_rng(BURST), novel)
    return behind("fifo", place, 1.0, log, asked, np.zeros(BURST), metered)


def bound(seen: Seen, arrival_s: F64, slo_s: float) -> float:
    """The least share of violations under any schedule of these service times."""
    keys = KeySets.from_lists([[]] * len(arrival_s), [[]] * len(arrival_s))
    trace = Trace.of_jobs(arrival_s, seen.service_s, keys)
    fewest = fewest_violations(trace, cores=ROOM["slots"], slo_s=slo_s)
    return fewest / len(arrival_s)


@benchmark
def main(out: Path, repeats: int = 8, n: int = 46) -> None:
    record, runs = Record(out), []
    tokenizer = read_tokenizer(smollm2.checkpoint())
    weights_bytes = ModelSpec.from_config(smollm2.checkpoint()).total_bytes
    novel = read_tokens(tokenizer, CALIBRATION_TEXT, NOVEL).tolist()
    with TemporaryDirectory() as folder:
        logs = (Path(folder) / f"{number}.jsonl" for number in count())
        places = {}
        for place in CASES:
            metered = burst(place, next(logs), novel, metered=True)
            places[place] = {
                "device_bytes": DEVICE_BYTES[place],
                "plan_bytes": metered.plan_bytes, "peak_bytes": metered.peak_bytes,
            }  # fmt: skip
        cases = [(load, place) for place in CASES for load in CASES[place]]
        for repeat, (load, place) in product(range(repeats), sorted(cases)):
            policies, coming = CASES[place][load], BATCH * round(load * n / BATCH)
            rng = np.random.default_rng([repeat, n])
            asked, unit = asks(coming, rng, novel), poisson_arrivals(1.0, coming, rng)
            service_s = float(burst(place, next(logs), novel).service_s.mean())
            slo_s, rate_per_s = SLO_MEANS * service_s, ROOM["slots"] / service_s
            arrival_s = unit / (load * rate_per_s)
            log = {policy: next(logs) for policy in policies}
            seen = {
                policy: behind(policy, place, slo_s, log[policy], asked, arrival_s)
                for policy in policies[:: -1 if repeat % 2 else 1]
            }
            for policy in policies:
                found, learns = seen[policy], PassEstimator(seen["fifo"].pass_s)
                runs.append({
                    "place": place, "policy": policy, "load": load, "repeat": repeat,
                    "requests": coming, "rate_per_s": rate_per_s, "slo_s": slo_s,
                    **outcome(found.latency_s, slo_s),
                    "foretold": foretold(log["fifo"], policy, learns),
                    "bound": bound(seen["fifo"], arrival_s, slo_s),
                })  # fmt: skip
            tell(f"repeat {repeat} of {repeats}, load {load}, {place}")
            record.write(
                weights_bytes=weights_bytes, **ROOM, places=places,
                slo_means=SLO_MEANS, batch_size=BATCH, repeats=repeat + 1, runs=runs,
            )  # fmt: skip
    show(runs)
