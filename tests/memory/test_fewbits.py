"""A model in few bits: shared-out bytes, calibration in order, and what is written."""

import copy
import itertools

import numpy as np
import pytest
import tiny
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.bit_allocation import (
    Offer,
    alike,
    allocate,
    matrices,
    offers,
    quantise_model,
    shares,
)
from thesis_lib.memory.compress.bit_allocation import empirical_fisher as sensitivities
from thesis_lib.memory.compress.convert import write_bits
from thesis_lib.memory.compress.gptq import Metric, gptq, whitening
from thesis_lib.memory.compress.svd import gram_matrices
from thesis_lib.memory.formats.low_bit import Grid, Recipe
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import StreamedModel
from thesis_lib.memory.offload.rates import plan_streamed

PLAIN, CORRECTED = Recipe(Grid(3, 16)), Recipe(Grid(2, 16), 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("dense")
    tiny.write(home / "dense")
    return home / "dense"


@pytest.fixture(scope="module")
def model(folder):
    return tiny.write(folder.parent / "again")


def batches(count=6, seed=0):
    return list(tiny.tokens(seed, count, 24).split(1))


def recipes(model, recipe):
    return dict.fromkeys(matrices(model), recipe)


def test_the_gradient_of_one_token_is_its_own_sensitivity(model):
    ids = tiny.tokens(1, 1, 2)
    found = sensitivities(model, [ids])
    twin = copy.deepcopy(model).float()
    seen = {}
    layer = matrices(twin)["3.mlp.down_proj"]
    layer.register_full_backward_hook(lambda *given: seen.update(g=given[2][0]))
    loss = torch.nn.functional.cross_entropy(twin(ids).logits[0, :1], ids[0, 1:])
    loss.backward()
    expected = seen["g"][0].double().T @ seen["g"][0].double()
    error = found["3.mlp.down_proj"] - expected.numpy()
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected)
    assert found.keys() == matrices(model).keys()
    assert all(part.requires_grad for part in model.parameters())
    assert all(part.grad is None for part in model.parameters())


@pytest.mark.parametrize("seed", range(5))
def test_what_is_allocated_is_the_best_of_all_ways(seed):
    """On convex offers of equal steps greed is optimal: compared with every way."""
    rng = np.random.default_rng(seed)
    choices = {
        name: [
            Offer(Recipe(Grid(width, 8)), 10 * width, float(loss))
            for width, loss in zip(
                (2, 3, 4), np.cumsum(np.sort(rng.random(3)))[::-1], strict=True
            )
        ]
        for name in "abcd"
    }
    for budget in range(80, 165, 10):
        chosen = allocate(choices, budget)
        picked = [
            next(one for one in choices[name] if one.recipe == recipe)
            for name, recipe in chosen.items()
        ]
        ways = itertools.product(*choices.values())
        best = min(
            sum(one.loss for one in way)
            for way in ways
            if sum(one.nbytes for one in way) <= budget
        )
        assert sum(one.nbytes for one in picked) <= budget
        assert sum(one.loss for one in picked) == pytest.approx(best)
    with pytest.raises(InvalidInput, match="the cheapest recipes take 80 bytes"):
        allocate(choices, 79)


def test_an_offer_without_a_rank_is_what_gptq_loses(model):
    name = "1.mlp.up_proj"
    weight = matrices(model)[name].weight.double().detach().numpy()
    gram = gram_matrices(model, batches(), [f"model.layers.{name}"])
    sensed = sensitivities(model, batches())[name]
    (gram,) = gram.values()
    both = [Recipe(Grid(3, 16), rank) for rank in (0, 4, 48)]
    made = offers(weight, gram, sensed, both)
    metric = Metric(whitening(gram, 16), whitening(sensed, len(sensed)))
    error = weight - gptq(weight, metric.inputs, Grid(3, 16)).restore()
    assert made[0].loss == pytest.approx(metric.loss(error))
    assert made[0].loss > made[1].loss > made[2].loss
    assert made[2].loss < 1e-6 * made[0].loss
    assert [one.nbytes for one in made] == [r.nbytes(80, 48) for r in both]
    table = shares(made, both[1])
    assert table.loc[3, 4].tolist() == [1, 1]
    assert table.loss[3, 0] == pytest.approx(made[0].loss / made[1].loss)
    with pytest.raises(InvalidInput, match="not among the 3 offers"):
        shares(made, Recipe(Grid(4, 16)))
    (first, *_) = alike([made, made])
    assert (first.nbytes, first.loss) == (2 * made[0].nbytes, 2 * made[0].loss)


def test_each_layer_is_calibrated_on_what_the_quantised_ones_hand_it(model):
    twin, stored = quantise_model(model, batches(), recipes(model, PLAIN))
    # Of a layer's first matrices the inputs are those in the finished copy; later ones
    # were calibrated before the earlier ones of their own layer were quantised.
    name = "2.self_attn.q_proj"
    (gram,) = gram_matrices(twin, batches(), [f"model.layers.{name}"]).values()
    weight = matrices(model)[name].weight.double().detach().numpy()
    expected = gptq(weight, whitening(gram, 16), PLAIN.grid)
    assert np.array_equal(stored[name].base.codes, expected.codes)
    restored = torch.from_numpy(stored[name].restore()).to(torch.bfloat16)
    assert torch.equal(matrices(twin)[name].weight, restored)
    (dense,) = gram_matrices(model, batches(), [f"model.layers.{name}"]).values()
    assert not np.allclose(dense, gram, rtol=1e-3)


@pytest.mark.parametrize("recipe", [PLAIN, CORRECTED], ids=str)
def test_a_written_checkpoint_streams_to_the_logits_of_the_copy(
    folder, model, recipe, tmp_path
):
    twin, stored = quantise_model(model, batches(), recipes(model, recipe))
    inner = {name.partition(".")[2]: recipe for name in stored}
    said = write_bits(folder, tmp_path / "out", inner, lambda: stored)
    dense = sum(layer.weight.nbytes for layer in matrices(model).values())
    kept = sum(one.nbytes for one in stored.values())
    assert said["bytes_before"] == sum(part.nbytes for part in model.parameters())
    assert said["bytes_before"] - said["bytes_after"] == dense - kept
    ids = tiny.tokens(3, 2, 12)
    plan = plan_streamed(tmp_path / "out", 2, 12, 12, ring=2, logit_tokens=12)
    with StreamedModel(tmp_path / "out", plan) as streamed:
        with DeviceBudget(plan.device_peak_bytes) as budget:
            streamed.charge(budget)
            logits = streamed.logits(ids)
        with torch.no_grad():
            assert torch.equal(logits, twin(ids).logits)
    # Restoring happens within an operator and a cache was not used: neither is metered.
    unseen = plan.scratch_bytes + plan.kv_bytes
    assert 0 <= plan.device_peak_bytes - budget.peak_bytes - unseen < 4096


def test_what_cannot_be_compressed_is_refused(folder, model, tmp_path):
    with pytest.raises(InvalidInput, match=r"24 tokens is too short .* at least 80"):
        quantise_model(model, batches(1), recipes(model, PLAIN))
    broken = copy.deepcopy(model)
    matrices(broken)["1.mlp.up_proj"].weight.data[3, 4] = float("nan")
    with pytest.raises(InvalidInput, match=r"1\.mlp\.up_proj holds weights"):
        quantise_model(broken, batches(), recipes(model, PLAIN))
    odd = [*batches(), tiny.tokens(0, 1, 20)]
    with pytest.raises(InvalidInput, match="expected all of one shape"):
        quantise_model(model, odd, recipes(model, PLAIN))
    _, stored = quantise_model(model, batches(), recipes(model, PLAIN))
    inner = {name.partition(".")[2]: PLAIN for name in stored}
    write_bits(folder, tmp_path / "once", inner, lambda: stored)
    with pytest.raises(InvalidInput, match="packed as bits already"):
        write_bits(tmp_path / "once", tmp_path / "twice", inner, lambda: stored)
    tiny.write(tmp_path / "single", dtype=torch.float32)
    with pytest.raises(InvalidInput, match=r"stored as F32: expected .* bfloat16"):
        write_bits(tmp_path / "single", tmp_path / "no", inner, lambda: stored)
    assert not (tmp_path / "twice").exists()
