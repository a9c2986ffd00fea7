import checks
import numpy as np
import pytest
import torch
from numpy.linalg import norm
from torch import nn

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.svd import (
    BLIND,
    break_even_rank,
    decompose,
    decompose_layers,
    gram_matrices,
    rank_for_energy,
    rank_for_ratio,
    uniform_ranks,
    with_ranks,
)


def matrix(m=64, n=48, seed=0):
    return np.random.default_rng(seed).standard_normal((m, n))


def inputs(n=48, rows=200, seed=1):
    """Inputs whose directions differ in strength by four orders of magnitude."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((n, n)) * np.geomspace(1e2, 1e-2, n)[:, None]
    return rng.standard_normal((rows, n)) @ mixing


def factors(weight, rank, gram=None):
    return decompose(weight, gram).factors(rank)


def tail(parts, rank):
    return norm(parts.values[rank:])


def factorize(model, ratio, grams=None, names=None):
    parts = decompose_layers(model, grams, names)
    return with_ranks(model, parts, uniform_ranks(model, ratio, names))


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (48, 48)])
@pytest.mark.parametrize("rank", [1, 8, 31, 48])
def test_error_is_the_singular_tail(shape, rank):
    weight = matrix(*shape)
    left, right = factors(weight, rank)
    assert left.shape == (shape[0], rank)
    assert right.shape == (rank, shape[1])
    dropped = np.linalg.svd(weight, compute_uv=False)[rank:]
    np.testing.assert_allclose(
        norm(weight - left @ right), norm(dropped), atol=1e-12 * norm(weight)
    )


@pytest.mark.parametrize(
    ("rows", "rank", "close"),
    [
        *((200, rank, 1e-10) for rank in (1, 8, 31, 47, 48)),
        *((20, rank, 1e-7) for rank in (1, 8, 20)),  # of 48: no Cholesky factor
    ],
)
def test_whitened_loss_is_the_dropped_spectrum(rows, rank, close):
    weight, x = matrix(), inputs(rows=rows)
    parts = decompose(weight, x.T @ x)
    left, right = parts.factors(rank)
    loss, slack = norm((weight - left @ right) @ x.T), close * norm(weight @ x.T)
    np.testing.assert_allclose(loss, tail(parts, rank), atol=slack)
    plain_left, plain_right = factors(weight, rank)
    if rank < min(rows, 48):
        assert loss < norm((weight - plain_left @ plain_right) @ x.T)
    else:
        assert loss < slack
    if rank == 48:
        np.testing.assert_allclose(left @ right, weight, atol=1e-9)


def sensitivity(m=64, seed=2):
    """The second moment of gradients that differ in strength as inputs do."""
    gradients = inputs(m, 300, seed)
    return gradients.T @ gradients / 300


@pytest.mark.parametrize("shape", [(64, 48), (48, 64)])
@pytest.mark.parametrize("rank", [1, 8, 31])
def test_weighted_loss_is_the_dropped_spectrum(shape, rank):
    weight, x = matrix(*shape), inputs(shape[1])
    gram, minded = x.T @ x, sensitivity(shape[0])
    minded += np.eye(len(minded)) * np.trace(minded) / len(minded)  # beyond BLIND
    parts = decompose(weight, gram, minded)
    left, right = parts.factors(rank)

    def loss(error):
        return np.trace(minded @ error @ gram @ error.T)

    # What every output matters at least is added once more.
    floor = BLIND * np.trace(minded) / len(minded)
    error = weight - left @ right
    added = floor * np.trace(error @ gram @ error.T)
    np.testing.assert_allclose(loss(error) + added, tail(parts, rank) ** 2, rtol=1e-6)
    other, seen = factors(weight, rank, gram)
    assert loss(error) < loss(weight - other @ seen)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.8, 0.9, 0.999])
@pytest.mark.parametrize(("m", "n"), [(576, 576), (1536, 576), (192, 576)])
def test_the_rank_is_the_largest_that_the_ratio_allows(m, n, ratio):
    rank = rank_for_ratio(m, n, ratio)
    assert rank is not None
    assert rank * (m + n) <= ratio * m * n * (1 + 1e-9) < (rank + 1) * (m + n)


def test_a_matrix_that_factors_would_not_shrink_stays_dense():
    assert rank_for_ratio(576, 576, 1.0) is None
    assert rank_for_ratio(2, 2, 0.5) is None


def test_the_rank_for_an_energy_is_the_smallest_that_holds_it():
    values = np.array([3.0, 2.0, 2.0, 1.0])  # squares 9, 4, 4, 1 of 18
    for energy, rank in [(0.4, 1), (0.5, 1), (0.51, 2), (17 / 18, 3), (1.0, 4)]:
        assert rank_for_energy(values, energy) == rank


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 32, bias=False), nn.Tanh()
    ).double()


def test_grams_are_the_sum_of_outer_products():
    model = network()
    batches = [torch.randn(2, 5, 24).double(), torch.randn(3, 24).double()]
    grams = gram_matrices(model, batches)
    rows = torch.cat([batch.reshape(-1, 24) for batch in batches])
    np.testing.assert_allclose(grams["0"], (rows.T @ rows).numpy(), rtol=1e-12)
    hidden = torch.tanh(model[0](rows)).detach()
    np.testing.assert_allclose(grams["2"], (hidden.T @ hidden).numpy(), rtol=1e-12)
    assert not model[0]._forward_pre_hooks


class Pair(nn.Module):
    """Two layers of one input, or the second of what the first adds to it in place."""

    def __init__(self, in_place):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.in_place = in_place

    def forward(self, x):
        if not self.in_place:
            return self.one(x) + self.two(x)
        stream = x.clone()
        stream += self.one(stream)
        return self.two(stream)


@pytest.mark.parametrize("in_place", [False, True])
def test_layers_share_the_gram_of_an_input_that_nobody_changes(in_place):
    model, batches = Pair(in_place), [torch.randn(5, 6) for _ in range(3)]
    grams, rows = gram_matrices(model, batches), torch.cat(batches)
    for name, seen in (("one", rows), ("two", rows + in_place * model.one(rows))):
        seen = seen.detach().double()
        expected = (seen.T @ seen).numpy()
        rtol = 1e-5 if in_place else 1e-12
        np.testing.assert_allclose(grams[name], expected, rtol=rtol)


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_a_copy_holds_at_most_the_ratio_and_leaves_the_model_as_it_was(ratio):
    model = network()
    with checks.unchanged(model):
        twin = factorize(model, ratio)
    for layer, dense in ((twin[0], model[0]), (twin[2], model[2])):
        held = layer.left.numel() + layer.right.numel()
        assert held <= ratio * dense.weight.numel()
    assert torch.equal(twin[0].bias, model[0].bias)
    assert isinstance(model[0], nn.Linear)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: decompose(matrix() * np.nan), "weight .* must be a finite matrix"),
        (lambda: decompose(matrix(), None, np.eye(64)), "needs a gram"),
        (
            lambda: decompose(matrix(), np.eye(48), np.eye(48)),
            r"sensitivity has shape \(48, 48\)",
        ),
        (lambda: decompose(matrix(), np.diag([1.0] * 47 + [-1.0])), "eigenvalues"),
        (lambda: decompose(matrix(), np.triu(np.ones((48, 48)))), "symmetric"),
        (lambda: decompose(matrix(), np.zeros((48, 48))), "eigenvalues"),
        (lambda: decompose(matrix(), np.eye(47)), r"expected \(48, 48\)"),
        (lambda: factors(matrix(), 0), r"rank=0 must lie in \[1, 48\]"),
        (lambda: factors(matrix(), 49), r"rank=49 must lie in \[1, 48\]"),
        (lambda: rank_for_ratio(576, 576, 0.0), "ratio=0 must lie in"),
        (lambda: break_even_rank(0, 3), "0 x 3 matrix is empty"),
        (lambda: rank_for_energy([3.0, 2.0], 1.1), "energy=1.1 must lie in"),
        (lambda: factorize(network(), -0.5), r"must lie in \(0, 1\]"),
        (lambda: factorize(network(), 1.5), r"must lie in \(0, 1\]"),
        (lambda: factorize(network(), 0.5, {"0": np.eye(24)}), "no entry for 2"),
        (lambda: factorize(network(), 0.5, names=["layer9"]), "layer9"),
        (
            lambda: factorize(network(), 0.5, {"0": np.zeros((24, 24))}, ["0"]),
            "^0: gram has eigenvalues",
        ),
        (lambda: gram_matrices(network(), []), "at least one batch"),
    ],
)
def test_what_cannot_be_factorised_is_rejected(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()
