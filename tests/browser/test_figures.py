"""Figures in a browser: vectors of the page's theme, legible, with their files."""

import re
from pathlib import PurePosixPath

import pytest
from bs4 import BeautifulSoup
from test_book import pages

pytestmark = pytest.mark.browser

CHAPTER = "notebooks/03_enhanced_sequencer.html"
MOST_KB = 280
LEGIBLE_PX = 9  # the smallest letter
ENDS = {"light": ".svg", "dark": "-dark.svg"}


def opened(browser, server, theme, width):
    """A chapter in a theme, scrolled through, and the figures that it asked for."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.add_init_script(
        f"for (const key of ['mode', 'theme']) localStorage.setItem(key, '{theme}');"
    )
    asked = []
    page.on("request", lambda request: asked.append(PurePosixPath(request.url).name))
    page.goto(f"{server}/{CHAPTER}", wait_until="load")
    names = page.locator("figure:has(.figure-box)").evaluate_all(
        "(figures) => figures.map((figure) => figure.id)"
    )
    assert len(names) > 2
    show(page, names, theme)
    return page, names, [name for name in asked if name.startswith("fig-")]


def show(page, names, theme):
    """Scroll to each figure, and wait for its picture in a theme."""
    for name in names:
        picture = page.locator(f"#{name} img.only-{theme} >> visible=true").first
        picture.scroll_into_view_if_needed()
        picture.evaluate("(image) => image.decode()")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("theme", "other"), [("light", "dark"), ("dark", "light")])
def test_a_figure_is_drawn_for_its_theme_and_never_fetched_for_the_other(
    browser, html, server, theme, other, width
):
    page, names, asked = opened(browser, server, theme, width)
    drawn = html / "_static/figures"
    narrow = {n for n in names if width < 640 and (drawn / f"{n}-narrow.svg").is_file()}
    assert sorted(asked) == sorted(
        f"{name}{'-narrow' * (name in narrow)}{ENDS[theme]}" for name in names
    )
    assert page.locator(f".figure-box img.only-{other} >> visible=true").count() == 0
    assert page.locator(".figure-box ~ figcaption >> visible=true").count() == len(
        names
    )
    page.evaluate(f"() => document.documentElement.dataset.theme = '{other}'")
    show(page, names, other)
    page.close()


def test_nothing_shifts_while_figures_load(browser, server):
    page, _, _ = opened(browser, server, "light", 1280)
    sizes = page.locator(".figure-box :is(a, picture) > img.only-light").evaluate_all(
        "(all) => all.map((image) => [image.naturalWidth / image.naturalHeight,"
        " image.getAttribute('width') / image.getAttribute('height')])"
    )
    drawn, kept = zip(*sizes, strict=True)
    assert kept == pytest.approx(drawn, rel=0.02)
    page.close()


def test_the_figures_of_a_page_are_light_in_each_theme(html):
    heavy = {}
    for name in pages(html):
        soup = BeautifulSoup((html / name).read_text(), "html.parser")
        for theme in ENDS:
            shown = soup.select(f".figure-box img.only-{theme}")
            files = {(html / name).parent / str(image["src"]) for image in shown}
            weight = sum(file.stat().st_size for file in files) / 1000
            if weight > MOST_KB:
                heavy[f"{name}, {theme}"] = f"{weight:.0f} kB"
    assert not heavy


def test_every_file_of_a_figure_is_there_and_the_figure_is_its_link(browser, server):
    page, names, _ = opened(browser, server, "light", 1280)
    for name in names:
        links = page.locator(f"#{name} + .figure-files a, #{name} .figure-box a")
        for link in links.evaluate_all("(all) => all.map((each) => each.href)"):
            assert page.request.get(link).ok, link
        offered = page.locator(f"#{name} + .figure-files a").all_inner_texts()
        assert offered == ["SVG", "PNG", "data (CSV)", "link"]
        code = page.locator(f".cell:has(#{name}) > .cell_output ~ details > summary")
        assert "Code of this figure" in code.inner_text()
    page.close()


# Of each figure: its file, how wide its pictures are, whether its box scrolls, how
# many pieces it has, and what those who listen are told.
SHOWN = """(boxes) => boxes.map((box) => {
    const shown = [...box.querySelectorAll('img')].filter((e) => e.checkVisibility());
    const other = shown[0].parentElement.querySelector('source');
    const narrow = other && matchMedia(other.media).matches;
    return {file: narrow ? other.srcset : shown[0].getAttribute('src'), narrow,
        widths: [...new Set(shown.map((e) => e.getBoundingClientRect().width))],
        scrolls: box.scrollWidth > box.clientWidth,
        pieces: box.querySelectorAll('.pieces > span > span').length,
        said: shown.map((e) => e.alt).filter((alt) => alt)};
})"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_figure_is_told_once_and_in_pieces_where_it_is_narrow(
    browser, html, server, width
):
    """No figure scrolls, and no letter is too small."""
    page, pieces = browser.new_page(viewport={"width": width, "height": 900}), 0
    narrow = 0
    for name in pages(html):
        if 'class="figure-box"' not in (html / name).read_text():
            continue
        page.goto(f"{server}/{name}", wait_until="load")
        for figure in page.locator(".figure-box").evaluate_all(SHOWN):
            svg = ((html / name).parent / figure["file"]).read_text()
            whole = float(re.findall(r'viewBox="0 0 ([\d.]+)', svg)[0])
            letters = 800 * min(map(float, re.findall(r"scale\(([\d.]+) -", svg)))
            (drawn,) = figure["widths"]
            assert len(figure["said"]) == 1, figure
            assert bool(figure["pieces"]) == ("data-panels" in svg), figure
            assert letters * drawn / whole > LEGIBLE_PX - 0.05, figure
            assert not figure["scrolls"], figure
            pieces += figure["pieces"]
            narrow += bool(figure["narrow"])
        assert page.evaluate(
            "() => document.documentElement.scrollWidth <= window.innerWidth"
        ), name
    assert pieces > 2
    assert (narrow > 2) == (width < 640)
    page.close()
