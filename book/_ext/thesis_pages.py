"""What the theme's pages lack for readers who listen, use keys or wait for a network.

Sphinx writes a page, this mends it: names for buttons and dialogues, headers of tables,
languages of phrases, a description. Scripts that nothing needs go.
"""

import base64
import json
import re
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, FileSystemLoader
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from thesis_cards import link_claims, write_cards

CHINESE = re.compile("[\u4e00-\u9fff]")
# What surrounds a text, on a page in Chinese.
INTERFACE = json.loads((Path(__file__).parent / "interface_zh.json").read_text())
TEMPLATES = Path(__file__).parents[1] / "_templates"
BELOW = "Pages below"  # a chapter, in the contents
SPOKEN = ["aria-label", "title", "placeholder", "data-bs-title"]
FRAME = "pst-scrollable-table-container"  # the theme gives it its tabulator stop
# The mode that the reader chose, otherwise that of the system, before the first paint.
THEME = """((mode) => ["light", "dark"].includes(mode) ? mode
  : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"
)(localStorage.getItem("mode"))"""
STORED = 'localStorage.getItem("theme") || "auto"'
UNUSED = 'script[src*="fontawesome"], script[type="text/x-thebe-config"]'
# From files a browser rejects to load a font ahead, and reports it as an error.
PRELOAD = """if (location.protocol != "file:")
  document.head.append(Object.assign(document.createElement("link"), {{
    rel: "preload", as: "font", type: "font/woff2", crossOrigin: "", href: "{face}",
  }}));
"""


def _text(element: Tag) -> str:
    return " ".join(element.get_text().split())


def describe(soup: BeautifulSoup) -> None:
    """Say in the head what the page is about, for lists of results and of links."""
    title, head = soup.title, soup.head
    paragraph = soup.select_one("article p:not(.admonition-title, .caption)")
    if title is None or head is None or paragraph is None:
        return
    about = re.sub(r"\s*\[[^\]]*\]|\s*[(（][^()（）]*[)）]", "", _text(paragraph))
    if len(about) > 160:
        about = about[:158].rsplit(" ", 1)[0].rstrip(",;:，；") + " …"
    name = _text(title).rsplit(" \N{EN DASH} ", 1)[0].rsplit(" \N{EM DASH} ", 1)[0]
    if _text(title).endswith(f" {name}"):  # the first page, which has the book's name
        title.string = name
    said = {"og:title": name, "og:type": "article", "og:description": about}
    if not head.select_one('meta[name="description"]'):
        head.append(
            soup.new_tag("meta", attrs={"name": "description", "content": about})
        )
    for key, value in said.items():
        head.append(soup.new_tag("meta", attrs={"property": key, "content": value}))


def preload(soup: BeautifulSoup, root: str) -> None:
    """Ask for the face of formulas before the style that names it has come."""
    if soup.head and soup.head.meta and soup.math:
        script = soup.new_tag("script")
        face = f"{root}_static/fonts/book-maths-regular.woff2"
        script.string = PRELOAD.format(face=face)
        soup.head.meta.insert_after(script)


def name_controls(soup: BeautifulSoup) -> None:
    """Give every control a name, hide icons from who listens, and name regions."""
    for icon in soup.select("i[class*='fa-'], span[class*='fa-']"):
        icon["aria-hidden"] = "true"
    for button in soup.select("button[title]:not([aria-label])"):
        button["aria-label"] = button["title"]
    for fold in soup.select("details.hide > summary[aria-label]"):
        del fold["aria-label"]  # it says what it shows
    for fold in soup.select("nav li > details > summary"):
        chapter = fold.find_parent("li").find("a")
        fold["aria-label"] = f"{BELOW} {chapter.get_text(strip=True)}"
    for switch in soup.select(".theme-switch-button"):
        switch["aria-label"] = switch["data-bs-title"] = "Colour mode"
    names = {
        "dialog#pst-search-dialog": "Search",
        "dialog#pst-primary-sidebar-modal": "Contents of the book",
        "dialog#pst-secondary-sidebar-modal": "Contents",
    }
    for selector, name in names.items():
        for dialog in soup.select(selector):
            dialog["aria-label"] = name
    for sidebar in soup.select("#pst-primary-sidebar"):
        sidebar["role"], sidebar["aria-label"] = "region", "Contents of the book"
    for skip in soup.select("#pst-skip-link"):
        skip["role"], skip["aria-label"] = "navigation", "Skip to main content"
    for button in soup.select("#pst-back-to-top"):  # outside of every region
        if main := soup.select_one("main"):
            main.append(button.extract())
    for cited in soup.select('[role="doc-biblioentry"]'):
        cited["role"] = "listitem"
    for backs in soup.select(".citation [role='doc-backlink']"):
        del backs["role"]


def keep_column(soup: BeautifulSoup) -> None:
    """Say before the text that the list of its sections follows, beside it."""
    for content in soup.select(".bd-content:has(> .bd-sidebar-secondary)"):
        content["class"] = [*content.get("class", []), "with-contents"]


def name_notes(soup: BeautifulSoup) -> None:
    """Let a note in the margin begin with its title, which is also its name."""
    for number, note in enumerate(soup.select("aside.margin"), 1):
        title = note.select_one(".sidebar-title").extract()
        title.name, title.attrs = "strong", {"id": f"note-{number}"}
        title.append(".")
        note.p.insert(0, " ")
        note.p.insert(0, title)
        # The theme frames a sidebar, which a note is not.
        note["class"], note["aria-labelledby"] = ["margin"], title["id"]


def mend_tables(soup: BeautifulSoup) -> None:
    """Frame every table, say what its headers head, and drop what nobody sees."""
    for number, table in enumerate(soup.select("article table:not(.genindextable)")):
        for style in table.parent.find_all("style", recursive=False):
            style.decompose()
        if FRAME not in table.parent.get("class", []):
            table.wrap(soup.new_tag("div", attrs={"class": FRAME}))
        if caption := table.caption:  # beside the box that scrolls, as wide as the page
            caption.name, caption["class"] = "p", "table-caption"
            # A link to the table leads to its caption.
            caption["id"] = table.attrs.pop("id", f"caption-of-table-{number}")
            table["aria-labelledby"] = caption["id"]
            table.parent.insert_before(caption.extract())
        for text in table.find_all(string=re.compile(r"^\s+$")):
            if text.parent.name in ("table", "thead", "tbody", "tr"):
                text.extract()
        for cell in table.select("th"):
            if not cell.get_text(strip=True) and not cell.select("img, svg, input"):
                cell.name = "td"
                del cell["scope"]
            elif not cell.get("scope"):
                across = int(str(cell.get("colspan", 1))) > 1
                down = int(str(cell.get("rowspan", 1))) > 1
                if cell.find_parent("thead"):
                    cell["scope"] = "colgroup" if across else "col"
                else:
                    cell["scope"] = "rowgroup" if down else "row"


def set_languages(soup: BeautifulSoup) -> None:
    """Speak the page's language, and mark the phrases that are in the other one."""
    page = str(soup.html.get("lang", "en")) if soup.html else "en"
    chinese = page.startswith("zh")
    for element in soup.body.find_all(True) if chinese else []:
        for name in SPOKEN:
            said = str(element.get(name, ""))
            if said in INTERFACE:
                element[name] = INTERFACE[said]
            elif said.startswith(BELOW):
                element[name] = said.replace(f"{BELOW} ", "下層頁面：")
        for text in element.find_all(string=True, recursive=False):
            if text.strip() in INTERFACE:
                text.replace_with(text.replace(text.strip(), INTERFACE[text.strip()]))
    for element in soup.select("body a, body p, body button"):
        text = str(element.get("aria-label", element.get_text()))
        if chinese and re.search("[A-Za-z]{3}", text) and not CHINESE.search(text):
            element["lang"] = "en"
        elif not chinese and CHINESE.search(text) and not re.search("[A-Za-z]", text):
            element["lang"] = "zh-Hant"


def drop_scripts(soup: BeautifulSoup) -> None:
    """Take away the scripts that the book has no use for, and remarks."""
    for script in soup.select(UNUSED):
        script.decompose()
    for script in soup.find_all("script", string=re.compile("^kernelName = ")):
        script.decompose()
    for link in soup.select('link[href*="sphinx-thebe.css"]'):
        link.decompose()


def mend(page: Path, html: Path) -> BeautifulSoup:
    """Mend one page of the built book; return it parsed."""
    text = page.read_text().replace(STORED, THEME)
    # Without scripts a page is light.
    text = text.replace('data-theme="auto"', 'data-theme="light"', 1)
    soup = BeautifulSoup(text, "html.parser")
    root = "../" * (len(page.relative_to(html).parts) - 1)
    drop_scripts(soup)
    describe(soup)
    preload(soup, root)
    name_controls(soup)
    keep_column(soup)
    name_notes(soup)
    mend_tables(soup)
    set_languages(soup)
    link_claims(soup, root)
    page.write_text(str(soup))
    return soup


EXCERPT = '[".headerlink", "script", "style"]'  # what Sphinx leaves out of a hit's text
FURNITURE = (
    ".bd-header-article", "#jb-print-docs-body", ".bd-sidebar-secondary", ".cell_input",
    "summary", ".figure-files",
)  # fmt: skip


def mend_excerpts(script: Path) -> None:
    """Let what the search shows of a page be its text, and no cells in one word."""
    text = script.read_text()
    if text.count(EXCERPT) != 1:
        raise ExtensionError(f"{script}: Sphinx searches otherwise: see FURNITURE")
    more = json.dumps([".headerlink", "script", "style", *FURNITURE])
    apart = (
        'htmlElement.querySelectorAll("td, th, li").forEach((e) => e.append(" "));\n'
        "    for (const removalQuery of "
    )
    text = text.replace(f"for (const removalQuery of {EXCERPT}", f"{apart}{more}")
    script.write_text(text)


def embed_text_faces(html: Path) -> None:
    """Put the faces of the text into their style, so that no line moves when one comes.

    Firefox, which loads no font from beside a page that is a file, shows them too. The
    page for wrong addresses has the face itself: it cannot know where the book is.
    """
    static = html / "_static"
    for style in (static / "fonts.css", html / "404.html"):
        text = style.read_text()
        for face in (static / "fonts").glob("book-sans-*.woff2"):
            data = base64.b64encode(face.read_bytes()).decode()
            address = f"data:font/woff2;base64,{data}"
            text = re.sub(rf"[\w/]*fonts/{face.name}", address, text)
        style.write_text(text)


def mend_all(app: Sphinx, exception: Exception | None) -> None:
    """Mend every page; write their cards, the entrance, and one for wrong addresses."""
    if exception or app.builder.name != "html":
        return
    html = Path(app.outdir)
    pages = [p for p in html.rglob("*.html") if "_static" not in p.parts]
    mend_excerpts(html / "_static" / "searchtools.js")
    mended = {str(p.relative_to(html)): mend(p, html) for p in pages}
    write_cards(app, mended)
    known = {"lang": app.config.language, "title": app.config.html_title}
    known |= {"first": f"{app.config.root_doc}.html", "theme": THEME}
    templates = Environment(loader=FileSystemLoader(TEMPLATES))
    for name, page in {"entrance": "index", "missing": "404"}.items():
        text = templates.get_template(f"{name}.html").render(known)
        (html / f"{page}.html").write_text(text)
    embed_text_faces(html)


def setup(app: Sphinx) -> dict:
    app.connect("build-finished", mend_all, priority=800)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
