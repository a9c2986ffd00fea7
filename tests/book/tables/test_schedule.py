"""The ring keeps what the plan promises of it."""

from itertools import pairwise

import pytest
from rings import TINY, planned

from thesis_book.tables import ring_schedule

# of one layer, bytes a second: read, computed; the slower one decides
RATES = [(1e6, 1e9), (1e9, 1e6), (3e6, 4e6)]
CASES = [
    (ring, extra, *rates) for ring in (1, 2, 3) for extra in (0, 2) for rates in RATES
]


@pytest.mark.parametrize("case", CASES)
def test_the_schedule_is_one_that_the_ring_can_keep(case):
    plan = planned(*case)
    visits = ring_schedule.ring_schedule(plan, steps=3)
    assert [v.layer for v in visits] == 3 * list(range(TINY.layers))
    assert all(b.starts_s >= a.ends_s for a, b in pairwise(visits))  # one computes
    moved = [visit for visit in visits if visit.buffer != ring_schedule.RESIDENT]
    assert len(moved) == 3 * plan.streamed_layers
    assert all(b.receives_s >= a.ready_s for a, b in pairwise(moved))  # one arrives
    assert all(v.receives_s < v.ready_s <= v.starts_s < v.ends_s for v in moved)
    for buffer in range(case[0]):  # and receives nothing while it is needed
        mine = [visit for visit in visits if visit.buffer == buffer]
        assert all(b.receives_s >= a.ends_s for a, b in pairwise(mine))


@pytest.mark.parametrize("case", CASES)
def test_a_step_takes_the_time_of_the_plan(case):
    plan = planned(*case)
    visits = ring_schedule.ring_schedule(plan, steps=9)
    if case[1] == 0:
        assert ring_schedule.period_s(visits) == pytest.approx(plan.step_s())
    # from the end of the first pass on, eight whole ones
    start = max(visit.ends_s for visit in visits if visit.step == 0)
    mean_s = (visits[-1].ends_s - start) / 8
    halves = plan.transfer_s(), plan.compute_s()
    assert max(halves) <= mean_s * (1 + 1e-9)
    assert mean_s <= sum(halves) * (1 + 1e-9)


def test_the_next_token_arrives_before_this_one_is_done():
    visits = ring_schedule.ring_schedule(planned(3, 0, 1e6, 1e9), steps=2)
    last, first_of_next = visits[TINY.layers - 1], visits[TINY.layers]
    assert first_of_next.receives_s < last.ends_s
