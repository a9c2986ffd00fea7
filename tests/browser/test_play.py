"""The interactive parts: their scripts calculate what the package does, for anybody."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from thesis_book.tables.worked_example import worked_batch
from thesis_book.widgets.explorer import explorer
from thesis_book.widgets.planner import planner
from thesis_book.widgets.schedule import POLICIES, by_hand, history
from thesis_book.widgets.widget import PARTS, widget
from thesis_lib.memory.cost.cards import read_cards
from thesis_lib.memory.cost.planning import ASSUMED_CARD
from thesis_lib.memory.model.shape import Shape
from thesis_lib.memory.model.spec import (
    WEIGHTS,
    ModelSpec,
    geometries,
    geometry,
)
from thesis_lib.memory.offload.footprint import geometry_footprint
from thesis_lib.memory.offload.plan import (
    ASSUMED_DECODE_BYTES_PER_S,
    PlanInfeasible,
    place,
    plan,
)

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "book" / "_static" / "play"
CASES = 250
PAGE = "book/play.html"
NAMES = {*PARTS, "cost"}


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
    page.keyboard.press("ArrowDown")  # the one after earliest deadline
    page.keyboard.press("Tab")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert root.locator("[role=status]").first.inner_text() == ""
    page.keyboard.press("Enter")
    said = root.locator("[role=status]").first.inner_text()
    chosen = list(POLICIES)[list(POLICIES).index("edf") + 1]
    truth = history(worked_batch(), chosen).violated.sum()
    assert said.startswith(f"You guessed 3 of 8. {truth} of 8 violate")
    page.keyboard.press("Tab")
    before = root.locator("svg").first.get_attribute("aria-label")
    page.keyboard.press("ArrowRight")
    assert root.locator("svg").first.get_attribute("aria-label") != before

    # By hand, after a guess at FIFO: the order of arrival without 4 is a best one.
    root.locator("select").focus()
    page.keyboard.press("Home")
    root.get_by_role("button", name="Commit the guess").focus()
    page.keyboard.press("Enter")
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


def test_nothing_tells_what_fifo_violates_before_the_guess_at_it(opened):
    page = opened("schedule")
    root = page.locator(".play")

    def told():
        svgs = root.locator("svg").all()
        texts = [root.inner_text(), *(svg.get_attribute("aria-label") for svg in svgs)]
        truth = history(worked_batch(), "fifo").violated.sum()
        return f"{truth} of 8 violate" in " ".join(texts)

    commit = root.get_by_role("button", name="Commit the guess")
    assert commit.count() == 1
    assert not told()
    commit.click()
    assert root.get_by_role("button", name="Drop transaction 0").is_hidden()
    assert not told()
    root.locator("select").select_option("fifo")
    assert not told()
    commit.click()
    assert told()
    root.locator("select").select_option("edf")
    assert root.get_by_role("button", name="Drop transaction 0").is_visible()


# --- The memory planner ---------------------------------------------------------
def machine_of(at):
    """The machine of a case, with the rates that `thesis plan` assumes."""
    lossless, host = at["weights"] == "lossless", at["host_bytes"]
    return replace(
        read_cards()[ASSUMED_CARD].machine(),
        device_bytes=at["device_bytes"],
        host_bytes=host,
        disk_bytes_per_s=at["disk_bytes_per_s"],
        link_bytes_per_s=at["link_bytes_per_s"] if host else np.inf,
        decode_bytes_per_s=ASSUMED_DECODE_BYTES_PER_S if lossless else np.inf,
    )


def expected(spec, at, stored):
    """What the package plans; of other formats than bf16 with what was embedded."""
    shape = Shape(at["batch"], at["context"])

    def needed(shape):
        dense = geometry_footprint(spec, shape, "dense")
        sizes = {key: stored[key] for key in asdict(dense).keys() & stored.keys()}
        scratch = stored["scratch_bytes"] + shape.batch * stored["scratch_per_sequence"]
        sizes |= {"kind": WEIGHTS[at["weights"]], "scratch_bytes": scratch}
        return replace(dense, **sizes)

    if at["weights"] == "bf16":
        options = {"batch": at["batch"], "context": at["context"], "ring": at["ring"]}
        return plan(spec, machine_of(at), **options)
    return place(spec, machine_of(at), at["ring"], shape, needed)


def same_plan(script, spec, at, stored):
    """The script's plan is the package's, and so is what it says of a refusal."""
    try:
        made = expected(spec, at, stored)
    except PlanInfeasible as refusal:
        said = str(refusal)

        def number(pattern):
            found = re.search(pattern, said)
            return found and int(found[1])

        if script["refused"] == "host":
            assert np.ceil(script["needs"] / 2**20) == number(r"give it (\d+) MiB")
            return "host"
        assert script["refused"] == "device"
        assert np.ceil(script["short"] / 2**20) == number(r"give it (\d+) MiB more")
        assert script["ring"] == number(r"use a ring of (\d+)")
        assert script["context"] == number(r"to (\d+) positions")
        assert script["batch"] == number(r"the batch from \d+ to (\d+)")
        return "device"
    assert script["refused"] is None
    assert [script[key] for key in ("ring", "resident", "host", "disk")] == [
        made.ring, made.resident_layers, made.host_layers, made.disk_layers
    ]  # fmt: skip
    assert script["device_peak_bytes"] == made.device_peak_bytes
    assert script["host_peak_bytes"] == made.host_peak_bytes
    assert [*script["parts"].values()] == [*made.summary()["parts_bytes"].values()]
    assert script["s_per_token"] == pytest.approx(made.predicted_s_per_token, rel=1e-12)
    assert script["limit"] == made.limit
    return made.limit


def random_case(rng, weights):
    def between(low, high):
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    return {
        "weights": weights,
        "batch": int(between(1, 65)),
        "context": int(between(1, 2049)),
        "ring": int(rng.integers(1, 7)),
        "device_bytes": int(between(2**29, 2**38)),
        "host_bytes": int(between(2**27, 2**38)) if rng.random() < 0.6 else 0,
        "link_bytes_per_s": between(1e9, 64e9),
        "disk_bytes_per_s": between(1e8, 14e9),
    }


PLAN = """(cases) => {
    const known = document.querySelector(".play").known;
    return cases.map(([model, at]) => Play.plan(known, typeof model === "string"
        ? known.geometries.find((each) => each.name === model)
        : Play.ownGeometry(known, model), at));
}"""


def test_the_planner_plans_what_the_package_plans(opened):
    page, rng = opened("planner"), np.random.default_rng(6)
    embedded = {each["name"]: each["stored"] for each in planner()["geometries"]}
    cases = [
        (name, random_case(rng, weights))
        for name in geometries()
        for weights in WEIGHTS
        for _ in range(CASES // 7)
    ]
    limits = [
        same_plan(script, geometry(name), at, embedded[name][at["weights"]])
        for (name, at), script in zip(cases, page.evaluate(PLAN, cases), strict=True)
    ]
    assert set(limits) == {"link", "disk", "decode", "compute", "host", "device"}


def test_a_geometry_of_ones_own_takes_what_its_rehearsal_finds(opened):
    page, rng = opened("planner"), np.random.default_rng(7)
    cases = []
    for _ in range(8):
        kv_heads, group = int(rng.integers(1, 9)), int(rng.integers(1, 5))
        heads = kv_heads * group
        hidden = heads * int(rng.choice([32, 64, 80, 128]))
        own = {
            "layers": int(rng.choice([2, 3, 5, 40, 98])), "hidden": hidden,
            "intermediate": int(hidden * rng.uniform(2, 5)), "heads": heads,
            "kv_heads": kv_heads, "vocab": int(rng.choice([300, 32_000, 262_144])),
        }  # fmt: skip
        at = random_case(rng, "bf16")
        cases.append((own, at | {"device_bytes": at["device_bytes"] // 16}))
    for (own, at), script in zip(cases, page.evaluate(PLAN, cases), strict=True):
        head_dim = own["hidden"] // own["heads"]
        spec = ModelSpec("own", **own, head_dim=head_dim, tied=False)
        same_plan(script, spec, at, {})


def test_the_planner_is_driven_by_keys_from_guess_to_truth(opened):
    page = opened("planner")
    root = page.locator(".play")
    root.get_by_label("Device memory").focus()
    page.keyboard.press("ArrowLeft")  # 6 GiB
    root.get_by_label("Your guess").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    status = root.locator("[role=status]")
    assert status.inner_text().startswith("You guessed refused. Refused: the device is")
    root.get_by_label("Device memory").focus()
    page.keyboard.press("End")
    made = plan(
        geometry("llama-65b"),
        replace(read_cards()[ASSUMED_CARD].machine(), device_bytes=192 * 2**30),
    )
    assert f"{1e3 * made.predicted_s_per_token:.3g} ms a token" in status.inner_text()
    assert "bound by computing" in status.inner_text()

    # Numbers of one's own: in 16 bits, and refused where they are no geometry.
    root.get_by_label("Weights").select_option("nf4")
    root.get_by_label("Model", exact=True).select_option("own numbers")
    assert root.get_by_label("Weights").input_value() == "bf16"
    assert "a token, bound by" in status.inner_text()
    root.get_by_label("KV heads").focus()
    page.keyboard.press("ArrowDown")  # 7, of 64 heads
    assert "a multiple of the KV heads" in status.inner_text()


# --- The explorer ---------------------------------------------------------------
def test_the_explorer_says_what_the_record_says(opened):
    page, rng = opened("explorer"), np.random.default_rng(5)
    record = json.loads((ROOT / "data/measurements/explorer.json").read_text())
    axes = record["settings"]["axes"]
    points = []
    for row in record["grid"]:
        same = [each for each in record["grid"] if each["policy"] == row["policy"]]
        at = {axis: row[axis] for axis in axes if axis != "load"}
        for axis in at:
            if len({each[axis] for each in same}) == 1:  # it does not read this axis
                at[axis] = float(rng.choice(axes[axis]))
        column = int(rng.integers(len(axes["load"])))
        points.append((row, column, at | {"load": axes["load"][column]}))
    assert len(points) > CASES
    found = page.evaluate(
        """(points) => {
            const known = document.querySelector(".play").known;
            return points.map(([policy, at]) => Play.explored(known, policy, at));
        }""",
        [(row["policy"], at) for row, _, at in points],
    )
    for (row, column, _), script in zip(points, found, strict=True):
        for name in ("violations", "reach", "above_reach", "goodput_per_s"):
            assert script[name] == (row[name][column] if name in row else None)


def test_the_explorer_is_driven_by_keys_from_guess_to_truth(opened):
    page = opened("explorer")
    root = page.locator(".play")
    root.get_by_label("Lag of the sequencer").focus()
    page.keyboard.press("End")
    root.get_by_label("Your guess").focus()
    page.keyboard.press("End")
    page.keyboard.press("Tab")
    assert root.locator("table").count() == 0
    page.keyboard.press("Enter")
    truth = page.evaluate(
        """() => Play.explored(document.querySelector(".play").known, "codel",
            {load: 1.1, slo_ms: 12.5, sigma: 0.2, lag_ms: 2}).violations"""
    )
    said = root.locator("[role=status]").inner_text()
    assert said.startswith(f"You guessed 100 %. CoDel violates {truth:.3g} %")
    assert root.locator("tr[aria-current]").inner_text().startswith("CoDel")
    root.get_by_label("Lag of the sequencer").focus()
    page.keyboard.press("Home")  # another point than the one that was guessed at
    said = root.locator("[role=status]").inner_text()
    assert said.startswith("You guessed 100 % at first. CoDel violates")


def test_no_interval_of_the_explorer_leaves_what_a_share_can_be(opened):
    page = opened("explorer")
    root = page.locator(".play")
    page.evaluate(
        """() => document.querySelector(".play").known.grid.forEach(
            (row) => { row.reach.fill(60); row.above_reach?.fill(60); })"""
    )
    root.get_by_role("button", name="Commit the guess").click()
    cells = root.locator("tbody td:nth-of-type(1), tbody td:nth-of-type(3)")
    texts = [text for text in cells.all_inner_texts() if text != "–"]
    spans = [[float(x) for x in re.findall(r"-?[\d.]+", text)] for text in texts]
    assert len(spans) == 2 * len(explorer()["titles"]) - 1
    for value, low, high in spans:
        expected = [max(0, value - 60), min(100, value + 60)]
        assert [low, high] == pytest.approx(expected, abs=0.1)


# --- All of them in the book ----------------------------------------------------
FAULTS = """() => {
    const shown = (e) => e.checkVisibility() && e.getClientRects().length;
    const numbers = (c) => c.match(/[\\d.]+/g).map(Number);
    const light = (c) => {
        const [r, g, b] = numbers(c).map((x) => x / 255).map(
            (x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (e) => {
        if (e.matches("text.play-on"))
            return getComputedStyle(e.previousElementSibling).fill;
        for (; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if ((numbers(colour)[3] ?? 1) === 1) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const faults = [];
    for (const e of document.querySelectorAll(".play :is(input, select, button)")) {
        const named = e.labels?.length || e.getAttribute("aria-label")
            || (e.tagName === "BUTTON" && e.textContent.trim());
        if (!named) faults.push(`no name: ${e.outerHTML.slice(0, 80)}`);
    }
    for (const e of document.querySelectorAll(".play svg"))
        if (e.getAttribute("role") !== "img" || !e.getAttribute("aria-label"))
            faults.push("a picture without a text");
    let texts = 0;
    for (const e of document.querySelectorAll(".play *")) {
        const own = [...e.childNodes].some(
            (n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !shown(e) || e.matches("option, title, script, style")) continue;
        texts++;
        const style = getComputedStyle(e);
        const [dark, bright] = [behind(e), e.matches("text") ? style.fill : style.color]
            .map(light).sort((a, b) => a - b);
        const contrast = (bright + 0.05) / (dark + 0.05);
        if (contrast < 4.5)
            faults.push(`${contrast.toFixed(2)}: ${e.outerHTML.slice(0, 80)}`);
    }
    if (texts < 100) faults.push(`only ${texts} texts`);
    const wide = document.documentElement.scrollWidth
        - document.documentElement.clientWidth;
    if (wide > 0) faults.push(`scrolls sideways by ${wide} px`);
    return faults;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280, 1920])
def test_anybody_can_read_and_reach_every_part(browser, html, width, theme):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.add_init_script(
        f"localStorage.setItem('mode', '{theme}');"
        f"localStorage.setItem('theme', '{theme}')"
    )
    page.goto((html / PAGE).as_uri(), wait_until="load")
    assert page.locator("html").get_attribute("data-theme") == theme
    parts = page.locator(".play")
    assert {part.get_attribute("data-play") for part in parts.all()} == NAMES
    unguessed = page.get_by_role("button", name="Commit the guess")
    page.locator(".play[data-play=schedule] select").select_option("fifo")
    while unguessed.count():  # a guess may open a part with another
        unguessed.first.click()
    page.get_by_role("button", name="To the end").click()
    for folded in page.locator(".play summary").all():
        folded.click()
    page.wait_for_timeout(50)
    assert page.evaluate(FAULTS) == []
    page.close()


def test_focus_is_seen_on_whatever_the_keys_reach(browser, html):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((html / PAGE).as_uri(), wait_until="load")
    page.locator(".play select").first.focus()
    rings = set()
    for _ in range(45):
        page.keyboard.press("Tab")
        within, ring = page.evaluate(
            """() => {
                const e = document.activeElement, style = getComputedStyle(e);
                return [e.closest(".play") !== null,
                    [style.outlineStyle, style.outlineWidth].join(" ")];
            }"""
        )
        if within:
            rings.add(ring)
    assert rings == {"solid 3px"}
    page.close()


def test_without_scripts_a_sentence_says_what_would_be_here(browser, html):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((html / PAGE).as_uri())
    for part in page.locator(".play").all():
        assert part.inner_text().strip().startswith("In a browser with JavaScript, ")
        assert part.locator("button:visible").count() == 0
    context.close()


def test_the_cost_of_a_guess_is_that_of_the_calculator(browser, html):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((html / PAGE).as_uri(), wait_until="load")
    root = page.locator(".play[data-play=cost]")
    assert root.locator("table").is_hidden()
    root.get_by_label("Your guess").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    rented = root.locator("td[data-cell=rented_usd]").first.inner_text()
    said = root.locator(".play-truth").inner_text()
    assert said == f"You guessed 1 USD. It is {rented} USD."
    page.close()


def test_the_scripts_are_small_and_ask_nobody():
    scripts = [path.read_text() for path in SCRIPTS.glob("*.js")]
    assert sum(map(len, scripts)) <= 60_000
    assert not re.search(
        r"\bfetch\(|XMLHttpRequest|import |https?:",
        "".join(script.replace("http://www.w3.org/2000/svg", "") for script in scripts),
    )
