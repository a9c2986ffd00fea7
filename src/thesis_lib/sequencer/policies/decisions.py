"""Ask the compiled rule of a policy for a decision.

Simulator and partitions call `decide_into` with the `RuleCode` of a policy
(`registry.policy`), Python calls `decide_compiled`, and what runs for real `decide_by`.
"""

import numpy as np
from numba import types
from numba.experimental import structref
from numba.extending import overload

from thesis_lib.common.compiled import njit
from thesis_lib.sequencer.core.events import State
from thesis_lib.sequencer.core.observed import commit, dispatch
from thesis_lib.sequencer.core.trace import I64
from thesis_lib.sequencer.policies.lookahead import Memory, Model
from thesis_lib.sequencer.policies.rules import COMPILED, RuleCode


def decide_into(
    code: RuleCode, memory: Memory, model: Model, ids: I64, now_s: float
) -> tuple[int, int, int]:
    """Return how many of `ids` (b,), which rise, `code` orders, drops and holds.

    Which, stands at the front of the columns of `memory.decided`. For compiled code.
    """
    raise TypeError("decide_into is called from Python: use decide_compiled")


@overload(decide_into, jit_options={"_nrt": False})  # pyright: ignore
def _decide_into(code, memory, model, ids, now_s):
    rule = COMPILED[code.instance_class]
    return lambda code, memory, model, ids, now_s: rule(code, memory, model, ids, now_s)


@njit(cache=True)
def decide_compiled(
    code: RuleCode, memory: Memory, model: Model, ids: I64, now_s: float
) -> tuple[I64, I64, I64]:
    """Return what a policy with `code` orders, drops and holds of rising `ids` (b,)."""
    order, dropped, held = decide_into(code, memory, model, ids, now_s)
    decided = memory.decided
    return (
        decided.order[:order].copy(),
        decided.dropped[:dropped].copy(),
        decided.held[:held].copy(),
    )


@structref.register
class _DeciderType(types.StructRef):
    """The numba type of a `Decider`."""


class Decider(structref.StructRefProxy):
    """A code, a memory, a model and a world, handed to compiled code as one object.

    To hand over the hundred arrays of a memory takes longer than to decide on a hundred
    requests with them: for who decides with the same ones again and again.
    """


structref.define_boxing(_DeciderType, Decider)
structref.define_constructor(
    Decider, _DeciderType, ["code", "memory", "model", "world"]
)


@njit(cache=True)
def decider(code: RuleCode, memory: Memory, model: Model, world: State) -> Decider:
    """Return views of the arrays as one object; the world is what is observed."""
    return Decider(code, memory, model, world)  # type: ignore[call-arg]


@njit(cache=True)
def dispatch_by(decider: Decider, ids: I64, now_s: float) -> None:
    """`dispatch` of `ids` (b,) in the world."""
    dispatch(decider.world, ids, now_s)  # type: ignore[attr-defined]


@njit(cache=True)
def commit_by(decider: Decider, ids: I64, now_s: float) -> None:
    """`commit` in the world of `ids` (b,), which have all ended now."""
    world, now = decider.world, np.full(len(ids), now_s)  # type: ignore[attr-defined]
    commit(world, ids, world.start_s[ids], now, now_s)


@njit(cache=True)
def decide_by(decider: Decider, ids: I64, now_s: float) -> tuple[I64, I64, I64]:
    """The result of `decide_compiled`."""
    code, memory, model = decider.code, decider.memory, decider.model  # type: ignore[attr-defined]
    return decide_compiled(code, memory, model, ids, now_s)
