"""Break one line at a time; every break must turn pytest or nbval red.

The breaks stand in `scripts/mutants.yml`. Works on a copy of the package, never on the
checkout: killed at any moment it leaves nothing broken behind. Run it with `make
mutants`; `scripts/mutate.py WORD…` tries those mutants alone whose name, file or tests
hold one of the words. Where `make test` has just passed, `--tested` halves the time.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("benchmarks", "examples")  # beside the packages
LIMIT_S = 1200  # ten times what the slowest check takes


@dataclass(frozen=True, slots=True)
class Mutant:
    """One line of a file, what to make of it, and the checks that must see it."""

    breaks: str  # the name: what no longer holds
    file: str  # below src/, or benchmarks/… or examples/…
    was: str  # stands exactly once in the file
    now: str
    tests: tuple[str, ...]  # words for pytest, or notebooks for nbval

    def fault(self, text: str) -> str:
        """What is wrong with this mutant of a file that reads `text`; '' for nothing"""
        if (times := text.count(self.was)) != 1:
            return (
                f"mutant {self.breaks!r}: its line stands {times} times in "
                f"{self.file}, expected once: {self.was!r}; update scripts/mutants.yml"
            )
        return "" if self.was != self.now else f"mutant {self.breaks!r} breaks nothing"


def mutants(listed: Path = ROOT / "scripts" / "mutants.yml") -> list[Mutant]:
    """All that is listed."""
    return [
        Mutant(
            row["breaks"], file, row["was"], row["now"], (*shlex.split(row["tests"]),)
        )
        for file, rows in yaml.safe_load(listed.read_text()).items()
        for row in rows
    ]


def chosen(words: list[str]) -> list[Mutant]:
    """The mutants whose name, file or tests hold one of the words; all without one."""
    found = [
        each
        for each in mutants()
        if not words
        or any(word in f"{each.breaks} {each.file} {each.tests}" for word in words)
    ]
    if not found:
        sys.exit(f"no mutant holds {', '.join(words)}: see scripts/mutants.yml")
    return found


def write_mutant(mutant: Mutant, source: Path) -> None:
    """Replace the line in the copy. Stops if it is not there exactly once."""
    path = source / mutant.file
    text = path.read_text()
    if fault := mutant.fault(text):
        sys.exit(fault)
    path.write_text(text.replace(mutant.was, mutant.now))


def outcome(tests: tuple[str, ...], source: Path) -> str:
    """What the tests say of the package in `source`: green, red or not run."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    folders = [
        source / folder if folder.startswith(COPIED) else folder
        for folder in settings["ini_options"]["pythonpath"]
    ]
    options = []
    if all(test.endswith(".ipynb") for test in tests):
        options = ["--nbval-lax", "--nbval-current-env"]
        options += ["--nbval-sanitize-with", "tests/nbval.cfg"]
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
        "-o", f"pythonpath={' '.join(map(str, folders))}",
        *options, *tests,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "THESIS_DATA": str(ROOT / "data"),
        "THESIS_CACHE": str(ROOT / ".cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    told = {"capture_output": True, "text": True, "timeout": LIMIT_S}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, **told)
    except subprocess.TimeoutExpired:
        print(f"{shlex.join(tests)} has not ended in {LIMIT_S} s", flush=True)
        return "not run"
    if done.returncode in (0, 1):
        return "red" if done.returncode else "green"
    said = f"{done.stdout[-2000:]}{done.stderr}"
    print(f"pytest could not run {shlex.join(tests)}:\n{said}", flush=True)
    return "not run"


def copied(tree: Path, scratch: str) -> Path:
    """Copy the sources and their compiled functions into a scratch folder.

    The copy is laid out like a checkout: everything else there is a link.
    """
    for path in ROOT.iterdir():
        if path.name != "src":
            (Path(scratch) / path.name).symlink_to(path)
    return shutil.copytree(tree, Path(scratch) / "src")


def survives(mutant: Mutant, base: Path) -> bool:
    """Whether no check is seen to kill the mutant of a copy; says what came."""
    with tempfile.TemporaryDirectory() as scratch:
        source = copied(base, scratch)
        write_mutant(mutant, source)
        found = outcome(mutant.tests, source)
    verdict = {"green": "SURVIVED", "red": "killed"}.get(found, "NOT RUN")
    print(f"{verdict:<9}{mutant.breaks}", flush=True)
    return verdict != "killed"


def main() -> None:
    """Try every chosen mutant, one a core; the exit status counts the survivors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("word", nargs="*", help="of a name, a file or its tests")
    said = "do not look first whether the tests pass without a mutant"
    parser.add_argument("--tested", action="store_true", help=said)
    asked = parser.parse_args()
    tried = chosen(asked.word)
    with (
        tempfile.TemporaryDirectory() as whole,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        base = copied(ROOT / "src", whole)
        for folder in COPIED:
            shutil.copytree(ROOT / folder, base / folder)
        named = [] if asked.tested else sorted({mutant.tests for mutant in tried})
        sound = pool.map(lambda tests: outcome(tests, base), named)
        if red := [
            tests for tests, found in zip(named, sound, strict=True) if found != "green"
        ]:
            sys.exit(f"{red} fail without a mutant: mend them first")
        survivors = sum(pool.map(lambda mutant: survives(mutant, base), tried))
    print(f"{len(tried) - survivors} of {len(tried)} mutants killed")
    sys.exit(survivors)


if __name__ == "__main__":
    main()
