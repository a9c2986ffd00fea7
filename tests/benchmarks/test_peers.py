"""Ratios to peers: one that has fallen by more than its interval ends the command."""

import json

import pytest
from benchmark import load

FOUND = {"ratio": 3.0, "low": 2.8, "high": 3.2}


@pytest.fixture
def peers(monkeypatch):
    script = load("peers")
    made = {"SimPy": dict(FOUND)}
    monkeypatch.setattr(
        script,
        "COMPARISONS",
        {
            "simulation": (lambda: made, "json", ""),
            "streaming": (lambda: made, "no_such_package", "peers"),
        },
    )
    return script


def test_a_ratio_is_recorded_and_a_peer_that_is_missing_is_told(
    peers, tmp_path, capsys
):
    peers.main(["--out", str(tmp_path / "now.json")])
    (point,) = json.loads((tmp_path / "now.json").read_text())["points"]
    assert FOUND.items() <= point.items()
    assert "pip install -e .[peers]" in capsys.readouterr().err


@pytest.mark.parametrize(("low", "fallen"), [(3.1, False), (3.3, True)])
def test_a_ratio_that_has_fallen_ends_with_its_name(peers, tmp_path, low, fallen):
    was = tmp_path / "was.json"
    peers.main(["--out", str(was)])
    was.write_text(was.read_text().replace('"low": 2.8', f'"low": {low}'))
    words = ["--out", str(tmp_path / "now.json"), "--against", str(was)]
    if not fallen:
        return peers.main(words)
    with pytest.raises(SystemExit, match="than recorded: simulation, SimPy"):
        peers.main(words)
