"""Sweeps on several hosts.

Hosts are namespaces of this machine: each has its own network stack with its own
address, its own name, and of the file system it sees its own folder but none of the
others'. What they share is what a cluster would share: the network between them (a
bridge), the kernel and its clock, and the environment of Python with the thesis
*not* installed from there, since each host imports its own checkout from its own path.
Not shared: checkout, results, caches, TMPDIR.

All of it lives in namespaces of one process, so that nothing is left behind however
the test ends. It needs root, `unshare` and `ip`.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import synthetic

pytestmark = pytest.mark.proof

HOSTS = {name: f"10.77.0.{n}" for n, name in enumerate(
    ["scheduler", "worker-a", "worker-b", "client"], 1)}  # fmt: skip
PORT = 8786


@pytest.fixture(autouse=True)
def _namespaces():
    missing = [word for word in ("unshare", "ip", "mount") if not shutil.which(word)]
    if os.geteuid() != 0 or missing:
        pytest.fail(
            f"needs root{' and ' + ', '.join(missing) if missing else ''}: run as "
            "root, or deselect with -k 'not hosts'"
        )


def isolated(
    script: str, folder: Path, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run a shell script in namespaces of its own, all of which end with it."""
    path = folder / "isolated.sh"
    path.write_text(f"set -eu\n{script}")
    return subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child",
         "--mount-proc", "sh", str(path)],
        capture_output=True, text=True, timeout=500, env=environ,
    )  # fmt: skip


def network() -> str:
    """Lines of shell that make a bridge and a namespace for each host on it."""
    lines = [
        "mount -t tmpfs tmpfs /run",  # where ip keeps the names of namespaces
        "ip link add hub type bridge",
        "ip link set hub up",
    ]
    for number, (name, address) in enumerate(HOSTS.items()):
        lines += [
            f"ip netns add {name}",
            f"ip link add port{number} type veth peer name eth0 netns {name}",
            f"ip link set port{number} master hub up",
            f"ip -n {name} addr add {address}/24 dev eth0",
            f"ip -n {name} link set eth0 up",
            f"ip -n {name} link set lo up",
        ]
    return "\n".join(lines) + "\n"


def on(host: str, home: Path, *words: str) -> str:
    """A line of shell that runs a command on a host, in its own folder of `home`."""
    hidden = " && ".join(
        f"mount -t tmpfs tmpfs {home / other}" for other in HOSTS if other != host
    )
    own = home / host
    environ = {
        "PYTHONPATH": own / "checkout" / "src",
        "THESIS_CACHE": own / "cache",
        "TMPDIR": own / "tmp",
        "THESIS_NOTES": own / "notes",
    }
    sets = " ".join(f"{name}={value}" for name, value in environ.items())
    inside = (
        f"hostname {host} && {hidden} && cd {own} && exec env {sets} "
        + shlex.join(words)
    )
    return f"ip netns exec {host} unshare --mount --uts sh -c {shlex.quote(inside)}"


def dask(*words: str) -> list[str]:
    return [sys.executable, "-m", "dask", *words]


def test_hosts_that_share_only_a_network_finish_a_sweep(tmp_path):
    home = tmp_path
    for host in HOSTS:
        (home / host / "tmp").mkdir(parents=True)
        if host != "scheduler":  # which executes nothing
            synthetic.make(home / host / "checkout")
    grid = synthetic.write_grid(
        home / "client" / "checkout", "grid: {x: [1, 2, 13], wait_s: [0.5]}\nseeds: 3\n"
    )
    address = f"tcp://{HOSTS['scheduler']}:{PORT}"

    words = synthetic.command(
        "sweep", "3", str(grid), "--scheduler", address, "--json",
        "--output", str(home / "client" / "out"),
    )  # fmt: skip

    worker = ["worker", address, "--nthreads", "1", "--no-dashboard"]
    scheduler = dask("scheduler", "--port", str(PORT), "--no-dashboard")
    script = network()
    script += on("scheduler", home, *scheduler) + f" >{home}/scheduler.log 2>&1 &\n"
    for name in ("worker-a", "worker-b"):
        script += on(name, home, *dask(*worker)) + f" >{home}/{name}.log 2>&1 &\n"
    script += on("client", home, *words) + f" >{home}/out.json || true\n"
    done = isolated(script, home)

    logs = {path.name: path.read_text() for path in home.glob("*.log")}
    assert done.returncode == 0, (done.stderr, logs)
    result = json.loads((home / "out.json").read_text())
    assert (result["runs"], result["done"], result["failed"]) == (9, 6, 3), logs
    assert "3 of 9 points failed" in done.stderr
    table = pd.read_parquet(home / "client" / "out" / "results.parquet")
    table = table[table["status"] == "done"]
    assert set(table["host"]) == {"worker-a", "worker-b"}
    points = home / "client" / "out" / "points"
    for suffix in (".ipynb", ".json"):
        assert (
            len([p for p in points.glob(f"*{suffix}") if "failed" not in p.name]) == 6
        )
    assert len(list(points.glob("*.failed.ipynb"))) == 3
    # what was executed where is known to that host alone
    for name in ("worker-a", "worker-b"):
        ended = synthetic.notes(home / name / "notes", "ended")
        assert len(ended) == sum(table["host"] == name)
        assert not list((home / name).rglob("results.parquet"))
        assert not list((home / name / "tmp").glob("thesis-point-*"))
    assert not (home / "client" / "notes").exists()
