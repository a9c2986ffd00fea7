"""Peers are compared in turn, under one limit, and only where the disk stood still."""

import json

import benchmark
import numpy as np
import pytest
import tiny
import torch
from memory_limit import how_confined

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import MiB
from thesis_lib.memory.formats.ggml import unpack
from thesis_lib.memory.model import gguf


@pytest.fixture(scope="module")
def script():
    return benchmark.load("streaming")


def run_of(
    turn, system="streamed", before=1.0, after=1.0, seconds=(9.0, 1.0, 1.2), **more
):
    return {
        "turn": turn, "system": system, "killed": False, "tokens": [1, 2, 3],
        "drain_before_s": [before], "drain_after_s": [after], "first_token_s": 5.0,
        "load_s": 0.1, "seconds": list(seconds), "peak_bytes": 7,
        "read_bytes": [0, 100, 100], **more,
    }  # fmt: skip


def test_systems_take_turns_forwards_and_backwards(script):
    turns = script.order(["a", "b", "c"], rounds=2)
    assert turns == list("abccba" * 2)
    middle = (len(turns) - 1) / 2  # a linear drift adds the same to everyone
    for system in "abc":
        places = [i for i, name in enumerate(turns) if name == system]
        assert np.mean(places) == middle
    nf4, coded = script.PACKED
    assert script.order(["a", nf4, "b"], 1) == [*"abba", nf4, nf4]
    assert script.order(["a", nf4, coded], 1) == ["a", "a", nf4, nf4, coded, coded]


def test_every_turn_is_tried_once_before_one_is_repeated(script):
    """The drains of turn 0 differ by 10 %: it is repeated last, and not for ever."""
    loose, steady = run_of(0, after=1.1), [run_of(1), run_of(2, after=1.04)]
    assert script.next_turn([], 3, 4) == 0
    assert script.next_turn([loose], 3, 4) == 1
    assert script.next_turn([loose, *steady], 3, 4) == 0
    assert script.next_turn([loose, *steady, run_of(0)], 3, 4) is None
    tried = [loose] * 3
    assert script.next_turn([*tried, *steady], 3, 4) == 0
    assert script.next_turn([*tried, loose, *steady], 3, 4) is None


def test_of_the_attempts_at_a_turn_the_steadiest_counts(script):
    runs = [run_of(0, after=1.3), run_of(1), run_of(0, after=0.9), run_of(1, after=2)]
    chosen = script.kept(runs)
    assert [(run["turn"], run["drain_after_s"]) for run in chosen] == [
        (0, [0.9]),
        (1, [1.0]),
    ]


def test_medians_leave_out_the_warm_up_and_compare_with_streamed(script):
    runs = [
        run_of(0, before=0.8, after=0.8),
        run_of(1, "slow", seconds=(9.0, 2.0, 2.4), before=0.8, after=0.8),
        run_of(2, "dead", killed=True, before=0.8, after=0.8),
        run_of(3, "streamed-nf4", seconds=(9.0, 0.5, 0.6), tokens=[4], after=0.8),
        run_of(4, "accelerate", seconds=(9.0, 5.0, 6.0), before=0.8, after=0.8),
        run_of(5, "streamed-lossless", seconds=(9.0, 0.8, 0.8), before=0.8, after=0.8),
        run_of(6, "streamed-q4", seconds=(9.0, 0.5, 0.6), tokens=[5], after=0.8),
        run_of(7, "llama.cpp-q4", seconds=(9.0, 0.25, 0.3), tokens=[6]),
    ]
    found = script.summarize(runs, warm_up=1)
    systems = found["systems"]
    assert systems["streamed"]["median_s"] == pytest.approx(1.1)
    assert systems["streamed"]["fraction_of_drain"] == pytest.approx(0.8 / 1.1)
    assert systems["slow"]["streamed_is_faster"]["times"] == pytest.approx(2.0)
    assert systems["slow"]["read_bytes_per_token"] == 100
    assert systems["dead"] == {"killed": True, "peak_bytes": 7}
    assert systems["streamed"]["settled"]
    assert not systems["streamed-nf4"]["settled"]
    over = {n: systems[n]["is_faster_than_accelerate"]["times"] for n in script.STORED}
    assert over == {
        "streamed-nf4": pytest.approx(10),
        "streamed-lossless": pytest.approx(5.5 / 0.8),
        "streamed-q4": pytest.approx(10),
    }  # fmt: skip
    beside = systems["llama.cpp-q4"]["streamed_q4_is_faster"]
    assert beside["times"] == pytest.approx(0.5)
    assert found["tokens_identical"]  # rounded weights may say something else
    for exact in (1, 5):
        spoilt = [*runs]
        spoilt[exact] = {**runs[exact], "tokens": [1, 2, 4]}
        assert not script.summarize(spoilt, warm_up=1)["tokens_identical"]


def test_a_file_for_llama_cpp_holds_the_weights_of_the_checkpoint(script, tmp_path):
    """And llama.cpp, where it is installed, computes the same from it."""
    peer = benchmark.load("llama_cpp_peer")
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    model = tiny.write(tmp_path / "own", head_dim=16, **shape)
    for name, kind in script.GGUF.items():
        path = tmp_path / f"{name}.gguf"
        peer.write_gguf(tmp_path / "own", path, kind)
        found = gguf.read_gguf(path).tensors.values()
        assert {each.kind for each in found if len(each.shape) > 1} == {kind}
    file = gguf.read_gguf(tmp_path / "llama.cpp.gguf")
    config = gguf.read_config(file)
    for name, tensor in gguf.place(file, config).items():
        weight = gguf.read_tensor(file, tensor, name, config)
        assert torch.equal(weight, model.get_parameter(name)), name
    script.in_blocks(tmp_path / "own", tmp_path / "q4")  # theirs, as this work streams
    four = gguf.read_gguf(tmp_path / "llama.cpp-q4.gguf")
    layered = {name for name in gguf.place(four, config) if "proj" in name}
    assert len(layered) == 7 * config.num_hidden_layers
    stored = tiny.stored(tmp_path / "q4")
    for name in layered:
        blocks = stored[name.replace(".weight", ".blocks")]
        theirs = gguf.read_tensor(four, gguf.place(four, config)[name], name, config)
        assert torch.equal(unpack(blocks, script.GGUF["llama.cpp-q4"]), theirs), name
    pytest.importorskip("llama_cpp")
    rows = tiny.tokens(3, 1, 12)
    found = peer.llama_step(file.path, 64)(rows[0].tolist())
    expected = model(rows).logits[0, -1].detach().float().numpy()
    assert np.abs(found - expected).max() < 0.02
    told = peer.decode_alone(str(file.path), rows[0].tolist(), 2, maps=False)
    assert told["tokens"][0] == expected.argmax()
    assert len(told["seconds"]) == len(told["read_bytes"]) == 2


def test_one_command_measures_resumes_and_writes_the_record(
    script, tmp_path, monkeypatch
):
    """Streamed and mapped files, on a model of which streamed has half in memory."""
    work, out = tmp_path / "work", tmp_path / "streaming.json"
    tiny.write(work / "checkpoint", num_hidden_layers=6, hidden_size=768)
    words = [
        "--systems", "streamed,mmap,mmap-sequential,mmap-ahead",
        "--cap", "900MiB", "--device-memory", "3MiB",
        "--prompt", "3", "--warm-up", "1", "--steps", "2",
        "--work", str(work), "--out", str(out),
    ]  # fmt: skip
    launch, found = script.launch, {}

    def launch_once(system, given, **options):
        """Each system in one process; a second turn of it is its first again."""
        if system not in found:
            found[system] = launch(system, given, **options)
        return dict(found[system])

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "launch", launch_once)
    with monkeypatch.context() as patch:
        patch.setattr(script, "report", stop)  # after the first run
        with pytest.raises(KeyboardInterrupt):
            script.main(words)
    assert not out.exists()
    script.main(words)
    record = json.loads(out.read_text())
    assert record["complete"]
    assert {"commit", "clean", "machine", "versions", "kernel"} <= record.keys()
    assert [run["system"] for run in record["runs"]] == [
        "streamed", "mmap", "mmap-sequential", "mmap-ahead",
        "mmap-ahead", "mmap-sequential", "mmap", "streamed",
    ]  # fmt: skip
    assert record["summary"]["tokens_identical"]
    for run in record["runs"]:
        assert run["how"] == how_confined()
        assert not run["killed"]
        assert 0 < run["peak_bytes"] <= run["limit_bytes"] == 900 * MiB
        assert len(run["tokens"]) == 4
        assert len(run["seconds"]) == len(run["read_bytes"]) == 3
        assert len(run["use"]) <= 300
    streamed = record["runs"][0]
    assert streamed["plan"]["tiers"]["disk"] > 0
    assert streamed["plan"]["device_peak_bytes"] <= 3 * MiB


def test_too_little_disk_is_rejected(script, tmp_path):
    with pytest.raises(InvalidInput, match="free some, or name another folder"):
        script.require_room(tmp_path, 2**60)
