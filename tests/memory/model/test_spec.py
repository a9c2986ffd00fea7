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


@pytest.fixture
def describe(tmp_path):
    """Describe the packaged model with other settings, or without those that are ..."""
    config = json.loads((smollm2.checkpoint() / "config.json").read_text())

    def described(**changes):
        changed = {k: v for k, v in (config | changes).items() if v is not ...}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        return ModelSpec.from_config(tmp_path)

    return described


@pytest.mark.parametrize(
    "change", [{"model_type": "gpt2"}, {"hidden_size": ...}, {"dtype": "int3"}]
)
def test_a_config_that_cannot_be_described_is_rejected_by_name(describe, change):
    ((name, value),) = change.items()
    with pytest.raises(InvalidInput, match=name if value is ... else value):
        describe(**change)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["sliding_window", "attention_chunk_size"])
def test_from_config_rejects_window_that_is_no_count(describe, architecture, name):
    changes = {"model_type": architecture, "ffn_dim": 1536}
    for window in ("x", "64", 0, -1, 1.5, True, [4], {}, 2**31, 2**63, 10**30):
        with pytest.raises(InvalidInput, match=f"{name} in"):
            describe(**changes, **{name: window})
    for window in (None, 1, 4096, 2**31 - 1):
        spec = describe(**changes, **{name: window})
        assert spec.architecture == architecture


def scaled(rope_type, factor, original=None, key="rope_type"):
    first = {"original_max_position_embeddings": original} if original else {}
    return {key: rope_type, "factor": factor, **first}


@pytest.mark.parametrize(
    ("positions", "rope", "expected"),
    [
        (8192, {"rope_type": "default"}, 8192),
        (8192, scaled("linear", 4.0), 8192),
        (32768, scaled("yarn", 4.0, 32768, key="type"), 131072),
        (131072, scaled("llama3", 8.0, 8192), 131072),
    ],
)
def test_positions_are_those_of_the_config_or_of_its_scaling(
    describe, positions, rope, expected
):
    spec = describe(max_position_embeddings=positions, rope_parameters=rope)
    assert spec.most_positions == expected


def test_absent_config_and_unknown_geometry_are_rejected(tmp_path):
    with pytest.raises(InvalidInput, match=r"config\.json"):
        ModelSpec.from_config(tmp_path)
    with pytest.raises(InvalidInput, match="llama-65b"):
        geometry("llama-66b")


@pytest.mark.parametrize("change", [{"dtype_bytes": 1}, {"vocab": 0}, {"head_dim": -8}])
def test_a_geometry_that_cannot_be_is_rejected_by_name(change):
    (name,) = change
    with pytest.raises(InvalidInput, match=f"{name}={change[name]}"):
        replace(geometry("llama-65b"), **change)


def test_a_machine_has_memory_and_rates():
    with pytest.raises(InvalidInput, match="disk_bytes_per_s"):
        Machine(device_bytes=1, disk_bytes_per_s=0)
    with pytest.raises(InvalidInput, match="device_bytes"):
        Machine(device_bytes=0, disk_bytes_per_s=1)
