"""Texts that share passes are those that are written alone, within the same plan."""

import gc
import os
import random
from collections import deque

import pytest
import tiny
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.convert import convert
from thesis_lib.memory.formats.base import find_format
from thesis_lib.memory.model.spec import ARCHITECTURES
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.store import StoreDamaged
from thesis_serve.model import together
from thesis_serve.model.together import ContinuousBatch

CONTEXT = 24
SHAPE = {"context": CONTEXT, "pass_tokens": 5, "logit_tokens": 1, "generating": True}


def writer(model, seed):
    """Writes a text of its own length and kind, which `seed` says."""
    draw = random.Random(seed)
    n = draw.randint(1, CONTEXT - 2)
    new = draw.randint(1, CONTEXT - n)
    drawn = {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "top_k": 0}
    options = drawn if seed % 2 else {"do_sample": False}
    prompt = tiny.tokens(seed, 1, n)

    def write():
        torch.manual_seed(seed)
        written = model.generate(prompt, max_new_tokens=new, **options)
        return written[0, n:].tolist()

    return write


def finish(texts):
    """Step until every text is written; how often the model read its weights."""
    count = 0
    while texts.lanes:
        texts.step()
        count += 1
    return count


def passes(model, write):
    """How often the model reads its weights for one text alone, and the text."""
    texts = ContinuousBatch(model)
    lane = texts.join(write)
    return finish(texts), lane.result


def read_by(model, act):
    """The bytes that `act` reads from an empty ring on, once all have landed."""
    model.source.ring.settle()
    before = model.bytes_read
    act()
    model.source.ring.settle()
    return model.bytes_read - before


def in_type(folder, dtype):
    tiny.write(folder, dtype=dtype)
    return folder


def in_format(folder, name):
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    tiny.write(folder / "dense", head_dim=16, **shape)
    convert(folder / "dense", folder / name, find_format(name))
    return folder / name


def of(folder, architecture):
    tiny.write(folder, architecture)
    return folder


def split(folder, architecture):
    tiny.write_wide(folder, architecture)
    return folder


CASES = [
    *((of, name) for name in ARCHITECTURES),
    *((split, name) for name in ("llama", "gemma2", "opt")),
    *((in_type, dtype) for dtype in (torch.float32, torch.float16)),
    *((in_format, name) for name in ("nf4", "int8", "lossless")),
]


@pytest.mark.parametrize(("make", "what"), CASES)
def test_sequence_has_the_same_bits_in_any_batch(tmp_path, make, what):
    folder = make(tmp_path, what)
    plan = tiny.plan_split if make is split else tiny.plan_tight
    with tiny.metering(folder, 1, plan=plan, batch=3, **SHAPE) as (model, _):
        alone = {seed: writer(model, seed)() for seed in range(6)}
        texts, waiting = ContinuousBatch(model), list(alone)
        lanes, order = {}, random.Random(str(what))
        while waiting or texts.lanes:
            while waiting and len(texts.lanes) < 3 and order.random() < 0.7:
                seed = waiting.pop()
                lanes[seed] = texts.join(writer(model, seed))
            if texts.lanes:
                texts.step()
        assert {seed: lane.result for seed, lane in lanes.items()} == alone


@pytest.fixture
def folder(tmp_path):
    tiny.write(tmp_path, dtype=torch.float32)
    return tmp_path


@pytest.fixture
def model(folder):
    with tiny.streamed(folder, 0, 2, batch=3, **SHAPE) as opened:
        yield opened


def test_what_is_read_is_read_once_for_all(model):
    counts = [passes(model, writer(model, seed))[0] for seed in (2, 4, 6)]
    texts = ContinuousBatch(model)
    for seed in (2, 4, 6):
        texts.join(writer(model, seed))

    def drain_as_often():
        for _ in range(max(counts)):
            model.drain()

    assert read_by(model, lambda: finish(texts)) == read_by(model, drain_as_often)


@pytest.mark.parametrize(
    ("mixes", "pass_tokens", "at_once"), [(False, 4, 3), (True, 4, 1), (False, 3, 1)]
)
def test_a_matrix_is_multiplied_once_for_all_where_no_kernel_mixes_rows(
    folder, monkeypatch, mixes, pass_tokens, at_once
):
    """Of the layers, the prompts apart: they are passes of several rows.

    And where a plan allows a pass as many rows as a trial of kernels holds.
    """
    rows = []

    def counted(x, *weights):
        rows.append(x.shape[-2])
        return torch.nn.functional.linear(x, *weights)

    monkeypatch.setattr(together, "mixes_rows", lambda *_: mixes)
    monkeypatch.setattr(together, "linear", counted)
    shape = {"context": 8, "pass_tokens": pass_tokens, "logit_tokens": 1, "batch": 3}
    with tiny.streamed(folder, 0, 2, **shape) as model:

        def write():
            cache = model.new_cache()
            model.step(tiny.tokens(0, 1, pass_tokens), cache, keep=1)
            model.step(tiny.tokens(1, 1, 1), cache)

        texts = ContinuousBatch(model)
        for _ in range(3):
            texts.join(write)
        texts.step()
        rows.clear()
        texts.step()
    assert set(rows) == {at_once}
    matrices = 7 * model.spec.layers + 1
    assert len(rows) == matrices * (3 // at_once)


def test_a_text_that_fails_or_leaves_concerns_no_other(model):
    _, expected = passes(model, writer(model, 4))
    texts = ContinuousBatch(model)

    def fails():
        model.generate(tiny.tokens(0, 1, 3), max_new_tokens=2)
        raise RuntimeError("of its own")

    stays, broken, left = map(texts.join, (writer(model, 4), fails, writer(model, 6)))
    texts.step()
    texts.leave(left)
    texts.leave(left)
    assert torch.is_grad_enabled()
    finish(texts)
    assert stays.result == expected
    assert str(broken.failure) == "of its own"
    assert (left.dead, left.result) == (True, None)
    assert passes(model, writer(model, 4))[1] == expected


def test_a_text_that_failed_holds_nothing(model):
    def raises(tokens, scores):
        raise RuntimeError

    def fails():
        model.generate(
            tiny.tokens(0, 1, 19), max_new_tokens=3, stopping_criteria=[raises]
        )

    gc.disable()
    try:
        with DeviceBudget() as budget:
            model.charge(budget)
            kept = []
            for _ in range(9):
                texts = ContinuousBatch(model)
                kept.append(texts.join(fails))
                finish(texts)
    finally:
        gc.enable()
    assert all(isinstance(lane.failure, RuntimeError) for lane in kept)
    assert budget.peak_bytes <= model.plan.device_peak_bytes


def test_random_draws_of_other_sequences_are_unchanged(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    passes(model, writer(model, 3))
    assert torch.equal(torch.rand(3), expected)


def test_a_text_that_the_plan_has_no_room_for_is_rejected(model):
    texts = ContinuousBatch(model)
    for seed in (2, 4, 6):
        texts.join(writer(model, seed))
    with pytest.raises(InvalidInput, match="3 texts are written already"):
        texts.join(writer(model, 8))
    long = ContinuousBatch(model).join(
        lambda: model.generate(tiny.tokens(0, 1, 20), max_new_tokens=9)
    )
    assert isinstance(long.failure, InvalidInput)
    texts.close()
    assert texts.lanes == []
    assert passes(model, writer(model, 4))[1] is not None


def test_damaged_file_is_not_blamed_on_a_client(tmp_path):
    tiny.write_wide(tmp_path)  # whose token table is read by rows, by each text
    with tiny.streamed(tmp_path, plan=tiny.plan_split, batch=3, **SHAPE) as model:
        texts = ContinuousBatch(model)
        texts.join(writer(model, 2))
        os.utime(tmp_path / "model.safetensors", (1, 1))
        with pytest.raises(StoreDamaged):
            texts.join(writer(model, 4))
        assert texts.lanes == []


def test_a_damaged_file_ends_all_of_them(folder, model):
    texts = ContinuousBatch(model)
    lanes = [texts.join(writer(model, seed)) for seed in (2, 4)]
    file = next(folder.glob("*.safetensors"))
    with file.open("r+b") as damaged:
        damaged.truncate(file.stat().st_size // 2)
    with pytest.raises(StoreDamaged):
        deque(iter(texts.step, None), maxlen=0)
    assert texts.lanes == []
    assert all(lane.dead for lane in lanes)
