"""Figures of others: each has a source, and nobody is faster than his hardware."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from thesis_book.experiments.memory import published
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.cost.cards import Card
from thesis_lib.memory.model.spec import geometry

ROOT = Path(__file__).parents[3]
CARDS = published.read_cards(ROOT / "data")
ROWS = published.read_rows(ROOT / "data")
MADE = published.predictions(ROOT / "data")
KEYS = re.findall(
    r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE
)
STEP = next(ROWS.itertuples())._replace(
    system="system", model="llama2-70b", device="card", bits=16, batch=1, prompt=0,
    generated=0, resident=False, prefetch=True, copy="pinned",
    disk_bytes_per_s=math.nan, figure=5.0, unit="s/token",
)  # fmt: skip
RUN = STEP._replace(batch=8, prompt=512, generated=32, unit="tokens/s", figure=2.0)
CARD = Card("card", 24 * 2**30, 1e12, 1e14, 4, 16, "key")


def test_every_figure_and_every_card_has_a_source_in_the_references():
    sources = set(ROWS.source)
    for card in CARDS.values():
        sources |= set(card.source.split("; "))
    assert sources <= set(KEYS)
    assert ROWS[["place", "reason"]].notna().all(axis=None)


def test_raw_rates_are_those_of_the_standard():
    for generation, bytes_per_s in ((3, 15.75e9), (4, 31.5e9)):
        card = replace(CARD, pcie_generation=generation)
        assert card.raw_bytes_per_s == pytest.approx(bytes_per_s, rel=1e-3)


def test_a_step_that_streams_everything_takes_its_bytes_over_the_link():
    layers = 80 * geometry("llama2-70b").layer_bytes
    link = 16 * 16e9 * 128 / 130 / 8 * 128 / 148  # lanes, transfers, coding, packets
    assert published.predict(STEP, CARD)["predicted_s"] == pytest.approx(layers / link)


def test_a_run_is_one_pass_over_its_prompts_and_a_step_for_each_further_token():
    spec = geometry("llama2-70b")
    step_s = 80 * spec.layer_bytes / CARD.link_bytes_per_s
    first_s = 8 * 512 * spec.flops_per_token() / 1e14 + spec.total_bytes / 1e12
    assert first_s > step_s  # the prompt is the slower one: both terms are seen
    made = published.predict(RUN, CARD)
    assert made["predicted_s"] == pytest.approx(first_s + 31 * step_s)


def test_published_throughput_stays_below_hardware_limit():
    assert (MADE.predicted_s >= MADE.bound_s).all()
    assert (MADE.published_s >= MADE.bound_s).all()


def test_better_hardware_and_fetching_ahead_are_never_slower():
    for row in MADE.itertuples():
        card, where = CARDS[row.device], f"{row.system}, {row.model}, {row.device}"
        for better in (
            replace(card, pcie_generation=5),
            replace(card, pcie_lanes=2 * card.pcie_lanes),
            replace(card, memory_bytes=card.memory_bytes + 2**30),
            replace(card, memory_bytes_per_s=2 * card.memory_bytes_per_s),
        ):
            faster_s = published.predict(row, better)["predicted_s"]
            assert faster_s <= row.predicted_s, where
        ahead_s, behind_s = (
            published.predict(row._replace(prefetch=prefetch), card)["predicted_s"]
            for prefetch in (True, False)
        )
        # A second buffer costs the place of one resident layer.
        layer_s = row.plan.layer_read_bytes / card.link_bytes_per_s
        assert ahead_s <= behind_s + layer_s * max(1, row.generated), where


def test_large_pinned_copies_are_predicted():
    """The goal, where the link is the limit and its rate is in the specification."""
    streamed = MADE.plan.map(lambda plan: plan.streamed_layers > plan.spec.layers / 5)
    goal = MADE[streamed & (MADE.unit == "s/token") & (MADE["copy"] == "pinned")]
    assert len(goal) >= 7
    assert goal.within.all(), goal.ratio


def test_every_figure_is_shown_in_its_own_unit():
    shown = published.readable(MADE)
    assert len(shown) == len(ROWS)
    ratio = shown.predicted / shown.published
    ratio = ratio.where(MADE.unit == "s/token", 1 / ratio)
    assert ratio.to_numpy() == pytest.approx(MADE.ratio.to_numpy())
    rates = MADE[MADE.unit == "tokens/s"]
    expected = rates.batch * rates.generated / rates.figure
    assert rates.published_s.to_numpy() == pytest.approx(expected.to_numpy())


def test_rows_are_complete():
    assert {*ROWS.device} <= CARDS.keys()
    assert {*ROWS["copy"]} <= {*published.COPIES}
    assert {*ROWS.unit} <= {*published.UNITS}
    assert (ROWS[["figure", "batch", "bits"]] > 0).all(axis=None)
    assert (ROWS.bits <= 16).all()
    rates = ROWS[ROWS.unit == "tokens/s"]
    assert (rates[["prompt", "generated"]] > 0).all(axis=None)


def test_counts_add_up():
    counted = published.counts(MADE)
    assert counted["pinned"] + counted["others"] == counted["rows"] == len(ROWS)
    assert counted["pinned_within"] <= counted["pinned"] <= counted["steps"]
    assert counted["pinned_within"] <= counted["within"]


@pytest.fixture
def changed(tmp_path):
    """Copies the tables with one cell of their first row changed."""

    def change(name, column, value):
        for file in (published.CARDS, published.ROWS):
            with (ROOT / "data" / file).open(newline="") as source:
                rows = list(csv.DictReader(source))
            if file == name:
                rows[0][column] = value
            with (tmp_path / file).open("w", newline="") as target:
                writer = csv.DictWriter(target, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        return tmp_path

    return change


@pytest.mark.parametrize(
    ("name", "column", "value", "says"),
    [
        (published.ROWS, "batch", "many", "offloading_published.csv cannot be read"),
        (published.ROWS, "resident", "perhaps", "and yes or no"),
        (published.CARDS, "pcie_generation", "9", "pcie_generation=9, pcie_lanes=16: "),
        (published.CARDS, "memory_bytes", "24GB", "cards.csv cannot be read"),
    ],
)
def test_what_cannot_be_predicted_is_rejected(changed, name, column, value, says):
    read = {published.ROWS: published.read_rows, published.CARDS: published.read_cards}
    with pytest.raises(InvalidInput, match=re.escape(says)):
        read[name](changed(name, column, value))


def test_a_prompt_needs_the_rate_of_products():
    with pytest.raises(InvalidInput, match="has no flops_per_s"):
        published.predict(RUN, replace(CARD, flops_per_s=None))
