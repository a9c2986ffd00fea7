"""Rates are measured apart, and a plan that rests on them says on which."""

import math
from dataclasses import replace

import pytest
import tiny

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.cost.planning import describe_plan
from thesis_lib.memory.evaluate.rates import (
    drain_bytes_per_s,
    measure_machine,
    plan_streamed,
)
from thesis_lib.memory.model.spec import Machine, geometry
from thesis_lib.memory.offload.plan import PlanInfeasible, plan


def test_the_smallest_device_streams_every_layer(tmp_path):
    tiny.write(tmp_path)
    made = plan_streamed(tmp_path, 2, 16, 4, ring=2)
    assert (made.ring, made.resident_layers) == (2, 0)
    assert made.device_peak_bytes == made.machine.device_bytes


def test_computing_alone_reads_nothing_and_leaves_the_model_right(tmp_path):
    model = tiny.write(tmp_path)
    with tiny.streamed(tmp_path, 1, 2, context=8, pass_tokens=8) as twin:
        with twin.without_reading():
            before = twin.bytes_read
            assert twin.logits(tiny.tokens(1, 1, 8)).shape == (1, 8, tiny.VOCAB)
            assert twin.bytes_read == before
        twin.drain()
        assert tiny.agree(twin, model, chunks=(8,))


def test_a_plan_says_where_its_rates_come_from(tmp_path):
    tiny.write(tmp_path)
    least = plan_streamed(tmp_path, 1, 32, 1, ring=3).device_peak_bytes
    measured = describe_plan(str(tmp_path), least, context=32)
    assert measured["rates"]["disk"] == "measured"
    low, high = measured["predicted_s_interval"]
    assert low <= measured["predicted_s_per_token"] <= high
    with pytest.raises(PlanInfeasible):
        describe_plan(str(tmp_path), least // 2, context=32)
    with pytest.raises(InvalidInput, match=r"not a checkpoint.*llama-65b"):
        describe_plan("nowhere", least)


def test_a_model_as_long_as_its_ring_is_measured_while_it_moves(tmp_path):
    tiny.write(tmp_path / "two", num_hidden_layers=2)
    machine = measure_machine(tmp_path / "two", tokens=(1, 8), rounds=1)
    assert 0 < machine.disk_bytes_per_s < math.inf
    assert machine.weight_bytes_per_s > 0 < machine.flops_per_s
    assert 0 <= machine.theft < 1 > machine.spread >= 0
    tiny.write(tmp_path / "one", num_hidden_layers=1)
    with pytest.raises(InvalidInput, match="nothing is streamed"):
        measure_machine(tmp_path / "one")
    with pytest.raises(InvalidInput, match="nothing is streamed"):
        drain_bytes_per_s(tmp_path / "one")


def test_a_checkpoint_is_planned_as_what_it_holds(tmp_path, monkeypatch):
    tiny.write(tmp_path)
    here = "thesis_lib.memory.evaluate.rates.measure_machine"
    monkeypatch.setattr(here, lambda folder: Machine(1, 1e9))
    found = describe_plan(str(tmp_path), 2**30, context=32, weights="bf16")
    assert found["rates"]["disk_bytes_per_s"] == 1e9
    assert found["weights"] == "dense"
    with pytest.raises(InvalidInput, match=r"dense weights, not nf4: .* compress"):
        describe_plan(str(tmp_path), 2**30, context=32, weights="nf4")


@pytest.mark.parametrize("positions", [64, 511, 512, 2048])
def test_default_context_of_plan_is_512_or_all_positions(
    tmp_path, monkeypatch, positions
):
    tiny.write(tmp_path, max_position_embeddings=positions)
    here = "thesis_lib.memory.evaluate.rates.measure_machine"
    monkeypatch.setattr(here, lambda folder: Machine(1, 1e9))
    expected = describe_plan(str(tmp_path), 2**30, context=min(512, positions))
    assert describe_plan(str(tmp_path), 2**30) == expected
    with pytest.raises(InvalidInput, match=f"context={positions + 1}"):
        describe_plan(str(tmp_path), 2**30, context=positions + 1)


def test_default_context_of_geometry_without_positions_is_512():
    endless = replace(geometry("llama-65b"), context=0)
    machine = Machine(8 * 2**30, 1e9)
    assert plan(endless, machine) == plan(endless, machine, context=512)


def test_packed_geometries_are_planned_without_a_file():
    dense = describe_plan("llama-65b", 8 * 2**30)
    packed = describe_plan("llama-65b", 8 * 2**30, weights="nf4")
    ratio = dense["bytes_per_token"] / packed["bytes_per_token"]
    # Half a byte and the scales of blocks of 64 for each weight, streamed layers only.
    assert dense["feasible"]
    assert dense["rates"]["disk"] == "assumed"
    assert sum(dense["tiers"].values()) == 80
    assert packed["tiers"]["device"] > dense["tiers"]["device"] == 0
    assert ratio > 16 / 4.5
    with_host = describe_plan("llama-65b", 8 * 2**30, host_bytes=64 * 2**30)
    assert with_host["tiers"]["host"] > 0
    assert with_host["rates"]["link"] == "assumed"
