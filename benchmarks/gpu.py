"""On a GPU: the 65-billion-parameter geometry within 8 GiB of its memory.

Layers stream from pinned host memory, as many of the 80 as it holds, and the rest from
disk; the rate of pinned copies to the device is measured beside the steps. Then the
same geometry with fewer layers, the streamed model beside other systems, all within
that fraction of the device's memory. One command, under ten minutes; what would not fit
into the time is left out and the record says so.

    python benchmarks/gpu.py [--help]

`--device cpu` runs the same script where there is no GPU, with nothing capped.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
from memory_limit import confined_call
from record import Record, benchmark, tell
from streaming import PEERS, decode, load, transformers_step
from timed_decode import stream_store

from thesis_book.execute.provenance import drain
from thesis_lib.common.errors import choice, require
from thesis_lib.common.files import cache_folder
from thesis_lib.common.units import MiB, format_duration, format_size, parse_size
from thesis_lib.memory.compress.random_weights import synthesize
from thesis_lib.memory.model.pretrained import quiet
from thesis_lib.memory.model.spec import Machine, ModelSpec, geometry
from thesis_lib.memory.offload.measure import CudaCap
from thesis_lib.memory.offload.offloaded_model import plan_checkpoint

SLACK_BYTES = 256 * MiB  # of the fraction, for what kernels allocate by themselves
COPY_BYTES = 64 * MiB  # one copy of the link's rate
WRITE_BYTES_PER_S = 0.6e9  # of a store, for the time told beforehand
PEER_SLOWDOWN = 6  # at most, of a peer's step against the link: for the time too


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the command; sizes as '8GiB'."""

    device: Annotated[str, "cuda or cpu"] = "cuda"
    geometry: str = "llama-65b"
    limit: Annotated[str, "of the device's memory, for each process"] = "8GiB"
    host_memory: Annotated[str, "for weights; default: 70 %% of available"] = ""
    distinct: Annotated[int, "most distinct layers of a store"] = 12
    peer_layers: Annotated[int, "of the model beside peers"] = 12
    peers: str = ",".join(PEERS)
    reserve: Annotated[str, "of the disk, kept free"] = "10GB"
    minutes: Annotated[float, "leave out what would take longer"] = 10
    steps: Annotated[int, "tokens that count, a drain around each"] = 5
    warm_up: Annotated[int, "tokens after the first that do not"] = 2
    work: Annotated[str, "folder of the stores"] = field(
        default_factory=lambda: str(cache_folder("gpu"))
    )

    @property
    def limit_bytes(self) -> int:
        """Of the device's memory."""
        return parse_size(self.limit)


def link_rate(device: torch.device, copies: int = 40) -> float:
    """Bytes per second of copies from pinned host memory to the device, at best."""
    pinned = device.type == "cuda"
    wait = partial(torch.cuda.synchronize, device) if pinned else lambda: None
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=pinned)
    target = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    rates = []
    for _ in range(3):
        wait()
        start = time.perf_counter()
        for _ in range(copies):
            target.copy_(source, non_blocking=True)
        wait()
        rates.append(copies * COPY_BYTES / (time.perf_counter() - start))
    return max(rates)


@contextlib.contextmanager
def capped(limit_bytes: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """The fraction of a GPU's memory, and what allocator and driver have counted then.

    On a processor nothing is capped.
    """
    counted: dict[str, Any] = {"how": "uncapped"}
    if device.type != "cuda":
        yield counted
        return
    with CudaCap(limit_bytes, torch.cuda.current_device()) as cap:
        yield counted
    counted["how"] = "set_per_process_memory_fraction"
    for name in ("allocated_bytes", "reserved_bytes", "context_bytes"):
        counted[name] = getattr(cap, name)


def stream(
    folder: Path, host_bytes: int, disk_rate: float, given: Options
) -> dict[str, Any]:
    """Streamed: plan, stream, and time each step beside its drain and the link."""
    device, limit_bytes = torch.device(given.device), given.limit_bytes
    with capped(limit_bytes, device) as counted:
        before = link_rate(device)
        machine = Machine(
            limit_bytes - min(SLACK_BYTES, limit_bytes // 8),
            disk_rate,
            host_bytes=host_bytes,
            link_bytes_per_s=before,
        )
        context = 2 + given.warm_up + given.steps
        made = plan_checkpoint(
            folder, machine, context=context, ring=None, logit_tokens=1
        )
        trial, found = stream_store(
            folder, made, given.steps, given.warm_up, given.device
        )
        after = link_rate(device)
    return {
        **found,
        "link_bytes_per_s": [before, after],
        "fraction_of_link": made.bytes_per_step / trial.s_per_step / max(before, after),
        "bytes_per_token": made.bytes_per_token,
        **counted,
    }


def run_peer(system: str, folder: Path, given: Options) -> dict[str, Any]:
    """Another system in the same fraction: seconds and tokens of greedy steps."""
    device = torch.device(given.device)
    prompt = torch.ones(1, 1, dtype=torch.long, device=device)
    with capped(given.limit_bytes, device) as counted:
        start = time.perf_counter()
        with quiet():
            model = load(system, folder, Path(given.work), given.device)
        loading_s = time.perf_counter() - start
        found = decode(transformers_step(model), prompt, given.warm_up + given.steps)
        tell(f"{system}: {found['seconds']} s")
    step_s = found["seconds"][given.warm_up :]
    return {
        "trial": {
            "first_token_s": found["first_token_s"],
            "warm_up_s": found["seconds"][: given.warm_up],
            "step_s": step_s,
            "tokens": [[token] for token in found["tokens"]],
        },
        "s_per_token": float(np.median(step_s)),
        "load_s": loading_s,
        **counted,
    }


def run_alone(
    system: str, folder: str, host_bytes: int, disk_rate: float, given: dict[str, Any]
) -> dict[str, Any]:
    """What one part does in a process of its own; too little memory is a result."""
    try:
        if system == "streamed":
            return stream(Path(folder), host_bytes, disk_rate, Options(**given))
        return run_peer(system, Path(folder), Options(**given))
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).splitlines()[0]}


def launch(
    system: str, folder: Path, host: int, disk_rate: float, given: Options
) -> dict[str, Any]:
    """Run one part and wait for it; a part that fails is reported, not fatal."""
    done = confined_call(
        run_alone, psutil.virtual_memory().total, 0.25, system=system, folder=folder,
        host_bytes=host, disk_rate=disk_rate, given=asdict(given),
    )  # fmt: skip
    if done.report is None:
        return {"failed": f"ended with {done.returncode}", "killed": done.killed}
    return {
        **done.report,
        "limit_bytes": given.limit_bytes,
        "host_peak_bytes": done.peak_bytes,
        "process_s": done.seconds,
    }


def distinct_layers(spec: ModelSpec, stores: int, given: Options) -> int:
    """Layers of a store such that `stores` of them leave the reserve free."""
    free_bytes = shutil.disk_usage(given.work).free - parse_size(given.reserve)
    outer = spec.embedding_bytes + spec.head_bytes
    most = (free_bytes // stores - outer) // spec.layer_bytes
    require(
        most >= 2,
        f"{given.work} has room for {max(most, 0)} layers of {spec.name} beside the "
        f"{given.reserve} that stay free: expected two at least; free some, or name "
        "another folder with --work",
    )
    return min(spec.layers, given.distinct, most)


def foresee(
    spec: ModelSpec, host: int, distinct: int, rate: float, given: Options
) -> dict[str, float]:
    """About how many seconds each part takes on a disk of this `rate`, by system.

    The most important first: `whole` is the streamed model with all layers.
    """
    link = link_rate(torch.device(given.device), copies=4)
    held = min(spec.layers, host // spec.layer_bytes)
    from_disk = (spec.layers - held) * spec.layer_bytes
    few_bytes = min(given.peer_layers, spec.layers) * spec.layer_bytes
    passes = 2 + given.warm_up + 2 * given.steps
    per_token = max(spec.layers * spec.layer_bytes / link, from_disk / rate)
    writing = distinct * spec.layer_bytes / WRITE_BYTES_PER_S
    filling = held * spec.layer_bytes / rate
    step = few_bytes / min(link, rate * 4)
    few = few_bytes / rate + 15
    peer = few + (1 + given.warm_up + given.steps) * PEER_SLOWDOWN * step
    parts = {
        "whole": writing + filling + passes * per_token + 15,
        "streamed": writing + few + passes * step,
        **dict.fromkeys(filter(None, given.peers.split(",")), peer),
    }
    tell(
        f"{spec.name}: {held} of {spec.layers} layers in "
        f"{format_size(host)} of host memory, {distinct} distinct; in all about "
        f"{format_duration(sum(parts.values()))}, {given.minutes:g} min allowed"
    )
    return parts


def left_out(name: str, seconds: float, left_s: float) -> str | None:
    """Why a part is not run; None where it is."""
    if name in PEERS and util.find_spec(name) is None:
        return "not installed: pip install -e .[peers]"
    if seconds > left_s:
        return (
            f"about {format_duration(seconds)} where "
            f"{format_duration(max(left_s, 0))} were left"
        )
    return None


def measure(given: Options, spec: ModelSpec) -> dict[str, Any]:
    """Every part that fits into the time, most important first."""
    started = time.perf_counter()
    work = Path(given.work)
    work.mkdir(parents=True, exist_ok=True)
    host = int(0.7 * psutil.virtual_memory().available)
    if given.host_memory:
        host = parse_size(given.host_memory)
    distinct = distinct_layers(spec, 2, given)
    rate, _ = drain(work)
    (work / "drain.bin").unlink(missing_ok=True)
    rate = rate or 1e9
    few = min(given.peer_layers, spec.layers)
    shapes: dict[str, dict[str, Any]] = {
        "whole": {"layers": spec.layers, "distinct_layers": distinct},
        "few": {"layers": few, "distinct_layers": min(few, distinct)},
    }
    found: dict[str, Any] = {}
    try:
        for name, seconds in foresee(spec, host, distinct, rate, given).items():
            left_s = 60 * given.minutes - (time.perf_counter() - started)
            if why := left_out(name, seconds, left_s):
                found[name] = {"skipped": why}
                tell(f"{name} left out: {why}")
                continue
            store = "whole" if name == "whole" else "few"
            if not (work / store).is_dir():
                synthesize(spec, work / store, **shapes[store])
            tell(f"{name}: {shapes[store]}")
            system = "streamed" if name == "whole" else name
            part = launch(system, work / store, host, rate, given)
            found[name] = part | shapes[store]
    finally:
        for folder in ("whole", "few", "numbered", "airllm", "offload"):
            shutil.rmtree(work / folder, ignore_errors=True)
    return {
        "parts": found,
        "tokens_identical": identical(found),
        "seconds": time.perf_counter() - started,
        "host_bytes": host,
    }


def identical(found: dict[str, Any]) -> bool | None:
    """Whether all systems wrote the same tokens; None with fewer than two."""
    written = [
        part["trial"]["tokens"]
        for name, part in found.items()
        if name != "whole" and "trial" in part
    ]
    return None if len(written) < 2 else all(one == written[0] for one in written)


def outcome(name: str, part: dict[str, Any]) -> str:
    """One line about a part."""
    if "s_per_token" not in part:
        why = next((part[k] for k in part if k != "layers"), "nothing")
        return f"{name}: {why}"
    line = f"{name}: {part['s_per_token']:.3f} s a token, {part['layers']} layers"
    if "fraction_of_link" in part:
        line += f", {part['fraction_of_link']:.1%} of the link"
    return line


@benchmark
def main(out: Path, given: Options) -> None:
    choice("device", given.device, ("cuda", "cpu"))
    require(
        given.device == "cpu" or torch.cuda.is_available(),
        "this torch sees no CUDA device: run it where there is one, or with "
        "--device cpu",
    )
    spec = geometry(given.geometry)
    record, found = Record(out), measure(given, spec)
    installed = [peer for peer in PEERS if util.find_spec(peer) is not None]
    record.write(
        geometry=spec.name,
        device=given.device,
        steps=given.steps,
        warm_up=given.warm_up,
        **found,
        peers={peer: metadata.version(peer) for peer in installed},
        note="random bf16 weights; layers beyond the distinct ones are hard links "
        "to them, each with a place of its own in host memory",
    )
    for name, part in found["parts"].items():
        print(outcome(name, part))
