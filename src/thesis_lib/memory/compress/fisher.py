"""How much the loss minds an error at each output of a linear layer."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.memory.model.linears import linears

F64 = NDArray[np.float64]


def sensitivities(
    model: nn.Module,
    windows: Sequence[Tensor] | Tensor,
    seed: int = 0,
    names: Iterable[str] | None = None,
) -> dict[str, F64]:
    """The second moment of the loss's gradient at the outputs of each linear layer.

    A = E[g gᵀ] (m, m) over tokens, with g the gradient of the summed negative
    log-likelihood of a window at the layer's output for one token. `windows` are token
    ids, (w, t) or (t,) each; the labels are drawn from the model's own predictions, as
    the Fisher information asks, so that no text is learned. `model` is a causal
    language model; it is observed, never changed. With the inputs' Gram matrix beside
    it this is the curvature of the loss in the layer's weights, Martens and Grosse,
    ICML 2015.

    Raises InvalidInput for windows of another shape, and for a layer that no gradient
    reaches.
    """
    shapes = sorted({tuple(window.shape) for window in windows})
    require(
        bool(shapes) and all(len(shape) == 1 and shape[0] > 1 for shape in shapes),
        f"windows have shapes {shapes}: expected (windows, tokens), two tokens or more",
    )
    chosen = linears(model, names)
    draw = torch.Generator().manual_seed(seed)
    totals = {
        name: torch.zeros(layer.out_features, layer.out_features, dtype=torch.float64)
        for name, layer in chosen.items()
    }
    for window in windows:
        for name, gradient in _gradients(model, chosen, window, draw).items():
            rows = gradient.reshape(-1, gradient.shape[-1]).float().cpu()
            totals[name] += rows.T @ rows
    tokens = sum(len(window) for window in windows)
    blind = [name for name, total in totals.items() if not bool(total.any())]
    if blind:
        raise InvalidInput(
            f"no gradient reached {len(blind)} of {len(chosen)} layers, such as "
            f"{blind[0]}: choose layers that the logits depend on"
        )
    return {name: total.numpy() / tokens for name, total in totals.items()}


@torch.enable_grad()
def _gradients(
    model: nn.Module,
    chosen: dict[str, nn.Linear],
    window: Tensor,
    draw: torch.Generator,
) -> dict[str, Tensor]:
    """The gradient at the output of each layer, (1, t, m), for sampled labels."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs[name] = output

        return hook

    embed: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    hooks = [
        # Cut here: nothing before the layers is to be differentiated.
        embed.register_forward_hook(lambda _m, _i, out: out.detach().requires_grad_()),
        *(layer.register_forward_hook(keep(name)) for name, layer in chosen.items()),
    ]
    try:
        logits = model(window[None], use_cache=False).logits[0].float()
    finally:
        for hook in hooks:
            hook.remove()
    chances = logits.detach().softmax(-1).cpu()
    labels = torch.multinomial(chances, 1, generator=draw)[:, 0].to(logits.device)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    found = torch.autograd.grad(loss, list(outputs.values()), allow_unused=True)
    return {
        name: gradient
        for name, gradient in zip(outputs, found, strict=True)
        if gradient is not None
    }
