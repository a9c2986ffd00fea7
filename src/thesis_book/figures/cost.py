"""Figures of what a token costs, and of the models' sizes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator
from numpy.typing import ArrayLike

from thesis_book.figures import style
from thesis_book.figures.export import Drawing, stacked
from thesis_lib.memory.model.spec import ModelSpec


def monthly_bills(
    tokens: ArrayLike,
    bills: Mapping[str, ArrayLike],
    crossings: Sequence[tuple[float, float]],
) -> Drawing:
    """US dollars a month (n,) of each option against tokens a month (n,).

    An option ends where its dollars are infinite. `crossings` are points at which one
    option begins to cost less than another.
    """
    figure, panel = style.axes(height_in=4.2)
    lines = ("-", "--", ":", "-.", (0, (5, 1, 1, 1)))
    for (name, usd), dashes in zip(bills.items(), lines, strict=False):
        label = style.printed(name)
        (line,) = panel.plot(tokens, usd, linestyle=dashes, label=label)
        payable = line.get_xydata()[np.isfinite(line.get_ydata())]
        if 0 < len(payable) < np.size(tokens):
            panel.plot(*payable[-1], "|", color=line.get_color(), markersize=10)
    for crossing in crossings:
        panel.plot(*crossing, "o", color=style.INK, markersize=5, zorder=3)
    panel.set(xlabel="generated tokens a month", ylabel="US$ a month")
    panel.set(xscale="log", yscale="log")
    style.legend_below(figure, ncols=2, fontsize=8)
    usd = "usd_per_month"
    named = {style.printed(name): each for name, each in bills.items()}
    frame = pd.DataFrame({"tokens_per_month": tokens, **named})
    frame = frame.melt("tokens_per_month", var_name="option", value_name=usd)
    crossed = pd.DataFrame(crossings, columns=["tokens_per_month", usd])
    frames = [frame[np.isfinite(frame[usd])], crossed.assign(option="crossing")]
    return Drawing(figure, pd.concat(frames, ignore_index=True))


def tornado(bars: pd.DataFrame, base: float, labels: Mapping[str, str]) -> Drawing:
    """Plot the change of a cost over the range of each input, the largest on top.

    `bars` are those of `experiments.memory.costs.tornado`, `base` the cost with every
    input at its value; an input that moves nothing is left out.
    """
    shown: Any = bars[bars.swing > 0]
    figure, panel = style.axes(height_in=0.8 + 0.32 * len(shown))
    reach = []
    for row, bar in enumerate(shown.itertuples()):
        low, high = sorted([(bar.at_low, bar.low), (bar.at_high, bar.high)])
        panel.barh(row, high[0] - low[0], left=low[0], height=0.6, color=style.SKY)
        for (usd, value), side, gap in ((low, "right", -4), (high, "left", 4)):
            text = {"ha": side, "va": "center", "fontsize": 7}
            style.note(panel, f"{value:,.4g}", (usd, row), (gap, 0), **text)
            reach.append(usd)
    panel.axvline(base, color=style.INK, linewidth=1)
    names = [labels[name] for name in shown.index]
    style.name_rows(panel, names)
    panel.set(xlabel="US$ per million tokens", xscale="log")
    panel.set_xlim(min(reach) / 1.6, max(reach) * 1.4)
    style.log_ticks(panel.xaxis, (1, 2, 3, 5))
    ends = shown[["low", "high", "at_low", "at_high"]].reset_index(drop=True)
    ends.columns = ["low", "high", "usd_at_low", "usd_at_high"]
    ends.insert(0, "input", names)
    return Drawing(figure, ends.assign(usd_at_value=base))


# --- Introduction --------------------------------------------------------------------
def model_sizes(models: pd.DataFrame, devices: pd.DataFrame) -> Drawing:
    """Bytes of published models against the memory of devices, over the years.

    `models` has columns model, year and fp16_bytes; `devices` has device, year, class
    and memory_bytes. A class of devices is one staircase, labelled where it
    ends with the memory of its last device.
    """
    figure, panel = style.axes(height_in=4.2)
    panel.set_yscale("log")
    end = max(models["year"].max(), devices["year"].max()) + 1.6
    for color, (name, group) in zip(
        (style.GRAY, style.INK), devices.groupby("class", sort=True), strict=True
    ):
        stairs = group.sort_values("year")
        level = [*stairs["memory_bytes"] / 1e9, stairs["memory_bytes"].iloc[-1] / 1e9]
        look = {"color": color, "label": f"{name} GPU"}
        panel.step([*stairs["year"], end], level, where="post", **look)
        gpu = f"{name} GPU, {stairs['memory_bytes'].iloc[-1] / 2**30:.0f} GiB"
        text = {"color": color, "ha": "right", "va": "top", "fontsize": 8}
        panel.text(end, 0.95 * level[-1], gpu, **text)
    sizes = models.assign(gigabytes=models["fp16_bytes"] / 1e9)
    at = ["year", "gigabytes"]
    places = [sizes[column] for column in at]
    panel.scatter(*places, 22, style.VERMILION, zorder=3)
    look = {"ha": "center", "va": "center", "fontsize": 8, "bbox": style.UNDER}
    for name, *place in sizes[["model", *at]].itertuples(index=False):
        style.note(panel, name, tuple(place), color="#a34700", **look)
    panel.set(
        xlim=(devices["year"].min() - 0.4, end),
        xlabel="Year of publication or release",
        ylabel="16-bit weights, device memory (GB)",
    )
    panel.xaxis.set_major_locator(MultipleLocator(2))
    panel.yaxis.set_major_formatter(style.PLAIN)
    panel.grid(False, axis="x")
    style.move_apart(panel, beside=True)
    frames = {
        "models": sizes[["model", *at]],
        "devices": devices[["device", "class", "year"]].assign(
            gigabytes=devices["memory_bytes"] / 1e9
        ),
    }
    return Drawing(figure, stacked(frames, "shown"))


def parameter_shares(parts: pd.DataFrame) -> Drawing:
    """Share of the parameters in each part of some models, one bar a model.

    `parts` counts parameters, models by rows and parts by columns.
    """
    figure, panel = style.axes(height_in=1 + 0.45 * len(parts))
    shares = 100 * parts.div(parts.sum(axis=1), axis=0)
    colors = [style.BLUE, style.VERMILION, style.GRAY, style.PURPLE]
    shares.plot.barh(
        stacked=True, ax=panel, width=0.62, color=colors, ec="white", legend=False
    )
    for bars, part in zip(panel.containers, shares, strict=True):
        # A share too small for its number is drawn without one.
        numbers = [f"{share:.0f}" if share >= 5 else "" for share in shares[part]]
        text = {"label_type": "center", "color": "white", "fontsize": 8}
        panel.bar_label(bars, numbers, **text)
    panel.invert_yaxis()
    panel.set(xlim=(0, 100), xlabel="Share of the parameters (%)", ylabel="")
    panel.grid(False, axis="y")
    panel.tick_params(axis="y", length=0)
    style.legend_below(figure)
    frame = shares.rename_axis("model").reset_index()
    return Drawing(figure, frame.melt("model", var_name="part", value_name="percent"))


def _cache_row(panel: Axes, left: float, cell: float, tokens: int) -> None:
    """The cells of the cache, the newest in full colour, and room for one more."""
    for token in range(tokens + 1):
        new: dict[str, Any] = {"alpha": 1.0 if token == tokens - 1 else 0.35}
        look = {"facecolor": style.GREEN, "edgecolor": "white"} | new
        look = look if token < tokens else {"edgecolor": style.GREEN, "linestyle": ":"}
        place = left + (token + 0.5) * cell, 3.6
        style.box(panel, place, (cell, 0.4), label="cache", **look)


def _frames(
    panel: Axes, spec: ModelSpec, wide: float, middle: float, size: float
) -> None:
    """Draw the dashed parts: embedding, the layer around its parts, and the head."""
    dashed = {"edgecolor": style.GRAY, "linestyle": "--"}
    words = f"token → its row, of {spec.vocab:,}"
    style.box(panel, (middle, 0), (size, 0.5), words, **dashed)
    style.box(panel, (middle, 4.95), (size, 7.7), label="layer", **dashed)
    words = f"{spec.embedding_bytes / 1e3:,.0f} kB → {spec.vocab:,} logits"
    style.box(panel, (middle, 10.05), (size, 0.5), words, **dashed)
    state_kb = spec.hidden * spec.dtype_bytes / 1e3
    look = {"ha": "left"}
    words = f"state: {spec.hidden} numbers, {state_kb:.1f} kB"
    style.say(panel, 0, 0.68, words, **look)
    words = f"a layer: {spec.layer_bytes / 1e3:,.0f} kB"
    style.say(panel, 1.15 * wide, 7.8, words, **look)
    style.say(panel, 1.15 * wide, 8.25, f"× {spec.layers}", weight="bold", **look)


def decoder_layer(spec: ModelSpec, tokens: int) -> Drawing:
    """Draw the path of a token through a decoder layer, from embedding to logits.

    The areas of the matrices of a layer are their bytes, by their width in kB. The
    cache is that of `tokens`, of which the last is new.
    """
    state_kb = spec.hidden * spec.dtype_bytes / 1e3  # and of one output of a matrix
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    wide = spec.intermediate * state_kb  # the unit of all that is not to scale
    q, gate, k, v = queries * state_kb / 2, wide / 2, 1.03 * wide, 1.62 * wide
    stream, left, right = -0.21 * wide, -0.42 * wide, 2.16 * wide
    names = {"embedding": 0, "attention": 3.4, "feed-forward": 7.0, "head": 10.05}
    xlim = left - 0.02 * wide, right + 0.02 * wide
    figure, panel = style.canvas(4.5, names, xlim, (10.33, -0.28))
    box, flow, say = (
        partial(draw, panel) for draw in (style.box, style.arrow, style.say)
    )
    _frames(panel, spec, wide, (left + right) / 2, right - left)
    look = {"ha": "left"}
    cell = 0.15 * wide  # of the cache, the last of which lies below v
    cache, row_kb = v - (tokens - 0.5) * cell, 2 * keys * spec.dtype_bytes / 1e3
    say(cache, 4.1, "key-value cache:", **look)
    say(cache, 4.45, f"{row_kb:.1f} kB more a token", **look)
    # What flows: along the state, and through both blocks
    flow((stream, 0.25), (stream, 9.8), linewidth=2)
    for y, ends in ((1.55, (q, k, v)), (5.65, (q, v))):
        for end in ends:
            flow((stream if end == q else q, y), (end, y), (end, y + 0.55))
        box((q, y), (0.36 * wide, 0.4), "norm", facecolor="white")
    box((stream, 9.25), (0.36 * wide, 0.4), "norm", facecolor="white")
    flow((q, 2.7), (q, 3.4))
    flow((q, 3.8), (q, 4.45))
    flow((k, 2.7), (k, 3.05), (v, 3.05), (v, 3.4))
    flow((v, 2.7), (v, 3.4))
    flow((cache, 3.6), (q + 0.29 * wide, 3.6))
    flow((gate, 6.8), (gate, 7.7))
    flow((v, 6.8), (v, 7.25), (gate, 7.25), gap_pt=6)
    box((q, 3.6), (0.58 * wide, 0.4), "attention")
    for x, y, sign in ((stream, 4.75, "+"), (stream, 8, "+"), (gate, 7.25, "×")):
        round_ = {"boxstyle": "circle,pad=0.1", "fc": "white", "ec": style.INK}
        say(x, y, sign, fontsize=9, bbox=round_)
        if x == stream:
            flow((0, y), (x, y), gap_pt=6)
    _cache_row(panel, cache, cell, tokens)
    rows = []
    for name, outputs, x, y in (
        ("q", queries, q, 2.4), ("k", keys, k, 2.4), ("v", keys, v, 2.4),
        ("o", queries, q, 4.75), ("gate", spec.intermediate, gate, 6.5),
        ("up", spec.intermediate, v, 6.5), ("down", spec.intermediate, gate, 8.0),
    ):  # fmt: skip
        kb, blue = outputs * state_kb, {"facecolor": style.BLUE, "edgecolor": "none"}
        rows.append([name, outputs, kb])
        has_room, says = kb > wide / 2, f"{kb:,.0f} kB"
        words = f"{name}: {says}" if has_room else name
        box((x, y), (kb, 0.6), words, name, "white", **blue)
        if not has_room:
            say(x + kb / 2 + 0.03 * wide, y, says, ha="left")
    frame = pd.DataFrame(rows, columns=["matrix", "outputs", "kilobytes"])
    return Drawing(figure, frame)
