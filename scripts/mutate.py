"""Break one line at a time; every break must turn pytest or nbval red.

Works on a copy of the package, never on the checkout: killed at any moment it leaves
nothing broken behind. Run it with `make mutants`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One line of the package, what to make of it, and the checks that must see it."""

    name: str
    module: str  # path below src/thesis_lib
    line: str  # stands exactly once in the module
    broken: str
    tests: tuple[str, ...]  # pytest paths, or notebooks for nbval


MUTANTS: list[Mutant] = []


def write_mutant(mutant: Mutant, package: Path) -> None:
    """Replace the line in the copy. Stops if it is not there exactly once."""
    path = package / mutant.module
    source = path.read_text()
    if source.count(mutant.line) != 1:
        sys.exit(
            f"mutant {mutant.name!r}: its line stands {source.count(mutant.line)} "
            f"times in {mutant.module}, expected once; update scripts/mutate.py"
        )
    path.write_text(source.replace(mutant.line, mutant.broken))


def passes(tests: tuple[str, ...], source: Path) -> bool:
    """Whether the tests pass on the package in `source`."""
    notebooks = all(test.endswith(".ipynb") for test in tests)
    options = ["--nbval-lax", "--nbval-current-env"] if notebooks else []
    if notebooks:
        options += ["--nbval-sanitize-with", "tests/nbval.cfg"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "THESIS_DATA": str(ROOT / "data"),
        "THESIS_CACHE": str(ROOT / ".cache"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            *options,
            *tests,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        sys.exit(f"pytest could not run {tests}:\n{done.stdout[-2000:]}{done.stderr}")
    return done.returncode == 0


def main() -> None:
    """Try every mutant; the exit status counts those that no check saw."""
    survivors = []
    for mutant in MUTANTS:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "src"
            shutil.copytree(
                ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__")
            )
            write_mutant(mutant, source / "thesis_lib")
            survived = passes(mutant.tests, source)
        print(f"{'SURVIVED' if survived else 'killed':<9}{mutant.name}", flush=True)
        if survived:
            survivors.append(mutant.name)
    print(f"{len(MUTANTS) - len(survivors)} of {len(MUTANTS)} mutants killed")
    sys.exit(len(survivors))


if __name__ == "__main__":
    main()
