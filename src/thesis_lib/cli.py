"""The command `thesis`: one sentence and a non-zero status for every failure."""

import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from thesis_lib import units
from thesis_lib.checks import InvalidInput, Lost, choice, require
from thesis_lib.files import write_whole

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A thesis that runs: re-execute its chapters, use its two halves.",
)
console = Console(stderr=True)

POLICY_HELP = (
    "fifo, drop, reorder, hybrid (or drop-fixed, …), queue-cap, codel, edf, sjf, "
    "late-edf, late-sjf, least-slack, ours, …"
)
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else.")
]


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register `function` as a command whose refusals are one sentence."""

    @functools.wraps(function)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except InvalidInput as error:
            typer.echo(f"thesis: {error}", err=True)
            raise typer.Exit(2) from None
        except Lost as error:
            typer.echo(f"thesis: {error}", err=True)
            raise typer.Exit(1) from None

    return app.command()(guarded)


def strict_json(result: Any) -> str:
    """`result` as JSON, which knows no NaN and no infinity: null stands for either."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        finite = not isinstance(value, float) or math.isfinite(value)
        return value if finite else None

    return json.dumps(plain(result), allow_nan=False)


def show(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    """Print `result` as JSON, or `lines` for people."""
    typer.echo(strict_json(result) if as_json else "\n".join(lines))


def progress_bars(
    quiet: bool, unit: str = "cell", verb: str = "executed"
) -> tuple[Progress, Callable[[str, int, int], None]]:
    """Bars on standard error, one for each name, and the function to move them."""
    bars = Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TextColumn(unit + " {task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=console,
        disable=quiet,
    )
    tasks: dict[str, Any] = {}

    def move(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total)
        bars.update(tasks[name], completed=done)
        # A log has no bar to redraw: say each one's end there.
        if not quiet and not console.is_terminal and done == total:
            typer.echo(f"{verb} {name}", err=True)

    return bars, move


def sweep_bar(
    name: str, total: int, quiet: bool
) -> tuple[Progress, Callable[[int, int, int, int], None]]:
    """One bar on standard error for the points of a sweep, and what moves it."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "{task.fields[done]} done, {task.fields[failed]} failed, "
            "{task.fields[running]} running of {task.total:.0f}"
        ),
        TimeElapsedColumn(),
        console=console,
        disable=quiet,
    )
    task = bars.add_task(name, total=total, done=0, failed=0, running=0)
    said = [0]

    def move(done: int, failed: int, running: int, total: int) -> None:
        bars.update(
            task, completed=done + failed, total=total,
            done=done, failed=failed, running=running,
        )  # fmt: skip
        # A log has no bar to redraw: ten lines of it are enough.
        come = 10 * (done + failed) // total
        if not quiet and not console.is_terminal and come != said[0]:
            said[0] = come
            typer.echo(f"{name}: {done} done, {failed} failed of {total}", err=True)

    return bars, move


@command
def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CHAPTER]…", help="Numbers or names; all by default."),
    ] = None,
    profile: Annotated[str, typer.Option(help="smoke, default or full.")] = "default",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help="Set a parameter; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of results. Default: build/chapters/PROFILE."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Execute fresh ones too: to measure without disturbance."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Re-execute chapters with papermill; skip those whose result is fresh."""
    from thesis_lib import chapters, present
    from thesis_lib import compare as compare_
    from thesis_lib.claims import read_claims

    overrides = dict(chapters.assignment(text) for text in parameter or [])
    chosen = chapters.select(names or [])
    folder = output or chapters.repository() / "build" / "chapters" / profile
    clock = time.perf_counter()
    bars, move = progress_bars(quiet=as_json)

    def waiting(name: str) -> None:
        typer.echo(f"waiting for another run of {name} in {folder}", err=True)

    with bars:
        outcome = chapters.run(chosen, profile, overrides, folder, move, waiting, again)
    seconds = time.perf_counter() - clock
    made = compare_.Run("this run", tuple(record for record, _ in outcome))
    compared = compare_.compare([made], read_claims().claims, compare_.read_reference())
    doubted = compare_.doubts(compared, made)
    show(
        {
            "chapters": [
                {"chapter": r.chapter, "executed": executed, "seconds": r.seconds}
                for r, executed in outcome
            ],
            "profile": profile,
            "seconds": round(seconds, 1),
            "output": str(folder),
            "not_to_be_believed": doubted,
        },
        as_json,
        [
            f"{r.chapter:<32} {f'executed in {r.seconds:.0f} s' if new else 'fresh'}"
            for r, new in outcome
        ]
        + [f"results in {folder}", *present.doubt_lines(doubted)],
    )


@command
def sweep(
    chapter: Annotated[str, typer.Argument(help="Number or name.")],
    grid: Annotated[
        Path,
        typer.Argument(
            metavar="GRID.yml",
            help="profile:, grid: {PARAMETER: [VALUE, …]}, and seeds: [1, 2] or how "
            "many to spawn from seed:.",
        ),
    ],
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine. Default: its cores.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask cluster: tcp://HOST:8786.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of results. Default: build/sweeps/CHAPTER-GRID."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Keep the points that the folder holds."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Execute a chapter at every point of a grid, on local processes or a cluster."""
    from thesis_lib import chapters
    from thesis_lib import sweep as sweep_

    (chosen,) = chapters.select([chapter])
    points = sweep_.read_grid(grid, chosen)
    folder = output or (
        chapters.repository() / "build" / "sweeps" / f"{chosen.name}-{grid.stem}"
    )
    bars, move = sweep_bar(chosen.name, len(points.points), quiet=as_json)
    with bars:
        done = sweep_.run(
            points,
            folder,
            workers,
            scheduler,
            resume,
            move,
            on_wait=lambda sentence: typer.echo(sentence, err=True),
        )
    show(
        {
            "runs": len(points.points),
            "done": len(done.records),
            "failed": len(done.failures),
            "executed": done.executed,
            "output": str(folder),
        },
        as_json,
        [
            f"{len(done.records)} of {len(points.points)} points done, {done.executed} "
            "executed now",
            f"results in {folder / 'results.parquet'}, {folder / 'summary.html'}",
        ],
    )
    if done.failures:
        first = done.failures[0]
        raise InvalidInput(
            f"{len(done.failures)} of {len(points.points)} points failed, first "
            f"{first.point.name} on {first.host} "
            f"({sweep_.culprits(done)[first.point.name]}): {first.sentence}; "
            f"notebooks and tracebacks of all are in {folder / 'points'}"
        )


@command
def book(
    profile: Annotated[str, typer.Option(help="smoke, default or full.")] = "default",
    as_json: Json = False,
) -> None:
    """Render the executed chapters of a profile as the book, warnings as errors."""
    from thesis_lib import book as book_
    from thesis_lib import chapters

    build = chapters.repository() / "build"

    def waiting() -> None:
        typer.echo("waiting for another rendering of the same book", err=True)

    with console.status("rendering the book"):
        index, built = book_.render(
            build / "chapters" / profile, build / "book" / profile, waiting
        )
    state = "rendered" if built else "up to date"
    show(
        {"index": str(index), "built": built},
        as_json,
        [f"The book is {state}. Open it in a browser:", f"  {index.as_uri()}"],
    )


@command
def outputs(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CHAPTER]…", help="Numbers or names; all by default."),
    ] = None,
) -> None:
    """Execute notebooks at their smoke values and store what nbval compares."""
    from thesis_lib import chapters

    scratch = chapters.repository() / "build" / "outputs"
    bars, move = progress_bars(quiet=False)
    with bars:
        chapters.store_outputs(chapters.select(names or []), scratch, move)


@command
def claims(
    profile: Annotated[str, typer.Option(help="smoke, default or full.")] = "default",
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Make this run the reference of the claims and the book."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold an executed profile against the claims, or make it their reference."""
    from thesis_lib import chapters, present
    from thesis_lib import claims as claims_
    from thesis_lib import compare as compare_

    checkout = chapters.repository()
    records = chapters.read_records(checkout / "build" / "chapters" / profile)
    numbers = {k: v for record in records for k, v in record.numbers.items()}
    if update:
        timed = {key for key, c in claims_.read_claims().claims.items() if c.follows}
        for record in records:
            lost = timed.intersection(str(record.numbers.get("disturbed", "")).split())
            require(
                not lost,
                f"{', '.join(sorted(lost))} of {record.chapter} cannot become "
                f"references: {record.numbers.get('disturbed_by')}; measure again when "
                f"nothing else runs, with `thesis run {record.chapter} --again`",
            )
        changed = claims_.store_references(
            numbers, profile, checkout / "data" / claims_.FILE
        )
        folder = checkout / "data" / "reference" / profile
        folder.mkdir(parents=True, exist_ok=True)
        for record in records:
            record.write(folder / f"{record.chapter}.json")
        if profile == "default":  # the profile of the published book
            page = checkout / "README.md"
            known, reference = claims_.read_claims().claims, compare_.read_reference()
            page.write_text(present.readme(page.read_text(), known, reference, profile))
        show(
            {"changed": changed, "reference": str(folder)},
            as_json,
            [f"{changed} references changed; the run is kept in {folder}"],
        )
        return
    known = claims_.read_claims().claims
    verdicts = {
        key: claims_.judge(claim, numbers.get(key), claim.reference.get(profile))
        for key, claim in known.items()
    }
    show(
        {"claims": {k: {"word": v.word, "good": v.good} for k, v in verdicts.items()}},
        as_json,
        [f"{key:<44} {v.word:<18} {v.text}" for key, v in verdicts.items()],
    )
    wrong = [key for key, verdict in verdicts.items() if not verdict.good]
    if wrong:
        raise InvalidInput(f"{len(wrong)} claims do not hold: {', '.join(wrong)}")


@command
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…",
            help="Folders that `thesis run` wrote, or the word `reference`.",
        ),
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write one HTML page.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="End with status 1 if an exact claim differs or a tolerance is "
            "exceeded.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Put runs of different machines side by side, claim by claim.

    One RUN is held against the committed reference of its profile. Of several, the
    first is what the others are held against.
    """
    from thesis_lib import compare as compare_
    from thesis_lib import present
    from thesis_lib.claims import read_claims

    compared = compare_.compare_named(runs, read_claims().claims)
    if html is not None:
        try:
            write_whole(html, present.html_page(compared))
        except OSError as error:
            raise InvalidInput(
                f"{html} cannot be written: {error.strerror}; name a file in a folder "
                "that exists and that you may write to"
            ) from error
    if as_json:
        typer.echo(strict_json(compared.to_json()))
    elif sys.stdout.isatty():
        present.draw(compared, Console())
    else:
        typer.echo("\n".join(present.plain(compared)))
    if strict and not compared.any_held:
        raise InvalidInput(
            "--strict found no claim that could be held: expected a run with the "
            "parameters of its reference; see the verdicts above"
        )
    if strict and compared.broken:
        raise typer.Exit(1)


def size(text: str) -> int:
    """Bytes of an option such as 8GiB."""
    return units.parse_size(text)


Engine = Annotated[str, typer.Option(help="sqlite or postgresql.")]
Dsn = Annotated[
    str | None,
    typer.Option(help="PostgreSQL server. Default: a temporary one of this machine."),
]
Workload = Annotated[str, typer.Option(help="tpcc or ycsb.")]
Mix = Annotated[
    str | None,
    typer.Option(help="tpcc: spec, new-order/payment; ycsb: A, B, C, F."),
]
Zipf = Annotated[float | None, typer.Option(help="Skew of ycsb. Default: 0.99.")]
Partitions = Annotated[int, typer.Option(help="Warehouses or partitions, a file each.")]
Processes = Annotated[int, typer.Option(help="Worker processes.")]


@command
def collect(
    output: Annotated[Path, typer.Argument(metavar="OUT.parquet")],
    engine: Engine = "sqlite",
    dsn: Dsn = None,
    transactions: Annotated[int, typer.Option(help="Length of the log.")] = 20_000,
    workers: Processes = 2,
    workload: Workload = "tpcc",
    mix: Mix = None,
    zipf: Zipf = None,
    warehouses: Partitions = 2,
    replays: Annotated[int, typer.Option(help="Runs of the same log.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of data and log.")] = 0,
    as_json: Json = False,
) -> None:
    """Run a workload on the real deterministic engine and write a trace."""
    from thesis_lib.sequencer import engine as engine_

    if not output.parent.is_dir():
        raise InvalidInput(f"folder {output.parent} does not exist: create it first")
    require(not output.is_dir(), f"{output} is a folder: name a file")
    clock = time.perf_counter()
    with console.status(f"running {workload}"):
        log = engine_.make_log(
            workload, transactions, seed, warehouses=warehouses, mix=mix, zipf=zipf
        )
        trace = engine_.collect(
            engine, workers=workers, replays=replays, log=log, dsn=dsn
        )
    try:
        trace.write(output)
    except OSError as error:
        raise Lost(
            f"the trace cannot be written to {output}: {error.strerror}; make room or "
            "name another file, and collect it again"
        ) from error
    result = {
        "transactions": len(trace),
        "digest": trace.meta["digest"],
        "seconds": round(time.perf_counter() - clock, 1),
        "output": str(output),
    }
    show(
        result,
        as_json,
        [f"{len(trace)} transactions in {output}", f"state {trace.meta['digest']}"],
    )


@command
def serve(
    policy: Annotated[str, typer.Option(help=POLICY_HELP)],
    load: Annotated[
        float, typer.Option(help="Share of FIFO's measured saturation rate.")
    ],
    seconds: Annotated[float, typer.Option(help="Under each of policy and FIFO.")],
    engine: Engine = "sqlite",
    dsn: Dsn = None,
    estimator: Annotated[
        str, typer.Option(help="constant, sum-max, linear, boosted.")
    ] = "boosted",
    rounds: Annotated[int, typer.Option(help="Pairs of runs that share them.")] = 5,
    workers: Processes = 2,
    deadline: Annotated[
        str | None,
        typer.Option(
            help="Service level objective, such as 12.5ms. Default: twice the 95th "
            "percentile of the service time."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Transactions that close a batch.")] = 10,
    flush: Annotated[str, typer.Option(help="Time that closes a batch.")] = "1ms",
    workload: Workload = "tpcc",
    mix: Mix = None,
    zipf: Zipf = None,
    warehouses: Partitions = 2,
    seed: Annotated[int, typer.Option(help="Seed of data, log and arrivals.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure a policy live, in front of the real engine, against FIFO.

    Load 1 is the saturation of FIFO on this engine, measured first by a closed loop.
    """
    from thesis_lib.machine import disturbances
    from thesis_lib.sequencer.serve import serve as serve_

    with console.status(f"serving {workload}"):
        result = serve_(
            engine=engine, dsn=dsn, policy=policy, estimator=estimator, load=load,
            seconds=seconds, rounds=rounds, workers=workers,
            slo_s=None if deadline is None else units.parse_duration(deadline),
            seed=seed, workload=workload, mix=mix, zipf=zipf, warehouses=warehouses,
            batch_size=batch, flush_s=units.parse_duration(flush),
        )  # fmt: skip
    low, high = result["reduction_ci"]
    lines = [
        f"violations {result['violations']:.2%} (FIFO {result['fifo_violations']:.2%},"
        f" lower bound {result['lower_bound']:.2%})",
        f"reduction   {result['reduction']:.1%}  [{low:.1%}, {high:.1%}]",
        f"late {result['late']:.2%}, dropped {result['dropped']:.2%}, "
        f"goodput {result['goodput_per_s']:.0f}/s of {result['rate_per_s']:.0f}/s; "
        f"saturation {result['saturation_per_s']:.0f}/s, objective "
        f"{units.format_duration(result['slo_s'])}",
    ]
    result["disturbed"] = list(disturbances())
    lines += [f"not to be believed: {why}" for why in result["disturbed"]]
    show(result, as_json, lines)


@command
def simulate(
    policy: Annotated[str, typer.Option(help=POLICY_HELP)],
    load: Annotated[
        float | None,
        typer.Option(
            help="Share of FIFO's saturation rate. Of a trace, stretches its arrivals; "
            "without, they stay as they are."
        ),
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="A, B or C.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A trace, replayed with its own arrivals.")
    ] = None,
    estimator: Annotated[
        str,
        typer.Option(
            help="noisy, boosted, …; of a trace, a learned one is fitted on the first "
            "half and the rest is replayed."
        ),
    ] = "noisy",
    noise: Annotated[float, typer.Option(help="Sigma of `noisy`.")] = 0.2,
    bias: Annotated[float, typer.Option(help="Multiplies every estimate.")] = 1.0,
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 5,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    transactions: Annotated[
        int | None,
        typer.Option(help="For each seed. Default: 20,000; of a trace, all of them."),
    ] = None,
    warehouses: Annotated[int | None, typer.Option(help="Of the scenario.")] = None,
    cores: Annotated[int | None, typer.Option(help="Of the scenario.")] = None,
    deadline: Annotated[
        str | None, typer.Option(help="Service level objective, such as 12.5ms.")
    ] = None,
    lag: Annotated[str, typer.Option(help="Decision to dispatch, as 0.5ms.")] = "0s",
    sequencing: Annotated[
        str, typer.Option(help="The sequencer's work on a transaction, as 5us.")
    ] = "0s",
    overhead: Annotated[
        str, typer.Option(help="On a worker beside each service, as 20us.")
    ] = "0s",
    batch: Annotated[int, typer.Option(help="Transactions that fill a batch.")] = 10,
    flush: Annotated[
        str | None, typer.Option(help="Timer of a batch, such as 1ms; else none.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(help="Of a closed loop; else the loop is open.")
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option(help="Of ours: violations of a type above another's, as a share."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Simulate one cell of the evaluation: a policy at a load, against FIFO."""
    from thesis_lib.sequencer.kernel import Delays
    from thesis_lib.sequencer.report import simulate_cell

    with console.status("simulating"):
        result = simulate_cell(
            scenario=scenario,
            trace=trace,
            load=load,
            policy=policy,
            estimator=estimator,
            noise=noise,
            bias=bias,
            seeds=seeds,
            seed=seed,
            transactions=transactions,
            warehouses=warehouses,
            cores=cores,
            slo_s=None if deadline is None else units.parse_duration(deadline),
            delays=Delays(
                units.parse_duration(lag),
                units.parse_duration(sequencing),
                units.parse_duration(overhead),
            ),
            batch_size=batch,
            flush_s=math.inf if flush is None else units.parse_duration(flush),
            clients=clients,
            gap=math.inf if gap is None else gap,
        )
    ends, bound = result["reduction_ci"], result["lower_bound"]
    learned = f", fitted on {result['fitted_on']} others" * (result["fitted_on"] > 0)
    lines = [
        f"violations {result['violations']:.2%} (FIFO {result['fifo_violations']:.2%}"
        + (")" if bound is None else f", lower bound {bound:.2%})"),
        f"reduction   {result['reduction']:.1%}"
        + ("" if ends is None else "  [{:.1%}, {:.1%}]".format(*ends)),
        f"load {result['load']:.3g} of {result['saturation_per_s']:.0f}/s, arrivals: "
        f"{result['arrivals']}; {result['transactions']} transactions, estimator "
        f"{estimator}{learned}",
        f"late {result['late']:.2%}, dropped {result['dropped']:.2%}, "
        f"goodput {result['goodput_per_s']:.0f}/s, "
        f"throughput {result['throughput_per_s']:.0f}/s",
    ]
    show(result, as_json, lines)


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
    from thesis_lib.memory.plan import WEIGHTS
    from thesis_lib.memory.rates import describe_plan

    with console.status("planning"):
        result = describe_plan(
            model,
            size(device_memory),
            size(host_memory),
            batch,
            context,
            ring,
            pass_tokens,
            None if weights is None else WEIGHTS[choice("weights", weights, WEIGHTS)],
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
    from thesis_lib.memory.speculate import speculate_text
    from thesis_lib.memory.stream import generate_text

    require(
        speculate or draft is None,
        f"--draft {draft} proposes tokens that nobody verifies: add --speculate",
    )
    given: dict[str, Any] = {
        "checkpoint": checkpoint,
        "device_bytes": size(device_memory),
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "ring": ring,
        "host_bytes": size(host_memory),
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
    from thesis_lib.memory.synth import WEIGHTS, synthesise

    bars, move = progress_bars(quiet=as_json, unit="layer", verb="wrote")
    with bars:
        result = synthesise(
            geometry,
            output,
            distinct_layers,
            layers,
            seed,
            WEIGHTS[choice("weights", weights, WEIGHTS)],
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
    from thesis_lib.memory.compress import compress as compress_

    bars, move = progress_bars(quiet=as_json, unit="layer", verb="wrote")
    with bars:
        result = compress_(
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
    from thesis_lib.memory.deployment import summarise
    from thesis_lib.memory.prices import parse_override

    with console.status("pricing"):
        result = summarise(
            gpu,
            tokens_per_s,
            between,
            record,
            model,
            weights,
            batch,
            utilisation=utilisation,
            override=parse_override(price or []),
            cards=cards,
        )

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


def main() -> None:
    """Entry point: quiet libraries, no hub, no surprise in the terminal."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(app())


if __name__ == "__main__":
    main()
