"""Share the application, error reports, progress bars and JSON among commands."""

import functools
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from thesis_lib.common.errors import InvalidInput, Lost

if TYPE_CHECKING:
    from rich.progress import Progress

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Execute the thesis' chapters, simulate its database, stream its models.",
)

# The panels of `thesis --help`, by the module of a command.
PANELS = {"thesis_book.cli": "Book", "thesis_lib.cli.sequencer": "Database"}

console = Console(stderr=True)

EXTRAS = "estimators,optimum,memory,postgresql,live,api,book,cluster"


def option(default: Any, help: str, *names: str, **more: Any) -> Any:
    """Return an option of a command; a `default` of `...` makes it mandatory."""
    return typer.Option(default, *names, help=help, **more)


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else.")
]


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register `function` as a command that reports an error in one sentence.

    The parameters of `function` become options. A parameter whose type is a dataclass
    stands for the fields of that class: each field becomes an option, and the function
    receives one instance. A field declares its option as a parameter does, by
    `Annotated[..., typer.Option(...)]` or by a default of `option(...)`. Options are
    listed in the order of parameters and fields. Raises ValueError where two options
    have one name.
    """
    parts = inspect.signature(function, eval_str=True).parameters
    groups = [name for name, part in parts.items() if is_dataclass(part.annotation)]
    fields = {
        name: inspect.signature(parts[name].annotation, eval_str=True).parameters
        for name in groups
    }
    flat = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, part in parts.items()
        for each in fields.get(name, {name: part}).values()
    ]

    @functools.wraps(function)
    def guarded(**options: Any) -> None:
        status, notes = 1, []
        try:
            for name, own in fields.items():
                own_options = {field: options.pop(field) for field in own}
                options[name] = parts[name].annotation(**own_options)
            function(**options)
            return
        except (InvalidInput, Lost) as error:
            message, status = str(error), error.exit_code
            notes = getattr(error, "__notes__", [])
        except BrokenPipeError:  # the reader has closed the pipe
            raise
        except OSError as error:
            named = f" ({error.filename})" if error.filename else ""
            message = (
                f"{error.strerror or error}{named}: expected files and folders that "
                "can be read and written, on a disk with free space. Name others."
            )
        except MemoryError:
            message = "this needs more memory than is available. Reduce the input."
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("thesis_lib"):
                raise
            message = (
                f"this command needs the package {error.name}, which is not installed. "
                f"Run pip install 'thesis-lib[{EXTRAS}]' for all commands."
            )
        typer.echo("\n".join([*notes, f"thesis: {message}"]), err=True)
        raise typer.Exit(status)

    guarded.__dict__["__signature__"] = inspect.Signature(flat)
    guarded.__annotations__ = {each.name: each.annotation for each in flat}
    panel = PANELS.get(function.__module__, "Model")
    return app.command(rich_help_panel=panel)(guarded)


def strict_json(result: Any) -> str:
    """Return `result` as JSON, with null for NaN and infinity."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        finite = not isinstance(value, float) or math.isfinite(value)
        return value if finite else None

    return json.dumps(plain(result), allow_nan=False)


def show(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    """Print `result` as JSON, or else `lines`."""
    typer.echo(strict_json(result) if as_json else "\n".join(lines))


def progress_bars(
    quiet: bool, unit: str = "cell", verb: str = "executed"
) -> tuple["Progress", Callable[[str, int, int], None]]:
    """Return progress bars on standard error and the function that moves them."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    state = unit + " {task.completed:.0f}/{task.total:.0f}"
    bars = Progress(
        TextColumn("{task.description:<32}"), BarColumn(), TextColumn(state),
        TimeElapsedColumn(), console=console, disable=quiet,
    )  # fmt: skip
    tasks: dict[str, Any] = {}

    def move(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total)
        bars.update(tasks[name], completed=done)
        # A log has no bar to redraw: report the end of each there.
        if not quiet and not console.is_terminal and done == total:
            typer.echo(f"{verb} {name}", err=True)

    return bars, move
