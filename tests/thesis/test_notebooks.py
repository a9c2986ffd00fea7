"""The chapters themselves: fixed names and sections, thin cells, clean outputs."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from thesis_book.execute import chapters
from thesis_book.render.staging import DETAILS

ROOT = Path(__file__).parents[2]
# Fixed by the thesis: a chapter's title and the sections that it must have, in order.
THESIS = {
    "01_introduction": ["Introduction"],
    "02_background": [
        "Background",
        "Database management system",
        "Deterministic database management system",
        "Deterministic latency estimator",
        "Service level agreement",
        "Machine learning",
        "Neural network",
        "Quantization",
        "Memory offloading",
    ],
    "03_enhanced_sequencer": [
        "Enhanced sequencer for database systems",
        "Drop",
        "Reorder",
        "Hybrid",
    ],
    "04_evaluation_ml_for_db": [
        "Evaluation: ML for database system",
        "Performance on SLA violations",
        "System throughput",
    ],
    "05_reducing_memory": [
        "Reducing memory usage for large transformer models",
        "Low rank decomposition",
        "Layer offloading",
    ],
    "06_evaluation_system_for_ml": [
        "Evaluation: system for ML",
        "GPU memory usage",
        "Inference latency",
        "IO vs compute",
        "Post training quantization",
        "Quantized inference latency",
        "Deployment cost analysis",
    ],
    "07_conclusions": ["Conclusions and future work"],
}
CHAPTERS = chapters.chapters()
LINES_PER_CELL = 25


def test_notebooks_map_one_to_one_to_the_chapters():
    assert [chapter.name for chapter in CHAPTERS] == list(THESIS)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_a_chapter_has_the_sections_of_the_thesis_in_order(chapter):
    text = "\n".join(
        c.source for c in chapter.load().cells if c.cell_type == "markdown"
    )
    headings = iter(re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE))
    for title in THESIS[chapter.name]:
        assert title in headings, f"{title!r} is missing or out of order"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_stored_outputs_are_exactly_those_that_nbval_compares(chapter):
    notebook = chapter.load()
    assert nbformat.writes(chapters.strip(chapter.load())) == nbformat.writes(notebook)
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if chapters.KEPT & tags:
            assert tags >= chapters.KEPT, f"tag both {chapters.KEPT}: {cell.source}"
            assert cell.outputs, f"no stored output to compare: {cell.source}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_what_a_check_prints_stands_on_no_page(chapter):
    """Readers get a sentence or a table with a caption; nbval compares the rest."""
    for cell in chapter.load().cells:
        outputs = [output.get("metadata", {}) for output in cell.get("outputs", [])]
        text = any("scrapbook" not in noted for noted in outputs)
        if (text and "table" not in cell.metadata) or re.search(
            r"\bprint\(", cell.source
        ):
            assert "remove-cell" in cell.metadata["tags"], cell.source


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_cells_are_thin(chapter):
    source = chapters.code(chapter.load())
    definitions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    assert not definitions, "definitions belong in the package"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_cells_of_a_chapter_are_at_most_25_lines_long(chapter):
    """A figure, the imports, the parameters and their limits may be longer."""
    long = [
        cell.id
        for cell in chapter.load().cells
        if cell.cell_type == "code"
        and "figure" not in cell.metadata.get("mystnb", {})
        and "figures.theme()" not in cell.source  # of the one cell with imports
        and not {"parameters", "limits"} & {*cell.metadata.get("tags", [])}
        and len(cell.source.splitlines()) > LINES_PER_CELL
    ]
    assert not long


# What measures how long something takes, and would measure other chapters with it.
MEASURES = re.compile(
    r"(?<!figures)\.(collect|serve|timeline|interleave|measure_machine|measure_decoding"
    r"|measure_passes|drain_bytes_per_s)\("
)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_cells_that_measure_run_alone(chapter):
    for cell in chapter.load().cells:
        if cell.cell_type == "code":
            tagged = chapters.ALONE in cell.metadata.get("tags", [])
            measures = MEASURES.search(cell.source)
            assert tagged == bool(measures), cell.id


@pytest.mark.parametrize("profile", chapters.PROFILES)
def test_every_profile_resolves(profile):
    chapters.resolve(CHAPTERS, profile, {})


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_every_parameter_is_described(chapter):
    for parameter in chapters.parameters(chapter).values():
        assert parameter.help, f"{parameter.name} has no comment that says what it is"


def test_the_commit_hook_keeps_exactly_those_outputs(tmp_path):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entry = next(h["entry"] for h in hooks[0]["hooks"] if h["id"] == "nbstripout")
    command = shlex.split(entry)
    command[0] = str(Path(sys.executable).with_name("nbstripout"))
    for chapter in CHAPTERS:
        copy = tmp_path / chapter.path.name
        shutil.copy(chapter.path, copy)
        subprocess.run([*command, str(copy)], check=True)
        assert copy.read_bytes() == chapter.path.read_bytes(), chapter.name


def test_chapters_import_the_package_before_torch():
    for chapter in CHAPTERS:
        imported = [
            (name or "").partition(".")[0]
            for node in ast.walk(ast.parse(chapters.code(chapter.load())))
            for name in (
                [node.module]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
        ]
        assert "torch" not in imported[: imported.index("thesis_lib")], chapter.name


def bindings(source: str) -> dict[str, set[str]]:
    """The names that a cell binds outside of comprehensions, with how: by an `import`,
    `with`, `for` or `=`."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = (alias.asname or alias.name).partition(".")[0]
                found.setdefault(name, set()).add("import")
            continue
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For | ast.NamedExpr):
            targets = [node.target]
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            targets = [node.optional_vars]
        how = {ast.For: "for", ast.withitem: "with"}.get(type(node), "=")
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    found.setdefault(part.id, set()).add(how)
    return found


def rebound(cells: list[str]) -> dict[str, list[set[str]]]:
    """Return names that several cells assign, and how each cell does it."""
    found: dict[str, list[set[str]]] = {}
    for source in cells:
        for name, how in bindings(source).items():
            found.setdefault(name, []).append(how)
    return {
        name: hows
        for name, hows in found.items()
        if name != "_"
        and len(hows) > 1
        and set().union(*hows) not in ({"for"}, {"with"})
    }


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["from a import spec", "spec = 3"], ["spec"]),
        (["import a.b", "import a"], ["a"]),
        (["x = 1", "y, (x, *z) = 1, (2, 3)"], ["x"]),
        (["x = 1", "for x in y: pass"], ["x"]),
        (["with a as x: pass", "(x := 3)"], ["x"]),
        (["for x in y: pass", "for x in z: pass", "with a as b: pass"], []),
        (["x = 1\nx += 1", "y = [x for x in z]", "_, y.x = z"], []),
    ],
)
def test_a_name_with_two_meanings_is_found(cells, names):
    assert list(rebound(cells)) == names


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_a_name_has_one_meaning_and_imports_stand_in_one_cell(chapter):
    """So that any cell behind the imports can be run again, in any order that has what
    it needs. A parameter may be completed by one cell."""
    cells = [c.source for c in chapter.load().cells if c.cell_type == "code"]
    twice = {
        name: hows
        for name, hows in rebound(cells).items()
        if name not in chapters.parameters(chapter) or hows != [{"="}, {"="}]
    }
    assert not twice
    importing = [s for s in cells if "import" in set().union(*bindings(s).values())]
    assert len(importing) == 1


def test_a_larger_profile_does_no_less_of_any_work():
    """Of each parameter that the time of a chapter grows with; of a list, the most."""
    chosen = chapters.select([])
    by_profile = [chapters.resolve(chosen, name, {}) for name in chapters.PROFILES]
    less = []
    for chapter in chosen:
        for name, parameter in chapters.parameters(chapter).items():
            if not parameter.limits.work:
                continue
            values = [resolved[chapter.name][name] for resolved in by_profile]
            most = [max(v) if isinstance(v, list) else v for v in values]
            if most != sorted(most):
                less.append((chapter.name, name, most))
    assert not less


def test_pages_of_details_stand_below_their_chapter():
    """Jupyter Book builds what its contents name, and is silent of the rest."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    below = {
        page["file"]: [section["file"] for section in page.get("sections", [])]
        for part in toc["parts"]
        for page in part["chapters"]
    }
    for chapter in CHAPTERS:
        cells = nbformat.read(chapter.path, as_version=4).cells
        aside = [c.source for c in cells if DETAILS in c.metadata.get("tags", [])]
        labels = re.findall(r"(?m)^\([\w-]+-details(-\w+)?\)=\n# ", "\n".join(aside))
        name = f"notebooks/{chapter.name}"
        ends = [label.replace("-", "_") for label in labels]
        assert below[name] == [f"{name}_{DETAILS}{end}" for end in ends]
        assert bool(ends) == bool(aside)


def details(chapter: chapters.Chapter, aside: bool = True) -> str:
    """What a chapter says on its page of details, or else on its own page."""
    return "\n\n".join(
        cell.source
        for cell in chapter.load().cells
        if cell.cell_type == "markdown"
        and (DETAILS in cell.metadata.get("tags", [])) == aside
    )


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_a_section_of_details_answers_a_question_that_a_page_raises(chapter):
    """Its label is cited where its result is told, and its first words ask."""
    text = details(chapter)
    pages = [details(each, aside=False) for each in CHAPTERS]
    pages += [page.read_text() for page in (ROOT / "book").glob("*.md")]
    cited = {*re.findall(r"`(?:[^`<]*<)?([\w-]+)>?`", "\n".join(pages))}
    sections = r"^(?:\(([\w-]+)\)=\n)?## (.+)\n\n(.+(?:\n.+)*)"
    for label, title, opening in re.findall(sections, text, re.MULTILINE):
        assert re.fullmatch(r"\*[^*]+\?\*", opening), f"{title} asks no *question?*"
        assert label in cited, f"no page cites {title}, ({label})="
