"""What the figures draw is what they were given, and can be read."""

import re
import tomllib
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from thesis_lib.book import figures
from thesis_lib.book.tables import ring_schedule
from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import GiB, MiB
from thesis_lib.memory.model.spec import Machine, ModelSpec
from thesis_lib.memory.offload.plan import least_device_bytes, plan

TINY = ModelSpec("tiny", 5, 256, 512, 4, 4, 64, 1000, tied=True)


def visits(ring, extra=0, steps=3):
    """A schedule that is limited by reading, with `extra` resident layers."""
    least = least_device_bytes(TINY, ring=ring, context=8)
    spare = extra * plan(TINY, Machine(least, 1), ring=ring, context=8).staging_bytes
    machine = Machine(least + spare, 1e7, weight_bytes_per_s=2e7)
    made = plan(TINY, machine, ring=ring, context=8)
    return ring_schedule.ring_schedule(made, steps)


def bars(ax):
    """Left, width, row and colour of each horizontal bar."""
    return [
        (
            bar.get_x(),
            bar.get_width(),
            round(bar.get_y() + bar.get_height() / 2),
            to_hex(bar.get_facecolor()),
        )
        for bar in ax.patches
    ]


@pytest.fixture(autouse=True)
def theme():
    figures.theme()


@pytest.mark.parametrize(("ring", "extra"), [(1, 0), (2, 0), (3, 0), (3, 1)])
def test_the_ring_is_drawn_as_it_was_scheduled(ring, extra):
    made = visits(ring, extra)
    (ax,) = figures.ring_picture(made).axes
    drawn = bars(ax)
    for visit in made:
        row = ring if visit.buffer < 0 else visit.buffer
        colour = figures.RING_COLOURS[visit.step]
        spans = [(visit.starts_s, visit.ends_s)]
        if visit.buffer >= 0:
            spans.append((visit.receives_s, visit.ready_s))
        for start, end in spans:
            assert any(
                (left, width) == pytest.approx((start, end - start))
                and (at, shade) == (row, colour)
                for left, width, at, shade in drawn
            )
    assert [text.get_text() for text in ax.texts] == [str(v.layer + 1) for v in made]
    assert len(ax.get_yticks()) == ring + (extra > 0)


def test_no_two_bars_of_a_buffer_lie_on_each_other():
    (ax,) = figures.ring_picture(visits(3)).axes
    for row in range(3):
        mine = sorted(bar[:2] for bar in bars(ax) if bar[2] == row)
        assert all(b[0] >= a[0] + a[1] - 1e-9 for a, b in pairwise(mine))


def test_the_picture_of_the_ring_ends_where_it_is_told_to():
    made = visits(2)
    end_s = made[TINY.layers].ends_s
    (ax,) = figures.ring_picture(made, until_s=end_s).axes
    assert ax.get_xlim() == (0, end_s)
    assert all(bar[0] < end_s for bar in bars(ax))


def span(kind, layer, start_s, end_s):
    return SimpleNamespace(kind=kind, layer=layer, start_s=start_s, end_s=end_s)


def test_a_timeline_has_a_row_for_each_kind_and_counts_from_its_first_span():
    spans = [
        span("read", 0, 10.0, 10.4),
        span("read", 1, 10.1, 10.5),  # overlaps the first: a lane of its own
        span("compute", 0, 10.4, 10.6),
        span("wait", 1, 10.2, 10.4),
    ]
    (ax,) = figures.token_timeline(spans).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "read",
        "compute",
        "wait",
    ]
    assert sorted(bar[0] for bar in bars(ax)) == pytest.approx([0, 100, 200, 400])
    boxes = [bar.get_bbox() for bar in ax.patches]
    overlapping = [
        (a, b)
        for a, b in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1e-6
        and min(a.y1, b.y1) - max(a.y0, b.y0) > 1e-6
    ]
    assert not overlapping


def test_systems_stand_at_their_memory_and_time_beside_the_budget():
    runs = pd.DataFrame(
        {
            "peak_bytes": [1.5 * GiB, 1.9 * GiB, 1.8 * GiB],
            "s_per_token": [2.0, 4.0, 8.0],
            "low_s": [1.9, 3.9, 7.5],
            "high_s": [2.1, 4.2, 9.0],
        },
        index=["streamed, bf16", "accelerate", "something new"],
    )
    (ax,) = figures.memory_against_time(runs, 2 * GiB).axes
    points = [c.lines[0].get_xydata()[0] for c in ax.containers]
    assert [tuple(point) for point in points] == [(1.5, 2.0), (1.9, 4.0), (1.8, 8.0)]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_legend().get_texts()[0].get_text() == "limit, 2 GiB"
    colours = {text.get_text(): to_hex(text.get_color()) for text in ax.texts}
    assert colours["streamed, bf16"] == figures.PEER_COLOURS["streamed"]
    assert colours["something new"] == figures.GREY


@pytest.mark.parametrize(
    ("at", "found", "crossovers"), [(80.0, None, 1), (80.0, 90.0, 2), (0.0, 90.0, 1)]
)
def test_the_roofline_is_the_larger_of_its_two_lines(at, found, crossovers):
    tokens, seconds = [1, 16, 256], {"streamed": [2.0, 2.1, 5.0]}
    figure = figures.roofline_stream(
        tokens, seconds, 2.0, 0.4, 0.02, (at, 0.9 * at, 1.2 * at), found
    )
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines}
    span, predicted_s = lines["predicted"].get_data()
    for count, value in zip(span, predicted_s, strict=True):
        assert value == pytest.approx(max(2.0, 0.4 + 0.02 * count))
    assert list(lines["streamed"].get_ydata()) == seconds["streamed"]
    assert sum(label.startswith("crossover") for label in lines) == crossovers


def test_memory_over_time_has_a_panel_a_system_and_two_lines_in_each():
    samples = np.array([[0.0, GiB, GiB / 2], [1.0, 2 * GiB, GiB]])
    figure = figures.memory_over_time(
        {"streamed": samples, "mmap": 2 * samples}, 2 * GiB
    )
    assert [ax.get_title() for ax in figure.axes] == ["streamed", "mmap"]
    held, private, limit = figure.axes[0].lines
    assert list(held.get_ydata()) == [1.0, 2.0]
    assert list(private.get_ydata()) == [0.5, 1.0]
    assert limit.get_ydata()[0] == 2.0
    assert len(figures.memory_over_time({"streamed": samples}, GiB).axes) == 1


def test_ways_to_propose_stand_beside_plain_decoding():
    table = pd.DataFrame(
        [[2.0, 1.5, 3.0, 1.8, 1.2, 2.5], [1.1, 1.0, 1.2, 0.9, 0.8, 1.0]],
        index=["repeating, lookup", "prose, lookup"],
        columns=[
            *("tokens_per_pass", "low", "high"),
            *("times_faster", "times_low", "times_high"),
        ],
    )
    left, right = figures.speculation(table).axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(table.index)
    for drawn, value in ((left, "tokens_per_pass"), (right, "times_faster")):
        plain, *_ = (line for line in drawn.lines if line.get_linestyle() == "--")
        assert plain.get_xdata()[0] == 1
        assert list(drawn.lines[0].get_xdata()) == list(table[value])


def test_published_times_stand_at_their_place_and_in_the_look_of_their_copy():
    table = pd.DataFrame(
        {
            "published_s": [4.0, 10.0],
            "predicted_s": [4.2, 3.0],
            "copy": ["pinned", "pageable"],
        }
    )
    (ax,) = figures.published_times(table, 0.25).axes
    lines = {line.get_label(): line for line in ax.lines}
    for row in table.itertuples():
        line = lines[f"copy {row.copy}"]
        assert line.get_xydata().tolist() == [[row.published_s, row.predicted_s]]
        assert line.get_color() == figures.COPY_LOOKS[row.copy][0]


@pytest.mark.parametrize(
    ("model", "limit", "panels", "unit"),
    [(120 * GiB, 8 * GiB, 2, "GiB"), (256 * MiB, 96 * MiB, 1, "MiB")],
)
def test_parts_of_a_plan_can_be_read_however_large_the_model(
    model, limit, panels, unit
):
    parts = {"embedding": limit // 4, "ring": limit // 2}
    figure = figures.memory_parts(parts, model, limit)
    assert len(figure.axes) == panels
    plan_axis = figure.axes[-1]
    assert unit in plan_axis.get_xlabel()
    widest = max(bar[0] + bar[1] for bar in bars(plan_axis)[-2:])
    scale = GiB if unit == "GiB" else MiB
    assert widest == pytest.approx(0.75 * limit / scale)
    if panels == 2:
        assert plan_axis.get_xlim()[1] < 1.2 * limit / scale


def test_predicted_times_stand_on_the_diagonal_when_they_are_right():
    plans = pd.DataFrame(
        {
            "predicted_s": [0.1, 0.2, 1.0],
            "measured_s": [0.1, 0.2, 2.0],
            "limit": ["disk", "disk", "compute"],
        }
    )
    (ax,) = figures.predicted_times(plans).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["bound by disk"] == [[0.1, 0.1], [0.2, 0.2]]
    assert lines["bound by compute"] == [[2.0, 1.0]]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_a_bill_ends_where_the_machine_does_and_crossings_are_marked():
    tokens = np.array([1e6, 2e6, 4e6])
    bills = {"rent": [1.0, 2.0, 4.0], "bought": [1.5, 1.6, np.inf]}
    (ax,) = figures.monthly_bills(tokens, bills, [(1.5e6, 1.5)]).axes
    named = {line.get_label(): line for line in ax.lines}
    assert list(named["bought"].get_ydata()) == [1.5, 1.6, np.inf]
    (end,) = [line for line in ax.lines if line.get_marker() == "|"]
    assert end.get_xydata().tolist() == [[2e6, 1.6]]
    (dot,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert dot.get_xydata().tolist() == [[1.5e6, 1.5]]
    none = figures.monthly_bills(tokens, {"slow": [np.inf] * 3}, [])
    assert not [line for line in none.axes[0].lines if line.get_marker() == "|"]


def test_a_tornado_has_its_largest_bar_on_top_with_the_inputs_at_its_ends():
    def bar(name, low, high, at_low, at_high):
        each = SimpleNamespace(low=low, high=high)
        swing = abs(at_high - at_low)
        return SimpleNamespace(
            name=name, range=each, at_low=at_low, at_high=at_high, swing=swing
        )

    drawn = [bar("u", 0.1, 1, 90, 9), bar("p", 1, 2, 10, 20), bar("z", 1, 1, 15, 15)]
    (ax,) = figures.tornado(drawn, 15.0, {"u": "use", "p": "price", "z": "none"}).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["use", "price"]
    boxes = [(patch.get_x(), patch.get_width()) for patch in ax.patches]
    assert boxes == [(9, 81), (10, 10)]
    assert ax.yaxis_inverted()
    assert [text.get_text() for text in ax.texts] == ["1", "0.1", "1", "2"]


def test_methods_are_lines_over_bits_and_the_dense_model_a_level():
    table = pd.DataFrame(
        [
            ["GPTQ", 4.25, 26.0, 25.5, 26.5],
            ["GPTQ", 3.25, 40.0, 40.0, 40.0],
            ["bf16", 16.0, 24.0, 24.0, 24.0],
        ],
        columns=["method", "bits", "perplexity", "low", "high"],
    )
    (ax,) = figures.bits_and_perplexity(table).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["bf16", "GPTQ"]
    (line,) = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert line.get_xdata().tolist() == [3.25, 4.25]
    (level,) = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert set(level.get_ydata()) == {24.0}


def test_perplexities_of_methods_stand_on_a_logarithmic_axis():
    (axis,) = figures.perplexity_by_ratio([0.8], {"plain": [9.0]}, 2.0).axes
    assert axis.get_yscale() == "log"


def test_losses_have_a_panel_a_text_and_ticks_in_times():
    table = pd.DataFrame(
        [
            [text, ratio, step, times, 0.9 * times, 1.1 * times]
            for text in ("fiction", "technical English")
            for ratio in (0.6, 0.8)
            for step, times in (("plain", 1e5), ("whitened", 2.0))
        ],
        columns=["text", "ratio", "step", "times", "low", "high"],
    )
    drawn = figures.losses_by_ratio(table).axes
    assert [ax.get_title(loc="left") for ax in drawn] == list(dict.fromkeys(table.text))
    ticks = dict(zip(drawn[0].get_yticks(), drawn[0].get_yticklabels(), strict=True))
    assert ticks[np.log(10_000)].get_text() == "10,000"
    assert drawn[0].get_xlim()[0] > drawn[0].get_xlim()[1]


def ways(timed):
    """Two texts, three ways of which `low rank 0.8` loses, and perhaps times."""
    rows = [
        ["bf16", "16 bits", 2e8, 20.0, 1.0, 90.0],
        ["GPTQ 3", "GPTQ", 5e7, 24.0, 1.2, 30.0],
        ["low rank 0.8", "low rank", 1.5e8, 30.0, 1.5, 70.0],
        ["something new", "something new", 4e7, 2e6, 1e5, np.nan],
    ]
    return pd.DataFrame(
        [
            {
                "name": name, "text": text, "family": kind, "bytes": n_bytes,
                "perplexity": value, "low": 0.9 * value, "high": 1.1 * value,
                "ratio": ratio, "token_s": seconds / 1e3 if timed else np.nan,
                "front": name != "low rank 0.8",
                "time_front": name in ("bf16", "GPTQ 3"),
            }
            for text in ("one", "two")
            for name, kind, n_bytes, value, ratio, seconds in rows
        ]
    )  # fmt: skip


@pytest.mark.parametrize(("timed", "panels"), [(False, 2), (True, 3)])
def test_ways_stand_at_their_cost_and_loss_and_losers_are_hollow(timed, panels):
    drawn = figures.pareto(ways(timed)).axes
    assert len(drawn) == panels
    for ax, scale in zip(drawn, ("bytes", "bytes", "time"), strict=False):
        points = [c.lines[0] for c in ax.containers]
        found = {tuple(line.get_xydata()[0]) for line in points}
        expected = {
            "bytes": {
                (200, 0),
                (50, np.log(1.2)),
                (150, np.log(1.5)),
                (40, np.log(1e5)),
            },
            "time": {(90, 0), (30, np.log(1.2)), (70, np.log(1.5))},
        }[scale]
        assert np.allclose(sorted(found), sorted(expected))
        hollow = [line for line in points if line.get_markerfacecolor() == "white"]
        assert [line.get_xdata()[0] for line in hollow] == pytest.approx(
            [150 if scale == "bytes" else 70]
        )
        (front,) = (line for line in ax.lines if line.get_drawstyle() == "steps-post")
        assert list(front.get_xdata()) == sorted(front.get_xdata())
        assert list(front.get_ydata()) == sorted(front.get_ydata(), reverse=True)
        assert ax.get_ylim()[1] > max(line.get_ydata()[0] for line in points)


def test_labels_of_ways_do_not_lie_on_each_other():
    table = ways(False)
    table["bytes"] = [5.0e7, 5.1e7, 5.2e7, 5.05e7] * 2
    figure = figures.pareto(table)
    for ax in figure.axes:
        assert [text.get_text() for text in ax.texts] == [
            "bf16", "3", "0.8", "something new",
        ]  # fmt: skip
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


@pytest.mark.parametrize("load", [0.1, 3.0])
def test_commits_stay_within_their_panels(load):
    made = [1_000.0 * load] * 2
    runs = pd.DataFrame(
        {
            "load": [load] * 2, "seed": [0, 1], "policy": ["bid-price"] * 2,
            "throughput_per_s": made, "goodput_per_s": made,
            "sequencer_s": [1e-6] * 2,
        }
    )  # fmt: skip
    for figure in (
        figures.rates_by_scenario({"A": runs}, {"A": 1_000.0}, ["bid-price"]),
        figures.against_sequencing(runs, 1_000.0, ["bid-price"], {}),
    ):
        for panel in figure.axes:
            assert panel.get_ylim()[1] > 100 * load


@pytest.mark.parametrize("partitions", [[1], [1, 4]])
def test_every_share_that_crosses_has_a_line_of_its_own(partitions):
    shares = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    loaded = pd.DataFrame(
        [
            (count, share, seed, "fifo", share)
            for count in partitions
            for share in shares
            for seed in range(2)
        ],
        columns=["partitions", "crossing", "seed", "policy", "violations"],
    )
    capacity = pd.DataFrame(
        {(share, of): 120.0 for share in shares for of in ("fifo", "cores")},
        index=partitions,
    )
    left, right = figures.weak_scaling(capacity, loaded, ["fifo"]).axes
    for panel in (left, right):
        styles = {
            str(line._unscaled_dash_pattern) + line.get_linestyle()
            for line in panel.lines
            if line.get_color() == figures.COLOURS["fifo"]
        }
        assert len(styles) == len(shares)
    assert left.get_ylim()[1] > 120
    more = pd.concat([loaded, loaded.assign(crossing=0.7)])
    with pytest.raises(InvalidInput, match="9 shares that cross"):
        figures.weak_scaling(capacity, more, ["fifo"])


def test_an_interval_whose_end_was_rounded_past_its_value_is_drawn():
    percent = {"reduction": 50.0, "low": 40.0, "high": 50 - 1e-13, "goal": 45.0}
    index = pd.MultiIndex.from_tuples([("A", 0.9)], names=["row", "load"])
    (panel,) = figures.goals(pd.DataFrame(percent, index=index)).axes
    bar = panel.containers[0].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bar[:, 1], [50, 60])


def test_the_drawing_of_the_rooms_has_those_of_the_import_contracts_in_their_order():
    root = Path(__file__).parents[2]
    drawn = re.findall(
        r">([a-z]+)</text>", (root / "book/_static/rooms.svg").read_text()
    )
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"][
        "importlinter"
    ]["contracts"]
    layers = {c["containers"][0]: c["layers"] for c in contracts if "layers" in c}
    expected = ["cli", "book", *layers["thesis_lib.book"]]
    for half in ("sequencer", "memory"):
        expected += [half, *layers[f"thesis_lib.{half}"]]
    assert drawn == [*expected, "common"]
