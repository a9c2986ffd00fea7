"""Plans against what they promise: random ones, run at their limits.

Logical: tiny random models of every architecture and random plans (batch, context,
tokens of a pass, ring, resident layers, layers by way of host memory, transformers'
generate), each run through the steps that need the most, under the meter. Physical:
random plans of a real model, each in a control group whose limit is what the plan
promises beside the interpreter, so that a plan that promises too little is killed.

    python benchmarks/certificate.py [--logical 500] [--physical 20]
"""

import random
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
from memory_limit import confined_call
from record import Record, benchmark, checkout, tell

from thesis_book.execute.provenance import largest_resident_bytes
from thesis_lib.common.units import MiB
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import ARCHITECTURES, Machine, ModelSpec
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint
from thesis_lib.memory.offload.plan import MemoryPlan

sys.path.insert(0, str(checkout() / "tests" / "memory"))
import tiny  # of the tests, which write models of every architecture

SHAPES = (  # models of an architecture
    {"vocab_size": 211, "tie_word_embeddings": True},
    {"vocab_size": 3000, "tie_word_embeddings": False, "dtype": torch.float32},
)
SLACK = 1.02  # of the interpreter's share of a group's limit, which varies
PAGES_BYTES = 24 * MiB  # of a group's limit, for tables of pages and kernel memory


def run_at_its_limits(folder: Path, made: MemoryPlan) -> int:
    """The metered peak of the steps of a plan that need the most."""
    batch, new, keep = made.batch, made.pass_tokens, made.logit_tokens
    with StreamedModel(folder, made) as model, DeviceBudget() as budget:
        model.charge(budget)
        if made.generating:
            for length in (new, made.context):  # of the prompt: a pass, or all of it
                model.generate(
                    tiny.tokens(0, batch, length),
                    max_new_tokens=made.context + 1 - length,
                    do_sample=True,
                    top_p=0.9,
                    pad_token_id=0,
                    eos_token_id=None,
                )
            return budget.peak_bytes
        model.step(tiny.tokens(0, batch, new), None, keep)
        cache, past = model.new_cache(), 0
        while past < made.context:
            chunk = min(new, made.context - past)
            model.step(tiny.tokens(past, batch, chunk), cache, min(keep, chunk))
            past += chunk
    return budget.peak_bytes


def of_plan(made: MemoryPlan) -> dict[str, Any]:
    """What a record keeps of any plan."""
    kept = {name: getattr(made, name) for name in ("batch", "context", "ring")}
    tiers = made.summary()["tiers"]
    return kept | {"tiers": tiers, "planned_bytes": made.device_peak_bytes}


def meter_plans(plans: int, seed: int) -> list[dict[str, Any]]:
    """Random plans of random models, and what the meter saw."""
    draw, rows = random.Random(seed), []
    drawn = [(name, shape) for name in ARCHITECTURES for shape in range(len(SHAPES))]
    with tempfile.TemporaryDirectory() as home:

        @cache
        def written(architecture: str, shape: int) -> Path:
            folder = Path(home) / f"{architecture}-{shape}"
            tiny.write(folder, architecture, seed=shape, **SHAPES[shape])
            return folder

        for number in range(plans):
            architecture, shape = draw.choice(drawn)
            folder = written(architecture, shape)
            generating = draw.random() < 0.2
            context = draw.choice([8, 17, 32, 60])
            # A last pass of full length needs the most.
            lengths = [n for n in range(1, context + 1) if context % n == 0]
            new = draw.choice(lengths[:-1] if generating else lengths)
            made = tiny.plan_tight(
                folder,
                draw.choice([0, 0, 1, 2]),
                draw.choice([1, 2, 3]),
                draw.choice([None, None, 0, 1]),
                batch=draw.choice([1, 2, 5]),
                context=context,
                pass_tokens=new,
                logit_tokens=1 if generating else draw.choice([1, new]),
                generating=generating,
            )
            rows.append(
                {
                    "architecture": architecture,
                    **of_plan(made),
                    "pass_tokens": made.pass_tokens,
                    "logit_tokens": made.logit_tokens,
                    "generating": generating,
                    "device_bytes": made.machine.device_bytes,
                    "metered_bytes": run_at_its_limits(folder, made),
                }
            )
            if number % 50 == 49:
                tell(f"{number + 1} of {plans} plans")
    return rows


def choose(draw: random.Random, folder: Path) -> MemoryPlan:
    """A random plan of a real model, with less memory than its weights."""
    context, new = draw.choice([32, 64, 128, 256]), draw.choice([1, 16, 32])
    batch, ring = draw.choice([1, 2, 4, 8]), draw.choice([2, 3, 4])
    plan = partial(
        plan_checkpoint, folder, batch=batch, context=context, pass_tokens=new,
        logit_tokens=1, ring=ring,
    )  # fmt: skip
    ample = plan(Machine(2**50, 1e9))
    fixed = ample.non_layer_bytes + ample.kv_bytes + ample.activation_bytes
    layers = ring + draw.randrange(ModelSpec.from_config(folder).layers // 2)
    size = fixed + layers * ample.staging_bytes
    return plan(Machine(size, 1e9))


def run_in_group(folder: str, seed: int) -> dict[str, Any]:
    """Inside a group: run a plan at its limits; what the process held."""
    made = choose(random.Random(seed), Path(folder))
    torch.set_num_threads(2)
    process = psutil.Process()
    before = process.memory_info().rss
    metered = run_at_its_limits(Path(folder), made)
    return {
        "before_bytes": before,
        "peak_bytes": largest_resident_bytes(process),
        "metered_bytes": metered,
        **of_plan(made),
    }


def confine_plans(plans: int, seed: int) -> list[dict[str, Any]]:
    """Random plans of SmolLM2, each in a group that holds what the plan promises."""
    folder, rows = smollm2.checkpoint(), []
    probed = [
        confined_call(run_in_group, 2**33, folder=folder, seed=seed).check().report
        for _ in range(3 if plans else 0)
    ]
    before = max((report["before_bytes"] for report in probed), default=0)
    for number in range(plans):
        made = choose(random.Random(seed + number), folder)
        limit = round(SLACK * before) + made.device_peak_bytes + PAGES_BYTES
        done = confined_call(run_in_group, limit, folder=folder, seed=seed + number)
        row = {"limit_bytes": limit, "killed": done.killed, "how": done.how}
        rows.append(row if done.killed else row | done.report)
        tell(f"{number + 1} of {plans} groups: {rows[-1]}")
    return rows


@benchmark
def main(
    out: Path,
    *,
    logical: Annotated[int, "plans metered"] = 500,
    physical: Annotated[int, "plans in groups"] = 20,
    seed: int = 0,
) -> None:
    record, start = Record(out), time.perf_counter()
    record.write(
        seed=seed,
        logical=meter_plans(logical, seed),
        physical=confine_plans(physical, seed),
        seconds=time.perf_counter() - start,
    )
