"""What a machine is told of itself is what the plans for it say."""

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from thesis_book.__main__ import app
from thesis_lib.common.units import GiB, MiB
from thesis_lib.memory import Machine, geometry, plan
from thesis_lib.memory.cost import planning
from thesis_lib.memory.cost.planning import examine
from thesis_lib.memory.evaluate import rates
from thesis_lib.memory.model.spec import geometries

MEASURED = Machine(1, 3e9, weight_bytes_per_s=9e9, flops_per_s=3e11, spread=0.03)


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    monkeypatch.setattr(rates, "measure_machine", lambda *_, **__: MEASURED)


def run(*words):
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 0, made.output
    return made.stdout


SCHEMA = json.loads(Path(planning.__file__).with_name("plan.schema.json").read_text())


@pytest.mark.parametrize("words", [
    "llama-65b --device-memory 8GiB",
    "llama-65b --device-memory 8GiB --host-memory 32GiB --weights int8 --context 64",
    "smollm2 --device-memory 96MiB",
    "smollm2 --device-memory 40MiB",
    "smollm2 --device-memory 1GiB --context 64 --pass-tokens 8",
])  # fmt: skip
def test_a_plan_keeps_to_its_schema(words):
    said = json.loads(run("plan", *shlex.split(words), "--json"))
    jsonschema.validate(said, SCHEMA)
    assert said["feasible"]
    assert sum(said["parts_bytes"].values()) == said["device_peak_bytes"]


@pytest.mark.parametrize("model", ["llama-65b", "smollm2"])
def test_a_rejection_keeps_to_the_schema_and_has_a_status_of_its_own(model):
    words = ["plan", model, "--device-memory", "1MiB"]
    made = CliRunner().invoke(app, [*words, "--json"])
    said = json.loads(made.stdout)
    jsonschema.validate(said, SCHEMA)
    assert (said["feasible"], made.exit_code) == (False, 3)
    assert said["reason"] in made.stderr
    plain = CliRunner().invoke(app, words)
    assert (plain.stdout, plain.exit_code) == ("", 3)
    bad = CliRunner().invoke(app, ["plan", model, "--device-memory", "x", "--json"])
    assert (bad.stdout, bad.exit_code) == ("", 2)


def test_every_geometry_has_its_plan_or_its_rejection():
    found = examine(2 * GiB)
    assert [each["model"] for each in found["models"]] == list(geometries())
    feasible = {each["model"]: each for each in found["models"] if each["feasible"]}
    assert 0 < len(feasible) < len(geometries())
    for name, said in feasible.items():
        made = plan(geometry(name), MEASURED.with_memory(2 * GiB), ring=None)
        assert said["predicted_s_per_token"] == made.predicted_s_per_token
        assert said["device_peak_bytes"] == made.device_peak_bytes <= 2 * GiB
    for said in found["models"]:
        assert said["feasible"] or "give it" in said["refusal"]


def test_without_a_size_three_quarters_of_free_memory_are_planned_for():
    found = examine()
    assert found["device_bytes"] % MiB == 0
    assert 0.74 * found["free_bytes"] < found["device_bytes"] <= found["free_bytes"]


def test_the_commands_that_are_printed_run_and_plan_the_same():
    said = json.loads(run("doctor", "--device-memory", "8GiB", "--json"))
    lines = run("doctor", "--device-memory", "8GiB").splitlines()
    assert len(lines) == 1 + len(geometries())
    for each, line in zip(said["models"], lines[1:], strict=True):
        assert line.startswith(each["model"])
        assert line.endswith(each["command"])
        program, *words = shlex.split(each["command"])
        assert program == "thesis"
        planned = json.loads(run(*words, "--json"))
        assert planned["device_peak_bytes"] == each["device_peak_bytes"]
        assert planned["tiers"] == each["tiers"]
