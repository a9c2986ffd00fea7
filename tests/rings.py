"""Plans of a tiny model whose layers pass through a ring of buffers."""

from thesis_lib.memory.model.spec import Machine, ModelSpec
from thesis_lib.memory.offload.plan import MemoryPlan, least_device_bytes, plan

TINY = ModelSpec("tiny", 5, 256, 512, 4, 4, 64, 1000, tied=True)


def planned(ring: int, extra: int, disk: float, weights: float) -> MemoryPlan:
    """`extra` layers resident; bytes a second of the disk, and of weights computed."""
    least = least_device_bytes(TINY, ring=ring, context=8)
    spare = extra * plan(TINY, Machine(least, 1), ring=ring, context=8).staging_bytes
    machine = Machine(least + spare, disk, weight_bytes_per_s=weights)
    return plan(TINY, machine, ring=ring, context=8)
