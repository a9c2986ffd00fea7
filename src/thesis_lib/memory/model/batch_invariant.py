"""Batch invariance: passes of several tokens with the bits of single-token passes.

Kernels sum a product with five rows in another order than five products with one, and
attention works in other blocks. Rows are therefore kept apart where a kernel would mix
them: attention and element-wise functions take one row at a time, linear layers only if
the kernel of their shape mixes rows on this machine. Weights are still read once.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface

# Cheap beside a linear layer, and never the same for a row and for a part of a pass.
_APART = frozenset(
    {
        functional.silu,
        functional.gelu,
        functional.layer_norm,
        torch.tanh,
        torch.cos,
        torch.sin,
    }
)

# A sum in another order gives other 16 bits in one output of three to forty thousand;
# where its terms nearly cancel, in every third or so.
_OUTPUTS = 2**15
_CANCELLED = 32
Mixing = dict[tuple[Any, ...], bool]  # by what a kernel is chosen by: does it mix rows?


class BatchInvariant:
    """Keeps the rows of a pass apart, for one sequence of a transformers model.

    With `dry_running` it holds the most that it can hold: trials run to their end,
    since tensors without memory have no bits to compare, and every kernel then mixes
    rows.
    """

    def __init__(self, model: Any, dry_running: bool = False) -> None:
        self._config = model.config
        self._tries = _mixes_at_worst if dry_running else mixes_rows
        self.mixing: Mixing = {}

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Around a pass. The first of a number of rows also tries its linear layers."""
        base = self._config._attn_implementation
        self._config._attn_implementation = _attention_by_rows(base)
        try:
            with _Apart(self.mixing, self._tries):
                yield
        finally:
            self._config._attn_implementation = base


class _Apart(TorchFunctionMode):
    """Gives the rows of calls that would mix them to calls of their own."""

    def __init__(self, mixing: Mixing, tries: Callable[..., bool]) -> None:
        super().__init__()
        self._mixing, self._tries = mixing, tries

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if func is functional.linear:
            call = (args[0].dtype, *(a.shape for a in args if a is not None))
            if call not in self._mixing:
                self._mixing[call] = self._tries(*args, **options)
            apart = self._mixing[call]
        else:
            apart = func in _APART and args[0].ndim > 1
        return _one_by_one(func, args, options) if apart else func(*args, **options)


def _one_by_one(func: Any, args: tuple, options: dict[str, Any]) -> Tensor:
    x, *others = args
    # A row of its own lies where a tensor begins: kernels look at the alignment.
    rows = (func(row.clone(), *others, **options) for row in x.split(1, dim=-2))
    return _gather(rows, x.shape[-2], dim=-2)


def _gather(rows: Iterable[Tensor], n: int, dim: int) -> Tensor:
    """`n` tensors side by side in `dim`, of which one at a time is held."""
    together: Any = None
    for i, row in enumerate(rows):
        if together is None:
            shape = list(row.shape)
            shape[dim] = n
            together = row.new_empty(shape)
        together.narrow(dim, i, 1).copy_(row)
    return together


def mixes_rows(x: Tensor, *weights: Any, **options: Any) -> bool:
    """Return whether some bit of a linear layer depends on how many rows it is given.

    Tried on `_CANCELLED` random rows that nearly cancel in one output each, whose bits
    are then those of the roundings, and of the order of the sum; and on so many more
    that all have `_OUTPUTS` together.
    """
    draw = torch.Generator(x.device).manual_seed(0)
    rows, outputs = x.shape[-2], len(weights[0])
    few, many = -(-_CANCELLED // rows), -(-_OUTPUTS // (rows * outputs))
    return any(
        _differs(draw, torch.equal, rows * (i < few), x, *weights, **options)
        for i in range(max(few, many))
    )


def _mixes_at_worst(x: Tensor, *weights: Any, **options: Any) -> bool:
    """True, and on the way all that `mixes_rows` may hold: it holds one draw."""
    draw = torch.Generator(x.device)
    _differs(draw, lambda row, found: True, 1, x, *weights, **options)
    return True


def _differs(
    draw: torch.Generator,
    equal: Callable[..., bool],
    cancelled: int,
    x: Tensor,
    *weights: Any,
    **options: Any,
) -> bool:
    """Return whether a row of a draw is not `equal` to the same row computed alone."""
    drawn = torch.randn(x.shape, generator=draw, dtype=x.dtype, device=x.device)
    for row in drawn.view(-1, x.shape[-1])[:cancelled]:
        _cancel(row, draw, *weights, **options)
    together = functional.linear(drawn, *weights, **options)
    pairs = zip(drawn.split(1, dim=-2), together.split(1, dim=-2), strict=True)
    return not all(
        equal(functional.linear(alone.clone(), *weights, **options), batched)
        for alone, batched in pairs
    )


def _cancel(
    x: Tensor, draw: torch.Generator, weight: Tensor, bias: Tensor | None = None
) -> None:
    """Set three numbers of `x` (k,) so that a drawn output nearly vanishes."""
    chosen = torch.randint(len(weight), (1,), generator=draw, device=x.device)
    factors = weight.index_select(0, chosen)[0].float()
    largest = factors.abs().topk(min(3, len(factors))).indices
    x.index_fill_(0, largest, 0.0)
    for i in largest.split(1):
        left = x.float() @ factors
        if bias is not None:
            left = left + bias.index_select(0, chosen).float()
        x.index_copy_(0, i, (-left / factors[i]).to(x.dtype).nan_to_num(0.0, 0.0, 0.0))


def _attention_by_rows(base: str) -> str:
    """The name under which transformers finds attention of `base`, row by row."""
    name = f"{base}_by_rows"
    if name in AttentionInterface._global_mapping:
        return name

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, **options: Any
    ) -> tuple[Tensor, None]:
        # No mask is made for an implementation that transformers does not know: a
        # single token of a single sequence sees all that its window has room for.
        eager = sys.modules[type(module).__module__].eager_attention_forward
        single = AttentionInterface().get_interface(base, eager)
        window = options.get("sliding_window") or sys.maxsize
        n = query.shape[2]

        def row(i: int) -> Tensor:
            end = key.shape[2] - n + i + 1
            full = end >= window
            seen = slice(end - window if full else 0, end)
            mask = _hides_nothing(base, query, window) if full else None
            one = query[:, :, i : i + 1]
            return single(
                module, one, key[:, :, seen], value[:, :, seen], mask, **options
            )[0]

        return _gather(map(row, range(n)), n, dim=1), None

    AttentionInterface.register(name, attend)
    return name


def _hides_nothing(base: str, query: Tensor, window: int) -> Tensor:
    """The mask that transformers makes for a token whose window is full."""
    if base == "eager":
        return query.new_zeros((1, 1, 1, window))
    return query.new_ones((1, 1, 1, window), dtype=torch.bool)
