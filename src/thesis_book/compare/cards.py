"""What the card beside a cited claim says: its value, and how far to believe it."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from thesis_book.compare.audit import Audited, anchor, rests
from thesis_book.compare.comparison import demand
from thesis_book.compare.present import as_change, format_quantity
from thesis_book.execute.pages import render_page


def claim_cards(
    audited: Sequence[Audited],
    rows: pd.DataFrame,
    doubted: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    """The card of each claim that was published, as HTML, by its anchor in the audit.

    `rows` hold the same run against its reference; `doubted` says, by chapter and name,
    which of its times should not be believed, and why. Links start at the book's root.
    """
    pairs = zip(rows["claim"], rows["expected"], strict=True)
    expected = {claim.key: value for claim, value in pairs}
    cards = {}
    for each in audited:
        key = each.claim.key
        if each.record is not None and each.value is not None:
            why = doubted.get(each.record.chapter, {}).get(key, "")
            told = [*_told(each, expected.get(key), why)]
            cards[anchor(key)] = render_page(
                "card.html", says=each.claim.says, told=told, anchor=anchor(key)
            )
    return cards


def _told(each: Audited, expected: float | None, why: str) -> Iterator[tuple[str, str]]:
    """The lines of a card, each with its name."""
    claim, record = each.claim, each.record
    assert record is not None  # without one a claim has no card
    value, word = each.value, record.numbers.get(f"{claim.key}_word", "")
    if value is not None and word:  # prose gives a reduction as `publish_change` does
        value, _ = as_change(value)
    yield "Value", f"{format_quantity(value, claim)} {claim.unit} {word}".strip()
    if why:
        yield "In doubt", why
    if each.basis.of:
        yield "Rests on", rests(each)
    yield "Kind", f"{claim.kind}: {demand(claim, expected)}"
    commit = record.commit if record.clean else f"{record.commit}, with changes"
    yield "Commit", f"{commit}, {record.started[:10]}"
    cores = record.machine["cores"]
    yield "Machine", f"{record.machine['cpu']}, {cores} core{'s' * (cores != 1)}"
