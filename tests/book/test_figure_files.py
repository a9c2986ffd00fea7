"""What is kept of a figure: its data comes back, its drawing is the same each time."""

import io
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from rings import planned

from thesis_book import figures
from thesis_book.figures.export import CSV, SVG, as_vector, bundle
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


def test_figure_is_saved_alike_each_time_without_fonts_or_metadata():
    texts = [
        bundle(draw(figures.tornado))[SVG] for draw, _ in [DRAWINGS["tornado"]] * 2
    ]
    assert texts[0] == texts[1]
    names = {
        element.tag.split("}")[1] for element in ElementTree.fromstring(texts[0]).iter()
    }
    assert not names & {"text", "metadata", "title"}
    assert "font" not in texts[0]


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
