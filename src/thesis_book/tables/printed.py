"""A frame as a reader sees it: printed names, words for marks, one form of numbers."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pandas as pd
from markupsafe import escape

from thesis_book.figures.style import policy

MINUS, NOTHING, ENDLESS = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{INFINITY}"
NUMERAL = re.compile(rf"{MINUS}?[\d,]+(\.\d+)?|{NOTHING}|{MINUS}?{ENDLESS}")
NAMES = {  # what each table prints for these names of the program
    "low": "from", "high": "to", "bf16": "bfloat16", "int8": "LLM.int8()",
    "nf4": "NF4", "fp4": "FP4", "accelerate": "Accelerate", "diffusers": "Diffusers",
    "sqlite": "SQLite", "postgresql": "PostgreSQL", "q-error p50": "q-error, median",
    "q-error p95": "q-error, 95th percentile",
}  # fmt: skip
HTML, CLAIMS = "text/html", "claims"  # what a notebook keeps beside a table
WORDS = ' class="text"'  # of a cell that does not stand under the point of a number


def signed(number: str) -> str:
    """A formatted number with the minus sign of print, which a zero has not."""
    sign = MINUS if re.search("[1-9]", number) else ""
    return re.sub(r"^-(?=[\d.,]+$)", sign, number)


@dataclass(frozen=True, slots=True)
class Table:
    """A frame of texts under printed names; `numbers` (columns,) stand to the right.

    It shows itself as text in a terminal and as HTML in a notebook. The book gives it
    the number, caption and label of its cell's metadata `table`, and a card to the
    numbers of `claims`: (row, column from the right, -1 the last) by published name.
    """

    frame: pd.DataFrame
    numbers: tuple[bool, ...]
    claims: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.frame.to_string()

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, dict]]:
        noted = {HTML: {CLAIMS: self.claims}} if self.claims else {}
        return {HTML: self._repr_html_()}, noted

    def _repr_html_(self) -> str:
        head, body = "\n".join(self._head()), "\n".join(self._body())
        return (
            f'<table class="dataframe">\n<thead>\n{head}\n</thead>\n'
            f"<tbody>\n{body}\n</tbody>\n</table>"
        )

    def _head(self) -> list[str]:
        columns = self.frame.columns
        rows = [
            "".join(
                _cell(
                    label, "col" if width == 1 else "colgroup",
                    WORDS * (width == 1 and not self.numbers[first]), colspan=width,
                )
                for label, first, width in _spans(columns, level)
            )
            for level in range(columns.nlevels)
        ]  # fmt: skip
        for level, name in reversed([*enumerate(columns.names)]):
            if name is not None:
                above = _cell(_named(name), "colgroup", colspan=len(columns))
                rows.insert(level, above)
        corner = "".join(
            _cell(_named(name), "col", WORDS, rowspan=len(rows))
            for name in self.frame.index.names
        )
        return [f"<tr>{corner * (not at)}{row}</tr>" for at, row in enumerate(rows)]

    def _body(self) -> list[str]:
        index = self.frame.index
        names: list[str] = [""] * len(index)
        for level in range(index.nlevels):
            for label, first, height in _spans(index, level):
                scope = "row" if height == 1 else "rowgroup"
                names[first] += _cell(label, scope, rowspan=height)
        return [
            f"<tr>{name}"
            + "".join(
                f"<td{WORDS * (not number)}>{escape(text)}</td>"
                for text, number in zip(row, self.numbers, strict=True)
            )
            + "</tr>"
            for name, row in zip(names, self.frame.to_numpy(), strict=True)
        ]


def table(
    frame: pd.DataFrame | pd.Series,
    digits: int | Mapping[Hashable, int] = 1,
    names: Mapping[Hashable, str] | None = None,
    claims: Mapping[str, tuple[Hashable, Hashable]] | None = None,
) -> Table:
    """A frame as it is printed, with so many digits behind the point.

    `digits` may name columns (an outermost or innermost label), others have 1.
    Integers have none. Labels are those of `names` and of NAMES, the printed name of a
    policy, or themselves with blanks for underscores; the ends of an interval,
    `…_low` and `…_high`, are "from" and "to". True and False are yes and no, a missing
    value is a dash. A column of numbers alone stands to the right. `claims` says where
    published numbers stand, by their names: (row, column) of the frame.
    """
    frame = frame.to_frame() if isinstance(frame, pd.Series) else frame
    ends = {
        label: NAMES[end]
        for label in frame.columns
        for end in ("low", "high")
        if f"{label}".endswith(f"_{end}")
    }
    names = NAMES | ends | dict(names or {})
    columns = []
    for label, values in frame.items():
        parts = label if isinstance(label, tuple) else (label,)
        known = {} if isinstance(digits, int) else digits
        wanted = [known[part] for part in (label, *parts) if part in known]
        after = digits if isinstance(digits, int) else next(iter(wanted), 1)
        columns.append([_text(value, after, names) for value in values])
    shown = pd.DataFrame(
        dict(enumerate(columns)), index=_labels(frame.index, names), dtype=object
    )
    shown.columns = _labels(frame.columns, names)
    numbers = [all(map(NUMERAL.fullmatch, texts)) for texts in columns]
    rows, heads = frame.index.tolist(), frame.columns.tolist()
    places = {
        name: (rows.index(row), heads.index(column) - len(heads))
        for name, (row, column) in (claims or {}).items()
    }
    return Table(shown, tuple(numbers), places)


def _text(value: Any, digits: int, names: Mapping[Hashable, str]) -> str:
    """One value as it is printed."""
    if isinstance(value, str):
        return str(_named(value, names)) if _is_name(value, names) else value
    if pd.isna(value):
        return NOTHING
    if pd.api.types.is_bool(value):
        return "yes" if value else "no"
    if not pd.api.types.is_number(value):
        return str(value)
    digits = 0 if pd.api.types.is_integer(value) else digits
    return f"{value:z,.{digits}f}".replace("inf", ENDLESS).replace("-", MINUS)


def _is_name(text: str, names: Mapping[Hashable, str]) -> bool:
    """Whether a text in a cell is a name of the program, and no text of its own."""
    return text in names or text.replace("-", "_").isidentifier()


def _named(label: Hashable, names: Mapping[Hashable, str] | None = None) -> Hashable:
    """A label under its printed name; None, which names nothing, stays."""
    if names and label in names:
        return names[label]
    if not isinstance(label, str):
        return label
    return policy(label)["label"].replace("_", " ")


def _labels(index: pd.Index, names: Mapping[Hashable, str]) -> pd.Index:
    """The labels of an index, each level under its printed names, as texts."""

    def text(label: Hashable) -> str:
        named = _named(label, names)
        return named if isinstance(named, str) else f"{named}".replace("-", MINUS)

    if isinstance(index, pd.MultiIndex):
        texts = [tuple(map(text, label)) for label in index]
        return pd.MultiIndex.from_tuples(texts, names=index.names)
    return pd.Index([text(label) for label in index], name=index.name, dtype=object)


def _spans(index: pd.Index, level: int) -> Sequence[tuple[str, int, int]]:
    """Return runs of equal labels on one level and above: (label, first, length)."""
    labels = [x if isinstance(x, tuple) else (x,) for x in index]
    if level == index.nlevels - 1:
        return [(label[-1], at, 1) for at, label in enumerate(labels)]
    runs = groupby(enumerate(labels), key=lambda item: item[1][: level + 1])
    spans = [(label[-1], [at for at, _ in run]) for label, run in runs]
    return [(label, ats[0], len(ats)) for label, ats in spans]


def _cell(label: Hashable, scope: str, looks: str = "", **spans: int) -> str:
    """A heading, or an empty cell where there is nothing to say."""
    wide = "".join(f' {name}="{size}"' for name, size in spans.items() if size > 1)
    if label is None or label == "":
        return f"<td{wide}></td>"
    return f'<th scope="{scope}"{looks}{wide}>{escape(label)}</th>'
