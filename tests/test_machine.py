import subprocess
import sys

import pytest

from thesis_lib import machine


def test_the_identity_of_a_machine_is_stable_and_complete():
    assert machine.identity() == machine.identity()
    assert machine.identity().keys() == {
        "cpu", "cores", "memory_bytes", "system", "python", "gpus", "torch",
    }  # fmt: skip


def test_torch_is_named_without_being_imported():
    code = (
        "import sys; from thesis_lib import machine;"
        "print(machine.identity()['torch']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import torch

    assert done.stdout.startswith(torch.__version__)


def test_a_gpu_is_read_from_the_answer_of_its_driver(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'Some GPU 24GB, 555.42, 24564'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    machine.gpus.cache_clear()
    assert machine.gpus() == (("Some GPU 24GB", "555.42", 24564 * 2**20),)
    command.write_text("#!/bin/sh\nexit 9\n")
    machine.gpus.cache_clear()
    assert machine.gpus() == ()
    machine.gpus.cache_clear()


def test_the_rates_of_a_machine_are_measured_or_say_why_not(tmp_path):
    rate, how = machine.drain(tmp_path)
    assert rate is not None
    assert rate > 0
    assert how in ("direct", "buffered")
    rate, how = machine.drain(tmp_path / "absent")
    assert rate is None
    assert how == "not measured: No such file or directory"
    assert machine.matmul_flops_per_s(size=64) > 0


def test_a_watch_sees_the_memory_of_the_processes_it_watches():
    n_bytes = 300 * 2**20
    code = f"import time; x = bytearray({n_bytes}); time.sleep(1)"
    with machine.Watch() as watch:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert n_bytes < watch.peak_memory_bytes < 1.3 * n_bytes
    load = watch.load_average
    assert 0 <= load["mean"] <= load["most"]


@pytest.fixture
def git(tmp_path):
    def run(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True)

    return run


def test_a_commit_says_whether_what_results_depend_on_is_in_it(tmp_path, git):
    assert machine.commit(tmp_path) == ("no repository", False)
    git("init", "-q")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("1")
    git("add", "src")
    git("commit", "-qm", "first")
    head, clean = machine.commit(tmp_path)
    assert clean
    (tmp_path / "note").write_text("not a source")
    assert machine.commit(tmp_path) == (head, True)
    (tmp_path / "src" / "new").write_text("a source, not yet added")
    assert machine.commit(tmp_path) == (head, False)
    (tmp_path / "src" / "new").unlink()
    (tmp_path / "src" / "f").write_text("2")
    assert machine.commit(tmp_path) == (head, False)
