"""What was compiled from sources that are no more is compiled again."""

import os
import subprocess
import sys

from thesis_lib.common.compiled import drop_stale

INNER = "from numba import njit\n@njit(cache=True)\ndef inner():\n    return {}\n"
OUTER = """
from inner import inner
from numba import njit
@njit(cache=True)
def outer():
    return inner()
print(outer())
"""


def test_a_change_in_a_function_that_another_file_calls_is_seen(tmp_path):
    def change(answer):
        (tmp_path / "inner.py").write_text(INNER.format(answer))

    def ask():
        return int(subprocess.check_output([sys.executable, "outer.py"], cwd=tmp_path))

    change(1)
    (tmp_path / "outer.py").write_text(OUTER)
    assert ask() == 1
    change(2)
    assert ask() == 1  # numba alone does not see it
    change(3)
    drop_stale(tmp_path)
    assert ask() == 3


def test_what_is_newer_than_every_compiled_module_stays(tmp_path):
    kept = tmp_path / "room" / "__pycache__"
    kept.mkdir(parents=True)
    old, new = kept / "old.f-1.py311.nbi", kept / "new.f-1.py311.nbc"
    for at_s, path in enumerate(
        [old, kept.parent / "old.py", kept.parent / "new.py", new,
         kept.parent / "plain.py"]
    ):  # fmt: skip
        path.write_text("")
        os.utime(path, (at_s, at_s))
    drop_stale(tmp_path)
    assert not old.exists()
    assert new.exists()
