"""What a record says of its machine and its commit."""

import subprocess
import sys

from thesis_book.execute import provenance

HELD_BYTES = 300 * 2**20
HELD = f"import time; held = bytearray({HELD_BYTES});"


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


def test_watch_counts_the_program_with_its_word_and_those_below_it():
    holder = [sys.executable, "-c", f"{HELD} time.sleep(1)"]
    above = [sys.executable, "-c", f"import subprocess; subprocess.run({holder})"]
    with provenance.Watch("--of=a") as other, provenance.Watch("--of=b") as watch:
        subprocess.run([*above, "--of=b"], check=True)
    assert other.peak_memory_bytes == 0
    assert HELD_BYTES < watch.peak_memory_bytes < 1.3 * HELD_BYTES
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
