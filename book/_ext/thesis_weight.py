"""What no page needs is left out of the built book: styles, icons, scripts, files.

The theme ships the styles of every widget and every icon that there is. What a page can
use is what its elements name, or its scripts; the rest of the styles goes, the icon
fonts keep the icons that the remaining styles show, and files that nothing names are
deleted. Nothing here knows a name of the theme's, so that a newer one is cut as well.
"""

import base64
import re
from pathlib import Path

import tinycss2
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx

NAME = r"[.#]((?:\\.|[\w-])+)"
NESTING = ("media", "supports", "layer", "container")


def words(texts: list[str]) -> set[str]:
    """Every word that could name a class or an element in pages or in scripts."""
    return {word for text in texts for word in re.findall(r"[\w-]+", text)}


def _selects(selector: str, known: set[str]) -> bool:
    """Whether a selector may match: each class and id that it asks for is known."""
    asked = re.sub(r":(not|is|where|has)\([^()]*(\([^()]*\)[^()]*)*\)", "", selector)
    return all(name.replace("\\", "") in known for name in re.findall(NAME, asked))


def _selectors(prelude: list) -> list[str]:
    """The selectors of a rule: its prelude, cut at the commas outside brackets."""
    parts: list[list] = [[]]
    for token in prelude:
        if token.type == "literal" and token.value == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return [tinycss2.serialize(part).strip() for part in parts]


def _nests(rule) -> bool:
    return rule.lower_at_keyword in NESTING and bool(rule.content)


def purge(css: str | list, known: set[str]) -> str:
    """A style sheet with the rules that may match something, and no comments."""
    kept = []
    for rule in tinycss2.parse_rule_list(css, skip_comments=True, skip_whitespace=True):
        if rule.type == "qualified-rule":
            names = [s for s in _selectors(rule.prelude) if _selects(s, known)]
            body = tinycss2.serialize(rule.content).strip()
            if names and body:
                kept.append(f"{','.join(names)}{{{body}}}")
        elif rule.type == "at-rule" and _nests(rule):
            if inner := purge(rule.content, known):
                prelude = tinycss2.serialize(rule.prelude)
                kept.append(f"@{rule.at_keyword}{prelude}{{{inner}}}")
        else:
            kept.append(tinycss2.serialize([rule]))
    return "\n".join(kept)


def _cut_icons(static: Path, css: str) -> None:
    """Keep of the theme's icon fonts what the styles show."""
    shown = [ord(sign) for sign in set(css) if "\ue000" <= sign <= "\uf8ff"]
    for path in static.rglob("webfonts/*.ttf"):
        font, options = TTFont(path), Options()
        options.hinting, options.layout_features = False, []
        subsetter = Subsetter(options)
        subsetter.populate(unicodes=shown)
        subsetter.subset(font)
        font.save(path)


def _embed_text_faces(html: Path) -> None:
    """Put the faces of the text into their style, which comes before a line is drawn.

    So no line moves when a face comes; and Firefox, which loads no font from beside a
    page that is a file, shows them too. The page for wrong addresses has the face
    itself, because it cannot know where the book is.
    """
    static = html / "_static"
    for text in (static / "fonts.css", html / "404.html"):
        told = text.read_text()
        for face in (static / "fonts").glob("book-sans-*.woff2"):
            data = base64.b64encode(face.read_bytes()).decode()
            address = f"data:font/woff2;base64,{data}"
            told = re.sub(rf"[\w/]*fonts/{face.name}", address, told)
        text.write_text(told)


def _drop_unnamed(html: Path, pages: str) -> None:
    """Delete the static files that no page names, nor a style or script it names."""
    left = {path for path in (html / "_static").rglob("*") if path.is_file()}
    said = pages + "OFL.txt"
    while named := {path for path in left if path.name in said}:
        left -= named
        texts = [path for path in named if path.suffix in (".css", ".js")]
        said += "".join(path.read_text() for path in texts)
    for path in left:
        path.unlink()
    for folder in sorted((html / "_static").rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def lighten(app: Sphinx, exception: Exception | None) -> None:
    """Cut styles, icons and files of the built book to what its pages can use."""
    if exception or app.builder.name != "html":
        return
    html, static = Path(app.outdir), Path(app.outdir) / "_static"
    _embed_text_faces(html)
    pages = [p.read_text() for p in html.rglob("*.html") if static not in p.parents]
    scripts = {path: path.read_text() for path in static.rglob("*.js")}
    named = "".join(pages)
    loaded = [text for path, text in scripts.items() if path.name in named]
    known = words([*pages, *loaded])
    for path, text in scripts.items():
        path.write_text(re.sub(r"\n//# sourceMappingURL=\S+\s*$", "\n", text))
    styles = {path: purge(path.read_text(), known) for path in static.rglob("*.css")}
    for path, text in styles.items():
        path.write_text(re.sub(r'url\([^()]*\.woff2\) ?format\("woff2"\),', "", text))
    _cut_icons(static, "".join(styles.values()))
    _drop_unnamed(html, named)


def setup(app: Sphinx) -> dict:
    # After the pages have been mended, which takes scripts and icons from them.
    app.connect("build-finished", lighten, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
