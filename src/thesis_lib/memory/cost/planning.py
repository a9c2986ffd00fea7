"""A plan in words and numbers, for a machine that is there or is claimed."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from thesis_lib.common.errors import choice, require
from thesis_lib.memory.cost.answers import remembered
from thesis_lib.memory.cost.prices import read_quantities
from thesis_lib.memory.cost.published import read_cards
from thesis_lib.memory.model.spec import Machine, geometries, geometry

if TYPE_CHECKING:  # it brings torch, which the answer to a known question does not need
    from thesis_lib.memory.offload.plan import MemoryPlan

ASSUMED_CARD = "GeForce RTX 3090"  # whose data sheet bounds the computing of a geometry


def describe_plan(
    model: str,
    device_bytes: int,
    host_bytes: int = 0,
    batch: int = 1,
    context: int = 512,
    ring: int = 3,
    pass_tokens: int = 1,
    weights: str | None = None,
) -> dict[str, Any]:
    """The plan for a folder, `smollm2` or a known geometry, as the command prints it.

    `weights` is the format of a geometry's, in the word of the command line, by default
    bf16; a checkpoint has its own. The rates of this machine are measured for a
    checkpoint; those of a geometry are assumed, computing at the bounds of a card's
    data sheet: "rates" says which. Raises PlanInfeasible, before anything is measured,
    and InvalidInput for an unknown word and for a checkpoint of another format than is
    asked for.
    """
    options: dict[str, Any] = {
        "batch": batch,
        "context": context,
        "ring": ring,
        "pass_tokens": pass_tokens,
        "logit_tokens": 1,
    }
    if model in geometries():
        asked = weights or "bf16"
        return _describe_geometry(model, device_bytes, host_bytes, asked, options)
    from thesis_lib.memory.offload import offloaded_model, rates

    kind = None if weights is None else _kind(weights)
    folder = offloaded_model.checkpoint_folder(model)
    blind = _with_host(Machine(device_bytes, 1.0), device_bytes, host_bytes)
    made = offloaded_model.plan_checkpoint(folder, blind, **options)
    require(
        kind in (None, made.kind),
        f"{model} holds {made.kind} weights, not {kind}: plan it as it is, or "
        "write another one with `thesis compress`",
    )
    machine = rates.measure_machine(folder)
    if made.kind == "lossless":
        machine = rates.with_decoder(machine, folder)
    made = replace(made, machine=_with_host(machine, device_bytes, host_bytes))
    return _described(made, "measured", "of the files")


def _kind(weights: str) -> str:
    from thesis_lib.memory.formats.base import words

    return words()[choice("weights", weights, words())]


@remembered
def _describe_geometry(
    model: str,
    device_bytes: int,
    host_bytes: int,
    weights: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    """`describe_plan` of a known geometry at assumed rates."""
    from thesis_lib.memory.offload import offloaded_model
    from thesis_lib.memory.offload.plan import plan

    kind = _kind(weights)
    machine = replace(
        read_cards()[ASSUMED_CARD].machine(),
        disk_bytes_per_s=offloaded_model.ASSUMED_DISK_BYTES_PER_S,
    )
    if kind == "lossless":
        decoder = offloaded_model.ASSUMED_DECODE_BYTES_PER_S
        machine = replace(machine, decode_bytes_per_s=decoder)
    machine = _with_host(machine, device_bytes, host_bytes)
    made = plan(geometry(model), machine, kind=kind, **options)
    return _described(made, "assumed", "estimated")


def _described(made: "MemoryPlan", origin: str, ratio: str) -> dict[str, Any]:
    """The plan under the names of the command, with the rates that it counts on."""
    machine = made.machine
    rates: dict[str, Any] = {
        "disk_bytes_per_s": machine.disk_bytes_per_s,
        "disk": origin,
    }
    if made.kind == "lossless":
        rates |= {"decode_bytes_per_s": machine.decode_bytes_per_s, "ratio": ratio}
    if origin == "assumed":
        rates |= {"compute": ASSUMED_CARD}
    rates |= {
        "weight_bytes_per_s": machine.weight_bytes_per_s,
        "flops_per_s": machine.flops_per_s,
    }
    if origin == "measured":
        rates |= {"spread": machine.spread}
    if machine.host_bytes:
        rates |= {"link_bytes_per_s": machine.link_bytes_per_s, "link": "assumed"}
    return {**made.summary(), "rates": rates}


def _with_host(machine: Machine, device_bytes: int, host_bytes: int) -> Machine:
    link = 1e9 * read_quantities()["link_gb_per_s"].value if host_bytes else math.inf
    sized = machine.with_memory(device_bytes, host_bytes)
    return replace(sized, link_bytes_per_s=link)
