"""Binder and Colab: what their configuration and the book's links point to exists."""

import ast
import importlib.util
import os
import re
import stat
from pathlib import Path

import nbformat
import pytest
import sphinx_book_theme
import yaml

from thesis_book.execute import chapters

ROOT = Path(__file__).parents[2]
BINDER = ROOT / "binder"
COLAB = nbformat.read(BINDER / "colab.ipynb", as_version=4)
CODE = [cell.source for cell in COLAB.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def extension():
    path = ROOT / "book" / "_ext" / "thesis_content.py"
    spec = importlib.util.spec_from_file_location("thesis_book", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def buttons(extension, page, address):
    context = {"header_buttons": [{"label": "download-buttons"}]}
    if address is not None:
        context["thesis_repository"] = address
    extension.add_launch_buttons(None, page, "page.html", context, None)
    return context["header_buttons"]


@pytest.mark.parametrize("end", ["", "_details", "_details_scale"])
@pytest.mark.parametrize("chapter", chapters.chapters(), ids=lambda c: c.name)
def test_a_chapter_links_to_itself_on_binder_and_to_the_notebook_for_colab(
    extension, chapter, end
):
    page = f"notebooks/{chapter.name}{end}"
    group, download = buttons(extension, page, "https://github.com/example/thesis")
    assert download == {"label": "download-buttons"}
    binder, colab = group["buttons"]
    host, path = binder["url"].split("?urlpath=lab/tree/")
    assert host == "https://mybinder.org/v2/gh/example/thesis/HEAD"
    assert (ROOT / path).samefile(chapter.path)
    host, path = colab["url"].split("/blob/HEAD/")
    assert host == "https://colab.research.google.com/github/example/thesis"
    assert (ROOT / path).samefile(BINDER / "colab.ipynb")
    assert f"choose {chapter.number} there" in colab["tooltip"]
    static = Path(sphinx_book_theme.__file__).parent / "theme" / "sphinx_book_theme"
    for link in (binder, colab):
        icon = static / link["icon"].replace("_static", "static", 1)
        assert icon.is_file(), "an icon must not come from the network"


@pytest.mark.parametrize(
    ("page", "address"),
    [
        ("notebooks/01_introduction", None),
        ("book/index", "https://github.com/example/thesis"),
        ("search", "https://github.com/example/thesis"),
    ],
)
def test_no_button_leads_nowhere(extension, page, address):
    assert buttons(extension, page, address) == [{"label": "download-buttons"}]


def test_binder_and_the_workflow_take_the_python_of_environment_yml():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(s for s in environment["dependencies"] if str(s).startswith("python"))
    version = python.removeprefix("python=")
    assert (BINDER / "runtime.txt").read_text().strip() == f"python-{version}"
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    asked = [
        step["with"]["python-version"]
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "setup-python" in step.get("uses", "")
    ]
    assert set(asked) == {version}


def test_binder_can_execute_its_script():
    assert os.stat(BINDER / "postBuild").st_mode & stat.S_IXUSR


def test_the_form_of_colab_offers_every_chapter_and_profile():
    chapter, profile = re.findall(r"# @param (\[.*\])", CODE[0])
    numbers = [str(found.number) for found in chapters.chapters()]
    assert ast.literal_eval(chapter) == numbers
    assert ast.literal_eval(profile) == list(chapters.PROFILES)


def test_colab_rejects_an_empty_address_before_it_does_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(CODE[0], names)
    with pytest.raises(ValueError, match="address of the repository is empty"):
        exec(CODE[1], names)
    assert not list(tmp_path.iterdir())
