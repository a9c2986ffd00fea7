"""What the theme's pages lack for readers who listen, use keys or wait for a network.

Sphinx writes a page, this mends it: names for buttons and dialogues, headers of tables,
languages of phrases, a description. Scripts that nothing needs go.
"""

import base64
import json
import re
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from PIL import Image, ImageOps
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from thesis_cards import link_claims, write_cards

from thesis_book.compare.present import PICTURE

CHINESE = re.compile("[\u4e00-\u9fff]")
INTERFACE = {  # what surrounds a text, on a page in Chinese
    "Back matter": "卷末",
    "Back to top": "回到頂端",
    "By The contributors": "作者：本書貢獻者",
    "Colour mode": "色彩模式",
    "Conclusion": "結論",
    "Contents": "目錄",
    "Contents of the book": "全書目錄",
    "Dark": "深色",
    "Download source file": "下載原始檔",
    "Download this page": "下載本頁",
    "Front matter": "卷首",
    "Light": "淺色",
    "Link to this heading": "本標題的連結",
    "Main": "主選單",
    "Page": "本頁",
    "Play": "動手試",
    "Part I · Learning for systems": "第一部 · 以學習改進系統",
    "Part II · Systems for learning": "第二部 · 以系統支援學習",
    "Print to PDF": "列印成 PDF",
    "Search": "搜尋",
    "Search this book": "搜尋本書",
    "Skip to main content": "跳至主要內容",
    "System Settings": "依系統設定",
    "The package": "套件",
    "The thesis": "論文",
    "Toggle primary sidebar": "切換側欄",
    "Toggle secondary sidebar": "切換本頁目錄",
    "Version warning": "版本警告",
    "next": "下一頁",
    "next page": "下一頁",
    "previous": "上一頁",
    "previous page": "上一頁",
}
BELOW = "Pages below"  # a chapter, in the contents
SPOKEN = ["aria-label", "title", "placeholder", "data-bs-title"]
FRAME = "pst-scrollable-table-container"  # the theme gives it its tabulator stop
# The mode that the reader chose, otherwise that of the system, before the first paint.
THEME = """((mode) => ["light", "dark"].includes(mode) ? mode
  : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"
)(localStorage.getItem("mode"))"""
STORED = 'localStorage.getItem("theme") || "auto"'
UNUSED = 'script[src*="fontawesome"], script[type="text/x-thebe-config"]'
# From files a browser refuses to load a font ahead, and reports it as an error.
PRELOAD = """if (location.protocol != "file:")
  document.head.append(Object.assign(document.createElement("link"), {{
    rel: "preload", as: "font", type: "font/woff2", crossOrigin: "", href: "{face}",
  }}));
"""
ENTRANCE = """<!DOCTYPE html>
<html lang="{lang}">
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={first}">
<link rel="canonical" href="{first}">
<title>{title}</title>
<p><a href="{first}">{title}</a></p>
</html>
"""
# It may be shown at any address below the book, whose folder is the nearest above that
# holds the book's index; `embed_text_faces` puts the face in.
MISSING = """<!DOCTYPE html>
<html lang="{lang}">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>No such page: {title}</title>
<style>
@font-face {{ font-family: "Book Sans"; font-weight: 400 700;
  src: url("_static/fonts/book-sans-upright.woff2") format("woff2"); }}
:root {{ color-scheme: light; }}
:root[data-theme="dark"] {{ color-scheme: dark; }}
body {{ background: light-dark(#fff, #121212); color: light-dark(#1f2328, #e4e7ea);
  font: 1.1rem/1.6 "Book Sans", sans-serif;
  max-width: 36rem; margin: 15vh auto; padding: 0 1rem; }}
a {{ color: light-dark(#0a6b80, #5fc9de); }}
input {{ font: inherit; width: 100%; padding: 0.4rem; box-sizing: border-box; }}
</style>
<main>
<h1>There is no such page</h1>
<p>The book has been changed, or the address has a mistake.
<a id="first" href="{first}">Start at its first page</a>, or look for a word:</p>
<form id="search" action="search.html">
<input type="search" name="q" aria-label="Search this book"></form>
</main>
<script type="module">
document.documentElement.dataset.theme = {theme};
let folder = location.pathname;
do folder = folder.replace(/[^/]*\\/?$/, "");
while (folder !== "/"
  && !(await fetch(folder + "searchindex.js", {{ method: "HEAD" }})).ok);
document.getElementById("first").href = folder + "{first}";
document.getElementById("search").action = folder + "search.html";
</script>
</html>
"""


def _text(element: Tag) -> str:
    return " ".join(element.get_text().split())


LINK_PICTURE, LINK_SIZE = "_static/link-picture.png", (1200, 630)


def picture_links(html: Path, repository: str) -> str:
    """Write what messengers show of a link to the book; its address on GitHub Pages.

    It is the picture of the README, as a chapter's figure. Nothing is written where no
    `repository` is known: without an address of the book there is none of the picture.
    """
    if not repository:
        return ""
    with Image.open(html / "_static" / "figures" / f"{PICTURE}.png") as drawing:
        shown = ImageOps.pad(drawing.convert("RGB"), LINK_SIZE, color="white")
    few = shown.quantize(128, Image.Quantize.FASTOCTREE)  # which keeps rare colours
    few.save(html / LINK_PICTURE, optimize=True)
    owner, name = repository.rsplit("/", 2)[1:]
    return f"https://{owner}.github.io/{name}/{LINK_PICTURE}"


def describe(soup: BeautifulSoup, picture: str) -> None:
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
    said |= {"og:image": picture} if picture else {}
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


def plain_classes(pygments: str) -> set[str]:
    """The classes of code that look as code without a class, in light and in dark."""
    rule = r"(?P<theme>html\S*) \.highlight \.(?P<name>\w+) {{ color: {colour} }}"
    plain = []
    for theme in ("light", "dark"):
        start = rf'html\[data-theme="{theme}"\] \.highlight'
        colour = re.search(rf"{start} {{[^}}]*[; ]color: (#\w+)", pygments)
        rule = rf"{start} \.(\w+) {{ color: {colour[1] if colour else ''} }}"
        plain.append({*re.findall(rule, pygments, re.IGNORECASE)})
    return plain[0] & plain[1]


def mend(page: Path, html: Path, plain: set[str], picture: str = "") -> BeautifulSoup:
    """Mend one page of the built book, shown by a `picture`; what it is then."""
    text = page.read_text().replace(STORED, THEME)
    # Without scripts a page is light.
    text = text.replace('data-theme="auto"', 'data-theme="light"', 1)
    for name in plain:
        text = re.sub(rf'<span class="{name}">([^<>]*)</span>', r"\1", text)
    soup = BeautifulSoup(text, "html.parser")
    root = "../" * (len(page.relative_to(html).parts) - 1)
    drop_scripts(soup)
    describe(soup, picture)
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
    plain = plain_classes((html / "_static" / "pygments.css").read_text())
    pages = [p for p in html.rglob("*.html") if "_static" not in p.parts]
    picture = picture_links(html, app.config.html_context.get("thesis_repository", ""))
    mend_excerpts(html / "_static" / "searchtools.js")
    mended = {str(p.relative_to(html)): mend(p, html, plain, picture) for p in pages}
    write_cards(app, mended)
    known = {"lang": app.config.language, "title": app.config.html_title}
    for name, text in {"index.html": ENTRANCE, "404.html": MISSING}.items():
        first = f"{app.config.root_doc}.html"
        (html / name).write_text(text.format(**known, first=first, theme=THEME))
    embed_text_faces(html)


def setup(app: Sphinx) -> dict:
    app.connect("build-finished", mend_all, priority=800)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
