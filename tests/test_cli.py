"""The command as a shell sees it: one sentence and a status for every refusal."""

import subprocess
import sys
from pathlib import Path

import pytest

THESIS = Path(sys.executable).with_name("thesis")


def thesis(*words):
    return subprocess.run([THESIS, *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "99"], "chapter='99' is unknown: expected one of 01_introduction"),
        (["run", "1", "-p", "nonsense=3"], "parameter 'nonsense' is unknown"),
        (["run", "1", "-p", "nonsense"], "expected NAME=VALUE"),
        (["run", "--profile", "huge"], "expected one of smoke, default, full"),
    ],
)
def test_bad_input_is_refused_with_one_sentence(words, message):
    done = thesis(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_help_lists_every_command():
    done = thesis("--help")
    assert done.returncode == 0
    for command in ("run", "book", "outputs"):
        assert command in done.stdout
