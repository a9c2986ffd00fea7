import checks
import numpy as np
import pytest
import torch
from torch import nn

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.formats.low_bit import BITS
from thesis_lib.memory.formats.nf4 import (
    BLOCK,
    SCALE_BLOCK,
    bitsandbytes,
    blockwise_error,
    four_bit_bytes,
    levels,
    nf4_levels,
    normalized_blocks,
    quantize,
    weight_bytes,
)


def dequantize(layer):
    """The weight (m, n) that a quantised layer stands for, from its stored bytes."""
    functional = bitsandbytes().functional
    state = getattr(layer.weight, "quant_state", None)
    if state is not None:
        return functional.dequantize_4bit(layer.weight.data, state)
    return functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)


@pytest.mark.parametrize("bits", BITS)
def test_blockwise_error_is_that_of_rounding_to_a_step_of_each_block(bits):
    weight = np.random.default_rng(0).standard_normal((6, 128))
    weight[0, :64] = 0
    blocks = weight.reshape(-1, 64)
    step = np.abs(blocks).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    restored = step * np.rint(blocks / np.where(step, step, 1))
    assert np.all(np.abs(blocks - restored) <= step / 2 * (1 + 1e-12))
    expected = np.linalg.norm(blocks - restored) / np.linalg.norm(weight)
    assert blockwise_error(weight, bits) == pytest.approx(expected, rel=1e-10)
    assert blockwise_error(-weight, bits) == blockwise_error(weight, bits)


def test_each_bit_about_halves_the_error():
    weight = np.random.default_rng(0).standard_normal((64, 1024))
    errors = {bits: blockwise_error(weight, bits) for bits in BITS}
    # One bit takes 2^(b-1) - 1 levels a side to 2^b - 1.
    assert errors[3] / errors[4] == pytest.approx(7 / 3, rel=0.05)
    assert errors[4] / errors[8] == pytest.approx(127 / 7, rel=0.05)
    assert errors[2] > 2 * errors[3]


def test_nf4_has_sixteen_levels_finer_where_a_normal_has_its_mass():
    found = nf4_levels()
    np.testing.assert_allclose(found, levels("nf4"), atol=1e-6)  # of bitsandbytes
    assert (len(found), found[0], found[7], found[15]) == (16, -1, 0, 1)
    steps = np.diff(found[7:])
    assert np.all(np.diff(found) > 0)
    assert np.all(np.diff(steps) > 0)


def small_model(seed=0, dtype=torch.bfloat16):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(128, 64, bias=False), nn.Tanh(), nn.Linear(64, 256, bias=True)
    )
    return model.to(dtype).eval()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bit_bytes_are_codes_scales_and_scales_of_scales(kind):
    model = small_model()
    bias = 2 * 256
    expected = bias + sum(
        n // 2 + n // BLOCK + 4 * -(-n // (BLOCK * SCALE_BLOCK)) + 4
        for n in (128 * 64, 64 * 256)
    )
    assert weight_bytes(quantize(model, kind)) == expected
    assert four_bit_bytes(128 * 64) + four_bit_bytes(64 * 256) + bias == expected


def test_int8_bytes_are_codes_and_one_scale_a_row():
    model = small_model()
    expected = 2 * 256 + 128 * 64 + 4 * 64 + 64 * 256 + 4 * 256
    twin = quantize(model, "int8")
    assert weight_bytes(twin) == expected
    twin(torch.zeros(1, 128, dtype=torch.bfloat16))
    assert weight_bytes(twin) == expected


def test_dense_bytes_count_a_shared_tensor_once():
    model = small_model()
    assert weight_bytes(model) == 2 * (128 * 64 + 64 * 256 + 256)
    tied = nn.Sequential(model[0], model[0])
    assert weight_bytes(tied) == weight_bytes(model[0])
    assert weight_bytes(model, ["0"]) == 2 * 128 * 64


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_four_bit_weight_is_the_nearest_level_of_its_block(kind):
    model = small_model()
    weight = model[0].weight.double().detach().numpy()
    restored = dequantize(quantize(model, kind)[0]).double().numpy()
    book = levels(kind)
    scale = np.repeat(np.abs(weight.reshape(-1, BLOCK)).max(axis=1), BLOCK)
    scale = scale.reshape(weight.shape)
    nearest = np.abs(weight[..., None] / scale[..., None] - book).min(axis=-1)
    # Scales are rounded to 8 bits (double quantisation) and weights to bfloat16.
    assert np.all(np.abs(weight - restored) <= (nearest + 0.03) * scale)


def test_an_int8_weight_is_within_half_a_step_of_its_row():
    model = small_model()
    weight = model[0].weight.double().detach().numpy()
    restored = dequantize(quantize(model, "int8")[0]).double().numpy()
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(weight - restored) <= step * 0.51)


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.02), ("nf4", 0.15)])
def test_a_quantised_layer_computes_with_its_stored_weight(kind, bound):
    model = small_model()
    x = torch.randn(5, 128, dtype=torch.bfloat16)
    twin = quantize(model, kind)
    stored = dequantize(twin[0]).float()
    with torch.inference_mode():
        computed = twin[0](x).float()
    expected = x.float() @ stored.T
    exact = x.float() @ model[0].weight.float().T
    assert (computed - expected).norm() < 0.02 * expected.norm()
    assert 0 < (computed - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_copy_leaves_the_model_as_it_was(kind):
    model = small_model()
    with checks.unchanged(model):
        twin = quantize(model, kind, names=["0"])
    assert type(model[0]) is nn.Linear
    assert type(twin[2]) is nn.Linear


def test_bitsandbytes_adds_no_noise(capsys, caplog):
    twin = quantize(small_model(), "int8")
    with torch.inference_mode():
        twin(torch.zeros(1, 128, dtype=torch.bfloat16))
    assert capsys.readouterr().err == ""
    assert not caplog.records


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: quantize(small_model(), "nf5"), "kind='nf5' is unknown"),
        (lambda: quantize(small_model().train(), "nf4"), "eval"),
        (
            lambda: quantize(nn.Sequential(nn.Linear(100, 64)).eval(), "nf4"),
            "0 has 100 inputs",
        ),
        (lambda: blockwise_error(np.ones((1, 64)), 5), "bits=5"),
        (lambda: four_bit_bytes(100), "multiple of 64"),
        (lambda: normalized_blocks(np.ones((4, 100))), "blocks of 64"),
    ],
)
def test_what_cannot_be_quantised_is_rejected(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()
