"""Compiled functions are compiled again when a module that they depend on changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import thesis_lib

RUN = """
import numpy as np
from thesis_lib.common.compiled import njit
from thesis_lib.common.units import MiB
from thesis_lib.sequencer.policies.rules import mix

@njit(cache=True)
def constant():
    return MiB

@njit(cache=True)
def mixed(value):
    return mix(value)

state = mixed(np.uint64(5))
compiled = constant, mixed
print(constant(), state, int(all(each.stats.cache_hits for each in compiled)))
"""


@pytest.mark.parametrize("cache", [None, "elsewhere"])
def test_kernel_is_compiled_again_after_change_in_imported_module(tmp_path, cache):
    package = tmp_path / "thesis_lib"
    shutil.copytree(
        Path(thesis_lib.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "run.py").write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    if cache:
        environment["NUMBA_CACHE_DIR"] = str(tmp_path / cache)

    def results():
        command = [sys.executable, "run.py"]
        return subprocess.check_output(
            command, cwd=tmp_path, env=environment, text=True
        ).split()

    def edit(module, was, now):
        path = package / module
        text = path.read_text()
        assert was in text
        path.write_text(text.replace(was, now))

    size, state, hit = results()
    assert hit == "0"
    assert results() == [size, state, "1"]
    edit("common/units.py", "2**10, 2**20, 2**30", "2**10, 2**21, 2**30")
    assert results() == [str(2 * int(size)), state, "0"]
    edit("sequencer/policies/rules.py", "value >> np.uint64(31)", "np.uint64(0)")
    doubled, other_state, _ = results()
    assert doubled == str(2 * int(size))
    assert other_state != state
