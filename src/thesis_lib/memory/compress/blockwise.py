"""Factors that know of each other: calibrated layer after layer, then trained.

A layer behind compressed ones no longer sees the inputs that it was calibrated on.
`factorise_blocks` calibrates each on the inputs that it will see, against the outputs
that the uncompressed model gives, and `Refinement` then trains the factors of a block
against the block's own uncompressed output.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.memory.compress.svd import F64, decompose, naming, replace_by_factors
from thesis_lib.memory.formats.lowrank import LowRankLinear
from thesis_lib.memory.model.linears import linears
from thesis_lib.memory.offload.architectures import stack

SHRINKAGE = 0.01  # of the mean second moment, towards the matrix as it was


@dataclass(frozen=True, slots=True)
class Refinement:
    """How the factors and norms of a block are trained: Adam, one window a step."""

    steps: int = 32
    rate: float = 5e-5  # decays to zero along half a cosine
    seed: int = 0
    held_out: float = 0.25  # share of the windows that judge whether it has helped


def best_matrix(weight: F64, cross: F64, gram: F64) -> F64:
    """The matrix (m, n) that does for inputs x̂ what `weight` does for inputs x.

    With cross C = Σ x x̂ᵀ and gram G = Σ x̂ x̂ᵀ, W C G⁻¹ minimises ‖W X − W′ X̂‖, and
    what that error has beyond its minimum is ‖(W′ − W C G⁻¹) S‖ with G = S Sᵀ: the
    best matrix of a rank is the whitened truncation of this one. Raises InvalidInput
    for a singular gram.
    """
    try:
        return cho_solve(cho_factor(gram), cross.T @ weight.T).T
    except LinAlgError as error:
        raise InvalidInput(
            f"gram ({len(gram)}, {len(gram)}) is singular: expected more tokens of "
            "calibration than inputs, none of them always zero"
        ) from error


class Blocks:
    """A decoder taken apart: its layers, what enters the stack, and how it is called.

    `windows` (w, t) are token ids, all of one length; `hidden` holds one tensor
    (1, t, hidden) for each. Masks and positions are those of the model's own forward.
    """

    def __init__(self, model: nn.Module, windows: Tensor) -> None:
        require(
            windows.ndim == 2 and windows.numel() > 0,
            f"windows have shape {tuple(windows.shape)}: expected (windows, tokens)",
        )
        self.prefix, self.layers = stack(model)
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.hidden: list[Tensor] = []
        first = self.layers[0]
        with _before(dict.fromkeys(self.layers, self._note)):
            model(windows[:1], use_cache=False)
        with _before({first: self._take}):
            for window in windows:
                try:
                    model(window[None], use_cache=False)
                except _Reached:
                    continue

    def _note(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._calls.append((inputs[1:], options))

    def _take(self, inputs: tuple[Any, ...], _: dict[str, Any]) -> None:
        self.hidden.append(inputs[0])
        raise _Reached

    def run(self, number: int, layer: nn.Module, hidden: Tensor) -> Tensor:
        """What `layer` makes of `hidden` in the place of layer `number`."""
        inputs, options = self._calls[number]
        output = layer(hidden, *inputs, **options)
        return output[0] if isinstance(output, tuple) else output

    def inputs(
        self, number: int, layer: nn.Module, hidden: Tensor, name: str
    ) -> Tensor:
        """The rows (tokens, n) that reach the part `name` of such a layer, float64."""
        found: list[Tensor] = []

        def take(inputs: tuple[Any, ...], _: dict[str, Any]) -> None:
            found.append(inputs[0])
            raise _Reached

        try:
            with _before({layer.get_submodule(name): take}):
                self.run(number, layer, hidden)
        except _Reached:
            pass
        return found[0].reshape(-1, found[0].shape[-1]).double()

    def groups(self, number: int, names: Sequence[str]) -> list[list[str]]:
        """The names of matrices by the input that they share, in the order of use."""
        found: list[tuple[Tensor, list[str]]] = []

        def note(name: str) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
            def hook(inputs: tuple[Any, ...], _: dict[str, Any]) -> None:
                if not found or found[-1][0] is not inputs[0]:
                    found.append((inputs[0], []))
                found[-1][1].append(name)

            return hook

        layer = self.layers[number]
        with _before({layer.get_submodule(name): note(name) for name in names}):
            self.run(number, layer, self.hidden[0])
        return [group for _, group in found]


class _Reached(Exception):
    """Ends a pass of which only the beginning was wanted."""


@contextmanager
def _before(
    hooks: Mapping[nn.Module, Callable[[tuple[Any, ...], dict[str, Any]], None]],
) -> Iterator[None]:
    """Call each hook with the inputs and options of its module, while this lasts."""
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, options, hook=hook: hook(inputs, options),
            with_kwargs=True,
        )
        for module, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def factorise_blocks(
    model: nn.Module,
    windows: Tensor,
    ranks: Mapping[str, int | None],
    sensitivities: Mapping[str, F64] | None = None,
    refinement: Refinement | None = None,
    shrinkage: float = SHRINKAGE,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """A copy of the model with factors, each layer calibrated behind compressed ones.

    Layers go in order and, within one, the matrices in the order of their use. The
    inputs of a matrix come from the copy as it is by then, its targets from the model
    on its own activations: `best_matrix`, shrunk towards the matrix as it was by a
    diagonal of `shrinkage`, truncated in the norm of `sensitivities` where they are
    given. `windows` (w, t) are token ids of calibration text. With a `refinement`
    the factors of each layer are trained before the next layer is begun.

    Raises InvalidInput for windows with too few tokens for a matrix, by its name, and
    as `decompose` does.
    """
    twin = copy.deepcopy(model)
    require_tokens(model, windows.numel(), ranks)
    blocks = Blocks(model, windows)
    exact, seen = list(blocks.hidden), list(blocks.hidden)
    for number, layer in enumerate(stack(twin)[1]):
        dense, place = blocks.layers[number], f"{blocks.prefix}.{number}"
        wanted = {
            name: rank
            for name in linears(dense)
            if (rank := ranks.get(f"{place}.{name}")) is not None
        }
        for group in blocks.groups(number, list(wanted)):
            cross, gram = _moments(blocks, number, (dense, layer), (exact, seen), group)
            ridge = shrinkage * np.trace(gram) / len(gram) * np.eye(len(gram))
            for name in group:
                whole = f"{place}.{name}"
                weight = linears(dense)[name].weight.double().cpu().numpy()
                with naming(whole):
                    best = best_matrix(weight, cross + ridge, gram + ridge)
                    parts = decompose(
                        best,
                        gram + ridge,
                        None if sensitivities is None else sensitivities[whole],
                    )
                replace_by_factors(layer, name, *parts.factors(wanted[name]))
        exact = [blocks.run(number, dense, hidden) for hidden in exact]
        if refinement is not None:
            _refine(blocks, number, layer, seen, exact, refinement)
        seen = [blocks.run(number, layer, hidden) for hidden in seen]
        if progress is not None:
            progress(number + 1, len(blocks.layers))
    return twin


def require_tokens(
    model: nn.Module, tokens: int, names: Mapping[str, object] | None = None
) -> None:
    """Refuse calibration text that cannot fill the Gram matrix of a layer.

    A matrix of n inputs needs n tokens at the very least; it says how many.
    """
    for name, layer in linears(model, names).items():
        require(
            tokens >= layer.in_features,
            f"{tokens:,} tokens of calibration text leave the Gram matrix of {name} "
            f"singular: expected {layer.in_features:,} at least, one for each input",
        )


def _moments(
    blocks: Blocks,
    number: int,
    layers: tuple[nn.Module, nn.Module],
    streams: tuple[list[Tensor], list[Tensor]],
    group: list[str],
) -> tuple[F64, F64]:
    """Σ x x̂ᵀ and Σ x̂ x̂ᵀ of what reaches a group, in the model and in its copy."""
    cross = gram = torch.zeros(())
    for exact, seen in zip(*streams, strict=True):
        x = blocks.inputs(number, layers[0], exact, group[0])
        x_seen = blocks.inputs(number, layers[1], seen, group[0])
        cross = cross + x.T @ x_seen
        gram = gram + x_seen.T @ x_seen
    return cross.cpu().numpy(), gram.cpu().numpy()


def trainable(layer: nn.Module) -> list[nn.Parameter]:
    """The factors and the norms of a layer; matrices that stayed dense are not."""
    found = []
    for part in layer.modules():
        if isinstance(part, LowRankLinear):
            found += [part.left, part.right]
        elif "Norm" in type(part).__name__:
            found += list(part.parameters(recurse=False))
    return found


@torch.enable_grad()
def _refine(
    blocks: Blocks,
    number: int,
    layer: nn.Module,
    seen: list[Tensor],
    exact: list[Tensor],
    how: Refinement,
) -> None:
    """Train a block towards its uncompressed output; undo it if that did not help."""
    parameters = trainable(layer)
    if not parameters:
        return
    judged = max(int(how.held_out * len(seen)), 1)
    read = len(seen) - judged
    require(
        read > 0, "refinement needs two windows at least: one to train, one to judge"
    )

    def error(at: int) -> Tensor:
        output = blocks.run(number, layer, seen[at])
        return nn.functional.mse_loss(output.float(), exact[at].float())

    @torch.no_grad()
    def held_out() -> float:
        return sum(float(error(at)) for at in range(read, len(seen)))

    before, kept = held_out(), [p.detach().clone() for p in parameters]
    scale = judged / before if before > 0 else 1.0
    # Steps are smaller than the steps of bfloat16: they add up in float32.
    masters = [p.detach().float().clone() for p in parameters]
    optimiser = torch.optim.Adam(masters, lr=how.rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps)
    draw = torch.Generator().manual_seed(how.seed)
    with _training(parameters):
        for _ in range(how.steps):
            at = int(torch.randint(read, (1,), generator=draw))
            gradients = torch.autograd.grad(scale * error(at), parameters)
            for master, gradient in zip(masters, gradients, strict=True):
                master.grad = gradient.float()
            optimiser.step()
            schedule.step()
            _assign(parameters, masters)
    if not held_out() < before:
        _assign(parameters, kept)


@contextmanager
def _training(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let these alone have gradients, while this lasts."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


@torch.no_grad()
def _assign(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
