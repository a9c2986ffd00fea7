"""Sweeps: laws of the grid, and of what a kill, a crash or a full disk may cost."""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest
import runs
import synthetic
from synthetic import notes, wait_until, write_grid

from thesis_book.execute import chapters, sweep
from thesis_book.execute.records import RECORD_VERSION, Record
from thesis_lib.common import files
from thesis_lib.common.errors import InvalidInput


def quiet(*numbers):
    """Progress that nobody watches."""


@pytest.fixture
def checkout(tmp_path):
    return synthetic.make(tmp_path / "checkout")


@pytest.fixture
def chapter(checkout, monkeypatch):
    """The tiny chapter, for this process."""
    monkeypatch.setattr(chapters, "root", lambda: checkout)
    monkeypatch.setenv("THESIS_DATA", str(checkout / "data"))
    return chapters.select(["3"])[0]


def read(checkout, chapter, text):
    return sweep.read_grid(write_grid(checkout, text), chapter)


# --- the grid ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "{grid: {x: [1, 2.5], words: [[a], [b, c]]}, seeds: [4, 5]}",
            [*itertools.product([1, 2.5], [["a"], ["b", "c"]], [4, 5])],
        ),
        (  # parameters of one axis take their values together
            "{grid: {'x, words': [[1, [a]], [2, [b]]]}, seeds: [4, 5]}",
            [(1, ["a"], 4), (1, ["a"], 5), (2, ["b"], 4), (2, ["b"], 5)],
        ),
    ],
)
def test_points_are_every_combination_once(checkout, chapter, text, expected):
    points = read(checkout, chapter, text).points
    found = [tuple(p.values[name] for name in ("x", "words", "seed")) for p in points]
    assert found == expected
    assert len({p.key for p in points}) == len({p.name for p in points}) == len(points)
    assert all(p.key == chapters.content_key(chapter, p.values) for p in points)
    assert all(p.values["wait_s"] == 0 for p in points)


def test_keys_and_names_do_not_depend_on_the_order_of_the_file(checkout, chapter):
    one = read(checkout, chapter, "{grid: {x: [1, 2], wait_s: [0, 1]}, seeds: [1, 2]}")
    other = read(
        checkout, chapter, "{seeds: [2, 1], grid: {wait_s: [1, 0], x: [2.0, 1.0]}}"
    )
    assert {p.key for p in one.points} == {p.key for p in other.points}


def test_a_number_of_seeds_spawns_as_many_and_always_the_same(checkout, chapter):
    few = read(checkout, chapter, "seeds: 3").axes["seed"]
    many = read(checkout, chapter, "seeds: 5").axes["seed"]
    other = read(checkout, chapter, "{seeds: 3, seed: 7}").axes["seed"]
    assert len(set(many)) == 5
    assert many[:3] == few
    assert not set(few) & set(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {y: [1]}", "'y' is unknown in 03_tiny: expected one of these"),
        ("grid: {x: [1, fast]}", "x='fast' has the wrong type: .*float"),
        ("grid: {seed: [1.5]}", "seed=1.5 has the wrong type: expected int"),
        ("grid: {words: [a]}", r"words='a' .* expected list\[str\]"),
        ("grid: {x: 1}", r"grid\.x: Input should be a valid array"),
        ("grid: {x: []}", r"grid\.x: List should have at least 1"),
        ("grid: {'x, words': [[1]]}", r"\[1\] of x, words must be a list of 2"),
        ("grid: {'x, y': [[1, 2]]}", "'y' is unknown"),
        ("grid: {'x, seed': [[1, 2]], seed: [3]}", "seed is in 2 axes"),
        ("grid: {}", "is an empty grid"),
        ("profile: smoke", "is an empty grid"),
        ("grid: {x: [1, 1.0]}", "x lists a value twice"),
        ("grid: {x: [1], x: [2]}", "x is given 2 times"),
        ("{grid: {seed: [1]}, seeds: [2]}", "gives seed in grid and as seeds"),
        ("{grid: {x: [1]}, seeds: 0}", "seeds.*greater than or equal to 1"),
        ("{grid: {x: [1]}, seed: 3}", "seed=3 in .* beside a number of seeds"),
        ("{grid: {x: [1]}, seeds: 2, seed: -1}", "seed.*greater than or equal to 0"),
        ("{grid: {x: [1]}, seeds: 2000000000}", "seeds.*less than or equal to 100000"),
        ("grid: {x: [2026-02-30]}", "cannot be read"),
        ("grid: {x: &a [*a]}", "is no grid"),
        ("{grid: {x: [1]}, prfile: smoke}", "prfile: .*expected\n  profile: smoke"),
        ("{grid: {x: [1]}, profile: huge}", "expected one of smoke, default, full"),
        ("{grid: {x: [1]}, seeds: yes}", "is no grid: seeds"),
        ("[1, 2]", "is no grid: it: "),
        ("grid: [x", "cannot be read"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_runs(checkout, chapter, text, message):
    with pytest.raises(InvalidInput, match=f"(?s){message}"):
        read(checkout, chapter, text)


def test_a_grid_that_would_never_end_is_refused(checkout, chapter):
    values = list(range(400))
    with pytest.raises(InvalidInput, match="160000 points, more than 100000"):
        read(checkout, chapter, f"grid: {{x: {values}, wait_s: {values}}}")


# --- writing, without a cluster ----------------------------------------------


@pytest.fixture
def cluster(chapter, monkeypatch):
    """In place of a cluster, outcomes at once; counts the points it executed."""
    executed = []

    class Client:
        def scheduler_info(self):
            return {"workers": {"one": {}}}

        def nthreads(self):
            return {"one": 1}

    def outcomes(client, grid, points):
        for point in points:
            executed.append(point.name)
            yield point, outcome(point)

    def outcome(point):
        text = f"notebook of {point.name}".encode()
        record = dataclasses.replace(
            runs.record(chapter.name),
            parameters=point.values,
            key=point.key,
            notebook_sha256=hashlib.sha256(text).hexdigest(),
            numbers={"double": 2 * point.values["x"]},
        )
        return {"host": "h", "record": record.to_json(), "notebook": text}

    @contextlib.contextmanager
    def connect(workers, scheduler):
        yield Client()

    monkeypatch.setattr(sweep, "_outcomes", outcomes)
    monkeypatch.setattr(sweep, "_connect", connect)
    return executed


def run(grid, output, resume=True):
    return sweep.run(grid, output, 1, None, resume, quiet)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fills_up_costs_no_finished_point(
    checkout, chapter, cluster, monkeypatch, tmp_path, number
):
    grid = read(checkout, chapter, "grid: {x: [1, 2, 3, 4]}")
    writes, write_whole = itertools.count(1), files.write_whole

    def full(path, content):
        if next(writes) >= 6:  # the record of the third point: its notebook is there
            raise OSError(number, os.strerror(number), str(path))
        write_whole(path, content)

    monkeypatch.setattr(sweep, "write_whole", full)
    with pytest.raises(InvalidInput, match=os.strerror(number)) as refused:
        run(grid, tmp_path / "out")
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(sweep, "write_whole", write_whole)
    done = run(grid, tmp_path / "out")
    assert done.executed == 2
    assert len(done.records) == 4
    assert len(cluster) == 3 + 2


def test_what_is_finished_is_kept_or_made_anew_as_asked(
    checkout, chapter, cluster, tmp_path
):
    grid = read(checkout, chapter, "grid: {x: [1, 2]}")
    assert run(grid, tmp_path).executed == 2
    assert run(grid, tmp_path).executed == 0
    assert run(grid, tmp_path, resume=False).executed == 2
    wider = read(checkout, chapter, "grid: {x: [2, 1, 3]}")
    assert run(wider, tmp_path).executed == 1


def test_an_altered_notebook_or_another_key_is_executed_again(
    checkout, chapter, cluster, tmp_path
):
    grid = read(checkout, chapter, "grid: {x: [1, 2]}")
    run(grid, tmp_path)
    (tmp_path / "points" / f"{grid.points[0].name}.ipynb").write_text("edited")
    assert run(grid, tmp_path).executed == 1
    (checkout / "data" / "more.csv").write_text("1")
    changed = read(checkout, chapter, "grid: {x: [1, 2]}")
    assert run(changed, tmp_path).executed == 2


@pytest.mark.parametrize("resume", [True, False])
def test_a_record_from_a_newer_version_is_refused_and_kept(
    checkout, chapter, cluster, tmp_path, resume
):
    grid = read(checkout, chapter, "grid: {x: [1, 2]}")
    (tmp_path / "points").mkdir()
    newer = json.dumps({"version": RECORD_VERSION + 1, "more": 1})
    path = tmp_path / "points" / f"{grid.points[1].name}.json"
    path.write_text(newer)
    with pytest.raises(InvalidInput, match="written by a newer version"):
        run(grid, tmp_path, resume)
    assert path.read_text() == newer
    assert cluster == []


def test_two_sweeps_do_not_write_to_one_folder(checkout, chapter, cluster, tmp_path):
    grid = read(checkout, chapter, "grid: {x: [1]}")
    (tmp_path / "points").mkdir()
    with (
        chapters.claimed(tmp_path / "sweep", quiet),
        pytest.raises(InvalidInput, match="another sweep is writing"),
    ):
        run(grid, tmp_path)
    assert run(grid, tmp_path).executed == 1


# --- on processes ------------------------------------------------------------


def begin(checkout, grid, output, log, *words):
    """`thesis sweep` on two workers, or on those that are named, not waited for."""
    words = [*("--output", str(output), "--json"), *(words or ("--workers", "2"))]
    return subprocess.Popen(
        synthetic.command("sweep", "3", str(grid), *words),
        env=synthetic.environment(checkout, THESIS_NOTES=str(log)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def totals(output):
    """What must not depend on how often a sweep was interrupted."""
    table = pd.read_parquet(output / "results.parquet")
    return table.filter(regex=r"^(parameter|number)\.|^key$|^chapter$")


def test_a_sweep_killed_half_way_loses_no_finished_point_and_repeats_none(
    checkout, tmp_path
):
    grid = write_grid(checkout, "grid: {x: [1, 2, 3, 4], wait_s: [0.3]}\nseeds: 2\n")
    output, log = tmp_path / "out", tmp_path / "log"
    client = begin(checkout, grid, output, log)
    wait_until(lambda: len(list(output.glob("points/*.json"))) >= 3)
    family = psutil.Process(client.pid).children(recursive=True)
    client.send_signal(signal.SIGKILL)
    client.wait()
    gone, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert len(gone) >= 3  # two workers and a kernel
    kept = {path: path.read_bytes() for path in output.glob("points/*.json")}
    assert len(kept) < 8
    recorded = {
        f"{r.parameters['x']}/{r.parameters['seed']}" for r in map(Record.read, kept)
    }
    status, result, errors = synthetic.sweep(
        checkout, grid, output, "--workers", "2", THESIS_NOTES=str(log)
    )
    assert (status, errors) == (0, "")
    assert result == {
        "runs": 8, "done": 8, "failed": 0, "executed": 8 - len(kept),
        "output": str(output),
    }  # fmt: skip
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert all(notes(log, "began").count(point) == 1 for point in recorded)
    assert len(notes(log, "began")) <= 8 + 2  # the two that were running
    assert list(output.glob("points/.*")) == []
    whole = tmp_path / "whole"
    assert synthetic.sweep(checkout, grid, whole, "--workers", "2")[0] == 0
    pd.testing.assert_frame_equal(totals(output), totals(whole), check_exact=True)


def test_a_worker_killed_while_it_executes_costs_nothing(checkout, tmp_path):
    grid = write_grid(checkout, "grid: {x: [1, 2, 3], wait_s: [1.0]}\n")
    output, log = tmp_path / "out", tmp_path / "log"
    client = begin(checkout, grid, output, log)
    wait_until(lambda: notes(log, "began"))
    first, kernel = log.read_text().splitlines()[0].split()[1:3]
    worker, *_ = [
        ancestor
        for ancestor in psutil.Process(int(kernel)).parents()
        if "multiprocessing" in " ".join(ancestor.cmdline())
    ]
    below = worker.children(recursive=True)
    worker.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(below, timeout=30)[1] == []
    answer, errors = client.communicate(timeout=300)
    assert client.returncode == 0, errors
    assert json.loads(answer)["done"] == 3
    assert notes(log, "began").count(first) == 2
    assert sorted(notes(log, "ended")) == ["1.0/0", "2.0/0", "3.0/0"]


def test_a_point_that_fails_keeps_its_notebook_and_stops_no_other(checkout, tmp_path):
    grid = write_grid(checkout, "grid: {x: [1, 13, 66, 2]}\n")
    output = tmp_path / "out"
    status, result, errors = synthetic.sweep(checkout, grid, output, "--workers", "2")
    assert status != 0
    assert (result["done"], result["failed"]) == (2, 2)
    assert "2 of 4 points failed" in errors
    assert str(output / "points") in errors
    assert len(errors.strip().splitlines()) == 1
    (notebook,) = output.glob("points/x=13.0-*.failed.ipynb")
    (trace,) = output.glob("points/x=13.0-*.traceback.txt")
    (killed,) = output.glob("points/x=66.0-*.traceback.txt")
    assert "ArithmeticError" in notebook.read_text()
    assert "raise ArithmeticError" in trace.read_text()
    assert f"{sweep.DEATHS + 1} workers died" in killed.read_text()
    table = pd.read_parquet(output / "results.parquet")
    assert sorted(table["number.double"]) == [2, 4]
    page = (output / "summary.html").read_text()
    assert "&lt;thirteen&gt; &amp; unlucky" in page
    assert "<thirteen>" not in page
    assert page.count("no point finished with x=13.0: ") == 1
    # what failed is executed again, what did not is not
    grid = write_grid(checkout, "grid: {x: [1, 13, 2]}\n")
    status, result, _ = synthetic.sweep(checkout, grid, output, "--workers", "1")
    assert status != 0
    assert (result["done"], result["failed"], result["executed"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("failed", "phrase"),
    [
        ({(1, 4), (1, 5)}, "no point finished with x=1.0"),
        ({(1, 4)}, "only together: x=1.0, seed=4"),
        ({(1, 4), (1, 5), (2, 4), (2, 5)}, "no point finished to compare it with"),
    ],
)
def test_the_parameter_that_made_a_point_fail_is_named(
    checkout, chapter, tmp_path, failed, phrase
):
    grid = read(checkout, chapter, "{grid: {x: [1, 2]}, seeds: [4, 5]}")
    failures, records = [], {}
    for point in grid.points:
        if (point.values["x"], point.values["seed"]) in failed:
            failures.append(sweep.Failure(point, "stopped", "here"))
        else:
            made = runs.record("03_tiny")
            records[point.name] = dataclasses.replace(made, parameters=point.values)
    told = sweep.culprits(sweep.Sweep(grid, tmp_path, records, failures, 4))
    assert len(told) == len(failed)
    assert all(text.startswith(phrase) for text in told.values())


def test_a_scheduler_that_does_not_answer_is_refused_in_time(
    checkout, chapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(sweep, "CONNECT_S", 1)
    grid = read(checkout, chapter, "grid: {x: [1]}")
    for address in ("tcp://127.0.0.1:1", "127.0.0.1:1", "no such thing"):
        with pytest.raises(InvalidInput, match="did not answer within 1 s"):
            sweep.run(grid, tmp_path, None, address, True, quiet)


def test_a_scheduler_that_is_lost_ends_the_sweep_with_one_sentence(checkout, tmp_path):
    grid = write_grid(checkout, "grid: {x: [1, 2], wait_s: [600]}")
    place, log = tmp_path / "scheduler.json", tmp_path / "log"
    environ = synthetic.environment(checkout, THESIS_NOTES=str(log))
    started = []

    def start(*words):
        started.append(
            subprocess.Popen(
                words, env=environ, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return started[-1]

    try:
        dask = [sys.executable, "-m", "dask"]
        own = ["--scheduler-file", str(place), "--no-dashboard", "--host", "127.0.0.1"]
        scheduler = start(*dask, "scheduler", *own, "--port", "0")
        wait_until(place.exists)
        start(*dask, "worker", *own, "--nthreads", "1")
        address = json.loads(place.read_text())["address"]
        client = begin(checkout, grid, tmp_path / "out", log, "--scheduler", address)
        started.append(client)
        wait_until(lambda: notes(log, "began"))
        scheduler.kill()
        answer, errors = client.communicate(timeout=120)
        assert (client.returncode, answer) == (2, "")
        assert "the scheduler was lost" in errors
        assert len(errors.strip().splitlines()) == 1
    finally:
        for process in started:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.communicate()


def test_workers_and_a_scheduler_exclude_each_other(checkout, chapter, tmp_path):
    grid = read(checkout, chapter, "grid: {x: [1]}")
    with pytest.raises(InvalidInput, match="--workers and --scheduler were both given"):
        sweep.run(grid, tmp_path / "out", 2, "tcp://x:1", True, quiet)
    assert not (tmp_path / "out").exists()


def test_a_worker_with_other_code_names_its_host(checkout, chapter, monkeypatch):
    point = read(checkout, chapter, "grid: {x: [1]}").points[0]
    (checkout / "requirements.lock").write_text("numpy==3\n")
    monkeypatch.setattr(sweep.socket, "gethostname", lambda: "node-7")
    outcome = sweep.execute(chapter.name, point.values, "smoke", point.key)
    assert "this worker on node-7 has other code" in outcome["failed"]
    assert outcome["notebook"] is None


# --- the summary -------------------------------------------------------------


def test_the_summary_stands_alone_and_holds_every_point(
    checkout, chapter, cluster, tmp_path
):
    text = "grid: {x: [1, 2], words: [[a], [b]]}\nseeds: [1, 2, 3]\n"
    grid = read(checkout, chapter, text)
    done = run(grid, tmp_path)
    page = (tmp_path / "summary.html").read_text()
    assert page.count("<svg") == 1
    assert page.count("<tr>") == 1 + len(grid.points)
    for outside in ("http://", "https://", "<script", "<img", "@import"):
        assert outside not in page.replace("http://www.w3.org", "")
    assert "prefers-color-scheme: dark" in page
    table = sweep.gather(done)
    assert list(table["parameter.words"][:4]) == ["['a']"] * 3 + ["['b']"]
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "results.parquet"))


def test_claims_that_vary_are_the_headlines(checkout, chapter, cluster, tmp_path):
    (checkout / "data" / "claims.yml").write_text(
        "bases: {exact: {n: 1, of: '', limiter: nothing, evidence: ''}}\n"
        "claims:\n  double:\n    chapter: 3\n    says: Twice <x>\n    unit: '%'\n"
        "    kind: exact\n    rests_on: exact\n"
    )
    grid = read(checkout, chapter, "grid: {x: [1, 2]}")
    done = run(grid, tmp_path)
    shown = sweep.headlines(chapter, sweep.gather(done))
    assert shown == {"number.double": "Twice <x> (%)"}
    assert "Twice &lt;x&gt; (%)" in (tmp_path / "summary.html").read_text()


# --- the grids that come with the project ------------------------------------

CHECKOUT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "chapter", "points"),
    [
        ("04_evaluation", "4", 80),
        ("06_evaluation", "6", 8),
        ("example", "4", 4),
    ],
)
def test_the_grids_of_the_project_are_good(name, chapter, points):
    path = CHECKOUT / "data" / "grids" / f"{name}.yml"
    (chosen,) = chapters.select([chapter])
    assert len(sweep.read_grid(path, chosen).points) == points


def test_a_run_of_the_evaluation_simulates_its_own_load_alone():
    path = CHECKOUT / "data" / "grids" / "04_evaluation.yml"
    (chapter,) = chapters.select(["4"])
    for point in sweep.read_grid(path, chapter).points:
        load = [point.values["headline_load"]]
        assert point.values["loads"] == point.values["trace_loads"] == load
