"""Commands of Part II: plan, generate, compress, and what it costs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from thesis_lib.cli.common import Json, command, console, progress_bars, show
from thesis_lib.common import units
from thesis_lib.common.errors import choice, require


@command
def plan(
    model: Annotated[str, typer.Argument(help="Folder, smollm2 or llama-65b, …")],
    device_memory: Annotated[str, typer.Option(help="Such as 8GiB.")],
    host_memory: Annotated[str, typer.Option(help="Such as 32GiB.")] = "0B",
    weights: Annotated[
        str | None,
        typer.Option(
            help="Of a geometry: bf16 (so if not given), nf4, int8, lossless."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences, beams included.")] = 1,
    context: Annotated[int, typer.Option(help="Positions of a sequence.")] = 512,
    pass_tokens: Annotated[int, typer.Option(help="Tokens of a sequence a pass.")] = 1,
    ring: Annotated[int, typer.Option(help="Staging buffers.")] = 3,
    as_json: Json = False,
) -> None:
    """Certify the peak memory of a streamed model and predict its time, or refuse."""
    from thesis_lib.memory.cost.planning import describe_plan

    with console.status("planning"):
        result = describe_plan(
            model,
            units.parse_size(device_memory),
            units.parse_size(host_memory),
            batch,
            context,
            ring,
            pass_tokens,
            weights,
        )
    tiers = ", ".join(f"{n} layers on {tier}" for tier, n in result["tiers"].items())
    rates = ", ".join(f"{name} {value}" for name, value in result["rates"].items())
    low, high = (units.format_duration(s) for s in result["predicted_s_interval"])
    lines = [
        f"device peak {units.format_size(result['device_peak_bytes'])}, "
        f"host peak {units.format_size(result['host_peak_bytes'])}; {tiers}",
        f"predicted {units.format_duration(result['predicted_s_per_token'])} a token "
        f"({low} to {high}), bound by {result['limit']}; {rates}",
    ]
    show(result, as_json, lines)


@command
def generate(
    checkpoint: Annotated[str, typer.Argument(help="Folder or smollm2.")],
    device_memory: Annotated[str, typer.Option(help="Such as 128MiB.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 32,
    host_memory: Annotated[
        str, typer.Option(help="For layers beside the device, such as 32GiB.")
    ] = "0B",
    ring: Annotated[int, typer.Option(help="Staging buffers.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    verify: Annotated[
        bool,
        typer.Option(
            help="Read every file first and hold it against the SHA-256 of the "
            "checkpoint's manifest, for damage from before this run; a change during "
            "it is noticed without."
        ),
    ] = False,
    speculate: Annotated[
        bool, typer.Option(help="Verify several proposed tokens a pass; same text.")
    ] = False,
    draft: Annotated[
        str | None,
        typer.Option(help="Resident checkpoint that proposes; else the text itself."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Generate greedily from a model that streams through a memory budget."""
    from thesis_lib.memory.decode.generate import generate_text
    from thesis_lib.memory.decode.speculative import speculate_text

    require(
        speculate or draft is None,
        f"--draft {draft} proposes tokens that nobody verifies: add --speculate",
    )
    given: dict[str, Any] = {
        "checkpoint": checkpoint,
        "device_bytes": units.parse_size(device_memory),
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "ring": ring,
        "host_bytes": units.parse_size(host_memory),
        "device": device,
        "verify": verify,
    }
    with console.status("generating"):
        result = (
            speculate_text(**given, draft=draft)
            if speculate
            else generate_text(**given)
        )
    lines = [
        result["text"],
        f"{result['tokens']} tokens, {units.format_duration(result['s_per_token'])} "
        f"each; peak {units.format_size(result['device_peak_bytes'])} of "
        f"{device_memory}; read {units.format_size(result['bytes_read'])}",
    ]
    if speculate:
        lines.append(
            f"{result['passes']} passes, {result['accepted']} proposals accepted, "
            f"{result['tokens_per_pass']:.2f} tokens a pass, "
            f"{result['fallbacks']} kernels verify one token at a time"
        )
    show(result, as_json, lines)


@command
def synth(
    geometry: Annotated[
        str, typer.Argument(metavar="GEOMETRY", help="Such as llama-65b.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    distinct_layers: Annotated[
        int | None,
        typer.Option(help="Layers stored; others are hard links. Default: all."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Depth. Default: that of the geometry.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
    weights: Annotated[str, typer.Option(help="bf16, nf4, int8 or lossless.")] = "bf16",
    as_json: Json = False,
) -> None:
    """Write a seeded random checkpoint of a true geometry, to measure systems with."""
    from thesis_lib.memory.compress.random_weights import synthesise
    from thesis_lib.memory.formats.base import words

    known = words()
    bars, move = progress_bars(quiet=as_json, unit="layer", verb="wrote")
    with bars:
        result = synthesise(
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


@command
def compress(
    checkpoint: Annotated[str, typer.Argument(help="Folder or smollm2.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    weights: Annotated[str | None, typer.Option(help="nf4, int8 or lossless.")] = None,
    rank_ratio: Annotated[
        float | None, typer.Option(help="Share of entries kept in factors, 0 to 1.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Of a weight, 2 to 4.")] = None,
    correction_rank: Annotated[
        int, typer.Option(help="Of the factors beside each matrix of few bits.")
    ] = 0,
    group: Annotated[
        int, typer.Option(help="Inputs that share a scale, with bits.")
    ] = 64,
    calibration: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text, with rank ratio or bits. Default: Persuasion."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Held-out tokens that perplexities are of; 0 for none.")
    ] = 4096,
    as_json: Json = False,
) -> None:
    """Write a smaller checkpoint that streams, and measure what it costs in quality."""
    from thesis_lib.memory.compress.convert import compress_checkpoint

    bars, move = progress_bars(quiet=as_json, unit="layer", verb="wrote")
    with bars:
        result = compress_checkpoint(
            checkpoint,
            output,
            weights,
            tokens,
            progress=lambda done, total: move(str(output), done, total),
            rank_ratio=rank_ratio,
            bits=bits,
            correction_rank=correction_rank,
            group=group,
            calibration=calibration,
        )
    before, after = result["bytes_before"], result["bytes_after"]
    lines = [
        f"{units.format_size(before)} became {units.format_size(after)} "
        f"({after / before:.3f}) in {output}"
    ]
    lines += [
        f"perplexity on {result['tokens']} held-out tokens of {domain} "
        f"{found['perplexity_before']:.3f}, then {found['perplexity_after']:.3f}"
        for domain, found in result["domains"].items()
    ]
    show(result, as_json, lines)


@command
def cost(
    gpu: Annotated[
        str, typer.Option(help="An item of data/prices.csv, paid by the hour.")
    ] = "rtx-3090",
    tokens_per_s: Annotated[
        float | None, typer.Option(help="Generated tokens a second.")
    ] = None,
    between: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Interval of that rate."),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(help="Take the rate of a run, such as headline:bf16-8192MiB."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Geometry, where the rate is to be predicted.")
    ] = "llama-65b",
    weights: Annotated[str, typer.Option(help="bf16, nf4 or int8.")] = "bf16",
    batch: Annotated[int, typer.Option(help="Sequences.")] = 1,
    cards: Annotated[
        int, typer.Option(help="Of the item, side by side: two h100 hold llama-65b.")
    ] = 1,
    utilisation: Annotated[
        float, typer.Option(help="Busy share of the hours paid for.")
    ] = 1.0,
    price: Annotated[
        list[str] | None,
        typer.Option(metavar="ITEM=USD", help="A price of your own; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Cost of a million tokens, rented and owned, and where they break even.

    The rate is given, taken from a record, or else predicted for MODEL on the card.
    """
    from thesis_lib.memory.cost.deployment import Question, summarise
    from thesis_lib.memory.cost.prices import parse_override

    asked = Question(
        gpu=gpu,
        cards=cards,
        tokens_per_s=tokens_per_s,
        between=between,
        record=record,
        model=model,
        weights=weights,
        batch=batch,
        utilisation=utilisation,
    )
    with console.status("pricing"):
        result = summarise(asked, parse_override(price or []))

    def dollars(name: str) -> str:
        if result[f"{name}_tokens"] is None:
            return "not to be had"
        interval = result[f"{name}_interval"]
        ends = "" if interval is None else " ({:,.2f} to {:,.2f})".format(*interval)
        return f"${result[f'{name}_tokens']:,.2f}{ends}"

    even, streamed = result["break_even_tokens"], result["streamed_layers"]
    held = {None: "", 0: ", all layers resident"}.get(
        streamed, f", {streamed} layers streamed"
    )
    lines = [
        f"{dollars('usd_per_million')} per million tokens on {cards} × {gpu}{held}, "
        f"rented at ${result['usd_per_hour']:.2f}/h ({result['price_status']}, "
        f"{result['price_date']}); {result['tokens_per_s']:.4g} tokens/s "
        f"{result['basis']}"
    ]
    if result["owned_usd_per_million_tokens"] is None:
        lines.append(f"no rate is known for the machine to buy, {result['owned_item']}")
    else:
        pays = "never pays" if even is None else f"pays from {even:.3g} tokens a month"
        lines.append(
            f"{dollars('owned_usd_per_million')} on a bought {result['owned_item']} "
            f"with its host; owning {pays}"
        )
    show(result, as_json, lines)
