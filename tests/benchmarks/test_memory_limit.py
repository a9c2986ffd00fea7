"""A limit of memory is real: what does not fit is killed; nothing is left behind."""

import os
import sys
from pathlib import Path

import memory_limit as module
import pytest
from memory_limit import (
    OverLimit,
    confine,
    forget_pages,
    how_confined,
    read_from_disk_bytes,
)

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import MiB

FIND = f"import sys; sys.path.append({str(Path(module.__file__).parent)!r})"
HOLD = "import time; held = bytearray({0} << 20); time.sleep({1}); print(len(held))"


def hold(mib, seconds=0.1):
    return [sys.executable, "-c", HOLD.format(mib, seconds)]


def groups():
    """Groups of ours that exist now."""
    return [
        path
        for parent, _ in module._parents()
        for path in parent.glob(f"thesis-{os.getpid()}-*")
    ]


@pytest.fixture(params=["groups", "no groups"])
def how(request, monkeypatch):
    """How commands are confined, with and without control groups."""
    if request.param == "no groups":
        monkeypatch.setattr(module, "_parents", list)
        return "uncapped"
    return how_confined()


def test_a_command_that_fits_keeps_its_output_and_its_code(how):
    done = confine(hold(30), 400 * MiB).check()
    assert (done.returncode, done.killed) == (0, False)
    assert done.stdout == f"{30 * MiB}\n"
    assert 30 * MiB < done.peak_bytes <= done.limit_bytes
    seconds, held, anonymous = zip(*done.use, strict=True)
    assert list(seconds) == sorted(seconds)
    assert max(anonymous) <= max(held) <= done.peak_bytes
    assert done.how == how
    failed = confine([sys.executable, "-c", "raise SystemExit(3)"], MiB * 99)
    assert (failed.returncode, failed.killed) == (3, False)


def test_a_command_past_its_limit_is_killed_and_said_so_by_name(how):
    done = confine(hold(200, 30), 64 * MiB)
    assert (done.returncode, done.killed, done.stdout) == (-9, True, "")
    assert done.seconds < 25  # it was not waited for
    if done.how != "uncapped":
        assert done.peak_bytes <= done.limit_bytes
    with pytest.raises(OverLimit, match=f"killed at its limit of 64 MiB .{done.how}"):
        done.check()
    assert not groups()


def test_what_a_command_leaves_behind_dies_with_its_group(tmp_path):
    if how_confined() == "uncapped":
        return  # nothing holds the group together there, and nothing is promised
    leaver = (
        "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], "
        "stdout=subprocess.DEVNULL, start_new_session=True).pid)"
    )
    done = confine([sys.executable, "-c", leaver, *hold(5, 60)], 200 * MiB)
    left = Path("/proc") / done.stdout.strip() / "stat"
    assert not left.exists() or left.read_text().split()[2] == "Z"
    assert not groups()


def test_an_interrupt_leaves_neither_process_nor_group(monkeypatch):
    started = []

    def interrupt(process, group, look_s):
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        confine(hold(5, 60), 200 * MiB)
    assert started[0].returncode == -9
    assert not groups()


def test_the_page_cache_counts(tmp_path):
    """A file that is read stays charged until the limit pushes it out."""
    if how_confined() == "uncapped":
        return  # a resident set has no page cache
    file = tmp_path / "file"
    file.write_bytes(bytes(80 * MiB))
    forget_pages([file])
    reads = "import sys; f = open(sys.argv[1], 'rb')\nwhile f.read(1 << 20): pass"
    read = confine([sys.executable, "-c", reads, file], 64 * MiB)
    idle = confine([sys.executable, "-c", "pass", file], 64 * MiB)
    assert not read.killed
    assert idle.peak_bytes + 20 * MiB < read.peak_bytes <= 64 * MiB
    most_bytes = max(anonymous_bytes for _, _, anonymous_bytes in read.use)
    assert most_bytes < read.peak_bytes - 20 * MiB  # and is told apart


def test_bytes_read_are_those_of_the_disk_children_included(tmp_path):
    if read_from_disk_bytes() is None or not hasattr(os, "O_DIRECT"):
        return
    file = tmp_path / "file"
    file.write_bytes(bytes(8 * MiB))
    forget_pages([file])
    reads = (
        "import mmap, os, sys\n"
        "try: f = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
        "except OSError: sys.exit(77)\n"
        "for at in range(0, 8 << 20, 1 << 20):"
        " os.preadv(f, [mmap.mmap(-1, 1 << 20)], at)"
    )
    command = [sys.executable, "-c", reads, file]
    alone = confine(command, 200 * MiB)
    if alone.returncode == 77:
        return  # a file system in memory: there is no disk to count
    outer = "import subprocess, sys; subprocess.check_call(sys.argv[1:] * 1)"
    nested = confine([sys.executable, "-c", outer, *command], 200 * MiB)
    for done in (alone, nested):
        assert done.read_bytes is not None
        assert 8 * MiB <= done.read_bytes < 12 * MiB  # and pages of the interpreter


def test_a_limit_that_is_no_limit_is_rejected():
    with pytest.raises(InvalidInput, match="limit_bytes=0 must be positive"):
        confine(["true"], 0)


def write_v2(tmp_path, monkeypatch, memory=("user", "user/app")):
    """A picture of a hierarchy of version 2; `memory` hand the controller down."""
    proc, point = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("1:name=systemd:/\n0::/user/app/job\n")
    folder = point / "user" / "app" / "job"
    folder.mkdir(parents=True)
    for path in (folder, *folder.parents):
        if path.is_relative_to(point):
            inside = str(path.relative_to(point))
            text = "cpu memory\n" if inside in memory else "cpu\n"
            (path / "cgroup.subtree_control").write_text(text)
    monkeypatch.setattr(module, "PROC", proc)
    monkeypatch.setattr(module, "CGROUPS", point)
    return point


def fake_kernel(monkeypatch, events="oom 0\noom_kill 0\n"):
    """Groups of a picture get their files, which no kernel would make there."""
    seen = []

    def make(folder, *rest, **options):
        if not folder.name.startswith("thesis-"):
            return mkdir(folder, *rest, **options)
        if "memory" not in (folder.parent / "cgroup.subtree_control").read_text():
            raise OSError(16, "Device or resource busy")
        mkdir(folder)
        for name, text in {
            "cgroup.procs": "",
            "memory.max": "max",
            "memory.swap.max": "max",
            "memory.peak": str(12 * MiB),
            "memory.current": str(11 * MiB),
            "memory.stat": f"file 4096\nanon {7 * MiB}\nanon_thp 0\n",
            "memory.events": events,
        }.items():
            (folder / name).write_text(text)
        return None

    def unmake(folder):
        files = {path.name: path.read_text() for path in folder.iterdir()}
        seen.append((folder.parent.name, files))
        for path in folder.iterdir():
            path.unlink()
        rmdir(folder)

    def enable(path, text, *rest):
        if path.name == "cgroup.subtree_control" and text == "+memory":
            raise OSError(16, "Device or resource busy")
        return write_text(path, text, *rest)

    mkdir, rmdir, write_text = Path.mkdir, Path.rmdir, Path.write_text
    monkeypatch.setattr(Path, "write_text", enable)
    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "rmdir", unmake)
    monkeypatch.setattr(module.os, "kill", lambda pid, number: None)
    return seen


def test_version_2_finds_the_nearest_group_that_hands_memory_down(
    tmp_path, monkeypatch
):
    point = write_v2(tmp_path, monkeypatch)
    seen = fake_kernel(monkeypatch)
    done = confine([sys.executable, "-c", "print(1)"], 64 * MiB)
    assert (done.how, done.killed, done.stdout) == ("cgroup v2", False, "1\n")
    assert done.peak_bytes == 12 * MiB
    assert {row[1:] for row in done.use} == {(11 * MiB, 7 * MiB)}
    (parent, files), *others = seen
    assert parent == "app"
    assert not others
    assert files["memory.max"] == str(64 * MiB)
    assert files["memory.swap.max"] == "0"
    assert files["cgroup.procs"] == "0\n"  # the command joined before it became one
    assert not list(point.rglob("thesis-*"))


def test_version_2_says_who_was_killed(tmp_path, monkeypatch):
    write_v2(tmp_path, monkeypatch)
    fake_kernel(monkeypatch, events="low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n")
    with pytest.raises(OverLimit, match="cgroup v2"):
        confine(["/bin/true"], 64 * MiB).check()


def test_without_a_memory_controller_it_says_uncapped(tmp_path, monkeypatch):
    write_v2(tmp_path, monkeypatch, memory=())
    fake_kernel(monkeypatch)
    assert confine(["/bin/true"], 64 * MiB).how == "uncapped"


def test_a_mount_of_a_part_of_the_tree_is_found_where_it_is_mounted(
    tmp_path, monkeypatch
):
    """In a container the controller's folder is mounted without what lies above."""
    point = write_v2(tmp_path, monkeypatch)
    (point / "memory").mkdir()
    lines = "4:memory:/docker/abc/job\n3:cpu:/x\n0::/\n"
    (tmp_path / "proc" / "self" / "cgroup").write_text(lines)
    assert list(module._parents()) == [(point / "memory", 1), (point, 2)]


def test_torch_is_not_needed_to_confine():
    lines = f"{FIND}; import memory_limit; print('torch' in sys.modules)"
    done = confine([sys.executable, "-c", lines], 500 * MiB)
    assert done.stdout == "False\n"
