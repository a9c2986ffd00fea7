"""The interactive parts: their scripts calculate what the package does, for anybody."""

from pathlib import Path

import numpy as np
import pytest

from thesis_lib.book.play.schedule import POLICIES, by_hand, history
from thesis_lib.book.play.widget import widget
from thesis_lib.book.tables.worked_example import worked_batch

pytestmark = pytest.mark.browser

SCRIPTS = Path(__file__).parents[2] / "book" / "_static" / "play"
CASES = 250


@pytest.fixture
def opened(browser):
    """Open a part by name, without the book around it; no page may complain."""
    pages, faults = [], []

    def open_part(name):
        page = browser.new_page(viewport={"width": 800, "height": 900})
        pages.append(page)
        page.on("pageerror", lambda error: faults.append(str(error)))
        scripts = [(SCRIPTS / f"{each}.js").read_text() for each in ("play", name)]
        code = "".join(f"<script>{script}</script>" for script in scripts)
        page.set_content(widget(name) + code)
        assert page.locator(".play-still").count() == 0
        return page

    yield open_part
    for page in pages:
        page.close()
    assert not faults


def same_history(script, history):
    """Every time of the script is that of the package, to the last bit."""
    for name in ("granted_s", "start_s", "finish_s"):
        values = getattr(history, name)
        assert script[name] == [None if np.isnan(v) else v for v in values], name
    assert script["dropped"] == history.dropped.tolist()
    assert script["late"] == history.late.tolist()
    assert script["violations"] == history.violated.sum()


def test_the_player_shows_what_every_policy_does(opened):
    page, batch = opened("schedule"), worked_batch()
    found = page.evaluate(
        """() => {
            const batch = document.querySelector(".play").known;
            return batch.policies.map((each) => Play.watched(batch, each));
        }"""
    )
    assert len(found) == len(POLICIES)
    for name, script in zip(POLICIES, found, strict=True):
        same_history(script, history(batch, name))


def test_an_order_by_hand_runs_as_the_simulator_runs_it(opened):
    page, batch = opened("schedule"), worked_batch()
    rng = np.random.default_rng(8)
    orders = [
        rng.permutation(len(batch.trace))[: rng.integers(0, 9)].tolist()
        for _ in range(CASES)
    ]
    found = page.evaluate(
        """(orders) => {
            const batch = document.querySelector(".play").known;
            return orders.map((log) => Play.byHand(batch, log));
        }""",
        orders,
    )
    for log, script in zip(orders, found, strict=True):
        same_history(script, by_hand(batch, log))


def test_the_player_is_driven_by_keys_from_guess_to_truth(opened):
    page = opened("schedule")
    root = page.locator(".play")
    root.locator("select").focus()
    page.keyboard.press("ArrowDown")  # the second policy
    page.keyboard.press("Tab")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert root.locator("[role=status]").first.inner_text() == ""
    page.keyboard.press("Enter")
    said = root.locator("[role=status]").first.inner_text()
    truth = history(worked_batch(), list(POLICIES)[1]).violated.sum()
    assert said.startswith(f"You guessed 3 of 8. {truth} of 8 violate")
    page.keyboard.press("Tab")
    before = root.locator("svg").first.get_attribute("aria-label")
    page.keyboard.press("ArrowRight")
    assert root.locator("svg").first.get_attribute("aria-label") != before

    # By hand: the order of arrival without 4 is a best one.
    root.get_by_role("button", name="Later: transaction 0").focus()
    page.keyboard.press("Enter")
    assert root.locator("li").first.inner_text().startswith("1")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # "Earlier", of the same transaction
    assert root.locator("li").first.inner_text().startswith("0")
    drop = root.get_by_role("button", name="Drop transaction 4")
    drop.focus()
    page.keyboard.press("Space")
    assert drop.get_attribute("aria-pressed") == "true"
    root.get_by_role("button", name="Commit the guess").focus()
    page.keyboard.press("Enter")
    best = page.evaluate("document.querySelector('.play').known.best.violations")
    mine = by_hand(worked_batch(), [0, 1, 2, 3, 5, 6, 7]).violated.sum()
    assert root.get_by_text(
        f"No schedule has fewer than {best}, which is proven; yours has {mine}."
    ).is_visible()
