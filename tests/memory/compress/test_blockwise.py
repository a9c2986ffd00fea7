"""Each layer is calibrated on what compressed ones give it, and then trained."""

import checks
import numpy as np
import pytest
import tiny
import torch
from numpy.linalg import norm

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress import blockwise
from thesis_lib.memory.compress.blockwise import (
    Refinement,
    best_matrix,
    factorize_blocks,
    walk_blocks,
)
from thesis_lib.memory.compress.svd import (
    decompose,
    decompose_layers,
    gram_matrices,
    uniform_ranks,
    with_ranks,
)
from thesis_lib.memory.formats.lowrank import LowRankLinear, ranks_of
from thesis_lib.memory.model.linears import linears
from thesis_lib.memory.offload.architectures import stack


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = tiny.write(tmp_path_factory.mktemp("refine"), dtype=torch.float32)
    with torch.no_grad():
        for layer in linears(made).values():
            layer.weight *= 4  # so that an error in one layer is felt in the next
    return made


WINDOWS = tiny.tokens(1, 8, 24)


def streams(seed=0, n=12, rows=300):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((9, n))
    x = rng.standard_normal((n, rows)) * np.geomspace(10, 0.1, n)[:, None]
    seen = x + 0.3 * rng.standard_normal((n, n)) @ x + rng.standard_normal((n, rows))
    return weight, x, seen


def test_the_best_matrix_is_the_least_squares_one():
    for seed in range(10):
        weight, x, seen = streams(seed)
        best = best_matrix(weight, x @ seen.T, seen @ seen.T)
        expected = np.linalg.lstsq(seen.T, (weight @ x).T, rcond=None)[0].T
        np.testing.assert_allclose(best, expected, atol=1e-9, err_msg=f"seed {seed}")
    np.testing.assert_allclose(best_matrix(weight, x @ x.T, x @ x.T), weight)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_its_truncation_is_the_best_of_its_rank(rank):
    weight, x, seen = streams()
    cross, gram = x @ seen.T, seen @ seen.T
    parts = decompose(best_matrix(weight, cross, gram), gram)
    left, right = parts.factors(rank)
    loss = norm(weight @ x - left @ right @ seen)
    least = norm(weight @ x - best_matrix(weight, cross, gram) @ seen)
    assert loss**2 == pytest.approx(least**2 + norm(parts.values[rank:]) ** 2)
    blind = decompose(weight, x @ x.T).factors(rank)  # calibrated upstream of it
    assert loss < norm(weight @ x - blind[0] @ blind[1] @ seen)
    for step in range(20):
        rng = np.random.default_rng(step)
        other = (left + 0.01 * rng.standard_normal(left.shape)) @ (
            right + 0.01 * rng.standard_normal(right.shape)
        )
        assert loss < norm(weight @ x - other @ seen)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt", "gpt_neox"])
def test_blocks_in_a_row_are_the_model(tmp_path, architecture):
    model = tiny.write(tmp_path, architecture)
    with torch.no_grad():
        whole = model(WINDOWS[1:2], use_cache=False, output_hidden_states=True)
        for number, block in enumerate(walk_blocks(model, WINDOWS[:2])):
            assert torch.equal(block.hidden[1], whole.hidden_states[number])


def test_matrices_that_share_an_input_are_one_group(model):
    block = next(walk_blocks(model, WINDOWS[:1]))
    groups = block.groups(list(linears(block.layer)))
    assert [sorted(name.split(".")[1] for name in group) for group in groups] == [
        ["k_proj", "q_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def hidden_error(model, twin, windows):
    with torch.no_grad():
        exact, found = (
            each.model(windows, use_cache=False).last_hidden_state
            for each in (model, twin)
        )
    return float((exact - found).norm())


def test_calibration_behind_compressed_layers_loses_less(model, monkeypatch):
    monkeypatch.setattr(blockwise, "SHRINKAGE", 1e-6)
    ranks = uniform_ranks(model, 0.5)
    grams = gram_matrices(model, list(WINDOWS[:, None]))
    alone = with_ranks(model, decompose_layers(model, grams), ranks)
    behind = factorize_blocks(model, WINDOWS, ranks)
    first = stack(behind)[1][0].self_attn.q_proj  # which has nothing upstream
    same = stack(alone)[1][0].self_attn.q_proj
    torch.testing.assert_close(
        first.left @ first.right, same.left @ same.right, atol=1e-3, rtol=1e-3
    )
    assert hidden_error(model, behind, WINDOWS) < hidden_error(model, alone, WINDOWS)


def test_refinement_loses_less_on_windows_that_it_has_not_read(model, monkeypatch):
    first = "model.layers.0."
    ranks = {n: 2 if n.startswith(first) else None for n in linears(model)}
    windows, fresh = tiny.tokens(3, 60, 48), tiny.tokens(9, 8, 48)
    # So much shrinkage hides the inputs, and leaves something to be learned.
    monkeypatch.setattr(blockwise, "SHRINKAGE", 1e6)
    plain = factorize_blocks(model, windows, ranks)
    how = Refinement(60, 1e-4)
    trained = factorize_blocks(model, windows, ranks, refinement=how)
    before, after = (hidden_error(model, twin, fresh) for twin in (plain, trained))
    assert after < before


def test_a_refinement_that_does_not_help_is_undone(model):
    ranks = uniform_ranks(model, 0.5)
    plain = factorize_blocks(model, WINDOWS, ranks).state_dict()
    harmful = Refinement(steps=3, rate=10.0)
    kept = factorize_blocks(model, WINDOWS, ranks, refinement=harmful).state_dict()
    assert all(torch.equal(plain[name], kept[name]) for name in plain)


def test_ranks_are_those_asked_for_and_the_model_is_as_it_was(model):
    ranks = uniform_ranks(model, 0.5)
    ranks["model.layers.1.mlp.up_proj"] = None
    with checks.unchanged(model):
        twin = factorize_blocks(model, WINDOWS, ranks)
    found = {
        f"model.layers.{number}.{name}": rank
        for number, layer in enumerate(ranks_of(twin, 4))
        for name, rank in layer.items()
    }
    assert found == {name: rank for name, rank in ranks.items() if rank is not None}
    assert not any(isinstance(part, LowRankLinear) for part in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_singular_gram_is_rejected_by_name(model, monkeypatch):
    with pytest.raises(InvalidInput, match="gram \\(3, 3\\) is singular"):
        best_matrix(np.ones((2, 3)), np.zeros((3, 3)), np.diag([1.0, 1.0, 0.0]))
    same = torch.ones(8, 24, dtype=torch.long)  # one token: its input has rank one
    monkeypatch.setattr(blockwise, "SHRINKAGE", 0.0)
    with pytest.raises(InvalidInput, match=r"layers\.0\.self_attn\..*singular"):
        factorize_blocks(model, same, uniform_ranks(model, 0.5))
