"""`make lab` as a reader meets it: a chapter runs top to bottom in JupyterLab."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import psutil
import pytest
from nbformat import v4

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
TOKEN = "for-this-test-only"
CHAPTER = "01_introduction.ipynb"
# Against hanging only.
START_S, RUN_S, STOP_S = 120, 300, 60
REPORT = """
import json, os, sys
import thesis_lib
print(json.dumps({
    "python": sys.executable,
    "prefix": sys.prefix,
    "package": thesis_lib.__file__,
    "offline": os.environ.get("HF_HUB_OFFLINE"),
    "tokenizers": os.environ.get("TOKENIZERS_PARALLELISM"),
}))
"""


class Lab:
    """A JupyterLab that `make lab` started, asked over its own interface."""

    def __init__(self, address, folder):
        self.address = address
        self.folder = folder

    def ask(self, path, method="GET"):
        request = urllib.request.Request(
            f"{self.address}/{path}",
            method=method,
            headers={"Authorization": f"token {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or "null")


def wait_until(happened, seconds, what):
    """Poll, as nothing here can be awaited; fail if it never happens."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return
        time.sleep(0.5)
    pytest.fail(f"{what} did not happen within {seconds} s")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def saved_cells(lab):
    """The code cells as JupyterLab last wrote them; none while it is writing."""
    try:
        cells = nbformat.read(lab.folder / CHAPTER, as_version=4).cells
    except nbformat.reader.NotJSONError:
        return []
    return [cell for cell in cells if cell.cell_type == "code"]


def errors(cells):
    outputs = [output for cell in cells for output in cell.outputs]
    return [output for output in outputs if output.output_type == "error"]


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a copy of the chapters; nothing of it is left afterwards."""
    folder = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder)
    notebook = nbformat.read(folder / CHAPTER, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells.append(v4.new_code_cell(REPORT))
    nbformat.write(notebook, folder / CHAPTER)
    # A reader's own kernel of the same name must not take the place of this one.
    own = tmp_path / "data" / "kernels" / "python3"
    own.mkdir(parents=True)
    (own / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"})
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        environment.pop(name, None)  # the Makefile sets them, not this process
    for kind in ("data", "config", "runtime"):
        environment[f"JUPYTER_{kind.upper()}_DIR"] = str(tmp_path / kind)
    port = free_port()
    options = (
        f"--no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 "
        f"--IdentityProvider.token={TOKEN} "
        f"{'--allow-root' if os.geteuid() == 0 else ''}"
    )
    log = (tmp_path / "lab.log").open("w")
    process = subprocess.Popen(
        # The environment is this one: make must neither build nor renew it.
        ["make", "--old-file=.venv/.ready", "lab", f"FOLDER={folder}",
         f"ARGS={options}", f"BIN={Path(sys.executable).parent}"],
        cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    started = Lab(f"http://127.0.0.1:{port}", folder)

    def is_up():
        assert process.poll() is None, (tmp_path / "lab.log").read_text()[-2000:]
        try:
            return "version" in started.ask("api")
        except OSError:
            return False

    family = [psutil.Process(process.pid)]
    try:
        wait_until(is_up, START_S, "the start of JupyterLab")
        yield started
        family += family[0].children(recursive=True)
        started.ask("api/shutdown", method="POST")
        process.wait(STOP_S)
    finally:
        log.close()
        if process.poll() is None:
            family += family[0].children(recursive=True)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)
        _, left = psutil.wait_procs(set(family), timeout=STOP_S)
        for survivor in left:
            survivor.kill()
    assert len(family) > 1
    assert not left, f"JupyterLab left {left}"


def test_a_chapter_runs_top_to_bottom_in_jupyterlab(lab, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    outside = []

    def note(request):
        """What leaves this machine, from the page or, at its word, from the server."""
        address = urlparse(request.url)
        asks = address.path in ("/lab/api/news", "/lab/api/update")
        if asks or address.hostname not in (None, "", "127.0.0.1"):
            outside.append(request.url)

    page.on("request", note)
    page.goto(f"{lab.address}/lab/tree/{CHAPTER}?token={TOKEN}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=START_S * 1000)

    # Its own interface fails while it registers a kernel; the page says when it is up.
    page.get_by_text("| Idle").wait_for(timeout=START_S * 1000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    cells = []

    def is_done():
        """The last cell has printed, or one failed and so the rest never will."""
        page.keyboard.press("Control+s")
        page.wait_for_timeout(500)
        cells[:] = saved_cells(lab)
        return cells and (cells[-1].outputs or errors(cells))

    wait_until(is_done, RUN_S, "the run of all cells")
    assert not errors(cells)
    assert all(cell.execution_count is not None for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = json.loads(cells[-1].outputs[0].text)
    assert said["offline"] == "1"
    assert said["tokenizers"] == "false"
    assert said["prefix"] == sys.prefix
    assert Path(said["python"]).samefile(sys.executable)
    import thesis_lib

    assert said["package"] == thesis_lib.__file__
    assert page.locator(".jp-OutputArea img").count() >= 1
    assert page.get_by_text("Jupyter news").count() == 0
    assert not outside, f"JupyterLab reaches outside: {outside}"
    page.close()
