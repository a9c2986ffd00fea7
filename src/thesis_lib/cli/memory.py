"""Commands of Part II: plan, generate, compress, price."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from thesis_lib.cli.common import Json, command, console, option, progress_bars, show
from thesis_lib.common import units
from thesis_lib.common.errors import choice, require

Weights = Annotated[str, typer.Option(help="Format: bf16, nf4, int8, lossless.")]
RING_HELP = "Number of staging buffers. Default: the largest of 3, 2, 1 that fits."


@dataclass(frozen=True)
class Pass:
    """Options of the largest pass that a plan covers."""

    batch: int = option(1, "Sequences, including beams.")
    context: int | None = option(
        None, "Positions of a sequence (tokens). Default: 512, or the model's maximum."
    )
    pass_tokens: int = option(1, "Tokens of a sequence in one pass.")
    ring: int | None = option(None, RING_HELP)


@command
def plan(
    *,
    model: Annotated[
        str, typer.Argument(help="Folder, GGUF file, or name: smollm2, llama-65b, …")
    ],
    device_memory: str = option(..., "Budget on the device, such as 8GiB."),
    host_memory: str = option("0B", "Budget on the host, such as 32GiB."),
    weights: str | None = option(
        None, "Format of a named geometry: bf16 (default), nf4, int8, lossless."
    ),
    largest: Pass,
    as_json: Json = False,
) -> None:
    """Certify the peak memory of a streamed model and predict its speed."""
    from thesis_lib.memory.cost.planning import describe_plan
    from thesis_lib.memory.offload.plan import PlanInfeasible

    sizes = units.parse_size(device_memory), units.parse_size(host_memory)
    try:
        with console.status("planning"):
            result = describe_plan(model, *sizes, weights=weights, **asdict(largest))
    except PlanInfeasible as rejection:
        if as_json:
            show({"feasible": False, "reason": str(rejection)}, True, [])
        raise
    tiers = ", ".join(
        f"{n} layers on {tier}" for tier, n in result["tiers"].items() if n
    )
    if result["head_parts"]:
        tiers += f"; {result['head_parts']} of them are parts of the output head"
    low, high = (units.format_duration(s) for s in result["predicted_s_interval"])
    between = f" ({low} to {high})" if low != high else ""
    lines = [
        f"device peak {units.format_size(result['device_peak_bytes'])}, "
        f"host peak {units.format_size(result['host_peak_bytes'])}; {tiers}",
        f"predicted {units.format_duration(result['predicted_s_per_token'])} a token"
        f"{between}, bound by {result['limit']}",
        _rates(**result["rates"]),
    ]
    show(result, as_json, lines)


def _rates(disk: str, flops_per_s: float, spread: float = 0.0, **rates: Any) -> str:
    """Return the rates of a plan as text; `disk` names the source of the disk rate."""
    sizes = {
        "disk_bytes_per_s": f"{disk} of the disk",
        "decode_bytes_per_s": "decoded",
        "link_bytes_per_s": "over the link",
        "weight_bytes_per_s": "of weights computed with",
    }
    parts = [
        f"{units.format_size(rates[name])}/s {what}"
        for name, what in sizes.items()
        if name in rates
    ]
    within = f"; times within {spread:.0%}" if spread else ""
    return f"at {', '.join(parts)}, {flops_per_s / 1e9:,.0f} Gflop/s{within}"


@command
def doctor(
    device_memory: str | None = option(
        None, "Budget, such as 8GiB. Default: 3/4 of the free memory."
    ),
    as_json: Json = False,
) -> None:
    """Check this machine: which models stream here, and how fast."""
    from thesis_lib.memory.cost.planning import examine

    allowed = None if device_memory is None else units.parse_size(device_memory)
    with console.status("measuring"):
        result = examine(allowed)
    size, duration = units.format_size, units.format_duration
    lines = [
        f"{size(result['free_bytes'])} of memory free, {result['cores']} cores; "
        f"{size(result['disk_bytes_per_s'])}/s from the disk, "
        f"{size(result['weight_bytes_per_s'])}/s of weights computed with",
    ]
    for each in result["models"]:
        if each["feasible"]:
            low, high = map(duration, each["predicted_s_interval"])
            what = (
                f"{each['model']}, {size(each['model_bytes'])}: "
                f"{duration(each['predicted_s_per_token'])} a token ({low} to {high}), "
                f"bound by {each['limit']}; {each['command']}"
            )
        else:
            what = f"{each['model']}: {each['refusal'].rpartition('; ')[2]}"
        lines.append(what)
    show(result, as_json, lines)


@dataclass(frozen=True)
class Prompts:
    """Options of the texts to continue."""

    prompt: str | None = option(None, "Text to continue.")
    batch: Path | None = option(
        None, "File with one prompt per line; all share each pass."
    )
    max_new_tokens: int = option(32, "Tokens to generate.")

    def read(self) -> str | list[str]:
        """Return the prompt, or the prompts of the file."""
        from thesis_lib.memory.model.pretrained import read_text

        require(
            (self.prompt is None) != (self.batch is None),
            "expected one of --prompt and --batch. Give one.",
        )
        if self.batch is None:
            return self.prompt or ""
        return [line for line in read_text(self.batch).split("\n") if line.strip()]


@dataclass(frozen=True)
class Draws:
    """Options of sampling."""

    temperature: float | None = option(
        None, "Sampling temperature. Default: greedy decoding."
    )
    top_p: float = option(1.0, "Nucleus sampling: total probability to draw from.")
    seed: int = option(0, "Seed of the sampling.")


@dataclass(frozen=True)
class Style:
    """Options of the format and the end of a sequence."""

    chat: bool = option(False, "Apply the model's chat template.")
    stop: list[str] | None = option(None, "Stop sequence; repeatable.")


Checkpoint = Annotated[str, typer.Argument(help="Folder, GGUF file, or smollm2.")]


@dataclass(frozen=True)
class Budget:
    """Options of the memory and the device that a model streams through."""

    device_memory: str = option(..., "Budget on the device, such as 128MiB.")
    host_memory: str = option("0B", "Budget on the host, such as 32GiB.")
    ring: int | None = option(None, RING_HELP)
    device: str = option("cpu", "Device: cpu or cuda.")
    verify: bool = option(
        False,
        "Check the SHA-256 of every file first. Changes during the run are "
        "detected without it.",
    )


@dataclass(frozen=True)
class Proposals:
    """Options of speculative decoding."""

    speculate: bool = option(False, "Speculative decoding; same text.")
    draft: str | None = option(
        None, "Resident draft model. Default: look up n-grams in the text."
    )


@command
def generate(
    *,
    checkpoint: Checkpoint,
    budget: Budget,
    prompts: Prompts,
    draws: Draws,
    style: Style,
    proposals: Proposals,
    as_json: Json = False,
) -> None:
    """Continue a text with a model streamed within a memory budget."""
    from thesis_lib.memory.decode.generate import (
        GREEDY,
        Sampling,
        Streaming,
        generate_text,
    )
    from thesis_lib.memory.decode.speculative import speculate_text

    speculate, draft = proposals.speculate, proposals.draft
    require(
        speculate or draft is None,
        f"--draft {draft} needs --speculate. Add it.",
    )
    writing = Sampling(
        draws.temperature, draws.top_p, draws.seed, tuple(style.stop or ()), style.chat
    )
    require(
        not speculate or (writing == GREEDY and prompts.batch is None),
        "--speculate works with one greedy prompt. Leave out --batch, --chat, "
        "--temperature, --top-p, --seed and --stop.",
    )
    device_bytes = units.parse_size(budget.device_memory)
    host_bytes = units.parse_size(budget.host_memory)
    streaming = Streaming(host_bytes, budget.ring, budget.device, budget.verify)
    text, new = prompts.read(), prompts.max_new_tokens
    at_once = not (speculate or as_json or prompts.batch)
    with console.status("generating") as status:

        def tell(part: str) -> None:
            status.stop()
            typer.echo(part, nl=False)

        if isinstance(text, str) and speculate:
            result = speculate_text(
                checkpoint, device_bytes, text, new, draft, streaming
            )
        else:
            heard = tell if at_once else None
            result = generate_text(
                checkpoint, device_bytes, text, new, streaming, writing, heard
            )
    texts = [""] if at_once else result.get("texts") or [result["text"]]
    show(result, as_json, [*texts, *_spent(result, budget.device_memory)])


def _spent(result: dict[str, Any], device_memory: str) -> Iterator[str]:
    """Return the cost of the sequences as lines of text."""
    yield (
        f"{result['tokens']} tokens, {units.format_duration(result['s_per_token'])} "
        f"each; peak {units.format_size(result['device_peak_bytes'])} of "
        f"{device_memory}; read {units.format_size(result['bytes_read'])}"
    )
    if "passes" in result:
        yield (
            f"{result['passes']} passes, {result['accepted']} proposals accepted, "
            f"{result['tokens_per_pass']:.2f} tokens a pass, "
            f"{result['fallbacks']} kernels verify one token at a time"
        )


@command
def synth(
    geometry: Annotated[
        str, typer.Argument(metavar="GEOMETRY", help="Name, such as llama-65b.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    distinct_layers: int | None = option(
        None, "Stored layers; the others are hard links. Default: all."
    ),
    layers: int | None = option(None, "Number of layers. Default: all."),
    seed: int = option(0, "Seed of the weights."),
    weights: Weights = "bf16",
    as_json: Json = False,
) -> None:
    """Write random weights with the geometry of a real model."""
    from thesis_lib.memory.compress.random_weights import synthesize
    from thesis_lib.memory.formats.base import words

    known = words()
    bars, move = progress_bars(quiet=as_json, unit="layer", verb="wrote")
    with bars:
        result = synthesize(
            geometry,
            output,
            distinct_layers,
            layers,
            seed,
            known[choice("weights", weights, known)],
            lambda done, total: move(geometry, done, total),
        )
    lines = [
        f"{result['layers']} layers, {result['distinct_layers']} of them distinct: "
        f"{units.format_size(result['bytes'])} to read, "
        f"{units.format_size(result['distinct_bytes'])} on disk in {output}",
    ]
    show(result, as_json, lines)


@dataclass(frozen=True)
class Method:
    """Options of one method of compression."""

    weights: str | None = option(None, "Format: nf4, int8 or lossless.")
    rank_ratio: float | None = option(None, "Low rank: share of entries kept, 0 to 1.")
    bits: int | None = option(None, "Bits of a weight, 2 to 4.")
    correction_rank: int = option(0, "Rank of the low-rank correction, with bits.")
    group: int = option(64, "Inputs that share one scale, with bits.")
    calibration: Path | None = option(
        None, "Calibration text in UTF-8. Default: Persuasion."
    )


@command
def compress(
    *,
    checkpoint: Annotated[str, typer.Argument(help="Folder or smollm2.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    method: Method,
    tokens: int = option(4096, "Held-out tokens for the perplexity; 0 for none."),
    as_json: Json = False,
) -> None:
    """Compress a checkpoint and measure the loss of quality."""
    from thesis_lib.memory.compress.convert import (
        CompressionConfig,
        compress_checkpoint,
    )

    bars, move = progress_bars(quiet=as_json, unit="layer", verb="wrote")
    with bars:
        result = compress_checkpoint(
            checkpoint,
            output,
            CompressionConfig(**asdict(method)),
            tokens,
            progress=lambda done, total: move(str(output), done, total),
        )
    before, after = result["bytes_before"], result["bytes_after"]
    lines = [
        f"{units.format_size(before)} became {units.format_size(after)} "
        f"({after / before:.3f}) in {output}"
    ]
    lines += [
        f"perplexity on {result['tokens']} held-out tokens of {domain} "
        f"{each['perplexity_before']:.3f}, then {each['perplexity_after']:.3f}"
        for domain, each in result["domains"].items()
    ]
    show(result, as_json, lines)


@command
def convert(
    file: Annotated[str, typer.Argument(help="GGUF file, or smollm2.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    memory: str | None = option(None, "Memory limit, such as 512MiB. Default: none."),
    keep_blocks: bool = option(
        False, "Keep the quantised blocks of the layers' matrices."
    ),
    as_json: Json = False,
) -> None:
    """Convert a GGUF file of llama.cpp into a checkpoint that streams.

    With --keep-blocks, the layers stay quantised on disk and are dequantised for each
    product, to the same bits.
    """
    from thesis_lib.memory.formats.ggml import Blocks
    from thesis_lib.memory.model import gguf, smollm2

    allowed = None if memory is None else units.parse_size(memory)
    bars, move = progress_bars(quiet=as_json, unit="layer", verb="wrote")

    def tell(done: int, total: int) -> None:
        move(str(output), done, total)

    source = smollm2.source() if file == "smollm2" else Path(file)
    keep = Blocks if keep_blocks else None
    with bars:
        result = gguf.convert(source, output, allowed, tell, keep)
    types = ", ".join(f"{count} {kind}" for kind, count in result["types"].items())
    blocks_note = (
        f", {result['kept']} matrices in their blocks" if result["kept"] else ""
    )
    line = (
        f"{units.format_size(result['bytes_before'])} ({types}) became "
        f"{units.format_size(result['bytes_after'])} of {result['dtype']} in "
        f"{output}{blocks_note}; at most {units.format_size(result['peak_bytes'])} of "
        "weights at a time"
    )
    show(result, as_json, [line])


@dataclass(frozen=True)
class Machine:
    """Options of the machine for rent and of the rate at which it generates."""

    gpu: str = option("rtx-3090", "Rented card, an item of data/prices.csv.")
    tokens_per_s: float | None = option(None, "Measured rate (tokens/s).")
    between: tuple[float, float] | None = option(
        None, "Interval of that rate (tokens/s).", metavar="LOW HIGH"
    )
    model: str = option("llama-65b", "Geometry whose rate is predicted.")
    weights: Weights = "bf16"
    batch: int = option(1, "Sequences in one pass.")
    utilization: float = option(1.0, "Busy share of the paid hours, 0 to 1.")


@command
def cost(
    *,
    machine: Machine,
    price: list[str] | None = option(
        None, "Your own price (USD); repeatable.", metavar="ITEM=USD"
    ),
    as_json: Json = False,
) -> None:
    """Compare prices of a million tokens, rented and owned.

    Pass the rate with --tokens-per-s, or let the command predict it for the model.
    """
    from thesis_lib.memory.cost.prices import parse_override
    from thesis_lib.memory.cost.question import Question, summarize

    question = Question(**asdict(machine))
    with console.status("pricing"):
        result = summarize(question, parse_override(price or []))
    show(result, as_json, [*_priced(**result)])


def _priced(streamed_layers: int | None, **result: Any) -> Iterator[str]:
    """Return the prices as lines of text."""
    from thesis_lib.memory.cost.deployment import volume

    def dollars(name: str) -> str:
        if result[f"{name}_tokens"] is None:
            return "unavailable"
        interval = result[f"{name}_interval"]
        ends = "" if interval is None else " ({:,.2f} to {:,.2f})".format(*interval)
        return f"${result[f'{name}_tokens']:,.2f}{ends}"

    held = {None: "", 0: ", all layers resident"}.get(
        streamed_layers, f", {streamed_layers} layers streamed"
    )
    yield (
        f"{dollars('usd_per_million')} per million tokens on {result['gpu']}{held}, "
        f"rented at ${result['usd_per_hour']:.2f}/h ({result['price_status']}, "
        f"{result['price_date']}); {result['tokens_per_s']:.4g} tokens/s "
        f"{result['basis']}"
    )
    even = result["break_even_tokens"]
    if result["owned_usd_per_million_tokens"] is None:
        yield f"no rate is known for the machine to buy, {result['owned_item']}"
    else:
        pays = "never pays" if even is None else f"pays {volume(even)}"
        yield (
            f"{dollars('owned_usd_per_million')} on a bought {result['owned_item']} "
            f"with its host; owning {pays}"
        )
