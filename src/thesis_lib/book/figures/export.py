"""What a notebook keeps of a figure: a vector, a sharp raster, and its data."""

import base64
import re
from collections import Counter
from io import BytesIO, StringIO
from math import dist, nan
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from thesis_lib.book.figures.data import drawn

SVG, PNG, CSV = "image/svg+xml", "image/png", "text/csv"


def keep_files() -> None:
    """Let the notebook that calls this keep each figure's SVG, its data, a 2x PNG."""
    from IPython.core.getipython import get_ipython  # of the kernel, as matplotlib's
    from matplotlib_inline.config import InlineBackend

    shell: Any = get_ipython()
    if shell:
        InlineBackend.instance(parent=shell).figure_formats = {"retina"}
        formatter = shell.display_formatter.mimebundle_formatter
        formatter.for_type(Figure, lambda figure, **_: bundle(figure))


def bundle(figure: Figure) -> dict[str, str]:
    """A figure's vector and its data, by their media types."""
    return {SVG: as_vector(figure), CSV: drawn(figure).to_csv(index=False)}


def raster(figure: Figure) -> str:
    """A figure as a 2x PNG in base 64, as a notebook keeps it."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=2 * figure.dpi)
    return base64.b64encode(stream.getvalue()).decode()


def as_vector(figure: Figure) -> str:
    """A figure as a small SVG file that is the same whenever it is drawn.

    Text becomes outlines, so that no other font can stand in for its own. Places are
    rounded to a hundredth of a point.
    """
    text = svg_element(figure, "path", transparent=False)
    for blank in re.findall(r'id="([^"]+)" transform="scale\(0.015625\)"/>', text):
        text = re.sub(rf'<(path id="|use [^>]*href="#){blank}"[^>]*/>', "", text)
    text = re.sub(r' d="([^"]*)" transform="scale\(0.015625\)"', _letter, text)
    text = re.sub(r"scale\(([\d.]+) -\1\)(.*?</g>)", _on_grid, text, flags=re.DOTALL)
    text = re.sub(r'(?<= d=")[^"]*', _steps, text)
    text = re.sub(r"scale\([^)]*\)|matrix\([^)]*\)|-?\d*\.\d{3,}", _rounded, text)
    text = re.sub(r'(?<=style=")[^"]*', lambda hit: re.sub(r"\s", "", hit[0]), text)
    text = re.sub(r'transform="translate\(([\d.]+) 0\)"/>', r'x="\1"/>', text)
    text = re.sub(r"<!--.*?-->|(?<=>)\s+(?=<)|(?<=>)\n", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns:xlink="[^"]+"', "", text.replace("xlink:href", "href"))
    used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    short = {name: _letters(number) for number, name in enumerate(used)}
    text = re.sub(r' id="([^"]+)"', lambda hit: hit[0] * (hit[1] in short), text)
    text = re.sub(
        r'(id="|href="#|url\(#)([^")]+)', lambda hit: hit[1] + short[hit[2]], text
    )
    text = _with_shared_classes(_with_classes(text))
    return _without_repeated_texts(_without_bare_groups(text), len(short))


def _letters(number: int) -> str:
    """A name for a number, as short as names of XML can be: no digit begins them."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in f"{number:x}")


def unsized(svg: str) -> str:
    """A drawing that is as large as the window that it is opened in."""
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)


def _with_classes(svg: str) -> str:
    """An SVG whose looks are classes, each said once."""
    names: dict[str, str] = {}

    def named(hit: re.Match) -> str:
        look = ";".join(filter(None, [hit[1] and f"clip-path:{hit[1]}", hit[2]]))
        return f' class="{names.setdefault(look, f"c{len(names)}")}"'

    svg = re.sub(r'(?: clip-path="([^"]+)")? style="([^"]+)"', named, svg)
    rules = "".join(f".{name}{{{look}}}" for look, name in names.items())
    return svg.replace("</style>", f"{rules}</style>", 1)


def _with_shared_classes(svg: str) -> str:
    """An SVG whose marks of one look stand in a group that says it."""

    def shared(hit: re.Match) -> str:
        looks = set(re.findall(r"( class=[^/]+)/>|/>", hit[2]))
        look = looks.pop() if len(looks) == 1 else ""
        return f"<g{hit[1]}{look}>{hit[2].replace(look, '')}</g>"

    return re.sub(r"<g( clip-path=[^>]+)>((?:<use [^>]+>)+)</g>", shared, svg)


def _without_repeated_texts(svg: str, named: int) -> str:
    """An SVG that draws a text again by its first; `named` are the names it has."""
    texts = re.compile(r"(?<=>)(?:<use[^>]*/>){3,}(?=</g>)")
    counted = Counter(texts.findall(svg))
    often = (text for text, times in counted.items() if times > 1)
    for number, text in enumerate(often, named):
        name = _letters(number)
        first, *others = svg.split(f">{text}</g>")
        again = f'><use href="#{name}"/></g>'
        svg = f'{first}><g id="{name}">{text}</g></g>{again.join(others)}'
    return svg


def _without_bare_groups(svg: str) -> str:
    """An SVG without the groups that say nothing of what is in them."""
    kept, open_groups = [], []
    for part in re.split(r"(<g\b[^>]*>|</g>)", re.sub(r"<g\b[^>]*/>", "", svg)):
        if part.startswith("<g"):
            open_groups.append(part != "<g>")
        stays = open_groups.pop() if part == "</g>" else part != "<g>"
        kept += [part] * stays
    return "".join(kept)


def svg_element(figure: Figure, fonttype: str, transparent: bool) -> str:
    """A figure as matplotlib's SVG, from its element on, with the same ids each time.

    `fonttype` is "path" or "none", which leaves text as text.
    """
    stream = StringIO()
    with plt.rc_context({"svg.fonttype": fonttype, "svg.hashsalt": "thesis"}):
        figure.savefig(
            stream, format="svg", transparent=transparent, dpi=240,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )  # fmt: skip
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _short(number: float) -> str:
    return re.sub(r"^(-?)0(?=\.)|\.?0+$", r"\1", f"{round(number, 2) + 0.0:.2f}") or "0"


def _rounded(hit: re.Match) -> str:
    """A place to a hundredth of a point; what scales others as it is."""
    return hit[0] if "(" in hit[0] else _short(float(hit[0]))


def _letter(hit: re.Match) -> str:
    """An outline of a letter, of 6,400 units of its size, on a grid of 800."""
    places = re.sub(r"-?\d+", lambda unit: f"{round(int(unit[0]) / 8)}", hit[1])
    return f' d="{places}"'


def _on_grid(hit: re.Match) -> str:
    """A text whose letters stand on the grid of their outlines, 8 times its own."""
    size, letters = float(hit[1]) / 8, hit[2]

    def placed(at: re.Match) -> str:
        return f"translate({round(8 * float(at[1]))} {round(8 * float(at[2]))})"

    letters = re.sub(r"translate\((\S+) (\S+)\)", placed, letters)
    letters = letters.replace("<path d=", '<path transform="scale(8)" d=')
    return f"scale({size:g} -{size:g}){letters}"


def _steps(hit: re.Match) -> str:
    """A path by its steps, shorter than places; whole hundredths do not drift."""
    text, at, start, mirrored = "", (0, 0), (0, 0), (nan, nan)
    grid = 1 if "." in hit[0] else 100  # of a letter: whole numbers
    for command, written in re.findall(r"([A-Za-z])([^A-Za-z]*)", hit[0]):
        numbers = [round(100 * float(number)) for number in written.split()]
        places = [*zip(numbers[::2], numbers[1::2], strict=True)]
        steps = [step for x, y in places for step in (x - at[0], y - at[1])]
        if command == "Q":
            bend, end = places
            if dist(bend, mirrored) <= grid:  # as it is without being said
                command, steps, bend = "T", steps[2:], mirrored
            mirrored = 2 * end[0] - bend[0], 2 * end[1] - bend[1]
        else:
            mirrored = nan, nan
        if command == "L" and 0 in steps:
            along, across = steps
            text += (
                f"v{_short(across / 100)}" if not along else f"h{_short(along / 100)}"
            )
        else:
            text += command.lower() + " ".join(_short(step / 100) for step in steps)
        start = places[0] if command == "M" else start
        at = places[-1] if places else start  # a path that closes is where it began
    return text.replace(" -", "-")
