import ast
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

from thesis_book.execute import chapters, imports
from thesis_book.execute.chapters import parameters, resolve, run, select
from thesis_book.execute.parameters import assignments
from thesis_book.execute.records import Record
from thesis_lib.common.errors import InvalidInput, Lost


def quiet(name, done, total):
    """Progress that nobody watches."""


def edit(path, *sources, tags=()):
    """Write a notebook of these cells, of which the first may have tags."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = list(tags)
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python"}
    nbformat.write(notebook, path)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of two chapters; the second imports a module of the package."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "data" / "params").mkdir(parents=True)
    (tmp_path / "_config.yml").write_text("title: x")
    (tmp_path / "requirements.lock").write_text("numpy==2\n")
    edit(
        tmp_path / "notebooks" / "01_first.ipynb",
        "seeds: int = 2  # paired seeds\nloads: list[float] = [0.5]  # of capacity",
        "print(seeds * 10, loads)",
        tags=["parameters"],
    )
    second = tmp_path / "notebooks" / "02_second.ipynb"
    edit(second, "from thesis_lib.common import units")
    (tmp_path / "data" / "params" / "default.yml").write_text(
        "01_first: {seeds: 5, loads: [0.5, 1]}\n"
    )
    monkeypatch.setattr(chapters, "root", lambda: tmp_path)
    monkeypatch.setenv("THESIS_DATA", str(tmp_path / "data"))
    return tmp_path


def output_text(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []))


def test_chapters_are_chosen_by_number_or_name(checkout):
    assert [c.name for c in select(["2", "01_first"])] == ["01_first", "02_second"]
    assert [c.number for c in select([])] == [1, 2]


def test_an_unknown_chapter_is_rejected_with_those_that_exist(checkout):
    with pytest.raises(InvalidInput, match="01_first, 02_second"):
        select(["09_ninth"])


def test_parameters_are_read_with_type_value_and_description(checkout):
    declared = parameters(select(["1"])[0])
    assert declared["seeds"].type_name == "int"
    assert declared["seeds"].smoke == 2
    assert declared["loads"].help == "of capacity"


def test_a_profile_sets_and_an_override_wins(checkout):
    assert resolve(select(["1"]), "default", {"seeds": 7}) == {
        "01_first": {"seeds": 7, "loads": [0.5, 1]}
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seedz": 3}, "'seedz' is unknown in .*did you mean 'seeds'"),
        ({"seeds": 1.5}, "wrong type: expected int"),
        ({"seeds": True}, "wrong type: expected int"),
        ({"seeds": "3"}, "wrong type: expected int"),
        ({"loads": 0.5}, r"expected list\[float\]"),
        ({"loads": ["a"]}, r"expected list\[float\]"),
    ],
)
def test_unknown_and_ill_typed_parameters_are_rejected(checkout, overrides, message):
    with pytest.raises(InvalidInput, match=message):
        resolve(select([]), "smoke", overrides)


def test_only_an_unknown_parameter_has_a_note_that_lists_parameters(checkout):
    for overrides, listed in (({"seedz": 3}, True), ({"seeds": "3"}, False)):
        with pytest.raises(InvalidInput) as error:
            resolve(select([]), "smoke", overrides)
        assert "\n" not in str(error.value)
        notes = "".join(getattr(error.value, "__notes__", []))
        assert ("seeds: int = 2  paired seeds" in notes) == listed


def test_a_profile_that_names_an_unknown_parameter_is_rejected(checkout):
    (checkout / "data" / "params" / "full.yml").write_text("01_first: {sedes: 5}\n")
    with pytest.raises(InvalidInput, match="did you mean 'seeds'"):
        resolve(select([]), "full", {})


@pytest.mark.parametrize("text", ["seeds", "=3", "a-b=3", "x=[1"])
def test_an_assignment_that_cannot_be_read_is_rejected(text):
    with pytest.raises(InvalidInput):
        assignments([text])


def test_what_is_fresh_is_skipped_and_what_changed_is_executed(checkout):
    folder = checkout / "out"

    def executed(**overrides):
        return [new for _, new in run(select([]), "smoke", overrides, folder, quiet)]

    assert executed() == [True, True]
    assert output_text(folder / "01_first.ipynb") == "20 [0.5]\n"
    assert executed() == [False, False]
    again = run(select(["2"]), "smoke", {}, folder, quiet, again=True)
    assert [new for _, new in again] == [True]
    assert executed(seeds=3) == [True, False]
    assert output_text(folder / "01_first.ipynb") == "30 [0.5]\n"
    assert Record.read(folder / "01_first.json").parameters["seeds"] == 3


MEASURED = """
from thesis_book.execute import records
from thesis_lib.common import provenance
provenance._disturbances.append("others took 1.90 cores")
records.publish_timed(step_s=0.5, pace="slow")
records.publish(bytes=3)
records.publish_timed({"rate_per_s": 2.0})
provenance.undisturbed(lambda: provenance._disturbances.clear(), tries=1)
provenance._disturbances.clear()
records.publish_timed(later_s=1.0)
"""


def test_a_record_names_the_numbers_whose_measurement_was_disturbed(checkout):
    edit(checkout / "notebooks" / "02_second.ipynb", MEASURED)
    ((record, _),) = run(select(["2"]), "smoke", {}, checkout / "out", quiet)
    assert record.numbers == {
        "step_s": 0.5, "bytes": 3, "pace": "slow", "rate_per_s": 2.0, "later_s": 1.0,
        "disturbed": "step_s pace rate_per_s",
        "disturbed_by": "others took 1.90 cores",
    }  # fmt: skip
    executed = nbformat.read(checkout / "out" / "02_second.ipynb", as_version=4)
    shown = {o.output_type for cell in executed.cells for o in cell.get("outputs", [])}
    assert shown == {"display_data"}  # glued, and no word is printed above the prose


def test_a_failure_keeps_earlier_results_and_says_where(checkout):
    folder = checkout / "out"
    run(select(["1"]), "smoke", {}, folder, quiet)
    before = (folder / "01_first.ipynb").read_bytes()
    edit(checkout / "notebooks" / "01_first.ipynb", "print(1 / 0)")
    with pytest.raises(InvalidInput, match=r"01_first failed in cell .* division by"):
        run(select(["1"]), "smoke", {}, folder, quiet)
    assert (folder / "01_first.ipynb").read_bytes() == before
    assert (folder / "01_first.failed.ipynb").is_file()


def test_a_folder_may_have_braces(checkout):
    run(select(["1"]), "smoke", {}, checkout / "a{b}{seeds}{1}", quiet)
    assert (checkout / "a{b}{seeds}{1}" / "01_first.ipynb").is_file()


def test_chapters_run_at_the_same_time(checkout):
    meet = (
        "import pathlib, time\npathlib.Path({!r}).touch()\nother = pathlib.Path({!r})"
    )
    wait = "\nwhile not other.exists(): time.sleep(0.05)"
    here = [str(checkout / name) for name in "ab"]
    edit(checkout / "notebooks" / "01_first.ipynb", meet.format(*here) + wait)
    edit(checkout / "notebooks" / "02_second.ipynb", meet.format(*here[::-1]) + wait)
    done = run(select([]), "smoke", {}, checkout / "out", quiet)
    assert [(r.number, executed) for r, executed in done] == [(1, True), (2, True)]


def test_no_cell_runs_beside_one_that_measures(checkout):
    path = checkout / "times"
    timed = (
        "import time\nstart = time.monotonic(); time.sleep({})\n"
        f"print('{{}}', start, time.monotonic(), file=open({str(path)!r}, 'a'))"
    )
    names = ("01_first", "02_second")
    for name in names:
        cells = [timed.format(0.5, "alone"), *5 * [timed.format(0.1, "beside")]]
        edit(checkout / "notebooks" / f"{name}.ipynb", *cells, tags=["alone"])
    run(select([]), "smoke", {}, checkout / "out", quiet)
    rows = [line.split() for line in path.read_text().splitlines()]
    spans = sorted((float(start), float(end), kind) for kind, start, end in rows)
    assert [kind for *_, kind in spans].count("alone") == len(names)
    for (_, end, kind), (start, _, after) in itertools.pairwise(spans):
        assert end <= start or kind == after == "beside"


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_chapters_at_the_same_time_is_rejected(checkout, workers):
    with pytest.raises(InvalidInput, match=f"workers={workers}.*at least 1"):
        run(select([]), "smoke", {}, checkout / "out", quiet, workers=workers)


DIES = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


def test_a_kernel_that_dies_is_a_sentence(checkout):
    edit(checkout / "notebooks" / "01_first.ipynb", DIES)
    with pytest.raises(Lost, match="the kernel of chapter 01_first died"):
        run(select(["1"]), "smoke", {}, checkout / "out", quiet)


def test_a_key_changes_with_what_a_chapter_reads_and_with_nothing_else(
    checkout, monkeypatch
):
    def keys():
        return [chapters.content_key(chapter, {}) for chapter in select([])]

    def changed(action):
        before = keys()
        action()
        return [old != new for old, new in zip(before, keys(), strict=True)]

    def another_units():
        path, original = checkout / "units.py", imports.module_file
        path.write_text("from thesis_lib.common import errors\n")
        files = {"thesis_lib.common.units": path}
        monkeypatch.setattr(
            imports, "module_file", lambda name: files.get(name) or original(name)
        )

    data, second = checkout / "data", select(["2"])[0]
    edit(second.path, f"{second.load().cells[0].source}\nfolder = 'measurements'")
    (data / "measurements").mkdir()
    assert changed(another_units) == [False, True]
    assert changed(lambda: (data / "measurements" / "a").touch()) == [False, True]
    assert changed(lambda: (data / "prices.csv").touch()) == [True, True]
    lock = checkout / "requirements.lock"
    assert changed(lambda: lock.write_text("numpy==3\n")) == [True, True]
    first = select(["1"])[0]
    few, many = (chapters.content_key(first, {"seeds": n}) for n in (2, 3))
    assert few != many


def test_a_key_changes_with_a_function_that_is_a_parameter(tmp_path):
    (chapter,) = select(["4"])
    file = tmp_path / "mine.py"
    values, keys = {"own_policies": [f"{file}:rule"]}, []
    for text in ("a = 1", "a = 2", "a = 1"):
        file.write_text(text)
        keys.append(chapters.content_key(chapter, values))
    assert keys[0] == keys[2] != keys[1]
    file.unlink()
    with pytest.raises(InvalidInput, match="own_policies"):
        chapters.content_key(chapter, values)


def test_imports_are_followed_through_the_package():
    source = "from thesis_book.execute import records"
    found = {path.name for path in imports.modules(source)}
    assert {"records.py", "errors.py"} <= found
    behind = {p.name for p in imports.modules("from thesis_lib import sequencer")}
    assert {"grid.py", "admission.py"} <= behind
    assert "main.py" not in found


def test_one_thread_at_a_time_parses(checkout, monkeypatch):
    at_once, parse, seen = threading.Semaphore(), ast.parse, []

    def watched(*args, **kwargs):
        seen.append(at_once.acquire(blocking=False))
        time.sleep(1e-4)  # another thread may go on
        at_once.release()
        return parse(*args, **kwargs)

    monkeypatch.setattr(ast, "parse", watched)
    first, second = select([])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(chapters.content_key, [first, second] * 2, [{}] * 4))
    assert len(seen) > 4
    assert all(seen)
