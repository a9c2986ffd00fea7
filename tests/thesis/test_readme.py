"""The README's snippets run, and every example of a command is understood."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from thesis_commands import commands

from thesis_book.__main__ import app
from thesis_book.compare.comparison import Quantity, read_reference
from thesis_book.compare.present import PICTURE, PICTURE_OF, as_change, readme
from thesis_book.execute.claims import read_claims
from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import parse_size
from thesis_lib.memory import Machine, plan_checkpoint
from thesis_lib.memory.offload.offloaded_model import checkpoint_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = (ROOT / "book" / "commands.md").read_text()
CLAIMS, REFERENCE = read_claims().claims, read_reference()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["part one", "part two"])
def test_a_snippet_of_the_readme_runs(snippet):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", snippet],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def shown(page: str) -> list[list[str]]:
    """Return the words of each example of `thesis` on a page, without its comment."""
    lines = re.findall(r"^(?:\.venv/bin/)?thesis (.*?)(?:\s+#.*)?$", page, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_every_example_of_a_command_is_understood():
    known = typer.main.get_command(app).commands
    examples = shown(COMMANDS)
    assert len(examples) > 25
    for name, *words in examples:
        assert known[name].make_context(name, words).params, words


def test_the_memory_that_is_shown_is_enough_for_what_it_is_shown_with():
    page = (ROOT / "book/serve_model.md").read_text()
    examples = [words for words in shown(COMMANDS + page) if words[0] == "api"]
    known = typer.main.get_command(app).commands["api"]
    for _, *words in examples:
        asked = known.make_context("api", words).params
        made = plan_checkpoint(
            checkpoint_folder(asked["checkpoint"]),
            Machine(parse_size(asked["device_memory"]), 1e9),
            batch=asked["slots"], context=asked["context"],
            pass_tokens=asked["pass_tokens"], ring=asked["ring"],
            logit_tokens=1, generating=True,
        )  # fmt: skip
        assert made.spec.total_bytes > 5 * made.machine.device_bytes, words
    assert len(examples) == 2


def test_page_of_commands_lists_every_option():
    page = "\n".join(commands())
    assert r"\`" not in page
    assert not re.search(r"Default: .* \| –", page)  # it stands in its own column
    for name, command in typer.main.get_command(app).commands.items():
        section = page.split(f"\n### {name}\n")[1].split("\n### ")[0]
        options = {word for each in command.params for word in each.opts}
        named = {word for word in options - {"--json"} if word.startswith("-")}
        assert named <= set(re.findall(r"(?<=`)--?[a-z][a-z-]*", section)), name


def test_the_table_of_claims_is_that_of_the_reference_run():
    assert readme(README, CLAIMS, REFERENCE, "default") == README


@pytest.mark.parametrize("end", ["", "-dark"])
def test_the_picture_is_of_the_run_that_the_table_is_of(end):
    path = f"data/reference/default/{PICTURE}{end}.svg"
    assert path in README
    record = REFERENCE.record(PICTURE_OF, "default")
    assert record.notebook_sha256 in (ROOT / path).read_text()


def test_a_table_that_was_edited_by_hand_is_seen():
    edited = re.sub(r"\*\*([\d.]+)", "**99.9", README, count=1)
    assert edited != README
    assert readme(edited, CLAIMS, REFERENCE, "default") == README


def test_a_readme_without_its_table_or_with_an_unknown_claim_is_rejected():
    with pytest.raises(InvalidInput, match="no table of claims"):
        readme("# Title", CLAIMS, REFERENCE, "default")
    unknown = "<!-- claims: nonsense -->\n<!-- end of claims -->"
    with pytest.raises(InvalidInput, match="nonsense"):
        readme(unknown, CLAIMS, REFERENCE, "default")


def test_a_negative_reduction_is_printed_as_more():
    changed = {key: c for key, c in CLAIMS.items() if c.change}
    assert len(changed) > 5
    shown = f"<!-- claims: {' '.join(changed)} -->\n<!-- end of claims -->"
    table = readme(shown, CLAIMS, REFERENCE, "default")
    assert "**−" not in table
    for value, low, high in ((-1.3, -2.0, -0.6), (-0.5, -1.0, 0.2), (36.0, 30.0, 40.0)):
        said, word = as_change(Quantity(value, low, high))
        sign = {"more": -1, "fewer": 1}[word]
        assert said.value == abs(value)
        assert sorted([sign * said.low, sign * said.high]) == [low, high]
    assert as_change(Quantity(-1.0)) == (Quantity(1.0), "more")
