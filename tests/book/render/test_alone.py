"""The script of a figure has what the figure needs, no more, and draws the same."""

import ast
import builtins
import dis
import subprocess
import sys
from types import CodeType
from xml.etree import ElementTree

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from thesis_book.execute.chapters import chapters
from thesis_book.figures.export import drawn
from thesis_book.render.alone import PAGE, alone, scripts
from thesis_lib.common.errors import InvalidInput

SCRIPTS = {
    (chapter.number, name): script
    for chapter in chapters()
    for name, script in scripts(chapter.load(), chapter.number).items()
}
KNOWN = "def f(given):\n    given.append(9)\n\n\nx = [[1], [2]]"


def cells_of(*sources, name="fig-it"):
    """Code cells, the last of which shows a figure."""
    cells = [new_code_cell(source) for source in sources]
    cells[-1].metadata["mystnb"] = {"figure": {"name": name}}
    return cells


def body_of(*sources):
    """The script of a chapter's last cell between its head and its last line."""
    head, body = alone(cells_of(*sources), 4).split("\n\n", 1)
    assert head.startswith("# Draws fig-it of chapter 4")
    body, end = body.rsplit("\n", 2)[:2]
    assert end == 'figure.savefig("fig-it.svg")'
    return body


def value_of(sources):
    """The value of the last expression of cells that are executed in their order."""
    known, value = {}, None
    for source in sources:
        tree = ast.parse(source)
        shown = isinstance(tree.body[-1], ast.Expr)
        last = tree.body.pop() if shown else None
        exec(compile(tree, "cell", "exec"), known)
        if last:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), known)
    return value


def test_a_script_has_what_the_figure_needs_as_it_is_written_and_nothing_else():
    chapter = [
        "import math\nimport json\nfrom statistics import (\n    mean,\n    median,\n)"
        "\n\nfrom thesis_book.execute import records\n\njson.dumps({})",
        "# of the runs\nn: int = 3  # runs\nspare: int = 4  # of the page",
        "n = 5",
        "rows, page = [], []\n\n# One after the other.\nfor k in range(n):\n"
        "    rows.append(k)  # of a run\npage.append(n)\nrecords.publish({'n': n})",
        "mean(\n    rows\n)",
    ]
    body = body_of(*chapter)
    assert body == (
        "from statistics import mean\n\nn = 5\n\nrows, page = [], []\n\n"
        "# One after the other.\nfor k in range(n):\n    rows.append(k)  # of a run\n\n"
        "figure = mean(\n    rows\n)"
    )
    whole = value_of([line.partition("\nrecords.")[0] for line in chapter])
    assert value_of([body, "figure"]) == whole == 2


@pytest.mark.parametrize(
    "statement",
    [
        "x.append([3])",
        "x[0] = 3",
        "x[0].append(3)",
        "x += [3]",
        "x[0] += [3]",
        "x[0], z = 3, 4",
        "del x[0]",
        "z = x.pop()",
        "f(x)",
        "f(given=x)",
        "f(x[0])",
        "for each in x:\n    each.append(3)",
        "for z in (3, 4):\n    x.append([z])",
        "if x:\n    x = [3]",
        "try:\n    x = x[9]\nexcept IndexError:\n    x = [3]",
        "x = [*x, 3]",
    ],
)
def test_what_changes_what_the_figure_draws_is_kept(statement):
    chapter = [KNOWN, statement, "list(x)"]
    body = body_of(*chapter)
    assert statement in body
    assert "x = [[1], [2]]" in body
    assert value_of([body, "figure"]) == value_of(chapter) != [[1], [2]]


@pytest.mark.parametrize(
    "statement",
    [
        "y = len(x)",
        "print(x)",
        "records.publish({'x': x})",
        "parameters.check(globals(), x)",
        "table(x)",
        "for each in x:\n    records.publish({'x': each})",
        "try:\n    x.index(3)\nexcept ValueError as why:\n    records.publish(why)",
        "z = [x for x in (1, 2)]",
        "z = sorted((1, 2), key=lambda x: -x)",
        "y = x[0]",
        "y = x.count(3)",
        "x = 3\nx = [[1], [2]]",
    ],
)
def test_what_leaves_it_as_it_is_or_serves_the_page_is_not(statement):
    body = body_of(KNOWN, statement, "list(x)")
    assert statement not in body
    assert value_of([body, "figure"]) == [[1], [2]]


@pytest.mark.parametrize(
    ("sources", "kept"),
    [
        (["n = 1", "n = 2"], ["n = 2"]),
        (["n = 1", "n = n + 2"], ["n = 1", "n = n + 2"]),
        (["n: int = 1", "if 0:\n    n = 2"], ["n: int = 1", "if 0:\n    n = 2"]),
        (
            ["m = 1", "with open(__file__) as m:\n    n = m.name"],
            ["with open(__file__) as m:\n    n = m.name"],
        ),
        (
            ["m = 1", "n = [(lambda at, m=m: m)(0) for k in (2,)]"],
            ["m = 1", "n = [(lambda at, m=m: m)(0) for k in (2,)]"],
        ),
        (["k = 1", "n = 0\nfor k in (3, 4):\n    n += k"],
         ["n = 0\nfor k in (3, 4):\n    n += k"]),
    ],
)  # fmt: skip
def test_the_last_that_sets_a_name_hides_those_before_unless_it_reads_them(
    sources, kept
):
    assert body_of(*sources, "n") == "\n\n".join([*kept, "figure = n"])


def test_the_cell_of_another_figure_is_not_drawn_and_what_it_sets_is_kept():
    other = cells_of("y = 2 * x[0]\nf(x)", name="fig-other")
    cells = [*cells_of(KNOWN, "0")[:1], *other, *cells_of("[x, y]")]
    script = scripts(new_notebook(cells=cells), 4)["fig-it"]
    assert "y = 2 * x[0]" in script
    assert "f(x)" not in script


@pytest.mark.parametrize("source", ["", "figure = x", "# nothing"])
def test_a_figure_without_a_value_is_refused(source):
    with pytest.raises(InvalidInput, match="cell of fig-it ends without a value"):
        alone(cells_of("x = 1", source), 4)


def loaded_first(code: CodeType, known: set[str]) -> set[str]:
    """Names that compiled code loads before it has stored them; `known` is added to."""
    missing = set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            missing |= {step.argval} - known
        elif step.opname in ("STORE_NAME", "STORE_GLOBAL"):
            known.add(step.argval)
        elif isinstance(step.argval, CodeType):
            missing |= loaded_first(step.argval, known)
    return missing


@pytest.mark.parametrize(("number", "name"), SCRIPTS)
def test_every_name_of_a_script_is_set_before_and_none_is_of_the_page(number, name):
    script = SCRIPTS[number, name]
    code = compile(script, name, "exec")
    assert not loaded_first(code, {*dir(builtins), "__annotations__"})
    used = {n.id for n in ast.walk(ast.parse(script)) if isinstance(n, ast.Name)}
    assert not used & (PAGE - {"print"})
    assert "figures.theme()\n" in script
    assert max(map(len, script.splitlines())) <= 88


def test_every_figure_of_every_chapter_has_a_script():
    names = [
        cell.metadata["mystnb"]["figure"]["name"]
        for chapter in chapters()
        for cell in chapter.load().cells
        if "figure" in cell.metadata.get("mystnb", {})
    ]
    assert sorted(names) == sorted(name for _, name in SCRIPTS)


@pytest.mark.parametrize(
    ("number", "name"),
    [(1, "fig-model-sizes"), (2, "fig-collapse"), (3, "fig-worked-hybrid")],
)
def test_a_script_draws_in_an_empty_folder_what_the_chapter_draws(
    number, name, tmp_path
):
    cells = [c for c in chapters()[number - 1].load().cells if c.cell_type == "code"]
    named = [c.metadata.get("mystnb", {}).get("figure", {}).get("name") for c in cells]
    expected = drawn(value_of([c.source for c in cells[: named.index(name) + 1]]))
    (tmp_path / "it.py").write_text(SCRIPTS[number, name])
    told = (
        "import runpy; from thesis_book.figures.export import drawn; "
        "print(drawn(runpy.run_path('it.py')['figure']).to_csv(index=False), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(expected) > 10
    assert done.stdout == expected.to_csv(index=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.svg", "it.py"]
    assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
