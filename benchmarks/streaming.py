"""A model that does not fit: streamed, by accelerate, AirLLM and from mapped files.

The same checkpoint of random weights, the same hard limit of memory that counts the
page cache, the same prompt and the same greedy tokens; each system in a process and a
control group of its own, from a cold page cache. They take turns forwards and
backwards, and the same reads without computing (`drain`) are timed before and after
each: a run whose two drains differ by more than 5 % is repeated. Behind them come
streamed ones with the same geometry packed in NF4, and with the same weights in a
lossless code.

    pip install -e .[peers]
    python benchmarks/streaming.py [--help]

llama.cpp takes part where `--systems` names it and `pip install llama-cpp-python` has
built it: with the same weights in a GGUF file, which it maps, and with 4-bit ones,
mapped, mapped with its blocks left as they are, or read as a whole; and with it the
streamed model in the same blocks.

Each peer has further configurations of its manual, of CONFIGURATIONS, which take part
where `--systems` names them.

Runs that were made are kept in the working folder: the command resumes.
"""

import ctypes
import json
import mmap
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
from blocks import MIX  # before torch, as the package asks
from gguf import GGMLQuantizationType, quantize
from llama_cpp_peer import decode_alone, write_gguf
from memory_limit import confined_call, decoded, forget_pages
from record import ELSEWHERE, Record, benchmark, ratio, tell
from safetensors import safe_open
from timed_decode import Step, greedily
from torch import Generator, Tensor, bfloat16, float32, from_numpy, randint
from torch.nn import Module
from transformers import AutoConfig, AutoModelForCausalLM

from thesis_lib.common.errors import choice, require
from thesis_lib.common.files import cache_folder
from thesis_lib.common.provenance import seconds_of
from thesis_lib.common.stats import median_interval
from thesis_lib.common.units import MiB, format_size, parse_size
from thesis_lib.memory.compress.convert import convert
from thesis_lib.memory.compress.random_weights import synthesize
from thesis_lib.memory.formats.base import stored_tensors
from thesis_lib.memory.formats.ggml import Blocks
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import Machine, ModelSpec, geometry
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint
from thesis_lib.memory.offload.plan import MemoryPlan

SYSTEMS = ("streamed", "accelerate", "mmap", "airllm")
# The same geometry in other checkpoints: in NF4, in a code that keeps every bit, and in
# the blocks that llama.cpp has in its file.
PACKED = {"streamed-nf4": "nf4", "streamed-lossless": "lossless"}
STORED = PACKED | {"streamed-q4": "q4"}
EXACT = "lossless"
GGUF = {  # files of llama.cpp, whose products are not torch's
    "llama.cpp": GGMLQuantizationType.BF16,
    "llama.cpp-q4": GGMLQuantizationType.Q4_0,
}
# The file of the other: not mapped, and mapped with its blocks as they are.
SAME_FILE = {"llama.cpp-q4-read": "llama.cpp-q4", "llama.cpp-q4-plain": "llama.cpp-q4"}
LLAMA = (*GGUF, *SAME_FILE)
PEERS = ("accelerate", "airllm")  # systems that are distributions, too
CONFIGURATIONS = (
    "accelerate-auto",  # a map that it makes for the memory that is there
    "accelerate-copied",  # weights in files of its own, which it copies first
    "mmap-sequential",  # the kernel is told that reads are in order
    "mmap-ahead",  # and before each layer, which one comes next
    "airllm-waiting",  # without prefetching
    "airllm-float32",  # computing in another type: other roundings
)
REAL = "SmolLM2"  # a geometry whose weights the package has
DRIFT = 0.05
# What interpreter, torch, transformers and the scratch memory of kernels hold beside
# the tensors of a model.
RUNTIME_BYTES = 512 * MiB
DRAINS, DRAIN_WARM_UP = 4, 2
DRAINED = ("drain_before_s", "drain_after_s")
_NOT_SETTINGS = ("work", "elsewhere", "attempts")  # a run is the same without them


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the command; sizes as '2GiB'."""

    geometry: Annotated[str, "or SmolLM2, which has weights"] = "llama2-7b"
    layers: Annotated[int, "of random weights"] = 16
    cap: Annotated[str, "hard limit of each process, page cache included"] = "2GiB"
    device_memory: Annotated[str, "of our plan; default: cap less runtime"] = ""
    systems: str = ",".join((*SYSTEMS, *PACKED))
    rounds: Annotated[int, "each forwards and backwards once"] = 1
    prompt: Annotated[int, "tokens"] = 16
    warm_up: Annotated[int, "tokens of each run that do not count"] = 2
    steps: Annotated[int, "tokens of each run that count"] = 10
    work: Annotated[str, "folder of checkpoints and runs"] = field(
        default_factory=lambda: str(cache_folder("streaming"))
    )
    attempts: Annotated[int, "at each run at most, until its drains agree"] = 4
    elsewhere: Annotated[bool, ELSEWHERE] = False

    @property
    def device_bytes(self) -> int:
        """Of our plan."""
        if self.device_memory:
            return parse_size(self.device_memory)
        return parse_size(self.cap) - RUNTIME_BYTES


def transformers_step(model: Any) -> Step:
    """One step of a transformers model with its cache inside."""
    cache: dict[str, Any] = {}

    def step(tokens: Tensor) -> Tensor:
        done = model(tokens, use_cache=True, logits_to_keep=1, **cache)
        cache["cache"] = done.past_key_values
        return done.logits

    return step


def places(folder: Path, place: int | str, where: str) -> dict[str, Any]:
    """Layers `where` accelerate offloads them; embedding and head at their `place`."""
    outer = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    layers = range(ModelSpec.from_config(folder).layers)
    return dict.fromkeys(outer, place) | {f"model.layers.{i}": where for i in layers}


def offloaded(folder: Path, work: Path, device_map: Any, **given: Any) -> Any:
    """A model that accelerate has where a map says."""
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=bfloat16,
        device_map=device_map,
        offload_folder=work / "offload",
        **given,
    ).eval()


def numbered(folder: Path, out: Path) -> Path:
    """The same files under the names that transformers would give them, as links.

    AirLLM reads the number of a shard out of its name.
    """
    if out.is_dir():
        return out
    placed: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as store:
            placed |= dict.fromkeys(store.keys(), file.name)
    files = sorted(set(placed.values()))
    names = {
        file: f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        for i, file in enumerate(files)
    }
    out.mkdir()
    for file, name in names.items():
        (out / name).hardlink_to(folder / file)
    index = {"weight_map": {name: names[file] for name, file in placed.items()}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(folder / "config.json", out)
    return out


def copied(folder: Path, work: Path) -> Any:
    """The same places by accelerate itself, which copies to files what is on disk."""
    from accelerate import (  # pyright: ignore[reportMissingImports]
        init_empty_weights,
        load_checkpoint_and_dispatch,
    )

    with init_empty_weights():
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(config, dtype=bfloat16)
    return load_checkpoint_and_dispatch(
        model,
        numbered(folder, work / "numbered"),
        places(folder, "cpu", "disk"),
        offload_folder=work / "offload",
    ).eval()


def advise(module: Module, advice: int) -> None:
    """Tell the kernel how the mapped weights of a module are going to be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    for weight in module.parameters():
        start = weight.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = weight.data_ptr() + weight.nbytes - start
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice):
            raise OSError(ctypes.get_errno(), "madvise of a mapped weight failed")


def untokenized(folder: Path, work: Path, device: str, **given: Any) -> Any:
    """AirLLM on its own layout of the checkpoint, which it makes when it has none."""
    from airllm.airllm_base import (  # pyright: ignore[reportMissingImports]
        AirLLMBaseModel,
    )

    class Untokenized(AirLLMBaseModel):
        def get_tokenizer(self, hf_token: str | None = None) -> None:
            """Random weights have no words."""

    source = numbered(folder, work / "numbered")
    split = work / "airllm"
    return Untokenized(source, device=device, layer_shards_saving_path=split, **given)


def load(
    system: str, folder: Path, work: Path, device: str = "cpu", room_bytes: int = 0
) -> Any:
    """A peer's model on a device.

    Layers that accelerate has on disk, or for a GPU in memory, and the rest on the
    device, or as it finds room for; parameters that are views of mapped safetensors,
    which the kernel pages in, with what advice; or AirLLM's streaming hooks.
    """
    peer, _, how = system.partition("-")
    gpu = device == "cuda"
    if peer == "airllm":
        given = {"dtype": float32} if how == "float32" else {}
        place = "cuda:0" if gpu else device
        prefetching = how != "waiting"
        return untokenized(folder, work, place, prefetching=prefetching, **given).model
    if how == "copied":
        return copied(folder, work)
    if how == "auto":
        return offloaded(folder, work, "auto", max_memory={"cpu": room_bytes})
    if peer == "accelerate":
        where = places(folder, *((0, "cpu") if gpu else (device, "disk")))
        return offloaded(folder, work, where)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=bfloat16).eval()
    layers = list(model.model.layers)
    if how == "sequential":
        advise(model, mmap.MADV_SEQUENTIAL)
    if how == "ahead":
        for layer, ahead in zip(layers, [*layers[1:], layers[0]], strict=True):
            layer.register_forward_pre_hook(
                lambda *_, ahead=ahead: advise(ahead, mmap.MADV_WILLNEED)
            )
    return model


def decode(step: Step, prompt: Tensor, steps: int) -> dict[str, Any]:
    """Greedy decoding: see `memory_limit.decoded`."""
    taken = islice(greedily(step, prompt), 1 + steps)
    return decoded((taken_s, token) for taken_s, (token,) in taken)


def random_prompt(folder: Path, length: int) -> Tensor:
    """Tokens (1, length) of a checkpoint's vocabulary, always the same."""
    draw, vocab = Generator().manual_seed(0), ModelSpec.from_config(folder).vocab
    return randint(0, vocab, (1, length), generator=draw)


def run_alone(system: str, folder: str, given: dict[str, Any]) -> dict[str, Any]:
    """What one system does inside its limit: its report."""
    asked, store = Options(**given), Path(folder)
    work, steps = Path(asked.work), asked.warm_up + asked.steps
    if system == "split":
        untokenized(store, work, "cpu")
        return {}
    start = time.perf_counter()
    prompt = random_prompt(store, asked.prompt)
    if system in (*SYSTEMS[1:], *CONFIGURATIONS):
        layer_bytes = ModelSpec.from_config(store).layer_bytes  # one is being used
        room_bytes = parse_size(asked.cap) - RUNTIME_BYTES - layer_bytes
        with smollm2.quiet():
            model = load(system, store, work, room_bytes=room_bytes)
            step = transformers_step(model)
        loading_s = time.perf_counter() - start
        return {"load_s": loading_s, **decode(step, prompt, steps)}
    made = plan_checkpoint(
        store, Machine(asked.device_bytes, 2e9), ring=None, pass_tokens=asked.prompt,
        context=asked.prompt + steps + 1, logit_tokens=1,
    )  # fmt: skip
    with StreamedModel(store, made) as model:
        loading_s = time.perf_counter() - start
        if system == "drain":
            return {"seconds": drain(model), "plan": outline(made)}
        cache = model.new_cache()
        found = decode(lambda new: model.step(new, cache, keep=1), prompt, steps)
        return {"load_s": loading_s, **found, "plan": outline(made)}


def drain(model: StreamedModel) -> list[float]:
    """Seconds of the reads of one token, computing nothing; the first are left out."""
    seconds = [seconds_of(model.drain) for _ in range(DRAIN_WARM_UP + DRAINS)]
    return seconds[DRAIN_WARM_UP:]


def outline(made: MemoryPlan) -> dict[str, Any]:
    """Of a plan, what a record keeps."""
    kept = ("device_peak_bytes", "bytes_per_token", "ring", "tiers", "parts_bytes")
    summary = made.summary()
    return {name: summary[name] for name in kept}


def in_blocks(folder: Path, out: Path) -> None:
    """The checkpoint with the matrices of its layers in llama.cpp's 4-bit blocks."""
    kind = GGUF["llama.cpp-q4"]

    def blocks(_: str, weight: Tensor) -> dict[str, Tensor]:
        return {"blocks": from_numpy(quantize(weight.float().numpy(), kind))}

    def encode(layer: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return stored_tensors(layer, tensors, blocks)

    types = [dict.fromkeys(MIX, kind.name)] * ModelSpec.from_config(folder).layers
    convert(folder, out, Blocks(types=types), encode=encode)


def launch(system: str, given: Options, capped: bool = True) -> dict:
    """Run one system in its own process and group, cold; its report and its use."""
    name = SAME_FILE.get(system, system)
    name = name if name in GGUF else STORED.get(system, "checkpoint")
    folder, split = Path(given.work) / name, Path(given.work) / "airllm"
    shutil.rmtree(Path(given.work) / "offload", ignore_errors=True)
    forget_pages([*folder.glob("*.*"), *split.rglob("*.safetensors")])
    limit_bytes = parse_size(given.cap) if capped else psutil.virtual_memory().total
    if system in LLAMA:
        prompt = random_prompt(Path(given.work) / "checkpoint", given.prompt)
        done = confined_call(
            decode_alone, limit_bytes, path=folder / "model.gguf",
            prompt=prompt[0].tolist(), steps=given.warm_up + given.steps,
            maps=system != "llama.cpp-q4-read",
            rearranges=system != "llama.cpp-q4-plain",
        )  # fmt: skip
    else:
        done = confined_call(
            run_alone, limit_bytes, folder=folder, given=asdict(given),
            system="streamed" if system in STORED else system,
        )  # fmt: skip
    if done.returncode and not done.killed:
        raise RuntimeError(f"{system} ended with {done.returncode}: see above")
    report = {} if done.killed else done.report
    return {
        "killed": done.killed,
        **report,
        **done.physical,
        "process_s": done.seconds,
    }


def order(systems: list[str], rounds: int) -> list[str]:
    """Forwards and backwards, `rounds` times: a drift that is linear cancels out.

    Packed models come last: they have other checkpoints, and others to be beside.
    """
    dense = [system for system in systems if system not in PACKED]
    packed = [system for system in systems if system in PACKED]
    after = [system for system in packed for _ in range(2 * rounds)]
    return [*dense, *reversed(dense)] * rounds + after


def drift(run: dict[str, Any]) -> float:
    """Relative difference of the medians of the two drains beside a run."""
    before, after = (float(np.median(run[side])) for side in DRAINED)
    return abs(after - before) / min(after, before)


def is_settled(run: dict[str, Any]) -> bool:
    """Whether the machine was the same before and after a run."""
    return drift(run) <= DRIFT


def kept(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the attempts at each turn the one that counts: settled, else the steadiest."""
    turns = sorted({run["turn"] for run in runs})
    return [min((r for r in runs if r["turn"] == turn), key=drift) for turn in turns]


def next_turn(runs: list[dict[str, Any]], turns: int, attempts: int) -> int | None:
    """The first turn of those least often tried that has no settled run yet.

    None once every turn is settled or has had all its attempts.
    """
    tried = [[run for run in runs if run["turn"] == turn] for turn in range(turns)]
    left = [
        turn
        for turn, own in enumerate(tried)
        if not any(map(is_settled, own)) and len(own) < attempts
    ]
    return min(left, key=lambda turn: len(tried[turn]), default=None)


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, quartiles and the interval of the median."""
    found = median_interval(seconds)
    quarter, three = np.percentile(seconds, [25, 75])
    return {
        "median_s": found.value,
        "quartiles_s": [float(quarter), float(three)],
        "interval_s": [found.low, found.high],
        "samples": found.n,
    }


def faster(slow: list[float], fast: list[float]) -> dict[str, Any]:
    """How many times faster, with the ends of its interval.

    Steps at the same place of both systems' runs are paired.
    """
    n = min(len(slow), len(fast))
    found = ratio(slow[:n], fast[:n])
    return {"times": found.pop("ratio"), **found}


def comparisons(systems: Iterable[str]) -> Iterator[tuple[str, str, str, str]]:
    """Name and system of each comparison, the slower system and the faster one."""
    for system in systems:
        peer, _, _ = system.partition("-")
        if system != "streamed":
            yield "streamed_is_faster", system, system, "streamed"
        if system in STORED:
            yield "is_faster_than_accelerate", system, "accelerate", system
        if system in CONFIGURATIONS:
            yield "is_faster_than_default", system, peer, system
        if system in LLAMA[1:]:
            yield "streamed_q4_is_faster", system, system, "streamed-q4"


def summarize(runs: list[dict[str, Any]], warm_up: int) -> dict[str, Any]:
    """What a step of each system takes, reads and holds, against the streamed model."""
    summary: dict[str, Any] = {}
    steps: dict[str, list[float]] = {}
    drains: list[float] = []
    for system in dict.fromkeys(run["system"] for run in runs):
        own = [run for run in runs if run["system"] == system]
        summary[system] = {
            "killed": any(run["killed"] for run in own),
            "peak_bytes": max(run["peak_bytes"] for run in own),
        }
        if summary[system]["killed"]:
            continue
        steps[system] = [s for run in own for s in run["seconds"][warm_up:]]
        beside = [s for run in own for side in DRAINED for s in run[side]]
        drains += beside
        read = [n for run in own for n in run["read_bytes"][warm_up:]]
        summary[system] |= {
            **spread(steps[system]),
            "first_token_s": [run["first_token_s"] for run in own],
            "load_s": [run["load_s"] for run in own],
            "read_bytes_per_token": float(np.median(read)),
            "drain_s": float(np.median(beside)),
            "drains_per_step": float(np.median(steps[system]) / np.median(beside)),
            "settled": all(map(is_settled, own)),
        }
        if system == "streamed":
            fraction = float(np.median(beside) / np.median(steps[system]))
            summary[system]["fraction_of_drain"] = fraction
    for name, system, slow, fast in comparisons(steps):
        if {slow, fast} <= steps.keys():
            summary[system][name] = faster(steps[slow], steps[fast])
    exact = {
        tuple(run["tokens"])
        for run in runs
        if not run["killed"]
        and run["system"] not in (*LLAMA, "airllm-float32")
        and STORED.get(run["system"], EXACT) == EXACT
    }
    return {
        "systems": summary,
        "tokens_identical": len(exact) == 1,
        "drain": spread(drains),
    }


def require_room(work: Path, needed_bytes: int) -> None:
    """Raises InvalidInput where the folder's disk has less."""
    free_bytes = shutil.disk_usage(work).free
    require(
        free_bytes >= needed_bytes,
        f"{work} has {format_size(free_bytes)} of disk free, the checkpoint and what "
        f"AirLLM copies of it need {format_size(needed_bytes)}: free some, or name "
        "another folder with --work",
    )


def make_checkpoint(folder: Path, kind: str, given: Options) -> None:
    """Write the weights in one format; 4-bit blocks are made of the dense ones."""
    if kind == "q4":
        dense = folder.parent / "checkpoint"
        require_room(folder.parent, ModelSpec.from_config(dense).total_bytes // 2)
        in_blocks(dense, folder)
    elif given.geometry == REAL and kind == "dense":
        shutil.copytree(smollm2.checkpoint(), folder)
    else:
        spec = replace(geometry(given.geometry), layers=given.layers)
        copied = 2 * (spec.embedding_bytes + spec.head_bytes)
        require_room(folder.parent, spec.total_bytes + copied)
        synthesize(given.geometry, folder, layers=given.layers, kind=kind)


def prepare(given: Options, systems: list[str]) -> dict[str, Any]:
    """Write the checkpoints that are missing; what they are."""
    work = Path(given.work)
    work.mkdir(parents=True, exist_ok=True)
    made = {}
    wanted = {"checkpoint": "dense"}
    wanted |= {STORED[name]: STORED[name] for name in systems if name in STORED}
    for name, kind in wanted.items():
        folder = work / name
        if not (folder / "config.json").is_file():
            make_checkpoint(folder, kind, given)
        sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
        made[name] = {"bytes": sum(sizes), "files": len(sizes)}
    for name in GGUF.keys() & {SAME_FILE.get(name, name) for name in systems}:
        path = work / name / "model.gguf"
        if not path.is_file():
            require_room(work, made["checkpoint"]["bytes"])
            path.parent.mkdir(exist_ok=True)
            write_gguf(work / "checkpoint", path, GGUF[name])
        made[name] = {"bytes": path.stat().st_size, "files": 1}
    cuts = any(system.startswith("airllm") for system in systems)
    if cuts and not (work / "airllm" / "splitted_model").is_dir():
        launch("split", given, capped=False)
    return made


def write_record(
    out: Path, given: Options, runs: list[dict[str, Any]], checkpoints: dict
) -> None:
    """Every run, and what they say together."""
    summary = summarize(kept(runs), given.warm_up)
    named = dict.fromkeys(run["system"].partition("-")[0] for run in runs)
    versions = {name: metadata.version(name) for name in named if name in PEERS}
    if "llama.cpp" in named:
        versions["llama.cpp"] = metadata.version("llama-cpp-python")
    Record(out).write(
        summary=summary,
        complete=True,
        geometry=given.geometry,
        layers=ModelSpec.from_config(Path(given.work) / "checkpoint").layers,
        checkpoints=checkpoints,
        limit_bytes=parse_size(given.cap),
        prompt_tokens=given.prompt,
        warm_up=given.warm_up,
        steps=given.steps,
        drift=DRIFT,
        peers=versions,
        runs=runs,
        note="on the processor, greedy, with random weights but for SmolLM2; "
        "Accelerate and mmap are given embedding and head in memory, the streamed "
        "model what its plan says, AirLLM has no choice, and llama.cpp its defaults; a "
        "limit of control group counts the page cache",
    )
    print(json.dumps(summary, indent=1))


def report(run: dict[str, Any], warm_up: int) -> None:
    """One line about a run."""
    step = "killed"
    if not run["killed"]:
        step = f"{np.median(run['seconds'][warm_up:]):.2f} s a token"
    before, after = (np.median(run[side]) for side in DRAINED)
    tell(
        f"{run['turn']}: {run['system']}: {step}, peak "
        f"{format_size(run['peak_bytes'])} ({run['how']}), drains {before:.2f} and "
        f"{after:.2f} s"
    )


@benchmark
def main(out: Path, given: Options) -> None:
    known = (*SYSTEMS, *STORED, *LLAMA, *CONFIGURATIONS)
    systems = [choice("--systems", name, known) for name in given.systems.split(",")]
    turns = order(systems, given.rounds)
    for name in {system.partition("-")[0] for system in systems} & {*PEERS}:
        metadata.version(name)  # raises: pip install -e .[peers]
    checkpoints = prepare(given, systems)
    settings = {k: v for k, v in asdict(given).items() if k not in _NOT_SETTINGS}
    path = Path(given.work) / "runs.json"
    log = Record(path, settings, ["runs"], given.elsewhere, points="runs")
    before: list[float] | None = None
    while (turn := next_turn(log.points, len(turns), given.attempts)) is not None:
        os.sync()  # what others wrote would be written back during the run
        before = before or launch("drain", given)["seconds"]
        run = launch(turns[turn], given)
        after = launch("drain", given)["seconds"]
        run |= {"system": turns[turn], "turn": turn, "at": time.time()}
        log.add({**run, "drain_before_s": before, "drain_after_s": after})
        report(log.points[-1], given.warm_up)
        before = after
    write_record(out, given, log.points, checkpoints)
