"""What the theme does not do: page languages, launch buttons, signs, figures.

The directive `play` embeds an interactive part by its name.

Jupyter Book always loads sphinx-thebe, whose script comes from a network and declares
its constants twice on a page. The book is read offline, so it is taken out.
"""

import re
from html import escape
from pathlib import Path, PurePosixPath

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from thesis_book.tables.printed import signed
from thesis_book.widgets.widget import cost

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


# A point on the screen: the figures' 6.5 inches fill the column. On a narrow one a
# figure scrolls rather than draws its smallest letters, 7 points, below 9 pixels.
PIXELS_PER_POINT, LEAST_PIXELS_PER_POINT = 1.44, 9 / 7


def figure_box(svg: str, files: str, alt: str) -> str:
    """Return the HTML of a figure in both themes, in a box that scrolls.

    `files` is the address of its files without their ends. Browsers do not fetch the
    image of the other theme: it is not displayed, and lazy.
    """
    points = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    width, height = (f"{PIXELS_PER_POINT * float(each):.0f}" for each in points)
    least = f"{LEAST_PIXELS_PER_POINT * float(points[0]):.0f}px"
    pair = "".join(
        f'<a class="only-{theme}" href="{files}{end}.svg"><img class="only-{theme}" '
        f'src="{files}{end}.svg" alt="{alt}" width="{width}" height="{height}" '
        f'style="min-width:{least}" loading="lazy"></a>'
        for theme, end in (("light", ""), ("dark", "-dark"))
    )
    return f'<div class="figure-box">{pair}</div>'


OFFERED = {"svg": "SVG", "png": "PNG", "csv": "data (CSV)"}


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
        box = figure_box(svg, address + name, alt)
        figure[0].replace_self(nodes.raw("", box, format="html"))
        files = ", ".join(
            f'<a href="{address}{name}.{end}" download>{says}</a>'
            for end, says in OFFERED.items()
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
