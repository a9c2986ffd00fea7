"""The examples for clusters, as far as they can be tested without one.

Every command in them is parsed by the command line that it calls, and what refers to a
name in a manifest refers to one that exists.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer
import yaml
from distributed.cli import dask_scheduler, dask_worker

from thesis_book.__main__ import app
from thesis_book.execute import chapters, sweep

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = CHECKOUT / "examples"
ADDRESS = "tcp://10.0.0.1:8786"


def parse(words):
    """Parse a command as its own command line does: its parameters."""
    program, verb, *rest = words
    known = {
        "dask scheduler": dask_scheduler.main,
        "dask worker": dask_worker.main,
        "thesis sweep": typer.main.get_command(app).commands["sweep"],
    }
    command = known[f"{Path(program).name} {verb}"]
    return command.make_context(verb, list(rest)).params


def check_sweep(parameters):
    """The chapter and the grid of a parsed `thesis sweep` exist and are good."""
    (chapter,) = chapters.select([parameters["chapter"]])
    assert sweep.read_grid(CHECKOUT / parameters["grid"], chapter).points
    assert parameters["scheduler"].startswith("tcp://")


@pytest.fixture
def slurm():
    path = EXAMPLES / "slurm.py"
    spec = importlib.util.spec_from_file_location("slurm_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # imports no dask-jobqueue: it is no dependency
    return module


def manifests():
    return list(yaml.safe_load_all((EXAMPLES / "kubernetes.yml").read_text()))


def containers():
    for manifest in manifests():
        template = manifest["spec"].get("template")
        if template:
            yield from template["spec"]["containers"]


def test_the_sweep_on_slurm_is_one_that_the_command_accepts(slurm):
    words = slurm.command("4", "data/grids/04_evaluation.yml", ADDRESS)
    check_sweep(parse(words))


def test_each_command_on_kubernetes_is_accepted():
    parsed = {c["name"]: parse(c["command"]) for c in containers()}
    assert parsed.keys() == {"scheduler", "worker", "client"}
    assert parsed["worker"]["nthreads"] == 1
    check_sweep(parsed["client"])


def test_manifests_refer_to_what_exists():
    by_kind = {(m["kind"], m["metadata"]["name"]): m["spec"] for m in manifests()}
    labels = []
    for (kind, _), spec in by_kind.items():
        if kind == "Deployment":
            own = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"] == own
            labels.append(own)
    service = by_kind["Service", "thesis-scheduler"]
    assert service["selector"] in labels
    ports = {p["name"]: p for c in containers() for p in c.get("ports", [])}
    (port,) = service["ports"]
    assert ports[port["targetPort"]]["containerPort"] == port["port"]
    parsed = {c["name"]: parse(c["command"]) for c in containers()}
    assert parsed["scheduler"]["port"] == str(port["port"])
    address = f"tcp://thesis-scheduler:{port['port']}"
    assert parsed["worker"]["scheduler"] == parsed["client"]["scheduler"] == address
    job = by_kind["Job", "thesis-sweep"]["template"]["spec"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in job["volumes"]]
    assert all(("PersistentVolumeClaim", claim) in by_kind for claim in claims)
    mounts = {m["name"]: m["mountPath"] for m in job["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in job["volumes"]}
    output = str(parsed["client"]["output"])
    assert any(output.startswith(f"{path}/") for path in mounts.values())
    assert {c["image"] for c in containers()} == {"registry.example.org/thesis:COMMIT"}


def test_the_commands_of_the_page_are_accepted():
    text = (EXAMPLES / "README.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("#")[0].strip() for line in block.splitlines()]
    parsed = [parse(shlex.split(line)) for line in lines if line]
    assert len(parsed) == 3
    check_sweep(parsed[-1])


SCRIPTS = [path.with_suffix(".py") for path in sorted(EXAMPLES.glob("*/*.out"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_prints_what_is_stored_beside_it(script):
    assert len(script.read_text().splitlines()) <= 30
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == script.with_suffix(".out").read_text()


def test_the_page_of_two_policies_tells_what_their_clients_saw():
    command = [sys.executable, EXAMPLES / "side_by_side.py", "--port", "0"]
    with subprocess.Popen(
        [*command, "--seconds", "3"], stdout=subprocess.PIPE, text=True
    ) as shown:
        address = shown.stdout.readline().split()[1]
        with httpx.Client(base_url=address) as client:
            assert "<title>FIFO and bid-price" in client.get("/").text
            assert client.post("/load", params={"load": 0.5}).json() == {"load": 0.5}
            for load in ("0", "nan", "much"):
                refused = client.post("/load", params={"load": load})
                assert refused.status_code == 400
                assert "expected a number" in refused.json()["error"]
            with client.stream("GET", "/events") as events:
                told = json.loads(next(events.iter_lines()).removeprefix("data: "))
        ended = dict(line.split(maxsplit=1) for line in shown.stdout)
    assert shown.returncode == 0
    assert told["load"] == 0.5
    assert list(told["sides"]) == list(ended) == ["fifo", "bid-price"]
    seen = [json.loads(text) for text in ended.values()]
    assert all(s["asked"] == s["on_time"] + s["late"] + s["refused"] for s in seen)
    assert seen[0]["asked"] == seen[1]["asked"] > 0
