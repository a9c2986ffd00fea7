"""The headline: a 65-billion-parameter geometry inside a hard limit of 8 GiB, and of 4.

Writes a checkpoint of random weights, streams it in a control group that counts the
page cache, times each token beside the same reads without computing, and removes the
checkpoint again: bf16 with as many distinct layers as the disk holds (hard links for
the rest, which are read all the same), then packed NF4 with all of them.

    python benchmarks/headline.py [--help]

Says beforehand how much disk and time it takes, and refuses without them. Parts that
are done are kept in the working folder: killed and started again, it goes on.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from memory_limit import confine, forget_pages, how_confined
from timed_decode import run_trial, thinned

from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import cache_folder, root, write_whole
from thesis_lib.common.provenance import drain, provenance
from thesis_lib.common.units import MiB, format_duration, format_size, parse_size
from thesis_lib.memory.compress.random_weights import synthesise
from thesis_lib.memory.model.spec import Machine, ModelSpec, geometry
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import (
    StreamedModel,
    disk_bytes_per_s,
    plan_checkpoint,
)
from thesis_lib.memory.offload.plan import MemoryPlan, PlanInfeasible

# Bits of a parameter in each kind of weights, scales included.
BITS = {"bf16": 16.0, "nf4": 4.25}
KIND = {"bf16": "dense", "nf4": "nf4"}
# How fast two cores make and pack random weights: for the time told beforehand.
WEIGHTS_PER_S = {"bf16": 1.5e8, "nf4": 1e8}
RINGS = (3, 2, 1)
OVERHEAD_S = 30  # starting, opening and the first rate of each part


@dataclass(frozen=True, slots=True)
class Store:
    """One checkpoint to write, stream under every limit and remove again."""

    weights: str  # bf16 or nf4
    layers: int
    distinct_layers: int
    bytes: int  # on disk
    layer_bytes: int  # read for one layer

    @property
    def folder(self) -> str:
        return f"{self.weights}-{self.layers}x{self.distinct_layers}"


def sizes(spec: ModelSpec, weights: str) -> tuple[int, int]:
    """Bytes of a layer, and of everything outside the stack, in these weights."""
    layer = spec.layer_bytes * BITS[weights] / 16
    return round(layer), spec.embedding_bytes + spec.head_bytes


def survey(
    spec: ModelSpec, weights: list[str], free_bytes: int, reserve_bytes: int
) -> list[Store]:
    """The stores that fit, one at a time, beside `reserve_bytes` that stay free.

    Raises InvalidInput where fewer than two distinct layers would fit.
    """
    stores = []
    for kind in weights:
        choice("weights", kind, BITS)
        layer, outer = sizes(spec, kind)
        distinct = min(spec.layers, (free_bytes - reserve_bytes - outer) // layer)
        if distinct < min(2, spec.layers):
            raise InvalidInput(
                f"two layers of {spec.name} in {kind} need "
                f"{format_size(outer + 2 * layer + reserve_bytes)} of disk, "
                f"{format_size(reserve_bytes)} of which stay free, but "
                f"{format_size(free_bytes)} are: free some, or name another folder "
                "with --work"
            )
        size = outer + distinct * layer
        stores.append(Store(kind, spec.layers, distinct, size, layer))
    return stores


def predicted_s(
    store: Store, spec: ModelSpec, limits: int, passes: int, rate: float
) -> float:
    """Seconds to write a store and to stream it under `limits` limits."""
    weights = store.bytes / (BITS[store.weights] / 8)
    writing = weights / WEIGHTS_PER_S[store.weights]
    streaming = passes * spec.layers * store.layer_bytes / rate
    return writing + limits * (streaming + OVERHEAD_S)


def part_name(store: Store, limit_bytes: int) -> str:
    """The name of a store under a limit, in the working folder and the record."""
    return f"{store.weights}-{limit_bytes // MiB}MiB"


def deepest_plan(folder: Path, device_bytes: int, rate: float, context: int):
    """The plan with the deepest ring that fits: reads overlap computing from two on."""
    for ring in RINGS:
        try:
            return plan_checkpoint(
                folder,
                Machine(device_bytes, rate),
                context=context,
                ring=ring,
                logit_tokens=1,
            )
        except PlanInfeasible:
            if ring == RINGS[-1]:
                raise
    raise AssertionError


def tell(line: str) -> None:
    """Progress, on the stream of complaints."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def stream(given: argparse.Namespace) -> None:
    """Inside the limit: plan, stream, measure; the report goes to a file."""
    folder = Path(given.checkpoint)
    device_bytes, rate = parse_size(given.device_memory), given.disk_rate
    context = 2 + given.warm_up + given.steps
    made: MemoryPlan = deepest_plan(folder, device_bytes, rate, context)
    tell(
        f"plan: ring {made.ring}, {made.resident_layers} resident layers, peak "
        f"{format_size(made.device_peak_bytes)}, {made.step_s():.2f} s a token at "
        f"{rate / 1e9:.2f} GB/s"
    )
    prompt = torch.ones(1, 1, dtype=torch.long)
    with StreamedModel(folder, made) as model, DeviceBudget(device_bytes) as budget:
        model.charge(budget)
        trial = run_trial(model, prompt, given.steps, given.warm_up, tell)
        mode = model.mode
    report = {
        "trial": asdict(trial),
        "s_per_token": trial.s_per_step,
        "fractions": trial.fractions,
        "fraction_of_drain": trial.fraction_of_drain,
        "logical_peak_bytes": budget.peak_bytes,
        "planned_peak_bytes": made.device_peak_bytes,
        "read_bytes_per_token": trial.read_bytes_per_step,
        "planned_bytes_per_token": made.bytes_per_token,
        "predicted_s_per_token": made.predicted_s_per_token,
        "predicted_at_bytes_per_s": rate,
        "plan": made.summary(),
        "mode": mode,
    }
    write_whole(Path(given.report), json.dumps(report, indent=1) + "\n")


def run_part(
    store: Store, folder: Path, limit_bytes: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Stream a store in its own group; the report with what the kernel counted."""
    report = Path(given.work) / f"{part_name(store, limit_bytes)}.report.json"
    report.unlink(missing_ok=True)
    device_bytes = limit_bytes - parse_size(given.runtime)
    require(
        device_bytes > 0,
        f"a limit of {format_size(limit_bytes)} leaves nothing beside the "
        f"{given.runtime} of the interpreter and torch: raise --limits",
    )
    words = [sys.executable, __file__, "--checkpoint", folder, "--report", report]
    words += ["--device-memory", f"{device_bytes}B", "--steps", given.steps]
    # Outside the limit: three buffers of whole layers may be more than it holds.
    rate = disk_bytes_per_s(folder, seconds=given.rate_s)
    words += ["--warm-up", given.warm_up, "--disk-rate", rate]
    forget_pages(folder.glob("*.safetensors"))
    done = confine(words, limit_bytes, capture=False, look_s=0.25).check()
    if done.returncode:
        raise SystemExit(f"{words[1]} ended with {done.returncode}, see above")
    found = json.loads(report.read_text())
    report.unlink()
    return {
        "weights": store.weights,
        "layers": store.layers,
        "distinct_layers": store.distinct_layers,
        "store_bytes": store.bytes,
        "label": label(store),
        "limit_bytes": limit_bytes,
        "device_bytes": device_bytes,
        "how": done.how,
        "peak_bytes": done.peak_bytes,
        "process_read_bytes": done.read_bytes,
        "use": thinned([[round(s, 2), *sizes] for s, *sizes in done.use]),
        **found,
    }


def label(store: Store) -> str:
    """What a figure has to say about the weights."""
    if store.distinct_layers == store.layers:
        return f"random {store.weights} weights, all {store.layers} layers distinct"
    return (
        f"random {store.weights} weights, {store.distinct_layers} distinct layers "
        f"hard-linked to {store.layers} names, each read from the disk for every token"
    )


def write_store(store: Store, folder: Path, given: argparse.Namespace) -> float:
    """Write the checkpoint unless it is there; the seconds it took."""
    if (folder / "config.json").is_file():
        return 0.0  # an earlier run was killed after it was written

    start = time.perf_counter()

    def progress(done: int, of: int) -> None:
        tell(f"{store.folder}: layer {done} of {of} written")

    synthesise(
        given.spec,
        folder,
        distinct_layers=store.distinct_layers,
        layers=store.layers,
        kind=KIND[store.weights],
        progress=progress,
    )
    return time.perf_counter() - start


def headline(given: argparse.Namespace, ask: Callable[[str], None] = tell) -> None:
    """Every part that is missing, store by store, then the record."""
    work = Path(given.work)
    work.mkdir(parents=True, exist_ok=True)
    limits = [parse_size(text) for text in given.limits.split(",")]
    weights = given.weights.split(",")
    done = {path.stem: json.loads(path.read_text()) for path in work.glob("*.part")}
    left = [
        kind
        for kind in weights
        if any(f"{kind}-{limit // MiB}MiB" not in done for limit in limits)
    ]
    standing = sum(
        path.stat().st_size
        for kind in left
        for path in distinct_files(work.glob(f"{kind}-*/*.safetensors"))
    )
    free_bytes = shutil.disk_usage(work).free + standing
    stores = survey(given.spec, left, free_bytes, parse_size(given.reserve))
    stores = [standing_store(work, store) for store in stores]
    rate, how = drain(work) if stores else (None, "")
    (work / "drain.bin").unlink(missing_ok=True)
    passes = 1 + given.warm_up + 2 * given.steps + 1
    seconds = {
        store.folder: predicted_s(store, given.spec, len(limits), passes, rate or 1e9)
        for store in stores
    }
    for store in stores:
        ask(
            f"{label(store)}: {format_size(store.bytes)} of disk, about "
            f"{format_duration(seconds[store.folder])}"
        )
    total_s = sum(seconds.values())
    ask(
        f"in all about {format_duration(total_s)} at "
        f"{(rate or 1e9) / 1e9:.2f} GB/s ({how or 'nothing left to do'}); limits by "
        f"{how_confined()}; the stores go into {work}, one at a time, and are removed"
    )
    if total_s > 60 * given.minutes:
        raise InvalidInput(
            f"this would take about {format_duration(total_s)}, more than the "
            f"{given.minutes:g} minutes allowed: allow more with --minutes, or take "
            "fewer --steps, --limits or --weights"
        )
    if given.dry_run:
        return
    for store in stores:
        folder = work / store.folder
        writing_s = write_store(store, folder, given)
        for limit in limits:
            name = part_name(store, limit)
            if name in done:
                continue
            tell(f"{name}: {label(store)}, in {format_size(limit)}")
            done[name] = run_part(store, folder, limit, given)
            done[name]["writing_s"] = writing_s
            done[name] |= provenance(checkout())
            write_whole(work / f"{name}.part", json.dumps(done[name]) + "\n")
            tell(outcome(name, done[name]))
        shutil.rmtree(folder)
    record = {
        "geometry": given.spec.name,
        "parameters": given.spec.total_bytes // given.spec.dtype_bytes,
        "steps": given.steps,
        "warm_up": given.warm_up,
        **provenance(checkout()),
        "parts": {
            f"{kind}-{limit // MiB}MiB": done[f"{kind}-{limit // MiB}MiB"]
            for kind in weights
            for limit in limits
        },
        "note": "device and host are one memory: the limit holds the interpreter, the "
        "page cache and everything else of the process; bytes from /proc/self/io",
    }
    write_whole(Path(given.out), json.dumps(record, indent=1) + "\n")
    for path in work.glob("*.part"):
        path.unlink()
    for name, part in record["parts"].items():
        print(outcome(name, part))


def distinct_files(paths) -> list[Path]:
    """Each file once, however many names it has."""
    return list({path.stat().st_ino: path for path in paths}.values())


def standing_store(work: Path, store: Store) -> Store:
    """The store of an earlier, killed run, or this one."""
    for path in work.glob(f"{store.weights}-{store.layers}x*"):
        if (path / "config.json").is_file():
            return replace(store, distinct_layers=int(path.name.rsplit("x", 1)[1]))
    return store


def outcome(name: str, part: dict[str, Any]) -> str:
    """One line about a part."""
    return (
        f"{name}: {part['s_per_token']:.2f} s a token, "
        f"{part['fraction_of_drain']:.1%} of drain, peak "
        f"{format_size(part['peak_bytes'])} of {format_size(part['limit_bytes'])} "
        f"({part['how']}), predicted {part['predicted_s_per_token']:.2f} s"
    )


def checkout() -> Path:
    """The checkout that this script belongs to."""
    found = root()
    require(found is not None, "thesis_lib is not imported from a checkout: install it")
    assert found is not None
    return found


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line; sizes as '8GiB'."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--geometry", default="llama-65b")
    add("--layers", type=int, default=None, help="of the stack; default: all")
    add("--weights", default="bf16,nf4", help="kinds of weights, one store each")
    add("--limits", default="8GiB,4GiB", help="hard limits, page cache included")
    add("--runtime", default="512MiB", help="of a limit, for interpreter and kernels")
    add("--reserve", default="10GB", help="of the disk, kept free")
    add("--minutes", type=float, default=90, help="refuse what takes longer")
    add("--steps", type=int, default=3, help="tokens that count, a drain around each")
    add("--warm-up", type=int, default=1, help="tokens after the first that do not")
    add("--rate-s", type=float, default=3.0, help="seconds of measuring the disk")
    add("--work", default=None, help="folder of the stores")
    add("--out", default=None, help="the record")
    add("--dry-run", action="store_true", help="say what it takes, and stop")
    add("--disk-rate", type=float, default=1e9, help=argparse.SUPPRESS)
    for hidden in ("--checkpoint", "--report", "--device-memory"):
        add(hidden, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    given.work = given.work or str(cache_folder("headline"))
    given.out = given.out or str(checkout() / "data" / "measurements" / "headline.json")
    return given


def main(words: list[str] | None = None, spec: ModelSpec | None = None) -> None:
    """The command; `spec` takes the place of a published geometry."""
    given = arguments(words)
    if given.checkpoint:
        stream(given)
        return
    given.spec = geometry(given.geometry) if spec is None else spec
    if given.layers is not None:
        given.spec = replace(given.spec, layers=given.layers)
    try:
        headline(given)
    except InvalidInput as refusal:
        sys.exit(str(refusal))


if __name__ == "__main__":
    main()
