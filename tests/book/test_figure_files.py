"""What is kept of a figure: its data comes back, its drawing is the same each time."""

import io
import re
from collections import Counter
from itertools import combinations
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D, IdentityTransform
from rings import planned

from thesis_book import figures
from thesis_book.figures import export
from thesis_book.figures.export import (
    CSV,
    LEAST_PT,
    NARROW,
    NARROW_IN,
    SVG,
    as_vector,
    bundle,
)
from thesis_book.tables import ring_schedule, worked_example
from thesis_lib.common.units import GiB
from thesis_lib.memory.model.spec import ModelSpec

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def theme():
    figures.theme()


def read_back(figure):
    """The data of a figure, as a reader of its file has it; its drawing is whole."""
    files = bundle(figure)
    ElementTree.fromstring(files[SVG])
    return pd.read_csv(io.StringIO(files[CSV]))


def kinds(figure):
    """Every kind of mark on the first of two panels, and what was drawn of each."""
    x = np.sort(RNG.random(4))
    y, low, high = (np.sort(RNG.random((3, 4)), axis=0))[[1, 0, 2]]
    panel = figure.axes[0]
    panel.plot(x, y, label="line")
    panel.fill_between(x, low, high)
    panel.step(x, 2 * y, where="post", label="steps")
    panel.plot(x, 3 * y, "o", label="points")
    panel.scatter(x, 4 * y, label="scatter")
    panel.errorbar(x, y, figures.whiskers(y, low, high), fmt="o", label="errors")
    panel.bar(x, low, bottom=y, label="bars")
    panel.barh(y, x, left=low, label="rows")
    panel.fill_between(x, low, y, label="alone")
    panel.hlines(y, low, high, label="segments")
    panel.axhline(0.25, label="level")
    panel.axvspan(0.125, 0.5, label="span")
    return {
        "line": {"x": x, "y": y, "y_low": low, "y_high": high},
        "steps": {"x": x, "y": 2 * y},
        "points": {"x": x, "y": 3 * y},
        "scatter": {"x": x, "y": 4 * y},
        "errors": {"x": x, "y": y, "y_low": low, "y_high": high},
        "bars": {"x": x, "y": y + low, "y_low": y},
        "rows": {"x": low + x, "y": y, "x_low": low},
        "alone": {"x": x, "y_low": low, "y_high": y},
        "segments": {"y": y, "x_low": low, "x_high": high},
        "level": {"y": 0.25},
        "span": {"x_low": 0.125, "x_high": 0.5},
    }


def test_every_kind_of_mark_comes_back_in_full_precision():
    figure, *_ = figures.axes(2)
    expected = kinds(figure)
    found = read_back(figure).groupby("series", sort=False)
    assert set(found.groups) == set(expected)
    computed = {"bars", "rows", "alone", "errors", "segments"}
    for series, columns in expected.items():
        rows = found.get_group(series)
        for name, values in columns.items():
            np.testing.assert_allclose(
                rows[name], values, rtol=1e-14 if series in computed else 0
            )


def test_panels_axes_names_and_labels_beside_points_are_told():
    figure, left, right = figures.axes(2)
    left.set(title="first", xlabel="load", ylabel="violations (%)")
    left.plot([1.0], [2.0], "o")
    figures.note(left, "a point", (1.0, 2.0))
    figures.name_rows(right, ["one", "two"])
    right.barh([0, 1], [3.0, np.nan])
    found = read_back(figure)
    assert list(found["panel"]) == ["first", "b"]
    assert list(found["series"].fillna("")) == ["a point", ""]
    assert list(found["y"]) == ["2.0", "one"]  # what is not finite is not drawn
    assert list(found["x_axis"]) == ["load", "load"]
    assert list(found["y_axis"].fillna("")) == ["violations (%)", ""]


def test_of_a_long_line_only_points_that_lie_on_another_are_left_out():
    figure, panel = figures.axes()
    x, y = np.linspace(0, 1, 50_001), np.sort(RNG.random(50_001))
    panel.plot(x, y)
    rows = read_back(figure)
    assert len(rows) < 5_000
    kept = np.searchsorted(x, rows["x"])
    np.testing.assert_array_equal(rows[["x", "y"]], np.column_stack([x, y])[kept])
    pixels = panel.transData.transform(np.column_stack([x, y]))
    before = kept[np.searchsorted(kept, np.arange(len(x)), side="right") - 1]
    assert np.abs(pixels - pixels[before]).max() <= 1


def frame(columns, *rows, **index):
    return pd.DataFrame(list(rows), columns=columns.split(), **index)


VISITS = ring_schedule.ring_schedule(planned(2, 0, 1e7, 2e7), steps=2)
ENDS_S = max(visit.ends_s for visit in VISITS)
RUNS = frame(
    "seed policy load throughput_per_s goodput_per_s sequencer_s",
    *[[seed, "fifo", 0.7, 80.0, 60.0, 3e-6] for seed in range(2)],
)
LOADED = frame(
    "partitions crossing seed policy violations",
    *[[2, 0.1, seed, "fifo", 0.4] for seed in range(2)],
)
TIMED = frame("predicted_s known limit copy", [4.0, 5.0, "disk", "pinned"])
PERPLEXITY = "perplexity low high"
SPAN = SimpleNamespace(kind="read", layer=0, start_s=1.0, end_s=1.25)
BATCH = worked_example.worked_batch()
WORKED = worked_example.run_worked(BATCH, "hybrid")
SMALL = ModelSpec(
    "small", 2, 8, 20, heads=3, kv_heads=1, head_dim=2, vocab=9, tied=True
)
BAR = SimpleNamespace(
    name="u", range=SimpleNamespace(low=1, high=2), at_low=9.0, at_high=90.0, swing=81.0
)
DRAWINGS = {  # by function: a drawing, and numbers that it was given, in its own units
    "ring_picture": (
        lambda draw: draw(VISITS, ENDS_S),
        [at_s for visit in VISITS for at_s in (visit.starts_s, visit.ends_s)]),
    "token_timeline": (lambda draw: draw([SPAN]), [0, 250]),
    "memory_against_time": (
        lambda draw: draw(frame("peak_bytes s_per_token low_s high_s",
                                [1.5 * GiB, 2.0, 1.9, 2.1], index=["x"]), 2 * GiB),
        [1.5, 2.0, 1.9, 2.1]),
    "memory_over_time": (
        lambda draw: draw({"x": np.array([[0.5, GiB, GiB / 4]])}, 3 * GiB),
        [0.5, 1, 0.25, 3]),
    "memory_parts": (
        lambda draw: draw({"a": GiB, "b": 2 * GiB}, 9 * GiB, 4 * GiB), [1, 3, 9, 4]),
    "roofline_stream": (
        lambda draw: draw([1, 4], {"s": [2.0, 3.0]}, 2.5, 0.4, 0.02, (80, 70, 95), 90),
        [1, 4, 2.0, 3.0, 2.5, 80, 70, 95, 90]),
    "speculation": (
        lambda draw: draw(frame(
            "tokens_per_pass low high times_faster times_low times_high",
            [2.0, 1.5, 3.0, 1.8, 1.2, 2.5], index=["x"])),
        [2.0, 1.5, 3.0, 1.8, 1.2, 2.5, 1]),
    "predicted_times": (
        lambda draw: draw(TIMED.rename(columns={"known": "measured_s"})), [4.0, 5.0]),
    "published_times": (
        lambda draw: draw(TIMED.rename(columns={"known": "published_s"}), 0.25),
        [4.0, 5.0]),
    "monthly_bills": (
        lambda draw: draw([1e6, 2e6], {"rent": [1.0, 2.5], "own": [1.0, np.inf]},
                          [(1.5e6, 1.5)]),
        [1e6, 2e6, 1.0, 2.5, 1.5e6, 1.5]),
    "tornado": (lambda draw: draw([BAR], 15.0, {"u": "use"}), [9, 90, 15]),
    "bits_and_perplexity": (
        lambda draw: draw(frame(f"method bits {PERPLEXITY}", ["GPTQ", 4.25, 26, 25, 27],
                                ["bf16", 16.0, 24.0, 24.0, 24.0])),
        [4.25, 26, 25, 27, 24]),
    "losses_by_ratio": (
        lambda draw: draw(frame("text ratio step times low high",
                                ["x", 0.6, "plain", 3.0, 2.0, 4.0])),
        [0.6, 3, 2, 4]),
    "pareto": (
        lambda draw: draw(frame(
            f"text name family bytes {PERPLEXITY} ratio token_s front time_front",
            ["x", "GPTQ 3", "GPTQ", 5e7, 24.0, 22.0, 26.0, 1.25, np.nan, True, False])),
        [50, 1.25, 22 / 19.2, 26 / 19.2]),
    "deterministic_database": (
        lambda draw: draw(WORKED, worked_example.bookings(BATCH, WORKED.log)),
        [len(BATCH.trace), 4.92]),
    "decoder_layer": (lambda draw: draw(SMALL, 5), [8 * 6 * 2 / 1e3, 8 * 20 * 2 / 1e3]),
    "rates_by_scenario": (
        lambda draw: draw({"A": RUNS}, {"A": 100.0}, ["fifo"]), [0.7, 80, 60, 70]),
    "against_sequencing": (
        lambda draw: draw(RUNS, 100.0, ["fifo"], {"one": 7.0}), [3, 80, 60, 7]),
    "weak_scaling": (
        lambda draw: draw(pd.DataFrame(120.0, [2], pd.MultiIndex.from_product(
            [[0.1], ["fifo", "cores"]])), LOADED, ["fifo"]),
        [2, 120, 40]),
    "goals": (
        lambda draw: draw(frame("reduction low high goal", [50.0, 40.0, 60.0, 45.0],
                                index=pd.MultiIndex.from_tuples(
                                    [("A", 0.9)], names=["row", "load"]))),
        [50, 60, 40, 55]),
}  # fmt: skip


@pytest.mark.filterwarnings("error")  # a chapter that says one is not rendered
@pytest.mark.parametrize("name", DRAWINGS)
def test_the_numbers_that_a_figure_was_given_come_back(name):
    draw, given = DRAWINGS[name]
    table = read_back(draw(getattr(figures, name)))
    places = map(str, table.filter(regex="^[xy]").to_numpy().ravel())
    numbers = [float(place) for place in places if re.fullmatch(r"[-+.e\d]+", place)]
    for value in given:
        assert np.isclose(numbers, value, rtol=1e-12).any(), value


# --- Names ----------------------------------------------------------------------
NAMED = {  # by function: a drawing that names a format, a library or a geometry
    "memory_against_time": lambda draw, name: draw(
        frame("peak_bytes s_per_token low_s high_s", [1.5 * GiB, 2.0, 1.9, 2.1],
              index=[name]), 2 * GiB),
    "memory_over_time": lambda draw, name: draw(
        {name: np.array([[0.5, GiB, GiB / 4]])}, 3 * GiB),
    "step_times": lambda draw, name: draw({name: [0.25]}),
    "monthly_bills": lambda draw, name: draw([1e6, 2e6], {name: [1.0, 2.5]}, []),
    "bytes_and_perplexity": lambda draw, name: draw(
        frame(f"bytes_percent {PERPLEXITY}", [50, 26, 25, 27], index=[name])),
    "bits_and_perplexity": lambda draw, name: draw(
        frame(f"method bits {PERPLEXITY}", [name, 16.0, 24.0, 24.0, 24.0])),
    "pareto": lambda draw, name: draw(frame(
        f"text name family bytes {PERPLEXITY} ratio token_s front time_front",
        ["x", name, "GPTQ", 5e7, 24.0, 22.0, 26.0, 1.25, np.nan, True, False])),
}  # fmt: skip


def words_in(figure):
    """Every text that the SVG of a figure holds, letters not yet outlined."""
    kept = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(kept, format="svg")
    root = ElementTree.fromstring(kept.getvalue())
    texts = [e for e in root.iter() if e.tag.endswith("}text")]
    return ["".join(text.itertext()) for text in texts]


def unprinted(text):
    """What a text has of names in the code, and of printed names that run together."""
    printed = map(re.escape, figures.style.PRINTED.values())
    rest = re.sub(rf"(?<![\w.])(?:{'|'.join(printed)})(?![\w(])", "", text)
    policies = {name: label for name, (label, *_) in figures.style.POLICIES.items()}
    codes = [name for name, label in policies.items() if "-" in name != label]
    codes += figures.style.PRINTED
    return re.findall(rf"\b(?:{'|'.join(codes)})\b|\w+\.?\w*\(|_", rest)


@pytest.mark.parametrize("drawn", NAMED)
def test_figures_print_a_name_once_also_if_it_was_printed_before(drawn):
    draw, printed = getattr(figures, drawn), figures.style.PRINTED["int8"]
    once, twice = (words_in(NAMED[drawn](draw, each)) for each in ("int8", printed))
    assert once == twice
    assert printed in once


def test_printed_leaves_a_printed_text_unchanged():
    for name, printed in figures.style.PRINTED.items():
        for text in (name, printed, f"{name}, {printed} and {name} in 2 GiB"):
            once = figures.style.printed(text)
            assert (
                once
                == figures.style.printed(once)
                == text.replace(printed, name).replace(name, printed)
            )


def test_unprinted_finds_a_name_of_the_code():
    wrong = ("LLM.LLM.int8()()", "streamed, bf16", "late-edf", "LLM.int8()()", "a_b")
    assert [text for text in wrong if not unprinted(text)] == []
    right = ("LLM.int8()", "NF4 and LLM.int8(), packed", "time (s)", "Llama 2 7B")
    assert [text for text in right if unprinted(text)] == []


@pytest.mark.parametrize("name", DRAWINGS)
def test_svg_of_a_figure_shows_no_name_of_the_code(name):
    draw, _ = DRAWINGS[name]
    texts = words_in(draw(getattr(figures, name)))
    assert texts
    assert [text for text in texts if unprinted(text)] == []


# --- The vector ------------------------------------------------------------------
def luminance(colour):
    channels = np.array(to_rgb(colour))
    linear = np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_figure_is_drawn_alike_each_time_without_fonts_or_metadata():
    texts = [
        bundle(draw(figures.tornado))[SVG] for draw, _ in [DRAWINGS["tornado"]] * 2
    ]
    assert texts[0] == texts[1]
    names = {
        element.tag.split("}")[1] for element in ElementTree.fromstring(texts[0]).iter()
    }
    assert not names & {"text", "metadata", "title"}
    assert "font" not in texts[0]
    outside_glyphs = re.sub(r"scale\([^)]*\)", "", texts[0])
    assert not re.search(r"\.\d{3}", outside_glyphs)


def test_coordinates_move_by_less_than_a_hundredth_of_a_point():
    figure, panel = figures.axes()
    values = RNG.random((40, 2))
    panel.plot(*values.T)
    longest = max(re.findall(r'<path d="([^"]+)"', as_vector(figure)), key=len)
    steps = []
    for command, numbers in re.findall(r"([mlhv])([-\d. ]+)", longest):
        step = [float(number) for number in re.findall(r"-?\d*\.?\d+", numbers)]
        steps.append({"h": [*step, 0], "v": [0, *step]}.get(command, step))
    drawn_at = np.cumsum(steps, axis=0)
    at = panel.transData.transform(panel.lines[0].get_xydata()) * 72 / figure.dpi
    moved = drawn_at * [1, -1] - at
    assert np.ptp(moved, axis=0).max() < 0.011


def points_of(path):
    """The ends and bends (n, 2) of a path of steps, with those that it leaves out."""
    drawn, mirrored = [np.zeros(2)], None
    for command, numbers in re.findall(r"([a-y])([-\d. ]*)", path):
        steps = [float(n) for n in re.findall(r"-?\d*\.?\d+", numbers)]
        steps = {"h": [*steps, 0], "v": [0, *steps]}.get(command, steps)
        points = [drawn[-1] + step for step in np.reshape(steps, (-1, 2))]
        points = [mirrored, *points] if command == "t" else points
        mirrored = 2 * points[-1] - points[0]
        drawn += points
    return np.array(drawn[1:])


@pytest.mark.parametrize("letter", "8abegs&")
@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_a_letter_keeps_its_outline_to_its_grid(letter, weight):
    figure, font = Figure(), FontProperties(family="DejaVu Sans", weight=weight)
    figure.text(0.5, 0.5, letter, fontproperties=font)
    (path,) = re.findall(r'<path id="\w+" d="([^"]+)"/>', as_vector(figure))
    assert "t" in path
    outline = TextPath((0, 0), letter, size=800, prop=font)
    known = outline.vertices[outline.codes != TextPath.CLOSEPOLY]
    assert np.abs(points_of(path) - known).max() < 1.6


def test_a_bent_line_moves_by_less_than_three_hundredths_of_a_point():
    figure, bends = Figure(dpi=72), 200 * RNG.random((41, 2))
    ends = (bends[1:] + bends[:-1]) / 2
    ends += np.arange(40)[:, None] % 2 * RNG.normal(0, 0.3, (40, 2))  # smooth or not
    turns = np.stack([bends[1:-1], ends[1:]], axis=1).reshape(-1, 2)
    codes = [Path.MOVETO, *[Path.CURVE3] * len(turns)]
    line = Path([ends[0], *turns], codes)
    figure.add_artist(PathPatch(line, transform=IdentityTransform(), fill=False))
    (path,) = re.findall(r'<path d="([^"]+q[^"]+)"', as_vector(figure))
    moved = points_of(path) * [1, -1] - line.vertices
    assert 5 < path.count("t") < 35
    assert np.ptp(moved, axis=0).max() < 0.03


def test_labels_find_new_places_in_the_drawing_for_a_narrow_screen():
    figure, panel = figures.axes()
    at = np.arange(6.0)
    panel.plot(at, 0 * at, "o")
    for x in at:
        figures.note(panel, "between two", (x, 0.0))
    figures.move_apart(panel)
    before = [label.get_position() for label in panel.texts]
    assert NARROW in bundle(figure)  # it is kept only if no more of them collide
    assert [label.get_position() for label in panel.texts] == before
    export.LABELLED.clear()
    assert NARROW not in bundle(figure)


def drawn_of(svg):
    """Every path that an SVG draws: its look, where it is, and its outline."""
    root = ElementTree.fromstring(svg)
    known = {e.get("id"): e for e in root.iter() if e.get("id")}
    shown = []

    def draw(element, look, place):
        if element.tag.endswith("defs"):
            return
        look += (element.get("class"),)
        place += [element.get(key) for key in ("transform", "x", "y")]
        if element.tag.endswith("use"):
            draw(known[element.get("href")[1:]], look, place)
        elif element.tag.endswith("path"):
            shown.append(
                (
                    tuple(filter(None, look)),
                    tuple(filter(None, place)),
                    element.get("d"),
                )
            )
        for child in element:
            draw(child, look, [*place])

    draw(root, (), [])
    return shown


def test_texts_and_marks_that_are_said_once_are_all_drawn():
    figure = Figure()
    for y in (0.2, 0.4, 0.6):
        figure.text(0.5, y, "a text again", color=figures.INK)
    panel = figure.add_axes((0.1, 0.7, 0.8, 0.2))
    panel.set_axis_off()
    panel.plot([1, 2, 3, 4], [1, 3, 2, 5], "s", color=figures.BLUE)
    svg = as_vector(figure)
    shown = drawn_of(svg)
    assert len(shown) == len({*shown}), "two lie on each other"
    places = Counter(place[0] for _, place, _ in shown if place)
    assert [n for n in places.values() if n >= 10] == [10, 10, 10]  # letters of a text
    (mark,) = re.findall(r"\.(c\d+){[^}]*fill:#0072b2", svg)
    (letter,) = re.findall(r"\.(c\d+){fill:#222222}", svg)
    looks = Counter(name for names, *_ in shown for name in names)
    assert (looks[mark], looks[letter]) == (4, 30)


def texts_of(svg):
    """The corners (n, 2, 2) of every text, in points from the upper left."""
    letters = {}
    for _, place, outline in drawn_of(svg):
        steps = [step if "(" in step else f"translate({step} 0)" for step in place]
        said = " ".join(steps)
        text, is_letter, _ = said.partition(" -0.")
        at = Affine2D()
        for kind, numbers in reversed(re.findall(r"(\w+)\(([^)]*)\)", said)):
            step = Affine2D()
            act = step.rotate_deg if kind == "rotate" else getattr(step, kind)
            at += act(*map(float, numbers.split()))
        if is_letter:
            letters.setdefault(text, []).append(at.transform(points_of(outline)))
    texts = map(np.concatenate, letters.values())
    return np.array([[text.min(axis=0), text.max(axis=0)] for text in texts])


def boxes_of(svg):
    """The corners of the boxes of every piece."""
    (said,) = re.findall('data-panels="([^"]+)"', svg)
    pieces = [
        np.array([box.split() for box in piece.split(",")], float)
        for piece in said.split(";")
    ]
    return [[(box[:2], box[:2] + box[2:]) for box in piece] for piece in pieces]


def inside(texts, box):
    """Of each text whether it is inside; none is cut by an edge."""
    within = (texts[:, 0] >= box[0]).all(1) & (texts[:, 1] <= box[1]).all(1)
    apart = (texts[:, 1] <= box[0]).any(1) | (texts[:, 0] >= box[1]).any(1)
    assert (within | apart).all()
    return within


def drawn_panels(share):
    """Three panels with a shared axis, a legend of two columns below them."""
    names = {"of the first one": 1, "of the second": 2, "third": 3}
    says = {"ylabel": "violations (%)", "xlabel": "load"}
    figure, drawn = figures.panels(names, 2.6, share, **says)
    for panel, times in drawn:
        panel.plot([0, 1], [1, 1_000 * times], label="as it was")
        panel.plot([0, 1], [2, 500 * times], label="as it should have been")
        panel.plot([0, 1], [3, 500 * times], label="as it is")
    figures.legend_below(figure, ncols=2)
    return figure


def grid_of_panels():
    figure, *drawn = figures.axes(2, rows=2, sharex=True, sharey=True)
    for panel in drawn:
        panel.plot([0, 1], [1, 1_000], label="a line")
        panel.set(title="one of four", ylabel="late")
    figures.legend_below(figure)
    return figure


def panels_of_named_rows():
    figure, *drawn = figures.axes(3, sharey=True)
    names = ["without calibration", "earliest deadline, late-bound", "never sent ahead"]
    for panel in drawn:
        figures.name_rows(panel, names, fontsize=8)
        panel.barh(range(3), [1, 2, 3])
    return figure


@pytest.mark.parametrize(
    ("draw", "legend", "beside"),
    [
        (lambda: drawn_panels("y"), 2, [0, 1, 1]),
        (lambda: drawn_panels("x"), 2, [0, 0, 0]),
        (grid_of_panels, 1, [0, 1]),
        (panels_of_named_rows, 0, [0, 1, 1]),
        (lambda: DRAWINGS["weak_scaling"][0](figures.weak_scaling), 0, [0, 0]),
        (lambda: DRAWINGS["speculation"][0](figures.speculation), 0, [0, 1]),
    ],
)
def test_pieces_of_a_figure_share_no_place_and_hold_every_text(draw, legend, beside):
    svg = as_vector(draw())
    pieces, texts = boxes_of(svg), texts_of(svg)
    assert [len(piece) - 1 for piece in pieces] == [0] * legend + beside
    own = [piece[-1] for piece in pieces]
    held = np.array([inside(texts, box) for box in own])
    assert (held.sum(axis=0) == 1).all(), "a text is in no piece, or in two"
    assert held.any(axis=1).all()
    for (a, b), (c, d) in combinations(own, 2):
        assert (np.minimum(b, d) - np.maximum(a, c)).min() <= 0.11  # as rounded
    for piece in pieces:
        for box in piece[:-1]:  # the numbers of the first column, and no curve
            assert 0 < inside(texts, box).sum() < held[legend].sum()


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_in_pieces_or_narrow_on_a_narrow_screen_and_then_as_it_was(name):
    figure = DRAWINGS[name][0](getattr(figures, name))
    before = as_vector(figure)
    files = bundle(figure)
    assert files[SVG] == before == as_vector(figure)
    assert (NARROW in files) == ("data-panels" not in before)
    if NARROW in files:
        assert len(texts_of(files[NARROW])) == len(texts_of(before))
        (width,) = re.findall(r'viewBox="0 0 ([\d.]+)', files[NARROW])
        letters = 800 * min(map(float, re.findall(r"scale\(([\d.]+) -", before)))
        most_in = NARROW_IN * max(1, letters / LEAST_PT)  # then it is shown smaller
        assert float(width) <= 72 * (most_in + 0.2)


def test_a_legend_has_as_many_columns_as_a_narrow_figure_has_room_for():
    figure, panel = figures.axes()
    for number in range(5):
        panel.plot([0, 1], [number, 0], label=f"a curve with a long name, {number}")
    figures.style.legend_below(figure, ncols=5)
    files = bundle(figure)
    wide, narrow = (
        float(re.findall(r'viewBox="0 0 ([\d.]+)', files[kind])[0])
        for kind in (SVG, NARROW)
    )
    assert wide > 72 * figures.style.WIDTH_IN > 72 * (NARROW_IN + 0.2) > narrow
    rows = texts_of(files[NARROW])[-5:, 0, 1].round()
    assert len({*rows}) == 5


@pytest.mark.parametrize(
    ("texts", "size", "kept"),
    [
        ([(0.1, "left")], 8, True),
        ([(0.1, "left")], 6, False),  # too small for a phone
        (
            [(0.1, "two texts that are long and stand"), (0.55, "side by side")],
            8,
            False,
        ),
        ([(0.75, "cut off at its end")], 8, False),
    ],
)
def test_a_narrow_drawing_is_kept_where_its_texts_can_be_read(texts, size, kept):
    figure, panel = figures.axes()
    for x, text in texts:
        panel.text(x, 0.5, text, fontsize=size, clip_on=True)
    assert (NARROW in bundle(figure)) == kept


@pytest.mark.parametrize(("size", "kept"), [(9, True), (7, False)])
def test_a_drawing_wider_than_a_narrow_screen_is_kept_if_it_can_be_smaller(size, kept):
    """Its label is a tenth wider than the screen; letters of 9 points have room."""
    figure, panel = figures.axes()
    label = panel.set_xlabel("n", fontsize=size)
    panel.tick_params(labelsize=size)
    figure.draw_without_rendering()
    letter_in = label.get_window_extent().width / figure.dpi
    label.set_text("n" * round(1.1 * NARROW_IN / letter_in))
    assert (NARROW in bundle(figure)) == kept


def test_panels_that_a_text_joins_are_one_piece():
    figure, left, _ = figures.axes(2)
    assert "data-panels" in as_vector(figure)
    left.set_xlabel("a name of an axis that is so long that it goes on below another")
    assert "data-panels" not in as_vector(figure)


def test_on_a_dark_page_the_same_lines_have_colours_that_can_be_seen():
    figure, panel = figures.axes()
    for place, colour in enumerate([*figures.PALETTE, figures.GREY, figures.INK]):
        panel.plot([0, 1], [place, place], color=colour)
    figures.note(panel, "label", (0, 0))
    light = as_vector(figure)
    dark = figures.dark(light)
    without = [re.sub("#[0-9a-f]{6}", "", text) for text in (light, dark)]
    assert without[0] == without[1]
    page = figures.DARK["#ffffff"]
    for colour in set(re.findall("#[0-9a-f]{6}", dark)) - {page}:
        least = 1.5 if colour == figures.DARK[figures.GRID] else 3
        assert contrast(colour, page) >= least, colour


def test_a_raster_stays_where_it_was_drawn_and_so_do_the_lines_behind_it():
    figure, panel = figures.style.axes(1)
    panel.plot(RNG.random(3000), ",", rasterized=True)
    panel.set_title("many")

    def scales(text):
        """Of the raster, and whether the axes' frame is scaled as a letter is."""
        (image,) = re.findall(r"<image .*?/>", text, re.DOTALL)
        return re.findall(r"scale\([^)]*\)", image), "<path transform=" in text

    drawn = figures.export.svg_element(figure, "path", transparent=False)
    assert scales(as_vector(figure)) == scales(drawn) == (["scale(1 -1)"], False)
