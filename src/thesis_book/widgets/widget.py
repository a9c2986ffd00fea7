"""The element that a page holds of an interactive part, for its script to fill.

The scripts are `book/_static/play`. They get every number from the data embedded here,
which the package computes; where they calculate, `tests/browser/test_play.py` holds
them to the package. Without scripts a reader finds a sentence.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thesis_book.widgets.explorer import explorer
from thesis_book.widgets.planner import planner
from thesis_book.widgets.schedule import schedule
from thesis_lib.common.errors import choice, require

Part = tuple[str, Callable[[], dict[str, Any]]]

PARTS: dict[str, Part] = {
    "schedule": (
        "In a browser with JavaScript, eight transactions can be watched here under "
        "every policy, and put into an order of your own.",
        schedule,
    ),
    "explorer": (
        "In a browser with JavaScript, load, objective, error and lag can be moved "
        "here, and what each policy violates is shown.",
        explorer,
    ),
    "planner": (
        "In a browser with JavaScript, the layers of a model can be placed here on a "
        "device, in host memory and on a disk, and a token timed.",
        planner,
    ),
}


def widget(name: str) -> str:
    """The interactive part of this name as HTML. Raises InvalidInput for another."""
    still, data = PARTS[choice("interactive part", name, PARTS)]
    known = json.dumps(data(), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="play" data-play="{name}"><p class="play-still">{still}</p>'
        f'<script type="application/json">{known}</script></div>'
    )


def cost(chapter: Path) -> str:
    """The calculator of costs as the executed chapter 6 shows it, behind a guess.

    Raises InvalidInput for a notebook without one.
    """
    cells = json.loads(chapter.read_text())["cells"]
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    shown = ("".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    calculator = next((html for html in shown if 'class="cost-calculator"' in html), "")
    require(
        bool(calculator),
        f"{chapter.name} shows no calculator of costs: expected one in an output of an "
        "executed chapter 6",
    )
    still = (
        "In a browser with JavaScript, prices can be moved here; these are those of "
        "the table."
    )
    return (
        '<div class="play" data-play="cost"><div class="play-still">'
        f"<p>{still}</p>{calculator}</div></div>"
    )
