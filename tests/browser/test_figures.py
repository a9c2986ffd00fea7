"""Figures in a browser: vectors of the page's theme, legible, with their files."""

import re
from pathlib import PurePosixPath

import pytest
from test_book import pages

pytestmark = pytest.mark.browser

CHAPTER = "notebooks/03_enhanced_sequencer.html"
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
    browser, server, theme, other, width
):
    page, names, asked = opened(browser, server, theme, width)
    assert sorted(asked) == sorted(f"{name}{ENDS[theme]}" for name in names)
    assert page.locator(f".figure-box img.only-{other} >> visible=true").count() == 0
    assert page.locator(".figure-box ~ figcaption >> visible=true").count() == len(
        names
    )
    page.evaluate(f"() => document.documentElement.dataset.theme = '{other}'")
    show(page, names, other)
    page.close()


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


# Of each figure: the images in sight, and whether its box scrolls.
SHOWN = """(boxes) => boxes.map((box) => ({
    images: [...box.querySelectorAll('img')].filter((e) => e.checkVisibility())
        .map((e) => [e.getAttribute('src'), e.getBoundingClientRect().width, e.alt]),
    scrolls: box.scrollWidth > box.clientWidth,
}))"""


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_figure_is_legible_and_only_its_box_scrolls(browser, html, server, width):
    page, scrolling = browser.new_page(viewport={"width": width, "height": 900}), 0
    for name in pages(html):
        if 'class="figure-box"' not in (html / name).read_text():
            continue
        page.goto(f"{server}/{name}", wait_until="load")
        for figure in page.locator(".figure-box").evaluate_all(SHOWN):
            ((file, drawn, alt),) = figure["images"]
            svg = ((html / name).parent / file).read_text()
            whole = float(re.findall(r'viewBox="0 0 ([\d.]+)', svg)[0])
            letters = 100 * min(map(float, re.findall(r"scale\(([\d.]+) -", svg)))
            assert letters * drawn / whole > LEGIBLE_PX - 0.05, figure
            assert alt, figure
            scrolling += figure["scrolls"]
    assert (scrolling > 2) == (width < 640)
    page.close()
