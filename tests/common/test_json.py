"""JSON that others wrote is rejected in one sentence, without messages of Python."""

import pytest

from thesis_book.execute.records import Record
from thesis_lib.common.errors import InvalidInput, parse_object
from thesis_lib.common.files import read_record
from thesis_lib.sequencer.engine import command_log
from thesis_serve.admission.log import replay

FIRST = (
    b'{"schema": "thesis-live-log/1", "policy": "fifo", "own": false, "workers": 1,'
    b' "slo_s": 1.0, "most_waiting": 10, "feature_names": [], "batch_size": 1}\n'
)
DAMAGED = {
    "invalid UTF-8": b'{"a": "\xff"}',
    "UTF-32": '{"a": 1}'.encode("utf-32"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-8 with a mark": '{"a": 1}'.encode("utf-8-sig"),
    "nested": b'{"a": ' + b"[" * 200_000,
    "a huge number": b'{"a": ' + b"9" * 5000 + b"}",
    "an infinite number": b'{"a": 1e999}',
    "half a character": b'{"a": "\\ud800"}',
    "a name twice": b'{"a": 1, "a": 2}',
    "no object": b"[1]",
    "cut": b'{"a"',
}
OF_PYTHON = (
    "codec", "recursion", "Error", "Expecting", "digits", "argument", "NoneType",
)  # fmt: skip


def read_header(raw, folder):
    (folder / "log").write_bytes(command_log.MAGIC + command_log._record(raw, 0))
    command_log.read_log(folder / "log")


def read_command(raw, folder):
    scale = b'{"version": 1, "seed": 0, "scale": {"name": "YcsbScale",'
    scale += b' "files": 1, "records": 5}}'
    records = (command_log._record(each, 0) for each in (scale, raw))
    (folder / "log").write_bytes(command_log.MAGIC + b"".join(records))
    command_log.read_log(folder / "log")


def read_file(read, before=b""):
    def call(raw, folder):
        (folder / "own.json").write_bytes(before + raw + b"\n")
        read(folder / "own.json")

    return call


READERS = {
    "parse_object": lambda raw, folder: parse_object(raw, "it", "an object"),
    "decision log": read_file(replay),
    "event of a decision log": read_file(replay, FIRST),
    "header of a command log": read_header,
    "command": read_command,
    "record of a chapter": read_file(Record.read),
    "record of a script": read_file(lambda path: read_record("own", path.parent)),
}


def rejection(read, *arguments, match=None):
    """The message of a reader, without words of Python."""
    with pytest.raises(InvalidInput, match=match) as told:
        read(*arguments)
    message = str(told.value)
    assert "\n" not in message
    assert not [word for word in OF_PYTHON if word in message]
    return message


@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_reader_rejects_damaged_json_in_one_sentence(read, raw, tmp_path):
    message = rejection(read, raw, tmp_path)
    assert len(message) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "event",
    [
        b"{}", b'{"t": "x", "look": 1}', b'{"t": 1, "arrive": 1}',
        b'{"t": 1, "arrive": [], "kind": "", "features": [], "slo_s": 1, '
        b'"estimate_s": 1}',
        b'{"t": 1, "end": {}}', b'{"t": 1, "leave": "x"}', b'{"t": null, "look": 1}',
        b'{"t": 1' + b"0" * 400 + b', "look": 1}',
    ],
)  # fmt: skip
def test_replay_rejects_event_of_wrong_fields_by_its_line(event, tmp_path):
    read = read_file(replay, FIRST)
    assert "supported between" not in rejection(read, event, tmp_path, match="line 2: ")


def test_replay_rejects_unknown_setting_in_one_sentence(tmp_path):
    unknown = FIRST.strip().replace(b'"workers"', b'"nonsense"')
    rejection(read_file(replay), unknown, tmp_path, match="line 1: ")


@pytest.mark.parametrize("scale", [b'"rows": 5', b'"files": "x"', b'"files": null'])
def test_read_log_rejects_unknown_scale_in_one_sentence(scale, tmp_path):
    header = b'{"version": 1, "seed": 0, "scale": {"name": "YcsbScale", %s}}' % scale
    rejection(read_header, header, tmp_path, match="does not name a database")
