"""Data of the SLO explorer: the grid of `benchmarks/explorer.py`.

Nothing is calculated in the page but a difference: it looks up the point that its
sliders stand at, and says how far a straight line between points would be off.
"""

from statistics import median
from typing import Any

from thesis_book.figures import style
from thesis_book.tables import measurements

BOUND = "bound"


def explorer() -> dict[str, Any]:
    """The axes with their values, the rows of the grid, and the errors between them.

    Raises InvalidInput without the record.
    """
    record = measurements.read("explorer")
    settings = record["settings"]
    between = {
        axis: [row for row in record["between"] if row["axis"] == axis]
        for axis in settings["axes"]
    }
    return {
        "axes": settings["axes"],
        "seeds": settings["seeds"],
        "transactions": settings["transactions"],
        "cores": record["cores"],
        "titles": {
            name: style.policy(name)["label"] for name in (*settings["policies"], BOUND)
        },
        "between": {
            axis: {
                "most": max(row["most"] for row in rows),
                "median": median(row["median"] for row in rows),
            }
            for axis, rows in between.items()
        },
        "grid": record["grid"],
    }
