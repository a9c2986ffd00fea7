"""Compiled functions whose cache notices a change in any module that they depend on.

numba compiles a cached function again when its own file has changed. It misses a change
in a function or a constant of another file, which is part of the compiled code too.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

from thesis_lib.common.files import file_hash

_ROOT = Path(__file__).parents[2]
_IMPORTED = re.compile(
    r"^ *(?:from|import) +(thesis_(?:lib|serve|book)[\w.]*)", re.MULTILINE
)
_UNUSED: dict[str, Any] = {"no_cfunc_wrapper": True}  # C never calls: compile less


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return the decorator `numba.njit(**options)`, with a cache that is never stale.

    `options` must include `cache=True`. A function is compiled again when its module
    has changed, or any module of this package that its module imports, directly or not.
    """

    def compile_cached(function: Callable[..., Any]) -> Any:
        compiled: Any = numba.njit(**options, **_UNUSED)(function)
        index = compiled._cache._cache_file
        sources = source_hash(Path(function.__code__.co_filename))
        index._source_stamp = index._source_stamp, sources
        return compiled

    return compile_cached


@cache
def source_hash(module: Path) -> str:
    """Return the SHA-256 of a module and of all modules of this package it imports."""
    known: set[Path] = set()
    frontier = {module}
    while frontier:
        known |= frontier
        frontier = {path for each in frontier for path in _imported(each)} - known
    return file_hash(known)


@cache
def _imported(module: Path) -> list[Path]:
    """The files that the imports of a module name: of a folder, all in it."""
    files: list[Path] = []
    for name in _IMPORTED.findall(module.read_text("utf-8")):
        base = _ROOT.joinpath(*name.split("."))
        files += base.glob("*.py") if base.is_dir() else [base.with_suffix(".py")]
    return files
