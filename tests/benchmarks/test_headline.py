"""The headline on a small geometry: surveyed, capped, resumed, and cleaned up after."""

import json

import benchmark
import numpy as np
import pytest
from memory_limit import how_confined

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import MiB
from thesis_lib.memory.model.spec import geometry


@pytest.fixture
def script(monkeypatch):
    return benchmark.load_small("headline", monkeypatch)


def words(tmp_path, *more):
    return [
        "--weights", "bf16", "--limits", "1000MiB,995MiB", "--runtime", "975MiB",
        "--reserve", "0B", "--processes", "1", "--steps", "2", "--rate-s", "0.1",
        "--drain-every", "1", "--warm-up", "1",
        "--work", str(tmp_path / "work"), "--out", str(tmp_path / "record.json"), *more,
    ]  # fmt: skip


def test_the_survey_fills_the_disk_and_leaves_the_reserve(script):
    spec = geometry("llama-65b")
    bf16, nf4 = script.survey(spec, ["bf16", "nf4"], 57 * 10**9, 10 * 10**9)
    assert 57 * 10**9 - bf16.bytes >= 10 * 10**9 > 57 * 10**9 - bf16.bytes - 1.7e9
    assert bf16.distinct_layers == 28  # 1.62 GB each, and 1.05 GB outside the stack
    assert nf4.distinct_layers == nf4.layers == 80
    assert 34e9 < nf4.bytes < 36e9
    assert "all 80 layers distinct" in nf4.label
    assert "28 distinct layers hard-linked to 80 names" in bf16.label


def test_time_is_told_beforehand(script):
    """Five steps and four drains of 130 GB at 2 GB/s, in two processes."""
    spec = geometry("llama-65b")
    (store,) = script.survey(spec, ["bf16"], 57 * 10**9, 10 * 10**9)
    seconds = script.predicted_s(store, spec, runs=2, passes=9, rate=2e9)
    assert 2 * 9 * 129.5e9 / 2e9 < seconds < 2 * 9 * 131e9 / 2e9 + 300


def test_without_disk_or_time_it_rejects_before_it_writes(script, tmp_path):
    with pytest.raises(InvalidInput, match="two layers of small in bf16 need"):
        script.survey(benchmark.SMALL, ["bf16"], 12 * MiB, 10 * MiB)
    with pytest.raises(SystemExit, match=r"more than the 0\.001 minutes allowed"):
        script.main(words(tmp_path, "--minutes", "0.001"))
    with pytest.raises(SystemExit, match="of which stay free"):
        script.main(words(tmp_path, "--reserve", "999TiB"))
    for wrong in ("3", "0", "-1"):
        with pytest.raises(SystemExit, match="must be a divisor of --steps 2"):
            script.main(words(tmp_path, "--drain-every", wrong))
    with pytest.raises(SystemExit, match="leaves nothing beside"):
        script.main(words(tmp_path, "--runtime", "2GiB"))
    assert not (tmp_path / "record.json").exists()


def test_a_dry_run_says_what_it_takes_and_writes_nothing(script, tmp_path, capsys):
    script.main(words(tmp_path, "--dry-run"))
    said = capsys.readouterr().err
    assert "of disk, about" in said
    assert f"limits by {how_confined()}" in said
    assert not [p for p in (tmp_path / "work").iterdir() if p.is_dir()]


def test_it_resumes_where_it_was_killed_and_cleans_up(script, tmp_path, monkeypatch):
    run_process, ran = script.run_process, []
    twice = words(tmp_path, "--processes", "2")

    def first_only(store, folder, limit_bytes, given):
        if ran:
            raise KeyboardInterrupt
        ran.append(limit_bytes)
        return run_process(store, folder, limit_bytes, given)

    def rest(store, folder, limit_bytes, given):
        ran.append(limit_bytes)
        return run_process(store, folder, limit_bytes, given)

    monkeypatch.setattr(script, "run_process", first_only)
    with pytest.raises(KeyboardInterrupt):
        script.main(twice)
    monkeypatch.setattr(script, "run_process", rest)
    script.main(twice)
    assert ran == 2 * [1000 * MiB, 995 * MiB]  # one limit after the other
    assert not list((tmp_path / "work").glob("bf16*"))

    record = json.loads((tmp_path / "record.json").read_text())
    assert record["geometry"] == "small"
    assert {"commit", "clean", "machine", "versions", "kernel"} <= record.keys()
    assert list(record["parts"]) == ["bf16-1000MiB", "bf16-995MiB"]
    streamed = [part["plan"]["tiers"]["disk"] for part in record["parts"].values()]
    assert 0 < streamed[0] < streamed[1] <= 6  # the smaller limit streams more
    for part in record["parts"].values():
        assert part["how"] == how_confined()
        assert part["logical_peak_bytes"] <= part["planned_peak_bytes"]
        assert part["planned_peak_bytes"] <= part["device_bytes"]
        assert part["logical_peak_bytes"] <= part["peak_bytes"] <= part["limit_bytes"]
        assert len(part["trial"]["step_s"]) == len(part["fractions"]) == 2 * 2
        assert len(part["trial"]["drain_s"]) == 2 * 3
        assert part["s_per_token"] == np.median(part["trial"]["step_s"])
        rates = [run["predicted_at_bytes_per_s"] for run in part["processes"]]
        assert part["predicted_at_bytes_per_s"] == np.median(rates)
        peaks = [process["peak_bytes"] for process in part["processes"]]
        assert len(peaks) == 2
        assert part["peak_bytes"] == max(peaks)
        if part["mode"] == "direct":
            # Up to three layers are in flight when the trial starts and when it ends.
            planned, layer = part["planned_bytes_per_token"], 5.3e6
            read = part["read_bytes_per_token"]
            assert abs(read - planned) <= 3 * layer / 5
    tokens = {str(part["trial"]["tokens"]) for part in record["parts"].values()}
    assert len(tokens) == 1  # the limit changes where bytes live, not what is said


def test_a_limit_that_is_too_small_ends_the_run_by_name(script, tmp_path, monkeypatch):
    """A runtime that is underestimated: the plan fits, the process does not."""
    given = words(tmp_path, "--limits", "60MiB", "--runtime", "40MiB")
    with pytest.raises(SystemExit, match="killed at its limit of 60 MiB"):
        script.main(given)
    assert not (tmp_path / "record.json").exists()
