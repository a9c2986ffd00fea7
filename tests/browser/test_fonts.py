"""Every character of the book stands in a font that the book ships, except code."""

import pytest
from test_book import pages

pytestmark = pytest.mark.browser

SHIPPED = {"Book Sans", "Book Chinese", "Book Titles", "Book Maths"}
# The browser says of an element which fonts it used. One element is made for each font
# that the styles ask for, with all characters that are shown in it, and one for each
# letter or sign of the formulas, so that few have to be asked.
PROBE = """async () => {
    const runs = new Map(), signs = new Set();
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walk.nextNode());) {
        const element = node.parentElement;
        if (element.closest('pre, code, kbd, .sig, script, style')) continue;
        if (!node.data.trim() || !element.checkVisibility()) continue;
        if (element.closest('math')) { signs.add(element.outerHTML); continue; }
        const style = getComputedStyle(element);
        const face = `font: ${style.fontStyle} ${style.fontWeight} 16px `
            + style.fontFamily.replaceAll('"', "'");
        if (!runs.has(face)) runs.set(face, new Set());
        for (const character of node.data) runs.get(face).add(character);
    }
    const probe = document.createElement('div');
    for (const [face, characters] of runs) {
        const line = document.createElement('p');
        line.style.cssText = face;
        line.textContent = [...characters].join('');
        line.className = 'probe';
        probe.append(line);
    }
    for (const sign of signs) {
        probe.insertAdjacentHTML('beforeend', `<math>${sign}</math>`);
        probe.lastChild.firstChild.classList.add('probe');
    }
    document.body.append(probe);
    probe.getBoundingClientRect();
    await document.fonts.ready;
}"""


def fonts_of(page, tools):
    """For each font that a page shows text in, what stands in it."""
    page.evaluate(PROBE)
    root = tools.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    query = {"nodeId": root, "selector": ".probe"}
    used = {}
    texts = page.locator(".probe").all_text_contents()
    for node, text in zip(
        tools.send("DOM.querySelectorAll", query)["nodeIds"], texts, strict=True
    ):
        answer = tools.send("CSS.getPlatformFontsForNode", {"nodeId": node})
        for font in answer["fonts"]:
            used.setdefault(font["familyName"], set()).add(text)
    return used


def test_every_character_is_in_a_shipped_font(browser, html, server):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    tools, wrong, seen = page.context.new_cdp_session(page), {}, set()
    tools.send("DOM.enable")
    tools.send("CSS.enable")
    for name in pages(html):
        page.goto(f"{server}/{name}", wait_until="networkidle")
        used = fonts_of(page, tools)
        seen |= set(used)
        if others := {font: used[font] for font in set(used) - SHIPPED}:
            wrong[name] = others
    page.close()
    assert not wrong, "run `make fonts`, which collects the characters of the book"
    assert seen == SHIPPED
