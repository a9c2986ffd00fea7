"""The workflow of a fork's CI calls only make, and .ci/run executes the same lines."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import slow_lines

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
PAGES = WORKFLOW.with_name("pages.yml")
JOBS = yaml.safe_load(WORKFLOW.read_text())["jobs"]
EVERY_JOB = {**JOBS, **yaml.safe_load(PAGES.read_text())["jobs"]}


def steps(job):
    return [step for step in EVERY_JOB[job]["steps"] if "run" in step]


def call(*words, **options):
    """Run a command without the flags of a `make test` that runs this very test."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(
        words, env=inherited, capture_output=True, text=True, timeout=120, **options
    )


def make(*words):
    return call("make", *words, cwd=ROOT)


def run_ci(checkout, *words):
    return call("bash", str(checkout / ".ci" / "run"), *words, input="outside\n")


def has_gpu():
    if shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.mark.parametrize("start", [start for start, _ in slow_lines()])
def test_slow_tests_exist(start):
    path, _, name = start.partition("::")
    assert (ROOT / path).exists()
    assert not name or f"\ndef {name}" in (ROOT / path).read_text()


@pytest.mark.parametrize("job", EVERY_JOB)
def test_a_job_runs_only_make_targets_that_exist(job):
    assert steps(job)
    text = (ROOT / "Makefile").read_text()
    phony = " ".join(re.findall(r"\.PHONY: (.*)", text)).split()
    for step in steps(job):
        assert set(step) <= {"run", "name"}, "a line must mean the same anywhere"
        word, target = step["run"].split(" ")
        assert word == "make"
        assert target in phony
        done = make("-n", target)
        assert done.returncode == 0, done.stderr


def test_every_action_is_pinned_to_a_major_version():
    used = [
        s["uses"] for job in EVERY_JOB.values() for s in job["steps"] if "uses" in s
    ]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)


def test_ci_run_extracts_what_a_yaml_reader_sees():
    """Of this file: a line in another form than it understands would be missing."""
    done = run_ci(ROOT, "--list", str(WORKFLOW))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [step["run"] for step in steps("cpu")]


def checkout_with(folder, lines):
    """A checkout whose job `cpu` stands between two others."""
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    (folder / ".github" / "workflows").mkdir(parents=True)
    other = "    steps:\n      - run: make never\n"
    cpu = "".join(f"      - run: make {name}\n" for name in lines)
    (folder / ".github" / "workflows" / "ci.yml").write_text(
        f"jobs:\n  cpu-lint:\n{other}  cpu:  # the one that counts\n    steps:\n{cpu}"
        f"      # - run: make clean\n  gpu:\n{other}"
    )
    return folder


def test_ci_run_executes_every_line_and_stops_at_the_first_that_fails(tmp_path):
    checkout_with(tmp_path / "empty", [])
    assert "its job cpu has no line `- run: make" in run_ci(tmp_path / "empty").stderr
    checkout_with(tmp_path / "full", "abcd")
    # A target that reads its standard input must not swallow the next line.
    (tmp_path / "full" / "Makefile").write_text(
        "a:\n\t@cat\n\t@echo did a CI=$$CI\nb:\n\t@echo did b\nc:\n\t@false\n"
        "d:\n\t@echo did d\n"
    )
    done = run_ci(tmp_path / "full")
    assert done.returncode != 0
    said = [line for line in done.stdout.splitlines() if not line.startswith("make")]
    assert said == ["+ make a", "did a CI=true", "+ make b", "did b", "+ make c"]


def test_make_gpu_rejects_where_there_is_no_gpu():
    if has_gpu():
        done = make("-n", "gpu")
        assert done.returncode == 0
        assert "pytest -m gpu" in done.stdout
        assert "thesis run 6" in done.stdout
        return
    done = make("gpu")
    assert done.returncode != 0
    refusals = [x for x in done.stderr.splitlines() if x.startswith("no CUDA device:")]
    assert len(refusals) == 1
    assert "run make gpu on a machine with an NVIDIA GPU" in refusals[0]
    assert "pytest" not in done.stdout


@pytest.mark.parametrize(
    ("driver", "sees", "why"),
    [
        (False, True, "nvidia-smi is not here"),
        (True, False, "sees none"),
        (True, True, None),
    ],
)
def test_a_gpu_is_a_driver_and_a_torch_that_sees_it(driver, sees, why, tmp_path):
    (tmp_path / "torch.py").write_text(
        f"class cuda:\n    is_available = staticmethod(lambda: {sees})\n"
    )
    if driver:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "require_gpu.sh"), sys.executable],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (0 if why is None else 1)
    assert (why or "") in done.stderr


def test_every_environment_is_installed_by_the_one_script(tmp_path):
    """The pip command that is given gets the three steps, in their order."""
    pip = tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/steps"\n')
    pip.chmod(0o755)
    script = str(ROOT / "scripts" / "install.sh")
    subprocess.run(["sh", script, str(pip), "--python", "x"], cwd="/", check=True)
    asked = (tmp_path / "steps").read_text().splitlines()
    assert [step.split(" --quiet ")[1].split("<")[0] for step in asked] == [
        "--no-deps -r requirements.lock",
        "torch>=2.9,",
        "--no-deps -r requirements-nodeps.lock -e .",
    ]
    assert all(step.startswith("--python x install") for step in asked)
    for user in ("Makefile", "binder/postBuild", "binder/colab.ipynb"):
        text = (ROOT / user).read_text()
        assert "scripts/install.sh" in text, user
        assert "pip install" not in text, user
