"""Each chapter links a term of the glossary where it first uses it."""

import re
from pathlib import Path

import nbformat
import pytest

from thesis_book.figures import policy
from thesis_lib.sequencer import POLICIES

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted(ROOT.glob("notebooks/*.ipynb"))
# These are also everyday words, and a chapter may use them as such before.
EVERYDAY = {"claim", "critical", "device", "interval", "probe", "profile", "record"}
TERM = re.compile(r"\{term\}`([^`<]*)(?:<([^`>]*)>)?`")
NO_PROSE = re.compile(  # headings, labels, tables, directives and their options
    r"^```sh.*?^```|^(?:#|\(|\||:|\* -|  -|```|\$\$).*?$|\$\$.*?\$\$", re.DOTALL | re.M
)


def terms() -> list[str]:
    """The words of the glossary."""
    text = (ROOT / "book" / "glossary.md").read_text()
    blocks = re.findall(r"```\{glossary\}\n:sorted:\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in re.findall(r"^\S.*$", block, re.M)]


def prose(chapter: Path) -> str:
    """The sentences of a chapter, and after them those of its details."""
    cells = nbformat.read(chapter, as_version=4).cells
    told = [cell for cell in cells if cell.cell_type == "markdown"]
    told.sort(key=lambda cell: "details" in cell.metadata.get("tags", []))
    return NO_PROSE.sub("", "\n\n".join(cell.source for cell in told))


def unlinked(text: str, words: list[str]) -> dict[str, str]:
    """The words that a text uses before it links them, each with its surroundings."""

    def shown(hit: re.Match) -> str:
        return "\N{LEFT DOUBLE QUOTATION MARK}" + (hit[2] or hit[1]).strip().lower()

    marked = re.sub(r"\{[\w:]+\}`[^`]*`|`[^`]*`", "", TERM.sub(shown, text))
    first = {}
    for word in words:
        spaced = re.escape(word.lower()).replace(r"\ ", r"\s+")
        pattern = rf"(?<![\w-])({spaced})(?:s|es)?(?![\w-])"
        hit = re.search(f"\N{LEFT DOUBLE QUOTATION MARK}?{pattern}", marked, re.I)
        if hit and hit[0][0] != "\N{LEFT DOUBLE QUOTATION MARK}":
            first[word] = marked[max(0, hit.start() - 40) : hit.end() + 20]
    return first


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A {term}`sequencer` is a sequencer.", set()),
        ("A sequencer is a {term}`sequencer`.", {"sequencer"}),
        ("{term}`Two of them <sequencer>`: sequencers.", set()),
        ("The `sequencer`, a sequencer-like thing", set()),
        ("A key\nset", {"key set"}),
    ],
)
def test_first_use_is_separate_from_later_ones(text, found):
    assert {*unlinked(text, ["sequencer", "key set"])} == found


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_links_a_term_where_it_first_uses_it(chapter):
    words = [word for word in terms() if word not in EVERYDAY]
    assert len(words) > 50
    assert not unlinked(prose(chapter), words)


def test_an_entry_has_two_sentences_at_most():
    text = (ROOT / "book" / "glossary.md").read_text()
    for block in re.findall(r"```\{glossary\}\n:sorted:\n(.*?)```", text, re.DOTALL):
        for entry in re.split(r"\n\s*\n(?=\S)", block.strip()):
            assert len(re.findall(r"\.(?=\s|$)", entry)) <= 2, entry


def test_the_guide_lists_every_policy_under_the_name_that_figures_print():
    text = (ROOT / "book" / "which_policy.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert dict(rows) == {name: policy(name)["label"] for name in POLICIES}
    assert len(rows) == len(POLICIES)
