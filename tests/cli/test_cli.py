"""The command as a shell sees it: one sentence and a status for every refusal."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer import Option, Typer, echo
from typer.testing import CliRunner

from thesis_book.__main__ import app
from thesis_lib.cli import common
from thesis_lib.cli.common import option, strict_json
from thesis_lib.common.errors import require
from thesis_lib.memory.model import smollm2
from thesis_lib.sequencer.core.trace import KeySets, Trace

THESIS = Path(sys.executable).with_name("thesis")


def thesis(line, *words, cwd=None):
    words = [THESIS, *line.split(), *words]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd)


def strict(text):
    """The value of a JSON text without the numbers that JSON does not know."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def answer(line, *words, cwd=None):
    """The one object that a command prints with --json."""
    done = thesis(line, *words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return strict(done.stdout)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_printed_json_says_null_for_what_is_no_number_and_all_else_as_it_is(value):
    lenient = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    assert strict(strict_json(value)) == lenient


@dataclass(frozen=True)
class Machine:
    cores: int = option(4, "Of the machine.")
    speed: Annotated[float, Option("--clock", help="In GHz.")] = 2.5

    def __post_init__(self):
        require(self.cores > 0, f"cores must be positive, got {self.cores}.")


def test_command_builds_options_from_fields_of_a_dataclass(monkeypatch):
    application = Typer()
    monkeypatch.setattr(common, "app", application)

    @common.command
    def run(
        *, name: str = option(..., "Of it."), machine: Machine, seed: int = 0
    ) -> None:
        echo(f"{name} {machine} {seed}")

    def invoke(words):
        return CliRunner().invoke(application, words.split())

    assert invoke("--name a --cores 8").stdout == f"a {Machine(8, 2.5)} 0\n"
    assert invoke("--name a --clock 3 --seed 1").stdout == f"a {Machine(4, 3.0)} 1\n"
    assert invoke("--name a --cores 0").stderr == (
        "thesis: cores must be positive, got 0.\n"
    )
    shown = invoke("--help").stdout
    assert all(word in shown for word in ("Of the machine.", "--clock", "default: 4"))


SERVE = "serve --policy fifo --load 1 --seconds 1"
SERVE_SHORT = "serve --policy bid-price --load 0.5 --seconds 0.4 --rounds 2"
SIMULATE = "simulate --policy bid-price"
POINT = "simulate --scenario A --load 1.1 --policy drop --seeds 2 --transactions 500"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run 99", "chapter='99' is unknown: expected one of 01_introduction"),
        ("run 1 -p nonsense=3", "parameter 'nonsense' is unknown"),
        ("run 4 -p seeds=1", "parameter seeds=1 is outside 2 .. 100"),
        ("run 1 -p nonsense", "expected NAME=VALUE"),
        ("run 4 -p seeds=2020-13-01", "cannot be read: expected YAML as in"),
        ("run 4 -p seeds=!!bool", "cannot be read"),
        ("run 4 -p seeds=010", "in plain digits, not 010 or 1:30"),
        ("run 4 -p loads=[1:30]", "in plain digits"),
        ("simulate --policy fifo --scenario A --load inf", "load=inf needs clients"),
        (f"{POINT} --policy fifo --gap 0.1", "--gap is of one policy alone"),
        (f"{POINT} --policy drop", "expected two or more"),
        ("simulate --policy fifo --scenario A --load 1 --clients -1", "clients=-1"),
        ("run 4 -p seeds=1 -p seeds=2", "parameter seeds is given twice"),
        ("run --profile huge", "expected one of smoke, default, full"),
        ("generate smollm2 --device-memory 1GiB --prompt a --draft b", "--speculate"),
        ("plan none.gguf --device-memory 1GiB", "none.gguf cannot be opened"),
        ("cost --tokens-per-s 2 --weights nf4", "say what a rate is predicted for"),
        ("collect nowhere/t.parquet", "folder nowhere does not exist"),
        ("collect t.parquet --engine duckdb", "expected one of sqlite, postgresql"),
        ("collect t.parquet --dsn host=here", "engine is 'sqlite'"),
        ("collect t.parquet --zipf 0.5", "zipf=0.5 belongs to the workload 'ycsb'"),
        ("collect t.parquet --transactions 0", "transactions=0: expected at least 1"),
        ("collect t.parquet --workers 0", "workers=0: expected at least 1"),
        ("collect t.parquet --estimator no/e.skops", "folder no does not exist"),
        ("collect t.parquet --learn oracle", "learn='oracle' is unknown"),
        ("collect t.csv", "t.csv would be read as text: name a file that ends in"),
        ("collect t.parquet --estimator ./t.parquet", "one file, t.parquet: name two"),
        (f"{SERVE} --seed -1", "seed=-1: expected at least 0"),
        ("synth llama-65b out --seed -1", "seed=-1: expected at least 0"),
        (f"{SERVE} --estimator e.skops", "e.skops is no estimator (FileNotFoundError"),
        (f"{SERVE} --estimator oracle", "estimator 'oracle' reads service times"),
        (f"{SERVE} --seconds 0", "seconds=0 must be positive"),
        (f"{SERVE} --slo 5", "5"),
        (f"{SIMULATE} --scenario A", "a scenario has no arrivals of its own"),
        (f"{SIMULATE} --trace FILE --warehouses 4", "warehouses=4 belongs to a scen"),
        (f"{SIMULATE} --trace FILE --estimator boosted", "of which the trace has none"),
        (f"{SIMULATE} --trace FILE --transactions 401", "expected 1 to the 400"),
        (f"{SIMULATE} --trace FILE --rows 390:401", "it has 400 rows"),
        (f"{SIMULATE} --trace FILE --rows 390-400", "rows '390-400' cannot be read"),
        (f"{SIMULATE} --trace FILE --rows 0:99999999999", "it has 400 rows"),
        (f"{SIMULATE} --scenario A --load 1 --gap nan", "gap must be at least 0"),
        (f"{SIMULATE} --scenario A --rows 0:400", "are of a trace, and a scenario has"),
        (f"{POINT} --clients 9", "clients=9 never fill a batch of 10"),
        (f"{POINT} --clients 0", "clients=0: expected at least 1"),
        (f"{POINT} --seed -1", "seed=-1: expected at least 0"),
        (f"{POINT} --noise 1e308", "noise=1e+308 must lie in [0, 10]"),
        (f"{SIMULATE} --trace FILE --cores 0", "cores=0: expected at least 1"),
        (f"{POINT} --batch 0", "batch_size=0: expected at least 1"),
        (f"{POINT} --lag soon", "soon"),
        (f"{POINT} --flush -1ms", "-1ms"),
    ],
)
def test_bad_input_is_rejected_with_one_sentence(
    words, message, bare_trace, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words.replace("FILE", str(bare_trace)).split())
    assert (done.exit_code, done.stdout) == (2, ""), done.exception
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "lines"), [("seeds=1", 1), ("seedz=3", 30), ("live_load=9", 1)]
)
def test_run_prints_a_wrong_parameter_last_and_imports_nothing_heavy(word, lines):
    code = (
        "import sys\nfrom thesis_book.__main__ import app\n"
        f"try: app(['run', '4', '-p', {word!r}])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = 'torch numba pandas matplotlib papermill nbformat'.split()\n"
        "assert not {*heavy} & {*sys.modules}, {*heavy} & {*sys.modules}\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    told = done.stderr.strip().splitlines()
    assert told[-1].startswith("thesis: ")
    assert word.split("=")[0] in told[-1]
    assert len(told) == 1 if lines == 1 else len(told) >= lines


@pytest.mark.parametrize(
    "words", ["plan --device-memory 1GiB", "collect --transactions 1"]
)
def test_a_place_that_cannot_be_written_is_told_in_a_sentence(words, tmp_path):
    done = CliRunner().invoke(app, [*words.split(), str(tmp_path / ("x" * 300))])
    assert done.exit_code in (1, 2), done.exception
    assert len(done.stderr.strip().splitlines()) == 1
    assert "expected" in done.stderr


@pytest.fixture(scope="module")
def bare_trace(tmp_path_factory):
    """A trace without features."""
    file = tmp_path_factory.mktemp("traces") / "bare.parquet"
    keys = KeySets.from_lists([[]] * 400, [[f"row {k % 3}"] for k in range(400)])
    Trace.of_jobs(np.arange(400) / 64, np.full(400, 0.01), keys).write(file)
    return file


def test_a_trace_is_replayed_as_it_is_and_the_command_says_so(bare_trace):
    words = f"simulate --trace {bare_trace} --policy drop --estimator constant"
    said = answer(words)
    assert said["rate_per_s"] == pytest.approx(64)
    assert (said["arrivals"], said["fitted_on"]) == ("its own", 200)
    assert said["reduction_ci"] is None
    told = thesis(words)
    assert told.returncode == 0
    assert "arrivals: its own; 200 transactions, estimator constant" in told.stdout


@pytest.mark.parametrize(
    "options",
    ["--workload ycsb --zipf 0.5", "--mix new-order/payment --workers 4 --replays 2"],
)
def test_collect_writes_a_trace_and_says_its_state(options, tmp_path):
    file = tmp_path / "t.parquet"
    said = answer(f"collect {file} --transactions 200 {options}")
    trace = Trace.read(file)
    assert said["transactions"] == len(trace) == 200
    assert said["digest"] == trace.meta["digest"]
    assert ("service_s_r2" in trace.measured) == ("--replays" in options)


def refused(line, *words):
    """The sentence with which a command refuses its input."""
    done = thesis(line, *words)
    assert done.returncode == 2
    return done.stderr


def test_what_collect_learned_serves_and_simulates(tmp_path):
    file, learned = tmp_path / "t.parquet", str(tmp_path / "learned.skops")
    words = f"collect {file} --transactions 400 --estimator {learned} --learn linear"
    assert answer(words)["estimator"] == learned
    words = f"simulate --policy drop --estimator {learned}"
    said = answer(words, "--trace", file)
    assert (said["estimator"], said["fitted_on"]) == (learned, 0)
    assert (said["transactions"], said["seeds"]) == (400, 1)
    message = refused(f"{words} --scenario A --load 1.1")
    assert "fitted on, in their order; missing:" in message
    words = f"{SERVE_SHORT} --estimator {learned}"
    assert answer(words)["fitted_on"] == 0
    message = refused(words, "--workload", "ycsb")
    assert "that the estimator was fitted on" in message
    Path(learned).write_bytes(Path(learned).read_bytes()[:-40])
    assert f"{learned} is no estimator (BadZipFile" in refused(words)


def test_serve_prints_one_object(tmp_path):
    said = answer(f"{SERVE_SHORT} --estimator linear", cwd=tmp_path)
    assert said["policy"] == "bid-price"
    assert said["violations"] == pytest.approx(said["late"] + said["dropped"])
    assert list(tmp_path.iterdir()) == []


def test_cost_prints_one_object_with_intervals_and_takes_prices():
    words = "cost --tokens-per-s 2 --between 1.5 2.5"
    found = answer(words, "--price", "rtx-3090=0.72")
    assert found["usd_per_million_tokens"] == pytest.approx(100)
    assert found["usd_per_million_interval"] == pytest.approx([80, 400 / 3])
    low, high = found["break_even_interval"]
    assert low < found["break_even_tokens"] < high
    assert "expected ITEM=USD" in refused(words, "--price", "rtx-3090")


def test_a_gguf_file_writes_the_text_of_the_checkpoint_that_it_becomes(tmp_path):
    words = "--device-memory 96MiB --max-new-tokens 4 --prompt Once"
    file, kept = str(smollm2.source()), str(tmp_path / "kept")
    said = answer("convert smollm2", kept, "--keep-blocks")
    assert said["kept"] > 0
    texts = [
        answer(f"generate {words}", each)["text"] for each in ("smollm2", file, kept)
    ]
    assert texts[0] == texts[1] == texts[2] != ""


def test_the_module_is_the_command():
    words = ["plan", "llama-66b", "--device-memory", "1B"]
    command = [sys.executable, "-m", "thesis_book", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == thesis(" ".join(words)).stderr != ""


def test_help_lists_every_command():
    done = thesis("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("run", "book", "outputs"))
    groups = re.findall(r" (Book|Database|Model) ", done.stdout)
    assert groups == ["Book", "Database", "Model"]


def test_where_nothing_is_admitted_its_latency_is_null():
    cell = answer(POINT, "--slo", "1us")
    assert cell["dropped"] == cell["violations"] == 1
    assert cell["lenient"] is cell["p999_s"] is None


def printed(words, *more):
    return CliRunner().invoke(app, [*words.split(), *more]).stdout


def test_several_policies_are_compared_and_one_is_recommended():
    words = f"{POINT} --policy fifo"
    *lines, last = printed(words).splitlines()
    found = json.loads(printed(words, "--json"))
    chosen, policies = found["chosen"], [each["policy"] for each in found["policies"]]
    (other,) = {*policies} - {chosen}
    assert last.startswith(
        f"take {chosen}: it was chosen on 2 seeds and judged on 2 others, which do "
        f"not tell it from {other}"  # no two seeds do
    )
    assert last.endswith("tuned for scenario A")
    assert [line.split()[0] for line in lines] == policies
    assert all(("points" in line) != line.startswith(chosen) for line in lines)


@pytest.mark.parametrize("policies", ["", " --policy fifo"])
def test_several_loads_are_answered_one_after_the_other(policies):
    both, one = f"{POINT} --load 0.7{policies}", POINT + policies
    other = one.replace("1.1", "0.7")
    alone = [json.loads(printed(each, "--json")) for each in (one, other)]
    assert json.loads(printed(both, "--json")) == {"loads": alone}
    assert printed(both) == (
        f"at a load of 1.1:\n{printed(one)}\nat a load of 0.7:\n{printed(other)}"
    )


def test_a_closed_loop_with_delays_is_simulated():
    words = f"{POINT} --clients 60 --batch 20 --flush 1ms --lag 0.2ms"
    words = f"{words} --sequencing 5us --overhead 20us"
    cell = answer(words)
    assert cell["clients"] == 60
    assert cell["lower_bound"] is None
    assert cell["violations"] == pytest.approx(cell["late"] + cell["dropped"])
    assert "lower bound" not in thesis(words).stdout
