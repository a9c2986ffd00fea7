"""The only plotting import: one theme, and one function for each figure.

Every function takes data, draws on a new figure of at most 6.5 inches and returns
it. Colours belong to a policy or a method, never to a position in a list.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from thesis_lib.units import GiB, MiB

WIDTH_IN = 6.5

# Okabe and Ito's palette: distinguishable without colour vision.
INK, GREY = "#222222", "#8a8a8a"
COLOURS = {
    "fifo": "#8a8a8a",
    "drop": "#d55e00",
    "reorder": "#0072b2",
    "hybrid": "#cc79a7",
    "ours": "#009e73",
    "bound": "#222222",
}


def theme() -> None:
    """Set the look of every figure; call once at the top of a notebook."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"],
        rc={
            "figure.figsize": (WIDTH_IN, 3.4),
            "figure.dpi": 120,
            "savefig.bbox": "tight",
            "font.family": ["DejaVu Sans"],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.6,
            "axes.edgecolor": INK,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
        },
    )


def axes(columns: int = 1, height_in: float = 3.4, **options) -> tuple[Figure, ...]:
    """A new figure of the book's width with `columns` axes: (figure, axes…)."""
    figure, drawn = plt.subplots(
        1, columns, figsize=(WIDTH_IN, height_in), layout="constrained", **options
    )
    plt.close(figure)  # shown by its cell as a value, not twice
    return (figure, *([drawn] if columns == 1 else drawn))


# --- Part I: the estimator ---------------------------------------------------

# --- Part I: the sequencer ---------------------------------------------------

# --- Part II: memory and time ------------------------------------------------


def memory_parts(
    parts_bytes: Mapping[str, int], model_bytes: int, limit_bytes: int
) -> Figure:
    """A plan's parts beside the whole model, and the limit that they must not cross."""
    figure, drawn = axes(height_in=2.2)
    drawn.barh("resident model", model_bytes / MiB, color=GREY)
    left = 0.0
    for name, n_bytes in parts_bytes.items():
        drawn.barh("streamed plan", n_bytes / MiB, left=left, label=name)
        left += n_bytes / MiB
    drawn.axvline(limit_bytes / MiB, color=INK, linestyle="--", label="budget")
    drawn.invert_yaxis()
    drawn.set_xlabel("device memory (MiB)")
    drawn.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def time_against_memory(
    device_bytes: Sequence[float],
    step_s: Mapping[str, Sequence[float]],
    least_bytes: float,
    model_bytes: float,
) -> Figure:
    """Predicted seconds a token as the device grows, one line for each label."""
    figure, drawn = axes()
    for name, seconds in step_s.items():
        gibibytes = [n_bytes / GiB for n_bytes in device_bytes]
        drawn.plot(gibibytes, seconds, drawstyle="steps-post", label=name)
    drawn.axvspan(0, least_bytes / GiB, color=GREY, alpha=0.25, label="refused")
    drawn.axvline(model_bytes / GiB, color=INK, linestyle=":", label="weights")
    drawn.set_xlim(0, max(device_bytes) / GiB)
    drawn.set_ylim(bottom=0)
    drawn.set_xlabel("device memory (GiB)")
    drawn.set_ylabel("predicted time per token (s)")
    drawn.legend()
    return figure


def step_times(seconds: Mapping[str, Sequence[float]]) -> Figure:
    """Every sample of each kind of step as a dot, the median as a bar."""
    figure, drawn = axes(height_in=2.4)
    for row, (name, samples) in enumerate(seconds.items()):
        milliseconds = 1e3 * np.asarray(samples)
        drawn.plot(
            milliseconds, np.full(len(milliseconds), row), "o", alpha=0.5, label=name
        )
        drawn.plot([np.median(milliseconds)], [row], "|", color=INK, markersize=22)
    drawn.set_yticks(range(len(seconds)), list(seconds))
    drawn.set_ylim(len(seconds) - 0.5, -0.5)
    drawn.set_xlim(left=0)
    drawn.set_xlabel("time of one decoding step (ms)")
    drawn.grid(axis="y", visible=False)
    return figure


def io_against_compute(
    tokens: Sequence[int],
    seconds: Mapping[str, Sequence[float]],
    crossovers: Mapping[str, float | None],
) -> Figure:
    """Time of a pass against its tokens, and where computing overtakes reading.

    A crossover that was not found, None, is not drawn.
    """
    figure, drawn = axes()
    for name, samples in seconds.items():
        drawn.plot(tokens, 1e3 * np.asarray(samples), "o-", label=name)
    for (name, at), style in zip(crossovers.items(), ("--", ":"), strict=False):
        if at is not None:
            drawn.axvline(at, color=INK, linestyle=style, label=name)
    drawn.set_xscale("log", base=2)
    drawn.set_xticks(tokens, [str(t) for t in tokens])
    drawn.minorticks_off()
    drawn.set_ylim(bottom=0)
    drawn.set_xlabel("new tokens in a pass")
    drawn.set_ylabel("time of a pass (ms)")
    drawn.legend()
    return figure


# --- Part II: compression and cost -------------------------------------------

# --- Introduction ------------------------------------------------------------
