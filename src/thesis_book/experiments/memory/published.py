"""Published results of other systems, and predictions from hardware alone.

Nothing here is fitted. A card is its data sheet; a system is what its source says of
it. The prediction is what the plan of `plan.py` promises on such a machine.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from thesis_lib.common.errors import require
from thesis_lib.memory.cost.cards import CARDS, Card, read_cards, read_table
from thesis_lib.memory.cost.cards import OVERHEAD_BYTES as OVERHEAD_BYTES
from thesis_lib.memory.cost.cards import PAYLOAD_BYTES as PAYLOAD_BYTES
from thesis_lib.memory.model.spec import ModelSpec, geometry
from thesis_lib.memory.offload.plan import least_device_bytes, plan

ROWS = "offloading_published.csv"
HEADINGS = {  # of columns that readers are shown, for `rename`
    "figure": "published",
    "ratio": "predicted over published time",
    "copy": "host memory",
}
UNITS = ("s/token", "tokens/s")
COPIES = ("pinned", "pageable", "unknown")  # how host memory crosses the link
TOLERANCE = 0.25  # of the goal: predicted over published time lies within it of one
_RING = {True: 2, False: 1}  # buffers, by whether anything is fetched ahead
_CONTEXT = 512  # positions where a source does not say; hardly moves a second

# The paper of LLaMA gives the shape of its 33B model and that of OPT those of OPT; the
# other two publish a config.json (chargoddard/llama2-22b, internlm/internlm-chat-20b).
_GEOMETRIES = {
    "vicuna-33b": ModelSpec(
        "vicuna-33b", 60, 6656, 17920, 52, 52, 128, 32000, tied=False
    ),
    "llama2-22b": ModelSpec(
        "llama2-22b", 40, 6656, 17920, 52, 52, 128, 32000, tied=False
    ),
    "internlm-20b": ModelSpec(
        "internlm-20b", 60, 5120, 13824, 40, 40, 128, 103168, tied=False
    ),
    "opt-30b": replace(
        geometry("opt-66b"),
        name="opt-30b", layers=48, hidden=7168, intermediate=28672, heads=56,
        kv_heads=56,
    ),
    "opt-175b": replace(
        geometry("opt-66b"),
        name="opt-175b", layers=96, hidden=12288, intermediate=49152, heads=96,
        kv_heads=96,
    ),
}  # fmt: skip


def read_rows(folder: Path | None = None) -> pd.DataFrame:
    """The published figures of `folder`, by default of `data/`, a row each.

    Columns: system; model; device; bits of a stored weight, scales included; batch in
    sequences; prompt and generated tokens of each in the time that is published, 0
    where the figure is that of a decoding step; whether layers that fit stay resident
    on the card, and whether one is fetched while another computes (prefetch); copy, one
    of COPIES; disk_bytes_per_s, where layers come from disk; figure in unit, one of
    UNITS; its source, a key of the references, and the place in it; reason, what the
    prediction assumes or does not know; published_s, seconds of a step, or of the whole
    run that a rate is published for.
    """
    types = {int: "batch prompt generated", bool: "resident prefetch",
             float: "bits disk_bytes_per_s figure"}  # fmt: skip
    table: Any = read_table(folder, ROWS, types)
    is_rate = table.unit == "tokens/s"
    run_s = table.batch * table.generated / table.figure
    return table.assign(published_s=table.figure.where(~is_rate, run_s))


def predict(row: Any, card: Card) -> dict[str, Any]:
    """Predict the time of a row of `read_rows` on `card` from its specification.

    Weights cross the link in packets of the standard's size, or come from the disk
    where the source says so, while other layers compute if the system fetches ahead.
    Layers stay on the card as far as they fit, if the system keeps any. Keys: the
    `plan`, `predicted_s`, and `bound_s`, which no system on this card beats. Raises
    InvalidInput where a run with a prompt needs the card's rate of products and the
    table lacks it.
    """
    spec = _GEOMETRIES.get(row.model) or geometry(row.model)
    require(
        card.flops_per_s is not None or row.prompt == 0,
        f"{card.device} has no flops_per_s in {CARDS}, which {row.system} needs for a "
        f"prompt of {row.prompt} tokens: look it up",
    )
    layer_bytes = math.ceil(spec.layer_parameters * row.bits / 8)
    options = {
        "context": _CONTEXT,
        "ring": _RING[row.prefetch],
        "layer_read_bytes": [layer_bytes] * spec.layers,
    }
    machine = card.machine()
    if not math.isnan(row.disk_bytes_per_s):
        machine = replace(machine, host_bytes=0, disk_bytes_per_s=row.disk_bytes_per_s)
    if not row.resident:
        machine = replace(machine, device_bytes=least_device_bytes(spec, **options))
    streamed_plan = plan(spec, machine, **options)
    steps = max(1, row.generated)
    # The first of the generated tokens comes out of the pass over the prompt.
    first_s = streamed_plan.step_s(row.batch * max(1, row.prompt))

    weight_bytes = spec.parameters * row.bits / 8
    crossing_s = max(0.0, weight_bytes - card.memory_bytes) / card.raw_bytes_per_s
    tokens = row.batch * (max(1, row.prompt) + steps - 1)
    computing_s = tokens * spec.flops_per_token() / machine.flops_per_s
    return {
        "plan": streamed_plan,
        "predicted_s": first_s + (steps - 1) * streamed_plan.step_s(row.batch),
        "bound_s": max(steps * crossing_s, computing_s),
    }


def predictions(folder: Path | None = None) -> pd.DataFrame:
    """The rows of `read_rows`, each beside what `predict` says of it.

    `ratio` is predicted over published time: below one, link was left unused; `within`
    says whether that meets the goal. `predicted` and `bound` are in the unit of the
    source.
    """
    cards = read_cards(folder)
    table: Any = read_rows(folder)
    rows = [predict(row, cards[row.device]) for row in table.itertuples()]
    table = table.join(pd.DataFrame(rows))
    table["ratio"] = table.predicted_s / table.published_s
    table["within"] = (table.ratio - 1).abs() <= TOLERANCE
    for name in ("predicted", "bound"):
        seconds = table[f"{name}_s"]
        rate = table.batch * table.generated / seconds  # infinite for no time
        table[name] = seconds.where(table.unit == "s/token", rate)
    return table


def readable(table: Any) -> pd.DataFrame:
    """Return the columns of `predictions` that a reader sees."""
    shown = [
        "system", "model", "device", "bits", "batch", "copy", "unit", "figure",
        "predicted", "bound", "ratio",
    ]  # fmt: skip
    return table[shown].rename(columns=HEADINGS)


def counts(table: Any) -> dict[str, float]:
    """Count the rows of `predictions`, and those that meet the goal, by kind.

    `steps` are figures of one decoding step at batch one, `pinned` those of them whose
    host memory is pinned; their median ratio beside that of all others.
    """
    steps = table.unit == "s/token"
    pinned = steps & (table["copy"] == "pinned")
    return {
        "rows": len(table),
        "within": int(table.within.sum()),
        "steps": int(steps.sum()),
        "pinned": int(pinned.sum()),
        "pinned_within": int((pinned & table.within).sum()),
        "pinned_median": float(table.ratio[pinned].median()),
        "others": int((~pinned).sum()),
        "others_median": float(table.ratio[~pinned].median()),
    }
