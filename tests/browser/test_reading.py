"""The book for who listens, uses keys, sees poorly, or waits for a network."""

import itertools
import re
from importlib.resources import files
from urllib.parse import urlsplit

import pytest
from test_book import MISSING, pages

pytestmark = pytest.mark.browser

AXE = files("axe_playwright_python").joinpath("axe.min.js")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
CONTRAST = "color-contrast"  # the one rule that takes milliseconds for each text
AXE_RUNS = [  # the colours of a theme are those of any width
    (1280, "light", RULES), (1280, "dark", [CONTRAST]), (390, "dark", RULES),
]  # fmt: skip
STILL = """() => document.head.insertAdjacentHTML('beforeend', `<style>
    * { transition: none !important; animation: none !important; }</style>`)"""
# One text of each look: of all with its colour and size, on what stands behind them.
LOOKS = """() => {
    const behind = (element) => {
        if (!element) return "";
        const style = getComputedStyle(element);
        const own = [style.backgroundColor, style.backgroundImage, style.opacity,
            style.position, style.visibility, style.display];
        return own.join() + ";" + behind(element.parentElement);
    };
    const looks = new Map();
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        if (!texts.currentNode.data.trim()) continue;
        const element = texts.currentNode.parentElement;
        const style = getComputedStyle(element);
        const own = [style.color, style.fontSize, style.fontWeight, style.textShadow];
        const look = own.join() + behind(element);
        if (!looks.has(look)) looks.set(look, element);
    }
    return [...looks.values()];
}"""
VIOLATIONS = f"""async ([rules, contrast]) => {{
    const off = {{ [contrast]: {{ enabled: false }} }};
    const texts = await axe.run({{ include: ({LOOKS})() }}, {{ runOnly: [contrast] }});
    if (rules.length == 1 && rules[0] == contrast) return texts.violations;
    const others = await axe.run({{ runOnly: rules, rules: off }});
    return [...others.violations, ...texts.violations];
}}"""
MOST_KB = 1_500
MOST_FONTS_KB = 200
MOST_SHIFT = 0.05  # of the screen, a tenth of what readers call unstable
FIRST = "book/index.html"
SCREENS = ((1280, 800), (390, 844))
MOST_WORDS = 3_500  # of a chapter's main page: 15 minutes, 233 words each
TEXT = """article => {
    const text = article.cloneNode(true);
    for (const other of text.querySelectorAll(
        "script, style, math, svg, .cell_input, .headerlink, details:not([open])")) {
        other.remove();
    }
    return text.textContent.replace(/[¶]/g, " ");
}"""
SHIFTS = """window.shifts = [];
    new PerformanceObserver((list) => window.shifts.push(...list.getEntries()))
        .observe({ type: "layout-shift", buffered: true });"""


@pytest.fixture
def screen(browser):
    """A page of a given width and theme; it is closed with the test."""
    opened = []

    def screen(width, theme="light", **options):
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, **options)
        opened.append(context)
        keep = f"localStorage.setItem('mode','{theme}');"
        context.add_init_script(
            f"{keep}localStorage.setItem('theme','{theme}');sessionStorage.clear();"
        )
        return context.new_page()

    yield screen
    for context in opened:
        context.close()


def violations(page, rules=RULES):
    """What axe finds on a page, with the contrast of one text of each look."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text())
        page.evaluate(STILL)
    return page.evaluate(VIOLATIONS, [rules, CONTRAST])


@pytest.mark.parametrize(("width", "theme", "rules"), AXE_RUNS)
def test_axe_finds_no_violation_on_any_page(screen, html, server, width, theme, rules):
    page, wrong = screen(width, theme), {}
    for name in [*pages(html), "search.html?q=tail", MISSING]:
        page.goto(f"{server}/{name}", wait_until="load")
        faults = {
            f"{fault['id']}: {node['html'][:150]} {node['failureSummary'][:200]}"
            for fault in violations(page, rules)
            for node in fault["nodes"]
        }
        if faults:
            wrong[name] = faults
    assert not wrong


def test_every_page_is_light(screen, html, server):
    heavy = {}
    for name in pages(html):
        got, page = [], screen(1280)  # which has nothing of the page before
        page.on("response", lambda response, got=got: got.append(response))
        page.goto(f"{server}/{name}", wait_until="networkidle")
        size = {r.url: int(r.headers["content-length"]) for r in got if r.status == 200}
        whole = sum(size.values()) / 1000
        # The style of the fonts holds the faces of the text.
        fonts = sum(n for url, n in size.items() if "/fonts" in url) / 1000
        english = page.evaluate("() => document.documentElement.lang == 'en'")
        if whole > MOST_KB and name != FIRST:
            heavy[name] = f"{whole:.0f} kB"
        if english and fonts > MOST_FONTS_KB:
            heavy[name] = f"{fonts:.0f} kB of fonts"
    assert not heavy


@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_nothing_in_sight_moves_while_a_page_loads(
    browser, html, server, pictures, width, height
):
    moved = {}
    for name in pages(html):
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size)  # with nothing in its cache
        context.add_init_script(SHIFTS)
        page = context.new_page()
        pictures.clear()  # a slow network brings them when the rest is there
        page.goto(f"{server}/{name}", wait_until="domcontentloaded")
        page.evaluate("() => document.fonts.ready")
        page.wait_for_timeout(100)
        pictures.set()
        page.wait_for_load_state("load")
        page.wait_for_timeout(100)
        shift = page.evaluate("() => shifts.reduce((sum, one) => sum + one.value, 0)")
        context.close()
        if shift > MOST_SHIFT:
            moved[name] = round(shift, 3)
    assert not moved


def test_a_chapter_is_read_in_a_quarter_of_an_hour(screen, html, server):
    page, words = screen(1280), {}
    for chapter in sorted((html / "notebooks").glob("*.html")):
        if "_details" not in chapter.name:
            page.goto(f"{server}/notebooks/{chapter.name}")
            text = page.locator("article.bd-article").evaluate(TEXT)
            words[chapter.stem] = len(re.findall(r"\S*\w\S*", text))
    assert len(words) == 7
    assert all(1_000 < count <= MOST_WORDS for count in words.values()), words


@pytest.mark.parametrize("width", [1280, 1600])
def test_the_column_does_not_wait_for_the_list_of_sections(screen, server, width):
    page = screen(width)
    page.goto(f"{server}/notebooks/06_evaluation_system_for_ml.html")
    column, contents = map(
        page.locator, (".bd-article-container", ".bd-sidebar-secondary")
    )
    beside = column.bounding_box()["width"]
    contents.evaluate("(element) => element.remove()")
    assert column.bounding_box()["width"] == pytest.approx(beside, abs=0.5)


@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_drawing_and_results_are_on_the_first_screen(screen, server, width, height):
    page = screen(width)
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"{server}/{FIRST}")
    results = page.locator(".front-result")  # a title, a drawing, and bars
    parts = [results.locator(part).all() for part in ("h2", "svg", ".ours")]
    if width < height:  # a phone, with one result below the other
        parts = [shown[:1] for shown in parts]
    assert all(parts)
    for result in itertools.chain(*parts):
        box = result.bounding_box()
        assert 0 <= box["y"] < box["y"] + box["height"] <= height


def test_keys_reach_everything_and_show_where_they_are(screen, server):
    page = screen(1280)
    page.goto(f"{server}/notebooks/03_enhanced_sequencer.html")
    reached, hidden = [], []
    for _ in range(400):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
                const e = document.activeElement;
                if (e === document.body) return null;
                const style = getComputedStyle(e), box = e.getBoundingClientRect();
                const ring = style.outlineStyle !== 'none'
                    && parseFloat(style.outlineWidth) >= 2;
                return [e.tagName, !!e.closest('math, .formula'), ring,
                    e.outerHTML.slice(0, 120), box.width * box.height > 0];
            }"""
        )
        if stop is None:
            break
        reached.append(stop)
        if not (stop[2] and stop[4]):
            hidden.append(stop[3])
    assert not hidden
    assert not [stop for stop in reached if stop[1]], "a formula is a stop"
    all_links = page.locator("article a:visible").count()
    assert sum(tag == "A" for tag, *_ in reached) >= all_links > 10


def test_the_switch_of_modes_keeps_the_focus_and_says_the_mode(screen, server):
    page = screen(1280)
    page.goto(f"{server}/book/abstract.html")
    switch = page.locator(".theme-switch-button:visible")
    for _ in range(3):
        switch.focus()
        page.keyboard.press("Enter")
        mode = page.evaluate("() => document.documentElement.dataset.mode")
        said = {"light": "Light", "dark": "Dark", "auto": "System Settings"}[mode]
        assert switch.get_attribute("aria-label") == f"Colour mode: {said}"
        assert page.evaluate(
            "() => document.activeElement.matches('.theme-switch-button')"
        )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_new_reader_gets_the_mode_of_the_system(browser, html, server, theme):
    context = browser.new_context(color_scheme=theme)
    page = context.new_page()
    for name in (FIRST, MISSING):
        page.goto(f"{server}/{name}", wait_until="networkidle")
        shown = page.evaluate("() => document.documentElement.dataset.theme")
        assert shown == theme, name
        page.evaluate("() => localStorage.clear()")
    context.close()
    context = browser.new_context(color_scheme=theme, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server}/{FIRST}")
    assert page.locator("html").get_attribute("data-theme") == "light"
    context.close()


@pytest.mark.parametrize("forced", ["none", "active"])
def test_no_page_scrolls_sideways_nor_cuts_a_picture(screen, html, server, forced):
    page, wrong = screen(1280, forced_colors=forced, reduced_motion="reduce"), {}
    for name in pages(html):
        page.goto(f"{server}/{name}", wait_until="load")
        for width in (1920, 1280, 1024, 768, 390, 320):
            page.set_viewport_size({"width": width, "height": 900})
            faults = page.evaluate(
                """() => {
                    const root = document.documentElement, edge = root.clientWidth;
                    const over = root.scrollWidth - edge;
                    const cut = [...document.querySelectorAll('article :is(img, svg)')]
                        .filter((e) => !e.closest('.figure-box'))  // which scrolls
                        .filter((e) => e.getBoundingClientRect().right > edge + 1);
                    return [...(over > 0 ? [`the page, by ${over}`] : []),
                        ...cut.map((e) => e.outerHTML.slice(0, 80))];
                }"""
            )
            if faults:
                wrong[f"{name} at {width}"] = faults
    assert not wrong


BROKEN = """() => [...document.querySelectorAll(
    'article tbody tr > :first-child:not([colspan])')].flatMap((name) => {
    const words = document.createTreeWalker(name, NodeFilter.SHOW_TEXT), found = [];
    for (let text; (text = words.nextNode()); )
        for (const word of text.data.matchAll(/\\p{L}{2,12}/gu)) {
            const range = document.createRange();
            range.setStart(text, word.index);
            range.setEnd(text, word.index + word[0].length);
            if (range.getClientRects().length > 1) found.push(word[0]);
        }
    if (name.scrollWidth > name.clientWidth + 1) found.push(`wide: ${name.innerText}`);
    return found;
})"""


def test_on_a_phone_a_row_has_its_name_in_one_column_and_in_whole_words(
    screen, html, server
):
    page, wrong = screen(390, reduced_motion="reduce"), {}
    for name in pages(html):
        page.goto(f"{server}/{name}", wait_until="load")
        if broken := page.evaluate(BROKEN):
            wrong[name] = broken
    assert not wrong


NOTES = "article aside.margin"
COVERED = """async (note) => {
    const covered = [], bar = document.querySelector('.bd-header-article');
    for (const top of [innerHeight - 50, 620, 580, 300, bar.offsetHeight, -40]) {
        scrollBy(0, note.getBoundingClientRect().top - top);
        for (let frame = 0; frame < 3; frame++)
            await new Promise(requestAnimationFrame);
        const box = note.getBoundingClientRect();
        const last = Math.min(box.bottom, innerHeight) - 1;
        for (let y = Math.max(box.top, bar.offsetHeight) + 1; y < last; y += 5)
            for (const x of [box.left + 1, (box.left + box.right) / 2, box.right - 1])
                if (document.elementFromPoint(x, y)?.closest('aside') !== note)
                    covered.push(`${Math.round(y - box.top)} of it, at ${top}`);
    }
    return covered;
}"""
BOXES = """() => [...document.querySelectorAll('article aside.margin')].map((note) => {
    const around = [note, note.previousElementSibling, note.nextElementSibling];
    return around.map((each) => each && each.getBoundingClientRect().toJSON());
})"""


@pytest.fixture(scope="module")
def noted(html):
    """The pages with side notes."""
    note = 'class="margin"'
    found = [name for name in pages(html) if note in (html / name).read_text()]
    assert len(found) >= 4
    return found


@pytest.mark.parametrize("width", [1200, 1280, 1440, 1920])
def test_nothing_stands_over_a_side_note(screen, server, noted, width):
    page, wrong = screen(width, reduced_motion="reduce"), {}
    for name in noted:
        page.goto(f"{server}/{name}", wait_until="load")
        column = page.locator(".bd-article-container").bounding_box()
        end = column["x"] + column["width"]
        notes = [boxes[0] for boxes in page.evaluate(BOXES)]
        assert all(end < note["left"] < note["right"] < width for note in notes), name
        for above, below in itertools.pairwise(notes):
            assert above["bottom"] < below["top"], name
        for number, note in enumerate(page.locator(NOTES).all()):
            if covered := note.evaluate(COVERED):
                wrong[f"{name}, note {number}"] = covered
    assert not wrong


def test_the_list_of_sections_folds_for_a_side_note_and_for_no_more(
    screen, server, noted
):
    page = screen(1280, reduced_motion="reduce")
    page.goto(f"{server}/{noted[0]}", wait_until="load")
    contents = page.locator(".bd-sidebar-secondary")

    def height():
        page.wait_for_timeout(200)
        return contents.bounding_box()["height"]

    whole = height()
    page.locator(NOTES).first.evaluate("(note) => note.scrollIntoView()")
    assert height() < 60 < whole
    link = contents.locator("a").first
    link.focus()
    assert height() == pytest.approx(whole, abs=1)
    page.wait_for_timeout(600)  # it fades in
    assert (
        page.locator("nav.page-toc").evaluate("(e) => getComputedStyle(e).opacity")
        == "1"
    )
    link.evaluate("(link) => link.blur()")
    assert height() < 60
    page.evaluate("scrollTo(0, 0)")
    assert height() == pytest.approx(whole, abs=1)


@pytest.mark.parametrize(
    ("width", "media"),
    [(1024, "screen"), (390, "screen"), (320, "screen"), (643, "print")],
)
def test_a_side_note_without_a_margin_follows_its_paragraph(
    screen, server, noted, width, media
):
    page = screen(width)
    page.emulate_media(media=media)
    for name in noted:
        page.goto(f"{server}/{name}", wait_until="load")
        for note, before, after in page.evaluate(BOXES):
            assert before["bottom"] <= note["top"], name
            if after and after["height"]:  # what is for screens has none on paper
                assert note["bottom"] <= after["top"], name
            assert before["left"] == pytest.approx(note["left"], abs=1), name


@pytest.mark.parametrize("width", [1280, 390])
def test_a_link_to_a_table_shows_its_caption(screen, server, width):
    page = screen(width, reduced_motion="reduce")  # no smooth scrolling
    chapter = "notebooks/02_background_details_estimators.html"
    page.goto(f"{server}/{chapter}", wait_until="load")
    tables = page.evaluate(
        "[...document.querySelectorAll('[id^=tab-]')].map(e => e.id)"
    )
    assert len(tables) > 2
    for name in tables:
        page.goto(f"{server}/{chapter}#{name}", wait_until="load")
        top, bar = page.evaluate(
            """(name) => {
                const caption = document.getElementById(name)
                    .closest('.table-caption');
                const bar = document.querySelector('.bd-header-article');
                return [caption, bar].map((e) => e.getBoundingClientRect());
            }""",
            name,
        )
        assert bar["bottom"] <= top["top"] < 500, name


def test_the_search_box_is_in_sight_on_every_page(screen, html, server):
    page = screen(1280)
    for name in pages(html):
        page.goto(f"{server}/{name}", wait_until="load")
        for box in page.locator(".search-button-field").all():
            place = box.bounding_box()
            assert place is None or 0 <= place["y"] < 900, name


def found(page, server, query):
    """The pages that the search finds."""
    page.goto(f"{server}/search.html?q={query}")
    page.wait_for_selector("#search-results > p:has-text('Search')", timeout=20_000)
    page.wait_for_timeout(300)
    titles = page.locator("#search-results li > a").all_inner_texts()
    return {title.split(" > ")[0] for title in titles}


@pytest.mark.parametrize("word", ["交易", "量化", "模型", "延遲估計"])
def test_search_finds_chinese_words(screen, server, word):
    assert any("摘要" in title for title in found(screen(1280), server, word))


def test_search_finds_both_spellings(screen, server):
    page = screen(1280)
    british = found(page, server, "quantisation")
    assert british
    assert british == found(page, server, "quantization")


@pytest.mark.parametrize("shelf", ["", "/a/shelf"])
@pytest.mark.parametrize("missing", ["none.html", "book/none.html", "a/b/c/", "a/b/c"])
def test_a_wrong_address_leads_back_to_the_book(screen, html, server, shelf, missing):
    """Wherever the book is: alone on its server, or in a folder of another one."""
    page = screen(1280, "dark")

    def answer(route):
        asked = urlsplit(route.request.url).path
        path = html / asked.removeprefix(shelf).lstrip("/")
        if asked.startswith(f"{shelf}/") and path.is_file():
            route.fulfill(path=path)
        else:
            route.fulfill(status=404, path=html / MISSING)

    page.route(f"{server}/**", answer)
    page.goto(f"{server}{shelf}/{missing}")
    assert page.evaluate("() => document.fonts.check('1em \"Book Sans\"')")
    assert page.evaluate("() => [...document.fonts].some((f) => f.status == 'loaded')")
    assert page.evaluate("() => getComputedStyle(document.body).colorScheme") == "dark"
    page.wait_for_load_state("networkidle")
    assert page.locator("form").evaluate("(form) => form.action") == (
        f"{server}{shelf}/search.html"
    )
    page.get_by_role("link").click()
    page.wait_for_url(f"{server}{shelf}/{FIRST}")
