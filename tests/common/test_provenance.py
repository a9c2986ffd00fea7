import os
import subprocess
import sys

import pytest

from thesis_lib.common import provenance
from thesis_lib.common.provenance import Usage


def in_a_process(code, **environment):
    """Run code in Python, in this environment but for what is given; None removes."""
    known = {k: v for k, v in (os.environ | environment).items() if v is not None}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=known,
        check=True,
    )  # fmt: skip


def used(others=0.0, own=1.0, cores=2, moved=0, disk=0):
    """The usage of one second."""
    idle = max(cores - own - others, 0.0)
    return Usage(1.0, own, others, idle, moved, {"sda": disk, "sdb": 0})


@pytest.mark.parametrize(
    ("usage", "disturbed"),
    [
        (used(), False),
        (used(others=0.05), False),  # what a system does by itself
        (used(others=0.9), True),
        (used(others=1.8, own=0.2), True),
        (used(others=2, own=2, cores=16), False),  # there is room for both
        (used(others=3, own=13, cores=16), True),
        (used(moved=2 * 10**9, disk=2 * 10**9), False),
        (used(moved=10**9, disk=2 * 10**9), True),
        (used(moved=0, disk=2 * 10**9), False),  # it does not use the disk
    ],
)
def test_usage_is_disturbed_where_others_take_what_it_needs(usage, disturbed):
    assert bool(usage.disturbance) == disturbed


def test_usage_since_is_the_difference_of_every_disk():
    start = Usage(1.0, 1.0, 3.0, 0.0, 0, {"old": 10**12, "new": 10**9})
    end = Usage(3.0, 2.0, 4.0, 0.5, 7, {"old": 10**12, "new": 3 * 10**9})
    expected = Usage(2.0, 1.0, 1.0, 0.5, 7, {"old": 0, "new": 2 * 10**9})
    assert end.since(start) == expected


def test_usage_counts_children_as_its_own():
    code = "from time import perf_counter as t\nend = t() + 0.3\nwhile t() < end: pass"
    start = Usage.read()
    in_a_process(code)
    usage = Usage.read().since(start)
    assert usage.own_s > 0
    assert usage.wall_s > 0.3
    assert usage.others_s > -0.1  # ticks of two clocks


@pytest.fixture
def loads(monkeypatch):
    """What others take during each call of the measurements that follow."""
    taken, clock = [], [0.0, 0.0]

    def read():
        if read.inside:
            clock[0] += 1.0
            clock[1] += taken.pop(0)
        read.inside = not read.inside
        return Usage(clock[0], clock[0], clock[1], 0.0, 0, {})

    read.inside = False
    monkeypatch.setattr(provenance.Usage, "read", read)
    provenance.disturbances()  # asked: the next measurement begins anew
    return taken


@pytest.mark.parametrize(
    ("taken", "mark"), [((0.9, 0.0), None), ((0.9, 0.3, 0.6), "0.30 cores")]
)
def test_disturbed_measurement_is_repeated_and_the_quietest_counts(loads, taken, mark):
    loads += taken
    results = iter("abc")
    assert provenance.undisturbed(lambda: next(results)) == "b"
    for _ in range(2):  # as long as nothing else is measured
        marks = provenance.disturbances()
        assert mark in marks[0] if mark else marks == ()
    loads += [0.0]
    provenance.undisturbed(lambda: None)
    assert provenance.disturbances() == ()


def test_marks_add_up_until_they_are_asked_for(loads):
    loads += [0.5, 0.0, 0.7]
    for _ in range(3):
        provenance.undisturbed(lambda: None, tries=1)
    assert len(provenance.disturbances()) == 2


def test_measurement_within_a_measurement_is_a_part_of_it(loads):
    loads += [0.9, 0.0]
    calls = []
    inner = provenance.measurement(lambda: calls.append("inner"))
    provenance.undisturbed(lambda: (calls.append("outer"), inner()))
    assert calls == ["outer", "inner"] * 2
    assert not loads


def test_long_measurement_is_not_repeated(loads, monkeypatch):
    loads += [0.9]
    monkeypatch.setattr(provenance, "_PATIENCE_S", 0.0)
    provenance.undisturbed(lambda: None)
    assert provenance.disturbances()


def test_measurement_after_a_failed_one_is_watched(loads):
    loads += [0.0, 0.8]
    with pytest.raises(ZeroDivisionError):
        provenance.undisturbed(lambda: 1 / 0)
    Usage.read()  # the end that the failure left out
    provenance.undisturbed(lambda: None, tries=1)
    assert provenance.disturbances()


@pytest.mark.parametrize(
    ("policy", "expected"), [(None, "PASSIVE\n"), ("ACTIVE", "ACTIVE\n")]
)
def test_openmp_threads_wait_passively_unless_set_otherwise(policy, expected):
    code = "import os, thesis_lib; print(os.environ['OMP_WAIT_POLICY'])"
    assert in_a_process(code, OMP_WAIT_POLICY=policy).stdout == expected


def test_import_of_torch_before_the_package_is_reported():
    code = "import sys; sys.modules['torch'] = sys; import thesis_lib"
    done = in_a_process(code, OMP_WAIT_POLICY=None)
    assert "import thesis_lib first" in done.stderr
