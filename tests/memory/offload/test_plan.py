"""More memory never costs time; what does not fit is refused with a way out."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import GiB, MiB
from thesis_lib.memory.cost.cards import read_cards
from thesis_lib.memory.cost.planning import describe_plan
from thesis_lib.memory.model.spec import (
    WEIGHTS,
    Machine,
    ModelSpec,
    geometries,
    geometry,
)
from thesis_lib.memory.offload.plan import PlanInfeasible, least_device_bytes, plan

SMALL = ModelSpec("small", 10, 256, 512, 4, 2, 64, 1000, tied=True)
DISK = Machine(8 * GiB, 2e9)
FULL = replace(DISK, link_bytes_per_s=10e9, weight_bytes_per_s=20e9, flops_per_s=3e11)


@pytest.mark.parametrize("ring", [1, 2, 3])
@pytest.mark.parametrize("machine", [DISK, FULL])
def test_more_memory_never_raises_the_time(ring, machine):
    least = least_device_bytes(SMALL, ring=ring)
    sizes = [least + step * SMALL.layer_bytes // 3 for step in range(40)]
    plans = [plan(SMALL, machine.with_memory(size), ring=ring) for size in sizes]
    for less, more in pairwise(plans):
        assert more.step_s() <= less.step_s()
        assert more.resident_layers >= less.resident_layers
    assert plans[0].resident_layers == 0
    assert plans[-1].resident_layers == SMALL.layers
    assert plans[-1].bytes_per_step == 0


@pytest.mark.parametrize("ring", [1, 2, 5])
def test_one_byte_less_than_enough_is_rejected(ring):
    least = least_device_bytes(SMALL, ring=ring)
    fits = plan(SMALL, DISK.with_memory(least), ring=ring)
    assert fits.device_peak_bytes == least
    with pytest.raises(PlanInfeasible, match="short by 1 B; give it 1 MiB more"):
        plan(SMALL, DISK.with_memory(least - 1), ring=ring)


def test_sizes_of_a_tiny_model_are_not_printed_as_zero():
    tiny = ModelSpec("tiny", 2, 32, 64, 2, 2, 16, 64, tied=True)
    least = least_device_bytes(tiny, ring=1, context=8)
    for device, host in ((1000, 0), (least - 1, 0), (least, 10)):
        with pytest.raises(PlanInfeasible) as error:
            plan(tiny, Machine(device, 1e9, host_bytes=host), ring=1, context=8)
        assert " 0.0" not in str(error.value)
        assert " KiB" in str(error.value)


def test_a_ring_longer_than_the_stack_needs_what_the_stack_needs():
    short = replace(SMALL, layers=2)
    least = least_device_bytes(short, ring=2)
    assert plan(short, DISK.with_memory(least), ring=3).streamed_layers == 0
    with pytest.raises(PlanInfeasible, match=r"2 staging .* short by 1 B; give"):
        plan(short, DISK.with_memory(least - 1), ring=3)


def test_without_a_ring_it_is_the_most_buffers_that_fit():
    least = [least_device_bytes(SMALL, ring=ring) for ring in (1, 2, 3)]
    for size in [least[0], *(each - 1 for each in least[1:]), *least[1:]]:
        fitting = sum(needed <= size for needed in least)
        made = plan(SMALL, DISK.with_memory(size), ring=None)
        assert made == plan(SMALL, DISK.with_memory(size), ring=fitting)
    with pytest.raises(PlanInfeasible, match="1 staging buffers"):
        plan(SMALL, DISK.with_memory(least[0] - 1), ring=None)


def test_a_plan_says_in_a_line_what_was_chosen():
    machine = Machine(8 * GiB, 3e9, host_bytes=16 * GiB)
    assert str(plan(geometry("llama-65b"), machine, kind="nf4")) == (
        "llama-65b: 11 of 80 layers stay, as many as fit beside 3 staging buffers; 37 "
        "from the host and 32 from the disk for each step; at most 7.84 GiB of 8 GiB"
    )
    assert str(plan(SMALL, DISK)).startswith("small: all 10 layers stay; at most ")


@pytest.mark.parametrize("name", geometries())
@pytest.mark.parametrize("device_bytes", [8 * GiB, 24 * GiB, 400 * GiB])
def test_the_peak_is_within_the_device_and_every_layer_has_a_place(name, device_bytes):
    made = plan(geometry(name), DISK.with_memory(device_bytes))
    assert made.device_peak_bytes <= device_bytes
    assert made.resident_layers + made.streamed_layers == made.spec.layers
    moving = [made.is_streamed(i) for i in range(made.spec.layers)]
    assert sum(moving) == made.streamed_layers


def test_each_remedy_that_is_named_works():
    spec, size = geometry("llama-65b"), 15 * GiB // 2
    options = {"batch": 2, "context": 512, "ring": 3}
    with pytest.raises(PlanInfeasible) as refusal:
        plan(spec, Machine(size, 2e9), **options)
    numbers = re.search(
        r"give it (\d+) MiB more, or use a ring of (\d+) instead of 3, or "
        r"shorten the context from 512 to (\d+) positions, or "
        r"lower the batch from 2 to (\d+)",
        str(refusal.value),
    )
    assert numbers is not None, refusal.value
    more, ring, context, batch = map(int, numbers.groups())
    assert plan(spec, Machine(size + more * MiB, 2e9), **options)
    for way in ({"ring": ring}, {"context": context}, {"batch": batch}):
        assert plan(spec, Machine(size, 2e9), **{**options, **way})


def test_a_65b_model_of_120_gib_fits_8_gib():
    made = plan(geometry("llama-65b"), Machine(8 * GiB, 2e9))
    assert made.spec.total_bytes > 120e9
    assert made.device_peak_bytes < 8 * GiB
    assert made.resident_layers == 0
    # 80 layers of 1.619 GB at 2 GB/s.
    assert made.predicted_s_per_token == pytest.approx(80 * 1.619 / 2, rel=1e-3)


def test_time_is_the_slower_of_reading_and_computing():
    made = plan(SMALL, replace(FULL, device_bytes=least_device_bytes(SMALL, ring=3)))
    assert made.transfer_s() == 10 * made.layer_read_bytes / 2e9
    assert made.limit == "disk"
    assert made.step_s() == made.transfer_s()
    busy = made.spec.total_bytes / 20e9 + 5000 * made.spec.flops_per_token() / 3e11
    assert made.compute_s(5000) == pytest.approx(busy)
    assert made.step_s(5000) == made.compute_s(5000)
    crossing = made.crossover_tokens()
    assert made.compute_s(crossing) == pytest.approx(made.transfer_s())


def test_one_buffer_cannot_overlap():
    least = least_device_bytes(SMALL, ring=1)
    made = plan(SMALL, replace(FULL, device_bytes=least), ring=1)
    assert made.step_s() == made.transfer_s() + made.compute_s()


def test_host_memory_takes_layers_off_the_disk():
    spec = geometry("llama-65b")
    machine = Machine(8 * GiB, 2e9, host_bytes=64 * GiB, link_bytes_per_s=25e9)
    made = plan(spec, machine)
    # Two buffers of host memory are for what passes from the disk to the device.
    assert made.host_layers == 64 * GiB // made.staging_bytes - made.host_buffers
    assert made.host_buffers == 2
    assert made.disk_layers == spec.layers - made.host_layers
    assert made.host_peak_bytes <= 64 * GiB
    assert made.step_s() < plan(spec, machine.with_memory(8 * GiB)).step_s()
    everything = plan(spec, machine.with_memory(8 * GiB, 200 * GiB))
    assert everything.disk_layers == 0
    assert everything.limit == "link"
    assert everything.step_s() == everything.bytes_per_step / 25e9


@pytest.mark.parametrize("name", geometries())
def test_no_plan_of_a_geometry_promises_a_token_in_no_time(name):
    spec, card = geometry(name), read_cards()["GeForce RTX 3090"]
    bound_s = spec.total_bytes / card.memory_bytes_per_s
    for weights in WEIGHTS:
        for size, host in ((8, 0), (24, 512), (1024, 0), (1024, 512)):
            found = describe_plan(name, size * GiB, host * GiB, weights=weights)
            assert found["predicted_s_per_token"] > bound_s * 0.999
            assert found["rates"]["compute"] == card.device


@pytest.mark.parametrize("name", geometries())
def test_a_context_beyond_the_positions_of_a_model_is_rejected(name):
    spec = geometry(name)
    longest = spec.most_positions
    assert plan(spec, DISK.with_memory(2**50), context=longest).context == longest
    with pytest.raises(InvalidInput, match=f"{longest} positions that {name}"):
        plan(spec, DISK.with_memory(2**50), context=longest + 1)


def test_a_resident_model_is_bound_by_compute():
    made = plan(SMALL, FULL)
    assert (made.ring, made.limit) == (0, "compute")


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 0},
        {"ring": 0},
        {"pass_tokens": 0},
        {"pass_tokens": 9, "context": 8},
        {"pass_tokens": 4, "logit_tokens": 5},
        {"layer_read_bytes": [1, 2]},
    ],
)
def test_arguments_that_make_no_plan_are_rejected(options):
    with pytest.raises(InvalidInput):
        plan(SMALL, DISK, **options)
