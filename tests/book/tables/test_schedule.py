"""The ring keeps what the plan promises of it."""

from itertools import pairwise

import pytest

from thesis_lib.book.tables import ring_schedule
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model.spec import Machine, ModelSpec
from thesis_lib.memory.offload.plan import least_device_bytes, plan

TINY = ModelSpec("tiny", 6, 256, 512, 4, 4, 64, 1000, tied=True)
# seconds of one layer: read, computed; the slower one decides
RATES = [(1e6, 1e9), (1e9, 1e6), (3e6, 4e6)]
CASES = [
    (ring, extra, *rates) for ring in (1, 2, 3) for extra in (0, 2) for rates in RATES
]


def made(ring, extra, disk, weights):
    """A plan with `extra` resident layers."""
    least = least_device_bytes(TINY, ring=ring, context=8)
    spare = extra * plan(TINY, Machine(least, 1), ring=ring, context=8).staging_bytes
    machine = Machine(least + spare, disk, weight_bytes_per_s=weights)
    return plan(TINY, machine, ring=ring, context=8)


@pytest.mark.parametrize("case", CASES)
def test_a_buffer_receives_nothing_while_it_is_needed(case):
    visits = ring_schedule.ring_schedule(made(*case), steps=3)
    for buffer in range(case[0]):
        mine = [visit for visit in visits if visit.buffer == buffer]
        assert all(b.receives_s >= a.ends_s for a, b in pairwise(mine))
        assert all(v.receives_s < v.ready_s <= v.starts_s < v.ends_s for v in mine)


@pytest.mark.parametrize("case", CASES)
def test_layers_compute_in_order_and_cross_the_link_one_at_a_time(case):
    planned = made(*case)
    visits = ring_schedule.ring_schedule(planned, steps=3)
    assert [v.layer for v in visits] == 3 * list(range(TINY.layers))
    assert all(b.starts_s >= a.ends_s for a, b in pairwise(visits))
    moved = [visit for visit in visits if visit.buffer != ring_schedule.RESIDENT]
    assert len(moved) == 3 * planned.streamed_layers
    assert all(b.receives_s >= a.ready_s for a, b in pairwise(moved))


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == 0])
def test_the_steady_state_takes_the_time_of_the_plan(case):
    planned = made(*case)
    visits = ring_schedule.ring_schedule(planned, steps=4)
    assert ring_schedule.period_s(visits) == pytest.approx(planned.step_s())


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_no_shorter_than_its_slower_half_nor_longer_than_both(case):
    planned = made(*case)
    visits = ring_schedule.ring_schedule(planned, steps=9)
    # from the end of the first pass on, eight whole ones
    start = max(visit.ends_s for visit in visits if visit.step == 0)
    mean_s = (visits[-1].ends_s - start) / 8
    halves = planned.transfer_s(), planned.compute_s()
    assert max(halves) <= mean_s * (1 + 1e-9)
    assert mean_s <= sum(halves) * (1 + 1e-9)


def test_the_next_token_arrives_before_this_one_is_done():
    visits = ring_schedule.ring_schedule(made(3, 0, 1e6, 1e9), steps=2)
    last, first_of_next = visits[TINY.layers - 1], visits[TINY.layers]
    assert first_of_next.receives_s < last.ends_s


def test_a_pass_alone_has_no_period_and_none_no_schedule():
    planned = made(2, 0, 1e6, 1e9)
    with pytest.raises(InvalidInput, match="1 pass has no period"):
        ring_schedule.period_s(ring_schedule.ring_schedule(planned, steps=1))
    with pytest.raises(InvalidInput, match="steps=0"):
        ring_schedule.ring_schedule(planned, steps=0)
