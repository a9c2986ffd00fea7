"""A module imports only from lower floors; the two halves never meet."""

import ast
from pathlib import Path

import pytest

import thesis_lib

PACKAGE = Path(thesis_lib.__file__).parent
FLOORS = [
    "checks units files rules memory.rowwise memory.pages",
    "paths parameters stats machine sequencer.trace memory.spec memory.linears "
    "memory.checkpoint memory.rounding",
    "sequencer.workload sequencer.theory sequencer.locktable sequencer.bounds "
    "sequencer.replica field sequencer.sla sequencer.trees sequencer.calibration "
    "results memory.lowrank memory.quantise memory.lossless memory.smollm2 "
    "memory.confine memory.measure memory.records memory.prices memory.sensitivity "
    "memory.corrected memory.fisher",
    "claims sequencer.kernel sequencer.features sequencer.storage "
    "sequencer.misestimate memory.allocation memory.bits memory.store "
    "memory.pretrained",
    "sequencer.postgres sequencer.estimator sequencer.workers sequencer.logfile "
    "sequencer.pricing memory.factored memory.packed memory.ring memory.transport",
    "sequencer.shadow sequencer.modelfile sequencer.inspection memory.architectures "
    "memory.coded",
    "sequencer.dispatch memory.fewbits memory.refine memory.rehearsal memory.synth",
    "sequencer.policies memory.cost memory.calibrated memory.plan",
    "sequencer.pipeline sequencer.simulate sequencer.partitions memory.quality "
    "memory.trial memory.published memory.schedule memory.stream",
    "sequencer.engine sequencer.middleware sequencer.clairvoyant sequencer.report "
    "sequencer.worked memory.batch memory.deployment memory.rates memory.speculate "
    "memory.pareto",
    "sequencer.serve sequencer.accuracy sequencer.optimum sequencer.robustness "
    "sequencer.scale sequencer.goals figures memory.calculator memory.compress "
    "memory.steps",
    "chapters warm",
    "compare sweep",
    "present",
    "book",
    "cli",
    "__main__",
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
# Within a floor, only these are built on a neighbour.
NEIGHBOURS = {("units", "checks"), ("rules", "checks")}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.name != "__init__.py":
            yield name, path


MODULES = list(modules())


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""


def internal(path):
    for module, name in imports(path):
        if module.split(".")[0] != "thesis_lib":
            continue
        inside = module.removeprefix("thesis_lib").lstrip(".")
        whole = f"{inside}.{name}".lstrip(".")
        yield whole if whole in FLOOR else inside


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_every_module_has_a_floor_and_imports_only_from_below(name, path):
    assert name in FLOOR, f"{name} stands on no floor: add it to FLOORS"
    for other in internal(path):
        if other and other != name:
            assert FLOOR[other] < FLOOR[name] or (name, other) in NEIGHBOURS, (
                f"{name} (floor {FLOOR[name]}) imports {other} (floor {FLOOR[other]})"
            )


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_the_two_halves_never_import_each_other(name, path):
    half = name.split(".")[0]
    other = {"sequencer": "memory.", "memory": "sequencer."}.get(half)
    if other:
        assert not [found for found in internal(path) if found.startswith(other)]


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_only_part_two_imports_torch_and_only_figures_plots(name, path):
    roots = {module.split(".")[0] for module, _ in imports(path)}
    if not name.startswith("memory."):
        assert not roots & {"torch", "transformers", "bitsandbytes"}
    if name != "figures":
        assert not roots & {"matplotlib", "seaborn"}
