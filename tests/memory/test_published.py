"""Figures of others: each has a source, and nobody is faster than his hardware."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.cost import published
from thesis_lib.memory.model.spec import geometry

ROOT = Path(__file__).parents[2]
CARDS = published.read_cards(ROOT / "data")
ROWS = published.read_rows(ROOT / "data")
MADE = published.predictions(ROOT / "data")
KEYS = re.findall(
    r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE
)
NAMES = [f"{row.system}, {row.model}, {row.device}, {row.batch}" for row in ROWS]
STEP = published.Row(
    "system", "llama2-70b", "card", 16, 1, 0, 0, False, True, "pinned", None, 5.0,
    "s/token", "key", "page", "",
)  # fmt: skip
RUN = replace(STEP, batch=8, prompt=512, generated=32, unit="tokens/s", figure=2.0)
CARD = published.Card("card", 24 * 2**30, 1e12, 1e14, 4, 16, "key")


def test_every_figure_and_every_card_has_a_source_in_the_references():
    sources = {row.source for row in ROWS}
    for card in CARDS.values():
        sources |= set(card.source.split("; "))
    assert sources <= set(KEYS)
    assert all(row.place and row.reason for row in ROWS)


def test_raw_rates_are_those_of_the_standard():
    lanes = {
        generation: replace(CARD, pcie_generation=generation) for generation in (3, 4)
    }
    assert lanes[4].raw_bytes_per_s == pytest.approx(31.5e9, rel=1e-3)
    assert lanes[3].raw_bytes_per_s == pytest.approx(15.75e9, rel=1e-3)


def test_a_step_that_streams_everything_takes_its_bytes_over_the_link():
    layers = 80 * geometry("llama2-70b").layer_bytes
    link = 16 * 16e9 * 128 / 130 / 8 * 128 / 148  # lanes, transfers, coding, packets
    assert published.predict(STEP, CARD).predicted_s == pytest.approx(layers / link)


def test_a_run_is_one_pass_over_its_prompts_and_a_step_for_each_further_token():
    spec = geometry("llama2-70b")
    step_s = 80 * spec.layer_bytes / CARD.link_bytes_per_s
    first_s = 8 * 512 * spec.flops_per_token() / 1e14 + spec.total_bytes / 1e12
    assert first_s > step_s  # the prompt is the slower one: both terms are seen
    made = published.predict(RUN, CARD)
    assert made.predicted_s == pytest.approx(first_s + 31 * step_s)
    assert RUN.published_s == 8 * 32 / 2.0


@pytest.mark.parametrize("made", MADE, ids=NAMES)
def test_nobody_is_faster_than_his_hardware(made):
    assert made.predicted_s >= made.bound_s
    assert made.row.published_s >= made.bound_s


@pytest.mark.parametrize("made", MADE, ids=NAMES)
def test_better_hardware_and_fetching_ahead_are_never_slower(made):
    row, card = made.row, made.card
    for better in (
        replace(card, pcie_generation=5),
        replace(card, pcie_lanes=2 * card.pcie_lanes),
        replace(card, memory_bytes=card.memory_bytes + 2**30),
        replace(card, memory_bytes_per_s=2 * card.memory_bytes_per_s),
    ):
        assert published.predict(row, better).predicted_s <= made.predicted_s
    ahead_s = published.predict(replace(row, prefetch=True), card).predicted_s
    behind_s = published.predict(replace(row, prefetch=False), card).predicted_s
    # A second buffer costs the place of one resident layer.
    layer_s = made.plan.layer_read_bytes / card.link_bytes_per_s
    assert ahead_s <= behind_s + layer_s * max(1, row.generated)


def test_pinned_copies_of_more_than_a_fifth_of_a_model_are_foretold():
    """The goal, where the link is the limit and its rate is in the specification."""
    streamed = [
        made
        for made in MADE
        if made.row.unit == "s/token"
        and made.row.copy == "pinned"
        and made.plan.streamed_layers > made.plan.spec.layers / 5
    ]
    assert len(streamed) >= 7
    assert all(made.is_within for made in streamed), [made.ratio for made in streamed]


def test_the_table_has_a_row_for_each_figure_in_its_own_unit():
    shown = published.table(MADE)
    assert len(shown) == len(ROWS)
    for made, line in zip(MADE, shown.to_dict("records"), strict=True):
        ratio = line["predicted"] / line["published"]
        if made.row.unit == "tokens/s":
            ratio = 1 / ratio
        assert ratio == pytest.approx(made.ratio)
        assert line["ratio"] == made.ratio


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
        (published.ROWS, "device", "Abacus", "device='Abacus' is unknown"),
        (published.ROWS, "model", "llama-9b", "model='llama-9b' is unknown"),
        (published.ROWS, "unit", "s", "unit='s' is unknown"),
        (published.ROWS, "copy", "slow", "copy='slow' is unknown"),
        (published.ROWS, "batch", "many", "invalid literal"),
        (published.ROWS, "figure", "0", "figure=0, batch=1, bits=16: expected all"),
        (published.ROWS, "unit", "tokens/s", "a rate over 0 + 0 tokens"),
        (published.CARDS, "pcie_generation", "9", "16 lanes of PCIe 9: expected a"),
        (published.CARDS, "memory_bytes", "24GB", "invalid literal"),
    ],
)
def test_what_cannot_be_predicted_is_refused(changed, name, column, value, says):
    with pytest.raises(InvalidInput, match=re.escape(says)):
        published.read_rows(changed(name, column, value))


def test_a_prompt_needs_the_rate_of_products():
    with pytest.raises(InvalidInput, match="has no flops_per_s"):
        published.predict(RUN, replace(CARD, flops_per_s=None))
