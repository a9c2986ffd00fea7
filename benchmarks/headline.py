"""The headline: a 65-billion-parameter geometry inside a hard limit of 8 GiB, and of 4.

Writes a checkpoint of random weights, streams it in a control group that counts the
page cache, times tokens between the same reads without computing, and removes the
checkpoint again: bf16 with as many distinct layers as the disk holds (hard links for
the rest, which are read all the same), then packed NF4 with all of them.

    python benchmarks/headline.py [--help]

Reports first how much disk and time it takes, and ends without them. Processes that
are done are kept in the working folder: killed and started again, it goes on.
"""

import shutil
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

from memory_limit import confined_call, forget_pages, how_confined
from record import ELSEWHERE, Record, benchmark, made_by, tell
from timed_decode import count_drains, stream_store

from thesis_book.execute.provenance import drain
from thesis_lib.common.errors import choice, require
from thesis_lib.common.files import cache_folder
from thesis_lib.common.provenance import seconds_of
from thesis_lib.common.units import MiB, format_duration, format_size, parse_size
from thesis_lib.memory.compress.random_weights import synthesize
from thesis_lib.memory.model.spec import WEIGHTS, Machine, ModelSpec, geometry
from thesis_lib.memory.offload.offloaded_model import disk_bytes_per_s, plan_checkpoint

# Bits of a parameter in each kind of weights, scales included.
BITS = {"bf16": 16.0, "nf4": 4.25}
# How fast two cores make and pack random weights: for the time told beforehand.
WEIGHTS_PER_S = {"bf16": 1.5e8, "nf4": 1e8}
OVERHEAD_S = 30  # starting, opening and the first rate of each part


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the command; sizes as '8GiB'."""

    geometry: str = "llama-65b"
    layers: Annotated[int | None, "of the stack; default: all"] = None
    weights: Annotated[str, "kinds of weights, one store each"] = "bf16,nf4"
    limits: Annotated[str, "hard limits, page cache included"] = "8GiB,4GiB"
    runtime: Annotated[str, "of a limit, for interpreter and kernels"] = "512MiB"
    reserve: Annotated[str, "of the disk, kept free"] = "10GB"
    minutes: Annotated[float, "reject runs predicted to take longer"] = 90
    processes: Annotated[int, "of each part, in turn with those of other limits"] = 3
    steps: Annotated[int, "tokens that count, drains around them"] = 5
    drain_every: Annotated[int, "so many tokens; a divisor of --steps"] = 5
    warm_up: Annotated[int, "tokens after the first that do not"] = 0
    rate_s: Annotated[float, "seconds of measuring the disk"] = 3.0
    work: Annotated[str, "folder of the stores"] = field(
        default_factory=lambda: str(cache_folder("headline"))
    )
    dry_run: Annotated[bool, "say what it takes, and stop"] = False
    elsewhere: Annotated[bool, ELSEWHERE] = False

    @property
    def spec(self) -> ModelSpec:
        """The geometry, cut to the layers that are asked for."""
        whole = geometry(self.geometry)
        return whole if self.layers is None else replace(whole, layers=self.layers)


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

    @property
    def label(self) -> str:
        """What a figure has to say about the weights."""
        if self.distinct_layers == self.layers:
            return f"random {self.weights} weights, all {self.layers} layers distinct"
        return (
            f"random {self.weights} weights, {self.distinct_layers} distinct layers "
            f"hard-linked to {self.layers} names, each read from the disk for every "
            "token"
        )


def survey(
    spec: ModelSpec, weights: list[str], free_bytes: int, reserve_bytes: int
) -> list[Store]:
    """The stores that fit, one at a time, beside `reserve_bytes` that stay free.

    Raises InvalidInput where fewer than two distinct layers would fit.
    """
    stores = []
    for kind in weights:
        choice("weights", kind, BITS)
        layer = round(spec.layer_bytes * BITS[kind] / 16)
        outer = spec.embedding_bytes + spec.head_bytes
        distinct = min(spec.layers, (free_bytes - reserve_bytes - outer) // layer)
        require(
            distinct >= min(2, spec.layers),
            f"two layers of {spec.name} in {kind} need "
            f"{format_size(outer + 2 * layer + reserve_bytes)} of disk, "
            f"{format_size(reserve_bytes)} of which stay free, but "
            f"{format_size(free_bytes)} are: free some, or name another folder with "
            "--work",
        )
        size = outer + distinct * layer
        stores.append(Store(kind, spec.layers, distinct, size, layer))
    return stores


def predicted_s(
    store: Store, spec: ModelSpec, runs: int, passes: int, rate: float
) -> float:
    """Seconds to write a store and to stream it in `runs` processes."""
    weights = store.bytes / (BITS[store.weights] / 8)
    writing = weights / WEIGHTS_PER_S[store.weights]
    streaming = passes * spec.layers * store.layer_bytes / rate
    return writing + runs * (streaming + OVERHEAD_S)


def stream(
    folder: str, device_bytes: int, rate: float, steps: int, drain_every: int,
    warm_up: int,
) -> dict[str, Any]:  # fmt: skip
    """Inside the limit: plan, stream, measure."""
    machine = Machine(device_bytes, rate)
    context = 2 + warm_up + steps
    made = plan_checkpoint(folder, machine, context=context, ring=None, logit_tokens=1)
    tell(
        f"plan: ring {made.ring}, {made.resident_layers} resident layers, peak "
        f"{format_size(made.device_peak_bytes)}, {made.step_s():.2f} s a token at "
        f"{rate / 1e9:.2f} GB/s"
    )
    trial, found = stream_store(
        Path(folder), made, steps, warm_up, drain_every=drain_every
    )
    return found | {
        "fractions": trial.fractions,
        "read_bytes_per_token": trial.read_bytes_per_step,
        "planned_bytes_per_token": made.bytes_per_token,
        "predicted_at_bytes_per_s": rate,
    }


def run_process(
    store: Store, folder: Path, limit_bytes: int, given: Options
) -> dict[str, Any]:
    """Stream a store in its own group; the report with what the kernel counted."""
    device_bytes = limit_bytes - parse_size(given.runtime)
    require(
        device_bytes > 0,
        f"a limit of {format_size(limit_bytes)} leaves nothing beside the "
        f"{given.runtime} of the interpreter and torch: raise --limits",
    )
    # Outside the limit: three buffers of whole layers may be more than it holds.
    rate = disk_bytes_per_s(folder, seconds=given.rate_s)
    forget_pages(folder.glob("*.safetensors"))
    done = confined_call(
        stream, limit_bytes, 0.25, folder=folder, device_bytes=device_bytes, rate=rate,
        steps=given.steps, drain_every=given.drain_every, warm_up=given.warm_up,
    ).check()  # fmt: skip
    if done.report is None:
        raise SystemExit(f"streaming {folder} ended with {done.returncode}, see above")
    return {
        "weights": store.weights,
        "layers": store.layers,
        "distinct_layers": store.distinct_layers,
        "store_bytes": store.bytes,
        "label": store.label,
        "device_bytes": device_bytes,
        **done.physical,
        **done.report,
    }


def pooled(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A part of its processes: all steps and fractions, and the highest peaks.

    What else is told, and how memory was used, is of the first of them.
    """
    trials = [run["trial"] for run in runs]
    steps, drains = (
        [second for trial in trials for second in trial[name]]
        for name in ("step_s", "drain_s")
    )
    fractions = [each for run in runs for each in run["fractions"]]
    read = [run["read_bytes_per_token"] for run in runs]
    predicted = ("predicted_s_per_token", "predicted_at_bytes_per_s")
    told = ("s_per_token", "fraction_of_drain", "peak_bytes", *predicted)
    return runs[0] | {
        "trial": trials[0] | {"step_s": steps, "drain_s": drains},
        "s_per_token": median(steps),
        "fractions": fractions,
        "fraction_of_drain": median(fractions),
        **{name: median(run[name] for run in runs) for name in predicted},
        "read_bytes_per_token": None if None in read else fmean(read),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "logical_peak_bytes": max(run["logical_peak_bytes"] for run in runs),
        "processes": [{name: run[name] for name in told} for run in runs],
    }


def write_store(store: Store, folder: Path, given: Options) -> None:
    """Write the checkpoint."""
    synthesize(
        given.spec,
        folder,
        distinct_layers=store.distinct_layers,
        layers=store.layers,
        kind=WEIGHTS[store.weights],
        progress=lambda n, of: tell(f"{store.folder}: layer {n} of {of} written"),
    )


def survey_left(
    work: Path, left: list[str], given: Options
) -> tuple[list[Store], float, str]:
    """Stores that are still to be streamed, the rate of the disk, and how it was read.

    What an earlier, killed run left there is removed.
    """
    for folder in work.glob("*-*x*"):
        shutil.rmtree(folder)
    free_bytes = shutil.disk_usage(work).free
    stores = survey(given.spec, left, free_bytes, parse_size(given.reserve))
    rate, how = drain(work) if stores else (None, "nothing left to do")
    (work / "drain.bin").unlink(missing_ok=True)
    return stores, rate or 1e9, how


def announce(
    stores: list[Store], rate: float, how: str, limits: int, given: Options
) -> None:
    """Say what the stores take. Raises InvalidInput for more time than is allowed."""
    runs = limits * given.processes
    drains = count_drains(given.steps, given.drain_every)
    passes = 1 + given.warm_up + given.steps + drains
    total_s = 0.0
    for store in stores:
        seconds = predicted_s(store, given.spec, runs, passes, rate)
        total_s += seconds
        tell(
            f"{store.label}: {format_size(store.bytes)} of disk, about "
            f"{format_duration(seconds)}"
        )
    tell(
        f"in all about {format_duration(total_s)} at {rate / 1e9:.2f} GB/s ({how}); "
        f"limits by {how_confined()}; the stores go into {given.work}, one at a time, "
        "and are removed"
    )
    require(
        total_s <= 60 * given.minutes,
        f"this would take about {format_duration(total_s)}, more than the "
        f"{given.minutes:g} minutes allowed: allow more with --minutes, or take fewer "
        "--processes, --steps, --limits or --weights",
    )


def outcome(name: str, part: dict[str, Any]) -> str:
    """One line about a part."""
    return (
        f"{name}: {part['s_per_token']:.2f} s a token, "
        f"{part['fraction_of_drain']:.1%} of drain, peak "
        f"{format_size(part['peak_bytes'])} of {format_size(part['limit_bytes'])} "
        f"({part['how']}), predicted {part['predicted_s_per_token']:.2f} s"
    )


@benchmark
def main(out: Path, given: Options) -> None:
    work = Path(given.work)
    work.mkdir(parents=True, exist_ok=True)
    limits = [parse_size(text) for text in given.limits.split(",")]
    weights = given.weights.split(",")
    parts = {f"{k}-{n // MiB}MiB": (k, n) for k in weights for n in limits}
    settings = {
        "geometry": given.spec.name,
        "parameters": given.spec.total_bytes // given.spec.dtype_bytes,
        "processes": given.processes,
        "steps": given.steps,
        "drain_every": given.drain_every,
        "warm_up": given.warm_up,
    }
    record = Record(out)
    done = Record(work / "parts.json", settings, ["points"], given.elsewhere)
    turns = [(name, turn) for turn in range(given.processes) for name in parts]
    missing = [key for key in turns if not done.find(name=key[0], turn=key[1])]
    left = [kind for kind in weights if any(parts[n][0] == kind for n, _ in missing)]
    stores, rate, how = survey_left(work, left, given)
    announce(stores, rate, how, len(limits), given)
    if given.dry_run:
        return
    for store in stores:
        folder = work / store.folder
        writing_s = seconds_of(partial(write_store, store, folder, given))
        for name, turn in missing:
            kind, limit = parts[name]
            if kind != store.weights:
                continue
            tell(f"{name}, {turn + 1} of {given.processes}: {store.label}")
            run = run_process(store, folder, limit, given) | {"writing_s": writing_s}
            done.add({"name": name, "turn": turn, **run, **made_by()})
            tell(outcome(name, run))
        shutil.rmtree(folder)
    found = {
        name: pooled(
            [done.find(name=name, turn=turn) or {} for turn in range(given.processes)]
        )
        for name in parts
    }
    record.write(
        **settings,
        parts=found,
        note="device and host are one memory: the limit holds the interpreter, the "
        "page cache and everything else of the process; bytes from /proc/self/io",
    )
    done.path.unlink(missing_ok=True)
    for name, part in found.items():
        print(outcome(name, part))
