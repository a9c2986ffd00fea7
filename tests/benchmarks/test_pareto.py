"""The sweep behind the Pareto: nothing twice, nothing half, and equal terms for all."""

import json
import shutil

import benchmark
import pytest
import tiny

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import data_folder
from thesis_lib.memory.evaluate.perplexity import perplexity, read_tokens

TEXTS = ("sense_and_sensibility", "persuasion")
CONTEXT = 24


@pytest.fixture(scope="module")
def script():
    return benchmark.load("pareto")


@pytest.fixture
def sweep(script, tmp_path):
    """A tiny model, 100 tokens of two texts, and three thirds of a short one."""
    tiny.write(tmp_path / "dense")
    tokenizer = tiny.give_tokenizer(tmp_path / "dense")
    folder = data_folder() / "text"
    texts = {n: read_tokens(tokenizer, folder / f"{n}.txt", 101) for n in TEXTS}
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("a quick brown fox jumps " * 20 for _ in range(9)))
    (tmp_path / "work").mkdir()
    parts = script.write_parts(text, tmp_path / "work")
    return script.Sweep(tmp_path / "dense", tmp_path / "work", texts, parts, CONTEXT)


def record_of(script, path, settings):
    return script.Record(path, settings, script.RESUMED)


def few(script, name="three", **options):
    return script.Point(name, script.CompressionConfig(bits=3, group=16, **options))


def test_thirds_are_disjoint_nearly_equal_and_the_whole_text(script):
    text = (data_folder() / "text" / script.CALIBRATION).read_text()
    parts = script.split_text(text)
    assert len(parts) == script.PARTS == 3
    assert "".join(parts) == text
    paragraph = max(map(len, text.split("\n\n"))) + 4
    assert all(abs(len(part) - len(text) / 3) < paragraph for part in parts)
    assert all(part.endswith("\n\n") for part in parts[:-1])
    with pytest.raises(InvalidInput, match="2 paragraphs do not make 3 parts"):
        script.split_text("one\n\ntwo")


def test_the_first_set_of_all_points_comes_before_the_second_of_any(script):
    order = list(script.wanted(script.POINTS, 3))
    names = [point.name for point in script.POINTS]
    assert len(set(names)) == len(names)
    assert order[: len(names)] == [(point, 0) for point in script.POINTS]
    calibrated = {point.name for point, number in order if number > 0}
    assert {point.name for point, number in order if number == 2} == calibrated
    assert "GPTQ 3" in calibrated
    assert not calibrated & {"bf16", "NF4", "lossless", "nearest 3"}


def test_a_second_run_scores_nothing_twice(script, sweep, tmp_path, monkeypatch):
    out = tmp_path / "record.json"
    points = [
        script.Point("bf16"),
        few(script),
        script.Point("twin", twin=lambda model: script.truncated(model, 0.8)),
    ]
    script.run(sweep, record_of(script, out, {"a": 1}), points, sets=2)
    before = json.loads(out.read_text())
    assert [(p["name"], p["set"]) for p in before["points"]] == [
        ("bf16", 0),
        ("three", 0),
        ("twin", 0),
        ("three", 1),
    ]
    assert (tmp_path / "work" / "three-1").is_dir()  # to be timed
    assert not (tmp_path / "work" / "three-2").exists()
    calls = []
    for name in ("streamed_perplexity", "perplexity", "write_compressed"):
        monkeypatch.setattr(script, name, lambda *a, name=name, **k: calls.append(name))
    record = record_of(script, out, {"a": 1})
    script.run(sweep, record, points, sets=2)
    assert calls == []
    assert record.content["points"] == before["points"]


def test_scores_and_sizes_are_those_of_the_model_itself(script, sweep, tmp_path):
    record = record_of(script, tmp_path / "record.json", {})
    points = script.Point("bf16"), script.Point("same", twin=lambda m: (m, 0))
    stored, resident = (sweep.score(point, 0, record) for point in points)
    assert stored["nll"] == resident["nll"]
    for name, tokens in sweep.texts.items():
        expected = perplexity(sweep.model, tokens, CONTEXT)
        assert stored["nll"][name] == expected.nll.tolist()
    assert stored["layer_bits"] == 16
    files = (tmp_path / "dense").glob("*.safetensors")
    assert stored["bytes"] == sum(len(file.read_bytes()) for file in files)


def test_bits_of_layers_count_codes_scales_and_norms(script, sweep, tmp_path):
    record = record_of(script, tmp_path / "record.json", {})
    found = sweep.score(few(script), 0, record)
    matrices = sum(
        layer.weight.numel() for layer in script.matrices(sweep.model).values()
    )
    norms = sweep.layer_parameters - matrices
    bits = (3 + 16 / 16) * matrices + 16 * norms
    assert found["layer_bits"] == pytest.approx(bits / sweep.layer_parameters)
    assert found["bytes"] > found["layer_bytes"]


def test_a_checkpoint_that_was_cut_off_is_made_anew(script, sweep):
    point = few(script)
    folder = sweep.written(point, 0)
    file = folder / "layer-0001.safetensors"
    whole, other = file.read_bytes(), folder / "layer-0000.safetensors"
    written = other.stat().st_mtime_ns
    assert sweep.written(point, 0) == folder
    assert other.stat().st_mtime_ns == written  # it was only read
    for damage in (
        lambda: file.write_bytes(whole[:-100]),
        lambda: file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
        (folder / "manifest.json").unlink,
    ):
        damage()
        sweep.written(point, 0)
        assert file.read_bytes() == whole
        assert script.is_whole(folder)


def test_a_checkpoint_that_the_record_does_not_know_is_made_anew(
    script, sweep, tmp_path
):
    folder = sweep.written(few(script, correction_rank=2), 0)
    larger = script.stored_bytes(folder)
    sweep.score(few(script), 0, record_of(script, tmp_path / "record.json", {}))
    assert script.stored_bytes(folder) < larger


def test_another_wish_is_rejected(script, tmp_path):
    record = record_of(script, tmp_path / "record.json", {})
    record.add({"name": "three", "set": 0, **few(script).described})
    assert script.known(record, few(script), 0) == record.points[0]
    with pytest.raises(InvalidInput, match=r"knows 'three' as .* give another --out"):
        script.known(record, few(script, correction_rank=2), 0)


def test_timing_takes_turns_writes_the_same_tokens_and_says_who_is_too_large(
    script, sweep, tmp_path
):
    copied = tmp_path / "copied"
    shutil.copytree(sweep.dense, copied)
    prompt = sweep.texts[TEXTS[0]][None, :8]
    folders = {"one": sweep.dense, "two": copied}
    size = script.stored_bytes(sweep.dense)
    found = script.time_stores(folders, size, prompt, rounds=1)
    assert found["one"]["tokens"] == found["two"]["tokens"]
    assert len(found["one"]["tokens"]) == 1 + 3 * (script.TOKENS + 1)
    assert len(found["one"]["token_s"]) == 2 * script.TOKENS
    assert len(found["one"]["drain_s"]) == 2
    assert found["one"]["bytes_per_step"] > 0
    refused = script.time_stores({"one": sweep.dense}, size // 8, prompt, rounds=1)
    assert "short by" in refused["one"]["refused"]
