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

import argparse
import random
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from record import Record, command, tell
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
    while True:
        passage = next(texts)
        start = " ".join(passage.split()[:6])
        yield "quoting", f"{passage}\n\nThe same passage once more:\n\n{start}"
        passage = next(texts)
        edited = passage.replace(" she ", " Anne ").replace(" he ", " Edward ")
        start = " ".join(edited.split()[:6])
        yield (
            "editing",
            f"{passage}\n\nThe same passage with names instead of pronouns:\n\n{start}",
        )
        lines = draw.choice(files).read_text(encoding="utf-8").splitlines()
        first = draw.randrange(max(1, len(lines) - 40))
        yield "code", "\n".join(lines[first : first + 25])


DOMAINS = {"prose": prose, "repeating": repeating}


def run(
    model: StreamedModel,
    prompt: torch.Tensor,
    n: int,
    draft: Draft | None = None,
    verifier: Verifier | None = None,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The tokens of one continuation, and what they took."""
    found = decode_greedily(model, prompt, n, draft, verifier)
    return found.tokens, {
        "passes": found.passes,
        "proposed": sum(found.proposed),
        "accepted": sum(found.accepted),
        "acceptance": found.acceptance,
        "seconds": sum(found.seconds),
    }


def decode(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Every prompt under every system, in turns."""
    _, tokenizer = smollm2.load()
    rows, loops = [], dict.fromkeys(DOMAINS, 0)
    with ExitStack() as stack:
        packed = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "nf4"
        convert(folder, packed, find_format("nf4"))
        small = stack.enter_context(open_draft(packed, PROMPT + given.tokens))
        total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        third = Machine(int(SHARE * total), 1e9)
        drafting = third.with_memory(third.device_bytes + small.plan.device_peak_bytes)
        plans = {
            "lookup": plan_speculation(folder, third, PROMPT, given.tokens),
            "draft": plan_speculation(
                folder, drafting, PROMPT, given.tokens, draft=small.plan
            ),
            # The same memory without a draft: more layers stay.
            "plain beside": plan_speculation(folder, drafting, PROMPT, given.tokens),
        }
        models = {
            name: stack.enter_context(StreamedModel(folder, made))
            for name, made in plans.items()
        }
        verifiers = {name: calibrate(models[name]) for name in ("lookup", "draft")}
        systems: dict[str, tuple[str, Callable[[], Draft] | None]] = {
            "plain": ("lookup", None),
            "lookup": ("lookup", PromptLookup),
            "draft": ("draft", lambda: ModelDraft(small)),
            "plain beside": ("plain beside", None),
        }  # the model of each, and who proposes
        for domain, prompts in DOMAINS.items():
            source = prompts(random.Random(given.seed))
            kept = 0
            while kept < given.prompts:
                kind, text = next(source)
                ids = tokenizer(text, return_tensors="pt").input_ids[:, -PROMPT:]
                names = list(systems)[: 4 if kept < given.drafted else 2]
                found = {}
                for name in names if kept % 2 else reversed(names):
                    model, propose = systems[name]
                    draft = None if propose is None else propose()
                    verifier = verifiers.get(name)
                    found[name] = run(models[model], ids, given.tokens, draft, verifier)
                written = found["plain"][0]
                if is_loop(written):
                    loops[domain] += 1
                    continue
                kept += 1
                rows.append(
                    {
                        "domain": domain,
                        "kind": kind,
                        "prompt_tokens": ids.shape[1],
                        "tokens": len(written),
                        "identical": all(
                            tokens == written for tokens, _ in found.values()
                        ),
                        "systems": {name: took for name, (_, took) in found.items()},
                    }
                )
                tell(f"{domain} {kept} {kind} {rows[-1]['systems']}")
        return {
            "model_bytes": plans["lookup"].spec.total_bytes,
            "device_bytes": third.device_bytes,
            "draft_bytes": small.plan.device_peak_bytes,
            "drafting_bytes": drafting.device_bytes,
            "new_tokens": given.tokens,
            "sizes": verifiers["lookup"].sizes,
            "fallbacks": verifiers["lookup"].fallbacks,
            "crossover_tokens": verifiers["lookup"].plan.crossover_tokens(),
            "loops": loops,
            "prompts": rows,
        }


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


def main(words: list[str] | None = None) -> None:
    """The command."""
    parser = command(__doc__, "speculate")
    add = parser.add_argument
    add("--prompts", type=int, default=50, help="of each domain")
    add("--tokens", type=int, default=32, help="of a continuation")
    add("--drafted", type=int, default=10, help="of them with a draft")
    add("--rounds", type=int, default=10, help="of the batches")
    add("--layers", type=int, default=4, help="of LLaMA-2-7B")
    add("--seed", type=int, default=0)
    given = parser.parse_args(words)
    record, folder = Record(given.out), smollm2.checkpoint()
    found = decode(folder, given)
    steps = {"smollm2": time_batches(folder, given.rounds)}
    if given.layers:
        with random_checkpoint("llama2-7b", given.layers) as large:
            steps[large.name] = time_batches(large, max(2, given.rounds // 3))
    record.write(**found, steps=steps)


if __name__ == "__main__":
    main()
