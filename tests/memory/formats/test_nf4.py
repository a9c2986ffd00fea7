"""Packed weights compute what bitsandbytes computes in memory, bit for bit."""

import copy
import itertools
import json

import pytest
import tiny
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.convert import convert
from thesis_lib.memory.formats import nf4
from thesis_lib.memory.formats.base import find_format
from thesis_lib.memory.formats.nf4 import NF4, OUTLIER, Int8, bitsandbytes
from thesis_lib.memory.model.checkpoint import MANIFEST, NON_LAYER, entry_of, nbytes
from thesis_lib.memory.offload.store import SafetensorsStore, StoreDamaged
from thesis_lib.memory.offload.transfer import read_tensors

HAS_AVX512 = bool(bitsandbytes().functional.has_avx512bf16())
FORMATS = [
    pytest.param(
        made(layout),
        marks=pytest.mark.skipif(
            layout == "avx512" and not HAS_AVX512, reason="needs AVX512-BF16"
        ),
        id=f"{made.kind} {layout}",
    )
    for made in (NF4, Int8)
    for layout in made.layouts
]
INT8 = Int8("rows")
M, N = 96, 128


def dense(m, n, bias, seed=0):
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(n, m, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.data = torch.randn(m, n, generator=draw).bfloat16()
    layer.weight.data[3] *= 50  # rows and blocks of other sizes
    layer.weight.data[5, :64] = 0
    if bias:
        layer.bias.data = torch.randn(m, generator=draw).bfloat16()
    return layer.eval()


def in_memory(layer, weights):
    """bitsandbytes' own layer, which lays its weights out at its first forward pass."""
    twin = nf4.in_memory(layer, weights.kind, double=False)
    twin.support_avx512bf16_for_cpu = weights.layout == "avx512"
    twin.bias = layer.bias
    return twin.to("cpu").eval()


def on_meta(layer, weights):
    twin = nn.Sequential(copy.deepcopy(layer).to("meta"))
    weights.swap(nn.ModuleList([twin]))
    return twin


def packed_state(layer, weights):
    """What is stored of a layer as the first of a sequence."""
    return weights.encode(0, {f"0.{k}": v for k, v in layer.state_dict().items()})


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_a_packed_layer_equals_that_of_bitsandbytes(weights, bias, tokens):
    layer = dense(M, N, bias)
    draw = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(2, tokens, N, generator=draw).bfloat16()
    hidden[0, 0, 7] = 4 * OUTLIER
    own = in_memory(layer, weights)
    ours = on_meta(layer, weights)
    views = {}
    for name, tensor in packed_state(layer, weights).items():
        # Where a norm before them may leave the codes.
        raw = torch.empty(tensor.nbytes + tensor.itemsize, dtype=torch.uint8)
        view = raw[tensor.itemsize :].view(tensor.dtype).view(tensor.shape)
        views[name] = view.copy_(tensor)
    with torch.no_grad():
        expected = own(hidden)
        found = functional_call(ours, views, (hidden,))
        dense_out = layer(hidden)
    assert torch.equal(found, expected)
    assert torch.equal(found, own(hidden))
    assert found.dtype == torch.bfloat16
    plain = found[1, :, 6:] - dense_out[1, :, 6:]  # away from what was blown up
    error = plain.norm() / dense_out[1, :, 6:].norm()
    assert 0 < error < (0.15 if weights.kind == "nf4" else 0.02)


@pytest.mark.parametrize("weights", FORMATS)
def test_the_state_of_a_swapped_layer_is_what_packing_writes(weights):
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96 if weights.kind == "int8" else 128,
        num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1,
        vocab_size=50, attention_bias=True,
    )  # fmt: skip
    for made in (config, OPTConfig(hidden_size=64, ffn_dim=128, num_attention_heads=4)):
        made.dtype = torch.bfloat16
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
        layer = next(m for m in model.modules() if isinstance(m, nn.ModuleList))[0]
        tensors = {
            k: torch.ones(v.shape, dtype=v.dtype) for k, v in layer.state_dict().items()
        }
        found = weights.encode(0, tensors)
        expected = {k: entry_of(v) for k, v in found.items()}
        weights.swap(nn.ModuleList([layer]))
        assert {k: entry_of(v) for k, v in layer.state_dict().items()} == expected
        entries = weights.entries(0, {k: entry_of(v) for k, v in tensors.items()})
        assert entries == expected
        assert sum(map(nbytes, entries.values())) == sum(
            t.nbytes for t in found.values()
        )
        assert sum(t.nbytes for t in found.values()) < sum(
            t.nbytes for t in tensors.values()
        )


@pytest.mark.parametrize("weights", FORMATS)
def test_a_packed_layer_can_be_rehearsed_without_data(weights):
    layer = on_meta(dense(M, N, True), weights)
    held = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad():
        weights = {
            name: torch.empty(t.shape, dtype=t.dtype, device="cpu")
            for name, t in held.items()
        }
        hidden = torch.empty(2, 5, N, dtype=torch.bfloat16)
        out = functional_call(layer, weights, (hidden,))
    assert (tuple(out.shape), out.dtype) == ((2, 5, M), torch.bfloat16)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("outliers", [0, 3, N])
@pytest.mark.parametrize("tokens", [1, 40])
def test_kernels_hold_no_more_than_they_say(weights, outliers, tokens):
    layer = dense(512, N, True)
    ours = on_meta(layer, weights)
    views = packed_state(layer, weights)
    hidden = torch.ones(1, tokens, N, dtype=torch.bfloat16)
    hidden[:, :, :outliers] = 4 * OUTLIER
    with torch.no_grad():
        functional_call(ours, views, (hidden,))
        with torch.profiler.profile(profile_memory=True) as seen:
            out = functional_call(ours, views, (hidden,))
    steps = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(steps, key=lambda e: e.start_ns())]
    assert sum(changes) >= out.nbytes  # allocations and what was given back
    peak = max(itertools.accumulate(changes))
    said = out.nbytes + ours[0].scratch_bytes(tokens)
    assert peak <= said + 64 * len(changes)  # an allocation is rounded up


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_codes_are_those_of_bitsandbytes(dtype):
    functional = bitsandbytes().functional
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(4096, 512, generator=draw).to(dtype)
    book = functional.get_4bit_type("nf4", device="cpu")
    weight[:16, :64] = ((book[:-1] + book[1:]) / 2)[torch.arange(64) % 15].to(dtype)
    weight[:16, 63] = 1  # values at the very bounds between two levels
    own, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=False
    )
    found = NF4("blocks").encode(0, {"a.weight": weight})
    assert torch.equal(found["a.codes"].flatten(), own.flatten())
    assert torch.equal(found["a.absmax"].flatten(), state.absmax)
    again, state = functional._convert_weight_packed_for_cpu(own, state)
    found = NF4("avx512").encode(0, {"a.weight": weight})
    assert torch.equal(found["a.codes"], again)
    assert torch.equal(found["a.absmax"], state.absmax)


SHAPE = {
    "num_hidden_layers": 3, "hidden_size": 128, "intermediate_size": 192,
    "num_attention_heads": 4, "head_dim": 32,
}  # fmt: skip


@pytest.mark.parametrize("weights", FORMATS)
def test_a_packed_checkpoint_holds_the_packed_layers_and_the_rest_as_it_was(
    tmp_path, weights
):
    model = tiny.write(tmp_path / "dense", **SHAPE)
    said = convert(tmp_path / "dense", tmp_path / "out", weights)
    assert said["layers"] == 3
    with SafetensorsStore(tmp_path / "out", verify=True) as store:
        assert (store.weights, store.layers) == (weights, 3)
        counted = sum(store.tensor_bytes(i) for i in range(NON_LAYER, 3))
        assert counted == said["bytes_after"] < said["bytes_before"]
        outer = read_tensors(store, NON_LAYER)
        for i in range(3):
            dense_layer = model.model.layers[i].state_dict()
            expected = weights.encode(i, dense_layer)
            found = read_tensors(store, i)
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(found[name], tensor), name
                assert store.full_name(i, name) == f"model.layers.{i}.{name}"
    assert sum(p.nbytes for p in model.parameters()) == said["bytes_before"]
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(outer[name], model.state_dict()[name])
    files = (tmp_path / "out").glob("*.safetensors")
    assert counted <= sum(file.stat().st_size for file in files) < counted + 4 * 8192


def test_what_cannot_be_packed_is_rejected():
    four = find_format("nf4")
    for call, words in (
        (lambda: four.encode(0, {"q_proj.weight": torch.ones(32, 96)}), "96 inputs.*8"),
        (lambda: on_meta(nn.Linear(64, 40), four), "40 outputs"),
        (lambda: find_format("fp4"), "'fp4' is unknown"),
        (lambda: Int8("blocks"), "layout of int8='blocks' is unknown"),
        (lambda: on_meta(nn.ReLU(), four), r"no nn\.Linear"),
    ):
        with pytest.raises(InvalidInput, match=words):
            call()
    for weights in (four, INT8):
        weight = torch.ones(32, 64)
        weight[3, 4] = torch.nan
        with pytest.raises(InvalidInput, match=r"a\.weight holds weights that are not"):
            weights.encode(0, {"a.weight": weight})


def test_a_layout_that_this_machine_cannot_run_is_rejected_by_name(monkeypatch):
    monkeypatch.setattr(nf4, "_runs", lambda layout: layout != "avx512")
    assert find_format("nf4") == NF4("blocks")
    with pytest.raises(InvalidInput, match=r"'avx512' need.*pack.*layout='blocks'"):
        on_meta(nn.Linear(64, 64), NF4("avx512"))
    on_meta(nn.Linear(64, 64), NF4("blocks"))


def test_a_packed_checkpoint_without_its_manifest_is_rejected(tmp_path):
    tiny.write(tmp_path / "dense", **SHAPE)
    convert(tmp_path / "dense", tmp_path / "out", INT8)
    manifest = tmp_path / "out" / MANIFEST
    content = json.loads(manifest.read_text())
    manifest.unlink()
    with pytest.raises(StoreDamaged, match=r"int8 rows weights by its config\.json"):
        SafetensorsStore(tmp_path / "out")
    for text, words in (
        (json.dumps(content | {"version": 7}), "manifest of version 7"),
        ("{", r"manifest\.json is not readable JSON"),
    ):
        manifest.write_text(text)
        with pytest.raises(StoreDamaged, match=words):
            SafetensorsStore(tmp_path / "out")
