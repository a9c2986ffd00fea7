"""The page of notation has a row for each symbol of a formula, and no other row.

A symbol is a letter, Latin or Greek, with its alphabet, and with a subscript that is a
word or belongs to its name, as in `n_h`. Marks above a letter and indices are left out.
"""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "notation.md").read_text()
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\n]|\n(?!\s*\n))+?)\$", re.DOTALL)
CODE = re.compile(r"^```sh\n.*?^```", re.DOTALL | re.MULTILINE)
GREEK = (
    "alpha|beta|gamma|delta|varepsilon|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|"
    "phi|varphi|psi|omega|Delta|Phi|Sigma|ell"
)
NAMED = re.compile(r"(?<=\w)_\{?(?:\\text\{(\w+)\}|(h|kv|p))\}?(?!\w)")
NO_LETTER = re.compile(
    r"\\(?:begin|end|operatorname\*?|mathrm|mathit|text)\s*\{[^{}]*\}"
    rf"|\\(?!math(?:bf|bb|cal)\{{|(?:{GREEK})(?![A-Za-z]))[A-Za-z]+"
)
SYMBOL = re.compile(
    rf"(?:\\math(?:bf|bb|cal)\{{\w\}}|\\(?:{GREEK})|[A-Za-z])(?:<\w+>)?"
)
CHAPTERS = {"Part I": (2, 3, 4), "Part II": (2, 5, 6)}
ALWAYS = ("Everywhere", "Statistics")


def symbols(text: str) -> set[str]:
    """The symbols of the formulas of a text."""
    found: set[str] = set()
    for shown, inline in FORMULA.findall(CODE.sub("", text)):
        named = NAMED.sub(lambda hit: f"<{hit[1] or hit[2]}>", shown or inline)
        found |= {*SYMBOL.findall(NO_LETTER.sub(" ", named))}
    return found


def rows(group: str) -> set[str]:
    """The symbols that a group of the page has in its first column."""
    (section,) = re.findall(rf"^## {group}\b.*?(?=^## |\Z)", PAGE, re.DOTALL | re.M)
    return symbols("\n".join(re.findall(r"^\| (\$.*?\$) \|", section, re.MULTILINE)))


def used(chapter: int) -> set[str]:
    """The symbols of a chapter's prose and captions."""
    (path,) = ROOT.glob(f"notebooks/{chapter:02d}_*.ipynb")
    texts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            texts.append(cell.source)
        texts.append(cell.metadata.get("mystnb", {}).get("figure", {}).get("caption"))
        texts.append(cell.metadata.get("table", {}).get("caption"))
    return symbols("\n\n".join(filter(None, texts)))


def test_symbols_are_letters_with_their_names():
    text = r"""$\hat{s}_i \le n_{kv}\,\mathbf{x}$ and $10^6\, c_{\text{rent}}
    = \max_{j \prec i} \bigl(W_q, d_h, \tau\bigr) \text{ if late}$"""
    letters = {
        "s",
        "i",
        "n<kv>",
        r"\mathbf{x}",
        "c<rent>",
        "j",
        "W",
        "q",
        "d<h>",
        r"\tau",
    }
    assert symbols(text) == letters


@pytest.mark.parametrize("part", CHAPTERS)
def test_every_symbol_of_a_formula_has_a_row_of_its_part(part):
    known = rows(part).union(*map(rows, ALWAYS))
    other = set().union(*map(rows, CHAPTERS))
    for chapter in CHAPTERS[part]:
        of = known | other if chapter == 2 else known
        assert used(chapter) <= of, f"chapter {chapter}: {sorted(used(chapter) - of)}"


def test_no_row_has_a_symbol_that_no_formula_of_its_part_uses():
    for part, numbers in CHAPTERS.items():
        assert rows(part) <= set().union(*map(used, numbers)), part
    everything = set().union(*(used(n) for part in CHAPTERS.values() for n in part))
    for group in ALWAYS:
        assert rows(group) <= everything, sorted(rows(group) - everything)
