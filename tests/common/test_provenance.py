import os
import subprocess
import sys
import time

import pytest

from thesis_lib.common import provenance


def in_a_process(code, **environment):
    """Run code in Python, in this environment but for what is given; None removes."""
    known = {k: v for k, v in (os.environ | environment).items() if v is not None}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=known,
        check=True,
    )  # fmt: skip


def test_the_identity_of_a_machine_is_stable_and_complete():
    assert provenance.identity() == provenance.identity()
    assert provenance.identity().keys() == {
        "cpu", "cores", "memory_bytes", "system", "python", "gpus", "torch",
    }  # fmt: skip


def test_torch_is_named_without_being_imported():
    code = (
        "import sys; from thesis_lib.common import provenance;"
        "print(provenance.identity()['torch']); assert 'torch' not in sys.modules"
    )
    import torch

    assert in_a_process(code).stdout.startswith(torch.__version__)


def test_a_gpu_is_read_from_the_answer_of_its_driver(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'Some GPU 24GB, 555.42, 24564'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    provenance.gpus.cache_clear()
    assert provenance.gpus() == (("Some GPU 24GB", "555.42", 24564 * 2**20),)
    command.write_text("#!/bin/sh\nexit 9\n")
    provenance.gpus.cache_clear()
    assert provenance.gpus() == ()
    provenance.gpus.cache_clear()


def test_the_rates_of_a_machine_are_measured_or_say_why_not(tmp_path):
    rate, how = provenance.drain(tmp_path)
    assert rate is not None
    assert rate > 0
    assert how in ("direct", "buffered")
    rate, how = provenance.drain(tmp_path / "absent")
    assert rate is None
    assert how == "not measured: No such file or directory"
    assert provenance.matmul_flops_per_s(size=64) > 0


def test_a_watch_sees_the_memory_of_the_processes_it_watches():
    n_bytes = 300 * 2**20
    code = f"import time; x = bytearray({n_bytes}); time.sleep(1)"
    with provenance.Watch() as watch:
        in_a_process(code)
    assert n_bytes < watch.peak_memory_bytes < 1.3 * n_bytes
    load = watch.load_average
    assert 0 <= load["mean"] <= load["most"]


def test_what_ran_before_a_watch_does_not_count():
    code = (
        f"import time; x = bytearray({300 * 2**20}); print(flush=True); time.sleep(9)"
    )
    earlier = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert earlier.stdout is not None
    with earlier, earlier.stdout as said:
        said.readline()
        with provenance.Watch() as watch:
            in_a_process("import time; time.sleep(1)")
        earlier.kill()
    assert 0 < watch.peak_memory_bytes < 200 * 2**20


def test_a_child_that_has_not_begun_its_program_does_not_count():
    held = bytearray(300 * 2**20)
    with provenance.Watch() as watch:
        subprocess.run(["true"], preexec_fn=lambda: time.sleep(1), check=True)
    assert watch.peak_memory_bytes < len(held)


@pytest.fixture
def git(tmp_path):
    def run(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True)

    return run


def test_a_commit_says_whether_what_results_depend_on_is_in_it(tmp_path, git):
    assert provenance.commit(tmp_path) == ("no repository", False)
    git("init", "-q")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("1")
    git("add", "src")
    git("commit", "-qm", "first")
    head, clean = provenance.commit(tmp_path)
    assert clean
    (tmp_path / "note").write_text("not a source")
    assert provenance.commit(tmp_path) == (head, True)
    (tmp_path / "src" / "new").write_text("a source, not yet added")
    assert provenance.commit(tmp_path) == (head, False)
    (tmp_path / "src" / "new").unlink()
    (tmp_path / "src" / "f").write_text("2")
    assert provenance.commit(tmp_path) == (head, False)


# --- A measurement that others disturb ------------------------------------------


def used(others=0.0, own=1.0, cores=2, moved=0, disk=0):
    """What two readings tell that are a second apart."""
    idle = max(cores - own - others, 0.0)
    disks = {"sda": disk, "sdb": 0}
    return provenance.Usage(1.0, own, own + others, idle, 0.0, 0, moved, disks)


@pytest.mark.parametrize(
    ("usage", "disturbed"),
    [
        (used(), False),
        (used(others=0.05), False),  # what a system does by itself
        (used(others=0.9), True),
        (used(others=1.8, own=0.2), True),
        (used(others=2, own=2, cores=16), False),  # there is room for both
        (used(others=3, own=13, cores=16), True),
        (provenance.Usage(1.0, 1.0, 1.0, 0.5, 0.5, 0, 0, {}), True),  # by the host
        (used(moved=2 * 10**9, disk=2 * 10**9), False),
        (used(moved=10**9, disk=2 * 10**9), True),
        (used(moved=0, disk=2 * 10**9), False),  # it does not use the disk
    ],
)
def test_others_disturb_where_they_take_what_a_measurement_needs(usage, disturbed):
    assert bool(usage.disturbance) == disturbed


def test_what_a_disk_moved_before_does_not_count():
    """The disk that moved most since the system began may be idle now."""

    def at(own, old, new):
        return provenance.Usage(own, own, own, 0.0, 0.0, 0, 0, {"old": old, "new": new})

    used = at(2.0, 10**12, 3 * 10**9).since(at(1.0, 10**12, 10**9))
    assert used.disk_bytes == {"old": 0, "new": 2 * 10**9}
    assert used.wall_s == 1.0


@pytest.fixture
def loads(monkeypatch):
    """What others are said to take during each call of the measurements that follow."""
    taken, clock = [], [0.0, 0.0]

    def read():
        if read.inside:
            clock[0] += 1.0
            clock[1] += taken.pop(0)
        read.inside = not read.inside
        return provenance.Usage(
            clock[0], clock[0], clock[0] + clock[1], 0.0, 0.0, 0, 0, {}
        )

    read.inside = False
    monkeypatch.setattr(provenance.Usage, "read", read)
    provenance.disturbances()  # asked: the next measurement begins anew
    return taken


def test_a_disturbed_measurement_is_repeated_and_the_quiet_one_counts(loads):
    loads += [0.9, 0.0]
    made = iter("ab")
    assert provenance.undisturbed(lambda: next(made)) == "b"
    assert provenance.disturbances() == ()


def test_the_least_disturbed_counts_is_marked_and_the_mark_ends(loads):
    loads += [0.9, 0.3, 0.6]
    made = iter("abc")
    assert provenance.undisturbed(lambda: next(made), tries=3) == "b"
    assert "0.30 cores" in provenance.disturbances()[0]
    assert provenance.disturbances()  # as long as nothing else is measured
    loads += [0.0]
    provenance.undisturbed(lambda: None)
    assert provenance.disturbances() == ()


def test_marks_add_up_until_they_are_asked_for(loads):
    loads += [0.5, 0.0, 0.7]
    for _ in range(3):
        provenance.undisturbed(lambda: None, tries=1)
    assert len(provenance.disturbances()) == 2


def test_what_is_measured_within_a_measurement_is_a_part_of_it(loads):
    loads += [0.9, 0.0]
    inner = provenance.measurement(lambda: calls.append("inner"))
    calls = []
    provenance.undisturbed(lambda: (calls.append("outer"), inner()))
    assert calls == ["outer", "inner"] * 2
    assert not loads


def test_a_long_measurement_is_not_made_twice(loads, monkeypatch):
    loads += [0.9]
    monkeypatch.setattr(provenance, "_PATIENCE_S", 0.0)
    provenance.undisturbed(lambda: None)
    assert provenance.disturbances()
    assert not loads


def test_a_measurement_that_fails_leaves_the_watch_ready(loads):
    loads += [0.0]

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        provenance.undisturbed(fail)
    provenance.Usage.read()  # the end that the failure left out
    loads += [0.8]
    provenance.undisturbed(lambda: None, tries=1)
    assert provenance.disturbances()


def test_a_reading_tells_the_own_family_from_others():
    """A child counts as its own, and everybody together as no less than that."""
    code = "from time import perf_counter as t\nend = t() + 0.3\nwhile t() < end: pass"
    start = provenance.Usage.read()
    in_a_process(code)
    used = provenance.Usage.read().since(start)
    assert used.own_s > 0
    assert used.wall_s > 0.3
    assert used.busy_s >= used.own_s - 0.1  # ticks of two clocks
    assert used.others_s >= 0


@pytest.mark.parametrize(
    ("policy", "said"), [(None, "PASSIVE\n"), ("ACTIVE", "ACTIVE\n")]
)
def test_threads_of_openmp_wait_passively_unless_told_otherwise(policy, said):
    code = "import os, thesis_lib; print(os.environ['OMP_WAIT_POLICY'])"
    assert in_a_process(code, OMP_WAIT_POLICY=policy).stdout == said


def test_torch_before_the_package_is_said_once_and_in_one_sentence():
    code = "import sys; sys.modules['torch'] = sys; import thesis_lib"
    done = in_a_process(code, OMP_WAIT_POLICY=None)
    assert "import thesis_lib first" in done.stderr
