"""The list of references: an entry is found under the words that the text cites.

Names and year are those of the reference style `author_year`. Two works of the same
names and year get a letter behind the year, in the text as well. The thesis itself,
which has no name, is cited in full once on a page.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.sorting import BaseSortingStyle
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle
from sphinxcontrib.bibtex.style.template import join, year

from thesis_book.render.offers import CITED

_TEXT = AuthorYearReferenceStyle()
THESIS = "thesis"  # its key


def cited(entry: Any) -> str:
    """What the text says of an entry: its names, or else its title, and its year."""
    names = _TEXT.person.author_or_editor_or_title(full=False)
    text = join(sep=_TEXT.author_year_sep)[names, year]
    return text.format_data({"entry": entry, "style": _TEXT}).render_as("text")


class CitedLabels(BaseLabelStyle):
    """Labels are the words of the text, of which no two entries have the same."""

    def format_labels(self, sorted_entries):
        alike = defaultdict(list)
        for entry in sorted_entries:
            alike[cited(entry)].append(entry)
        for entries in (each for each in alike.values() if len(each) > 1):
            for letter, entry in zip(ascii_lowercase, entries, strict=False):
                dated = entry.fields.get("year")
                entry.fields["year"] = f"{dated}{letter}" if dated else f"n.d.-{letter}"
        return [cited(entry) for entry in sorted_entries]


class CitedSorting(BaseSortingStyle):
    def sorting_key(self, entry):
        return cited(entry).casefold()


class CitedStyle(Style):
    default_label_style = CitedLabels
    default_sorting_style = CitedSorting


def cite_thesis_once(app: Sphinx, doctree: nodes.document) -> None:
    """Cite the thesis in full where a page does so first, and briefly after that.

    A sentence that has named it needs no more, another gets the word in brackets.
    """
    known = ("cite", THESIS)
    cites = [
        node
        for node in doctree.findall(pending_xref)
        if (node.get("refdomain"), node["reftarget"]) == known
    ]
    for cite in cites[1:]:
        sentence, place = cite.parent, cite.parent.index(cite)
        before = "".join(part.astext() for part in sentence[:place])
        said, last = re.split(r"[.!?]\s|。", before)[-1], sentence[place - 1]
        if re.search("[Tt]hesis|原論文", said) and isinstance(last, nodes.Text):
            sentence[place - 1 : place + 1] = [nodes.Text(last.rstrip())]
        else:
            sentence[place] = nodes.Text("[thesis]")


def keep_labels(app: Sphinx, error: Exception | None) -> None:
    """Write beside the pages' sources how the text cites each work, by its key."""
    if error is None and app.builder.name == "html":
        citations = app.env.get_domain("cite").citations
        labels = {each.key: each.formatted_entry.label for each in citations}
        (Path(app.outdir) / CITED).write_text(json.dumps(labels))


def setup(app: Sphinx) -> dict:
    register_plugin("pybtex.style.formatting", "cited", CitedStyle)
    app.connect("doctree-read", cite_thesis_once)
    app.connect("build-finished", keep_labels)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
