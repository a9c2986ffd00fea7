"""What a run survives: kill -9, another run beside it, a full disk, a read-only one."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import psutil
import pytest
from synthetic import wait_until

from thesis_book.execute.records import Record

DRIVER = """
import sys
from pathlib import Path
from thesis_book.execute import chapters
from thesis_lib.common.errors import InvalidInput

checkout, output = map(Path, sys.argv[1:])
chapters.root = lambda: checkout
try:
    chosen = chapters.select([])
    done = chapters.run(chosen, "smoke", {}, output, lambda *words: None)
except InvalidInput as error:
    sys.exit(str(error))
print([executed for _, executed in done])
"""


WAIT = """
import os, pathlib, time
folder = pathlib.Path({folder!r})
(folder / "pid").write_text(str(os.getpid()))
while not (folder / "go").exists():
    time.sleep(0.02)
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout of two chapters that leave a line in `ran` each time they run.

    The second waits for the file `go`, after it has left its process number in `pid`.
    """
    folder = tmp_path / "checkout"
    for name in ("notebooks", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "_config.yml").write_text("title: x")
    log = f"print({{!r}}, file=open({str(tmp_path / 'ran')!r}, 'a'))"
    sources = {
        "01_first": [log.format("first"), "print('x' * 50_000)"],
        "02_second": [WAIT.format(folder=str(tmp_path)), log.format("second")],
    }
    for name, cells in sources.items():
        cells = map(nbformat.v4.new_code_cell, cells)
        notebook = nbformat.v4.new_notebook(cells=[*cells])
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    return folder


def start(checkout, output, *prefix):
    environment = os.environ | {"THESIS_DATA": str(checkout / "data")}
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", DRIVER, str(checkout), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ran(tmp_path):
    return (tmp_path / "ran").read_text().split()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_loses_the_running_chapter_and_no_other(
    checkout, tmp_path, how
):
    output = tmp_path / "out"
    run = start(checkout, output)
    wait_until((output / "01_first.json").exists, 60)
    wait_until((tmp_path / "pid").exists, 60)
    wait_until(lambda: (tmp_path / "pid").read_text(), 60)
    finished = {p.name: p.read_bytes() for p in output.glob("01_*")}
    run.send_signal(how)
    run.communicate()
    assert run.returncode != 0
    kernel = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(kernel), 60)
    assert {p.name: p.read_bytes() for p in output.glob("01_*")} == finished
    assert set(finished) == {"01_first.ipynb", "01_first.json"}
    assert not list(output.glob("02_*"))
    (tmp_path / "go").touch()
    again = start(checkout, output)
    assert again.communicate()[0] == "[False, True]\n"
    assert ran(tmp_path) == ["first", "second"]
    assert not list(output.glob(".*partial*"))


def test_two_runs_at_once_share_the_work_and_harm_nothing(checkout, tmp_path):
    output = tmp_path / "out"
    runs = [start(checkout, output) for _ in range(2)]
    wait_until((tmp_path / "pid").exists, 60)
    (tmp_path / "go").touch()
    executed = sorted(run.communicate()[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted(ran(tmp_path)) == ["first", "second"]
    both = [[line == "True" for line in e.strip("[]\n").split(", ")] for e in executed]
    assert [sum(chapter) for chapter in zip(*both, strict=True)] == [1, 1]
    for name in ("01_first", "02_second"):
        assert Record.read(output / f"{name}.json").chapter == name


def test_what_does_not_belong_together_is_made_again_and_what_is_newer_rejected(
    checkout, tmp_path
):
    output = tmp_path / "out"
    (tmp_path / "go").touch()
    assert start(checkout, output).communicate()[0] == "[True, True]\n"
    # as left by a kill between the two files of a result
    (output / "01_first.ipynb").write_text("{}")
    assert start(checkout, output).communicate()[0] == "[True, False]\n"
    newer = output / "01_first.json"
    newer.write_text('{"version": 99}')
    run = start(checkout, output)
    assert "written by a newer version" in run.communicate()[1]
    assert run.returncode == 1
    assert newer.read_text() == '{"version": 99}'


def mounted(commands):
    """A prefix that runs a command after mounts that only it and its children see."""
    own = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    script = f'{commands} && exec "$@"'
    return ["unshare", *own, "sh", "-c", script, "sh"]


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ("mount -t tmpfs -o size=32k tmpfs {0}", "No space left on device"),
        (
            "mount --bind {0} {0} && mount -o remount,ro,bind {0}",
            "Read-only file system",
        ),
    ],
    ids=["full disk", "read-only mount"],
)
def test_a_disk_that_takes_nothing_is_rejected_in_one_sentence(
    checkout, tmp_path, commands, message
):
    output = tmp_path / "out"
    output.mkdir()
    (tmp_path / "go").touch()
    run = start(checkout, output, *mounted(commands.format(output)))
    _, said = run.communicate()
    assert run.returncode == 1, said
    assert len(said.strip().splitlines()) == 1, said
    assert message in said
    assert "what was finished is as it was" in said
    # nothing stands in the way of a run once there is room
    assert start(checkout, output).communicate()[0] == "[True, True]\n"


def test_a_full_disk_keeps_what_was_finished_before(checkout, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (tmp_path / "go").touch()
    fill = f"mount -t tmpfs -o size=256k tmpfs {output}"
    keep = tmp_path / "kept"
    script = (
        f'{fill} && "$@"; head -c 250k /dev/zero >{output}/fill;'
        f' rm {output}/*.json; "$@"; cp -r {output} {keep}'
    )
    own = mounted("true")
    run = start(checkout, output, *own[:-3], "-c", script, "sh")
    out, said = run.communicate()
    assert out == "[True, True]\n"
    assert "No space left on device" in said
    # the notebooks of the first run are whole: only a complete file replaces them
    for name in ("01_first", "02_second"):
        nbformat.read(keep / f"{name}.ipynb", as_version=4)


# --- Databases and workers that die in the middle of a run ---------------------

THESIS = Path(sys.executable).with_name("thesis")
COMMANDS = {
    "collect": "collect OUT --transactions 9000 --replays 99",
    "serve": "serve --policy bid-price --load 0.3 --seconds 60",
}


def words(process):
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def living_in(folder):
    """Processes whose command or working directory names a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join([process.cwd(), *process.cmdline()]):
                found.append(process)
    return found


def server_in(folder):
    """The first process of the PostgreSQL below a folder, and that of one session."""
    first = next(p for p in living_in(folder) if words(p)[0].endswith("/postgres"))
    sessions = [p for p in first.children() if "thesis_" in " ".join(words(p))]
    return first, sessions[0]


@pytest.fixture
def hanging_up():
    """A signal of hanging up ends a process, though this one may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hanging_up")
@pytest.mark.parametrize(
    ("engine", "command", "what"),
    [
        ("sqlite", "collect", "worker"),
        ("sqlite", "serve", "worker"),
        ("sqlite", "collect", "SIGHUP"),
        ("sqlite", "serve", "SIGTERM"),
        ("postgresql", "collect", "server"),
        pytest.param("postgresql", "serve", "session", marks=pytest.mark.proof),
        ("postgresql", "collect", "SIGTERM"),
        pytest.param("postgresql", "serve", "SIGHUP", marks=pytest.mark.proof),
    ],
)
def test_killed_run_is_reported_and_cleared(engine, command, what):
    if engine == "postgresql":
        pytest.importorskip("psycopg")
    # the path of a socket must be short
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)  # a server does not run as root
        line = COMMANDS[command].replace("OUT", f"{folder}/out.parquet")
        run = subprocess.Popen(
            [str(THESIS), *line.split(), "--engine", engine],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": folder},
        )
        this = psutil.Process(run.pid)

        def workers():
            mine = words(this)
            return [p for p in this.children() if mine and words(p) == mine]

        def strike():
            """End what this is about; nothing where it has just been replaced."""
            with contextlib.suppress(psutil.Error, StopIteration, IndexError):
                match what:
                    case "worker":
                        workers()[0].kill()
                    case "server" | "session":
                        server_in(folder)[what == "session"].kill()
                    case _:
                        run.send_signal(signal.Signals[what])

        def running():
            assert run.poll() is None, run.communicate()
            return len(workers()) >= 2

        wait_until(running, 60)
        pids = [p.pid for p in workers()]
        expected = -signal.Signals[what] if what.startswith("SIG") else 1
        for _ in range(9 if expected == 1 else 1):  # until one is hit at work
            strike()
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(timeout=10)
                break
        said, told = run.communicate(timeout=90)
        assert (run.returncode, said) == (expected, ""), told
        assert "Traceback" not in told
        if expected == 1:
            assert len(told.strip().splitlines()) == 1, told
            assert re.search(r"in the middle|cannot connect", told)
        assert not any(map(psutil.pid_exists, pids))
        assert living_in(folder) == []
        # but for the lock that keeps servers from starting all at once
        assert set(os.listdir(folder)) <= {".lockfile"}
