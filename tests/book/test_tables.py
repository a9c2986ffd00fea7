"""Tables that are cited: those of data/, the references, cells, the glossary."""

import re
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

from thesis_book import figures
from thesis_book.execute import records
from thesis_lib.common.errors import InvalidInput

ROOT = Path(__file__).parents[2]
MODELS = pd.read_csv(ROOT / "data" / "model_sizes.csv")
DEVICES = pd.read_csv(ROOT / "data" / "devices.csv")
BIBLIOGRAPHY = (ROOT / "book" / "references.bib").read_text()
KEYS = re.findall(r"^@\w+\{([^,\s]+),", BIBLIOGRAPHY, re.MULTILINE)


def test_sixteen_bit_weights_are_two_bytes_a_parameter():
    assert (MODELS["fp16_bytes"] == 2 * MODELS["parameters"]).all()


def test_every_row_has_a_source_in_the_references():
    assert set(MODELS["source"]) | set(DEVICES["source"]) <= set(KEYS)


def test_no_reference_is_listed_twice_and_every_one_has_a_title():
    assert len(KEYS) == len(set(KEYS))
    for entry in re.split(r"^@", BIBLIOGRAPHY, flags=re.MULTILINE)[1:]:
        assert re.search(r"^  title = \{", entry, re.MULTILINE), entry[:40]
        assert entry.count("{") == entry.count("}"), entry[:40]


@pytest.mark.parametrize("pages", ["book/*.md", "notebooks/*.ipynb"])
def test_every_citation_is_in_the_references(pages):
    for page in ROOT.glob(pages):
        cited = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text())
        keys = {key.strip() for group in cited for key in group.split(",")}
        assert keys <= set(KEYS), page.name


def test_names_in_the_figure_of_sizes_do_not_overlap():
    figures.theme()
    figure = figures.model_sizes(MODELS, DEVICES).figure
    figure.canvas.draw()
    (ax,) = figure.axes
    names = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert set(MODELS["model"]) <= set(names)
    overlapping = [
        (a, b) for a, b in combinations(names, 2) if names[a].overlaps(names[b])
    ]
    assert not overlapping
    assert all(
        figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in names.values()
    )


def test_a_table_is_published_cell_by_cell_and_missing_cells_are_left_out(monkeypatch):
    monkeypatch.setattr(records, "_published", {})
    index = pd.MultiIndex.from_tuples([("GPTQ 3 + rank 8", 0.5), ("", "bf16")])
    table = pd.DataFrame({"bits a weight": [3.5, None], "n": [2, 16]}, index=index)
    records.publish_table("way", table)
    assert records.published() == {
        "way_GPTQ_3_rank_8_0_5_bits_a_weight": 3.5,
        "way_GPTQ_3_rank_8_0_5_n": 2,
        "way_bf16_n": 16,
    }
    records.publish_table("few", {"a": 1, "b": 2, "ab": 3}, "a.*")
    assert records.published().keys() & {"few_a", "few_b", "few_ab"} == {
        "few_a",
        "few_ab",
    }
    with pytest.raises(InvalidInput, match="published as way_a_b_n"):
        records.publish_table("way", pd.DataFrame({"n": [1, 2]}, index=["a b", "a+b"]))


def test_every_word_of_the_glossary_is_linked_by_a_chapter_and_no_other_is():
    text = (ROOT / "book" / "glossary.md").read_text()
    blocks = re.findall(r"```\{glossary\}\n(.*?)```", text, re.DOTALL)
    terms = {
        line
        for block in blocks
        for line in block.splitlines()
        if line and not line.startswith((" ", ":"))
    }
    linked = set()
    for page in ROOT.glob("notebooks/*.ipynb"):
        roles = re.findall(r"\{term\}`([^`]+)`", page.read_text())
        linked |= {role.split(" <")[-1].rstrip(">").lower() for role in roles}
    assert linked == {term.lower() for term in terms}
