"""Continuous batching for a streamed model (Orca: Yu et al., OSDI 2022).

Each sequence runs its own pass, of its own length, and waits at each layer until all
sequences need its weights. There is no padding, and the bits of a sequence do not
depend on the others. Rows of several sequences are multiplied with a matrix at once if
the kernel does not mix them on this machine.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor
from torch.nn.functional import linear

from thesis_lib.common.errors import require
from thesis_lib.memory.model.batch_invariant import Mixing, mixes_rows
from thesis_lib.memory.offload.offloaded_model import StreamedModel
from thesis_lib.memory.offload.source import Weights
from thesis_lib.memory.offload.store import StoreDamaged

# A trial holds a few rows; those of a pass of so many tokens are no less.
_LEAST_TOKENS = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """A row that is to be multiplied with a matrix."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None


class Lane(greenlet):
    """A text that is being written; once it is `dead`, what came of it."""

    def __init__(
        self, write: Callable[[], Any], generators: list[torch.Generator]
    ) -> None:
        super().__init__(write)
        self.needs: int | None = None  # the layer that it waits for
        self.row: _Row | None = None  # or the product
        self.result: Any = None
        self.failure: Exception | None = None
        self._draws = {each: each.get_state() for each in generators}

    def go_on(self, *given: Weights | Tensor, draws: bool = True) -> None:
        """Continue with the next weights or tensor, and the sequence's generator.

        Switching generators takes time, so do it only for `draws`. Raises StoreDamaged.
        """
        with self._drawing() if draws else nullcontext():
            try:
                reply = self.switch(*given)
                self.row = reply if isinstance(reply, _Row) else None
                self.needs = reply if isinstance(reply, int) and not self.dead else None
                self.result = reply if self.dead else None
            except StoreDamaged:
                raise
            except Exception as error:
                # Its frames hold keys and values, and would live as long as it does.
                error.__context__ = error.__cause__ = None
                self.needs = self.row = None
                self.failure = error.with_traceback(None)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """The states of random generators are those of this text."""
        others = {each: each.get_state() for each in self._draws}
        for each, state in self._draws.items():
            each.set_state(state)
        try:
            yield
        finally:
            self._draws = {each: each.get_state() for each in others}
            for each, state in others.items():
                each.set_state(state)


class ContinuousBatch:
    """Texts that share each pass over the weights of `model`, which is open.

    Up to `model.plan.batch` of them, which join and leave between passes. What `join`
    is given writes one, of one sequence, with `model.generate` or with `model.step`,
    and is stopped wherever it needs a layer. All of it belongs to one thread.

    >>> import torch
    >>> from thesis_lib.memory import open_streamed
    >>> from thesis_serve.model.together import ContinuousBatch
    >>> from thesis_lib.memory.model import smollm2
    >>> prompts = torch.tensor([[504, 3575, 282]]), torch.tensor([[504, 260]])
    >>> with open_streamed(smollm2.checkpoint(), "96MiB", batch=2, context=8) as model:
    ...     texts = ContinuousBatch(model)
    ...     lanes = [
    ...         texts.join(lambda p=p: model.generate(p, max_new_tokens=2))
    ...         for p in prompts
    ...     ]
    ...     while texts.lanes:
    ...         ended = texts.step()
    ...     [lane.result.shape[1] for lane in lanes]
    [5, 4]
    """

    def __init__(self, model: StreamedModel) -> None:
        self.model = model
        self.lanes: list[Lane] = []
        self._mixing: Mixing = {}
        self._generators = [torch.default_generator]
        if model.device.type == "cuda":
            index = model.device.index or 0
            self._generators.append(torch.cuda.default_generators[index])

    @torch.no_grad()
    def join(self, write: Callable[[], Any]) -> Lane:
        """Start the sequence `write`, which takes part in the next pass.

        Raises InvalidInput if the plan allows no more sequences, and StoreDamaged as
        `step`.
        """
        require(
            len(self.lanes) < self.model.plan.batch,
            f"{len(self.lanes)} texts are written already, as many as the plan has "
            "sequences: let one end, or plan for a larger batch",
        )
        lane = Lane(write, self._generators)
        try:
            with self.model.using(_ask, linear):
                lane.go_on()
        except StoreDamaged:
            self.close()
            raise
        if not lane.dead:
            self.lanes.append(lane)
        return lane

    @torch.no_grad()
    def leave(self, lane: Lane) -> None:
        """End a text where it is."""
        if lane in self.lanes:
            self.lanes.remove(lane)
            lane.throw()

    @torch.no_grad()
    def step(self) -> list[Lane]:
        """Run one pass for all sequences; return those that ended with it.

        An exception in one sequence is its `failure` and affects no other. Raises
        StoreDamaged, and ends all, if a layer cannot be read.
        """
        lanes, first = list(self.lanes), True
        try:
            while lanes and (first or lanes[0].needs != 0):
                layer, first = lanes[0].needs, False
                assert isinstance(layer, int)
                with self.model.layer(layer) as weights:
                    self._go_on(lanes, layer, weights)
                lanes = [lane for lane in lanes if not lane.dead]
        except BaseException:
            self.close()
            raise
        ended = [lane for lane in self.lanes if lane.dead]
        self.lanes = lanes
        return ended

    def _go_on(self, lanes: list[Lane], layer: int, weights: Weights) -> None:
        """Let all compute with a layer, and multiply rows at once on the way."""
        joint = len(lanes) > 1 and self.model.plan.pass_tokens >= _LEAST_TOKENS
        draws = layer >= self.model.spec.layers - 1  # tokens, behind the last layer
        with self.model.using(_ask, _multiply if joint else linear):
            for lane in lanes:
                lane.go_on(weights, draws=draws)
            while pending := [
                (lane, lane.row) for lane in lanes if lane.row is not None
            ]:
                by_weight: dict[int, list[tuple[Lane, _Row]]] = defaultdict(list)
                for lane, row in pending:
                    by_weight[row.weight.data_ptr()].append((lane, row))
                for group in by_weight.values():
                    products = self._products([row for _, row in group])
                    for (lane, _), product in zip(group, products, strict=True):
                        lane.go_on(product, draws=draws)

    def _products(self, rows: Sequence[_Row]) -> list[Tensor]:
        """The product of each row, with the bits that it has alone."""
        weight, bias = rows[0].weight, rows[0].bias
        if len(rows) > 1:
            x = torch.cat([row.x for row in rows], dim=-2)
            call = x.dtype, x.shape, weight.shape, bias is not None
            if call not in self._mixing:
                self._mixing[call] = mixes_rows(x, weight, bias)
            if not self._mixing[call]:
                # A row of its own lies where a tensor begins: kernels look at that.
                return [p.clone() for p in linear(x, weight, bias).split(1, dim=-2)]
        return [linear(row.x, weight, bias) for row in rows]

    def close(self) -> None:
        """End all texts where they are."""
        for lane in list(self.lanes):
            self.leave(lane)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product with a matrix, where there is one row together with those of others."""
    if x.numel() != x.shape[-1]:
        return linear(x, weight, bias)
    lane: Any = getcurrent()
    return lane.parent.switch(_Row(x, weight, bias))


def _ask(layer: int) -> AbstractContextManager[Weights]:
    """Stop the text that needs `layer` until it is there."""
    lane: Any = getcurrent()
    return nullcontext(lane.parent.switch(layer))
