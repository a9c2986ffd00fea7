"""Compress a model layer by layer, each on the outputs of the compressed layers.

A layer behind compressed layers no longer sees its original inputs. `walk_blocks` runs
the layers of a decoder in order; a caller that replaces the weights of a layer changes
the inputs of the next. `factorize_blocks` replaces weights by calibrated low-rank
factors and optionally trains them; `quantize_model` replaces them by GPTQ's few-bit
weights.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.stats import F64
from thesis_lib.memory.compress.gptq import (
    ROUNDS,
    Metric,
    Whitening,
    correct,
    whitening,
)
from thesis_lib.memory.compress.svd import (
    decompose,
    naming,
    replace_by_factors,
    sum_grams,
)
from thesis_lib.memory.formats.low_bit import CompensatedMatrix, LowBitConfig
from thesis_lib.memory.formats.lowrank import LowRankLinear
from thesis_lib.memory.model.linears import before, linears
from thesis_lib.memory.offload.architectures import stack

SHRINKAGE = 0.01  # of the mean second moment, towards the matrix as it was
HELD_OUT = 0.25  # share of the windows that judge whether a refinement has helped

Progress = Callable[[int, int], None]  # layers done, and of all
_Hook = Callable[[tuple[Any, ...], dict[str, Any]], None]  # inputs, and options


def require_calibratable(
    model: nn.Module, windows: Tensor, names: Mapping[str, object] | None = None
) -> None:
    """Reject weights that are not finite, and calibration text that is too short.

    The Gram matrix of a layer of n inputs needs n tokens at the very least. `windows`
    (w, t) are token ids; `names` chooses the layers, by default all but the head.
    """
    for name, weight in model.named_parameters():
        require(
            bool(torch.isfinite(weight).all()),
            f"{name} holds weights that are not finite: the checkpoint is damaged; "
            "copy it again",
        )
    tokens, layers = windows.numel(), linears(model, names)
    widths = {name: layer.in_features for name, layer in layers.items()}
    widest = max(widths, key=widths.__getitem__)
    require(
        tokens >= widths[widest],
        f"calibration text of {tokens:,} tokens is too short for {widest}: expected at "
        f"least {widths[widest]:,}, one for each input, better ten times as many",
    )


def matrices(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the decoder stack, by names such as `0.mlp.up_proj`."""
    return linears(stack(model)[1])


@dataclass(frozen=True, eq=False)
class Block:
    """A decoder layer taken out of its model, with the hidden states that reach it.

    Masks and positions are those of the model's own forward.
    """

    name: str  # in the model, such as `model.layers.3`
    layer: nn.Module
    hidden: list[Tensor]  # (1, t, hidden) of each window
    arguments: tuple[tuple[Any, ...], dict[str, Any]]  # beside the hidden states

    def run(self, hidden: Tensor) -> Tensor:
        """Return the layer's output for hidden states (1, t, hidden)."""
        inputs, options = self.arguments
        output = self.layer(hidden, *inputs, **options)
        return output[0] if isinstance(output, tuple) else output

    @cached_property
    def outputs(self) -> list[Tensor]:
        """Return the layer's output for `hidden`, before any change to the layer."""
        return [self.run(hidden) for hidden in self.hidden]

    def grams(self) -> dict[str, F64]:
        """The Gram matrix (n, n) of the inputs of each matrix, by its name in here."""
        return sum_grams(linears(self.layer), self.run, self.hidden)

    def inputs(self, number: int, name: str) -> Tensor:
        """The rows (t, n) of one window that reach the matrix `name`, in float64."""
        matrix = self.layer.get_submodule(name)
        captured = _reaching(matrix, lambda: self.run(self.hidden[number]))
        return captured.reshape(-1, captured.shape[-1]).double()

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """The names of matrices by the input that they share, in the order of use."""
        names_by_input: list[tuple[Tensor, list[str]]] = []

        def note(name: str) -> _Hook:
            def hook(inputs: tuple[Any, ...], _: dict[str, Any]) -> None:
                if not names_by_input or names_by_input[-1][0] is not inputs[0]:
                    names_by_input.append((inputs[0], []))
                names_by_input[-1][1].append(name)

            return hook

        with before({self.layer.get_submodule(name): note(name) for name in names}):
            self.run(self.hidden[0])
        return [group for _, group in names_by_input]


@torch.no_grad()
def walk_blocks(
    model: nn.Module, windows: Tensor, progress: Progress | None = None
) -> Iterator[Block]:
    """The decoder layers of a model in order, each with what reaches it.

    `windows` (w, t) are token ids, all of one length. When the next layer is asked for,
    this one is run as it is by then: weights that were replaced meanwhile are those
    that later layers are calibrated behind. `progress` hears of layers done and of all.

    Raises InvalidInput for windows of another shape.
    """
    require(
        windows.ndim == 2 and windows.numel() > 0,
        f"windows have shape {tuple(windows.shape)}: expected (windows, tokens)",
    )
    prefix, layers = stack(model)
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        arguments.append((inputs[1:], options))

    with before(dict.fromkeys(layers, note)):
        model(windows[:1], use_cache=False)
    hidden = [
        _reaching(layers[0], lambda one=window: model(one[None], use_cache=False))
        for window in windows
    ]
    for number, layer in enumerate(layers):
        block = Block(f"{prefix}.{number}", layer, hidden, arguments[number])
        yield block
        hidden = block.outputs
        if progress is not None:
            progress(number + 1, len(layers))


def _reaching(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """The first input that reaches a module in a run, which ends there."""
    captured: list[Tensor] = []

    def take(inputs: tuple[Any, ...], _: dict[str, Any]) -> None:
        captured.append(inputs[0])
        raise _Reached

    with before({module: take}), suppress(_Reached):
        run()
    return captured[0]


class _Reached(Exception):
    """Ends a pass of which only the beginning was wanted."""


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    windows: Tensor,
    recipes: Mapping[str, LowBitConfig],
    output_factors: Mapping[str, F64] | None = None,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> tuple[nn.Module, dict[str, CompensatedMatrix]]:
    """A copy of the model with its matrices as the recipes say, and what is stored.

    `windows` (w, t) of token ids run through the copy, whose layers are quantised one
    after the other. `recipes`, and what is stored, have the names of `matrices`;
    `output_factors` are those of the model where a correction is to be the best one
    for inputs and loss at once. The copy computes with the restored weights, in the
    dtype of the model. `progress` hears of layers done and of all.

    Raises InvalidInput as `require_calibratable`, `walk_blocks` and `correct` do.
    """
    require_calibratable(model, windows)
    twin = copy.deepcopy(model).eval()
    stored: dict[str, CompensatedMatrix] = {}
    for block in walk_blocks(twin, windows, progress):
        number = block.name.rpartition(".")[2]
        grams = block.grams()
        known: list[tuple[F64, Whitening]] = []
        for name, layer in linears(block.layer).items():
            recipe = recipes[f"{number}.{name}"]
            inputs = _whitened(grams[name], recipe.grid.group, known)
            outputs = None
            if output_factors is not None:
                factor = output_factors[f"{block.name}.{name}"]
                outputs = whitening(factor, len(factor))
            weight = layer.weight.double().numpy()
            corrected = correct(weight, Metric(inputs, outputs), recipe, rounds)
            layer.weight.copy_(torch.from_numpy(corrected.restore()))
            stored[f"{number}.{name}"] = corrected
    return twin, stored


def _whitened(gram: F64, group: int, known: list[tuple[F64, Whitening]]) -> Whitening:
    """The whitening of a Gram matrix, once for all matrices that share their inputs."""
    for other, factor in known:
        if factor.group == group and np.array_equal(other, gram):
            return factor
    known.append((gram, whitening(gram, group)))
    return known[-1][1]


@dataclass(frozen=True, slots=True)
class Refinement:
    """Settings for training factors and norms of a block: Adam, one window a step."""

    steps: int = 32
    rate: float = 5e-5  # decays to zero along half a cosine
    seed: int = 0


@torch.no_grad()
def factorize_blocks(
    model: nn.Module,
    windows: Tensor,
    ranks: Mapping[str, int | None],
    output_factors: Mapping[str, F64] | None = None,
    refinement: Refinement | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """A copy of the model with factors, each layer calibrated behind compressed ones.

    Layers go in order and, within one, the matrices in the order of their use. The
    inputs of a matrix come from the copy as it is by then, its targets from the model
    on its own activations: `best_matrix`, shrunk towards the matrix as it was by a
    diagonal of `SHRINKAGE`, truncated in the norm of `output_factors` where they are
    given. `windows` (w, t) are token ids of calibration text. With a `refinement`
    the factors of each layer are trained before the next layer is begun.

    Raises InvalidInput as `require_calibratable` and `decompose` do.
    """
    require_calibratable(model, windows, ranks or None)
    twin = copy.deepcopy(model)
    for block, dense in zip(
        walk_blocks(twin, windows, progress), walk_blocks(model, windows), strict=False
    ):
        wanted = {
            name: rank
            for name in linears(dense.layer)
            if (rank := ranks.get(f"{block.name}.{name}")) is not None
        }
        for group in dense.groups(list(wanted)):
            cross, gram = _moments(dense, block, group[0])
            ridge = SHRINKAGE * np.trace(gram) / len(gram) * np.eye(len(gram))
            for name in group:
                whole = f"{block.name}.{name}"
                weight = linears(dense.layer)[name].weight.double().cpu().numpy()
                with naming(whole):
                    parts = decompose(
                        best_matrix(weight, cross + ridge, gram + ridge),
                        gram + ridge,
                        None if output_factors is None else output_factors[whole],
                    )
                replace_by_factors(block.layer, name, *parts.factors(wanted[name]))
        if refinement is not None:
            _refine(block, dense.outputs, refinement)
    return twin


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


def _moments(dense: Block, block: Block, name: str) -> tuple[F64, F64]:
    """Σ x x̂ᵀ and Σ x̂ x̂ᵀ of what reaches a matrix, in the model and in its copy."""
    cross = gram = torch.zeros(())
    for number in range(len(block.hidden)):
        x, seen = dense.inputs(number, name), block.inputs(number, name)
        cross = cross + x.T @ seen
        gram = gram + seen.T @ seen
    return cross.cpu().numpy(), gram.cpu().numpy()


def _trainable(layer: nn.Module) -> list[nn.Parameter]:
    """The factors and the norms of a layer; matrices that stayed dense are not."""
    parameters = []
    for part in layer.modules():
        if isinstance(part, LowRankLinear):
            parameters += [part.left, part.right]
        elif "Norm" in type(part).__name__:
            parameters += list(part.parameters(recurse=False))
    return parameters


@torch.enable_grad()
def _refine(block: Block, targets: list[Tensor], how: Refinement) -> None:
    """Train a block towards its uncompressed output; undo it if that did not help."""
    parameters = _trainable(block.layer)
    if not parameters:
        return
    judged = max(int(HELD_OUT * len(targets)), 1)
    read = len(targets) - judged
    require(
        read > 0, "refinement needs two windows at least: one to train, one to judge"
    )

    def error(at: int) -> Tensor:
        output = block.run(block.hidden[at])
        return nn.functional.mse_loss(output.float(), targets[at].float())

    @torch.no_grad()
    def held_out() -> float:
        return sum(float(error(at)) for at in range(read, len(targets)))

    before, snapshot = held_out(), [p.detach().clone() for p in parameters]
    scale = judged / before if before > 0 else 1.0
    # Steps are smaller than the steps of bfloat16: they add up in float32.
    masters = [p.detach().float().clone() for p in parameters]
    optimizer = torch.optim.Adam(masters, lr=how.rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
    draw = torch.Generator().manual_seed(how.seed)
    _let_train(parameters, True)
    for _ in range(how.steps):
        at = int(torch.randint(read, (1,), generator=draw))
        gradients = torch.autograd.grad(scale * error(at), parameters)
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient.float()
        optimizer.step()
        schedule.step()
        _assign(parameters, masters)
    _let_train(parameters, False)
    if not held_out() < before:
        _assign(parameters, snapshot)


def _let_train(parameters: list[nn.Parameter], wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)


@torch.no_grad()
def _assign(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
