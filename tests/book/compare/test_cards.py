"""The card of a claim says what its row of the audit says, and whose run it was."""

import re
from dataclasses import replace

import pytest
from bs4 import BeautifulSoup
from runs import CLAIM, EXACT, SEEDS, WHOLE, record

from thesis_book.compare.audit import audit, page_lines
from thesis_book.compare.cards import claim_cards
from thesis_book.compare.comparison import Run, compare
from thesis_book.execute import records
from thesis_book.execute.claims import Claims

NEAR = {"kind": "tolerance", "rtol": 0.02, "why": "kernels round"}
TIME = {"kind": "time", "follows": "drain", "factor": 2.0, "unit": "s"}


def carded(numbers=WHOLE, doubted=None, basis=SEEDS, clean=True, **changes):
    """The lines of the one card by their names, the card, and the audit's cells."""
    claims = Claims({"the_share": replace(CLAIM, **changes)}, {"seeds": basis})
    made = replace(record("04_x", **numbers), clean=clean)
    reference = Run("there", (record("04_x", **WHOLE),))
    rows = compare([Run("here", (made,))], claims.claims, reference).rows
    audited = audit(claims, [made], {"sec-shown"})
    cards = claim_cards(audited, rows, doubted or {})
    (row,) = (line for line in page_lines(audited, {}) if "claim-the-share" in line)
    card = BeautifulSoup(cards.get("claim-the-share", ""), "html.parser")
    names, texts = ([t.get_text() for t in card.select(x)] for x in ("dt", "dd"))
    return dict(zip(names, texts, strict=True)), card, row


def test_a_claim_with_an_interval_says_all_that_its_row_says_and_more():
    lines, card, row = carded()
    assert lines == {
        "Value": "5.0 (4.0 to 6.0) %",
        "Rests on": "20 seeds, Student",
        "Kind": "exact: equal bit for bit",
        "Commit": "c0ffee, 2026-01-01",
        "Machine": "A & B, 2 cores",
    }
    assert card.p.get_text() == "A share <of> it"
    (link,) = card.select("a")
    anchor = re.findall(r"\{#([\w-]+)\}", row)
    assert link["href"] == f"book/audit.html#{anchor[0]}"
    shown = [cell.strip() for cell in row.strip("| ").split("|")]
    assert lines["Value"].removesuffix(" %") == shown[1]
    assert shown[2].startswith(lines["Rests on"])


def test_a_claim_without_an_interval_is_its_value_alone():
    lines, _, _ = carded({"the_share": 7}, basis=EXACT, unit="")
    assert lines["Value"] == "7"
    assert "Rests on" not in lines
    lines, _, _ = carded(WHOLE | {"the_share_interval": "range"})
    assert lines["Value"] == "5.0 (range 4.0 to 6.0) %"


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (5.0, 4.0, 6.0, "5.0 (4.0 to 6.0) % fewer"),
        (-0.8, -1.6, 0.4, "0.8 (−0.4 to 1.6) % more"),
    ],
)
def test_card_of_a_reduction_has_the_sign_and_the_word_of_the_text(
    value, low, high, shown, monkeypatch
):
    numbers = {"the_share": value, "the_share_low": low, "the_share_high": high}
    monkeypatch.setattr(records, "_published", WHOLE | numbers)
    records.publish_change("the_share")
    published = records.published()
    lines, _, _ = carded(published)
    assert lines["Value"] == shown
    assert shown.startswith(f"{published['the_share_by']:.1f}")
    assert shown.endswith(f"% {published['the_share_word']}")


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        (NEAR, "Kind", "tolerance: within 2 % of the reference: kernels round"),
        (TIME, "Kind", "time: 1.00 times the reference by the rate of the disk, with"),
        ({"clean": False}, "Commit", "c0ffee, with changes"),
    ],
)
def test_card_lines_are_words(changes, name, text):
    assert carded(**changes)[0][name].startswith(text)


def test_a_time_in_doubt_says_why_and_no_other_does():
    why = {"04_x": {"the_share": "disturbed: others took 1.90 cores"}}
    lines, _, _ = carded(doubted=why, **TIME)
    assert lines["In doubt"] == why["04_x"]["the_share"]
    assert [*lines][:2] == ["Value", "In doubt"]
    other = {"04_x": {"another": "disturbed"}, "05_x": {"the_share": "disturbed"}}
    assert "In doubt" not in carded(doubted=other, **TIME)[0]


def test_a_claim_that_was_not_published_has_no_card():
    assert carded({})[0] == {}
