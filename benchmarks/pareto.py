"""Every way to make SmolLM2 smaller: its bytes, its perplexity, its streamed time.

A point is a checkpoint that the package writes, or a format that exists in memory only
and has bytes and perplexity but no time. What is calibrated is so on each third of
*Persuasion*; all are scored on two texts that no calibration reads, in windows without
overlap. Then the checkpoints of the first third, in one process and in turns: the
reads of a step alone, and greedy tokens at batch 1, in device memory of a third of the
16-bit weights.

The record is written after every point and a second run goes on where the first one
ended. The checkpoints of the first third stay in the work folder: `--time` times them
again, on a quiet machine.

    python benchmarks/pareto.py [--sets 3] [--time]
"""

import copy
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
from record import ELSEWHERE, Record, benchmark, made_by, tell
from timed_decode import greedily
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.files import cache_folder, data_folder, write_whole
from thesis_lib.common.provenance import seconds_of
from thesis_lib.memory.compress.blockwise import matrices
from thesis_lib.memory.compress.convert import (
    CompressionConfig,
    streamed_perplexity,
    write_compressed,
)
from thesis_lib.memory.compress.gptq import round_to_nearest
from thesis_lib.memory.compress.svd import (
    decompose_layers,
    uniform_ranks,
    with_ranks,
)
from thesis_lib.memory.evaluate.perplexity import perplexity, read_tokens
from thesis_lib.memory.formats.low_bit import Grid
from thesis_lib.memory.formats.nf4 import quantize, weight_bytes
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.architectures import stack
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint
from thesis_lib.memory.offload.plan import PlanInfeasible
from thesis_lib.memory.offload.store import SafetensorsStore

CONTEXT = 512  # tokens of a window
PARTS = 3  # of the calibration text
CALIBRATION = "persuasion.txt"
TEXTS = ("sense_and_sensibility", "jargon")  # fiction, and technical English
GROUP = 64  # weights that share a scale
SHARE = 3  # of so many parts of the 16-bit weights the device holds one
PROMPT, RING = 32, 3  # of the timing: tokens, and buffers
TOKENS = 3  # timed at a turn, after one that is not
RESUMED = ("points", "timing")  # what a second run goes on with

Decoding = Iterator[tuple[float, tuple[int, ...]]]  # seconds and the token of a step
Twin = Callable[[nn.Module], tuple[nn.Module, int]]  # the copy, and its bytes


def rounded(model: nn.Module, bits: int, group: int) -> tuple[nn.Module, int]:
    """A copy with every matrix of its layers rounded to the nearest level.

    And the bytes of these matrices as they would be stored.
    """
    twin, total = copy.deepcopy(model), 0
    for layer in matrices(twin).values():
        weight = layer.weight.detach().double().numpy()
        found = round_to_nearest(weight, Grid(bits, group))
        layer.weight.data.copy_(torch.from_numpy(found.restore()))
        total += found.nbytes
    return twin, total


def nearest(model: nn.Module, bits: int) -> tuple[nn.Module, int]:
    """Rounded to the nearest level, and the bytes of the whole model."""
    twin, stored = rounded(model, bits, GROUP)
    dense = sum(layer.weight.nbytes for layer in matrices(model).values())
    return twin, weight_bytes(model) - dense + stored


def in_memory(model: nn.Module, kind: str) -> tuple[nn.Module, int]:
    """As bitsandbytes quantises a model in memory, scales quantised once more."""
    twin = quantize(model, kind)
    return twin, weight_bytes(twin)  # before a first pass lays codes out anew


def truncated(model: nn.Module, ratio: float) -> tuple[nn.Module, int]:
    """Every matrix by its plain singular value decomposition, one ratio for all."""
    ranks = uniform_ranks(model, ratio)
    twin = with_ranks(model, decompose_layers(model), ranks)
    return twin, weight_bytes(twin)


@dataclass(frozen=True, slots=True)
class Point:
    """A way to store the model: what the package writes, or a copy in memory.

    Neither is the model as it is.
    """

    name: str
    wish: CompressionConfig | None = None
    twin: Twin | None = None

    @property
    def calibrated(self) -> bool:
        """Whether another calibration text makes another checkpoint."""
        return self.wish is not None and self.wish.weights is None

    @property
    def described(self) -> dict[str, Any]:
        """What a record says of it: the parts of its wish that were asked for."""
        asked = {
            part.name: getattr(self.wish, part.name)
            for part in fields(CompressionConfig)
            if self.wish and getattr(self.wish, part.name) != part.default
        }
        return {"wish": asked, "stored": self.twin is None}


def few(bits: int, rank: int = 0) -> CompressionConfig:
    """GPTQ, with a correction where there is a rank."""
    return CompressionConfig(bits=bits, correction_rank=rank, group=GROUP)


WISHES: dict[str, CompressionConfig | Twin | None] = {  # in the order of their worth
    "bf16": None,
    "NF4": CompressionConfig("nf4"),
    "GPTQ 3": few(3),
    "low rank 0.8": CompressionConfig(rank_ratio=0.8),
    "GPTQ 3 + rank 16": few(3, 16),
    "GPTQ 4": few(4),
    "int8": CompressionConfig("int8"),
    "lossless": CompressionConfig("lossless"),
    "GPTQ 2": few(2),
    "low rank 0.9": CompressionConfig(rank_ratio=0.9),
    "GPTQ 2 + rank 16": few(2, 16),
    "low rank 0.6": CompressionConfig(rank_ratio=0.6),
    "GPTQ 3 + rank 8": few(3, 8),
    "GPTQ 2 + rank 8": few(2, 8),
    "nearest 4": partial(nearest, bits=4),
    "nearest 3": partial(nearest, bits=3),
    "NF4, double": partial(in_memory, kind="nf4"),
    "FP4, double": partial(in_memory, kind="fp4"),
    "plain SVD 0.8": partial(truncated, ratio=0.8),
    "nearest 2": partial(nearest, bits=2),
}
POINTS = tuple(
    Point(name, twin=wish) if callable(wish) else Point(name, wish)
    for name, wish in WISHES.items()
)


def wanted(points: Sequence[Point], sets: int) -> Iterator[tuple[Point, int]]:
    """Each point with the number of its calibration set: the first set of all first."""
    for number in range(sets):
        for point in points:
            if number == 0 or point.calibrated:
                yield point, number


def split_text(text: str, parts: int = PARTS) -> list[str]:
    """Consecutive parts of nearly as many characters, each from a new paragraph on."""
    starts = [found.end() for found in re.finditer(r"\n\n+", text)]
    require(
        len(starts) >= parts - 1,
        f"{len(starts) + 1} paragraphs do not make {parts} parts: give a longer text",
    )
    ideal = [len(text) * part / parts for part in range(1, parts)]
    cuts = [min(starts, key=lambda at, to=to: abs(at - to)) for to in ideal]
    return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]


def write_parts(text: Path, folder: Path) -> list[Path]:
    """The parts of a calibration text as files of `folder`."""
    files = []
    for number, part in enumerate(split_text(text.read_text(encoding="utf-8"))):
        files.append(folder / f"{text.stem}-{number + 1}.txt")
        write_whole(files[-1], part)
    return files


def known(record: Record, point: Point, number: int) -> dict[str, Any] | None:
    """What a record says of a point; None where it is still to be scored.

    Raises InvalidInput for a point that it knows as another one.
    """
    found = record.find(name=point.name, set=number)
    require(
        found is None or point.described.items() <= found.items(),
        f"{record.path} knows {point.name!r} as {found and found['wish']}: expected "
        f"{point.described['wish']}; give another --out or remove it",
    )
    return found


@dataclass(frozen=True)
class Sweep:
    """The model, the texts that score it, and where its checkpoints are written."""

    dense: Path
    work: Path
    texts: Mapping[str, Tensor]
    calibration: Sequence[Path]
    context: int

    @cached_property
    def model(self) -> nn.Module:
        """The model as it is, resident."""
        with smollm2.quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                self.dense, dtype=torch.bfloat16
            )
        return loaded.eval()

    @cached_property
    def layer_parameters(self) -> int:
        """Entries of all tensors of the decoder layers."""
        _, layers = stack(self.model)
        return sum(tensor.numel() for tensor in layers.parameters())

    def folder(self, point: Point, number: int) -> Path:
        """Where the checkpoint of a point lies, or is to lie."""
        if point.wish is None:
            return self.dense
        slug = re.sub(r"[^a-z0-9.]+", "-", point.name.lower())
        return self.work / f"{slug}-{number + 1}"

    def remove(self, point: Point, number: int) -> None:
        """Remove the checkpoint of a point; the model itself stays."""
        if point.wish is not None:
            shutil.rmtree(self.folder(point, number), ignore_errors=True)

    def written(self, point: Point, number: int) -> Path:
        """The checkpoint of a point; one that is cut off or altered is made again."""
        folder = self.folder(point, number)
        if point.wish is not None and not is_whole(folder):
            self.remove(point, number)
            wish = point.wish
            if point.calibrated:
                wish = replace(wish, calibration=self.calibration[number])
            write_compressed(self.dense, folder, wish, self.context)
        return folder

    def score(self, point: Point, number: int, record: Record) -> dict[str, Any]:
        """What the record says of a point, which is scored unless it is known."""
        if (found := known(record, point, number)) is not None:
            return found
        if point.twin is None:
            self.remove(point, number)  # what stands there may be of another wish
            folder = self.written(point, number)
            n_bytes, layer_bytes = stored_bytes(folder), stored_layer_bytes(folder)
            score = partial(streamed_perplexity, folder)
        else:
            twin, n_bytes = point.twin(self.model)
            rest = weight_bytes(self.model) - 2 * self.layer_parameters
            layer_bytes = n_bytes - rest
            score = partial(perplexity, twin)
        nll = {
            name: score(tokens, context=self.context).nll.tolist()
            for name, tokens in self.texts.items()
        }
        return record.add(
            {
                "name": point.name,
                "set": number,
                **point.described,
                "bytes": n_bytes,
                "layer_bytes": layer_bytes,
                "layer_bits": 8 * layer_bytes / self.layer_parameters,
                "nll": nll,
            }
        )


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is the one that its manifest records."""
    try:
        with SafetensorsStore(folder, verify=True):
            return True
    except InvalidInput:
        return False


def stored_bytes(folder: Path) -> int:
    """Bytes of the weight files of a checkpoint."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def stored_layer_bytes(folder: Path) -> int:
    """Bytes of the tensors of the decoder layers, or of their code."""
    with SafetensorsStore(folder) as store:
        if store.kind == "lossless":
            return sum(len(store.read_stream(layer)) for layer in range(store.layers))
        return sum(store.tensor_bytes(layer) for layer in range(store.layers))


def turn(
    model: StreamedModel, decoding: Decoding
) -> tuple[float, list[float], list[int]]:
    """Seconds of a drain and of some tokens, each behind one of its kind; the tokens.

    What came before leaves the ring as full as the next one will. What the last token
    has asked for on behalf of the next one then lands, before another clock
    starts.
    """
    model.drain()
    drain_s = seconds_of(model.drain)
    seconds, tokens = zip(*islice(decoding, 1 + TOKENS), strict=True)
    with model.without_reading():
        return drain_s, list(seconds[1:]), [token for (token,) in tokens]


def time_stores(
    folders: Mapping[str, Path], device_bytes: int, prompt: Tensor, rounds: int
) -> dict[str, Any]:
    """Seconds of tokens and of drains of each checkpoint, forwards and backwards.

    By name; one that does not fit into `device_bytes` has the error message instead.
    """
    found: dict[str, Any] = {}
    positions = prompt.shape[1] + (TOKENS + 1) * (2 * rounds + 1)
    with ExitStack() as opened:
        runs = {}
        for name, folder in folders.items():
            try:
                made = plan_checkpoint(
                    folder, Machine(device_bytes, 1.0), context=positions, ring=RING,
                    pass_tokens=prompt.shape[1], logit_tokens=1,
                )  # fmt: skip
            except PlanInfeasible as error:
                found[name] = {"refused": str(error)}
                continue
            model = opened.enter_context(StreamedModel(folder, made))
            step = partial(model.step, cache=model.new_cache(), keep=1)
            decoding = greedily(step, prompt)
            _, (first,) = next(decoding)
            _, _, others = turn(model, decoding)  # whatever happens once, happens here
            runs[name] = model, decoding
            found[name] = {
                "resident_layers": made.resident_layers,
                "bytes_per_step": made.bytes_per_step,
                "planned_peak_bytes": made.device_peak_bytes,
                "drain_s": [],
                "token_s": [],
                "tokens": [first, *others],
            }
        for _ in range(rounds):
            for name in (*runs, *reversed(list(runs))):
                drain_s, token_s, tokens = turn(*runs[name])
                found[name]["drain_s"].append(drain_s)
                found[name]["token_s"] += token_s
                found[name]["tokens"] += tokens
    return found


def time_points(sweep: Sweep, record: Record, rounds: int) -> None:
    """Time every checkpoint of the first set that the record knows."""
    points = [p for p in POINTS if p.twin is None and known(record, p, 0)]
    require(
        len(points) > 0,
        f"{record.path} knows no checkpoint to be timed: score some points first",
    )
    folders = {point.name: sweep.written(point, 0) for point in points}
    device_bytes = stored_bytes(sweep.dense) // SHARE
    prompt = next(iter(sweep.texts.values()))[None, :PROMPT]
    load = psutil.getloadavg()
    systems = time_stores(folders, device_bytes, prompt, rounds)
    record.content["timing"] = {
        **made_by(),
        "load_average": {"start": load, "end": psutil.getloadavg()},
        "threads": torch.get_num_threads(),
        "device_bytes": device_bytes,
        "prompt_tokens": prompt.shape[1],
        "systems": systems,
    }
    record.write()


def run(sweep: Sweep, record: Record, points: Sequence[Point], sets: int) -> None:
    """Score all points. Checkpoints of the first set stay, to be timed."""
    for point, number in wanted(points, sets):
        entry = sweep.score(point, number, record)
        if number > 0:
            sweep.remove(point, number)
        nats = {
            n: sum(nll) / (len(sweep.texts[n]) - 1) for n, nll in entry["nll"].items()
        }
        tell(
            f"{point.name}, set {number + 1}: {entry['bytes']:,} bytes, "
            f"{entry['layer_bits']:.3f} bits, nats a token {nats}"
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the command."""

    sets: Annotated[int, "calibration sets, at most 3"] = PARTS
    tokens: Annotated[int, "of each text"] = 16_384
    time: Annotated[bool, "only time, anew"] = False
    rounds: Annotated[int, "of the timing"] = 5
    work: Annotated[Path, "folder of the checkpoints"] = field(
        default_factory=partial(cache_folder, "pareto")
    )
    elsewhere: Annotated[bool, ELSEWHERE] = False

    def __post_init__(self) -> None:
        require(
            1 <= self.sets <= PARTS,
            f"--sets {self.sets}: expected 1 to {PARTS} of them",
        )


@benchmark
def main(out: Path, given: Options) -> None:
    given.work.mkdir(parents=True, exist_ok=True)
    dense, novels = smollm2.checkpoint(), data_folder() / "text"
    tokenizer = AutoTokenizer.from_pretrained(dense)
    texts = {
        name: read_tokens(tokenizer, novels / f"{name}.txt", given.tokens + 1)
        for name in TEXTS
    }
    settings = {
        "model": "SmolLM2-135M-Instruct",
        "context": CONTEXT,
        "evaluation_tokens": {name: len(ids) - 1 for name, ids in texts.items()},
        "calibration": {"text": CALIBRATION, "parts": PARTS},
        "group": GROUP,
    }
    record = Record(out, settings, RESUMED, given.elsewhere)
    calibration = write_parts(novels / CALIBRATION, given.work)
    sweep = Sweep(dense, given.work, texts, calibration, CONTEXT)
    threads = torch.get_num_threads()
    if not given.time:
        torch.set_num_threads(1)
        run(sweep, record, POINTS, given.sets)
        torch.set_num_threads(threads)
    if given.time or "timing" not in record.content:
        time_points(sweep, record, given.rounds)
