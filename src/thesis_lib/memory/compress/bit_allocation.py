"""A whole model in few bits: what each matrix gets, and the matrices one by one.

Bytes are shared out where they take most off the loss. The decoder layers are then
quantised in order, each for the inputs that the layers before it, already quantised,
hand it.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.memory.compress.gptq import (
    DAMPING,
    ROUNDS,
    Metric,
    Whitening,
    correct,
    gptq,
    whitening,
)
from thesis_lib.memory.compress.svd import gram_matrices
from thesis_lib.memory.formats.low_bit import Corrected, Grid, Recipe
from thesis_lib.memory.model.linears import linears
from thesis_lib.memory.offload.architectures import stack

F64 = NDArray[np.float64]


def require_calibratable(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Refuse weights that are not finite, and text that is too short for the model.

    A Gram matrix needs as many tokens as the widest matrix has inputs.
    """
    for name, layer in matrices(model).items():
        require(
            bool(torch.isfinite(layer.weight).all()),
            f"{name} holds weights that are not finite: they cannot be quantised",
        )
    widest = max(layer.in_features for layer in matrices(model).values())
    given = sum(batch.numel() for batch in batches)
    require(
        given >= widest,
        f"calibration text of {given:,} tokens is too short for the Gram matrix of "
        f"{widest:,} inputs: give at least {widest:,} tokens, better ten times as many",
    )


def matrices(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the decoder stack, by names such as `0.mlp.up_proj`."""
    return linears(stack(model)[1])


def empirical_fisher(
    model: nn.Module, batches: Iterable[Tensor], names: Iterable[str] | None = None
) -> dict[str, F64]:
    """S = Σ g gᵀ over the gradients g at all outputs of each matrix, (m, m).

    By the name of the matrix in the stack, such as `0.mlp.up_proj`; `names` chooses.
    Gradients of the negative log-likelihood of the next token, summed over `batches`
    of token ids (b, t). Weights and their gradients are left as they are.
    """
    chosen = linears(stack(model)[1], names)
    totals: dict[str, Tensor] = {}

    def observe(name: str):
        def hook(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            rows = outputs[0].reshape(-1, outputs[0].shape[-1]).float()
            found = (rows.T @ rows).double()
            totals[name] = totals[name] + found if name in totals else found

        return hook

    wanted = {name: part.requires_grad for name, part in model.named_parameters()}
    hooks = [
        layer.register_full_backward_hook(observe(name))
        for name, layer in chosen.items()
    ]
    find_embedding: Any = model.get_input_embeddings
    hooks.append(find_embedding().register_forward_hook(_start_graph))
    try:
        model.requires_grad_(False)
        for batch in batches:
            logits = model(batch, use_cache=False).logits[:, :-1].float()
            nn.functional.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
            ).backward()
    finally:
        for hook in hooks:
            hook.remove()
        for name, part in model.named_parameters():
            part.requires_grad_(wanted[name])
    return {name: total.numpy() for name, total in totals.items()}


def _start_graph(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.detach().requires_grad_()


@dataclass(frozen=True, slots=True)
class Offer:
    """A way to store a matrix, or some that are stored alike: bytes and loss."""

    recipe: Recipe
    nbytes: int
    loss: float


def offers(
    weight: F64,
    gram: F64,
    sensitivity: F64,
    recipes: Iterable[Recipe],
    damping: float = DAMPING,
) -> list[Offer]:
    """What each recipe would cost a matrix (m, n).

    The loss of a rank is that of the first round with factors in full precision: the
    squares of the dropped singular values of what GPTQ leaves, whitened.
    """
    outputs = whitening(sensitivity, len(sensitivity), damping)
    spectra: dict[Grid, F64] = {}
    found = []
    for recipe in recipes:
        grid = recipe.grid
        if grid not in spectra:
            metric = Metric(whitening(gram, grid.group, damping), outputs)
            error = weight - gptq(weight, metric.inputs, grid).restore()
            spectra[grid] = _squared_singular_values(metric.whiten(error))
        loss = float(spectra[grid][recipe.rank :].sum())
        found.append(Offer(recipe, recipe.nbytes(*weight.shape), loss))
    return found


def _squared_singular_values(matrix: F64) -> F64:
    """Descending; from the smaller one of its two products with itself."""
    wide = matrix if len(matrix) <= len(matrix.T) else matrix.T
    return np.maximum(np.linalg.eigvalsh(wide @ wide.T)[::-1], 0)


def judge(
    model: nn.Module,
    batches: Sequence[Tensor],
    names: Sequence[str],
    recipes: Sequence[Recipe],
) -> dict[str, list[Offer]]:
    """`offers` for matrices of a model, by names such as `0.mlp.up_proj`.

    Inputs and gradients are those of the model as it is, on `batches` of token ids
    (b, t). Raises InvalidInput as `require_calibratable` does.
    """
    require_calibratable(model, batches)
    chosen = linears(stack(model)[1], names)
    outer = empirical_fisher(model, batches, names)
    prefix, _ = stack(model)
    grams = gram_matrices(model, batches, [f"{prefix}.{name}" for name in names])
    return {
        name: offers(
            layer.weight.detach().double().numpy(),
            grams[f"{prefix}.{name}"],
            outer[name],
            recipes,
        )
        for name, layer in chosen.items()
    }


def shares(some: Sequence[Offer], reference: Recipe) -> pd.DataFrame:
    """Bytes and loss of each offer, over those of the reference.

    Indexed by bits and rank; columns `bytes` and `loss`. Raises InvalidInput without
    an offer of the reference.
    """
    base = next((one for one in some if one.recipe == reference), None)
    if base is None:
        raise InvalidInput(f"{reference} is not among the {len(some)} offers")
    index = pd.MultiIndex.from_tuples(
        [(one.recipe.grid.bits, one.recipe.rank) for one in some],
        names=["bits", "rank"],
    )
    rows = [(one.nbytes / base.nbytes, one.loss / base.loss) for one in some]
    return pd.DataFrame(rows, index=index, columns=["bytes", "loss"])


def alike(some: Iterable[Sequence[Offer]]) -> list[Offer]:
    """Offers for matrices that are stored alike, from those for each, in one order."""
    return [
        Offer(
            together[0].recipe,
            sum(one.nbytes for one in together),
            sum(one.loss for one in together),
        )
        for together in zip(*some, strict=True)
    ]


def allocate(
    choices: Mapping[str, Sequence[Offer]], budget_bytes: int
) -> dict[str, Recipe]:
    """One recipe for each matrix, within the bytes, where the next byte does most.

    Starts from the cheapest offers and takes, again and again, the step with the
    largest fall in loss for each byte along the lower convex hull of a matrix's
    offers, as long as it fits. Raises InvalidInput where the cheapest do not fit.
    """
    hulls = {name: _hull(some) for name, some in choices.items()}
    taken = dict.fromkeys(hulls, 0)
    spent = sum(hull[0].nbytes for hull in hulls.values())
    require(
        spent <= budget_bytes,
        f"the cheapest recipes take {spent:,} bytes, more than {budget_bytes:,}: allow "
        "more, or offer fewer bits or larger groups",
    )
    steps = sorted(
        (
            ((old.loss - new.loss) / (new.nbytes - old.nbytes), name, place)
            for name, hull in hulls.items()
            for place, (old, new) in enumerate(pairwise(hull))
        ),
        key=lambda step: -step[0],
    )
    for _, name, place in steps:
        hull = hulls[name]
        extra = hull[place + 1].nbytes - hull[place].nbytes
        if taken[name] == place and spent + extra <= budget_bytes:
            taken[name] = place + 1
            spent += extra
    return {name: hulls[name][place].recipe for name, place in taken.items()}


def _hull(some: Sequence[Offer]) -> list[Offer]:
    """The offers on the lower convex hull of loss over bytes, cheapest first."""
    hull: list[Offer] = []
    for offer in sorted(some, key=lambda one: (one.nbytes, one.loss)):
        if hull and offer.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], offer):
            hull.pop()
        hull.append(offer)
    return hull


def _slope(one: Offer, other: Offer) -> float:
    return (other.loss - one.loss) / (other.nbytes - one.nbytes)


@torch.no_grad()
def quantise_model(
    model: nn.Module,
    batches: Sequence[Tensor],
    recipes: Mapping[str, Recipe],
    outer: Mapping[str, F64] | None = None,
    damping: float = DAMPING,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[nn.Module, dict[str, Corrected]]:
    """A copy of the model with its matrices as the recipes say, and what is stored.

    `batches` of token ids (b, t), all of one shape, run through the copy, whose layers
    are quantised one after the other: the Gram matrices of each are those of inputs
    that already passed the ones before. `outer` holds the `sensitivities` of the
    matrices that are corrected in both metrics. The copy computes with the restored
    weights, in the dtype of the model. `progress` hears of layers done and of all.

    Raises InvalidInput as `require_calibratable` and `correct` do.
    """
    require_calibratable(model, batches)
    twin = copy.deepcopy(model).eval()
    _, layers = stack(twin)
    hidden, options = _entering(twin, layers, batches)
    stored: dict[str, Corrected] = {}
    for number, layer in enumerate(layers):
        block = _Called(layer, options[number])
        grams = gram_matrices(block, hidden)
        metrics = _Metrics(damping)
        for name, linear in linears(layer).items():
            full = f"{number}.{name}"
            weight = linear.weight.double().numpy()
            metric = metrics.of(
                grams[f"layer.{name}"],
                recipes[full].grid.group,
                None if outer is None else outer[full],
            )
            stored[full] = correct(weight, metric, recipes[full], rounds)
            linear.weight.copy_(torch.from_numpy(stored[full].restore()))
        hidden = [block(each) for each in hidden]
        if progress is not None:
            progress(number + 1, len(layers))
    return twin, stored


class _Metrics:
    """Metrics of the matrices of a layer; those of one input share its whitening."""

    def __init__(self, damping: float) -> None:
        self._damping = damping
        self._made: list[tuple[F64, Whitening]] = []

    def of(self, gram: F64, group: int, outer: F64 | None) -> Metric:
        for known, inputs in self._made:
            if inputs.group == group and np.array_equal(known, gram):
                break
        else:
            inputs = whitening(gram, group, self._damping)
            self._made.append((gram, inputs))
        if outer is None:
            return Metric(inputs)
        return Metric(inputs, whitening(outer, len(outer), self._damping))


class _Called(nn.Module):
    """A decoder layer with all but its hidden states given."""

    def __init__(self, layer: nn.Module, options: tuple[tuple, dict[str, Any]]) -> None:
        super().__init__()
        self.layer = layer
        self._given = options

    def forward(self, hidden: Tensor) -> Tensor:
        args, options = self._given
        out = self.layer(hidden, *args, **options)
        return out[0] if isinstance(out, tuple) else out


class _Entered(Exception):
    """The first layer has been reached."""


def _entering(
    model: nn.Module, layers: nn.ModuleList, batches: Sequence[Tensor]
) -> tuple[list[Tensor], list[tuple[tuple, dict[str, Any]]]]:
    """Hidden states that enter the first layer; what else each layer is called with."""
    shapes = {tuple(batch.shape) for batch in batches}
    require(
        len(shapes) == 1,
        f"batches have shapes {sorted(shapes)}: expected all of one shape",
    )
    hidden: list[Tensor] = []
    options: list[tuple[tuple, dict[str, Any]]] = []

    def note(_module: nn.Module, args: tuple, given: dict[str, Any]) -> None:
        options.append((args[1:], given))

    def enter(_module: nn.Module, args: tuple) -> None:
        hidden.append(args[0])
        raise _Entered

    hooks = [
        layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers
    ]
    try:
        model(batches[0], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    hook = layers[0].register_forward_pre_hook(enter)
    try:
        for batch in batches:
            try:
                model(batch, use_cache=False)
            except _Entered:
                continue
    finally:
        hook.remove()
    return hidden, options
