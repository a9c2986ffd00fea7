"""What a machine is told of itself is what the plans for it say."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from thesis_lib.cli.main import app
from thesis_lib.common.units import GiB, MiB
from thesis_lib.memory import Machine, geometry, plan
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


def test_every_geometry_has_its_plan_or_its_refusal():
    found = examine(6 * GiB)
    assert [each["model"] for each in found["models"]] == list(geometries())
    feasible = {each["model"]: each for each in found["models"] if each["feasible"]}
    assert 0 < len(feasible) < len(geometries())
    for name, said in feasible.items():
        made = plan(geometry(name), MEASURED.with_memory(6 * GiB))
        assert said["predicted_s_per_token"] == made.predicted_s_per_token
        assert said["device_peak_bytes"] == made.device_peak_bytes <= 6 * GiB
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
