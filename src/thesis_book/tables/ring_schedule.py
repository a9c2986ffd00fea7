"""Schedule of the staging buffers: which layer each receives, and when.

A tiny discrete schedule of the ring: one reader that never has two layers on the link
at once, one processor that never has two layers at work. It is what the picture of the
ring is drawn from, and where the time of a step in `plan.py` comes from.
"""

from dataclasses import dataclass

from thesis_lib.memory.offload.plan import MemoryPlan

RESIDENT = -1  # the buffer of a layer that never moves


@dataclass(frozen=True, slots=True)
class Visit:
    """One layer in one pass: where it lies and when, in seconds from the start."""

    step: int  # the pass, from 0
    layer: int
    buffer: int  # of the ring, or RESIDENT
    receives_s: float  # its bytes begin to arrive; as ready_s for a resident layer
    ready_s: float  # all of them are there
    starts_s: float  # to compute
    ends_s: float  # and its buffer is free


def ring_schedule(plan: MemoryPlan, steps: int = 2, tokens: int = 1) -> list[Visit]:
    """The visits of `steps` passes of `tokens` new tokens a sequence, in their order.

    Buffers are empty at the start and refilled as soon as they are free, with the
    layer one ring ahead; after the last layer of a pass comes the first one of the
    next. Every streamed layer takes the same share of the plan's transfer, every layer
    that of its arithmetic.
    """
    layers = plan.spec.layers
    compute_s = plan.compute_s(tokens) / layers
    read_s = plan.transfer_s() / max(1, plan.streamed_layers)
    free_s = [0.0] * plan.ring  # of each buffer
    link_s = end_s = 0.0
    visits, reads = [], 0
    for step in range(steps):
        for layer in range(layers):
            if plan.is_streamed(layer):
                buffer = reads % plan.ring
                receives_s = max(link_s, free_s[buffer])
                ready_s = link_s = receives_s + read_s
                reads += 1
            else:
                buffer, receives_s, ready_s = RESIDENT, 0.0, 0.0
            starts_s = max(end_s, ready_s)
            end_s = starts_s + compute_s
            if buffer != RESIDENT:
                free_s[buffer] = end_s
            visits.append(
                Visit(step, layer, buffer, receives_s, ready_s, starts_s, end_s)
            )
    return visits


def period_s(visits: list[Visit]) -> float:
    """Seconds from the end of the last pass but one to the end of the last."""
    last = visits[-1].step
    before = max(visit.ends_s for visit in visits if visit.step == last - 1)
    return visits[-1].ends_s - before
