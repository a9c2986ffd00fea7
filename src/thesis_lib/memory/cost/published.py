"""What other systems published, beside what hardware specifications alone predict.

Nothing here is fitted. A card is its data sheet; a link is its generation, its lanes
and the packets that the standard prescribes; a system is what its source says of it.
The prediction is what the plan of `plan.py` promises on such a machine.
"""

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import data_folder
from thesis_lib.memory.model.spec import Machine, ModelSpec, geometries, geometry
from thesis_lib.memory.offload.plan import MemoryPlan, least_device_bytes, plan

CARDS, ROWS = "offloading_cards.csv", "offloading_published.csv"
HEADINGS = {  # of columns that readers are shown, for `rename`
    "ratio": "predicted over published time",
    "copy": "host memory",
}
UNITS = ("s/token", "tokens/s")
COPIES = ("pinned", "pageable", "unknown")
TOLERANCE = 0.25  # of the goal: predicted over published time lies within it of one

# Giga-transfers a second of one lane, a bit each, of which 128 in 130 are payload.
_TRANSFERS_PER_S = {3: 8e9, 4: 16e9, 5: 32e9}
_ENCODING = 128 / 130
# A completion carries at most the payload that the standard sets by default (PLX,
# PEX 8532, section 8.4.1.3) behind a header of three double words and two more of
# framing, sequence number and checksum (Intel, AN 456, Throughput for Posted Writes).
PAYLOAD_BYTES, OVERHEAD_BYTES = 128, 20
_HOST_BYTES = 2**50  # what does not fit on the card fits in host memory
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


def raw_bytes_per_s(generation: int, lanes: int) -> float:
    """What lanes of a generation of PCIe carry, packet headers included."""
    return lanes * _TRANSFERS_PER_S[generation] * _ENCODING / 8


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card, or several that share one link, as the data sheets have it."""

    device: str
    memory_bytes: int
    memory_bytes_per_s: float
    flops_per_s: float | None  # 16-bit tensor products, dense; None if not looked up
    pcie_generation: int
    pcie_lanes: int
    source: str  # keys of the references, separated by semicolons

    @property
    def raw_bytes_per_s(self) -> float:
        """What the link carries, packet headers included: nothing is ever faster."""
        return raw_bytes_per_s(self.pcie_generation, self.pcie_lanes)

    @property
    def link_bytes_per_s(self) -> float:
        """What is left for data in packets of the standard's default size."""
        packet = PAYLOAD_BYTES + OVERHEAD_BYTES
        return self.raw_bytes_per_s * PAYLOAD_BYTES / packet


@dataclass(frozen=True, slots=True)
class Row:
    """A published figure and what its source says of how it came about."""

    system: str
    model: str
    device: str
    bits: float  # of a stored weight, scales included
    batch: int  # sequences
    prompt: int  # tokens of each; 0 where the figure is that of a decoding step
    generated: int  # tokens of each, in the time that is published
    resident: bool  # whether layers that fit stay on the card
    prefetch: bool  # whether a layer is fetched while another computes
    copy: str  # one of COPIES: how host memory crosses the link
    disk_bytes_per_s: float | None  # where layers come from disk
    figure: float
    unit: str  # one of UNITS
    source: str  # a key of the references
    place: str  # in the source
    reason: str  # what the prediction assumes, or does not know

    @property
    def published_s(self) -> float:
        """Seconds: of a step, or of the whole run that a rate is published for."""
        if self.unit == "s/token":
            return self.figure
        return self.batch * self.generated / self.figure

    @property
    def spec(self) -> ModelSpec:
        """The geometry of the model, in 16-bit weights."""
        return _GEOMETRIES.get(self.model) or geometry(self.model)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row beside the seconds that the plan promises and that physics allows."""

    row: Row
    card: Card
    plan: MemoryPlan
    predicted_s: float
    bound_s: float  # no system on this card is faster

    @property
    def ratio(self) -> float:
        """Predicted over published time: below one, link was left unused."""
        return self.predicted_s / self.row.published_s

    @property
    def is_within(self) -> bool:
        """Whether the prediction meets the goal."""
        return abs(self.ratio - 1) <= TOLERANCE


def read_cards(folder: Path | None = None) -> dict[str, Card]:
    """The cards of `folder`, by default of `data/`, by name.

    Raises InvalidInput for a link that is not known and for a number that is none.
    """
    cards = {}
    for row in _rows(folder, CARDS):
        with _naming(CARDS, row["device"]):
            card = Card(
                row["device"],
                int(row["memory_bytes"]),
                float(row["memory_bytes_per_s"]),
                float(row["flops_per_s"]) if row["flops_per_s"] else None,
                int(row["pcie_generation"]),
                int(row["pcie_lanes"]),
                row["source"],
            )
        require(
            card.pcie_generation in _TRANSFERS_PER_S and card.pcie_lanes > 0,
            f"{card.device} has {card.pcie_lanes} lanes of PCIe {card.pcie_generation}:"
            f" expected a generation among {', '.join(map(str, _TRANSFERS_PER_S))}",
        )
        cards[card.device] = card
    return cards


def read_rows(folder: Path | None = None) -> list[Row]:
    """The published figures of `folder`, by default of `data/`.

    Raises InvalidInput for an unknown model, device, unit or way to copy, for a figure
    that is not positive, and for a rate without the tokens that it was measured over.
    """
    cards, rows = read_cards(folder), []
    for raw in _rows(folder, ROWS):
        where = f"{raw['system']} on {raw['device']}"
        with _naming(ROWS, where):
            row = Row(
                system=raw["system"],
                model=choice("model", raw["model"], (*_GEOMETRIES, *geometries())),
                device=choice("device", raw["device"], cards),
                bits=float(raw["bits"]),
                batch=int(raw["batch"]),
                prompt=int(raw["prompt"]),
                generated=int(raw["generated"]),
                resident=choice("resident", raw["resident"], ("yes", "no")) == "yes",
                prefetch=choice("prefetch", raw["prefetch"], ("yes", "no")) == "yes",
                copy=choice("copy", raw["copy"], COPIES),
                disk_bytes_per_s=float(raw["disk_bytes_per_s"] or 0) or None,
                figure=float(raw["figure"]),
                unit=choice("unit", raw["unit"], UNITS),
                source=raw["source"],
                place=raw["place"],
                reason=raw["reason"],
            )
        require(
            row.figure > 0 and row.batch > 0 and 0 < row.bits <= 16,
            f"{where}: figure={row.figure:g}, batch={row.batch}, bits={row.bits:g}: "
            "expected all positive, and at most 16 bits",
        )
        require(
            row.unit == "s/token" or min(row.prompt, row.generated) > 0,
            f"{where}: a rate over {row.prompt} + {row.generated} tokens: expected the "
            "length of the prompt and of the answer; look them up in the source",
        )
        rows.append(row)
    return rows


def predict(row: Row, card: Card) -> Prediction:
    """The seconds of `row` on `card` by specification, and their physical bound.

    Weights cross the link in packets of the standard's size, or come from the disk
    where the source says so, while other layers compute if the system fetches ahead.
    Layers stay on the card as far as they fit, if the system keeps any. Raises
    InvalidInput where a run with a prompt needs the card's rate of products and the
    table lacks it.
    """
    spec = row.spec
    require(
        card.flops_per_s is not None or row.prompt == 0,
        f"{card.device} has no flops_per_s in {CARDS}, which {row.system} needs for a "
        f"prompt of {row.prompt} tokens: look it up",
    )
    flops_per_s = card.flops_per_s or math.inf
    layer_bytes = math.ceil(spec.layer_parameters * row.bits / 8)
    options = {
        "context": _CONTEXT,
        "ring": _RING[row.prefetch],
        "layer_read_bytes": [layer_bytes] * spec.layers,
    }
    machine = Machine(
        device_bytes=card.memory_bytes
        if row.resident
        else least_device_bytes(spec, **options),
        host_bytes=0 if row.disk_bytes_per_s else _HOST_BYTES,
        disk_bytes_per_s=row.disk_bytes_per_s or math.inf,
        link_bytes_per_s=card.link_bytes_per_s,
        weight_bytes_per_s=card.memory_bytes_per_s,
        flops_per_s=flops_per_s,
    )
    made = plan(spec, machine, **options)
    steps = max(1, row.generated)
    # The first of the generated tokens comes out of the pass over the prompt.
    first_s = made.step_s(row.batch * max(1, row.prompt))
    predicted_s = first_s + (steps - 1) * made.step_s(row.batch)

    weight_bytes = spec.parameters * row.bits / 8
    crossing_s = max(0.0, weight_bytes - card.memory_bytes) / card.raw_bytes_per_s
    tokens = row.batch * (max(1, row.prompt) + steps - 1)
    computing_s = tokens * spec.flops_per_token() / flops_per_s
    return Prediction(
        row, card, made, predicted_s, max(steps * crossing_s, computing_s)
    )


def predictions(folder: Path | None = None) -> list[Prediction]:
    """A prediction for each published row, in the order of the file."""
    cards = read_cards(folder)
    return [predict(row, cards[row.device]) for row in read_rows(folder)]


def table(made: list[Prediction]) -> pd.DataFrame:
    """Published and predicted, a row each, in the unit of the source and in seconds."""
    return pd.DataFrame(
        [
            {
                "system": each.row.system,
                "model": each.row.model,
                "device": each.row.device,
                "bits": each.row.bits,
                "batch": each.row.batch,
                "copy": each.row.copy,
                "unit": each.row.unit,
                "published": each.row.figure,
                "predicted": _in_unit(each.predicted_s, each.row),
                "bound": _in_unit(each.bound_s, each.row),
                "published_s": each.row.published_s,
                "predicted_s": each.predicted_s,
                "ratio": each.ratio,
            }
            for each in made
        ]
    )


def counts(made: list[Prediction]) -> dict[str, float]:
    """How many rows there are and how many meet the goal, by kind.

    `steps` are figures of one decoding step at batch one, `pinned` those of them whose
    host memory is pinned; their median ratio beside that of all others.
    """
    steps = [each for each in made if each.row.unit == "s/token"]
    pinned = [each for each in steps if each.row.copy == "pinned"]
    others = [each for each in made if each not in pinned]
    return {
        "rows": len(made),
        "within": sum(each.is_within for each in made),
        "steps": len(steps),
        "pinned": len(pinned),
        "pinned_within": sum(each.is_within for each in pinned),
        "pinned_median": float(np.median([each.ratio for each in pinned])),
        "others": len(others),
        "others_median": float(np.median([each.ratio for each in others])),
    }


def _in_unit(seconds: float, row: Row) -> float:
    if row.unit == "s/token":
        return seconds
    return row.batch * row.generated / seconds if seconds else math.inf


def _rows(folder: Path | None, name: str) -> list[dict[str, str]]:
    path = (data_folder() if folder is None else folder) / name
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@contextmanager
def _naming(file: str, where: str) -> Iterator[None]:
    """Says in which line of which file a value stands that cannot be read."""
    try:
        yield
    except ValueError as error:
        raise InvalidInput(f"{file}, {where}: {error}") from error
