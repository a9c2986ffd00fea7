"""Sweeps: which grids are valid, and what a failure, a kill or a resumption changes.

The points run on one cluster of two workers, whose checkout has one small chapter.
"""

import contextlib
import itertools
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import synthetic
from synthetic import notes, wait_until, write_grid

from thesis_book.execute import chapters, sweep
from thesis_lib.common.errors import InvalidInput, Lost


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout of one small chapter, which is also that of this process."""
    folder = synthetic.make(tmp_path_factory.mktemp("sweep") / "checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapters, "root", lambda: folder)
        patch.setenv("THESIS_DATA", str(folder / "data"))
        yield folder


@pytest.fixture
def chapter(checkout):
    return chapters.select(["3"])[0]


@pytest.fixture
def read(checkout, chapter):
    return lambda text: sweep.read_grid(write_grid(checkout, text), chapter)


@contextlib.contextmanager
def scheduler_process(folder, environ=None):
    """Start a Dask scheduler; yield its process and its address, and kill it."""
    file = folder / "scheduler.json"
    words = ["scheduler", "--scheduler-file", file, "--no-dashboard", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "dask", *words, "--host", "127.0.0.1"],
        stderr=subprocess.DEVNULL,
        env=environ,
    ) as process:
        wait_until(file.exists)
        yield process, json.loads(file.read_text())["address"]
        process.kill()


@pytest.fixture(scope="module")
def cluster(checkout, tmp_path_factory):
    """The address of a scheduler with two workers, and the log of their points."""
    folder = tmp_path_factory.mktemp("cluster")
    environ = synthetic.environment(
        checkout,
        THESIS_NOTES=str(folder / "log"),
        DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=str(sweep.RETRIES),
    )
    words = ["--nworkers", "2", "--nthreads", "1", "--no-dashboard"]
    with scheduler_process(folder, environ) as (_, address):
        workers = psutil.Popen(
            [sys.executable, "-m", "dask", "worker", address, *words],
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environ,
        )
        yield address, folder / "log"
        for process in [*workers.children(recursive=True), workers]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        workers.wait()


@pytest.fixture
def execute(cluster, read, tmp_path, monkeypatch):
    """Run a grid on the cluster, without the summary; return the number executed."""
    monkeypatch.setattr(sweep, "write_summary", lambda *arguments: None)
    cluster[1].unlink(missing_ok=True)

    def run(text, **options):
        grid, output = read(text), tmp_path / "out"
        return sweep.run(grid, output, scheduler=cluster[0], **options)[1]

    return run


# --- The grid file -----------------------------------------------------------
def test_points_are_every_combination_once(read, chapter):
    # The parameters of one axis take their values together.
    axes = "{'x, words': [[1, [a]], [2.5, [b, c]]], bulk_bytes: [0, 9]}"
    points = read(f"{{grid: {axes}, seeds: [4, 5]}}").points
    names = "x", "words", "bulk_bytes", "seed"
    found = [tuple(point.values[name] for name in names) for point in points]
    first = [(1, ["a"]), (2.5, ["b", "c"])]
    assert found == [(*f, *o) for f in first for o in itertools.product([0, 9], [4, 5])]
    assert len({p.key for p in points}) == len({p.name for p in points}) == len(points)
    assert all(p.key == chapters.content_key(chapter, p.values) for p in points)
    assert all(p.values["wait_s"] == 0 for p in points)


def test_a_number_of_seeds_spawns_distinct_seeds_and_always_the_same(read):
    few, many = (
        [point.values["seed"] for point in read(f"seeds: {count}").points]
        for count in (3, 5)
    )
    assert len(set(many)) == 5
    assert many[:3] == few


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {y: [1]}", "'y' is unknown in 03_tiny: expected one of these"),
        ("grid: {x: [1, fast]}", "x='fast' has the wrong type: .*float"),
        ("grid: {seed: [1.5]}", "seed=1.5 has the wrong type: expected int"),
        ("grid: {x: 1}", r"grid\.x: Input should be a valid array"),
        ("grid: {x: []}", r"grid\.x: List should have at least 1"),
        ("grid: {'x, words': [[1]]}", r"must be a list of 2, got \[1\]"),
        ("grid: {'x, seed': [[1, 2]], seed: [3]}", "seed must be in one axis"),
        ("grid: {}", "must vary a parameter, got none"),
        ("grid: {x: [1, 1]}", "must list each value once"),
        ("grid: {x: [1], x: [2]}", "x is given 2 times"),
        ("{grid: {seed: [1]}, seeds: [2]}", "seed must be in one axis"),
        ("{grid: {x: [1]}, seeds: 0}", "seeds.*greater than or equal to 1"),
        ("{grid: {x: [1]}, seeds: 2000000000}", "seeds.*less than or equal to 100000"),
        (f"grid: {{x: {[*range(400)]}, wait_s: {[*range(400)]}}}", "160000 points"),
        ("grid: {x: [2026-02-30]}", "cannot be read"),
        ("grid: {x: &a [*a]}", "is no grid"),
        ("{grid: {x: [1]}, prfile: smoke}", "prfile: .*expected\n  profile: smoke"),
        ("{grid: {x: [1]}, profile: huge}", "expected one of smoke, default, full"),
        ("[1, 2]", "is no grid: it: "),
        ("grid: [x", "cannot be read"),
    ],
)
def test_read_grid_rejects_an_invalid_file(read, text, message):
    with pytest.raises(InvalidInput, match=f"(?s){message}"):
        read(text)


@pytest.mark.parametrize(
    ("name", "number", "count"),
    [("04_evaluation", "4", 80), ("06_evaluation", "6", 8), ("example", "4", 4)],
)
def test_grids_of_the_project_are_valid(monkeypatch, name, number, count):
    root = Path(__file__).parents[3]
    monkeypatch.setattr(chapters, "root", lambda: root)
    monkeypatch.setenv("THESIS_DATA", str(root / "data"))
    (chapter,) = chapters.select([number])
    points = sweep.read_grid(root / "data" / "grids" / f"{name}.yml", chapter).points
    assert len(points) == count
    for point in points:  # a run of chapter 4 simulates its own load only
        values = point.values
        assert number != "4" or values["loads"] == [values["headline_load"]]


# --- Points on the cluster ---------------------------------------------------
def test_results_equal_those_of_single_runs(cluster, read, chapter, tmp_path):
    grid = read("{grid: {x: [1, 2], words: [[a], [b]]}, seeds: [7]}")
    results, executed = sweep.run(grid, tmp_path, scheduler=cluster[0])
    assert executed == len(grid.points) == sum(results["status"] == "done")
    for point, row in zip(grid.points, results.to_dict("records"), strict=True):
        path = tmp_path / "single.ipynb"
        single = chapters.produce(chapter, point.values, "smoke", path, lambda *_: None)
        published = {name: row[f"number.{name}"] for name in single.numbers}
        assert published == single.numbers
        assert row["parameter.words"] == str(point.values["words"])
    stored = pd.read_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(stored, results)
    # The summary shows every point and needs no other file.
    summary = nbformat.read(tmp_path / "summary.ipynb", as_version=4)
    outputs = [output for cell in summary.cells for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} <= {
        "display_data", "execute_result",
    }  # fmt: skip
    page = (tmp_path / "summary.html").read_text()
    assert all(point.name in page for point in grid.points)
    assert page.count("<img") == 1
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_resume_executes_only_unfinished_points(execute, checkout, tmp_path):
    assert execute("grid: {x: [1, 2, 13]}") == 3
    assert execute("grid: {x: [1, 2, 13]}") == 1  # 13 has failed
    assert execute("grid: {x: [2, 1, 3]}") == 1
    (altered, *_) = (tmp_path / "out" / "points").glob("x=1-*.ipynb")
    altered.write_text("altered")
    assert execute("grid: {x: [1, 2]}") == 1
    assert execute("grid: {x: [1, 2]}", resume=False) == 2
    (checkout / "data" / "more.csv").write_text("1")
    try:
        assert execute("grid: {x: [1, 2]}") == 2
    finally:
        (checkout / "data" / "more.csv").unlink()


def test_a_point_whose_kernel_or_worker_dies_is_retried(execute, cluster, tmp_path):
    assert execute("grid: {x: [64, 65, 1]}") == 3
    results = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert list(results["status"]) == ["done"] * 3
    assert sorted(notes(cluster[1], "ended")) == ["1/0", "64/0", "65/0"]
    began = notes(cluster[1], "began")
    assert [began.count(point) for point in ("64/0", "65/0", "1/0")] == [2, 2, 1]


def test_a_failed_point_keeps_its_notebook_and_stops_no_other(
    checkout, cluster, tmp_path
):
    grid = write_grid(checkout, "grid: {x: [1, 13, 66, 2]}")  # 13 raises, 66 kills
    words = checkout, grid, tmp_path, "--scheduler", cluster[0]
    status, counts, errors = synthetic.sweep(*words)
    assert status != 0
    assert {name: counts[name] for name in ("runs", "done", "failed", "output")} == {
        "runs": 4, "done": 2, "failed": 2, "output": str(tmp_path),
    }  # fmt: skip
    first, *sentences = errors.strip().splitlines()
    assert f"2 of 4 points failed. Their notebooks are in {tmp_path}/points" in first
    assert len(sentences) == 2
    assert re.search(r"x=13-.*: ArithmeticError: <thirteen> & unlucky", sentences[0])
    assert re.search(rf"x=66-.*: {sweep.RETRIES + 1} workers died", sentences[1])
    (notebook,) = tmp_path.glob("points/*.failed.ipynb")
    assert "raise ArithmeticError" in notebook.read_text()
    results = pd.read_parquet(tmp_path / "results.parquet")
    assert list(results["status"]) == ["done", "failed", "failed", "done"]
    assert sorted(results["number.double"].dropna()) == [2, 4]


def test_a_killed_sweep_loses_no_finished_point(checkout, execute, tmp_path):
    text = "{grid: {x: [1, 2, 3], wait_s: [0.3]}, seeds: 2}"
    output = tmp_path / "out"
    words = "sweep", "3", write_grid(checkout, text), "--workers", "2"
    client = psutil.Popen(
        synthetic.command(*map(str, words), "--output", str(output)),
        env=synthetic.environment(checkout),
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(list(output.glob("points/*.json"))) >= 2)
    family = client.children(recursive=True)
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert psutil.wait_procs(family, timeout=30)[1] == []
    finished = {path: path.read_bytes() for path in output.glob("points/*.json")}
    assert execute(text) == 6 - len(finished) < 6
    assert all(path.read_bytes() == content for path, content in finished.items())
    resumed = pd.read_parquet(output / "results.parquet")
    assert execute(text, resume=False) == 6
    whole = pd.read_parquet(output / "results.parquet")
    columns = whole.filter(regex=r"^(parameter|number)\.|^key$|^status$").columns
    pd.testing.assert_frame_equal(resumed[columns], whole[columns], check_exact=True)


def test_a_second_sweep_waits_for_the_first(execute, tmp_path):
    (tmp_path / "out").mkdir()
    first, sentences = contextlib.ExitStack(), []
    first.enter_context(chapters.claimed(tmp_path / "out" / "sweep", None))

    def release(sentence):
        sentences.append(sentence)
        first.close()

    assert execute("grid: {x: [1]}", on_wait=release) == 1
    assert sentences == [f"waiting for another sweep that writes to {tmp_path / 'out'}"]


def test_a_worker_with_other_code_executes_nothing(read, checkout, chapter):
    point = read("grid: {x: [1]}").points[0]
    lock = checkout / "requirements.lock"
    before = lock.read_text()
    lock.write_text("numpy==3\n")
    try:
        outcome = sweep.execute_point(chapter.name, point.values, "smoke", point.key)
    finally:
        lock.write_text(before)
    assert outcome.error.startswith("code, data and versions of a worker must equal")
    assert (outcome.record, outcome.notebook) == (None, b"")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "tcp://127.0.0.1:1"}, "no answer within 1 s"),
        ({"scheduler": "no such thing"}, "no answer within 1 s"),
        ({"workers": 0}, "workers=0: expected at least 1"),
        ({"workers": 2, "scheduler": "tcp://x:1"}, "remove one of the two"),
        ({"output": Path(__file__) / "out"}, "cannot be written"),
    ],
)
def test_run_rejects_what_cannot_start(read, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(sweep, "CONNECT_S", 1)
    with pytest.raises(InvalidInput, match=message):
        sweep.run(read("grid: {x: [1]}"), **{"output": tmp_path} | options)


def test_a_lost_scheduler_ends_the_sweep(read, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "CONNECT_S", 1)
    grid, sentences = read("grid: {x: [1]}"), []
    with scheduler_process(tmp_path) as (process, address):

        def lose(sentence):
            sentences.append(sentence)
            process.kill()

        with pytest.raises(Lost, match="connection to the scheduler was lost"):
            sweep.run(grid, tmp_path, scheduler=address, on_wait=lose)
    assert sentences == [f"waiting for workers of {address}"]
