"""The list of references: an entry is found under the words that the text cites.

Names and year are those of the reference style `author_year`. Two works of the same
names and year get a letter behind the year, in the text as well.
"""

from collections import defaultdict
from string import ascii_lowercase
from typing import Any

from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.sorting import BaseSortingStyle
from sphinx.application import Sphinx
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle
from sphinxcontrib.bibtex.style.template import join, year

_TEXT = AuthorYearReferenceStyle()


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


def setup(app: Sphinx) -> dict:
    register_plugin("pybtex.style.formatting", "cited", CitedStyle)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
