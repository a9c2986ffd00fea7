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
import json
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import psutil
import torch
from record import Record, command, tell
from streaming import offloaded, untokenised
from timed_decode import confined_report, deepest_plan, stream_store
from torch import Tensor

from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import cache_folder, write_whole
from thesis_lib.common.provenance import drain
from thesis_lib.common.units import MiB, format_duration, format_size, parse_size
from thesis_lib.memory.compress.random_weights import synthesise
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import Machine, ModelSpec, geometry
from thesis_lib.memory.offload.measure import CudaCap

PEERS = {"accelerate": "accelerate", "airllm": "airllm"}  # their distributions
RINGS = (4, 3, 2, 1)
SLACK_BYTES = 256 * MiB  # of the fraction, for what kernels allocate by themselves
COPY_BYTES = 64 * MiB  # one copy of the link's rate
WRITE_BYTES_PER_S = 0.6e9  # of a store, for the time told beforehand
PEER_SLOWDOWN = 6  # at most, of a peer's step against the link: for the time too


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def link_rate(device: torch.device, copies: int = 40) -> float:
    """Bytes per second of copies from pinned host memory to the device, at best."""
    pinned = device.type == "cuda"
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=pinned)
    target = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    rates = []
    for _ in range(3):
        wait(device)
        start = time.perf_counter()
        for _ in range(copies):
            target.copy_(source, non_blocking=True)
        wait(device)
        rates.append(copies * COPY_BYTES / (time.perf_counter() - start))
    return max(rates)


@contextlib.contextmanager
def capped(limit_bytes: int, device: torch.device) -> Iterator[CudaCap | None]:
    """The fraction of a GPU's memory; on a processor nothing is capped."""
    if device.type == "cuda":
        with CudaCap(limit_bytes, torch.cuda.current_device()) as cap:
            yield cap
    else:
        yield None


def physical(cap: CudaCap | None) -> dict[str, Any]:
    """What the allocator and the driver counted; nothing on a processor."""
    if cap is None:
        return {"how": "uncapped"}
    return {
        "how": "set_per_process_memory_fraction",
        "allocated_bytes": cap.allocated_bytes,
        "reserved_bytes": cap.reserved_bytes,
        "context_bytes": cap.context_bytes,
    }


def stream(given: argparse.Namespace) -> dict[str, Any]:
    """Streamed: plan, stream, and time each step beside its drain and the link."""
    folder, device = Path(given.checkpoint), torch.device(given.device)
    limit_bytes = parse_size(given.limit)
    with capped(limit_bytes, device) as cap:
        before = link_rate(device)
        machine = Machine(
            limit_bytes - min(SLACK_BYTES, limit_bytes // 8),
            given.disk_rate,
            host_bytes=parse_size(given.host_memory),
            link_bytes_per_s=before,
        )
        context = 2 + given.warm_up + given.steps
        made = deepest_plan(folder, machine, RINGS, context=context)
        trial, found = stream_store(
            folder, made, given.steps, given.warm_up, tell, given.device
        )
        after = link_rate(device)
    return {
        **found,
        "link_bytes_per_s": [before, after],
        "fraction_of_link": made.bytes_per_step / trial.s_per_step / max(before, after),
        "bytes_per_token": made.bytes_per_token,
        **physical(cap),
    }


def load_peer(system: str, folder: Path, work: Path, device: str) -> Any:
    """Layers in host memory as accelerate offloads them, or read by AirLLM."""
    if system == "airllm":
        place = "cuda:0" if device == "cuda" else device
        return untokenised(folder, work, place).model
    place = 0 if device == "cuda" else device
    where = "cpu" if device == "cuda" else "disk"  # or there were nothing to offload
    return offloaded(folder, work, place, where)


def run_peer(given: argparse.Namespace) -> dict[str, Any]:
    """Another system in the same fraction: seconds and tokens of greedy steps."""
    device = torch.device(given.device)
    new: Tensor = torch.ones(1, 1, dtype=torch.long, device=device)
    seconds, tokens, cache = [], [], {}
    with capped(parse_size(given.limit), device) as cap, torch.no_grad():
        start = time.perf_counter()
        with smollm2.quiet():
            model = load_peer(
                given.worker, Path(given.checkpoint), Path(given.work), given.device
            )
        loading_s = time.perf_counter() - start
        for _ in range(1 + given.warm_up + given.steps):
            start = time.perf_counter()
            done = model(new, use_cache=True, logits_to_keep=1, **cache)
            cache["cache"] = done.past_key_values
            new = done.logits[:, -1].argmax(-1, keepdim=True).to(device)
            tokens.append([int(new)])  # waits for the device
            seconds.append(time.perf_counter() - start)
            tell(f"{given.worker}: {seconds[-1]:.3f} s")
    counted = sorted(seconds[1 + given.warm_up :])
    return {
        "trial": {
            "first_token_s": seconds[0],
            "warm_up_s": seconds[1 : 1 + given.warm_up],
            "step_s": seconds[1 + given.warm_up :],
            "tokens": tokens,
        },
        "s_per_token": counted[len(counted) // 2],
        "load_s": loading_s,
        **physical(cap),
    }


def work_alone(given: argparse.Namespace) -> None:
    """One part in a process of its own; its report goes to a file."""
    try:
        found = stream(given) if given.worker == "streamed" else run_peer(given)
    except torch.OutOfMemoryError as error:
        found = {"out_of_memory": str(error).splitlines()[0]}
    write_whole(Path(given.report), json.dumps(found) + "\n")


def launch(system: str, folder: Path, given: argparse.Namespace, host: int) -> dict:
    """Run one part and wait for it; a part that fails is reported, not fatal."""
    words: list[Any] = [sys.executable, __file__, "--worker", system]
    words += ["--checkpoint", folder, "--host-memory", f"{host}B"]
    for name in ("device", "limit", "steps", "warm_up", "work", "disk_rate"):
        words += [f"--{name.replace('_', '-')}", getattr(given, name)]
    done, found = confined_report(
        words, Path(given.work) / "report.json", psutil.virtual_memory().total
    )
    if found is None:
        return {"failed": f"ended with {done.returncode}", "killed": done.killed}
    return {
        **found,
        "limit_bytes": parse_size(given.limit),
        "host_peak_bytes": done.peak_bytes,
        "process_s": done.seconds,
    }


def host_bytes(given: argparse.Namespace) -> int:
    """Host memory for weights: what was asked for, or most of what is available."""
    if given.host_memory:
        return parse_size(given.host_memory)
    return int(0.7 * psutil.virtual_memory().available)


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


def measure(given: argparse.Namespace, spec: ModelSpec) -> dict[str, Any]:
    """Every part that fits into the time, most important first."""
    started = time.perf_counter()
    work = Path(given.work)
    work.mkdir(parents=True, exist_ok=True)
    host = host_bytes(given)
    distinct = distinct_layers(spec, 2, given)
    rate, _ = drain(work)
    (work / "drain.bin").unlink(missing_ok=True)
    given.disk_rate = rate or 1e9
    link = link_rate(torch.device(given.device), copies=4)
    held = min(spec.layers, host // spec.layer_bytes)
    from_disk = (spec.layers - held) * spec.layer_bytes
    few = min(given.peer_layers, spec.layers)
    passes = 2 + given.warm_up + 2 * given.steps
    per_token = max(spec.layers * spec.layer_bytes / link, from_disk / given.disk_rate)
    writing = distinct * spec.layer_bytes / WRITE_BYTES_PER_S
    filling = held * spec.layer_bytes / given.disk_rate
    peer_step = PEER_SLOWDOWN * few * spec.layer_bytes / min(link, given.disk_rate * 4)
    few_s = few * spec.layer_bytes / given.disk_rate + 15
    parts: list[tuple[str, str, str, float]] = [
        ("whole", "whole", "streamed", writing + filling + passes * per_token + 15),
        (
            "streamed",
            "few",
            "streamed",
            writing + few_s + passes * peer_step / PEER_SLOWDOWN,
        ),
    ]
    for peer in filter(None, given.peers.split(",")):
        steps = 1 + given.warm_up + given.steps
        parts.append((peer, "few", peer, few_s + steps * peer_step))
    tell(
        f"{spec.name}: {held} of {spec.layers} layers in "
        f"{format_size(host)} of host memory, {distinct} distinct; in all about "
        f"{format_duration(sum(part[3] for part in parts))}, "
        f"{given.minutes:g} min allowed"
    )
    found: dict[str, Any] = {}
    shapes = {
        "whole": {"layers": spec.layers, "distinct_layers": distinct},
        "few": {"layers": few, "distinct_layers": min(few, distinct)},
    }
    try:
        for name, store, system, seconds in parts:
            left_s = 60 * given.minutes - (time.perf_counter() - started)
            if system in PEERS and util.find_spec(system) is None:
                found[name] = {"skipped": "not installed: pip install -e .[peers]"}
                continue
            if seconds > left_s:
                found[name] = {
                    "skipped": f"about {format_duration(seconds)} where "
                    f"{format_duration(max(left_s, 0))} were left"
                }
                tell(f"{name} left out: {found[name]['skipped']}")
                continue
            if not (work / store).is_dir():
                synthesise(spec, work / store, **shapes[store])
            tell(f"{name}: {shapes[store]}")
            found[name] = launch(system, work / store, given, host) | shapes[store]
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
    if len(written) < 2:
        return None
    return all(
        [list(row) for row in tokens] == [list(row) for row in written[0]]
        for tokens in written
    )


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
    for hidden in ("--worker", "--checkpoint", "--report"):
        add(hidden, default=None, help=argparse.SUPPRESS)
    add("--disk-rate", type=float, default=1e9, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    choice("device", given.device, ("cuda", "cpu"))
    given.work = given.work or str(cache_folder("gpu"))
    return given


def main(words: list[str] | None = None, spec: ModelSpec | None = None) -> None:
    """The command; `spec` takes the place of a published geometry."""
    given = arguments(words)
    if given.worker:
        work_alone(given)
        return
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
            peer: metadata.version(name)
            for peer, name in PEERS.items()
            if util.find_spec(peer) is not None
        },
        note="random bf16 weights; layers beyond the distinct ones are hard links "
        "to them, each with a place of its own in host memory",
    )
    for name, part in found["parts"].items():
        print(outcome(name, part))


if __name__ == "__main__":
    main()
