"""The same commit in two fresh clones, and on other Pythons, gives the same numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from citations import uncited

from thesis_book.compare.comparison import Run, compare, doubts, read_reference
from thesis_book.execute import chapters
from thesis_book.execute.claims import read_claims
from thesis_book.execute.records import Record
from thesis_book.render.staging import Published

ROOT = Path(__file__).parents[2]
CHAPTERS = ("03_enhanced_sequencer", "04_evaluation_ml_for_db")
# Interpreters whose environment has the lock installed, separated by colons.
PYTHONS = [sys.executable, *filter(None, os.environ.get("PYTHONS", "").split(":"))]
MEASURED_WORDS = {
    "disturbed", "disturbed_by", "stream_machine", "stream_over_says", "stream_covers",
    "timeline_says", "rates_say", "stream_bound", "crossover_says",
    "crossover_weight_gb_per_s", "crossover_gflop_per_s",
}  # fmt: skip
RUN = """
import sys
from pathlib import Path
from thesis_book.execute import chapters
chosen = chapters.select(sys.argv[2:])
chapters.run(chosen, "smoke", {}, Path(sys.argv[1]), lambda *words: None)
"""


def numbers_of_a_fresh_clone(folder, python):
    """What the simulated chapters publish at smoke in a new clone of this commit."""
    clone, output = folder / "clone", folder / "out"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    environment = os.environ | {"PYTHONPATH": str(clone / "src")}
    for name in ("THESIS_DATA", "THESIS_CACHE"):
        environment.pop(name, None)
    subprocess.run(
        [python, "-c", RUN, str(output), *CHAPTERS],
        env=environment,
        cwd=folder,
        check=True,
    )
    records = [Record.read(output / f"{name}.json") for name in CHAPTERS]
    assert all(record.clean for record in records)
    return {key: value for r in records for key, value in r.numbers.items()}


@pytest.mark.proof
def test_exact_claims_are_bit_for_bit_those_of_another_clone(tmp_path):
    runs = []
    for number, python in enumerate([PYTHONS[0], *PYTHONS]):
        folder = tmp_path / str(number)
        folder.mkdir()
        runs.append(numbers_of_a_fresh_clone(folder, python))
    known = read_claims()
    exact = [
        claim
        for number in (3, 4)
        for claim in known.of_chapter(number)
        if claim.kind == "exact"
    ]
    assert len(exact) > 10
    for claim in exact:
        assert len({repr(numbers[claim.key]) for numbers in runs}) == 1, claim.key
        assert runs[0][claim.key] == claim.reference["smoke"], claim.key


# What libraries choose on a processor without wide or fused instructions, and what a
# number may not depend on either.
SETTINGS = {
    "a plain processor": {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL",
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "",
        "OPENBLAS_CORETYPE": "Nehalem",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "PYTHONWARNINGS": "ignore",
    },
    "one thread": {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1"},
    "another place": {"PYTHONHASHSEED": "77", "LC_ALL": "C", "TZ": "Asia/Taipei"},
}


@pytest.mark.proof
@pytest.mark.parametrize("changed", SETTINGS.values(), ids=SETTINGS)
def test_exact_claims_depend_on_no_setting_of_the_machine(changed, tmp_path):
    compiled_anew = {"NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "out"), *"23456"],
        env=os.environ | compiled_anew | changed,
        check=True,
    )
    records = chapters.read_records(tmp_path / "out")
    numbers = {key: value for r in records for key, value in r.numbers.items()}
    exact = [c for c in read_claims().claims.values() if c.kind == "exact"]
    assert len(exact) > 70
    differ = {
        claim.key: (numbers[claim.key], claim.reference["smoke"])
        for claim in exact
        if numbers[claim.key] != claim.reference["smoke"]
    }
    assert differ == {}
    unsaid = {r.number: uncited(r.numbers, r.number) for r in records}
    assert {number: names for number, names in unsaid.items() if names} == {}
    # Words are those of the reference, unless the clock or the machine decided them.
    words = {
        (record.number, name): value
        for record in read_reference().records
        if record.profile == "smoke"
        for name, value in record.numbers.items()
        if isinstance(value, str) and name not in MEASURED_WORDS
    }
    found = {(r.number, name): v for r in records for name, v in r.numbers.items()}
    changed = {at for at, word in words.items() if found.get(at, word) != word}
    assert changed == set()


@pytest.mark.proof
def test_pages_made_beside_a_busy_process_mark_doubtful_times(tmp_path):
    """One core is taken: the pages mark each time that this disturbed."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        chosen = chapters.select(["5", "6"])
        outcome = chapters.run(
            chosen, "smoke", {}, tmp_path, lambda name, done, total: None
        )
    finally:
        busy.kill()
        busy.wait()
    made = Run("beside", tuple(record for record, _ in outcome))
    doubted = doubts(compare([made], read_claims().claims, read_reference()), made)
    for record in made.records:
        path = tmp_path / f"{record.chapter}.ipynb"
        executed = nbformat.read(path, as_version=4)
        written = Published({record.chapter: record}, doubted)
        for cell in executed.cells:
            if cell.cell_type == "markdown":
                marked = written.mark(cell.source, record.chapter)
                for name in doubted.get(record.chapter, {}):
                    role = rf"\{{glue:text\}}`{name}(?::[^`]*)?`"
                    behind = re.findall(rf"{role}(.{{0,7}})", marked)
                    assert set(behind) <= {" {ref}`"}, f"{name} in: {marked}"


@pytest.mark.parametrize("profile", ["smoke", "default"])
def test_a_choice_of_what_to_reject_leaves_more_than_blind_rejection(profile):
    """Chapter 2 says so of a policy in chapter 4, at the same load."""
    told = {
        name: number
        for record in read_reference().records
        if record.profile == profile and record.number in (2, 4)
        for name, number in record.numbers.items()
    }
    assert told["collapse_load"] == told["headline_load"]
    on_time = 100 - told["bid_price_violations_percent"]
    assert (
        on_time > told["collapse_possible_percent"] > told["collapse_on_time_percent"]
    )
