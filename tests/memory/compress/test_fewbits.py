"""A model in few bits: what it would cost, calibration in order, what is written."""

import copy

import numba
import numpy as np
import pytest
import tiny
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.allocation import alike, judge, shares
from thesis_lib.memory.compress.blockwise import matrices, quantize_model
from thesis_lib.memory.compress.convert import write_bits
from thesis_lib.memory.compress.fisher import output_factors
from thesis_lib.memory.compress.gptq import Metric, gptq, whitening
from thesis_lib.memory.compress.svd import gram_matrices
from thesis_lib.memory.evaluate.rates import plan_streamed
from thesis_lib.memory.formats import bitplanes
from thesis_lib.memory.formats.low_bit import Grid, LowBitConfig
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import StreamedModel

PLAIN, CORRECTED = LowBitConfig(Grid(3, 16)), LowBitConfig(Grid(2, 16), 4)
WINDOWS = tiny.tokens(0, 6, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("dense")
    tiny.write(home / "dense")
    return home / "dense"


@pytest.fixture(scope="module")
def model(folder):
    return tiny.write(folder.parent / "again")


def recipes(model, recipe):
    return dict.fromkeys(matrices(model), recipe)


def test_an_offer_without_a_rank_is_what_gptq_loses(model):
    name = "1.mlp.up_proj"
    weight = matrices(model)[name].weight.double().detach().numpy()
    whole = f"model.layers.{name}"
    gram = gram_matrices(model, WINDOWS[:, None], [whole])[whole]
    factor = output_factors(model, WINDOWS, "empirical", names=[whole])[whole]
    both = [LowBitConfig(Grid(3, 16), rank) for rank in (0, 4, 48)]
    made = judge(model, WINDOWS, [name], both)[name]
    metric = Metric(whitening(gram, 16), whitening(factor, len(factor)))
    error = weight - gptq(weight, metric.inputs, Grid(3, 16)).restore()
    assert made[0].loss == pytest.approx(metric.loss(error))
    assert made[0].loss > made[1].loss > made[2].loss
    assert made[2].loss < 1e-6 * made[0].loss
    assert [one.nbytes for one in made] == [r.nbytes(80, 48) for r in both]
    table = shares(made, both[1])
    assert table.loc[3, 4].tolist() == [1, 1]
    assert table.loss[3, 0] == pytest.approx(made[0].loss / made[1].loss)
    with pytest.raises(InvalidInput, match="not among the 3 offers"):
        shares(made, LowBitConfig(Grid(4, 16)))
    (first, *_) = alike([made, made])
    assert (first.nbytes, first.loss) == (2 * made[0].nbytes, 2 * made[0].loss)


def test_each_layer_is_calibrated_on_what_the_quantised_ones_hand_it(model):
    twin, stored = quantize_model(model, WINDOWS, recipes(model, PLAIN))
    # Of a layer's first matrices the inputs are those in the finished copy; later ones
    # were calibrated before the earlier ones of their own layer were quantised.
    name = "2.self_attn.q_proj"
    (gram,) = gram_matrices(twin, WINDOWS[:, None], [f"model.layers.{name}"]).values()
    weight = matrices(model)[name].weight.double().detach().numpy()
    expected = gptq(weight, whitening(gram, 16), PLAIN.grid)
    assert np.array_equal(stored[name].base.codes, expected.codes)
    restored = torch.from_numpy(stored[name].restore()).to(torch.bfloat16)
    assert torch.equal(matrices(twin)[name].weight, restored)
    (dense,) = gram_matrices(model, WINDOWS[:, None], [f"model.layers.{name}"]).values()
    assert not np.allclose(dense, gram, rtol=1e-3)


@pytest.mark.parametrize("recipe", [PLAIN, CORRECTED], ids=str)
def test_a_written_checkpoint_streams_to_the_logits_of_the_copy(
    folder, model, recipe, tmp_path, monkeypatch
):
    twin, stored = quantize_model(model, WINDOWS, recipes(model, recipe))
    inner = {name.partition(".")[2]: recipe for name in stored}
    said = write_bits(folder, tmp_path / "out", inner, lambda: stored)
    dense = sum(layer.weight.nbytes for layer in matrices(model).values())
    kept = sum(one.nbytes for one in stored.values())
    assert said["bytes_before"] == sum(part.nbytes for part in model.parameters())
    assert said["bytes_before"] - said["bytes_after"] == dense - kept
    ids = tiny.tokens(3, 2, 12)
    # As where nothing is compiled yet: no tensor may live for as long as a compiler.
    for name in ("_restore_rows", "_decode_rows"):
        kernel = numba.njit(nogil=True)(getattr(bitplanes, name).py_func)
        monkeypatch.setattr(bitplanes, name, kernel)
    bitplanes._compile.cache_clear()
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


def test_what_cannot_be_compressed_is_rejected(folder, model, tmp_path):
    with pytest.raises(InvalidInput, match=r"24 tokens is too short .* at least 80"):
        quantize_model(model, WINDOWS[:1], recipes(model, PLAIN))
    broken = copy.deepcopy(model)
    matrices(broken)["1.mlp.up_proj"].weight.data[3, 4] = float("nan")
    with pytest.raises(InvalidInput, match=r"1\.mlp\.up_proj\.weight holds weights"):
        quantize_model(broken, WINDOWS, recipes(model, PLAIN))
    _, stored = quantize_model(model, WINDOWS, recipes(model, PLAIN))
    inner = {name.partition(".")[2]: PLAIN for name in stored}
    tiny.write(tmp_path / "single", dtype=torch.float32)
    with pytest.raises(InvalidInput, match=r"stored as F32: expected .* bfloat16"):
        write_bits(tmp_path / "single", tmp_path / "no", inner, lambda: stored)
