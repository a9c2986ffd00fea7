"""All of the GPU's measurement but the GPU: on the processor, with a small geometry."""

import json
import time
from types import SimpleNamespace

import benchmark
import memory_limit
import pytest
import torch
from memory_limit import Confined

from thesis_lib.common.units import MiB


@pytest.fixture
def script(monkeypatch):
    return benchmark.load_small("gpu", monkeypatch)


def options(script, tmp_path, **more):
    return script.Options(
        device="cpu", limit="24MiB", host_memory="16MiB", distinct=3, peer_layers=4,
        reserve="0B", steps=2, warm_up=1, work=str(tmp_path / "work"), **more,
    )  # fmt: skip


def words(tmp_path, *more):
    return [
        "--device", "cpu", "--limit", "24MiB", "--host-memory", "16MiB",
        "--distinct", "3", "--peer-layers", "4", "--peers", "accelerate",
        "--reserve", "0B", "--steps", "2", "--warm-up", "1",
        "--work", str(tmp_path / "work"), "--out", str(tmp_path / "gpu.json"), *more,
    ]  # fmt: skip


def test_on_a_processor_it_measures_all_but_the_device(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script.util, "find_spec", lambda name: None)
    script.main(words(tmp_path))
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {"commit", "clean", "machine", "versions", "seconds"} <= record.keys()
    assert (record["geometry"], record["device"]) == ("small", "cpu")
    whole, few = record["parts"]["whole"], record["parts"]["streamed"]
    assert (whole["layers"], whole["distinct_layers"]) == (6, 3)
    assert (few["layers"], few["distinct_layers"]) == (4, 3)
    assert "not installed" in record["parts"]["accelerate"]["skipped"]
    assert whole["plan"]["tiers"]["host"] > 0  # host memory and disk together
    assert whole["plan"]["tiers"]["disk"] > 0
    for part in (whole, few):
        assert part["logical_peak_bytes"] <= part["planned_peak_bytes"]
        assert part["planned_peak_bytes"] < part["limit_bytes"] == 24 * MiB
        assert part["how"] == "uncapped"
        moved = part["bytes_per_token"] / part["s_per_token"]
        assert part["fraction_of_link"] == pytest.approx(
            moved / max(part["link_bytes_per_s"])
        )
    assert not list((tmp_path / "work").glob("*/config.json"))  # the stores are gone


def test_what_the_time_does_not_allow_is_left_out_and_said_so(
    script, tmp_path, monkeypatch
):
    """Each part takes 10 s and is foreseen at 15: the third does not fit into 30."""
    now_s, ran = [0.0], []

    def launch(system, folder, host, disk_rate, given):
        ran.append((system, folder.name))
        now_s[0] += 10
        return {"s_per_token": 1.0, "trial": {"tokens": [[1]]}}

    clock = SimpleNamespace(perf_counter=lambda: now_s[0], strftime=time.strftime)
    monkeypatch.setattr(script, "time", clock)
    monkeypatch.setattr(script, "launch", launch)
    monkeypatch.setattr(script, "link_rate", lambda device, copies: 2e9)
    monkeypatch.setattr(script.util, "find_spec", lambda name: object())
    given = options(script, tmp_path, peers="accelerate", minutes=0.5)
    found = script.measure(given, benchmark.SMALL)
    assert ran == [("streamed", "whole"), ("streamed", "few")]
    assert "were left" in found["parts"]["accelerate"]["skipped"]
    assert found["tokens_identical"] is None


def test_a_part_that_fails_is_reported_and_the_others_go_on(
    script, tmp_path, monkeypatch
):
    def confine(words, limit_bytes, look_s):
        return Confined("uncapped", limit_bytes, 1, True, -9, 0.1, None, "")

    monkeypatch.setattr(memory_limit, "confine", confine)
    given = options(script, tmp_path, peers="")
    found = script.measure(given, benchmark.SMALL)["parts"]
    assert set(found) == {"whole", "streamed"}
    for part in found.values():
        assert (part["failed"], part["killed"]) == ("ended with -9", True)
        assert script.outcome("streamed", part) == "streamed: ended with -9"


def test_without_a_device_or_disk_it_rejects(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        script.main(["--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit, match="has room for 0 layers of small"):
        script.main(words(tmp_path, "--reserve", "999TiB"))
    with pytest.raises(SystemExit, match="device='tpu' is unknown"):
        script.main(["--device", "tpu"])
