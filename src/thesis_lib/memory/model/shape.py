"""The largest step that a plan admits, and what was found of it."""

from dataclasses import dataclass
from typing import Any, TypedDict

from thesis_lib.common.errors import require, whole
from thesis_lib.memory.model.spec import ModelSpec

_MOST = 2**31 - 1  # sequences, positions: more than any model has
_CONTEXT = 512  # positions, by default


class Step(TypedDict, total=False):
    """The fields of a `Shape` except batch and context, as options.

    As many logits are kept as there are tokens, if nothing says how many.
    """

    pass_tokens: int
    logit_tokens: int | None
    generating: bool
    rollback: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The largest step that a plan admits. Raises InvalidInput for what is none."""

    batch: int = 1  # sequences; beams count as sequences
    context: int = (
        _CONTEXT  # positions in the cache of one sequence, the new ones included
    )
    pass_tokens: int = 1  # new tokens of one sequence
    logit_tokens: int = 1  # positions of one sequence whose logits are kept
    generating: bool = False  # whether transformers' generate chooses the tokens
    rollback: int = 0  # tokens that the cache can give back after verifying them

    def __post_init__(self) -> None:
        for name in ("batch", "context"):
            whole(getattr(self, name), name, 1, _MOST)
        require(
            0 < self.pass_tokens <= self.context,
            f"pass_tokens={self.pass_tokens} must lie in 1 to context={self.context}",
        )
        require(
            0 < self.logit_tokens <= self.pass_tokens,
            f"logit_tokens={self.logit_tokens} must lie in 1 to "
            f"pass_tokens={self.pass_tokens}",
        )
        require(
            self.rollback == 0
            or (self.batch == 1 and 0 < self.rollback <= self.context),
            f"rollback={self.rollback} of {self.batch} sequences of {self.context} "
            "positions: expected one sequence, and at most its positions",
        )


def read_step(spec: ModelSpec, batch: int, context: int | None, step: Step) -> Shape:
    """Return the shape of a step of `spec`. Raises InvalidInput where it has none.

    A `context` of None is 512 positions, or all that the model has if it has fewer.
    """
    if context is None:
        context = min(_CONTEXT, spec.most_positions or _CONTEXT)
    logit_tokens = step.get("logit_tokens")
    logit_tokens = step.get("pass_tokens", 1) if logit_tokens is None else logit_tokens
    options: dict[str, Any] = {**step, "logit_tokens": logit_tokens}
    shape = Shape(batch, context, **options)
    require(
        not spec.most_positions or shape.context <= spec.most_positions,
        f"context={shape.context}, prompt and answer together, is longer than the "
        f"{spec.most_positions} positions that {spec.name} was made for: shorten it",
    )
    return shape


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Return the most bytes that steps of a shape hold, without the weights."""

    layer_bytes: int  # of the weights of one decoder layer
    table_bytes: int  # what no checkpoint holds: rotary frequencies and the like
    kv_bytes: int  # keys and values at the full context
    activation_bytes: int  # everything else that is alive at the worst moment
    scratch_bytes: int = 0  # what kernels of packed layers take, unseen by a meter
