"""The shipped tables of data, whatever folder a session has set."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "data"


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    monkeypatch.setenv("THESIS_DATA", str(DATA))
