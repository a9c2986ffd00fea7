"""A format that one file defines is written, planned, verified and streamed."""

import json

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.convert import compress_checkpoint, convert
from thesis_lib.memory.compress.random_weights import synthesize
from thesis_lib.memory.formats import base
from thesis_lib.memory.formats.base import (
    PackedLinear,
    WeightFormat,
    find_format,
    formats,
    words,
)
from thesis_lib.memory.model.linears import linears
from thesis_lib.memory.model.spec import Machine, ModelSpec, geometry
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint
from thesis_lib.memory.offload.plan import least_device_bytes, plan
from thesis_lib.memory.offload.store import SafetensorsStore


class Steps(WeightFormat):
    """Whole numbers in a byte, and in float16 the largest magnitude of each row."""

    kind = word = "steps"

    def matrix_entries(self, layer, name, entry):
        m, n = entry[1]
        return {"codes": ("I8", (m, n)), "largest": ("F16", (m, 1))}

    def encode_matrix(self, name, weight):
        largest = weight.abs().amax(1, keepdim=True).half()
        codes = (weight / largest * 127).round().to(torch.int8)
        return {"codes": codes, "largest": largest}

    def linear(self, layer, name, dense):
        entry = "BF16", (dense.out_features, dense.in_features)
        return StepsLinear(dense, self.matrix_entries(layer, name, entry))


class StepsLinear(PackedLinear):
    def scratch_bytes(self, rows):
        return 1000  # as if its kernel took so many

    def forward(self, hidden):
        weight = restore(self.codes, self.largest)
        return nn.functional.linear(hidden, weight, self.bias)


def restore(codes, largest):
    return (codes * (largest / 127)).bfloat16()


@pytest.fixture
def steps(monkeypatch):
    """The format, known for the time of a test as one of a file in the folder is."""
    formats()
    monkeypatch.setitem(base.FORMATS, "steps", Steps)
    return Steps()


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma2"])
def test_a_new_format_streams_to_the_logits_of_the_weights_it_stands_for(
    tmp_path, architecture, steps
):
    model = tiny.write(tmp_path / "dense", architecture)
    said = convert(tmp_path / "dense", tmp_path / "steps", steps)
    saved = 0
    for name, layer in linears(model.model).items():
        stored = steps.encode_matrix(name, layer.weight.data)
        saved += layer.weight.nbytes - sum(part.nbytes for part in stored.values())
        layer.weight.data = restore(**stored)
    assert said["bytes_before"] - said["bytes_after"] == saved > 0
    made = tiny.plan_tight(tmp_path / "steps", 1, 2, batch=2, context=24, pass_tokens=9)
    assert (made.kind, made.scratch_bytes) == ("steps", 1000)
    slack = made.device_peak_bytes - 1000 - tiny.metered(tmp_path / "steps", made)
    assert 0 <= slack <= tiny.ROW * 2 * 9 + 2 * 4096
    with StreamedModel(tmp_path / "steps", made, verify=True) as twin:
        assert tiny.agree(twin, model, batch=2, chunks=(9, 1, 5))


def test_commands_and_geometries_know_a_new_format_by_its_word(tmp_path, steps):
    assert words()["steps"] == "steps"
    assert find_format("steps") == steps
    tiny.write(tmp_path / "dense")
    said = compress_checkpoint(
        str(tmp_path / "dense"), tmp_path / "out", "steps", tokens=0
    )
    assert said["bytes_after"] < said["bytes_before"]
    spec = ModelSpec("tiny", 4, 64, 96, 4, 2, 16, 100, tied=False)
    synthesize(spec, tmp_path / "random", kind="steps")
    predicted = plan(
        spec, Machine(least_device_bytes(spec, kind="steps"), 1e9), kind="steps"
    )
    made = plan_checkpoint(tmp_path / "random", predicted.machine)
    assert abs(made.layer_read_bytes - predicted.layer_read_bytes) <= 4096
    with SafetensorsStore(tmp_path / "random") as store:
        assert store.weights == steps


def test_a_format_that_a_manifest_invents_is_rejected(tmp_path, monkeypatch):
    tiny.write(tmp_path / "dense")
    with monkeypatch.context() as patch:
        patch.setitem(base.FORMATS, "steps", Steps)
        convert(tmp_path / "dense", tmp_path / "out", Steps())
    with pytest.raises(InvalidInput, match="kind='steps' is unknown: expected one of"):
        plan_checkpoint(tmp_path / "out", Machine(2**40, 1e9), context=8)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("lowrank", "no ranks of factors"),
        ("gguf", "no types of blocks"),
        ("bits", "names no recipe of a matrix"),
    ],
)
def test_a_geometry_has_no_plan_for_a_kind_that_says_too_little(kind, missing):
    with pytest.raises(InvalidInput, match=missing):
        plan(geometry("llama2-7b"), Machine(2**40, 1e9), kind=kind, context=32)
    with pytest.raises(InvalidInput, match=f"kind='{kind}' .*expected a checkpoint"):
        find_format(kind)


def test_dense_weights_converted_to_dense_ones_are_the_same_model(tmp_path):
    model = tiny.write(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "again", find_format("dense"))
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "quantization_config" not in config
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor)
