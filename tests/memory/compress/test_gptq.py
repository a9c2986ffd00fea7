"""Rounding, GPTQ and its correction of low rank, against what defines them."""

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.gptq import (
    DAMPING,
    SHRINKS,
    Metric,
    correct,
    gptq,
    left_factor,
    round_to_nearest,
    whitening,
)
from thesis_lib.memory.formats.low_bit import Grid, LowBitConfig

M, N, GROUP = 40, 64, 16


def matrix(m=M, n=N):
    return np.random.default_rng(0).standard_normal((m, n))


def gram(n=N, seed=1):
    """Of inputs that depend on each other and differ in strength a hundredfold."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((n, n)) * np.geomspace(10, 0.1, n)[:, None]
    x = rng.standard_normal((300, n)) @ mixing
    return x.T @ x


def damped(moments):
    return moments + DAMPING * np.trace(moments) / len(moments) * np.eye(len(moments))


def metric(m=M, n=N, outputs=True):
    return Metric(
        whitening(gram(n), GROUP), whitening(gram(m, 2), m) if outputs else None
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_nearest_level_is_within_half_a_step(bits):
    weight = matrix()
    weight[3, :16] = 0
    grid = Grid(bits, 16)
    found = round_to_nearest(weight, grid)
    step = np.repeat(found.scales, 16, axis=1)
    # The largest weight meets the last level but for the rounding of the scale.
    slack = 2.0**-8 * grid.middle
    assert np.all(np.abs(weight - found.restore()) <= step * (0.5 + slack) + 1e-300)
    assert found.codes.max() <= 2**bits - 1
    assert not found.restore()[3, :16].any()
    levels = np.arange(2**bits) - grid.middle
    assert np.array_equal(levels, -levels[::-1])
    assert grid.nbytes(1, 64) == 8 * bits + 2 * 4


def textbook(weight, moments, grid):
    """GPTQ as it is defined: after each input the inverse of the rest is taken anew."""
    weight, n = weight.copy(), len(moments)
    hessian = damped(moments)
    restored = np.zeros_like(weight)
    left = list(whitening(moments, grid.group).order)
    scale = np.zeros(len(weight))
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        if len(left) % grid.group == 0:
            members, scale = left[: grid.group], np.zeros(len(weight))
            importance = []
            for k in range(grid.group):
                rest = left[k:]
                importance.append(1 / np.linalg.inv(hessian[np.ix_(rest, rest)])[0, 0])
            for row, values in enumerate(weight[:, members]):
                tried = SHRINKS * np.abs(values).max() / grid.middle
                levels = np.floor(values / tried[:, None] + grid.middle + 0.5)
                levels = np.clip(levels, 0, 2 * grid.middle) - grid.middle
                errors = (values - tried[:, None] * levels) ** 2 @ importance
                scale[row] = float32_as_bfloat16(tried[np.argmin(errors)])
        j = left.pop(0)
        level = np.floor(weight[:, j] / scale + grid.middle + 0.5)
        level = np.clip(level, 0, 2 * grid.middle) - grid.middle
        restored[:, j] = scale * level
        error = (weight[:, j] - restored[:, j]) / inverse[0, 0]
        weight[:, left] -= np.outer(error, inverse[0, 1:])
    assert n == len(restored.T)
    return restored


def float32_as_bfloat16(value):
    bits = np.float32(value).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(np.uint32(rounded).view(np.float32))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [8, 32])
def test_gptq_is_its_definition(bits, group):
    weight, moments, grid = matrix(6, 32), gram(32), Grid(bits, group)
    found = gptq(weight, whitening(moments, group), grid).restore()
    np.testing.assert_allclose(found, textbook(weight, moments, grid), atol=1e-12)


def test_the_loss_is_that_of_inputs_and_outputs():
    error, moments = matrix(), gram()
    made = whitening(moments, GROUP)
    assert sorted(made.order) == list(range(N))
    np.testing.assert_allclose(made.root @ made.inverse, np.eye(N), atol=1e-9)
    power = np.diag(moments)[made.order].reshape(-1, GROUP)
    assert np.all(np.diff(power, axis=1) <= 0)
    assert np.all(np.diff(power.sum(axis=1)) <= 0)
    inputs, outputs = damped(moments), damped(gram(M, 2))
    squared_error = np.sum(error @ inputs * error)  # tr(E G Eᵀ)
    assert metric(outputs=False).loss(error) == pytest.approx(squared_error, rel=1e-10)
    assert metric().loss(error) == pytest.approx(
        np.trace(outputs @ error @ inputs @ error.T), rel=1e-10
    )


@pytest.mark.parametrize("shape", [(40, 64), (64, 48)])
@pytest.mark.parametrize("rank", [1, 5, 40])
@pytest.mark.parametrize("outputs", [False, True])
def test_the_best_factors_leave_the_tail_of_the_whitened_spectrum(shape, rank, outputs):
    error, used = matrix(*shape), metric(*shape, outputs)
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
    recipe, used = LowBitConfig(Grid(bits, GROUP)), metric()
    found = correct(matrix(), used, recipe)
    base = gptq(matrix(), used.inputs, recipe.grid)
    assert np.array_equal(found.base.codes, base.codes)
    assert np.array_equal(found.base.scales, base.scales)
    assert found.left is found.right is None
    assert found.nbytes == base.nbytes == recipe.nbytes(M, N)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("outputs", [False, True])
def test_the_loss_falls_in_every_round_that_is_kept(bits, outputs):
    used, recipe = metric(outputs=outputs), LowBitConfig(Grid(bits, GROUP), 4)
    losses = [
        used.loss(matrix() - correct(matrix(), used, recipe, rounds).restore())
        for rounds in range(5)
    ]
    assert losses == sorted(losses, reverse=True)
    base = gptq(matrix(), used.inputs, recipe.grid)
    assert losses[0] == pytest.approx(used.loss(matrix() - base.restore()))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("factor_bits", [4, 8])
def test_bytes_are_those_of_codes_and_scales(factor_bits):
    recipe = LowBitConfig(Grid(3, GROUP), 6, factor_bits)
    found = correct(matrix(), metric(), recipe)
    codes = (M * N * 3 + 6 * (M + N) * factor_bits) // 8
    scales = 2 * (M * N // GROUP + 6 + 6 * N // GROUP)
    assert found.nbytes == recipe.nbytes(M, N) == codes + scales


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Grid(5, 16), "bits=5 must be one of 2, 3, 4"),
        (lambda: Grid(3, 12), "group=12 must be a positive multiple of 8"),
        (lambda: LowBitConfig(Grid(3, 16), -1), "rank=-1 must not be negative"),
        (lambda: LowBitConfig(Grid(3, 16), 2, 5), "bits=5"),
        (lambda: whitening(gram(), 24), "group=24 does not divide 64"),
        (lambda: whitening(np.zeros((64, 64)), 16), "not all of them zero"),
        (lambda: whitening(np.full((64, 64), np.nan), 16), "finite"),
        (lambda: whitening(np.eye(64) - 2 * np.eye(64)[::-1], 16), "semidefinite"),
        (lambda: round_to_nearest(matrix(4, 60), Grid(3, 16)), "does not divide 60"),
        (lambda: round_to_nearest(matrix() * np.nan, Grid(3, 16)), "finite"),
        (lambda: gptq(matrix(), whitening(gram(), 16), Grid(3, 32)), "groups of 16"),
        (
            lambda: correct(matrix(), metric(), LowBitConfig(Grid(3, GROUP), 41)),
            r"rank=41 must lie in \[1, 40\]",
        ),
    ],
)
def test_what_cannot_be_quantised_is_rejected(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()
