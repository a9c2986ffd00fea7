"""Cards of cited claims: the value and the strength of its evidence."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from thesis_book.compare.audit import anchor
from thesis_book.compare.present import as_change, format_quantity
from thesis_book.execute.pages import render_page


def claim_cards(
    audited: pd.DataFrame,
    rows: pd.DataFrame,
    doubted: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    """Return the card of each published claim, as HTML, by its anchor in the audit.

    `rows` hold the same run against its reference; `doubted` says, by chapter and name,
    which of its times should not be believed, and why. Links start at the book's root.
    """
    demands = dict(zip(rows["claim"], rows["demand"], strict=True))
    row: Any
    cards = {}
    for row in audited.dropna(subset=["record", "value"]).itertuples():
        why = doubted.get(row.record.chapter, {}).get(row.name, "")
        lines = [*_lines(row, demands[row.name], why)]
        at = anchor(row.name)
        cards[at] = render_page("card.html", says=row.says, told=lines, anchor=at)
    return cards


def _lines(row: Any, demand: str, why: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a card, each with its name."""
    record, value = row.record, row.value
    word = record.numbers.get(f"{row.name}_word", "")
    if word:  # prose gives a reduction as `publish_change` does
        value, _ = as_change(value)
    yield "Value", f"{format_quantity(value, row.rtol)} {row.unit} {word}".strip()
    if why:
        yield "In doubt", why
    if row.of:
        yield "Rests on", row.rests
    yield "Kind", f"{row.kind}: {demand}"
    commit = record.commit if record.clean else f"{record.commit}, with changes"
    yield "Commit", f"{commit}, {record.started[:10]}"
    cores = record.machine["cores"]
    yield "Machine", f"{record.machine['cpu']}, {cores} core{'s' * (cores != 1)}"
