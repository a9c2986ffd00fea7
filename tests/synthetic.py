"""A checkout of one tiny chapter, with the package copied into it, for sweeps.

The package finds its checkout by its own place: what a worker of another clone does
can only be seen with another copy.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat

import thesis_lib
from thesis_lib.common.files import cache_folder

NAME = "03_tiny"
PARAMETERS = """
x: float = 1.0  # what is published, doubled
seed: int = 0  # of the draws
words: list[str] = ["a"]  # a list
wait_s: float = 0.0  # s, before anything is computed
bulk_bytes: int = 0  # bytes of output
"""
# Each execution that comes to its end appends a line; so does each that begins.
BEGIN = """
import os, signal, time
import numpy as np
from thesis_book.execute import records
from thesis_lib.common import units

def note(what):
    if path := os.environ.get("THESIS_NOTES"):
        with open(path, "a") as file:
            file.write(f"{what} {x}/{seed} {os.getpid()} {os.getppid()}\\n")

note("began")
time.sleep(wait_s)
"""
BODY = """
if x == 13:
    raise ArithmeticError("<thirteen> & unlucky")
again = os.environ.get("THESIS_NOTES") and sum(
    line.startswith(f"began {x}/{seed} ") for line in open(os.environ["THESIS_NOTES"])
) > 1
if x == 64 and not again:  # kills its kernel once
    os.kill(os.getpid(), signal.SIGKILL)
if x == 66 or (x == 65 and not again):  # kills its worker always, or once
    import psutil
    for ancestor in psutil.Process().parents():
        if "multiprocessing" in " ".join(ancestor.cmdline()):
            ancestor.kill()
            break
    time.sleep(60)
print("#" * bulk_bytes)
draws = np.random.default_rng(seed).normal(size=3)
records.publish({"double": 2 * x, "draw": float(draws[0]), "word": f"<{x}>"})
note("ended")
"""


def make(folder: Path) -> Path:
    """Write the checkout into `folder`, which must not exist, and return it."""
    shutil.copytree(
        Path(thesis_lib.__file__).parents[1],
        folder / "src",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (folder / "notebooks").mkdir()
    (folder / "data" / "params").mkdir(parents=True)
    (folder / "data" / "claims.yml").write_text("bases: {}\nclaims: {}\n")
    (folder / "_config.yml").write_text("title: x\n")
    (folder / "requirements.lock").write_text("numpy==2\n")
    v4 = nbformat.v4
    cells = [
        v4.new_code_cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]}),
        v4.new_code_cell(BEGIN.strip()),
        v4.new_code_cell(BODY.strip()),
    ]
    for number, cell in enumerate(cells):
        cell.id = str(number)  # or two checkouts would have other content
    notebook = v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python",
        "language": "python",
    }
    nbformat.write(notebook, folder / "notebooks" / f"{NAME}.ipynb")
    return folder


def environment(checkout: Path, **more: str) -> dict[str, str]:
    """The environment of a process that works in `checkout`."""
    cache = {"THESIS_CACHE": str(cache_folder())}  # its file of 256 MiB is made once
    return os.environ | cache | {"PYTHONPATH": str(checkout / "src")} | more


def command(*words: str) -> list[str]:
    """`thesis` with these words, of the package that PYTHONPATH names."""
    return [
        sys.executable, "-P", "-c", "from thesis_book.__main__ import main; main()",
        *words,
    ]  # fmt: skip


def write_grid(checkout: Path, text: str) -> Path:
    path = checkout / "grid.yml"
    path.write_text(text)
    return path


def sweep(checkout: Path, grid: Path, output: Path, *words: str, **environ: str):
    """Run `thesis sweep --json` to its end: (status, its JSON or None, its errors)."""
    done = subprocess.run(
        command("sweep", "3", str(grid), "--output", str(output), "--json", *words),
        capture_output=True,
        text=True,
        env=environment(checkout, **environ),
        timeout=300,
    )
    return done.returncode, json.loads(done.stdout or "null"), done.stderr


def notes(path: Path, what: str) -> list[str]:
    """Points of the executions that `began` or `ended`, one for each execution."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1] for line in lines if line.startswith(what)]


def wait_until(condition, seconds: float = 120) -> None:
    """Wait for a condition; fail if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)
