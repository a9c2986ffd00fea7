"""What is kept of a figure: its data comes back, its drawing is the same each time."""

import io
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_rgb
from rings import planned

from thesis_book import figures
from thesis_book.figures.export import CSV, PNG, SVG, as_vector
from thesis_book.tables import ring_schedule, worked_example
from thesis_lib.common.stats import mean_interval
from thesis_lib.common.units import GiB
from thesis_lib.memory.model.spec import ModelSpec

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def theme():
    figures.theme()


def read_back(drawing):
    """The data of a drawing, as a reader of its file has it; its SVG is whole."""
    files = drawing.bundle()
    ElementTree.fromstring(files[SVG])
    return pd.read_csv(io.StringIO(files[CSV]))


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
        lambda draw: draw({"a": GiB, "b": 2 * GiB}, 9 * GiB, 4 * GiB), [1, 2, 9, 4]),
    "roofline_stream": (
        lambda draw: draw([1, 4], {"s": [2.0, 3.0]}, 2.5, 0.4, 0.02, (80, 70, 95), 90),
        [1, 4, 2.0, 3.0, 2.5, 80, 70, 95, 90]),
    "speculation": (
        lambda draw: draw(frame(
            "tokens_per_pass low high times_faster times_low times_high",
            [2.0, 1.5, 3.0, 1.8, 1.2, 2.5], index=["x"])),
        [2.0, 1.5, 3.0, 1.8, 1.2, 2.5]),
    "predicted_times": (
        lambda draw: draw(TIMED.rename(columns={"known": "measured_s"})), [4.0, 5.0]),
    "published_times": (
        lambda draw: draw(TIMED.rename(columns={"known": "published_s"}), 0.25),
        [4.0, 5.0]),
    "monthly_bills": (
        lambda draw: draw([1e6, 2e6], {"rent": [1.0, 2.5], "own": [1.0, np.inf]},
                          [(1.5e6, 1.5)]),
        [1e6, 2e6, 1.0, 2.5, 1.5e6, 1.5]),
    "tornado": (
        lambda draw: draw(
            frame("low high at_low at_high swing", [1, 2, 9.0, 90.0, 81.0],
                  index=["u"]), 15.0, {"u": "use"}),
        [9, 90, 15]),
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
        [*range(len(BATCH.trace))]),
    "decoder_layer": (lambda draw: draw(SMALL, 5), [8 * 6 * 2 / 1e3, 8 * 20 * 2 / 1e3]),
    "rates_by_scenario": (
        lambda draw: draw({"A": RUNS}, {"A": 100.0}, ["fifo"]), [0.7, 80, 60]),
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
    "spectra": (lambda draw: draw({"q": [4.0, 3.0, 1.0]}, 1.5), [3, 0.75, 0.25, 1.5]),
    "perplexity_by_ratio": (
        lambda draw: draw([0.9, 0.8], {"plain": [30.0, 99.0]}, 25.0),
        [0.9, 0.8, 30, 99, 25]),
    "quantization_levels": (
        lambda draw: draw([[-1.0, 0.25, 1.0]], {"NF4": [-1.0, 0.5]}), [-1.0, 0.5]),
    "bytes_and_perplexity": (
        lambda draw: draw(frame(f"bytes_percent {PERPLEXITY}", [28.5, 24, 22, 26],
                                index=["nf4"])),
        [28.5, 24, 22, 26]),
    "time_against_memory": (
        lambda draw: draw([GiB, 2 * GiB], {"a": [5.0, 4.5]}, GiB / 4, 8 * GiB),
        [1, 2, 5, 4.5, 0.25, 8]),
    "step_times": (lambda draw: draw({"bf16": [0.5, 0.25]}), [500, 250]),
    "expected_tokens": (
        lambda draw: draw([1, 2], {"0.5": [1.5, 1.75]}), [1, 2, 1.5, 1.75]),
    "through_a_crowd": (
        lambda draw: draw(frame("fifo", [0.25], [0.5], index=[-0.1, 0.02]), 0.2),
        [-100, 20, 25, 50]),
    "beyond_fifo": (
        lambda draw: draw(frame("load misestimation policy percent fifo",
                                [0.9, "swapped", "bid-price", 7.0, 40.0])),
        [0.9, 7, 40]),
    "price_of_fairness": (
        lambda draw: draw(frame("gap payment violations goodput low high",
                                [5.0, 3.0, 4.0, 90.0, 88.0, 91.0]), ["payment"]),
        [5, 3, 4, 90, 88, 91]),
    "ingredients": (
        lambda draw: draw(pd.DataFrame(
            [[3.0], [8.0]], ["bid-price", "without price"],
            pd.MultiIndex.from_tuples([("A", 0.9)]))),
        [0.9, 3, 8]),
    "beside_measured": (
        lambda draw: draw(frame(
            "engine policy workers measured simulated error low high",
            ["sqlite", "fifo", 1, 30.0, 32.0, 2.0, 1.5, 3.0],
            ["sqlite", "fifo", 4, 50.0, 51.0, 1.0, 0.5, 2.5],
        ).set_index(["engine", "policy", "workers"])),
        [4, 30, 32, 2, 1.5, 3, 50, 51]),
    "ablation": (
        lambda draw: draw({"A": frame(
            "from defect strict_change strict_low strict_high",
            ["described", "ghosts", -5.0, -6.0, -4.0],
            ["corrected", "ghosts", 5.5, 4.5, 6.5])}),
        [-5, -6, -4, 5.5, 4.5, 6.5]),
    "one_sequencer": (
        lambda draw: draw(frame("rate_per_s decide_us", [1e4, 3.0], index=(
            pd.MultiIndex.from_tuples([("fifo", 0.9, 4)]))), ["fifo"], 0.9),
        [4, 1e4, 3, 100]),
    "reductions": (
        lambda draw: draw({"A": pd.concat(
            RUNS.assign(policy=name, violations=share, seed=range(2))
            for name, share in (("fifo", 0.5), ("drop", 0.25)))}, ["drop"], 36.0),
        [0.7, 50, 36]),
    "violations_against_load": (
        lambda draw: draw(RUNS.assign(violations=[0.49, 0.51]), ["fifo"]),
        [0.7, 50, *(100 * getattr(mean_interval([0.49, 0.51]), end)
                    for end in ("low", "high"))]),
    "distance_to_optimum": (
        lambda draw: draw(pd.concat(
            RUNS.assign(policy=name, violations=0.5) for name in (
                "fifo", "bid-price", "bid-price-oracle", "search", "bound")),
            frame(" ".join(figures.DISTANCE), [4.0, 3.0, 2.0, 1.0], index=[0.7])),
        [0.7, 50, 4, 3, 2, 1]),
    "schedules": (
        lambda draw: draw({"hybrid": WORKED}, ["x"] * len(BATCH.trace)),
        1e3 * WORKED.finish_s[~WORKED.dropped]),
}  # fmt: skip


WRITTEN = {  # numbers that a figure writes as words, or that are beyond its panel
    "roofline_stream": {90},
    "deterministic_database": {6, 7},
    "beyond_fifo": {0.9},
    "price_of_fairness": {5},
    "ingredients": {0.9},
    "one_sequencer": {4},
}


def drawn_numbers(figure):
    """Every number at which a line, a bar, a band or a text of a figure is."""
    found = []
    for panel in figure.axes:
        found += [line.get_xydata() for line in panel.lines]
        found += [text.get_position() for text in panel.texts]
        found += [path.vertices for c in panel.collections for path in c.get_paths()]
        found += [c.get_offsets() for c in panel.collections]
        for patch in panel.patches:
            box = patch.get_path().get_extents(patch.get_patch_transform())
            found += [box.get_points(), box.size]
    return np.concatenate([np.ravel(np.asarray(each, float)) for each in found])


@pytest.mark.filterwarnings("error")  # a chapter that says one is not rendered
@pytest.mark.parametrize("name", DRAWINGS)
def test_figure_draws_its_numbers_and_returns_them_as_data(name):
    draw, given = DRAWINGS[name]
    drawing = draw(getattr(figures, name))
    table = read_back(drawing).select_dtypes("number").to_numpy().ravel()
    drawn = drawn_numbers(drawing.figure)
    for value in given:
        assert np.isclose(table, value, rtol=1e-12).any(), value
        assert value in WRITTEN.get(name, ()) or np.isclose(drawn, value).any(), value


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


def words_in(drawing):
    """Every text that the SVG of a figure holds, letters not yet outlined."""
    kept = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none"}):
        drawing.figure.savefig(kept, format="svg")
    root = ElementTree.fromstring(kept.getvalue())
    texts = [e for e in root.iter() if e.tag.endswith("}text")]
    return ["".join(text.itertext()) for text in texts]


def unprinted(text):
    """What a text has of names in the code, and of printed names that run together."""
    printed = map(re.escape, figures.style.PRINTED.values())
    rest = re.sub(rf"(?<![\w.])(?:{'|'.join(printed)})(?![\w(])", "", text)
    labels = figures.style.LABELS
    codes = [name for name, label in labels.items() if "-" in name != label]
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


@pytest.mark.parametrize("n", [1, 7, 50_000])
def test_distribution_is_exact_and_short_and_has_the_tail(n):
    values = RNG.random(n)
    table = figures.distribution("x", values)
    at_or_below = (values[None] <= table["x"].to_numpy()[:, None]).mean(axis=1)
    np.testing.assert_allclose(table["percent_at_or_below"], 100 * at_or_below)
    assert len(table) <= 1_000
    assert set(np.sort(values)[-5:]) <= set(table["x"])


def test_notebook_shows_a_figure_with_its_files_and_a_short_text():
    drawing = DRAWINGS["tornado"][0](figures.tornado)
    data, _ = DisplayFormatter().format(drawing)
    assert {SVG, PNG, CSV} < set(data)
    assert len(data["text/plain"]) < 60


# --- The vector ------------------------------------------------------------------
def luminance(color):
    channels = np.array(to_rgb(color))
    linear = np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_figure_is_saved_alike_each_time_without_fonts_or_metadata():
    texts = [
        draw(figures.tornado).bundle()[SVG] for draw, _ in [DRAWINGS["tornado"]] * 2
    ]
    assert texts[0] == texts[1]
    names = {
        element.tag.split("}")[1] for element in ElementTree.fromstring(texts[0]).iter()
    }
    assert not names & {"text", "metadata", "title"}
    assert "font" not in texts[0]


def test_on_a_dark_page_the_same_lines_have_colours_that_can_be_seen():
    figure, panel = figures.axes()
    for place, color in enumerate([*figures.PALETTE, figures.GRAY, figures.INK]):
        panel.plot([0, 1], [place, place], color=color)
    figures.note(panel, "label", (0, 0))
    light = as_vector(figure)
    dark = figures.dark(light)
    without = [re.sub("#[0-9a-f]{6}", "", text) for text in (light, dark)]
    assert without[0] == without[1]
    page = figures.DARK["#ffffff"]
    for color in set(re.findall("#[0-9a-f]{6}", dark)) - {page}:
        least = 1.5 if color == figures.DARK[figures.GRID] else 3
        assert contrast(color, page) >= least, color
