"""Warm kernels: what a fork must share with a cold start, and what it must not."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from synthetic import wait_until

from thesis_lib.book.execute import chapters, warm

MODULES = ["json", "numpy", "thesis_lib.book.figures.style", "thesis_lib.common.units"]


@pytest.fixture(scope="module")
def zygote():
    with warm.Zygote(MODULES) as process:
        yield process


def execute(folder, *cells, zygote=None, **parameters):
    """The text that the cells of a notebook print."""
    v4 = nbformat.v4
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python",
        "language": "python",
    }
    source, target = folder / "in.ipynb", folder / "out.ipynb"
    nbformat.write(notebook, source)
    manager = {} if zygote is None else {
        "kernel_manager_class": warm.kernel_manager(zygote)
    }  # fmt: skip
    papermill.execute_notebook(
        str(source), str(target), parameters, kernel_name="python3", cwd=str(folder),
        progress_bar=False, extra_arguments=["--log-level=CRITICAL"], **manager,
    )  # fmt: skip
    executed = nbformat.read(target, as_version=4)
    return "".join(o.get("text", "") for c in executed.cells for o in c.outputs)


def gone(pid):
    return not psutil.pid_exists(pid) or (
        psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    )


def test_imports_are_found_wherever_they_stand():
    source = "import a.b, c\nfrom d import e as f\ndef g():\n    from d import e, h\n"
    assert warm.imports(source) == ["a.b", "c", "d", "d.e", "d.h"]


def test_kernels_share_no_state(zygote, tmp_path):
    cells = (
        "import sys, os, json, random, numpy\n"
        "from thesis_lib.common import units\n"
        "print(getattr(units, 'left_behind', 'clean'), os.environ.get('LEFT'), "
        "hasattr(sys, 'left'), json.left if hasattr(json, 'left') else '')",
        "units.left_behind = sys.left = 1\nos.environ['LEFT'] = 'x'\n"
        "json.left = 2\nos.chdir('/')",
    )
    for _ in range(2):
        assert execute(tmp_path, *cells, zygote=zygote) == "clean None False \n"


def test_unseeded_draws_differ_between_kernels(zygote, tmp_path):
    cell = "import random, numpy; print(random.random(), numpy.random.rand())"
    draws = [execute(tmp_path, cell, zygote=zygote).split() for _ in range(2)]
    assert len({*draws[0], *draws[1]}) == 4


def test_a_kernel_is_in_the_place_of_a_cold_one(zygote, tmp_path, monkeypatch):
    monkeypatch.setenv("SET_AFTER_THE_ZYGOTE", "yes")
    cell = (
        "import os, sys\nprint(os.getcwd(), os.environ['SET_AFTER_THE_ZYGOTE'], "
        "__name__, sys.path, sys.argv[0].rpartition('/')[2].removesuffix('.py'))"
    )
    assert execute(tmp_path, cell, zygote=zygote) == execute(tmp_path, cell)


def test_modules_are_there_before_the_first_cell(zygote, tmp_path):
    cell = "import sys; print([m in sys.modules for m in ('numpy', 'seaborn')])"
    assert execute(tmp_path, cell, zygote=zygote) == "[True, True]\n"
    assert execute(tmp_path, cell) == "[False, False]\n"


def test_the_zygote_itself_has_run_no_cell_and_started_no_thread_of_python(zygote):
    # Named for the program: those of OpenBLAS, which end at a fork and begin anew.
    # Another name: that of Arrow's allocator, which makes its own anew in a child.
    zygote.fork(["--version"], os.environ, "/").wait(60)
    names = [
        (Path("/proc") / str(zygote.pid) / "task" / str(thread.id) / "comm").read_text()
        for thread in psutil.Process(zygote.pid).threads()
    ]
    assert len([name for name in names if not name.startswith("jemalloc")]) == 1


def test_what_cannot_be_imported_fails_in_its_own_cell(tmp_path):
    with warm.Zygote(["no_such_module", "numpy"]) as process:
        assert execute(tmp_path, "import numpy; print(1)", zygote=process) == "1\n"
        with pytest.raises(PapermillExecutionError, match="ModuleNotFoundError"):
            execute(tmp_path, "import no_such_module", zygote=process)


def chapter_values():
    return {
        "03_enhanced_sequencer": {"design_transactions": 300, "design_loads": [1.1]},
        "04_evaluation_ml_for_db": {
            "seeds": 2, "transactions": 200, "loads": [0.9, 1.1],
            "robust_loads": [1.1], "robust_transactions": 200, "goal_seeds": 2,
            "goal_transactions": 200, "fair_transactions": 400,
            "trace_transactions": 200, "trace_loads": [1.1],
        },
    }  # fmt: skip


def contents(path):
    """Outputs of a notebook: all that a cell shows or glues, pictures included.

    But for a live run, which measures the machine and not the kernel.
    """
    cells = nbformat.read(path, as_version=4).cells
    return [
        [{k: v for k, v in o.items() if k != "execution_count"} for o in c.outputs]
        for c in cells
        if c.cell_type == "code" and "= serve(" not in c.source
    ]


@pytest.mark.parametrize("name", chapter_values())
def test_a_warm_kernel_computes_what_a_cold_one_computes(name, tmp_path):
    """Bit for bit: numbers, tables and pictures."""
    (chapter,) = chapters.select([name])
    (values,) = chapters.resolve([chapter], "smoke", chapter_values()[name]).values()
    paths = [tmp_path / "cold.ipynb", tmp_path / "warm.ipynb"]
    modules = warm.imports(chapters.code(chapter.load()))
    with warm.Zygote(modules) as process:
        for path, manager in zip(
            paths, [None, warm.kernel_manager(process)], strict=True
        ):
            chapters._execute(chapter, values, path, lambda *_: None, manager)
    cold, warmed = map(contents, paths)
    assert any(cold)
    assert cold == warmed


def test_a_kernel_can_be_interrupted_signalled_and_killed(zygote, tmp_path):
    kernel = zygote.fork(["--version"], os.environ, "/")
    assert kernel.wait(60) == 0
    kernel.send_signal(signal.SIGKILL)  # of one that has ended: nothing
    # without a connection file ipykernel serves on ports of its own
    kernel = zygote.fork(["--log-level=CRITICAL"], os.environ, str(tmp_path))
    assert kernel.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        kernel.wait(0.1)
    kernel.kill()
    assert kernel.wait(60) == -signal.SIGKILL
    assert gone(kernel.pid)


def test_an_interrupted_cell_stops_and_the_kernel_goes_on(zygote, tmp_path):
    manager = warm.kernel_manager(zygote)(kernel_name="python3")

    async def talk():
        await manager.start_kernel(cwd=str(tmp_path))
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=60)
        # or what is asked right after an error is aborted, if it comes fast enough
        asked = client.execute(
            "import time; print('in'); time.sleep(600)", stop_on_error=False
        )
        while (await client.get_iopub_msg(timeout=60))["msg_type"] != "stream":
            pass
        await manager.interrupt_kernel()
        answers = [await client.get_shell_msg(timeout=60)]
        while answers[-1]["parent_header"].get("msg_id") != asked:
            answers.append(await client.get_shell_msg(timeout=60))
        again = client.execute("1 + 1")
        after = await client.get_shell_msg(timeout=60)
        while after["parent_header"].get("msg_id") != again:
            after = await client.get_shell_msg(timeout=60)
        client.stop_channels()
        await manager.shutdown_kernel()
        return answers[-1]["content"], after["content"]

    stopped, after = asyncio.run(talk())
    assert stopped["ename"] == "KeyboardInterrupt"
    assert after["status"] == "ok"
    assert manager.provisioner is None or not manager.provisioner.has_process


def test_a_kernel_that_dies_is_a_failure_and_not_a_wait(zygote, tmp_path):
    with pytest.raises(DeadKernelError):
        execute(tmp_path, "import os; os._exit(3)", zygote=zygote)
    assert execute(tmp_path, "print(2)", zygote=zygote) == "2\n"


OWNER = """
import os, sys, time
from thesis_lib.book.execute import warm
zygote = warm.Zygote(["json"])
kernel = zygote.fork(["--log-level=CRITICAL"], os.environ, sys.argv[1])
print(zygote.pid, kernel.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["owner", "zygote"])
def test_nothing_outlives_an_owner_or_a_zygote_that_is_killed(victim, tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    zygote_pid, kernel_pid = map(int, owner.stdout.readline().split())
    assert not gone(kernel_pid)
    os.kill(owner.pid if victim == "owner" else zygote_pid, signal.SIGKILL)
    try:
        wait_until(lambda: gone(kernel_pid) and gone(zygote_pid), seconds=30)
    finally:
        for pid in (kernel_pid, zygote_pid, owner.pid):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        owner.wait()


def test_threads_of_an_owner_share_a_zygote(zygote, tmp_path):
    texts = {}

    def one(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        texts[number] = execute(folder, f"print({number})", zygote=zygote)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {n: f"{n}\n" for n in range(3)}


def test_only_what_survives_a_fork_is_forked(monkeypatch, tmp_path):
    monkeypatch.setattr(warm, "CUDA_DEVICE", tmp_path / "absent")
    assert warm.supported(["torch", "thesis_lib.memory.offload.offloaded_model"])
    monkeypatch.setattr(warm, "CUDA_DEVICE", tmp_path)
    assert warm.supported(["numpy", "thesis_lib.sequencer.experiments.metrics"])
    assert not warm.supported(["numpy", "torch.nn"])
    assert not warm.supported(["thesis_lib.memory.offload.offloaded_model"])
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not warm.supported(["numpy"])


def test_a_kernel_of_another_interpreter_starts_cold(zygote, tmp_path, monkeypatch):
    launched = []

    async def record(self, cmd, **options):
        launched.append(cmd)
        return {}

    monkeypatch.setattr(warm.LocalProvisioner, "launch_kernel", record)
    provisioner = warm.WarmProvisioner(kernel_id="1", kernel_spec=None, parent=None)
    asyncio.run(provisioner.launch_kernel(["/usr/bin/R", "--slave"]))
    asyncio.run(
        provisioner.launch_kernel(["/other/python", "-m", "ipykernel_launcher"])
    )
    assert len(launched) == 2
