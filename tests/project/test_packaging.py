"""pyproject.toml, the locks, environment.yml and the installing script agree."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = dict(PROJECT["optional-dependencies"])
PEERS = [  # in no environment of ours
    Requirement(text) for extra in ("peers", "codecs") for text in EXTRAS.pop(extra)
]
DECLARED = [
    Requirement(text)
    for text in [*PROJECT["dependencies"], *(r for e in EXTRAS.values() for r in e)]
]
STEPS = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
PIP = next(step["pip"] for step in STEPS if isinstance(step, dict))
# Fixed by the project's owner.
OWNER = [
    "jupyter-book", "jupyterlab", "papermill", "torch", "transformers",
    "bitsandbytes", "scikit-learn", "pandas", "seaborn", "nbval",
]  # fmt: skip


def locked():
    pins = {}
    for name in ("requirements.lock", "requirements-nodeps.lock"):
        for line in (ROOT / name).read_text().splitlines():
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


def test_the_owners_packages_are_declared():
    assert set(OWNER) <= {r.name for r in DECLARED}


def test_every_dependency_but_torch_is_pinned_within_its_range():
    pins = locked()
    for requirement in DECLARED:
        if requirement.name == PROJECT["name"]:  # an extra that has others in it
            assert requirement.extras <= set(EXTRAS)
            continue
        if requirement.name == "torch":
            continue
        for pin in pins[canonicalize_name(requirement.name)]:
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            assert requirement.specifier.contains(specifier.version), pin


def test_peers_are_pinned_where_they_are_declared_and_locked_nowhere():
    for peer in PEERS:
        (specifier,) = peer.specifier
        assert specifier.operator == "=="
        assert canonicalize_name(peer.name) not in locked()


def test_the_locks_hold_neither_torch_nor_what_it_brings_nor_an_address():
    for name in locked():
        assert not re.match(r"torch$|triton|nvidia-|cuda-", name)
    for name in ("requirements.lock", "requirements-nodeps.lock"):
        assert "://" not in (ROOT / name).read_text()


def test_torch_is_one_range_everywhere():
    install = (ROOT / "scripts" / "install.sh").read_text()
    quoted = re.findall(r"torch([<>=][^'\s]*)", install)
    conda = [line for line in PIP if line.startswith("torch")]
    found = [Requirement(f"torch{text}").specifier for text in quoted]
    found += [Requirement(line).specifier for line in conda]
    declared = next(r for r in DECLARED if r.name == "torch").specifier
    assert found == [declared] * 2


def test_environment_yml_takes_the_same_lock_and_python():
    assert "-r requirements.lock" in PIP
    python = next(s for s in STEPS if isinstance(s, str) and s.startswith("python="))
    version = python.removeprefix("python=") + ".0"
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(
        version
    )


def test_every_make_target_has_its_line_of_help():
    text = (ROOT / "Makefile").read_text()
    phony = " ".join(re.findall(r"\.PHONY: (.*)", text)).split()
    described = re.findall(r"^([a-z]+):.*## ", text, re.MULTILINE)
    assert sorted(phony) == sorted(described)


def test_what_is_cited_and_what_is_archived_are_one():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    archived = json.loads((ROOT / ".zenodo.json").read_text())
    for name in ("title", "version", "license", "keywords"):
        assert archived[name] == cited[name], name
    assert archived["description"] == cited["abstract"]
    assert archived["creators"] == [{"name": a["name"]} for a in cited["authors"]]


def test_an_evaluation_without_such_a_tier_is_rejected():
    done = subprocess.run(
        ["sh", "scripts/evaluate.sh", "4"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("TIER=4: expected 1")
