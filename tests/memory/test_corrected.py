"""Quantised weights and their correction, in the metric of inputs and of outputs."""

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.gptq import (
    Metric,
    correct,
    gptq,
    left_factor,
    whitening,
)
from thesis_lib.memory.formats.low_bit import Grid, Recipe

M, N, GROUP = 40, 64, 16


def gram(size, seed):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((size, size)) * np.geomspace(10, 0.1, size)[:, None]
    x = rng.standard_normal((300, size)) @ mixing
    return x.T @ x


def weight(m=M, n=N):
    return np.random.default_rng(0).standard_normal((m, n))


def metric(m=M, n=N, outputs=True):
    sensed = whitening(gram(m, 2), m) if outputs else None
    return Metric(whitening(gram(n, 1), GROUP), sensed)


def damped(moments):
    return moments + 0.01 * np.trace(moments) / len(moments) * np.eye(len(moments))


def test_the_loss_is_a_trace():
    error = weight()
    inputs, outputs = damped(gram(N, 1)), damped(gram(M, 2))
    assert metric().loss(error) == pytest.approx(
        np.trace(outputs @ error @ inputs @ error.T), rel=1e-10
    )
    assert metric(outputs=False).loss(error) == pytest.approx(
        np.trace(error @ inputs @ error.T), rel=1e-10
    )


@pytest.mark.parametrize("shape", [(40, 64), (64, 48)])
@pytest.mark.parametrize("rank", [1, 5, 40])
@pytest.mark.parametrize("outputs", [False, True])
def test_the_best_factors_leave_the_tail_of_the_whitened_spectrum(shape, rank, outputs):
    error, used = weight(*shape), metric(*shape, outputs)
    left = left_factor(error, used, rank)
    # R by least squares, each column of the whitened error on its own.
    target, basis = used.whiten(error), left
    if used.outputs is not None:
        basis = used.outputs.root.T @ left[used.outputs.order]
    rest = target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0]
    tail = np.linalg.svd(target, compute_uv=False)[rank:]
    np.testing.assert_allclose(
        np.linalg.norm(rest), np.linalg.norm(tail), atol=1e-7 * np.linalg.norm(target)
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rank_zero_is_the_baseline(bits):
    recipe, used = Recipe(Grid(bits, GROUP)), metric()
    found = correct(weight(), used, recipe)
    base = gptq(weight(), used.inputs, recipe.grid)
    assert np.array_equal(found.base.codes, base.codes)
    assert np.array_equal(found.base.scales, base.scales)
    assert found.left is found.right is None
    assert found.nbytes == base.nbytes == recipe.nbytes(M, N)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("outputs", [False, True])
def test_the_loss_falls_in_every_round_that_is_kept(bits, outputs):
    used, recipe = metric(outputs=outputs), Recipe(Grid(bits, GROUP), 4)
    losses = [
        used.loss(weight() - correct(weight(), used, recipe, rounds).restore())
        for rounds in range(5)
    ]
    assert losses == sorted(losses, reverse=True)
    base = gptq(weight(), used.inputs, recipe.grid)
    assert losses[0] == pytest.approx(used.loss(weight() - base.restore()))
    assert losses[1] < 0.8 * losses[0]


def test_more_rank_leaves_less():
    used = metric()
    losses = [
        used.loss(weight() - correct(weight(), used, recipe).restore())
        for recipe in (Recipe(Grid(3, GROUP), rank, 8) for rank in (0, 2, 8, 24))
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("factor_bits", [4, 8])
def test_bytes_are_those_of_codes_and_scales(factor_bits):
    recipe = Recipe(Grid(3, GROUP), 6, factor_bits)
    found = correct(weight(), metric(), recipe)
    codes = (M * N * 3 + 6 * (M + N) * factor_bits) // 8
    scales = 2 * (M * N // GROUP + 6 + 6 * N // GROUP)
    assert found.nbytes == recipe.nbytes(M, N) == codes + scales


def test_a_rank_that_no_matrix_has_is_refused():
    with pytest.raises(InvalidInput, match="rank=-1 must not be negative"):
        Recipe(Grid(3, GROUP), -1)
    with pytest.raises(InvalidInput, match=r"rank=41 must lie in \[1, 40\]"):
        correct(weight(), metric(), Recipe(Grid(3, GROUP), 41))
    with pytest.raises(InvalidInput, match="bits=5"):
        Recipe(Grid(3, GROUP), 2, 5)
