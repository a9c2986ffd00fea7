"""Speculation over streamed weights, and what a pass over many sequences takes.

SmolLM2 streams through a third of its weights and continues seeded prompts of two
domains, greedily: prose from two novels, and text that repeats, which is quoting and
editing a passage of the novels and continuing code of Python's standard library. Plain
decoding and prompt lookup take turns on every prompt, and on some a resident NF4 copy
proposes, in as much more memory as it holds. A continuation that runs into a loop is
left out before its passes are counted: its second half repeats with a period of at most
`PERIOD` tokens. Then steps of 1, 8 and 64 sequences, of SmolLM2 and of a few layers of
the geometry of LLaMA-2-7B.

    python benchmarks/speculate.py [--prompts 50] [--tokens 32] [--drafted 10]
"""

import random
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from record import Record, benchmark, tell
from timed_decode import random_checkpoint

from thesis_lib.common.files import data_folder
from thesis_lib.memory.compress.convert import convert
from thesis_lib.memory.decode.speculative import (
    Draft,
    ModelDraft,
    PromptLookup,
    Verifier,
    calibrate,
    decode_greedily,
    open_draft,
    plan_speculation,
)
from thesis_lib.memory.evaluate.rates import plan_streamed
from thesis_lib.memory.formats.base import find_format
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.measure import interleave
from thesis_lib.memory.offload.offloaded_model import StreamedModel

SHARE = 1 / 3  # of the weights that the device holds
PROMPT = 160  # tokens at most
PERIOD = 8
BATCHES = (1, 8, 64)


def is_loop(tokens: tuple[int, ...]) -> bool:
    """Whether the second half of a continuation repeats with a short period."""
    return any(
        all(tokens[i] == tokens[i - p] for i in range(len(tokens) // 2, len(tokens)))
        for p in range(1, PERIOD + 1)
    )


def passages(draw: random.Random, words: int) -> Iterator[str]:
    """Random runs of words of the two novels."""
    texts = [
        (data_folder() / "text" / f"{name}.txt").read_text(encoding="utf-8").split()
        for name in ("sense_and_sensibility", "persuasion")
    ]
    while True:
        text = draw.choice(texts)
        start = draw.randrange(2000, len(text) - words)
        yield " ".join(text[start : start + words])


def prose(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Kind and prompt: a passage to be continued."""
    for passage in passages(draw, 80):
        yield "prose", passage


def repeating(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Kinds and prompts of text that repeats: a quotation, an edit, code, in turn."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(library.glob("*.py"))
    texts = passages(draw, 60)

    def again(passage: str, how: str, other: str) -> str:
        start = " ".join(other.split()[:6])
        return f"{passage}\n\nThe same passage {how}:\n\n{start}"

    while True:
        passage = next(texts)
        yield "quoting", again(passage, "once more", passage)
        passage = next(texts)
        edited = passage.replace(" she ", " Anne ").replace(" he ", " Edward ")
        yield "editing", again(passage, "with names instead of pronouns", edited)
        lines = draw.choice(files).read_text(encoding="utf-8").splitlines()
        first = draw.randrange(max(1, len(lines) - 40))
        yield "code", "\n".join(lines[first : first + 25])


DOMAINS = {"prose": prose, "repeating": repeating}


@dataclass(frozen=True, slots=True)
class System:
    """A model that decodes, and who proposes to it."""

    model: StreamedModel
    propose: Callable[[], Draft | None] = lambda: None
    verifier: Verifier | None = None

    def decode(self, prompt: torch.Tensor, n: int) -> tuple[tuple[int, ...], dict]:
        """The tokens of one continuation, and what they took."""
        found = decode_greedily(self.model, prompt, n, self.propose(), self.verifier)
        return found.tokens, {
            "passes": found.passes,
            "proposed": sum(found.proposed),
            "accepted": sum(found.accepted),
            "acceptance": found.acceptance,
            "seconds": sum(found.seconds),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Of the command."""

    prompts: Annotated[int, "of each domain"] = 50
    tokens: Annotated[int, "of a continuation"] = 32
    drafted: Annotated[int, "of them with a draft"] = 10
    seed: int = 0


def open_systems(
    folder: Path, tokens: int, stack: ExitStack
) -> tuple[dict[str, System], dict[str, Any]]:
    """Every system, opened on `stack`, and what a record says of them."""
    packed = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "nf4"
    convert(folder, packed, find_format("nf4"))
    small = stack.enter_context(open_draft(packed, PROMPT + tokens))
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    third = Machine(int(SHARE * total), 1e9)
    drafting = third.with_memory(third.device_bytes + small.plan.device_peak_bytes)

    def opened(machine: Machine, **options: Any) -> StreamedModel:
        made = plan_speculation(folder, machine, PROMPT, tokens, **options)
        return stack.enter_context(StreamedModel(folder, made))

    lookup, drafted = opened(third), opened(drafting, draft=small.plan)
    beside = opened(drafting)  # the same memory without a draft: more layers stay
    verifier = calibrate(lookup)
    systems = {
        "plain": System(lookup),
        "lookup": System(lookup, PromptLookup, verifier),
        "draft": System(drafted, lambda: ModelDraft(small), calibrate(drafted)),
        "plain beside": System(beside),
    }
    return systems, {
        "model_bytes": verifier.plan.spec.total_bytes,
        "device_bytes": third.device_bytes,
        "draft_bytes": small.plan.device_peak_bytes,
        "drafting_bytes": drafting.device_bytes,
        "new_tokens": tokens,
        "sizes": verifier.sizes,
        "crossover_tokens": verifier.plan.crossover_tokens(),
    }


def decode(folder: Path, given: Options) -> dict[str, Any]:
    """Every prompt under every system, in turns."""
    _, tokenizer = smollm2.load()
    rows, loops = [], dict.fromkeys(DOMAINS, 0)
    with ExitStack() as stack:
        systems, about = open_systems(folder, given.tokens, stack)
        for domain, prompts in DOMAINS.items():
            source = prompts(random.Random(given.seed))
            kept = 0
            while kept < given.prompts:
                kind, text = next(source)
                ids = tokenizer(text, return_tensors="pt").input_ids[:, -PROMPT:]
                names = list(systems)[: 4 if kept < given.drafted else 2]
                found = {
                    name: systems[name].decode(ids, given.tokens)
                    for name in (names if kept % 2 else reversed(names))
                }
                written = found["plain"][0]
                if is_loop(written):
                    loops[domain] += 1
                    continue
                kept += 1
                same = all(tokens == written for tokens, _ in found.values())
                row = {"domain": domain, "kind": kind, "prompt_tokens": ids.shape[1]}
                row |= {"tokens": len(written), "identical": same}
                took = {name: took for name, (_, took) in found.items()}
                rows.append(row | {"systems": took})
                tell(f"{domain} {kept} {kind} {took}")
    verifier = systems["lookup"].verifier
    assert verifier is not None
    about["fallbacks"] = verifier.fallbacks  # counted while it decoded
    return about | {"loops": loops, "prompts": rows}


def time_batches(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of one new token in 1, 8 and 64 sequences, and of a drain."""
    made = plan_streamed(folder, max(BATCHES), 34, 32, 3)
    draw = torch.Generator().manual_seed(0)
    with StreamedModel(folder, made) as model:
        turns: dict[str, Any] = {"drain": model.drain}
        for batch in BATCHES:
            cache = model.new_cache()
            rows = torch.randint(0, model.spec.vocab, (batch, 32), generator=draw)
            model.step(rows, cache, keep=1)

            def step(cache: Any = cache, last: torch.Tensor = rows[:, -1:]) -> None:
                model.step(last, cache, keep=1)
                cache.crop(-1)

            turns[str(batch)] = step
        return {
            name: list(seconds) for name, seconds in interleave(turns, rounds).items()
        }


@benchmark
def main(
    out: Path,
    given: Options,
    *,
    rounds: Annotated[int, "of the batches"] = 10,
    layers: Annotated[int, "of LLaMA-2-7B"] = 4,
) -> None:
    record, folder = Record(out), smollm2.checkpoint()
    found = decode(folder, given)
    steps = {"smollm2": time_batches(folder, rounds)}
    if layers:
        with random_checkpoint("llama2-7b", layers) as large:
            steps[large.name] = time_batches(large, max(2, rounds // 3))
    record.write(**found, steps=steps)
