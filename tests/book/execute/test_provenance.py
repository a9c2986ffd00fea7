"""What a record says of its machine and its commit."""

import subprocess
import sys
import time

from thesis_book.execute import provenance

HELD = f"import sys, time; x = bytearray({300 * 2**20}); print(flush=True); "


def test_identity_is_stable_and_complete():
    assert provenance.identity() == provenance.identity()
    assert provenance.identity().keys() == {
        "cpu", "cores", "memory_bytes", "system", "python", "gpus", "torch",
    }  # fmt: skip


def test_identity_names_torch_without_importing_it():
    import torch

    code = (
        "import sys; from thesis_book.execute import provenance;"
        "print(provenance.identity()['torch']); assert 'torch' not in sys.modules"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told.startswith(torch.__version__)


def test_gpus_are_read_from_the_driver(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for answer, expected in (
        ("echo 'Some GPU 24GB, 555.42, 24564'", (("Some GPU 24GB", "555.42", 24564),)),
        ("exit 9", ()),
    ):
        command.write_text(f"#!/bin/sh\n{answer}\n")
        command.chmod(0o755)
        provenance.gpus.cache_clear()
        sizes = tuple((*gpu[:2], gpu[2] / 2**20) for gpu in provenance.gpus())
        assert sizes == expected
    provenance.gpus.cache_clear()


def test_rates_are_measured_or_say_why_not(tmp_path):
    rate, how = provenance.drain(tmp_path)
    assert rate is not None
    assert rate > 0
    assert how in ("direct", "buffered")
    absent = provenance.drain(tmp_path / "absent")
    assert absent == (None, "not measured: No such file or directory")
    assert provenance.matmul_flops_per_s(size=64) > 0


def test_watch_counts_only_programs_that_began_meanwhile():
    run = [sys.executable, "-c"]
    earlier = subprocess.Popen(
        [*run, f"{HELD} time.sleep(9)"], stdout=subprocess.PIPE, text=True
    )
    assert earlier.stdout is not None
    own = bytearray(300 * 2**20)  # which a child has until its program begins
    with earlier, earlier.stdout as said:
        said.readline()
        with provenance.Watch() as watch:
            subprocess.run(["true"], preexec_fn=lambda: time.sleep(1), check=True)
            subprocess.run([*run, "import time; time.sleep(1)"], check=True)
        earlier.kill()
    assert 0 < watch.peak_memory_bytes < len(own)
    with provenance.Watch() as watch:
        subprocess.run([*run, f"{HELD} time.sleep(1)"], check=True)
    assert len(own) < watch.peak_memory_bytes < 1.3 * len(own)
    assert 0 <= watch.load_average["mean"] <= watch.load_average["most"]


def test_commit_reports_whether_sources_are_committed(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True)

    assert provenance.commit(tmp_path) == ("no repository", False)
    git("init", "-q")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("1")
    git("add", "src")
    git("commit", "-qm", "first")
    head, clean = provenance.commit(tmp_path)
    assert clean
    for file, content, expected in (
        ("note", "not a source", True),
        ("src/new", "a source, not yet added", False),
        ("src/f", "2", False),
    ):
        (tmp_path / file).write_text(content)
        assert provenance.commit(tmp_path) == (head, expected)
