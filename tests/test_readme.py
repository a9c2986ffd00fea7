"""What the README shows runs, and prints something."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from thesis_lib.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^\.venv/bin/thesis (\w+)", README, re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["part one", "part two"])
def test_a_snippet_of_the_readme_runs(snippet):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", snippet],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_command_that_the_readme_names_exists():
    known = typer.main.get_command(app).commands
    assert len(COMMANDS) > 5
    assert set(COMMANDS) <= set(known)
