"""The same log, the same decisions; what is no log is refused by its line."""

import json
from statistics import fmean

import numpy as np
import pytest
import services
from services import AT_ONCE, SLO_S, WORKERS, called, crowd, drive, lifo, sequencer
from what_if import what_if

from thesis_lib.common.errors import InvalidInput
from thesis_serve import LiveSequencer, OnlineEstimator, replay
from thesis_serve.admission import machine
from thesis_serve.admission.log import DecisionLog


def logged(path, name, n=300):
    trace, estimated_s = crowd(n, 1.3, seed=2)
    live = sequencer(name, trace)
    log = DecisionLog(path, live)
    leaves = [(float(trace.arrival_s[i]) + SLO_S / 2, i) for i in range(0, n, 7)]
    drive(live, trace, estimated_s, leaves, fails=range(3, n, 11))
    live.look(live.now_s + 1)
    log.close()
    return live


@pytest.mark.parametrize("name", [*AT_ONCE, "hybrid-corrected", lifo], ids=called)
def test_a_replay_decides_what_the_log_says(name, tmp_path):
    path = tmp_path / "decisions.jsonl"
    live = logged(path, name)
    seen = replay(path, name)
    assert seen.differs_at is None
    assert seen.events == len(path.read_text().splitlines()) - 1
    assert seen.started == live.counts.started
    assert seen.refused == live.counts.refused
    if isinstance(name, str):
        assert replay(path) == seen
    else:
        with pytest.raises(InvalidInput, match="hand it to replay as `policy`"):
            replay(path)


def test_a_replay_names_the_first_line_that_differs(tmp_path):
    path = tmp_path / "decisions.jsonl"
    logged(path, "bid-price")
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "refuse" in json.loads(line))
    entry = json.loads(lines[at])
    del entry["refuse"]
    path.write_text("\n".join([*lines[:at], json.dumps(entry), *lines[at + 1 :], ""]))
    assert replay(path).differs_at == at + 1
    path.write_text("\n".join([*lines, ""]))
    assert replay(path, "fifo").differs_at is not None


def test_a_line_that_was_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "decisions.jsonl"
    logged(path, "fifo")
    whole = path.read_bytes()
    events = replay(path).events
    path.write_bytes(whole[:-5])
    assert replay(path).events == events - 1
    assert replay(path).differs_at is None


def test_no_log_is_written_over_and_none_without_its_folder(tmp_path):
    live = LiveSequencer("fifo", workers=WORKERS, slo_s=SLO_S)
    (tmp_path / "here").write_text("precious")
    with pytest.raises(InvalidInput, match="is there already"):
        DecisionLog(tmp_path / "here", live)
    assert (tmp_path / "here").read_text() == "precious"
    with pytest.raises(InvalidInput, match="no log can be written"):
        DecisionLog(tmp_path / "nowhere" / "log", live)


def test_a_full_disk_ends_the_log_with_a_whole_line_and_not_the_service(
    tmp_path, caplog
):
    path = tmp_path / "decisions.jsonl"
    live = LiveSequencer("fifo", workers=1, slo_s=1.0)
    log = DecisionLog(path, live)
    live.arrive(0, 0.0)
    before, write = path.read_bytes(), log._file.write

    class Full:
        closed = False

        def write(self, line):
            write(line[:9])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(file, name)

        def close(self):
            self.closed = True
            file.close()

    file, log._file = log._file, Full()
    assert live.end(0, 0.5).started == []
    assert live.arrive(1, 0.6).started == [1]
    assert path.read_bytes() == before
    assert "No space left" in caplog.text
    assert replay(path).differs_at is None


@pytest.mark.parametrize("name", [*AT_ONCE, "hybrid-corrected", lifo], ids=called)
def test_what_a_log_of_fifo_says_of_a_policy_is_what_that_policy_does(
    name, tmp_path, monkeypatch
):
    """Fed with arrivals, service times, departures and failures, looking at once."""
    slo_s = SLO_S / 4  # so that many are held at their deadlines
    monkeypatch.setattr(services, "SLO_S", slo_s)
    path = tmp_path / "decisions.jsonl"
    trace, _ = crowd(300, 2.5, seed=2)
    for column_s in (trace.arrival_s, trace.service_s):  # so that sums are exact
        column_s[:] = np.ceil(column_s * 2**30) / 2**30
    stays_s = [slo_s / 2, 4 * slo_s]  # some that start elsewhere have ended by then
    leaves = [(float(trace.arrival_s[i]) + stays_s[i % 2], i) for i in range(0, 300, 7)]
    start_s, *_ = drive(sequencer("fifo", trace), trace, leaves=leaves)
    leaves = [(t, i) for t, i in leaves if np.isnan(start_s[i])]  # before they start
    gone = [i for _, i in leaves]  # who would have taken what others took
    fails = [i for i in range(3, 300, 11) if i not in gone]
    live = sequencer("fifo", trace)
    log = DecisionLog(path, live)
    drive(live, trace, leaves=leaves, fails=fails)
    log.close()
    served_s = np.delete(trace.service_s, gone + fails)
    trace.service_s[gone] = fmean(served_s.tolist())
    monkeypatch.setattr(machine, "LOOK_S", 2.0**-30)
    told = sequencer(name, trace)
    drive(told, trace, leaves=leaves, looks=True, fails=fails)
    assert what_if(path, name) == told.counts
    assert what_if(path, "fifo") == live.counts
    assert told.counts.arrived == len(trace)
    assert live.counts.left == len(gone) > 0
    assert live.counts.failed == len(fails) > 0


def log_of(path, *events, **options):
    """A log of FIFO with one worker, of events told as (name, number, time)."""
    live = LiveSequencer("fifo", **{"workers": 1, "slo_s": 1} | options)
    log = DecisionLog(path, live)
    for name, number, now_s in events:
        getattr(live, name)(number, now_s)
    log.close()
    return path


def test_request_of_a_gone_client_takes_as_long_elsewhere(tmp_path):
    counts = what_if(
        log_of(
            tmp_path / "a.jsonl",
            ("arrive", 0, 0.0),
            ("arrive", 1, 0.1),
            ("leave", 0, 0.5),
            ("end", 1, 0.75),
            ("arrive", 2, 0.8),  # and has not ended when the log ends
        ),
        "bid-price",
    )
    assert (counts.arrived, counts.started, counts.left, counts.on_time) == (2, 2, 1, 1)


def test_a_number_that_comes_again_is_another_request(tmp_path):
    path = log_of(
        tmp_path / "a.jsonl",
        ("arrive", 7, 0.0), ("end", 7, 0.25), ("arrive", 7, 5.0), ("end", 7, 5.5),
    )  # fmt: skip
    counts = what_if(path, "late-edf")
    assert (counts.arrived, counts.on_time, counts.late) == (2, 2, 0)


def test_an_estimator_of_ones_own_is_asked(tmp_path):
    class Slow(OnlineEstimator):
        def predict(self, kind, features):
            return 60.0

    events = [("arrive", 0, 0.0), ("arrive", 1, 0.1), ("end", 0, 0.2), ("end", 1, 0.3)]
    path = log_of(tmp_path / "a.jsonl", *events)
    assert what_if(path, "late-edf").refused == 0
    assert what_if(path, "late-edf", Slow(0, first_s=1)).refused == 2


def fails(batch, forecast, now_s):
    return batch.decide(1 / 0, batch.deadline_s < now_s)


def of(name):
    return lambda path: logged(path, name)


def changed(change):
    """A log of FIFO whose lines are what `change` makes of them."""

    def write(path):
        logged(path, "fifo")
        lines = change(path.read_text().splitlines())
        path.write_text("".join(f"{line}\n" for line in lines))

    return write


def other_policy(policy):
    return lambda path: what_if(path, policy)


def crowded(path):
    events = [("arrive", 0, 0.0), ("arrive", 1, 0.1), ("arrive", 2, 0.2)]
    log_of(path, *events, most_waiting=1)


TELLS_NOTHING = [
    (changed(lambda lines: lines[1:]), replay, "no log of a live sequencer"),
    (changed(lambda lines: []), replay, "no log of a live sequencer"),
    (
        changed(lambda lines: [lines[0].replace("workers", "hands"), *lines[1:]]),
        replay,
        "line 1",
    ),
    (
        changed(
            lambda lines: [x.replace('"start": [3]', '"start": [4]') for x in lines]
        ),
        other_policy("fifo"),
        "a replay decides otherwise",
    ),
    (of("bid-price"), other_policy("fifo"), "nobody knows how long"),
    (crowded, other_policy("fifo"), "with `most_waiting` out of reach"),
    (log_of, other_policy("fifo"), "holds no request"),
    (of("fifo"), other_policy(fails), "'fails' raised ZeroDivisionError"),
    (of("fifo"), other_policy("nobody"), "policy='nobody' is unknown"),
]


@pytest.mark.parametrize(("write", "read", "words"), TELLS_NOTHING)
def test_unusable_log_or_policy_is_rejected(write, read, words, tmp_path):
    write(tmp_path / "decisions.jsonl")
    with pytest.raises(InvalidInput, match=words):
        read(tmp_path / "decisions.jsonl")


ARRIVES = '{"t": 1e9, "arrive": 99, "kind": "", "slo_s": 1, "estimate_s": 1, '


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", " is not readable JSON"),
        ("[1]", " holds no JSON object"),
        ("[" * 100_000, ""),
        ('{"t": 1e9}', ": expected an event"),
        ('{"look": true}', ": 't'"),
        ('{"t": 1e9, "end": 99}', ": request 99"),
        ('{"t": null, "look": true}', ""),
        ('{"t": 1e999, "look": true}', ""),
        (f'{{"t": {"9" * 400}, "look": true}}', ""),
        ('{"t": -1, "look": true}', ""),
        ('{"t": 1e9, "leave": 99}', ": request 99"),
        ('{"t": 1e9, "end": 0, "failed": "yes"}', ""),
        ('{"t": 1e9, "arrive": []}', ""),
        (ARRIVES + '"features": null}', ""),
        (ARRIVES + '"features": ["x"]}', ""),
    ],
)
def test_a_line_that_says_nothing_of_a_request_is_named(line, says, tmp_path):
    path = tmp_path / "decisions.jsonl"
    logged(path, "fifo", n=20)
    number = len(path.read_text().splitlines()) + 1
    with path.open("a") as file:
        file.write(f"{line}\n")
    for read in (replay, lambda path: what_if(path, "fifo")):
        with pytest.raises(InvalidInput, match=f"line {number}{says}"):
            read(path)
