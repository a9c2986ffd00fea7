"""What the figures draw is what they were given, and can be read."""

import re
import tomllib
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Line
from matplotlib.transforms import Bbox
from rings import planned
from transformers import LlamaConfig, LlamaForCausalLM

from thesis_book import figures
from thesis_book.tables import ring_schedule, worked_example
from thesis_lib.common.units import GiB, MiB
from thesis_lib.memory.model.linears import linears
from thesis_lib.memory.model.spec import ModelSpec
from thesis_lib.sequencer.core.trace import KeySets, Trace


def bars(ax):
    """Left, width, row and colour of each horizontal bar."""
    return [
        (*bar.xy, bar.get_width(), bar.get_height(), to_hex(bar.get_facecolor()))
        for bar in ax.patches
    ]


def named(ax):
    """The lines of a panel by their labels."""
    return {line.get_label(): line for line in ax.lines}


def texts(labels):
    return [label.get_text() for label in labels]


def no_two_overlap(boxes):
    return not any(a.overlaps(b) for a, b in combinations(boxes, 2))


@pytest.fixture(autouse=True)
def theme():
    figures.theme()


# --- Rings, steps and memory -----------------------------------------------------
@pytest.mark.parametrize(("ring", "extra"), [(1, 0), (2, 0), (3, 0), (3, 1)])
def test_the_ring_is_drawn_as_it_was_scheduled(ring, extra):
    # Limited by reading, with `extra` resident layers.
    made = ring_schedule.ring_schedule(planned(ring, extra, 1e7, 2e7), steps=3)
    (ax,) = figures.ring_picture(made, until_s=made[-1].ends_s + 1).figure.axes
    drawn = [
        (left, width, round(y + height / 2), color)
        for left, y, width, height, color in bars(ax)
    ]
    for visit in made:
        row = ring if visit.buffer < 0 else visit.buffer
        color = figures.PASS_COLORS[visit.step]
        spans = [(visit.starts_s, visit.ends_s)]
        if visit.buffer >= 0:
            spans.append((visit.receives_s, visit.ready_s))
        for start, end in spans:
            assert any(
                (left, width) == pytest.approx((start, end - start))
                and (at, shade) == (row, color)
                for left, width, at, shade in drawn
            )
    assert texts(ax.texts) == [str(v.layer + 1) for v in made]
    assert len(ax.get_yticks()) == ring + (extra > 0)
    for buffer in range(ring):  # no two bars of a buffer lie on each other
        mine = sorted(bar[:2] for bar in drawn if bar[2] == buffer)
        assert all(b[0] >= a[0] + a[1] - 1e-9 for a, b in pairwise(mine))


def test_a_timeline_has_a_row_for_each_kind_and_counts_from_its_first_span():
    fields = ("kind", "layer", "start_s", "end_s")
    spans = [
        SimpleNamespace(**dict(zip(fields, span, strict=True)))
        for span in (
            ("read", 0, 10.0, 10.4),
            ("read", 1, 10.1, 10.5),  # overlaps the first: a lane of its own
            ("compute", 0, 10.4, 10.6),
            ("wait", 1, 10.2, 10.4),
        )
    ]
    (ax,) = figures.token_timeline(spans).figure.axes
    assert texts(ax.get_yticklabels()) == ["read", "compute", "wait"]
    assert sorted(bar[0] for bar in bars(ax)) == pytest.approx([0, 100, 200, 400])
    assert no_two_overlap(bar.get_bbox().padded(-1e-6) for bar in ax.patches)


def test_systems_stand_at_their_memory_and_time_beside_the_budget():
    runs = pd.DataFrame(
        [[1.5, 2.0, 1.9, 2.1], [1.9, 4.0, 3.9, 4.2], [1.8, 8.0, 7.5, 9.0]],
        index=["streamed, bf16", "accelerate", "something new"],
        columns=["peak_bytes", "s_per_token", "low_s", "high_s"],
    )
    runs["peak_bytes"] *= GiB
    (ax,) = figures.memory_against_time(runs, 2 * GiB).figure.axes
    points = [tuple(c.lines[0].get_xydata()[0]) for c in ax.containers]
    assert points == [(1.5, 2.0), (1.9, 4.0), (1.8, 8.0)]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert texts(ax.get_legend().get_texts()) == ["limit, 2 GiB"]
    colors = {text.get_text(): to_hex(text.get_color()) for text in ax.texts}
    assert colors["streamed, bfloat16"] == figures.PEER_LOOKS["streamed"][0]
    assert colors["Accelerate"] == figures.PEER_LOOKS["accelerate"][0]
    assert colors["something new"] == figures.GRAY
    limit, _ = ax.transData.transform((2.0, 1.0))
    names = [text.get_window_extent() for text in ax.texts]
    assert not [name for name in names if name.x0 < limit < name.x1]


@pytest.mark.parametrize(
    ("at", "found", "crossovers"),
    [(80.0, np.inf, 1), (80.0, 0.0, 1), (80.0, 90.0, 2), (0.0, 90.0, 1)],
)
def test_the_roofline_is_the_larger_of_its_two_lines(at, found, crossovers):
    tokens, seconds = [1, 16, 256], {"streamed": [0.46, 2.1, 5.0]}
    predicted = (at, 0.9 * at, 1.2 * at)
    given = tokens, seconds, 2.0, 0.4, 0.02, predicted, found
    figure, _ = figures.roofline_stream(*given)
    lines = named(*figure.axes)
    span, predicted_s = lines["predicted"].get_data()
    np.testing.assert_allclose(predicted_s, np.maximum(2.0, 0.4 + 0.02 * span))
    assert list(lines["streamed"].get_ydata()) == seconds["streamed"]
    assert sum(label.startswith("crossover") for label in lines) == crossovers
    figure.draw_without_rendering()
    (ax,) = figure.axes
    (word,) = (text for text in ax.texts if text.get_text() == "computing")
    points = ax.transData.transform(lines["streamed"].get_xydata())
    assert not [point for point in points if word.get_window_extent().contains(*point)]


@pytest.mark.parametrize("io_s", [0.033, 0.044, 0.048, 0.055, 0.2])
def test_no_line_of_the_roofline_strikes_out_a_name(io_s):
    weights_s, token_s = 0.0434, 0.00061  # of a run whose two lines were close
    seconds = {"streamed": [0.064, 0.069, 0.137]}
    predicted = ((io_s - weights_s) / token_s, 17.9, 19.4)
    figure, _ = figures.roofline_stream(
        [1, 32, 128], seconds, io_s, weights_s, token_s, predicted, 16.7
    )

    def struck(panel):
        """Names with a line through them, or with a part outside the panel."""
        names = [text.get_window_extent() for text in panel.texts]
        inside = panel.get_window_extent()
        outside = [
            name for name in names
            if Bbox.intersection(name, inside).bounds != name.bounds
        ]  # fmt: skip
        places = [
            line.get_transform().transform(line.get_xydata())
            for line in panel.lines
            if line.get_linestyle() != "None"
        ]
        return outside + [
            name for name, place in product(names, places)
            if Line(place).intersects_bbox(name, filled=False)
        ]  # fmt: skip

    figure.draw_without_rendering()
    assert not struck(*figure.axes)


@pytest.mark.parametrize(
    ("model", "limit", "panels", "unit", "scale"),
    [(120 * GiB, 8 * GiB, 2, "GiB", GiB), (256 * MiB, 96 * MiB, 1, "MiB", MiB)],
)
def test_parts_of_a_plan_can_be_read_however_large_the_model(
    model, limit, panels, unit, scale
):
    parts = {"embedding": limit // 4, "ring": limit // 2}
    *whole, plan = figures.memory_parts(parts, model, limit).figure.axes
    assert len(whole) + 1 == panels
    assert unit in plan.get_xlabel()
    widest = max(bar[0] + bar[2] for bar in bars(plan)[-2:])
    assert widest == pytest.approx(0.75 * limit / scale)
    assert panels == 1 or plan.get_xlim()[1] < 1.2 * limit / scale


# --- Costs -----------------------------------------------------------------------
def test_a_bill_ends_where_the_machine_does_and_crossings_are_marked():
    tokens = np.array([1e6, 2e6, 4e6])
    bills = {"rent": [1.0, 2.0, 4.0], "bought": [1.5, 1.6, np.inf]}
    (ax,) = figures.monthly_bills(tokens, bills, [(1.5e6, 1.5)]).figure.axes
    assert list(named(ax)["bought"].get_ydata()) == [1.5, 1.6, np.inf]
    marked = {line.get_marker(): line.get_xydata().tolist() for line in ax.lines}
    assert (marked["|"], marked["o"]) == ([[2e6, 1.6]], [[1.5e6, 1.5]])
    (none,) = figures.monthly_bills(tokens, {"slow": [np.inf] * 3}, []).figure.axes
    assert not [line for line in none.lines if line.get_marker() == "|"]


def test_a_tornado_has_its_largest_bar_on_top_with_the_inputs_at_its_ends():
    drawn = pd.DataFrame(
        [[0.1, 1, 90, 9, 81], [1, 2, 10, 20, 10], [1, 1, 15, 15, 0]],
        ["u", "p", "z"],
        ["low", "high", "at_low", "at_high", "swing"],
    )
    labels = {"u": "use", "p": "price", "z": "none"}
    (ax,) = figures.tornado(drawn, 15.0, labels).figure.axes
    assert texts(ax.get_yticklabels()) == ["use", "price"]
    assert [(bar[0], bar[2]) for bar in bars(ax)] == [(9, 81), (10, 10)]
    assert ax.yaxis_inverted()
    assert texts(ax.texts) == ["1", "0.1", "1", "2"]


# --- Perplexities ----------------------------------------------------------------
@pytest.mark.parametrize(
    ("most", "ticks"), [(200.0, [50.0, 100.0, 200.0]), (1e6, [100.0, 10e3, 1e6])]
)
def test_where_perplexities_differ_by_thousands_no_tick_stands_between_decades(
    most, ticks
):
    curves = {"plain": [30.0, most]}
    (ax,) = figures.perplexity_by_ratio([0.9, 0.8], curves, 25.0).figure.axes
    low, high = ax.get_ylim()
    shown = {tick for tick in ax.get_yticks() if low <= tick <= high}
    assert shown >= set(ticks)
    if most > 1e3:
        assert not {50.0, 200.0, 500.0} & shown


def ways(timed):
    """Two texts, three ways of which `low rank 0.8` loses, and perhaps times."""
    rows = pd.DataFrame(
        [
            ["bf16", "16 bits", 2e8, 20.0, 1.0, 0.09],
            ["GPTQ 3", "GPTQ", 5e7, 24.0, 1.2, 0.03],
            ["low rank 0.8", "low rank", 1.5e8, 30.0, 1.5, 0.07],
            ["something new", "something new", 4e7, 2e6, 1e5, np.nan],
        ],
        columns=["name", "family", "bytes", "perplexity", "ratio", "token_s"],
    )
    rows = rows.assign(
        low=0.9 * rows.perplexity,
        high=1.1 * rows.perplexity,
        token_s=rows.token_s if timed else np.nan,
        front=rows["name"] != "low rank 0.8",
        time_front=rows["name"].isin(["bf16", "GPTQ 3"]),
    )
    both = [rows.assign(text=text) for text in ("one", "two")]
    return pd.concat(both, ignore_index=True)


@pytest.mark.parametrize("timed", [False, True])
def test_ways_stand_at_their_cost_and_loss_and_losers_are_hollow(timed):
    sizes = {(200, 1), (50, 1.2), (150, 1.5), (40, 1e5)}, 150
    times = {(90, 1), (30, 1.2), (70, 1.5)}, 70
    drawn = figures.pareto(ways(timed)).figure.axes
    expected = [sizes, sizes, times][: 2 + timed]
    for ax, (places, loser) in zip(drawn, expected, strict=True):
        points = [c.lines[0] for c in ax.containers]
        found = sorted((at, times) for p in points for at, times in p.get_xydata())
        assert np.allclose(found, sorted(places))
        (hollow,) = (p for p in points if p.get_markerfacecolor() == "white")
        assert hollow.get_xdata()[0] == pytest.approx(loser)
        (front,) = (line for line in ax.lines if line.get_drawstyle() == "steps-post")
        assert list(front.get_xdata()) == sorted(front.get_xdata())
        assert list(front.get_ydata()) == sorted(front.get_ydata(), reverse=True)
        assert ax.get_ylim()[1] > max(line.get_ydata()[0] for line in points)


def test_labels_of_ways_do_not_lie_on_each_other():
    table = ways(False).assign(bytes=[5.0e7, 5.1e7, 5.2e7, 5.05e7] * 2)
    for ax in figures.pareto(table).figure.axes:
        assert texts(ax.texts) == ["bfloat16", "3", "0.8", "something new"]
        assert no_two_overlap(text.get_window_extent() for text in ax.texts)


# --- Drawings of how a thing works -------------------------------------------------
BATCH = worked_example.worked_batch()
SMALL = ModelSpec(
    "small", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3,
    head_dim=64, vocab=49152, tied=True,
)  # fmt: skip


def database(policy):
    """The drawing of the worked batch under a policy, and the run."""
    history = worked_example.run_worked(BATCH, policy)
    booked = worked_example.bookings(BATCH, history.log)
    return figures.deterministic_database(history, booked).figure, history


def places(figure):
    """Of each box with a label: the label, its left end and its middle, by rows."""
    drawn = pd.DataFrame(
        [
            (patch.get_label(), patch.get_x(), patch.get_y() + patch.get_height() / 2)
            for patch in figure.axes[0].patches
            if isinstance(patch, Rectangle)
        ],
        columns=["label", "x", "y"],
    )
    return drawn.sort_values(["y", "x"]).round(6)


@pytest.mark.parametrize("policy", ["fifo", "drop", "hybrid", "bid-price"])
def test_the_queues_drawn_are_those_of_the_log(policy):
    figure, history = database(policy)
    drawn = places(figure)
    states = drawn["label"].str.extract(r"^(?P<i>\d+) (?P<state>.*)$")
    told = drawn.join(states).dropna(subset="i").astype({"i": int})
    log, rows = history.log.tolist(), worked_example.ROWS
    listed = {state: at["i"].tolist() for state, at in told.groupby("state")}
    assert listed["asks"] == [*range(len(rows))]
    assert listed["in the log"] == log
    assert listed.get("rejected", []) == np.flatnonzero(history.dropped).tolist()
    queues = [[i for i in log if row in rows[i]] for row in "abc"]
    heads = {queue[0] for queue in queues}
    waiting = {i for queue in queues for i in queue[1:]}
    running = [i for i in log if i in heads - waiting]
    expected = [
        [f"{i} {'waits' if place else 'holds'}" for place, i in enumerate(queue)]
        for queue in queues
    ]
    booked = told[told["state"].isin(["holds", "waits"])]
    found = [at["label"].tolist() for _, at in booked.groupby("y")]
    assert found == expected
    assert listed["runs"] == running
    names = figure.axes[0].get_yticklabels()
    parts = ["estimator", "sequencer", "log", "scheduler", "workers", "storage"]
    assert texts(names) == ["clients", *parts]


def test_a_shared_lock_is_held_by_all_who_are_before_the_first_writer():
    keys = KeySets.from_lists([[0], [0], [], [0]], [[], [], [0], []])
    trace = Trace.of_jobs(arrival_s=np.arange(4.0), service_s=np.ones(4), keys=keys)
    booked = worked_example.bookings(worked_example.WorkedBatch(trace), [1, 0, 2, 3])
    assert booked["transaction"].tolist() == [1, 0, 2, 3]
    assert booked["holds"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("spec", [SMALL, replace(SMALL, kv_heads=9, dtype_bytes=4)])
def test_matrices_of_a_layer_are_as_large_as_their_bytes_and_say_them(spec):
    with torch.device("meta"):
        config = LlamaConfig(
            hidden_size=spec.hidden, intermediate_size=spec.intermediate,
            num_hidden_layers=1, num_attention_heads=spec.heads, vocab_size=8,
            num_key_value_heads=spec.kv_heads, head_dim=spec.head_dim,
        )  # fmt: skip
        (layer,) = LlamaForCausalLM(config).model.layers
    kilobytes = {
        name.split(".")[-1].removesuffix("_proj"): matrix.weight.numel()
        * spec.dtype_bytes
        / 1e3
        for name, matrix in linears(layer).items()
    }
    (panel,) = figures.decoder_layer(spec, 5).figure.axes
    drawn = {
        patch.get_label(): patch
        for patch in panel.patches
        if patch.get_label() in kilobytes
    }
    areas = {name: each.get_width() * each.get_height() for name, each in drawn.items()}
    assert list(drawn) == list(kilobytes)  # in the order in which they are read
    assert {n: each.get_width() for n, each in drawn.items()} == pytest.approx(
        kilobytes
    )
    shares = pd.Series(areas) / sum(areas.values())
    assert shares.to_dict() == pytest.approx(
        {name: kb / sum(kilobytes.values()) for name, kb in kilobytes.items()}
    )
    said = " ".join(texts(panel.texts))
    counted = Counter(re.findall(r"[\d,]+ kB", said))
    assert not Counter(f"{kb:,.0f} kB" for kb in kilobytes.values()) - counted
    bytes_of = {
        "state: 576 numbers, {:.1f} kB": spec.hidden * spec.dtype_bytes,
        "a layer: {:,.0f} kB": spec.layer_bytes,
        "{:,.0f} kB → 49,152 logits": spec.embedding_bytes,
        "{:.1f} kB more a token": spec.kv_bytes(1, 1) / spec.layers,
    }
    for words, n_bytes in bytes_of.items():
        assert words.format(n_bytes / 1e3) in texts(panel.texts)
    assert f"× {spec.layers}" in texts(panel.texts)


@pytest.mark.parametrize(
    "draw",
    [lambda: database("hybrid")[0], lambda: figures.decoder_layer(SMALL, 5).figure],
)
def test_words_of_a_drawing_stay_in_their_boxes(draw):
    figure = draw()
    figure.draw_without_rendering()
    (panel,) = figure.axes
    boxes = [
        each.get_window_extent()
        for each in panel.patches
        if isinstance(each, Rectangle)
    ]
    words = [each.get_window_extent() for each in panel.texts if each.get_text()]
    assert no_two_overlap(box.padded(-1) for box in words)
    held = 0
    for word, box in [*product(words, boxes), *product(words, [panel.bbox])]:
        middles = (word.min + word.max) / 2, (box.min + box.max) / 2
        if box is panel.bbox or np.allclose(*middles, atol=1.5):
            held += box is not panel.bbox
            assert np.all([word.min >= box.min, word.max <= box.max]), word
    assert held > 10


# --- Policies --------------------------------------------------------------------
@pytest.mark.parametrize("load", [0.1, 3.0])
def test_commits_stay_within_their_panels(load):
    columns = dict.fromkeys(("throughput_per_s", "goodput_per_s"), 1_000.0 * load)
    runs = pd.DataFrame({"seed": [0, 1], "policy": "bid-price", "load": load})
    runs = runs.assign(sequencer_s=1e-6, **columns)
    for figure, _ in (
        figures.rates_by_scenario({"A": runs}, {"A": 1_000.0}, ["bid-price"]),
        figures.against_sequencing(runs, 1_000.0, ["bid-price"], {}),
    ):
        assert all(panel.get_ylim()[1] > 100 * load for panel in figure.axes)


@pytest.mark.parametrize("partitions", [[1], [1, 4]])
def test_every_share_that_crosses_has_a_line_of_its_own(partitions):
    shares = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    points = pd.MultiIndex.from_product(
        [partitions, shares, range(2)], names=["partitions", "crossing", "seed"]
    )
    loaded = points.to_frame(index=False).assign(policy="fifo", violations=0.1)
    columns = pd.MultiIndex.from_product([shares, ["fifo", "cores"]])
    capacity = pd.DataFrame(120.0, partitions, columns)
    left, right = figures.weak_scaling(capacity, loaded, ["fifo"]).figure.axes
    for panel in (left, right):
        styles = {
            str(line._unscaled_dash_pattern) + line.get_linestyle()
            for line in panel.lines
            if line.get_color() == figures.GRAY
        }
        assert len(styles) == len(shares)
    assert left.get_ylim()[1] > 120


def test_whiskers_stand_beside_each_other_and_their_lines_at_the_true_load():
    policies, loads = ["fifo", "codel", "bid-price"], [0.5, 1.0, 1.5]
    points = pd.MultiIndex.from_product([policies, loads, [0, 1]])
    runs = points.to_frame(index=False, name=["policy", "load", "seed"])
    runs = runs.assign(violations=0.5)
    figure, frame = figures.violations_against_load(runs, policies)
    to_points = 72 / figure.dpi
    for panel in figure.axes:
        for line in (bar.lines[0] for bar in panel.containers):
            assert line.get_transform() == panel.transData
        drawn = [bar.lines[2][0] for bar in panel.containers]
        ends = [
            each.get_transform().transform(np.array(each.get_segments())[:, 0])
            for each in drawn
        ]
        apart = to_points * np.diff([places[:, 0] for places in ends], axis=0)
        np.testing.assert_allclose(apart, 3.5)
    assert set(frame["load"]) == set(loads)


def test_an_interval_whose_end_was_rounded_past_its_value_is_drawn():
    percent = {"reduction": 50.0, "low": 40.0, "high": 50 - 1e-13, "goal": 45.0}
    index = pd.MultiIndex.from_tuples([("A", 0.9)], names=["row", "load"])
    (panel,) = figures.goals(pd.DataFrame(percent, index=index)).figure.axes
    bar = panel.containers[0].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bar[:, 1], [50, 60])


def test_packages_drawing_shows_the_import_contracts_in_their_order():
    root = Path(__file__).parents[2]
    picture = (root / "book/_static/packages.svg").read_text()
    tools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]
    contracts = tools["importlinter"]["contracts"]
    layers = {c["containers"][0]: c["layers"] for c in contracts if "containers" in c}
    expected = ["thesis_book", *layers["thesis_book"][1:]]  # without __main__
    expected += ["thesis_serve", *layers["thesis_serve"], "thesis_lib", "cli"]
    for part in ("sequencer", "memory"):
        expected += [part, *layers[f"thesis_lib.{part}"]]
    assert re.findall(r">([a-z_]+)</text>", picture) == [*expected, "common"]


# --- The first and the last chapter ---------------------------------------------
def test_a_result_is_a_bar_with_its_interval_and_its_limit():
    columns = ["axis", "says", "value", "low", "high", "limit", "kind"]
    nan = float("nan")
    rows = [
        ["fewer", "theirs", 36.0, nan, nan, nan, "published"],
        ["fewer", "ours", -2.0, -3.0, -1.0, 97.0, "simulated"],
        ["memory", "ours, too", 7.9, nan, nan, 8.6, "measured"],
    ]
    drawn, _ = figures.headlines(pd.DataFrame(rows, columns=columns))
    fewer, memory = drawn.axes
    left = {round(y + h / 2): (x, x + w, c) for x, y, w, h, c in bars(fewer)}
    white = to_hex("white")
    assert left == {0: (0, 36, white), 1: (0, -2, figures.BLUE)}
    assert [bar[2] for bar in bars(memory)] == [7.9]
    (interval,) = (c for c in fewer.containers if hasattr(c, "has_xerr"))
    (ends,) = interval.lines[2][0].get_segments()
    assert ends.tolist() == [[-3, 1], [-1, 1]]
    limits = [ax.collections[-1].get_segments()[0][:, 0] for ax in drawn.axes]
    assert [{*x} for x in limits] == [{97.0}, {8.6}]
    minus = "\N{MINUS SIGN}2.0"
    assert texts(fewer.texts) == ["theirs: 36.0", f"ours: {minus}"]


def test_what_is_rejected_has_no_latency_and_what_does_not_fit_is_grey():
    batch = worked_example.worked_batch()
    runs = [worked_example.run_worked(batch, name) for name in ("fifo", "bid-price")]
    sizes = {"all": 130e9, "some": 7e9}
    left, right = figures.two_limits(*runs, sizes, 8e9).figure.axes
    for history, line in zip(runs, left.lines, strict=False):
        at_ms = 1e3 * history.latency_s[~history.dropped]
        assert line.get_xdata() == pytest.approx(at_ms)
        rows = np.flatnonzero(~history.dropped)
        assert line.get_ydata().round().astype(int).tolist() == rows.tolist()
    refused = [(t.get_text().strip(), round(t.get_position()[1])) for t in left.texts]
    assert refused == [("rejected", i) for i in np.flatnonzero(runs[1].dropped)]
    assert left.lines[-1].get_xdata()[0] == pytest.approx(1e3 * batch.slo_s)
    fits, does_not, limit = right.lines
    assert (fits.get_xydata().tolist(), fits.get_color()) == ([[7, 1]], figures.GREEN)
    assert (does_not.get_xydata().tolist(), does_not.get_color()) == (
        [[130, 0]], figures.GRAY,
    )  # fmt: skip
    assert limit.get_xdata()[0] == 8
