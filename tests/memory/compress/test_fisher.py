"""Output factors are second moments of gradients, for labels drawn or of the text."""

from types import SimpleNamespace

import checks
import numpy as np
import pytest
import tiny
import torch
from torch import nn

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.fisher import (
    both_factors,
    output_factors,
    per_token,
)
from thesis_lib.memory.compress.svd import gram_matrices
from thesis_lib.memory.model.linears import linears


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("fisher"), dtype=torch.float32)


@pytest.mark.parametrize("estimator", ["true", "empirical"])
def test_factors_are_the_second_moments_of_gradients(model, estimator):
    windows = tiny.tokens(1, 3, 11)
    found = output_factors(model, windows, estimator, seed=4)
    draw = torch.Generator().manual_seed(4)
    name = "model.layers.2.mlp.down_proj"
    expected = torch.zeros(48, 48, dtype=torch.float64)
    for window in windows:
        errors = torch.zeros(1, 11, 48, requires_grad=True)  # at the layer's output
        hook = model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, errors=errors: out + errors
        )
        logits = model(window[None]).logits[0]
        hook.remove()
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)
        if estimator == "empirical":
            logits, labels = logits[:-1], window[1:, None]
        chosen = logits.log_softmax(-1).gather(1, labels)
        (gradient,) = torch.autograd.grad(-chosen.sum(), errors)
        expected += (gradient[0].T @ gradient[0]).double()
    np.testing.assert_allclose(found[name], expected.numpy(), rtol=1e-4, atol=1e-9)


def test_one_pass_finds_what_two_find(model):
    windows = tiny.tokens(1, 3, 11)
    names = ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]
    grams, sums = both_factors(model, windows, seed=4, names=names)
    for found, alone in (
        (grams, gram_matrices(model, windows[:, None], names)),
        (sums, output_factors(model, windows, seed=4, names=names)),
    ):
        assert found.keys() == alone.keys() == set(names)
        for name in names:
            np.testing.assert_allclose(found[name], alone[name], rtol=1e-5, atol=1e-9)


class Chain(nn.Module):
    """A Markov chain: the logits of the next token are a linear layer of this one."""

    def __init__(self, states=5):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.eye(states))
        self.next = nn.Linear(states, states, bias=False)
        with torch.no_grad():
            self.next.weight.normal_(generator=torch.Generator().manual_seed(0))

    def get_input_embeddings(self):
        return self.embed

    def forward(self, ids, use_cache=False):
        return SimpleNamespace(logits=self.next(self.embed(ids)))

    def text(self, tokens):
        chances = self.next.weight.detach().T.softmax(-1)
        draw, ids = torch.Generator().manual_seed(1), [0]
        for _ in range(tokens - 1):
            ids.append(int(torch.multinomial(chances[ids[-1]], 1, generator=draw)))
        return torch.tensor([ids])


def test_both_estimate_one_matrix_where_the_text_was_drawn_from_the_model():
    """At the logits of a token it is diag(p) − p pᵀ: expected of labels drawn from p"""
    model, n = Chain(), 4000
    text = model.text(n)
    p = model(text).logits[0].detach().double().softmax(-1).numpy()
    expected = np.diag(p.mean(axis=0)) - p.T @ p / n
    # An entry of (p − e)(p − e)ᵀ lies within [−1, 1].
    bound = 4 / np.sqrt(n)
    assert bound < 0.5 * np.abs(expected).max()
    (true,) = per_token(output_factors(model, text), n).values()
    (empirical,) = per_token(output_factors(model, text, "empirical"), n - 1).values()
    assert np.abs(true - expected).max() < bound
    assert np.abs(empirical - expected).max() < bound
    # Of another text the labels say something else, and the model the same.
    stuck = torch.zeros(1, n, dtype=torch.long)
    p = model(stuck).logits[0, 0].detach().double().softmax(-1).numpy()
    (true,) = per_token(output_factors(model, stuck), n).values()
    (empirical,) = per_token(output_factors(model, stuck, "empirical"), n - 1).values()
    assert np.abs(true - (np.diag(p) - np.outer(p, p))).max() < bound
    error = p - np.eye(5)[0]
    np.testing.assert_allclose(empirical, np.outer(error, error), rtol=1e-4)


def test_they_predict_what_a_small_error_costs(model):
    """Half of tr(A Δ G Δᵀ) is the divergence from the model that was, Δ small."""
    windows = tiny.tokens(2, 24, 16)
    name = "model.layers.3.mlp.down_proj"
    layer = model.get_submodule(name)
    factor = np.mean(
        [output_factors(model, windows, "true", s, [name])[name] for s in range(8)],
        axis=0,
    )
    inputs = []
    hook = layer.register_forward_pre_hook(lambda _m, i: inputs.append(i[0]))
    with torch.no_grad():
        before = model(windows).logits.double().log_softmax(-1)
        hook.remove()
        rows = inputs[0].reshape(-1, 80).double()
        gram = (rows.T @ rows).numpy()
        draw = torch.Generator().manual_seed(0)
        change = 1e-3 * torch.randn(48, 80, generator=draw)
        layer.weight += change
        after = model(windows).logits.double().log_softmax(-1)
        layer.weight -= change
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    delta = change.double().numpy()
    predicted = np.trace(factor @ delta @ gram @ delta.T) / 2 / windows.numel() ** 2
    assert predicted == pytest.approx(divergence, rel=0.15)


def test_the_model_is_as_it_was(model):
    with checks.unchanged(model):
        first = output_factors(model, tiny.tokens(1, 2, 8), seed=1)
        second = output_factors(model, tiny.tokens(1, 2, 8), seed=1)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert set(first) == set(linears(model))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_what_has_no_gradient_is_rejected(model):
    with pytest.raises(InvalidInput, match="estimator='emp' is unknown"):
        output_factors(model, tiny.tokens(1, 2, 8), "emp")
    with pytest.raises(InvalidInput, match="expected \\(windows, tokens\\)"):
        output_factors(model, tiny.tokens(1, 2, 8)[0])
    with pytest.raises(InvalidInput, match="tokens=0: expected"):
        per_token({}, 0)
    model.unused = nn.Linear(3, 3)
    try:
        with pytest.raises(InvalidInput, match="such as unused"):
            output_factors(model, tiny.tokens(1, 1, 8))
    finally:
        del model.unused
