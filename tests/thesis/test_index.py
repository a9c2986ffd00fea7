"""What leads to a section: an entry of the index that it speaks of, or its number."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).parents[2]
SAID = yaml.safe_load((ROOT / "book" / "index_entries.yml").read_text())
LABEL = r"^\(([\w-]+)\)=$|^:(?:name|label): ([\w-]+)$|\$\$ \((eq-[\w-]+)\)$"
TERM = re.compile(r"^\S.*$", re.MULTILINE)


def cells(chapter: Path) -> Iterator[str]:
    """The texts of a chapter, and after them those of its details."""
    found = nbformat.read(chapter, as_version=4).cells
    for cell in sorted(found, key=lambda c: "details" in c.metadata.get("tags", [])):
        if cell.cell_type == "markdown":
            yield cell.source
        shown = cell.metadata.get("mystnb", {})
        for told in (shown.get("figure", {}), cell.metadata.get("table", {})):
            if "name" in told:
                yield f":name: {told['name']}\n{told['caption']}"
        yield shown.get("image", {}).get("alt", "")


def sections() -> dict[str, str]:
    """The section that each label stands in, with what is below it without a label."""
    found = {}
    for chapter in ROOT.glob("notebooks/*.ipynb"):
        whole = "\n\n".join(cells(chapter))
        for section in re.split(r"(?m)^(?<!\)=\n)(?=\([\w-]+\)=\n|##? )", whole):
            for hit in re.finditer(LABEL, section, re.MULTILINE):
                found[hit[1] or hit[2] or hit[3]] = section
    return found


def speaks(section: str, entry: str) -> bool:
    """Whether a section has a word of an entry, by how the word begins."""
    plain = re.sub(r"\{cite\}`[^`]*`", "", section).lower()
    words = [word for word in re.findall(r"\w+", entry.lower()) if len(word) > 2]
    return any(re.search(rf"\b{word[:5]}", plain) for word in words)


def test_a_section_speaks_of_what_it_has_the_word_of():
    section = "## Drop\nWhat is dropped {cite}`codel2012`"
    assert speaks(section, "dropping; in vain")
    assert not speaks(section, "CoDel")


def test_every_entry_leads_to_a_section_that_speaks_of_it():
    known = sections()
    wrong = {
        f"{entry}: {label}"
        for entry, places in SAID["entries"].items()
        for label in ([places] if isinstance(places, str) else places)
        if not speaks(known.get(label, ""), entry)
    }
    assert not wrong


def test_a_section_without_a_number_is_not_referred_to_by_one():
    """A subsection of the details, whose number would have four parts."""
    chapters = ["\n\n".join(cells(path)) for path in ROOT.glob("notebooks/*.ipynb")]
    bare = set()
    for whole in chapters:
        details = re.split(r"(?m)^# Details of ", whole)[1:]
        bare |= set(re.findall(r"(?m)^\(([\w-]+)\)=\n### ", "".join(details)))
    assert bare
    pages = [*chapters, *(path.read_text() for path in ROOT.glob("book/*.md"))]
    assert not bare & set(re.findall(r"\{numref\}`([\w-]+)`", "\n".join(pages)))


def test_what_is_referred_to_is_an_entry():
    glossary = (ROOT / "book" / "glossary.md").read_text()
    terms = [
        line
        for block in re.findall(r":sorted:\n(.*?)```", glossary, re.DOTALL)
        for line in TERM.findall(block)
    ]
    heads = {entry.split("; ")[0] for entry in SAID["entries"]} | {*terms}
    assert 120 <= len(heads) <= 200
    assert {*SAID["see"].values(), *SAID["中文"].values()} <= heads
    assert not {*SAID["see"]} & heads
