"""Packed codes stand for the same weights, and stream to the same logits."""

import numpy as np
import pytest
import tiny
import torch

from thesis_lib.checks import InvalidInput
from thesis_lib.memory import bits
from thesis_lib.memory.checkpoint import nbytes
from thesis_lib.memory.corrected import Metric, Recipe, correct
from thesis_lib.memory.rounding import Grid, whitening


def stored(recipe, m=48, n=80, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, n)) * np.geomspace(5, 0.2, n)
    used = Metric(whitening(x.T @ x, recipe.grid.group))
    return correct(rng.standard_normal((m, n)), used, recipe)


RECIPES = [
    Recipe(Grid(width, group), rank, factor_bits)
    for width in (2, 3, 4)
    for group, rank, factor_bits in ((8, 0, 4), (16, 3, 4), (80, 6, 8))
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_packed_tensors_stand_for_the_same_weights(recipe):
    found = stored(recipe)
    packed = bits.pack(found)
    expected = torch.from_numpy(found.restore()).to(torch.bfloat16)
    assert torch.equal(bits.unpack(packed), expected)
    assert sum(tensor.nbytes for tensor in packed.values()) == found.nbytes


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=str)
@pytest.mark.parametrize("workers", [2, 3, 7])
def test_threads_restore_the_same_matrix(recipe, workers, monkeypatch):
    found = stored(recipe)
    monkeypatch.setattr(bits, "_SHARE", 48 * 80 // workers)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    started = []
    pool = bits.ThreadPoolExecutor
    monkeypatch.setattr(
        bits, "ThreadPoolExecutor", lambda n: started.append(n) or pool(n)
    )
    expected = torch.from_numpy(found.restore()).to(torch.bfloat16)
    assert torch.equal(bits.unpack(bits.pack(found)), expected)
    assert started == [workers]


def test_a_matrix_in_huge_pages_is_the_same_and_no_larger(monkeypatch):
    found = stored(RECIPES[1])
    monkeypatch.setattr(bits, "_RETURNED", 0)
    restored = bits.unpack(bits.pack(found))
    expected = torch.from_numpy(found.restore()).to(torch.bfloat16)
    assert torch.equal(restored, expected)
    assert restored.untyped_storage().nbytes() == expected.nbytes


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_entries_are_those_of_packed_tensors(recipe):
    packed = bits.pack(stored(recipe))
    found = bits.entries(recipe, 48, 80)
    assert found.keys() == packed.keys()
    for name, (dtype, shape) in found.items():
        assert packed[name].shape == shape
        assert packed[name].nbytes == nbytes((dtype, shape))
    assert sum(map(nbytes, found.values())) == recipe.nbytes(48, 80)


def test_a_layout_names_its_recipes():
    recipes = {"mlp.up_proj": RECIPES[1], "self_attn.q_proj": RECIPES[0]}
    assert bits.recipes_of(bits.layout_of(recipes)) == recipes
    assert bits.layout_of(recipes).startswith("mlp.up_proj=2b16+3r4b ")
    with pytest.raises(InvalidInput, match=r"'rows' names no recipe"):
        bits.recipes_of("rows")
    with pytest.raises(InvalidInput, match="bits=7"):
        bits.recipes_of("a=7b16+0r4b")


@pytest.mark.parametrize("recipe", RECIPES[1:2] + RECIPES[5:6], ids=str)
def test_a_layer_computes_with_the_restored_matrix(recipe):
    dense = torch.nn.Linear(80, 48, bias=True, dtype=torch.bfloat16)
    found = stored(recipe)
    with torch.device("meta"):
        layer = bits.BitsLinear(dense, recipe)
    state = bits.pack(found)
    assert layer.state_dict().keys() == {*state, "bias"}
    x = torch.randn(5, 80, dtype=torch.bfloat16)
    with torch.no_grad():
        out = torch.func.functional_call(layer, state | {"bias": dense.bias}, (x,))
        dense.weight.copy_(torch.from_numpy(found.restore()))
        assert torch.equal(out, dense(x))


def test_a_layout_of_another_architecture_is_refused(tmp_path):
    model = tiny.write(tmp_path / "dense")
    layout = bits.layout_of({"fc1": RECIPES[0]})
    with pytest.raises(InvalidInput, match=r"no recipe for self_attn\.q_proj"):
        bits.swap_bits(model.model.layers[0], layout)
    with pytest.raises(InvalidInput, match="group=32 does not divide 80"):
        bits.entries(Recipe(Grid(3, 32)), 48, 80)
