"""Packed codes stand for the same weights, and stream to the same logits."""

import numpy as np
import pytest
import tiny
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.gptq import Metric, correct, whitening
from thesis_lib.memory.formats import bitplanes
from thesis_lib.memory.formats.low_bit import Grid, LowBitConfig
from thesis_lib.memory.model.checkpoint import nbytes


def stored(recipe, m=48, n=80, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, n)) * np.geomspace(5, 0.2, n)
    used = Metric(whitening(x.T @ x, recipe.grid.group))
    return correct(rng.standard_normal((m, n)), used, recipe)


RECIPES = [
    LowBitConfig(Grid(width, group), rank, factor_bits)
    for width in (2, 3, 4)
    for group, rank, factor_bits in ((8, 0, 4), (16, 3, 4), (80, 6, 8))
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_packed_tensors_stand_for_the_same_weights(recipe):
    found = stored(recipe)
    packed = bitplanes.pack(found)
    expected = torch.from_numpy(found.restore()).to(torch.bfloat16)
    assert torch.equal(bitplanes.unpack(packed), expected)
    assert sum(tensor.nbytes for tensor in packed.values()) == found.nbytes


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=str)
@pytest.mark.parametrize("workers", [2, 3, 7])
def test_threads_restore_the_same_matrix(recipe, workers, monkeypatch):
    found = stored(recipe)
    monkeypatch.setattr(bitplanes, "_SHARE", 48 * 80 // workers)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    started = []
    pool = bitplanes.ThreadPoolExecutor
    monkeypatch.setattr(
        bitplanes, "ThreadPoolExecutor", lambda n: started.append(n) or pool(n)
    )
    expected = torch.from_numpy(found.restore()).to(torch.bfloat16)
    assert torch.equal(bitplanes.unpack(bitplanes.pack(found)), expected)
    assert started == [workers]


def test_a_matrix_in_huge_pages_is_the_same_and_no_larger(monkeypatch):
    found = stored(RECIPES[1])
    monkeypatch.setattr(bitplanes, "_RETURNED", 0)
    restored = bitplanes.unpack(bitplanes.pack(found))
    expected = torch.from_numpy(found.restore()).to(torch.bfloat16)
    assert torch.equal(restored, expected)
    assert restored.untyped_storage().nbytes() == expected.nbytes


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_entries_are_those_of_packed_tensors(recipe):
    packed = bitplanes.pack(stored(recipe))
    found = bitplanes.entries(recipe, 48, 80)
    assert found.keys() == packed.keys()
    for name, (dtype, shape) in found.items():
        assert packed[name].shape == shape
        assert packed[name].nbytes == nbytes((dtype, shape))
    assert sum(map(nbytes, found.values())) == recipe.nbytes(48, 80)


def test_a_layout_names_its_recipes():
    recipes = {"mlp.up_proj": RECIPES[1], "self_attn.q_proj": RECIPES[0]}
    assert bitplanes.parse_layout(bitplanes.format_layout(recipes)) == recipes
    assert bitplanes.format_layout(recipes).startswith("mlp.up_proj=2b16+3r4b ")
    with pytest.raises(InvalidInput, match=r"'rows' names no recipe"):
        bitplanes.parse_layout("rows")
    with pytest.raises(InvalidInput, match="bits=7"):
        bitplanes.parse_layout("a=7b16+0r4b")


@pytest.mark.parametrize("recipe", RECIPES[1:2] + RECIPES[5:6], ids=str)
def test_a_layer_computes_with_the_restored_matrix(recipe):
    dense = torch.nn.Linear(80, 48, bias=True, dtype=torch.bfloat16)
    found = stored(recipe)
    layer = bitplanes.BitsLinear(dense, recipe)
    state = bitplanes.pack(found)
    assert layer.state_dict().keys() == {*state, "bias"}
    x = torch.randn(5, 80, dtype=torch.bfloat16)
    with torch.no_grad():
        out = torch.func.functional_call(layer, state | {"bias": dense.bias}, (x,))
        dense.weight.copy_(torch.from_numpy(found.restore()))
        assert torch.equal(out, dense(x))


def test_a_layout_of_another_architecture_is_rejected(tmp_path):
    model = tiny.write(tmp_path / "dense")
    layout = bitplanes.format_layout({"fc1": RECIPES[0]})
    with pytest.raises(InvalidInput, match=r"no recipe for self_attn\.q_proj"):
        bitplanes.LowBit(layout).swap(model.model.layers)
    with pytest.raises(InvalidInput, match="group=32 does not divide 80"):
        bitplanes.entries(LowBitConfig(Grid(3, 32)), 48, 80)
