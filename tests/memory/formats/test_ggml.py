"""Blocks of a GGUF file stand for the weights that the gguf package decodes."""

import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from thesis_lib.memory.formats import bitplanes, ggml

TYPES = [
    kind for kind in ggml.known_types().values() if gguf.GGML_QUANT_SIZES[kind][0] > 1
]


def at_random(kind, m, blocks, seed=0):
    """Rows of any bytes: every code, and scales of any size, none and infinite."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    draw = np.random.default_rng([kind, seed])
    return torch.from_numpy(draw.integers(0, 256, (m, blocks * size), np.uint8))


def decoded(rows, kind):
    with np.errstate(all="ignore"):
        values = np.array(gguf.dequantize(rows.numpy(), kind))
    return torch.from_numpy(values).to(torch.bfloat16)


def same_bits(one, other):
    """Equal as words, so that zeros have signs; what is no number is so in both."""
    number = ~one.isnan()
    words = one.view(torch.int16)[number], other.view(torch.int16)[number]
    return torch.equal(*words) and torch.equal(number, ~other.isnan())


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_matrix_is_restored_as_the_package_decodes_it(kind):
    rows = at_random(kind, 61, 8)
    expected = decoded(rows, kind)
    with np.errstate(all="ignore"):
        found = ggml.unpack(rows, kind)
    assert found.dtype == torch.bfloat16
    assert same_bits(found, expected)
    assert not expected.isnan().all()


@pytest.mark.parametrize("kind", ggml.COMPILED, ids=lambda kind: kind.name)
def test_every_scale_that_is_finite_gives_the_same_weights(kind):
    """All numbers of 16 bits in turn, as scale and as least value."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    scales = np.arange(2**16, dtype=np.uint16)
    rows = at_random(kind, 2**16, 1).numpy()
    two = kind.name.endswith(("_K", "_1"))
    at = [208] if kind == Kind.Q6_K else [0, 2] if two else [0]
    for place in at:
        rows[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    rows = torch.from_numpy(rows)
    assert same_bits(ggml.unpack(rows, kind), decoded(rows, kind))
    assert rows.shape[1] == size
    assert block in (32, 256)


@pytest.mark.parametrize("kind", [Kind.Q5_0, Kind.Q4_K, Kind.IQ4_NL])
@pytest.mark.parametrize("workers", [2, 3, 7])
def test_threads_restore_the_same_matrix(kind, workers, monkeypatch):
    rows = at_random(kind, 48, 3)
    expected = decoded(rows, kind)
    monkeypatch.setattr(bitplanes, "_SHARE", expected.numel() // workers)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    with np.errstate(all="ignore"):
        assert same_bits(ggml.unpack(rows, kind), expected)


@pytest.mark.parametrize("kind", [Kind.IQ4_NL, Kind.Q3_K], ids=lambda kind: kind.name)
def test_a_slab_at_a_time_is_decoded_where_nothing_is_compiled(kind, monkeypatch):
    rows = at_random(kind, 40, 2)
    expected = decoded(rows, kind)
    sizes = []

    def seen(part, of):
        sizes.append(len(part))
        return gguf.quants.dequantize(part, of)

    monkeypatch.setattr(ggml.gguf, "dequantize", seen)
    n = expected.shape[1]
    monkeypatch.setattr(ggml, "_SLAB", 7 * ggml.WORK_PER_WEIGHT * n)
    with np.errstate(all="ignore"):
        assert same_bits(ggml.unpack(rows, kind), expected)
    assert sizes == [7] * 5 + [5]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", [Kind.IQ4_NL, Kind.Q3_K], ids=lambda kind: kind.name)
def test_restoring_holds_what_a_layer_says_and_no_more(kind, workers, monkeypatch):
    n = 2048
    dense = torch.nn.Linear(n, 600, bias=False, dtype=torch.bfloat16, device="meta")
    layer = ggml.Blocks(types=[{"up": kind.name}]).linear(0, "up", dense)
    monkeypatch.setattr(bitplanes, "_SHARE", 600 * n // workers)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(ggml, "_SLAB", 32 * ggml.WORK_PER_WEIGHT * n)
    rows = at_random(kind, 600, n // gguf.GGML_QUANT_SIZES[kind][0])
    with np.errstate(all="ignore"):
        ggml.unpack(rows[:2], kind)  # its first operators import what they need
        tracemalloc.start()
        ggml.unpack(rows, kind)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    most = layer.scratch_bytes(rows=1)
    assert most == workers * ggml._SLAB
    assert peak_bytes <= most
    assert most == layer.scratch_bytes(rows=9)


def test_a_compiled_layer_holds_nothing_beside_its_matrix():
    dense = torch.nn.Linear(512, 96, bias=False, dtype=torch.bfloat16, device="meta")
    layer = ggml.Blocks(types=[{"up": "Q4_K"}]).linear(0, "up", dense)
    assert layer.scratch_bytes(rows=1) == 0


def test_the_type_that_takes_most_stands_for_all_layers():
    types = [{"a": "Q4_K", "b": "Q8_0"}, {"a": "Q6_K", "b": "Q3_K"}, {}]
    worst = ggml.Blocks(types=types).for_dry_run(2)
    assert worst.types == [{"a": "Q6_K", "b": "Q3_K"}] * 2
    alike = [{"a": "Q4_0"}, {"a": "Q4_K"}]  # as many bytes: the one in larger blocks
    for types in (alike, alike[::-1]):
        assert ggml.Blocks(types=types).for_dry_run(1).types == [{"a": "Q4_K"}]
