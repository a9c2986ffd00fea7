"""Geometry is arithmetic: published parameter counts, and the bytes of a real file."""

import json
from dataclasses import replace

import pytest
from safetensors import safe_open

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import (
    ARCHITECTURES,
    Machine,
    ModelSpec,
    geometries,
    geometry,
)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-65b", 65_285_660_672),
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("mistral-7b", 7_241_732_096),
    ],
)
def test_parameters_are_the_published_count(name, parameters):
    assert geometry(name).parameters == parameters
    assert geometry(name).total_bytes == 2 * parameters


def test_opt_66b_has_66_billion_parameters():
    assert geometry("opt-66b").parameters / 1e9 == pytest.approx(65.7, abs=0.1)


@pytest.mark.parametrize("name", geometries())
def test_parts_sum_to_the_whole(name):
    spec = geometry(name)
    parts = spec.layers * spec.layer_bytes + spec.embedding_bytes + spec.head_bytes
    assert parts == spec.total_bytes


def test_total_bytes_are_those_of_the_file():
    folder = smollm2.checkpoint()
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert ModelSpec.from_config(folder).total_bytes == stored


def test_cache_and_work_grow_with_their_arguments():
    spec = geometry("llama2-70b")
    assert spec.kv_bytes(1, 1) == 2 * 80 * 8 * 128 * 2
    assert spec.kv_bytes(3, 7) == 21 * spec.kv_bytes(1, 1)
    # Two operations a weight that multiplies; the embedding only looks a row up.
    matrices = spec.layers * spec.layer_matrix_parameters + spec.vocab * spec.hidden
    assert spec.flops_per_token() == 2 * matrices
    assert spec.flops_per_token(10) - spec.flops_per_token(0) == 4 * 80 * 10 * 64 * 128


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_size": None}, "hidden_size"),
        ({"dtype": "int3"}, "int3"),
    ],
)
def test_a_config_that_cannot_be_described_is_refused_by_name(tmp_path, change, named):
    config = json.loads((smollm2.checkpoint() / "config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match=named):
        ModelSpec.from_config(tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["sliding_window", "attention_chunk_size"])
def test_from_config_rejects_window_that_is_no_count(tmp_path, architecture, name):
    config = json.loads((smollm2.checkpoint() / "config.json").read_text())
    config |= {"model_type": architecture, "ffn_dim": config["intermediate_size"]}
    for window in ("x", "64", 0, -1, 1.5, True, [4], {}, 2**31, 2**63, 10**30):
        (tmp_path / "config.json").write_text(json.dumps(config | {name: window}))
        with pytest.raises(InvalidInput, match=f"{name} in"):
            ModelSpec.from_config(tmp_path)
    for window in (None, 1, 4096, 2**31 - 1):
        (tmp_path / "config.json").write_text(json.dumps(config | {name: window}))
        assert ModelSpec.from_config(tmp_path).architecture == architecture


def test_positions_are_those_of_the_config_or_of_its_scaling(tmp_path):
    config = json.loads((smollm2.checkpoint() / "config.json").read_text())
    for positions, rope, expected in (
        (8192, {"rope_type": "default"}, 8192),
        (8192, {"rope_type": "linear", "factor": 4.0}, 8192),
        (
            32768,
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            131072,
        ),
        (
            131072,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
            },
            131072,
        ),
    ):
        changed = {"max_position_embeddings": positions, "rope_parameters": rope}
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        assert ModelSpec.from_config(tmp_path).most_positions == expected, rope


def test_absent_config_and_unknown_geometry_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"config\.json"):
        ModelSpec.from_config(tmp_path)
    with pytest.raises(InvalidInput, match="llama-65b"):
        geometry("llama-66b")


@pytest.mark.parametrize("change", [{"dtype_bytes": 1}, {"vocab": 0}, {"head_dim": -8}])
def test_a_geometry_that_cannot_be_is_refused_by_name(change):
    (name,) = change
    with pytest.raises(InvalidInput, match=f"{name}={change[name]}"):
        replace(geometry("llama-65b"), **change)


def test_a_machine_has_memory_and_rates():
    with pytest.raises(InvalidInput, match="disk_bytes_per_s"):
        Machine(device_bytes=1, disk_bytes_per_s=0)
    with pytest.raises(InvalidInput, match="device_bytes"):
        Machine(device_bytes=0, disk_bytes_per_s=1)
