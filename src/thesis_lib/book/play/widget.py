"""The element that a page holds of an interactive part, for its script to fill.

The scripts are `book/_static/play`. They get every number from the data embedded here,
which the package computes; where they calculate, `tests/browser/test_play.py` holds
them to the package. Without scripts a reader finds a sentence.
"""

import json
from collections.abc import Callable
from typing import Any

from thesis_lib.book.play.planner import planner
from thesis_lib.book.play.schedule import schedule
from thesis_lib.common.errors import choice

Part = tuple[str, Callable[[], dict[str, Any]]]

PARTS: dict[str, Part] = {
    "schedule": (
        "With JavaScript, eight transactions can be watched here under every policy, "
        "and put into an order of your own.",
        schedule,
    ),
    "planner": (
        "With JavaScript, the layers of a model can be placed here on a device, in host "
        "memory and on a disk, and a token timed.",
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
