"""The only plotting import: one theme, and one function for each figure.

Every function takes data, draws on a new figure of at most 6.5 inches and returns
it. Colours belong to a policy or a method, never to a position in a list.
"""

from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns

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


def axes(columns: int = 1, height_in: float = 3.4, **options: Any) -> tuple[Any, ...]:
    """A new figure of the book's width with `columns` axes: (figure, axes…)."""
    figure, drawn = plt.subplots(
        1, columns, figsize=(WIDTH_IN, height_in), layout="constrained", **options
    )
    plt.close(figure)  # shown by its cell as a value, not twice
    return (figure, *([drawn] if columns == 1 else drawn))


# --- Part I: the estimator ---------------------------------------------------

# --- Part I: the sequencer ---------------------------------------------------

# --- Part II: memory and time ------------------------------------------------

# --- Part II: compression and cost -------------------------------------------

# --- Introduction ------------------------------------------------------------
