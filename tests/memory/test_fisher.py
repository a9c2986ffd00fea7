"""Sensitivities are the second moments of gradients, for labels of the model's own."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.fisher import sensitivities
from thesis_lib.memory.model.linears import linears


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("fisher"), dtype=torch.float32)


def test_sensitivities_are_the_second_moments_of_gradients(model):
    windows = tiny.tokens(1, 3, 11)
    found = sensitivities(model, windows, seed=4)
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
        chosen = logits.log_softmax(-1).gather(1, labels)
        (gradient,) = torch.autograd.grad(-chosen.sum(), errors)
        expected += (gradient[0].T @ gradient[0]).double()
    np.testing.assert_allclose(found[name], expected.numpy() / 33, rtol=1e-4, atol=1e-9)


def test_they_predict_what_a_small_error_costs(model):
    """Half of tr(A Δ G Δᵀ) is the divergence from the model that was, Δ small."""
    windows = tiny.tokens(2, 24, 16)
    name = "model.layers.3.mlp.down_proj"
    layer = model.get_submodule(name)
    sensitivity = np.mean(
        [sensitivities(model, windows, seed, [name])[name] for seed in range(8)], axis=0
    )
    inputs = []
    hook = layer.register_forward_pre_hook(lambda _m, i: inputs.append(i[0]))
    with torch.no_grad():
        before = model(windows).logits.double().log_softmax(-1)
        hook.remove()
        rows = inputs[0].reshape(-1, 80).double()
        gram = (rows.T @ rows).numpy() / len(rows)
        draw = torch.Generator().manual_seed(0)
        change = 1e-3 * torch.randn(48, 80, generator=draw)
        layer.weight += change
        after = model(windows).logits.double().log_softmax(-1)
        layer.weight -= change
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    delta = change.double().numpy()
    predicted = np.trace(sensitivity @ delta @ gram @ delta.T) / 2
    assert predicted == pytest.approx(divergence, rel=0.15)


def test_the_model_is_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = sensitivities(model, tiny.tokens(1, 2, 8), seed=1)
    second = sensitivities(model, tiny.tokens(1, 2, 8), seed=1)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert set(first) == set(linears(model))
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_windows_of_one_length_are_those_of_a_tensor(model):
    windows = tiny.tokens(3, 3, 9)
    together = sensitivities(model, windows, seed=2)
    apart = sensitivities(model, [*windows], seed=2)
    for name, found in together.items():
        np.testing.assert_array_equal(found, apart[name])


def test_a_shorter_window_counts_by_its_tokens(model):
    long, short = tiny.tokens(3, 1, 12)[0], tiny.tokens(4, 1, 5)[0]
    both = sensitivities(model, [long, short], seed=2)
    first = sensitivities(model, [long], seed=2)
    for name, found in both.items():
        rest = 17 * found - 12 * first[name]  # the sum over the short one alone
        assert np.linalg.eigvalsh(rest).min() >= -1e-5 * np.trace(found)


def test_what_has_no_gradient_is_refused(model):
    with pytest.raises(InvalidInput, match="expected \\(windows, tokens\\)"):
        sensitivities(model, tiny.tokens(1, 2, 8)[0])
    model.unused = nn.Linear(3, 3)
    try:
        with pytest.raises(InvalidInput, match="such as unused"):
            sensitivities(model, tiny.tokens(1, 1, 8))
    finally:
        del model.unused
