"""The page of commands: a section with the options of each command of `thesis`.

Sphinx generates it when it reads the page, so that no command, option or default on it
can differ from the program.
"""

import re
from collections.abc import Iterator
from typing import Any

import typer
from sphinx.application import Sphinx

from thesis_book.__main__ import app as thesis
from thesis_book.compare.present import markdown, markdown_table

PAGE = "book/commands"
OPTION = re.compile(r"(?<![\w`-])(--[a-z][\w-]*)")  # in words
DEFAULT = re.compile(r"\s*[Dd]efault: (.+?)\.?$")


def commands() -> Iterator[str]:
    """Yield lines of MyST Markdown, a section for each command in the help's order."""
    for name, command in typer.main.get_command(thesis).commands.items():
        yield from ("", f"### {name}", "", OPTION.sub(r"`\1`", command.help or ""))
        rows = [_row(each) for each in command.params if each.name != "as_json"]
        yield from markdown_table(["Option", "What it is", "If not given"], rows)


def _row(parameter: Any) -> list[str]:
    """What it is called, what its help says, and what holds without it."""
    is_option = parameter.param_type_name == "option"
    called = parameter.opts + parameter.secondary_opts
    if not is_option:
        called = [parameter.metavar or parameter.name.upper()]
    elif parameter.metavar:
        called = [f"{called[0]} {parameter.metavar}"]
    help, absent = markdown(parameter.help or "").replace("\\`", "`"), "–"
    if said := DEFAULT.search(help):
        help, absent = help[: said.start()].rstrip(" ;,"), said[1]
    elif parameter.default not in (None, [], ()):
        absent = f"`{parameter.default}`"
    if parameter.required:
        absent = "is needed"
    elif is_option and parameter.is_flag:
        absent = "yes" if parameter.default else "no"
    words = " or ".join(f"`{word}`" for word in called)
    return [words, OPTION.sub(r"`\1`", help), absent]


def write_commands(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the commands at the end of their page."""
    if page == PAGE:
        source[0] += "\n".join(commands())


def setup(app: Sphinx) -> dict:
    app.connect("source-read", write_commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
