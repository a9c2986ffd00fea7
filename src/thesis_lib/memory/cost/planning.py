"""A plan in words and numbers, for a machine that is there or is claimed."""

import math
import os
from dataclasses import replace
from typing import Any

import psutil

from thesis_lib.common.errors import choice, require
from thesis_lib.common.units import MiB
from thesis_lib.memory.cost.cards import read_cards
from thesis_lib.memory.cost.prices import read_quantities
from thesis_lib.memory.model.shape import Step
from thesis_lib.memory.model.spec import WEIGHTS, Machine, geometries, geometry
from thesis_lib.memory.offload.plan import (
    ASSUMED_DECODE_BYTES_PER_S,
    ASSUMED_DISK_BYTES_PER_S,
    MemoryPlan,
    PlanInfeasible,
    plan,
)

ASSUMED_CARD = "GeForce RTX 3090"  # whose data sheet bounds the computing of a geometry


def describe_plan(
    model: str,
    device_bytes: int,
    host_bytes: int = 0,
    batch: int = 1,
    context: int | None = None,
    ring: int | None = None,
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
    options: Step = {"pass_tokens": pass_tokens, "logit_tokens": 1}
    kind = _kind(weights)
    if model in geometries():
        sized = _with_host(_assume(kind), device_bytes, host_bytes)
        spec, kind = geometry(model), kind or "dense"
        streamed_plan = plan(spec, sized, batch, context, ring, kind=kind, **options)
        return _described(streamed_plan, "assumed", "estimated")
    # Those bring torch, which a geometry does not need.
    from thesis_lib.memory.evaluate.rates import measure_machine, with_decoder
    from thesis_lib.memory.offload.offloaded_model import (
        checkpoint_folder,
        plan_checkpoint,
    )

    folder = checkpoint_folder(model)
    blind = _with_host(Machine(device_bytes, 1.0), device_bytes, host_bytes)
    streamed_plan = plan_checkpoint(folder, blind, batch, context, ring, **options)
    require(
        kind in (None, streamed_plan.kind),
        f"{model} holds {streamed_plan.kind} weights, not {kind}: plan it as it is, or "
        "write another one with `thesis compress`",
    )
    machine = measure_machine(folder)
    if streamed_plan.kind == "lossless":
        machine = with_decoder(machine, folder)
    streamed_plan = replace(
        streamed_plan, machine=_with_host(machine, device_bytes, host_bytes)
    )
    return _described(streamed_plan, "measured", "of the files")


def examine(device_bytes: int | None = None) -> dict[str, Any]:
    """Measure this machine and plan the published geometries, as `thesis doctor`.

    Free memory and cores, and the rates measured for the packaged SmolLM2, in some ten
    seconds. "models" has the plan of each geometry in 16 bits for `device_bytes`, by
    default three quarters of what is free: predicted seconds of a token and their
    interval, or the rejection; and the command that plans it.
    """
    from thesis_lib.memory.evaluate.rates import measure_machine
    from thesis_lib.memory.model import smollm2

    free = psutil.virtual_memory().available
    device_bytes = free * 3 // 4 // MiB * MiB if device_bytes is None else device_bytes
    measured = measure_machine(smollm2.checkpoint(), rounds=3)
    machine = measured.with_memory(device_bytes)
    return {
        "free_bytes": free,
        "device_bytes": device_bytes,
        "cores": len(os.sched_getaffinity(0)),
        "disk_bytes_per_s": machine.disk_bytes_per_s,
        "weight_bytes_per_s": machine.weight_bytes_per_s,
        "flops_per_s": machine.flops_per_s,
        "spread": machine.spread,
        "models": [_fitted(name, machine) for name in geometries()],
    }


def _fitted(name: str, machine: Machine) -> dict[str, Any]:
    """The plan of a geometry on a machine, or its rejection, in the command's words."""
    size = f"{machine.device_bytes // MiB}MiB"
    result = {"model": name, "command": f"thesis plan {name} --device-memory {size}"}
    try:
        summary = plan(geometry(name), machine, ring=None).summary()
    except PlanInfeasible as rejection:
        return {**result, "feasible": False, "refusal": str(rejection)}
    keys = ("feasible", "model_bytes", "device_peak_bytes", "predicted_s_per_token",
            "predicted_s_interval", "limit", "tiers")  # fmt: skip
    return {**result, **{key: summary[key] for key in keys}}


def _kind(word: str | None) -> str | None:
    """The kind that a word names: one of those known by heart, or a registered one."""
    if word is None or word in WEIGHTS:
        return WEIGHTS.get(word or "")
    from thesis_lib.memory.formats.base import words

    known = words()
    return known[choice("weights", word, known)]


def _assume(kind: str | None) -> Machine:
    """Rates for a geometry: a disk's, and the bounds of a card's data sheet."""
    return replace(
        read_cards()[ASSUMED_CARD].machine(),
        disk_bytes_per_s=ASSUMED_DISK_BYTES_PER_S,
        decode_bytes_per_s=ASSUMED_DECODE_BYTES_PER_S
        if kind == "lossless"
        else math.inf,
    )


def _described(streamed_plan: MemoryPlan, origin: str, ratio: str) -> dict[str, Any]:
    """The plan under the names of the command, with the rates that it counts on."""
    machine = streamed_plan.machine
    rates: dict[str, Any] = {
        "disk_bytes_per_s": machine.disk_bytes_per_s,
        "disk": origin,
    }
    if streamed_plan.kind == "lossless":
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
    return {**streamed_plan.summary(), "rates": rates}


def _with_host(machine: Machine, device_bytes: int, host_bytes: int) -> Machine:
    link = 1e9 * read_quantities()["link_gb_per_s"].value if host_bytes else math.inf
    sized = machine.with_memory(device_bytes, host_bytes)
    return replace(sized, link_bytes_per_s=link)
