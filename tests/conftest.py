import os
from pathlib import Path

import pytest

# Before anything imports transformers: nothing may reach for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests share the cores already; what they patch does not reach another process.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")

import thesis_lib  # noqa: F401  # before torch: it says how threads wait


def slow_lines():
    """Yield from each line of `slow.txt` the start of test ids and its exceptions."""
    for line in Path(__file__).with_name("slow.txt").read_text().splitlines():
        if not line.startswith("#"):
            start, *exceptions = line.split(" but ")
            yield start, exceptions[0].split(" | ") if exceptions else []


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    lines = [*slow_lines()]
    for item in items:
        for start, exceptions in lines:
            excepted = any(text in item.nodeid for text in exceptions)
            if item.nodeid.startswith(start) and not excepted:
                item.add_marker("slow")
