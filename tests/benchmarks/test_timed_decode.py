"""A trial puts its steps between drains and forgets the warm-up."""

import pytest
import timed_decode as module
import torch
from timed_decode import Trial, run_trial

from thesis_lib.common.errors import InvalidInput

VOCAB = 11


class Clock:
    """A clock that only the model below moves."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Model:
    """Takes 1 s to drain and 1.25 s to step; each reads 100 bytes."""

    def __init__(self, clock):
        self.clock = clock
        self.done = []
        self.read = 0

    def new_cache(self):
        return []

    def step(self, tokens, cache, keep=None):
        cache.append(tokens)
        self.clock.now += 1.25 * (5 if len(cache) == 1 else 1)
        self.read += 100
        self.done.append("step")
        logits = torch.zeros(len(tokens), 1, VOCAB)
        logits[:, 0, (tokens[:, -1] + 1) % VOCAB] = 1
        return logits

    def drain(self):
        self.clock.now += 1.0
        self.read += 100
        self.done.append("drain")


@pytest.fixture
def model(monkeypatch):
    clock = Clock()
    made = Model(clock)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "read_from_disk_bytes", lambda: made.read)
    return made


def test_each_step_stands_between_two_drains(model, monkeypatch):
    lines = []
    monkeypatch.setattr(module, "tell", lines.append)
    trial = run_trial(model, torch.tensor([[3, 4]]), 2, warm_up=3)
    order = ["step"] * 4 + ["drain", "step", "drain", "step", "drain"]
    assert model.done == order
    assert len(lines) == len(order)
    assert trial.first_token_s == 6.25
    assert trial.warm_up_s == (1.25,) * 3
    assert trial.step_s == (1.25,) * 2
    assert trial.drain_s == (1.0,) * 3
    assert trial.read_bytes == 500  # without the warm-up
    assert trial.read_bytes_per_step == 100
    assert trial.tokens == tuple((t,) for t in range(5, 11))
    assert trial.fraction_of_drain == pytest.approx(0.8)
    assert trial.s_per_step == 1.25


def test_a_drift_of_the_link_cancels_out():
    """The link slows by a tenth at each look; every step waits for it and no more."""
    pace = [1.1**i for i in range(7)]
    trial = Trial(1.0, (), tuple(pace[1::2]), tuple(pace[::2]), None, ((1,),))
    assert trial.fraction_of_drain == pytest.approx(1, abs=0.005)


def test_a_run_of_steps_stands_between_two_drains(model):
    """Six steps and a drain every third: each is held against the two around it."""
    trial = run_trial(model, torch.tensor([[3]]), 6, warm_up=0, drain_every=3)
    assert "".join(each[0] for each in model.done) == "sdsssdsssd"
    assert trial.read_bytes_per_step == 100
    paced = Trial(1.0, (), (2.0,) * 6, (1.0, 2.0, 5.0), None, ((1,),))
    assert paced.fractions == (0.75,) * 3 + (1.75,) * 3


@pytest.mark.parametrize("drain_every", [0, 2, -1])
def test_steps_that_are_left_over_are_rejected(model, drain_every):
    with pytest.raises(InvalidInput, match=r"must be a divisor of --steps 3"):
        run_trial(model, torch.tensor([[3]]), 3, drain_every=drain_every)
    assert not model.done
