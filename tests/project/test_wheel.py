"""The wheel: what an engineer gets who installs it beside nothing but its base set."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def closure(texts):
    """Names of the distributions that these requirements bring, themselves included."""
    found, left = set(), [Requirement(text) for text in texts]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        needed = requirement.marker is None or requirement.marker.evaluate(
            {"extra": ""}
        )
        if needed and name not in found:
            found.add(name)
            left += map(Requirement, distribution(name).requires or [])
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A fresh environment with the wheel and its base set, as it stands in this one."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
            "--no-build-isolation", "--wheel-dir", folder, ROOT,
        ],
        check=True,
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True
    )
    made = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    for name in closure(PROJECT["dependencies"]):
        there = distribution(name)
        for top in {Path(str(file)).parts[0] for file in there.files or []}:
            source = Path(str(there.locate_file(top)))
            if top != ".." and not (site / top).exists() and source.exists():
                (site / top).symlink_to(source)
    pip = [sys.executable, "-m", "pip", "--python", made]
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True
    )
    subprocess.run([*pip, "check"], check=True)
    return made


def run(python, *words, status=0):
    done = subprocess.run(
        [python, "-I", *words], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_part_one_of_the_readme_runs_without_the_packages_of_the_book(python):
    others = "sklearn torch papermill matplotlib seaborn sphinx distributed ortools"
    said = run(
        python,
        "-c",
        f"{SNIPPETS[0]}\nimport sys, thesis_lib\n"
        f"print([name for name in {others.split()} if name in sys.modules])\n"
        "print(thesis_lib.__file__)",
    )
    assert re.search(r"\d+% fewer violations", said)
    assert "\n[]\n" in said
    assert str(ROOT) not in said


def test_what_an_extra_brings_is_asked_for_by_name(python):
    learned = "from thesis_lib.sequencer import estimator, scenario\n"
    learned += "estimator('linear').fit(scenario('A', 500, 1))"
    assert "thesis-lib[estimators]" in run(python, "-c", learned, status=1)
    said = run(python, "-m", "thesis_book", "claims", status=1)
    assert "thesis: this command needs the package" in said
    assert "Traceback" not in said


def test_the_wheel_says_that_it_is_typed(python):
    said = run(python, "-c", "import thesis_lib; print(thesis_lib.__path__[0])")
    assert (Path(said.strip()) / "py.typed").exists()
    assert (Path(said.strip()) / "sequencer" / "__init__.pyi").exists()
