"""A conversation in the terminal is that of the model, turn by turn."""

import pytest
import tiny
import torch
from typer.testing import CliRunner

from thesis_book.__main__ import app
from thesis_lib.memory.decode import generate
from thesis_lib.memory.decode.generate import GREEDY, write
from thesis_lib.memory.model.pretrained import decode, encode, read_tokenizer
from thesis_lib.memory.offload.offloaded_model import open_streamed
from thesis_lib.memory.offload.store import StoreDamaged


@pytest.fixture
def folder(tmp_path):
    tiny.write(tmp_path, vocab_size=128)
    tiny.give_tokenizer(tmp_path, tiny.TEMPLATE)
    return tmp_path


def talk(folder, said, *options):
    words = ["chat", str(folder), "--device-memory", "4MiB", "--context", "60"]
    words += ["--max-new-tokens", "3", *options]
    return CliRunner().invoke(app, words, input=said)


def answer(folder, text):
    """What the model writes after a text, in the plan of the conversation."""
    tokenizer = read_tokenizer(folder)
    with open_streamed(folder, 2**22, context=60, pass_tokens=60) as model:
        tokens = torch.tensor([encode(tokenizer, text)])
        written = write(model, tokenizer, tokens, 3, GREEDY)[0].tolist()
    return decode(tokenizer, written)


def test_every_message_is_answered_after_all_before_it(folder):
    first = answer(folder, "u:hi.a:")
    second = answer(folder, f"u:hi.a:{first}.u:so.a:")
    done = talk(folder, "hi\n\nso\n/new\nhi\n/exit\nnever\n", "--pass-tokens", "60")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == f"{first}\n{second}\n{first}\n".splitlines()


def test_too_long_message_is_dropped_and_the_chat_continues(folder):
    done = talk(folder, "a" * 70 + "\nhi\n", "--pass-tokens", "60")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == answer(folder, "u:hi.a:").splitlines()
    assert "context of 60" in done.stderr
    assert "/new begins another" in done.stderr


def test_a_file_that_is_damaged_meanwhile_ends_it(folder, monkeypatch):
    def damaged(*_):
        raise StoreDamaged("the file changed")

    monkeypatch.setattr(generate.Conversation, "say", damaged)
    done = talk(folder, "hi\nhi\n")
    assert done.exit_code == StoreDamaged.exit_code
    assert done.stderr.count("the file changed") == 1
