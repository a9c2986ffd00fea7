"""Every script of `benchmarks/` runs, and writes what its committed record holds."""

import copy
import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "memory"))
MEASUREMENTS = ROOT / "data" / "measurements"
MADE_BY = {"commit", "clean", "kernel", "machine", "versions", "date", "load_average"}


def keys(rows):
    """What the rows of a list have together."""
    return set().union(*(row.keys() for row in rows))


def same_shape(new, old, at):
    """A smaller record of the same schema: no key and no kind of value is new.

    Rows of a table have the same columns. Tables may be of fewer names.
    """
    if isinstance(old, dict):
        assert isinstance(new, dict), at
        for key, value in new.items():
            if key not in MADE_BY and key in old:
                same_shape(value, old[key], f"{at}.{key}")
    elif isinstance(old, list) and old and isinstance(old[0], dict):
        assert isinstance(new, list), at
        assert new, f"{at} is empty"
        assert keys(new) - MADE_BY == keys(old) - MADE_BY, at
        same_shape(new[0], old[0], f"{at}[0]")
    elif isinstance(old, bool | str | list):
        assert isinstance(new, type(old)), at
    elif old is not None and new is not None:
        assert isinstance(new, int | float), at


def run(name, tmp_path, words=()):
    """The record that a script writes into a temporary folder."""
    script = importlib.import_module(name)
    out = tmp_path / f"{name}.json"
    script.main([*map(str, words), "--out", str(out)])
    return json.loads(out.read_text())


def committed(name):
    return json.loads((MEASUREMENTS / f"{name}.json").read_text())


def held_against(name, record):
    """No key of the committed record is missing, and the rest is of its schema."""
    assert committed(name).keys() | MADE_BY <= record.keys()
    same_shape(record, committed(name), name)


@pytest.fixture
def patched(monkeypatch):
    def patch(name, **constants):
        script = importlib.import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(script, constant, value)
        return script

    return patch


@pytest.fixture
def tiny_smollm2(monkeypatch, tmp_path):
    """A tiny random model where a script asks for SmolLM2."""
    import tiny

    from thesis_lib.memory.model import smollm2

    folder = tmp_path / "tiny"
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    model = tiny.write(folder, head_dim=16, max_position_embeddings=512, **shape)
    tokenizer = tiny.give_tokenizer(folder)
    monkeypatch.setattr(smollm2, "checkpoint", lambda: folder)
    monkeypatch.setattr(smollm2, "load", lambda: (copy.deepcopy(model), tokenizer))
    return folder


EXAMPLE = yaml.safe_load((ROOT / "data" / "grids" / "example.yml").read_text())
LOADS = next(iter(EXAMPLE["grid"]))  # the parameters that take their loads together
CHECK = EXAMPLE | {"grid": EXAMPLE["grid"] | {LOADS: EXAMPLE["grid"][LOADS][:2]}}
ORDERS = "CREATE TABLE orders AS SELECT n AS day, n AS customer, 1.5::float8 AS amount "
ORDERS += "FROM generate_series(0, 99) AS n;"
# By script, its words and its constants; those of Part II run on a tiny model.
PART_ONE = {
    "goals": (["2", "300"], {}),
    "explorer": (
        ["2", "300", "--work", "WORK"],
        {
            "AXES": {
                "load": (0.9, 1.1), "slo_ms": (8.0, 12.5), "sigma": (0.2, 0.5),
                "lag_ms": (0.0, 0.5),
            },
            "MIDDLE": {
                "load": (0.9,), "slo_ms": (8.0,), "sigma": (0.2,), "lag_ms": (0.0,)
            },
        },
    ),
    "optimum": (
        [],
        {
            "TRANSACTIONS": 300, "LOADS": (1.1,), "SEEDS": 2, "SWEEPS": 1,
            "NUMBER": 2, "EFFORT": 0.1, "WINDOWS": {"B": 3.0},
        },
    ),
    "single_estimate": ([], {"ROUNDS": 1, "CALLS": 20}),
    "rivals": (["300", "1"], {"SETTINGS": {"A": 0.0, "C": 0.0}, "LOADS": (1.1,)}),
    "simulator": (
        [],
        {
            "CASES": [("A", 0.9)], "PEER_TRANSACTIONS": 300, "ROUNDS": 1,
            "SIZES": [100, 200], "REPLICA_WORKERS": [4, 8],
        },
    ),
    "decide": (
        [],
        {
            "TRANSACTIONS": 300, "LOADS": (1.1,), "ROUNDS": 1, "SCENARIOS": ("A",),
            "POLICIES": ("fifo-batched", "bid-price"), "CROWDED_ROUNDS": 1,
            "CROWDED_LOADS": (1.1,), "CROWDED_SLO_S": (0.0125,), "HELD": (20,),
        },
    ),
    "scale": ([], {"CORES": (8,), "LOADS": (1.1,), "ROUNDS": 1}),
    "middleware": (
        ["1"], {"N": 120, "WARM_UP": 20, "WORKERS": (1,), "STEPS": (0.5, 1.0)}
    ),
    "sim_to_real": (
        ["2", "60"],
        {"LOADS": (0.9, 1.1), "WORKERS": (1,), "BURST": 300, "SLO_S": 60.0},
    ),
    "http_service": (
        ["1", "40"],
        {
            "LOADS": (1.1,), "POLICIES": ("bare", "fifo", "bid-price"), "BURST": 20,
            "TABLE": ORDERS, "CORES": [min(os.sched_getaffinity(0))],
            "own_core": lambda: None,  # the tests go on with all
        },
    ),
    "beside": (["1"], {"WAYS": {"sleeping": "0"}, "BESIDE": (0, 1)}),
    "certificate": (["--logical", "1", "--physical", "1"], {}),
    "first_use": (["1"], {"COMMANDS": ["thesis plan llama-65b --device-memory 8GiB"]}),
}  # fmt: skip
PART_TWO = {
    "lowrank": (
        ["--seeds", "1", "--windows", "6", "--tokens", "60"],
        {"CONTEXT": 24, "RATIOS": (0.8,), "LAST_TOKEN": 2000, "BLOCK_WINDOWS": 6},
    ),
    "combined": (
        ["--seeds", "1"],
        {
            "CONTEXT": 24, "WINDOWS": 6, "OUTER_WINDOWS": 6, "CALIBRATION_TOKENS": 500,
            "VALIDATION": (600, 49), "HELD_OUT_TOKENS": 49, "GROUPS": (64,),
            "RANKS": (0, 2), "LAYERS": 4, "LAYERS_JUDGED": range(1, 2), "ROUNDS": 1,
        },
    ),
    "speculate": (
        [
            "--prompts", "2", "--tokens", "4", "--drafted", "1", "--rounds", "1",
            "--layers", "0",
        ],
        {"PROMPT": 24, "SHARE": 1.5, "BATCHES": (1, 2), "PERIOD": 0},
    ),
    "step_times": (
        ["--checkpoint", "TINY", "--plans", "2", "--rounds", "1"],
        {"PASSES": (1, 4), "SEQUENCES": (1, 2), "STEPS": 1, "SHARES": (0.5, 1.5)},
    ),
}  # fmt: skip
SLOW = {"decide", "scale", "beside", "certificate"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.proof] * (n in SLOW)) for n in PART_ONE],
)
def test_a_script_writes_the_schema_of_its_record(name, patched, tmp_path):
    words, constants = PART_ONE[name]
    patched(name, **constants)
    words = [tmp_path / "work" if word == "WORK" else word for word in words]
    held_against(name, run(name, tmp_path, words))


@pytest.mark.parametrize("name", PART_TWO)
def test_so_does_one_of_a_small_model(name, patched, tiny_smollm2, tmp_path):
    words, constants = PART_TWO[name]
    patched(name, **constants)
    words = [tiny_smollm2 if word == "TINY" else word for word in words]
    record = run(name, tmp_path, words)
    held_against(name, record)
    points = next((key for key in ("points", "runs") if key in record), None)
    if points is not None:  # those are kept: nothing is scored twice
        assert run(name, tmp_path, words)[points] == record[points]
    assert all(row["identical"] for row in record.get("prompts", []))


def test_plans_are_metered_below_what_they_promise(tmp_path):
    record = run("certificate", tmp_path, ["--logical", "3", "--physical", "0"])
    assert record["physical"] == []
    for row in record["logical"]:
        assert row["metered_bytes"] <= row["planned_bytes"]
    physical = committed("certificate")["physical"]
    held_against("certificate", record | {"physical": physical})


def test_ways_to_store_a_model_are_those_of_the_record(patched, tiny_smollm2, tmp_path):
    script = importlib.import_module("pareto")
    points = [
        script.Point("bf16"),
        script.Point("GPTQ 3", script.CompressionConfig(bits=3, group=16)),
        script.Point("plain SVD 0.8", twin=lambda m: script.truncated(m, 0.8)),
    ]
    patched("pareto", CONTEXT=24, PROMPT=8, GROUP=16, SHARE=1, POINTS=points)
    words = ["--sets", "1", "--tokens", "60", "--rounds", "1", "--work", tmp_path / "w"]
    record = run("pareto", tmp_path, words)
    held_against("pareto", record)
    assert set(record["timing"]["systems"]) == {"bf16", "GPTQ 3"}


@pytest.fixture
def small(patched):
    """Let scripts draw a few small layers, and read once where they would settle."""
    from thesis_lib.memory.compress.random_weights import synthesize
    from thesis_lib.memory.model.spec import ModelSpec

    spec = ModelSpec("llama2-7b", 6, 256, 512, 8, 8, 32, 1000, tied=False)
    patched("lossless", REPEATS=1, settle=lambda model: [model.drain() or 0.1])
    for name in ("lossless", "blocks"):
        patched(name, synthesize=lambda _, *a, **k: synthesize(spec, *a, **k))


@pytest.mark.usefixtures("small")
def test_a_lossless_code_is_that_of_the_record(tmp_path):
    words = ["--mib", "2", "--layers", "4", "--rounds", "1"]
    record = run("lossless", tmp_path, ["--codecs", "exponent code", *words])
    held_against("lossless", record)
    assert record["stream"]["equal_logits"]
    assert all(row["ratio"] < 0.8 for row in record["codecs"])


@pytest.mark.usefixtures("small")
def test_blocks_that_are_kept_are_those_of_the_record(tmp_path):
    record = run("blocks", tmp_path, ["--layers", "4", "--rounds", "1"])
    held_against("blocks", record)
    assert record["streams"]["SmolLM2"]["equal_logits"]
    for stream in record["streams"].values():
        read = stream["bytes_per_step"]
        assert read["blocks"] < 0.5 * read["bf16"]


def test_violations_of_a_streamed_model_are_those_of_the_record(
    patched, tiny_smollm2, tmp_path
):
    patched(
        "model_service",
        CASES={
            "streamed": {1.1: ("fifo", "hybrid", "bid-price")},
            "resident": {1.1: ("fifo",)},
        },
        DEVICE_BYTES={"streamed": 2**20, "resident": 2**24},
        ROOM={"slots": 2, "context": 40, "pass_tokens": 8}, BURST=4, NOVEL=200,
        LONGEST=24,
    )  # fmt: skip
    record = run("model_service", tmp_path, ["1", "18"])
    held_against("model_service", record)
    for row in record["runs"]:
        assert row["measured"] == row["late"] + row["refused"]
    for place in record["places"].values():
        assert place["peak_bytes"] <= place["plan_bytes"] <= place["device_bytes"]


@pytest.mark.proof
def test_sweeps_are_those_of_both_records(patched, tmp_path):
    small = dict(zip(LOADS.split(", "), CHECK["grid"][LOADS][0], strict=True))
    others = CHECK["grid"].keys() - {LOADS}
    small |= {name: CHECK["grid"][name][0] for name in others} | {"seeds": 2}
    patched("sweeps", SMALL=small, SIXTEEN=CHECK | {"seeds": 3}, SIXTY_FOUR=CHECK)
    overhead = run("sweeps", tmp_path, ["1"])
    held_against("sweep_overhead", overhead)
    resumed = json.loads((tmp_path / "sweep_resume.json").read_text())
    held_against("sweep_resume", resumed)
    assert resumed["lost"] == resumed["executed_twice"] == 0


@pytest.mark.proof
def test_a_grid_is_told_with_its_times(patched, tmp_path):
    grids = tmp_path / "data" / "grids"
    grids.mkdir(parents=True)
    (grids / "small.yml").write_text(yaml.safe_dump(CHECK))
    shown = importlib.import_module("grids").SHOWN_4
    patched("grids", GRIDS={"small": ("4", 1, shown)}, checkout=lambda: tmp_path)
    (found,) = run("grids", tmp_path, ["small"]).values()
    assert found["points"] == 4
    assert found["failed"] == {}
    assert {"commit", "machine", "rows", "workers"} <= found.keys()


@pytest.mark.proof
def test_speed_is_compared_with_another_checkout(patched, tmp_path):
    patched("simulator", SPEED_POLICIES=("fifo",), SPEED_ROUNDS=1)
    patched("simulator", SPEED_TRANSACTIONS=300)
    rows = run("simulator", tmp_path, ["--against", ROOT])["rows"]
    assert [row["what"] for row in rows] == ["us_per_event", "us_per_decision"]
    assert all(row["ratio"] == row["here"][0] / row["there"][0] for row in rows)


def test_no_script_is_left_out():
    """The others have tests of their own, or are helpers of those that have."""
    tests = [path.read_text() for path in Path(__file__).parent.glob("*.py")]
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert any(path.stem in text for text in tests), f"no test runs {path.stem}"


def test_the_readme_names_every_script_and_no_other():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    there = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(re.findall(r"`(\w+\.py)`", text)) == there
