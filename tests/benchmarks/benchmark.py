"""The scripts of `benchmarks/`, which are no package, as modules."""

import importlib.util
import sys
from pathlib import Path

from thesis_lib.memory.model.spec import ModelSpec

SMALL = ModelSpec("small", 6, 512, 1024, 8, 8, 64, 1000, tied=False)
FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    """The module `benchmarks/<name>.py`, executed anew."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_small(name, monkeypatch):
    """The same, for which every geometry is a small one."""
    module = load(name)
    monkeypatch.setattr(module, "geometry", lambda name: SMALL)
    return module
