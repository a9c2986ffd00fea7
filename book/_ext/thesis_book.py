"""What the theme does not do: page languages, launch buttons, signs, figures.

The directive `play` embeds an interactive part by its name.

Jupyter Book always loads sphinx-thebe, whose script comes from a network and declares
its constants twice on a page. The book is read offline, so it is taken out.
"""

import re
from html import escape
from itertools import groupby
from pathlib import Path, PurePosixPath

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from thesis_lib.book.play.widget import cost
from thesis_lib.book.tables.printed import signed

COSTS = "06_evaluation_system_for_ml"  # the chapter with the calculator


class Play(SphinxDirective):
    """An interactive part by its name.

    It was staged beside the pages; `cost` is taken from the executed chapter 6.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        source = Path(self.env.srcdir)
        staged = source / "book" / f"play_{name}.txt"
        if name == "cost":
            made = cost(source / "notebooks" / f"{COSTS}.ipynb")
        elif staged.is_file():
            made = staged.read_text()
        else:
            raise self.error(f"{name} is no interactive part: see PARTS of book.play")
        return [nodes.raw("", made, format="html")]


def add_play(app: Sphinx, page, template, context, doctree) -> None:
    """Give a page with interactive parts their look and their scripts."""
    parts = re.findall(r'class="play" data-play="(\w+)"', context.get("body", ""))
    if parts:
        app.add_css_file("play/play.css")
        for name in ("play", *parts):
            app.add_js_file(f"play/{name}.js")


def set_language(app: Sphinx, page, template, context, doctree) -> None:
    """Let front matter such as `lang: zh-Hant` set the page's language attribute."""
    metadata = context.get("meta") or {}
    if "lang" in metadata:
        context["language"] = metadata["lang"]


def drop_thebe(app: Sphinx, page, template, context, doctree) -> None:
    """Take the scripts of sphinx-thebe from the page."""

    def is_thebe(script) -> bool:
        body = getattr(script, "attributes", {}).get("body") or ""
        return "THEBE_JS_URL" in body or "thebe" in str(script.filename or "")

    context["script_files"] = [s for s in context["script_files"] if not is_thebe(s)]


def add_launch_buttons(app: Sphinx, page, template, context, doctree) -> None:
    """Offer a chapter on Binder and on Colab where the repository's address is known.

    Only links: the icons are the theme's own files. Binder opens the chapter itself;
    Colab a notebook that installs the thesis first and then runs the chapter chosen.
    """
    address = context.get("thesis_repository")
    if not address or not page.startswith("notebooks/"):
        return
    owner, name = address.rsplit("/", 2)[1:]
    number = int(PurePosixPath(page).name.split("_")[0])
    links = [
        {
            "type": "link",
            "text": "Binder",
            "tooltip": "Open this chapter in JupyterLab on Binder",
            "icon": "_static/images/logo_binder.svg",
            "label": "launch-binder",
            "url": f"https://mybinder.org/v2/gh/{owner}/{name}/HEAD"
            f"?urlpath=lab/tree/{page.split('_details')[0]}.ipynb",
        },
        {
            "type": "link",
            "text": "Colab",
            "tooltip": f"Run this chapter on Google Colab: choose {number} there",
            "icon": "_static/images/logo_colab.png",
            "label": "launch-colab",
            "url": f"https://colab.research.google.com/github/{owner}/{name}"
            "/blob/HEAD/binder/colab.ipynb",
        },
    ]
    context["header_buttons"].insert(
        0,
        {
            "type": "group",
            "tooltip": "Run this chapter elsewhere",
            "icon": "fas fa-rocket",
            "buttons": links,
            "label": "launch-buttons",
        },
    )


def number_appendices(app: Sphinx, env) -> None:
    """Number figures of pages that have no number A.1, A.2, unlike any chapter's."""
    for kinds in env.toc_fignumbers.values():
        for numbers in kinds.values():
            for name, number in numbers.items():
                numbers[name] = ("A", *number) if len(number) == 1 else number


def set_minus_signs(app: Sphinx, doctree, page) -> None:
    """Write the minus sign of a number that prose took from a cell as print does."""
    for pasted in doctree.findall(nodes.inline):
        if "pasted-text" in pasted["classes"]:
            for text in list(pasted.findall(nodes.Text)):
                text.parent.replace(text, nodes.Text(signed(text)))


NO_BREAK = "\N{NO-BREAK SPACE}"
UNITS = r"%|[nmµ]?s|[kMGT]i?B(?:/s)?|GFLOP/s|USD"


def keep_units(app: Sphinx, doctree, page) -> None:
    """Let no line end between a number and its unit."""
    for whole in list(doctree.findall(nodes.TextElement)):
        if isinstance(whole, nodes.literal | nodes.literal_block | nodes.raw):
            continue
        pasted = False  # the number before, from a cell
        for place, part in enumerate(whole.children):
            if isinstance(part, nodes.Text):
                space = r"(?:(?<=\d) |^ )" if pasted else r"(?<=\d) "
                bound = re.sub(rf"{space}(?=(?:{UNITS})(?!\w))", NO_BREAK, part)
                whole[place] = nodes.Text(bound)
            classes = part["classes"] if isinstance(part, nodes.inline) else []
            pasted = "pasted-text" in classes or "claim" in classes


# So large is a point on the screen: the figures' 6.5 inches fill the column.
PIXELS_PER_POINT = 1.44
LEGIBLE_PX = 9  # the smallest letter, on any screen
NARROW_SCREEN = "screen and (max-width: 640px)"  # as in thesis.css
LETTERS = 800  # points of the size of a letter to 1 of its scale in the drawing


def pieces(svg: str, image: str, alt: str) -> str:
    """The pieces of a drawing (`figures.export.pieces`) for a narrow screen, as HTML.

    Each box shows its part of the one `image`, which `thesis.css` moves and cuts; the
    first says what there is to see. Nothing for a drawing that is one piece.
    """
    found = re.search('data-panels="([^"]+)"', svg)
    if found is None:
        return ""
    cut = [
        [[float(side) for side in box.split()] for box in piece.split(",")]
        for piece in found[1].split(";")
    ]
    made, widest = "", max(sum(box[2] for box in piece) for piece in cut)
    for _, row in groupby(cut, lambda piece: piece[-1][1]):  # the legend, the panels
        made += "<span>"
        for piece in row:
            made += "<span>"
            for x, y, width, height in piece:
                place = f"--x:{x:g};--y:{y:g};--w:{width:g};--h:{height:g}"
                made += f'<span style="{place}">{image.format(alt=alt)}</span>'
                alt = ""
            made += "</span>"
        made += "</span>"
    return f'<span class="pieces" style="--widest:{widest:g}">{made}</span>'


def sizes(svg: str) -> tuple[str, str]:
    """Of a drawing, its size in pixels as attributes, and what `thesis.css` knows."""
    points = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    size = " ".join(
        f'{side}="{PIXELS_PER_POINT * float(each):.0f}"'
        for side, each in zip(("width", "height"), points, strict=True)
    )
    smallest = LETTERS * min(map(float, re.findall(r"scale\(([\d.]+) -", svg)))
    return size, f"--whole:{points[0]};--least:{LEGIBLE_PX / smallest:.3f}"


def figure_box(svg: str, files: str, alt: str, narrow: str = "") -> str:
    """A figure in both themes as HTML: whole, and otherwise on a narrow screen.

    There it is in pieces, or the drawing `narrow` if it has one. `files` is the address
    of its files without their ends. The picture of the other theme is never asked for:
    it is not displayed, and lazy.
    """
    pair, (size, known) = "", sizes(svg)
    for theme, end in (("light", ""), ("dark", "-dark")):
        source = f'class="only-{theme}" src="{files}{end}.svg"'
        image = f'<img {source} alt="{{alt}}" {size} loading="lazy">'
        shown = f"{image.format(alt=alt)}{pieces(svg, image, alt)}"
        if narrow:
            its_size, its_known = sizes(narrow)
            shown = (
                f'<picture style="{its_known}"><source media="{NARROW_SCREEN}" '
                f'srcset="{files}-narrow{end}.svg" {its_size}>{shown}</picture>'
            )
        pair += f'<a class="only-{theme}" href="{files}{end}.svg">{shown}</a>'
    return f'<div class="figure-box" style="{known}">{pair}</div>'


OFFERED = {"svg": "SVG", "png": "PNG", "csv": "data (CSV)", "py": "Python"}


def show_figures(app: Sphinx, doctree, page) -> None:
    """Show each figure of a cell from its files, in both themes, and offer these.

    The figure's code follows it.
    """
    folder = Path(app.srcdir, "book/_static/figures")
    address = "../" * page.count("/") + "_static/figures/"
    for figure in list(doctree.findall(nodes.figure)):
        name = "".join(figure["ids"][:1])
        if app.builder.format != "html" or not (folder / f"{name}.svg").is_file():
            continue
        svg = (folder / f"{name}.svg").read_text()
        alt = escape(next(figure.findall(nodes.image))["alt"])
        narrow = folder / f"{name}-narrow.svg"
        other = narrow.read_text() if narrow.is_file() else ""
        box = figure_box(svg, address + name, alt, other)
        figure[0].replace_self(nodes.raw("", box, format="html"))
        files = ", ".join(
            f'<a href="{address}{name}.{end}" download>{says}</a>'
            for end, says in OFFERED.items()
            if (folder / f"{name}.{end}").is_file()  # code draws what a cell drew
        )
        offer = f'Use this figure: {files}, <a href="#{name}">link</a>'
        offer = nodes.raw("", f'<p class="figure-files">{offer}</p>', format="html")
        output = figure.parent
        output.insert(output.index(figure) + 1, offer)
        if "cell_output" in output["classes"]:
            output.parent.children.sort(
                key=lambda part: "cell_output" not in part["classes"]
            )


def setup(app: Sphinx) -> dict:
    app.add_directive("play", Play)
    app.connect("html-page-context", add_play)
    app.connect("html-page-context", set_language)
    app.connect("env-updated", number_appendices)
    app.connect("doctree-resolved", set_minus_signs)
    app.connect("doctree-resolved", keep_units)
    app.connect("doctree-resolved", show_figures)
    app.connect("html-page-context", drop_thebe)
    # After the theme, which lays the list of buttons at its own 501.
    app.connect("html-page-context", add_launch_buttons, priority=502)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
