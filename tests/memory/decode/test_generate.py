"""Text from a streamed model: drawn, ended, answered and told as it is asked for."""

import math

import pytest
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import MiB
from thesis_lib.memory.decode.generate import (
    Conversation,
    Sampling,
    generate_text,
)
from thesis_lib.memory.decode.generate import write as write_tokens
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.offload.offloaded_model import open_streamed

PROMPT = "One, two, three,"
BUDGET = 110 * MiB


@pytest.fixture(scope="module")
def resident():
    return smollm2.load()


def write(prompt, new=8, tell=None, **wishes):
    return generate_text(
        "smollm2", BUDGET, prompt, new, writing=Sampling(**wishes), tell=tell
    )


@torch.no_grad()
def continued(resident, rows, new, **options):
    """What transformers writes after token rows, padded on their left."""
    model, tokenizer = resident
    longest = max(map(len, rows))
    tokens = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    written = model.generate(
        tokens, attention_mask=mask, max_new_tokens=new, **options
    )[:, longest:]
    return tokenizer.batch_decode(written, skip_special_tokens=True)


@pytest.mark.parametrize(("heat", "top_p"), [(0.7, 0.9), (1.5, 1.0)])
def test_drawn_text_is_that_of_transformers_for_the_same_seed(resident, heat, top_p):
    _, tokenizer = resident
    torch.manual_seed(11)
    (expected,) = continued(
        resident, [tokenizer(PROMPT).input_ids], 8,
        do_sample=True, temperature=heat, top_p=top_p, top_k=0,
    )  # fmt: skip
    found = [write(PROMPT, temperature=heat, top_p=top_p, seed=11) for _ in range(2)]
    assert [said["text"] for said in found] == [expected] * 2
    assert found[0]["device_peak_bytes"] <= found[0]["planned_peak_bytes"] <= BUDGET
    other = write(PROMPT, temperature=heat, top_p=top_p, seed=12)
    assert other["text"] != expected


def test_prompts_of_a_batch_are_continued_as_transformers_does(resident):
    _, tokenizer = resident
    prompts = [PROMPT, "The capital of France is", "A"]
    expected = continued(
        resident, [tokenizer(each).input_ids for each in prompts], 6, do_sample=False
    )
    said = write(prompts, 6)
    assert said["texts"] == expected
    assert said["device_peak_bytes"] <= said["planned_peak_bytes"]
    assert "text" not in said


def test_a_text_ends_before_the_first_stop_word():
    whole = write(PROMPT, 10)["text"]
    assert whole.startswith(" four, five, six")
    assert write(PROMPT, 10, stop=("six", "five,"))["text"] == " four, "
    assert write(PROMPT, 10, stop=("no such word",))["text"] == whole
    both = write([PROMPT, "The capital of France is"], 10, stop=(" six",))["texts"]
    assert both[0] == " four, five,"
    assert both[1].startswith(" Paris")


@pytest.mark.parametrize("stop", [(), ("five, six",), (" six, sev", "seven")])
def test_what_is_told_as_it_comes_is_the_text(stop):
    told = []
    said = write(PROMPT, 10, told.append, stop=stop)
    assert "".join(told) == said["text"]
    assert len(told) > 1


def test_a_message_is_put_in_the_template_of_the_model(resident):
    _, tokenizer = resident
    message = [{"role": "user", "content": "Say hello."}]
    rows = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    (expected,) = continued(resident, [rows], 8, do_sample=False)
    assert write("Say hello.", chat=True)["text"] == expected
    assert write("Say hello.")["text"] != expected


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (
            {"temperature": 0.0},
            "temperature must be a finite number from 1e-06, got 0.0",
        ),
        ({"temperature": 1e-38}, "temperature must be .* got 1e-38"),
        ({"temperature": math.nan}, "temperature must be a finite number .* got nan"),
        ({"temperature": math.inf}, "temperature must be a finite number .* got inf"),
        ({"seed": 2**63}, "seed=9223372036854775808 must lie in 0 to"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0 must lie"),
        ({"top_p": 0.5}, "give a temperature as well"),
        ({"stop": ("a", "")}, "a stop word is empty"),
    ],
)
def test_wishes_that_mean_nothing_are_rejected(wishes, words):
    with pytest.raises(InvalidInput, match=words):
        Sampling(**wishes)


def test_a_conversation_and_a_prompt_have_tokens():
    with open_streamed(smollm2.checkpoint(), 96 * MiB) as model:
        with pytest.raises(InvalidInput, match="max_new_tokens=0"):
            Conversation(model, None, 0)
        with pytest.raises(InvalidInput, match="one at least"):
            model.generate(torch.empty((1, 0), dtype=torch.long))
        model.model.generation_config.num_beams = 4
        prompt = torch.ones((1, 2), dtype=torch.long)
        with pytest.raises(InvalidInput, match="num_beams=4"):
            write_tokens(model, None, prompt, 1, Sampling(), streamer=object())


def test_an_empty_prompt_of_a_batch_is_named():
    with pytest.raises(InvalidInput, match="prompt 2 of 2 is empty"):
        write(["a", ""])
    with pytest.raises(InvalidInput, match="there is no prompt"):
        write([])
