"""On a GPU: the 65-billion-parameter geometry within 8 GiB of its memory.

Layers stream from pinned host memory, as many of the 80 as it holds, and the rest from
disk; the rate of pinned copies to the device is measured beside the steps. Then the
same geometry with fewer layers, the streamed model beside other systems, all within
that fraction of the device's memory. One command, under ten minutes; what would not fit
into the time is left out and the record says so.

    python benchmarks/gpu.py [--help]

`--device cpu` runs the same script where there is no GPU, with nothing capped.
"""

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib import metadata, util
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from memory_limit import confined_call
from record import Record, command, tell
from streaming import PEERS, load, transformers_step
from timed_decode import deepest_plan, greedily, stream_store

from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import cache_folder
from thesis_lib.common.provenance import drain
from thesis_lib.common.units import MiB, format_duration, format_size, parse_size
from thesis_lib.memory.compress.random_weights import synthesise
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import Machine, ModelSpec, geometry
from thesis_lib.memory.offload.measure import CudaCap

RINGS = (4, 3, 2, 1)
SLACK_BYTES = 256 * MiB  # of the fraction, for what kernels allocate by themselves
COPY_BYTES = 64 * MiB  # one copy of the link's rate
WRITE_BYTES_PER_S = 0.6e9  # of a store, for the time told beforehand
PEER_SLOWDOWN = 6  # at most, of a peer's step against the link: for the time too


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
def capped(limit: str, device: torch.device) -> Iterator[dict[str, Any]]:
    """The fraction of a GPU's memory, and what allocator and driver have counted then.

    On a processor nothing is capped.
    """
    counted: dict[str, Any] = {"how": "uncapped"}
    if device.type != "cuda":
        yield counted
        return
    with CudaCap(parse_size(limit), torch.cuda.current_device()) as cap:
        yield counted
    counted |= {
        "how": "set_per_process_memory_fraction",
        "allocated_bytes": cap.allocated_bytes,
        "reserved_bytes": cap.reserved_bytes,
        "context_bytes": cap.context_bytes,
    }


def stream(
    folder: Path, host_bytes: int, disk_rate: float, given: argparse.Namespace
) -> dict[str, Any]:
    """Streamed: plan, stream, and time each step beside its drain and the link."""
    device, limit_bytes = torch.device(given.device), parse_size(given.limit)
    with capped(given.limit, device) as counted:
        before = link_rate(device)
        machine = Machine(
            limit_bytes - min(SLACK_BYTES, limit_bytes // 8),
            disk_rate,
            host_bytes=host_bytes,
            link_bytes_per_s=before,
        )
        context = 2 + given.warm_up + given.steps
        made = deepest_plan(folder, machine, RINGS, context=context)
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


def run_peer(system: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Another system in the same fraction: seconds and tokens of greedy steps."""
    device = torch.device(given.device)
    prompt = torch.ones(1, 1, dtype=torch.long, device=device)
    seconds, tokens = [], []
    with capped(given.limit, device) as counted:
        start = time.perf_counter()
        with smollm2.quiet():
            model = load(system, folder, Path(given.work), given.device)
        loading_s = time.perf_counter() - start
        decoding = greedily(transformers_step(model), prompt)
        for taken_s, token in islice(decoding, 1 + given.warm_up + given.steps):
            seconds.append(taken_s)
            tokens.append(token)
            tell(f"{system}: {taken_s:.3f} s")
    step_s = seconds[1 + given.warm_up :]
    return {
        "trial": {
            "first_token_s": seconds[0],
            "warm_up_s": seconds[1 : 1 + given.warm_up],
            "step_s": step_s,
            "tokens": tokens,
        },
        "s_per_token": sorted(step_s)[len(step_s) // 2],
        "load_s": loading_s,
        **counted,
    }


def run_alone(
    system: str, folder: str, host_bytes: int, disk_rate: float, given: dict[str, Any]
) -> dict[str, Any]:
    """What one part does in a process of its own; too little memory is a result."""
    words = argparse.Namespace(**given)
    try:
        if system == "streamed":
            return stream(Path(folder), host_bytes, disk_rate, words)
        return run_peer(system, Path(folder), words)
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).splitlines()[0]}


def launch(
    system: str, folder: Path, host: int, disk_rate: float, given: argparse.Namespace
) -> dict[str, Any]:
    """Run one part and wait for it; a part that fails is reported, not fatal."""
    done = confined_call(
        run_alone, psutil.virtual_memory().total, 0.25, system=system, folder=folder,
        host_bytes=host, disk_rate=disk_rate, given=vars(given),
    )  # fmt: skip
    if done.report is None:
        return {"failed": f"ended with {done.returncode}", "killed": done.killed}
    return {
        **done.report,
        "limit_bytes": parse_size(given.limit),
        "host_peak_bytes": done.peak_bytes,
        "process_s": done.seconds,
    }


def distinct_layers(spec: ModelSpec, stores: int, given: argparse.Namespace) -> int:
    """Layers of a store such that `stores` of them leave the reserve free."""
    free_bytes = shutil.disk_usage(given.work).free - parse_size(given.reserve)
    outer = spec.embedding_bytes + spec.head_bytes
    most = (free_bytes // stores - outer) // spec.layer_bytes
    if most < 2:
        raise InvalidInput(
            f"{given.work} has room for {max(most, 0)} layers of {spec.name} beside "
            f"the {given.reserve} that stay free: expected two at least; free some, or "
            "name another folder with --work"
        )
    return min(spec.layers, given.distinct, most)


def foresee(
    spec: ModelSpec, host: int, distinct: int, rate: float, given: argparse.Namespace
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


def measure(given: argparse.Namespace, spec: ModelSpec) -> dict[str, Any]:
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
    shapes = {
        "whole": {"layers": spec.layers, "distinct_layers": distinct},
        "few": {"layers": few, "distinct_layers": min(few, distinct)},
    }
    found: dict[str, Any] = {}
    try:
        for name, seconds in foresee(spec, host, distinct, rate, given).items():
            left_s = 60 * given.minutes - (time.perf_counter() - started)
            if name in PEERS and util.find_spec(name) is None:
                found[name] = {"skipped": "not installed: pip install -e .[peers]"}
                continue
            if seconds > left_s:
                found[name] = {
                    "skipped": f"about {format_duration(seconds)} where "
                    f"{format_duration(max(left_s, 0))} were left"
                }
                tell(f"{name} left out: {found[name]['skipped']}")
                continue
            store = "whole" if name == "whole" else "few"
            if not (work / store).is_dir():
                synthesise(spec, work / store, **shapes[store])
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


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line; sizes as '8GiB'."""
    parser = command(__doc__, "gpu")
    add = parser.add_argument
    add("--device", default="cuda", help="cuda or cpu")
    add("--geometry", default="llama-65b")
    add("--limit", default="8GiB", help="of the device's memory, for each process")
    add("--host-memory", default="", help="for weights; default: 70 %% of available")
    add("--distinct", type=int, default=12, help="most distinct layers of a store")
    add("--peer-layers", type=int, default=12, help="of the model beside peers")
    add("--peers", default=",".join(PEERS))
    add("--reserve", default="10GB", help="of the disk, kept free")
    add("--minutes", type=float, default=10, help="leave out what would take longer")
    add("--steps", type=int, default=5, help="tokens that count, a drain around each")
    add("--warm-up", type=int, default=2, help="tokens after the first that do not")
    add("--work", default=None, help="folder of the stores")
    given = parser.parse_args(words)
    choice("device", given.device, ("cuda", "cpu"))
    given.work = given.work or str(cache_folder("gpu"))
    return given


def main(words: list[str] | None = None, spec: ModelSpec | None = None) -> None:
    """The command; `spec` takes the place of a published geometry."""
    given = arguments(words)
    try:
        require(
            given.device == "cpu" or torch.cuda.is_available(),
            "this torch sees no CUDA device: run it where there is one, or with "
            "--device cpu",
        )
        chosen = geometry(given.geometry) if spec is None else spec
        record, found = Record(given.out), measure(given, chosen)
    except InvalidInput as refusal:
        sys.exit(str(refusal))
    record.write(
        geometry=chosen.name,
        device=given.device,
        steps=given.steps,
        warm_up=given.warm_up,
        **found,
        peers={
            peer: metadata.version(peer)
            for peer in PEERS
            if util.find_spec(peer) is not None
        },
        note="random bf16 weights; layers beyond the distinct ones are hard links "
        "to them, each with a place of its own in host memory",
    )
    for name, part in found["parts"].items():
        print(outcome(name, part))


if __name__ == "__main__":
    main()
