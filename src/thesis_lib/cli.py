"""The command `thesis`: one sentence and a non-zero status for every failure."""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from thesis_lib.checks import InvalidInput

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A thesis that runs: re-execute its chapters, use its two halves.",
)
console = Console(stderr=True)

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

    return app.command()(guarded)


def show(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    """Print `result` as JSON, or `lines` for people."""
    typer.echo(json.dumps(result) if as_json else "\n".join(lines))


def progress_bars(quiet: bool) -> tuple[Progress, Callable[[str, int, int], None]]:
    """Bars on standard error, one for each chapter, and the function to move them."""
    bars = Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TextColumn("cell {task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=console,
        disable=quiet,
    )
    tasks: dict[str, Any] = {}

    def move(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total)
        bars.update(tasks[name], completed=done)
        # A log has no bar to redraw: say each chapter's end there.
        if not quiet and not console.is_terminal and done == total:
            typer.echo(f"executed {name}", err=True)

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
    as_json: Json = False,
) -> None:
    """Re-execute chapters with papermill; skip those whose result is fresh."""
    from thesis_lib import chapters

    overrides = dict(chapters.assignment(text) for text in parameter or [])
    chosen = chapters.select(names or [])
    folder = output or chapters.repository() / "build" / "chapters" / profile
    clock = time.perf_counter()
    bars, move = progress_bars(quiet=as_json)
    with bars:
        outcome = chapters.run(chosen, profile, overrides, folder, move)
    seconds = time.perf_counter() - clock
    show(
        {
            "chapters": [
                {"chapter": r.chapter, "executed": executed, "seconds": r.seconds}
                for r, executed in outcome
            ],
            "profile": profile,
            "seconds": round(seconds, 1),
            "output": str(folder),
        },
        as_json,
        [
            f"{r.chapter:<32} {f'executed in {r.seconds:.0f} s' if new else 'fresh'}"
            for r, new in outcome
        ]
        + [f"results in {folder}"],
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
    with console.status("rendering the book"):
        index, built = book_.render(
            build / "chapters" / profile, build / "book" / profile
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


def main() -> None:
    """Entry point: quiet libraries, no hub, no surprise in the terminal."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(app())
