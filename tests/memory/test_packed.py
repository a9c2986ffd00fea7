"""Packed weights compute what bitsandbytes computes in memory, bit for bit."""

import copy
import itertools
import json
import os

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, OPTConfig

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.writers import pack_checkpoint
from thesis_lib.memory.formats import nf4
from thesis_lib.memory.formats.nf4 import (
    LAYOUTS,
    OUTLIER,
    bitsandbytes,
    layout_here,
    pack_layer,
    packed_entries,
    swap_linears,
)
from thesis_lib.memory.formats.nf4 import PACKED_KINDS as KINDS
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.checkpoint import MANIFEST, OUTER, allocate, nbytes
from thesis_lib.memory.offload.store import SafetensorsStore, StoreDamaged

HAS_AVX512 = bool(bitsandbytes().functional.has_avx512bf16())
FORMATS = [
    pytest.param(
        kind,
        layout,
        marks=pytest.mark.skipif(
            layout == "avx512" and not HAS_AVX512, reason="needs AVX512-BF16"
        ),
    )
    for kind in KINDS
    for layout in LAYOUTS[kind]
]
M, N = 96, 128
DTYPES = {
    "U8": torch.uint8, "I8": torch.int8, "BF16": torch.bfloat16, "F32": torch.float32,
}  # fmt: skip


def dense(m, n, bias, seed=0):
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(n, m, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.data = torch.randn(m, n, generator=draw).bfloat16()
    layer.weight.data[3] *= 50  # rows and blocks of other sizes
    layer.weight.data[5, :64] = 0
    if bias:
        layer.bias.data = torch.randn(m, generator=draw).bfloat16()
    return layer.eval()


def in_memory(layer, kind, layout):
    """bitsandbytes' own layer, which lays its weights out at its first forward pass."""
    bnb = bitsandbytes()
    m, n = layer.weight.shape
    if kind == "int8":
        twin = bnb.nn.Linear8bitLt(
            n, m, bias=False, has_fp16_weights=False, threshold=OUTLIER, device="meta"
        )
        twin.weight = bnb.nn.Int8Params(
            layer.weight.data, requires_grad=False, has_fp16_weights=False
        )
    else:
        twin = bnb.nn.Linear4bit(
            n, m, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
            compress_statistics=False, device="meta",
        )  # fmt: skip
        twin.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4",
            compress_statistics=False, blocksize=64, module=twin,
        )  # fmt: skip
        twin.support_avx512bf16_for_cpu = layout == "avx512"
    twin.bias = layer.bias
    return twin.to("cpu").eval()


def on_meta(layer, kind, layout):
    with torch.device("meta"):
        twin = nn.Sequential(copy.deepcopy(layer).to("meta"))
    return swap_linears(twin, kind, layout)


def state_of(layer):
    return {name: (t.dtype, tuple(t.shape)) for name, t in layer.state_dict().items()}


@pytest.mark.parametrize(("kind", "layout"), FORMATS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_a_packed_layer_equals_that_of_bitsandbytes(kind, layout, bias, tokens):
    layer = dense(M, N, bias)
    draw = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(2, tokens, N, generator=draw).bfloat16()
    hidden[0, 0, 7] = 4 * OUTLIER
    own = in_memory(layer, kind, layout)
    ours = on_meta(layer, kind, layout)
    views = pack_layer(
        {f"0.{k}": v for k, v in layer.state_dict().items()}, kind, layout
    )
    raw = torch.empty(sum(t.nbytes for t in views.values()) + 8, dtype=torch.uint8)
    at = 2  # where a norm before them may leave the codes
    for name in sorted(views, key=lambda name: -views[name].itemsize):
        packed_bytes = views[name].view(torch.uint8).flatten()
        at += -at % views[name].itemsize
        raw[at : at + len(packed_bytes)] = packed_bytes
        view = raw[at : at + len(packed_bytes)].view(views[name].dtype)
        views[name] = view.view(views[name].shape)
        at += len(packed_bytes)
    with torch.no_grad():
        expected = own(hidden)
        found = functional_call(ours, views, (hidden,))
        dense_out = layer(hidden)
    assert torch.equal(found, expected)
    assert torch.equal(found, own(hidden))
    assert found.dtype == torch.bfloat16
    plain = found[1, :, 6:] - dense_out[1, :, 6:]  # away from what was blown up
    error = plain.norm() / dense_out[1, :, 6:].norm()
    assert 0 < error < (0.15 if kind == "nf4" else 0.02)


@pytest.mark.parametrize(("kind", "layout"), FORMATS)
def test_the_state_of_a_swapped_layer_is_what_packing_writes(kind, layout):
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96 if kind == "int8" else 128,
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
        before = {k: ("BF16", tuple(v.shape)) for k, v in tensors.items()}
        found = pack_layer(tensors, kind, layout)
        expected = {k: (v.dtype, tuple(v.shape)) for k, v in found.items()}
        assert state_of(swap_linears(layer, kind, layout)) == expected
        entries = packed_entries(before, kind, layout)
        assert {k: (DTYPES[d], s) for k, (d, s) in entries.items()} == expected
        assert sum(map(nbytes, entries.values())) == sum(
            t.nbytes for t in found.values()
        )
        assert sum(t.nbytes for t in found.values()) < sum(
            t.nbytes for t in tensors.values()
        )


@pytest.mark.parametrize(("kind", "layout"), FORMATS)
def test_a_packed_layer_can_be_rehearsed_without_data(kind, layout):
    layer = on_meta(dense(M, N, True), kind, layout)
    held = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad():
        weights = {
            name: torch.empty(t.shape, dtype=t.dtype, device="cpu")
            for name, t in held.items()
        }
        hidden = torch.empty(2, 5, N, dtype=torch.bfloat16)
        out = functional_call(layer, weights, (hidden,))
    assert (tuple(out.shape), out.dtype) == ((2, 5, M), torch.bfloat16)


@pytest.mark.parametrize(("kind", "layout"), FORMATS)
@pytest.mark.parametrize("outliers", [0, 3, N])
@pytest.mark.parametrize("tokens", [1, 40])
def test_kernels_hold_no_more_than_they_say(kind, layout, outliers, tokens):
    layer = dense(512, N, True)
    ours = on_meta(layer, kind, layout)
    views = pack_layer(
        {f"0.{k}": v for k, v in layer.state_dict().items()}, kind, layout
    )
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
    found = pack_layer({"a.weight": weight}, "nf4", "blocks")
    assert torch.equal(found["a.codes"].flatten(), own.flatten())
    assert torch.equal(found["a.absmax"].flatten(), state.absmax)
    again, state = functional._convert_weight_packed_for_cpu(own, state)
    found = pack_layer({"a.weight": weight}, "nf4", "avx512")
    assert torch.equal(found["a.codes"], again)
    assert torch.equal(found["a.absmax"], state.absmax)


def tiny(folder, layers=3):
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=192, num_attention_heads=4,
        num_key_value_heads=2, num_hidden_layers=layers, vocab_size=70,
        tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.save_pretrained(folder, max_shard_size="200KB")
    return model


def read(store, layer):
    buffer = allocate(store.nbytes(layer))
    store.read_layer(layer, buffer).wait()
    raw = torch.frombuffer(buffer, dtype=torch.uint8)
    return {
        p.name: raw[p.start : p.start + p.nbytes].view(DTYPES[p.dtype]).view(p.shape)
        for p in store.placements(layer)
    }


@pytest.mark.parametrize(("kind", "layout"), FORMATS)
def test_a_packed_checkpoint_holds_the_packed_layers_and_the_rest_as_it_was(
    tmp_path, kind, layout
):
    model = tiny(tmp_path / "dense")
    said = pack_checkpoint(tmp_path / "dense", tmp_path / "out", kind, layout)
    assert said["layers"] == 3
    with SafetensorsStore(tmp_path / "out", verify=True) as store:
        assert (store.kind, store.layout, store.layers) == (kind, layout, 3)
        counted = sum(store.tensor_bytes(i) for i in range(OUTER, 3))
        assert counted == said["bytes_after"] < said["bytes_before"]
        outer = read(store, OUTER)
        for i in range(3):
            dense_layer = model.model.layers[i].state_dict()
            expected = pack_layer(dense_layer, kind, layout)
            found = read(store, i)
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(found[name], tensor), name
                assert store.full_name(i, name) == f"model.layers.{i}.{name}"
    assert sum(p.nbytes for p in model.parameters()) == said["bytes_before"]
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(outer[name], model.state_dict()[name])
    files = (tmp_path / "out").glob("*.safetensors")
    assert counted <= sum(file.stat().st_size for file in files) < counted + 4 * 8192


def test_transformers_knows_the_architecture_and_misses_the_matrices(tmp_path):
    tiny(tmp_path / "dense")
    pack_checkpoint(tmp_path / "dense", tmp_path / "out", "int8")
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(tmp_path / "out")
        AutoModelForCausalLM.from_config(config)
    with smollm2.quiet():
        _, report = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    missing = {name for name in report["missing_keys"] if "proj" in name}
    assert len(missing) == 3 * 7


def test_what_cannot_be_packed_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"q_proj has 96 inputs.*use int8"):
        pack_layer({"q_proj.weight": torch.ones(32, 96)}, "nf4")
    with pytest.raises(InvalidInput, match="40 outputs"):
        swap_linears(nn.Sequential(nn.Linear(64, 40, device="meta")), "nf4")
    with pytest.raises(InvalidInput, match="'fp4' is unknown"):
        pack_layer({}, "fp4")
    with pytest.raises(InvalidInput, match="layout of int8='blocks' is unknown"):
        pack_layer({}, "int8", "blocks")
    with pytest.raises(InvalidInput, match=r"no nn\.Linear"):
        swap_linears(nn.Sequential(nn.ReLU()), "nf4")
    for kind in KINDS:
        weight = torch.ones(32, 64)
        weight[3, 4] = torch.nan
        with pytest.raises(InvalidInput, match=r"a\.weight holds weights that are not"):
            pack_layer({"a.weight": weight}, kind)
    tiny(tmp_path / "dense")
    pack_checkpoint(tmp_path / "dense", tmp_path / "out", "int8")
    with pytest.raises(InvalidInput, match="packed as int8 already"):
        pack_checkpoint(tmp_path / "out", tmp_path / "again", "int8")


def test_a_layout_that_this_machine_cannot_run_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(nf4, "_runs", lambda layout: layout != "avx512")
    assert layout_here("nf4") == "blocks"
    layer = nn.Sequential(nn.Linear(64, 64, device="meta"))
    with pytest.raises(InvalidInput, match=r"'avx512' need.*pack.*layout='blocks'"):
        swap_linears(layer, "nf4", "avx512")
    swap_linears(layer, "nf4")


def flip(path, at=-1):
    """One bit, under the same size and times."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_one_bit_of_a_packed_layer_is_noticed_when_it_is_read(tmp_path):
    tiny(tmp_path / "dense")
    pack_checkpoint(tmp_path / "dense", tmp_path / "out", "int8")
    path = tmp_path / "out" / "layer-0001.safetensors"
    with SafetensorsStore(tmp_path / "out") as store:
        read(store, 1)
        flip(path)
        read(store, 0)
        with pytest.raises(StoreDamaged, match=r"layer-0001\.safetensors.*checksum"):
            read(store, 1)
    with SafetensorsStore(tmp_path / "out") as store, pytest.raises(StoreDamaged):
        read(store, 1)
    with pytest.raises(StoreDamaged, match=r"layer-0001\.safetensors.*SHA-256"):
        SafetensorsStore(tmp_path / "out", verify=True)


def test_a_packed_checkpoint_without_its_manifest_is_refused(tmp_path):
    tiny(tmp_path / "dense")
    pack_checkpoint(tmp_path / "dense", tmp_path / "out", "int8")
    manifest = tmp_path / "out" / MANIFEST
    content = json.loads(manifest.read_text())
    manifest.unlink()
    with pytest.raises(StoreDamaged, match=r"int8 rows weights by its config\.json"):
        SafetensorsStore(tmp_path / "out")
    manifest.write_text(json.dumps(content | {"version": 7}))
    with pytest.raises(StoreDamaged, match="manifest of version 7"):
        SafetensorsStore(tmp_path / "out")
    manifest.write_text("{")
    with pytest.raises(StoreDamaged, match=r"manifest\.json is not readable JSON"):
        SafetensorsStore(tmp_path / "out")
