"""Sensitivity of the loss to an error at each output of a linear layer.

Of the Fisher information of a layer's weights, as K-FAC factors it, the factor of the
outputs: the second moments of the loss's gradient there. `svd.gram_matrices` is the
other factor, that of the inputs, and `both_factors` finds the two in one pass. Both are
sums over tokens; `per_token` makes means of them. Martens and Grosse, ICML 2015.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.stats import F64
from thesis_lib.memory.compress.svd import sum_grams
from thesis_lib.memory.model.linears import linears

Estimator = Literal["true", "empirical"]


def output_factors(
    model: nn.Module,
    windows: Sequence[Tensor] | Tensor,
    estimator: Estimator = "true",
    seed: int = 0,
    names: Iterable[str] | None = None,
) -> dict[str, F64]:
    """S = Σ g gᵀ (m, m) over the tokens that are scored, for each linear layer.

    g is the gradient of a window's negative log-likelihood, summed over its tokens, at
    the layer's output for one token. `windows` are token ids, (w, t) or (t,) each, of
    two tokens or more. The labels decide what is estimated:

    - "true", the Fisher information: each token's label is drawn, by `seed`, from what
      the model predicts there. It is the curvature of the divergence from the model as
      it is, so that no text is learned; t tokens of a window are scored.
    - "empirical", the empirical Fisher: the labels are the text's own next tokens, and
      t − 1 tokens are scored. Its expectation is the former's only where the model
      predicts as the text was drawn; Kunstner et al., NeurIPS 2019.

    `model` is a causal language model; it is observed, never changed. `names` chooses
    layers, by default all but the output head. Raises InvalidInput for another
    estimator, for windows of another shape, and for a layer that no gradient reaches.
    """
    _, totals, add = _begin(model, windows, estimator, seed, names)
    for window in windows:
        add(window)
    return _checked(totals)


def both_factors(
    model: nn.Module,
    windows: Sequence[Tensor] | Tensor,
    estimator: Estimator = "true",
    seed: int = 0,
    names: Iterable[str] | None = None,
) -> tuple[dict[str, F64], dict[str, F64]]:
    """Return `svd.gram_matrices` and `output_factors` of one pass."""
    chosen, totals, add = _begin(model, windows, estimator, seed, names)
    grams = sum_grams(chosen, add, windows)
    return grams, _checked(totals)


def _begin(
    model: nn.Module,
    windows: Sequence[Tensor] | Tensor,
    estimator: Estimator,
    seed: int,
    names: Iterable[str] | None,
) -> tuple[dict[str, nn.Linear], dict[str, Tensor], Callable[[Tensor], None]]:
    """The layers, their sums so far, and what adds those of one window (t,)."""
    choice("estimator", estimator, get_args(Estimator))
    shapes = sorted({tuple(window.shape) for window in windows})
    require(
        bool(shapes) and all(len(shape) == 1 and shape[0] > 1 for shape in shapes),
        f"windows have shapes {shapes}: expected (windows, tokens), two tokens or more",
    )
    chosen = linears(model, names)
    totals = {
        name: torch.zeros(layer.out_features, layer.out_features, dtype=torch.float64)
        for name, layer in chosen.items()
    }
    draw = torch.Generator().manual_seed(seed) if estimator == "true" else None
    return (
        chosen,
        totals,
        lambda window: _add_moments(model, chosen, window, draw, totals),
    )


def _checked(totals: Mapping[str, Tensor]) -> dict[str, F64]:
    """The sums as arrays. Raises InvalidInput for a layer that no gradient reached."""
    blind = [name for name, total in totals.items() if not bool(total.any())]
    if blind:
        raise InvalidInput(
            f"no gradient reached {len(blind)} of {len(totals)} layers, such as "
            f"{blind[0]}: choose layers that the logits depend on"
        )
    return {name: total.numpy() for name, total in totals.items()}


def per_token(sums: Mapping[str, F64], tokens: int) -> dict[str, F64]:
    """E[g gᵀ] of sums over so many tokens: factors whose scale no text's length moves.

    Raises InvalidInput without tokens.
    """
    require(
        tokens > 0, f"tokens={tokens}: expected those that the sums were taken over"
    )
    return {name: total / tokens for name, total in sums.items()}


@torch.enable_grad()
def _add_moments(
    model: nn.Module,
    chosen: dict[str, nn.Linear],
    window: Tensor,
    draw: torch.Generator | None,
    totals: dict[str, Tensor],
) -> None:
    """Add the moments of one window (t,); its labels are drawn, or its own."""
    entered: list[Tensor] = []

    def enter(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        # Cut here: nothing before the layers is to be differentiated.
        entered.append(output.detach().requires_grad_())
        return entered[-1]

    def observe(name: str):
        def add(gradient: Tensor) -> None:
            rows = gradient.reshape(-1, gradient.shape[-1]).float().cpu()
            totals[name] += rows.T @ rows

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(add)

        return hook

    embed: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    hooks = [
        embed.register_forward_hook(enter),
        *(layer.register_forward_hook(observe(name)) for name, layer in chosen.items()),
    ]
    try:
        logits = model(window[None], use_cache=False).logits[0].float()
    finally:
        for hook in hooks:
            hook.remove()
    if draw is None:
        logits, labels = logits[:-1], window[1:]
    else:
        chances = logits.detach().softmax(-1).cpu()
        labels = torch.multinomial(chances, 1, generator=draw)[:, 0]
    loss = nn.functional.cross_entropy(
        logits, labels.to(logits.device), reduction="sum"
    )
    torch.autograd.grad(loss, entered)
