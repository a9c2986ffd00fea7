"""A plan in words and numbers, for a machine that is there or is claimed."""

import math
from dataclasses import replace
from typing import Any

from thesis_lib.common.errors import require
from thesis_lib.memory.cost.prices import read_quantities
from thesis_lib.memory.cost.published import read_cards
from thesis_lib.memory.model.spec import Machine, geometries, geometry
from thesis_lib.memory.offload.offloaded_model import (
    ASSUMED_DECODE_BYTES_PER_S,
    ASSUMED_DISK_BYTES_PER_S,
    checkpoint_folder,
    plan_checkpoint,
)
from thesis_lib.memory.offload.plan import plan
from thesis_lib.memory.offload.rates import measure_machine, with_decoder

ASSUMED_CARD = "GeForce RTX 3090"  # whose data sheet bounds the computing of a geometry


def describe_plan(
    model: str,
    device_bytes: int,
    host_bytes: int = 0,
    batch: int = 1,
    context: int = 512,
    ring: int = 3,
    pass_tokens: int = 1,
    kind: str | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """The plan for a folder, `smollm2` or a known geometry, as the command prints it.

    `kind` is that of a geometry's weights, by default dense; a checkpoint has its own.
    Without a `machine`, the rates of this one are measured for a checkpoint and those
    of a geometry assumed, computing at the bounds of a card's data sheet; "rates" says
    which. Raises PlanInfeasible, before anything
    is measured, and InvalidInput for a checkpoint of another kind than is asked for.
    """
    options: dict[str, Any] = {
        "batch": batch,
        "context": context,
        "ring": ring,
        "pass_tokens": pass_tokens,
        "logit_tokens": 1,
    }
    origin = "given"
    if model in geometries():
        if machine is None:
            origin = "assumed"
            decoder = ASSUMED_DECODE_BYTES_PER_S if kind == "lossless" else math.inf
            card = read_cards()[ASSUMED_CARD]
            machine = Machine(
                device_bytes,
                ASSUMED_DISK_BYTES_PER_S,
                decode_bytes_per_s=decoder,
                weight_bytes_per_s=card.memory_bytes_per_s,
                flops_per_s=card.flops_per_s or math.inf,
            )
        machine = _with_host(machine, device_bytes, host_bytes)
        made = plan(geometry(model), machine, kind=kind or "dense", **options)
    else:
        folder = checkpoint_folder(model)
        blind = _with_host(Machine(device_bytes, 1.0), device_bytes, host_bytes)
        made = plan_checkpoint(folder, blind, **options)
        require(
            kind in (None, made.kind),
            f"{model} holds {made.kind} weights, not {kind}: plan it as it is, or "
            "write another one with `thesis compress`",
        )
        if machine is None:
            origin = "measured"
            machine = measure_machine(folder)
            if made.kind == "lossless":
                machine = with_decoder(machine, folder)
        made = replace(made, machine=_with_host(machine, device_bytes, host_bytes))
    rates: dict[str, Any] = {
        "disk_bytes_per_s": made.machine.disk_bytes_per_s,
        "disk": origin,
    }
    if made.kind == "lossless":
        rates |= {"decode_bytes_per_s": made.machine.decode_bytes_per_s}
        rates |= {"ratio": "estimated" if model in geometries() else "of the files"}
    if origin == "assumed":
        rates |= {"compute": ASSUMED_CARD}
    if origin != "given":
        rates |= {
            "weight_bytes_per_s": made.machine.weight_bytes_per_s,
            "flops_per_s": made.machine.flops_per_s,
        }
    if origin == "measured":
        rates |= {"spread": made.machine.spread}
    if host_bytes:
        link = made.machine.link_bytes_per_s
        rates |= {"link_bytes_per_s": link, "link": "assumed"}
    return {**made.summary(), "rates": rates}


def _with_host(machine: Machine, device_bytes: int, host_bytes: int) -> Machine:
    link = 1e9 * read_quantities()["link_gb_per_s"].value if host_bytes else math.inf
    sized = machine.with_memory(device_bytes, host_bytes)
    return replace(sized, link_bytes_per_s=link)
