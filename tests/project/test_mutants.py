"""The list of broken lines: every line stands where it says, exactly once."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
mutate = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "mutate.py")))


def sources(mutant):
    """The text of a mutant's file in the checkout."""
    beside = mutant.file.startswith(mutate.COPIED)
    return ((ROOT if beside else ROOT / "src") / mutant.file).read_text()


def test_every_line_stands_exactly_once_in_its_file():
    faults = [mutant.fault(sources(mutant)) for mutant in mutate.mutants()]
    assert not list(filter(None, faults)), "\n".join(filter(None, faults))


def test_every_check_exists_and_no_name_stands_twice():
    listed = mutate.mutants()
    names = [mutant.breaks for mutant in listed]
    assert len(names) == len(set(names)) > 200
    for mutant in listed:
        words = [word.partition("::")[0] for word in mutant.tests]
        files = [word for word in words if word.endswith((".py", ".ipynb"))]
        assert files, mutant.breaks
        assert all((ROOT / file).is_file() for file in files), mutant.breaks


@pytest.mark.parametrize("times", [0, 2])
def test_a_line_that_is_gone_or_stands_twice_is_told_by_name(tmp_path, times):
    mutant = mutate.Mutant("a law", "a.py", "x = 1\n", "x = 2\n", ("tests/x.py",))
    path = tmp_path / mutant.file
    path.write_text("x = 1\n" * times)
    with pytest.raises(SystemExit, match=rf"'a law': its line stands {times} times"):
        mutate.write_mutant(mutant, tmp_path)
    path.write_text("x = 1\n")
    mutate.write_mutant(mutant, tmp_path)
    assert path.read_text() == "x = 2\n"
