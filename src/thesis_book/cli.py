"""Commands that execute, compare and render the book."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from thesis_lib.cli.common import (
    Json,
    command,
    console,
    option,
    progress_bars,
    show,
    strict_json,
)
from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import write_whole

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CHAPTER]…", help="Numbers or names. Default: all."),
]
Profile = Annotated[str, typer.Option(help="Profile: smoke, default or full.")]


@command
def run(
    names: Names = None,
    profile: Profile = "default",
    parameter: list[str] | None = option(
        None, "Parameter of the chapters; repeatable.", "-p", metavar="NAME=VALUE"
    ),
    output: Path | None = option(
        None, "Results folder. Default: build/chapters/PROFILE."
    ),
    again: bool = option(
        False, "Execute chapters even if their results are up to date.", "--again"
    ),
    workers: int = option(2, "Chapters executed in parallel."),
    as_json: Json = False,
) -> None:
    """Execute chapters with papermill; skip those that are up to date."""
    from thesis_book.execute import chapters
    from thesis_book.execute.parameters import assignments

    overrides = assignments(parameter or [])
    chosen = chapters.select(names or [])
    folder = output or chapters.repository() / "build" / "chapters" / profile
    clock = time.perf_counter()
    bars, move = progress_bars(quiet=as_json)

    def on_wait(name: str) -> None:
        typer.echo(f"waiting for another run of {name} in {folder}", err=True)

    with bars:
        outcome = chapters.run(
            chosen, profile, overrides, folder, move, on_wait, again, workers
        )
    seconds = time.perf_counter() - clock
    # Imported here, so that a wrong parameter is reported without waiting for them.
    from thesis_book.compare import comparison as compare_
    from thesis_book.compare import present
    from thesis_book.execute.claims import read_claims

    run_ = compare_.Run("this run", tuple(record for record, _ in outcome))
    compared = compare_.compare([run_], read_claims().claims, compare_.read_reference())
    doubted = compare_.doubts(compared, run_)
    doubts = present.doubts_section(doubted)
    warning = [f"{doubts.heading}: {doubts.text}", *(f"  {n}" for n in doubts.notes)]
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
        + [f"results in {folder}", *(warning if doubted else [])],
    )


@command
def sweep(
    chapter: Annotated[str, typer.Argument(help="Number or name.")],
    grid: Annotated[
        Path,
        typer.Argument(
            metavar="GRID.yml",
            help="Keys profile, grid: {PARAMETER: [VALUE, …]}, and seeds: a list "
            "or a number.",
        ),
    ],
    workers: int | None = option(None, "Local worker processes. Default: all cores."),
    scheduler: str | None = option(None, "Dask cluster, as tcp://HOST:8786."),
    output: Path | None = option(
        None, "Results folder. Default: build/sweeps/CHAPTER-GRID."
    ),
    resume: bool = option(
        True, "Skip points with a stored result.", "--resume/--no-resume"
    ),
    as_json: Json = False,
) -> None:
    """Execute a chapter at every point of a parameter grid."""
    from thesis_book.execute import chapters
    from thesis_book.execute import sweep as sweep_

    (chosen,) = chapters.select([chapter])
    points = sweep_.read_grid(grid, chosen)
    sweeps = chapters.repository() / "build" / "sweeps"
    folder = output or sweeps / f"{chosen.name}-{grid.stem}"
    bars, move = progress_bars(quiet=as_json, unit="point", verb="swept")
    with bars:
        results, executed = sweep_.run(
            points,
            folder,
            workers,
            scheduler,
            resume,
            lambda ended, total: move(chosen.name, ended, total),
            on_wait=lambda sentence: typer.echo(sentence, err=True),
        )
    failed = results[results["status"] == "failed"]
    counts = {
        "runs": len(results),
        "done": len(results) - len(failed),
        "failed": len(failed),
        "executed": executed,
    }
    lines = [
        "{done} of {runs} points done, {executed} executed now".format(**counts),
        f"results in {folder / 'results.parquet'}, {folder / 'summary.html'}",
    ]
    show(counts | {"output": str(folder)}, as_json, lines)
    if counts["failed"]:
        sentences = failed["point"] + ": " + failed["error"]
        raise InvalidInput(
            "{failed} of {runs} points failed. Their notebooks are in ".format(**counts)
            + "\n  ".join([f"{folder / 'points'}:", *sentences])
        )


@command
def book(
    profile: Profile = "default",
    pdf: bool = option(False, "Fail if no browser can print the PDF.", "--pdf"),
    as_json: Json = False,
) -> None:
    """Render the executed chapters as the book; warnings are errors.

    If Chromium is installed, it also prints the book as a PDF.
    """
    from thesis_book.execute import chapters
    from thesis_book.render import build as book_
    from thesis_book.render import offers

    choice("profile", profile, chapters.PROFILES)
    offers.require_browser(pdf)
    build = chapters.repository() / "build"
    waiting = "waiting for another rendering of the same book"
    with console.status("rendering the book"):
        index, built = book_.render(
            build / "chapters" / profile,
            build / "book" / profile,
            on_wait=lambda: typer.echo(waiting, err=True),
        )
    state = "rendered" if built else "up to date"
    files = [path for path in [index.with_name(offers.PDF)] if path.is_file()]
    show(
        {"index": str(index), "built": built, "made": [str(path) for path in files]},
        as_json,
        [
            f"The book is {state}. Open it in a browser:",
            *(f"  {path.as_uri()}" for path in [index, *files]),
        ],
    )


@command
def outputs(
    names: Names = None,
) -> None:
    """Execute notebooks with smoke parameters; store the outputs."""
    from thesis_book.execute import chapters

    scratch = chapters.repository() / "build" / "outputs"
    bars, move = progress_bars(quiet=False)
    with bars:
        chapters.store_outputs(chapters.select(names or []), scratch, move)


@command
def claims(
    profile: Profile = "default",
    update: bool = option(
        False, "Store this run as the reference of the claims.", "--update"
    ),
    as_json: Json = False,
) -> None:
    """Check claims against an executed profile, or update them."""
    from thesis_book.compare import comparison as compare_
    from thesis_book.compare import present
    from thesis_book.execute import chapters
    from thesis_book.execute import claims as claims_
    from thesis_book.render import staging

    checkout = chapters.repository()
    executed = checkout / "build" / "chapters" / profile
    records = chapters.read_records(executed)
    if update:
        folder = checkout / "data" / claims_.REFERENCE / profile
        changed = claims_.store_references(records, profile, checkout / "data")
        if profile == "default":  # the profile of the published book
            page = checkout / "README.md"
            known, reference = claims_.read_claims().claims, compare_.read_reference()
            page.write_text(present.readme(page.read_text(), known, reference, profile))
            (shown,) = (r for r in records if r.number == present.PICTURE_OF)
            staging.write_picture(executed, shown, present.PICTURE, folder)
        show(
            {"changed": changed, "reference": str(folder)},
            as_json,
            [f"{changed} references changed; the run is stored in {folder}"],
        )
        return
    known = claims_.read_claims().claims
    numbers = {(r.number, key): v for r in records for key, v in r.numbers.items()}
    verdicts = {
        key: claims_.judge(
            claim, numbers.get((claim.chapter, key)), claim.reference.get(profile)
        )
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
def audit(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="Results folder of `thesis run`.")
    ] = "reference",
    profile: Profile = "default",
    as_json: Json = False,
) -> None:
    """Report claims with too little evidence; --json lists it.

    Without RUN, audit the committed reference. The exit status is 2 if a claim has too
    little evidence and `data/claims.yml` gives no reason.
    """
    from thesis_book.compare import audit as audit_
    from thesis_book.compare.comparison import read_run
    from thesis_book.execute.chapters import repository
    from thesis_book.execute.claims import read_claims

    known, executed = read_claims(), read_run(run)
    numbers = {claim.chapter for claim in known.claims.values()}
    records = [r for n in sorted(numbers) if (r := executed.record(n, profile))]
    audited = audit_.audit(known, records, audit_.sections(repository()))
    shown = [
        "state",
        "n",
        "of",
        "interval",
        "limiter",
        "evidence",
        "missed",
        "accepted",
    ]
    claims = audited.query("what == 'claims'").set_index("name").filter(shown)
    show(claims.to_dict("index"), as_json, audit_.lines(audited))
    red = sum(audited["state"] == "red")
    require(not red, f"{red} claims or peers miss a floor: {audit_.REMEDY}")


@command
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…",
            help="Results folders of `thesis run`, or the word `reference`.",
        ),
    ],
    html: Path | None = option(None, "HTML file to write.", metavar="FILE"),
    strict: bool = option(
        False,
        "Exit with status 1 if a claim does not hold.",
        "--strict",
    ),
    as_json: Json = False,
) -> None:
    """Compare runs of different machines, claim by claim.

    A single RUN is compared with the committed reference of its profile. With several,
    the others are compared with the first.
    """
    from thesis_book.compare import comparison as compare_
    from thesis_book.compare import present
    from thesis_book.execute.claims import read_claims

    compared = compare_.compare_named(runs, read_claims().claims)
    if html is not None:
        require(bool(html.name), f"--html {html}: expected the name of a file")
        try:
            write_whole(html, present.html_page(compared))
        except OSError as error:
            raise InvalidInput(
                f"{html} cannot be written: {error.strerror}; name a file in a folder "
                "that exists and that you may write to"
            ) from error
    if as_json:
        typer.echo(strict_json(compared.to_json()))
    else:  # a file or a pipe gets lines of any length, of which nothing is cut
        from rich.console import Console

        present.draw(compared, Console(width=None if sys.stdout.isatty() else 100_000))
    states = compared.states()
    if strict and not {"good", "bad"} & set(states):
        raise InvalidInput(
            "--strict could not compare any claim: expected a run with the "
            "parameters of its reference. See the verdicts above."
        )
    if strict and "bad" in states:
        raise typer.Exit(1)
